//! What becomes of rows that share all their codes: an extra level that numbers them, or a move to free codes.
//!
//! Shape legend: N rows, C levels, K entries of a codebook.

use std::collections::{HashMap, HashSet};

/// What makes it impossible to tell rows apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollisionError {
    /// The codes are not N rows of C.
    #[error("{got} codes are not a whole number of rows of {levels}")]
    Codes {
        /// Number of codes.
        got: usize,
        /// C.
        levels: usize,
    },
    /// There are fewer different codes than rows.
    #[error("{rows} rows cannot have different codes: {levels} codebooks give only {ids}")]
    TooManyRows {
        /// N.
        rows: usize,
        /// C.
        levels: usize,
        /// Product of the sizes of the codebooks.
        ids: usize,
    },
}

/// The extra level that tells colliding rows apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollisionCodes {
    /// One code per row [N]: 0 where the row's codes are unique, else 1, 2, ... in row order among equal rows.
    pub codes_n: Vec<u32>,
    /// Entries this level needs: the greatest code + 1.
    pub size: usize,
    /// Rows that share their codes with another row.
    pub colliding: usize,
}

/// Collision codes of `codes_NC` (row-major, C = `levels`), as GRID (arXiv 2507.22224): a unique id gets 0, each of n
/// colliding rows 1..n.
///
/// # Errors
/// [`CollisionError::Codes`].
pub fn collision_codes(codes_nc: &[u32], levels: usize) -> Result<CollisionCodes, CollisionError> {
    whole_rows(codes_nc, levels)?;
    let mut counts: HashMap<&[u32], (u32, u32)> = HashMap::new();
    codes_nc
        .chunks_exact(levels)
        .for_each(|id| counts.entry(id).or_default().0 += 1);
    let mut codes_n = Vec::with_capacity(codes_nc.len() / levels);
    for id in codes_nc.chunks_exact(levels) {
        let (total, seen) = counts.entry(id).or_default();
        *seen += 1;
        codes_n.push(if *total > 1 { *seen } else { 0 });
    }
    let size = codes_n.iter().max().map_or(0, |most| *most as usize + 1);
    let colliding = codes_n.iter().filter(|code| **code > 0).count();
    Ok(CollisionCodes {
        codes_n,
        size,
        colliding,
    })
}

/// Rows that share their codes with another row, as a share of all rows (0 where there is none).
///
/// # Errors
/// [`CollisionError::Codes`].
pub fn collision_rate(codes_nc: &[u32], levels: usize) -> Result<f64, CollisionError> {
    let codes = collision_codes(codes_nc, levels)?;
    Ok(codes.colliding as f64 / codes.codes_n.len().max(1) as f64)
}

/// How far the entries of a level are from a row, given the codes of the levels before.
pub trait Distances {
    /// Entries [C] of every codebook.
    fn codebook_sizes(&self) -> Vec<usize>;

    /// Puts the squared distance of `row` to every entry of level `prefix.len()` into `to_k`.
    fn distances(&self, row: usize, prefix: &[u32], to_k: &mut Vec<f64>);
}

/// Moves colliding rows, in row order, to free codes: the first row of a collision stays; any other takes the nearest
/// free entry of its last level or, where that level has none left, goes on to the next best entry of the level before,
/// and so on upwards. Returns how many rows moved; afterwards all codes differ.
///
/// # Errors
/// [`CollisionError::Codes`]; [`CollisionError::TooManyRows`] before anything is moved.
pub fn nearest_free(codes_nc: &mut [u32], distances: &impl Distances) -> Result<usize, CollisionError> {
    let sizes = distances.codebook_sizes();
    let levels = sizes.len();
    whole_rows(codes_nc, levels)?;
    let rows = codes_nc.len() / levels;
    let ids = sizes.iter().fold(1usize, |ids, size| ids.saturating_mul(*size));
    if rows > ids {
        return Err(CollisionError::TooManyRows { rows, levels, ids });
    }
    let mut taken = Taken::new(&sizes);
    let mut moves = Vec::new();
    for (row, id) in codes_nc.chunks_exact(levels).enumerate() {
        if !taken.insert(id) {
            moves.push(row);
        }
    }
    for row in &moves {
        let id = &mut codes_nc[row * levels..][..levels];
        let mut search = Search {
            own: id,
            row: *row,
            taken: &taken,
            distances,
            prefix: Vec::with_capacity(levels),
        };
        search.descend(true);
        let found = search.prefix;
        id.copy_from_slice(&found);
        taken.insert(id);
    }
    Ok(moves.len())
}

fn whole_rows(codes_nc: &[u32], levels: usize) -> Result<(), CollisionError> {
    let got = codes_nc.len();
    match levels > 0 && got.is_multiple_of(levels) {
        true => Ok(()),
        false => Err(CollisionError::Codes { got, levels }),
    }
}

/// The ids in use, and how many of them begin with a prefix.
struct Taken {
    ids: HashSet<Vec<u32>>,
    below: HashMap<Vec<u32>, usize>,
    /// Ids that begin with a prefix of a length, at most.
    room: Vec<usize>,
}

impl Taken {
    fn new(sizes: &[usize]) -> Self {
        let room = |length: usize| {
            sizes[length..]
                .iter()
                .fold(1usize, |ids, size| ids.saturating_mul(*size))
        };
        Taken {
            ids: HashSet::new(),
            below: HashMap::new(),
            room: (0..=sizes.len()).map(room).collect(),
        }
    }

    /// False where the id was taken already.
    fn insert(&mut self, id: &[u32]) -> bool {
        let new = self.ids.insert(id.to_vec());
        if new {
            for length in 0..id.len() {
                *self.below.entry(id[..length].to_vec()).or_default() += 1;
            }
        }
        new
    }

    fn is_full(&self, prefix: &[u32]) -> bool {
        if prefix.len() + 1 == self.room.len() {
            return self.ids.contains(prefix);
        }
        self.below
            .get(prefix)
            .is_some_and(|taken| *taken >= self.room[prefix.len()])
    }
}

/// The walk of one row down to its free id.
struct Search<'a, D> {
    own: &'a [u32],
    row: usize,
    taken: &'a Taken,
    distances: &'a D,
    prefix: Vec<u32>,
}

impl<D: Distances> Search<'_, D> {
    /// Completes the prefix, under which there is room. `on_path`: so far it is the row's own, whose next code goes
    /// first.
    fn descend(&mut self, on_path: bool) {
        let level = self.prefix.len();
        if level == self.own.len() {
            return;
        }
        let own = on_path.then_some(self.own[level]);
        let mut to_k = Vec::new();
        self.distances.distances(self.row, &self.prefix, &mut to_k);
        let mut order: Vec<u32> = (0..to_k.len() as u32).collect();
        let far = |k: u32| to_k[k as usize];
        order.sort_by(|a, b| {
            let own_first = (own != Some(*a)).cmp(&(own != Some(*b)));
            own_first.then(far(*a).total_cmp(&far(*b))).then(a.cmp(b))
        });
        for code in order {
            self.prefix.push(code);
            if !self.taken.is_full(&self.prefix) {
                return self.descend(own == Some(code));
            }
            self.prefix.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws;

    /// Every level is a line of entries 0, 1, 2, ..; a row is near the codes that it has.
    struct Lines {
        sizes: Vec<usize>,
        codes_nc: Vec<u32>,
    }

    impl Distances for Lines {
        fn codebook_sizes(&self) -> Vec<usize> {
            self.sizes.clone()
        }

        fn distances(&self, row: usize, prefix: &[u32], to_k: &mut Vec<f64>) {
            let own = self.codes_nc[row * self.sizes.len() + prefix.len()];
            let distance = |k: usize| (k as f64 - f64::from(own) - 0.1).powi(2);
            *to_k = (0..self.sizes[prefix.len()]).map(distance).collect();
        }
    }

    fn move_to_free(sizes: &[usize], codes: &[u32]) -> Result<(usize, Vec<u32>), CollisionError> {
        let lines = Lines {
            sizes: sizes.to_vec(),
            codes_nc: codes.to_vec(),
        };
        let mut codes = codes.to_vec();
        nearest_free(&mut codes, &lines).map(|moved| (moved, codes))
    }

    #[test]
    fn collisions_are_numbered_in_row_order() {
        let codes = [1, 2, 3, 4, 1, 2, 5, 6, 1, 2, 5, 6];
        let got = collision_codes(&codes, 2).unwrap();
        assert_eq!(
            got,
            CollisionCodes {
                codes_n: vec![1, 0, 2, 1, 3, 2],
                size: 4,
                colliding: 5
            }
        );
        assert_eq!(collision_rate(&codes, 2).unwrap(), 5.0 / 6.0);
        assert_eq!(collision_codes(&[7, 8], 1).unwrap().size, 1);
        assert_eq!(
            collision_codes(&[1, 2, 3], 2).unwrap_err().to_string(),
            "3 codes are not a whole number of rows of 2"
        );
    }

    #[test]
    fn colliding_rows_move_to_the_nearest_free_entry() {
        // the second row of 1,1 finds 1,2 taken and 1,0 free
        let (moved, codes) = move_to_free(&[3, 3], &[1, 1, 1, 1, 1, 2]).unwrap();
        assert_eq!((moved, codes), (1, vec![1, 1, 1, 0, 1, 2]));
        // the third row of 1,0 finds the whole of 1 taken: the next best of the level before is 2
        let (moved, codes) = move_to_free(&[3, 2], &[1, 0, 1, 0, 1, 0]).unwrap();
        assert_eq!((moved, codes), (2, vec![1, 0, 1, 1, 2, 0]));
    }

    #[test]
    fn afterwards_all_ids_differ_even_where_all_are_needed() {
        let sizes = [3, 2, 4];
        for seed in 0..20 {
            let codes: Vec<u32> = (0..24 * 3)
                .map(|i| (draws::bits(seed, 1, i) % sizes[i as usize % 3] as u64 % 2) as u32)
                .collect();
            let (moved, now) = move_to_free(&sizes, &codes).unwrap();
            assert_eq!(collision_rate(&now, 3).unwrap(), 0.0);
            let changed = codes.chunks_exact(3).zip(now.chunks_exact(3)).filter(|(a, b)| a != b);
            assert_eq!(changed.count(), moved);
            assert!(moved >= 16);
        }
    }

    #[test]
    fn more_rows_than_ids_are_an_error() {
        assert_eq!(
            move_to_free(&[2, 1], &[0; 6]).unwrap_err().to_string(),
            "3 rows cannot have different codes: 2 codebooks give only 2"
        );
    }
}
