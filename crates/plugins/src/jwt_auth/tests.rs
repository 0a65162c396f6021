//! Tokens that another implementation signed (Python's `cryptography`, which is OpenSSL), and what
//! becomes of requests that bring some.

use sluicegate_testkit::PluginTest;

use super::*;
use crate::auth::tests::test;

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).expect("it is JSON")
}

fn key(config: &Value) -> Result<Key, String> {
    let algorithm = serde_json::from_value(config["algorithm"].clone()).expect("it is one");
    match &config["secret"] {
        Value::String(secret) => Ok(Key::shared(algorithm, secret.as_bytes())),
        _ => Key::public(algorithm, config["public_key"].as_str().expect("it is text")),
    }
}

/// A token that `alg` and `secret` make of these claims.
fn signed(alg: &str, secret: &[u8], claims: Value) -> String {
    with_header(json!({"typ": "JWT", "alg": alg}), secret, claims)
}

fn with_header(header: Value, secret: &[u8], claims: Value) -> String {
    let encoded = |value: Value| verify::BASE64URL.encode(value.to_string()).replace('=', "");
    let text = format!("{}.{}", encoded(header), encoded(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let tag = verify::BASE64URL.encode(ring::hmac::sign(&key, text.as_bytes())).replace('=', "");
    format!("{text}.{tag}")
}

#[test]
fn the_schema_and_the_config_speak_of_the_same_fields() {
    PluginTest::<JwtAuth>::check_schema(&json!({}));
}

#[test]
fn every_algorithm_verifies_what_another_implementation_signed_and_nothing_else() {
    let vectors = vectors();
    let all = vectors["verified"].as_array().expect("it is a list");
    assert_eq!(all.len(), 13);
    for one in all {
        let text = one["token"].as_str().expect("it is text");
        let token = Token::read(text.as_bytes()).expect(text);
        let own = key(one).expect(text);
        assert_eq!(token.verify(&own), Ok(()), "{one}");
        for other in all.iter().filter(|other| other["algorithm"] != one["algorithm"]) {
            let other = key(other).expect("it is a key");
            assert!(token.verify(&other).is_err_and(|e| e.contains("algorithm mismatch")), "{one}");
        }
        // Another first letter of each part, where it still can be read.
        let (head, signature) = text.rsplit_once('.').expect("it has parts");
        let first = if signature.starts_with('A') { "B" } else { "A" };
        for changed in [
            format!("{head}.{first}{}", &signature[1..]),
            format!("{head}."),
            format!("{head}.@@@@"),
            format!("{head}.{}", shortened(signature)),
            format!("{}.{signature}", signed_claims_replaced(head)),
        ] {
            let token = Token::read(changed.as_bytes()).expect(&changed);
            let error = Err("failed to verify jwt: signature mismatch".to_owned());
            assert_eq!(token.verify(&own), error, "{changed}");
        }
    }
    let rs256 = &all[3];
    let pkcs1 = json!({"algorithm": "RS256", "public_key": vectors["pkcs1"]});
    let token = Token::read(rs256["token"].as_str().unwrap_or_default().as_bytes());
    let key = key(&pkcs1).expect("PKCS#1 is read too");
    assert_eq!(token.expect("it is a token").verify(&key), Ok(()));
}

/// A signature without its last byte.
fn shortened(signature: &str) -> String {
    let mut bytes = verify::BASE64URL.decode(signature).expect("it is base64");
    bytes.pop();
    verify::BASE64URL.encode(bytes)
}

fn signed_claims_replaced(head: &str) -> String {
    let (header, _) = head.split_once('.').expect("it has parts");
    format!("{header}.{}", verify::BASE64URL.encode(r#"{"key":"rose-jwt"}"#).replace('=', ""))
}

#[test]
fn a_key_that_cannot_be_used_is_refused_without_being_shown() {
    for one in vectors()["refused"].as_array().expect("it is a list") {
        let error = key(one).err();
        assert_eq!(error.as_deref(), one["why"].as_str(), "{one}");
    }
    let label = "RSA PRIVATE KEY";
    let private = format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----");
    let error = Key::public(Algorithm::RS256, &private).err();
    assert_eq!(error.as_deref(), Some("`public_key` is a private key: give the public one"));
}

#[test]
fn what_is_no_token_is_refused() {
    let good = signed("HS256", b"s", json!({}));
    let crit = with_header(json!({"alg": "HS256", "crit": ["b64"]}), b"s", json!({}));
    for (text, error) in [
        ("", "a token has three parts"),
        ("a.b", "a token has three parts"),
        (&format!("{good}.x.y"), "a token has three parts"),
        ("a.e30.e30", "its header cannot be read"),
        ("e30.!.e30", "its claims cannot be read"),
        ("e30.W10.e30", "its claims cannot be read"),
        (&crit, "its header has extensions that must be understood"),
    ] {
        assert_eq!(Token::read(text.as_bytes()).err(), Some(error), "{text}");
    }
    for header in [json!({}), json!({"alg": "none"}), json!({"alg": "hs256"}), json!({"alg": 1})] {
        let text = with_header(header.clone(), b"s", json!({}));
        let token = Token::read(text.as_bytes()).expect("it can be read");
        let error = token.verify(&Key::shared(Algorithm::HS256, b"s")).expect_err("no algorithm");
        assert!(error.contains("algorithm mismatch"), "{header}: {error}");
    }
}

#[test]
fn times_count_where_they_are_there_or_asked_for() {
    use Time::{Exp, Nbf};
    for (claims, required, grace, error) in [
        (json!({}), &[][..], 0.0, None),
        (json!({"exp": 1001, "nbf": 1000}), &[], 0.0, None),
        (json!({"exp": 1000}), &[], 0.0, Some("'exp' claim expired at 1000")),
        (json!({"exp": 1000}), &[], 1.0, None),
        (json!({"exp": 990.5}), &[Exp], 9.5, Some("'exp' claim expired at 990.5")),
        (json!({"nbf": 1001}), &[], 0.0, Some("'nbf' claim not valid before 1001")),
        (json!({"nbf": 1001}), &[], 1.0, None),
        (json!({"nbf": 1001}), &[Exp], 0.0, Some("claim exp is missing")),
        (json!({"exp": 2000}), &[Exp, Nbf], 0.0, Some("claim nbf is missing")),
        (json!({"exp": "2000"}), &[], 0.0, Some("claim exp is not a number")),
        (json!({"nbf": null}), &[], 0.0, Some("claim nbf is not a number")),
        (json!({"exp": 1, "nbf": 900}), &[Nbf], 0.0, None),
    ] {
        let text = signed("HS256", b"s", claims.clone());
        let token = Token::read(text.as_bytes()).expect("it is a token");
        let error = error.map_or(Ok(()), |error| Err(format!("failed to verify jwt: {error}")));
        assert_eq!(token.check_times(required, 1000.0, grace), error, "{claims} {required:?}");
    }
}

#[test]
fn what_a_consumer_has_is_checked_when_it_is_written() {
    let registry = crate::registry();
    let plugin = registry.get(JwtAuth::NAME).expect("it is registered");
    let check = plugin.info.check_consumer.clone().expect("consumers have keys");
    let public = vectors()["pkcs1"].clone();
    let schema = "failed to validate dependent schema for \"algorithm\": value should match only one schema, but matches none";
    for (config, error) in [
        (json!({"key": "k", "secret": "s"}), None),
        (
            json!({"key": "k"}),
            Some("property \"secret\" is required when using HS based algorithms"),
        ),
        (
            json!({"key": ""}),
            Some(
                "property \"key\" validation failed: string too short, expected at least 1, got 0",
            ),
        ),
        (json!({"secret": "s"}), Some("property \"key\" is required")),
        (json!({"key": "k", "secret": "YQ==", "base64_secret": true}), None),
        (json!({"key": "k", "secret": "YQ", "base64_secret": true}), None),
        (
            json!({"key": "k", "secret": "a!", "base64_secret": true}),
            Some("base64_secret required but the secret is not in base64 format"),
        ),
        (json!({"key": "k", "algorithm": "RS256"}), Some(schema)),
        (json!({"key": "k", "algorithm": "PS512", "public_key": public}), None),
        (json!({"key": "$env://K", "algorithm": "HS256"}), None),
    ] {
        assert_eq!(check(&config).err().as_deref(), error, "{config}");
    }
}

#[test]
fn a_token_is_looked_for_in_header_query_and_cookie() {
    let jack = signed("HS256", b"jack-secret", json!({"key": "jack-jwt"}));
    let wrong = signed("HS256", b"other", json!({"key": "jack-jwt"}));
    let old = signed("HS256", b"jack-secret", json!({"key": "jack-jwt", "exp": 1}));
    let nobody = signed("HS256", b"jack-secret", json!({"key": "nobody"}));
    let keyless = signed("HS256", b"jack-secret", json!({"sub": "jack-jwt"}));
    let (bearer, lower) = (format!("Bearer {jack}"), format!("bearer {jack}"));
    let (query, cookie) = (format!("/?a=b&jwt={jack}"), format!("a=b; jwt={jack}; c=d"));
    for (header, target, cookie, outcome) in [
        (Some(&*bearer), "/", None, Ok("jack")),
        (Some(&*lower), "/", None, Ok("jack")),
        (Some(&*jack), "/", None, Ok("jack")),
        (None, &*query, None, Ok("jack")),
        (None, "/", Some(&*cookie), Ok("jack")),
        (Some(&*wrong), &*query, Some(&*cookie), Err("failed to verify jwt")),
        (Some(&*old), "/", None, Err("failed to verify jwt")),
        (Some(&*nobody), "/", None, Err("Invalid user key in JWT token")),
        (Some(&*keyless), "/", None, Err("missing user key in JWT token")),
        (Some("Bearer x"), "/", None, Err("JWT token invalid")),
        (None, "/", None, Err("Missing JWT token in request")),
    ] {
        for hide in [false, true] {
            let ran = test::<JwtAuth>()
                .config(json!({"hide_credentials": hide}))
                .request("GET", target)
                .request_header("Authorization", header)
                .request_header("Cookie", cookie)
                .run();
            match outcome {
                Ok(name) => {
                    assert_eq!(ran.sent_header("x-consumer-username"), Some(name));
                    let (sent, hidden) = (ran.sent(), hide && target.contains("jwt="));
                    assert_eq!(sent.header("authorization"), header.filter(|_| !hide));
                    assert_eq!(sent.target, if hidden { "/?a=b" } else { target });
                    assert_eq!(
                        sent.header("cookie"),
                        cookie.map(|c| if hide { "a=b; c=d" } else { c })
                    );
                }
                Err(message) => {
                    assert_eq!(ran.status, 401, "{header:?}");
                    assert_eq!(ran.response.json(), json!({"message": message}));
                    let challenge = ran.response.header("www-authenticate");
                    assert_eq!(challenge, Some("Bearer realm=\"jwt\""));
                }
            }
        }
    }
    let issuer = signed("HS256", b"jack-secret", json!({"iss": "jack-jwt"}));
    let ran = test::<JwtAuth>()
        .config(json!({"key_claim_name": "iss", "header": "x-token"}))
        .request_header("X-Token", Some(&issuer))
        .run();
    assert_eq!(ran.sent_header("x-consumer-username"), Some("jack"));
}
