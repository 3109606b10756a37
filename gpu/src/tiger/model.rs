//! TIGER's weights: names, shapes, initialisation, counts, and the model folder.

use super::*;
use crate::weights::{Declaration, Init, Weights, load_config};
use std::path::Path;

impl TigerConfig {
    /// Names, shapes and T5 initialisation of all weights, in a fixed order.
    pub fn declarations(&self) -> Vec<Declaration> {
        let (d, ff, width) = (self.d_model, self.d_ff, self.heads * self.d_kv);
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize], init| {
            all.push(Declaration {
                name,
                shape: shape.to_vec(),
                init,
            });
        };
        let root = |x: usize| (x as f64).powf(-0.5);
        let one = Init::Normal(1.0);
        add("codes".into(), &[self.codebook_sizes.iter().sum(), d], one);
        add("bos".into(), &[d], one);
        if self.separator {
            add("separator".into(), &[d], one);
        }
        if self.user_buckets > 0 {
            add("users".into(), &[self.user_buckets, d], one);
        }
        if self.vector_dim > 0 {
            // A vector of unit length becomes a token of the same size as those of codes.
            add("vectors".into(), &[d, self.vector_dim], one);
        }
        for part in ["encoder", "decoder"] {
            let bias = Init::Normal(root(d));
            add(format!("{part}.bias"), &[self.relative_buckets, self.heads], bias);
            for layer in 0..self.layers {
                let block = format!("{part}.{layer}");
                let (q, kv) = (root(d * self.d_kv), root(d));
                let out = Init::Normal(root(width));
                let ones = Init::Constant(1.0);
                add(format!("{block}.attention.norm"), &[d], ones);
                let thirds = Init::NormalThirds([q, kv, kv]);
                add(format!("{block}.attention.qkv"), &[3 * width, d], thirds);
                add(format!("{block}.attention.out"), &[d, width], out);
                if part == "decoder" {
                    add(format!("{block}.cross.norm"), &[d], ones);
                    add(format!("{block}.cross.q"), &[width, d], Init::Normal(q));
                    add(format!("{block}.cross.kv"), &[2 * width, d], Init::Normal(kv));
                    add(format!("{block}.cross.out"), &[d, width], out);
                }
                add(format!("{block}.feed_forward.norm"), &[d], ones);
                let maps = self.feed_forward.maps();
                for map in 1..=maps {
                    let inputs = if map == 1 { d } else { ff };
                    let outputs = if map == maps { d } else { ff };
                    let name = format!("{block}.feed_forward.{map}");
                    add(name.clone(), &[outputs, inputs], Init::Normal(root(inputs)));
                    if self.feed_forward == FeedForward::Grid {
                        add(format!("{name}.bias"), &[outputs], Init::Constant(0.0));
                    }
                }
            }
            add(format!("{part}.norm"), &[d], Init::Constant(1.0));
        }
        let heads = match self.output_heads {
            OutputHeads::PerLevel => self.levels(),
            OutputHeads::Plain => 1,
        };
        for head in (0..heads).map(|level| self.head(level)) {
            add(head.name, &[head.width, d], Init::Normal(root(d)));
        }
        all
    }

    /// Floating-point operations of the matrix products of one forward pass over one sample, with its loss: a history
    /// of so many items. A product of [a, b] and [b, c] is 2abc; training does three times as many (forward, and the
    /// gradients of both factors).
    pub fn forward_flops(&self, items: usize) -> f64 {
        let (c, d, w) = (self.levels(), self.d_model, self.heads * self.d_kv);
        let items = items.min(self.max_items);
        let per_item = c + usize::from(self.separator) + usize::from(self.vector_dim > 0);
        let s = items * per_item + usize::from(self.user_buckets > 0);
        let hidden = match self.feed_forward {
            FeedForward::Grid => 2 * d * self.d_ff + self.d_ff * self.d_ff,
            FeedForward::T5 => 2 * d * self.d_ff,
        };
        // Products per layer: maps of every token, and query by key, probability by value.
        let encoder = s * (4 * d * w + hidden) + 2 * s * s * w;
        let decoder = c * (6 * d * w + hidden) + s * 2 * d * w + c * (c + 1) * w + 2 * c * s * w;
        let heads: usize = (0..c).map(|level| self.head(level).width * d).sum();
        2.0 * (self.layers * (encoder + decoder) + heads + items * self.vector_dim * d) as f64
    }

    /// Number of parameters of each part.
    pub fn parameters_by_part(&self) -> Parameters {
        let mut count = Parameters::default();
        for d in self.declarations() {
            let n: usize = d.shape.iter().product();
            match d.name.split('.').next() {
                Some("encoder") => count.encoder += n,
                Some("decoder") => count.decoder += n,
                Some("heads") => count.heads += n,
                _ => count.embeddings += n,
            }
        }
        count
    }
}

/// Parameter counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Code, separator, BOS and user vectors, and the map of injected ones.
    pub embeddings: usize,
    /// Encoder blocks with norms and bias table.
    pub encoder: usize,
    /// Decoder blocks with norms and bias table.
    pub decoder: usize,
    /// Output heads.
    pub heads: usize,
}

impl Parameters {
    /// All of them.
    pub fn total(&self) -> usize {
        self.embeddings + self.encoder + self.decoder + self.heads
    }
}

/// A config and weights that fit it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiger {
    config: TigerConfig,
    weights: Weights,
}

impl Tiger {
    /// A fresh model, drawn from the seed.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub fn init(config: &TigerConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let weights = Weights::init(&config.declarations(), seed);
        Ok(Tiger {
            config: config.clone(),
            weights,
        })
    }

    /// A model of given weights.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::TensorNames`] or [`Error::ShapeMismatch`].
    pub fn from_weights(config: &TigerConfig, weights: Weights) -> Result<Self> {
        config.validate()?;
        weights.check(&config.declarations())?;
        Ok(Tiger {
            config: config.clone(),
            weights,
        })
    }

    /// Reads a model folder.
    ///
    /// # Errors
    /// Those of [`load_config`], [`TigerConfig::validate`] and [`Weights::load`].
    pub fn load(folder: &Path) -> Result<Self> {
        let config: TigerConfig = load_config(folder)?;
        config.validate()?;
        let weights = Weights::load(folder, &config.declarations())?;
        Ok(Tiger { config, weights })
    }

    /// Writes a model folder: `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.weights.save(folder, &self.config)
    }

    /// The config.
    pub fn config(&self) -> &TigerConfig {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights, to train in place; names and shapes must stay.
    pub(crate) fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_2() {
        let shapes = [
            ("336K", 1, 64, 3, 512),
            ("778K", 2, 64, 3, 512),
            ("1.9M", 5, 64, 3, 512),
            ("3.3M", 9, 64, 3, 512),
            ("6.7M", 3, 128, 6, 1024),
            ("13M", 4, 128, 6, 1024),
            ("21M", 7, 128, 6, 1024),
            ("43M", 8, 192, 9, 1536),
            ("88M", 9, 320, 15, 2560),
            ("192M", 20, 384, 18, 3072),
        ];
        let counts: Vec<String> = shapes
            .iter()
            .map(|&(name, layers, d_model, heads, d_ff)| {
                let count = |feed_forward| {
                    let config = TigerConfig {
                        codebook_sizes: vec![256; 4],
                        layers,
                        d_model,
                        heads,
                        d_ff,
                        feed_forward,
                        ..TigerConfig::default()
                    };
                    config.parameters_by_part().total()
                };
                format!("{name} {} {}", count(FeedForward::Grid), count(FeedForward::T5))
            })
            .collect();
        assert_eq!(
            counts,
            [
                "336K 936832 410368",
                "778K 1742144 689216",
                "1.9M 4158080 1525760",
                "3.3M 7379328 2641152",
                "6.7M 9911808 3607296",
                "13M 13128064 4722048",
                "21M 22776832 8066304",
                "43M 58257216 20456256",
                "88M 181403520 63340800",
                "192M 579116160 201367680",
            ]
        );
    }

    #[test]
    fn every_map_is_multiplied_with_every_token_it_sees() {
        for (feed_forward, output_heads) in [
            (FeedForward::Grid, OutputHeads::PerLevel),
            (FeedForward::T5, OutputHeads::Plain),
        ] {
            let config = TigerConfig {
                codebook_sizes: vec![5, 7, 3],
                layers: 2,
                d_model: 8,
                heads: 2,
                d_kv: 3,
                d_ff: 16,
                max_items: 4,
                user_buckets: 10,
                vector_dim: 6,
                feed_forward,
                output_heads,
                ..TigerConfig::default()
            };
            // A user token, and four items of three codes, a vector and a separator.
            let (encoded, decoded) = (1 + 4 * 5, 3);
            let maps = config
                .declarations()
                .into_iter()
                .filter(|d| d.shape.len() == 2 && !d.name.ends_with("bias"));
            let products = maps.map(|d| {
                let times = match d.name.split('.').next() {
                    Some("codes" | "users") => 0,
                    Some("vectors") => 4,
                    Some("encoder") => encoded,
                    _ if d.name.ends_with("cross.kv") => encoded,
                    Some("decoder") => decoded,
                    _ if output_heads == OutputHeads::Plain => 3,
                    _ => 1,
                };
                times * d.shape[0] * d.shape[1]
            });
            let pairs = encoded * encoded + (1 + 2 + 3) + decoded * encoded;
            let wanted = 2 * (products.sum::<usize>() + config.layers * pairs * 2 * (2 * 3));
            assert_eq!(config.forward_flops(4), wanted as f64);
            assert_eq!(config.forward_flops(9), wanted as f64);
        }
    }

    #[test]
    fn a_model_survives_its_folder() {
        let config = TigerConfig {
            codebook_sizes: vec![4, 4],
            layers: 1,
            d_model: 8,
            heads: 2,
            d_kv: 4,
            d_ff: 16,
            ..TigerConfig::default()
        };
        let model = Tiger::init(&config, 3).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path()).unwrap();
        assert_eq!(Tiger::load(folder.path()).unwrap(), model);
        let other = TigerConfig {
            user_buckets: 5,
            separator: false,
            ..config.clone()
        };
        let text = Weights::load(folder.path(), &other.declarations())
            .unwrap_err()
            .to_string();
        assert_eq!(
            text,
            "weights do not match the config: missing [users], unexpected [separator]"
        );
        let other = TigerConfig { d_ff: 8, ..config };
        let text = Weights::load(folder.path(), &other.declarations())
            .unwrap_err()
            .to_string();
        assert!(text.starts_with("shape mismatch in encoder.0.feed_forward.1: expected [8, 8], got [16, 8]"));
    }
}
