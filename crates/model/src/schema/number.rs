//! Numbers as Lua writes them.

/// A number as Lua's `tostring` writes it: 14 significant digits, no trailing zeros.
pub(super) fn lua(number: f64) -> String {
    if number == number.trunc() && number.abs() < 1e14 {
        // `-0` is printed as such by Lua, too.
        return if number == 0.0 && number.is_sign_negative() {
            "-0".to_owned()
        } else {
            format!("{number:.0}")
        };
    }
    if !number.is_finite() {
        return if number.is_nan() {
            "nan"
        } else if number > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{number:.*e}", DIGITS - 1);
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..DIGITS as i32).contains(&exponent) {
        let decimals = (DIGITS as i32 - 1 - exponent).max(0) as usize;
        return without_trailing_zeros(&format!("{number:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", without_trailing_zeros(mantissa), exponent.abs())
}

fn without_trailing_zeros(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

/// Significant digits Lua prints.
const DIGITS: usize = 14;

#[cfg(test)]
mod tests {
    use super::lua;

    #[test]
    fn numbers_are_written_as_lua_writes_them() {
        for (number, text) in [
            (10.0, "10"),
            (-1.0, "-1"),
            (0.5, "0.5"),
            (1.1, "1.1"),
            (1.0 / 3.0, "0.33333333333333"),
            (1e13, "10000000000000"),
            (1e14, "1e+14"),
            (1e15, "1e+15"),
            (123456789012345678.0, "1.2345678901235e+17"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (67108864.0, "67108864"),
            (-2.5e-7, "-2.5e-07"),
        ] {
            assert_eq!(lua(number), text);
        }
    }
}
