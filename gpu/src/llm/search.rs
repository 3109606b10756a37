//! Beam search for titles with a language model: a token outside the trie of all titles cannot come out.
//!
//! The score of a title is the sum of the log-probabilities of its tokens, the end of text included. What is kept, what
//! ends and when all ends is as in `transformers` (`generate` with `num_beams`, `early_stopping=False` and
//! `prefix_allowed_tokens_fn`): of the best 2 W continuations those that end a title count if they are among the first
//! W; the first W of the others go on; it is over when W titles were found and the worst of them is no worse than the
//! best that goes on. Ties go to the earlier beam, then to the smaller token.
//! On the CPU results depend on neither the batch nor the threads.

use super::decoder::{Decoder, Feed};
use super::on_device::DeviceDecoder;
use super::reader::{Asked, Next, Reader, Reading};
use super::trie::TitleTrie;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Rows of one pass of exact scoring at most.
const EXACT_ROWS: usize = 8192;

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchOptions {
    /// W, prefixes kept per user; at most this many titles come out. With as many as there are titles, every title gets
    /// its exact score.
    pub width: usize,
    /// A score is divided by the number of tokens to this power: 0 leaves the sum.
    pub length_penalty: f64,
}

impl Default for SearchOptions {
    fn default() -> Self {
        SearchOptions {
            width: 20,
            length_penalty: 0.0,
        }
    }
}

/// A title with its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Its number in the trie; [`TitleTrie::text`] and [`TitleTrie::items_of`] say what it stands for.
    pub title: u32,
    /// Sum of log-probabilities, divided as the options say.
    pub score: f64,
}

/// What came out, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The titles of every prompt, best first.
    pub lists: Vec<Vec<Found>>,
    /// Tokens that went through the model after the prompts.
    pub tokens: u64,
}

/// The best titles after each prompt, on the CPU.
///
/// # Errors
/// [`Error::InvalidConfig`] for width 0 or a penalty that is no number; [`Error::InvalidData`] for an empty prompt, one
/// that leaves no position for the longest title, a token outside the vocabulary, or a score that is not a number.
pub fn generate(decoder: &Decoder, trie: &TitleTrie, prompts: &[&[u32]], options: &SearchOptions) -> Result<Generated> {
    generate_with(decoder, trie, prompts, options)
}

/// The same with a model that lives on another device.
///
/// # Errors
/// Those of [`generate`], and [`Error::Candle`].
pub fn generate_on(
    decoder: &DeviceDecoder,
    trie: &TitleTrie,
    prompts: &[&[u32]],
    options: &SearchOptions,
) -> Result<Generated> {
    generate_with(decoder, trie, prompts, options)
}

fn generate_with<R: Reader>(
    reader: &R,
    trie: &TitleTrie,
    prompts: &[&[u32]],
    options: &SearchOptions,
) -> Result<Generated> {
    check(reader, trie, prompts, options)?;
    let mut generated = Generated {
        lists: Vec::with_capacity(prompts.len()),
        tokens: 0,
    };
    let exact = options.width >= trie.len();
    let (room, more) = (reader.room(), added(trie, options.width));
    let passes = match exact {
        true => passes(trie, room.tokens),
        false => std::iter::once(0..trie.len() as u32).collect(),
    };
    let mut start = 0;
    while start < prompts.len() {
        let users = match exact {
            true => 1,
            false => room.group(&prompts[start..], more),
        };
        let prompts = &prompts[start..start + users];
        let (mut reading, states) = reader.read(prompts, trie.longest())?;
        let mut lists = vec![Vec::new(); users];
        for titles in &passes {
            reading.forget();
            let found = Search::<R, _>::new(&mut reading, trie, titles.clone(), options).run(&states)?;
            generated.tokens += u64::from(reading.rows());
            lists.iter_mut().zip(found).for_each(|(list, found)| list.extend(found));
        }
        lists
            .iter_mut()
            .for_each(|list| list.sort_by(|a, b| b.score.total_cmp(&a.score)));
        generated.lists.extend(lists);
        start += users;
    }
    Ok(generated)
}

fn check<R: Reader>(reader: &R, trie: &TitleTrie, prompts: &[&[u32]], options: &SearchOptions) -> Result<()> {
    if options.width == 0 {
        return Err(Error::config("width", "must be at least 1"));
    }
    if !options.length_penalty.is_finite() {
        return Err(Error::config("length_penalty", "must be a number"));
    }
    let (vocabulary, positions) = (reader.config().vocabulary(), reader.config().max_positions());
    let invalid = |what: String| Err(Error::InvalidData(what));
    let unknown = |token: u32| format!("has token {token}, the model's vocabulary has {vocabulary}");
    if trie.largest_token() as usize >= vocabulary {
        return invalid(format!("a title {}", unknown(trie.largest_token())));
    }
    // The end of text is never read.
    let longest = trie.longest() - 1;
    for (at, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return invalid(format!("prompt {at} has no token"));
        }
        if prompt.len() + longest > positions {
            let tokens = prompt.len();
            let what = format!("prompt {at} has {tokens} tokens, the longest title {longest} and its end");
            return invalid(format!("{what}; the model has {positions} positions"));
        }
        if let Some(token) = prompt.iter().find(|token| **token as usize >= reader.readable()) {
            return invalid(format!("prompt {at} {}", unknown(*token)));
        }
    }
    Ok(())
}

/// Tokens that the beams of a user add at most: of every length as many as are kept, or as there are prefixes.
fn added(trie: &TitleTrie, width: usize) -> usize {
    let (mut nodes, mut tokens): (Range<u32>, usize) = (0..1, 0);
    while !nodes.is_empty() {
        nodes = trie.children(nodes.start).start..trie.children(nodes.end - 1).end;
        tokens += nodes.len().min(width);
    }
    tokens
}

/// All titles, cut into ranges that have at most so many tokens; a single title may have more.
fn passes(trie: &TitleTrie, most: usize) -> Vec<Range<u32>> {
    let (mut ranges, mut start, mut tokens) = (Vec::new(), 0, 0);
    for title in 0..trie.len() as u32 {
        let own = trie.text(title).len();
        if title > start && tokens + own > most.min(EXACT_ROWS) {
            ranges.push(start..title);
            (start, tokens) = (title, 0);
        }
        tokens += own;
    }
    ranges.push(start..trie.len() as u32);
    ranges
}

/// A prefix that goes on.
#[derive(Clone)]
struct Beam {
    node: u32,
    score: f64,
    /// The row of its last token that the model has read; `None` if that is the prompt's.
    row: Option<u32>,
    /// Tokens behind that.
    pending: Vec<u32>,
}

/// A continuation of a beam by one token.
#[derive(Clone, Copy)]
struct Step {
    score: f64,
    beam: u32,
    node: u32,
}

/// What a user has.
struct User {
    beams: Vec<Beam>,
    found: Vec<Found>,
}

/// The search of a group of users for some of the titles.
struct Search<'a, 'b, R, M> {
    reading: &'a mut M,
    reader: &'b R,
    trie: &'a TitleTrie,
    titles: Range<u32>,
    width: usize,
    length_penalty: f64,
    users: Vec<User>,
}

impl<'a, 'b, R: Reader + 'b, M: Reading<'b, R>> Search<'a, 'b, R, M> {
    fn new(reading: &'a mut M, trie: &'a TitleTrie, titles: Range<u32>, options: &SearchOptions) -> Self {
        let root = Beam {
            node: 0,
            score: 0.0,
            row: None,
            pending: Vec::new(),
        };
        let user = || User {
            beams: vec![root.clone()],
            found: Vec::new(),
        };
        let users = (0..reading.users()).map(|_| user()).collect();
        Search {
            reader: reading.reader(),
            reading,
            trie,
            width: options.width.min(titles.len()),
            titles,
            length_penalty: options.length_penalty,
            users,
        }
    }

    /// The titles of every user, best first. `states` are those behind the prompts.
    fn run(mut self, states: &R::States) -> Result<Vec<Vec<Found>>> {
        let mut length = 0;
        while self.users.iter().any(|user| !user.beams.is_empty()) {
            let scored: Vec<(usize, usize)> = self.to_score();
            let given = match length {
                _ if scored.is_empty() => Vec::new(),
                0 => {
                    let rows: Vec<u32> = scored.iter().map(|(user, _)| *user as u32).collect();
                    self.ask(states, &scored, &rows)?
                }
                _ => {
                    let (states, rows) = self.feed(&scored)?;
                    self.ask(&states, &scored, &rows)?
                }
            };
            let mut given = given.into_iter();
            let mut scored = scored.into_iter().peekable();
            length += 1;
            let divisor = (length as f64).powf(self.length_penalty);
            for user in 0..self.users.len() {
                let mut steps = Vec::new();
                for beam in 0..self.users[user].beams.len() {
                    let given = scored.next_if_eq(&(user, beam)).and_then(|_| given.next());
                    self.continuations(user, beam, given.as_deref(), &mut steps)?;
                }
                self.keep(user, steps, divisor);
            }
        }
        Ok(self.users.into_iter().map(|user| user.found).collect())
    }

    /// The beams whose next tokens need scores: where a forced token is certain, the model does not have to be asked.
    fn to_score(&self) -> Vec<(usize, usize)> {
        let all = self.users.iter().enumerate();
        let all = all.flat_map(|(user, of)| of.beams.iter().enumerate().map(move |(at, beam)| (user, at, beam)));
        let open = |beam: &Beam| self.reader.scores_forced() || self.trie.children(beam.node).len() > 1;
        all.filter(|(.., beam)| open(beam))
            .map(|(user, at, _)| (user, at))
            .collect()
    }

    /// Lets the model read what is pending of these beams: the states behind it, and the row of each beam among them.
    fn feed(&mut self, scored: &[(usize, usize)]) -> Result<(R::States, Vec<u32>)> {
        let feeds: Vec<Feed> = scored
            .iter()
            .map(|(user, beam)| {
                let beam = &self.users[*user].beams[*beam];
                Feed {
                    user: *user,
                    after: beam.row,
                    tokens: &beam.pending,
                }
            })
            .collect();
        let first = self.reading.rows();
        let states = self.reading.extend(&feeds)?;
        let (mut rows, mut end) = (Vec::with_capacity(scored.len()), 0);
        for (user, beam) in scored {
            let beam = &mut self.users[*user].beams[*beam];
            end += beam.pending.len() as u32;
            beam.pending.clear();
            beam.row = Some(first + end - 1);
            rows.push(end - 1);
        }
        Ok((states, rows))
    }

    /// The next tokens of these beams, whose states are in these rows.
    fn ask(&self, states: &R::States, scored: &[(usize, usize)], rows: &[u32]) -> Result<Vec<Vec<Next>>> {
        let asked = scored.iter().zip(rows).map(|((user, beam), row)| {
            let beam = &self.users[*user].beams[*beam];
            Asked {
                user: *user,
                row: *row,
                score: beam.score,
                tokens: self.trie.tokens(self.trie.children(beam.node)),
            }
        });
        // Where some titles are left out, the best tokens may lead to none.
        let most = match self.titles.len() == self.trie.len() {
            true => 2 * self.width,
            false => usize::MAX,
        };
        self.reader.next_tokens(states, &asked.collect::<Vec<_>>(), most)
    }

    /// Continuations of a beam by the tokens given; without them its only one is certain.
    fn continuations(&self, user: usize, beam: usize, given: Option<&[Next]>, steps: &mut Vec<Step>) -> Result<()> {
        let Beam { node, score, .. } = self.users[user].beams[beam];
        let first = self.trie.children(node).start;
        for (at, log_probability) in given.unwrap_or(&[(0, 0.0)]) {
            let node = first + at;
            let below = self.trie.below(node);
            if below.end <= self.titles.start || self.titles.end <= below.start {
                continue;
            }
            let score = score + log_probability;
            if !score.is_finite() {
                return Err(Error::InvalidData(format!("the model gives a score of {score}")));
            }
            steps.push(Step {
                score,
                beam: beam as u32,
                node,
            });
        }
        Ok(())
    }

    /// Of all continuations, keeps the titles that were found and the beams that go on.
    fn keep(&mut self, user: usize, mut steps: Vec<Step>, divisor: f64) {
        let order = |a: &Step, b: &Step| {
            b.score
                .total_cmp(&a.score)
                .then((a.beam, a.node).cmp(&(b.beam, b.node)))
        };
        let most = 2 * self.width;
        if steps.len() > most {
            steps.select_nth_unstable_by(most, order);
            steps.truncate(most);
        }
        steps.sort_unstable_by(order);
        let User { beams, found } = &mut self.users[user];
        let mut next: Vec<Beam> = Vec::with_capacity(self.width.min(steps.len()));
        for (place, step) in steps.iter().enumerate() {
            match self.trie.title(step.node) {
                Some(title) if place < self.width => found.push(Found {
                    title,
                    score: step.score / divisor,
                }),
                None if next.len() < self.width => {
                    let Beam { row, pending, .. } = &beams[step.beam as usize];
                    let token = self.trie.token(step.node);
                    next.push(Beam {
                        node: step.node,
                        score: step.score,
                        row: *row,
                        pending: pending.iter().copied().chain([token]).collect(),
                    });
                }
                _ => {}
            }
        }
        // Stable: of equals the one found first stays first.
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.truncate(self.width);
        if let Some(worst) = found.get(self.width - 1) {
            let better = |beam: &Beam| beam.score / divisor > worst.score;
            // A sum only falls: a beam that is no better now never will be. With a penalty, only the best is looked at.
            if self.length_penalty <= 0.0 {
                next.retain(better);
            } else if !next.first().is_some_and(better) {
                next.clear();
            }
        }
        *beams = next;
    }
}

#[cfg(test)]
mod tests;
