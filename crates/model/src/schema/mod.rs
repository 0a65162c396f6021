//! JSON-schema checking with the meaning and the words of APISIX's checker, `api7/jsonschema`.
//!
//! A [`Schema`] is compiled once into a flat list of nodes and then only read. Checking follows the
//! order of the Lua original, because two of its habits can be seen from outside:
//!
//! - a property's default is filled in as soon as that property has been looked at, so a later
//!   `if` or `oneOf` already sees it. Checking therefore works on a copy, and
//!   [`Schema::fill_defaults`] is the same walk on the value itself;
//! - an empty table is an object and an array at once.
//!
//! Where Lua walks a table in no particular order, properties here come in the order in which the
//! schema (or the value) lists them.
//!
//! Differs: a `$` at the end of a pattern means the end, not "the end or one line feed before it".

mod compile;
mod number;
pub mod pattern;
pub(crate) mod resources;

pub use resources::{hash_header, hash_vars};
mod run;

use serde_json::Value;

use self::pattern::Pattern;
use self::run::{Errors, Run};

/// A schema, compiled.
#[derive(Debug)]
pub struct Schema {
    nodes: Vec<Node>,
    root: NodeId,
}

impl Schema {
    /// Compiles a JSON schema.
    ///
    /// # Errors
    /// When the schema itself is no valid schema: an unknown type, a pattern that is no regular
    /// expression, a reference to nowhere.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        compile::compile(schema)
    }

    /// Checks a value.
    ///
    /// # Errors
    /// What is wrong first, in the words of `api7/jsonschema`.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        self.check_and_fill(&mut value.clone())
    }

    /// Checks a value and fills its defaults in while doing so.
    ///
    /// # Errors
    /// As [`check`](Self::check). The value may then be filled in part.
    pub fn check_and_fill(&self, value: &mut Value) -> Result<(), String> {
        Run { schema: self, depth: 0 }.node(self.root, value, Errors::Worded)
    }

    /// Fills defaults into a value that passes this schema.
    ///
    /// Empty tables also take the form their schema names (`[]` for an array, `{}` for an object) and
    /// integers lose a `.0`, so that a typed view can be made of them.
    pub fn fill_defaults(&self, value: &mut Value) {
        // A value that passes is filled whole; one that doesn't is not worth reporting here.
        let _ = Run { schema: self, depth: 0 }.node(self.root, value, Errors::Dropped);
    }
}

/// Place of a node in [`Schema::nodes`].
type NodeId = usize;

/// One schema object, its rules sorted by what they look at.
#[derive(Debug, Default)]
struct Node {
    /// `true` or `false` as a schema.
    always: Option<bool>,
    types: Option<Types>,
    object: Option<Box<ObjectRules>>,
    array: Option<Box<ArrayRules>>,
    string: Option<Box<StringRules>>,
    number: Option<Box<NumberRules>>,
    enumeration: Option<Vec<Value>>,
    all_of: Vec<NodeId>,
    any_of: Option<AnyOf>,
    one_of: Option<Vec<NodeId>>,
    conditional: Option<Conditional>,
    not: Option<NodeId>,
    property_names: Option<bool>,
    format: Option<Format>,
    constant: Option<Value>,
    contains: Option<Contains>,
}

#[derive(Debug)]
enum Types {
    One(Type),
    /// Any of several, and their names as the error lists them.
    Several(Vec<Type>, String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Object,
    Array,
    /// Object or array: a word of the Lua checker.
    Table,
    Integer,
    Number,
    String,
    Boolean,
    Null,
    /// Nothing in JSON is a function.
    Function,
}

impl Type {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "table" => Self::Table,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "string" => Self::String,
            "boolean" => Self::Boolean,
            "null" => Self::Null,
            "function" => Self::Function,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::Table => "table",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::String => "string",
            Self::Boolean => "boolean",
            Self::Null => "null",
            Self::Function => "function",
        }
    }
}

#[derive(Debug, Default)]
struct ObjectRules {
    properties: Vec<Property>,
    /// Names of `properties`, for the search through a value's own names.
    known: std::collections::HashSet<String>,
    /// Required, but not among `properties`.
    required: Vec<String>,
    /// `required: []`, which the Lua checker reads as "must be empty".
    must_be_empty: bool,
    /// Dependencies of names that are not among `properties`.
    dependencies: Vec<(String, Dependency)>,
    patterns: Vec<(Pattern, NodeId)>,
    additional: Additional,
    min: Option<f64>,
    max: Option<f64>,
}

#[derive(Debug)]
struct Property {
    name: String,
    node: NodeId,
    required: bool,
    default: Option<Value>,
    dependency: Option<Dependency>,
}

#[derive(Debug)]
enum Dependency {
    Names(Vec<String>),
    Schema(NodeId),
}

#[derive(Debug, Default)]
enum Additional {
    #[default]
    Allowed,
    Forbidden,
    Schema(NodeId),
}

#[derive(Debug, Default)]
struct ArrayRules {
    items: Items,
    min: Option<f64>,
    max: Option<f64>,
    unique: bool,
}

#[derive(Debug, Default)]
enum Items {
    #[default]
    Any,
    /// `items: true`: accepts at once and leaves out every later rule.
    True,
    /// `items: false`: only an empty table.
    False,
    All(NodeId),
    Tuple(Vec<NodeId>, Additional),
}

#[derive(Debug, Default)]
struct StringRules {
    min: Option<f64>,
    max: Option<f64>,
    pattern: Option<Pattern>,
}

#[derive(Debug, Default)]
struct NumberRules {
    minimum: Option<f64>,
    exclusive_minimum: Option<f64>,
    maximum: Option<f64>,
    exclusive_maximum: Option<f64>,
    multiple_of: Option<f64>,
}

#[derive(Debug)]
struct AnyOf {
    branches: Vec<NodeId>,
    /// `: ["a"] or ["b"]`, from the branches that have `required`.
    required: String,
}

#[derive(Debug)]
struct Conditional {
    condition: NodeId,
    then: Option<NodeId>,
    otherwise: Option<NodeId>,
}

#[derive(Debug)]
enum Format {
    Ipv4,
    Ipv6,
    Pattern(&'static str, Pattern),
}

#[derive(Debug)]
enum Contains {
    Always(bool),
    Schema(NodeId),
}

/// Steps a check may go into itself. A value is at most 128 deep (the JSON parser's limit), so only a
/// schema that refers to itself without going down the value comes here.
const DEPTH_MAX: usize = 256;

#[cfg(test)]
mod tests;
