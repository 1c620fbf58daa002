//! Reader of the protobuf wire format, as far as `.model` files need it.
//!
//! *Takes* bytes and their place in a file; *gives* one field at a time, borrowed; *promises* to read inside the bytes only and
//! to name the byte at fault. Nothing is allocated, nesting is the caller's.

use std::path::Path;

use crate::error::{Error, Result};

/// A message being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    /// Offset of `bytes[0]` in the file.
    base: usize,
    at: usize,
}

/// A field's content.
#[derive(Clone, Copy, Debug)]
enum Payload<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// One field: number, content, and where its content starts in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    file: &'a Path,
    offset: usize,
    payload: Payload<'a>,
}

impl<'a> Wire<'a> {
    /// Reads `bytes`, the whole of `file`.
    pub(super) fn new(file: &'a Path, bytes: &'a [u8]) -> Wire<'a> {
        Wire { file, bytes, base: 0, at: 0 }
    }

    fn error(&self, at: usize, message: &str) -> Error {
        Error::at(self.file, (self.base + at) as u64, message)
    }

    /// The next field, or `None` at the end of the message.
    pub(super) fn next(&mut self) -> Result<Option<Field<'a>>> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint()?;
        let number = match u32::try_from(tag >> 3) {
            Ok(n) if n > 0 && n < 1 << 29 => n,
            _ => return Err(self.error(start, "not a protobuf message: impossible field number")),
        };
        let mut offset = self.at;
        let payload = match tag & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => self.take(8).map(|_| Payload::Fixed64)?,
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                offset = self.at;
                Payload::Bytes(self.take(length)?)
            }
            5 => {
                let b = self.take(4)?;
                Payload::Fixed32(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            }
            _ => return Err(self.error(start, "not a protobuf message: impossible wire type")),
        };
        Ok(Some(Field { number, file: self.file, offset: self.base + offset, payload }))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let part = rest.get(..n).ok_or_else(|| {
            self.error(self.at, &format!("field of {n} bytes in a message with {} bytes left", rest.len()))
        })?;
        self.at += n;
        Ok(part)
    }

    fn varint(&mut self) -> Result<u64> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.error(self.at, "number cut off"));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.error(start, "number of more than ten bytes"))
    }
}

impl<'a> Field<'a> {
    /// An error at this field.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::at(self.file, self.offset as u64, message)
    }

    /// Where its content starts in the file.
    pub(super) fn offset(&self) -> u64 {
        self.offset as u64
    }

    fn mismatch(&self, expected: &str) -> Error {
        self.error(format!("field {} should hold {expected}", self.number))
    }

    /// An embedded message.
    pub(super) fn message(&self) -> Result<Wire<'a>> {
        Ok(Wire { file: self.file, bytes: self.bytes()?, base: self.offset, at: 0 })
    }

    /// Raw bytes.
    pub(super) fn bytes(&self) -> Result<&'a [u8]> {
        match self.payload {
            Payload::Bytes(b) => Ok(b),
            _ => Err(self.mismatch("bytes")),
        }
    }

    /// UTF-8 text.
    pub(super) fn text(&self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.mismatch("UTF-8 text"))
    }

    /// An integer (negative ones arrive as two's complement of 64 bits).
    pub(super) fn int(&self) -> Result<i64> {
        match self.payload {
            Payload::Varint(v) => Ok(v as i64),
            _ => Err(self.mismatch("an integer")),
        }
    }

    /// A flag.
    pub(super) fn flag(&self) -> Result<bool> {
        self.int().map(|v| v != 0).map_err(|_| self.mismatch("a flag"))
    }

    /// A binary32 number.
    pub(super) fn float(&self) -> Result<f32> {
        match self.payload {
            Payload::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(self.mismatch("a 32-bit float")),
        }
    }
}
