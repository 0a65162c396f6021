//! Times as nginx writes them into logs, in the machine's time zone.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;

fn local(time: SystemTime) -> jiff::Zoned {
    let stamp = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    stamp.to_zoned(TimeZone::system())
}

/// `22/Nov/2026:15:04:05 +0000`
pub fn common_log(time: SystemTime) -> String {
    local(time).strftime("%d/%b/%Y:%H:%M:%S %z").to_string()
}

/// `2026-11-22T15:04:05+00:00`
pub fn iso8601(time: SystemTime) -> String {
    local(time).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// `2026/11/22 15:04:05`, as nginx's error log has it.
pub fn error_log(time: SystemTime) -> String {
    local(time).strftime("%Y/%m/%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_have_the_shape_of_nginx() {
        let at = UNIX_EPOCH + Duration::from_secs(1_780_000_000);
        let shape = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect()
        };
        assert_eq!(shape(&iso8601(at)).replace('-', "+"), "9999+99+99T99:99:99+99:99");
        assert!(shape(&common_log(at)).starts_with("99/"), "{}", common_log(at));
        assert_eq!(common_log(at).len(), "22/Nov/2026:15:04:05 +0000".len());
    }
}
