//! Upstreams whose nodes a DNS server knows (`discovery_type: dns`).

use serde_json::{Value, json};
use sluicegate_testkit::dns::{Data, Dns};
use sluicegate_testkit::{GatewayProcess, Origin, client, wait};

use crate::BINARY;

fn gateway(dns: &Dns, more: Value) -> GatewayProcess {
    let mut settings = json!({"servers": [dns.addr.to_string()]});
    if let (Value::Object(settings), Value::Object(more)) = (&mut settings, more) {
        settings.extend(more);
    }
    GatewayProcess::with(
        BINARY,
        json!({
            "discovery": {"dns": settings},
            "nginx_config": {"worker_processes": 1},
            "apisix": {"resolver_timeout": 1, "enable_resolv_search_opt": false},
        }),
    )
}

/// A route for `/ID` to the service of this name.
fn set(gateway: &GatewayProcess, id: &str, service: &str) {
    let upstream = json!({"type": "roundrobin", "discovery_type": "dns", "service_name": service});
    gateway.set(&format!("/upstreams/{id}"), &upstream);
    gateway.set(&format!("/routes/{id}"), &json!({"uri": format!("/{id}"), "upstream_id": id}));
}

fn said(gateway: &GatewayProcess, id: &str) -> String {
    let answer = client::get(gateway.http, &format!("/{id}"));
    if answer.status == 200 { answer.text() } else { answer.status.to_string() }
}

/// How often each answer comes in `rounds` requests, sorted.
fn counted(gateway: &GatewayProcess, id: &str, rounds: usize) -> Vec<(String, usize)> {
    let mut answers: Vec<String> = (0..rounds).map(|_| said(gateway, id)).collect();
    answers.sort();
    let chunks = answers.chunk_by(|a, b| a == b);
    chunks.map(|chunk| (chunk[0].clone(), chunk.len())).collect()
}

const HERE: Data = Data::A([127, 0, 0, 1]);

#[test]
fn a_service_has_the_nodes_ports_and_weights_of_its_records() {
    let (one, two) = (Origin::text("one"), Origin::text("two"));
    let (first, second) = (one.addr.port(), two.addr.port());
    let dns = Dns::start(&[
        ("a.test", 300, HERE),
        ("one.test", 300, HERE),
        ("alias.test", 300, Data::Cname("one.test")),
        // Three to one.
        ("weighted.test", 300, Data::Srv(10, 60, first, "one.test")),
        ("weighted.test", 300, Data::Srv(10, 20, second, "one.test")),
        // The lower number first; nobody listens on port 1.
        ("_http._tcp.prior.test", 300, Data::Srv(10, 1, 1, "one.test")),
        ("_http._tcp.prior.test", 300, Data::Srv(20, 1, second, "one.test")),
        // SRV before A, and a weight of 0 as if it were 1.
        ("both.test", 300, Data::Srv(0, 0, second, "one.test")),
        ("both.test", 300, Data::A([127, 0, 0, 9])),
        // A target that nobody knows does not take the others with it.
        ("half.test", 300, Data::Srv(0, 1, first, "gone.test")),
        ("half.test", 300, Data::Srv(0, 1, second, "one.test")),
    ]);
    let gateway = gateway(&dns, json!({}));
    let with = |name: &str| format!("{name}:{first}");
    for (id, service) in [
        ("plain", with("a.test")),
        ("alias", with("alias.test")),
        ("weighted", "weighted.test".to_owned()),
        ("prior", "_http._tcp.prior.test".to_owned()),
        ("both", "both.test".to_owned()),
        ("override", with("both.test")),
        ("half", "half.test".to_owned()),
        ("unknown", "unknown.test".to_owned()),
    ] {
        set(&gateway, id, &service);
    }
    let once = |text: &str, times| vec![(text.to_owned(), times)];
    assert_eq!(counted(&gateway, "plain", 3), once("one", 3));
    assert_eq!(counted(&gateway, "alias", 3), once("one", 3));
    let shares = vec![("one".to_owned(), 60), ("two".to_owned(), 20)];
    assert_eq!(counted(&gateway, "weighted", 80), shares);
    assert_eq!(counted(&gateway, "prior", 3), once("two", 3));
    assert_eq!(counted(&gateway, "both", 3), once("two", 3));
    assert_eq!(counted(&gateway, "override", 3), once("one", 3));
    assert_eq!(counted(&gateway, "half", 3), once("two", 3));
    assert_eq!(counted(&gateway, "unknown", 1), once("503", 1));
    let log = gateway.error_log();
    assert!(log.contains("service unknown.test: "), "{log}");
}

#[test]
fn a_service_follows_dns_by_its_ttl_and_keeps_its_nodes_while_dns_is_down() {
    let (one, two) = (Origin::text("one"), Origin::text("two"));
    let srv = |port| [("s.test", 1, Data::Srv(0, 1, port, "h.test")), ("h.test", 300, HERE)];
    let dns = Dns::start(&srv(one.addr.port()));
    let gateway = gateway(&dns, json!({}));
    set(&gateway, "s", "s.test");
    assert_eq!(said(&gateway, "s"), "one");
    dns.tell(&srv(two.addr.port()));
    wait::until("the new node", || (said(&gateway, "s") == "two").then_some(()));
    dns.fall_silent();
    wait::until("DNS to be missed", || {
        gateway.error_log().contains("its last nodes stay in use").then_some(())
    });
    assert_eq!(said(&gateway, "s"), "two");
    dns.tell(&srv(one.addr.port()));
    wait::until("the old node again", || (said(&gateway, "s") == "one").then_some(()));
    // Types are asked for in the documented order, later the one that answered before.
    let asked = dns.asked();
    assert_eq!(asked[0], ("s.test".to_owned(), 33));
    assert!(asked.iter().all(|(name, kind)| name != "s.test" || *kind == 33), "{asked:?}");
}

#[test]
fn the_order_of_types_can_be_changed() {
    let (one, two) = (Origin::text("one"), Origin::text("two"));
    let dns = Dns::start(&[
        ("both.test", 300, Data::Srv(0, 1, two.addr.port(), "h.test")),
        ("both.test", 300, HERE),
        ("h.test", 300, HERE),
    ]);
    let gateway = gateway(&dns, json!({"order": ["A", "SRV"]}));
    set(&gateway, "both", &format!("both.test:{}", one.addr.port()));
    assert_eq!(said(&gateway, "both"), "one");
    assert!(dns.asked().iter().all(|(_, kind)| *kind == 1), "{:?}", dns.asked());
}

#[test]
fn without_a_server_a_service_answers_503_and_says_what_is_missing() {
    let gateway = GatewayProcess::start(BINARY);
    set(&gateway, "s", "s.test");
    assert_eq!(said(&gateway, "s"), "503");
    let log = gateway.error_log();
    assert!(
        log.contains("discovery dns is uninitialized: config.yaml has no discovery.dns"),
        "{log}"
    );
}
