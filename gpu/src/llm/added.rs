//! Tokens that a language model did not have: new words with rows of their own, and items as soft tokens.
//!
//! Of a model of V tokens, token V + i is new word i: a trained row of the embeddings, and of the output map. Behind the
//! new words come items: token V + new + i is read as a projection of the vector of item i (two layers), and is never
//! written. Semantic ids as words and collaborative vectors beside titles (arXiv 2509.25522, Table 5 and its LLM-as-RS
//! variants) are made of these.

use super::{Llm, LlmConfig};
use crate::error::{Error, Result};
use crate::ops::{Dropout, Graph, Tape, Workspace};
use crate::weights::{Declaration, Init, Weight, Weights};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

const WORDS: &str = "added.words";
const VECTORS: &str = "added.vectors";
const FILE: &str = "added_tokens.safetensors";
/// Weights and biases of the two layers.
const LAYERS: [[&str; 2]; 2] = [
    ["added.projector.0.weight", "added.projector.0.bias"],
    ["added.projector.1.weight", "added.projector.1.bias"],
];

/// Tokens beyond a model's vocabulary.
#[derive(Debug, Clone, Default)]
pub struct Added {
    /// New words.
    pub words: usize,
    /// The vectors of the items that are soft tokens.
    pub vectors: Option<Arc<Vectors>>,
}

/// Vectors [N, V] of items.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    values_nv: Vec<f32>,
    dim: usize,
}

impl Vectors {
    /// From their numbers, row-major.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::InvalidData`] for a number that is not finite.
    pub fn new(values_nv: Vec<f32>, dim: usize) -> Result<Self> {
        if dim == 0 || !values_nv.len().is_multiple_of(dim) {
            return Err(Error::shape(
                "item vectors",
                format!("a multiple of {dim}"),
                values_nv.len(),
            ));
        }
        match values_nv.iter().position(|x| !x.is_finite()) {
            None => Ok(Vectors { values_nv, dim }),
            Some(at) => Err(Error::InvalidData(format!(
                "the vector of item {} is not finite",
                at / dim
            ))),
        }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.values_nv.len() / self.dim
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values_nv.is_empty()
    }
}

impl Added {
    /// Whether there are no tokens beside the model's own.
    pub fn is_empty(&self) -> bool {
        self.words == 0 && self.vectors.is_none()
    }

    /// Tokens that are read: all of them.
    pub fn readable(&self, config: &LlmConfig) -> usize {
        config.vocabulary() + self.words + self.vectors.as_ref().map_or(0, |vectors| vectors.len())
    }

    /// Tokens that are written: all but items.
    pub fn writable(&self, config: &LlmConfig) -> usize {
        config.vocabulary() + self.words
    }

    /// Names, shapes and starts of what is trained for them.
    pub(crate) fn declarations(&self, config: &LlmConfig) -> Vec<Declaration> {
        let d = config.width();
        let tensor = |name: &str, shape: Vec<usize>, init| Declaration {
            name: name.into(),
            shape,
            init,
        };
        let mut all = Vec::new();
        if self.words > 0 {
            all.push(tensor(WORDS, vec![self.words, d], Init::Normal(0.02)));
        }
        if let Some(vectors) = &self.vectors {
            let [[w0, b0], [w1, b1]] = LAYERS;
            let spread = (vectors.dim as f64).powf(-0.5);
            all.push(tensor(w0, vec![d, vectors.dim], Init::Normal(spread)));
            all.push(tensor(b0, vec![d], Init::Constant(0.0)));
            all.push(tensor(w1, vec![d, d], Init::Normal(0.02)));
            all.push(tensor(b1, vec![d], Init::Constant(0.0)));
        }
        all
    }

    /// What a stored state must have in common.
    pub(crate) fn identity(&self) -> serde_json::Value {
        let digest = self.vectors.as_ref().map(|vectors| {
            let bytes: Vec<u8> = vectors.values_nv.iter().flat_map(|x| x.to_le_bytes()).collect();
            blake3::hash(&bytes).to_hex().to_string()
        });
        serde_json::json!([self.words, digest])
    }

    /// The rows [T, D] that tokens are read as.
    pub(crate) fn embed<G: Graph>(&self, g: &mut G, config: &LlmConfig, tokens_t: &Arc<[u32]>) -> Result<G::Node> {
        let words_vd = g.weight(&config.name(config.decoder().embedding()))?;
        let (vocabulary, writable) = (config.vocabulary() as u32, self.writable(config) as u32);
        if tokens_t.iter().all(|token| *token < vocabulary) {
            return g.gather(&words_vd, tokens_t.clone());
        }
        // Rows of each kind are read together, then brought into the order of the tokens.
        let (mut own, mut new, mut items) = (vec![], vec![], vec![]);
        let mut rows_of: HashMap<u32, u32> = HashMap::new();
        for &token in tokens_t.iter() {
            let kind = match token {
                _ if token < vocabulary => &mut own,
                _ if token < writable => &mut new,
                _ => &mut items,
            };
            rows_of.entry(token).or_insert_with(|| {
                kind.push(token);
                kind.len() as u32 - 1
            });
        }
        let mut parts = Vec::new();
        if !own.is_empty() {
            parts.push(g.gather(&words_vd, own.clone().into())?);
        }
        if !new.is_empty() {
            let table = g.weight(WORDS)?;
            parts.push(g.gather(&table, new.iter().map(|token| token - vocabulary).collect())?);
        }
        if !items.is_empty() {
            let items: Vec<u32> = items.iter().map(|token| token - writable).collect();
            parts.push(self.project(g, &items)?);
        }
        let stacked = g.stack(&parts)?;
        let (first_new, first_item) = (own.len() as u32, (own.len() + new.len()) as u32);
        let place = |token: &u32| {
            let row = rows_of[token];
            match *token {
                token if token < vocabulary => row,
                token if token < writable => first_new + row,
                _ => first_item + row,
            }
        };
        g.gather(&stacked, tokens_t.iter().map(place).collect())
    }

    /// The rows [n, D] that some items are read as.
    fn project<G: Graph>(&self, g: &mut G, items: &[u32]) -> Result<G::Node> {
        let vectors = self
            .vectors
            .as_ref()
            .filter(|vectors| items.iter().all(|item| (*item as usize) < vectors.len()));
        let Some(vectors) = vectors else {
            return Err(Error::InvalidData("a token stands for no word and no item".into()));
        };
        let rows = items
            .iter()
            .map(|item| &vectors.values_nv[*item as usize * vectors.dim..][..vectors.dim]);
        let mut x = g.constant(&rows.collect::<Vec<_>>().concat(), vectors.dim)?;
        for ([w, b], relu) in LAYERS.into_iter().zip([true, false]) {
            let (w, b) = (g.weight(w)?, g.weight(b)?);
            x = g.linear(&x, &w, Some(&b), relu, Dropout::off())?;
        }
        Ok(x)
    }

    /// The output map with the new words.
    pub(crate) fn head<G: Graph>(&self, g: &mut G, config: &LlmConfig) -> Result<G::Node> {
        let head_vd = g.weight(&config.head())?;
        match self.words {
            0 => Ok(head_vd),
            _ => {
                let words = g.weight(WORDS)?;
                g.stack(&[head_vd, words])
            }
        }
    }

    /// Writes what is needed to read and write these tokens, if there are any.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, trained: &Weights, folder: &Path) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let own = trained
            .tensors()
            .iter()
            .filter(|tensor| tensor.name.starts_with("added."));
        let mut tensors: Vec<Weight> = own.cloned().collect();
        if let Some(vectors) = &self.vectors {
            tensors.push(Weight {
                name: VECTORS.into(),
                shape: vec![vectors.len(), vectors.dim],
                data: vectors.values_nv.clone(),
            });
        }
        Weights::from_tensors(tensors).write(&folder.join(FILE), None)
    }

    /// Whether a folder has such tokens.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }

    /// Adds the tokens that a folder has to a model, if there are any: new words to its vocabulary, items to what it
    /// reads.
    ///
    /// # Errors
    /// Of the file; [`Error::ShapeMismatch`] if they are for another model.
    pub fn merge(folder: &Path, model: &mut Llm) -> Result<()> {
        match Self::rows_in(folder, model.config())? {
            Some((words_nd, read_only_nd)) => model.add_tokens(&words_nd, read_only_nd),
            None => Ok(()),
        }
    }

    /// The rows [N, D] of the new words, and those of the items, that a folder has for a model, if there are any.
    pub(crate) fn rows_in(folder: &Path, config: &LlmConfig) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        if !Self::is_in(folder) {
            return Ok(None);
        }
        let weights = Weights::read_all(&folder.join(FILE))?;
        let rows = |name: &str| weights.get(name).ok();
        let vectors = match rows(VECTORS) {
            Some(t) => Some(Arc::new(Vectors::new(t.data.clone(), t.matrix().1)?)),
            None => None,
        };
        let added = Added {
            words: rows(WORDS).map_or(0, |words| words.matrix().0),
            vectors,
        };
        weights.check(&added.declarations(config))?;
        added.rows(&weights).map(Some)
    }

    /// [`Added::merge`] with tensors that are at hand.
    pub(crate) fn merge_into(&self, trained: &Weights, model: &mut Llm) -> Result<()> {
        let (words_nd, read_only_nd) = self.rows(trained)?;
        model.add_tokens(&words_nd, read_only_nd)
    }

    /// The rows of the new words, and those that items are read as.
    fn rows(&self, trained: &Weights) -> Result<(Vec<f32>, Vec<f32>)> {
        let projected = match &self.vectors {
            None => Vec::new(),
            Some(vectors) => {
                let mut workspace = Workspace::default();
                let mut tape = Tape::new(trained, &mut workspace);
                let items: Vec<u32> = (0..vectors.len() as u32).collect();
                let rows = self.project(&mut tape, &items)?;
                tape.values(&rows)?
            }
        };
        let words = match self.words {
            0 => Vec::new(),
            _ => trained.get(WORDS)?.data.clone(),
        };
        Ok((words, projected))
    }
}
