//! The `uri` of a route, taken apart: what the map looks up, and what is checked afterwards.
//!
//! A pattern splits at its first `*` (in `radixtree_uri_with_parameter` also at its first `:`). What
//! stands before is found by the map. If a whole segment behind it begins with `*` or `:`, the path
//! has to fit the segments and gives parameters; if none does, anything may follow. This includes the
//! cases that look odd: `/a*b` is `/a*`, and with parameters `/file:x` is `/file*`, as in APISIX.
//!
//! Differs: APISIX makes one regex of the whole pattern, so that `/a+b/*` never matches `/a+b/x` and the
//! second of two `*` gets the wrong text. Here literal text stands for itself first;
//! where that fails, a literal with regex characters in it is read as APISIX reads it (its own tests
//! end a uri in `/?`).

use std::ops::Range;

use fancy_regex::{BytesMode, Regex, RegexBuilder};
use smallvec::SmallVec;

use super::{Matched, map::Kind};

/// One compiled `uri`.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// Most fit in here, which saves a look-up one wait for memory.
    uri: SmallVec<[u8; 24]>,
    key_len: usize,
    tail: Tail,
}

#[derive(Clone, Debug)]
enum Tail {
    /// The key is the whole path.
    Exact,
    /// Anything may follow the key.
    Any,
    /// Anything may follow the key, and is the parameter `:ext`.
    Ext,
    /// The path has to fit these segments.
    Segments(Box<Segments>),
}

impl Pattern {
    pub(super) fn compile(uri: &str, with_parameters: bool) -> Self {
        let parameter = if with_parameters { uri.find(':') } else { None };
        let (key_len, tail) = match parameter.or_else(|| uri.find('*')) {
            None => (uri.len(), Tail::Exact),
            Some(at) => (at, tail(uri, at)),
        };
        Self { uri: uri.as_bytes().into(), key_len, tail }
    }

    /// What the map looks up, and how.
    pub(super) fn key(&self) -> (&[u8], Kind) {
        let kind = if matches!(self.tail, Tail::Exact) { Kind::Exact } else { Kind::Prefix };
        (&self.uri[..self.key_len], kind)
    }

    /// The `uri` as configured.
    pub(super) fn uri(&self) -> &[u8] {
        &self.uri
    }

    /// Checks a path that the map found, and notes the parameters.
    #[inline]
    pub(super) fn fits(&self, path: &[u8], matched: &mut Matched) -> bool {
        match &self.tail {
            Tail::Exact | Tail::Any => true,
            Tail::Ext => {
                matched.push(EXT, self.key_len..path.len());
                true
            }
            Tail::Segments(segments) => segments.fit(&self.uri, path, matched),
        }
    }
}

fn tail(uri: &str, at: usize) -> Tail {
    let is_parameter = |segment: &Segment| segment.kind != SegmentKind::Literal;
    let mut segments = segments(uri);
    let parameters = segments.iter().filter(|segment| is_parameter(segment)).count();
    if parameters == 0 {
        return Tail::Any;
    }
    if parameters == 1 && uri[at..] == *"*" {
        return Tail::Ext;
    }
    let regex = compile_regex(uri, &segments).map(Box::new);
    // Literal segments that lie within the key have been compared by the map.
    let compared =
        segments.iter().take_while(|segment| !is_parameter(segment) && segment.text.end < at);
    segments.drain(..compared.count());
    Tail::Segments(Box::new(Segments { segments: segments.into(), regex }))
}

#[derive(Clone, Debug)]
struct Segments {
    segments: Box<[Segment]>,
    /// How APISIX reads the pattern, where that can make a difference.
    regex: Option<Box<Regex>>,
}

impl Segments {
    fn fit(&self, uri: &[u8], path: &[u8], matched: &mut Matched) -> bool {
        let begin = self.segments.first().map_or(0, |segment| segment.text.start);
        let mut walk = Walk { uri, path, ranges: SmallVec::new(), steps_left: STEPS_MAX };
        if !walk.fit(&self.segments, begin) && !self.fit_regex(&mut walk) {
            return false;
        }
        for (segment, range) in self.parameters().zip(walk.ranges) {
            matched.push(segment.name(uri), range);
        }
        true
    }

    fn fit_regex(&self, walk: &mut Walk<'_>) -> bool {
        let Some(regex) = &self.regex else { return false };
        let Ok(Some(captures)) = regex.captures(walk.path) else { return false };
        if captures.get(0).is_none_or(|all| all.range() != (0..walk.path.len())) {
            return false;
        }
        let range = |index| captures.name(&group(index)).map_or(0..0, |found| found.range());
        walk.ranges = (0..self.parameters().count()).map(range).collect();
        true
    }

    fn parameters(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.kind != SegmentKind::Literal)
    }
}

/// What stands between two slashes of a `uri`.
#[derive(Clone, Debug)]
struct Segment {
    kind: SegmentKind,
    /// The place in the `uri`.
    text: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SegmentKind {
    Literal,
    /// `:name`: one segment that is not empty.
    Parameter,
    /// `*name`: anything, slashes included.
    Rest,
}

impl Segment {
    fn name<'u>(&self, uri: &'u [u8]) -> &'u [u8] {
        match &uri[self.text.start + 1..self.text.end] {
            [] if self.kind == SegmentKind::Rest => EXT,
            name => name,
        }
    }
}

fn segments(uri: &str) -> Vec<Segment> {
    let mut start = 0;
    (uri.split('/'))
        .map(|text| {
            let kind = match text.as_bytes().first() {
                Some(b':') => SegmentKind::Parameter,
                Some(b'*') => SegmentKind::Rest,
                _ => SegmentKind::Literal,
            };
            let text = start..start + text.len();
            start = text.end + 1;
            Segment { kind, text }
        })
        .collect()
}

/// One try to lay segments over a path. A `*` takes as much as it can.
struct Walk<'p> {
    uri: &'p [u8],
    path: &'p [u8],
    ranges: SmallVec<[Range<usize>; 4]>,
    steps_left: usize,
}

impl Walk<'_> {
    fn fit(&mut self, segments: &[Segment], at: usize) -> bool {
        let Some((first, others)) = segments.split_first() else { return false };
        let Some(rest) = self.path.get(at..) else { return false };
        if self.steps_left == 0 {
            return false;
        }
        self.steps_left -= 1;
        match first.kind {
            SegmentKind::Literal => {
                let text = &self.uri[first.text.clone()];
                rest.starts_with(text) && self.go_on(others, at + text.len())
            }
            SegmentKind::Parameter => {
                let length = memchr::memchr(b'/', rest).unwrap_or(rest.len());
                length > 0 && self.fit_with(at..at + length, others)
            }
            SegmentKind::Rest if others.is_empty() => self.fit_with(at..self.path.len(), others),
            SegmentKind::Rest => memchr::memrchr_iter(b'/', rest)
                .any(|length| self.fit_with(at..at + length, others)),
        }
    }

    fn fit_with(&mut self, range: Range<usize>, others: &[Segment]) -> bool {
        let end = range.end;
        self.ranges.push(range);
        let fits = self.go_on(others, end);
        if !fits {
            self.ranges.pop();
        }
        fits
    }

    fn go_on(&mut self, others: &[Segment], at: usize) -> bool {
        match self.path.get(at) {
            None => others.is_empty(),
            Some(b'/') => self.fit(others, at + 1),
            Some(_) => false,
        }
    }
}

fn compile_regex(uri: &str, segments: &[Segment]) -> Option<Regex> {
    const ODD: [char; 13] = ['?', '+', '*', '(', ')', '[', ']', '{', '}', '|', '^', '$', '\\'];
    let is_odd = |segment: &Segment| {
        segment.kind == SegmentKind::Literal && uri[segment.text.clone()].contains(ODD)
    };
    if !segments.iter().any(is_odd) {
        return None;
    }
    let (mut regex, mut parameters) = (String::new(), 0);
    for (index, segment) in segments.iter().enumerate() {
        if index > 0 {
            regex.push('/');
        }
        let text = match segment.kind {
            SegmentKind::Literal => {
                regex.push_str(&uri[segment.text.clone()]);
                continue;
            }
            SegmentKind::Parameter => "[^/]+",
            SegmentKind::Rest => "(?s:.*)",
        };
        regex.push_str(&format!("(?<{}>{text})", group(parameters)));
        parameters += 1;
    }
    RegexBuilder::new(&regex)
        .bytes_mode(BytesMode::Ascii)
        .backtrack_limit(STEPS_MAX)
        .delegate_size_limit(REGEX_BYTES_MAX)
        .build()
        .ok()
}

fn group(index: usize) -> String {
    format!("sluicegate{index}")
}

const EXT: &[u8] = b":ext";

/// How many steps one path may cost: several `*` in one uri can be laid out in many ways.
const STEPS_MAX: usize = 10_000;

/// The largest compiled size of one regex.
const REGEX_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uri: &str, with_parameters: bool, path: &str, expected: Option<&str>) {
        let pattern = Pattern::compile(uri, with_parameters);
        let (key, kind) = pattern.key();
        let found = match kind {
            Kind::Exact => path.as_bytes() == key,
            Kind::Prefix => path.as_bytes().starts_with(key),
        };
        let mut matched = Matched::default();
        let parameters = (found && pattern.fits(path.as_bytes(), &mut matched)).then(|| {
            let shown: Vec<_> =
                matched.params().map(|(name, range)| format!("{name}={}", &path[range])).collect();
            shown.join(" ")
        });
        assert_eq!(parameters.as_deref(), expected, "{uri} on {path}");
    }

    #[test]
    fn paths_without_parameters_fit_whole_or_by_prefix() {
        for (uri, path, expected) in [
            ("/a", "/a", Some("")),
            ("/a", "/a/", None),
            ("/a*", "/a", Some("")),
            ("/a*", "/ab/c", Some("")),
            ("/a/*", "/a/", Some(":ext=")),
            ("/a/*", "/a/b/c", Some(":ext=b/c")),
            ("/a/*", "/a", None),
            ("/a/*", "/a/b\nc", Some(":ext=b\nc")),
            ("*", "/ip\nA", Some(":ext=/ip\nA")),
            ("/*", "/", Some(":ext=")),
            ("/a*b", "/acd", Some("")),
            ("/a/*/b", "/a/x/y/b", Some(":ext=x/y")),
            ("/a/*/b", "/a//b", Some(":ext=")),
            ("/a/*/b", "/a/b", None),
            ("/a/*/b", "/a/x/bc", None),
            ("/a/*name", "/a/x/y", Some("name=x/y")),
            ("/file:list", "/file:list", Some("")),
            ("/file:list", "/file:xx", None),
            ("/name/:name", "/name/json", None),
            ("/name/:name", "/name/:name", Some("")),
            ("/:name/*", "/:name/x", Some("name=:name :ext=x")),
            ("/a+b/*", "/a+b/x", Some(":ext=x")),
            ("/a.b/*", "/axb/x", None),
            ("v", "/v", None),
        ] {
            check(uri, false, path, expected);
        }
    }

    #[test]
    fn parameters_take_one_segment_and_stars_take_many() {
        for (uri, path, expected) in [
            ("/name/*name", "/name/json", Some("name=json")),
            ("/name/*name", "/name/", Some("name=")),
            ("/name/*", "/name/json/foo/bar", Some(":ext=json/foo/bar")),
            ("/name/:name/id/:id", "/name/json/id/1", Some("name=json id=1")),
            ("/name/:name/id/:id", "/name/json/id/", None),
            ("/name/:name/id/:id", "/name/json", None),
            (
                "/name/:name/id/:id/*other",
                "/name/json/id/1/foo/bar",
                Some("name=json id=1 other=foo/bar"),
            ),
            ("/name/:name/foo", "/name/json/foo", Some("name=json")),
            ("/name/:name/foo", "/name/json/foobar", None),
            ("/name/:name/", "/name/json/", Some("name=json")),
            ("/name/:name/", "/name/json", None),
            ("/name/:name/bar", "/name//bar", None),
            ("/name/:name/bar", "/name/with space/bar", Some("name=with space")),
            ("/:name/foo", "/json/foo", Some("name=json")),
            ("/:name/foo", "/json/foo/bar", None),
            ("/:name/foo", "/json/bbb/foo", None),
            ("/file/:filename", "/file/123&45@dd:d=test;", Some("filename=123&45@dd:d=test;")),
            ("/file/:filename", "/file/t!e*s't,(file)", Some("filename=t!e*s't,(file)")),
            ("/file:list", "/file:list", Some("")),
            ("/file:list", "/filexx", Some("")),
            ("/a/*x/:id", "/a/b/c/7", None),
            ("/a/*x/:id", "/a/*x/7", Some("x=*x id=7")),
            ("/*x/m/*y/n", "/a/m/b/m/c/n", Some("x=a/m/b y=c")),
            ("/:v/nodes/?", "/v4/nodes/", Some("v=v4")),
            ("/:v/nodes/?", "/v4/nodes/?", Some("v=v4")),
            ("/:v/nodes/?", "/v4/nodes", Some("v=v4")),
            ("/:v/nodes/?", "/v4/node", None),
            ("/:v/a|b", "/v4/a|b", Some("v=v4")),
            ("/:v/(a|b)/*", "/v4/b/c", Some("v=v4 :ext=c")),
            ("/:v/(/*", "/v4/(/c", Some("v=v4 :ext=c")),
            ("/:v/(/*", "/v4/x/c", None),
        ] {
            check(uri, true, path, expected);
        }
    }

    #[test]
    fn many_stars_give_up_in_bounded_time() {
        let path = "/a".repeat(2000);
        check("/*/*/*/*/*/*/*/*/b", false, &path, None);
    }
}
