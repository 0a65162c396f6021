//! The Admin API described in OpenAPI 3.1: `GET /apisix/admin/openapi.json`.
//!
//! Made from the schemas that requests are checked with, so that it cannot say anything else than
//! they do. A test fuzzes a gateway by it (`sluicegate/tests/e2e/openapi.rs`).
//!
//! What it cannot say: that a resource passes its schema is not enough to be taken (references must
//! exist, certificates must fit their keys), and an argument that is wrong is often just not used,
//! as with APISIX. Three answers are text under a JSON content type, as APISIX sends them; their
//! content has no schema here.

use serde_json::{Map, Value, json};
use sluicegate_model::{
    Kind,
    kind::{Method, SECRET_MANAGERS, secret_schema_json},
    plugin::Catalog,
};

use crate::{BODY_BYTES_MAX, discovery::schema_name};

/// The description of what answers where there is nothing but declarations.
pub(crate) fn declared_document(catalog: &Catalog) -> Value {
    let mut document = document(catalog);
    if let Some(paths) = document["paths"].as_object_mut() {
        paths.retain(|path, _| {
            let path = path.strip_prefix(ROOT).unwrap_or_default();
            path == "/openapi.json" || path.starts_with("/configs")
        });
    }
    document
}

/// The description of the API with these plugins.
pub(crate) fn document(catalog: &Catalog) -> Value {
    let mut paths = Map::new();
    for kind in Kind::ALL {
        add_kind(&mut paths, kind);
    }
    add_discovery(&mut paths);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sluicegate Admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The Admin API of Apache APISIX 3.18 as Sluicegate answers it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-KEY",
                    "description": "One of deployment.admin.admin_key. A key of the role viewer only reads.",
                },
            },
            "schemas": schemas(catalog),
            "responses": responses(),
        },
    })
}

/// The paths of one kind of resource.
fn add_kind(paths: &mut Map<String, Value>, kind: Kind) {
    let mut base = ROOT.to_owned();
    let mut outer = Vec::new();
    if let Some(parent) = kind.parent() {
        base += &format!("/{}/{{{}}}", parent.plural(), id_name(parent));
        outer.push(id_parameter(parent));
    }
    base += &format!("/{}", kind.plural());
    let mut inner = outer.clone();
    let mut one = base.clone();
    if kind == Kind::Secrets {
        one += "/{manager}";
        inner.push(json!({
            "name": "manager", "in": "path", "required": true,
            "schema": {"enum": SECRET_MANAGERS},
            "example": "vault",
        }));
    }
    one += &format!("/{{{}}}", id_name(kind));
    inner.push(id_parameter(kind));

    let mut of_all = Map::new();
    of_all.insert("parameters".to_owned(), json!(outer));
    of_all.insert("get".to_owned(), list(kind));
    if kind.supports(Method::Post) {
        of_all.insert("post".to_owned(), write(kind, Method::Post));
    }
    if kind.parent().is_none() && !matches!(kind, Kind::Secrets | Kind::PluginMetadata) {
        let mut put = write(kind, Method::Put);
        put["operationId"] = format!("put_{}", kind.plural()).into();
        put["summary"] = "Create or replace the one that the body names".into();
        if let Some(example) = put.pointer_mut("/requestBody/content/application~1json/example")
            && kind != Kind::Consumers
        {
            example["id"] = EXAMPLE_ID.into();
        }
        of_all.insert("put".to_owned(), put);
    }
    paths.insert(base, Value::Object(of_all));

    let mut of_one = Map::new();
    of_one.insert("parameters".to_owned(), json!(inner));
    of_one.insert("get".to_owned(), read(kind));
    if kind != Kind::Consumers {
        of_one.insert("put".to_owned(), write(kind, Method::Put));
    }
    if kind.supports(Method::Patch) {
        of_one.insert("patch".to_owned(), write(kind, Method::Patch));
        let mut deeper = inner;
        deeper.push(json!({
            "name": "path", "in": "path", "required": true,
            "description": "Where in the resource: plugins, or upstream/nodes.",
            "schema": {"type": "string", "minLength": 1},
            "example": "desc",
        }));
        let mut patch = write(kind, Method::Patch);
        let name = schema_name(kind);
        patch["operationId"] = format!("patch_part_of_{name}").into();
        patch["summary"] = "Replace the part at a path".into();
        patch["requestBody"]["content"][JSON] = json!({"schema": {}, "example": "changed"});
        paths.insert(format!("{one}/{{path}}"), json!({"parameters": deeper, "patch": patch}));
    }
    of_one.insert("delete".to_owned(), delete(kind));
    paths.insert(one, Value::Object(of_one));
}

fn list(kind: Kind) -> Value {
    let mut parameters = vec![
        query("page", json!({"type": "integer", "minimum": 1}), "Which page, with page_size"),
        query(
            "page_size",
            json!({"type": "integer", "minimum": 10, "maximum": 500}),
            "Resources of a page, with page",
        ),
        query("name", json!({"type": "string"}), "Those whose name this expression finds"),
        query("label", json!({"type": "string"}), "Those with this label"),
    ];
    if kind == Kind::Routes {
        let about = "Those whose uri or one of whose uris this expression finds";
        parameters.push(query("uri", json!({"type": "string"}), about));
        let about = "Those with this service_id and upstream_id: service_id=1, escaped";
        parameters.push(query("filter", json!({"type": "string"}), about));
    }
    let name = schema_name(kind);
    operation(
        kind,
        format!("list_{}", kind.plural()),
        "List them",
        parameters,
        &[
            (
                200,
                json!({"description": "Some or all", "content": {JSON: {"schema": {
                    "type": "object",
                    "required": ["total", "list"],
                    "properties": {
                        "total": {"type": "integer", "minimum": 0},
                        "list": {"anyOf": [
                            {"type": "array", "items": {"$ref": schema(&format!("{name}_read"))}},
                            {"type": "object", "maxProperties": 0, "description": "An empty page"},
                        ]},
                    },
                }}}}),
            ),
            (400, response("bad_argument")),
            (404, response("not_found")),
        ],
    )
}

fn read(kind: Kind) -> Value {
    let name = schema_name(kind);
    let found = json!({"$ref": schema(&format!("{name}_read"))});
    let answers = [
        (200, json!({"description": "The resource", "content": {JSON: {"schema": found}}})),
        (400, response("bad_request")),
        (404, response("not_found")),
    ];
    operation(kind, format!("get_{name}"), "Read one", Vec::new(), &answers)
}

fn delete(kind: Kind) -> Value {
    let name = schema_name(kind);
    let parameters = vec![query(
        "force",
        json!({"enum": ["true", "false"]}),
        "true: delete it although others use it",
    )];
    let answers = [
        (
            200,
            json!({"description": "It is gone", "content": {JSON: {"schema": {
                "type": "object",
                "required": ["key", "deleted"],
                "properties": {"key": {"type": "string"}, "deleted": {"const": "1"}},
            }}}}),
        ),
        (400, response("bad_request")),
        (404, response("not_found")),
        (405, response("read_only")),
    ];
    operation(kind, format!("delete_{name}"), "Delete one", parameters, &answers)
}

fn write(kind: Kind, method: Method) -> Value {
    let name = schema_name(kind);
    let (verb, about, body) = match method {
        Method::Post => ("post", "Create one under an id of its own", name.clone()),
        Method::Patch => ("patch", "Merge into one; null deletes", format!("{name}_patch")),
        _ => ("put", "Create or replace one", name.clone()),
    };
    let ttl =
        query("ttl", json!({"type": "integer", "minimum": 1}), "Seconds after which it is deleted");
    let written = json!({"$ref": schema(&format!("{name}_written"))});
    let written = |about| json!({"description": about, "content": {JSON: {"schema": written}}});
    let mut answers = vec![(200, written("As it is stored, secrets encrypted"))];
    if method != Method::Patch {
        answers.push((201, written("As it is stored, and new")));
    }
    answers.push((400, response("bad_request")));
    answers.push((404, response("not_found")));
    answers.push((405, response("read_only")));
    let mut operation = operation(kind, format!("{verb}_{name}"), about, vec![ttl], &answers);
    operation["requestBody"] = json!({
        "required": true,
        "description": format!("At most {BODY_BYTES_MAX} bytes"),
        "content": {JSON: {"schema": {"$ref": schema(&body)}}},
    });
    let example = match method {
        Method::Patch => Some(json!({"desc": "changed"})),
        _ => example(kind),
    };
    if let Some(example) = example {
        operation["requestBody"]["content"][JSON]["example"] = example;
    }
    operation
}

/// A resource that can be created as it is, where there is one that says nothing about a
/// particular gateway.
fn example(kind: Kind) -> Option<Value> {
    let upstream = || json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
    Some(match kind {
        Kind::Routes => json!({"uri": "/example", "upstream": upstream()}),
        Kind::Services => json!({"name": EXAMPLE_ID, "upstream": upstream()}),
        Kind::Upstreams => upstream(),
        Kind::Consumers => json!({"username": EXAMPLE_ID}),
        Kind::Credentials => json!({"plugins": {}}),
        Kind::ConsumerGroups | Kind::GlobalRules | Kind::PluginConfigs => json!({"plugins": {}}),
        Kind::Protos => json!({"content": "syntax = \"proto3\";\nmessage Empty {}\n"}),
        Kind::Secrets => {
            json!({"uri": "http://127.0.0.1:8200", "prefix": "kv/apisix", "token": "example"})
        }
        Kind::StreamRoutes => json!({"server_port": 9100, "upstream": upstream()}),
        Kind::GraphqlCostDecorations => json!({"field_path": "query.example", "add_value": 2}),
        // A certificate has to be valid, metadata is of a plugin that takes some.
        Kind::Ssls | Kind::PluginMetadata => return None,
    })
}

/// What there is to configure, and what belongs to no kind.
fn add_discovery(paths: &mut Map<String, Value>) {
    let subsystem = || query("subsystem", json!({"enum": ["http", "stream"]}), "http by default");
    let kind_of =
        |about: &str| query("schema_type", json!({"enum": ["consumer", "metadata"]}), about);
    let any = json!({"type": "object"});
    let answer = |about: &str, schema: &Value| json!({"description": about, "content": {JSON: {"schema": schema}}});
    // Not JSON, although it says so.
    let bare = |about: &str| json!({"description": about, "content": {JSON: {}}});
    let mut get = |path: &str, name: &str, about: &str, parameters: Vec<Value>, answers: &[_]| {
        let operation = plain_operation("discovery", name.to_owned(), about, parameters, answers);
        paths.insert(format!("{ROOT}{path}"), json!({"get": operation}));
    };
    let name_of_plugin = || path_parameter("name", "The plugin's name");
    let plugin_answers = || {
        [
            (200, answer("A JSON schema", &any)),
            (400, response("bad_request")),
            (404, response("not_found")),
        ]
    };
    get(
        "/openapi.json",
        "openapi",
        "This description",
        Vec::new(),
        &[(200, answer("OpenAPI 3.1", &any))],
    );
    get(
        "/plugins/list",
        "list_plugins",
        "Names of the enabled plugins in the order in which they run",
        vec![subsystem()],
        &[
            (
                200,
                answer(
                    "Names; an empty list may be an empty object",
                    &json!({"anyOf": [
                        {"type": "array", "items": {"type": "string"}},
                        {"type": "object", "maxProperties": 0},
                    ]}),
                ),
            ),
            (400, bare("A wrong subsystem, as text")),
        ],
    );
    get(
        "/plugins",
        "all_plugins",
        "Version, priority and schemas of every plugin",
        vec![
            json!({"name": "all", "in": "query", "required": true, "schema": {"const": "true"}}),
            subsystem(),
        ],
        &plugin_answers(),
    );
    for (path, name) in
        [("/plugins/{name}", "get_plugin"), ("/schema/plugins/{name}", "get_plugin_schema")]
    {
        get(
            path,
            name,
            "A plugin's schema",
            vec![name_of_plugin(), subsystem(), kind_of("Which schema; the plugin's by default")],
            &plugin_answers(),
        );
    }
    get(
        "/schema/{name}",
        "get_schema",
        "The schema of a kind of resources",
        vec![json!({
            "name": "name", "in": "path", "required": true,
            "schema": {"enum": Kind::ALL.map(schema_name)},
        })],
        &plugin_answers(),
    );
    let validate =
        |kind_path: &str, name: &str, about: &str, parameters, body: Value, ok: Value| {
            let answers = [(200, ok), (400, response("bad_request")), (404, response("not_found"))];
            let mut operation =
                plain_operation("validation", name.to_owned(), about, parameters, &answers);
            operation["requestBody"] =
                json!({"required": true, "content": {JSON: {"schema": body}}});
            (format!("{ROOT}{kind_path}"), json!({"post": operation}))
        };
    let kinds: Vec<Value> =
        Kind::ALL.into_iter().map(|kind| json!({"$ref": schema(&schema_name(kind))})).collect();
    let (path, item) = validate(
        "/schema/validate/{kind}",
        "validate",
        "Check a resource without storing it",
        vec![json!({
            "name": "kind", "in": "path", "required": true,
            "schema": {"enum": Kind::ALL.map(Kind::plural)},
        })],
        json!({"anyOf": kinds}),
        bare("It passes; no body"),
    );
    paths.insert(path, item);
    let all: Map<String, Value> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.parent().is_none())
        .map(|kind| {
            let of_kind = json!({"$ref": schema(&schema_name(kind))});
            (kind.plural().to_owned(), json!({"type": "array", "items": of_kind}))
        })
        .collect();
    let nothing = json!({"type": "object", "maxProperties": 0});
    let (path, item) = validate(
        "/configs/validate",
        "validate_all",
        "Check a whole configuration without storing it",
        Vec::new(),
        json!({"type": "object", "properties": all}),
        answer("Every resource passes", &nothing),
    );
    paths.insert(path, item);
    add_declaration(paths);
    let reload = plain_operation(
        "discovery",
        "reload_plugins".to_owned(),
        "Read config.yaml again, with its list of plugins",
        Vec::new(),
        &[(200, bare("The word done"))],
    );
    paths.insert(format!("{ROOT}/plugins/reload"), json!({"put": reload}));
    let alive = json!({
        "operationId": "alive",
        "summary": "Is the Admin API there?",
        "tags": ["discovery"],
        "security": [],
        "responses": {
            "200": {"description": "It is"},
            "403": response("forbidden"),
        },
    });
    paths.insert(ROOT.to_owned(), json!({"head": alive}));
}

/// The whole configuration at once: all there is where the gateway has no store of its own.
fn add_declaration(paths: &mut Map<String, Value>) {
    let all = json!({"schema": {"type": "object"}});
    let both = || json!({JSON: all, YAML: {}});
    let shown = json!({
        "description": "Every resource, by its kind; with versions where it was sent",
        "content": both(),
    });
    let get = plain_operation(
        "declaration",
        "get_configuration".to_owned(),
        "Read the whole configuration",
        Vec::new(),
        &[(200, shown), (404, response("not_found"))],
    );
    let digest = json!({
        "name": "X-Digest", "in": "header", "required": true,
        "description": "Sent again, nothing changes",
        "schema": {"type": "string", "pattern": "^[a-zA-Z0-9]+$"},
    });
    let mut put = plain_operation(
        "declaration",
        "put_configuration".to_owned(),
        "Replace the whole configuration, with config_provider yaml and the role traditional",
        vec![digest],
        &[
            (202, json!({"description": "It is served", "content": {JSON: {}}})),
            (204, json!({"description": "This digest was the last one, too"})),
            (404, response("not_found")),
        ],
    );
    put["requestBody"] = json!({"required": true, "content": both()});
    let mut head = get.clone();
    head["operationId"] = "head_configuration".into();
    head["summary"] = "Ask for the digest of the last one".into();
    head["responses"]["200"] = json!({"description": "X-Digest and X-Last-Modified tell"});
    paths.insert(format!("{ROOT}/configs"), json!({"get": get, "put": put, "head": head}));
}

fn operation(
    kind: Kind,
    name: String,
    about: &str,
    parameters: Vec<Value>,
    answers: &[(u16, Value)],
) -> Value {
    plain_operation(kind.plural(), name, about, parameters, answers)
}

/// An operation with the answers that every one may give.
fn plain_operation(
    tag: &str,
    name: String,
    about: &str,
    parameters: Vec<Value>,
    answers: &[(u16, Value)],
) -> Value {
    let mut all: Map<String, Value> =
        answers.iter().map(|(status, answer)| (status.to_string(), answer.clone())).collect();
    for (status, name) in [
        (400, "bad_request"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (408, "too_slow"),
        (503, "unavailable"),
    ] {
        all.entry(status.to_string()).or_insert_with(|| response(name));
    }
    json!({
        "operationId": name,
        "summary": about,
        "tags": [tag],
        "parameters": parameters,
        "responses": all,
    })
}

fn responses() -> Value {
    let error = json!({"schema": {"$ref": schema("error")}});
    let page = json!({"schema": {"type": "string"}});
    json!({
        "bad_request": {
            "description": "Something is wrong with the request; nothing was changed",
            "content": {JSON: error, HTML: page},
        },
        "bad_argument": {
            "description": "Something is wrong with an argument; some of the answers are bare text",
            "content": {JSON: {}, HTML: page},
        },
        "unauthorized": {
            "description": "The key is missing, wrong, or may not do this",
            "content": {JSON: error},
        },
        "forbidden": {
            "description": "The client's address is not in deployment.admin.allow_admin",
            "content": {HTML: page},
        },
        "not_found": {
            "description": "There is no such resource",
            "content": {JSON: error, HTML: page},
        },
        "read_only": {
            "description": "The configuration comes from a file; changes are made there",
            "content": {JSON: error},
        },
        "too_slow": {
            "description": "The body did not arrive in time",
            "content": {HTML: page},
        },
        "unavailable": {
            "description": "The configuration store is not available, or others change the same resource; the text says whether the change may have been made",
            "content": {JSON: error},
        },
    })
}

fn schemas(catalog: &Catalog) -> Value {
    let mut schemas = Map::new();
    schemas.insert(
        "error".to_owned(),
        json!({
            "type": "object",
            "properties": {
                "error_msg": {"type": "string"},
                "message": {"type": "string"},
                "description": {"type": "string"},
            },
            "anyOf": [{"required": ["error_msg"]}, {"required": ["message"]}],
        }),
    );
    let mut plugins = Map::new();
    for plugin in catalog.iter() {
        let name = format!("plugin.{}", plugin.name);
        plugins.insert(plugin.name.to_owned(), json!({"$ref": schema(&name)}));
        schemas.insert(name, modern(&plugin.schema));
    }
    schemas.insert(
        "plugins".to_owned(),
        json!({"type": "object", "properties": plugins, "additionalProperties": false}),
    );
    for kind in Kind::ALL {
        let name = schema_name(kind);
        let mut whole = match kind {
            Kind::PluginMetadata => metadata(catalog),
            Kind::Secrets => {
                let managers = SECRET_MANAGERS.into_iter().filter_map(secret_schema_json);
                json!({"anyOf": managers.map(modern).collect::<Vec<_>>()})
            }
            _ => modern(kind.schema_json()),
        };
        if let Some(plugins) = whole.pointer_mut("/properties/plugins") {
            *plugins = json!({"$ref": schema("plugins")});
        }
        schemas.insert(format!("{name}_patch"), patch(&whole));
        let shown = shown(kind, &whole);
        if let Some(properties) = whole.get_mut("properties").and_then(Value::as_object_mut) {
            // The gateway's own; a write that brings them is refused.
            properties.retain(|name, _| !["create_time", "update_time"].contains(&name.as_str()));
        }
        if let Some(required) = whole.get_mut("required").and_then(Value::as_array_mut) {
            // It may stand in the path.
            required.retain(|name| name != "id");
        }
        schemas
            .insert(format!("{name}_read"), envelope(&shown, &["createdIndex", "modifiedIndex"]));
        schemas.insert(format!("{name}_written"), envelope(&shown, &[]));
        schemas.insert(name, whole);
    }
    Value::Object(schemas)
}

fn metadata(catalog: &Catalog) -> Value {
    let all: Vec<Value> = catalog
        .iter()
        .filter_map(|plugin| Some(modern(plugin.metadata_schema.as_ref()?)))
        .collect();
    match all.is_empty() {
        true => json!({"type": "object"}),
        false => json!({"anyOf": all}),
    }
}

/// What may stand in a PATCH: any of the properties, or null to delete one.
fn patch(whole: &Value) -> Value {
    let properties = whole.get("properties").and_then(Value::as_object).into_iter().flatten();
    let properties: Map<String, Value> = properties
        .map(|(name, schema)| (name.clone(), json!({"anyOf": [schema, {"type": "null"}]})))
        .collect();
    json!({"type": "object", "properties": properties})
}

/// A resource in an answer. Its secrets may be encrypted or left out, and what an earlier version or
/// another gateway stored need not pass today's schema; so only the frame is promised.
fn shown(kind: Kind, whole: &Value) -> Value {
    let mut properties = Map::new();
    for (name, schema) in whole.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let of_secrets = ["plugins", "cert", "key", "certs", "keys", "tls", "upstream", "client"];
        if !of_secrets.contains(&name.as_str()) {
            properties.insert(name.clone(), schema.clone());
        }
    }
    let id = if kind == Kind::Consumers { "username" } else { "id" };
    json!({"type": "object", "properties": properties, "required": [id]})
}

fn envelope(value: &Value, indexes: &[&str]) -> Value {
    let mut properties = json!({"key": {"type": "string", "minLength": 1}, "value": value});
    let mut required = vec!["key", "value"];
    for index in indexes {
        properties[*index] = json!({"type": "integer", "minimum": 1});
        required.push(index);
    }
    json!({"type": "object", "properties": properties, "required": required})
}

/// A schema in the words of JSON Schema 2020-12, which OpenAPI 3.1 speaks. APISIX's are of draft 4
/// to 7; what differs is renamed, everything else means the same.
fn modern(schema: &Value) -> Value {
    let Value::Object(old) = schema else { return schema.clone() };
    let mut new = Map::new();
    for (word, value) in old {
        match (word.as_str(), value) {
            // PCRE's anchors; JSON Schema has those of ECMAScript.
            ("pattern", Value::String(text)) => {
                let text = match text.strip_prefix(r"\A") {
                    Some(rest) => format!("^{rest}"),
                    None => text.clone(),
                };
                let text = match text.strip_suffix(r"\z") {
                    Some(rest) => format!("{rest}$"),
                    None => text,
                };
                new.insert(word.clone(), text.into());
            }
            // Said to us, not about values.
            ("encrypt_fields", _) => {}
            ("properties" | "patternProperties" | "definitions", Value::Object(map)) => {
                let map = map.iter().map(|(name, schema)| (name.clone(), modern(schema)));
                new.insert(word.clone(), map.collect());
            }
            ("allOf" | "anyOf" | "oneOf", Value::Array(list)) => {
                new.insert(word.clone(), list.iter().map(modern).collect());
            }
            ("items", Value::Array(list)) => {
                new.insert("prefixItems".to_owned(), list.iter().map(modern).collect());
            }
            ("additionalItems", _) if old.get("items").is_some_and(Value::is_array) => {
                new.insert("items".to_owned(), modern(value));
            }
            (
                "items"
                | "not"
                | "if"
                | "then"
                | "else"
                | "additionalProperties"
                | "contains"
                | "propertyNames",
                _,
            ) => {
                new.insert(word.clone(), modern(value));
            }
            ("dependencies", Value::Object(map)) => {
                for (name, needs) in map {
                    let (word, needs) = match needs {
                        Value::Array(_) => ("dependentRequired", needs.clone()),
                        _ => ("dependentSchemas", modern(needs)),
                    };
                    new.entry(word).or_insert_with(|| json!({}))[name] = needs;
                }
            }
            // Of draft 4: it makes the bound next to it exclusive.
            ("exclusiveMinimum" | "exclusiveMaximum", Value::Bool(exclusive)) => {
                let bound = if word == "exclusiveMinimum" { "minimum" } else { "maximum" };
                if let (true, Some(bound)) = (*exclusive, old.get(bound)) {
                    new.insert(word.clone(), bound.clone());
                }
            }
            _ => {
                new.insert(word.clone(), value.clone());
            }
        }
    }
    Value::Object(new)
}

fn id_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Consumers => "username",
        Kind::Credentials => "credential_id",
        Kind::GraphqlCostDecorations => "decoration_id",
        Kind::PluginMetadata => "plugin",
        _ => "id",
    }
}

fn id_parameter(kind: Kind) -> Value {
    json!({
        "name": id_name(kind),
        "in": "path",
        "required": true,
        "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": r"^[a-zA-Z0-9_-]+$"},
        "example": EXAMPLE_ID,
    })
}

fn path_parameter(name: &str, about: &str) -> Value {
    json!({
        "name": name, "in": "path", "required": true, "description": about,
        "schema": {"type": "string", "minLength": 1},
    })
}

fn query(name: &str, schema: Value, about: &str) -> Value {
    json!({"name": name, "in": "query", "description": about, "schema": schema})
}

fn schema(name: &str) -> String {
    format!("#/components/schemas/{name}")
}

fn response(name: &str) -> Value {
    json!({"$ref": format!("#/components/responses/{name}")})
}

/// The id of the resource in examples.
const EXAMPLE_ID: &str = "example";
const ROOT: &str = "/apisix/admin";
const JSON: &str = "application/json";
const HTML: &str = "text/html";
const YAML: &str = "application/yaml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_its_own_name() {
        fn walk<'a>(value: &'a Value, refs: &mut Vec<&'a str>, names: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    refs.extend(map.get("$ref").and_then(Value::as_str));
                    names.extend(map.get("operationId").and_then(Value::as_str));
                    map.values().for_each(|value| walk(value, refs, names));
                }
                Value::Array(list) => list.iter().for_each(|value| walk(value, refs, names)),
                _ => {}
            }
        }
        let document = document(&Catalog::new(Vec::new(), |_| Ok(())));
        let (mut refs, mut names) = (Vec::new(), Vec::new());
        walk(&document, &mut refs, &mut names);
        for reference in refs {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "{names:?}");
        assert!(names.len() > 70, "{}", names.len());
    }

    #[test]
    fn every_example_passes_its_schema() {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Secrets) {
            if let Some(mut example) = example(kind) {
                if kind.has_id() {
                    example["id"] = EXAMPLE_ID.into();
                }
                assert_eq!(kind.schema().check(&example), Ok(()), "{kind:?}");
            }
        }
    }

    #[test]
    fn older_words_of_json_schema_become_those_of_2020_12() {
        for (old, new) in [
            (
                json!({"minimum": 1, "exclusiveMinimum": true}),
                json!({"minimum": 1, "exclusiveMinimum": 1}),
            ),
            (json!({"exclusiveMinimum": 0}), json!({"exclusiveMinimum": 0})),
            (
                json!({"items": [{"type": "string"}], "additionalItems": false}),
                json!({"prefixItems": [{"type": "string"}], "items": false}),
            ),
            (
                json!({"dependencies": {"a": ["b"], "c": {"not": {"encrypt_fields": ["x"]}}}}),
                json!({"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"c": {"not": {}}}}),
            ),
            // A property may be called as a word is.
            (
                json!({"properties": {"dependencies": {"type": "object"}}, "default": {"items": [1]}}),
                json!({"properties": {"dependencies": {"type": "object"}}, "default": {"items": [1]}}),
            ),
        ] {
            assert_eq!(modern(&old), new, "{old}");
        }
    }
}
