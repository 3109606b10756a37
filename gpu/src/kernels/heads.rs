//! Heads side by side: normed, rotated to their positions and repeated, every source straight into its columns.

use super::{Argument, Kernels, SHARES, THREADS, WARP, of_type, result_of, unwritten};
use crate::error::Result;
use crate::ops::{Heads, Source};
use crate::prenorm::rotary::Rotations;
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// Warps of a block.
const WARPS: usize = THREADS / WARP;

/// What holds for all heads of one operation, on the device; all layers of a forward pass have the same.
pub(crate) struct Places {
    /// K, the width of a head.
    pub key_dim: usize,
    /// Added to the mean square in the norm of a head.
    pub epsilon: f32,
    /// Of all positions, [P, K/2].
    pub cosines: Tensor,
    /// The same.
    pub sines: Tensor,
    /// The position of every row, [T].
    pub positions: Tensor,
}

impl Places {
    /// Copies them to the device.
    pub(crate) fn new(shape: &Heads, device: &Device) -> Result<Self> {
        let Rotations { cos_pk, sin_pk, pairs } = &*shape.rotations;
        let table = |of: &[f32]| Tensor::from_slice(of, (of.len() / pairs.max(&1), *pairs), device);
        Ok(Places {
            key_dim: shape.key_dim,
            epsilon: shape.epsilon,
            cosines: table(cos_pk)?,
            sines: table(sin_pk)?,
            positions: Tensor::from_slice(&shape.positions, shape.positions.len(), device)?,
        })
    }
}

/// What the kernels of a source need besides its matrices.
struct Part {
    /// Where it is among the inputs, and its norm.
    x: usize,
    norm: Option<usize>,
    rotate: bool,
    heads: usize,
    repeat: usize,
    /// Columns of the result before it.
    skipped: usize,
}

impl Kernels {
    /// Heads of all sources side by side in f32, checked before. Norms are f32.
    pub(crate) fn heads(&self, sources: &[Source<Tensor>], places: &Arc<Places>) -> Result<Tensor> {
        let (k, epsilon) = (places.key_dim, places.epsilon);
        let (mut inputs, mut parts, mut wide) = (vec![], vec![], 0);
        for source in sources {
            let heads = source.x.dim(1)? / k;
            let x = inputs.len();
            inputs.push(source.x.contiguous()?);
            if let Some(norm) = &source.norm {
                inputs.push(norm.contiguous()?);
            }
            parts.push(Part {
                x,
                norm: source.norm.is_some().then_some(x + 1),
                rotate: source.rotate,
                heads,
                repeat: source.repeat,
                skipped: wide,
            });
            wide += heads * k * source.repeat;
        }
        let of: Vec<&Tensor> = inputs.iter().collect();
        let rows = places.positions.dim(0)?;
        let numbers = move |part: &Part, epsilon: f32| {
            [
                Argument::Number(rows),
                Argument::Number(part.heads),
                Argument::Number(k),
                Argument::Number(part.repeat),
                Argument::Number(wide),
                Argument::Number(part.skipped),
                Argument::Real(epsilon),
            ]
        };
        let parts = Arc::new(parts);
        let (kernels, all, angles) = (self.clone(), parts.clone(), places.clone());
        let back = move |of: &[&Tensor], _: &Tensor, gradient: &Tensor| {
            let mut gradients = vec![None; of.len()];
            for part in &*all {
                let x = of[part.x];
                let norm = part.norm.map(|norm| of[norm]);
                let (wanted, gain_wanted) = (x.track_op(), norm.is_some_and(Tensor::track_op));
                if !wanted && !gain_wanted {
                    continue;
                }
                let whole = (rows * part.heads).div_ceil(WARPS);
                let blocks = if gain_wanted { whole.clamp(1, SHARES) } else { whole };
                let dx = wanted.then(|| unwritten(x, x.shape(), x.dtype())).transpose()?;
                let dgain = gain_wanted.then(|| unwritten(x, (blocks, k), DType::F32)).transpose()?;
                let matrices = [
                    &read(x, norm, part, &angles)[..],
                    &[
                        Argument::Read(gradient),
                        dx.as_ref().map_or(Argument::Absent, Argument::Write),
                        dgain.as_ref().map_or(Argument::Absent, Argument::Write),
                    ],
                ]
                .concat();
                let arguments = [&matrices[..], &numbers(part, epsilon)].concat();
                let kernel = of_type("heads_back", x.dtype())?;
                kernels.run(&kernel, (blocks, 1), THREADS, 2 * WARPS * k * 4, &arguments)?;
                gradients[part.x] = dx;
                if let (Some(norm), Some(shares)) = (part.norm, dgain) {
                    gradients[norm] = Some(kernels.column_sums(&shares)?);
                }
            }
            Ok(gradients)
        };
        let out = result_of("heads", &of, (rows, wide), DType::F32, back)?;
        for part in &*parts {
            let (x, norm) = (of[part.x], part.norm.map(|norm| of[norm]));
            let matrices = [&read(x, norm, part, places)[..], &[Argument::Write(&out)]].concat();
            let arguments = [&matrices[..], &numbers(part, epsilon)].concat();
            let blocks = (rows * part.heads).div_ceil(WARPS);
            let kernel = of_type("heads", x.dtype())?;
            self.run(&kernel, (blocks, 1), THREADS, WARPS * k * 4, &arguments)?;
        }
        Ok(out)
    }
}

/// What both directions read.
fn read<'a>(x: &'a Tensor, norm: Option<&'a Tensor>, part: &Part, places: &'a Places) -> [Argument<'a>; 5] {
    let angle = |of| {
        if part.rotate {
            Argument::Read(of)
        } else {
            Argument::Absent
        }
    };
    [
        Argument::Read(x),
        norm.map_or(Argument::Absent, Argument::Read),
        angle(&places.cosines),
        angle(&places.sines),
        angle(&places.positions),
    ]
}
