//! The life of an identity, with the time moved by hand: tokio's clock is paused, the wall clock
//! follows it, and the world is a script.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluicegate_aws::credentials::{
    Environment, FetchError, FetchRequest, FetchResponse, Outside, OutsideError, OutsideFuture,
    Provider, Role, Sources,
};
use sluicegate_identity::{
    BACKOFF_MAX, Clock, EXPIRY_MARGIN_SECS, FIRST_WAIT_MAX, Identities, Identity, IdentitySigner,
    IdentitySpec, REJECTED_INTERVAL_SECS,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, advance, sleep};

const START: u64 = 1_795_341_600;
const HOUR: u64 = 3_600;

/// The wall clock: tokio's, and what a test adds to it.
struct Wall {
    start: Instant,
    ahead: AtomicU64,
}

impl Clock for Wall {
    fn now(&self) -> u64 {
        START + self.start.elapsed().as_secs() + self.ahead.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy)]
enum Reply {
    /// New credentials that last so many seconds.
    New(u64),
    /// The credentials of this number, for so many seconds.
    Same(u64, u64),
    /// A refusal.
    No,
    /// Silence.
    Never,
    /// A refusal of STS, with this code, its clock so many seconds ahead.
    Refused(&'static str, u64),
}

/// Answers as the script says, and after its end with new credentials for an hour.
struct World {
    wall: Arc<Wall>,
    script: Mutex<VecDeque<Reply>>,
    asked: AtomicUsize,
    sent: Mutex<Vec<FetchRequest>>,
}

impl Outside for World {
    fn fetch<'a>(
        &'a self,
        request: FetchRequest,
    ) -> OutsideFuture<'a, Result<FetchResponse, FetchError>> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        let reply = self.script.lock().unwrap().pop_front().unwrap_or(Reply::New(HOUR));
        let sts = request.method == "POST";
        self.sent.lock().unwrap().push(request);
        let now = self.wall.now();
        Box::pin(async move {
            sleep(Duration::from_millis(10)).await;
            let (number, secs) = match reply {
                Reply::New(secs) => (number, secs),
                Reply::Same(number, secs) => (number, secs),
                Reply::No => return Err(FetchError("cannot reach 127.0.0.1: down".to_owned())),
                Reply::Never => std::future::pending().await,
                Reply::Refused(code, ahead) => {
                    let body = format!(
                        "<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error>\
                         </ErrorResponse>"
                    );
                    let date = Some(now + ahead);
                    return Ok(FetchResponse { status: 403, date, body: body.into_bytes() });
                }
            };
            let ends = time(now + secs);
            let body = if sts {
                format!(
                    "<R><AssumeRoleResult><Credentials><AccessKeyId>ROLE{number}</AccessKeyId>\
                     <SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
                     <Expiration>{ends}</Expiration></Credentials></AssumeRoleResult></R>"
                )
            } else {
                format!(
                    r#"{{"AccessKeyId":"KEY{number}","SecretAccessKey":"s","Token":"t","Expiration":"{ends}"}}"#
                )
            };
            Ok(FetchResponse { status: 200, date: None, body: body.into_bytes() })
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

/// The time in ISO 8601, for times of the day that `START` begins at 10:00 and the next two.
fn time(at: u64) -> String {
    let day = at - at % 86_400;
    let date = 22 + (day - (START - START % 86_400)) / 86_400;
    let secs = at - day;
    format!("2026-11-{date}T{:02}:{:02}:{:02}Z", secs / 3_600, secs / 60 % 60, secs % 60)
}

struct Bench {
    world: Arc<World>,
    identities: Identities,
}

impl Bench {
    fn new(script: &[Reply]) -> Self {
        let wall = Arc::new(Wall { start: Instant::now(), ahead: AtomicU64::new(0) });
        let world = Arc::new(World {
            wall: Arc::clone(&wall),
            script: Mutex::new(script.iter().copied().collect()),
            asked: AtomicUsize::new(0),
            sent: Mutex::default(),
        });
        let variable = "AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned();
        let environment = BTreeMap::from([(variable, "http://127.0.0.1/".to_owned())]);
        let sources = Sources { environment: Environment::from(environment), ..Sources::default() };
        let identities = Identities::new(world.clone(), Arc::new(sources), wall, Handle::current());
        Self { world, identities }
    }

    fn container(&self) -> Arc<Identity> {
        self.identity(None)
    }

    fn identity(&self, role: Option<Role>) -> Arc<Identity> {
        self.identities.identity(IdentitySpec { provider: Provider::Container, role }).unwrap()
    }

    fn now(&self) -> u64 {
        self.world.wall.now()
    }

    fn asked(&self) -> usize {
        self.world.asked.load(Ordering::Relaxed)
    }

    /// The key a request gets without waiting.
    fn key(&self, identity: &Identity) -> Option<String> {
        identity.current(self.now()).map(|current| current.credentials.access_key.clone())
    }

    /// The key a request gets, or why it gets none; and how long it waited.
    async fn request(&self, identity: &Identity) -> (Result<String, String>, Duration) {
        let since = Instant::now();
        let got = identity.credentials(self.now()).await;
        let got = got.map(|current| current.credentials.access_key.clone());
        (got.map_err(|error| error.to_string()), since.elapsed())
    }
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

fn role(name: &str) -> Role {
    Role {
        arn: format!("arn:aws:iam::123456789012:role/{name}"),
        region: Some("eu-west-1".to_owned()),
        ..Role::default()
    }
}

#[tokio::test(start_paused = true)]
async fn many_routes_share_one_identity_and_one_fetch() {
    let bench = Bench::new(&[]);
    let routes: Vec<_> = (0..50).map(|_| bench.container()).collect();
    assert!(routes.iter().all(|identity| Arc::ptr_eq(identity, &routes[0])));
    assert_eq!(bench.asked(), 0, "nothing is fetched for a configuration that is only tried");
    let bench = &bench;
    let mut requests = tokio::task::JoinSet::new();
    for identity in routes.clone() {
        let now = bench.now();
        requests.spawn(async move { identity.credentials(now).await.map(|c| c.version) });
    }
    let versions = requests.join_all().await;
    assert!(versions.iter().all(|version| *version == versions[0]), "{versions:?}");
    assert_eq!(bench.asked(), 1);
    drop(routes);
    assert!(bench.identities.statuses().is_empty(), "the last route took it along");
    pass(2 * HOUR).await;
    assert_eq!(bench.asked(), 1, "and its task with it");
}

#[tokio::test(start_paused = true)]
async fn credentials_are_refreshed_ahead_and_no_request_waits_for_it() {
    let bench = Bench::new(&[]);
    let identity = bench.container();
    identity.warm();
    pass(1).await;
    assert_eq!(bench.key(&identity).as_deref(), Some("KEY1"));
    // An hour's credentials are renewed with 15 to 18 minutes left.
    pass(HOUR - 18 * 60 - 10).await;
    assert_eq!((bench.key(&identity).as_deref(), bench.asked()), (Some("KEY1"), 1));
    pass(3 * 60 + 20).await;
    assert_eq!((bench.key(&identity).as_deref(), bench.asked()), (Some("KEY2"), 2));
    for _ in 0..6 * 60 {
        pass(60).await;
        let (key, waited) = bench.request(&identity).await;
        assert!(key.is_ok() && waited.is_zero(), "{key:?} {waited:?}");
    }
    assert!((8..=10).contains(&bench.asked()), "{} fetches in seven hours", bench.asked());
}

#[tokio::test(start_paused = true)]
async fn old_credentials_serve_while_the_source_is_down_and_requests_fail_at_once_after_that() {
    let down = [&[Reply::New(HOUR)][..], &[Reply::No; 60]].concat();
    let bench = Bench::new(&down);
    let identity = bench.container();
    assert_eq!(bench.request(&identity).await.0.as_deref(), Ok("KEY1"));
    pass(HOUR - EXPIRY_MARGIN_SECS - 3).await;
    assert_eq!(bench.key(&identity).as_deref(), Some("KEY1"), "to the end");
    assert!(bench.asked() > 5, "it is asked again and again");
    pass(4).await;
    let (key, waited) = bench.request(&identity).await;
    let text = "no AWS credentials from container: container-role: cannot reach 127.0.0.1: down";
    assert_eq!(key.as_deref(), Err(&text.to_owned()));
    assert!(waited.is_zero(), "{waited:?}");
    let asked = bench.asked();
    for _ in 0..100 {
        assert!(bench.request(&identity).await.0.is_err());
        sleep(Duration::from_millis(1)).await;
    }
    // One may have been due.
    assert!(bench.asked() <= asked + 1, "requests do not hurry the source: {}", bench.asked());
    let status = &bench.identities.statuses()[0];
    assert!(!status.ready && status.failed > 5, "{status:?}");

    bench.world.script.lock().unwrap().clear();
    pass(BACKOFF_MAX.as_secs() * 5 / 4 + 1).await;
    assert!(bench.request(&identity).await.0.is_ok(), "and it is found again");
}

#[tokio::test(start_paused = true)]
async fn the_first_request_waits_for_a_limited_time() {
    let bench = Bench::new(&[Reply::Never]);
    let identity = bench.container();
    let (key, waited) = bench.request(&identity).await;
    let text = "no AWS credentials from container: none arrived within 5s";
    assert_eq!((key, waited), (Err(text.to_owned()), FIRST_WAIT_MAX));
    // The source is given up in the end, and asked again.
    pass(70).await;
    assert!(bench.request(&identity).await.0.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_first_fetch_that_fails_is_told_at_once() {
    let bench = Bench::new(&[Reply::No]);
    let identity = bench.container();
    let (key, waited) = bench.request(&identity).await;
    assert!(key.unwrap_err().ends_with("down") && waited < Duration::from_millis(100));
    pass(2).await;
    assert_eq!(bench.request(&identity).await, (Ok("KEY2".to_owned()), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn credentials_that_aws_refuses_are_fetched_anew_once() {
    let bench = Bench::new(&[]);
    let identity = bench.container();
    let first = identity.credentials(bench.now()).await.unwrap();
    pass(REJECTED_INTERVAL_SECS).await;
    // Ten requests are refused at the same time.
    let mut refused = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (identity, version) = (Arc::clone(&identity), first.version);
        refused.spawn(async move { identity.after_rejection(version).await.map(|c| c.version) });
    }
    let newer = refused.join_all().await;
    assert!(newer.iter().all(|version| version.is_some_and(|v| v > first.version)), "{newer:?}");
    assert_eq!(bench.asked(), 2);
    // The new ones are refused, too: that is not for us to mend.
    assert!(identity.after_rejection(newer[0].unwrap()).await.is_none());
    assert_eq!(bench.asked(), 2);
    pass(REJECTED_INTERVAL_SECS).await;
    assert!(identity.after_rejection(newer[0].unwrap()).await.is_some());
    assert_eq!(bench.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn equal_credentials_keep_their_version_and_what_was_derived_from_them() {
    let bench = Bench::new(&[Reply::New(HOUR), Reply::Same(1, HOUR), Reply::New(HOUR)]);
    let signing = IdentitySigner::new(bench.container(), "eu-west-1", "lambda").unwrap();
    let first = signing.signer(bench.now()).await.unwrap();
    pass(HOUR).await;
    assert_eq!(bench.asked(), 2);
    let second = signing.ready(bench.now()).unwrap();
    assert!(Arc::ptr_eq(&first, &second), "the signer is the same");
    pass(HOUR).await;
    let third = signing.ready(bench.now()).unwrap();
    assert_ne!(third.version(), first.version());
    assert_eq!(third.origin(), "container-role");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_asks_before_it_signs() {
    let bench = Bench::new(&[]);
    let identity = bench.container();
    assert_eq!(bench.request(&identity).await.0.as_deref(), Ok("KEY1"));
    bench.world.wall.ahead.store(2 * HOUR, Ordering::Relaxed);
    let (key, waited) = bench.request(&identity).await;
    assert_eq!(key.as_deref(), Ok("KEY2"), "old credentials are not sent");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn roles_share_the_identity_below_them() {
    let bench = Bench::new(&[]);
    let (one, other) = (bench.identity(Some(role("one"))), bench.identity(Some(role("other"))));
    assert!(!Arc::ptr_eq(&one, &other));
    assert_eq!(bench.request(&one).await.0.as_deref(), Ok("ROLE2"));
    assert_eq!(bench.request(&other).await.0.as_deref(), Ok("ROLE3"));
    assert_eq!(bench.asked(), 3, "the container once, STS twice");
    let sent = bench.world.sent.lock().unwrap();
    assert_eq!(sent[1].url, "https://sts.eu-west-1.amazonaws.com");
    let authorization = sent[1].headers.iter().find(|(name, _)| *name == "authorization").unwrap();
    assert!(authorization.1.contains("Credential=KEY1/20261122/eu-west-1/sts/aws4_request"));
    assert_eq!(one.name(), "arn:aws:iam::123456789012:role/one over container");
}

#[tokio::test(start_paused = true)]
async fn a_role_renews_the_identity_below_when_sts_refuses_it() {
    let bench = Bench::new(&[
        Reply::New(HOUR),
        Reply::Refused("ExpiredToken", 0),
        Reply::New(HOUR),
        Reply::New(HOUR),
    ]);
    let identity = bench.identity(Some(role("r")));
    assert_eq!(bench.request(&identity).await.0.as_deref(), Ok("ROLE4"));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_clock_is_learnt_from_sts_and_signed_with() {
    let bench = Bench::new(&[Reply::New(HOUR), Reply::Refused("RequestTimeTooSkewed", 600)]);
    let identity = bench.identity(Some(role("r")));
    assert_eq!(bench.request(&identity).await.0.as_deref(), Ok("ROLE3"));
    assert_eq!(identity.sts_skew().offset_secs(), 600);
    let sent = bench.world.sent.lock().unwrap();
    let date = |at: usize| {
        sent[at].headers.iter().find(|(name, _)| *name == "x-amz-date").unwrap().1.clone()
    };
    assert_eq!((&*date(1), &*date(2)), ("20261122T100000Z", "20261122T101000Z"));
}

#[tokio::test(start_paused = true)]
async fn a_role_without_credentials_below_it_says_why() {
    let bench = Bench::new(&[Reply::No]);
    let identity = bench.identity(Some(role("r")));
    let (key, _) = bench.request(&identity).await;
    assert_eq!(
        key.unwrap_err(),
        "no AWS credentials from arn:aws:iam::123456789012:role/r over container: no AWS \
         credentials from container: container-role: cannot reach 127.0.0.1: down"
    );
}

#[tokio::test(start_paused = true)]
async fn static_keys_are_there_without_a_task_or_a_wait() {
    use sluicegate_aws::sigv4::Credentials;
    let bench = Bench::new(&[]);
    let credentials =
        Credentials { access_key: "AKIA".to_owned(), secret_key: "s".into(), session_token: None };
    let spec = IdentitySpec { provider: Provider::Static(credentials), role: None };
    let identity = bench.identities.identity(spec).unwrap();
    assert_eq!(bench.key(&identity).as_deref(), Some("AKIA"));
    let version = identity.current(bench.now()).unwrap().version;
    assert!(identity.after_rejection(version).await.is_none());
    assert_eq!(bench.asked(), 0);
    assert!(!format!("{identity:?} {:?}", bench.identities.statuses()).contains("AKIA"));
}

#[tokio::test(start_paused = true)]
async fn the_clock_of_one_host_says_nothing_about_others_nor_about_when_credentials_end() {
    let bench = Bench::new(&[]);
    let identity = bench.container();
    assert_eq!(bench.request(&identity).await.0.as_deref(), Ok("KEY1"));
    let evil = identity.skew("evil.test");
    let now = bench.now();
    assert!(evil.learn(now + 20 * HOUR, now, 0), "that host's own calls follow it");
    assert_eq!(evil.offset_secs(), 72_000);
    assert_eq!(identity.skew("lambda.eu-west-1.amazonaws.com").offset_secs(), 0);
    assert!(Arc::ptr_eq(&evil, &identity.skew("evil.test")), "routes to one host share it");
    assert_eq!(bench.key(&identity).as_deref(), Some("KEY1"), "the credentials have not ended");
    assert!(bench.identities.statuses()[0].ready);
    pass(5).await;
    assert_eq!(bench.asked(), 1, "and nobody fetches them anew");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_that_nobody_waits_for_has_credentials_fetched_anew() {
    let bench = Bench::new(&[]);
    let identity = bench.container();
    let first = identity.credentials(bench.now()).await.unwrap();
    identity.reject(first.version);
    assert_eq!(bench.key(&identity).as_deref(), Some("KEY1"), "until then the old ones serve");
    pass(1).await;
    assert_eq!((bench.key(&identity).as_deref(), bench.asked()), (Some("KEY2"), 2));
}

#[tokio::test(start_paused = true)]
async fn the_sts_of_a_regions_own_partition_is_asked() {
    for (region, url) in [
        ("eu-west-1", "https://sts.eu-west-1.amazonaws.com"),
        ("cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn"),
        ("us-iso-east-1", "https://sts.us-iso-east-1.c2s.ic.gov"),
        ("eusc-de-east-1", "https://sts.eusc-de-east-1.amazonaws.eu"),
    ] {
        let bench = Bench::new(&[]);
        let role = Role { region: Some(region.to_owned()), ..role("r") };
        let identity = bench.identity(Some(role));
        assert!(bench.request(&identity).await.0.is_ok(), "{region}");
        assert_eq!(bench.world.sent.lock().unwrap()[1].url, url);
    }
}
