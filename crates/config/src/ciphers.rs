//! `apisix.ssl.ssl_ciphers`: OpenSSL's list of cipher suites for TLS 1.2, read for what this gateway
//! has.
//!
//! Follows <https://docs.openssl.org/3.0/man1/openssl-ciphers/>. Of what such a list may name, rustls
//! has six suites. Groups stand for those of the six that are in them; what takes suites out (`!`,
//! `-`) or moves them back (`+`) does; those of TLS 1.3 are always on, and their names say nothing
//! here.

/// What a list comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The suites, in order of preference.
    pub(crate) suites: Vec<&'static str>,
    /// What the list asks for and this gateway has not.
    pub(crate) left_out: Vec<String>,
}

/// Reads a list.
pub(crate) fn choose(list: &str) -> Chosen {
    let mut chosen = Chosen { suites: Vec::new(), left_out: Vec::new() };
    let mut never: Vec<&str> = Vec::new();
    for word in list.split([':', ',', ';', ' ']).filter(|word| !word.is_empty()) {
        let suites = &mut chosen.suites;
        match (word.as_bytes()[0], word.get(1..).unwrap_or_default()) {
            // How a list is sorted, and the least strength: all six are strong.
            (b'@', _) => {}
            (b'!', name) => {
                let gone = named(name);
                suites.retain(|suite| !gone.contains(suite));
                never.extend(gone);
            }
            (b'-', name) => {
                let gone = named(name);
                suites.retain(|suite| !gone.contains(suite));
            }
            (b'+', name) => {
                let last = named(name);
                suites.sort_by_key(|suite| last.contains(suite));
            }
            _ if word.starts_with("TLS_") => {}
            _ => {
                let asked = named(word);
                if asked.is_empty() {
                    chosen.left_out.push(word.to_owned());
                }
                for suite in asked {
                    if !never.contains(&suite) && !chosen.suites.contains(&suite) {
                        chosen.suites.push(suite);
                    }
                }
            }
        }
    }
    chosen
}

/// The suites that a name, a group, or several groups with `+` between them stand for.
fn named(word: &str) -> Vec<&'static str> {
    let parts: Vec<&str> = word.split('+').collect();
    let all = SUITES.iter().filter(|suite| parts.iter().all(|part| stands_for(part, suite)));
    all.copied().collect()
}

/// Does a name or a group stand for this suite?
fn stands_for(part: &str, suite: &str) -> bool {
    match part {
        "ALL" | "DEFAULT" | "HIGH" | "TLSv1.2" | "ECDHE" | "EECDH" | "kECDHE" | "kEECDH"
        | "ECDH" => true,
        "ECDSA" | "aECDSA" => suite.starts_with("ECDHE-ECDSA-"),
        "aRSA" => suite.starts_with("ECDHE-RSA-"),
        "AES" | "AESGCM" => suite.contains("-GCM-"),
        "AES128" => suite.contains("-AES128-"),
        "AES256" => suite.contains("-AES256-"),
        "CHACHA20" => suite.contains("-CHACHA20-"),
        name => name.eq_ignore_ascii_case(suite),
    }
}

/// The suites of TLS 1.2 that rustls has, in the order in which groups name them.
pub(crate) const SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
];

/// APISIX's default, of which two are left out.
pub(crate) const DEFAULT: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384";

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(list: &str, suites: &[&str], left_out: &[&str]) {
        let chosen = choose(list);
        assert_eq!((&*chosen.suites, &*chosen.left_out), (suites, &*owned(left_out)), "{list}");
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_keep_their_order_and_those_that_nobody_here_has_are_told() {
        let [ecdsa256, rsa256, _, rsa_chacha, _, rsa128] = SUITES;
        check(&format!("{rsa128}:{ecdsa256} {rsa128}"), &[rsa128, ecdsa256], &[]);
        check("ecdhe-rsa-aes128-gcm-sha256", &[rsa128], &[]);
        let dhe = "DHE-RSA-AES256-GCM-SHA384";
        check(dhe, &[], &[dhe]);
        check(&format!("{dhe}:{rsa256}"), &[rsa256], &[dhe]);
        check("ECDHE-RSA-AES256-SHA384", &[], &["ECDHE-RSA-AES256-SHA384"]);
        check(&format!("TLS_AES_256_GCM_SHA384:{rsa_chacha}"), &[rsa_chacha], &[]);
        check("TLS_AES_256_GCM_SHA384", &[], &[]);
        check("", &[], &[]);
    }

    #[test]
    fn groups_stand_for_the_suites_in_them() {
        let [ecdsa256, rsa256, ecdsa_chacha, rsa_chacha, ecdsa128, rsa128] = SUITES;
        check("HIGH:!aNULL:!MD5", &SUITES, &[]);
        check("DEFAULT@SECLEVEL=1", &[], &["DEFAULT@SECLEVEL=1"]);
        check("DEFAULT:@SECLEVEL=1", &SUITES, &[]);
        check("EECDH+AESGCM:EDH+AESGCM", &[ecdsa256, rsa256, ecdsa128, rsa128], &["EDH+AESGCM"]);
        check("ECDHE+CHACHA20+aRSA", &[rsa_chacha], &[]);
        check("HIGH:!AES", &[ecdsa_chacha, rsa_chacha], &[]);
        check("!AES256:AESGCM", &[ecdsa128, rsa128], &[]);
        check("AES256:-ECDSA:AES256", &[rsa256, ecdsa256], &[]);
        check("AESGCM:+AES256", &[ecdsa128, rsa128, ecdsa256, rsa256], &[]);
        check("HIGH:!HIGH", &[], &[]);
        check("LOW:RC4", &[], &["LOW", "RC4"]);
    }
}
