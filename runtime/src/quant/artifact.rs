//! The artifact: quantised weights in one compressed, checked file.
//!
//! *Takes* codes, scales and halves per parameter; *gives* `artifact.golfa`; *promises* that reading accepts only what the program's own plan
//! expects, in bounded memory, and that any flipped bit is found before a weight is used.
//!
//! Layout: magic `GOLFA\x01\0\0`, BLAKE3 of the program (32), BLAKE3 of everything after this field (32), u64 length of the payload, zstd payload.
//! Payload: for each parameter in plan order its codes (int8, one byte each, row-major), then all scales (fp16, one per row), then all
//! halves (fp16). Names and shapes are not stored: they are the program's. One byte per code whatever its width: the entropy coder
//! recovers the redundancy (specification 4.1).

use crate::error::{Error, Result};
use half::f16;
use std::io::Read;
use std::path::Path;

/// First bytes of the file; the sixth is the format version.
pub const MAGIC: [u8; 8] = *b"GOLFA\x01\0\0";
const HEAD: usize = 8 + 32 + 32 + 8;

/// How one parameter is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Packed {
    /// Integer codes and one fp16 scale per row (position of the first axis).
    Codes {
        /// Row-major, numel entries.
        codes: Vec<i8>,
        /// One per row.
        scale: Vec<f16>,
    },
    /// fp16 as it is.
    Half(Vec<f16>),
}

impl Packed {
    /// The weights the evaluation uses: code * stored scale in f32, or the widened half.
    pub fn dequantise(&self) -> Vec<f32> {
        match self {
            Packed::Half(h) => h.iter().map(|x| x.to_f32()).collect(),
            Packed::Codes { codes, scale } => {
                let row = codes.len() / scale.len().max(1);
                codes.iter().enumerate().map(|(i, &c)| c as f32 * scale[i / row].to_f32()).collect()
            }
        }
    }
}

/// What the plan says about one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Name, for messages.
    pub name: String,
    /// Elements.
    pub numel: usize,
    /// Positions of the first axis (scales), used for coded parameters.
    pub rows: usize,
    /// Coded (true) or halves.
    pub coded: bool,
}

fn payload_len(slots: &[Slot]) -> usize {
    slots.iter().map(|s| if s.coded { s.numel + 2 * s.rows } else { 2 * s.numel }).sum()
}

/// The bytes of the artifact file.
pub fn write(program: &[u8; 32], params: &[Packed], level: i32) -> Result<Vec<u8>> {
    let mut payload = Vec::new();
    for p in params {
        if let Packed::Codes { codes, .. } = p {
            payload.extend(codes.iter().map(|&c| c as u8));
        }
    }
    for p in params {
        if let Packed::Codes { scale, .. } = p {
            payload.extend(scale.iter().flat_map(|s| s.to_le_bytes()));
        }
    }
    for p in params {
        if let Packed::Half(h) = p {
            payload.extend(h.iter().flat_map(|s| s.to_le_bytes()));
        }
    }
    let packed = zstd::bulk::compress(&payload, level).map_err(|e| Error::machine(format!("zstd: {e}")))?;
    let mut tail = (payload.len() as u64).to_le_bytes().to_vec();
    tail.extend_from_slice(&packed);
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(program);
    file.extend_from_slice(blake3::hash(&tail).as_bytes());
    file.extend_from_slice(&tail);
    Ok(file)
}

/// Reads an artifact of this program.
pub fn read(path: &Path, file: &[u8], program: &[u8; 32], slots: &[Slot]) -> Result<Vec<Packed>> {
    let at = |offset: usize, message: String| Error::at(path, offset as u64, message);
    if file.len() < HEAD {
        return Err(at(file.len(), format!("ends too early: an artifact has at least {HEAD} bytes")));
    }
    if file[..5] != MAGIC[..5] {
        return Err(at(0, "is not a golf artifact (wrong magic)".into()));
    }
    if file[..8] != MAGIC {
        return Err(at(5, format!("artifact format {} is not known to this program", file[5])));
    }
    if blake3::hash(&file[72..]).as_bytes() != &file[40..72] {
        return Err(at(40, "checksum differs: the file is damaged".into()));
    }
    if &file[8..40] != program {
        return Err(at(8, "was packed by another program (source, overrides or prelude differ)".into()));
    }
    let expected = payload_len(slots);
    let len = u64::from_le_bytes(file[72..80].try_into().map_err(|_| at(72, "ends too early".into()))?);
    if len != expected as u64 {
        return Err(at(72, format!("expected a payload of {expected} bytes, found {len}")));
    }
    let mut payload = Vec::with_capacity(expected);
    let decoder = zstd::stream::read::Decoder::new(&file[HEAD..]).map_err(|e| at(HEAD, format!("zstd: {e}")))?;
    decoder.take(expected as u64 + 1).read_to_end(&mut payload).map_err(|e| at(HEAD, format!("zstd: {e}")))?;
    if payload.len() != expected {
        return Err(at(HEAD, format!("expected {expected} bytes after decompression, found {}", payload.len())));
    }
    let mut rest = &payload[..];
    let mut take = |n: usize| {
        let (a, b) = rest.split_at(n);
        rest = b;
        a
    };
    let codes: Vec<Vec<i8>> =
        slots.iter().map(|s| if s.coded { take(s.numel).iter().map(|&b| b as i8).collect() } else { vec![] }).collect();
    let scales: Vec<Vec<f16>> = slots.iter().map(|s| if s.coded { halves(take(2 * s.rows)) } else { vec![] }).collect();
    let plain: Vec<Vec<f16>> = slots.iter().map(|s| if s.coded { vec![] } else { halves(take(2 * s.numel)) }).collect();
    let mut all = Vec::new();
    for (((slot, codes), scale), half) in slots.iter().zip(codes).zip(scales).zip(plain) {
        if scale.iter().chain(&half).any(|x| !x.is_finite()) {
            return Err(Error::file(path, format!("{}: a stored number is not finite", slot.name)));
        }
        all.push(if slot.coded { Packed::Codes { codes, scale } } else { Packed::Half(half) });
    }
    Ok(all)
}

fn halves(bytes: &[u8]) -> Vec<f16> {
    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Vec<Packed>, Vec<Slot>) {
        let codes: Vec<i8> = (0..60).map(|i| ((i * 7) % 63) as i8 - 31).collect();
        let params = vec![
            Packed::Codes { codes, scale: (0..6).map(|i| f16::from_f32(0.03 + i as f32)).collect() },
            Packed::Half((0..9).map(|i| f16::from_f32(i as f32 / 3.0)).collect()),
        ];
        let slots = vec![
            Slot { name: "w".into(), numel: 60, rows: 6, coded: true },
            Slot { name: "s".into(), numel: 9, rows: 9, coded: false },
        ];
        (params, slots)
    }

    #[test]
    fn round_trip() {
        let (params, slots) = example();
        let file = write(&[7; 32], &params, 22).unwrap();
        assert_eq!(read(Path::new("a"), &file, &[7; 32], &slots).unwrap(), params);
        let d = params[0].dequantise();
        assert_eq!(d[10], ((10 * 7) % 63 - 31) as f32 * f16::from_f32(1.03).to_f32());
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let (params, slots) = example();
        let file = write(&[7; 32], &params, 3).unwrap();
        for bit in 0..file.len() * 8 {
            let mut bad = file.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(Path::new("a"), &bad, &[7; 32], &slots).is_err(), "bit {bit}");
        }
        for cut in 0..file.len() {
            assert!(read(Path::new("a"), &file[..cut], &[7; 32], &slots).is_err(), "cut {cut}");
        }
    }

    #[test]
    fn other_programs_and_bombs_are_refused() {
        let (params, slots) = example();
        let file = write(&[7; 32], &params, 3).unwrap();
        assert!(read(Path::new("a"), &file, &[8; 32], &slots).unwrap_err().to_string().contains("another program"));
        // A payload that decompresses to far more than its length says stops at the expected size.
        let bomb = zstd::bulk::compress(&vec![0u8; 1 << 24], 3).unwrap();
        let mut tail = (payload_len(&slots) as u64).to_le_bytes().to_vec();
        tail.extend_from_slice(&bomb);
        let mut bad = MAGIC.to_vec();
        bad.extend_from_slice(&[7; 32]);
        bad.extend_from_slice(blake3::hash(&tail).as_bytes());
        bad.extend_from_slice(&tail);
        assert!(read(Path::new("a"), &bad, &[7; 32], &slots).unwrap_err().to_string().contains("after decompression"));
    }
}
