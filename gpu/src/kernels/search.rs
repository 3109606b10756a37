//! One step of a beam search over a trie: log-probabilities of the tokens that it allows, and the best continuations.

use super::sums::ROOM;
use super::{Argument, Kernels, THREADS, WARP, unwritten};
use crate::error::Result;
use candle_core::{DType, Tensor};

/// What the probabilities of a row add up to 1 over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    /// All columns of the logits.
    All,
    /// The row's candidates.
    Candidates,
}

/// Tokens that may follow the beams of a search: R beams, M candidates in all, a beam's own by ascending token.
pub(crate) struct Candidates {
    kernels: Kernels,
    among: Among,
    /// The scores of the beams, [R].
    beams: Tensor,
    /// Where the candidates of every beam start, and one more: [R + 1].
    starts: Tensor,
    /// The column of the logits that every candidate has, [M].
    columns: Tensor,
    /// Of every candidate, [M].
    log_probabilities: Tensor,
    /// The same with the score of the beam, [M].
    scores: Tensor,
}

impl Kernels {
    /// Candidates of beams with these scores, which start at `starts`, which has one more; probabilities come next.
    pub(crate) fn candidates(
        &self,
        beams_r: &[f32],
        starts: &[u32],
        columns_m: &[u32],
        among: Among,
    ) -> Result<Candidates> {
        let of = |values: &[u32]| Tensor::from_slice(values, values.len(), self.device());
        let beams = Tensor::from_slice(beams_r, beams_r.len(), self.device())?;
        Ok(Candidates {
            kernels: self.clone(),
            among,
            starts: of(starts)?,
            columns: of(columns_m)?,
            log_probabilities: unwritten(&beams, columns_m.len(), DType::F32)?,
            scores: unwritten(&beams, columns_m.len(), DType::F32)?,
            beams,
        })
    }
}

impl Candidates {
    /// Scores the candidates of the beams from `first` on, by their logits [rows, V] of f32.
    pub(crate) fn score(&self, first: usize, logits: &Tensor) -> Result<()> {
        let (rows, width) = logits.dims2()?;
        let logits = logits.contiguous()?;
        let arguments = [
            Argument::Read(&logits),
            Argument::Read(&self.beams.narrow(0, first, rows)?),
            Argument::Read(&self.starts.narrow(0, first, rows + 1)?),
            Argument::Read(&self.columns),
            Argument::Write(&self.log_probabilities),
            Argument::Write(&self.scores),
            Argument::Number(width),
            Argument::Number((self.among == Among::Candidates).into()),
        ];
        let threads = width.next_multiple_of(WARP).min(THREADS);
        self.kernels.run("search_scores", (rows, 1), threads, ROOM, &arguments)
    }

    /// Candidates with their log-probabilities, all scored before, in any order: at least the best `most` of every user,
    /// whose candidates start at `users`, which has one more. Ties go to the earlier candidate, and a score that is not
    /// a number comes first.
    pub(crate) fn best(&self, users: &[u32], most: usize) -> Result<Vec<(u32, f32)>> {
        if users.windows(2).all(|ends| (ends[1] - ends[0]) as usize <= most) {
            return Ok((0..).zip(self.log_probabilities.to_vec1()?).collect());
        }
        let device = self.kernels.device();
        let count = users.len() - 1;
        let found = Tensor::zeros((count, most, 2), DType::U32, device)?;
        let arguments = [
            Argument::Read(&self.scores),
            Argument::Read(&self.log_probabilities),
            Argument::Read(&Tensor::from_slice(users, users.len(), device)?),
            Argument::Write(&found),
            Argument::Number(most),
        ];
        let shared = (256 + 3) * size_of::<u32>();
        self.kernels
            .run("search_best", (count, 1), THREADS, shared, &arguments)?;
        // In one piece: every copy waits for the device.
        let found: Vec<u32> = found.flatten_all()?.to_vec1()?;
        let there = found.chunks_exact(2).filter(|pair| pair[0] != u32::MAX);
        Ok(there.map(|pair| (pair[0], f32::from_bits(pair[1]))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simulator::{device, kernels};
    use crate::random::Key;

    /// Beams of users as plain numbers.
    struct Case {
        columns: usize,
        logits_rv: Vec<f32>,
        scores_r: Vec<f32>,
        children: Vec<u32>,
        tokens: Vec<u32>,
        users: Vec<u32>,
    }

    /// A user to each of `beams`; logits and scores have few values, so that there are ties.
    fn case(columns: usize, beams: &[usize], candidates: impl Fn(usize) -> usize) -> Case {
        let key = Key::new(columns as u64);
        let rows: usize = beams.iter().sum();
        let (mut children, mut tokens, mut users) = (vec![0], vec![], vec![0]);
        for row in 0..rows {
            let mut own = key.child(row as u64).permutation(columns);
            own.truncate(candidates(row));
            own.sort_unstable();
            tokens.extend(own);
            children.push(tokens.len() as u32);
        }
        beams
            .iter()
            .for_each(|n| users.push(users[users.len() - 1] + *n as u32));
        let number = |stream: u64, i: u64, values: u64| key.child(stream).below(i, values) as f32 * 0.25;
        // Pairs of rows have the same logits.
        let logits = |i: usize| number(1 << 32, (i / columns / 2 * columns + i % columns) as u64, 40);
        Case {
            columns,
            logits_rv: (0..rows * columns).map(logits).collect(),
            scores_r: (0..rows).map(|row| -number(1 << 33, row as u64 / 2, 4)).collect(),
            children,
            tokens,
            users,
        }
    }

    /// In f64, by sorting: the best candidates of a user, ascending, with their log-probabilities.
    fn slow(case: &Case, user: usize, most: usize, among: Among) -> Vec<(u32, f64)> {
        let mut all = vec![];
        for row in case.users[user]..case.users[user + 1] {
            let logits = &case.logits_rv[row as usize * case.columns..][..case.columns];
            let own = case.children[row as usize]..case.children[row as usize + 1];
            let exp = |x: f32| f64::from(x).exp();
            let sum: f64 = match among {
                Among::All => logits.iter().map(|x| exp(*x)).sum(),
                Among::Candidates => own.clone().map(|i| exp(logits[case.tokens[i as usize] as usize])).sum(),
            };
            all.extend(own.map(|i| {
                let of = f64::from(logits[case.tokens[i as usize] as usize]) - sum.ln();
                (f64::from(case.scores_r[row as usize]) + of, i, of)
            }));
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.truncate(most);
        all.sort_by_key(|(_, i, _)| *i);
        all.into_iter().map(|(_, i, of)| (i, of)).collect()
    }

    /// By kernels, which see the logits in pieces of `size` rows; ascending.
    fn run(case: &Case, size: usize, most: usize, among: Among) -> Option<Vec<(u32, f32)>> {
        let kernels = kernels()?;
        let rows = case.scores_r.len();
        let logits = Tensor::from_slice(&case.logits_rv, (rows, case.columns), &device()).unwrap();
        let candidates = kernels.candidates(&case.scores_r, &case.children, &case.tokens, among);
        let candidates = candidates.unwrap();
        for first in (0..rows).step_by(size) {
            let some = logits.narrow(0, first, size.min(rows - first)).unwrap();
            candidates.score(first, &some).unwrap();
        }
        let starts = case.users.iter().map(|row| case.children[*row as usize]);
        let mut found = candidates.best(&starts.collect::<Vec<_>>(), most).unwrap();
        found.sort_by_key(|(candidate, _)| *candidate);
        Some(found)
    }

    fn check(case: &Case, size: usize, most: usize, among: Among) {
        let Some(found) = run(case, size, most, among) else {
            return;
        };
        let wanted = (0..case.users.len() - 1).flat_map(|user| slow(case, user, most, among));
        let wanted: Vec<(u32, f64)> = wanted.collect();
        assert_eq!(found.len(), wanted.len());
        for ((got, of), (candidate, wanted)) in found.into_iter().zip(wanted) {
            assert_eq!(got, candidate, "{most}");
            assert!((f64::from(of) - wanted).abs() < 1e-5, "{of}, not {wanted}");
        }
    }

    #[test]
    fn the_best_as_sorted() {
        for among in [Among::All, Among::Candidates] {
            let few = case(13, &[1, 0, 3, 2], |row| [0, 1, 7, 13, 3][row % 5]);
            check(&few, 2, 1, among);
            check(&few, 6, 7, among);
            check(&few, 1, 33, among);
            let many = case(700, &[7, 1, 4], |row| 100 + 50 * row);
            check(&many, 5, 10, among);
            check(&many, 12, 100, among);
            check(&many, 7, 1500, among);
        }
    }

    /// Rows of equal logits: the first candidates, whatever the order of threads.
    #[test]
    fn of_equals_the_first() {
        let mut equal = case(600, &[2], |_| 600);
        equal.logits_rv.fill(1.0);
        equal.scores_r.fill(-2.0);
        check(&equal, 2, 40, Among::All);
        check(&equal, 1, 1024, Among::All);
    }

    #[test]
    fn what_is_no_number_comes_first() {
        let mut broken = case(33, &[3], |_| 20);
        broken.logits_rv[40] = f32::NAN;
        let Some(found) = run(&broken, 3, 5, Among::All) else {
            return;
        };
        let rows: Vec<u32> = found.iter().map(|(candidate, _)| candidate / 20).collect();
        assert_eq!(rows, [1; 5]);
        assert!(found.iter().all(|(_, of)| of.is_nan()));
    }
}
