//! A number of a limit: written down, or made of a request's variables.

use serde_json::Value;
use sluicegate_gateway::expr::{self, Vars};

use crate::template::Template;

/// A whole number, or a text with variables that becomes one.
#[derive(Debug)]
pub(crate) enum Amount {
    /// The same for every request.
    Fixed(u64),
    /// Made for each request.
    Text { template: Template, least: u64 },
}

/// Why a text is no amount. The request's own values are not repeated.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum AmountError {
    /// No number at all.
    #[error("it is not a number")]
    NotANumber,
    /// Zero or less.
    #[error("it is less than {0}")]
    TooSmall(u64),
    /// A fraction.
    #[error("it is not a whole number")]
    Fraction,
    /// What Lua could not count exactly.
    #[error("it is larger than 2^53-1")]
    TooLarge,
}

impl Amount {
    /// Compiles what passed a schema of `integer` or `string`; a text must become `least` or more.
    pub(crate) fn compile(value: &Value, least: u64) -> Self {
        match value {
            Value::String(text) => Self::Text { template: Template::compile(text), least },
            number => Self::Fixed(whole(number)),
        }
    }

    /// The number for a request.
    pub(crate) fn of(&self, vars: &dyn Vars) -> Result<u64, AmountError> {
        match self {
            Self::Fixed(number) => Ok(*number),
            Self::Text { template, least } => read(&template.render(vars), *least),
        }
    }
}

/// A number of a configuration as a whole one; `10.0` is 10.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
pub(crate) fn whole(number: &Value) -> u64 {
    number.as_u64().unwrap_or_else(|| number.as_f64().unwrap_or(0.0) as u64)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the number is whole and within 2^53"
)]
fn read(text: &[u8], least: u64) -> Result<u64, AmountError> {
    let number = expr::Value::from(text).to_number().ok_or(AmountError::NotANumber)?;
    if number.is_nan() {
        return Err(AmountError::NotANumber);
    }
    if number < least as f64 {
        return Err(AmountError::TooSmall(least));
    }
    if number > WHOLE_MAX {
        return Err(AmountError::TooLarge);
    }
    if number.fract() != 0.0 {
        return Err(AmountError::Fraction);
    }
    Ok(number as u64)
}

/// The largest number up to which every whole number is exact in Lua.
const WHOLE_MAX: f64 = 9_007_199_254_740_991.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_a_whole_number_of_at_least_what_is_asked_for() {
        for (text, least, read_as) in [
            ("10", 1, Ok(10)),
            (" 10 ", 1, Ok(10)),
            ("1e3", 1, Ok(1000)),
            ("0x10", 1, Ok(16)),
            ("0", 0, Ok(0)),
            ("9007199254740991", 1, Ok(9_007_199_254_740_991)),
            ("9007199254740992", 1, Err(AmountError::TooLarge)),
            ("inf", 1, Err(AmountError::TooLarge)),
            ("nan", 1, Err(AmountError::NotANumber)),
            ("0", 1, Err(AmountError::TooSmall(1))),
            ("-1", 1, Err(AmountError::TooSmall(1))),
            ("-1", 0, Err(AmountError::TooSmall(0))),
            ("0.5", 1, Err(AmountError::TooSmall(1))),
            ("1.5", 1, Err(AmountError::Fraction)),
            ("", 1, Err(AmountError::NotANumber)),
            ("ten", 1, Err(AmountError::NotANumber)),
        ] {
            assert_eq!(read(text.as_bytes(), least), read_as, "{text:?}");
        }
    }
}
