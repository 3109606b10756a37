//! How the hidden states of a text become one vector. Source of the rules: sentence-transformers.

use std::path::Path;

use super::config::{read_json, unsupported};
use super::error::EncoderError;
use crate::lanes;

/// Where sentence-transformers keeps the pooling of a model, below its folder.
pub const FILE: &str = "1_Pooling/config.json";

/// How the hidden states [T, D] of a sequence become one vector [D].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Mean over the tokens (padding never counts).
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    LastToken,
}

/// Old keys, one for each way, and the word that replaced them.
const OLD_KEYS: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// Reads the configuration of a pooling module, in its old form (`pooling_mode_mean_tokens: true`) or the new one
/// (`pooling_mode: mean`).
pub(super) fn read(path: &Path) -> Result<Pooling, EncoderError> {
    let json = read_json(path)?;
    let modes: Vec<&str> = match json.get("pooling_mode") {
        Some(serde_json::Value::Array(modes)) => modes.iter().filter_map(|mode| mode.as_str()).collect(),
        Some(mode) => mode.as_str().into_iter().collect(),
        None => OLD_KEYS
            .iter()
            .filter(|(key, _)| json.get(key).and_then(|on| on.as_bool()) == Some(true))
            .map(|(_, mode)| *mode)
            .collect(),
    };
    match modes.as_slice() {
        ["mean"] => Ok(Pooling::Mean),
        ["cls"] => Ok(Pooling::Cls),
        ["lasttoken"] => Ok(Pooling::LastToken),
        _ => {
            let got = format!("{modes:?}");
            Err(unsupported(
                path,
                "pooling_mode",
                got,
                "one of \"mean\", \"cls\", \"lasttoken\"",
            ))
        }
    }
}

/// One vector [D] out of the hidden states [T, D] of a sequence; T at least 1.
pub(super) fn pool(hidden_td: &[f32], d: usize, pooling: Pooling, normalize: bool) -> Vec<f32> {
    let tokens = hidden_td.len() / d;
    let mut out_d = match pooling {
        Pooling::Cls => hidden_td[..d].to_vec(),
        Pooling::LastToken => hidden_td[(tokens - 1) * d..].to_vec(),
        Pooling::Mean => {
            let mut sum_d = vec![0f64; d];
            hidden_td
                .chunks_exact(d)
                .for_each(|row| lanes::add_scaled(&mut sum_d, row, 1.0));
            sum_d.iter().map(|x| (x / tokens as f64) as f32).collect()
        }
    };
    if normalize {
        let norm = lanes::squared_norm(&out_d).sqrt().max(1e-12);
        out_d.iter_mut().for_each(|x| *x = (*x as f64 / norm) as f32);
    }
    out_d
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poolings_by_hand() {
        let hidden_td = [1.0, 2.0, 3.0, 4.0, 8.0, 0.0];
        let with = |pooling, normalize| pool(&hidden_td, 2, pooling, normalize);
        assert_eq!(with(Pooling::Cls, false), [1.0, 2.0]);
        assert_eq!(with(Pooling::LastToken, false), [8.0, 0.0]);
        assert_eq!(with(Pooling::Mean, false), [4.0, 2.0]);
        assert_eq!(with(Pooling::LastToken, true), [1.0, 0.0]);
    }

    #[test]
    fn both_forms_of_the_file_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        let read = |json: serde_json::Value| {
            std::fs::write(&path, json.to_string()).expect("a written file");
            super::read(&path).map_err(|e| e.to_string())
        };
        let old = serde_json::json!({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true});
        assert_eq!(read(old), Ok(Pooling::Mean));
        let old = serde_json::json!({"pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true});
        assert_eq!(read(old), Ok(Pooling::LastToken));
        assert_eq!(read(serde_json::json!({"pooling_mode": "cls"})), Ok(Pooling::Cls));
        let two = read(serde_json::json!({"pooling_mode": ["mean", "max"]})).expect_err("an error");
        let end = "pooling_mode is [\"mean\", \"max\"], supported: one of \"mean\", \"cls\", \"lasttoken\"";
        assert!(two.ends_with(end), "{two}");
        assert!(read(serde_json::json!({})).is_err());
    }
}
