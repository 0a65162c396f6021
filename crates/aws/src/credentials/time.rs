//! Points in time as AWS's services and tools write them.

/// Reads an ISO 8601 time (`2026-11-22T10:00:00Z`, `…+00:00`, with or without fractions; the
/// AWS CLI's SSO cache also writes `…UTC`) into seconds since 1970, rounded down.
///
/// A time without an offset is taken for UTC, as everything AWS writes is.
pub fn parse_time(text: &str) -> Option<u64> {
    let text = text.trim();
    let text = match text.strip_suffix("UTC") {
        Some(text) => format!("{text}Z"),
        None => text.to_owned(),
    };
    let timestamp: jiff::Timestamp = match text.parse() {
        Ok(timestamp) => timestamp,
        Err(_) => {
            let civil: jiff::civil::DateTime = text.parse().ok()?;
            civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()
        }
    };
    timestamp.as_second().try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_as_aws_writes_them() {
        let at = Some(1_795_341_600);
        for (text, expected) in [
            ("2026-11-22T10:00:00Z", at),
            ("2026-11-22T10:00:00.999Z", at),
            ("2026-11-22T10:00:00+00:00", at),
            ("2026-11-22T12:00:00+02:00", at),
            ("2026-11-22T10:00:00UTC", at),
            ("2026-11-22T10:00:00", at),
            (" 2026-11-22T10:00:00Z\n", at),
            ("1960-01-01T00:00:00Z", None),
            ("tomorrow", None),
            ("", None),
        ] {
            assert_eq!(parse_time(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = parse_time(&text);
        }

        #[test]
        fn what_is_written_is_read_again(seconds in 0_i64..100_000_000_000) {
            let text = jiff::Timestamp::from_second(seconds).unwrap().to_string();
            prop_assert_eq!(parse_time(&text), u64::try_from(seconds).ok());
        }
    }
}
