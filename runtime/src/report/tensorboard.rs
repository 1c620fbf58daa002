//! TensorBoard event files.
//!
//! *Takes* scalars; *gives* the bytes of `events.out.tfevents.*`; *promises* the TFRecord framing and the `Event` message as
//! TensorFlow writes them (record: u64 length, masked CRC-32C of the length, data, masked CRC-32C of the data; event.proto).

/// First record of a file.
pub fn version(time: f64) -> Vec<u8> {
    let mut event = double(1, time);
    event.extend(bytes(3, b"brain.Event:2"));
    record(&event)
}

/// One event with these scalars.
pub fn scalars(time: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut item = bytes(1, tag.as_bytes());
        item.push(2 << 3 | 5);
        item.extend((*value as f32).to_le_bytes());
        summary.extend(bytes(1, &item));
    }
    let mut event = double(1, time);
    event.push(2 << 3);
    event.extend(varint(step));
    event.extend(bytes(5, &summary));
    record(&event)
}

fn double(field: u8, x: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(x.to_le_bytes());
    out
}

fn bytes(field: u8, x: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    out.extend(varint(x.len() as u64));
    out.extend(x);
    out
}

fn varint(mut x: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
    out
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}

fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected polynomial 0x82F63B78.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut c, mut bit) = (i as u32, 0);
            while bit < 8 {
                c = if c & 1 == 1 { c >> 1 ^ 0x82F6_3B78 } else { c >> 1 };
                bit += 1;
            }
            table[i] = c;
            i += 1;
        }
        table
    };
    !data.iter().fold(!0, |c, &b| c >> 8 ^ TABLE[(c as u8 ^ b) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn crc_known_answers() {
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xff; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46DD_794E);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    /// Splits a file into records, checking lengths and checksums: an independent reading of the format.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let unmask = |m: u32| m.wrapping_sub(0xa282_ead8).rotate_left(15);
        let word = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap());
        let mut all = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            assert_eq!(unmask(word(&file[8..12])), crc32c(&file[..8]));
            let data = &file[12..12 + length];
            assert_eq!(unmask(word(&file[12 + length..16 + length])), crc32c(data));
            all.push(data.to_vec());
            file = &file[16 + length..];
        }
        all
    }

    /// (field, wire type, payload) of a message.
    fn fields(mut m: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
        fn varint(m: &mut &[u8]) -> u64 {
            let (mut x, mut shift) = (0, 0);
            loop {
                let b = m[0];
                *m = &m[1..];
                x |= u64::from(b & 0x7f) << shift;
                if b < 0x80 {
                    return x;
                }
                shift += 7;
            }
        }
        let mut all = Vec::new();
        while !m.is_empty() {
            let key = varint(&mut m);
            let payload = match key & 7 {
                0 => varint(&mut m).to_le_bytes().to_vec(),
                1 => m[..8].to_vec(),
                5 => m[..4].to_vec(),
                _ => {
                    let n = varint(&mut m) as usize;
                    m[..n].to_vec()
                }
            };
            if key & 7 != 0 {
                m = &m[payload.len()..];
            }
            all.push((key >> 3, key & 7, payload));
        }
        all
    }

    #[test]
    fn reads_back() {
        let mut file = version(12.5);
        file.extend(scalars(13.5, 300, &[("train/loss".into(), 2.5), ("train/x".into(), -1.0)]));
        let events = records(&file);
        assert_eq!(fields(&events[0])[1], (3, 2, b"brain.Event:2".to_vec()));
        let event = fields(&events[1]);
        assert_eq!(event[0], (1, 1, 13.5f64.to_le_bytes().to_vec()));
        assert_eq!(event[1], (2, 0, 300u64.to_le_bytes().to_vec()));
        let summary = fields(&event[2].2);
        assert_eq!((event[2].0, summary.len()), (5, 2));
        let value = fields(&summary[0].2);
        assert_eq!(value[0], (1, 2, b"train/loss".to_vec()));
        assert_eq!(value[1], (2, 5, 2.5f32.to_le_bytes().to_vec()));
    }
}
