//! Sizes and times as nginx writes them: `16k`, `1m`, `60s`, `1h 30m`.
//!
//! <https://nginx.org/en/docs/syntax.html>

use std::time::Duration;

/// The longest time a key may hold. Longer ones are typing errors, and the cap keeps sums of times
/// far from overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Bytes from `1024`, `16k`, `1m` or `2g` (either case). `None` for anything else, or more than
/// fits.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1 << 10),
        b'm' | b'M' => (&text[..text.len() - 1], 1 << 20),
        b'g' | b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    number(digits)?.checked_mul(factor)
}

/// A time from `500ms`, `60s`, `1h 30m` or a bare number of seconds. Units run from large to small,
/// each at most once. `None` for anything else, or more than [`DURATION_MAX`].
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total_ms = 0u64;
    let mut previous_ms = u64::MAX;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (digits, tail) = rest.split_at(digits_end);
        let unit_end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_ms = match unit {
            "ms" => 1,
            "s" | "" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            _ => return None,
        };
        // A bare number means seconds, and only the last part may be bare.
        if unit_ms >= previous_ms || (unit.is_empty() && !tail.is_empty()) {
            return None;
        }
        previous_ms = unit_ms;
        total_ms = number(digits)?.checked_mul(unit_ms)?.checked_add(total_ms)?;
        rest = tail.trim_start();
    }
    Some(Duration::from_millis(total_ms)).filter(|time| *time <= DURATION_MAX)
}

fn number(digits: &str) -> Option<u64> {
    // `str::parse` would take a leading `+` too.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_nginx_reads_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("16384", Some(16_384)),
            ("16k", Some(16_384)),
            ("16K", Some(16_384)),
            ("1m", Some(1 << 20)),
            ("2M", Some(2 << 20)),
            ("1g", Some(1 << 30)),
            ("1G", Some(1 << 30)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("17179869183g", Some(17_179_869_183 << 30)),
            ("17179869184g", None),
            ("", None),
            ("k", None),
            ("-1", None),
            ("+1", None),
            ("1.5m", None),
            ("1kb", None),
            ("1 k", None),
            ("1t", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn times_are_read_as_nginx_reads_them() {
        for (text, ms) in [
            ("0", Some(0)),
            ("60", Some(60_000)),
            ("60s", Some(60_000)),
            ("240s", Some(240_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("1d", Some(86_400_000)),
            ("1w", Some(604_800_000)),
            ("1h30m", Some(5_400_000)),
            ("1h 30m", Some(5_400_000)),
            ("1m 30", Some(90_000)),
            ("1s500ms", Some(1_500)),
            ("365d", Some(365 * 86_400_000)),
            ("365d 1ms", None),
            ("366d", None),
            ("18446744073709551615d", None),
            ("30m 1h", None),
            ("1m 1m", None),
            ("30 1m", None),
            ("", None),
            (" ", None),
            ("s", None),
            ("1x", None),
            ("-1s", None),
            ("1.5s", None),
            ("60s!", None),
        ] {
            assert_eq!(parse_duration(text), ms.map(Duration::from_millis), "{text:?}");
        }
    }
}
