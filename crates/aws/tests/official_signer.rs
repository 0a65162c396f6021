//! Random requests, signed by this crate and by AWS's own `aws-sigv4`: the signatures must agree.
//!
//! Requests are in the form that is sent. Where the two signers are known to read a form apart
//! (trailing dot segments, tabs inside header values, bytes in a query that are not UTF-8), the
//! form is one that [`wire_path`] and [`wire_query`] never return, or AWS does not define it.

use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials as OfficialCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use proptest::prelude::*;
use sluicegate_aws::Secret;
use sluicegate_aws::sigv4::{
    Credentials, PayloadHash, RequestToSign, Signed, Signer, wire_path, wire_query,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_signers_agree(
        method in prop::sample::select(vec!["GET", "POST", "PUT", "DELETE", "PATCH"]),
        path in path(),
        query in prop::option::of(query()),
        headers in headers(),
        body in prop::collection::vec(any::<u8>(), 0..600),
        token in prop::option::of("[!-~]{1,80}"),
        now in 0_u64..4_000_000_000,
    ) {
        let path = wire_path(&path);
        let query = query.as_deref().map(wire_query).filter(|query| !query.is_empty());
        let ours = {
            let credentials = Credentials {
                access_key: "AKIDEXAMPLE".to_owned(),
                secret_key: Secret::from(SECRET),
                session_token: token.as_deref().map(Secret::from),
            };
            let signer = Signer::new(credentials, "eu-central-1", "lambda").unwrap();
            let mut signed = Signed::default();
            signer.sign(now, RequestToSign {
                method,
                path: &path,
                query: query.as_deref(),
                headers: headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())),
                payload: PayloadHash::Bytes(&body),
            }, &mut signed);
            let mut sent: Vec<_> =
                signed.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            sent.sort();
            sent
        };
        let target = match &query {
            Some(query) => format!("https://fn.test{path}?{query}"),
            None => format!("https://fn.test{path}"),
        };
        let theirs = official(method, &target, &headers, &body, token, now);
        prop_assert_eq!(ours, theirs, "target {}", target);
    }

    /// The signer canonicalises by itself: a query need not be in the form to send.
    #[test]
    fn the_form_to_send_signs_like_the_raw_query(query in query()) {
        let credentials = Credentials {
            access_key: "A".to_owned(),
            secret_key: Secret::from(SECRET),
            session_token: None,
        };
        let signer = Signer::new(credentials, "eu-central-1", "lambda").unwrap();
        let explain = |query: &str| signer.explain(0, RequestToSign {
            method: "GET",
            path: "/",
            query: Some(query),
            headers: [("host", &b"fn.test"[..])],
            payload: PayloadHash::Bytes(b""),
        }).canonical_request;
        prop_assert_eq!(explain(&query), explain(&wire_query(&query)));
    }

    #[test]
    fn forms_to_send_are_stable_and_legal(path in "\\PC{0,40}", query in "\\PC{0,40}") {
        let (path, query) = (wire_path(&path).into_owned(), wire_query(&query).into_owned());
        prop_assert_eq!(&wire_path(&path), &path);
        prop_assert_eq!(&wire_query(&query), &query);
        prop_assert!(path.starts_with('/'));
        for byte in path.bytes().chain(query.bytes()) {
            let legal = byte.is_ascii_graphic() && !b"\"<>[]\\^`{|}#".contains(&byte);
            prop_assert!(legal, "byte {}", byte);
        }
        let dots = |segment: &str| {
            matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
        };
        prop_assert!(!path.split('/').any(dots));
    }
}

fn official(
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &[u8],
    token: Option<String>,
    now: u64,
) -> Vec<(String, String)> {
    let identity = OfficialCredentials::new("AKIDEXAMPLE", SECRET, token, None, "test").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-central-1")
        .name("lambda")
        .time(UNIX_EPOCH + Duration::from_secs(now))
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let request = SignableRequest::new(method, target, headers, SignableBody::Bytes(body)).unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    let mut sent: Vec<_> = instructions
        .headers()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    sent.sort();
    sent
}

/// Segments of letters, legal and illegal punctuation, escapes, UTF-8, dots and nothing.
fn path() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        3 => "[a-zA-Z0-9._~-]{0,8}",
        2 => "([a-z]|[:@+!$&'()*,;=]|%[0-9A-F]{2}|%[0-9a-f]{2}|[\\[\\]|^é☃]){0,8}",
        1 => Just(".".to_owned()),
        1 => Just("..".to_owned()),
        1 => Just(String::new()),
    ];
    prop::collection::vec(segment, 0..6).prop_map(|segments| format!("/{}", segments.join("/")))
}

/// A `%` that starts no escape is never followed by a hexadecimal digit, lest it start one that is
/// not UTF-8.
fn query() -> impl Strategy<Value = String> {
    let text = || "([a-zA-Z0-9._~-]|[ +/:@?!*'(),;$\\[\\]é☃]|%[2-7][0-9A-Fa-f]|%C3%A9|%zz|%~){0,6}";
    let argument = prop_oneof![
        4 => (text(), text()).prop_map(|(name, value)| format!("{name}={value}")),
        1 => text().prop_map(String::from),
        1 => Just("a=1".to_owned()),
        1 => Just("a=0".to_owned()),
    ];
    prop::collection::vec(argument, 0..6).prop_map(|arguments| arguments.join("&"))
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let more = ("[Xx]-[Aa]mz-[A-Za-z]{1,3}", " {0,2}[!-~]{0,6} {0,3}[!-~é]{0,6} {0,2}");
    prop::collection::vec(more, 0..6).prop_map(|mut headers| {
        headers.push(("Host".to_owned(), "fn.test".to_owned()));
        headers.push(("content-Type".to_owned(), "text/plain;  charset=utf-8".to_owned()));
        headers
    })
}

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
