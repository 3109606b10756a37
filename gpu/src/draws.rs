//! Counter-based draws: a pure function of (seed, stream, index), so they do not depend on threads or order.

/// 64 random bits for (seed, stream, index): the SplitMix64 finaliser, applied once per word.
pub(crate) fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    mix(mix(mix(seed).wrapping_add(stream)).wrapping_add(index))
}

/// Uniform in [0, 1).
pub(crate) fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    (bits(seed, stream, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal (Box-Muller).
pub(crate) fn normal(seed: u64, stream: u64, index: u64) -> f64 {
    let u = 1.0 - uniform(seed, stream, 2 * index);
    let v = uniform(seed, stream, 2 * index + 1);
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

/// A seeded permutation of `0..n` (the order of their random bits).
pub(crate) fn permutation(seed: u64, stream: u64, n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by_key(|i| (bits(seed, stream, *i as u64), *i));
    order
}

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_permutation() {
        let n = 20_000;
        let mean = (0..n).map(|i| uniform(1, 2, i)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.01);
        let (mut m, mut v) = (0.0, 0.0);
        for i in 0..n {
            let x = normal(1, 3, i);
            m += x;
            v += x * x;
        }
        assert!((m / n as f64).abs() < 0.03 && (v / n as f64 - 1.0).abs() < 0.05);
        let mut p = permutation(7, 0, 1000);
        assert_ne!(p, permutation(8, 0, 1000));
        p.sort();
        assert!(p.iter().enumerate().all(|(i, x)| i == *x as usize));
    }
}
