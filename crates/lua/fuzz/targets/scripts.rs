//! Any source in any phase of any request: nothing panics, every request is answered, and no source
//! changes what others find.

#![no_main]

use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{
    CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError, Registry,
};
use sluicegate_lua::{Functions, Limits, Outcome, Phase};
use sluicegate_model::kind::Kind;
use sluicegate_testkit::{Client, InProcess, client};

/// What the next request runs.
static SOURCE: Mutex<(String, u8)> = Mutex::new((String::new(), 0));

fuzz_target!(|data: &[u8]| {
    let [kind, phase, data @ ..] = data else { return };
    let source = match kind % 4 {
        0 => String::from_utf8_lossy(data).into_owned(),
        1 => format!("return function(conf, ctx) {} end", tokens(data)),
        2 => format!("return function(conf, ctx) pcall(function() {} end) end", tokens(data)),
        _ => WILD.replace("DATA", &literal(data)),
    };
    *SOURCE.lock().expect("nobody panics with it") = (source, *phase);
    let gateway = GATEWAY.get_or_init(start);
    let target: String =
        data.iter().take(40).filter(|byte| byte.is_ascii_graphic()).map(|b| char::from(*b)).collect();
    let target = format!("/{}", target.replace('#', ""));
    let value: String =
        data.iter().skip(8).take(40).filter(|b| (32..127).contains(*b)).map(|b| char::from(*b)).collect();
    let bytes = client::request_bytes("POST", &target, &[("X-Fuzz", value.trim())], data);
    let mut client = Client::connect(gateway.addr);
    client.send(bytes);
    let status = client.response().status;
    assert!((100..1000).contains(&status), "{status}");
});

static GATEWAY: OnceLock<InProcess> = OnceLock::new();

fn start() -> InProcess {
    // A panic that the gateway survives is a finding, too.
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        std::process::abort();
    }));
    let limits = Limits {
        instructions: 300_000,
        time: Duration::from_millis(500),
        memory_bytes: 16 << 20,
        body_bytes: 1 << 20,
        ..Limits::default()
    };
    sluicegate_lua::configure(limits);
    sluicegate_lua::configure_zones(&[("fuzz".to_owned(), 64 << 10)]);
    let mut registry = Registry::default();
    registry.add::<Fuzzing>();
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:9": 1}});
    let route = json!({"id": "1", "uri": "/*", "plugins": {"fuzzing": {}}, "upstream": upstream});
    InProcess::start(registry, vec![(Kind::Routes, "1", route)])
}

/// Runs the source, then one that looks at the library, and answers.
struct Fuzzing;

#[derive(serde::Deserialize)]
struct NoConfig {}

impl Plugin for Fuzzing {
    const NAME: &'static str = "fuzzing";
    const PRIORITY: i32 = 1;
    const PHASES: Phases = Phases::ACCESS;
    type Config = NoConfig;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn compile(_: NoConfig, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self)
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let (source, phase) = SOURCE.lock().expect("nobody panics with it").clone();
        // Without dependencies of a gateway: no script reaches a network.
        if let Ok(functions) = Functions::compile(Self::NAME, vec![source], json!({"a": [1]}), None) {
            let mut response = Response::new(http::StatusCode::OK);
            match phase % 6 {
                0 => functions.header_filter(exchange, &mut response),
                1 => {
                    let mut piece = "{\"a\": 1}".into();
                    functions.body_filter(exchange, &mut piece, false);
                    functions.body_filter(exchange, &mut piece, true);
                }
                2 => functions.log(exchange),
                phase => {
                    let phase = [Phase::Rewrite, Phase::Access, Phase::BeforeProxy][usize::from(phase) - 3];
                    // One that sleeps is given up.
                    let run = functions.run(phase, exchange);
                    let _ = tokio::time::timeout(Duration::from_millis(20), run).await;
                }
            }
        }
        let canary = Functions::compile(Self::NAME, vec![CANARY.to_owned()], json!({}), None);
        let canary = canary.expect("the library is there");
        exchange.notes = Default::default();
        match canary.run(Phase::Access, exchange).await {
            Ok(Outcome::Respond(response)) if response.status == http::StatusCode::CREATED => {}
            Ok(_) => panic!("a script changed what others find"),
            Err(error) => panic!("another script does not run: {error}"),
        }
        Ok(Flow::Respond(Response::new(http::StatusCode::OK)))
    }
}

/// A text as Lua writes it.
fn literal(data: &[u8]) -> String {
    let escaped: String = data.iter().map(|byte| format!("\\{byte:03}")).collect();
    format!("\"{escaped}\"")
}

fn tokens(data: &[u8]) -> String {
    let words: Vec<&str> = data.iter().map(|byte| TOKENS[usize::from(*byte) % TOKENS.len()]).collect();
    words.join(" ")
}

const WILD: &str = include_str!("../../../plugins/src/serverless/wild.lua");

const CANARY: &str = r#"
local held = ("x"):rep(3) == "xxx" and ("a,b"):find(",", 1, true) == 2 and string.format("%d", 7) == "7"
    and table.concat({1, 2}, "-") == "1-2" and math.floor(1.5) == 1 and ngx.md5("") == "d41d8cd98f00b204e9800998ecf8427e"
    and require("cjson").encode({a = 1}) == '{"a":1}' and require("apisix.core").string.has_prefix("ab", "a")
    and ngx.re.match("ab", "b")[0] == "b" and type(ngx.shared.fuzz.get) == "function" and leaked == nil
    and getmetatable("") == false and require("cjson").array_mt.leaked == nil and #require("cjson").empty_array == 0
    and require("apisix.core").leaked == nil and rawget(require("apisix.core"), 1) == nil
leaked = true
return function(conf, ctx)
    held = held and ngx.req.get_headers().nothing == nil and ctx.nothing == nil and ctx.var.nothing == nil
    if held then return 201, {} end
    return 500
end
"#;

const TOKENS: &[&str] = &[
    "local", "a", "b", "=", "(", ")", "{", "}", "[", "]", ",", ".", ":", "..", "+", "-", "*", "/", "%", "^",
    "#", "==", "~=", "<", ">", "and", "or", "not", "nil", "true", "false", "if", "then", "else", "end", "while",
    "do", "for", "in", "repeat", "until", "function", "return", "break", "...", "0", "1", "-1", "2^31", "1e9",
    "0/0", "'x'", "''", "'%'", "'(.-)%1'", "[[\n]]", "ngx", "ctx", "conf", "_G", "string", "table", "math",
    "coroutine", "pcall", "error", "pairs", "ipairs", "next", "select", "type", "tostring", "tonumber",
    "setmetatable", "getmetatable", "rawset", "rawget", "require", "load", "unpack", "'cjson'", "'apisix.core'",
    "'resty.http'", "gsub", "rep", "format", "find", "concat", "insert", "sort", "create", "resume", "yield",
    "wrap", "say", "exit", "log", "var", "header", "req", "resp", "arg", "shared", "fuzz", "timer", "at", "re",
    "match", "set", "get", "incr", "status", "null", "ERR", "__index", "__gc", "__tostring", "__newindex", ";",
];
