//! The walk over a value.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value};

use super::number::lua;
use super::*;
use crate::resource::is_secret_reference;

/// One check in progress.
pub(super) struct Run<'a> {
    pub(super) schema: &'a Schema,
    pub(super) depth: usize,
}

/// Whether a failure needs its words. Branches that are only tried need none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Errors {
    Worded,
    Dropped,
}

type Outcome = Result<(), String>;

/// Fails with a text, built only if someone will read it.
macro_rules! fail {
    ($errors:expr, $($text:tt)+) => {
        return Err(if $errors == Errors::Worded { format!($($text)+) } else { String::new() })
    };
}

impl Run<'_> {
    pub(super) fn node(&mut self, id: NodeId, value: &mut Value, errors: Errors) -> Outcome {
        if self.depth >= DEPTH_MAX {
            fail!(errors, "value is nested too deeply");
        }
        self.depth += 1;
        let outcome = self.rules(&self.schema.nodes[id], value, errors);
        self.depth -= 1;
        outcome
    }

    /// Whether a branch matches, when nobody asks why not.
    fn matches(&mut self, id: NodeId, value: &mut Value) -> bool {
        self.node(id, value, Errors::Dropped).is_ok()
    }

    fn rules(&mut self, node: &Node, value: &mut Value, errors: Errors) -> Outcome {
        if let Some(always) = node.always {
            if !always {
                fail!(errors, "expect false always");
            }
            return Ok(());
        }
        // A text that names a secret stands for a value nobody knows yet, so APISIX 3.18 checks
        // nothing about it but that a text is allowed there.
        if let (true, Value::String(text)) = (node.takes_text(), &*value)
            && is_secret_reference(text)
        {
            return Ok(());
        }
        if let Some(types) = &node.types {
            check_type(types, value, errors)?;
        }
        // Later rules see the table as it was before defaults came in.
        let table = Table::of(value);
        if let Some(rules) = &node.object {
            if table.is_object() {
                self.object(rules, value, errors)?;
            }
            if rules.must_be_empty && table != Table::Empty {
                fail!(errors, "the input data should be an empty table");
            }
        }
        if let Some(rules) = &node.array {
            match rules.items {
                Items::True => return Ok(()),
                Items::False if table == Table::Empty => return Ok(()),
                Items::False => fail!(errors, "expect false always"),
                _ => {}
            }
            if table.is_array() {
                self.array(rules, value, errors)?;
            }
        }
        if let (Some(rules), Value::String(text)) = (&node.string, &*value) {
            check_string(rules, text, errors)?;
        }
        if let (Some(rules), Value::Number(number)) = (&node.number, &*value) {
            check_number(rules, number.as_f64().unwrap_or(f64::NAN), errors)?;
        }
        if node
            .enumeration
            .as_ref()
            .is_some_and(|allowed| !allowed.iter().any(|one| equal(one, value)))
        {
            fail!(errors, "matches none of the enum values");
        }
        self.compound(node, value, errors)?;
        match node.property_names {
            Some(true) => return Ok(()),
            Some(false) if table == Table::Empty => return Ok(()),
            Some(false) => fail!(errors, "expect false always"),
            None => {}
        }
        if let (Some(format), Value::String(text)) = (&node.format, &*value) {
            check_format(format, text, errors)?;
        }
        if node.constant.as_ref().is_some_and(|constant| !equal(constant, value)) {
            fail!(errors, "failed to check const value");
        }
        match &node.contains {
            Some(contains) => self.contains(contains, table, value, errors),
            None => Ok(()),
        }
    }

    fn object(&mut self, rules: &ObjectRules, value: &mut Value, errors: Errors) -> Outcome {
        match value {
            Value::Object(map) => self.properties(rules, map, errors),
            // An empty array is an empty object; it becomes one as soon as a default needs a place.
            _ => {
                let mut map = Map::new();
                self.properties(rules, &mut map, errors)?;
                if !map.is_empty() {
                    *value = Value::Object(map);
                }
                Ok(())
            }
        }
    }

    fn properties(
        &mut self,
        rules: &ObjectRules,
        map: &mut Map<String, Value>,
        errors: Errors,
    ) -> Outcome {
        for property in &rules.properties {
            let name = property.name.as_str();
            if let Some(value) = map.get_mut(name) {
                if let Err(error) = self.node(property.node, value, errors) {
                    fail!(errors, "property \"{name}\" validation failed: {error}");
                }
                if let Some(dependency) = &property.dependency {
                    self.dependency(name, dependency, map, errors)?;
                }
            } else if property.required {
                fail!(errors, "property \"{name}\" is required");
            } else if let Some(default) = &property.default {
                map.insert(name.to_owned(), default.clone());
            }
        }
        for name in &rules.required {
            if !map.contains_key(name) {
                fail!(errors, "property \"{name}\" is required");
            }
        }
        for (name, dependency) in &rules.dependencies {
            if map.contains_key(name) {
                self.dependency(name, dependency, map, errors)?;
            }
        }
        if !rules.patterns.is_empty() || !matches!(rules.additional, Additional::Allowed) {
            for (name, value) in map.iter_mut() {
                self.property_by_name(rules, name, value, errors)?;
            }
        }
        if rules.min.is_some_and(|min| (map.len() as f64) < min) {
            fail!(
                errors,
                "expect object to have at least {} properties",
                lua(rules.min.unwrap_or_default())
            );
        }
        if rules.max.is_some_and(|max| map.len() as f64 > max) {
            fail!(
                errors,
                "expect object to have at most {} properties",
                lua(rules.max.unwrap_or_default())
            );
        }
        Ok(())
    }

    /// `patternProperties` and `additionalProperties`.
    fn property_by_name(
        &mut self,
        rules: &ObjectRules,
        name: &str,
        value: &mut Value,
        errors: Errors,
    ) -> Outcome {
        let mut matched = false;
        for (pattern, node) in &rules.patterns {
            if !pattern.matches(name) {
                continue;
            }
            if let Err(error) = self.node(*node, value, errors) {
                fail!(
                    errors,
                    "failed to validate {name} (matching \"{}\"): {error}",
                    pattern.source()
                );
            }
            matched = true;
        }
        if matched || rules.known.contains(name) {
            return Ok(());
        }
        match rules.additional {
            Additional::Allowed => Ok(()),
            Additional::Forbidden => fail!(errors, "additional properties forbidden, found {name}"),
            Additional::Schema(node) => match self.node(node, value, errors) {
                Ok(()) => Ok(()),
                Err(error) => {
                    fail!(errors, "failed to validate additional property {name}: {error}")
                }
            },
        }
    }

    fn dependency(
        &mut self,
        name: &str,
        rule: &Dependency,
        map: &mut Map<String, Value>,
        errors: Errors,
    ) -> Outcome {
        match rule {
            Dependency::Names(names) => {
                if let Some(missing) = names.iter().find(|needed| !map.contains_key(*needed)) {
                    fail!(errors, "property \"{missing}\" is required when \"{name}\" is set");
                }
            }
            Dependency::Schema(node) => {
                let mut whole = Value::Object(std::mem::take(map));
                let outcome = self.node(*node, &mut whole, errors);
                if let Value::Object(whole) = whole {
                    *map = whole;
                }
                if let Err(error) = outcome {
                    fail!(errors, "failed to validate dependent schema for \"{name}\": {error}");
                }
            }
        }
        Ok(())
    }

    fn array(&mut self, rules: &ArrayRules, value: &mut Value, errors: Errors) -> Outcome {
        let mut nothing = Vec::new();
        let items = match value {
            Value::Array(items) => items,
            _ => &mut nothing,
        };
        if rules.min.is_some_and(|min| (items.len() as f64) < min) {
            fail!(
                errors,
                "expect array to have at least {} items",
                lua(rules.min.unwrap_or_default())
            );
        }
        if rules.max.is_some_and(|max| items.len() as f64 > max) {
            fail!(
                errors,
                "expect array to have at most {} items",
                lua(rules.max.unwrap_or_default())
            );
        }
        match &rules.items {
            Items::All(node) => {
                for (index, item) in items.iter_mut().enumerate() {
                    if let Err(error) = self.node(*node, item, errors) {
                        fail!(errors, "failed to validate item {}: {error}", index + 1);
                    }
                }
            }
            Items::Tuple(nodes, additional) => {
                for (index, (node, item)) in nodes.iter().zip(items.iter_mut()).enumerate() {
                    if let Err(error) = self.node(*node, item, errors) {
                        fail!(errors, "failed to validate item {}: {error}", index + 1);
                    }
                }
                self.additional_items(additional, nodes.len(), items, errors)?;
            }
            Items::Any | Items::True | Items::False => {}
        }
        if rules.unique
            && let Some((first, second)) = first_repeated(items)
        {
            fail!(
                errors,
                "expected unique items but items {} and {} are equal",
                first + 1,
                second + 1
            );
        }
        Ok(())
    }

    fn additional_items(
        &mut self,
        rule: &Additional,
        from: usize,
        items: &mut [Value],
        errors: Errors,
    ) -> Outcome {
        match rule {
            Additional::Allowed => {}
            Additional::Forbidden if items.len() > from => {
                fail!(errors, "found unexpected extra items in array")
            }
            Additional::Forbidden => {}
            Additional::Schema(node) => {
                for (index, item) in items.iter_mut().enumerate().skip(from) {
                    if let Err(error) = self.node(*node, item, errors) {
                        fail!(errors, "failed to validate additional item {}: {error}", index + 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// `allOf`, `anyOf`, `oneOf`, `if` and `not`.
    fn compound(&mut self, node: &Node, value: &mut Value, errors: Errors) -> Outcome {
        for (index, branch) in node.all_of.iter().enumerate() {
            if let Err(error) = self.node(*branch, value, errors) {
                fail!(errors, "allOf {} failed: {error}", index + 1);
            }
        }
        if let Some(any_of) = &node.any_of
            && !any_of.branches.iter().any(|branch| self.matches(*branch, value))
        {
            fail!(errors, "object matches none of the required{}", any_of.required);
        }
        if let Some(branches) = &node.one_of {
            let mut matched = None;
            for (index, branch) in branches.iter().enumerate() {
                if !self.matches(*branch, value) {
                    continue;
                }
                if let Some(before) = matched.replace(index + 1) {
                    fail!(
                        errors,
                        "value should match only one schema, but matches both schemas {before} and {}",
                        index + 1
                    );
                }
            }
            if matched.is_none() {
                fail!(errors, "value should match only one schema, but matches none");
            }
        }
        if let Some(conditional) = &node.conditional {
            let (branch, name) = match self.matches(conditional.condition, value) {
                true => (conditional.then, "then"),
                false => (conditional.otherwise, "else"),
            };
            if branch.is_some_and(|branch| !self.matches(branch, value)) {
                fail!(errors, "{name} clause did not match");
            }
        }
        if node.not.is_some_and(|not| self.matches(not, value)) {
            fail!(errors, "value wasn't supposed to match schema");
        }
        Ok(())
    }

    fn contains(
        &mut self,
        rule: &Contains,
        table: Table,
        value: &mut Value,
        errors: Errors,
    ) -> Outcome {
        match rule {
            Contains::Always(true) if table != Table::Array => {
                fail!(errors, "check contains: expect array table")
            }
            Contains::Always(false) if table != Table::None => {
                fail!(errors, "check contains: expect table")
            }
            Contains::Always(_) => Ok(()),
            Contains::Schema(_) if table == Table::Empty => {
                fail!(errors, "check contains: empty array is invalid")
            }
            Contains::Schema(node) => {
                let Value::Array(items) = value else { return Ok(()) };
                let mut found = false;
                for item in items {
                    // Every item is looked at, as in Lua: each may get its defaults.
                    found |= self.matches(*node, item);
                }
                if !found {
                    fail!(errors, "failed to check contains");
                }
                Ok(())
            }
        }
    }
}

impl Node {
    fn takes_text(&self) -> bool {
        matches!(self.types, None | Some(Types::One(Type::String)))
    }
}

/// What Lua sees in a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    None,
    Object,
    Empty,
    Array,
}

impl Table {
    fn of(value: &Value) -> Self {
        match value {
            Value::Object(map) if map.is_empty() => Self::Empty,
            Value::Object(_) => Self::Object,
            Value::Array(items) if items.is_empty() => Self::Empty,
            Value::Array(_) => Self::Array,
            _ => Self::None,
        }
    }

    fn is_object(self) -> bool {
        matches!(self, Self::Object | Self::Empty)
    }

    fn is_array(self) -> bool {
        matches!(self, Self::Array | Self::Empty)
    }
}

fn check_type(types: &Types, value: &mut Value, errors: Errors) -> Outcome {
    match types {
        Types::One(one) => {
            if !has_type(*one, value) {
                fail!(errors, "wrong type: expected {}, got {}", one.name(), lua_type(value));
            }
            match one {
                Type::Array if value.is_object() => *value = Value::Array(Vec::new()),
                Type::Object if value.is_array() => *value = Value::Object(Map::new()),
                Type::Integer if value.is_f64() => {
                    // `1.0` is an integer, and one too large for us becomes the largest we have.
                    *value = Value::from(value.as_f64().unwrap_or_default() as i64);
                }
                _ => {}
            }
        }
        Types::Several(several, text) => {
            if !several.iter().any(|one| has_type(*one, value)) {
                fail!(errors, "wrong type: expected one of {text}, got {}", lua_type(value));
            }
        }
    }
    Ok(())
}

fn has_type(wanted: Type, value: &Value) -> bool {
    match wanted {
        Type::Object => Table::of(value).is_object(),
        Type::Array => Table::of(value).is_array(),
        Type::Table => Table::of(value) != Table::None,
        Type::Integer => value.as_f64().is_some_and(|number| number % 1.0 == 0.0),
        Type::Number => value.is_number(),
        Type::String => value.is_string(),
        Type::Boolean => value.is_boolean(),
        Type::Null => value.is_null(),
        Type::Function => false,
    }
}

/// Lua's name of a value's type. JSON's null is a pointer there.
fn lua_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "userdata",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "table",
    }
}

fn check_string(rules: &StringRules, text: &str, errors: Errors) -> Outcome {
    if rules.min.is_some() || rules.max.is_some() {
        let length = text.chars().count();
        if let Some(min) = rules.min.filter(|min| (length as f64) < *min) {
            fail!(errors, "string too short, expected at least {}, got {length}", lua(min));
        }
        if let Some(max) = rules.max.filter(|max| length as f64 > *max) {
            fail!(errors, "string too long, expected at most {}, got {length}", lua(max));
        }
    }
    if let Some(pattern) = rules.pattern.as_ref().filter(|pattern| !pattern.matches(text)) {
        fail!(errors, "failed to match pattern {} with {}", quoted(pattern.source()), quoted(text));
    }
    Ok(())
}

/// Lua's `%q`.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\\' | '\n' => out.extend(['\\', c]),
            '\0'..='\x1f' | '\x7f' => {
                let digit_follows = chars.peek().is_some_and(char::is_ascii_digit);
                let _ = match digit_follows {
                    true => write!(out, "\\{:03}", u32::from(c)),
                    false => write!(out, "\\{}", u32::from(c)),
                };
            }
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

fn check_number(rules: &NumberRules, number: f64, errors: Errors) -> Outcome {
    if let Some(limit) = rules.minimum.filter(|limit| number < *limit) {
        fail!(errors, "expected {} to be at least {}", lua(number), lua(limit));
    }
    if let Some(limit) = rules.exclusive_minimum.filter(|limit| number <= *limit) {
        fail!(errors, "expected {} to be greater than {}", lua(number), lua(limit));
    }
    if let Some(limit) = rules.maximum.filter(|limit| number > *limit) {
        fail!(errors, "expected {} to be at most {}", lua(number), lua(limit));
    }
    if let Some(limit) = rules.exclusive_maximum.filter(|limit| number >= *limit) {
        fail!(errors, "expected {} to be smaller than {}", lua(number), lua(limit));
    }
    if let Some(of) = rules.multiple_of.filter(|of| !is_multiple(number, *of)) {
        fail!(errors, "expected {} to be a multiple of {}", lua(number), lua(of));
    }
    Ok(())
}

fn is_multiple(number: f64, of: f64) -> bool {
    if of.trunc() == of {
        return number % of == 0.0;
    }
    let quotient = number / of;
    let nearest = (quotient + 0.5).floor();
    let scale = if nearest == 0.0 { 1.0 } else { nearest.abs() };
    (quotient - nearest).abs() <= 1e-12 * scale
}

fn check_format(format: &Format, text: &str, errors: Errors) -> Outcome {
    let (name, fits) = match format {
        Format::Ipv4 => ("ipv4", text.parse::<Ipv4Addr>().is_ok()),
        Format::Ipv6 => ("ipv6", text.parse::<Ipv6Addr>().is_ok()),
        Format::Pattern(name, pattern) => (*name, pattern.matches(text)),
    };
    if !fits {
        fail!(errors, "expect valid {name} format but got: {text}");
    }
    Ok(())
}

/// Equal to Lua: numbers by value, empty tables alike, objects whatever their order.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| equal(a, b)))
        }
        (Value::Array(a), Value::Object(b)) | (Value::Object(b), Value::Array(a)) => {
            a.is_empty() && b.is_empty()
        }
        _ => a == b,
    }
}

/// The first two equal items. Plain values are compared before tables, as in Lua.
fn first_repeated(items: &[Value]) -> Option<(usize, usize)> {
    if items.len() < 2 {
        return None;
    }
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(items.len());
    let is_table = |item: &Value| item.is_array() || item.is_object();
    for (index, item) in items.iter().enumerate().filter(|(_, item)| !is_table(item)) {
        if let Some(first) = seen.insert(canonical(item), index) {
            return Some((first, index));
        }
    }
    seen.clear();
    let mut repeated = None;
    for (index, item) in items.iter().enumerate().filter(|(_, item)| is_table(item)) {
        let first = *seen.entry(canonical(item)).or_insert(index);
        if first != index && repeated.is_none_or(|(before, _)| first < before) {
            repeated = Some((first, index));
        }
    }
    repeated
}

/// One text for all values that are [`equal`].
fn canonical(value: &Value) -> String {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Number(number) => {
                // Adding zero makes minus zero plus zero.
                let _ = write!(out, "{:x}", (number.as_f64().unwrap_or(f64::NAN) + 0.0).to_bits());
            }
            Value::Array(items) if items.is_empty() => out.push_str("{}"),
            Value::Array(items) => {
                out.push('[');
                for item in items {
                    write(item, out);
                    out.push(',');
                }
                out.push(']');
            }
            Value::Object(map) => {
                let mut names: Vec<_> = map.iter().collect();
                names.sort_unstable_by_key(|(name, _)| *name);
                out.push('{');
                for (name, value) in names {
                    let _ = write!(out, "{name:?}:");
                    write(value, out);
                    out.push(',');
                }
                out.push('}');
            }
            Value::String(text) => {
                let _ = write!(out, "{text:?}");
            }
            Value::Null | Value::Bool(_) => {
                let _ = write!(out, "{value}");
            }
        }
    }
    let mut out = String::new();
    write(value, &mut out);
    out
}
