//! The signer: compiled from credentials and scope once, asked for a signature per request.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::{digest, hmac};
use smallvec::SmallVec;

use super::canonical::{self, PathRule};
use super::key::{ALGORITHM, DayKey, Stamp};
use crate::Secret;

/// Who signs.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The public half, sent with every request.
    pub access_key: String,
    /// The half that never leaves the process.
    pub secret_key: Secret,
    /// The token of temporary credentials; sent and signed as `x-amz-security-token`.
    pub session_token: Option<Secret>,
}

/// Signs requests for one set of credentials, one region and one service.
///
/// It is shared freely between threads: the day's key is the only thing that changes, and it is
/// swapped without a lock.
pub struct Signer {
    credentials: Credentials,
    token: Option<Arc<str>>,
    region: String,
    service: String,
    path_rule: PathRule,
    state_payload_hash: bool,
    day_key: ArcSwap<DayKey>,
}

impl Signer {
    /// Compiles a signer. Texts that could not be sent in a header are refused here, so that
    /// signing itself cannot fail.
    pub fn new(
        credentials: Credentials,
        region: impl Into<String>,
        service: impl Into<String>,
    ) -> Result<Self, SignerError> {
        let (region, service) = (region.into(), service.into());
        let token = credentials.session_token.as_ref().map(|token| Arc::from(token.expose()));
        for (field, text) in [
            ("access key", credentials.access_key.as_str()),
            ("region", &region),
            ("service", &service),
            ("session token", token.as_deref().unwrap_or_default()),
        ] {
            if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(SignerError::NotVisibleAscii { field });
            }
        }
        // The key of 1970-01-01 is replaced by the first signature: no clock is read here.
        let first = DayKey::derive(&credentials, &region, &service, &Stamp::at(0));
        let path_rule = PathRule::of_service(&service);
        Ok(Self {
            credentials,
            token,
            region,
            service,
            path_rule,
            state_payload_hash: path_rule == PathRule::ObjectKey,
            day_key: ArcSwap::from_pointee(first),
        })
    }

    /// Reads paths by another rule than the service's own.
    #[must_use]
    pub fn with_path_rule(mut self, rule: PathRule) -> Self {
        self.path_rule = rule;
        self
    }

    /// Always sends and signs `x-amz-content-sha256`, as S3 demands (there it is on by itself).
    #[must_use]
    pub fn with_payload_hash_stated(mut self) -> Self {
        self.state_payload_hash = true;
        self
    }

    /// The region signatures are scoped to.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The service signatures are scoped to.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Signs `request` as of `now` (seconds since 1970) and leaves the headers to send in `out`,
    /// whose buffers are reused.
    pub fn sign<'a, H>(&self, now: u64, request: RequestToSign<'a, H>, out: &mut Signed)
    where
        H: IntoIterator<Item = (&'a str, &'a [u8])>,
    {
        let stamp = Stamp::at(now);
        self.with_day_key(&stamp, |day| {
            self.write_canonical_request(&stamp, day, request, out);
            self.write_string_to_sign(&stamp, day, out);
            let signature = hmac::sign(&day.key, &out.string_to_sign);
            out.authorization.push_str(", Signature=");
            out.authorization.push_str(hex_text(&hex(signature.as_ref())));
        });
    }

    /// Signs like [`Signer::sign`] and tells every stage, for tests and for people who search why
    /// a signature is refused. The canonical request holds the session token: show it to no client.
    pub fn explain<'a, H>(&self, now: u64, request: RequestToSign<'a, H>) -> Explanation
    where
        H: IntoIterator<Item = (&'a str, &'a [u8])>,
    {
        let mut signed = Signed::default();
        self.sign(now, request, &mut signed);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Explanation {
            canonical_request: text(&signed.canonical_request),
            string_to_sign: text(&signed.string_to_sign),
            signature: signed.authorization[signed.authorization.len() - HEX_LEN..].to_owned(),
            authorization: signed.authorization,
        }
    }

    fn with_day_key<R>(&self, stamp: &Stamp, then: impl FnOnce(&DayKey) -> R) -> R {
        let current = self.day_key.load();
        if current.day == stamp.day {
            return then(&current);
        }
        let derived =
            Arc::new(DayKey::derive(&self.credentials, &self.region, &self.service, stamp));
        self.day_key.store(Arc::clone(&derived));
        then(&derived)
    }

    fn write_canonical_request<'a, H>(
        &self,
        stamp: &Stamp,
        day: &DayKey,
        request: RequestToSign<'a, H>,
        out: &mut Signed,
    ) where
        H: IntoIterator<Item = (&'a str, &'a [u8])>,
    {
        let hash_buffer;
        let payload_hash: &[u8] = match &request.payload {
            PayloadHash::Bytes(b"") => EMPTY_SHA256,
            PayloadHash::Bytes(body) => {
                hash_buffer = hex(digest::digest(&digest::SHA256, body).as_ref());
                &hash_buffer
            }
            PayloadHash::Sha256(hash) => {
                hash_buffer = hex(hash);
                &hash_buffer
            }
            PayloadHash::Unsigned => UNSIGNED_PAYLOAD.as_bytes(),
        };
        let mut state_hash =
            self.state_payload_hash || matches!(request.payload, PayloadHash::Unsigned);

        let mut headers = SmallVec::<[(&str, &[u8]); 16]>::new();
        for (name, value) in request.headers {
            if name.eq_ignore_ascii_case(AMZ_CONTENT_SHA256) {
                state_hash = true;
            } else if !self.is_own(name) {
                headers.push((name, value));
            }
        }
        headers.push((AMZ_DATE, stamp.as_bytes()));
        if let Some(token) = &self.token {
            headers.push((AMZ_SECURITY_TOKEN, token.as_bytes()));
        }
        if state_hash {
            headers.push((AMZ_CONTENT_SHA256, payload_hash));
        }
        // Stable: values of one name stay in the order in which they are sent.
        headers.sort_by(|a, b| compare_names(a.0, b.0));

        let text = &mut out.canonical_request;
        text.clear();
        text.extend(request.method.bytes().map(|byte| byte.to_ascii_uppercase()));
        text.push(b'\n');
        canonical::write_path(request.path, self.path_rule, text);
        text.push(b'\n');
        canonical::write_query(request.query.unwrap_or_default(), text);
        text.push(b'\n');

        let names = &mut out.authorization;
        names.clear();
        names.push_str(&day.authorization_head);
        let names_start = names.len();
        let mut previous = None;
        for (name, value) in &headers {
            if previous.is_some_and(|previous: &str| previous.eq_ignore_ascii_case(name)) {
                // The line of the name's first value goes on.
                text.pop();
                text.push(b',');
            } else {
                if previous.is_some() {
                    names.push(';');
                }
                let start = names.len();
                names.push_str(name);
                names[start..].make_ascii_lowercase();
                text.extend_from_slice(&names.as_bytes()[start..]);
                text.push(b':');
            }
            canonical::write_value(value, text);
            text.push(b'\n');
            previous = Some(*name);
        }
        text.push(b'\n');
        text.extend_from_slice(&names.as_bytes()[names_start..]);
        text.push(b'\n');
        text.extend_from_slice(payload_hash);

        out.amz_date = *stamp.as_bytes();
        out.token.clone_from(&self.token);
        out.content_sha256.clear();
        if state_hash {
            out.content_sha256.push_str(hex_text(payload_hash));
        }
    }

    fn write_string_to_sign(&self, stamp: &Stamp, day: &DayKey, out: &mut Signed) {
        let hash = digest::digest(&digest::SHA256, &out.canonical_request);
        let text = &mut out.string_to_sign;
        text.clear();
        text.extend_from_slice(ALGORITHM.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(stamp.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(day.scope.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(&hex(hash.as_ref()));
    }

    /// Headers the signer sets itself, whatever the request brings.
    fn is_own(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case(AMZ_DATE)
            || name.eq_ignore_ascii_case(AUTHORIZATION)
            || (self.token.is_some() && name.eq_ignore_ascii_case(AMZ_SECURITY_TOKEN))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("credentials", &self.credentials)
            .field("region", &self.region)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// Why a signer cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// The text would not survive in a header, or would end it.
    #[error("the {field} must consist of visible ASCII characters")]
    NotVisibleAscii {
        /// Which text.
        field: &'static str,
    },
}

/// A request as it will be sent.
#[derive(Debug, Clone)]
pub struct RequestToSign<'a, H> {
    /// The method.
    pub method: &'a str,
    /// The path as it will be sent; see [`wire_path`](super::wire_path).
    pub path: &'a str,
    /// The query as it will be sent, without `?`; see [`wire_query`](super::wire_query).
    pub query: Option<&'a str>,
    /// The headers to sign, in the order sent and in any case: `host`, and what [`is_signed`]
    /// picks. Those which the signer sets itself may be among them and are left out.
    pub headers: H,
    /// The body, or what is known of it.
    pub payload: PayloadHash<'a>,
}

/// Whether a header belongs into the signature: `host`, `content-type` and every `x-amz-*`.
///
/// Others may be changed on the way (`user-agent`, `x-forwarded-*`, `x-amzn-trace-id`), and AWS
/// does not ask for them.
pub fn is_signed(name: impl AsRef<[u8]>) -> bool {
    let name = name.as_ref();
    name.eq_ignore_ascii_case(b"host")
        || name.eq_ignore_ascii_case(b"content-type")
        || name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"x-amz-"))
}

/// What is signed of the body.
#[derive(Debug, Clone, Copy)]
pub enum PayloadHash<'a> {
    /// The whole body, hashed while signing.
    Bytes(&'a [u8]),
    /// Its SHA-256, computed before ([`BodyHasher`] does it chunk by chunk).
    Sha256([u8; 32]),
    /// Nothing: `UNSIGNED-PAYLOAD`, which only some services accept.
    Unsigned,
}

/// Hashes a body that arrives in pieces.
#[derive(Clone)]
pub struct BodyHasher(digest::Context);

impl BodyHasher {
    /// Starts with no bytes.
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Takes the next piece.
    pub fn update(&mut self, chunk: &[u8]) {
        self.0.update(chunk);
    }

    /// The hash of all pieces.
    pub fn finish(self) -> PayloadHash<'static> {
        let hash = self.0.finish();
        PayloadHash::Sha256(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl Default for BodyHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BodyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyHasher")
    }
}

/// The headers a signature adds, in buffers that one caller reuses from request to request.
#[derive(Default)]
pub struct Signed {
    amz_date: [u8; 16],
    authorization: String,
    token: Option<Arc<str>>,
    content_sha256: String,
    canonical_request: Vec<u8>,
    string_to_sign: Vec<u8>,
}

impl Signed {
    /// The headers to send. Each takes the place of every header of its name in the request.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            (AMZ_DATE, Some(self.amz_date())),
            (AMZ_SECURITY_TOKEN, self.token.as_deref()),
            (AMZ_CONTENT_SHA256, self.content_sha256()),
            (AUTHORIZATION, Some(self.authorization())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// The value of `authorization`.
    pub fn authorization(&self) -> &str {
        &self.authorization
    }

    /// The value of `x-amz-date`.
    pub fn amz_date(&self) -> &str {
        hex_text(&self.amz_date)
    }

    /// The value of `x-amz-content-sha256`, where it has to be sent.
    pub fn content_sha256(&self) -> Option<&str> {
        Some(self.content_sha256.as_str()).filter(|hash| !hash.is_empty())
    }
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("amz_date", &self.amz_date()).finish_non_exhaustive()
    }
}

/// The stages of one signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Stage 1: the request in its canonical form.
    pub canonical_request: String,
    /// Stage 2: what is signed.
    pub string_to_sign: String,
    /// Stage 3: the signature, in hexadecimal digits.
    pub signature: String,
    /// The header that carries it.
    pub authorization: String,
}

impl fmt::Debug for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Explanation(***)")
    }
}

fn compare_names(a: &str, b: &str) -> std::cmp::Ordering {
    let a = a.bytes().map(|byte| byte.to_ascii_lowercase());
    a.cmp(b.bytes().map(|byte| byte.to_ascii_lowercase()))
}

fn hex(hash: &[u8]) -> [u8; HEX_LEN] {
    let mut text = [b'0'; HEX_LEN];
    for (pair, byte) in text.chunks_exact_mut(2).zip(hash) {
        pair[0] = LOWER_HEX[usize::from(byte >> 4)];
        pair[1] = LOWER_HEX[usize::from(byte & 15)];
    }
    text
}

fn hex_text(ascii: &[u8]) -> &str {
    std::str::from_utf8(ascii).expect("hashes and stamps are ASCII")
}

const HEX_LEN: usize = 64;
const LOWER_HEX: &[u8; 16] = b"0123456789abcdef";
const EMPTY_SHA256: &[u8; HEX_LEN] =
    b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
const AMZ_DATE: &str = "x-amz-date";
const AMZ_SECURITY_TOKEN: &str = "x-amz-security-token";
const AMZ_CONTENT_SHA256: &str = "x-amz-content-sha256";
const AUTHORIZATION: &str = "authorization";

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: Secret::from("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        };
        Signer::new(credentials, "us-east-1", "service").unwrap()
    }

    fn request<'a>(
        headers: &'a [(&'a str, &'a str)],
    ) -> RequestToSign<'a, impl Iterator<Item = (&'a str, &'a [u8])>> {
        RequestToSign {
            method: "GET",
            path: "/",
            query: None,
            headers: headers.iter().map(|(name, value)| (*name, value.as_bytes())),
            payload: PayloadHash::Bytes(b""),
        }
    }

    const HOST: (&str, &str) = ("Host", "example.amazonaws.com");
    const NOON: u64 = 1_440_938_160;

    #[test]
    fn published_example_has_its_published_signature() {
        let explained = signer().explain(NOON, request(&[HOST]));
        assert_eq!(
            explained.signature,
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
    }

    #[test]
    fn headers_the_signer_sets_are_replaced_not_doubled() {
        let signer = signer();
        let plain = signer.explain(NOON, request(&[HOST]));
        let brought = [HOST, ("X-Amz-Date", "20000101T000000Z"), ("Authorization", "Bearer x")];
        assert!(signer.explain(NOON, request(&brought)) == plain);
    }

    #[test]
    fn a_stated_payload_hash_is_replaced_by_the_true_one() {
        let mut signed = Signed::default();
        let brought = [HOST, ("X-Amz-Content-Sha256", "feed")];
        signer().sign(NOON, request(&brought), &mut signed);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(signed.content_sha256(), Some(empty));
        assert!(
            signed.authorization().contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date,")
        );
        // The next request through the same buffers states none.
        signer().sign(NOON, request(&[HOST]), &mut signed);
        assert_eq!(signed.content_sha256(), None);
        assert!(signed.authorization().contains("SignedHeaders=host;x-amz-date,"));
    }

    #[test]
    fn unsigned_payload_is_said_so() {
        let mut signed = Signed::default();
        let request = RequestToSign { payload: PayloadHash::Unsigned, ..request(&[HOST]) };
        signer().sign(NOON, request, &mut signed);
        assert_eq!(signed.content_sha256(), Some("UNSIGNED-PAYLOAD"));
    }

    #[test]
    fn a_body_hashed_in_pieces_signs_like_the_whole() {
        let mut hasher = BodyHasher::new();
        hasher.update(b"Param1");
        hasher.update(b"=value1");
        let pieces = RequestToSign { payload: hasher.finish(), ..request(&[HOST]) };
        let whole =
            RequestToSign { payload: PayloadHash::Bytes(b"Param1=value1"), ..request(&[HOST]) };
        let signer = signer();
        assert!(signer.explain(NOON, pieces) == signer.explain(NOON, whole));
    }

    #[test]
    fn the_key_changes_with_the_day_and_back() {
        let signer = signer();
        let today = signer.explain(NOON, request(&[HOST])).authorization;
        let tomorrow = signer.explain(NOON + 86_400, request(&[HOST])).authorization;
        assert!(
            tomorrow.contains("Credential=AKIDEXAMPLE/20150831/us-east-1/service/aws4_request,")
        );
        assert_ne!(today, tomorrow);
        assert_eq!(signer.explain(NOON, request(&[HOST])).authorization, today);
    }

    #[test]
    fn a_session_token_is_sent_and_signed_in_place_of_the_clients() {
        let mut credentials = signer().credentials;
        credentials.session_token = Some(Secret::from("TOKEN"));
        let signer = Signer::new(credentials, "us-east-1", "service").unwrap();
        let mut signed = Signed::default();
        signer.sign(NOON, request(&[HOST, ("x-amz-security-token", "other")]), &mut signed);
        let sent: Vec<_> = signed.headers().map(|(name, _)| name).collect();
        assert_eq!(sent, ["x-amz-date", "x-amz-security-token", "authorization"]);
        let text = String::from_utf8(signed.canonical_request).unwrap();
        assert!(text.contains("\nx-amz-security-token:TOKEN\n"));
    }

    #[test]
    fn texts_that_cannot_be_sent_are_refused_by_name() {
        let credentials = |access_key: &str, token: Option<&str>| Credentials {
            access_key: access_key.to_owned(),
            secret_key: Secret::from("anything \n goes"),
            session_token: token.map(Secret::from),
        };
        for (credentials, region, service, field) in [
            (credentials("A\r\nB", None), "r", "s", Some("access key")),
            (credentials("A", Some("T\0")), "r", "s", Some("session token")),
            (credentials("A", None), "us east", "s", Some("region")),
            (credentials("A", None), "r", "\u{e9}", Some("service")),
            (credentials("", Some("T")), "", "", None),
        ] {
            let got = Signer::new(credentials, region, service).err();
            assert_eq!(got, field.map(|field| SignerError::NotVisibleAscii { field }));
        }
    }

    #[test]
    fn host_content_type_and_amz_headers_are_signed() {
        for (name, signed) in [
            ("Host", true),
            ("content-type", true),
            ("X-Amz-Invocation-Type", true),
            ("x-amzn-trace-id", false),
            ("x-amz", false),
            ("user-agent", false),
            ("x-forwarded-for", false),
            ("connection", false),
        ] {
            assert_eq!(is_signed(name), signed, "{name}");
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let signer = signer();
        let mut signed = Signed::default();
        signer.sign(NOON, request(&[HOST]), &mut signed);
        let printed = format!("{signer:?} {signed:?} {:?}", signer.explain(NOON, request(&[HOST])));
        for secret in ["wJalr", "5fa00fa3"] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
}
