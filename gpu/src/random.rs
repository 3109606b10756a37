//! Counter-based random numbers: a pure function of (key, counter), so neither threads nor order matter.

/// A stream of random numbers addressed by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The root stream of a seed.
    pub fn new(seed: u64) -> Self {
        Key(mix(seed ^ 0x5851_f42d_4c95_7f2d))
    }

    /// An independent stream under this one, for example one per step, then one per layer.
    #[must_use]
    pub fn child(self, index: u64) -> Self {
        Key(mix(self.0 ^ mix(index.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// 64 random bits at a position.
    pub fn bits(self, counter: u64) -> u64 {
        mix(self.0.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number in [0, 1) at a position.
    pub fn uniform(self, counter: u64) -> f64 {
        (self.bits(counter) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A standard normal number at a position (Box-Muller).
    pub fn normal(self, counter: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(2 * counter)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(2 * counter + 1)).cos()
    }

    /// A number below `bound` (which must not be 0) at a position.
    pub fn below(self, counter: u64, bound: u64) -> u64 {
        ((u128::from(self.bits(counter)) * u128::from(bound)) >> 64) as u64
    }

    /// The numbers 0..n in random order (Fisher-Yates).
    pub fn permutation(self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64, i as u64 + 1) as usize);
        }
        order
    }

    /// The two halves that the 32-bit generator of the dropout kernels starts from.
    pub(crate) fn halves(self) -> (u32, u32) {
        (self.0 as u32, (self.0 >> 32) as u32)
    }
}

/// 32 random bits at a position: cheap enough for a dropout mask, and vectorises.
#[inline(always)]
pub(crate) fn bits32((low, high): (u32, u32), counter: u32) -> u32 {
    mix32(mix32(counter ^ low).wrapping_add(high))
}

/// The finaliser of splitmix64.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[inline(always)]
fn mix32(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_independence() {
        let key = Key::new(7);
        let n = 20_000;
        let normals: Vec<f64> = (0..n).map(|i| key.normal(i)).collect();
        let mean = normals.iter().sum::<f64>() / n as f64;
        let variance = normals.iter().map(|x| x * x).sum::<f64>() / n as f64 - mean * mean;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05);
        assert_ne!(key.child(1).bits(0), key.child(2).bits(0));
        assert_ne!(key.child(1).child(2), key.child(2).child(1));
        assert_eq!(Key::new(7).child(3).bits(9), Key::new(7).child(3).bits(9));
    }

    #[test]
    fn permutation_has_every_number_once() {
        let mut order = Key::new(1).permutation(101);
        assert_ne!(order, (0..101).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..101).collect::<Vec<_>>());
    }

    #[test]
    fn bits32_are_fair() {
        let halves = Key::new(3).halves();
        let kept = (0..100_000u32).filter(|&i| bits32(halves, i) >= u32::MAX / 4).count();
        assert!((kept as f64 / 1e5 - 0.75).abs() < 0.01);
    }
}
