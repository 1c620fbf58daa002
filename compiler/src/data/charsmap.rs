//! Normalisation rules of a SentencePiece model: a double-array trie from character sequences to replacements.
//!
//! *Takes* the `precompiled_charsmap` blob: u32 size of the trie in bytes, the trie (u32 units, little-endian), replacements, each ended by
//! NUL. *Gives* the longest rule at the start of a text. *Promises* that the whole trie was walked when it was read: every value it
//! can give is the start of a replacement.
//!
//! A unit packs (darts-clone's layout): bits 0–7 label, bit 8 "has a leaf", bit 9 "offset is shifted by 8", bits 10–30 offset; a leaf
//! has bit 31 set and its value in bits 0–30. From a node at position p, the child for byte c lies at `(p ^ offset) ^ c`, the leaf at `p ^ offset`.

/// Longest replacement, bytes with the NUL: bounds what a damaged model can make of a text (nmt_nfkc's longest has 33).
const LONGEST: usize = 1024;

/// The rules.
#[derive(Clone, Debug)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

/// With bit 31, so that a leaf matches no byte.
fn label(unit: u32) -> u32 {
    unit & (1 << 31 | 0xff)
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

fn value(unit: u32) -> usize {
    (unit & !(1 << 31)) as usize
}

impl Charsmap {
    /// Reads a blob. An error is the offset of the fault in the blob and a message.
    pub(super) fn parse(blob: &[u8]) -> Result<Charsmap, (u64, String)> {
        let Some((size, rest)) = blob.split_first_chunk::<4>() else {
            return Err((0, "normalisation rules of less than 4 bytes".into()));
        };
        let size = u32::from_le_bytes(*size) as usize;
        if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
            return Err((0, format!("a trie of {size} bytes in normalisation rules of {} bytes", blob.len())));
        }
        let (trie, replacements) = rest.split_at(size);
        let at = 4 + size as u64;
        let replacements = std::str::from_utf8(replacements)
            .map_err(|e| (at + e.valid_up_to() as u64, "replacement that is not UTF-8".to_string()))?;
        if !replacements.ends_with('\0') {
            return Err((blob.len() as u64, "last replacement without end".into()));
        }
        let units = trie.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let map = Charsmap { units, replacements: replacements.into() };
        map.check().map_err(|unit| (4 + 4 * unit as u64, "trie entry that leads nowhere".to_string()))?;
        Ok(map)
    }

    /// Walks every reachable node once; an error is the unit at fault.
    fn check(&self) -> Result<(), usize> {
        let mut seen = vec![false; self.units.len()];
        let mut open = vec![0];
        while let Some(node) = open.pop() {
            let base = node ^ offset(self.units[node]);
            if node != 0 && has_leaf(self.units[node]) {
                let leaf = *self.units.get(base).ok_or(node)?;
                let rest = self.replacements.get(value(leaf)..).ok_or(base)?;
                if rest.bytes().take(LONGEST).all(|b| b != 0) {
                    return Err(base);
                }
            }
            for byte in 0..=255u8 {
                let child = base ^ usize::from(byte);
                let reached = self.units.get(child).is_some_and(|&u| label(u) == u32::from(byte));
                if reached && !std::mem::replace(&mut seen[child], true) {
                    open.push(child);
                }
            }
        }
        Ok(())
    }

    /// The longest rule that `text` starts with: its length in bytes and its replacement.
    pub(super) fn longest(&self, text: &[u8]) -> Option<(usize, &str)> {
        let mut base = offset(self.units[0]);
        let mut found = None;
        for (i, &byte) in text.iter().enumerate() {
            let node = base ^ usize::from(byte);
            let Some(&unit) = self.units.get(node) else { break };
            if label(unit) != u32::from(byte) {
                break;
            }
            base = node ^ offset(unit);
            if has_leaf(unit) {
                found = self.units.get(base).map(|&leaf| (i + 1, value(leaf)));
            }
        }
        let (length, at) = found?;
        let rest = self.replacements.get(at..)?;
        Some((length, rest.split_once('\0').map_or(rest, |(replacement, _)| replacement)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::model;
    use proptest::prelude::*;

    fn blob() -> Vec<u8> {
        model("nfkc").normalizer.charsmap
    }

    /// Rules of nmt_nfkc that everybody knows.
    #[test]
    fn known_rules() {
        let map = Charsmap::parse(&blob()).unwrap();
        for (text, expected) in [
            ("ﬁne", Some((3, "fi"))),
            ("\tx", Some((1, " "))),
            ("\n", Some((1, " "))),
            ("\u{3000}", Some((3, " "))),
            ("\u{200b}", Some((3, " "))),
            ("e\u{301}x", Some((3, "é"))),
            ("Ⅷ", Some((3, "VIII"))),
            ("\u{1}", Some((1, ""))),
            ("e", None),
            ("", None),
            ("漢", None),
        ] {
            assert_eq!(map.longest(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn every_fault_has_its_place() {
        let fault = |blob: &[u8]| Charsmap::parse(blob).unwrap_err();
        assert_eq!(fault(&[1, 0]).0, 0);
        assert_eq!(fault(&[8, 0, 0, 0, 1, 2, 3, 4]), (0, "a trie of 8 bytes in normalisation rules of 8 bytes".into()));
        assert_eq!(fault(&[4, 0, 0, 0, 0, 0, 0, 0, 0xff]), (8, "replacement that is not UTF-8".into()));
        assert_eq!(fault(&[4, 0, 0, 0, 0, 0, 0, 0]), (8, "last replacement without end".into()));
        // Root with offset 1; unit 3 = child for byte 2, has a leaf at 3 ^ 1 = 2 whose value 9 is beyond the replacements.
        let units: [u32; 4] = [1 << 10, 0, 1 << 31 | 9, 2 | 1 << 8 | 1 << 10];
        let mut bytes = vec![16, 0, 0, 0];
        bytes.extend(units.iter().flat_map(|u| u.to_le_bytes()));
        bytes.extend(b"ab\0");
        assert_eq!(fault(&bytes), (12, "trie entry that leads nowhere".into()));
        bytes[12] = 1;
        assert_eq!(Charsmap::parse(&bytes).unwrap().longest(&[2, 5]), Some((1, "b")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Damaged rules are refused or give slices of the replacements, never a panic.
        #[test]
        fn survives_damage(flips in prop::collection::vec((0usize..1 << 18, 0u8..8), 1..20), cut in 0usize..4, text in any::<[u8; 6]>()) {
            let mut bytes = blob();
            for (at, bit) in flips {
                let n = bytes.len();
                bytes[at % n] ^= 1 << bit;
            }
            bytes.truncate(bytes.len() - cut / 2);
            if let Ok(map) = Charsmap::parse(&bytes) {
                for text in [&text[..], "e\u{301}ﬁ\t".as_bytes()] {
                    if let Some((length, _)) = map.longest(text) {
                        prop_assert!(length <= text.len());
                    }
                }
            }
        }
    }
}
