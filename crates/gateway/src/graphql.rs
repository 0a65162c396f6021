//! GraphQL as routes see it: the variables `graphql_name`, `graphql_operation` and
//! `graphql_root_fields`.
//!
//! Follows Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/router-radixtree/#how-to-filter-route-by-graphql-attributes>
//!
//! The query comes in the argument `query` of a GET, in `query` of a JSON body, or is the body
//! of a POST itself. Only its first definition counts. Where there is none that can be read,
//! the variables have no value, so that conditions on them are false.

use std::borrow::Cow;
use std::fmt;

use apollo_parser::cst::{self, CstNode};
use apollo_parser::{Parser, SyntaxNode};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use tracing::warn;

use crate::expr::Value;
use crate::vars::argument;

/// The first operation or fragment of a GraphQL document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Its name; empty when it has none.
    pub name: String,
    /// `query`, `mutation`, `subscription`; `None` for a fragment.
    pub operation: Option<&'static str>,
    /// The fields it asks for, by their own names, not their aliases; fragments spread among
    /// them by theirs.
    pub root_fields: Vec<String>,
}

impl Operation {
    /// The value of the variable `graphql_NAME`.
    pub fn var(&self, name: &str) -> Option<Value<'_>> {
        match name {
            "name" => Some(self.name.as_str().into()),
            "operation" => self.operation.map(Value::from),
            "root_fields" => {
                Some(Value::List(self.root_fields.iter().map(|f| f.as_str().into()).collect()))
            }
            _ => None,
        }
    }

    /// Reads a document.
    pub fn parse(text: &str) -> Result<Self, GraphqlError> {
        let syntax_error = |at: usize| {
            let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
            let line = 1 + memchr::memchr_iter(b'\n', before).count();
            GraphqlError::Syntax { line, text: excerpt(text) }
        };
        // Differs: APISIX parses to any depth and length.
        let tree = Parser::new(text).recursion_limit(NESTING_MAX).token_limit(TOKENS_MAX).parse();
        let mut definitions = tree.document().definitions();
        let first = definitions.next();
        if let Some(error) = tree.errors().next() {
            return Err(if error.is_limit() {
                GraphqlError::TooComplex
            } else if error.is_eof() && first.is_none() {
                GraphqlError::Empty(excerpt(text))
            } else {
                syntax_error(error.index())
            });
        }
        let operation = match first {
            None => return Err(GraphqlError::Empty(excerpt(text))),
            // Differs: APISIX takes a subscription for a syntax error.
            Some(cst::Definition::OperationDefinition(operation)) => Self {
                name: text_of(operation.name()),
                operation: Some(operation_word(operation.operation_type())),
                root_fields: root_fields(operation.selection_set()),
            },
            Some(cst::Definition::FragmentDefinition(fragment)) => Self {
                name: text_of(fragment.fragment_name().and_then(|name| name.name())),
                operation: None,
                root_fields: root_fields(fragment.selection_set()),
            },
            Some(schema) => return Err(syntax_error(start(schema.syntax()))),
        };
        if definitions.next().is_some() {
            warn!("Multiple operations are not supported. Only the first one is handled.");
        }
        Ok(operation)
    }
}

/// Why a request's GraphQL cannot be read. The texts begin as APISIX's do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphqlError {
    /// Neither GET nor POST.
    #[error("graphql not support `{0}` request")]
    Method(String),
    /// A GET without the argument.
    #[error("failed to read graphql data, args[query] is nil")]
    NoArgument,
    /// A POST without a body.
    #[error("failed to read graphql data, request body has zero size")]
    NoBody,
    /// A POST with more body than is looked at.
    #[error(
        "failed to read graphql data, request body is greater than the maximum size {limit} allowed (graphql.max_size)"
    )]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The body is not the JSON it is said to be.
    #[error("failed to read graphql data, {0}")]
    Json(String),
    /// The JSON has no query.
    #[error("failed to read graphql data, json body[query] is nil")]
    NoMember,
    /// The query is not GraphQL.
    #[error("failed to parse graphql: Syntax error near line {line} body: {text}")]
    Syntax {
        /// The line, counted from 1.
        line: usize,
        /// How the query begins.
        text: String,
    },
    /// The query is nested too deeply or has too many tokens.
    #[error(
        "failed to parse graphql: nested deeper than {NESTING_MAX} or longer than {TOKENS_MAX} tokens"
    )]
    TooComplex,
    /// Nothing but blanks and comments.
    #[error("empty graphql: {0}")]
    Empty(String),
}

/// Reads the operation out of a GET's query string.
pub fn from_query(query: &[u8]) -> Result<Operation, GraphqlError> {
    let text = argument(query, b"query").ok_or(GraphqlError::NoArgument)?;
    Operation::parse(&String::from_utf8_lossy(&text.to_bytes().unwrap_or_default()))
}

/// Reads the operation out of a POST's body.
pub fn from_body(body: &[u8], media: Option<&[u8]>) -> Result<Operation, GraphqlError> {
    if body.is_empty() {
        return Err(GraphqlError::NoBody);
    }
    // As in APISIX: with a parameter behind it, such as a charset, it is another type.
    if media != Some(JSON) {
        return Operation::parse(&String::from_utf8_lossy(body));
    }
    let query = serde_json::Deserializer::from_slice(body)
        .deserialize_map(QueryMember)
        .map_err(|error| GraphqlError::Json(error.to_string()))?;
    Operation::parse(&query.ok_or(GraphqlError::NoMember)?)
}

/// Takes the member `query` out of a JSON object and keeps nothing of the others. The last
/// one counts.
struct QueryMember;

impl<'de> Visitor<'de> for QueryMember {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the text `query`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut query = None;
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            if name == "query" {
                query = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(query)
    }
}

fn operation_word(word: Option<cst::OperationType>) -> &'static str {
    match word {
        Some(word) if word.mutation_token().is_some() => "mutation",
        Some(word) if word.subscription_token().is_some() => "subscription",
        _ => "query",
    }
}

fn root_fields(set: Option<cst::SelectionSet>) -> Vec<String> {
    let selections = set.into_iter().flat_map(|set| set.selections());
    selections
        .filter_map(|selection| match selection {
            cst::Selection::Field(field) => Some(text_of(field.name())),
            cst::Selection::FragmentSpread(spread) => {
                Some(text_of(spread.fragment_name().and_then(|name| name.name())))
            }
            // Differs: APISIX answers 500 to a query with one of these at its root.
            cst::Selection::InlineFragment(_) => None,
        })
        .collect()
}

fn text_of(name: Option<cst::Name>) -> String {
    name.map(|name| name.text().to_string()).unwrap_or_default()
}

fn start(node: &SyntaxNode) -> usize {
    node.text_range().start().into()
}

/// How a text begins, for the log: on one line and not all of it, as it is a client's.
fn excerpt(text: &str) -> String {
    // Differs: APISIX logs all of it, with its line ends.
    text.chars().take(EXCERPT_CHARS).flat_map(char::escape_debug).collect()
}

/// The media type of a body that is JSON around a query.
const JSON: &[u8] = b"application/json";

/// Selections, lists, objects and types within each other.
const NESTING_MAX: usize = 200;

/// Tokens of a document, blanks and comments included.
const TOKENS_MAX: usize = 50_000;

/// Characters of a query that a log line shows.
const EXCERPT_CHARS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(name: &str, operation: &'static str, root_fields: &[&str]) -> Operation {
        Operation {
            name: name.into(),
            operation: (!operation.is_empty()).then_some(operation),
            root_fields: root_fields.iter().map(|&f| f.into()).collect(),
        }
    }

    #[test]
    fn the_first_definition_is_read() {
        for (text, expected) in [
            ("{ owner { name } }", operation("", "query", &["owner"])),
            ("query{owner{name}}", operation("", "query", &["owner"])),
            (
                "query repo { owner { name } repo { stars } }",
                operation("repo", "query", &["owner", "repo"]),
            ),
            (
                "mutation repo($ep: Episode!, $review: [Review!]! = [{stars: 1e9}]) @now {
                    createReview(episode: $ep, review: $review) { stars }
                }",
                operation("repo", "mutation", &["createReview"]),
            ),
            ("subscription { changes }", operation("", "subscription", &["changes"])),
            ("{ mine: owner { name } }", operation("", "query", &["owner"])),
            ("{ ...rest ... on Query { repo } owner }", operation("", "query", &["rest", "owner"])),
            ("query a { x } mutation b { y }", operation("a", "query", &["x"])),
            ("fragment f on User { id } query a { x }", operation("f", "", &["id"])),
            ("query query { query }", operation("query", "query", &["query"])),
            (
                "# {\n{ owner(name: \"}\\\"{\", text: \"\"\"{ \"quoted\" \"\"\") }",
                operation("", "query", &["owner"]),
            ),
            ("\u{feff}{ owner(name: \"é\") }", operation("", "query", &["owner"])),
        ] {
            assert_eq!(Operation::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_query_is_refused_with_its_line() {
        let syntax = |line, text: &str| GraphqlError::Syntax { line, text: text.into() };
        let long = "é".repeat(EXCERPT_CHARS + 1);
        for (text, expected) in [
            ("AA", syntax(1, "AA")),
            ("{ a }\n\n}", syntax(3, "{ a }\\n\\n}")),
            ("query {", syntax(1, "query {")),
            ("{ a(b: ) }", syntax(1, "{ a(b: ) }")),
            ("{ a(b: \"\u{1b}) }", syntax(1, "{ a(b: \\\"\\u{1b}) }")),
            ("\ntype User { id: ID }", syntax(2, "\\ntype User { id: ID }")),
            (&long, syntax(1, &long[..2 * EXCERPT_CHARS])),
            ("", GraphqlError::Empty(String::new())),
            (" \n# nothing", GraphqlError::Empty(" \\n# nothing".into())),
        ] {
            assert_eq!(Operation::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn the_query_lies_where_method_and_media_type_say() {
        let found = || Ok(operation("", "query", &["owner"]));
        let json = |text: &str| Err(GraphqlError::Json(text.into()));
        for (query, expected) in [
            ("query=query{owner{name}}", found()),
            ("a=1&query=query%7Bowner+%7Bname%7D%7D&query={repo}", found()),
            ("query=", Err(GraphqlError::Empty(String::new()))),
            ("Query={owner}", Err(GraphqlError::NoArgument)),
            ("", Err(GraphqlError::NoArgument)),
        ] {
            assert_eq!(from_query(query.as_bytes()), expected, "{query}");
        }
        let syntax = |text: &str| Err(GraphqlError::Syntax { line: 1, text: excerpt(text) });
        let whole = r#"{"variables": {"query": [1]}, "query": "{repo}", "query": "{owner}"}"#;
        for (media, body, expected) in [
            (None, "{owner}", found()),
            (Some("application/graphql"), "{owner}", found()),
            (Some("application/x-www-form-urlencoded"), "{owner}", found()),
            (Some("application/json"), whole, found()),
            (Some("application/json; charset=utf-8"), whole, syntax(whole)),
            (Some("application/json"), "{}", Err(GraphqlError::NoMember)),
            (Some("application/json"), r#"{"query": null}"#, Err(GraphqlError::NoMember)),
            (
                Some("application/json"),
                r#"{"query": 1}"#,
                json("invalid type: integer `1`, expected a string at line 1 column 11"),
            ),
            (
                Some("application/json"),
                "[]",
                json(
                    "invalid type: sequence, expected an object with the text `query` at line 1 column 0",
                ),
            ),
            (Some("application/json"), "{", json("EOF while parsing an object at line 1 column 1")),
            (None, "", Err(GraphqlError::NoBody)),
            (Some("application/json"), "", Err(GraphqlError::NoBody)),
        ] {
            assert_eq!(
                from_body(body.as_bytes(), media.map(str::as_bytes)),
                expected,
                "{media:?} {body}"
            );
        }
    }

    #[test]
    fn bytes_that_are_not_text_spoil_nothing_outside_strings() {
        assert!(from_body(b"{ owner(name: \"\xff\") }", None).is_ok());
        assert!(matches!(from_body(b"{ \xff }", None), Err(GraphqlError::Syntax { .. })));
    }

    #[test]
    fn variables_are_those_of_the_operation() {
        let found = operation("repo", "query", &["owner", "repo"]);
        let list = Value::List(vec!["owner".into(), "repo".into()]);
        for (name, expected) in [
            ("name", Some("repo".into())),
            ("operation", Some("query".into())),
            ("root_fields", Some(list)),
            ("else", None),
        ] {
            assert_eq!(found.var(name), expected, "{name}");
        }
        assert_eq!(operation("f", "", &[]).var("operation"), None);
        assert_eq!(operation("", "query", &[]).var("name"), Some("".into()));
    }

    #[test]
    fn nesting_and_tokens_have_a_limit() {
        let nested = |open: &str, middle: &str, close: &str, depth: usize| {
            format!("{}{middle}{}", open.repeat(depth), close.repeat(depth))
        };
        let fields = |depth| nested("{a", "", "}", depth);
        let lists = |depth: usize| format!("{{a(b: {})}}", nested("[", "1", "]", depth - 1));
        let types = |depth| format!("query($a: {}) {{a}}", nested("[", "Int", "]", depth));
        let count = |n: usize| format!("{{{}}}", ",a".repeat(n / 2));
        for (what, text, fits) in [
            ("fields at the limit", fields(NESTING_MAX), true),
            ("fields past it", fields(NESTING_MAX + 1), false),
            ("lists at the limit", lists(NESTING_MAX), true),
            ("lists past it", lists(NESTING_MAX + 2), false),
            ("types at the limit", types(NESTING_MAX), true),
            ("types past it", types(NESTING_MAX + 1), false),
            ("tokens within the limit", count(TOKENS_MAX - 4), true),
            ("tokens past it", count(TOKENS_MAX), false),
        ] {
            let read = Operation::parse(&text);
            match fits {
                true => assert!(read.is_ok(), "{what}: {read:?}"),
                false => assert_eq!(read, Err(GraphqlError::TooComplex), "{what}"),
            }
        }
    }

    #[test]
    fn a_megabyte_of_anything_does_no_harm() {
        for piece in [
            "{",
            "}",
            "{a",
            "{a(b:[",
            "{a(b:{c:",
            "query($a:[",
            "\"",
            "\"\"\" ",
            "...",
            "{...{",
            "é",
            "{a @b(c:",
            "fragment a on b{",
            "extend ",
            "type a{a:[",
            "$",
            "0",
        ] {
            let text = piece.repeat((1 << 20) / piece.len());
            assert!(Operation::parse(&text).is_err(), "{piece}");
        }
    }
}
