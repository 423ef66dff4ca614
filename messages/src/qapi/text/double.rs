//! Numbers with a fraction, as QEMU prints them.

/// `double` as C's `%.17g` prints it: what QEMU uses, so that reading it back gives the same number.
pub fn seventeen_digits(double: f64) -> String {
    if double == 0.0 {
        return if double.is_sign_negative() {
            "-0".into()
        } else {
            "0".into()
        };
    }
    let scientific = format!("{double:.16e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..17).contains(&exponent) {
        let decimals = usize::try_from(16 - exponent).unwrap_or(0);
        strip_zeros(&format!("{double:.decimals$}"))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", strip_zeros(digits), exponent.unsigned_abs())
    }
}

fn strip_zeros(text: &str) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_printed_with_seventeen_digits() {
        for (double, text) in [
            (0.5, "0.5"),
            (0.1, "0.10000000000000001"),
            (1e300, "1.0000000000000001e+300"),
            (1.0, "1"),
            (1e-5, "1.0000000000000001e-05"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(seventeen_digits(double), text);
        }
    }
}
