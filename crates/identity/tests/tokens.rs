//! Bearer tokens: what is asked of the endpoints of Google and Microsoft, and the life of a token
//! with the time moved by hand.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluicegate_aws::Secret;
use sluicegate_aws::credentials::{
    FetchError, FetchRequest, FetchResponse, Outside, OutsideError, OutsideFuture,
};
use sluicegate_fetch::{Network, NetworkFuture};
use sluicegate_identity::{
    Clock, EXPIRY_MARGIN_SECS, EntraAccount, EntraSource, GoogleAccount, GoogleSource,
    ManagedEndpoint, ServiceAccountKey, System, TokenIdentity, TokenSource, Tokens,
};
use sluicegate_testkit::clouds::{ACCOUNT, ACCOUNT_KEY, CLIENT, Clouds, IDENTITY_HEADER};
use sluicegate_testkit::{Origin, Received};
use tokio::runtime::Handle;
use tokio::time::{Instant, advance, sleep};

const START: u64 = 1_795_341_600;
const HOUR: u64 = 3_600;
const AUDIENCE: &str = "https://hello-abc.a.run.app";
const RESOURCE: &str = "api://0aa1/hello";

/// A clock that stands until it is moved.
#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> u64 {
        START + self.0.load(Ordering::Relaxed)
    }
}

/// Endpoints behind a socket, asked over the network of a running gateway.
struct Bench {
    clouds: Arc<Clouds>,
    origin: Origin,
    clock: Arc<Hand>,
    tokens: Tokens,
}

impl Bench {
    fn new() -> Self {
        let (clouds, clock) = (Clouds::at(START), Arc::new(Hand::default()));
        let origin = clouds.serve();
        let outside = Arc::new(System::new(Arc::new(Loopback)));
        let tokens = Tokens::new(outside, clock.clone(), Handle::current());
        Self { clouds, origin, clock, tokens }
    }

    fn google(&self, account: GoogleAccount) -> Arc<TokenIdentity> {
        let source = GoogleSource { account, audience: AUDIENCE.to_owned() };
        self.tokens.identity(TokenSource::Google(source))
    }

    fn entra(&self, account: EntraAccount) -> Arc<TokenIdentity> {
        let source = EntraSource { account, resource: RESOURCE.to_owned() };
        self.tokens.identity(TokenSource::Entra(source))
    }

    fn key(&self, email: &str) -> Result<Arc<ServiceAccountKey>, String> {
        let token_uri = self.origin.url("/token");
        let key = Secret::from(ACCOUNT_KEY);
        ServiceAccountKey::new(email, &key, Some("k1"), Some(&token_uri)).map(Arc::new)
    }

    fn client(&self, secret: &str) -> EntraAccount {
        EntraAccount::Client {
            authority: self.origin.url(""),
            tenant: CLIENT[0].to_owned(),
            client_id: CLIENT[1].to_owned(),
            client_secret: Secret::from(secret),
        }
    }

    /// What a function that wants a token for `service` answers a request of the identity.
    async fn call(&self, identity: &TokenIdentity, service: &str) -> Result<String, String> {
        let token = identity.token(self.clock.now()).await.map_err(|error| error.to_string())?;
        let request = Received {
            target: format!("/run/{service}"),
            headers: vec![("Authorization".to_owned(), token.header().expose().to_owned())],
            ..Received::default()
        };
        let (status, _) = self.clouds.answer(&request).plain();
        Ok(if status == 200 { "called" } else { "refused" }.to_owned())
    }
}

#[tokio::test]
async fn google_gives_a_token_for_the_audience_and_for_no_other() {
    let bench = Bench::new();
    let key = bench.google(GoogleAccount::Key(bench.key(ACCOUNT).unwrap()));
    let metadata = bench.google(GoogleAccount::Metadata { endpoint: bench.origin.url("") });
    for identity in [&key, &metadata] {
        assert_eq!(bench.call(identity, "run.app").await.as_deref(), Ok("called"));
        assert_eq!(bench.call(identity, "other.test").await.as_deref(), Ok("refused"));
    }
    let sent = bench.origin.requests();
    assert_eq!(sent.len(), 2, "one request for a token each");
    assert_eq!(
        sent[1].target,
        "/computeMetadata/v1/instance/service-accounts/default/identity\
         ?audience=https%3A%2F%2Fhello-abc.a.run.app&format=full"
    );
    let names: Vec<_> = bench.tokens.statuses().into_iter().map(|status| status.name).collect();
    assert_eq!(
        names,
        [format!("{ACCOUNT} for {AUDIENCE}"), format!("the metadata server for {AUDIENCE}")]
    );
}

#[tokio::test]
async fn a_key_file_is_read_for_each_token() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.json");
    let account = || GoogleAccount::KeyFile { path: path.clone(), token_uri: None };
    let identity = bench.google(account());
    let missing = bench.call(&identity, "run.app").await.unwrap_err();
    assert!(missing.ends_with(&format!("there is no {}", path.display())), "{missing}");

    let write = |json: serde_json::Value| std::fs::write(&path, json.to_string()).unwrap();
    write(serde_json::json!({"client_email": ACCOUNT, "private_key": ["s3cret"]}));
    let wrong =
        bench.google(GoogleAccount::KeyFile { path: path.clone(), token_uri: Some("x".into()) });
    let wrong = bench.call(&wrong, "run.app").await.unwrap_err();
    assert!(wrong.ends_with("this is no service account's key in JSON"), "{wrong}");

    write(serde_json::json!({
        "type": "service_account", "client_email": ACCOUNT, "private_key": ACCOUNT_KEY,
        "private_key_id": "k1", "token_uri": bench.origin.url("/token"), "project_id": "p",
    }));
    drop(identity);
    assert_eq!(bench.call(&bench.google(account()), "run.app").await.as_deref(), Ok("called"));
}

#[tokio::test]
async fn microsoft_gives_a_token_to_a_client_and_to_a_managed_identity() {
    let bench = Bench::new();
    let imds = || ManagedEndpoint::Imds(bench.origin.url(""));
    let inside = |header: &str| ManagedEndpoint::AppService {
        url: bench.origin.url("/msi/token"),
        header: Secret::from(header),
    };
    let managed = |endpoint, client_id: Option<&str>| EntraAccount::Managed {
        endpoint,
        client_id: client_id.map(str::to_owned),
    };
    for account in [
        bench.client(CLIENT[2]),
        managed(imds(), None),
        managed(imds(), Some(CLIENT[1])),
        managed(inside(IDENTITY_HEADER), None),
    ] {
        let identity = bench.entra(account);
        assert_eq!(bench.call(&identity, "/hello").await.as_deref(), Ok("called"), "{identity:?}");
        assert_eq!(bench.call(&identity, "/other").await.as_deref(), Ok("refused"));
    }
    for (account, expected) in [
        (
            bench.client("s3cret"),
            "no token from client client-1 of tenant-1 for api://0aa1/hello: refused with 401: \
             invalid_client AADSTS7000215: Invalid client secret",
        ),
        (
            managed(imds(), Some("nobody")),
            "no token from the managed identity nobody for api://0aa1/hello: refused with 400: \
             invalid_request Identity not found",
        ),
        (
            managed(inside("outside"), None),
            "no token from the managed identity for api://0aa1/hello: refused with 400: \
             invalid_request Required metadata header not specified",
        ),
    ] {
        let refused = bench.call(&bench.entra(account), "/hello").await;
        assert_eq!(refused.as_deref(), Err(&expected.to_owned()));
    }
}

#[tokio::test]
async fn a_statement_that_google_refuses_is_told_and_repeats_no_key() {
    let bench = Bench::new();
    let stranger = bench.google(GoogleAccount::Key(bench.key("other@p.test").unwrap()));
    assert_eq!(
        bench.call(&stranger, "run.app").await.unwrap_err(),
        format!(
            "no token from other@p.test for {AUDIENCE}: refused with 400: invalid_grant Invalid issuer"
        )
    );
    // A clock that is an hour ahead.
    bench.clock.0.store(HOUR, Ordering::Relaxed);
    let ahead = bench.google(GoogleAccount::Key(bench.key(ACCOUNT).unwrap()));
    let told = bench.call(&ahead, "run.app").await.unwrap_err();
    assert!(told.ends_with("Invalid JWT: Token must be a short-lived token"), "{told}");
    let key = bench.key(ACCOUNT).unwrap();
    assert_eq!(format!("{key:?}"), format!("ServiceAccountKey {{ email: {ACCOUNT:?}, .. }}"));
    let broken = ServiceAccountKey::new("a@b", &Secret::from("s3cret"), None, None);
    assert_eq!(broken.unwrap_err(), "private_key is no RSA key in PEM");
}

#[tokio::test]
async fn every_input_tells_token_identities_apart() {
    let bench = Bench::new();
    let key = |email: &str, id: Option<&str>, uri: &str| {
        let key = Secret::from(ACCOUNT_KEY);
        GoogleAccount::Key(Arc::new(ServiceAccountKey::new(email, &key, id, Some(uri)).unwrap()))
    };
    let google = |account, audience: &str| {
        TokenSource::Google(GoogleSource { account, audience: audience.to_owned() })
    };
    let file = |path: &str, uri: Option<&str>| GoogleAccount::KeyFile {
        path: PathBuf::from(path),
        token_uri: uri.map(str::to_owned),
    };
    let metadata = |endpoint: &str| GoogleAccount::Metadata { endpoint: endpoint.to_owned() };
    let entra = |account, resource: &str| {
        TokenSource::Entra(EntraSource { account, resource: resource.to_owned() })
    };
    let client = |of: [&str; 4]| {
        let [authority, tenant, client_id, secret] = of.map(str::to_owned);
        EntraAccount::Client { authority, tenant, client_id, client_secret: Secret::from(secret) }
    };
    let managed = |endpoint, client_id: Option<&str>| EntraAccount::Managed {
        endpoint,
        client_id: client_id.map(str::to_owned),
    };
    let imds = |url: &str| ManagedEndpoint::Imds(url.to_owned());
    let inside = |url: &str, header: &str| ManagedEndpoint::AppService {
        url: url.to_owned(),
        header: Secret::from(header),
    };
    let all = [
        google(key("a", None, "u"), "x"),
        google(key("a", None, "u"), "y"),
        google(key("b", None, "u"), "x"),
        google(key("a", Some(""), "u"), "x"),
        google(key("a", None, "v"), "x"),
        google(file("a", None), "x"),
        google(file("b", None), "x"),
        google(file("a", Some("u")), "x"),
        google(metadata("a"), "x"),
        google(metadata("b"), "x"),
        entra(client(["a", "b", "c", "d"]), "x"),
        entra(client(["e", "b", "c", "d"]), "x"),
        entra(client(["a", "e", "c", "d"]), "x"),
        entra(client(["a", "b", "e", "d"]), "x"),
        entra(client(["a", "b", "c", "e"]), "x"),
        entra(client(["a", "b", "c", "d"]), "y"),
        entra(managed(imds("a"), None), "x"),
        entra(managed(imds("b"), None), "x"),
        entra(managed(imds("a"), Some("")), "x"),
        entra(managed(inside("a", "h"), None), "x"),
        entra(managed(inside("a", "i"), None), "x"),
        entra(managed(inside("b", "h"), None), "x"),
    ];
    let identities: Vec<_> = all.iter().map(|it| bench.tokens.identity(it.clone())).collect();
    for (at, one) in identities.iter().enumerate() {
        for (other_at, other) in identities.iter().enumerate() {
            assert_eq!(at == other_at, Arc::ptr_eq(one, other), "{one:?} and {other:?}");
        }
    }
    let again = bench.tokens.identity(all[0].clone());
    assert!(Arc::ptr_eq(&again, &identities[0]));
    let shown = format!("{all:?} {identities:?} {:?}", bench.tokens.statuses());
    assert!(!shown.contains("PRIVATE") && !shown.contains("\"d\""), "no secret is printed");
}

/// The endpoints without a socket between, so that tokio's clock can be moved.
struct Direct {
    clouds: Arc<Clouds>,
    clock: Arc<Paused>,
}

impl Outside for Direct {
    fn fetch<'a>(
        &'a self,
        request: FetchRequest,
    ) -> OutsideFuture<'a, Result<FetchResponse, FetchError>> {
        Box::pin(async move {
            sleep(Duration::from_millis(10)).await;
            self.clouds.set_now(self.clock.now());
            let FetchRequest { method, url, headers, body, .. } = request;
            let target = url.strip_prefix("http://metadata.test").unwrap().to_owned();
            let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value));
            let headers = headers.collect();
            let received = Received {
                method: method.to_owned(),
                target,
                headers,
                body,
                ..Received::default()
            };
            let (status, body) = self.clouds.answer(&received).plain();
            Ok(FetchResponse { status, date: None, body })
        })
    }

    fn read_file<'a>(
        &'a self,
        _: &'a Path,
        _: usize,
    ) -> OutsideFuture<'a, Result<Option<Vec<u8>>, OutsideError>> {
        Box::pin(async { Ok(None) })
    }

    fn run<'a>(&'a self, _: &'a [String]) -> OutsideFuture<'a, Result<Vec<u8>, OutsideError>> {
        Box::pin(async { Err(OutsideError("no processes here".to_owned())) })
    }
}

/// tokio's clock.
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> u64 {
        START + self.0.elapsed().as_secs()
    }
}

fn paused() -> (Arc<Clouds>, Arc<Paused>, Arc<TokenIdentity>, Tokens) {
    let (clouds, clock) = (Clouds::at(START), Arc::new(Paused(Instant::now())));
    let outside = Arc::new(Direct { clouds: clouds.clone(), clock: clock.clone() });
    let tokens = Tokens::new(outside, clock.clone(), Handle::current());
    let account = GoogleAccount::Metadata { endpoint: "http://metadata.test".to_owned() };
    let source = GoogleSource { account, audience: AUDIENCE.to_owned() };
    let identity = tokens.identity(TokenSource::Google(source));
    (clouds, clock, identity, tokens)
}

/// Lets the time pass in small steps, so that tasks do what is due on the way.
async fn pass(secs: u64) {
    for _ in 0..secs {
        advance(Duration::from_secs(1)).await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
    sleep(Duration::from_millis(20)).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_ahead_and_no_request_waits_while_one_is_valid() {
    let (clouds, clock, identity, tokens) = paused();
    assert!(clouds.asked().is_empty(), "nothing is fetched for a configuration that is only tried");
    let first = identity.token(clock.now()).await.unwrap();
    assert_eq!(first.expires(), START + HOUR);
    for minute in 1..180 {
        pass(60).await;
        let began = Instant::now();
        let token = identity.token(clock.now()).await.unwrap();
        assert!(began.elapsed().is_zero(), "minute {minute}");
        assert!(token.expires() > clock.now() + 13 * 60, "minute {minute}: {token:?}");
    }
    let asked = clouds.asked().len();
    assert!((4..=6).contains(&asked), "{asked} requests in three hours");
    drop((identity, first));
    assert!(tokens.statuses().is_empty());
    pass(2 * HOUR).await;
    assert_eq!(clouds.asked().len(), asked, "its task ended with it");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_requests_share_one_refresh() {
    let (clouds, clock, identity, _tokens) = paused();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (identity, now) = (Arc::clone(&identity), clock.now());
        requests.spawn(async move { identity.token(now).await.is_ok() });
    }
    assert!(requests.join_all().await.into_iter().all(|got| got));
    assert_eq!(clouds.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_old_token_serves_to_its_end_and_then_there_is_none() {
    let (clouds, clock, identity, _tokens) = paused();
    let first = identity.token(clock.now()).await.unwrap();
    clouds.set_down(true);
    pass(HOUR - EXPIRY_MARGIN_SECS - 3).await;
    let token = identity.token(clock.now()).await.unwrap();
    assert_eq!(token.header().expose(), first.header().expose());
    assert!(clouds.asked().len() > 5, "it is asked again and again");
    pass(4).await;
    let began = Instant::now();
    let none = identity.token(clock.now()).await.unwrap_err().to_string();
    assert_eq!(none, format!("no token from the metadata server for {AUDIENCE}: refused with 503"));
    assert!(began.elapsed().is_zero(), "nobody waits for what failed");
    clouds.set_down(false);
    pass(80).await;
    assert!(identity.token(clock.now()).await.is_ok(), "and it is found again");
}

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
