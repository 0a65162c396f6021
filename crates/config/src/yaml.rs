//! YAML text as a tree that remembers where everything stood.
//!
//! Every error of a later step names a line, and an admin key is written back at its exact place;
//! neither works with a tree of bare values. The reader takes what a configuration needs: one
//! document, anchors and aliases (expanded, within limits), no tags of its own, no `<<`.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Value};

use crate::error::{ConfigError, Problems};

/// Deepest nesting of lists and maps.
pub const NESTING_MAX: usize = 32;
/// Most scalars, lists and maps in a file, aliases expanded.
pub const NODES_MAX: usize = 100_000;
/// Most bytes of scalars in a file, aliases and environment variables expanded.
pub const EXPANDED_BYTES_MAX: usize = 8 << 20;

/// A value and where it stands. Positions count characters, as the parser does.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Line of the value, from 1.
    pub(crate) line: usize,
    /// A scalar's own text; for a list or map its opening bracket, empty in block style.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Whether the value stands elsewhere and is only referred to here.
    pub(crate) alias: bool,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A scalar's text, and how it may be read.
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    /// Written without quotes: may be a number, a boolean or null.
    pub(crate) plain: bool,
    /// Holds text from the environment: may be a number or a boolean, never null.
    pub(crate) substituted: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_line: usize,
    pub(crate) key_column: usize,
    pub(crate) key_start: usize,
    pub(crate) key_end: usize,
    pub(crate) value: Node,
}

/// What a scalar says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Meaning<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
}

impl Node {
    pub(crate) fn entries(&self) -> Option<&[Entry]> {
        match &self.content {
            Content::Map(entries) => Some(entries),
            _ => None,
        }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries()?.iter().find(|entry| entry.key == key)
    }

    pub(crate) fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.entry(key).map(|entry| &entry.value))
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar(scalar) if scalar.meaning() == Meaning::Null)
    }

    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => Value::Null,
                Meaning::Bool(bool) => bool.into(),
                Meaning::Int(int) => int.into(),
                Meaning::Float(float) => float.into(),
                Meaning::Text(text) => text.into(),
            },
            Content::List(items) => items.iter().map(Self::to_json).collect(),
            Content::Map(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.value.to_json()))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// Nodes, scalar bytes and depth below and with this one.
    fn weight(&self) -> Weight {
        let below = |nodes: &mut dyn Iterator<Item = &Node>| {
            let mut sum = Weight { nodes: 1, bytes: 0, depth: 1 };
            for weight in nodes.map(Node::weight) {
                sum.nodes += weight.nodes;
                sum.bytes += weight.bytes;
                sum.depth = sum.depth.max(weight.depth + 1);
            }
            sum
        };
        match &self.content {
            Content::Scalar(scalar) => Weight { nodes: 1, bytes: scalar.text.len(), depth: 0 },
            Content::List(items) => below(&mut items.iter()),
            Content::Map(entries) => below(&mut entries.iter().map(|entry| &entry.value)),
        }
    }
}

impl Scalar {
    pub(crate) fn meaning(&self) -> Meaning<'_> {
        let text = self.text.as_str();
        if self.substituted {
            return match text {
                "true" => Meaning::Bool(true),
                "false" => Meaning::Bool(false),
                _ => number(text.trim()).unwrap_or(Meaning::Text(text)),
            };
        }
        if !self.plain {
            return Meaning::Text(text);
        }
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Meaning::Null,
            "true" | "True" | "TRUE" => Meaning::Bool(true),
            "false" | "False" | "FALSE" => Meaning::Bool(false),
            _ => number(text).unwrap_or(Meaning::Text(text)),
        }
    }

    /// As [`Scalar::meaning`], for keys that hold a boolean: unquoted `yes`, `no`, `on` and `off`
    /// are booleans too, as they are in APISIX's YAML 1.1.
    pub(crate) fn boolean(&self) -> Option<bool> {
        match self.meaning() {
            Meaning::Bool(bool) => Some(bool),
            Meaning::Text(text) if self.plain => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" => Some(true),
                "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Reads one document; `None` when there is nothing in it. Keys given twice are added to
/// `problems`, and the first one is kept.
pub(crate) fn read(
    file: &str,
    text: &str,
    problems: &mut Problems,
) -> Result<Option<Node>, ConfigError> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        nodes: 0,
        bytes: 0,
        problems,
    };
    reader.document().map_err(|Fault { line, column, reason }| ConfigError::Syntax {
        file: file.into(),
        line,
        column,
        reason,
    })
}

struct Reader<'input, 'p> {
    parser: Parser<'input, StrInput<'input>>,
    anchors: HashMap<usize, (Node, Weight)>,
    nodes: usize,
    bytes: usize,
    problems: &'p mut Problems,
}

#[derive(Clone, Copy)]
struct Weight {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

struct Fault {
    line: usize,
    column: usize,
    reason: String,
}

impl Fault {
    fn at(mark: &Marker, reason: impl Into<String>) -> Self {
        Self { line: mark.line(), column: mark.col() + 1, reason: reason.into() }
    }
}

impl From<ScanError> for Fault {
    fn from(error: ScanError) -> Self {
        Self::at(error.marker(), error.info())
    }
}

impl<'input> Reader<'input, '_> {
    fn document(&mut self) -> Result<Option<Node>, Fault> {
        let mut root = None;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(root),
                (Event::DocumentStart(_), span) if root.is_some() => {
                    return Err(Fault::at(&span.start, "a second document in one file"));
                }
                (Event::DocumentStart(_), _) => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, 0, "")?);
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'input>, Span), Fault> {
        match self.parser.next_event() {
            Some(event) => Ok(event?),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(
        &mut self,
        event: Event<'input>,
        span: Span,
        depth: usize,
        path: &str,
    ) -> Result<Node, Fault> {
        let mark = span.start;
        if depth > NESTING_MAX {
            return Err(Fault::at(&mark, format!("nested deeper than {NESTING_MAX} levels")));
        }
        self.count(&mark, 1, 0)?;
        let mut node = Node {
            line: mark.line(),
            start: span.start.index(),
            end: span.end.index(),
            alias: false,
            content: Content::List(Vec::new()),
        };
        let anchor = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(&mark, 0, text.len())?;
                let plain = style == ScalarStyle::Plain && !means_text(tag.as_deref(), &mark)?;
                node.content =
                    Content::Scalar(Scalar { text: text.into_owned(), plain, substituted: false });
                anchor
            }
            Event::SequenceStart(anchor, tag) => {
                means_text(tag.as_deref(), &mark)?;
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if event == Event::SequenceEnd {
                        break;
                    }
                    let path = format!("{path}[{}]", items.len());
                    items.push(self.node(event, span, depth + 1, &path)?);
                }
                node.content = Content::List(items);
                anchor
            }
            Event::MappingStart(anchor, tag) => {
                means_text(tag.as_deref(), &mark)?;
                node.content = Content::Map(self.entries(depth, path)?);
                anchor
            }
            Event::Alias(anchor) => {
                let Some((target, weight)) = self.anchors.get(&anchor).cloned_within(|weight| {
                    depth + weight.depth <= NESTING_MAX
                        && self.nodes + weight.nodes <= NODES_MAX
                        && self.bytes + weight.bytes <= EXPANDED_BYTES_MAX
                }) else {
                    let reason = "an alias of itself, or of more than the limits allow";
                    return Err(Fault::at(&mark, reason));
                };
                self.count(&mark, weight.nodes, weight.bytes)?;
                node.content = target.content;
                node.alias = true;
                0
            }
            _ => return Err(Fault::at(&mark, "a value was expected here")),
        };
        if anchor != 0 {
            let weight = node.weight();
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        Ok(node)
    }

    fn entries(&mut self, depth: usize, path: &str) -> Result<Vec<Entry>, Fault> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => {
                    return Ok(entries);
                }
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(Fault::at(&span.start, "a key must be plain text")),
            };
            if key == "<<" {
                return Err(Fault::at(&span.start, "merge keys (<<) are not supported"));
            }
            self.count(&span.start, 0, key.len())?;
            let key_path = join(path, &key);
            let (event, value_span) = self.next()?;
            let value = self.node(event, value_span, depth + 1, &key_path)?;
            let line = span.start.line();
            if let Some(first) = lines.get(&key) {
                self.problems.add(
                    Some(line),
                    &key_path,
                    format!("given twice; first on line {first}"),
                );
                continue;
            }
            lines.insert(key.clone(), line);
            entries.push(Entry {
                key,
                key_line: line,
                key_column: span.start.col(),
                key_start: span.start.index(),
                key_end: span.end.index(),
                value,
            });
        }
    }

    fn count(&mut self, mark: &Marker, nodes: usize, bytes: usize) -> Result<(), Fault> {
        self.nodes += nodes;
        self.bytes += bytes;
        if self.nodes > NODES_MAX {
            return Err(Fault::at(mark, format!("more than {NODES_MAX} values")));
        }
        if self.bytes > EXPANDED_BYTES_MAX {
            return Err(Fault::at(mark, format!("more than {EXPANDED_BYTES_MAX} bytes of values")));
        }
        Ok(())
    }
}

/// Clones an anchored node only where its weight is bearable.
trait ClonedWithin {
    fn cloned_within(self, fits: impl FnOnce(&Weight) -> bool) -> Option<(Node, Weight)>;
}

impl ClonedWithin for Option<&(Node, Weight)> {
    fn cloned_within(self, fits: impl FnOnce(&Weight) -> bool) -> Option<(Node, Weight)> {
        self.filter(|(_, weight)| fits(weight)).cloned()
    }
}

/// Whether a tag asks for text; a tag outside YAML's core schema is refused.
fn means_text(tag: Option<&Tag>, mark: &Marker) -> Result<bool, Fault> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(tag) => Err(Fault::at(mark, format!("the tag {tag} is not supported"))),
    }
}

fn number(text: &str) -> Option<Meaning<'static>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let valid = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
        return valid.then(|| i64::from_str_radix(hex, 16).ok().map(Meaning::Int)).flatten();
    }
    // `007` may be octal, decimal or a name: it stays text, and a number key refuses it.
    if digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.") {
        return None;
    }
    let first = digits.bytes().next()?;
    if !(first.is_ascii_digit() || first == b'.') || !digits.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse() {
            Ok(int) => Some(Meaning::Int(int)),
            Err(_) => text.parse().ok().map(Meaning::Float),
        };
    }
    let float = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+');
    if !digits.bytes().all(float) {
        return None;
    }
    text.parse().ok().filter(|float: &f64| float.is_finite()).map(Meaning::Float)
}

/// `a.b` from `a` and `b`.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Result<Value, String> {
        let mut problems = Problems::default();
        let node = read("f", text, &mut problems).map_err(|error| error.to_string())?;
        problems.into_result("f").map_err(|error| error.to_string())?;
        Ok(node.map_or(Value::Null, |node| node.to_json()))
    }

    #[test]
    fn scalars_mean_what_yaml_says() {
        for (text, expected) in [
            ("1", "1"),
            ("-7", "-7"),
            ("0x10", "16"),
            ("1.5", "1.5"),
            ("1e3", "1000.0"),
            (".5", "0.5"),
            ("true", "true"),
            ("False", "false"),
            ("~", "null"),
            ("null", "null"),
            ("\"1\"", "\"1\""),
            ("'true'", "\"true\""),
            ("!!str 1", "\"1\""),
            ("007", "\"007\""),
            ("yes", "\"yes\""),
            ("1.2.3.4", "\"1.2.3.4\""),
            ("127.0.0.0/24", "\"127.0.0.0/24\""),
            ("e5", "\"e5\""),
            ("1-2", "\"1-2\""),
            ("inf", "\"inf\""),
            ("4054f7cf", "\"4054f7cf\""),
            ("12345678901234567890123", "1.2345678901234568e+22"),
        ] {
            assert_eq!(json(text).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn every_fault_names_its_place() {
        for (text, error) in [
            ("a: [1, 2\n", "f:2:1: while parsing a flow sequence, expected ',' or ']'"),
            ("a: 'x", "f:1:4: "),
            ("a: 1\n---\nb: 1\n", "f:2:1: a second document in one file"),
            ("a: !mine 1", "f:1:4: the tag !mine is not supported"),
            ("<<: {a: 1}", "f:1:1: merge keys (<<) are not supported"),
            ("[a]: 1", "f:1:1: a key must be plain text"),
            ("a: *b", "f:1:4: while parsing node, found unknown anchor"),
            ("a: &a [*a]", "f:1:8: an alias of itself"),
            ("a: 1\nb: 2\na: 3\n", "f:3: a: given twice; first on line 1"),
            ("x:\n - {k: 1, k: 2}\n", "f:2: x[0].k: given twice; first on line 2"),
        ] {
            let found = json(text).unwrap_err();
            assert!(found.starts_with(error), "{text:?}: {found:?}");
        }
    }

    #[test]
    fn nesting_stops_at_its_limit() {
        let nested = |depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(json(&nested(NESTING_MAX)).is_ok());
        let error = json(&nested(NESTING_MAX + 1)).unwrap_err();
        assert!(error.contains("nested deeper than 32 levels"), "{error}");
    }

    #[test]
    fn aliases_expand_up_to_the_limits() {
        assert_eq!(json("a: &x [1, 2]\nb: *x").unwrap().to_string(), r#"{"a":[1,2],"b":[1,2]}"#);

        // 1 root + 1 list + 1 alias node each: the limit counts what stands after expansion.
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let below = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(", "));
        }
        assert!(json(&bomb).unwrap_err().contains("more than the limits allow"));

        let wide = |bytes: usize, copies: usize| {
            format!("a: &a {}\nb: [{}]\n", "x".repeat(bytes), vec!["*a"; copies].join(", "))
        };
        assert!(json(&wide(1 << 20, 6)).is_ok());
        assert!(json(&wide(1 << 20, 8)).unwrap_err().contains("more than the limits allow"));

        let nest = |depth| format!("a: &a {}1{}\nb: [*a]\n", "[".repeat(depth), "]".repeat(depth));
        assert!(json(&nest(NESTING_MAX - 2)).is_ok());
        assert!(json(&nest(NESTING_MAX - 1)).unwrap_err().contains("more than the limits allow"));
    }

    #[test]
    fn the_number_of_values_stops_at_its_limit() {
        let list = |items| format!("[{}]", vec!["1"; items].join(","));
        assert!(json(&list(NODES_MAX - 1)).is_ok());
        let error = json(&list(NODES_MAX)).unwrap_err();
        assert!(error.contains("more than 100000 values"), "{error}");
    }
}
