//! The small files of a checkpoint.
//!
//! *Takes* a value; *gives* sealed JSON; *promises* that what [`unseal`] accepts is what [`seal`] wrote, and bounded memory.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::read_bounded;

/// Version of the layout of checkpoints.
pub const VERSION: u32 = 1;
/// Largest small file, bytes.
const LIMIT: u64 = 1 << 20;

/// What a checkpoint is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Program name.
    pub name: String,
    /// BLAKE3 of the plan.
    pub program: String,
    /// `bf16` or `f32`.
    pub precision: String,
    /// Device kind that computed it.
    pub device: String,
    /// Seed.
    pub seed: u64,
    /// Fingerprint of the training shards.
    pub data: String,
    /// Steps done. The loader's place follows from it.
    pub step: u64,
    /// Updates per weight average.
    pub averages: BTreeMap<String, u64>,
    /// BLAKE3 of the clock readings of those steps.
    pub trace: String,
    /// Bytes of `state.bin`.
    pub bytes: u64,
    /// BLAKE3 of `state.bin`.
    pub blake3: String,
}

/// What of a checkpoint depends on wall time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Time used, nanoseconds.
    pub elapsed_ns: u64,
    /// Bytes of the ledger when it was written.
    pub ledger_bytes: u64,
}

/// The value's JSON and a line with its BLAKE3.
pub fn seal<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::machine(e.to_string()))?;
    text.push(b'\n');
    let hash = blake3::hash(&text).to_hex();
    text.extend(hash.as_bytes());
    text.push(b'\n');
    Ok(text)
}

/// Reads a sealed file.
pub fn unseal<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(&read_bounded(path, LIMIT)?).map_err(|why| Error::file(path, why))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let body = bytes.len().checked_sub(65).ok_or("is too short")?;
    let (text, hash) = bytes.split_at(body);
    if &hash[..64] != blake3::hash(text).to_hex().as_bytes() || hash[64] != b'\n' {
        return Err("its content is not what was written (BLAKE3 differs)".into());
    }
    serde_json::from_slice(text).map_err(|e| e.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn example() -> Manifest {
        Manifest {
            version: VERSION,
            name: "tiny".into(),
            program: "ab".into(),
            precision: "f32".into(),
            device: "cpu-v3".into(),
            seed: 7,
            data: "cd".into(),
            step: 12,
            averages: [("ema".to_string(), 12)].into(),
            trace: "ef".into(),
            bytes: 100,
            blake3: "01".into(),
        }
    }

    #[test]
    fn comes_back() {
        assert_eq!(parse::<Manifest>(&seal(&example()).unwrap()).unwrap(), example());
    }

    proptest! {
        #[test]
        fn any_change_is_noticed(at in 0usize..10_000, with in any::<u8>()) {
            let mut bytes = seal(&example()).unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            prop_assert!(parse::<Manifest>(&bytes).is_err());
        }

        #[test]
        fn noise_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse::<Manifest>(&bytes).is_err());
        }

        /// Sealed, so past the checksum, but not a manifest.
        #[test]
        fn sealed_nonsense_is_refused(text in "[ -~]{0,80}") {
            prop_assert!(parse::<Manifest>(&seal(&text).unwrap()).is_err());
        }
    }
}
