//! The distinct texts of a catalogue and their embeddings, some of them out of earlier results.

use std::collections::HashMap;

use arrow::array::{Array, StringArray};
use sluice_engine::operator::OUT;
use sluice_engine::table::Tables;
use sluice_engine::{Error, Result};

use super::INPUT;
use crate::schema::{self, ITEM_ID, TEXT};

/// Distinct texts in the order in which they come first, each with its embedding once it is known.
pub struct Distinct<'a> {
    texts: Vec<&'a str>,
    /// Position in `texts` by text.
    places: HashMap<&'a str, usize>,
    /// Position in `texts` by row of the catalogue.
    of_row: Vec<usize>,
    width: usize,
    values: Vec<f32>,
    origin: Vec<Origin>,
}

/// Where an embedding comes from.
#[derive(Clone, Copy, PartialEq)]
enum Origin {
    Missing,
    Reused,
    Embedded,
}

/// Rows of the catalogue by the work they took. They add up to all rows.
#[derive(Debug, PartialEq)]
pub struct Rows {
    /// The encoder ran for them.
    pub embedded: usize,
    /// First of their text, which an earlier result holds.
    pub reused: usize,
    /// Their text came before.
    pub repeated: usize,
}

impl<'a> Distinct<'a> {
    /// The texts of a catalogue, none of them embedded.
    pub fn new(rows: &'a StringArray, width: usize) -> Self {
        let (mut texts, mut places) = (Vec::new(), HashMap::new());
        let of_row = (0..rows.len())
            .map(|row| {
                *places.entry(rows.value(row)).or_insert_with(|| {
                    texts.push(rows.value(row));
                    texts.len() - 1
                })
            })
            .collect();
        Distinct {
            values: vec![0.0; texts.len() * width],
            origin: vec![Origin::Missing; texts.len()],
            texts,
            places,
            of_row,
            width,
        }
    }

    /// A text.
    pub fn text(&self, at: usize) -> &'a str {
        self.texts[at]
    }

    /// Positions of the texts without an embedding.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.texts.len())
            .filter(|at| self.origin[*at] == Origin::Missing)
            .collect()
    }

    /// Takes what is missing and an earlier result holds. Its rows are those of its input, one by one; if they are not,
    /// or one cannot be read, nothing is taken.
    pub fn reuse(&mut self, inputs: &Tables, outputs: &Tables) -> Result<()> {
        let catalogue = inputs.batch(INPUT)?;
        let (items, texts) = (
            schema::strings(&catalogue, ITEM_ID)?,
            schema::strings(&catalogue, TEXT)?,
        );
        let mut taken: Vec<(usize, Vec<f32>)> = Vec::new();
        let mut row = 0;
        for batch in outputs.table(OUT)?.batches()? {
            let batch = batch?;
            let (values, width) = schema::embedding_values(&batch)?;
            if width != self.width {
                return Err(unfit("has embeddings of another width"));
            }
            for (item, vector) in schema::strings(&batch, ITEM_ID)?.iter().zip(values.chunks_exact(width)) {
                if row == items.len() || item != Some(items.value(row)) {
                    return Err(unfit("has other items than its input"));
                }
                let place = self.places.get(texts.value(row));
                if let Some(at) = place.filter(|at| self.origin[**at] == Origin::Missing) {
                    if vector.iter().any(|value| !value.is_finite()) {
                        return Err(unfit("has a number that is none"));
                    }
                    taken.push((*at, vector.to_vec()));
                }
                row += 1;
            }
        }
        if row != items.len() {
            return Err(unfit("has fewer items than its input"));
        }
        for (at, vector) in taken {
            self.put(at, &vector, Origin::Reused);
        }
        Ok(())
    }

    /// Notes the embedding of a text that the encoder computed.
    pub fn embedded(&mut self, at: usize, vector: &[f32]) {
        self.put(at, vector, Origin::Embedded);
    }

    fn put(&mut self, at: usize, vector: &[f32], origin: Origin) {
        self.values[at * self.width..(at + 1) * self.width].copy_from_slice(vector);
        self.origin[at] = origin;
    }

    /// What the rows of the catalogue took.
    pub fn rows(&self) -> Rows {
        let count = |origin| self.origin.iter().filter(|of| **of == origin).count();
        Rows {
            embedded: count(Origin::Embedded),
            reused: count(Origin::Reused),
            repeated: self.of_row.len() - self.texts.len(),
        }
    }

    /// The embeddings of all rows, row-major.
    pub fn into_values(self) -> Vec<f32> {
        if self.texts.len() == self.of_row.len() {
            return self.values;
        }
        let vector = |at: &usize| &self.values[at * self.width..(at + 1) * self.width];
        self.of_row.iter().flat_map(vector).copied().collect()
    }
}

fn unfit(reason: &str) -> Error {
    Error::data("unfit-result", format!("an earlier result {reason}"))
}
