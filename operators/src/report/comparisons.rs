//! Systems beside each other: paired differences with their intervals and p values.

use arrow::array::RecordBatch;
use sluice_engine::Result;

use super::document::{Block, Cell, Column, Mark, Row, Section, Table};
use super::kinds::metric_and_k;
use super::numbers::count;
use super::results::heading;
use super::scores::{floats, texts};

/// A difference with a smaller corrected p value stands out.
const LEVEL: f64 = 0.05;

/// The section, of tables of `compare_systems`, each with the name of its input.
pub fn section(tables: &[(&str, RecordBatch)]) -> Result<Option<Section>> {
    let mut blocks = Vec::new();
    for (input, batch) in tables {
        let optional = |name: &str| match batch.column_by_name(name) {
            Some(_) => floats(batch, name),
            None => Ok(vec![None; batch.num_rows()]),
        };
        let (a, b, metrics) = (texts(batch, "a")?, texts(batch, "b")?, texts(batch, "metric")?);
        let slices = match batch.column_by_name("slice") {
            Some(_) => texts(batch, "slice")?,
            None => vec![String::new(); batch.num_rows()],
        };
        let (differences, lows, highs) = (floats(batch, "difference")?, optional("low")?, optional("high")?);
        let (p, holm, users) = (floats(batch, "p")?, optional("p_holm")?, optional("users")?);
        let words = ["difference", "metric", "slice"].map(Column::words).into_iter();
        let numbers = ["users", "mean", "low", "high", "p", "Holm p"].map(Column::numbers);
        let caption = "Differences, paired by user, with their intervals; p values of sign flips, and corrected for the number of pairs \
            (Holm). Bold: corrected p below .05.";
        let mut table = Table::new(caption, words.chain(numbers).collect()).from([*input]);
        for row in 0..batch.num_rows() {
            let signed = |value: Option<f64>| Cell::new(value.map(|value| format!("{value:+.4}")).unwrap_or_default());
            let chance = |p: Option<f64>| match p {
                Some(p) if p < 5e-5 => Cell::new("<0.0001"),
                Some(p) => Cell::new(format!("{p:.4}")),
                None => Cell::default(),
            };
            let metric = metric_and_k(&metrics[row]).map(|(metric, k)| heading(metric, k));
            let mut mean = signed(differences[row]);
            let clear = holm[row].or(p[row]).is_some_and(|p| p < LEVEL);
            mean.mark = clear.then_some(Mark::Best);
            table.rows.push(Row::new(vec![
                Cell::new(format!("{} - {}", a[row], b[row])),
                Cell::new(metric.unwrap_or_else(|| metrics[row].clone())),
                Cell::new(slices[row].replace('_', " ")),
                Cell::new(users[row].map(|users| count(users as u64)).unwrap_or_default()),
                mean,
                signed(lows[row]),
                signed(highs[row]),
                chance(p[row]),
                chance(holm[row]),
            ]));
        }
        blocks.push(Block::Table(table));
    }
    Ok((!blocks.is_empty()).then(|| Section::new("comparisons", "Comparisons", blocks)))
}
