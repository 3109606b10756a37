//! Assignment under a capacity: no centre gets more rows than it may, and no row is assigned worse than it must be.
//!
//! Source: deferred acceptance, Gale and Shapley 1962, with distance as the preference of both sides. Rows ask their
//! centres from the nearest on; a full centre keeps its nearest rows (ties: the lowest row) and sends the others on.
//! The result is the one stable matching that is best for the rows, whatever order they ask in.

use std::collections::BinaryHeap;

use rayon::prelude::*;

use super::{KMeansError, assign};
use crate::lanes;

/// A centre of the capacity-constrained assignment for every row of `rows_ND` [N]: at most `capacity` rows a centre.
///
/// # Errors
/// Those of [`assign`], and [`KMeansError::Capacity`] where the centres cannot hold the rows.
pub fn assign_balanced(
    rows_nd: &[f32],
    dim: usize,
    centres_kd: &[f32],
    capacity: usize,
) -> Result<Vec<u32>, KMeansError> {
    let (nearest_n, distances_n) = assign(rows_nd, dim, centres_kd)?;
    let (rows, clusters) = (nearest_n.len(), centres_kd.len() / dim);
    if capacity.saturating_mul(clusters) < rows {
        return Err(KMeansError::Capacity {
            rows,
            clusters,
            capacity,
        });
    }
    let mut held: Vec<BinaryHeap<Asking>> = (0..clusters).map(|_| BinaryHeap::new()).collect();
    let mut sent: Vec<u32> = Vec::new();
    for (row, (k, distance)) in nearest_n.iter().zip(distances_n).enumerate() {
        let held = &mut held[*k as usize];
        held.push(Asking {
            distance,
            row: row as u32,
        });
        if held.len() > capacity {
            sent.extend(held.pop().map(|asking| asking.row));
        }
    }
    // what a row thinks of all centres is worked out when its nearest one sends it on
    let mut wishes: Vec<Wishes> = Vec::new();
    let mut place_n: Vec<u32> = vec![u32::MAX; rows];
    while !sent.is_empty() {
        let new: Vec<u32> = sent
            .iter()
            .copied()
            .filter(|row| place_n[*row as usize] == u32::MAX)
            .collect();
        let wish = |row: &u32| Wishes::new(&rows_nd[*row as usize * dim..][..dim], centres_kd);
        let first = wishes.len() as u32;
        wishes.par_extend(new.par_iter().map(wish));
        (first..)
            .zip(&new)
            .for_each(|(place, row)| place_n[*row as usize] = place);
        let mut next = Vec::new();
        for row in sent {
            let wishes = &mut wishes[place_n[row as usize] as usize];
            wishes.asked += 1;
            let (k, distance) = wishes.order_k[wishes.asked];
            let held = &mut held[k as usize];
            held.push(Asking { distance, row });
            if held.len() > capacity {
                next.extend(held.pop().map(|asking| asking.row));
            }
        }
        sent = next;
    }
    let mut labels_n = vec![0u32; rows];
    for (k, held) in held.iter().enumerate() {
        held.iter().for_each(|asking| labels_n[asking.row as usize] = k as u32);
    }
    Ok(labels_n)
}

/// All centres of a row, nearest first, and the place of the one asked last.
struct Wishes {
    order_k: Vec<(u32, f64)>,
    asked: usize,
}

impl Wishes {
    fn new(row_d: &[f32], centres_kd: &[f32]) -> Self {
        let centres = centres_kd.chunks_exact(row_d.len());
        let distances = centres.map(|centre_d| lanes::squared_distance(row_d, centre_d));
        let mut order_k: Vec<(u32, f64)> = (0u32..).zip(distances).collect();
        order_k.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        Wishes { order_k, asked: 0 }
    }
}

/// A row that a centre holds; the greatest is the one that it would send on.
struct Asking {
    distance: f64,
    row: u32,
}

impl Ord for Asking {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.distance.total_cmp(&other.distance).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Asking {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Asking {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Asking {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws;

    #[test]
    fn far_rows_go_on_to_the_next_centre() {
        let rows = [0.0, 0.1, 0.2, 5.0];
        assert_eq!(assign_balanced(&rows, 1, &[0.0, 1.0, 4.0], 4).unwrap(), [0, 0, 0, 2]);
        assert_eq!(assign_balanced(&rows, 1, &[0.0, 1.0, 4.0], 2).unwrap(), [0, 0, 1, 2]);
        assert_eq!(assign_balanced(&rows, 1, &[0.0, 0.5], 2).unwrap(), [0, 0, 1, 1]);
        assert_eq!(
            assign_balanced(&rows, 1, &[0.0, 0.5], 1).unwrap_err().to_string(),
            "2 clusters of at most 1 rows cannot hold 4 rows"
        );
    }

    #[test]
    fn no_centre_is_over_full_and_no_pair_would_rather_change() {
        let (n, d, k) = (500, 3, 20);
        for (seed, capacity) in [(1, 25), (2, 30), (3, 500)] {
            let x: Vec<f32> = (0..n * d).map(|i| draws::normal(seed, 0, i as u64) as f32).collect();
            let c: Vec<f32> = (0..k * d).map(|i| draws::normal(seed, 1, i as u64) as f32).collect();
            let labels = assign_balanced(&x, d, &c, capacity).unwrap();
            let far = |row: usize, k: usize| lanes::squared_distance(&x[row * d..][..d], &c[k * d..][..d]);
            let mut held = vec![Vec::new(); k];
            labels
                .iter()
                .enumerate()
                .for_each(|(row, k)| held[*k as usize].push(row));
            assert!(held.iter().all(|rows| rows.len() <= capacity));
            for (row, label) in labels.iter().enumerate() {
                for (other, held) in held.iter().enumerate() {
                    if far(row, other) < far(row, *label as usize) {
                        let free = held.len() < capacity;
                        assert!(!free && held.iter().all(|mate| far(*mate, other) <= far(row, other)));
                    }
                }
            }
            if capacity == n {
                assert_eq!(labels, assign(&x, d, &c).unwrap().0);
            }
        }
    }
}
