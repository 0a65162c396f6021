//! The event of Kong's aws-lambda plugin.
//!
//! Left out: arguments of multipart bodies, which Kong reads from their parts; such a body comes
//! whole, in base64, with `request_body_args` empty.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::body::essence;
use super::fields::{Arguments, Headers};
use super::json::{Object, Sink, write_joined};
use super::{EventEncoder, EventRequest, KongForward, write_body};

pub(super) fn write<S: Sink>(
    encoder: &EventEncoder,
    request: &EventRequest<'_>,
    forward: KongForward,
    out: &mut S,
) {
    let headers = Headers::of(request);
    if !(forward.method || forward.uri || forward.headers || forward.body) {
        let body = BodyArguments::read(&headers, request.body);
        let arguments = Arguments::decoded(request.query);
        if let BodyArguments::List { text, items } = &body
            && arguments.is_empty()
            && !items.is_empty()
        {
            return out.raw(text.as_bytes());
        }
        let mut event = Object::open(out);
        arguments.write_lua(&mut event, |name| body.has(name));
        body.write_into(&mut event);
        return event.close();
    }
    let mut event = Object::open(out);
    if forward.method {
        event.text("request_method", request.method);
    }
    if forward.uri {
        let path = request.path.as_bytes();
        let query = (!request.query.is_empty()).then_some(request.query.as_bytes());
        write_joined(std::iter::once(path).chain(query), b"?", event.name("request_uri"));
        let mut arguments = event.object("request_uri_args");
        Arguments::decoded(request.query).write_lua(&mut arguments, |_| false);
        arguments.close();
    }
    if forward.headers {
        headers.write_one_or_all(event.name("request_headers"));
    }
    if forward.body {
        let base64 = encoder.body.is_base64(&headers, request);
        write_body(request.body, base64, event.name("request_body"));
        match BodyArguments::read(&headers, request.body) {
            BodyArguments::Unreadable => {}
            BodyArguments::List { text, .. } => {
                event.name("request_body_args").raw(text.as_bytes());
            }
            read => {
                let mut arguments = event.object("request_body_args");
                read.write_into(&mut arguments);
                arguments.close();
            }
        }
        if base64 {
            event.bool("request_body_base64", true);
        }
    }
    event.close();
}

/// What a body says by name.
enum BodyArguments<'a> {
    /// It is of no type that has names.
    None,
    /// It says that it is JSON, and is neither an object nor an array.
    Unreadable,
    /// An array: in Lua a table like any other, its names 1, 2, 3…
    List {
        text: &'a str,
        items: Vec<&'a RawValue>,
    },
    Form(Box<Arguments<'a>>, HashSet<Vec<u8>>),
    Json(Members<'a>),
}

impl<'a> BodyArguments<'a> {
    fn read(headers: &Headers<'_>, body: &'a [u8]) -> Self {
        let media = headers.first("content-type").map(essence).unwrap_or_default();
        let Ok(text) = std::str::from_utf8(body) else { return Self::None };
        if media.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
            let form = Arguments::decoded(text);
            let names = form.names().map(<[u8]>::to_vec).collect();
            Self::Form(Box::new(form), names)
        } else if media.eq_ignore_ascii_case(b"application/json") {
            let text = text.trim_matches([' ', '\t', '\r', '\n']);
            if text.starts_with('[') {
                let items = serde_json::from_str(text);
                return items.map_or(Self::Unreadable, |items| Self::List { text, items });
            }
            let mut json = serde_json::Deserializer::from_str(text);
            let members = json.deserialize_map(MembersVisitor);
            match (members, json.end()) {
                (Ok(members), Ok(())) => Self::Json(members),
                _ => Self::Unreadable,
            }
        } else {
            Self::None
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        match self {
            Self::None | Self::Unreadable => false,
            Self::List { items, .. } => {
                let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                number.is_some_and(|number: usize| {
                    (1..=items.len()).contains(&number)
                        && name[0].is_ascii_digit()
                        && name[0] != b'0'
                })
            }
            Self::Form(_, names) => names.contains(name),
            Self::Json(members) => {
                std::str::from_utf8(name).is_ok_and(|name| members.places.contains_key(name))
            }
        }
    }

    fn write_into<S: Sink>(&self, object: &mut Object<'_, S>) {
        match self {
            Self::None | Self::Unreadable => {}
            Self::List { items, .. } => {
                for (number, value) in (1..).zip(items) {
                    let mut name = itoa::Buffer::new();
                    let out = object.any_name(name.format::<usize>(number).as_bytes());
                    out.raw(value.get().as_bytes());
                }
            }
            Self::Form(form, _) => form.write_lua(object, |_| false),
            Self::Json(members) => {
                for (name, value) in &members.list {
                    object.any_name(name.as_bytes()).raw(value.get().as_bytes());
                }
            }
        }
    }
}

/// The members of an object, the last of each name, values as they stand.
#[derive(Default)]
struct Members<'a> {
    list: Vec<(Cow<'a, str>, &'a RawValue)>,
    places: HashMap<Cow<'a, str>, usize>,
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Members::default();
        while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &RawValue>()? {
            match members.places.get(&name) {
                Some(&place) => members.list[place].1 = value,
                None => {
                    members.places.insert(name.clone(), members.list.len());
                    members.list.push((name, value));
                }
            }
        }
        Ok(members)
    }
}
