//! Percentile intervals of means by resampling users; many columns and groups of users share each resample.

use std::collections::HashMap;

use rayon::prelude::*;
use sluice_engine::random::Random;

/// A mean over the users of a group, with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean over the users as they are; 0 for a group without users.
    pub mean: f64,
    /// Ends of the interval; `None` without resamples.
    pub interval: Option<(f64, f64)>,
}

impl Estimate {
    /// A number without an interval.
    pub fn of(mean: f64) -> Self {
        Estimate { mean, interval: None }
    }

    /// A multiple, interval and all.
    pub fn times(self, factor: f64) -> Self {
        Estimate {
            mean: self.mean * factor,
            interval: self.interval.map(|(low, high)| (low * factor, high * factor)),
        }
    }
}

/// Values of users: a row of `width` columns each, and the groups it belongs to.
pub struct Users {
    width: usize,
    groups: usize,
    /// Which class a user is of: users with equal values and equal groups are interchangeable.
    class: Vec<u32>,
    values: Vec<f64>,
    masks: Vec<u64>,
}

impl Users {
    /// Users by row-major `values`; bit g of a user's mask says that it belongs to group g.
    pub fn new(values: &[f64], width: usize, masks: &[u64], groups: usize) -> Self {
        let mut users = Users {
            width,
            groups,
            class: Vec::with_capacity(masks.len()),
            values: Vec::new(),
            masks: Vec::new(),
        };
        let mut classes: HashMap<(u64, Vec<u64>), u32> = HashMap::new();
        for (row, mask) in values.chunks_exact(width.max(1)).zip(masks) {
            let bits = row.iter().map(|value| value.to_bits()).collect();
            let class = *classes.entry((*mask, bits)).or_insert_with(|| {
                users.values.extend_from_slice(row);
                users.masks.push(*mask);
                users.masks.len() as u32 - 1
            });
            users.class.push(class);
        }
        users
    }

    /// Number of users of each group.
    pub fn sizes(&self) -> Vec<u64> {
        let mut sizes = vec![0; self.groups];
        for class in &self.class {
            for group in bits(self.masks[*class as usize]) {
                sizes[group] += 1;
            }
        }
        sizes
    }

    /// Means of all columns of all groups, group by group, with percentile intervals at `confidence`.
    ///
    /// Resample r draws as many users as there are, with replacement, by the numbers of row r of `random`: tables of
    /// the same users in the same order are resampled alike, so differences between them are paired.
    pub fn estimates(&self, resamples: usize, confidence: f64, random: Random) -> Vec<Estimate> {
        let mut counts = vec![0u32; self.masks.len()];
        self.class.iter().for_each(|class| counts[*class as usize] += 1);
        let means = self.means(&counts);
        let draws: Vec<Vec<f64>> = (0..resamples as u64)
            .into_par_iter()
            .map(|resample| {
                let mut stream = random.row(resample);
                let mut counts = vec![0u32; self.masks.len()];
                for _ in 0..self.class.len() {
                    let user = stream.below(self.class.len() as u64) as usize;
                    counts[self.class[user] as usize] += 1;
                }
                self.means(&counts)
            })
            .collect();
        means
            .par_iter()
            .enumerate()
            .map(|(column, mean)| {
                let mut values: Vec<f64> = draws.iter().map(|draw| draw[column]).filter(|v| !v.is_nan()).collect();
                values.sort_unstable_by(f64::total_cmp);
                let tail = (1.0 - confidence) / 2.0;
                Estimate {
                    mean: if mean.is_nan() { 0.0 } else { *mean },
                    interval: quantile(&values, tail).zip(quantile(&values, 1.0 - tail)),
                }
            })
            .collect()
    }

    /// Means where each class counts so often; NaN for groups without users.
    fn means(&self, counts: &[u32]) -> Vec<f64> {
        let mut sums = vec![0.0; self.groups * self.width];
        let mut sizes = vec![0.0; self.groups];
        for (class, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let weight = f64::from(*count);
            let row = &self.values[class * self.width..][..self.width];
            for group in bits(self.masks[class]) {
                sizes[group] += weight;
                let sums = &mut sums[group * self.width..][..self.width];
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += weight * value;
                }
            }
        }
        for (sums, size) in sums.chunks_exact_mut(self.width.max(1)).zip(&sizes) {
            sums.iter_mut().for_each(|sum| *sum /= size);
        }
        sums
    }
}

fn bits(mask: u64) -> impl Iterator<Item = usize> {
    (0..u64::BITS as usize).filter(move |bit| mask >> bit & 1 == 1)
}

/// A quantile of sorted values, linear between neighbours; `None` of no values.
pub fn quantile(sorted: &[f64], at: f64) -> Option<f64> {
    let place = at * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,000 users of which 200 hit: the standard error of the mean is sqrt(.2 * .8 / 1000) = .01265.
    #[test]
    fn the_interval_of_a_share_is_that_of_the_binomial() {
        let values: Vec<f64> = (0..1000).map(|user| f64::from(user % 5 == 0)).collect();
        let masks: Vec<u64> = (0..1000).map(|user| 1 | u64::from(user < 500) << 1).collect();
        let users = Users::new(&values, 1, &masks, 3);
        assert_eq!(users.sizes(), [1000, 500, 0]);
        let estimates = users.estimates(2000, 0.95, Random::new(1, "bootstrap", "test"));
        assert_eq!(estimates[0].mean, 0.2);
        let (low, high) = estimates[0].interval.unwrap();
        assert!(
            (low - 0.1752).abs() < 0.003 && (high - 0.2248).abs() < 0.003,
            "{low} {high}"
        );
        let (low, high) = estimates[1].interval.unwrap();
        assert!((high - low - 2.0 * 1.96 * 0.01789).abs() < 0.008, "{low} {high}");
        assert_eq!((estimates[2].mean, estimates[2].interval), (0.0, None));
    }

    #[test]
    fn no_resamples_no_interval() {
        let users = Users::new(&[1.0, 0.0], 1, &[1, 1], 1);
        let estimates = users.estimates(0, 0.95, Random::new(1, "bootstrap", "test"));
        assert_eq!((estimates[0].mean, estimates[0].interval), (0.5, None));
    }
}
