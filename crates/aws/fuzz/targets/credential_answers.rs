//! Answers of STS, of the containers' and machines' metadata services, of processes and of SSO are
//! read or refused; what is read can stand in a header.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate_aws::credentials::{AnswerKind, StsAnswer, parse_answer, parse_sts, parse_time};

fuzz_target!(|body: &[u8]| {
    let visible = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    for kind in [AnswerKind::Container, AnswerKind::Imds, AnswerKind::Process, AnswerKind::Sso] {
        if let Ok(issued) = parse_answer(kind, body) {
            assert!(visible(&issued.credentials.access_key));
        }
    }
    if let Ok(text) = std::str::from_utf8(body) {
        let _ = parse_time(text);
        if let Ok(StsAnswer::Issued(issued)) = parse_sts(text) {
            assert!(visible(&issued.credentials.access_key));
        }
    }
});
