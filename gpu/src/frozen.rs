//! Weights that are read and never trained, in the numbers of their file: f32, f16 or bf16.
//!
//! Matrices of a checkpoint stay mapped. What reads them turns them to f32 a row or a panel at a time, which is exact, so
//! that a frozen model costs the memory of its files, in pages that the system may drop and read again.

use crate::encoder::Checkpoint;
use crate::error::{Error, Result};
use crate::weights::{Declaration, Weight, Weights, digest, matrix};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::Arc;

/// Numbers to read.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// Of 32 bits.
    F32(&'a [f32]),
    /// Of 16 bits, IEEE 754.
    F16(&'a [f16]),
    /// The upper 16 of 32 bits.
    Bf16(&'a [bf16]),
}

impl<'a> Numbers<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(all) => all.len(),
            Numbers::F16(all) => all.len(),
            Numbers::Bf16(all) => all.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes they take.
    pub fn bytes(&self) -> usize {
        match self {
            Numbers::F32(all) => size_of_val(*all),
            Numbers::F16(_) | Numbers::Bf16(_) => 2 * self.len(),
        }
    }

    /// Those from `first` on.
    pub(crate) fn skip(self, first: usize) -> Self {
        match self {
            Numbers::F32(all) => Numbers::F32(&all[first..]),
            Numbers::F16(all) => Numbers::F16(&all[first..]),
            Numbers::Bf16(all) => Numbers::Bf16(&all[first..]),
        }
    }

    /// Writes those from `first` on as f32.
    pub(crate) fn write(&self, first: usize, out: &mut [f32]) {
        let end = first + out.len();
        match self {
            Numbers::F32(all) => out.copy_from_slice(&all[first..end]),
            Numbers::F16(all) => all[first..end].convert_to_f32_slice(out),
            Numbers::Bf16(all) => {
                for (out, x) in out.iter_mut().zip(&all[first..end]) {
                    *out = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            }
        }
    }

    /// All of them as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.len()];
        self.write(0, &mut all);
        all
    }

    /// The numbers themselves, of a vector or of what was computed: neither is ever of 16 bits.
    pub(crate) fn f32s(self) -> &'a [f32] {
        match self {
            Numbers::F32(all) => all,
            Numbers::F16(_) | Numbers::Bf16(_) => {
                unreachable!("a matrix of 16 bits where only products and rows read them")
            }
        }
    }
}

/// One frozen tensor.
#[derive(Debug, Clone)]
pub struct FrozenTensor {
    /// Name, unique in its store.
    pub name: String,
    /// Shape: one or two dimensions.
    pub shape: Vec<usize>,
    stored: Stored,
}

#[derive(Debug, Clone)]
enum Stored {
    Owned(Vec<f32>),
    /// Under a name of its own there.
    Mapped(Arc<Checkpoint>, String),
}

impl FrozenTensor {
    /// The tensor `from` of a checkpoint: mapped if it is a matrix.
    pub(crate) fn of(
        checkpoint: &Arc<Checkpoint>,
        from: String,
        name: String,
        shape: Vec<usize>,
    ) -> std::result::Result<Self, crate::encoder::EncoderError> {
        let stored = match shape.len() > 1 && checkpoint.numbers(&from).is_some() {
            true => Stored::Mapped(checkpoint.clone(), from),
            false => Stored::Owned(checkpoint.get(&from)?),
        };
        Ok(FrozenTensor { name, shape, stored })
    }

    /// Rows and columns; a vector is one row.
    pub fn matrix(&self) -> (usize, usize) {
        matrix(&self.shape)
    }

    /// The numbers, row-major.
    pub fn numbers(&self) -> Numbers<'_> {
        match &self.stored {
            Stored::Owned(data) => Numbers::F32(data),
            Stored::Mapped(checkpoint, name) => checkpoint.numbers(name).unwrap_or(Numbers::F32(&[])),
        }
    }
}

/// An ordered store of frozen tensors.
#[derive(Debug, Clone, Default)]
pub struct Frozen {
    tensors: Vec<FrozenTensor>,
    index: HashMap<String, usize>,
}

impl Frozen {
    /// A store of these tensors, in this order.
    pub(crate) fn from_tensors(tensors: Vec<FrozenTensor>) -> Self {
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Frozen { tensors, index }
    }

    /// All tensors, in order.
    pub fn tensors(&self) -> &[FrozenTensor] {
        &self.tensors
    }

    /// Position of a name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Bytes of all numbers.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(|t| t.numbers().bytes()).sum()
    }

    /// All tensors in f32, to train or to change.
    pub fn to_weights(&self) -> Weights {
        let tensors = self.tensors.iter().map(|t| Weight {
            name: t.name.clone(),
            shape: t.shape.clone(),
            data: t.numbers().to_f32(),
        });
        Weights::from_tensors(tensors.collect())
    }

    /// A digest of all names, shapes and numbers: that of [`Frozen::to_weights`].
    pub fn digest(&self) -> String {
        digest(
            self.tensors
                .iter()
                .map(|t| (t.name.as_str(), &t.shape[..], t.numbers())),
        )
    }

    /// Checks that every declared weight is here, of its shape.
    ///
    /// # Errors
    /// [`Error::TensorNames`] or [`Error::ShapeMismatch`].
    pub fn check(&self, declarations: &[Declaration]) -> Result<()> {
        for d in declarations {
            let Some(at) = self.index(&d.name) else {
                return Err(Error::TensorNames {
                    missing: vec![d.name.clone()],
                    unexpected: vec![],
                });
            };
            let got = &self.tensors[at];
            if got.shape != d.shape || got.numbers().len() != d.shape.iter().product::<usize>() {
                return Err(Error::shape(&d.name, &d.shape, &got.shape));
            }
        }
        Ok(())
    }
}

impl From<Weights> for Frozen {
    fn from(weights: Weights) -> Self {
        let tensors = weights.into_tensors().into_iter().map(|t| FrozenTensor {
            name: t.name,
            shape: t.shape,
            stored: Stored::Owned(t.data),
        });
        Self::from_tensors(tensors.collect())
    }
}
