//! Encoding with a nested beam: a wider beam keeps all that a narrower one keeps, so it never finds a worse code.
//!
//! A plain beam search may lose with a wider beam what it had found with a narrow one. Here the b-th place of a level
//! goes to the best continuation of the first b partial codes that places before it do not hold. The first place is
//! the greedy code. Shape legend: N rows, D width, C levels, K entries of a codebook, B places of the beam.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use rayon::prelude::*;

use super::{ResidualQuantizer, normalize};
use crate::lanes;
use crate::ops::matmul::{Scratch, View, multiply_small};

/// Rows whose partial codes are multiplied together.
const PANEL: usize = 32;

/// A partial code of a row, with what it leaves over.
struct Partial {
    codes_c: Vec<u32>,
    /// Left over in the level's units: divided by `scale`.
    residual_d: Vec<f32>,
    /// What normalisation has divided by so far.
    scale: f64,
}

/// Turns the greedy codes [N, C] of `rows_ND` into those of a beam of `width`; `on_rows(done)` is called now and then,
/// and a break leaves the rest greedy.
pub(super) fn encode(
    quantizer: &ResidualQuantizer,
    rows_nd: &[f32],
    codes_nc: &mut [u32],
    width: usize,
    on_rows: &mut dyn FnMut(usize) -> ControlFlow<()>,
) {
    let (dim, levels) = (quantizer.dim, quantizer.codebooks_ckd.len());
    let books: Vec<Book> = quantizer
        .codebooks_ckd
        .iter()
        .map(|book| Book::new(book, dim))
        .collect();
    // whole panels, so that the share does not matter to the codes
    let share = PANEL * 2 * rayon::current_num_threads();
    let mut done = 0;
    for (codes_nc, rows_nd) in codes_nc.chunks_mut(share * levels).zip(rows_nd.chunks(share * dim)) {
        codes_nc
            .par_chunks_mut(PANEL * levels)
            .zip(rows_nd.par_chunks(PANEL * dim))
            .for_each_init(Scratch::default, |scratch, (codes_nc, rows_nd)| {
                let found = search(quantizer, &books, rows_nd, codes_nc, width, scratch);
                let to = codes_nc.chunks_exact_mut(levels).zip(found);
                to.for_each(|(to_c, found_c)| to_c.copy_from_slice(&found_c));
            });
        done += rows_nd.len() / dim;
        if on_rows(done).is_break() {
            return;
        }
    }
}

/// A codebook with its columns as rows, for the product.
struct Book<'a> {
    codebook_kd: &'a [f32],
    codebook_dk: Vec<f32>,
    squared_norm_k: Vec<f64>,
}

impl<'a> Book<'a> {
    fn new(codebook_kd: &'a [f32], dim: usize) -> Self {
        let k = codebook_kd.len() / dim;
        Book {
            codebook_kd,
            codebook_dk: (0..codebook_kd.len())
                .map(|i| codebook_kd[i % k * dim + i / k])
                .collect(),
            squared_norm_k: codebook_kd.chunks_exact(dim).map(lanes::squared_norm).collect(),
        }
    }
}

/// Codes of a panel of rows.
fn search(
    quantizer: &ResidualQuantizer,
    books: &[Book],
    rows_nd: &[f32],
    greedy_nc: &[u32],
    width: usize,
    scratch: &mut Scratch,
) -> Vec<Vec<u32>> {
    let (dim, levels) = (quantizer.dim, books.len());
    let start = |row_d: &[f32]| {
        vec![Partial {
            codes_c: Vec::new(),
            residual_d: row_d.to_vec(),
            scale: 1.0,
        }]
    };
    let mut beams: Vec<Vec<Partial>> = rows_nd.chunks_exact(dim).map(start).collect();
    for (level, book) in books.iter().enumerate() {
        let k = book.squared_norm_k.len();
        let mut residuals_bd = Vec::new();
        for partial in beams.iter_mut().flatten() {
            if quantizer.normalize_residuals {
                partial.scale *= normalize(&mut partial.residual_d);
            }
            residuals_bd.extend_from_slice(&partial.residual_d);
        }
        let mut dots_bk = vec![0f32; residuals_bd.len() / dim * k];
        let shape = (residuals_bd.len() / dim, k, dim);
        let (left, right) = (View::rows(&residuals_bd, dim), View::rows(&book.codebook_dk, k));
        multiply_small(shape, left, right, &mut dots_bk, k, false, scratch);
        let mut first = 0;
        for (row, beam) in beams.iter_mut().enumerate() {
            let own_bk = &dots_bk[first * k..][..beam.len() * k];
            first += beam.len();
            let places = places(beam, book, own_bk, greedy_nc[row * levels + level], width);
            *beam = places
                .into_iter()
                .map(|(from, code)| beam[from].follow(book, code))
                .collect();
        }
    }
    beams.into_iter().map(best).collect()
}

/// The codes that leave the least over (ties: the first place).
fn best(mut beam: Vec<Partial>) -> Vec<u32> {
    let mut best = (f64::INFINITY, 0);
    for (at, partial) in beam.iter().enumerate() {
        let error = lanes::squared_norm(&partial.residual_d) * partial.scale * partial.scale;
        if error < best.0 {
            best = (error, at);
        }
    }
    beam.swap_remove(best.1).codes_c
}

/// A continuation: its error, a place of this level, a code.
type Open = (f64, usize, u32);

/// The least error first; ties by place, then by code.
fn order(a: &Open, b: &Open) -> Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2))
}

/// Which continuations the places of the next level hold: (place of this level, code).
fn places(beam: &[Partial], book: &Book, dots_bk: &[f32], greedy: u32, width: usize) -> Vec<(usize, u32)> {
    let k = book.squared_norm_k.len();
    let wanted = width.min(beam.len() * k);
    // the best continuations of the places so far, none taken yet, no more than can still be taken
    let mut open: Vec<Open> = Vec::new();
    let mut places = vec![(0, greedy)];
    for place in 0..wanted {
        if let Some(partial) = beam.get(place) {
            let squared = lanes::squared_norm(&partial.residual_d);
            let weight = partial.scale * partial.scale;
            let error = |code: usize| {
                let dot = f64::from(dots_bk[place * k + code]);
                weight * (squared + book.squared_norm_k[code] - 2.0 * dot)
            };
            let codes = (0..k).filter(|code| (place, *code) != (0, greedy as usize));
            open.extend(codes.map(|code| (error(code), place, code as u32)));
            let left = wanted - place;
            if open.len() > left {
                open.select_nth_unstable_by(left - 1, order);
                open.truncate(left);
            }
        }
        // the first place is the greedy one
        if place > 0
            && let Some(best) = (0..open.len()).min_by(|a, b| order(&open[*a], &open[*b]))
        {
            let (_, from, code) = open.swap_remove(best);
            places.push((from, code));
        }
    }
    places
}

impl Partial {
    fn follow(&self, book: &Book, code: u32) -> Partial {
        let dim = self.residual_d.len();
        let entry_d = &book.codebook_kd[code as usize * dim..][..dim];
        Partial {
            codes_c: self.codes_c.iter().copied().chain([code]).collect(),
            residual_d: self.residual_d.iter().zip(entry_d).map(|(x, e)| x - e).collect(),
            scale: self.scale,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::tests::{config, rows};
    use super::super::{ResidualConfig, fit};
    use super::{Book, Partial};
    use crate::{draws, lanes};

    /// Squared errors of every row, where normalisation is undone.
    fn errors(quantizer: &super::ResidualQuantizer, rows_nd: &[f32], codes_nc: &[u32]) -> Vec<f64> {
        let levels = quantizer.codebooks_ckd.len();
        let of = |(row_d, codes_c): (&[f32], &[u32])| {
            let (mut residual_d, mut scale) = (row_d.to_vec(), 1.0);
            for (codebook_kd, code) in quantizer.codebooks_ckd.iter().zip(codes_c) {
                if quantizer.normalize_residuals {
                    scale *= super::normalize(&mut residual_d);
                }
                let entry_d = &codebook_kd[*code as usize * quantizer.dim..];
                residual_d.iter_mut().zip(entry_d).for_each(|(x, e)| *x -= e);
            }
            lanes::squared_norm(&residual_d) * scale * scale
        };
        let rows = rows_nd.chunks_exact(quantizer.dim);
        rows.zip(codes_nc.chunks_exact(levels)).map(of).collect()
    }

    #[test]
    fn more_beam_never_increases_the_error_of_any_row() {
        let x = rows(400, 7);
        for normalize in [false, true] {
            let greedy = fit(&x, 7, &config(&[9, 13, 5, 8], normalize), |_, _| ()).unwrap();
            let mut before = errors(&greedy.quantizer, &x, &greedy.codes_nc);
            let first: f64 = before.iter().sum();
            for beam in [1, 2, 3, 5, 8, 16, 40] {
                let config = ResidualConfig {
                    beam,
                    ..config(&[9, 13, 5, 8], normalize)
                };
                let wide = fit(&x, 7, &config, |_, _| ()).unwrap();
                assert_eq!(wide.quantizer, greedy.quantizer);
                let now = errors(&wide.quantizer, &x, &wide.codes_nc);
                for (now, before) in now.iter().zip(&before) {
                    assert!(now <= before, "beam {beam}: {now} {before}");
                }
                before = now;
            }
            assert!(before.iter().sum::<f64>() < 0.95 * first);
        }
    }

    /// The places as the head of this file says it: one after the other, the best of all that are open.
    fn by_rule(beam: &[Partial], book: &Book, dots_bk: &[f32], greedy: u32, width: usize) -> Vec<(usize, u32)> {
        let k = book.squared_norm_k.len();
        let error = |(from, code): (usize, u32)| {
            let partial = &beam[from];
            let dot = f64::from(dots_bk[from * k + code as usize]);
            let squared = lanes::squared_norm(&partial.residual_d) + book.squared_norm_k[code as usize];
            partial.scale * partial.scale * (squared - 2.0 * dot)
        };
        let mut places = vec![(0, greedy)];
        for place in 1..width.min(beam.len() * k) {
            let open = (0..beam.len().min(place + 1)).flat_map(|from| (0..k as u32).map(move |code| (from, code)));
            let open = open.filter(|open| !places.contains(open));
            let best = open.min_by(|a, b| error(*a).total_cmp(&error(*b)).then(a.cmp(b)));
            places.extend(best);
        }
        places
    }

    /// On a grid, where many continuations are equally good.
    #[test]
    fn places_follow_the_rule_ties_too() {
        let grid = |stream: u64, n: usize| -> Vec<f32> {
            let number = |i: usize| draws::normal(5, stream, i as u64).round() as f32;
            (0..n).map(number).collect()
        };
        for case in 0..40u64 {
            let (places, k) = (1 + case as usize % 9, 1 + case as usize % 7);
            let codebook_kd = grid(2 * case, k * 2);
            let book = Book::new(&codebook_kd, 2);
            let partial = |row_d: &[f32]| Partial {
                codes_c: Vec::new(),
                residual_d: row_d.to_vec(),
                scale: 1.0,
            };
            let beam: Vec<Partial> = grid(2 * case + 1, places * 2).chunks(2).map(partial).collect();
            let dot = |a: &[f32], b: &[f32]| a[0] * b[0] + a[1] * b[1];
            let dots_bk: Vec<f32> = beam
                .iter()
                .flat_map(|partial| {
                    codebook_kd
                        .chunks(2)
                        .map(move |entry_d| dot(&partial.residual_d, entry_d))
                })
                .collect();
            let greedy = case as u32 % k as u32;
            for width in [1, 2, 3, 7, 9, 20, 100] {
                let found = super::places(&beam, &book, &dots_bk, greedy, width);
                assert_eq!(
                    found,
                    by_rule(&beam, &book, &dots_bk, greedy, width),
                    "case {case}, width {width}"
                );
            }
        }
    }

    #[test]
    fn a_search_tells_how_far_it_is_and_a_break_leaves_the_rest_greedy() {
        let x = rows(2000, 3);
        let greedy = fit(&x, 3, &config(&[5, 6], false), |_, _| ()).unwrap();
        let wide = ResidualConfig {
            beam: 4,
            ..config(&[5, 6], false)
        };
        let wide = fit(&x, 3, &wide, |_, _| ()).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("pool");
        let search = |stop: usize| {
            let (mut fit, mut told) = (greedy.clone(), Vec::new());
            pool.install(|| {
                fit.search(&x, 4, |done| {
                    told.push(done);
                    match done < stop {
                        true => ControlFlow::Continue(()),
                        false => ControlFlow::Break(()),
                    }
                });
            });
            (fit, told)
        };
        let (whole, told) = search(usize::MAX);
        assert_eq!((whole, told.len(), told.last()), (wide.clone(), 11, Some(&2000)));
        let (part, told) = search(500);
        let at = told[told.len() - 1] * 2;
        assert!(at < wide.codes_nc.len());
        assert_eq!(part.codes_nc[..at], wide.codes_nc[..at]);
        assert_eq!(part.codes_nc[at..], greedy.codes_nc[at..]);
    }

    #[test]
    fn a_beam_of_all_codes_finds_the_best() {
        let x = rows(60, 3);
        let config = ResidualConfig {
            beam: 4 * 3 * 5,
            ..config(&[4, 3, 5], false)
        };
        let found = fit(&x, 3, &config, |_, _| ()).unwrap();
        let error = errors(&found.quantizer, &x, &found.codes_nc);
        for (row, error) in error.iter().enumerate() {
            let every = (0..60u32).map(|i| [i / 15, i / 5 % 3, i % 5]);
            let row_d = &x[row * 3..][..3];
            let best = every.map(|codes| errors(&found.quantizer, row_d, &codes)[0]);
            let best = best.fold(f64::INFINITY, f64::min);
            assert!((error - best).abs() < 1e-5 * (1.0 + best));
        }
    }
}
