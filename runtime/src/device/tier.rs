//! Which of the program's device kinds this CPU can run.
//!
//! *Takes* the tiers of the program; *gives* the best one, or the one asked for; *promises* a clear refusal (exit 3) of CPUs
//! below x86-64-v3.

use crate::error::{Error, Result};
use crate::plan::Tier;

/// Every tier this runtime can recognise, weakest first.
pub const KNOWN: [&str; 2] = ["cpu-v3", "cpu-avx512bf16"];

/// The CPU features of a tier that this machine lacks; `None` if the name is unknown to this runtime.
fn missing(tier: &str) -> Option<Vec<&'static str>> {
    #[cfg(not(target_arch = "x86_64"))]
    return KNOWN.contains(&tier).then(|| vec!["x86-64"]);
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! lacks {
            ($($feature:tt),*) => {{
                let mut none = Vec::new();
                $(if !std::arch::is_x86_feature_detected!($feature) { none.push($feature); })*
                none
            }};
        }
        let v3 = lacks!(
            "cmpxchg16b",
            "popcnt",
            "sse3",
            "ssse3",
            "sse4.1",
            "sse4.2",
            "avx",
            "avx2",
            "bmi1",
            "bmi2",
            "f16c",
            "fma",
            "lzcnt",
            "movbe",
            "xsave"
        );
        match tier {
            "cpu-v3" => Some(v3),
            "cpu-avx512bf16" => Some(
                [
                    v3,
                    lacks!(
                        "avx512f",
                        "avx512cd",
                        "avx512bw",
                        "avx512dq",
                        "avx512vl",
                        "avx512ifma",
                        "avx512vbmi",
                        "avx512vbmi2",
                        "avx512vnni",
                        "avx512bitalg",
                        "avx512vpopcntdq",
                        "avx512bf16"
                    ),
                ]
                .concat(),
            ),
            _ => None,
        }
    }
}

/// True if this machine runs code of that tier.
pub fn supported(tier: &str) -> bool {
    missing(tier).is_some_and(|m| m.is_empty())
}

/// Index into `tiers` of the one to run: the best supported (they are listed best last), or the one `asked` for.
///
/// Errors: usage, if the program holds no code for `asked`; machine, if the CPU lacks features.
pub fn choose(tiers: &[Tier], asked: Option<&str>) -> Result<usize> {
    let names = || tiers.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(asked) = asked {
        let index = tiers
            .iter()
            .position(|t| t.name == asked)
            .ok_or_else(|| Error::usage(format!("--isa {asked}: this program holds code for {} only", names())))?;
        return match missing(asked) {
            Some(m) if m.is_empty() => Ok(index),
            Some(m) => Err(Error::machine(format!("this CPU cannot run {asked}: it lacks {}", m.join(", ")))),
            None => Err(Error::machine(format!("this runtime does not know the device kind {asked}"))),
        };
    }
    if let Some(index) = tiers.iter().rposition(|t| supported(&t.name)) {
        return Ok(index);
    }
    match missing(KNOWN[0]) {
        Some(m) if !m.is_empty() => Err(Error::machine(format!(
            "this CPU is below x86-64-v3, the least this program needs: it lacks {}",
            m.join(", ")
        ))),
        _ => Err(Error::machine(format!("this CPU runs none of the device kinds this program holds ({})", names()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers(names: &[&str]) -> Vec<Tier> {
        names.iter().map(|n| Tier { name: (*n).into() }).collect()
    }

    #[test]
    fn takes_the_best_supported() {
        if !supported("cpu-v3") {
            return assert_eq!(choose(&tiers(&["cpu-v3"]), None).unwrap_err().exit_code(), 3);
        }
        let both = tiers(&["cpu-v3", "cpu-avx512bf16"]);
        assert_eq!(choose(&both, None).unwrap(), usize::from(supported("cpu-avx512bf16")));
        assert_eq!(choose(&both, Some("cpu-v3")).unwrap(), 0);
        assert_eq!(choose(&tiers(&["cpu-v3", "cpu-future"]), None).unwrap(), 0);
    }

    #[test]
    fn refuses_what_it_cannot_run() {
        assert_eq!(choose(&tiers(&["cpu-v3"]), Some("sm_90a")).unwrap_err().exit_code(), 2);
        assert_eq!(choose(&tiers(&["cpu-future"]), Some("cpu-future")).unwrap_err().exit_code(), 3);
        assert_eq!(choose(&tiers(&["cpu-future"]), None).unwrap_err().exit_code(), 3);
    }
}
