//! Counter-based random numbers: a value depends on (seed, operator, purpose, row, counter) alone.
//!
//! There is no state that threads could share, so results do not depend on workers, batches or order.
//! The mixer is SplitMix64's finalizer (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).

/// A family of streams for one purpose of one operator in one run.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    key: u64,
}

impl Random {
    /// The family keyed by the run's seed, an operator's name and a purpose.
    pub fn new(seed: u64, operator: &str, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"sluice random v1\0");
        hasher.update(&seed.to_le_bytes());
        hasher.update(operator.as_bytes());
        hasher.update(b"\0");
        hasher.update(purpose.as_bytes());
        let bytes = *hasher.finalize().as_bytes();
        Random {
            key: u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")),
        }
    }

    /// The key, to seed a generator of a library.
    pub fn key(self) -> u64 {
        self.key
    }

    /// The stream of one row (or any other counter).
    pub fn row(self, row: u64) -> Stream {
        Stream {
            key: mix(self.key ^ mix(row.wrapping_add(0x9E37_79B9_7F4A_7C15))),
            counter: 0,
        }
    }

    /// The stream of a named row: the same name gives the same numbers wherever the row lies.
    pub fn named(self, name: &str) -> Stream {
        let hash = blake3::hash(name.as_bytes());
        let row = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
        self.row(row)
    }
}

/// Numbers of one row, by counter.
#[derive(Clone, Debug)]
pub struct Stream {
    key: u64,
    counter: u64,
}

impl Stream {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.counter += 1;
        mix(self.key.wrapping_add(self.counter.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`; `n` must be positive.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Fisher-Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_independent_of_order() {
        let random = Random::new(42, "op", "p");
        let forward: Vec<u64> = (0..4).map(|row| random.row(row).bits()).collect();
        let backward: Vec<u64> = (0..4).rev().map(|row| random.row(row).bits()).collect();
        assert_eq!(forward, backward.into_iter().rev().collect::<Vec<_>>());
        assert_ne!(forward[0], Random::new(43, "op", "p").row(0).bits());
        assert_ne!(forward[0], Random::new(42, "op", "q").row(0).bits());
    }

    #[test]
    fn unit_and_normal_have_the_right_moments() {
        let mut stream = Random::new(1, "op", "moments").row(0);
        let n = 100_000;
        let mean = (0..n).map(|_| stream.unit()).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        let square = (0..n).map(|_| stream.normal().powi(2)).sum::<f64>() / f64::from(n);
        assert!((square - 1.0).abs() < 0.02, "{square}");
    }
}
