//! T5's relative position buckets.

/// Maps the distance from a query to a key onto a row of the bias table (Raffel et al. 2020, as in `transformers`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeBuckets {
    /// Rows of the bias table.
    pub buckets: usize,
    /// Distances from here on share the last bucket.
    pub max_distance: usize,
    /// Whether keys after the query get buckets of their own (encoder) or all bucket 0 (decoder).
    pub bidirectional: bool,
}

impl RelativeBuckets {
    /// The bucket of `key position - query position`.
    pub fn bucket(&self, distance: i64) -> usize {
        let mut buckets = self.buckets;
        let mut first = 0;
        let distance = if self.bidirectional {
            buckets /= 2;
            if distance > 0 {
                first = buckets;
            }
            distance.unsigned_abs() as usize
        } else {
            distance.min(0).unsigned_abs() as usize
        };
        let exact = buckets / 2;
        if distance < exact {
            return first + distance;
        }
        // in f32, as the reference does it: distances at a boundary must fall on the same side
        let ratio = (distance as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
        let step = (ratio * (buckets - exact) as f32) as usize;
        first + (exact + step).min(buckets - 1)
    }

    /// Buckets of the distances `1 - queries ..= keys - 1`; distance d is at `d + queries - 1`.
    pub(crate) fn table(&self, queries: usize, keys: usize) -> Vec<u32> {
        (1 - queries as i64..keys as i64)
            .map(|d| self.bucket(d) as u32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_published() {
        let distances = [
            -200, -128, -64, -32, -16, -10, -8, -7, -1, 0, 1, 7, 8, 10, 16, 32, 64, 128, 200,
        ];
        let of = |bidirectional| {
            let rule = RelativeBuckets {
                buckets: 32,
                max_distance: 128,
                bidirectional,
            };
            distances.map(|d| rule.bucket(d))
        };
        assert_eq!(
            of(true),
            [15, 15, 14, 12, 10, 8, 8, 7, 1, 0, 17, 23, 24, 24, 26, 28, 30, 31, 31]
        );
        assert_eq!(
            of(false),
            [31, 31, 26, 21, 16, 10, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
