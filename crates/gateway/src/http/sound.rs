//! Which bytes may stand in a field of a head. Values are looked at on every field that a plugin sets,
//! so by words of eight bytes.

/// Can a field of this name stand in a head (no control character, space or colon)?
pub(super) const fn is_sound_name(name: &[u8]) -> bool {
    let mut at = 0;
    while at < name.len() {
        if name[at] <= b' ' || name[at] == b':' || name[at] == 0x7f {
            return false;
        }
        at += 1;
    }
    !name.is_empty() && name.len() <= u16::MAX as usize
}

/// [`is_sound_name`], of a name that is seen for the first time with a request.
pub(super) fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= u16::MAX as usize
        && !any_word(name, |w| below(w, b' ' + 1) | has(w, b':') | has(w, 0x7f))
}

/// Can a field have this value (no CR, LF or NUL, which would split the message)?
pub(super) fn is_value(value: &[u8]) -> bool {
    !any_word(value, |w| below(w, b' '))
        || !any_word(value, |w| has(w, b'\r') | has(w, b'\n') | has(w, 0))
}

/// Does `bad`, which looks at eight bytes at once, find anything in these? It sees bytes twice where
/// their number is none of eights, and letters where there are too few.
#[inline]
fn any_word(bytes: &[u8], bad: impl Fn(u64) -> u64) -> bool {
    let found = match (bytes.last_chunk(), bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (Some(last), ..) => {
            let (words, _) = bytes.as_chunks();
            words.iter().fold(bad(u64::from_le_bytes(*last)), |found, word| {
                found | bad(u64::from_le_bytes(*word))
            })
        }
        (None, Some(first), Some(last)) => {
            let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
            bad(u64::from(first) | u64::from(last) << 32)
        }
        _ => match bytes {
            [] => 0,
            [first, ..] => {
                let [middle, last] = [bytes.len() / 2, bytes.len() - 1].map(|at| bytes[at]);
                bad(u64::from_le_bytes([*first, middle, last, b'a', b'a', b'a', b'a', b'a']))
            }
        },
    };
    found != 0
}

/// Not nothing when one of eight bytes is this one.
#[inline]
const fn has(word: u64, byte: u8) -> u64 {
    let word = word ^ (EACH * byte as u64);
    word.wrapping_sub(EACH) & !word & (EACH << 7)
}

/// Not nothing when one of eight bytes is a character before this one, which is ASCII.
#[inline]
const fn below(word: u64, byte: u8) -> u64 {
    word.wrapping_sub(EACH * byte as u64) & !word & (EACH << 7)
}

/// One in each byte of a word.
const EACH: u64 = 0x0101_0101_0101_0101;
