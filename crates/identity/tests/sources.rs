//! Each source against a server that answers as the real one does, over real sockets, files and
//! processes; and boto3, given the same environment, as the judge of what should come out.
//!
//! The judge needs a Python that has boto3: `SLUICEGATE_PYTHON`, else the virtual environment
//! under `target/venv`. Without one, that half is left out with a line that says so.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_aws::credentials::{
    Environment, Issued, Provider, Role, Skew, Sources, Surroundings, assume_role, load,
};
use sluicegate_aws::sigv4::Credentials;
use sluicegate_fetch::{Network, NetworkFuture};
use sluicegate_identity::{Clock as _, Identities, IdentitySpec, System, SystemClock};
use sluicegate_testkit::judge::{self, Judge};
use tempfile::TempDir;

/// Far enough ahead that neither boto3 nor we see the end, near enough to be a time.
const ENDS: &str = "2099-01-01T00:00:00Z";
const ENDS_AT: u64 = 4_070_908_800;
const NOW: u64 = 1_795_341_600;

#[test]
fn the_environment_gives_keys() {
    let bench = Bench::new();
    bench.check(
        Provider::Env,
        &[("AWS_ACCESS_KEY_ID", "AKIAENV")],
        Err("env: AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not"),
    );
    bench.check(Provider::Env, &[], Err("env: AWS_ACCESS_KEY_ID is not set"));
    for provider in [Provider::Env, Provider::Chain] {
        let keys = [
            ("AWS_ACCESS_KEY_ID", "AKIAENV"),
            ("AWS_SECRET_ACCESS_KEY", "sk/+="),
            ("AWS_SESSION_TOKEN", "tok=="),
        ];
        bench.check(provider, &keys, Ok(("AKIAENV", "sk/+=", Some("tok=="), "env")));
    }
}

#[test]
fn a_container_is_asked_with_its_token_which_is_read_each_time() {
    let bench = Bench::new();
    let token_file = bench.file("token", "first");
    let url = format!("{}/creds?id=1", bench.server.url);
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token_file.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "not this one"),
    ];
    let expected = Ok(("ASIAPOD", "sk", Some("tok"), "container-role"));
    bench.server.accept_token("first");
    bench.check(Provider::Container, &variables, expected);
    bench.check(Provider::Chain, &variables, expected);
    // EKS rotates the token: the old one is refused from then on.
    bench.server.accept_token("second");
    let refused = Err("container-role: refused with 401: InvalidToken the token is not valid");
    assert_eq!(bench.load(&Provider::Container, &variables), told(refused));
    fs::write(&token_file, "second").unwrap();
    bench.check(Provider::Container, &variables, expected);
    assert_eq!(bench.load(&Provider::Container, &variables[..1]), told(refused));

    fs::write(&token_file, "two\nlines").unwrap();
    let cause = "container-role: the authorization token cannot be sent in a header";
    assert_eq!(bench.load(&Provider::Container, &variables), told(Err(cause)));
    fs::remove_file(&token_file).unwrap();
    let cause = format!("container-role: token file {token_file}: there is none");
    assert_eq!(bench.load(&Provider::Container, &variables), told(Err(&cause)));
}

#[test]
fn a_container_endpoint_elsewhere_is_not_asked_without_tls() {
    let bench = Bench::new();
    let url = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://10.0.0.1/creds")];
    let cause = "container-role: AWS_CONTAINER_CREDENTIALS_FULL_URI: without TLS only loopback \
                 addresses and 169.254.170.2, 169.254.170.23, fd00:ec2::23, localhost are asked, \
                 not \"10.0.0.1\"";
    bench.check(Provider::Container, &url, Err(cause));
    bench.check(Provider::Chain, &url, Err(cause));
    let missing = "container-role: neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor \
                   AWS_CONTAINER_CREDENTIALS_FULL_URI is set";
    bench.check(Provider::Container, &[], Err(missing));
}

#[test]
fn the_metadata_service_is_asked_by_version_2() {
    let bench = Bench::new();
    let at = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", bench.server.url.as_str())];
    let expected = Ok(("ASIAEC2", "sk", Some("tok"), "iam-role"));
    bench.check(Provider::Imds, &at, expected);
    bench.check(Provider::Chain, &at, expected);
    let seen = bench.server.seen();
    assert!(seen.iter().any(|request| request.starts_with("PUT /latest/api/token")), "{seen:?}");
    let disabled = [at[0], ("AWS_EC2_METADATA_DISABLED", "true")];
    bench.check(Provider::Imds, &disabled, Err("iam-role: AWS_EC2_METADATA_DISABLED is set"));
}

#[test]
fn version_1_of_the_metadata_service_is_asked_only_where_it_is_allowed() {
    let bench = Bench::new();
    bench.server.set("imds_v1_only", "yes");
    let at = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", bench.server.url.as_str())];
    let refused = Err("iam-role: refused with 404");
    assert_eq!(bench.load(&Provider::Imds, &at), told(refused));
    assert!(bench.server.seen().iter().all(|request| !request.starts_with("GET")));
    let allowed = Sources { imds_v1_fallback: true, ..bench.sources(&at) };
    let expected = Ok(("ASIAEC2", "sk", Some("tok"), "iam-role"));
    assert_eq!(bench.load_with(&Provider::Imds, allowed), told(expected));
}

#[test]
fn old_credentials_of_the_metadata_service_are_used_on() {
    let bench = Bench::new();
    bench.server.set("imds_ends", "2026-11-22T09:00:00Z");
    let at = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", bench.server.url.as_str())];
    let issued = bench.issued(&Provider::Imds, bench.sources(&at)).unwrap();
    assert_eq!(issued.expires, Some(NOW + sluicegate_aws::credentials::IMDS_STALE_SECS));
}

#[test]
fn a_role_that_the_instance_may_not_take_is_told_with_its_code() {
    let bench = Bench::new();
    bench.server.set("imds_code", "AssumeRoleUnauthorizedAccess");
    let at = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", bench.server.url.as_str())];
    let refused = "iam-role: refused with 200: AssumeRoleUnauthorizedAccess EC2 cannot assume it";
    bench.check(Provider::Imds, &at, Err(refused));
}

#[test]
fn a_web_identity_token_becomes_a_role() {
    let bench = Bench::new();
    let token_file = bench.file("jwt", "eyJ.first");
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod"),
        ("AWS_ROLE_SESSION_NAME", "gw"),
        ("AWS_ENDPOINT_URL_STS", bench.server.url.as_str()),
    ];
    let expected = Ok(("ASIAWEB", "s<k>&", Some("eyJ.first"), "assume-role-with-web-identity"));
    for provider in [Provider::WebIdentity, Provider::Chain] {
        bench.check(provider, &variables, expected);
    }
    // The file is read each time.
    fs::write(&token_file, "eyJ.second").unwrap();
    let expected = Ok(("ASIAWEB", "s<k>&", Some("eyJ.second"), "assume-role-with-web-identity"));
    bench.check(Provider::WebIdentity, &variables, expected);
    // A line's end, as people's own files have it, is no part of the token. botocore sends it.
    fs::write(&token_file, "eyJ.third\n").unwrap();
    let expected = Ok(("ASIAWEB", "s<k>&", Some("eyJ.third"), "assume-role-with-web-identity"));
    assert_eq!(bench.load(&Provider::WebIdentity, &variables), told(expected));
    fs::write(&token_file, "expired").unwrap();
    let refused = "assume-role-with-web-identity: refused with 400: ExpiredTokenException Token \
                   expired: current date/time must be before the expiration date/time";
    bench.check(Provider::WebIdentity, &variables, Err(refused));
    let no_role = [variables[0]];
    let cause = "assume-role-with-web-identity: a token file is named, a role is not: AWS_ROLE_ARN \
                 or `role_arn`";
    bench.check(Provider::Chain, &no_role, Err(cause));
}

#[test]
fn profiles_are_read_as_boto3_reads_them() {
    let bench = Bench::new();
    let jwt = bench.file("jwt", "eyJ.first");
    let script = bench.file(
        "creds.sh",
        "echo '{\"Version\":1,\"AccessKeyId\":\"AKIAPROC\",\"SecretAccessKey\":\"'\"$1\"'\"}'\n",
    );
    let config = format!(
        "[default]\nregion = eu-west-1\naws_access_key_id = AKIADEFAULT\n\
         aws_secret_access_key = from config\n\
         [profile plain]\naws_access_key_id = AKIACONFIG\naws_secret_access_key = c\n\
         [profile config-only]\naws_access_key_id : AKIACONFIG2\naws_secret_access_key = a=b:c\n\
         [profile process]\ncredential_process = sh {script} \"x y\"\n\
         [profile process-plain]\ncredential_process = sh {script} xy\n\
         [profile \"with space\"]\naws_access_key_id = AKIASPACE\naws_secret_access_key = s\n\
         [profile role]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = keys\n\
         external_id = ext\nrole_session_name = me\nduration_seconds = 1800\n\
         region = eu-central-1\n\
         [profile over-role]\nrole_arn = arn:aws:iam::123456789012:role/second\n\
         source_profile = role\nregion = eu-central-1\n\
         [profile self]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = self\n\
         region = eu-central-1\naws_access_key_id = AKIASELF\naws_secret_access_key = self\n\
         [profile from-env]\nrole_arn = arn:aws:iam::123456789012:role/r\n\
         credential_source = Environment\nregion = eu-central-1\n\
         [profile from-ec2]\nrole_arn = arn:aws:iam::123456789012:role/r\n\
         credential_source = Ec2InstanceMetadata\nregion = eu-central-1\n\
         [profile web]\nrole_arn = arn:aws:iam::123456789012:role/pod\n\
         web_identity_token_file = {jwt}\nregion = eu-central-1\n\
         [profile over-web]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = web\n\
         region = eu-central-1\n\
         [profile circle-a]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = circle-b\n\
         [profile circle-b]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = circle-a\n\
         [profile both]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = keys\n\
         credential_source = Environment\n\
         [profile neither]\nrole_arn = arn:aws:iam::123456789012:role/r\n\
         [profile no-source]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = gone\n\
         [profile sso]\nsso_session = corp\nsso_account_id = 123456789012\nsso_role_name = dev\n\
         [profile sso-old]\nsso_start_url = https://old.test/start\nsso_region = eu-west-1\n\
         sso_account_id = 123456789012\nsso_role_name = dev\n\
         [profile sso-half]\nsso_account_id = 123456789012\n\
         [sso-session corp]\nsso_start_url = https://corp.test/start\nsso_region = eu-west-1\n\
         sso_registration_scopes = sso:account:access\n"
    );
    let credentials = "[plain]\naws_access_key_id = AKIASHARED\naws_secret_access_key = shared\n\
                       aws_session_token = shared-token\n\
                       [keys]\naws_access_key_id = AKIAKEYS\naws_secret_access_key = keys\n\
                       [half]\naws_access_key_id = AKIAHALF\n";
    bench.file(".aws/config", &config);
    bench.file(".aws/credentials", credentials);
    for (name, token) in [("corp", "sso-token"), ("https://old.test/start", "sso-token")] {
        bench.sso_cache(name, token, ENDS);
    }
    let url = bench.server.url.as_str();
    let rest = [("AWS_ENDPOINT_URL", url), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)];
    let keys = [("AWS_ACCESS_KEY_ID", "AKIAENV"), ("AWS_SECRET_ACCESS_KEY", "env")];
    // The token of a role names who asked for it: our server puts that there.
    for (profile, expected) in [
        ("plain", Ok(("AKIASHARED", "shared", Some("shared-token"), "shared-credentials-file"))),
        ("config-only", Ok(("AKIACONFIG2", "a=b:c", None, "config-file"))),
        ("process-plain", Ok(("AKIAPROC", "xy", None, "custom-process"))),
        ("with space", Ok(("AKIASPACE", "s", None, "config-file"))),
        (
            "role",
            Ok(("ASIAROLE", "s<k>&", Some("AKIAKEYS/r/me/ext/1800/eu-central-1"), "assume-role")),
        ),
        ("self", Ok(("ASIAROLE", "s<k>&", Some("AKIASELF/r/-/-/-/eu-central-1"), "assume-role"))),
        (
            "over-role",
            Ok(("ASIAROLE", "s<k>&", Some("ASIAROLE/second/-/-/-/eu-central-1"), "assume-role")),
        ),
        (
            "from-ec2",
            Ok(("ASIAROLE", "s<k>&", Some("ASIAEC2/r/-/-/-/eu-central-1"), "assume-role")),
        ),
        ("web", Ok(("ASIAWEB", "s<k>&", Some("eyJ.first"), "assume-role-with-web-identity"))),
        (
            "over-web",
            Ok(("ASIAROLE", "s<k>&", Some("ASIAWEB/r/-/-/-/eu-central-1"), "assume-role")),
        ),
        ("sso", Ok(("ASIASSO", "sk", Some("123456789012/dev"), "sso"))),
        ("sso-old", Ok(("ASIASSO", "sk", Some("123456789012/dev"), "sso"))),
        ("circle-a", Err("assume-role: profile \"circle-b\": `source_profile` goes in a circle")),
        (
            "both",
            Err(
                "assume-role: profile \"both\": both `credential_source` and `source_profile` are \
                 there",
            ),
        ),
        (
            "neither",
            Err("assume-role: profile \"neither\": `role_arn` needs `source_profile` or \
                 `credential_source`"),
        ),
        (
            "no-source",
            Err("assume-role: profile \"no-source\": its `source_profile` does not exist"),
        ),
        ("sso-half", Err("sso: profile \"sso-half\": it has no `sso_start_url`")),
        ("gone", Err("profile: there is no profile \"gone\"")),
        (
            "half",
            Err("shared-credentials-file: `aws_access_key_id` is there, `aws_secret_access_key` \
                 is not"),
        ),
    ] {
        let variables = [&rest[..], &[("AWS_PROFILE", profile)]].concat();
        for provider in [Provider::Profile, Provider::Chain] {
            bench.check(provider, &variables, expected);
        }
    }
    // Keys in the environment go before a profile in the environment...
    let variables = [&rest[..], &keys, &[("AWS_PROFILE", "plain")]].concat();
    bench.check(Provider::Chain, &variables, Ok(("AKIAENV", "env", None, "env")));
    // ...not before one that config.yaml names, and `profile` does not look at them.
    let named = Sources { profile: Some("plain".to_owned()), ..bench.sources(&variables) };
    let shared = Ok(("AKIASHARED", "shared", Some("shared-token"), "shared-credentials-file"));
    assert_eq!(bench.load_with(&Provider::Chain, named), told(shared));
    assert_eq!(bench.load(&Provider::Profile, &variables), told(shared));
    // A role over the environment.
    let variables = [&rest[..], &keys].concat();
    let from_env = Sources { profile: Some("from-env".to_owned()), ..bench.sources(&variables) };
    let expected = Ok(("ASIAROLE", "s<k>&", Some("AKIAENV/r/-/-/-/eu-central-1"), "assume-role"));
    assert_eq!(bench.load_with(&Provider::Profile, from_env), told(expected));
    // A secret with a space in it, which boto3 takes and no signature survives.
    let variables = [&rest[..], &[("AWS_PROFILE", "process")]].concat();
    let cause = "custom-process: the secret key is empty or not visible ASCII";
    assert_eq!(bench.load(&Provider::Profile, &variables), told(Err(cause)));

    bench.sso_cache("corp", "sso-token", "2026-11-22T09:00:00Z");
    let variables = [&rest[..], &[("AWS_PROFILE", "sso")]].concat();
    let cause = "sso: there is no valid token in the SSO cache: run `aws sso login`";
    assert_eq!(bench.load(&Provider::Profile, &variables), told(Err(cause)));
    bench.sso_cache("corp", "revoked", ENDS);
    let cause = "sso: refused with 401: there is no valid token in the SSO cache: run `aws sso \
                 login`";
    bench.check(Provider::Profile, &variables, Err(cause));
}

#[test]
fn roles_are_asked_for_with_signatures_that_botocore_accepts() {
    let Some(judge) =
        Judge::start(&["--cred", "ASIABASE:base/secret:base-token", "--service", "sts"])
    else {
        return;
    };
    let bench = Bench::new();
    let role = Role {
        arn: "arn:aws:iam::123456789012:role/r".to_owned(),
        external_id: Some("a:b/c=".to_owned()),
        tags: vec![("team".to_owned(), "a b&c é".to_owned())],
        region: Some("eu-west-1".to_owned()),
        endpoint: Some(format!("http://{}", judge.addr)),
        ..Role::default()
    };
    let ask = |secret: &str| {
        let base = Credentials {
            access_key: "ASIABASE".to_owned(),
            secret_key: secret.into(),
            session_token: Some("base-token".into()),
        };
        let (system, sources, skew) =
            (System::new(Arc::new(Loopback)), Sources::default(), Skew::new());
        let now = SystemClock.now();
        let surroundings = Surroundings { outside: &system, sources: &sources, now, skew: &skew };
        bench.runtime.block_on(assume_role(&base, &role, surroundings)).unwrap_err().to_string()
    };
    // The judge knows signatures, not STS: it accepts one by telling in JSON what it got.
    assert_eq!(ask("base/secret"), "assume-role: the answer of STS: no XML at line 1");
    assert_eq!(ask("another"), "assume-role: refused with 403");
}

/// moto is a second STS that we did not write. It checks no signature of a made-up user.
#[test]
fn a_role_over_static_keys_is_taken_at_moto() {
    let Some((_moto, url)) = moto() else { return };
    let bench = Bench::new();
    let sources = Sources {
        sts_endpoint: Some(url),
        region: Some("eu-west-1".to_owned()),
        ..bench.sources(&[])
    };
    let identities = Identities::new(
        Arc::new(System::new(Arc::new(Loopback))),
        Arc::new(sources),
        Arc::new(SystemClock),
        bench.runtime.handle().clone(),
    );
    let credentials = Credentials {
        access_key: "AKIABASE".to_owned(),
        secret_key: "base".into(),
        session_token: None,
    };
    let role = Role {
        arn: "arn:aws:iam::123456789012:role/r".to_owned(),
        session_name: Some("gateway".to_owned()),
        duration_secs: Some(1_800),
        tags: vec![("team".to_owned(), "a b".to_owned())],
        ..Role::default()
    };
    let spec = IdentitySpec { provider: Provider::Static(credentials), role: Some(role) };
    let identity = identities.identity(spec).unwrap();
    let now = SystemClock.now();
    let current = bench.runtime.block_on(identity.credentials(now)).unwrap();
    assert!(current.credentials.access_key.starts_with("ASIA"), "{current:?}");
    assert!(current.credentials.session_token.is_some());
    assert!((now + 1_790..=now + 1_810).contains(&current.expires.unwrap()), "{current:?}");
    assert_eq!(current.origin, "assume-role");
}

/// moto's server on a free port, where the tests' Python has it.
fn moto() -> Option<(Stopped, String)> {
    let Some(python) = std::env::var_os("SLUICEGATE_PYTHON") else {
        println!("skipped: SLUICEGATE_PYTHON names no Python with moto[server]");
        return None;
    };
    let has =
        Command::new(&python).args(["-c", "import moto.server"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        println!("skipped: the Python of SLUICEGATE_PYTHON has no moto[server]");
        return None;
    }
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let start = "import sys; from moto.server import main; main(sys.argv[1:])";
    let process = Command::new(python)
        .args(["-c", start, "-H", "127.0.0.1", "-p", &address.port().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Stopped(process);
    for _ in 0..600 {
        if TcpStream::connect(address).is_ok() {
            return Some((process, format!("http://{address}")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("moto did not start within a minute");
}

/// A process that ends with its test.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_broken_file_is_named_with_its_line() {
    let bench = Bench::new();
    let path = bench.file(".aws/credentials", "[a]\nwJalrXUtnFEMI\n");
    let cause = format!("profile: {path}: line 2: it is no `key = value`");
    bench.check(Provider::Chain, &[], Err(&cause));
    fs::write(&path, vec![b'#'; sluicegate_aws::credentials::FILE_BYTES_MAX + 1]).unwrap();
    let cause = format!("profile: cannot read {path}: it is longer than 1048576 bytes");
    assert_eq!(bench.load(&Provider::Chain, &[]), told(Err(&cause)));
    fs::write(&path, vec![b'#'; sluicegate_aws::credentials::FILE_BYTES_MAX]).unwrap();
    assert!(bench.load(&Provider::Profile, &[]).unwrap_err().contains("there is no profile"));
}

#[test]
fn commands_that_fail_are_told_without_their_arguments() {
    let bench = Bench::new();
    for (command, cause) in [
        ("sh -c 'exit 3' --key=wJalr", "running sh: it ended with exit status: 3"),
        ("sh -c 'head -c 70000 /dev/zero'", "running sh: it is longer than 65536 bytes"),
        ("/gone/away --key=wJalr", "running /gone/away: No such file or directory (os error 2)"),
        ("sh -c 'echo {}'", "only `Version` 1 of the output is known"),
        ("'", "`credential_process` cannot be split into words"),
    ] {
        let sources =
            Sources { credential_process: Some(command.to_owned()), ..bench.sources(&[]) };
        let expected = format!("custom-process: {cause}");
        assert_eq!(bench.load_with(&Provider::Profile, sources), told(Err(&expected)));
    }
}

#[test]
fn a_chain_without_anything_says_what_each_source_misses() {
    let bench = Bench::new();
    let text = bench.load(&Provider::Chain, &[]).unwrap_err();
    for part in [
        "no source of the chain is configured (env: AWS_ACCESS_KEY_ID is not set; ",
        "profile: there is no profile \"default\"; ",
        "container-role: neither ",
        "iam-role: cannot reach ",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// Access key, secret key, token, origin; or the error's text.
type Told = Result<(String, String, Option<String>, String), String>;
type Expected<'a> = Result<(&'a str, &'a str, Option<&'a str>, &'a str), &'a str>;

fn told(expected: Expected<'_>) -> Told {
    let owned = |(id, key, token, origin): (&str, &str, Option<&str>, &str)| {
        (id.to_owned(), key.to_owned(), token.map(str::to_owned), origin.to_owned())
    };
    expected.map(owned).map_err(str::to_owned)
}

struct Bench {
    home: TempDir,
    server: Server,
    runtime: tokio::runtime::Runtime,
    /// Started by the first question: it takes a second.
    boto3: OnceLock<Option<Mutex<Boto3>>>,
}

impl Bench {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self {
            home: tempfile::tempdir().unwrap(),
            server: Server::start(),
            runtime: runtime.unwrap(),
            boto3: OnceLock::new(),
        }
    }

    /// A file in the home directory.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn sso_cache(&self, session: &str, token: &str, ends: &str) {
        // SHA-1 of the session's name, as `sha1sum` has it.
        let hash = match session {
            "corp" => "ee0bfd2552fbd840c02cc48b6e823320543c450f",
            "https://old.test/start" => "a02fe920932556accebfc49a5a2c4ca7b7edfad4",
            _ => panic!("its hash is not here"),
        };
        let cached = json!({"accessToken": token, "expiresAt": ends, "region": "eu-west-1"});
        self.file(&format!(".aws/sso/cache/{hash}.json"), &cached.to_string());
    }

    fn environment(&self, variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        let home = self.home.path().to_str().unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        // Nothing leaves the machine: no metadata service is there unless a test names one.
        let usual = [("HOME", home), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")];
        usual.iter().chain(variables).map(own).collect()
    }

    fn sources(&self, variables: &[(&str, &str)]) -> Sources {
        let environment = Environment::from(self.environment(variables));
        Sources { environment, ..Sources::default() }
    }

    fn issued(&self, provider: &Provider, sources: Sources) -> Result<Issued, String> {
        let system = System::new(Arc::new(Loopback));
        let skew = Skew::new();
        let surroundings =
            Surroundings { outside: &system, sources: &sources, now: NOW, skew: &skew };
        self.runtime.block_on(load(provider, surroundings)).map_err(|error| error.to_string())
    }

    fn load_with(&self, provider: &Provider, sources: Sources) -> Told {
        let issued = self.issued(provider, sources)?;
        let of = issued.credentials;
        let token = of.session_token.map(|token| token.expose().to_owned());
        if issued.expires.is_some() {
            assert_eq!(issued.expires, Some(ENDS_AT));
        }
        Ok((of.access_key, of.secret_key.expose().to_owned(), token, issued.origin.to_owned()))
    }

    fn load(&self, provider: &Provider, variables: &[(&str, &str)]) -> Told {
        self.load_with(provider, self.sources(variables))
    }

    /// That we get `expected`; and where that is credentials, that boto3 gets the same, where it is
    /// an error, that boto3 gets none.
    #[track_caller]
    fn check(&self, provider: Provider, variables: &[(&str, &str)], expected: Expected<'_>) {
        let ours = self.load(&provider, variables);
        assert_eq!(ours, told(expected), "{provider} with {variables:?}");
        let boto3 = self.boto3.get_or_init(|| Boto3::start(self.home.path()).map(Mutex::new));
        let Some(boto3) = boto3 else { return };
        let boto3 = boto3.lock().unwrap().find(&self.environment(variables));
        match (&ours, &boto3) {
            (Ok(_), _) => assert_eq!(ours, boto3, "boto3 with {variables:?}"),
            // A single source knows less than boto3's chain.
            (Err(_), Ok(found)) => {
                assert!(!matches!(provider, Provider::Chain), "boto3 has {found:?}");
            }
            (Err(_), Err(_)) => {}
        }
    }
}

/// boto3 in a process of its own, which takes an environment per line.
struct Boto3 {
    _process: Stopped,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Boto3 {
    fn start(home: &Path) -> Option<Self> {
        let mut process = Command::new(judge::python("boto3")?)
            .args(["-c", BOTO3])
            // Where it looks for SSO's cache is settled when it is imported.
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python can be run");
        let input = process.stdin.take().expect("it is piped");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        Some(Self { _process: Stopped(process), input, output })
    }

    /// What its own chain finds in this environment and no other.
    fn find(&mut self, environment: &BTreeMap<String, String>) -> Told {
        writeln!(self.input, "{}", json!(environment)).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).expect("it prints JSON");
        let text = |name: &str| told[name].as_str().map(str::to_owned);
        match text("error") {
            Some(error) => Err(error),
            None => Ok((
                text("access_key").unwrap(),
                text("secret_key").unwrap(),
                text("token"),
                text("method").unwrap(),
            )),
        }
    }
}

const BOTO3: &str = r#"
import boto3, json, os, sys
path = os.environ.get("PATH", "")
for line in sys.stdin:
    os.environ.clear()
    os.environ.update({"PATH": path, **json.loads(line)})
    try:
        credentials = boto3.Session().get_credentials()
        if credentials is None:
            answer = {"error": "none"}
        else:
            frozen = credentials.get_frozen_credentials()
            answer = {"access_key": frozen.access_key, "secret_key": frozen.secret_key,
                      "token": frozen.token, "method": credentials.method}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"#;

struct Loopback;

impl Network for Loopback {
    fn address<'a>(&'a self, _: &'a str) -> NetworkFuture<'a, Result<IpAddr, String>> {
        Box::pin(async { Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)) })
    }

    fn tls(
        &self,
        _: &str,
        _: bool,
    ) -> Result<(Arc<rustls::ClientConfig>, rustls_pki_types::ServerName<'static>), String> {
        Err("no TLS here".to_owned())
    }
}

/// IMDS, a container's endpoint, STS and SSO behind one port, each as the real one answers.
struct Server {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    settings: Mutex<BTreeMap<&'static str, String>>,
    seen: Mutex<Vec<String>>,
}

impl Server {
    /// On a thread of its own, for as long as the process of the test lives.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || serve(stream, &serving));
            }
        });
        Self { url, shared }
    }

    fn set(&self, name: &'static str, value: &str) {
        self.shared.settings.lock().unwrap().insert(name, value.to_owned());
    }

    fn accept_token(&self, token: &str) {
        self.set("container_token", token);
    }

    /// The request lines so far.
    fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let Ok(read @ 1..) = stream.read(&mut chunk) else { return };
        bytes.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let header = |name: &str| {
            head.lines().skip(1).find_map(|line| {
                let (of, value) = line.split_once(": ")?;
                of.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let length = header("content-length").map_or(0, |length| length.parse().unwrap());
        if body.len() < length {
            continue;
        }
        let line = head.lines().next().unwrap_or_default();
        shared.seen.lock().unwrap().push(line.to_owned());
        let (status, kind, answer) = answer(line, &header, body, shared);
        let length = answer.len();
        let answer = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{answer}"
        );
        let _ = stream.write_all(answer.as_bytes());
        return;
    }
}

fn answer(
    line: &str,
    header: &dyn Fn(&str) -> Option<String>,
    body: &str,
    shared: &Shared,
) -> (u16, &'static str, String) {
    let set = |name: &str| shared.settings.lock().unwrap().get(name).cloned();
    let not_found = || (404, "text/plain", String::new());
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let roles = "/latest/meta-data/iam/security-credentials/";
    match (method, path) {
        ("PUT", "/latest/api/token") => {
            if set("imds_v1_only").is_some() {
                return not_found();
            }
            match header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse().ok()) {
                Some(1..=21_600_u32) => (200, "text/plain", "imds-token".to_owned()),
                _ => (400, "text/plain", String::new()),
            }
        }
        ("GET", path) if path.starts_with(roles) => {
            let token = header("x-aws-ec2-metadata-token");
            if set("imds_v1_only").is_none() && token.as_deref() != Some("imds-token") {
                return (401, "text/plain", String::new());
            }
            match &path[roles.len()..] {
                "" => (200, "text/plain", "my-role".to_owned()),
                "my-role" => {
                    let answer = match set("imds_code") {
                        Some(code) => json!({"Code": code, "Message": "EC2 cannot assume it"}),
                        None => json!({
                            "Code": "Success", "LastUpdated": "2026-11-22T08:00:00Z",
                            "Type": "AWS-HMAC", "AccessKeyId": "ASIAEC2",
                            "SecretAccessKey": "sk", "Token": "tok",
                            "Expiration": set("imds_ends").unwrap_or_else(|| ENDS.to_owned()),
                        }),
                    };
                    (200, "text/plain", answer.to_string())
                }
                _ => not_found(),
            }
        }
        ("GET", "/creds") => {
            if set("container_token") != header("authorization") {
                let answer = json!({"code": "InvalidToken", "message": "the token is not valid"});
                return (401, "application/json", answer.to_string());
            }
            let answer = json!({
                "RoleArn": "arn:aws:iam::123456789012:role/task", "AccessKeyId": "ASIAPOD",
                "SecretAccessKey": "sk", "Token": "tok", "Expiration": ENDS,
            });
            (200, "application/json", answer.to_string())
        }
        ("GET", "/federation/credentials") => {
            if header("x-amz-sso_bearer_token").as_deref() != Some("sso-token") {
                let answer = json!({"message": "Session token not found or invalid"});
                return (401, "application/json", answer.to_string());
            }
            let of = |name| field(query, name).unwrap_or_default();
            let answer = json!({"roleCredentials": {
                "accessKeyId": "ASIASSO", "secretAccessKey": "sk",
                "sessionToken": format!("{}/{}", of("account_id"), of("role_name")),
                "expiration": ENDS_AT * 1_000,
            }});
            (200, "application/json", answer.to_string())
        }
        ("POST", "/") => sts(header, body),
        _ => not_found(),
    }
}

fn sts(header: &dyn Fn(&str) -> Option<String>, body: &str) -> (u16, &'static str, String) {
    let of = |name| field(body, name);
    let refused = |code: &str, message: &str| {
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    \
             <Type>Sender</Type>\n    <Code>{code}</Code>\n    <Message>{message}</Message>\n  \
             </Error>\n  <RequestId>1</RequestId>\n</ErrorResponse>\n"
        );
        (400, "text/xml", body)
    };
    let role = of("RoleArn").unwrap_or_default();
    let role = role.rsplit('/').next().unwrap_or_default().to_owned();
    let action = of("Action").unwrap_or_default();
    let (id, token) = match action.as_str() {
        "AssumeRoleWithWebIdentity" => {
            assert_eq!(header("authorization"), None, "it is not signed");
            match of("WebIdentityToken") {
                Some(token) if token.starts_with("eyJ.") => ("ASIAWEB", token),
                _ => {
                    return refused(
                        "ExpiredTokenException",
                        "Token expired: current date/time must be before the expiration date/time",
                    );
                }
            }
        }
        "AssumeRole" => {
            // `Credential=ID/date/region/sts/aws4_request`
            let signed = header("authorization").unwrap_or_default();
            let scope = signed.split(['=', ',']).nth(1).unwrap_or_default().to_owned();
            let scope: Vec<&str> = scope.split('/').collect();
            let [id, _, region, "sts", "aws4_request"] = scope[..] else {
                return refused("MissingAuthenticationToken", "it is not signed");
            };
            // botocore makes up a name where none is given, as we do.
            let session = of("RoleSessionName")
                .filter(|name| name != "sluicegate" && !name.starts_with("botocore-session-"));
            let or = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            let parts = [
                id.to_owned(),
                role.clone(),
                or(session),
                or(of("ExternalId")),
                or(of("DurationSeconds")),
                region.to_owned(),
            ];
            ("ASIAROLE", parts.join("/"))
        }
        _ => return refused("InvalidAction", "there is no such action"),
    };
    let answer = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  \
         <{action}Result>\n    <AssumedRoleUser>\n      <AssumedRoleId>AROA:s</AssumedRoleId>\n      \
         <Arn>arn:aws:sts::123456789012:assumed-role/{role}/s</Arn>\n    </AssumedRoleUser>\n    \
         <Credentials>\n      <AccessKeyId>{id}</AccessKeyId>\n      \
         <SecretAccessKey>s&lt;k&gt;&amp;</SecretAccessKey>\n      \
         <SessionToken>{token}</SessionToken>\n      <Expiration>{ENDS}</Expiration>\n    \
         </Credentials>\n  </{action}Result>\n  <ResponseMetadata>\n    <RequestId>1</RequestId>\n  \
         </ResponseMetadata>\n</{action}Response>\n"
    );
    (200, "text/xml", answer)
}

/// A field of a form or a query, unescaped.
fn field(form: &str, name: &str) -> Option<String> {
    let raw = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::new();
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}
