//! Times the text encoder and the quantizers on files given as arguments; prints one line per measurement.
//!
//! `cargo bench -p sluice-gpu --bench numerics -- encode <checkpoint folder> <token ids .json> <embeddings out .f32>`
//! `cargo bench -p sluice-gpu --bench numerics -- residual <embeddings .f32> <width>`
//! `cargo bench -p sluice-gpu --bench numerics -- kmeans <rows .f32> <width> <levels> <clusters> <iterations>`
//! `cargo bench -p sluice-gpu --bench numerics -- svd <texts .json> <dim>`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use sluice_gpu::encoder::{EncodeOptions, Pooling, TextEncoder};
use sluice_gpu::kmeans::{Buffer, Schedule};
use sluice_gpu::residual::{self, ResidualConfig};
use sluice_gpu::svd::{SvdConfig, truncated_svd};
use sluice_gpu::tfidf::{Tfidf, TfidfConfig};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["encode", folder, ids, out] => encode(folder, ids, out),
        ["svd", texts, dim] => svd(texts, dim.parse().unwrap()),
        ["kmeans", rows, numbers @ ..] => kmeans(rows, &numbers.iter().map(|x| x.parse().unwrap()).collect::<Vec<_>>()),
        ["residual", rows, width] => residual(rows, width.parse().unwrap()),
        other => println!("nothing to time for {other:?}"),
    }
}

fn encode(folder: &str, ids: &str, out: &str) {
    let mut ids: Vec<Vec<u32>> = serde_json::from_str(&std::fs::read_to_string(ids).unwrap()).unwrap();
    ids.iter_mut().for_each(|row| row.truncate(256));
    let encoder = TextEncoder::load(Path::new(folder), &candle_core::Device::Cpu).unwrap();
    let options = EncodeOptions {
        pooling: Pooling::Mean,
        normalize: true,
    };
    let (start, before) = (Instant::now(), cpu_seconds());
    let embeddings = encoder.encode(&ids, &options, |_, _| ()).unwrap();
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
    let tokens: usize = ids.iter().map(Vec::len).sum();
    println!(
        "encode: {} rows, {tokens} tokens, {seconds:.2} s ({cpu:.2} CPU s), {:.1} rows/s, {:.0} tokens/s",
        ids.len(),
        ids.len() as f64 / seconds,
        tokens as f64 / seconds
    );
    let bytes: Vec<u8> = embeddings.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(out, bytes).unwrap();
}

fn read(rows: &str) -> Vec<f32> {
    let bytes = std::fs::read(rows).unwrap();
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// One line of JSON for benches/kmeans.py: seconds without reading, error after every level.
fn kmeans(rows: &str, numbers: &[usize]) {
    let [dim, levels, clusters, max_iterations] = *numbers else {
        return println!("not width, levels, clusters, iterations: {numbers:?}");
    };
    let rows = read(rows);
    let config = ResidualConfig {
        codebook_sizes: vec![clusters; levels],
        normalize_residuals: false,
        schedule: Schedule::Lloyd {
            max_iterations,
            tolerance: 0.0,
        },
        buffer: Buffer::Sampled(3072),
        seed: 42,
        allow_fewer_distinct: false,
        beam: 1,
        balance: None,
    };
    let start = Instant::now();
    let fit = residual::fit(&rows, dim, &config, |_, _| ()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let mse: Vec<f64> = fit.levels.iter().map(|level| level.mse).collect();
    println!("{}", serde_json::json!({ "seconds": seconds, "mse": mse }));
}

fn residual(rows: &str, dim: usize) {
    let rows = read(rows);
    let lloyd = |max_iterations| Schedule::Lloyd {
        max_iterations,
        tolerance: 0.0,
    };
    let grid = Schedule::MiniBatch {
        updates: 8,
        batch_rows: 2048,
    };
    for (name, schedule, buffer, normalize_residuals) in [
        ("init only", lloyd(0), Buffer::All, false),
        ("25 iterations", lloyd(25), Buffer::All, false),
        (
            "25 iterations, init on 3072 rows",
            lloyd(25),
            Buffer::Sampled(3072),
            false,
        ),
        ("converged", lloyd(1000), Buffer::All, false),
        ("converged, normalised", lloyd(1000), Buffer::All, true),
        (
            "mini-batch, normalised, init on 3072 rows",
            grid,
            Buffer::Sampled(3072),
            true,
        ),
    ] {
        let codebook_sizes = vec![256; 3];
        let seed = 42;
        let allow_fewer_distinct = false;
        let config = ResidualConfig {
            codebook_sizes,
            normalize_residuals,
            schedule,
            buffer,
            seed,
            allow_fewer_distinct,
            beam: 1,
            balance: None,
        };
        let (start, before) = (Instant::now(), cpu_seconds());
        let fit = residual::fit(&rows, dim, &config, |_, _| ()).unwrap();
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
        let mse: Vec<String> = fit
            .levels
            .iter()
            .map(|l| format!("{:.4} ({})", l.mse, l.iterations))
            .collect();
        let collisions = sluice_gpu::collisions::collision_codes(&fit.codes_nc, 3).unwrap();
        println!(
            "residual 3 x 256, {name}: {} x {dim}, {seconds:.2} s ({cpu:.2} CPU s), mse (iterations) {}, colliding {}",
            rows.len() / dim,
            mse.join(" "),
            collisions.colliding
        );
    }
}

fn svd(texts: &str, dim: usize) {
    let texts: Vec<String> = serde_json::from_str(&std::fs::read_to_string(texts).unwrap()).unwrap();
    let (start, before) = (Instant::now(), cpu_seconds());
    let (tfidf, rows) = Tfidf::fit(&texts, &TfidfConfig::default()).unwrap();
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
    println!(
        "tfidf: {} x {}, {seconds:.2} s ({cpu:.2} CPU s)",
        texts.len(),
        tfidf.terms_v.len()
    );
    let (start, before) = (Instant::now(), cpu_seconds());
    let config = SvdConfig {
        dim,
        oversampling: 10,
        power_iterations: 5,
        normalize: true,
        seed: 42,
    };
    let svd = truncated_svd(&rows, &config).unwrap();
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
    let explained: f64 = svd.explained_variance_ratio_d.iter().sum();
    println!("svd: dim {dim}, {seconds:.2} s ({cpu:.2} CPU s), explained variance {explained:.5}");
}

/// Seconds of processor time this process has used (Linux; 0 elsewhere): what to read on a busy machine.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}
