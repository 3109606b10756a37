//! NumPy's `.npy`: the header and two-dimensional integer arrays.

use sluice_engine::{Error, Result};

/// Type and shape of an array.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// NumPy's type string, such as `<i2`.
    pub dtype: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Where the values start.
    pub start: usize,
}

/// Reads the header of a two-dimensional C-order array from the beginning of a file.
pub fn header(name: &str, bytes: &[u8]) -> Result<Header> {
    let wrong = |what: &str| {
        Error::data("wrong-format", format!("\"{name}\" {what}"))
            .hint("save it with numpy.save(FILE, array) as a two-dimensional integer array in C order")
    };
    let (length_at, wide) = match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, ..] => (8, false),
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, ..] => (8, true),
        _ => return Err(wrong("is not a .npy file")),
    };
    let cut = || wrong("ends in its header");
    let number = |at: usize| bytes.get(at).copied().map(usize::from).ok_or_else(cut);
    let (length, start) = match wide {
        false => (number(length_at)? | number(length_at + 1)? << 8, 10),
        true => {
            let mut length = 0;
            for byte in (0..4).rev() {
                length = length << 8 | number(length_at + byte)?;
            }
            (length, 12)
        }
    };
    let text = bytes.get(start..start + length).ok_or_else(cut)?;
    let text = String::from_utf8_lossy(text);
    let header = super::python::parse(text.trim()).map_err(|reason| wrong(&format!("has a bad header: {reason}")))?;
    let dtype = header["descr"].as_str().ok_or_else(|| wrong("has no plain type"))?;
    if header["fortran_order"].as_bool() == Some(true) {
        return Err(wrong("is in Fortran order"));
    }
    let shape = header["shape"].as_array().cloned().unwrap_or_default();
    match shape
        .iter()
        .map(|size| size.as_u64())
        .collect::<Option<Vec<_>>>()
        .as_deref()
    {
        Some([rows, columns]) => Ok(Header {
            dtype: dtype.to_string(),
            rows: *rows as usize,
            columns: *columns as usize,
            start: start + length,
        }),
        _ => Err(wrong(&format!("has shape {}, not two dimensions", header["shape"]))),
    }
}

/// The values of an integer array, row-major.
pub fn integers(name: &str, header: &Header, bytes: &[u8]) -> Result<Vec<i64>> {
    let (kind, size) = match header.dtype.as_str() {
        "|i1" => ('i', 1),
        "|u1" => ('u', 1),
        "<i2" => ('i', 2),
        "<u2" => ('u', 2),
        "<i4" => ('i', 4),
        "<u4" => ('u', 4),
        "<i8" => ('i', 8),
        "<u8" => ('u', 8),
        other => {
            return Err(Error::data(
                "wrong-format",
                format!("\"{name}\" holds {other}, not little-endian integers"),
            )
            .hint("convert it: array.astype('<i8')"));
        }
    };
    let wanted = header
        .rows
        .checked_mul(header.columns)
        .and_then(|values| values.checked_mul(size));
    let values = wanted.and_then(|wanted| bytes.get(header.start..header.start.checked_add(wanted)?));
    let values = values.ok_or_else(|| {
        Error::data(
            "truncated-file",
            format!("\"{name}\" ends before its {} rows of {}", header.rows, header.columns),
        )
        .hint("the download was cut short: get the file again")
    })?;
    Ok(values
        .chunks_exact(size)
        .map(|chunk| {
            let negative = kind == 'i' && chunk[size - 1] >= 0x80;
            let mut eight = [if negative { 0xFF } else { 0 }; 8];
            eight[..size].copy_from_slice(chunk);
            i64::from_le_bytes(eight)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `.npy` file of one type.
    fn npy(descr: &str, shape: &str, values: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values);
        bytes
    }

    #[test]
    fn integers_of_every_width() {
        let bytes = npy("<i2", "(2, 2)", &[1, 0, 0xFF, 0xFF, 0, 1, 7, 0]);
        let head = header("x.npy", &bytes).unwrap();
        assert_eq!((head.rows, head.columns), (2, 2));
        assert_eq!(integers("x.npy", &head, &bytes).unwrap(), [1, -1, 256, 7]);
        let bytes = npy("<u2", "(1, 1)", &[0xFF, 0xFF]);
        assert_eq!(integers("x", &header("x", &bytes).unwrap(), &bytes).unwrap(), [65535]);
    }

    #[test]
    fn other_files_are_refused() {
        assert!(header("x", b"PK").unwrap_err().message.contains("not a .npy file"));
        assert!(
            header("x", &npy("<i2", "(4,)", &[]))
                .unwrap_err()
                .message
                .contains("not two dimensions")
        );
        let bytes = npy("<f4", "(1, 1)", &[0; 4]);
        assert!(
            integers("x", &header("x", &bytes).unwrap(), &bytes)
                .unwrap_err()
                .message
                .contains("<f4")
        );
        let bytes = npy("<i8", "(2, 1)", &[0; 8]);
        assert_eq!(
            integers("x", &header("x", &bytes).unwrap(), &bytes).unwrap_err().code,
            "truncated-file"
        );
    }
}
