use serde_json::json;

use super::*;

/// Takes what starts like PEM.
struct Pem;

impl Outside for Pem {
    fn cert_pair(&self, cert: &str, key: Option<&str>) -> Result<(), String> {
        match (cert.starts_with("---"), key.is_none_or(|key| key.starts_with("---"))) {
            (false, _) => Err("failed to parse cert: no PEM".to_owned()),
            (_, false) => Err("failed to parse key: no PEM".to_owned()),
            _ => Ok(()),
        }
    }
}

#[track_caller]
fn refused(kind: Kind, value: Value, error: &str) {
    assert_eq!(resource(kind, &value, &Pem), Err(error.to_owned()), "{value}");
}

#[track_caller]
fn taken(kind: Kind, value: Value) {
    assert_eq!(resource(kind, &value, &Pem), Ok(()), "{value}");
}

fn route(more: Value) -> Value {
    let mut route =
        json!({"uri": "/v", "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:18801": 1}}});
    crate::patch::merge(&mut route, &more);
    route
}

/// Answers observed from APISIX 3.18.
#[test]
fn routes_are_refused_as_apisix_was_seen_to_refuse_them() {
    let none_of = concat!(
        "invalid configuration: object matches none of the required: ",
        r#"["plugins","uri"] or ["upstream","uri"] or ["upstream_id","uri"] or ["service_id","uri"] or "#,
        r#"["plugins","uris"] or ["upstream","uris"] or ["upstream_id","uris"] or ["service_id","uris"] or "#,
        r#"["script","uri"] or ["script","uris"]"#,
    );
    for (value, error) in [
        (
            route(json!({"id": "bad$id"})),
            "invalid configuration: property \"id\" validation failed: object matches none of the required",
        ),
        (
            route(json!({"uri": null})),
            "invalid configuration: allOf 1 failed: value should match only one schema, but matches none",
        ),
        (
            route(json!({"uris": ["/w"]})),
            "invalid configuration: allOf 1 failed: value should match only one schema, but matches both schemas 1 and 2",
        ),
        (
            route(json!({"zzz": 1})),
            "invalid configuration: additional properties forbidden, found zzz",
        ),
        (
            route(json!({"methods": ["GETX"]})),
            "invalid configuration: property \"methods\" validation failed: failed to validate item 1: matches none of the enum values",
        ),
        (json!({"uri": "/v"}), none_of),
        (
            json!({"uri": "/v", "upstream": {}}),
            "invalid configuration: property \"upstream\" validation failed: value should match only one schema, but matches none",
        ),
        (
            json!({"uri": "/v", "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:1": -1}}}),
            "invalid configuration: property \"upstream\" validation failed: property \"nodes\" validation failed: object matches none of the required",
        ),
        (
            route(json!({"priority": "x"})),
            "invalid configuration: property \"priority\" validation failed: wrong type: expected integer, got string",
        ),
        (
            route(json!({"remote_addr": "zz"})),
            "invalid configuration: property \"remote_addr\" validation failed: object matches none of the required",
        ),
        (
            route(json!({"filter_func": "zz"})),
            "invalid configuration: property \"filter_func\" validation failed: string too short, expected at least 10, got 2",
        ),
        (
            route(json!({"timeout": {"connect": 1}})),
            "invalid configuration: property \"timeout\" validation failed: property \"read\" is required",
        ),
        (
            json!([]),
            "invalid configuration: allOf 1 failed: value should match only one schema, but matches none",
        ),
    ] {
        refused(Kind::Routes, value, error);
    }
    assert_eq!(
        Kind::Routes.schema().check(&json!({"uri": 1})).unwrap_err(),
        "property \"uri\" validation failed: wrong type: expected string, got number"
    );
}

#[test]
fn routes_apisix_was_seen_to_take_are_taken() {
    for value in [
        route(json!({})),
        route(json!({"uri": "v"})),
        route(json!({"methods": []})),
        route(json!({"id": 7, "remote_addr": "10.0.0.0/8", "host": "*.example.com"})),
        route(json!({"remote_addrs": ["127.0.0.1", "::1", "fe80::/32"], "hosts": ["a.com", "*"]})),
        json!({"uri": "/v", "upstream": {"type": "roundrobin", "nodes": {}}}),
        json!({"uri": "/v", "upstream": {"type": "zzz", "nodes": {"127.0.0.1:1": 1}}}),
        json!({"uri": "/v", "upstream": {"nodes": [{"host": "127.0.0.1", "port": 18801, "weight": 1}]}}),
        json!({"uri": "/v", "upstream": {"nodes": [{"host": "[::1]", "port": 1, "weight": 1}]}}),
        json!({"uri": "/v", "upstream_id": "nope"}),
        json!({"uris": ["/v"], "plugins": {}}),
    ] {
        taken(Kind::Routes, value);
    }
}

#[test]
fn rules_beyond_the_schema_hold_for_routes() {
    for (value, error) in [
        (
            route(json!({"host": "a.com", "hosts": ["b.com"]})),
            "only one of host or hosts is allowed",
        ),
        (
            route(json!({"remote_addr": "1.1.1.1", "remote_addrs": ["1.1.1.1"], "zzz": 1})),
            "only one of remote_addr or remote_addrs is allowed",
        ),
        (
            route(json!({"id": "$env://PATH/../x"})),
            "invalid configuration: property \"id\" validation failed: object matches none of the required",
        ),
        (route(json!({"upstream": {"type": "chash"}})), "missing key"),
        (
            route(json!({"script": "local a = 1", "plugins": {"a": {}}})),
            "invalid configuration: value wasn't supposed to match schema",
        ),
        (
            route(json!({"vars": (0..120).fold(json!([]), |inner, _| json!([inner]))})),
            "invalid configuration: nested too deeply",
        ),
    ] {
        refused(Kind::Routes, value, error);
    }
}

#[test]
fn upstreams_are_refused_in_the_words_of_apisix() {
    let nodes = || json!({"127.0.0.1:80": 1});
    let unhealthy = "property \"unhealthy\" validation failed: ";
    for (value, error) in [
        (json!({"zzz": 1}), "invalid configuration: additional properties forbidden, found zzz".to_owned()),
        (json!({"nodes": {"a:0": 1}}), "invalid port 0".to_owned()),
        (json!({"nodes": {"a:65536": 1}}), "invalid port 65536".to_owned()),
        (
            json!({"nodes": [{"host": "::1", "port": 80, "weight": 1}]}),
            "invalid configuration: IPv6 address must be enclosed with '[' and ']'".to_owned(),
        ),
        (
            json!({"nodes": [{"host": "a", "port": 80}]}),
            "invalid configuration: property \"nodes\" validation failed: object matches none of the required".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "pass_host": "rewrite"}),
            "`upstream_host` can't be empty when `pass_host` is `rewrite`".to_owned(),
        ),
        (json!({"nodes": nodes(), "type": "chash"}), "missing key".to_owned()),
        (
            json!({"nodes": nodes(), "type": "chash", "key": "not_support"}),
            "invalid configuration: failed to match pattern \"^((uri|server_name|server_addr|request_uri|remote_port|remote_addr|query_string|host|hostname|mqtt_client_id)|arg_[0-9a-zA-z_-]+)$\" with \"not_support\"".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "type": "chash", "hash_on": "header", "key": "$#^@"}),
            "invalid configuration: failed to match pattern \"^[a-zA-Z0-9-_]+$\" with \"$#^@\"".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "hash_on": "aabbcc"}),
            "invalid configuration: property \"hash_on\" validation failed: matches none of the enum values".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "retries": -1}),
            "invalid configuration: property \"retries\" validation failed: expected -1 to be at least 0".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "labels": {"env": ["production"]}}),
            "invalid configuration: property \"labels\" validation failed: failed to validate env (matching \".*\"): wrong type: expected string, got table".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "labels": "text"}),
            "invalid configuration: property \"labels\" validation failed: wrong type: expected object, got string".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "name": "a".repeat(257)}),
            "invalid configuration: property \"name\" validation failed: string too long, expected at most 256, got 257".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "timeout": {"connect": 1, "send": 0, "read": 1}}),
            "invalid configuration: property \"timeout\" validation failed: property \"send\" validation failed: expected 0 to be greater than 0".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "checks": {}}),
            "invalid configuration: property \"checks\" validation failed: object matches none of the required: [\"active\"] or [\"active\",\"passive\"]".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "checks": {"active": {"unhealthy": {"http_failures": 3.1}}}}),
            format!("invalid configuration: property \"checks\" validation failed: property \"active\" validation failed: {unhealthy}property \"http_failures\" validation failed: wrong type: expected integer, got number"),
        ),
        (
            json!({"nodes": nodes(), "checks": {"passive": {"unhealthy": {"http_statuses": [500, 600]}}}}),
            format!("invalid configuration: property \"checks\" validation failed: property \"passive\" validation failed: {unhealthy}property \"http_statuses\" validation failed: failed to validate item 2: expected 600 to be at most 599"),
        ),
        (
            json!({"nodes": nodes(), "checks": {"active": {"healthy": {"http_statuses": [200, 200]}}}}),
            "invalid configuration: property \"checks\" validation failed: property \"active\" validation failed: property \"healthy\" validation failed: property \"http_statuses\" validation failed: expected unique items but items 1 and 2 are equal".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "tls": {"client_cert_id": 1, "client_cert": pem(128), "client_key": pem(64)}}),
            "invalid configuration: property \"tls\" validation failed: failed to validate dependent schema for \"client_cert_id\": value wasn't supposed to match schema".to_owned(),
        ),
        (
            json!({"nodes": nodes(), "tls": {"client_cert": pem(128), "client_key": "k".repeat(64)}}),
            "failed to parse key: no PEM".to_owned(),
        ),
    ] {
        refused(Kind::Upstreams, value, &error);
    }
    for value in [
        json!({"nodes": nodes(), "type": "chash", "key": "arg_device-id"}),
        json!({"nodes": nodes(), "type": "chash", "hash_on": "consumer"}),
        json!({"nodes": nodes(), "type": "chash", "hash_on": "vars_combinations", "key": "$host$uri"}),
        json!({"nodes": nodes(), "tls": {"client_cert": pem(128), "client_key": pem(64)}}),
        json!({"service_name": "a", "discovery_type": "dns"}),
    ] {
        assert_eq!(upstream(&value, &Pem), Ok(()), "{value}");
    }
}

fn pem(length: usize) -> String {
    "-".repeat(length)
}

#[test]
fn certificates_are_refused_in_the_words_of_apisix() {
    let pair = |more: Value| {
        let mut ssl = json!({"cert": pem(128), "key": pem(64), "snis": ["a.com"]});
        crate::patch::merge(&mut ssl, &more);
        ssl
    };
    for (value, error) in [
        (
            json!({"cert": "x", "key": "y", "snis": ["a.com"]}),
            "invalid configuration: property \"key\" validation failed: string too short, expected at least 64, got 1",
        ),
        (pair(json!({"snis": null})), "invalid configuration: then clause did not match"),
        (
            pair(json!({"snis": []})),
            "invalid configuration: property \"snis\" validation failed: expect array to have at least 1 items",
        ),
        (
            pair(json!({"type": "client", "key": null})),
            "invalid configuration: else clause did not match",
        ),
        (pair(json!({"cert": "c".repeat(128)})), "failed to parse cert: no PEM"),
        (pair(json!({"certs": [pem(128)], "keys": []})), "mismatched number of certs and keys"),
        (
            pair(json!({"certs": [pem(128), pem(128)], "keys": [pem(64), "k".repeat(64)]})),
            "failed to handle cert-key pair[2]: failed to parse key: no PEM",
        ),
        (
            pair(json!({"client": {"ca": "c".repeat(128)}})),
            "failed to validate client_cert: failed to parse cert: no PEM",
        ),
        (
            pair(json!({"ssl_protocols": ["TLSv1"]})),
            "invalid configuration: property \"ssl_protocols\" validation failed: failed to validate item 1: matches none of the enum values",
        ),
    ] {
        refused(Kind::Ssls, value, error);
    }
    for more in [
        json!({}),
        json!({"type": "client", "snis": null}),
        json!({"cert": "$secret://vault/1/cert", "key": "$secret://vault/1/key"}),
        json!({"client": {"ca": pem(128)}, "certs": [pem(128)], "keys": [pem(64)]}),
    ] {
        taken(Kind::Ssls, pair(more));
    }
}

/// Answers observed from APISIX 3.18.
#[test]
fn other_kinds_are_refused_as_apisix_was_seen_to_refuse_them() {
    let plugins = "invalid configuration: property \"plugins\" is required";
    for (kind, value, error) in [
        (
            Kind::Services,
            json!({"zzz": 1}),
            "invalid configuration: additional properties forbidden, found zzz",
        ),
        (
            Kind::Consumers,
            json!({"username": "bad name"}),
            "invalid configuration: property \"username\" validation failed: failed to match pattern \"^[a-zA-Z0-9_\\\\-]+$\" with \"bad name\"",
        ),
        (
            Kind::Consumers,
            json!({"plugins": {}}),
            "invalid configuration: property \"username\" is required",
        ),
        (Kind::GlobalRules, json!({"id": "g1", "zzz": 1}), plugins),
        (Kind::PluginConfigs, json!({"id": "p1", "zzz": 1}), plugins),
        (Kind::ConsumerGroups, json!({"id": "cg1", "zzz": 1}), plugins),
        (Kind::StreamRoutes, json!({"remote_addr": ":/8"}), "invalid remote_addr: :/8"),
        (Kind::Services, json!({"upstream": {"nodes": {}, "type": "chash"}}), "missing key"),
        (
            Kind::StreamRoutes,
            json!({"id": "1", "protocol": {"name": "redis", "superior_id": 1}}),
            "stream route can not set itself as superior_id",
        ),
        (Kind::Secrets, json!({"id": "zzz/1", "uri": "x"}), "invalid secret manager: zzz"),
        (Kind::Secrets, json!({"uri": "x"}), "invalid secret id: "),
        (
            Kind::Secrets,
            json!({"id": "vault/1", "uri": "http://127.0.0.1:8200"}),
            "invalid configuration: property \"prefix\" is required",
        ),
        (
            Kind::Secrets,
            json!({"id": "vault/a$b", "uri": "x"}),
            "invalid configuration: property \"id\" validation failed: object matches none of the required",
        ),
        (
            Kind::Credentials,
            json!({"plugins": {"key-auth": {}, "basic-auth": {}}}),
            "invalid configuration: property \"plugins\" validation failed: expect object to have at most 1 properties",
        ),
        (
            Kind::GraphqlCostDecorations,
            json!({"id": "g"}),
            "invalid configuration: property \"field_path\" is required",
        ),
        (
            Kind::Protos,
            json!({"id": "1", "content": "zzz"}),
            "invalid content: expected 'enum', 'extend', 'import', 'message', 'option', 'service', 'package' or ';', but found 'zzz'",
        ),
    ] {
        refused(kind, value, error);
    }
    for (kind, value) in [
        (
            Kind::Services,
            json!({"name": "svc", "upstream": {"nodes": {"127.0.0.1:1": 1}}, "plugins": {}}),
        ),
        (Kind::Services, json!({})),
        (Kind::Consumers, json!({"username": "jack", "plugins": {"key-auth": {"key": "k"}}})),
        (Kind::GlobalRules, json!({"id": "g1", "plugins": {}})),
        (Kind::PluginConfigs, json!({"id": "p1", "plugins": {}, "desc": "d"})),
        (Kind::Protos, json!({"id": "1", "content": "syntax = \"proto3\";"})),
        (Kind::StreamRoutes, json!({"remote_addr": "127.0.0.1", "upstream_id": 1})),
        (
            Kind::Secrets,
            json!({"uri": "http://127.0.0.1:8200", "prefix": "kv", "token": "t", "id": "vault/1"}),
        ),
        (Kind::Credentials, json!({"id": "c1", "plugins": {"key-auth": {"key": "k"}}})),
        (Kind::Credentials, json!({"id": "jack/credentials/c1"})),
        (
            Kind::GraphqlCostDecorations,
            json!({"id": "g", "field_path": "Query.a.b_1", "mul_value": 0.5}),
        ),
    ] {
        taken(kind, value);
    }
}

#[test]
fn times_are_refused_in_what_a_client_sends() {
    for (value, error) in [
        (json!({"create_time": 1}), "the property is forbidden:  create_time"),
        (
            json!({"upstream": {"update_time": 1}}),
            "the property is forbidden:  upstream.update_time",
        ),
        (
            json!({"plugins": {"create_time": {}}}),
            "the property is forbidden:  plugins.create_time",
        ),
    ] {
        assert_eq!(no_times(&value), Err(error.to_owned()));
    }
    assert_eq!(no_times(&json!({"uri": "/a", "upstream": {}})), Ok(()));
    assert_eq!(no_times(&json!("text")), Ok(()));
}

#[test]
fn what_a_resource_refers_to_is_named_in_the_order_apisix_looks() {
    let value = json!({
        "upstream_id": "nope", "service_id": 2, "plugin_config_id": "p", "upstream": {"tls": {"client_cert_id": 9}},
    });
    let found = references(Kind::Routes, &value);
    assert_eq!(
        found.iter().map(Reference::missing).collect::<Vec<_>>(),
        [
            "failed to fetch ssl info by ssl id [9], response code: 404",
            "failed to fetch upstream info by upstream id [nope], response code: 404",
            "failed to fetch service info by service id [2], response code: 404",
            "failed to fetch plugin config info by plugin config id [p], response code: 404",
        ]
    );
    assert_eq!(
        found[0].check(&json!({"type": "server"})).unwrap_err(),
        "failed to fetch ssl info by ssl id [9], wrong ssl type"
    );
    assert_eq!(found[0].check(&json!({"type": "client"})), Ok(()));
    assert_eq!(found[1].check(&json!({})), Ok(()));
    assert_eq!(references(Kind::Upstreams, &json!({"tls": {"client_cert_id": "c"}})).len(), 1);
    assert_eq!(
        references(Kind::Consumers, &json!({"group_id": "g"}))[0].missing(),
        "failed to fetch consumer group info by consumer group id [g], response code: 404"
    );
    assert!(references(Kind::Protos, &value).is_empty());
}
