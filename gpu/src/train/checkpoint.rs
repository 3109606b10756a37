//! The state of an unfinished training run in one file, written whole or not at all.

use super::*;
use crate::weights::{Weight, Weights};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::path::Path;

const FILE: &str = "training.safetensors";

/// What a checkpoint belongs to: config, options and data must be the same when it is read.
pub(super) fn identity(
    config: &TigerConfig,
    options: &TrainOptions,
    samples: &Samples,
    validation: Option<&Validation>,
) -> String {
    let valid = validation.map(|v| (v.samples.len(), v.trie.leaves(), v.users, v.beam_width));
    serde_json::json!([config, options, samples.len(), valid]).to_string()
}

/// Writes the state after an evaluation. Does nothing on a device, where runs are not reproducible to the bit.
pub(super) fn save(folder: &Path, identity: &str, run: &Run, engine: &Engine) -> Result<()> {
    let Engine::Fast { model, adam, .. } = engine else {
        return Ok(());
    };
    let mut tensors = Vec::new();
    let (steps, moments) = adam.state();
    for (tensor, (m, v)) in model.weights().tensors().iter().zip(moments) {
        for (group, data) in [("weights", &tensor.data), ("first", m), ("second", v)] {
            let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
            let name = format!("{group}/{}", tensor.name);
            tensors.push((name, Dtype::F32, vec![data.len()], bytes));
        }
    }
    let mut best = vec![];
    if let Some((recall, ndcg, step, model)) = &run.best {
        best = vec![*recall, *ndcg, *step as f64];
        for tensor in model.weights().tensors() {
            let bytes: Vec<u8> = tensor.data.iter().flat_map(|x| x.to_le_bytes()).collect();
            let name = format!("best/{}", tensor.name);
            tensors.push((name, Dtype::F32, vec![tensor.data.len()], bytes));
        }
    }
    let curve: Vec<f64> = run.curve.iter().flat_map(numbers).collect();
    let state = vec![f64::from(steps), run.since_best as f64];
    for (name, data) in [("curve", curve), ("best", best), ("state", state)] {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((name.into(), Dtype::F64, vec![data.len()], bytes));
    }
    let path = folder.join(FILE);
    let format = |e: safetensors::SafeTensorError| Error::Format {
        path: path.clone(),
        reason: e.to_string(),
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, dtype, shape, bytes) in &tensors {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(format)?;
        views.push((name.as_str(), view));
    }
    let about = HashMap::from([("identity".to_string(), identity.to_string())]);
    let bytes = safetensors::serialize(views, Some(about)).map_err(format)?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let part = folder.join(format!("{FILE}.part"));
    std::fs::write(&part, bytes).map_err(Error::io(&part))?;
    let file = std::fs::File::open(&part).map_err(Error::io(&part))?;
    file.sync_all().map_err(Error::io(&part))?;
    std::fs::rename(&part, &path).map_err(Error::io(&path))
}

/// Brings run and engine to a saved state; says how many steps are done, or nothing if there is no checkpoint.
pub(super) fn load(folder: &Path, identity: &str, run: &mut Run, engine: &mut Engine) -> Result<Option<usize>> {
    let path = folder.join(FILE);
    let Engine::Fast { model, adam, .. } = engine else {
        return Ok(None);
    };
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let format = |reason: String| Error::Format {
        path: path.clone(),
        reason,
    };
    let broken = |e: safetensors::SafeTensorError| format(e.to_string());
    let (_, about) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let of = about.metadata().as_ref().and_then(|m| m.get("identity"));
    if of.map(String::as_str) != Some(identity) {
        let reason = "is the checkpoint of a run with another config, other options or other data";
        return Err(format(reason.into()));
    }
    let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let doubles = |name: &str| -> Result<Vec<f64>> {
        let view = file.tensor(name).map_err(broken)?;
        let (chunks, _) = view.data().as_chunks::<8>();
        Ok(chunks.iter().map(|b| f64::from_le_bytes(*b)).collect())
    };
    let floats = |group: &str, like: &Weight| -> Result<Vec<f32>> {
        let name = format!("{group}/{}", like.name);
        let view = file.tensor(&name).map_err(broken)?;
        let (chunks, _) = view.data().as_chunks::<4>();
        if chunks.len() != like.data.len() {
            return Err(Error::shape(name, like.data.len(), chunks.len()));
        }
        Ok(chunks.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let weights = |group: &str, like: &Weights| -> Result<Weights> {
        let read = |t: &Weight| {
            Ok(Weight {
                data: floats(group, t)?,
                ..t.clone()
            })
        };
        let tensors: Result<Vec<Weight>> = like.tensors().iter().map(read).collect();
        Ok(Weights::from_tensors(tensors?))
    };
    let (curve, best, state) = (doubles("curve")?, doubles("best")?, doubles("state")?);
    let [steps, since_best] = state[..] else {
        return Err(format("the run's state is incomplete".into()));
    };
    let mut moments = Vec::new();
    for tensor in model.weights().tensors() {
        moments.push((floats("first", tensor)?, floats("second", tensor)?));
    }
    adam.restore(steps as i32, moments);
    if let [recall, ndcg, step] = best[..] {
        let weights = weights("best", model.weights())?;
        let model = Tiger::from_weights(model.config(), weights)?;
        run.best = Some((recall, ndcg, step as usize, model));
    }
    *model.weights_mut() = weights("weights", model.weights())?;
    run.since_best = since_best as usize;
    run.curve = curve.as_chunks::<7>().0.iter().map(point).collect();
    Ok(Some(steps as usize))
}

/// A point as numbers; NaN stands for no validation.
fn numbers(p: &CurvePoint) -> [f64; 7] {
    [
        p.step as f64,
        p.epoch as f64,
        p.train_loss,
        p.valid_recall_5.unwrap_or(f64::NAN),
        p.valid_ndcg_5.unwrap_or(f64::NAN),
        p.lr,
        p.seconds,
    ]
}

fn point(&[step, epoch, train_loss, recall, ndcg, lr, seconds]: &[f64; 7]) -> CurvePoint {
    let known = |x: f64| (!x.is_nan()).then_some(x);
    CurvePoint {
        step: step as usize,
        epoch: epoch as usize,
        train_loss,
        valid_recall_5: known(recall),
        valid_ndcg_5: known(ndcg),
        lr,
        seconds,
    }
}
