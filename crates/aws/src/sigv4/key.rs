//! Time stamps and the signing key that holds for one day.

use ring::hmac;

use super::signer::Credentials;

/// A moment as SigV4 writes it, `20150830T123600Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    text: [u8; 16],
    /// Days since 1970-01-01.
    pub(crate) day: u64,
}

impl Stamp {
    /// The moment `unix_seconds` after 1970; later than the year 9999 stays in its last second.
    pub(crate) fn at(unix_seconds: u64) -> Self {
        let seconds = unix_seconds.min(LAST_SECOND);
        let (day, of_day) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
        let (year, month, date) = civil(day);
        let mut text = *b"00000000T000000Z";
        two_digits(&mut text, 0, year / 100);
        two_digits(&mut text, 2, year % 100);
        two_digits(&mut text, 4, month);
        two_digits(&mut text, 6, date);
        two_digits(&mut text, 9, of_day / 3600);
        two_digits(&mut text, 11, of_day / 60 % 60);
        two_digits(&mut text, 13, of_day % 60);
        Self { text, day }
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        &self.text
    }

    pub(crate) fn date(&self) -> &str {
        std::str::from_utf8(&self.text[..8]).expect("a stamp is ASCII")
    }
}

/// What one day's signatures share.
pub(crate) struct DayKey {
    pub(crate) day: u64,
    /// The derived key, ready to sign.
    pub(crate) key: hmac::Key,
    /// `20150830/us-east-1/execute-api/aws4_request`.
    pub(crate) scope: String,
    /// The authorization header up to and including `SignedHeaders=`.
    pub(crate) authorization_head: String,
}

impl DayKey {
    pub(crate) fn derive(
        credentials: &Credentials,
        region: &str,
        service: &str,
        stamp: &Stamp,
    ) -> Self {
        let mut seed = Vec::with_capacity(4 + credentials.secret_key.expose().len());
        seed.extend_from_slice(b"AWS4");
        seed.extend_from_slice(credentials.secret_key.expose().as_bytes());
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, &seed);
        seed.fill(0);
        for part in [stamp.date(), region, service, TERMINATOR] {
            let derived = hmac::sign(&key, part.as_bytes());
            key = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        }
        let scope = format!("{}/{region}/{service}/{TERMINATOR}", stamp.date());
        let authorization_head =
            format!("{ALGORITHM} Credential={}/{scope}, SignedHeaders=", credentials.access_key);
        Self { day: stamp.day, key, scope, authorization_head }
    }
}

pub(crate) const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
const DAY_SECONDS: u64 = 86_400;
/// 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

/// Year, month and day of the month of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(day: u64) -> (u64, u64, u64) {
    // Counted in eras of 400 years (146097 days) whose years start in March, so that the leap day
    // is a year's last.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let january_on = month >= 10;
    let month = if january_on { month - 9 } else { month + 3 };
    (year + era * 400 + u64::from(january_on), month, date)
}

fn two_digits(text: &mut [u8; 16], at: usize, number: u64) {
    text[at] = b'0' + (number / 10 % 10) as u8;
    text[at + 1] = b'0' + (number % 10) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_the_calendar() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (951_868_800, "20000301T000000Z"),
            (1_440_938_160, "20150830T123600Z"),
            (1_735_689_599, "20241231T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
            (LAST_SECOND, "99991231T235959Z"),
            (u64::MAX, "99991231T235959Z"),
        ] {
            assert_eq!(std::str::from_utf8(Stamp::at(seconds).as_bytes()).unwrap(), text);
        }
    }
}
