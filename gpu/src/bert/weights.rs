//! The tensors of a BERT checkpoint in Hugging Face layout: names and shapes.

use super::BertConfig;
use crate::encoder::Layout;

/// The tensors of an encoder, named without the `bert.` prefix.
pub(super) fn layout(config: &BertConfig) -> Layout {
    Layout {
        expected: expected_shapes(config),
        current_name,
    }
}

/// Names and shapes of the tensors of an encoder.
pub(super) fn expected_shapes(config: &BertConfig) -> Vec<(String, Vec<usize>)> {
    let (d, inner) = (config.hidden_size, config.intermediate_size);
    let mut out = vec![
        (
            "embeddings.word_embeddings.weight".to_string(),
            vec![config.vocab_size, d],
        ),
        (
            "embeddings.position_embeddings.weight".to_string(),
            vec![config.max_position_embeddings, d],
        ),
        (
            "embeddings.token_type_embeddings.weight".to_string(),
            vec![config.type_vocab_size, d],
        ),
        ("embeddings.LayerNorm.weight".to_string(), vec![d]),
        ("embeddings.LayerNorm.bias".to_string(), vec![d]),
    ];
    for layer in 0..config.num_hidden_layers {
        for (name, to, from) in [
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", inner, d),
            ("output.dense", d, inner),
        ] {
            out.push((format!("encoder.layer.{layer}.{name}.weight"), vec![to, from]));
            out.push((format!("encoder.layer.{layer}.{name}.bias"), vec![to]));
        }
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            out.push((format!("encoder.layer.{layer}.{name}.weight"), vec![d]));
            out.push((format!("encoder.layer.{layer}.{name}.bias"), vec![d]));
        }
    }
    out
}

/// The name without the `bert.` prefix; the first checkpoints call the scale and shift of a layer norm `gamma` and
/// `beta`. The pooler, the heads for pre-training and the stored positions are not wanted.
fn current_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    let own = name.starts_with("embeddings.") || name.starts_with("encoder.");
    if !own || name == "embeddings.position_ids" {
        return None;
    }
    let scale = name
        .strip_suffix("LayerNorm.gamma")
        .map(|stem| format!("{stem}LayerNorm.weight"));
    let shift = name
        .strip_suffix("LayerNorm.beta")
        .map(|stem| format!("{stem}LayerNorm.bias"));
    Some(scale.or(shift).unwrap_or_else(|| name.to_string()))
}
