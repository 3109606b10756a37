//! Published figures, as data: `published.csv` beside this file, a row a dataset and system, each with its source.

use std::collections::BTreeMap;

use sluice_engine::{Error, Result};

const FILE: &str = include_str!("published.csv");

/// A published system on a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The dataset: `beauty`, `sports`, `toys` (Amazon 2014, 5-core).
    pub dataset: String,
    /// The system.
    pub system: String,
    /// Who published it.
    pub source: String,
    /// Figures by column (`recall_5`).
    figures: BTreeMap<String, f64>,
}

impl Published {
    /// A figure, if it was published.
    pub fn value(&self, metric: &str, k: u32) -> Option<f64> {
        self.figures.get(&format!("{metric}_{k}")).copied()
    }
}

/// Systems published on a dataset.
pub fn on(dataset: &str) -> Result<Vec<Published>> {
    let mut rows = all()?;
    rows.retain(|row| row.dataset == dataset);
    Ok(rows)
}

/// The datasets with published figures.
pub fn datasets() -> Result<Vec<String>> {
    let mut names: Vec<String> = all()?.into_iter().map(|row| row.dataset).collect();
    names.dedup();
    Ok(names)
}

fn all() -> Result<Vec<Published>> {
    let broken = |error: csv::Error| Error::internal(format!("published.csv: {error}"));
    let mut reader = csv::Reader::from_reader(FILE.as_bytes());
    let head = reader.headers().map_err(broken)?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let mut row = Published {
            dataset: String::new(),
            system: String::new(),
            source: String::new(),
            figures: BTreeMap::new(),
        };
        for (name, value) in head.iter().zip(&record) {
            match name {
                "dataset" => row.dataset = value.to_string(),
                "system" => row.system = value.to_string(),
                "source" => row.source = value.to_string(),
                _ if value.is_empty() => {}
                _ => {
                    let number = value
                        .parse()
                        .map_err(|_| Error::internal(format!("published.csv: \"{value}\"")))?;
                    row.figures.insert(name.to_string(), number);
                }
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_system_and_a_source() {
        let rows = all().unwrap();
        assert_eq!(rows.len(), 32);
        assert_eq!(datasets().unwrap(), ["beauty", "sports", "toys"]);
        for row in &rows {
            assert!(
                !row.system.is_empty() && !row.source.is_empty() && !row.figures.is_empty(),
                "{row:?}"
            );
            assert!(row.figures.values().all(|value| (0.01..0.1).contains(value)), "{row:?}");
        }
        let tiger = on("toys")
            .unwrap()
            .into_iter()
            .find(|row| row.system == "TIGER")
            .unwrap();
        assert_eq!(
            (tiger.value("recall", 10), tiger.value("recall", 20)),
            (Some(0.0712), None)
        );
    }
}
