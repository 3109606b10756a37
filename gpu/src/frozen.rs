//! Weights that are read and never trained, in the numbers of their file: f32, f16 or bf16.
//!
//! Matrices of a checkpoint stay mapped. What reads them turns them to f32 a row or a panel at a time, which is exact, so
//! that a frozen model costs the memory of its files, in pages that the system may drop and read again.

use crate::encoder::Checkpoint;
use crate::error::{Error, Result};
use crate::ops::isa::vectorized;
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
            Numbers::F16(all) => widen_f16(&all[first..end], out),
            Numbers::Bf16(all) => widen_bf16(&all[first..end], out),
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
        self.stored.numbers()
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

    /// The numbers of the tensor of a name.
    ///
    /// # Errors
    /// [`Error::TensorNames`] if there is none.
    pub fn numbers(&self, name: &str) -> Result<Numbers<'_>> {
        Ok(self.tensors[self.place(name)?].numbers())
    }

    /// The numbers of the tensor of a name with their owner; the tensor that stays is empty.
    pub(crate) fn take(&mut self, name: &str) -> Result<Stored> {
        let at = self.place(name)?;
        Ok(std::mem::replace(
            &mut self.tensors[at].stored,
            Stored::Owned(Vec::new()),
        ))
    }

    fn place(&self, name: &str) -> Result<usize> {
        self.index(name).ok_or_else(|| Error::TensorNames {
            missing: vec![name.into()],
            unexpected: vec![],
        })
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
            let got = &self.tensors[self.place(&d.name)?];
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
            stored: t.data.into(),
        });
        Self::from_tensors(tensors.collect())
    }
}

/// Numbers with their owner.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    /// In memory.
    Owned(Vec<f32>),
    /// In a checkpoint, under a name of their own there.
    Mapped(Arc<Checkpoint>, String),
}

impl Stored {
    /// The numbers, row-major.
    pub(crate) fn numbers(&self) -> Numbers<'_> {
        match self {
            Stored::Owned(data) => Numbers::F32(data),
            Stored::Mapped(checkpoint, name) => checkpoint.numbers(name).unwrap_or(Numbers::F32(&[])),
        }
    }

    /// The numbers as f32.
    pub(crate) fn into_f32(self) -> Vec<f32> {
        match self {
            Stored::Owned(data) => data,
            mapped => mapped.numbers().to_f32(),
        }
    }
}

impl From<Vec<f32>> for Stored {
    fn from(data: Vec<f32>) -> Self {
        Stored::Owned(data)
    }
}

/// A table [V, D] of which rows are read: in the numbers it has, and in f32 the rows that were put behind it.
pub(crate) struct Table {
    own_vd: Stored,
    more_nd: Vec<f32>,
    width: usize,
    own: usize,
}

impl Table {
    /// A table of `width` columns.
    pub(crate) fn new(own_vd: Stored, width: usize) -> Self {
        Table {
            own: own_vd.numbers().len() / width,
            own_vd,
            more_nd: Vec::new(),
            width,
        }
    }

    /// Puts rows [N, D] behind it.
    pub(crate) fn extend(&mut self, more_nd: &[f32]) {
        self.more_nd.extend_from_slice(more_nd);
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.own + self.more_nd.len() / self.width
    }

    /// The numbers of its own rows, and of those behind them.
    pub(crate) fn parts(&self) -> [Numbers<'_>; 2] {
        [self.own_vd.numbers(), Numbers::F32(&self.more_nd)]
    }

    /// The rows, to read.
    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows {
            own_vd: self.own_vd.numbers(),
            more_nd: &self.more_nd,
            width: self.width,
        }
    }
}

/// The rows of a [`Table`].
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    own_vd: Numbers<'a>,
    more_nd: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    /// A row in f32: where it is, or as it becomes in `room`.
    pub(crate) fn get<'b>(self, row: usize, room: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        let (first, own) = (row * self.width, self.own_vd.len());
        match self.own_vd {
            _ if first >= own => &self.more_nd[first - own..][..self.width],
            Numbers::F32(all) => &all[first..][..self.width],
            Numbers::F16(_) | Numbers::Bf16(_) => {
                room.resize(self.width, 0.0);
                self.own_vd.write(first, room);
                room.as_slice()
            }
        }
    }
}

vectorized! {
    /// Numbers that are the upper 16 of 32 bits.
    fn widen_bf16(from: &[bf16], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(from) { *out = f32::from_bits(u32::from(x.to_bits()) << 16); }
    }
}

/// Numbers of 16 bits of IEEE 754.
fn widen_f16(from: &[f16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
        // SAFETY: the instructions were detected on this CPU.
        return unsafe { widen_f16c(from, out) };
    }
    from.convert_to_f32_slice(out);
}

/// The same, eight at a time; `half` makes a call of every eight.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
fn widen_f16c(from: &[f16], out: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let (from, from_rest) = from.as_chunks::<8>();
    let (out, out_rest) = out.as_chunks_mut::<8>();
    for (out, from) in out.iter_mut().zip(from) {
        // SAFETY: there are eight numbers on both sides.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) };
    }
    for (out, x) in out_rest.iter_mut().zip(from_rest) {
        *out = x.to_f32();
    }
}
