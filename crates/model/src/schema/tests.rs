use serde_json::json;

use super::*;

#[track_caller]
fn check(schema: &Value, value: &Value, error: &str) {
    let outcome = Schema::compile(schema).unwrap().check(value);
    let expected = if error.is_empty() { Ok(()) } else { Err(error.to_owned()) };
    assert_eq!(outcome, expected, "{value} against {schema}");
}

#[test]
fn types_are_those_of_lua() {
    for (kind, value, error) in [
        (json!("string"), json!("a"), ""),
        (json!("string"), json!(1), "wrong type: expected string, got number"),
        (json!("string"), json!(null), "wrong type: expected string, got userdata"),
        (json!("string"), json!({}), "wrong type: expected string, got table"),
        (json!("integer"), json!(1.0), ""),
        (json!("integer"), json!(-3), ""),
        (json!("integer"), json!(1e300), ""),
        (json!("integer"), json!(1.5), "wrong type: expected integer, got number"),
        (json!("integer"), json!("10"), "wrong type: expected integer, got string"),
        (json!("number"), json!(1.5), ""),
        (json!("boolean"), json!("no"), "wrong type: expected boolean, got string"),
        (json!("boolean"), json!(false), ""),
        (json!("null"), json!(null), ""),
        (json!("null"), json!(0), "wrong type: expected null, got number"),
        (json!("object"), json!([]), ""),
        (json!("object"), json!([1]), "wrong type: expected object, got table"),
        (json!("object"), json!("k"), "wrong type: expected object, got string"),
        (json!("array"), json!({}), ""),
        (json!("array"), json!({"a": 1}), "wrong type: expected array, got table"),
        (json!("array"), json!(true), "wrong type: expected array, got boolean"),
        (json!("table"), json!({"a": 1}), ""),
        (json!("table"), json!([1]), ""),
        (json!("table"), json!(1), "wrong type: expected table, got number"),
        (json!(["string", "integer"]), json!(5), ""),
        (
            json!(["string", "integer"]),
            json!([]),
            "wrong type: expected one of string, integer, got table",
        ),
    ] {
        check(&json!({"type": kind}), &value, error);
    }
}

#[test]
fn strings_numbers_and_choices_are_worded_as_api7_jsonschema_words_them() {
    for (schema, value, error) in [
        (json!({"minLength": 10}), json!("zz"), "string too short, expected at least 10, got 2"),
        (json!({"maxLength": 2}), json!("größe"), "string too long, expected at most 2, got 5"),
        (json!({"maxLength": 5}), json!("größe"), ""),
        (json!({"minLength": 10}), json!(1), ""),
        (
            json!({"pattern": r"^[a-zA-Z0-9_\-]+$"}),
            json!("bad name"),
            r#"failed to match pattern "^[a-zA-Z0-9_\\-]+$" with "bad name""#,
        ),
        (
            json!({"pattern": r#"^%d"$"#}),
            json!("a\"\\\n\t\u{7f}1\u{1}é"),
            "failed to match pattern \"^%d\\\"$\" with \"a\\\"\\\\\\\n\\9\\1271\\1é\"",
        ),
        (json!({"minimum": 100}), json!(10), "expected 10 to be at least 100"),
        (json!({"minimum": 0}), json!(-1.5), "expected -1.5 to be at least 0"),
        (json!({"maximum": 599}), json!(600), "expected 600 to be at most 599"),
        (json!({"exclusiveMinimum": 0}), json!(0), "expected 0 to be greater than 0"),
        (json!({"exclusiveMaximum": 1}), json!(1), "expected 1 to be smaller than 1"),
        (json!({"maximum": 1}), json!(1e15), "expected 1e+15 to be at most 1"),
        (json!({"multipleOf": 3}), json!(7), "expected 7 to be a multiple of 3"),
        (json!({"multipleOf": 0.01}), json!(1.13), ""),
        (json!({"multipleOf": 0.01}), json!(1.135), "expected 1.135 to be a multiple of 0.01"),
        (
            json!({"enum": ["GET", 1, true, {"a": []}]}),
            json!("GETX"),
            "matches none of the enum values",
        ),
        (json!({"enum": ["GET", 1]}), json!(1.0), ""),
        (json!({"enum": [{"a": []}]}), json!({"a": {}}), ""),
        (json!({"const": {"a": 1}}), json!({"a": 1.0}), ""),
        (json!({"const": 1}), json!("1"), "failed to check const value"),
        (json!({"format": "ipv4"}), json!("1.2.3"), "expect valid ipv4 format but got: 1.2.3"),
        (json!({"format": "ipv6"}), json!("::1"), ""),
        (json!({"format": "hostname"}), json!("a b"), "expect valid hostname format but got: a b"),
        (json!({"format": "date-time"}), json!("2026-11-22T15:45:00Z"), ""),
        (json!({"format": "unheard-of"}), json!("x"), ""),
    ] {
        check(&schema, &value, error);
    }
}

#[test]
fn objects_are_worded_as_api7_jsonschema_words_them() {
    for (schema, value, error) in [
        (
            json!({"properties": {"a": {"type": "integer"}}}),
            json!({"a": "x"}),
            "property \"a\" validation failed: wrong type: expected integer, got string",
        ),
        (
            json!({"properties": {"a": {"properties": {"b": {"minimum": 1}}}}}),
            json!({"a": {"b": 0}}),
            "property \"a\" validation failed: property \"b\" validation failed: expected 0 to be at least 1",
        ),
        (json!({"required": ["x"]}), json!({}), "property \"x\" is required"),
        (json!({"required": ["x"]}), json!([]), "property \"x\" is required"),
        (json!({"required": ["x"]}), json!({"x": null}), ""),
        (json!({"required": ["x"]}), json!("text"), ""),
        (json!({"required": ["x"]}), json!(["x"]), ""),
        (
            json!({"properties": {"a": {}}, "required": ["b", "a"]}),
            json!({}),
            "property \"a\" is required",
        ),
        (json!({"required": []}), json!({"a": 1}), "the input data should be an empty table"),
        (json!({"required": []}), json!({}), ""),
        (
            json!({"properties": {"a": {}}, "additionalProperties": false}),
            json!({"a": 1, "zzz": 1}),
            "additional properties forbidden, found zzz",
        ),
        (
            json!({"additionalProperties": {"type": "string"}}),
            json!({"a": 1}),
            "failed to validate additional property a: wrong type: expected string, got number",
        ),
        (
            json!({"patternProperties": {".*": {"type": "string"}}}),
            json!({"env": {"x": 1}}),
            "failed to validate env (matching \".*\"): wrong type: expected string, got table",
        ),
        (
            json!({"patternProperties": {"^x-": {}}, "properties": {"a": {}}, "additionalProperties": false}),
            json!({"x-1": 1, "a": 2, "b": 3}),
            "additional properties forbidden, found b",
        ),
        (json!({"minProperties": 1}), json!({}), "expect object to have at least 1 properties"),
        (
            json!({"maxProperties": 1}),
            json!({"a": 1, "b": 2}),
            "expect object to have at most 1 properties",
        ),
        (
            json!({"dependencies": {"a": ["b", "c"]}}),
            json!({"a": 1, "b": 1}),
            "property \"c\" is required when \"a\" is set",
        ),
        (json!({"dependencies": {"a": ["b"]}}), json!({"c": 1}), ""),
        (
            json!({"properties": {"a": {}}, "dependencies": {"a": {"not": {"required": ["b"]}}}}),
            json!({"a": 1, "b": 1}),
            "failed to validate dependent schema for \"a\": value wasn't supposed to match schema",
        ),
        (
            json!({"dependencies": {"a": {"required": ["b"]}}}),
            json!({"a": 1}),
            "failed to validate dependent schema for \"a\": property \"b\" is required",
        ),
        (json!({"propertyNames": false}), json!({"a": 1}), "expect false always"),
        (
            json!({"properties": {"a": false}}),
            json!({"a": 1}),
            "property \"a\" validation failed: expect false always",
        ),
    ] {
        check(&schema, &value, error);
    }
}

#[test]
fn arrays_are_worded_as_api7_jsonschema_words_them() {
    for (schema, value, error) in [
        (
            json!({"items": {"enum": ["GET"]}}),
            json!(["GETX"]),
            "failed to validate item 1: matches none of the enum values",
        ),
        (json!({"minItems": 1}), json!([]), "expect array to have at least 1 items"),
        (json!({"minItems": 1}), json!({}), "expect array to have at least 1 items"),
        (json!({"maxItems": 1}), json!([1, 2]), "expect array to have at most 1 items"),
        (json!({"minItems": 1}), json!({"a": 1}), ""),
        (json!({"uniqueItems": true}), json!([1, "1", true, null]), ""),
        (
            json!({"uniqueItems": true}),
            json!(["a", "b", "b", "a"]),
            "expected unique items but items 2 and 3 are equal",
        ),
        (
            json!({"uniqueItems": true}),
            json!([200, 200.0]),
            "expected unique items but items 1 and 2 are equal",
        ),
        (
            json!({"uniqueItems": true}),
            json!([{"a": 1, "b": 2}, [], {"b": 2, "a": 1}, {}]),
            "expected unique items but items 1 and 3 are equal",
        ),
        (json!({"uniqueItems": false}), json!([1, 1]), ""),
        (
            json!({"items": [{"type": "string"}, {"type": "integer"}]}),
            json!(["a", "b"]),
            "failed to validate item 2: wrong type: expected integer, got string",
        ),
        (
            json!({"items": [{}], "additionalItems": false}),
            json!([1, 2]),
            "found unexpected extra items in array",
        ),
        (
            json!({"items": [{}], "additionalItems": {"type": "string"}}),
            json!([1, 2]),
            "failed to validate additional item 2: wrong type: expected string, got number",
        ),
        (json!({"items": [{}, {}], "additionalItems": false}), json!([1]), ""),
        (json!({"items": false}), json!([1]), "expect false always"),
        (json!({"items": true, "not": {}}), json!([1]), ""),
        (json!({"contains": {"type": "string"}}), json!([1]), "failed to check contains"),
        (
            json!({"contains": {"type": "string"}}),
            json!([]),
            "check contains: empty array is invalid",
        ),
        (json!({"contains": {"type": "string"}}), json!([1, "a"]), ""),
    ] {
        check(&schema, &value, error);
    }
}

#[test]
fn combinations_are_worded_as_api7_jsonschema_words_them() {
    let one_of = json!({"oneOf": [{"required": ["uri"]}, {"required": ["uris"]}]});
    for (schema, value, error) in [
        (one_of.clone(), json!({}), "value should match only one schema, but matches none"),
        (
            one_of.clone(),
            json!({"uri": 1, "uris": 1}),
            "value should match only one schema, but matches both schemas 1 and 2",
        ),
        (one_of.clone(), json!({"uris": 1}), ""),
        (
            json!({"allOf": [{}, one_of]}),
            json!({}),
            "allOf 2 failed: value should match only one schema, but matches none",
        ),
        (
            json!({"anyOf": [{"required": ["a", "b"]}, {"type": "string"}, {"required": ["c"]}]}),
            json!({}),
            "object matches none of the required: [\"a\",\"b\"] or [\"c\"]",
        ),
        (json!({"anyOf": [{"type": "string"}]}), json!(1), "object matches none of the required"),
        (
            json!({"if": {"required": ["a"]}, "then": {"required": ["b"]}}),
            json!({"a": 1}),
            "then clause did not match",
        ),
        (
            json!({"if": {"required": ["a"]}, "else": {"required": ["b"]}}),
            json!({}),
            "else clause did not match",
        ),
        (json!({"if": {"required": ["a"]}, "then": {"required": ["b"]}}), json!({}), ""),
        (json!({"not": {"type": "string"}}), json!("a"), "value wasn't supposed to match schema"),
    ] {
        check(&schema, &value, error);
    }
}

#[test]
fn defaults_are_filled_in_where_apisix_fills_them_in() {
    for (schema, value, filled) in [
        (
            json!({"properties": {"a": {"default": 1}, "b": {"properties": {"c": {"default": [2]}}}}}),
            json!({"b": {}}),
            json!({"b": {"c": [2]}, "a": 1}),
        ),
        (json!({"properties": {"b": {"properties": {"c": {"default": 2}}}}}), json!({}), json!({})),
        (json!({"properties": {"a": {"default": 1}}}), json!({"a": null}), json!({"a": null})),
        (json!({"properties": {"a": {"default": null}}}), json!({}), json!({})),
        (json!({"properties": {"a": {"default": false}}}), json!([]), json!({"a": false})),
        (
            json!({"items": {"properties": {"priority": {"default": 0}}}}),
            json!([{}, {"priority": 1}]),
            json!([{"priority": 0}, {"priority": 1}]),
        ),
        (
            json!({"additionalProperties": {"properties": {"a": {"default": 1}}}}),
            json!({"x": {}}),
            json!({"x": {"a": 1}}),
        ),
        // A branch that fails afterwards has filled its defaults in already, and the first that
        // matches is the last that is tried.
        (
            json!({"anyOf": [
                {"properties": {"a": {"default": 1}}, "required": ["never"]},
                {"properties": {"b": {"default": 2}}},
                {"properties": {"c": {"default": 3}}},
            ]}),
            json!({}),
            json!({"a": 1, "b": 2}),
        ),
        (
            json!({"oneOf": [{"properties": {"a": {"default": 1}}}, {"required": ["never"]}]}),
            json!({}),
            json!({"a": 1}),
        ),
        // A default is there for what follows it.
        (
            json!({
                "properties": {"policy": {"default": "local"}},
                "if": {"properties": {"policy": {"enum": ["redis"]}}},
                "then": {"properties": {"port": {"default": 6379}}},
                "else": {"properties": {"size": {"default": 10}}},
            }),
            json!({}),
            json!({"policy": "local", "size": 10}),
        ),
        (
            json!({"dependencies": {"a": {"properties": {"b": {"default": 1}}}}}),
            json!({"a": 1}),
            json!({"a": 1, "b": 1}),
        ),
        // For typed views: tables and integers in the form the schema names.
        (
            json!({"properties": {"list": {"type": "array"}, "map": {"type": "object"}, "n": {"type": "integer"}}}),
            json!({"list": {}, "map": [], "n": 2.0}),
            json!({"list": [], "map": {}, "n": 2}),
        ),
    ] {
        let compiled = Schema::compile(&schema).unwrap();
        let mut value_filled = value.clone();
        compiled.fill_defaults(&mut value_filled);
        assert_eq!(value_filled, filled, "{value} with {schema}");
        assert_eq!(compiled.check(&value), Ok(()), "{value} with {schema}");
        compiled.fill_defaults(&mut value_filled);
        assert_eq!(value_filled, filled, "filling twice changes nothing");
    }
}

#[test]
fn checking_leaves_the_value_alone_and_required_comes_before_the_default() {
    let schema = json!({"properties": {"a": {"default": 1}}, "required": ["a"]});
    check(&schema, &json!({}), "property \"a\" is required");
}

#[test]
fn secret_references_pass_where_a_string_is_allowed() {
    let short = json!({"type": "string", "maxLength": 3});
    check(&short, &json!("$secret://vault/1/key"), "");
    check(&short, &json!("$ENV://KEY"), "");
    check(&short, &json!("$other://x"), "string too long, expected at most 3, got 10");
    check(
        &json!({"type": "integer"}),
        &json!("$env://X"),
        "wrong type: expected integer, got string",
    );
    check(&json!({"enum": ["a"]}), &json!("$env://X"), "");
}

#[test]
fn references_are_followed_also_in_circles() {
    let tree = json!({
        "definitions": {"node": {
            "type": "object",
            "properties": {"children": {"type": "array", "items": {"$ref": "#/definitions/node"}}},
            "required": ["name"],
        }},
        "$ref": "#/definitions/node",
    });
    check(&tree, &json!({"name": 1, "children": [{"name": 2}]}), "");
    check(
        &tree,
        &json!({"name": 1, "children": [{"name": 2}, {}]}),
        "property \"children\" validation failed: failed to validate item 2: property \"name\" is required",
    );
    check(
        &json!({"properties": {"a": {"$ref": "#"}}, "additionalProperties": false}),
        &json!({"a": {"a": {"b": 1}}}),
        "property \"a\" validation failed: property \"a\" validation failed: additional properties forbidden, found b",
    );
    let deep = (0..126).fold(json!({}), |inner, _| json!({"a": inner}));
    check(&json!({"properties": {"a": {"allOf": [{"$ref": "#"}]}}}), &deep, "");
    let endless = Schema::compile(&json!({"allOf": [{"$ref": "#"}]})).unwrap();
    assert!(endless.check(&json!(1)).unwrap_err().ends_with("value is nested too deeply"));
}

#[test]
fn broken_schemas_are_refused() {
    for (schema, error) in [
        (json!({"type": "text"}), "invalid JSON type: text"),
        (json!({"type": ["string", 1]}), "invalid JSON type: 1"),
        (json!("text"), "invalid schema: expected an object, got \"text\""),
        (json!({"$ref": "#/nowhere"}), "unresolved reference: #/nowhere"),
        (json!({"$ref": "http://x.test/schema"}), "unresolved reference: http://x.test/schema"),
    ] {
        assert_eq!(Schema::compile(&schema).unwrap_err(), error);
    }
    assert!(
        Schema::compile(&json!({"pattern": "("})).unwrap_err().starts_with("invalid pattern \"(\"")
    );
    let circle = json!({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}});
    assert!(Schema::compile(&circle).is_err());
    let deep = (0..1000).fold(json!({}), |inner, _| json!({"not": inner}));
    assert_eq!(Schema::compile(&deep).unwrap_err(), "schema is nested too deeply");
}

/// Plenty of time for a busy machine and an unoptimised build; optimised it is some 20 times less.
#[test]
fn checking_a_route_takes_microseconds() {
    let schema = crate::Kind::Routes.schema();
    let route = json!({
        "id": "1", "uri": "/aws/*", "name": "r", "methods": ["GET", "POST"], "hosts": ["a.example.com", "b.example.com"],
        "plugins": {"aws-lambda": {"function_uri": "http://127.0.0.1:80/default/fn", "authorization": {"apikey": "k"}}},
        "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:80": 1, "127.0.0.1:81": 1}, "retries": 2},
        "create_time": 1_700_000_000, "update_time": 1_700_000_000,
    });
    assert_eq!(schema.check(&route), Ok(()));
    let batch = || {
        let start = std::time::Instant::now();
        for _ in 0..50 {
            schema.check(std::hint::black_box(&route)).unwrap();
        }
        start.elapsed() / 50
    };
    let best = (0..20).map(|_| batch()).min().unwrap();
    println!("one check of a route: {best:?}");
    assert!(best < std::time::Duration::from_millis(1), "{best:?}");
}
