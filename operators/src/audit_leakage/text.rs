//! Targets in what models read: samples of codes, prompts of tokens.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{UInt16Type, UInt32Type};
use sluice_engine::Result;
use sluice_engine::table::Table;

use super::targets::{Held, Split};
use super::{Check, PROMPTS, SAMPLES, TOKENS, Verdict};
use crate::schema::{self, ITEM_ID, SEQUENCE, TARGET, USER_ID};

/// Titles shorter than this occur in other text by chance.
const SHORTEST: usize = 3;

/// Targets whose codes must not be found in their users' samples.
pub(super) fn samples(split: &Split, samples: &Table, ids: &RecordBatch) -> Result<Vec<Check>> {
    let (codes, levels) = schema::semantic_id_codes(ids)?;
    let items = schema::strings(ids, ITEM_ID)?;
    let code: HashMap<&str, &[u16]> = items.iter().flatten().zip(codes.chunks_exact(levels)).collect();
    let mut wanted = Wanted::all(split, |held| {
        let own = *code.get(held.target)?;
        let seen = held.history.iter().any(|item| code.get(item) == Some(&own));
        (!seen).then_some(own)
    });
    for batch in samples.batches()? {
        let batch = batch?;
        let users = schema::strings(&batch, USER_ID)?;
        let (lists, targets) = (schema::lists(&batch, SEQUENCE)?, schema::fixed_lists(&batch, TARGET)?);
        let (history, target) = (
            lists.values().as_primitive::<UInt16Type>(),
            targets.values().as_primitive::<UInt16Type>(),
        );
        for row in 0..batch.num_rows() {
            let offsets = lists.value_offsets();
            let read = &history.values()[offsets[row] as usize..offsets[row + 1] as usize];
            let at = (targets.offset() + row) * levels;
            let aimed_at = &target.values()[at..at + levels];
            for wanted in &mut wanted {
                wanted.look(users.value(row), |own| {
                    aimed_at == own || read.chunks_exact(levels).any(|code| code == own)
                });
            }
        }
    }
    Ok(wanted.iter().map(|wanted| wanted.check(SAMPLES, "codes")).collect())
}

/// Targets whose titles must not be found in their users' prompts.
pub(super) fn prompts(split: &Split, prompts: &Table, titles: &RecordBatch) -> Result<Vec<Check>> {
    let lists = schema::lists(titles, TOKENS)?;
    let (tokens, offsets) = (lists.values().as_primitive::<UInt32Type>(), lists.value_offsets());
    let items = schema::strings(titles, ITEM_ID)?;
    let mut title: HashMap<&str, &[u32]> = HashMap::new();
    for row in 0..titles.num_rows() {
        let all = &tokens.values()[offsets[row] as usize..offsets[row + 1] as usize];
        // The last token ends the text.
        title.insert(items.value(row), &all[..all.len().saturating_sub(1)]);
    }
    let mut wanted = Wanted::all(split, |held| {
        let own = *title.get(held.target).filter(|own| own.len() >= SHORTEST)?;
        let seen = held
            .history
            .iter()
            .any(|item| title.get(item).is_some_and(|other| contains(other, own)));
        (!seen).then_some(own)
    });
    for batch in prompts.batches()? {
        let batch = batch?;
        let (users, lists) = (schema::strings(&batch, USER_ID)?, schema::lists(&batch, TOKENS)?);
        let (tokens, offsets) = (lists.values().as_primitive::<UInt32Type>(), lists.value_offsets());
        for row in 0..batch.num_rows() {
            let read = &tokens.values()[offsets[row] as usize..offsets[row + 1] as usize];
            for wanted in &mut wanted {
                wanted.look(users.value(row), |own| contains(read, own));
            }
        }
    }
    Ok(wanted.iter().map(|wanted| wanted.check(PROMPTS, "title")).collect())
}

/// What must not be found with whom, of `test` or `valid`.
struct Wanted<'a, T> {
    name: &'static str,
    of: HashMap<&'a str, Vec<&'a [T]>>,
    /// Those of them whose text was read.
    met: HashSet<&'a str>,
    /// Those of them with whom something was found.
    found: HashSet<&'a str>,
}

impl<'a, T> Wanted<'a, T> {
    fn all(split: &'a Split, of: impl Fn(&Held) -> Option<&'a [T]>) -> Vec<Self> {
        let mut all = Vec::new();
        for &(name, ref held) in &split.held {
            let mut wanted = Wanted {
                name,
                of: HashMap::new(),
                met: HashSet::new(),
                found: HashSet::new(),
            };
            for (user, rows) in held {
                let own: Vec<&[T]> = rows.iter().filter_map(&of).collect();
                if !own.is_empty() {
                    wanted.of.insert(*user, own);
                }
            }
            all.push(wanted);
        }
        all
    }

    /// Looks through something that was read of a user.
    fn look(&mut self, user: &str, holds: impl Fn(&[T]) -> bool) {
        let Some((&user, wanted)) = self.of.get_key_value(user) else {
            return;
        };
        self.met.insert(user);
        if !self.found.contains(user) && wanted.iter().any(|&own| holds(own)) {
            self.found.insert(user);
        }
    }

    fn check(&self, what: &str, by: &str) -> Check {
        let name = self.name;
        let sentence = match self.found.len() {
            0 => format!("no {by} of a {name} target is in its user's {what}"),
            count => format!("{count} users have the {by} of their {name} target in {what}"),
        };
        let why = match self.of.is_empty() {
            true => format!("there is no {by} of a {name} target to look for"),
            false => format!("no user of {name} is in {what}"),
        };
        Check::none(
            &format!("{name}_target_in_{what}"),
            (self.found.len(), self.met.len()),
            Verdict::Leak,
            sentence,
            &why,
        )
    }
}

fn contains(text: &[u32], part: &[u32]) -> bool {
    text.windows(part.len().max(1)).any(|window| window == part)
}
