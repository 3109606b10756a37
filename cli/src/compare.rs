//! `sluice compare STAGE STAGE ...`: systems beside each other, over the users they were scored on.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use sluice_engine::Error;
use sluice_engine::history::RunRecord;
use sluice_engine::store::{KeyRecord, Store};
use sluice_operators::comparison::{self, Scores, Settings, System};

use crate::arguments;
use crate::display::say;
use crate::runs::{named, newest, records_of, unknown_stage};
use crate::typeset::{Sheet, typeset};

/// The output that has a row a user.
const PER_USER: &str = "per_user";
/// The axis of a sweep whose values are the runs of one system.
const SEED: &str = "seed";
/// Coverage of the intervals.
const CONFIDENCE: f64 = 0.95;
/// Seed of the resamples: the same comparison prints the same figures.
const RESAMPLING_SEED: u64 = 0;

/// `sluice compare STAGE STAGE ...`.
pub fn compare(command: &arguments::Compare) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let mut runs = Runs::new(&store);
    let newest = match &command.run {
        Some(run) => named(&store, run),
        None => newest(&store, command.pipeline.as_deref()),
    };
    let default = runs.enter(newest.map_err(one)?);
    let mut systems: Vec<(String, Vec<Source>)> = Vec::new();
    let mut problems = Vec::new();
    for text in &command.stages {
        match Choice::parse(text).and_then(|choice| choice.sources(&mut runs, &default)) {
            Ok(found) => found.into_iter().for_each(|(name, source)| {
                match systems.iter_mut().find(|(system, _)| *system == name) {
                    Some((_, sources)) => sources.push(source),
                    None => systems.push((name, vec![source])),
                }
            }),
            Err(error) => problems.push(error),
        }
    }
    for (name, sources) in &systems {
        let twice = sources.iter().enumerate().find(|(place, source)| {
            let same = |other: &Source| (&other.run, &other.stage) == (&source.run, &source.stage);
            sources[..*place].iter().any(same)
        });
        if let Some((_, source)) = twice {
            let message = format!("stage \"{}\" is twice in system \"{name}\"", source.stage);
            problems.push(Error::user("twice", message).hint("NAME=STAGE gives a system a name of its own"));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let sheet = evaluate(command, &store, &systems).map_err(one)?;
    say!("{}", typeset(&sheet, command.format).trim_end());
    Ok(())
}

/// Reads the tables and compares by every metric.
fn evaluate(command: &arguments::Compare, store: &Store, systems: &[(String, Vec<Source>)]) -> Result<Sheet, Error> {
    let mut tables: Vec<Vec<RecordBatch>> = Vec::new();
    for (_, sources) in systems {
        let read = |source: &Source| store.table(&source.digest)?.batch();
        tables.push(sources.iter().map(read).collect::<Result<_, _>>()?);
    }
    let metrics = match command.metric.is_empty() {
        true => shared_metrics(tables.iter().flatten())?,
        false => command.metric.clone(),
    };
    let settings = Settings {
        resamples: command.resamples as usize,
        confidence: CONFIDENCE,
        seed: RESAMPLING_SEED,
    };
    let mut compared = Vec::new();
    for metric in metrics {
        let mut scored = Vec::new();
        for ((name, sources), tables) in systems.iter().zip(&tables) {
            let runs = sources.iter().zip(tables);
            let runs = runs.map(|(source, table)| Scores::read(&source.label, table, &metric));
            scored.push(System {
                name: name.clone(),
                runs: runs.collect::<Result<_, _>>()?,
            });
        }
        let comparison = comparison::compare(&scored, &settings)?;
        compared.push((metric, comparison));
    }
    Ok(Sheet {
        systems: systems.iter().map(|(name, _)| name.clone()).collect(),
        metrics: compared,
        resamples: settings.resamples,
        confidence: CONFIDENCE,
    })
}

/// Metrics that all tables have, in the order of the first.
fn shared_metrics<'a>(mut tables: impl Iterator<Item = &'a RecordBatch>) -> Result<Vec<String>, Error> {
    let of = |table: &RecordBatch| comparison::metrics(&table.schema());
    let mut shared = tables.next().map(of).unwrap_or_default();
    for table in tables {
        let metrics = of(table);
        shared.retain(|metric| metrics.contains(metric));
    }
    match shared.is_empty() {
        true => Err(Error::user("no-shared-metric", "the stages have no metric in common")
            .hint("give their score_ranking the same \"k\"")),
        false => Ok(shared),
    }
}

/// One run of a system: where its scores are.
#[derive(Debug, PartialEq)]
struct Source {
    /// What errors call it.
    label: String,
    run: String,
    stage: String,
    digest: String,
}

/// An argument: `[NAME=][RUN:]STAGE`.
#[derive(Debug, PartialEq)]
struct Choice<'a> {
    name: Option<&'a str>,
    run: Option<&'a str>,
    stage: &'a str,
}

impl<'a> Choice<'a> {
    fn parse(text: &'a str) -> Result<Self, Error> {
        // Signs in brackets belong to the name of an instance: tiger_metrics[size=13m,seed=1].
        let cut = |text: &'a str, sign: char| {
            let place = text[..text.find('[').unwrap_or(text.len())].find(sign);
            match place {
                Some(place) => (Some(&text[..place]), &text[place + 1..]),
                None => (None, text),
            }
        };
        let (name, rest) = cut(text, '=');
        let (run, stage) = cut(rest, ':');
        if name == Some("") || run == Some("") || stage.is_empty() {
            let message = format!("\"{text}\" names no stage");
            return Err(Error::user("bad-stage", message).hint("write STAGE, RUN:STAGE, NAME=STAGE or NAME=RUN:STAGE"));
        }
        Ok(Choice { name, run, stage })
    }

    /// The runs it stands for, each with the name of its system.
    fn sources(&self, runs: &mut Runs, default: &str) -> Result<Vec<(String, Source)>, Error> {
        let run = match self.run {
            Some(name) => {
                let record = named(runs.store, name)?;
                runs.enter(record)
            }
            None => default.to_string(),
        };
        let (stages, records) = &runs.read[&run];
        let instances = instances(self.stage, stages);
        if instances.is_empty() {
            let mut known: Vec<&str> = stages.iter().map(String::as_str).collect();
            known.extend(stages.iter().filter_map(|stage| axes(stage)).map(|(base, _)| base));
            known.dedup();
            return Err(unknown_stage(&run, self.stage, &known));
        }
        let mut sources = Vec::new();
        for (stage, rest) in instances {
            let prefix = match (self.name, self.run) {
                (Some(name), _) => name.to_string(),
                (None, Some(run)) => format!("{run}:{}", base(self.stage, &rest)),
                (None, None) => base(self.stage, &rest).to_string(),
            };
            // A name of its own stands for the axes that were asked for.
            let asked = axes(self.stage).filter(|_| self.name.is_some());
            let asked = asked.map(|(_, axes)| axes).unwrap_or_default();
            let shown = rest.iter().flatten().filter(|axis| !asked.contains(axis));
            let shown: Vec<&str> = shown.copied().collect();
            let name = match shown.is_empty() {
                true => prefix,
                false => format!("{prefix}[{}]", shown.join(",")),
            };
            let record = records.get(stage).ok_or_else(|| {
                Error::user(
                    "artifact-gone",
                    format!("the artifacts of stage \"{stage}\" of run {run} are no longer in the store"),
                )
                .hint("run its pipeline again")
            })?;
            let digest = record
                .outputs
                .get(PER_USER)
                .ok_or_else(|| no_per_user(stage, records))?;
            let source = Source {
                label: self.run.map_or(stage.to_string(), |run| format!("{run}:{stage}")),
                run: run.clone(),
                stage: stage.to_string(),
                digest: digest.clone(),
            };
            sources.push((name, source));
        }
        Ok(sources)
    }
}

/// Runs as they were asked for, each read once.
struct Runs<'a> {
    store: &'a Store,
    /// Stages that are done, and the records of those whose artifacts are there.
    read: BTreeMap<String, (Vec<String>, BTreeMap<String, KeyRecord>)>,
}

impl<'a> Runs<'a> {
    fn new(store: &'a Store) -> Self {
        let read = BTreeMap::new();
        Runs { store, read }
    }

    fn enter(&mut self, run: RunRecord) -> String {
        let of = || (run.keys.keys().cloned().collect(), records_of(self.store, &run));
        self.read.entry(run.run.clone()).or_insert_with(of);
        run.run
    }
}

/// The stages that a word means. The stage of that name, by itself; else, of a sweep's stage (`tiger_metrics`, or with
/// some axes, `tiger_metrics[size=13m]`), the instances, each with its axes but the seed.
fn instances<'a>(word: &'a str, stages: &'a [String]) -> Vec<(&'a str, Option<Vec<&'a str>>)> {
    if stages.iter().any(|stage| stage == word) {
        return vec![(word, None)];
    }
    let (wanted_base, wanted) = axes(word).unwrap_or((word, Vec::new()));
    let instance = |stage: &'a String| {
        let (base, axes) = axes(stage)?;
        let meant = base == wanted_base && wanted.iter().all(|axis| axes.contains(axis));
        let is_seed = |axis: &&str| axis.split_once('=').is_some_and(|(name, _)| name == SEED);
        meant.then(|| {
            let rest = axes.into_iter().filter(|axis| !is_seed(axis)).collect();
            (stage.as_str(), Some(rest))
        })
    };
    stages.iter().filter_map(instance).collect()
}

/// `base[axis=value,...]` taken apart.
fn axes(stage: &str) -> Option<(&str, Vec<&str>)> {
    let (base, axes) = stage.strip_suffix(']')?.split_once('[')?;
    Some((base, axes.split(',').collect()))
}

/// What a system is called by: an instance by its stage before the brackets, a plain stage by its name.
fn base<'a>(word: &'a str, rest: &Option<Vec<&str>>) -> &'a str {
    match (rest, axes(word)) {
        (Some(_), Some((base, _))) => base,
        _ => word,
    }
}

fn no_per_user(stage: &str, records: &BTreeMap<String, KeyRecord>) -> Error {
    let scored = records
        .iter()
        .filter(|(_, record)| record.outputs.contains_key(PER_USER));
    let scored: Vec<&str> = scored.map(|(stage, _)| stage.as_str()).collect();
    let error = Error::user(
        "no-per-user",
        format!("stage \"{stage}\" has no output \"{PER_USER}\" to compare by"),
    );
    match scored.is_empty() {
        true => error.hint("compare takes stages of score_ranking; the run has none"),
        false => error.hint(format!("compare takes stages of score_ranking: {}", scored.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn signs_in_brackets_are_part_of_the_stage() {
        let choice = |name, run, stage| Choice { name, run, stage };
        assert_eq!(Choice::parse("m").unwrap(), choice(None, None, "m"));
        assert_eq!(Choice::parse("r-1:m").unwrap(), choice(None, Some("r-1"), "m"));
        assert_eq!(
            Choice::parse("A b=r:m[x=1,seed=2]").unwrap(),
            choice(Some("A b"), Some("r"), "m[x=1,seed=2]")
        );
        assert_eq!(Choice::parse("m[t=a:b]").unwrap(), choice(None, None, "m[t=a:b]"));
        for bad in ["=m", ":m", "a=", "a=r:"] {
            assert_eq!(Choice::parse(bad).unwrap_err().code, "bad-stage", "{bad}");
        }
    }

    #[test]
    fn instances_of_a_sweep_are_grouped_by_their_axes_but_the_seed() {
        let known = stages(&[
            "m",
            "n[size=13m,seed=1]",
            "n[size=13m,seed=2]",
            "n[size=5m,seed=1]",
            "o[seed=1]",
        ]);
        assert_eq!(instances("m", &known), [("m", None)]);
        let size = |text| Some(vec![text]);
        assert_eq!(
            instances("n", &known),
            [
                ("n[size=13m,seed=1]", size("size=13m")),
                ("n[size=13m,seed=2]", size("size=13m")),
                ("n[size=5m,seed=1]", size("size=5m")),
            ]
        );
        assert_eq!(instances("n[size=5m]", &known).len(), 1);
        assert_eq!(instances("n[seed=1]", &known).len(), 2);
        assert_eq!(instances("n[size=13m,seed=2]", &known), [("n[size=13m,seed=2]", None)]);
        assert_eq!(instances("o", &known), [("o[seed=1]", Some(vec![]))]);
        assert!(instances("p", &known).is_empty() && instances("n[size=1m]", &known).is_empty());
    }
}
