//! The safetensors file format, as far as the project exchanges tensors in it.
//!
//! *Takes* a path; *gives* tensors by name, read one at a time; *promises* bounded memory on any input (the header is at most
//! 16 MB, a tensor is read only after its size was checked against the file's), errors with file and offset, and files written whole or not
//! at all, the same bytes for the same tensors.
//!
//! Format (huggingface/safetensors): u64 little-endian header length, JSON `{name: {dtype, shape, data_offsets}}` padded with
//! spaces to a multiple of 8, then the data; offsets count from the data's start.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{self, Faults};

/// Longest header accepted, bytes.
const HEADER_LIMIT: u64 = 16 << 20;

/// Dtype of a tensor in a file. The first five can be read and written, the others are only skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
    I8,
    I32,
    Bool,
    U8,
    I16,
    U16,
    U32,
    F64,
    I64,
    U64,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::I8 | Dtype::Bool | Dtype::U8 => 1,
            Dtype::Bf16 | Dtype::F16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
        }
    }
}

/// A tensor's place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// First byte and end, counted from the start of the data.
    data_offsets: (u64, u64),
}

impl Entry {
    /// An entry to write; [`save`] places it.
    pub fn new(dtype: Dtype, shape: &[usize]) -> Entry {
        Entry { dtype, shape: shape.to_vec(), data_offsets: (0, 0) }
    }

    /// Size in bytes; `None` if it exceeds any memory.
    fn bytes(&self) -> Option<u64> {
        let numel = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
        numel.checked_mul(self.dtype.bytes() as u64)
    }
}

/// An open file.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    /// Where the data starts.
    data: u64,
    entries: BTreeMap<String, Entry>,
}

impl Reader {
    /// Opens a file and checks its header: every tensor inside the file, none overlapping.
    pub fn open(path: &Path) -> Result<Reader> {
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| Error::at(path, size, "too short for a safetensors file"))?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_LIMIT || length > size - 8 {
            return Err(Error::at(path, 0, format!("not a safetensors file: a header of {length} bytes in {size}")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(|e| Error::io(path, e))?;
        let entries = parse(&header).map_err(|(offset, why)| Error::at(path, 8 + offset, why))?;
        let data = 8 + length;
        check(&entries, size - data).map_err(|(name, why)| Error::at(path, 8, format!("tensor `{name}` {why}")))?;
        Ok(Reader { path: path.into(), file, data, entries })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and entries, by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The entry of that name. Error: there is none.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| Error::file(&self.path, format!("holds no tensor `{name}`")))
    }

    fn bytes(&self, name: &str) -> Result<(&Entry, Vec<u8>)> {
        let entry = self.entry(name)?;
        let (start, end) = entry.data_offsets;
        let mut bytes = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut bytes, self.data + start).map_err(|e| Error::io(&self.path, e))?;
        Ok((entry, bytes))
    }

    fn kind(&self, name: &str, entry: &Entry, want: &str) -> Error {
        Error::file(&self.path, format!("tensor `{name}` is {:?}, expected {want}", entry.dtype))
    }

    /// A floating tensor as f32.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        let (entry, bytes) = self.bytes(name)?;
        Ok(match entry.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => return Err(self.kind(name, entry, "F32, BF16 or F16")),
        })
    }

    /// An I32 tensor.
    pub fn i32(&self, name: &str) -> Result<Vec<i32>> {
        let (entry, bytes) = self.bytes(name)?;
        match entry.dtype {
            Dtype::I32 => Ok(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            _ => Err(self.kind(name, entry, "I32")),
        }
    }

    /// An I8 tensor.
    pub fn i8(&self, name: &str) -> Result<Vec<i8>> {
        let (entry, bytes) = self.bytes(name)?;
        match entry.dtype {
            Dtype::I8 => Ok(bytes.into_iter().map(|b| b as i8).collect()),
            _ => Err(self.kind(name, entry, "I8")),
        }
    }
}

/// The header's tensors; on failure the offset in the header and what is wrong.
fn parse(header: &[u8]) -> Result<BTreeMap<String, Entry>, (u64, String)> {
    let found: Tensors = serde_json::from_slice(header).map_err(|e| {
        let line_start =
            header.split_inclusive(|&b| b == b'\n').take(e.line().saturating_sub(1)).map(<[u8]>::len).sum::<usize>();
        ((line_start + e.column()) as u64, format!("not a safetensors header: {e}"))
    })?;
    Ok(found.0)
}

/// The top-level map, duplicates refused and `__metadata__` skipped.
struct Tensors(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tensors, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Tensors;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else if let btree_map::Entry::Vacant(place) = all.entry(name.clone()) {
                        place.insert(map.next_value()?);
                    } else {
                        return Err(serde::de::Error::custom(format!("tensor `{name}` appears twice")));
                    }
                }
                Ok(Tensors(all))
            }
        }
        deserializer.deserialize_map(V)
    }
}

/// Sizes agree with shapes, ranges lie in the data and do not overlap; else the tensor and what is wrong.
fn check(entries: &BTreeMap<String, Entry>, size: u64) -> Result<(), (String, String)> {
    let mut by_place: Vec<_> = entries.iter().collect();
    by_place.sort_by_key(|(_, e)| e.data_offsets);
    let mut free = 0;
    for (name, e) in by_place {
        let (start, end) = e.data_offsets;
        let wrong = |why: String| Err((name.clone(), why));
        if end < start || end > size {
            return wrong(format!("lies at {start}..{end}, the data has {size} bytes"));
        }
        if e.bytes() != Some(end - start) {
            return wrong(format!("has {} bytes for {:?} {:?}", end - start, e.dtype, e.shape));
        }
        if start < free {
            return wrong(format!("lies at {start}..{end} and overlaps another"));
        }
        free = end;
    }
    Ok(())
}

/// Writes tensors in the given order; `fill(i, out)` writes the little-endian bytes of tensor i, exactly as many as it has.
pub fn save(
    path: &Path,
    place: &'static str,
    faults: &Faults,
    tensors: &[(String, Entry)],
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut at = 0;
    let mut items = Vec::new();
    for (name, e) in tensors {
        let size =
            e.bytes().ok_or_else(|| Error::input(format!("tensor `{name}` of shape {:?} is too large", e.shape)))?;
        let placed = Entry { data_offsets: (at, at + size), ..e.clone() };
        let json = |x: serde_json::Result<String>| x.map_err(|e| Error::input(e.to_string()));
        items.push(format!("{}:{}", json(serde_json::to_string(name))?, json(serde_json::to_string(&placed))?));
        at += size;
    }
    let mut header = format!("{{{}}}", items.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    files::atomic(path, place, faults, |out| {
        let io = |e| Error::io(path, e);
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        out.write_all(header.as_bytes()).map_err(io)?;
        (0..tensors.len()).try_for_each(|i| fill(i, out))
    })
}

/// A tensor in memory, for small files.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// F32.
    F32(Vec<f32>),
    /// I32.
    I32(Vec<i32>),
    /// I8.
    I8(Vec<i8>),
    /// F16, given as f32.
    F16(Vec<f32>),
}

impl Tensor {
    fn dtype(&self) -> Dtype {
        match self {
            Tensor::F32(_) => Dtype::F32,
            Tensor::I32(_) => Dtype::I32,
            Tensor::I8(_) => Dtype::I8,
            Tensor::F16(_) => Dtype::F16,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Tensor::F32(x) => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Tensor::I32(x) => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Tensor::I8(x) => x.iter().map(|&v| v as u8).collect(),
            Tensor::F16(x) => x.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        }
    }
}

/// Writes tensors that are in memory: (name, shape, elements).
pub fn save_all(
    path: &Path,
    place: &'static str,
    faults: &Faults,
    tensors: &[(String, Vec<usize>, Tensor)],
) -> Result<()> {
    let heads: Vec<_> = tensors.iter().map(|(n, shape, t)| (n.clone(), Entry::new(t.dtype(), shape))).collect();
    save(path, place, faults, &heads, &mut |i, out| {
        out.write_all(&tensors[i].2.bytes()).map_err(|e| Error::io(path, e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn raw(header: &str, data: usize) -> Vec<u8> {
        let mut all = (header.len() as u64).to_le_bytes().to_vec();
        all.extend(header.as_bytes());
        all.extend(std::iter::repeat_n(0, data));
        all
    }

    /// Bytes written by the reference library (safetensors 0.4, Python) for {"a": float32 [[1, 2]], "b": int32 [7]}.
    #[test]
    fn reads_the_reference_librarys_bytes() {
        let header = r#"{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"I32","shape":[1],"data_offsets":[8,12]}}"#;
        let mut bytes = raw(&format!("{header:<112}"), 0);
        bytes.extend([0, 0, 128, 63, 0, 0, 0, 64, 7, 0, 0, 0]);
        let (_dir, path) = file(&bytes);
        let r = Reader::open(&path).unwrap();
        assert_eq!((r.f32("a").unwrap(), r.i32("b").unwrap()), (vec![1.0, 2.0], vec![7]));
        assert_eq!(r.entry("a").unwrap().shape, [1, 2]);
        assert!(r.f32("b").unwrap_err().to_string().contains("tensor `b` is I32, expected F32"));
        assert_eq!(r.f32("c").unwrap_err().exit_code(), 1);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        for (header, data, why) in [
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, "the data has 4 bytes"),
            (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "has 8 bytes for F32 [3]"),
            (r#"{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}"#, 8, "has 4 bytes"),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
                8,
                "overlaps",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
                "appears twice",
            ),
            (r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 4, "unknown variant"),
            (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "invalid value"),
            (r#"{"a":"#, 0, "not a safetensors header"),
            ("[]", 0, "not a safetensors header"),
        ] {
            let (_dir, path) = file(&raw(header, data));
            let e = Reader::open(&path).unwrap_err();
            assert!(e.exit_code() == 1 && e.to_string().contains(why), "{header}: {e}");
        }
        for bytes in [vec![], vec![1, 2, 3], vec![255; 64], raw("{}", 0)[..9].to_vec()] {
            let (_dir, path) = file(&bytes);
            assert_eq!(Reader::open(&path).unwrap_err().exit_code(), 1);
        }
        let (_dir, path) = file(&raw("{}", 0));
        assert!(Reader::open(&path).unwrap().entries().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_saved_comes_back(
            a in prop::collection::vec(any::<f32>(), 0..20), b in prop::collection::vec(any::<i32>(), 0..9),
            c in prop::collection::vec(any::<i8>(), 0..9), name in "[a-z.\"\\\\é]{1,9}",
        ) {
            let (_dir, path) = file(&[]);
            let tensors = [
                (name.clone(), vec![a.len()], Tensor::F32(a.clone())),
                (format!("{name}2"), vec![1, b.len()], Tensor::I32(b.clone())),
                (format!("{name}3"), vec![c.len(), 1], Tensor::I8(c.clone())),
            ];
            save_all(&path, "weights", &Faults::none(), &tensors).unwrap();
            let r = Reader::open(&path).unwrap();
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&r.f32(&name).unwrap()), bits(&a));
            prop_assert_eq!(r.i32(&format!("{name}2")).unwrap(), b);
            prop_assert_eq!(r.i8(&format!("{name}3")).unwrap(), c);
            prop_assert_eq!(r.data % 8, 0);
        }

        #[test]
        fn noise_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (_dir, path) = file(&bytes);
            if let Ok(r) = Reader::open(&path) {
                for name in r.entries().keys() {
                    let _ = r.f32(name);
                }
            }
        }

        /// One byte of a good file changed: an error or other numbers, never a panic or a read outside the file.
        #[test]
        fn damage_is_contained(at in 0usize..200, with in any::<u8>()) {
            let (_dir, path) = file(&[]);
            let tensors = [("w".into(), vec![2, 3], Tensor::F32(vec![1.0; 6])), ("i".into(), vec![2], Tensor::I32(vec![1, 2]))];
            save_all(&path, "weights", &Faults::none(), &tensors).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] = with;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(r) = Reader::open(&path) {
                for name in r.entries().keys() {
                    let _ = (r.f32(name), r.i32(name));
                }
            }
        }
    }
}
