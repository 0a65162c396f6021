//! From a JSON schema to the nodes a check walks.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::pattern::Pattern;
use super::*;

pub(super) fn compile(schema: &Value) -> Result<Schema, String> {
    let mut compiler = Compiler { document: schema, nodes: Vec::new(), by_pointer: HashMap::new() };
    let root = compiler.node(schema, 0)?;
    // Kept as long as the gateway runs.
    compiler.nodes.shrink_to_fit();
    Ok(Schema { nodes: compiler.nodes, root })
}

struct Compiler<'a> {
    document: &'a Value,
    nodes: Vec<Node>,
    /// What `$ref`s point to, so that a schema may refer to itself.
    by_pointer: HashMap<String, NodeId>,
}

impl Compiler<'_> {
    fn node(&mut self, schema: &Value, depth: usize) -> Result<NodeId, String> {
        if depth > SCHEMA_DEPTH_MAX {
            return Err("schema is nested too deeply".to_owned());
        }
        if let Some(pointer) = schema.get("$ref").and_then(Value::as_str) {
            return self.reference(pointer, depth + 1);
        }
        let id = self.nodes.len();
        self.nodes.push(Node::default());
        self.nodes[id] = self.rules(schema, depth + 1)?;
        Ok(id)
    }

    fn reference(&mut self, pointer: &str, depth: usize) -> Result<NodeId, String> {
        if let Some(&id) = self.by_pointer.get(pointer) {
            return Ok(id);
        }
        let target = match pointer.strip_prefix('#') {
            Some("") => Some(self.document),
            Some(path) => self.document.pointer(path),
            None => None,
        }
        .ok_or_else(|| format!("unresolved reference: {pointer}"))?;
        if target.get("$ref").is_some() {
            return self.node(target, depth);
        }
        let id = self.nodes.len();
        self.nodes.push(Node::default());
        self.by_pointer.insert(pointer.to_owned(), id);
        self.nodes[id] = self.rules(target, depth)?;
        Ok(id)
    }

    fn rules(&mut self, schema: &Value, depth: usize) -> Result<Node, String> {
        let rules = match schema {
            Value::Bool(always) => return Ok(Node { always: Some(*always), ..Node::default() }),
            Value::Object(rules) => rules,
            // An empty Lua table is an empty schema, however it was written.
            Value::Array(items) if items.is_empty() => return Ok(Node::default()),
            other => return Err(format!("invalid schema: expected an object, got {other}")),
        };
        let mut node = Node { types: types(rules.get("type"))?, ..Node::default() };
        if OBJECT_WORDS.iter().any(|word| rules.contains_key(*word)) {
            node.object = Some(Box::new(self.object(rules, depth)?));
        }
        if ["items", "minItems", "maxItems", "uniqueItems"]
            .iter()
            .any(|word| rules.contains_key(*word))
        {
            node.array = Some(Box::new(ArrayRules {
                items: self.items(rules, depth)?,
                min: number(rules, "minItems"),
                max: number(rules, "maxItems"),
                unique: rules
                    .get("uniqueItems")
                    .is_some_and(|unique| *unique != Value::Bool(false)),
            }));
        }
        if ["minLength", "maxLength", "pattern"].iter().any(|word| rules.contains_key(*word)) {
            node.string = Some(Box::new(StringRules {
                min: number(rules, "minLength"),
                max: number(rules, "maxLength"),
                pattern: rules
                    .get("pattern")
                    .and_then(Value::as_str)
                    .map(Pattern::compile)
                    .transpose()?,
            }));
        }
        let numbers = NumberRules {
            minimum: number(rules, "minimum"),
            exclusive_minimum: number(rules, "exclusiveMinimum"),
            maximum: number(rules, "maximum"),
            exclusive_maximum: number(rules, "exclusiveMaximum"),
            multiple_of: number(rules, "multipleOf"),
        };
        if [
            numbers.minimum,
            numbers.exclusive_minimum,
            numbers.maximum,
            numbers.exclusive_maximum,
            numbers.multiple_of,
        ]
        .iter()
        .any(Option::is_some)
        {
            node.number = Some(Box::new(numbers));
        }
        node.enumeration = rules.get("enum").and_then(Value::as_array).cloned();
        node.all_of = self.list(rules, "allOf", depth)?.unwrap_or_default();
        node.any_of = self.any_of(rules, depth)?;
        node.one_of = self.list(rules, "oneOf", depth)?;
        if let Some(condition) = rules.get("if") {
            node.conditional = Some(Conditional {
                condition: self.node(condition, depth)?,
                then: self.optional(rules, "then", depth)?,
                otherwise: self.optional(rules, "else", depth)?,
            });
        }
        node.not = self.optional(rules, "not", depth)?;
        node.property_names = rules.get("propertyNames").and_then(Value::as_bool);
        node.format = format(rules.get("format"))?;
        node.constant = rules.get("const").cloned();
        node.contains = match rules.get("contains") {
            None => None,
            Some(Value::Bool(always)) => Some(Contains::Always(*always)),
            Some(schema) => Some(Contains::Schema(self.node(schema, depth)?)),
        };
        Ok(node)
    }

    fn object(&mut self, rules: &Map<String, Value>, depth: usize) -> Result<ObjectRules, String> {
        let required_names = strings(rules.get("required"));
        let no_map = Map::new();
        let map = |word| rules.get(word).and_then(Value::as_object).unwrap_or(&no_map);
        let dependencies = map("dependencies");
        let mut object = ObjectRules {
            must_be_empty: rules.get("required").is_some() && required_names.is_empty(),
            min: number(rules, "minProperties"),
            max: number(rules, "maxProperties"),
            ..ObjectRules::default()
        };
        for (name, schema) in map("properties") {
            let default = schema.get("default").filter(|default| !default.is_null()).cloned();
            let dependency =
                dependencies.get(name).map(|rule| self.dependency(rule, depth)).transpose()?;
            object.properties.push(Property {
                name: name.clone(),
                node: self.node(schema, depth)?,
                required: required_names.contains(&name.as_str()),
                default,
                dependency,
            });
            object.known.insert(name.clone());
        }
        for name in required_names {
            if !object.known.contains(name) {
                object.required.push(name.to_owned());
            }
        }
        for (name, rule) in dependencies {
            if !object.known.contains(name) {
                object.dependencies.push((name.clone(), self.dependency(rule, depth)?));
            }
        }
        for (pattern, schema) in map("patternProperties") {
            object.patterns.push((Pattern::compile(pattern)?, self.node(schema, depth)?));
        }
        object.additional = self.additional(rules.get("additionalProperties"), depth)?;
        Ok(object)
    }

    fn dependency(&mut self, rule: &Value, depth: usize) -> Result<Dependency, String> {
        let names = strings(Some(rule));
        if names.is_empty() {
            return Ok(Dependency::Schema(self.node(rule, depth)?));
        }
        Ok(Dependency::Names(names.into_iter().map(str::to_owned).collect()))
    }

    fn additional(&mut self, rule: Option<&Value>, depth: usize) -> Result<Additional, String> {
        Ok(match rule {
            None | Some(Value::Bool(true)) => Additional::Allowed,
            Some(Value::Bool(false)) => Additional::Forbidden,
            Some(schema) => Additional::Schema(self.node(schema, depth)?),
        })
    }

    fn items(&mut self, rules: &Map<String, Value>, depth: usize) -> Result<Items, String> {
        Ok(match rules.get("items") {
            None => Items::Any,
            Some(Value::Bool(true)) => Items::True,
            Some(Value::Bool(false)) => Items::False,
            Some(Value::Array(schemas)) if !schemas.is_empty() => {
                let nodes = schemas
                    .iter()
                    .map(|schema| self.node(schema, depth))
                    .collect::<Result<_, _>>()?;
                Items::Tuple(nodes, self.additional(rules.get("additionalItems"), depth)?)
            }
            Some(schema) => Items::All(self.node(schema, depth)?),
        })
    }

    fn any_of(
        &mut self,
        rules: &Map<String, Value>,
        depth: usize,
    ) -> Result<Option<AnyOf>, String> {
        let Some(branches) = self.list(rules, "anyOf", depth)? else { return Ok(None) };
        let required: Vec<String> = rules
            .get("anyOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|branch| branch.get("required").map(Value::to_string))
            .collect();
        let required = if required.is_empty() {
            String::new()
        } else {
            format!(": {}", required.join(" or "))
        };
        Ok(Some(AnyOf { branches, required }))
    }

    fn list(
        &mut self,
        rules: &Map<String, Value>,
        word: &str,
        depth: usize,
    ) -> Result<Option<Vec<NodeId>>, String> {
        let Some(schemas) = rules.get(word).and_then(Value::as_array) else { return Ok(None) };
        schemas.iter().map(|schema| self.node(schema, depth)).collect::<Result<_, _>>().map(Some)
    }

    fn optional(
        &mut self,
        rules: &Map<String, Value>,
        word: &str,
        depth: usize,
    ) -> Result<Option<NodeId>, String> {
        rules.get(word).map(|schema| self.node(schema, depth)).transpose()
    }
}

fn types(rule: Option<&Value>) -> Result<Option<Types>, String> {
    let one = |name: &Value| {
        name.as_str().and_then(Type::from_name).ok_or_else(|| {
            format!(
                "invalid JSON type: {}",
                name.as_str().map_or_else(|| name.to_string(), str::to_owned)
            )
        })
    };
    Ok(match rule {
        None => None,
        Some(Value::Array(names)) => {
            let types = names.iter().map(one).collect::<Result<Vec<_>, _>>()?;
            let text = types.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
            Some(Types::Several(types, text))
        }
        Some(name) => Some(Types::One(one(name)?)),
    })
}

fn format(rule: Option<&Value>) -> Result<Option<Format>, String> {
    let (name, pattern) = match rule.and_then(Value::as_str) {
        Some("ipv4") => return Ok(Some(Format::Ipv4)),
        Some("ipv6") => return Ok(Some(Format::Ipv6)),
        Some("email") => ("email", r"^[A-Za-z0-9_\-.]+@[A-Za-z0-9_\-.]+\.[A-Za-z]{2,4}$"),
        Some("hostname") => ("hostname", r"^[a-zA-Z0-9\-.]+$"),
        Some("uuid") => ("uuid", r"^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"),
        Some("date") => ("date", r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])$"),
        Some("date-time") => (
            "date-time",
            r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[Tt](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)$",
        ),
        Some("uri") => ("uri", r"^[a-zA-Z][a-zA-Z0-9+\-.]*:\S*$"),
        _ => return Ok(None),
    };
    Ok(Some(Format::Pattern(name, Pattern::compile(pattern)?)))
}

fn number(rules: &Map<String, Value>, word: &str) -> Option<f64> {
    rules.get(word).and_then(Value::as_f64)
}

fn strings(list: Option<&Value>) -> Vec<&str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Words that make the checker look at a table's properties.
const OBJECT_WORDS: [&str; 7] = [
    "properties",
    "additionalProperties",
    "patternProperties",
    "minProperties",
    "maxProperties",
    "dependencies",
    "required",
];
/// How deep a schema may nest. The JSON parser stops at 128 already; references add a few.
const SCHEMA_DEPTH_MAX: usize = 150;
