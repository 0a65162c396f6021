//! JSON to and from Lua, as cjson has it.

use mlua::{Lua, MultiValue, Table, Value};
use serde_json::Value as Json;

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
    #[error(transparent)]
    Lua(#[from] mlua::Error),
}

/// What marks tables: cjson's light userdata and metatables.
pub(crate) struct Marks {
    pub(crate) null: Value,
    pub(crate) empty_array: Value,
    pub(crate) array_mt: Table,
    pub(crate) empty_array_mt: Table,
    /// Keys in their order, for comparisons.
    pub(crate) sorted: bool,
}

/// A Lua value as JSON text.
pub(crate) fn encode(value: &Value, marks: &Marks) -> Result<Vec<u8>, JsonError> {
    let mut out = Vec::new();
    write(value, marks, 0, &mut out)?;
    Ok(out)
}

fn write(value: &Value, marks: &Marks, depth: usize, out: &mut Vec<u8>) -> Result<(), JsonError> {
    if *value == marks.null {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    if *value == marks.empty_array {
        out.extend_from_slice(b"[]");
        return Ok(());
    }
    match value {
        Value::Nil => out.extend_from_slice(b"null"),
        Value::Boolean(true) => out.extend_from_slice(b"true"),
        Value::Boolean(false) => out.extend_from_slice(b"false"),
        Value::Integer(n) => out.extend_from_slice(n.to_string().as_bytes()),
        Value::Number(n) if n.is_finite() => out.extend_from_slice(number(*n).as_bytes()),
        Value::Number(_) => return Err(JsonError::Number),
        Value::String(text) => string(&text.as_bytes(), out),
        Value::Table(table) => return write_table(table, marks, depth + 1, out),
        other => return Err(JsonError::Type(other.type_name())),
    }
    Ok(())
}

fn write_table(
    table: &Table,
    marks: &Marks,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), JsonError> {
    if depth > DEPTH_MAX {
        return Err(JsonError::Depth);
    }
    let meta = table.metatable();
    let marked = |mark: &Table| meta.as_ref().is_some_and(|meta| meta == mark);
    let as_array = marked(&marks.array_mt);
    let (mut count, mut max, mut numbers) = (0_usize, 0_usize, true);
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        count += 1;
        match &key {
            Value::Integer(n) if *n > 0 => max = max.max(usize::try_from(*n).unwrap_or(usize::MAX)),
            Value::Number(n) if *n > 0.0 && n.fract() == 0.0 => max = max.max(*n as usize),
            _ => numbers = false,
        }
        pairs.push((key, value));
    }
    let empty_list = count == 0 && (as_array || marked(&marks.empty_array_mt));
    if as_array || empty_list || (numbers && count > 0) {
        if max > SPARSE_SAFE && max > count.saturating_mul(SPARSE_RATIO) {
            return Err(JsonError::Sparse);
        }
        out.push(b'[');
        for at in 1..=max {
            if at > 1 {
                out.push(b',');
            }
            write(&table.raw_get::<Value>(at)?, marks, depth, out)?;
        }
        out.push(b']');
        return Ok(());
    }
    let mut fields = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let key = match key {
            Value::String(text) => text.as_bytes().to_vec(),
            Value::Integer(n) => n.to_string().into_bytes(),
            Value::Number(n) => number(n).into_bytes(),
            _ => return Err(JsonError::Key),
        };
        fields.push((key, value));
    }
    if marks.sorted {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
    }
    out.push(b'{');
    for (at, (key, value)) in fields.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        string(key, out);
        out.push(b':');
        write(value, marks, depth, out)?;
    }
    out.push(b'}');
    Ok(())
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

fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
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
    out.push(b'"');
}

/// JSON text as a Lua value, or what is wrong with it.
pub(crate) fn decode(lua: &Lua, text: &[u8], null: &Value) -> mlua::Result<MultiValue> {
    let parsed: Result<Json, _> = match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_str(&String::from_utf8_lossy(text)),
    };
    let results = match parsed {
        Ok(json) => vec![to_lua(lua, &json, null, None)?],
        Err(error) => {
            let text = format!("Expected value but found invalid token: {error}");
            vec![Value::Nil, Value::String(lua.create_string(text)?)]
        }
    };
    Ok(MultiValue::from_vec(results))
}

/// JSON as a Lua value.
pub(crate) fn to_lua(
    lua: &Lua,
    json: &Json,
    null: &Value,
    arrays: Option<&Table>,
) -> mlua::Result<Value> {
    Ok(match json {
        Json::Null => null.clone(),
        Json::Bool(flag) => Value::Boolean(*flag),
        Json::Number(n) => Value::Number(n.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Value::String(lua.create_string(text)?),
        Json::Array(list) => {
            let table = lua.create_table_with_capacity(list.len(), 0)?;
            for (at, item) in list.iter().enumerate() {
                table.raw_set(at + 1, to_lua(lua, item, null, arrays)?)?;
            }
            if let Some(meta) = arrays {
                table.set_metatable(Some(meta.clone()))?;
            }
            Value::Table(table)
        }
        Json::Object(map) => {
            let table = lua.create_table_with_capacity(0, map.len())?;
            for (key, item) in map {
                table.raw_set(key.as_str(), to_lua(lua, item, null, arrays)?)?;
            }
            Value::Table(table)
        }
    })
}

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
