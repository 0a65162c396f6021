//! What signing costs: nanoseconds per signature, the best of several rounds.
//!
//! `cargo bench -p sluicegate-aws --bench sign`

use std::hint::black_box;
use std::time::Instant;

use sluicegate_aws::Secret;
use sluicegate_aws::sigv4::{
    Credentials, PayloadHash, RequestToSign, Signed, Signer, wire_path, wire_query,
};

fn main() {
    let credentials = Credentials {
        access_key: "AKIDEXAMPLE".to_owned(),
        secret_key: Secret::from("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        session_token: None,
    };
    let signer = Signer::new(credentials, "us-east-1", "execute-api").expect("texts are ASCII");
    let body = [b'x'; 1024];
    for (name, method, path, query, body) in [
        ("POST, 1 KiB body", "POST", "/default/fn", "", &body[..]),
        ("GET, one argument", "GET", "/default/fn", "name=APISIX", &[]),
        ("GET, odd path and query", "GET", "/a%2Fb:c/x", "b=2&a=1+2&flag", &[]),
    ] {
        let mut signed = Signed::default();
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for i in 0..SIGNATURES {
                let (path, query) = (wire_path(black_box(path)), wire_query(black_box(query)));
                let request = RequestToSign {
                    method,
                    path: &path,
                    query: Some(&query),
                    headers: [
                        ("host", &b"abc123.execute-api.us-east-1.amazonaws.com"[..]),
                        ("content-type", b"application/json"),
                    ],
                    payload: PayloadHash::Bytes(black_box(body)),
                };
                signer.sign(1_440_938_160 + i / 1000, request, &mut signed);
                black_box(signed.authorization());
            }
            best = best.min(start.elapsed().as_nanos() as f64 / SIGNATURES as f64);
        }
        println!("{name}: {best:.0} ns");
    }
}

const ROUNDS: u32 = 20;
const SIGNATURES: u64 = 20_000;
