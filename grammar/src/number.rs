//! Number literals.
//!
//! *Takes* the text of a number token, *gives* an integer, float or duration, *promises*: floats are the nearest double, the
//! same on every host; nothing wraps or saturates silently.

use crate::ast::ExprKind;
use crate::codes;
use crate::diagnostics::Diagnostic;

/// Units of durations, in seconds.
const UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0)];

/// Longest number, in characters: more than any double needs.
const LONGEST: usize = 100;

/// The value of a number token, or a diagnostic without a place.
pub(crate) fn parse(text: &str) -> Result<ExprKind, Diagnostic> {
    let bad = |message: String| Diagnostic::error(codes::BAD_NUMBER, message);
    if text.len() > LONGEST {
        return Err(bad(format!("`{}…` has {} characters; at most {LONGEST} are allowed", &text[..20], text.len())));
    }
    let lone_underscore = text.ends_with('_') || text.contains("__") || text.contains("_.") || text.contains("0x_");
    if lone_underscore {
        return Err(bad(format!("`_` stands between digits, not as in `{text}`")));
    }
    let digits = text.replace('_', "");
    for (prefix, radix, what) in [("0x", 16, "hexadecimal"), ("0b", 2, "binary")] {
        if let Some(digits) = digits.strip_prefix(prefix) {
            if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
                return Err(bad(format!("`{text}` is not a {what} number")));
            }
            return i64::from_str_radix(digits, radix).map(ExprKind::Int).map_err(|_| bad(too_large(text)));
        }
    }
    let plain = digits.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &digits[plain.len()..];
    let value = |plain: &str| match plain.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(bad(format!("`{text}` is larger than any 64-bit float"))),
        Err(_) => Err(bad(format!("`{text}` is not a number"))),
    };
    if unit.is_empty() {
        if plain.bytes().all(|byte| byte.is_ascii_digit()) {
            return plain.parse().map(ExprKind::Int).map_err(|_| bad(too_large(text)));
        }
        return value(plain).map(ExprKind::Float);
    }
    match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, seconds)) => Ok(ExprKind::Duration(value(plain)? * seconds)),
        None => {
            let problem = bad(format!("`{text}` is not a number: `{unit}` is no unit"));
            let problem = problem.note("a number may end in a unit of time: `ms`, `s`, `min`, `h`");
            let product = unit.chars().all(|c| c.is_ascii_lowercase()) && !unit.starts_with('e');
            Err(if product { problem.hint(format!("a product is written `{plain} * {unit}`")) } else { problem })
        }
    }
}

fn too_large(text: &str) -> String {
    format!("`{text}` is larger than the largest integer, {}", i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match parse(text) {
            Ok(ExprKind::Int(value)) => format!("int {value}"),
            Ok(ExprKind::Float(value)) => format!("float {value:?}"),
            Ok(ExprKind::Duration(value)) => format!("seconds {value:?}"),
            Ok(_) => "something else".into(),
            Err(diagnostic) => diagnostic.message,
        }
    }

    #[test]
    fn integers_floats_and_durations_are_told_apart() {
        assert_eq!(show("786_432"), "int 786432");
        assert_eq!(show("1.0"), "float 1.0");
        assert_eq!(show("1e5"), "float 100000.0");
        assert_eq!(show("1e-12"), "float 1e-12");
        assert_eq!(show("2.5E+3"), "float 2500.0");
        assert_eq!(show("0x9E3779B9"), "int 2654435769");
        assert_eq!(show("0b1011"), "int 11");
        assert_eq!(show("600s"), "seconds 600.0");
        assert_eq!(show("10min"), "seconds 600.0");
        assert_eq!(show("1.5h"), "seconds 5400.0");
        assert_eq!(show("250ms"), "seconds 0.25");
        assert_eq!(show("9223372036854775807"), "int 9223372036854775807");
    }

    #[test]
    fn bad_numbers_are_refused() {
        assert!(show("9223372036854775808").contains("largest integer"));
        assert!(show("1e999").contains("larger than any"));
        assert!(show("3x").contains("`x` is no unit"));
        assert!(show("1_").contains("between digits"));
        assert!(show("0xfg").contains("not a hexadecimal"));
        assert!(show("0b2").contains("not a binary"));
        assert!(show("0x").contains("not a hexadecimal"));
        assert!(show("5e").contains("no unit"));
        assert!(show(&"1".repeat(101)).contains("has 101 characters"));
    }
}
