use super::*;

use tokio::net::TcpListener;

fn compiled(https: &str, http: &str, no_proxy: &[&str]) -> Result<Option<Arc<Egress>>, String> {
    let settings = EgressSettings {
        https_proxy: https.into(),
        http_proxy: http.into(),
        no_proxy: no_proxy.iter().map(|&entry| entry.to_owned()).collect(),
    };
    let resolver = Resolver::new(tokio::runtime::Handle::current(), &Default::default());
    Egress::new(&settings, &resolver, &TlsClients::new(None))
}

#[tokio::test]
async fn a_scheme_leaves_by_its_own_proxy() {
    let both = compiled("http://127.0.0.1:1", "http://127.0.0.1:2", &[]).unwrap().unwrap();
    let shown = |tls| both.way(tls, "fn.test", 443).map(|way| way.proxy().to_owned());
    assert_eq!(shown(true).as_deref(), Some("http://127.0.0.1:1"));
    assert_eq!(shown(false).as_deref(), Some("http://127.0.0.1:2"));
    let one = compiled(" http://127.0.0.1:1 ", "", &[]).unwrap().unwrap();
    assert!(one.way(true, "fn.test", 443).is_some());
    assert!(one.way(false, "fn.test", 80).is_none());
    assert!(compiled("", " ", &["a.test"]).unwrap().is_none());
}

#[tokio::test]
async fn a_way_is_one_host_and_port_and_its_number_is_its_own() {
    let egress = compiled("http://127.0.0.1:1", "http://127.0.0.1:1", &[]).unwrap().unwrap();
    let id = |tls, host, port| egress.way(tls, host, port).unwrap().id();
    let first = id(true, "fn.test", 443);
    assert!(first > 0);
    assert_eq!(first, id(true, "fn.test", 443));
    for other in [id(true, "fn.test", 444), id(true, "gn.test", 443), id(false, "fn.test", 443)] {
        assert_ne!(first, other);
    }
    assert_eq!(egress.way(true, "2001:db8::1", 443).unwrap().authority(), "[2001:db8::1]:443");
}

#[test]
fn no_proxy_takes_hosts_suffixes_networks_ports_and_the_star() {
    for (entries, host, port, direct) in [
        ("example.com", "example.com", 443, true),
        ("example.com", "a.example.com", 443, true),
        ("example.com", "badexample.com", 443, false),
        ("example.com", "EXAMPLE.com.", 443, true),
        (".example.com", "example.com", 443, false),
        (".example.com", "a.b.example.com", 443, true),
        ("*.example.com", "a.example.com", 443, true),
        ("*.example.com", "example.com", 443, false),
        ("example.com:8443", "example.com", 8443, true),
        ("example.com:8443", "example.com", 443, false),
        ("a.test, b.test c.test", "c.test", 443, true),
        ("10.0.0.0/8", "10.1.2.3", 443, true),
        ("10.0.0.0/8", "11.1.2.3", 443, false),
        ("10.0.0.0/8", "ten.test", 443, false),
        ("10.1.2.3", "10.1.2.3", 80, true),
        ("10.1.2.3:80", "10.1.2.3", 80, true),
        ("10.1.2.3:80", "10.1.2.3", 81, false),
        ("10.1.2.3", "::ffff:10.1.2.3", 80, true),
        ("2001:db8::/32", "2001:db8::1", 443, true),
        ("2001:db8::1", "2001:db8::1", 443, true),
        ("[2001:db8::1]", "2001:db8::1", 443, true),
        ("[2001:db8::1]:443", "2001:db8::1", 443, true),
        ("[2001:db8::1]:443", "2001:db8::1", 444, false),
        ("*", "fn.test", 443, true),
        ("", "fn.test", 443, false),
        (" , ", "fn.test", 443, false),
        // Whatever the list says.
        ("", "localhost", 80, true),
        ("", "a.localhost", 80, true),
        ("", "127.0.0.1", 80, true),
        ("", "::1", 80, true),
        ("", "169.254.169.254", 80, true),
        ("", "169.254.170.2", 80, true),
        ("", "fe80::1", 80, true),
        ("", "fd00:ec2::254", 80, true),
        ("", "fd00:ec3::254", 80, false),
    ] {
        let rules = Direct::parse(&[entries.to_owned()]).unwrap();
        assert_eq!(rules.takes(host, port), direct, "{entries:?} {host} {port}");
    }
    for entry in ["10.0.0.0/33", "example.com:port", "*example.com", "a/b", "a@b", "."] {
        let error = Direct::parse(&[entry.to_owned()]).unwrap_err();
        assert_eq!(error, format!("no_proxy: {entry:?} is no host, network or *"));
    }
    let entries = |n| vec!["a.test".to_owned(); n];
    assert!(Direct::parse(&entries(RULES_MAX)).is_ok());
    assert!(Direct::parse(&entries(RULES_MAX + 1)).is_err());
}

#[tokio::test]
async fn a_proxy_url_is_refused_without_being_repeated() {
    for (url, why) in [
        ("proxy:3128", "does not begin with http:// or https://"),
        ("socks5://u:hidden@p.test", "does not begin with http:// or https://"),
        ("http://u:hidden@p.test/path", "has a path or a query; a proxy has neither"),
        ("http://u:hidden@p.test?q", "has a path or a query; a proxy has neither"),
        ("http://u:hidden@p.test:99999", "has no valid port"),
        ("http://hidden@p.test", "has a user name without a password"),
        ("http://u:hid den@p.test", "is not a URL"),
        ("http://", "is not a URL"),
    ] {
        assert_eq!(compiled(url, "", &[]).unwrap_err(), format!("https_proxy {why}"), "{url}");
    }
}

#[tokio::test]
async fn nothing_that_is_shown_holds_the_password() {
    let egress = compiled("http://us%65r:hid%40den@127.0.0.1:3128", "", &[]).unwrap().unwrap();
    let way = egress.way(true, "fn.test", 443).unwrap();
    assert_eq!(way.proxy(), "http://127.0.0.1:3128");
    let debug = format!("{egress:?} {:?}", way.late(Duration::ZERO));
    assert!(debug.contains("127.0.0.1:3128") && !debug.contains("hid"), "{debug}");
    let basic = way.proxy.authorization.clone().unwrap();
    assert_eq!(basic, format!("Basic {}", STANDARD.encode("user:hid@den")));
}

/// What comes of a proxy that answers like this, after it read the request's head.
async fn answered(answer: Vec<u8>) -> (String, Result<Stream, EgressError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let proxy = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(tcp.read_buf(&mut head).await.unwrap() > 0);
        }
        // Byte by byte: an answer may come in pieces.
        for byte in answer {
            if tcp.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        String::from_utf8(head).unwrap()
    });
    let egress = compiled(&format!("http://user:pass@{addr}"), "", &[]).unwrap().unwrap();
    let way = egress.way(true, "fn.test", 443).unwrap();
    let opened = way.open(Duration::from_secs(30)).await;
    (proxy.await.unwrap(), opened)
}

#[tokio::test]
async fn a_tunnel_is_asked_for_by_host_and_port_with_the_credentials() {
    let (asked, opened) =
        answered(b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n".to_vec()).await;
    assert_eq!(
        asked,
        "CONNECT fn.test:443 HTTP/1.1\r\nHost: fn.test:443\r\nProxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n"
    );
    assert!(opened.is_ok());
}

#[tokio::test]
async fn a_refusal_or_a_faulty_answer_opens_no_tunnel_and_says_why() {
    let head = |length: usize| {
        let mut head = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
        head.resize(length - 4, b'a');
        head.extend_from_slice(b"\r\n\r\n");
        head
    };
    for (answer, why) in [
        (
            b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "it answered 407 Proxy Authentication Required (it wants a user name and a password that it knows)",
        ),
        (
            b"HTTP/1.1 403 No\r\n\r\n".to_vec(),
            "it answered 403 Forbidden (it does not let us reach this host or port)",
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n".to_vec(), "it answered 302 Found"),
        (b"".to_vec(), "it closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\n".to_vec(), "it closed the connection without an answer"),
        (
            head(ANSWER_BYTES_MAX + 1),
            "its answer is malformed: request header fields are larger than 16384 bytes",
        ),
    ] {
        let (_, opened) = answered(answer).await;
        let error = opened.err().expect("no tunnel");
        assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
        let text = error.to_string();
        let (front, rest) = text.split_once(": ").unwrap();
        assert!(front.starts_with("no connection to fn.test:443 through the egress proxy http:"));
        assert_eq!(rest, why);
    }
    assert!(answered(head(ANSWER_BYTES_MAX)).await.1.is_ok());
}

#[tokio::test]
async fn bytes_behind_the_head_would_pass_for_the_functions_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _ = tcp.read(&mut [0; 1024]).await;
    });
    let egress = compiled(&format!("http://{addr}"), "", &[]).unwrap().unwrap();
    let opened = egress.way(true, "fn.test", 443).unwrap().open(Duration::from_secs(30)).await;
    let error = opened.err().expect("no tunnel").to_string();
    assert!(error.ends_with("it sent more than the head of its answer"), "{error}");
}

#[tokio::test]
async fn a_silent_proxy_counts_into_the_time_to_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let egress = compiled(&format!("http://{addr}"), "", &[]).unwrap().unwrap();
    let way = egress.way(true, "fn.test", 443).unwrap();
    let error = way.open(Duration::from_millis(50)).await.err().expect("no tunnel");
    assert_eq!(error.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(error.to_string().ends_with(": not within 50ms"), "{error}");
}
