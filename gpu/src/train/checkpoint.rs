//! States of a training in files: written whole or not at all, checked when they are read.
//!
//! A file is [`MAGIC`], the BLAKE3 of the rest, and the rest: safetensors with the identity as metadata. `step-N.state`
//! are the last two of a training under way, `final-N.state` is the end of one to N steps.

use super::*;
use crate::optim::Moments;
use crate::weights::Weight;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// First bytes of a file; bumped with the meaning of what follows.
const MAGIC: &[u8] = b"sluice training state 2\n";

const DIGEST: usize = 32;

/// States of a training under way that are kept.
const PERIODIC: usize = 2;

/// Steps and moments of the optimizer.
pub(super) type Optimizer = (i32, Vec<Moments>);

/// Why a state is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Training goes on, or was interrupted.
    Periodic,
    /// Training ends here.
    Final,
}

/// What a state belongs to: all that decides the course of a training. The extent is no part of it, unless the schedule
/// depends on the last step.
pub(super) fn identity<M: Model>(
    config: &M::Config,
    options: &TrainOptions,
    total: usize,
    engine: &str,
    samples: &M::Samples,
    validation: Option<M::Validation<'_>>,
) -> String {
    let total = (!options.schedule.is_extendable()).then_some(total);
    let options = TrainOptions {
        max_steps: None,
        max_epochs: None,
        ..options.clone()
    };
    let valid = validation.map(M::identity);
    serde_json::json!([engine, config, options, total, samples.digest(), valid]).to_string()
}

/// The states of a folder.
pub(super) struct States<'a> {
    checkpoint: Checkpoint<'a>,
    identity: String,
    /// When a state was stored last, or training began.
    since: Instant,
    /// Kind, steps done and whether they were evaluated, of the state stored or read last.
    last: Option<(Kind, usize, bool)>,
}

impl<'a> States<'a> {
    pub(super) fn new(checkpoint: Checkpoint<'a>, identity: String) -> Self {
        States {
            checkpoint,
            identity,
            since: Instant::now(),
            last: None,
        }
    }

    /// Whether it is time for the next state.
    pub(super) fn is_due(&self) -> bool {
        self.since.elapsed() >= self.checkpoint.every
    }

    /// The furthest usable state that is not beyond `total` steps. Others are told and passed over.
    pub(super) fn load<M: Model>(
        &mut self,
        config: &M::Config,
        total: usize,
        on_event: &mut OnEvent,
    ) -> Result<Option<(Run<M>, Weights, Optimizer)>> {
        let mut found = Vec::new();
        for path in self.files() {
            match place(&path) {
                Some((kind, step)) if step <= total => found.push((step, kind == Kind::Final, path)),
                // A process that was killed left it.
                None if path.extension().is_some_and(|end| end == "part") => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        found.sort();
        for (step, is_final, path) in found.into_iter().rev() {
            match read::<M>(&path, &self.identity, config) {
                Ok((run, weights, optimizer)) if run.step == step => {
                    let kind = if is_final { Kind::Final } else { Kind::Periodic };
                    self.last = Some((kind, step, run.is_evaluated()));
                    return Ok(Some((run, weights, optimizer)));
                }
                Ok(_) => failed(on_event, &path, "holds another step than its name says")?,
                Err(reason) => failed(on_event, &path, &reason)?,
            }
        }
        Ok(None)
    }

    /// The file of the state stored or read last; empty if there is none.
    pub(super) fn last(&self) -> String {
        self.last.map_or_else(String::new, |(kind, step, _)| name(kind, step))
    }

    /// The state in this file, from which another peer goes on.
    pub(super) fn follow<M: Model>(&self, file: &str, config: &M::Config) -> Result<(Run<M>, Weights, Optimizer)> {
        let path = self.checkpoint.folder.join(file);
        read::<M>(&path, &self.identity, config).map_err(|reason| Error::Format { path, reason })
    }

    /// Stores a state unless it is there already. Trouble is told, and training goes on.
    pub(super) fn save<M: Model>(
        &mut self,
        kind: Kind,
        run: &Run<M>,
        engine: &Engine<M>,
        on_event: &mut OnEvent,
    ) -> Result<()> {
        let (step, evaluated) = (run.step, run.is_evaluated());
        let same = |last: &(Kind, usize, bool)| (last.1, last.2) == (step, evaluated);
        if self
            .last
            .as_ref()
            .filter(|last| same(last))
            .is_some_and(|last| kind == Kind::Periodic || last.0 == kind)
        {
            return Ok(());
        }
        let bytes = serialize(run, engine, &self.identity)?;
        // Trouble is told once a period, not at every step.
        self.since = Instant::now();
        let path = self.checkpoint.folder.join(name(kind, step));
        if let Err(error) = write(self.checkpoint.folder, &path, &bytes) {
            return failed(on_event, &path, &error.to_string());
        }
        self.last = Some((kind, step, evaluated));
        self.prune(step);
        tell(on_event, TrainEvent::Saved { step })
    }

    /// Removes all but the last states of a training under way, up to a step. Those beyond are of a longer training.
    fn prune(&self, up_to: usize) {
        let mut periodic: Vec<(usize, PathBuf)> = self
            .files()
            .into_iter()
            .filter_map(|path| match place(&path)? {
                (Kind::Periodic, step) if step <= up_to => Some((step, path)),
                _ => None,
            })
            .collect();
        periodic.sort();
        for (_, path) in periodic.iter().rev().skip(PERIODIC) {
            // What stays is removed at the next state, or with the folder.
            let _ = fs::remove_file(path);
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.checkpoint.folder);
        entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    }
}

/// The name of a state by its kind and steps.
fn name(kind: Kind, step: usize) -> String {
    match kind {
        Kind::Periodic => format!("step-{step}.state"),
        Kind::Final => format!("final-{step}.state"),
    }
}

/// Kind and steps of a state by its name.
fn place(path: &Path) -> Option<(Kind, usize)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".state")?;
    match name.split_once('-')? {
        ("step", step) => Some((Kind::Periodic, step.parse().ok()?)),
        ("final", step) => Some((Kind::Final, step.parse().ok()?)),
        _ => None,
    }
}

fn failed(on_event: &mut OnEvent, path: &Path, reason: &str) -> Result<()> {
    tell(on_event, TrainEvent::StateFailed { path, reason })
}

/// A private file first, then the name: whoever finds the name finds all of it, after a power cut too.
fn write(folder: &Path, path: &Path, payload: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = (|| {
        let mut file = fs::File::create(&part)?;
        file.write_all(MAGIC)?;
        file.write_all(blake3::hash(payload).as_bytes())?;
        file.write_all(payload)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Numbers as a tensor of one dimension, copied only when it is written.
enum Numbers<'a> {
    Single(&'a [f32], [usize; 1]),
    Double(Vec<f64>, [usize; 1]),
}

impl Numbers<'_> {
    fn single(data: &[f32]) -> Numbers<'_> {
        Numbers::Single(data, [data.len()])
    }

    fn double(data: Vec<f64>) -> Self {
        let n = data.len();
        Numbers::Double(data, [n])
    }
}

impl safetensors::View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Numbers::Single(..) => Dtype::F32,
            Numbers::Double(..) => Dtype::F64,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Numbers::Single(_, shape) | Numbers::Double(_, shape) => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Numbers::Single(data, _) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Numbers::Double(data, _) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Numbers::Single(data, _) => size_of_val(*data),
            Numbers::Double(data, _) => size_of_val(data.as_slice()),
        }
    }
}

fn serialize<M: Model>(run: &Run<M>, engine: &Engine<M>, identity: &str) -> Result<Vec<u8>> {
    let state = engine.state()?;
    let mut tensors: Vec<(String, Numbers)> = Vec::new();
    for (tensor, (m, v)) in state.weights.tensors().iter().zip(state.moments.iter()) {
        for (group, data) in [("weights", &tensor.data), ("first", m), ("second", v)] {
            tensors.push((format!("{group}/{}", tensor.name), Numbers::single(data)));
        }
    }
    let mut best = vec![];
    if let Some((first, second, step, model)) = &run.best {
        best = vec![*first, *second, *step as f64];
        for tensor in model.weights().tensors() {
            tensors.push((format!("best/{}", tensor.name), Numbers::single(&tensor.data)));
        }
    }
    let (loss, steps, samples) = run.losses;
    let counts = vec![
        run.step as f64,
        f64::from(state.steps),
        run.since_best as f64,
        loss,
        steps as f64,
        samples as f64,
        run.seconds(),
    ];
    let curve = run.curve.iter().flat_map(numbers).collect();
    for (name, data) in [("curve", curve), ("best", best), ("state", counts)] {
        tensors.push((name.into(), Numbers::double(data)));
    }
    let about = HashMap::from([("identity".to_string(), identity.to_string())]);
    safetensors::serialize(tensors, Some(about)).map_err(|e| Error::InvalidData(e.to_string()))
}

/// Reads a state, or says why it is of no use here.
fn read<M: Model>(
    path: &Path,
    identity: &str,
    config: &M::Config,
) -> std::result::Result<(Run<M>, Weights, Optimizer), String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or("is no training state of this version")?;
    let (digest, payload) = rest.split_at_checked(DIGEST).ok_or("is cut short")?;
    if blake3::hash(payload).as_bytes() != digest {
        return Err("is damaged: its checksum differs".into());
    }
    let broken = |e: safetensors::SafeTensorError| e.to_string();
    let (_, about) = SafeTensors::read_metadata(payload).map_err(broken)?;
    let of = about.metadata().as_ref().and_then(|m| m.get("identity"));
    if of.map(String::as_str) != Some(identity) {
        return Err("belongs to a training with another config, other options or other data".into());
    }
    let file = SafeTensors::deserialize(payload).map_err(broken)?;
    let doubles = |name: &str| -> std::result::Result<Vec<f64>, String> {
        let view = file.tensor(name).map_err(broken)?;
        let (chunks, _) = view.data().as_chunks::<8>();
        Ok(chunks.iter().map(|b| f64::from_le_bytes(*b)).collect())
    };
    let floats = |name: String, n: usize| -> std::result::Result<Vec<f32>, String> {
        let view = file.tensor(&name).map_err(broken)?;
        let (chunks, _) = view.data().as_chunks::<4>();
        if chunks.len() != n {
            return Err(format!("has {} numbers in {name}, not {n}", chunks.len()));
        }
        Ok(chunks.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let declarations = M::declarations(config);
    let weights = |group: &str| -> std::result::Result<Weights, String> {
        let tensors = declarations.iter().map(|d| {
            let n = d.shape.iter().product();
            Ok(Weight {
                name: d.name.clone(),
                shape: d.shape.clone(),
                data: floats(format!("{group}/{}", d.name), n)?,
            })
        });
        Ok(Weights::from_tensors(
            tensors.collect::<std::result::Result<_, String>>()?,
        ))
    };
    let mut moments = Vec::new();
    for d in &declarations {
        let n = d.shape.iter().product();
        let first = floats(format!("first/{}", d.name), n)?;
        moments.push((first, floats(format!("second/{}", d.name), n)?));
    }
    let [step, steps, since_best, loss, losses, samples, seconds] = doubles("state")?[..] else {
        return Err("is incomplete".into());
    };
    let best = match doubles("best")?[..] {
        [first, second, step] => {
            let model = M::from_weights(config, weights("best")?).map_err(|e| e.to_string())?;
            Some((first, second, step as usize, model))
        }
        _ => None,
    };
    let mut run = Run::default();
    run.step = step as usize;
    run.curve = doubles("curve")?.as_chunks::<7>().0.iter().map(point).collect();
    run.best = best;
    run.since_best = since_best as usize;
    run.losses = (loss, losses as usize, samples as usize);
    Ok((run.resumed(seconds), weights("weights")?, (steps as i32, moments)))
}

/// A point as numbers; NaN stands for no validation.
fn numbers(p: &CurvePoint) -> [f64; 7] {
    let (first, second) = p.valid.unwrap_or((f64::NAN, f64::NAN));
    [
        p.step as f64,
        p.epoch as f64,
        p.train_loss,
        first,
        second,
        p.lr,
        p.seconds,
    ]
}

fn point(&[step, epoch, train_loss, first, second, lr, seconds]: &[f64; 7]) -> CurvePoint {
    CurvePoint {
        step: step as usize,
        epoch: epoch as usize,
        train_loss,
        valid: (!first.is_nan()).then_some((first, second)),
        lr,
        seconds,
    }
}

#[cfg(test)]
mod tests;
