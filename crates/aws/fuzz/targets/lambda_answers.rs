//! Refusals of AWS and errors of functions are classified, whatever they hold; names and addresses
//! of functions are taken apart or refused.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sluicegate_aws::lambda::{
    AllowedFunctions, Answer, ApiCall, FunctionRef, FunctionSettings, Target, classify,
    function_error,
};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    status: u16,
    error_type: Option<&'a str>,
    date: Option<&'a str>,
    retry_after: Option<&'a str>,
    body: &'a [u8],
    is_http_api: bool,
    signed: bool,
    now: u32,
    function: &'a str,
    pattern: &'a str,
}

fuzz_target!(|input: Input<'_>| {
    let answer = Answer {
        status: input.status,
        error_type: input.error_type,
        date: input.date,
        retry_after: input.retry_after,
        body: input.body,
        is_http_api: input.is_http_api,
    };
    let target = Target { region: "eu-west-1", service: "lambda", signed: input.signed };
    let failure = classify(&answer, &target);
    let _ = failure.skew_seconds(input.now.into());
    let _ = function_error(input.error_type.unwrap_or_default(), input.body);
    if let Ok(allowed) = AllowedFunctions::compile(&[input.pattern]) {
        let _ = allowed.allows(input.function);
    }
    for (arn, name) in [(Some(input.function), None), (None, Some(input.function))] {
        let settings = FunctionSettings {
            arn: arn.map(str::to_owned),
            name: name.map(str::to_owned),
            endpoint: input.error_type.map(str::to_owned),
            ..FunctionSettings::default()
        };
        let Ok(function) = FunctionRef::parse(&settings, Some("eu-west-1")) else { continue };
        for call in [ApiCall::Invoke, ApiCall::InvokeWithResponseStream] {
            let path = function.path(call);
            assert!(path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()), "{path}");
            assert!(!path.contains(['?', '#']), "{path}");
        }
    }
});
