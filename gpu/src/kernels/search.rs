//! One step of a beam search over a trie: log-probabilities, what the trie allows, and the best continuations.

use super::{Argument, Kernels, of_type};
use crate::error::{Error, Result};
use candle_core::{DType, Tensor};

/// Threads of a block.
const THREADS: usize = 256;
/// Most places of a user: what a block can sort.
const MOST: usize = 4096;

/// What the probabilities of a row add up to 1 over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// All V tokens.
    All,
    /// The row's candidates.
    Candidates,
}

/// The beams of some users, R in all, and the tokens that may come next. All tensors are on one device.
#[derive(Debug, Clone, Copy)]
pub struct Beams<'a> {
    /// Logits of the next token, [R, V], f32 or bf16.
    pub logits: &'a Tensor,
    /// The score of every beam so far, [R] of f32.
    pub scores: &'a Tensor,
    /// Where the candidates of every beam start, and one more: [R + 1] of u32, from 0 to M.
    pub children: &'a Tensor,
    /// The candidates of all beams, [M] of u32, each below V; a beam's own by ascending token.
    pub tokens: &'a Tensor,
    /// Where the beams of every user start, and one more: [U + 1] of u32, from 0 to R.
    pub users: &'a Tensor,
}

/// The best continuations of every user, best first, [U, places] each.
#[derive(Debug, Clone)]
pub struct Continuations {
    /// Scores, f32: of the beam, plus the log-probability of the token. -∞ where there are no more; a score that is not a
    /// number comes first.
    pub scores: Tensor,
    /// The beam of each, a row of the logits, u32; `u32::MAX` where there are no more.
    pub rows: Tensor,
    /// Its place in `tokens`, u32; `u32::MAX` where there are no more.
    pub candidates: Tensor,
}

impl Kernels {
    /// The best `places` continuations of every user's beams. Ties go to the earlier beam, then to the smaller token.
    /// The offsets and tokens are not looked at here: they must be as [`Beams`] says.
    ///
    /// # Errors
    /// Other shapes or types, more than 4096 places, or an error of the device.
    pub fn continue_beams(&self, beams: &Beams, places: usize, among: Among) -> Result<Continuations> {
        let (rows, columns) = beams.logits.dims2()?;
        let users = beams.users.dim(0)?.saturating_sub(1);
        let sizes = [beams.scores.dims1()?, beams.children.dims1()?, beams.users.dims1()?];
        if sizes != [rows, rows + 1, users + 1] {
            return Err(Error::shape("beams", [rows, rows + 1, users + 1], sizes));
        }
        for (of, dtype) in [
            (beams.scores, DType::F32),
            (beams.children, DType::U32),
            (beams.tokens, DType::U32),
            (beams.users, DType::U32),
        ] {
            if of.dtype() != dtype {
                return Err(Error::shape("beams", dtype.as_str(), of.dtype().as_str()));
            }
        }
        if !(1..=MOST).contains(&places) {
            return Err(Error::config("places", format!("must be 1 to {MOST}")));
        }
        let device = beams.logits.device();
        let logits = beams.logits.contiguous()?;
        let all = Tensor::zeros(beams.tokens.dims1()?.max(1), DType::F32, device)?;
        let arguments = [
            Argument::Read(&logits),
            Argument::Read(beams.scores),
            Argument::Read(beams.children),
            Argument::Read(beams.tokens),
            Argument::Write(&all),
            Argument::Number(columns),
            Argument::Number((among == Among::Candidates).into()),
        ];
        let kernel = of_type("search_scores", logits.dtype())?;
        self.run(&kernel, (rows, 1), THREADS, 33 * size_of::<f32>(), &arguments)?;

        let found = Continuations {
            scores: Tensor::zeros((users, places), DType::F32, device)?,
            rows: Tensor::zeros((users, places), DType::U32, device)?,
            candidates: Tensor::zeros((users, places), DType::U32, device)?,
        };
        let room = places.next_power_of_two();
        let arguments = [
            Argument::Read(&all),
            Argument::Read(beams.children),
            Argument::Read(beams.users),
            Argument::Write(&found.scores),
            Argument::Write(&found.rows),
            Argument::Write(&found.candidates),
            Argument::Number(places),
            Argument::Number(room),
        ];
        let shared = room * size_of::<u64>() + (256 + 3) * size_of::<u32>();
        self.run("search_best", (users, 1), THREADS, shared, &arguments)?;
        Ok(found)
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

    /// In f64, by sorting.
    fn slow(case: &Case, user: usize, places: usize, among: Among) -> Vec<(f64, u32, u32)> {
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
                let logit = logits[case.tokens[i as usize] as usize];
                let score = f64::from(case.scores_r[row as usize]) + f64::from(logit) - sum.ln();
                (score, row, i)
            }));
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        all.truncate(places);
        all.resize(places, (f64::NEG_INFINITY, u32::MAX, u32::MAX));
        all
    }

    fn run(case: &Case, dtype: DType, places: usize, among: Among) -> Option<Continuations> {
        let kernels = kernels()?;
        let logits = Tensor::from_slice(&case.logits_rv, (case.scores_r.len(), case.columns), &device()).unwrap();
        let of = |x: &[u32]| Tensor::from_slice(x, x.len(), &device()).unwrap();
        let beams = Beams {
            logits: &logits.to_dtype(dtype).unwrap(),
            scores: &Tensor::from_slice(&case.scores_r, case.scores_r.len(), &device()).unwrap(),
            children: &of(&case.children),
            tokens: &of(&case.tokens),
            users: &of(&case.users),
        };
        Some(kernels.continue_beams(&beams, places, among).unwrap())
    }

    fn check(case: &Case, dtype: DType, places: usize, among: Among) {
        let Some(found) = run(case, dtype, places, among) else {
            return;
        };
        let (scores, rows) = (
            found.scores.to_vec2::<f32>().unwrap(),
            found.rows.to_vec2::<u32>().unwrap(),
        );
        let candidates = found.candidates.to_vec2::<u32>().unwrap();
        for user in 0..case.users.len() - 1 {
            for (place, (score, row, candidate)) in slow(case, user, places, among).into_iter().enumerate() {
                let got = (rows[user][place], candidates[user][place]);
                assert_eq!(got, (row, candidate), "user {user}, place {place} of {places}");
                let got = f64::from(scores[user][place]);
                assert!(got == score || (got - score).abs() < 1e-5, "{got}, not {score}");
            }
        }
    }

    #[test]
    fn the_best_as_sorted() {
        for among in [Among::All, Among::Candidates] {
            let few = case(13, &[1, 0, 3, 2], |row| [0, 1, 7, 13, 3][row % 5]);
            check(&few, DType::F32, 1, among);
            check(&few, DType::F32, 7, among);
            check(&few, DType::BF16, 33, among);
            let many = case(700, &[7, 1, 4], |row| 100 + 50 * row);
            check(&many, DType::F32, 10, among);
            check(&many, DType::BF16, 100, among);
        }
    }

    /// One row of equal logits: the first candidates, whatever the order of threads.
    #[test]
    fn equals_in_order() {
        let mut equal = case(600, &[2], |_| 600);
        equal.logits_rv.fill(1.0);
        equal.scores_r.fill(-2.0);
        check(&equal, DType::F32, 40, Among::All);
        check(&equal, DType::F32, 1024, Among::All);
    }

    #[test]
    fn what_is_no_number_comes_first() {
        let mut broken = case(33, &[3], |_| 20);
        broken.logits_rv[40] = f32::NAN;
        let Some(found) = run(&broken, DType::F32, 5, Among::All) else {
            return;
        };
        assert!(found.scores.to_vec2::<f32>().unwrap()[0][0].is_nan());
        assert_eq!(found.rows.to_vec2::<u32>().unwrap()[0][0], 1);
    }
}
