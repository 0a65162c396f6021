//! Paths and query arguments.

use axum::{extract::Query, http::Uri};

/// A query's arguments, decoded.
#[derive(Debug, Default)]
pub(crate) struct Args(Vec<(String, String)>);

impl Args {
    pub(crate) fn parse(uri: &Uri) -> Self {
        Self(Query::try_from_uri(uri).map(|Query(args)| args).unwrap_or_default())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The arguments inside an argument's value: `filter=service_id%3D1`.
    pub(crate) fn nested<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.get(name).unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='))
    }
}

/// An argument as it was sent, not decoded.
pub(crate) fn raw_arg<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The segments of a path: escapes decoded first, empty ones left out, as nginx merges slashes.
/// `None` when an escape is broken or the result is no UTF-8.
pub(crate) fn segments(path: &str) -> Option<Vec<String>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    let decoded = String::from_utf8(decoded).ok()?;
    let segments = decoded.split('/').filter(|segment| !segment.is_empty());
    let segments: Vec<_> = segments.map(str::to_owned).collect();
    let climbs = |segment: &String| segment == "." || segment == "..";
    (!decoded.contains('\0') && !segments.iter().any(climbs)).then_some(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_before_it_is_split() {
        for (path, expected) in [
            ("/apisix/admin/routes/1", Some(vec!["apisix", "admin", "routes", "1"])),
            ("/a//b/", Some(vec!["a", "b"])),
            ("/a%2Fb/%24", Some(vec!["a", "b", "$"])),
            ("/%C3%A9", Some(vec!["é"])),
            ("/", Some(vec![])),
            ("/%", None),
            ("/%2", None),
            ("/%zz", None),
            ("/%ff", None),
            ("/a%00", None),
            ("/a/%2e%2e/b", None),
        ] {
            let expected = expected.map(|v| v.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(segments(path), expected, "{path}");
        }
    }

    #[test]
    fn arguments_are_found_raw_and_decoded() {
        let uri: Uri =
            "/?a=1+2&api_key=a%2Bb+c&b&a=3&filter=service_id%3D1%26x%3Dy".parse().unwrap();
        let args = Args::parse(&uri);
        assert_eq!(args.get("a"), Some("1 2"));
        assert_eq!(raw_arg(&uri, "api_key"), Some("a%2Bb+c"));
        assert_eq!(raw_arg(&uri, "key"), None);
        let nested = args.nested("filter").collect::<Vec<_>>();
        assert_eq!(nested, [("service_id", "1"), ("x", "y")]);
    }
}
