//! Shared config and credentials files, and command lines in them, are read or refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate_aws::credentials::{Profiles, parse_ini, words};

fuzz_target!(|input: (&str, &str)| {
    let (config, credentials) = input;
    let _ = words(config);
    let (Ok(config), Ok(credentials)) = (parse_ini(config), parse_ini(credentials)) else {
        return;
    };
    let profiles = Profiles::new(config, credentials);
    for name in profiles.names() {
        // What is listed can be asked for.
        let _ = format!("{name:?}");
    }
});
