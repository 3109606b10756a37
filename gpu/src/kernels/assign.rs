//! The nearest centroids of rows by one kernel, which holds no matrix of distances.

use super::{Argument, Kernels};
use crate::error::{Error, Result};
use candle_core::{DType, Tensor};

/// Threads of a block.
const THREADS: usize = 256;
/// Rows of a block.
const TILE: usize = 64;
/// Bytes of a block: two tiles of 64 rows that are 36 numbers apart, and what 16 threads found for every row.
const SHARED: usize = 2 * TILE * 36 * 4 + TILE * 16 * 12;

impl Kernels {
    /// The nearest of `centroids` [C, D] to every row of `x` [N, D], of equals the first, as [`crate::kmeans::assign`]
    /// has it: [N] of u32. Both are f32 and finite; what one pass in f32 cannot tell apart is decided in f64.
    pub(crate) fn assign(&self, x: &Tensor, centroids: &Tensor) -> Result<Tensor> {
        let ((n, d), (count, width)) = (x.dims2()?, centroids.dims2()?);
        if width != d || count == 0 || d == 0 {
            return Err(Error::shape("assign", ("1 or more", d), (count, width)));
        }
        for of in [x, centroids] {
            if of.dtype() != DType::F32 {
                return Err(Error::shape("assign", "f32", of.dtype().as_str()));
            }
        }
        let (x, centroids) = (x.contiguous()?, centroids.contiguous()?);
        let index = Tensor::zeros(n, DType::U32, x.device())?;
        // A sum of d squares in f32 errs by at most (d + 3) units of roundoff, relatively: two of them, with some room.
        let slack = 2.1 * (d + 8) as f32 * (f32::EPSILON / 2.0);
        let arguments = [
            Argument::Read(&x),
            Argument::Read(&centroids),
            Argument::Write(&index),
            Argument::Number(n),
            Argument::Number(count),
            Argument::Number(d),
            Argument::Real(slack),
        ];
        self.run("assign_f32", (n.div_ceil(TILE), 1), THREADS, SHARED, &arguments)?;
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simulator::{device, kernels};
    use crate::kmeans;
    use crate::random::Key;

    fn check(n: usize, d: usize, rows_nd: &[f32], centroids_cd: &[f32]) {
        let Some(kernels) = kernels() else {
            return;
        };
        let count = centroids_cd.len() / d;
        let x = Tensor::from_slice(rows_nd, (n, d), &device()).unwrap();
        let centroids = Tensor::from_slice(centroids_cd, (count, d), &device()).unwrap();
        let index = kernels.assign(&x, &centroids).unwrap();
        let (want, _) = kmeans::assign(rows_nd, d, centroids_cd).unwrap();
        assert_eq!(index.to_vec1::<u32>().unwrap(), want, "{n} x {d}, {count}");
    }

    fn normal(seed: u64, n: usize, offset: f64) -> Vec<f32> {
        (0..n as u64)
            .map(|i| (offset + Key::new(seed).normal(i)) as f32)
            .collect()
    }

    #[test]
    fn the_nearest_of_odd_sizes() {
        for (n, d, count) in [
            (1, 1, 1),
            (7, 33, 5),
            (65, 7, 130),
            (130, 64, 64),
            (64, 100, 65),
            (3, 129, 13),
        ] {
            check(n, d, &normal(1, n * d, 0.0), &normal(2, count * d, 0.0));
        }
    }

    /// A large common offset, and distances beyond f32.
    #[test]
    fn what_f32_cannot_tell_apart() {
        check(33, 13, &normal(1, 33 * 13, 1e5), &normal(2, 33 * 13, 1e5));
        let far = |seed| {
            normal(seed, 13 * 7, 0.0)
                .into_iter()
                .map(|x| x * 1e25)
                .collect::<Vec<_>>()
        };
        let Some(kernels) = kernels() else {
            return;
        };
        let of = |x: &[f32]| Tensor::from_slice(x, (13, 7), &device()).unwrap();
        let index = kernels.assign(&of(&far(1)), &of(&far(2))).unwrap();
        let (want, _) = kmeans::assign(&far(1), 7, &far(2)).unwrap();
        assert_eq!(index.to_vec1::<u32>().unwrap(), want);
    }

    #[test]
    fn of_equal_centroids_the_first() {
        let rows = normal(1, 33 * 7, 0.0);
        let mut centroids = normal(2, 40 * 7, 0.0);
        let again = centroids.clone();
        centroids.extend_from_slice(&again);
        centroids.extend_from_slice(&rows[7..14]);
        check(33, 7, &rows, &centroids);
    }

    #[test]
    fn misuse_is_an_error() {
        let Some(kernels) = kernels() else {
            return;
        };
        let of = |rows, columns| Tensor::zeros((rows, columns), DType::F32, &device()).unwrap();
        assert!(kernels.assign(&of(3, 5), &of(2, 4)).is_err());
        assert!(kernels.assign(&of(3, 5), &of(0, 5)).is_err());
        assert!(
            kernels
                .assign(&of(3, 5).to_dtype(DType::BF16).unwrap(), &of(2, 5))
                .is_err()
        );
    }
}
