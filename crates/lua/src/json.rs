//! JSON to and from Lua, as cjson has it.
//!
//! Neither way runs instructions that the hook counts, so every value and every byte is charged to the
//! script's [`Budget`]: tables that hold each other name 2^n values with n tables.

use std::borrow::Cow;
use std::cell::RefCell;

use mlua::{Lua, MultiValue, Table, Value};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use crate::limits::{Budget, TEXT_BYTES_MAX};

/// Why a value is no JSON.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JsonError {
    #[error("Cannot serialise {0}: type not supported")]
    Type(&'static str),
    #[error("Cannot serialise number: must not be NaN or Infinity")]
    Number,
    #[error("Cannot serialise table: table key must be a number or string")]
    Key,
    #[error("Cannot serialise table: excessively sparse array")]
    Sparse,
    #[error("Cannot serialise, excessive depth ({DEPTH_MAX})")]
    Depth,
    #[error("Cannot serialise, more than {TEXT_BYTES_MAX} bytes")]
    Long,
    #[error(transparent)]
    Lua(#[from] mlua::Error),
}

/// What marks tables: cjson's light userdata and metatables.
pub(crate) struct Marks {
    pub(crate) null: Value,
    pub(crate) empty_array: Value,
    pub(crate) array_mt: Table,
    pub(crate) empty_array_mt: Table,
}

/// A Lua value as JSON text. `sorted`: keys in their order, for comparisons.
pub(crate) fn encode(
    value: &Value,
    marks: &Marks,
    sorted: bool,
    budget: &Budget,
) -> Result<Vec<u8>, JsonError> {
    let mut writer = Writer { marks, sorted, budget, out: Vec::new(), values: 0, paid: 0 };
    writer.write(value, 0)?;
    writer.pay()?;
    Ok(writer.out)
}

struct Writer<'a> {
    marks: &'a Marks,
    sorted: bool,
    budget: &'a Budget,
    out: Vec<u8>,
    /// Values and keys looked at that are not paid for yet.
    values: usize,
    /// Bytes of `out` that are paid for.
    paid: usize,
}

impl Writer<'_> {
    fn pay(&mut self) -> Result<(), JsonError> {
        if self.out.len() > TEXT_BYTES_MAX {
            return Err(JsonError::Long);
        }
        let bytes = self.out.len() - self.paid;
        self.budget.charge(self.values.saturating_mul(VALUE_COST) + bytes)?;
        (self.values, self.paid) = (0, self.out.len());
        Ok(())
    }

    fn count(&mut self) -> Result<(), JsonError> {
        self.values += 1;
        if self.values >= PAID_TOGETHER { self.pay() } else { Ok(()) }
    }

    fn write(&mut self, value: &Value, depth: usize) -> Result<(), JsonError> {
        self.count()?;
        if *value == self.marks.null {
            self.out.extend_from_slice(b"null");
            return Ok(());
        }
        if *value == self.marks.empty_array {
            self.out.extend_from_slice(b"[]");
            return Ok(());
        }
        let out = &mut self.out;
        match value {
            Value::Nil => out.extend_from_slice(b"null"),
            Value::Boolean(true) => out.extend_from_slice(b"true"),
            Value::Boolean(false) => out.extend_from_slice(b"false"),
            Value::Integer(n) => out.extend_from_slice(n.to_string().as_bytes()),
            Value::Number(n) if n.is_finite() => out.extend_from_slice(number(*n).as_bytes()),
            Value::Number(_) => return Err(JsonError::Number),
            Value::String(text) => return self.string(&text.as_bytes()),
            Value::Table(table) => return self.table(table, depth + 1),
            other => return Err(JsonError::Type(other.type_name())),
        }
        Ok(())
    }

    fn table(&mut self, table: &Table, depth: usize) -> Result<(), JsonError> {
        if depth > DEPTH_MAX {
            return Err(JsonError::Depth);
        }
        let meta = table.metatable();
        let marked = |mark: &Table| meta.as_ref().is_some_and(|meta| meta == mark);
        let as_array = marked(&self.marks.array_mt);
        let (mut count, mut max, mut numbers) = (0_usize, 0_usize, true);
        // No more than one pair at a time: references from Rust have few places.
        for pair in table.pairs::<Value, Value>() {
            self.count()?;
            let (key, _) = pair?;
            count += 1;
            match &key {
                Value::Integer(n) if *n > 0 => {
                    max = max.max(usize::try_from(*n).unwrap_or(usize::MAX));
                }
                Value::Number(n) if *n > 0.0 && n.fract() == 0.0 => max = max.max(*n as usize),
                _ => numbers = false,
            }
        }
        let empty_list = count == 0 && (as_array || marked(&self.marks.empty_array_mt));
        if as_array || empty_list || (numbers && count > 0) {
            if max > SPARSE_SAFE && max > count.saturating_mul(SPARSE_RATIO) {
                return Err(JsonError::Sparse);
            }
            self.out.push(b'[');
            for at in 1..=max {
                if at > 1 {
                    self.out.push(b',');
                }
                self.write(&table.raw_get::<Value>(at)?, depth)?;
            }
            self.out.push(b']');
            return Ok(());
        }
        self.out.push(b'{');
        let mut first = true;
        if self.sorted {
            let mut keys = Vec::with_capacity(count);
            for pair in table.pairs::<Value, Value>() {
                keys.push(Key::of(&pair?.0)?);
                self.count()?;
            }
            keys.sort_by_cached_key(Key::text);
            for key in keys {
                let value = match &key {
                    Key::Text(text) => table.raw_get::<Value>(mlua::BString::from(&text[..]))?,
                    Key::Number(n) => table.raw_get::<Value>(*n)?,
                };
                self.field(&mut first, &key, &value, depth)?;
            }
        } else {
            for pair in table.pairs::<Value, Value>() {
                let (key, value) = pair?;
                self.field(&mut first, &Key::of(&key)?, &value, depth)?;
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    fn field(
        &mut self,
        first: &mut bool,
        key: &Key,
        value: &Value,
        depth: usize,
    ) -> Result<(), JsonError> {
        if !std::mem::take(first) {
            self.out.push(b',');
        }
        self.string(&key.text())?;
        self.out.push(b':');
        self.write(value, depth)
    }

    fn string(&mut self, text: &[u8]) -> Result<(), JsonError> {
        self.out.push(b'"');
        for piece in text.chunks(PIECE_BYTES) {
            escape(piece, &mut self.out);
            if self.out.len() - self.paid >= PIECE_BYTES {
                self.pay()?;
            }
        }
        self.out.push(b'"');
        Ok(())
    }
}

/// A key of a table that becomes an object.
enum Key {
    Text(Vec<u8>),
    Number(f64),
}

impl Key {
    fn of(key: &Value) -> Result<Self, JsonError> {
        Ok(match key {
            Value::String(text) => Self::Text(text.as_bytes().to_vec()),
            Value::Integer(n) => Self::Number(*n as f64),
            Value::Number(n) => Self::Number(*n),
            _ => return Err(JsonError::Key),
        })
    }

    fn text(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(n) => number(*n).into_bytes(),
        }
    }
}

/// A number with up to 14 digits, as Lua writes it.
pub(crate) fn number(n: f64) -> String {
    if n.fract() == 0.0 && n.abs() < 1e15 {
        return if n == 0.0 { "0".to_owned() } else { format!("{n:.0}") };
    }
    let text = format!("{n:.13e}");
    // Back from the exponent form, without the zeros behind.
    let short: f64 = text.parse().unwrap_or(n);
    let plain = format!("{short}");
    if plain.len() <= 22 { plain } else { format!("{short:e}") }
}

fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'/' => out.extend_from_slice(b"\\/"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            0..=0x1f | 0x7f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            byte => out.push(byte),
        }
    }
}

/// JSON text as a Lua value, or what is wrong with it.
///
/// The values are made in Lua as they are read: all at once they would take many times the memory of
/// the text, where nothing counts it.
pub(crate) fn decode(lua: &Lua, text: &[u8], null: &Value) -> mlua::Result<MultiValue> {
    let text = String::from_utf8_lossy(text);
    let failed = RefCell::default();
    let seed = Seed { lua, null, failed: &failed };
    let mut reader = serde_json::Deserializer::from_str(&text);
    let read = seed.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    if let Some(error) = failed.take() {
        return Err(error);
    }
    let results = match read {
        Ok(value) => vec![value],
        Err(error) => {
            let text = format!("Expected value but found invalid token: {error}");
            vec![Value::Nil, Value::String(lua.create_string(text)?)]
        }
    };
    Ok(MultiValue::from_vec(results))
}

/// Makes Lua values of what a parser finds.
#[derive(Clone, Copy)]
struct Seed<'a> {
    lua: &'a Lua,
    null: &'a Value,
    /// Why Lua could not make one.
    failed: &'a RefCell<Option<mlua::Error>>,
}

impl Seed<'_> {
    fn made<T, E: serde::de::Error>(&self, made: mlua::Result<T>) -> Result<T, E> {
        made.map_err(|error| {
            self.failed.replace(Some(error));
            E::custom("Lua has no room for it")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(self.null.clone())
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Boolean(flag))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Number(n as f64))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(Value::Number(n as f64))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(Value::Number(n))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.made(self.lua.create_string(text)).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let table = self.made(self.lua.create_table())?;
        let mut at = 0;
        while let Some(item) = items.next_element_seed(self)? {
            at += 1;
            self.made(table.raw_set(at, item))?;
        }
        Ok(Value::Table(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let table = self.made(self.lua.create_table())?;
        while let Some(key) = fields.next_key::<Cow<'de, str>>()? {
            let value = fields.next_value_seed(self)?;
            self.made(table.raw_set(&*key, value))?;
        }
        Ok(Value::Table(table))
    }
}

/// JSON as a Lua value.
pub(crate) fn to_lua(lua: &Lua, json: &Json, null: &Value) -> mlua::Result<Value> {
    Ok(match json {
        Json::Null => null.clone(),
        Json::Bool(flag) => Value::Boolean(*flag),
        Json::Number(n) => Value::Number(n.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Value::String(lua.create_string(text)?),
        Json::Array(list) => {
            let table = lua.create_table_with_capacity(list.len(), 0)?;
            for (at, item) in list.iter().enumerate() {
                table.raw_set(at + 1, to_lua(lua, item, null)?)?;
            }
            Value::Table(table)
        }
        Json::Object(map) => {
            let table = lua.create_table_with_capacity(0, map.len())?;
            for (key, item) in map {
                table.raw_set(key.as_str(), to_lua(lua, item, null)?)?;
            }
            Value::Table(table)
        }
    })
}

/// What a value costs besides its bytes: as much as this many of them.
const VALUE_COST: usize = 64;

/// Values after which the script pays, and bytes.
const PAID_TOGETHER: usize = 64;
const PIECE_BYTES: usize = 4096;

/// Nested tables. cjson takes 1000; each costs of the thread's stack here.
const DEPTH_MAX: usize = 128;

/// An array with more holes than values is refused above this length, as in cjson.
const SPARSE_SAFE: usize = 10;
const SPARSE_RATIO: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_lua_writes_them() {
        for (n, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-12.0, "-12"),
            (0.5, "0.5"),
            (0.1 + 0.2, "0.3"),
            (1e14, "100000000000000"),
            (1e20, "100000000000000000000"),
            (1e300, "1e300"),
        ] {
            assert_eq!(number(n), text);
        }
    }
}
