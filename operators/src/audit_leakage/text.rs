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
    let wanted = wanted(split, |held| {
        let own = *code.get(held.target)?;
        let seen = held.history.iter().any(|item| code.get(item) == Some(&own));
        (!seen).then_some(own)
    });
    let mut found = vec![HashSet::new(); wanted.len()];
    for batch in samples.batches()? {
        let batch = batch?;
        let users = schema::strings(&batch, USER_ID)?;
        let (lists, targets) = (schema::lists(&batch, SEQUENCE)?, schema::fixed_lists(&batch, TARGET)?);
        let (history, target) = (
            lists.values().as_primitive::<UInt16Type>(),
            targets.values().as_primitive::<UInt16Type>(),
        );
        for row in 0..batch.num_rows() {
            let user = users.value(row);
            for ((_, _, wanted), found) in wanted.iter().zip(&mut found) {
                let Some(own) = wanted.get(user) else { continue };
                let offsets = lists.value_offsets();
                let read = &history.values()[offsets[row] as usize..offsets[row + 1] as usize];
                let at = (targets.offset() + row) * levels;
                if read.chunks_exact(levels).any(|code| code == *own) || &target.values()[at..at + levels] == *own {
                    found.insert(user.to_string());
                }
            }
        }
    }
    Ok(checks(&wanted, &found, SAMPLES, "codes"))
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
    let wanted = wanted(split, |held| {
        let own = *title.get(held.target).filter(|own| own.len() >= SHORTEST)?;
        let seen = held
            .history
            .iter()
            .any(|item| title.get(item).is_some_and(|other| contains(other, own)));
        (!seen).then_some(own)
    });
    let mut found = vec![HashSet::new(); wanted.len()];
    for batch in prompts.batches()? {
        let batch = batch?;
        let (users, lists) = (schema::strings(&batch, USER_ID)?, schema::lists(&batch, TOKENS)?);
        let (tokens, offsets) = (lists.values().as_primitive::<UInt32Type>(), lists.value_offsets());
        for row in 0..batch.num_rows() {
            let user = users.value(row);
            for ((_, _, wanted), found) in wanted.iter().zip(&mut found) {
                let Some(own) = wanted.get(user) else { continue };
                let read = &tokens.values()[offsets[row] as usize..offsets[row + 1] as usize];
                if !found.contains(user) && contains(read, own) {
                    found.insert(user.to_string());
                }
            }
        }
    }
    Ok(checks(&wanted, &found, PROMPTS, "title"))
}

/// By `test` and `valid`: how many users there are, and what must not be found with each.
type Wanted<'a, T> = Vec<(&'static str, usize, HashMap<&'a str, &'a [T]>)>;

fn wanted<'a, T>(split: &'a Split, of: impl Fn(&Held) -> Option<&'a [T]>) -> Wanted<'a, T> {
    let held = split.held.iter();
    held.map(|(name, held)| {
        let wanted = held.iter().filter_map(|(user, held)| Some((*user, of(held)?)));
        (*name, held.len(), wanted.collect())
    })
    .collect()
}

fn contains(text: &[u32], part: &[u32]) -> bool {
    text.windows(part.len().max(1)).any(|window| window == part)
}

fn checks<T>(wanted: &Wanted<T>, found: &[HashSet<String>], what: &str, by: &str) -> Vec<Check> {
    let pairs = wanted.iter().zip(found);
    pairs
        .map(|((name, _, wanted), found)| {
            let sentence = match found.len() {
                0 => format!("no {by} of a {name} target is in its user's {what}"),
                count => format!("{count} users have the {by} of their {name} target in {what}"),
            };
            Check::none(
                &format!("{name}_target_in_{what}"),
                found.len(),
                wanted.len(),
                Verdict::Leak,
                sentence,
            )
        })
        .collect()
}
