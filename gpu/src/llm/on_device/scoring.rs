//! From states to the log-probabilities of next tokens.

use super::{DeviceDecoder, full};
use crate::error::Result;
use crate::kernels::{Among, Kernels};
use crate::llm::Normalisation;
use crate::llm::reader::{Asked, Next};
use candle_core::Tensor;

/// Logits that are held at a time: 512 MiB; in tests few.
const LOGITS: usize = if cfg!(test) { 500 } else { 128 << 20 };

/// The rows of some beams on their way to log-probabilities.
struct Scoring<'a> {
    asked: &'a [Asked<'a>],
    x_rd: Tensor,
    /// The head of the tokens that have a logit.
    head_cd: Tensor,
    /// These tokens, where they are not all.
    only: Option<Vec<u32>>,
}

impl DeviceDecoder {
    /// See `Reader::next_tokens`.
    pub(super) fn continuations(&self, states_sd: &Tensor, asked: &[Asked], most: usize) -> Result<Vec<Vec<Next>>> {
        let only = match self.normalisation {
            Normalisation::Vocabulary => None,
            Normalisation::Children => {
                let mut tokens: Vec<u32> = asked.iter().flat_map(|beam| beam.tokens).copied().collect();
                tokens.sort_unstable();
                tokens.dedup();
                Some(tokens)
            }
        };
        let head = match &only {
            None => self.head_vd.clone(),
            Some(tokens) => self.head_vd.index_select(&self.indices(tokens.clone())?, 0)?,
        };
        let rows = asked.iter().map(|beam| beam.row).collect();
        let scoring = Scoring {
            asked,
            x_rd: states_sd.index_select(&self.indices(rows)?, 0)?,
            head_cd: full(&head)?,
            only,
        };
        match &self.kernels {
            Some(kernels) => scoring.by_kernels(kernels, most),
            None => scoring.by_tensors(self),
        }
    }
}

impl Scoring<'_> {
    /// Places of beams whose logits are held together.
    fn pieces(&self) -> impl Iterator<Item = (usize, usize)> {
        let (rows, size) = (self.asked.len(), (LOGITS / self.head_cd.dims()[0]).max(1));
        (0..rows)
            .step_by(size)
            .map(move |first| (first, size.min(rows - first)))
    }

    fn logits(&self, (first, rows): (usize, usize)) -> Result<Tensor> {
        Ok(self.x_rd.narrow(0, first, rows)?.matmul(&self.head_cd.t()?)?)
    }

    fn column(&self, token: u32) -> u32 {
        match &self.only {
            None => token,
            Some(tokens) => tokens.partition_point(|other| *other < token) as u32,
        }
    }

    fn by_kernels(&self, kernels: &Kernels, most: usize) -> Result<Vec<Vec<Next>>> {
        let (mut starts, mut columns) = (vec![0], Vec::new());
        for beam in self.asked {
            columns.extend(beam.tokens.iter().map(|token| self.column(*token)));
            starts.push(columns.len() as u32);
        }
        let (mut users, mut row) = (vec![0], 0);
        for beams in self.asked.chunk_by(|a, b| a.user == b.user) {
            row += beams.len();
            users.push(starts[row]);
        }
        let among = match self.only {
            None => Among::All,
            Some(_) => Among::Candidates,
        };
        let scores: Vec<f32> = self.asked.iter().map(|beam| beam.score as f32).collect();
        let candidates = kernels.candidates(&scores, &starts, &columns, among)?;
        for piece in self.pieces() {
            candidates.score(piece.0, &self.logits(piece)?)?;
        }
        let mut found = vec![Vec::new(); self.asked.len()];
        for (candidate, log_probability) in candidates.best(&users, most)? {
            let beam = starts.partition_point(|start| *start <= candidate) - 1;
            found[beam].push((candidate - starts[beam], f64::from(log_probability)));
        }
        Ok(found)
    }

    /// All of them.
    fn by_tensors(&self, decoder: &DeviceDecoder) -> Result<Vec<Vec<Next>>> {
        let columns = self.head_cd.dim(0)?;
        let mut found = Vec::with_capacity(self.asked.len());
        for piece in self.pieces() {
            let asked = &self.asked[piece.0..][..piece.1];
            let logits_rc = self.logits(piece)?;
            let places = asked.iter().enumerate().flat_map(|(row, beam)| {
                let place = move |token: &u32| row as u32 * columns as u32 + self.column(*token);
                beam.tokens.iter().map(place)
            });
            let picked = decoder.indices(places.collect())?;
            let picked: Vec<f32> = logits_rc.flatten_all()?.index_select(&picked, 0)?.to_vec1()?;
            let totals: Option<Vec<f32>> = match self.only {
                None => Some(logits_rc.log_sum_exp(1)?.to_vec1()?),
                Some(_) => None,
            };
            let mut picked = &picked[..];
            for (row, beam) in asked.iter().enumerate() {
                let (logits, rest) = picked.split_at(beam.tokens.len());
                let total = totals
                    .as_ref()
                    .map_or_else(|| log_sum(logits), |totals| f64::from(totals[row]));
                found.push(
                    (0..)
                        .zip(logits.iter().map(|logit| f64::from(*logit) - total))
                        .collect(),
                );
                picked = rest;
            }
        }
        Ok(found)
    }
}

fn log_sum(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + logits
        .iter()
        .map(|logit| (f64::from(*logit) - most).exp())
        .sum::<f64>()
        .ln()
}
