//! Memory for small bodies held whole, used again on its thread instead of given back to the
//! allocator, which has no quick way for more than 1 KiB.

use std::cell::RefCell;

use bytes::Bytes;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A copy of `bytes` in such memory.
pub(crate) fn copy(bytes: &[u8]) -> Bytes {
    let mut memory = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    memory.extend_from_slice(bytes);
    Bytes::from_owner(Lent(memory))
}

struct Lent(Vec<u8>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut memory = std::mem::take(&mut self.0);
        memory.clear();
        // At the end of a thread there is nowhere to put it.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < KEPT && memory.capacity() <= KEPT_BYTES {
                spare.push(memory);
            }
        });
    }
}

/// Pieces of memory a thread keeps, and how large one may be.
const KEPT: usize = 64;
const KEPT_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_bytes_and_its_memory_serves_the_next() {
        let first = copy(b"abc");
        let place = first.as_ptr();
        let clone = first.clone();
        drop(first);
        assert_eq!((&clone[..], clone.as_ptr()), (&b"abc"[..], place));
        drop(clone);
        let second = copy(b"xy");
        assert_eq!((&second[..], second.as_ptr()), (&b"xy"[..], place));
    }
}
