//! Lua values that Rust keeps while a request or a configuration lasts.
//!
//! A reference of mlua takes a slot of a stack that LuaJIT ends at 8000, and one more panics. What is
//! kept per request, per configuration or per timer is too much for it: such values stand in one table
//! of Lua, under numbers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use mlua::{FromLua, IntoLua, Lua, Table, WeakLua};

/// The values that are kept in one Lua state.
pub(crate) struct Keep {
    lua: WeakLua,
    table: Table,
    /// Numbers that are free again.
    free: RefCell<Vec<usize>>,
    last: Cell<usize>,
}

impl Keep {
    pub(crate) fn new(lua: &Lua) -> mlua::Result<Rc<Self>> {
        let table = lua.create_table()?;
        Ok(Rc::new(Self { lua: lua.weak(), table, free: RefCell::default(), last: Cell::new(0) }))
    }

    /// Keeps a value until the result is dropped.
    pub(crate) fn put(self: &Rc<Self>, value: impl IntoLua) -> mlua::Result<Kept> {
        let kept = self.place();
        self.table.raw_set(kept.at, value)?;
        Ok(kept)
    }

    /// A place for a value that Lua itself puts there.
    pub(crate) fn place(self: &Rc<Self>) -> Kept {
        let at = self.free.borrow_mut().pop().unwrap_or_else(|| {
            self.last.set(self.last.get() + 1);
            self.last.get()
        });
        Kept { keep: self.clone(), at }
    }

    /// The values by their numbers, for Lua's own half.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }
}

/// One value.
pub(crate) struct Kept {
    keep: Rc<Keep>,
    at: usize,
}

impl Kept {
    /// Its number.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The value.
    pub(crate) fn get<V: FromLua>(&self) -> mlua::Result<V> {
        self.keep.table.raw_get(self.at)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.keep.lua.try_upgrade().is_some() {
            // Something false, not nil: the table stays a list.
            let _ = self.keep.table.raw_set(self.at, false);
            self.keep.free.borrow_mut().push(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use mlua::Value;

    use super::*;

    #[test]
    fn more_values_are_kept_than_references_have_room() {
        let lua = Lua::new();
        let keep = Keep::new(&lua).unwrap();
        let all: Vec<Kept> = (0..50_000)
            .map(|n| keep.put(lua.create_string(n.to_string()).unwrap()).unwrap())
            .collect();
        assert_eq!(all[40_000].get::<String>().unwrap(), "40000");
        drop(all);
        let again = keep.put("again").unwrap();
        assert_eq!(keep.last.get(), 50_000, "numbers are used again");
        assert_eq!(again.get::<String>().unwrap(), "again");
        drop(lua);
        drop(again);
        let gone = Keep::new(&Lua::new()).unwrap();
        assert!(gone.lua.try_upgrade().is_none());
        let _ = Value::Nil;
    }
}
