//! `csrf`: refuses requests that change something unless they show a token twice, in a cookie and in
//! a header, which pages of other sites cannot.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/csrf/>
//!
//! Tokens are those of APISIX, so that gateways of both kinds behind one name take each other's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::{Method, StatusCode};
use base64::Engine as _;
use ring::digest;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Number, Value, json};
use sluicegate_aws::Secret;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use tracing::warn;

use crate::auth::same_secret;
use crate::padding::BASE64;

/// The plugin, compiled.
pub struct Csrf {
    key: Secret,
    expires: i64,
    name: Box<str>,
    cookie: VarName,
}

impl Plugin for Csrf {
    const NAME: &'static str = "csrf";
    const PRIORITY: i32 = 2980;
    const PHASES: Phases = Phases::ACCESS.and(Phases::HEADER_FILTER);
    const SECRETS: &'static [&'static str] = &["key"];
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "key": {"description": "Signs the tokens.", "type": "string"},
                "expires": {
                    "description": "Seconds for which a token is good.",
                    "type": "integer",
                    "default": 7200,
                },
                "name": {
                    "description": "Name of the cookie and of the header.",
                    "type": "string",
                    "default": "apisix-csrf-token",
                },
            },
            "required": ["key"],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            key: config.key.into(),
            expires: config.expires,
            cookie: VarName::Cookie(config.name.as_str().into()),
            name: config.name.into(),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(&exchange.request.method) {
            return Ok(Flow::Continue);
        }
        Ok(match self.check(exchange) {
            Ok(()) => Flow::Continue,
            Err(message) => {
                let body = json!({"error_msg": message});
                Flow::Respond(Response::message(StatusCode::UNAUTHORIZED, &body))
            }
        })
    }

    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        let now = sluicegate_gateway::core::now();
        let mut random = [0; 8];
        exchange.core.random(&mut random);
        let token = self.token(seconds(now), u64::from_le_bytes(random));
        let until = match u64::try_from(self.expires) {
            Ok(later) => now.checked_add(Duration::from_secs(later)),
            Err(_) => now.checked_sub(Duration::from_secs(self.expires.unsigned_abs())),
        };
        let until = cookie_time(until.unwrap_or(now));
        let cookie = format!("{}={token};path=/;SameSite=Lax;Expires={until}", self.name);
        response.headers.append("Set-Cookie", cookie.as_bytes());
    }
}

impl Csrf {
    fn check(&self, exchange: &Exchange) -> Result<(), &'static str> {
        let header = exchange.request.headers.get(&self.name).filter(|token| !token.is_empty());
        let header = header.ok_or("no csrf token in headers")?;
        let cookie = exchange.var(&self.cookie);
        let cookie = cookie.as_ref().and_then(|value| value.to_bytes()).ok_or("no csrf cookie")?;
        if !same_secret(header, &cookie) {
            return Err("csrf token mismatch");
        }
        self.verify(&cookie, seconds(sluicegate_gateway::core::now())).map_err(|cause| {
            warn!(
                route = exchange.route_id(),
                client = %exchange.remote_addr,
                cause,
                "A CSRF token was refused."
            );
            "Failed to verify the csrf token signature"
        })
    }

    fn token(&self, now: i64, random: u64) -> String {
        // 14 digits, of which the last is not 0: a number that every JSON writer leaves as it is.
        let random = format!("0.{}{}", RANDOM_MIN + random / 9 % RANDOM_SPAN, random % 9 + 1);
        let sign = self.sign(&random, &now.to_string());
        BASE64.encode(format!("{{\"random\":{random},\"expires\":{now},\"sign\":\"{sign}\"}}"))
    }

    /// Did this key make the token, and not too long ago?
    fn verify(&self, token: &[u8], now: i64) -> Result<(), &'static str> {
        #[derive(Deserialize)]
        struct Token<'a> {
            // What was signed is this number's text: another gateway may write `1.2345e-05` where
            // this one would write `1.2345e-5`.
            #[serde(borrow)]
            random: &'a RawValue,
            expires: Number,
            sign: String,
        }
        let text = BASE64.decode(token).map_err(|_| "it is not base64")?;
        let token: Token<'_> = serde_json::from_slice(&text).map_err(|_| "it cannot be read")?;
        let made = token.expires.as_i64().ok_or("its time is none")?;
        if self.expires > 0 && now.saturating_sub(made) > self.expires {
            return Err("it has expired");
        }
        let random = token.random.get();
        serde_json::from_str::<Number>(random).map_err(|_| "it cannot be read")?;
        let sign = self.sign(random, &made.to_string());
        match same_secret(sign.as_bytes(), token.sign.as_bytes()) {
            true => Ok(()),
            false => Err("its signature is wrong"),
        }
    }

    fn sign(&self, random: &str, expires: &str) -> String {
        let key = self.key.expose();
        let text = format!("{{expires:{expires},random:{random},key:{key}}}");
        let sum = digest::digest(&digest::SHA256, text.as_bytes());
        sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A moment as nginx writes it for cookies: `Thu, 18-Nov-27 11:27:35 GMT`, with the whole year from
/// 2038 on.
fn cookie_time(time: SystemTime) -> String {
    let latest = UNIX_EPOCH + LATEST;
    let text = httpdate::fmt_http_date(time.clamp(UNIX_EPOCH, latest));
    let parts: Vec<&str> = text.split(' ').collect();
    let [weekday, day, month, year, clock, zone] = parts[..] else { return text };
    let year = match year.parse() {
        Ok(..=2037_u16) => &year[2..],
        _ => year,
    };
    format!("{weekday} {day}-{month}-{year} {clock} {zone}")
}

/// The plugin's configuration.
#[derive(Deserialize)]
pub struct Config {
    key: String,
    expires: i64,
    name: String,
}

const RANDOM_MIN: u64 = 1_000_000_000_000;
const RANDOM_SPAN: u64 = 9_000_000_000_000;

/// The year 9999 ends.
const LATEST: Duration = Duration::from_secs(253_402_300_799);

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;

    fn csrf(expires: i64) -> Csrf {
        let name = "apisix-csrf-token";
        let cookie = VarName::Cookie(name.into());
        Csrf { key: "userkey".to_owned().into(), expires, name: name.into(), cookie }
    }

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<Csrf>::check_schema(&json!({"key": "k"}));
    }

    #[test]
    fn a_token_is_good_for_its_key_and_its_time() {
        let token = csrf(60).token(1000, 1234);
        let changed = BASE64.encode(
            String::from_utf8_lossy(&BASE64.decode(&token).expect("it is base64"))
                .replace("\"expires\":1000", "\"expires\":1001"),
        );
        // Made by APISIX: t/plugin/csrf.t has it, with this key.
        let of_apisix = "eyJyYW5kb20iOjAuNDI5ODYzMTk3MTYxMzksInNpZ24iOiI0ODRlMDY4NTkxMWQ5NmJhMDc5YzQ1ZGI0OTE2NmZkYjQ0ODhjODVkNWQ0NmE1Y2FhM2UwMmFhZDliNjE5OTQ2IiwiZXhwaXJlcyI6MjY0MzExOTYyNH0=";
        // As APISIX makes them of small random numbers: Lua writes the exponent with two digits.
        let small = csrf(60).sign("1.2345e-05", "1000");
        let small =
            BASE64.encode(format!(r#"{{"random":1.2345e-05,"sign":"{small}","expires":1000}}"#));
        let text = csrf(60).sign("\"1\"", "1000");
        let text = BASE64.encode(format!(r#"{{"random":"1","sign":"{text}","expires":1000}}"#));
        let expired = Err("it has expired");
        let wrong = Err("its signature is wrong");
        for (token, expires, now, expected) in [
            (&*token, 60, 1000, Ok(())),
            (&token, 60, 1060, Ok(())),
            (&token, 60, 1061, expired),
            (&token, 0, i64::MAX, Ok(())),
            (&token, -1, i64::MAX, Ok(())),
            (&changed, 60, 1000, wrong),
            (&small, 60, 1000, Ok(())),
            (token.trim_end_matches('='), 60, 1000, Ok(())),
            (&text, 60, 1000, Err("it cannot be read")),
            (of_apisix, 60, 1000, Ok(())),
            (of_apisix, 60, 2_643_119_624 + 61, expired),
            ("!", 60, 1000, Err("it is not base64")),
            ("e30=", 60, 1000, Err("it cannot be read")),
            ("eyJyYW5kb20iOjEsImV4cGlyZXMiOiIxIiwic2lnbiI6IiJ9", 60, 1, Err("it cannot be read")),
        ] {
            assert_eq!(csrf(expires).verify(token.as_bytes(), now), expected, "{token} {now}");
        }
    }

    #[test]
    fn every_random_number_makes_a_number_that_is_written_as_it_was_read() {
        for random in [0, 1, 8, 9, u64::MAX, u64::MAX - 1, 8_999_999_999_999 * 9 + 8] {
            let token = csrf(60).token(1000, random);
            assert_eq!(csrf(60).verify(token.as_bytes(), 1000), Ok(()), "{random}");
        }
    }

    #[test]
    fn cookie_times_are_those_of_nginx() {
        for (seconds, text) in [
            (0, "Thu, 01-Jan-70 00:00:00 GMT"),
            (1_290_079_655, "Thu, 18-Nov-10 11:27:35 GMT"),
            (2_145_916_799, "Thu, 31-Dec-37 23:59:59 GMT"),
            (2_145_916_800, "Fri, 01-Jan-2038 00:00:00 GMT"),
            (u64::MAX >> 8, "Fri, 31-Dec-9999 23:59:59 GMT"),
        ] {
            let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            let time = time.unwrap_or(UNIX_EPOCH + LATEST);
            assert_eq!(cookie_time(time), text);
        }
    }

    #[test]
    fn a_request_that_changes_something_shows_its_token_twice() {
        let good = csrf(7200).token(seconds(sluicegate_gateway::core::now()), 5);
        for (method, header, cookie, error) in [
            ("GET", None, None, None),
            ("HEAD", None, None, None),
            ("OPTIONS", None, None, None),
            ("POST", Some(&*good), Some(&*good), None),
            ("POST", None, Some(&*good), Some("no csrf token in headers")),
            ("POST", Some(""), Some(&*good), Some("no csrf token in headers")),
            ("PUT", Some(&*good), None, Some("no csrf cookie")),
            ("DELETE", Some(&*good), Some("x"), Some("csrf token mismatch")),
            ("PATCH", Some("x"), Some("x"), Some("Failed to verify the csrf token signature")),
        ] {
            let cookie = cookie.map(|token| format!("a=b; apisix-csrf-token={token}"));
            let ran = PluginTest::<Csrf>::new()
                .config(json!({"key": "userkey"}))
                .request(method, "/")
                .request_header("apisix-csrf-token", header)
                .request_header("Cookie", cookie.as_deref())
                .run();
            let set = ran.response.header("set-cookie").expect("every answer brings a token");
            let token = set.strip_prefix("apisix-csrf-token=").expect("it has its name");
            let (token, rest) = token.split_once(';').expect("attributes follow");
            assert!(csrf(60).verify(token.as_bytes(), 0).is_ok(), "{set}");
            assert!(rest.starts_with("path=/;SameSite=Lax;Expires="), "{set}");
            match error {
                None => assert_eq!(ran.status, 200, "{method}"),
                Some(error) => {
                    assert_eq!(ran.status, 401);
                    assert_eq!(ran.response.json(), json!({"error_msg": error}));
                }
            }
        }
    }
}
