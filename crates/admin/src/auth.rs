//! Who may use the Admin API: by key and role.

use std::hint::black_box;

use axum::http::{HeaderMap, Method, Uri, header};

use crate::{Role, Settings, query::raw_arg};

/// Checks the key a request brings. The error is APISIX's description of what is wrong.
pub(crate) fn check_key(
    settings: &Settings,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), &'static str> {
    if !settings.key_required {
        return Ok(());
    }
    // With underscores, too: nginx reads both alike.
    let header = || {
        let value = headers.get("x-api-key").or_else(|| headers.get("x_api_key"));
        value.map(|value| value.as_bytes())
    };
    let argument = raw_arg(uri, "api_key").map(str::as_bytes);
    let sent = argument.or_else(header).or_else(|| cookie(headers)).ok_or("missing apikey")?;

    // Every key is compared, so that the time taken does not tell which one came close.
    let mut found = None;
    for key in &settings.keys {
        // An empty key in the configuration opens nothing.
        if equal(key.key.as_bytes(), sent) && !key.key.is_empty() && found.is_none() {
            found = Some(key.role);
        }
    }
    match found.ok_or("wrong apikey")? {
        Role::Viewer if method != Method::GET => Err("invalid method for role viewer"),
        Role::Admin | Role::Viewer => Ok(()),
    }
}

fn cookie(headers: &HeaderMap) -> Option<&[u8]> {
    let cookies = headers
        .get_all(header::COOKIE)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';').map(|pair| pair.trim_ascii()));
    cookies.into_iter().find_map(|pair| pair.strip_prefix(b"x_api_key="))
}

/// Compares without stopping at the first difference. Lengths are not hidden.
fn equal(left: &[u8], right: &[u8]) -> bool {
    let differences = left.iter().zip(right).fold(0, |all, (l, r)| black_box(all | (l ^ r)));
    left.len() == right.len() && black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;
    use crate::AdminKey;

    #[test]
    fn a_key_opens_what_its_role_may_do() {
        let key = |key: &str, role| AdminKey { name: "n".to_owned(), key: key.to_owned(), role };
        let keys =
            vec![key("secret", Role::Admin), key("look", Role::Viewer), key("", Role::Admin)];
        let settings = Settings { keys, ..Settings::default() };
        let open = Settings { key_required: false, ..Settings::default() };
        let nobody = Settings::default();
        const KEY: &str = "x-api-key";
        let missing = Err("missing apikey");
        let wrong = Err("wrong apikey");
        let viewer = Err("invalid method for role viewer");
        for (settings, method, uri, header, expected) in [
            (&settings, "GET", "/", None, missing),
            (&settings, "GET", "/", Some((KEY, "nope")), wrong),
            (&settings, "GET", "/", Some((KEY, "secre")), wrong),
            (&settings, "GET", "/", Some((KEY, "secrets")), wrong),
            (&settings, "GET", "/", Some((KEY, "")), wrong),
            (&settings, "PUT", "/", Some((KEY, "secret")), Ok(())),
            (&settings, "PUT", "/", Some(("x_api_key", "secret")), Ok(())),
            (&settings, "PUT", "/?api_key=secret", None, Ok(())),
            (&settings, "PUT", "/?a=b&api_key=secret&c", None, Ok(())),
            (&settings, "PUT", "/?api_key=nope", Some((KEY, "secret")), wrong),
            (&settings, "PUT", "/?xapi_key=secret", None, missing),
            (&settings, "PUT", "/", Some(("cookie", "a=b; x_api_key=secret")), Ok(())),
            (&settings, "PUT", "/", Some(("cookie", "a=b; my_x_api_key=secret")), missing),
            (&settings, "GET", "/", Some((KEY, "look")), Ok(())),
            (&settings, "PUT", "/", Some((KEY, "look")), viewer),
            (&settings, "POST", "/", Some((KEY, "look")), viewer),
            (&settings, "PATCH", "/", Some((KEY, "look")), viewer),
            (&settings, "DELETE", "/", Some((KEY, "look")), viewer),
            (&open, "DELETE", "/", None, Ok(())),
            (&nobody, "GET", "/", Some((KEY, "edd1c9f034335f136f87ad84b625c8f1")), wrong),
        ] {
            let mut headers = HeaderMap::new();
            if let Some((name, value)) = header {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            let method: Method = method.parse().unwrap();
            let checked = check_key(settings, &method, &uri.parse().unwrap(), &headers);
            assert_eq!(checked, expected, "{method} {uri} {header:?}");
        }
    }

    #[test]
    fn addresses_outside_the_allowed_networks_are_turned_away() {
        let settings = |nets: &[&str]| Settings {
            allow_admin: nets.iter().map(|net| net.parse().unwrap()).collect(),
            ..Settings::default()
        };
        for (nets, address, allowed) in [
            (&["127.0.0.0/24"][..], Some("127.0.0.1"), true),
            (&["127.0.0.0/24"], Some("::ffff:127.0.0.1"), true),
            (&["127.0.0.0/24"], Some("127.0.1.1"), false),
            (&["127.0.0.0/24"], Some("::1"), false),
            (&["127.0.0.0/24", "::/64"], Some("::1"), true),
            (&["127.0.0.0/24"], None, false),
            (&[], Some("8.8.8.8"), true),
            (&[], None, true),
        ] {
            let address = address.map(|address| address.parse().unwrap());
            assert_eq!(settings(nets).allows(address), allowed, "{nets:?} {address:?}");
        }
    }
}
