//! Resources as YAML: what APISIX's standalone files may say, and how a configuration is exported.
//!
//! Scalars mean what they mean to the reader APISIX uses (YAML 1.1: `yes`, `on`, `0o`-less octal,
//! `0b1`, `1_000` and `1:30` included, so quote what is meant as text), merge keys (`<<`) are
//! followed, a key given twice has its last value. Whatever a file says, reading it is bounded in
//! depth and in size.

use std::{collections::HashMap, fmt::Write};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Number, Value};

/// Reads the first document of a text; `Null` when there is none.
pub fn read(text: &str) -> Result<Value, Fault> {
    let mut reader =
        Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, bytes: 0 };
    reader.document()
}

/// Writes a value as one YAML document that [`read`] (and APISIX) reads as the same value, also
/// where variables (`${{NAME}}`) are filled in before.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => write_map(&mut out, map, 0),
        Value::Array(items) if !items.is_empty() => write_list(&mut out, items, 0),
        other => {
            write_flat(&mut out, other, 0);
        }
    }
    out
}

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// The column in it, from 1.
    pub column: usize,
    /// What is wrong.
    pub reason: String,
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

/// Deepest nesting of lists and maps: what JSON is read with.
pub const NESTING_MAX: usize = 100;
/// Most scalars, lists and maps in a text, aliases expanded.
pub const NODES_MAX: usize = 8_000_000;
/// Most bytes of scalars in a text, aliases expanded.
pub const EXPANDED_BYTES_MAX: usize = 128 << 20;

struct Reader<'input> {
    parser: Parser<'input, StrInput<'input>>,
    anchors: HashMap<usize, (Value, Weight)>,
    nodes: usize,
    bytes: usize,
}

/// What a value counts for.
#[derive(Clone, Copy, Default)]
struct Weight {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

impl Weight {
    fn of(value: &Value) -> Self {
        let mut sum = Self { nodes: 1, bytes: 0, depth: 0 };
        let mut add = |below: Self| {
            sum.nodes += below.nodes;
            sum.bytes += below.bytes;
            sum.depth = sum.depth.max(below.depth + 1);
        };
        match value {
            Value::String(text) => sum.bytes = text.len(),
            Value::Array(items) => items.iter().for_each(|item| add(Self::of(item))),
            Value::Object(map) => map.iter().for_each(|(key, item)| {
                let below = Self::of(item);
                add(Self { bytes: below.bytes + key.len(), ..below });
            }),
            _ => {}
        }
        sum
    }
}

impl<'input> Reader<'input> {
    fn document(&mut self) -> Result<Value, Fault> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(Value::Null),
                (Event::DocumentStart(_), _) => {
                    let (event, span) = self.next()?;
                    let root = self.node(event, span, 0)?;
                    // What follows must be YAML too, though it is not looked at.
                    while self.next()?.0 != Event::StreamEnd {}
                    return Ok(root);
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

    fn node(&mut self, event: Event<'input>, span: Span, depth: usize) -> Result<Value, Fault> {
        let mark = span.start;
        if depth > NESTING_MAX {
            return Err(Fault::at(&mark, format!("nested deeper than {NESTING_MAX} levels")));
        }
        self.count(&mark, 1, 0)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(&mark, 0, text.len())?;
                let plain = style == ScalarStyle::Plain && !means_text(tag.as_deref(), &mark)?;
                let value = match plain {
                    true => scalar(&text).unwrap_or_else(|| text.into_owned().into()),
                    false => text.into_owned().into(),
                };
                (value, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                means_text(tag.as_deref(), &mark)?;
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if event == Event::SequenceEnd {
                        break;
                    }
                    items.push(self.node(event, span, depth + 1)?);
                }
                (Value::Array(items), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                means_text(tag.as_deref(), &mark)?;
                (Value::Object(self.map(depth)?), anchor)
            }
            Event::Alias(anchor) => {
                let fits = |weight: &Weight| {
                    depth + weight.depth <= NESTING_MAX
                        && self.nodes + weight.nodes <= NODES_MAX
                        && self.bytes + weight.bytes <= EXPANDED_BYTES_MAX
                };
                let target = self.anchors.get(&anchor).filter(|(_, weight)| fits(weight));
                let Some((target, weight)) = target.cloned() else {
                    let reason = "an alias of itself, or of more than the limits allow";
                    return Err(Fault::at(&mark, reason));
                };
                self.count(&mark, weight.nodes, weight.bytes)?;
                return Ok(target);
            }
            _ => return Err(Fault::at(&mark, "a value was expected here")),
        };
        if anchor != 0 {
            let weight = Weight::of(&value);
            self.anchors.insert(anchor, (value.clone(), weight));
        }
        Ok(value)
    }

    fn map(&mut self, depth: usize) -> Result<Map<String, Value>, Fault> {
        let mut map = Map::new();
        // What `<<` brought; keys of the map itself win, wherever they stand.
        let mut merged = Map::new();
        loop {
            let (event, span) = self.next()?;
            let (key, plain) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, ..) => (text.into_owned(), style == ScalarStyle::Plain),
                _ => return Err(Fault::at(&span.start, "a key must be plain text")),
            };
            self.count(&span.start, 0, key.len())?;
            let mark = span.start;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if key != MERGE || !plain {
                map.insert(key, value);
                continue;
            }
            let maps = match value {
                Value::Array(maps) => maps,
                map => vec![map],
            };
            for brought in maps {
                let Value::Object(brought) = brought else {
                    return Err(Fault::at(&mark, "<< takes a map or a list of maps"));
                };
                for (key, value) in brought {
                    merged.entry(key).or_insert(value);
                }
            }
        }
        for (key, value) in merged {
            map.entry(key).or_insert(value);
        }
        Ok(map)
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

/// Whether a tag asks for text; a tag outside YAML's core schema is refused.
fn means_text(tag: Option<&Tag>, mark: &Marker) -> Result<bool, Fault> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(tag) => Err(Fault::at(mark, format!("the tag {tag} is not supported"))),
    }
}

/// What an unquoted scalar means, if it is no text.
fn scalar(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Some(true.into());
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Some(false.into());
        }
        _ => {}
    }
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    // Numbers are short; long texts of digits are not looked at any further.
    if digits.len() > NUMBER_BYTES_MAX || !digits.starts_with(|c: char| "0123456789._".contains(c))
    {
        return None;
    }
    let signed = |value: f64| if negative { -value } else { value };
    let radix = |digits: &str, radix: u32| {
        let digits = digits.replace('_', "");
        i64::from_str_radix(&digits, radix)
            .ok()
            .map(|value| if negative { -value } else { value }.into())
    };
    let only = |text: &str, allowed: &str| {
        text.contains(|c| c != '_' && allowed.contains(c))
            && text.chars().all(|c| c == '_' || allowed.contains(c))
    };
    if let Some(hex) = digits.strip_prefix("0x") {
        return only(hex, "0123456789abcdefABCDEF").then(|| radix(hex, 16)).flatten();
    }
    if let Some(binary) = digits.strip_prefix("0b") {
        return only(binary, "01").then(|| radix(binary, 2)).flatten();
    }
    if only(digits, "0123456789") {
        if digits.len() > 1 && digits.starts_with('0') && only(digits, "01234567") {
            return radix(digits, 8);
        }
        return radix(digits, 10).or_else(|| {
            let value: f64 = digits.replace('_', "").parse().ok()?;
            Number::from_f64(signed(value)).map(Value::Number)
        });
    }
    if let Some((first, rest)) = digits.split_once(':') {
        return only(first, "0123456789")
            .then(|| sexagesimal(first, rest))
            .flatten()
            .map(|value| if negative { -value } else { value }.into());
    }
    // Differs: `.inf`, `.nan` and `1:30.5` are numbers to APISIX; JSON has no such numbers, or no need
    // for them.
    let float = |c: char| c.is_ascii_digit() || "._eE+-".contains(c);
    if digits.contains(['.', 'e', 'E']) && digits.chars().all(float) {
        let value: f64 = digits.replace('_', "").parse().ok()?;
        return Number::from_f64(signed(value)).map(Value::Number);
    }
    None
}

/// `1:30` is 90: groups of at most 59, as for times.
fn sexagesimal(first: &str, rest: &str) -> Option<i64> {
    rest.split(':').try_fold(first.parse::<i64>().ok()?, |sum, group| {
        let valid = matches!(group.len(), 1 | 2) && group.bytes().all(|b| b.is_ascii_digit());
        let group: i64 = group.parse().ok().filter(|group| valid && *group < 60)?;
        sum.checked_mul(60)?.checked_add(group)
    })
}

fn write_map(out: &mut String, map: &Map<String, Value>, indent: usize) {
    for (key, value) in map {
        pad(out, indent);
        write_text(out, key, None);
        out.push(':');
        write_below(out, value, indent);
    }
}

fn write_list(out: &mut String, items: &[Value], indent: usize) {
    for item in items {
        pad(out, indent);
        out.push('-');
        match item {
            // The map's first key stands beside the dash.
            Value::Object(map) if !map.is_empty() => {
                let mut below = String::new();
                write_map(&mut below, map, indent + 2);
                out.push(' ');
                out.push_str(below.trim_start_matches(' '));
            }
            item => write_below(out, item, indent),
        }
    }
}

/// A value behind `key:` or `-`.
fn write_below(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            write_map(out, map, indent + 2);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write_list(out, items, indent + 2);
        }
        flat => {
            out.push(' ');
            write_flat(out, flat, indent + 2);
        }
    }
}

fn write_flat(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(text) => write_text(out, text, Some(indent)),
        other => out.push_str(&other.to_string()),
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
}

/// A text: as it is where that is safe, as a block where it has lines (`block`: its indent), else
/// in double quotes.
fn write_text(out: &mut String, text: &str, block: Option<usize>) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    let printable =
        |c: char| c == '\n' || !(c.is_control() || "\u{2028}\u{2029}\u{feff}".contains(c));
    if let Some(indent) = block
        && text.contains('\n')
        && !text.starts_with(['\n', ' '])
        && !text.contains(VARIABLE)
        && text.chars().all(printable)
        && text.lines().all(|line| !line.ends_with(' '))
    {
        let ending = text.len() - text.trim_end_matches('\n').len();
        out.push_str(match ending {
            0 => "|-\n",
            1 => "|\n",
            _ => "|+\n",
        });
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            if !line.is_empty() {
                pad(out, indent);
            }
            out.push_str(line);
            out.push('\n');
        }
        return;
    }
    out.push('"');
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // No variable is meant: it must not be filled in when this is read.
            '$' if rest.starts_with(VARIABLE) => out.push_str("\\x24"),
            c if printable(c) => out.push(c),
            c => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
        }
        rest = &rest[c.len_utf8()..];
    }
    out.push('"');
}

fn is_plain(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || "_/.".contains(c);
    let inner = |c: char| c.is_ascii_alphanumeric() || "_/.-+@=()*".contains(c);
    text.starts_with(first)
        && text.chars().all(inner)
        && text != MERGE
        // YAML 1.2 knows a few numbers that 1.1 does not, and other readers a few words.
        && !text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && scalar(text).is_none()
        && !matches!(text, "y" | "Y" | "n" | "N")
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

const MERGE: &str = "<<";
const VARIABLE: &str = "${{";
/// The longest text that is looked at as a number.
const NUMBER_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_mean_what_they_mean_to_apisix() {
        for (text, expected) in [
            ("1", json!(1)),
            ("-7", json!(-7)),
            ("+7", json!(7)),
            ("0", json!(0)),
            ("010", json!(8)),
            ("09", json!(9)),
            ("1_000", json!(1000)),
            ("0x1F", json!(31)),
            ("-0x10", json!(-16)),
            ("0b101", json!(5)),
            ("1:30", json!(90)),
            ("1:60", json!("1:60")),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            (".5", json!(0.5)),
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("True", json!(true)),
            ("~", Value::Null),
            ("null", Value::Null),
            ("\"1\"", json!("1")),
            ("'yes'", json!("yes")),
            ("!!str 1", json!("1")),
            ("y", json!("y")),
            ("127.0.0.1:1980", json!("127.0.0.1:1980")),
            ("1.2.3.4", json!("1.2.3.4")),
            ("0x", json!("0x")),
            ("_", json!("_")),
            (".", json!(".")),
            ("-", json!([null])),
            ("e5", json!("e5")),
            (".inf", json!(".inf")),
            ("4054f7cf", json!("4054f7cf")),
            ("12345678901234567890123", json!(1.2345678901234568e22)),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn maps_merge_and_the_last_of_equal_keys_wins() {
        for (text, expected) in [
            ("", Value::Null),
            ("a: 1\n# only\n---\nb: 1\n", json!({"a": 1})),
            ("a: 1\na: 2\n", json!({"a": 2})),
            ("1: a\ntrue: b\n", json!({"1": "a", "true": "b"})),
            (
                "x: &x {a: 1, b: 1}\ny: {<<: *x, b: 2}\nz: {b: 2, <<: *x}\n",
                json!({"x": {"a": 1, "b": 1}, "y": {"b": 2, "a": 1}, "z": {"b": 2, "a": 1}}),
            ),
            ("a: {<<: [{k: 1}, {k: 2, l: 3}]}", json!({"a": {"k": 1, "l": 3}})),
            ("a: {'<<': 1}", json!({"a": {"<<": 1}})),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn every_fault_names_its_place() {
        for (text, error) in [
            ("a: [1, 2\n", "line 2, column 1: while parsing a flow sequence"),
            ("a:\n  - b: 1\n c: 2\n", "line 3, column "),
            ("a: !mine 1", "line 1, column 4: the tag !mine is not supported"),
            ("[a]: 1", "line 1, column 1: a key must be plain text"),
            ("a: *b", "line 1, column 4: while parsing node, found unknown anchor"),
            ("a: &a [*a]", "line 1, column 8: an alias of itself"),
            ("a: 1\n<<: 2\n", "line 2, column 1: << takes a map or a list of maps"),
            ("a: 1\n---\nb: [\n", "line 4, column 1: "),
        ] {
            let found = read(text).unwrap_err().to_string();
            assert!(found.starts_with(error), "{text:?}: {found}");
        }
    }

    #[test]
    fn depth_and_expansion_stop_at_their_limits() {
        let nested = |depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(&nested(NESTING_MAX)).is_ok());
        let error = read(&nested(NESTING_MAX + 1)).unwrap_err().to_string();
        assert!(error.contains("nested deeper than 100 levels"), "{error}");

        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let below = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(", "));
        }
        let error = read(&bomb).unwrap_err().to_string();
        assert!(error.contains("more than the limits allow"), "{error}");
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let pem = "-----BEGIN CERTIFICATE-----\nMIID\n-----END CERTIFICATE-----\n";
        for value in [
            json!({}),
            json!([]),
            json!("x"),
            json!({"routes": [{"id": "1", "uri": "/*", "hosts": ["a.test", "*.b.test"], "upstream": {"nodes": {"127.0.0.1:80": 1, "[::1]:80": 0}}}], "empty": {}, "none": []}),
            json!({"ssls": [{"cert": pem, "key": pem.trim_end(), "more": format!("{pem}\n\n")}]}),
            json!([["a", ["b"]], [], {}, [{"c": [{"d": "e\nf"}]}]]),
            json!({"a": [null, true, false, 0, -1, 1.5, 1e300, 12345678901234567u64]}),
            json!([
                "",
                " ",
                " a",
                "a ",
                "a: b",
                "a #b",
                "#",
                "-",
                "- a",
                "?",
                "true",
                "Yes",
                "null",
                "~",
                "1",
                "010",
                "1.5",
                "1e3",
                "0x1",
                "1:30",
                "1_0",
                ".5",
                "<<",
                "=",
                "y",
                "\n",
                "a\n",
                "\na",
                " a\nb",
                "a \nb",
                "a\n\nb\n\n",
                "\ta\nb",
                "a\tb\nc",
                "\r\n",
                "\"",
                "'",
                "\\",
                "ä€𝄞",
                "\u{7f}",
                "\u{85}",
                "\u{2028}a\nb",
                "\u{feff}",
                "\0",
                "${{HOME}}",
                "a\n${{HOME}}\n",
                "$${{x",
                "%a",
                "@a",
                "`a",
                "!a",
                "&a",
                "*a",
                "{a",
                "[a",
                "|",
                ">",
                "a,b",
                "a\n# b\n",
                "---",
                "---\na",
                "...",
                "a\n...\nb",
                "#END",
                "a\n#END"
            ]),
            json!({"": 1, "a b": 2, "true": 3, "<<": 4, "a:": 5, "a\nb": 6, "-": 7, "${{X}}": 8, "1": 9, "\u{1}": 10}),
        ] {
            let text = write(&value);
            assert_eq!(read(&text).as_ref(), Ok(&value), "{text}");
            assert!(!text.contains("${{"), "{text}");
        }
        let value =
            json!({"routes": [{"id": "1", "uri": "/a", "plugins": {"p": {}}, "body": "a\nb\n"}]});
        let text = "routes:\n  - id: \"1\"\n    uri: /a\n    plugins:\n      p: {}\n    body: |\n      a\n      b\n";
        assert_eq!(write(&value), text);
    }
}
