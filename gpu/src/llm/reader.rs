//! Between the beam search and the model it asks: the decoder of the CPU, or that of another device.

use super::LlmConfig;
use super::decoder::{self, Decoder, Feed};
use crate::error::Result;

/// Users whose rows share matrix products of the CPU at most.
const USERS: usize = 64;
/// Bytes of keys and values that a group of users may have there; a single user may have more.
const BYTES: usize = 512 << 20;

/// A language model that reads prompts once, and then what beams add to them.
pub(super) trait Reader: Sized {
    /// States behind tokens, a row each, where the model keeps them.
    type States;
    /// What is remembered of some prompts.
    type Reading<'a>: Reading<'a, Self>
    where
        Self: 'a;

    /// The architecture.
    fn config(&self) -> &LlmConfig;
    /// How many tokens can be read.
    fn readable(&self) -> usize;
    /// Whether probabilities are normalised over the whole vocabulary: then a forced token has a score too.
    fn scores_forced(&self) -> bool;
    /// How many users are read together.
    fn room(&self) -> Room;
    /// Reads the prompts of some users, who add at most `more` tokens each; with the state of every last token.
    fn read(&self, prompts: &[&[u32]], more: usize) -> Result<(Self::Reading<'_>, Self::States)>;
    /// The next tokens of some beams, in any order. Of all those of a user, some that are not among the best `most` may be
    /// left out.
    fn next_tokens(&self, states: &Self::States, asked: &[Asked], most: usize) -> Result<Vec<Vec<Next>>>;
}

/// A beam whose next tokens are asked for.
pub(super) struct Asked<'a> {
    /// Whose it is; the beams of one user follow each other.
    pub user: usize,
    /// Its row of the states.
    pub row: u32,
    /// Its score.
    pub score: f64,
    /// What may come next, ascending.
    pub tokens: &'a [u32],
}

/// A token by its place among those asked for, with its log-probability.
pub(super) type Next = (u32, f64);

/// What is remembered of the prompts of some users and of all that their beams added.
pub(super) trait Reading<'a, R: Reader + 'a> {
    /// The model that reads.
    fn reader(&self) -> &'a R;
    /// Number of users.
    fn users(&self) -> usize;
    /// Number of rows there are: the number that the next one gets.
    fn rows(&self) -> u32;
    /// Forgets all rows, not the prompts.
    fn forget(&mut self);
    /// Adds a row for every token, in order; the states behind them.
    fn extend(&mut self, feeds: &[Feed]) -> Result<R::States>;
}

/// How many users are read together.
pub(super) struct Room {
    /// Users at most.
    pub users: usize,
    /// Tokens, in prompts and of beams, whose keys and values may be kept; a single user may have more.
    pub tokens: usize,
    /// Prompts take the room of the longest of them.
    pub padded: bool,
}

impl Room {
    /// How many of the next users fit together, whose beams add at most `more` tokens each.
    pub fn group(&self, prompts: &[&[u32]], more: usize) -> usize {
        let (mut users, mut longest, mut sum) = (0, 0, 0);
        for prompt in prompts.iter().take(self.users) {
            longest = longest.max(prompt.len());
            sum += prompt.len();
            let kept = if self.padded { (users + 1) * longest } else { sum };
            if users > 0 && kept + (users + 1) * more > self.tokens {
                break;
            }
            users += 1;
        }
        users
    }
}

impl Reader for Decoder {
    type States = Vec<f32>;
    type Reading<'a> = decoder::Reading<'a>;

    fn config(&self) -> &LlmConfig {
        Decoder::config(self)
    }

    fn readable(&self) -> usize {
        Decoder::readable(self)
    }

    fn scores_forced(&self) -> bool {
        Decoder::scores_forced(self)
    }

    fn room(&self) -> Room {
        Room {
            users: USERS,
            tokens: BYTES / self.bytes_per_token(),
            padded: false,
        }
    }

    fn read(&self, prompts: &[&[u32]], more: usize) -> Result<(decoder::Reading<'_>, Vec<f32>)> {
        Decoder::read(self, prompts, more)
    }

    fn next_tokens(&self, states_sd: &Vec<f32>, asked: &[Asked], _: usize) -> Result<Vec<Vec<Next>>> {
        let d = Decoder::config(self).width();
        let rows = asked.iter().flat_map(|beam| &states_sd[beam.row as usize * d..][..d]);
        let states_rd: Vec<f32> = rows.copied().collect();
        let tokens: Vec<&[u32]> = asked.iter().map(|beam| beam.tokens).collect();
        let given = self.log_probabilities(&states_rd, &tokens).into_iter();
        Ok(given.map(|given| (0..).zip(given).collect()).collect())
    }
}

impl<'a> Reading<'a, Decoder> for decoder::Reading<'a> {
    fn reader(&self) -> &'a Decoder {
        self.decoder()
    }

    fn users(&self) -> usize {
        decoder::Reading::users(self)
    }

    fn rows(&self) -> u32 {
        decoder::Reading::rows(self)
    }

    fn forget(&mut self) {
        decoder::Reading::forget(self);
    }

    fn extend(&mut self, feeds: &[Feed]) -> Result<Vec<f32>> {
        Ok(decoder::Reading::extend(self, feeds))
    }
}
