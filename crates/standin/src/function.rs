//! The sample function: it greets.

use serde_json::Value;

/// Greets the `name` of the query, else of a JSON body, else the world.
pub fn greet(query: &str, body: &[u8]) -> String {
    let name = name_in_query(query).or_else(|| name_in_body(body));
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "World".to_owned());
    format!("Hello, {name}!")
}

fn name_in_query(query: &str) -> Option<String> {
    let arguments = query.split('&').map(|piece| piece.split_once('=').unwrap_or((piece, "")));
    arguments
        .map(|(name, value)| (decode(name), value))
        .find(|(name, _)| name == b"name")
        .map(|(_, value)| String::from_utf8_lossy(&decode(value)).into_owned())
}

fn name_in_body(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body["name"].as_str().map(str::to_owned)
}

/// A query's name or value without its escapes; `+` is a space.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let escaped = text
            .get(at + 1..at + 3)
            .filter(|digits| text[at] == b'%' && digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if text[at] == b'+' { b' ' } else { text[at] });
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_comes_from_the_query_then_the_body_then_nowhere() {
        for (query, body, greeting) in [
            ("name=APISIX", "", "Hello, APISIX!"),
            ("a=1&name=A&name=B", "", "Hello, A!"),
            ("n%61me=J%C3%BCrgen+K%2B", "", "Hello, Jürgen K+!"),
            ("name=100%", "", "Hello, 100%!"),
            ("name=%zz%4", "", "Hello, %zz%4!"),
            ("name=a", r#"{"name": "b"}"#, "Hello, a!"),
            ("", r#"{"name": "b"}"#, "Hello, b!"),
            ("names=a", r#"{"name": 1}"#, "Hello, World!"),
            ("name", "{", "Hello, World!"),
            ("name=", "", "Hello, World!"),
            ("", "", "Hello, World!"),
        ] {
            assert_eq!(greet(query, body.as_bytes()), greeting, "{query} {body}");
        }
    }
}
