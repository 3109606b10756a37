//! TensorBoard's event files: records of protocol buffers, framed with lengths and CRC-32C.
//!
//! A record is the length of its payload (u64, little-endian), the masked CRC of these 8 bytes, the payload, its masked
//! CRC. A payload is an `Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5 }`
//! with `Summary { repeated Value value = 1 }` and `Value { string tag = 1; float simple_value = 2 }`: few enough fields
//! to write them by hand.

/// Scalars of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// The step.
    pub step: u64,
    /// Values by tag.
    pub values: Vec<(String, f64)>,
}

/// The bytes of a file that holds these points.
pub fn file(points: &[Point]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let first = points.first().map_or(0.0, |point| point.wall_time);
    record(&version(first), &mut bytes);
    points.iter().for_each(|point| record(&event(point), &mut bytes));
    bytes
}

/// The first event of every file.
fn version(wall_time: f64) -> Vec<u8> {
    let mut event = stamp(wall_time, 0);
    field(3, b"brain.Event:2", &mut event);
    event
}

fn event(point: &Point) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in &point.values {
        let mut pair = Vec::new();
        field(1, tag.as_bytes(), &mut pair);
        // wire type 5: four bytes
        pair.push((2 << 3) | 5);
        pair.extend((*value as f32).to_le_bytes());
        field(1, &pair, &mut summary);
    }
    let mut event = stamp(point.wall_time, point.step);
    field(5, &summary, &mut event);
    event
}

/// When and where; what is 0 is left out, as protocol buffers do.
fn stamp(wall_time: f64, step: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if wall_time != 0.0 {
        // wire type 1: eight bytes
        bytes.push((1 << 3) | 1);
        bytes.extend(wall_time.to_le_bytes());
    }
    if step != 0 {
        bytes.push(2 << 3);
        varint(step, &mut bytes);
    }
    bytes
}

/// Wire type 2: a length, then the bytes.
fn field(number: u8, content: &[u8], bytes: &mut Vec<u8>) {
    bytes.push((number << 3) | 2);
    varint(content.len() as u64, bytes);
    bytes.extend(content);
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn record(payload: &[u8], bytes: &mut Vec<u8>) {
    let length = (payload.len() as u64).to_le_bytes();
    bytes.extend(length);
    bytes.extend(masked(&length).to_le_bytes());
    bytes.extend(payload);
    bytes.extend(masked(payload).to_le_bytes());
}

/// A CRC of data that hold CRCs themselves would be weak, so it is rotated and shifted.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        // Slow twin, bit by bit.
        let slow = |bytes: &[u8]| {
            let step = |crc: u32, byte: &u8| {
                let shift = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                (0..8).fold(crc ^ u32::from(*byte), shift)
            };
            !bytes.iter().fold(!0, step)
        };
        for length in 0..200u32 {
            let bytes: Vec<u8> = (0..length).map(|i| (i * i * 31 + length) as u8).collect();
            assert_eq!(crc32c::crc32c(&bytes), slow(&bytes));
        }
    }

    /// `tests/reference/tensorboard_reference.py` wrote the file with TensorBoard's own classes, and read it.
    #[test]
    fn bytes_are_those_of_tensorboard() {
        let value = |tag: &str, value| (tag.to_string(), value);
        let points = [
            Point {
                wall_time: 1.7e9 + 0.125,
                step: 0,
                values: vec![value("train/loss", 5.5), value("learning_rate", 0.0)],
            },
            Point {
                wall_time: 1.7e9 + 61.0,
                step: 127,
                values: vec![value("train/loss", 1.0 / 3.0), value("valid/recall_5", -1e-7)],
            },
            Point {
                wall_time: 1.7e9 + 4000.75,
                step: 300_000,
                values: vec![value("é", 1e38), value(&"long/".repeat(40), 1.0)],
            },
        ];
        let golden = include_bytes!("../../tests/golden/curve.tfevents");
        assert!(file(&points) == golden, "other bytes");
    }
}
