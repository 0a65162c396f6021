//! Expressions over request variables: the `vars` of a route, and what plugins filter with.
//!
//! The language is that of lua-resty-expr (<https://github.com/api7/lua-resty-expr>), with its
//! rules for mixing types: `==` against a number reads the variable as a number, the four orders
//! read both sides as numbers, `in` and `has` never convert. Everything that can be thought of
//! beforehand (names, numbers, regexes, address sets) is compiled once.

pub(crate) mod body_path;
mod ip;
mod template;
mod vars;

use std::borrow::Cow;

use fancy_regex::{BytesMode, Regex, RegexBuilder};
use serde_json::Value as Json;
use sluicegate_model::schema::pattern::translate_for_line;

pub use self::{
    body_path::BodyPath,
    ip::IpSet,
    template::Template,
    vars::{Builtin, Value, VarName, Vars},
};

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expr {
    rule: Rule,
}

impl Expr {
    /// Compiles the JSON form. The error is the text APISIX gives, without the Admin API's prefix.
    ///
    /// Differs: a regex that does not compile is refused here; APISIX accepts it and then never
    /// matches. What would raise a Lua error there (a rule in place of a name, no text where a
    /// regex belongs) is refused as an invalid expression.
    pub fn compile(rule: &Json) -> Result<Self, String> {
        if rule.is_null() {
            return Err("missing argument rule".to_owned());
        }
        let items = list(rule);
        let Some(first) = items.first() else {
            return Ok(Self {
                rule: Rule::Group(Group { any: false, negated: false, rules: Vec::new() }),
            });
        };
        if !is_table(first) && logic(first)?.is_none() {
            return Err("rule should be wrapped inside brackets".to_owned());
        }
        Ok(Self { rule: compile_rule(rule, 0)? })
    }

    /// Whether the expression holds. An empty one always does.
    pub fn eval(&self, vars: &dyn Vars) -> bool {
        self.rule.eval(vars)
    }
}

#[derive(Clone, Debug)]
enum Rule {
    Group(Group),
    Test { name: VarName, test: Test, reversed: bool },
}

impl Rule {
    fn eval(&self, vars: &dyn Vars) -> bool {
        match self {
            Self::Group(Group { any, negated, rules }) => {
                let held = match any {
                    true => rules.iter().any(|rule| rule.eval(vars)),
                    false => rules.iter().all(|rule| rule.eval(vars)),
                };
                held != *negated
            }
            Self::Test { name, test, reversed } => {
                test.holds(&vars.var(name).unwrap_or(Value::Nil)) != *reversed
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Group {
    any: bool,
    negated: bool,
    rules: Vec<Rule>,
}

/// An operator together with its right side.
#[derive(Clone, Debug)]
enum Test {
    Equal(Literal),
    NotEqual(Literal),
    Order(Order, f64),
    Regex(Box<Matcher>),
    In(Vec<Literal>),
    Has(Literal),
    IpMatch(IpSet),
    /// An order whose right side is no number: it holds for nothing.
    Never,
}

impl Test {
    fn holds(&self, value: &Value<'_>) -> bool {
        match self {
            Self::Equal(literal) => literal.equals(value),
            Self::NotEqual(literal) => !literal.equals(value),
            Self::Order(order, right) => value.to_number().is_some_and(|left| match order {
                Order::Greater => left > *right,
                Order::GreaterEqual => left >= *right,
                Order::Less => left < *right,
                Order::LessEqual => left <= *right,
            }),
            Self::Regex(regex) => match value {
                Value::Bool(false) => false,
                // Running into the backtracking limit is an error: no match, as in APISIX.
                value => value.to_bytes().is_some_and(|text| regex.is_match(&text)),
            },
            Self::In(literals) => literals.iter().any(|literal| literal.is(value)),
            Self::Has(literal) => match value {
                Value::List(values) => values.iter().any(|value| literal.is(value)),
                _ => false,
            },
            Self::IpMatch(set) => match value {
                Value::Str(text) => std::str::from_utf8(text)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .is_some_and(|address| set.contains(address)),
                _ => false,
            },
            Self::Never => false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
}

/// The right side of a comparison.
#[derive(Clone, Debug)]
enum Literal {
    Nil,
    Bool(bool),
    Num(f64),
    Str(Box<[u8]>),
    /// An array or object where a single value is compared: equal to nothing.
    Table,
}

impl Literal {
    fn from_json(json: Option<&Json>) -> Self {
        match json {
            None | Some(Json::Null) => Self::Nil,
            Some(Json::Bool(flag)) => Self::Bool(*flag),
            Some(Json::Number(number)) => number.as_f64().map_or(Self::Table, Self::Num),
            Some(Json::String(text)) => Self::Str(text.as_bytes().into()),
            Some(Json::Array(_) | Json::Object(_)) => Self::Table,
        }
    }

    /// `==`: against a number, the other side is read as one.
    fn equals(&self, value: &Value<'_>) -> bool {
        match self {
            Self::Num(number) => value.to_number() == Some(*number),
            Self::Nil => *value == Value::Nil,
            literal => literal.is(value),
        }
    }

    /// The same type and the same value; nil is never an element of anything.
    fn is(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::Bool(left), Value::Bool(right)) => left == right,
            (Self::Num(left), Value::Num(right)) => left == right,
            (Self::Str(left), Value::Str(right)) => **left == **right,
            _ => false,
        }
    }
}

fn compile_rule(rule: &Json, depth: usize) -> Result<Rule, String> {
    if depth >= DEPTH_MAX {
        return Err(format!("rule is nested deeper than {DEPTH_MAX} levels"));
    }
    if !is_table(rule) {
        return Err(INVALID.to_owned());
    }
    let items = list(rule);
    let Some(first) = items.first() else {
        return Err("rule too short".to_owned());
    };
    let compile_all = |items: &[Json]| -> Result<Vec<_>, String> {
        items.iter().map(|item| compile_rule(item, depth + 1)).collect()
    };
    if is_table(first) {
        return Ok(Rule::Group(Group { any: false, negated: false, rules: compile_all(items)? }));
    }
    if let Some((any, negated)) = logic(first)? {
        if items.len() <= 2 {
            return Err("rule too short".to_owned());
        }
        return Ok(Rule::Group(Group { any, negated, rules: compile_all(&items[1..])? }));
    }
    compile_test(items)
}

fn compile_test(items: &[Json]) -> Result<Rule, String> {
    let (name, operator, right, reversed) = match items {
        [name, not, operator, right] => {
            if not.as_str() != Some("!") {
                return Err("bad 'not' expression".to_owned());
            }
            (name, Some(operator), Some(right), true)
        }
        items => (&items[0], items.get(1), items.get(2), false),
    };
    let Some(operator) = operator else {
        return Err(INVALID.to_owned());
    };
    let operator = match operator {
        Json::String(text) => text.to_ascii_lowercase(),
        Json::Number(number) => number.to_string(),
        _ => return Err(INVALID.to_owned()),
    };
    let name = VarName::parse(name.as_str().ok_or(INVALID)?);
    if let VarName::PostBody(path) = &name
        && !path.is_valid()
    {
        return Err(format!("{INVALID}: '{}' is no path into a body", path.text()));
    }

    // The short form `[name, value]`; the value has been lower-cased above, as in APISIX.
    if right.is_none() && !OPERATORS.contains(&operator.as_str()) {
        let test = Test::Equal(Literal::Str(operator.into_bytes().into()));
        return Ok(Rule::Test { name, test, reversed });
    }

    let literal = || Literal::from_json(right);
    let order = |order| match right_number(right) {
        Some(number) => Test::Order(order, number),
        None => Test::Never,
    };
    let test = match operator.as_str() {
        "==" => Test::Equal(literal()),
        "~=" => Test::NotEqual(literal()),
        ">" => order(Order::Greater),
        ">=" => order(Order::GreaterEqual),
        "<" => order(Order::Less),
        "<=" => order(Order::LessEqual),
        "~~" => Test::Regex(Box::new(compile_regex(right, false)?)),
        "~*" => Test::Regex(Box::new(compile_regex(right, true)?)),
        "in" => match right {
            Some(Json::Array(items)) => {
                Test::In(items.iter().map(|item| Literal::from_json(Some(item))).collect())
            }
            _ => Test::Never,
        },
        "has" => Test::Has(literal()),
        "ipmatch" => Test::IpMatch(compile_addresses(right)?),
        _ => return Err(format!("invalid operator '{operator}'")),
    };
    Ok(Rule::Test { name, test, reversed })
}

fn right_number(right: Option<&Json>) -> Option<f64> {
    match right? {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => vars::lua_number(text.as_bytes()),
        _ => None,
    }
}

fn compile_regex(right: Option<&Json>, case_insensitive: bool) -> Result<Matcher, String> {
    let pattern: Cow<'_, str> = match right {
        Some(Json::String(text)) => text.as_str().into(),
        Some(Json::Number(number)) => number.to_string().into(),
        _ => return Err("invalid regex: a string is expected".to_owned()),
    };
    // PCRE without its UTF flag reads bytes, and so does this. Only a pattern that needs more
    // (a class with a letter beyond ASCII) is read as Unicode.
    let build = |pattern: &str, mode| {
        RegexBuilder::new(pattern)
            .case_insensitive(case_insensitive)
            .bytes_mode(mode)
            .backtrack_limit(BACKTRACK_MAX)
            .delegate_size_limit(REGEX_BYTES_MAX)
            .build()
    };
    let built = |source: &str| {
        build(source, BytesMode::Ascii)
            .or_else(|error| match source.is_ascii() {
                true => Err(error),
                false => build(source, BytesMode::UnicodeBytes),
            })
            .map_err(|error| format!("invalid regex '{pattern}': {error}"))
    };
    let regex = built(&pattern)?;
    let for_line = translate_for_line(&pattern).map(|pattern| built(&pattern)).transpose()?;
    Ok(Matcher { regex, for_line })
}

/// A compiled regular expression.
#[derive(Clone, Debug)]
struct Matcher {
    regex: Regex,
    /// For a text that ends with a line feed, where that makes a difference.
    for_line: Option<Regex>,
}

impl Matcher {
    fn is_match(&self, text: &[u8]) -> bool {
        let regex = self.for_line.as_ref().filter(|_| text.ends_with(b"\n"));
        regex.unwrap_or(&self.regex).is_match(text).unwrap_or(false)
    }
}

fn compile_addresses(right: Option<&Json>) -> Result<IpSet, String> {
    let text = |item: &Json| match item {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    };
    match right {
        Some(Json::Array(items)) if !items.is_empty() => IpSet::parse(items.iter().map(text)),
        None | Some(Json::Array(_) | Json::Object(_) | Json::Bool(false)) => {
            Err("invalid ip address".to_owned())
        }
        Some(Json::String(text)) if text.is_empty() => Err("invalid ip address".to_owned()),
        Some(item) => IpSet::parse([text(item)]),
    }
}

/// The array behind a JSON value; to Lua, an object is an array of length zero.
fn list(json: &Json) -> &[Json] {
    json.as_array().map_or(&[], Vec::as_slice)
}

fn is_table(json: &Json) -> bool {
    json.is_array() || json.is_object()
}

/// Reads a logical operator as (any instead of all, negated).
fn logic(first: &Json) -> Result<Option<(bool, bool)>, String> {
    let text = match first {
        Json::String(text) => text.to_ascii_uppercase(),
        Json::Number(_) => return Ok(None),
        _ => return Err(INVALID.to_owned()),
    };
    Ok(match text.as_str() {
        "AND" => Some((false, false)),
        "!AND" => Some((false, true)),
        "OR" => Some((true, false)),
        "!OR" => Some((true, true)),
        _ => None,
    })
}

const INVALID: &str = "invalid expression";

const OPERATORS: [&str; 11] =
    ["==", "~=", ">", ">=", "<", "<=", "~~", "~*", "in", "has", "ipmatch"];

/// How deep rules may be nested.
const DEPTH_MAX: usize = 64;

/// How often a regex may go back before it counts as not matching (nginx's
/// `lua_regex_match_limit` in APISIX).
const BACKTRACK_MAX: usize = 100_000;

/// The largest compiled size of one regex.
const REGEX_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    struct Table(HashMap<VarName, Value<'static>>);

    impl Vars for Table {
        fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>> {
            self.0.get(name).cloned()
        }
    }

    fn table(json: &Json) -> Table {
        fn value(json: &Json) -> Value<'static> {
            match json {
                Json::Null | Json::Object(_) => Value::Nil,
                Json::Bool(flag) => Value::Bool(*flag),
                Json::Number(number) => Value::Num(number.as_f64().expect("small numbers")),
                Json::String(text) => text.clone().into(),
                Json::Array(items) => Value::List(items.iter().map(value).collect()),
            }
        }
        let object = json.as_object().expect("variables are given as an object");
        Table(object.iter().map(|(name, json)| (VarName::parse(name), value(json))).collect())
    }

    #[track_caller]
    fn check(rule: Json, vars: Json, expected: bool) {
        let expr = Expr::compile(&rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
        assert_eq!(expr.eval(&table(&vars)), expected, "{rule} with {vars}");
    }

    #[test]
    fn comparisons_convert_as_lua_resty_expr_does() {
        for (test, value, expected) in [
            (json!(["==", "v"]), json!("v"), true),
            (json!(["==", "v"]), json!("V"), false),
            (json!(["==", 10]), json!("10"), true),
            (json!(["==", 10]), json!("10.0"), true),
            (json!(["==", 10]), json!("0xa"), true),
            (json!(["==", 10]), json!("ten"), false),
            (json!(["==", 10]), json!(null), false),
            (json!(["==", "10"]), json!(10), false),
            (json!(["==", "10"]), json!("10.0"), false),
            (json!(["==", null]), json!(null), true),
            (json!(["==", null]), json!(""), false),
            (json!(["=="]), json!(null), true),
            (json!(["==", true]), json!(true), true),
            (json!(["==", true]), json!("true"), false),
            (json!(["==", ["v"]]), json!("v"), false),
            (json!(["~=", "v"]), json!("w"), true),
            (json!(["~=", "v"]), json!("v"), false),
            (json!(["~=", "v"]), json!(null), true),
            (json!(["~=", 10]), json!("ten"), true),
            (json!(["~=", 10]), json!(" 10 "), false),
            (json!(["~=", null]), json!("v"), true),
            (json!(["~=", null]), json!(null), false),
            (json!(["~="]), json!("v"), true),
            (json!([">", 10]), json!("11"), true),
            (json!([">", 10]), json!("9"), false),
            (json!([">", "10"]), json!("11"), true),
            (json!([">", 10]), json!("10"), false),
            (json!([">", 10]), json!("x"), false),
            (json!([">", 10]), json!(null), false),
            (json!([">", "x"]), json!("11"), false),
            (json!([">", null]), json!("11"), false),
            (json!([">=", 10]), json!("10"), true),
            (json!(["<", 10]), json!("-1e3"), true),
            (json!(["<", 10]), json!(null), false),
            (json!(["<=", 10]), json!(10), true),
            (json!(["!", "<", 10]), json!(null), true),
            (json!(["!", "==", "v"]), json!("w"), true),
            (json!(["v"]), json!("v"), true),
            (json!(["V"]), json!("v"), true),
            (json!([10]), json!("10"), true),
        ] {
            let mut leaf = vec![json!("arg_k")];
            leaf.extend(test.as_array().expect("tests are arrays").iter().cloned());
            check(json!([leaf]), json!({ "arg_k": value }), expected);
        }
    }

    #[test]
    fn regexes_follow_pcre_over_bytes() {
        for (test, value, expected) in [
            (json!(["~~", "^[Dd]ev$"]), json!("dev"), true),
            (json!(["~~", "ev"]), json!("devel"), true),
            (json!(["~~", r"\.php$"]), json!("/a.php\n"), true),
            (json!(["~~", r"\.php$"]), json!("/a.php\n\n"), false),
            (json!(["~~", "dev"]), json!("DEV"), false),
            (json!(["~*", "dev"]), json!("a DEV"), true),
            (json!(["~~", "^(?!internal).*$"]), json!("internal-1"), false),
            (json!(["~~", "^(?!internal).*$"]), json!("public"), true),
            (json!(["~~", r"(a)\1"]), json!("aa"), true),
            (json!(["~~", r"^\/v\d+\/"]), json!("/v2/x"), true),
            (json!(["~~", "^..$"]), json!("é"), true),
            (json!(["~~", "é"]), json!("café"), true),
            (json!(["~~", "^[é]$"]), json!("é"), true),
            (json!(["~~", 12]), json!("a12"), true),
            (json!(["~~", "1"]), json!(12), true),
            (json!(["~~", ".*"]), json!(null), false),
            (json!(["~~", ".*"]), json!(["a"]), false),
            (json!(["!", "~~", "[a-z]"]), json!("9"), true),
            (json!(["!", "~~", "[a-z]"]), json!("a"), false),
            (json!(["!", "~*", "android"]), json!(null), true),
        ] {
            let mut leaf = vec![json!("arg_k")];
            leaf.extend(test.as_array().expect("tests are arrays").iter().cloned());
            check(json!([leaf]), json!({ "arg_k": value }), expected);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_matched_too() {
        let expr = Expr::compile(&json!([["arg_k", "~~", "^a.b$"]])).expect("compiles");
        let vars = Table([(VarName::parse("arg_k"), Value::from(&b"a\xffb"[..]))].into());
        assert!(expr.eval(&vars));
    }

    #[test]
    fn a_regex_that_goes_back_too_often_does_not_match() {
        let rule = json!([["arg_k", "~~", r"^(?=(a|aa)+$)(a|aa)+\1b$"]]);
        check(rule, json!({ "arg_k": "a".repeat(60) }), false);
    }

    #[test]
    fn membership_never_converts() {
        for (test, value, expected) in [
            (json!(["in", ["1", "2"]]), json!("2"), true),
            (json!(["in", ["1", "2"]]), json!("4"), false),
            (json!(["IN", ["1", "2"]]), json!("1"), true),
            (json!(["in", [1, 2]]), json!("1"), false),
            (json!(["in", [1, 2]]), json!(1), true),
            (json!(["in", ["1", null]]), json!(null), false),
            (json!(["in", []]), json!("1"), false),
            (json!(["in", "1"]), json!("1"), false),
            (json!(["!", "in", [1, 2]]), json!(3), true),
            (json!(["has", "a"]), json!(["a", "b"]), true),
            (json!(["has", "a"]), json!(["b"]), false),
            (json!(["has", "a"]), json!([]), false),
            (json!(["has", "a"]), json!("a"), false),
            (json!(["has", "1"]), json!([1]), false),
            (json!(["has", null]), json!([null]), false),
            (json!(["!", "has", 1]), json!([2, 3]), true),
            (json!(["!", "has", 1]), json!([1, 2]), false),
            (json!(["ipmatch", "127.0.0.1"]), json!("127.0.0.1"), true),
            (json!(["ipmatch", "127.0.0.0/16"]), json!("127.0.3.1"), true),
            (json!(["ipmatch", ["127.0.0.2", "::1"]]), json!("::1"), true),
            (json!(["ipmatch", ["127.0.0.2", "::1"]]), json!("127.0.0.1"), false),
            (json!(["ipmatch", ["127.0.0.2"]]), json!("no address"), false),
            (json!(["ipmatch", ["127.0.0.2"]]), json!(null), false),
            (json!(["!", "ipmatch", ["127.0.0.2"]]), json!(null), true),
        ] {
            let mut leaf = vec![json!("x")];
            leaf.extend(test.as_array().expect("tests are arrays").iter().cloned());
            check(json!([leaf]), json!({ "x": value }), expected);
        }
    }

    #[test]
    fn logic_nests() {
        let over_10 = json!(["arg_w", ">", 10]);
        let not_over_15 = json!(["arg_w", "!", ">", 15]);
        let tall = json!(["arg_h", ">", 10]);
        for (rule, w, h, expected) in [
            (json!([]), "", "", true),
            (json!({}), "", "", true),
            (json!([over_10, not_over_15]), "12", "", true),
            (json!([over_10, not_over_15]), "16", "", false),
            (json!(["AND", over_10, not_over_15]), "12", "", true),
            (json!(["and", over_10, not_over_15]), "9", "", false),
            (json!(["OR", over_10, not_over_15]), "9", "", true),
            (json!(["OR", over_10, tall]), "9", "9", false),
            (json!(["!AND", over_10, not_over_15]), "12", "", false),
            (json!(["!AND", over_10, not_over_15]), "16", "", true),
            (json!(["!OR", over_10, tall]), "9", "9", true),
            (json!(["!OR", over_10, tall]), "9", "11", false),
            (json!(["!AND", tall, ["OR", ["AND", over_10, tall], not_over_15]]), "12", "11", false),
            (json!(["OR", [over_10, tall], ["!OR", over_10, tall]]), "9", "9", true),
            (json!([["OR", over_10, tall], not_over_15]), "9", "11", true),
        ] {
            check(rule, json!({ "arg_w": w, "arg_h": h }), expected);
        }
    }

    #[test]
    fn what_does_not_compile_is_told_as_apisix_tells_it() {
        for (rule, error) in [
            (json!(null), "missing argument rule"),
            (json!(["arg_k", "==", "v"]), "rule should be wrapped inside brackets"),
            (json!([["arg_k", "zz", "v"]]), "invalid operator 'zz'"),
            (json!([["arg_k", "=", "v"]]), "invalid operator '='"),
            (json!([["arg_k", "!", "=="]]), "invalid operator '!'"),
            (json!([["arg_k", "!", "=", "v"]]), "invalid operator '='"),
            (json!([["arg_k"]]), "invalid expression"),
            (json!([[]]), "rule too short"),
            (json!([{}]), "rule too short"),
            (json!([["!", "arg_k", "==", "1"]]), "bad 'not' expression"),
            (json!(["OR", ["arg_k", ">", 1]]), "rule too short"),
            (json!(["OR", ["arg_k", ">", 1], ["AND"]]), "rule too short"),
            (json!(["AND", "arg_k", "=="]), "invalid expression"),
            (json!([["arg_k", null]]), "invalid expression"),
            (json!([["arg_k", ["=="], 1]]), "invalid expression"),
            (json!([[1, "==", 1]]), "invalid expression"),
            (json!([[null, "==", 1]]), "invalid expression"),
            (json!([null]), "invalid expression"),
            (json!([["x", "ipmatch"]]), "invalid ip address"),
            (json!([["x", "ipmatch", ""]]), "invalid ip address"),
            (json!([["x", "ipmatch", []]]), "invalid ip address"),
            (json!([["x", "ipmatch", [""]]]), "invalid ip address: "),
            (json!([["x", "ipmatch", ["1.2.3"]]]), "invalid ip address: 1.2.3"),
            (json!([["x", "~~", null]]), "invalid regex: a string is expected"),
        ] {
            assert_eq!(Expr::compile(&rule).err().as_deref(), Some(error), "{rule}");
        }
        let error = Expr::compile(&json!([["x", "~~", "(a"]])).expect_err("the group is open");
        assert!(error.starts_with("invalid regex '(a': "), "{error}");
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |levels: usize| {
            (0..levels).fold(json!(["arg_k", "==", "v"]), |inner, _| json!([inner]))
        };
        assert!(Expr::compile(&nested(DEPTH_MAX - 1)).is_ok());
        assert!(Expr::compile(&nested(DEPTH_MAX)).is_err());
    }
}
