//! Row kernels on f32 slices with a fixed order of summation: dot products, layer norm, softmax, GELU.
//!
//! Every kernel is compiled for AVX-512, AVX2 and the plain target and picked at run time (`pulp`).

use pulp::Arch;

const LANES: usize = 16;
const FRAC_1_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Declares kernels whose body is inlined into a function compiled for each instruction set. (A closure handed to
/// `dispatch` is inlined only where the compiler likes to, and runs as plain SSE2 where it does not.)
macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident<'a>($($arg:ident: $type:ty),*) -> $out:ty $body:block)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name<'a>($($arg: $type),*) -> $out {
            struct Call<'a> {
                $($arg: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl<'a> pulp::NullaryFnOnce for Call<'a> {
                type Output = $out;
                #[inline(always)]
                fn call(self) -> $out {
                    let Call { $($arg,)* lifetime: _ } = self;
                    $body
                }
            }
            Arch::new().dispatch(Call { $($arg,)* lifetime: std::marker::PhantomData })
        }
    )*};
}

kernels! {
/// `sum_i (a[i] - b[i])^2` in f64.
fn squared_distance<'a>(a: &'a [f32], b: &'a [f32]) -> f64 {

        let mut sums = [0f64; LANES];
        let (a_lanes, a_rest) = a.as_chunks::<LANES>();
        let (b_lanes, b_rest) = b.as_chunks::<LANES>();
        for (x, y) in a_lanes.iter().zip(b_lanes) {
            for i in 0..LANES {
                let d = x[i] as f64 - y[i] as f64;
                sums[i] += d * d;
            }
        }
        let rest: f64 = a_rest
            .iter()
            .zip(b_rest)
            .map(|(x, y)| (*x as f64 - *y as f64).powi(2))
            .sum();
        sums.iter().sum::<f64>() + rest

}

/// `sum_i a[i]^2` in f64.
fn squared_norm<'a>(a: &'a [f32]) -> f64 {

        let mut sums = [0f64; LANES];
        let (lanes, rest) = a.as_chunks::<LANES>();
        for x in lanes {
            for i in 0..LANES {
                sums[i] += x[i] as f64 * x[i] as f64;
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|x| *x as f64 * *x as f64).sum::<f64>()

}

/// `sum[i] += weight * row[i]`, all in f64.
fn add_scaled_f64<'a>(sum: &'a mut [f64], row: &'a [f64], weight: f64) -> () {
    for (s, x) in sum.iter_mut().zip(row) {
        *s += weight * *x;
    }
}

/// `sum_i a[i] * b[i]` in f64.
fn dot_f64<'a>(a: &'a [f64], b: &'a [f64]) -> f64 {
    let mut sums = [0f64; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum::<f64>()
}

/// `(a, b) = (c a - s b, s a + c b)`.
fn rotate_f64<'a>(a: &'a mut [f64], b: &'a mut [f64], c: f64, s: f64) -> () {
    for (x, y) in a.iter_mut().zip(b.iter_mut()) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// `sum[i] += weight * row[i]` in f64.
fn add_scaled<'a>(sum: &'a mut [f64], row: &'a [f32], weight: f64) -> () {

        for (s, x) in sum.iter_mut().zip(row) {
            *s += weight * *x as f64;
        }

}

/// For every row of `x_ND` (width D): add the row of `residual_ND`, subtract the mean, divide by
/// `sqrt(variance + epsilon)`, then scale and shift.
fn add_layer_norm<'a>(x_nd: &'a mut [f32], residual_nd: &'a [f32], scale_d: &'a [f32], shift_d: &'a [f32], epsilon: f32) -> () {
    let width = scale_d.len();

        for (x, r) in x_nd.chunks_exact_mut(width).zip(residual_nd.chunks_exact(width)) {
            for (x, r) in x.iter_mut().zip(r) {
                *x += *r;
            }
            layer_norm_inline(x, scale_d, shift_d, epsilon);
        }

}

/// Layer norm of every row of `x_ND`, in place.
fn layer_norm<'a>(x_nd: &'a mut [f32], scale_d: &'a [f32], shift_d: &'a [f32], epsilon: f32) -> () {

        for x in x_nd.chunks_exact_mut(scale_d.len()) {
            layer_norm_inline(x, scale_d, shift_d, epsilon);
        }

}

/// Softmax of `scale * row` for every row of `x_NT` (width T), in place.
fn softmax<'a>(x_nt: &'a mut [f32], width: usize, scale: f32) -> () {

        for row in x_nt.chunks_exact_mut(width) {
            let mut most = [f32::NEG_INFINITY; LANES];
            let (lanes, rest) = row.as_chunks::<LANES>();
            for x in lanes {
                for i in 0..LANES {
                    most[i] = if x[i] > most[i] { x[i] } else { most[i] };
                }
            }
            let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            for x in row.iter_mut() {
                *x = exp_inline((*x - most) * scale);
            }
            let factor = 1.0 / sum_inline(row);
            for x in row.iter_mut() {
                *x *= factor;
            }
        }

}

/// `x / 2 * (1 + erf(x / sqrt(2)))`, in place.
fn gelu<'a>(x: &'a mut [f32]) -> () {

        for v in x.iter_mut() {
            *v = 0.5 * *v * (1.0 + erf_inline(*v * FRAC_1_SQRT_2));
        }

}

/// The tanh form of GELU (`gelu_new`), in place.
fn gelu_tanh<'a>(x: &'a mut [f32]) -> () {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;

        for v in x.iter_mut() {
            let inner = SQRT_2_OVER_PI * (*v + 0.044715 * *v * *v * *v);
            let tanh = 1.0 - 2.0 / (exp_inline(2.0 * inner) + 1.0);
            *v = 0.5 * *v * (1.0 + tanh);
        }

}

/// `max(x, 0)`, in place.
fn relu<'a>(x: &'a mut [f32]) -> () {

        for v in x.iter_mut() {
            *v = if *v > 0.0 { *v } else { 0.0 };
        }

}

/// `x / (1 + exp(-x))`, in place.
fn silu<'a>(x: &'a mut [f32]) -> () {

        for v in x.iter_mut() {
            *v /= 1.0 + exp_inline(-*v);
        }

}

/// `x *= y`, element by element.
fn multiply<'a>(x: &'a mut [f32], y: &'a [f32]) -> () {

        for (x, y) in x.iter_mut().zip(y) {
            *x *= *y;
        }

}

/// Scores `norm_K[k] - 2 * x_K[k]` in place; returns the least.
fn scores_from_dots<'a>(x_k: &'a mut [f32], norm_k: &'a [f32]) -> f32 {

        let mut least = [f32::INFINITY; LANES];
        let (x_lanes, x_rest) = x_k.as_chunks_mut::<LANES>();
        let (n_lanes, n_rest) = norm_k.as_chunks::<LANES>();
        for (x, n) in x_lanes.iter_mut().zip(n_lanes) {
            for i in 0..LANES {
                x[i] = n[i] - 2.0 * x[i];
                least[i] = if x[i] < least[i] { x[i] } else { least[i] };
            }
        }
        let mut all = f32::INFINITY;
        for (x, n) in x_rest.iter_mut().zip(n_rest) {
            *x = *n - 2.0 * *x;
            all = all.min(*x);
        }
        least.iter().fold(all, |a, b| a.min(*b))

}

/// The least entry (infinity where there is none).
fn least<'a>(x_k: &'a [f32]) -> f32 {

        let mut least = [f32::INFINITY; LANES];
        let (lanes, rest) = x_k.as_chunks::<LANES>();
        for x in lanes {
            for i in 0..LANES {
                least[i] = if x[i] < least[i] { x[i] } else { least[i] };
            }
        }
        least.iter().chain(rest).fold(f32::INFINITY, |a, b| a.min(*b))

}

/// How many entries are at most `bound`, and the first of them.
fn count_at_most<'a>(x_k: &'a [f32], bound: f32) -> (usize, usize) {

        let mut count = 0u32;
        let mut first = u32::MAX;
        for (k, x) in x_k.iter().enumerate() {
            let hit = *x <= bound;
            count += hit as u32;
            first = first.min(if hit { k as u32 } else { u32::MAX });
        }
        (count as usize, first as usize)

}
}

/// Dot products [N, L] of every row of `x_ND` with every row of `y_LD` (width `dim`), for a few `y`.
pub(crate) fn dots(x_nd: &[f32], y_ld: &[f32], dim: usize, out_nl: &mut [f32]) {
    Arch::new().dispatch(Dots {
        x_nd,
        y_ld,
        dim,
        out_nl,
    })
}

struct Dots<'a> {
    x_nd: &'a [f32],
    y_ld: &'a [f32],
    dim: usize,
    out_nl: &'a mut [f32],
}

impl pulp::WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Dots {
            x_nd,
            y_ld,
            dim,
            out_nl,
        } = self;
        let count = y_ld.len() / dim;
        for (x, out_l) in x_nd.chunks_exact(dim).zip(out_nl.chunks_exact_mut(count)) {
            for (y_bd, out_b) in y_ld.chunks(4 * dim).zip(out_l.chunks_mut(4)) {
                match out_b.len() {
                    4 => out_b.copy_from_slice(&block_dots::<S, 4>(simd, x, y_bd)),
                    3 => out_b.copy_from_slice(&block_dots::<S, 3>(simd, x, y_bd)),
                    2 => out_b.copy_from_slice(&block_dots::<S, 2>(simd, x, y_bd)),
                    _ => out_b.copy_from_slice(&block_dots::<S, 1>(simd, x, y_bd)),
                }
            }
        }
    }
}

/// Dot products of `x` with R rows lying one after the other.
#[inline(always)]
fn block_dots<S: pulp::Simd, const R: usize>(simd: S, x: &[f32], y_rd: &[f32]) -> [f32; R] {
    let d = x.len();
    let (x_lanes, x_rest) = S::as_simd_f32s(x);
    let mut parts: [(&[S::f32s], &[f32]); R] = [(&[], &[]); R];
    for (r, part) in parts.iter_mut().enumerate() {
        let (lanes, rest) = S::as_simd_f32s(&y_rd[r * d..(r + 1) * d]);
        *part = (&lanes[..x_lanes.len()], rest);
    }
    let mut sums = [simd.splat_f32s(0.0); R];
    for (at, x) in x_lanes.iter().enumerate() {
        for r in 0..R {
            sums[r] = simd.mul_add_f32s(*x, parts[r].0[at], sums[r]);
        }
    }
    let mut out = [0f32; R];
    for r in 0..R {
        let rest: f32 = x_rest.iter().zip(parts[r].1).map(|(x, y)| x * y).sum();
        out[r] = simd.reduce_sum_f32s(sums[r]) + rest;
    }
    out
}

#[inline(always)]
fn dot_inline(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn sum_inline(a: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (lanes, rest) = a.as_chunks::<LANES>();
    for x in lanes {
        for i in 0..LANES {
            sums[i] += x[i];
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

#[inline(always)]
fn layer_norm_inline(x: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
    let mean = sum_inline(x) / x.len() as f32;
    for v in x.iter_mut() {
        *v -= mean;
    }
    let factor = 1.0 / (dot_inline(x, x) / x.len() as f32 + epsilon).sqrt();
    for ((v, s), b) in x.iter_mut().zip(scale).zip(shift) {
        *v = *v * factor * *s + *b;
    }
}

/// Cephes `expf`: relative error below 2e-7; 0 below -87, about 3e38 above 88.
#[inline(always)]
fn exp_inline(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = if x > 88.0 { 88.0 } else { x };
    let clamped = if x < -87.0 { -87.0 } else { x };
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let power = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { y * power }
}

/// Rational approximation of erf on [-4, 4] (as in XLA and Eigen): absolute error below 3e-7.
#[inline(always)]
fn erf_inline(x: f32) -> f32 {
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let s = x * x;
    let mut p = -2.726_142_3e-10;
    p = p * s + 2.770_681_4e-8;
    p = p * s + -2.101_024e-6;
    p = p * s + -5.692_506_4e-5;
    p = p * s + -7.349_906_3e-4;
    p = p * s + -2.954_6e-3;
    p = p * s + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * s + -2.133_740_6e-4;
    q = q * s + -1.682_827e-3;
    q = q * s + -7.373_329e-3;
    q = q * s + -1.426_473_9e-2;
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_gelu_agree_with_f64() {
        for step in -3000..=3000 {
            let x = step as f32 * 0.01;
            let want = (x as f64).exp();
            assert!(((exp_inline(x) as f64 - want) / want).abs() < 3e-7, "exp {x}");
            let mut g = [x];
            gelu(&mut g);
            let want = 0.5 * x as f64 * (1.0 + erf_series(x as f64 / 2f64.sqrt()));
            assert!(
                (g[0] as f64 - want).abs() < 4e-7 * (1.0 + x.abs() as f64),
                "gelu {x}: {} {want}",
                g[0]
            );
            let mut g = [x];
            gelu_tanh(&mut g);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x as f64 + 0.044715 * (x as f64).powi(3));
            let want = 0.5 * x as f64 * (1.0 + u.tanh());
            assert!(
                (g[0] as f64 - want).abs() < 4e-7 * (1.0 + x.abs() as f64),
                "gelu_tanh {x}"
            );
            let mut g = [x];
            silu(&mut g);
            let want = x as f64 / (1.0 + (-x as f64).exp());
            assert!((g[0] as f64 - want).abs() < 4e-7 * (1.0 + x.abs() as f64), "silu {x}");
        }
        assert_eq!(exp_inline(-1000.0), 0.0);
    }

    #[test]
    fn reductions_over_odd_lengths() {
        for n in [1, 7, 13, 16, 33, 48] {
            let a: Vec<f32> = (0..n).map(|i| (i % 5) as f32 - 2.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 3) as f32).collect();
            let five: Vec<f32> = [&b, &a, &b, &b, &a].into_iter().flatten().copied().collect();
            let (mut got, slow) = (vec![0.0; 5], |y: &[f32]| {
                a.iter().zip(y).map(|(x, y)| x * y).sum::<f32>()
            });
            dots(&a, &five, n, &mut got);
            assert_eq!(got, [slow(&b), slow(&a), slow(&b), slow(&b), slow(&a)]);
            assert_eq!(squared_norm(&a), a.iter().map(|x| (x * x) as f64).sum::<f64>());
            assert_eq!(
                squared_distance(&a, &b),
                a.iter().zip(&b).map(|(x, y)| ((x - y) * (x - y)) as f64).sum::<f64>()
            );
            let mut s = a.clone();
            softmax(&mut s, n, 0.5);
            let total: f64 = a.iter().map(|x| (0.5 * *x as f64).exp()).sum();
            for (x, y) in a.iter().zip(&s) {
                assert!((*y as f64 - (0.5 * *x as f64).exp() / total).abs() < 1e-6);
            }
        }
    }

    fn erf_series(x: f64) -> f64 {
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..400 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }
}
