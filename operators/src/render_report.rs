//! Renders tables of an experiment as a report: a page, Markdown and LaTeX.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::error::did_you_mean;
use sluice_engine::graph::ANY;
use sluice_engine::operator::{Binding, Bound, Context, Input, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::report::document::{Block, Document, Finding, Section, Source};
use crate::report::kinds::Kind;
use crate::report::order::Audit;
use crate::report::results::{self, Choice};
use crate::report::scaling::Fit;
use crate::report::scores::{self, System};
use crate::report::{self, comparisons, curves, leakage, order, plain, published, scaling, semantic_ids};

/// Rows that are read of a table that is shown as it is.
const PLAIN_ROWS: usize = 1000;

/// One self-contained page of an experiment: results, the order of the data, published figures, diagnostics, curves, laws.
///
/// # In
/// Any number of tables. Their columns say what they are; the name of an input is the name of the system, the training or
/// the table. Known are the outputs of `score_ranking` (a system each; gathered from a sweep, `metrics[*]`, one for every
/// point, with seeds as its runs), `tabulate_metrics`, `compare_systems`, `audit_order`, `audit_semantic_ids`, the `curve` of a training or a
/// trained quantizer, `fits`, `curve`, `points` and `findings` of a scaling law (of several laws, `NAME_fits` and so on belong
/// together), and checks with a `verdict`. Any other table is shown as it is (its first 100 rows).
///
/// # Out
/// `out`: a folder with `report.html` (no script, no network; light and dark), `report.md` with its figures as SVG files,
/// `report.tex` (tables with booktabs, figures with pgfplots), and `document.json`, from which `sluice report` makes the same
/// with what only a run knows: stages, keys and runs behind every table, costs, the graph.
///
/// # Source
/// Ours. Published figures are data, each with its source: `operators/src/report/published.csv`.
///
/// # Deviates
/// Nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RenderReport {
    /// Its title.
    pub title: String,
    /// Paragraphs under the title.
    pub about: Vec<String>,
    /// Published figures to stand beside: `beauty`, `sports` or `toys` (Amazon 2014, 5-core); none if left out.
    pub dataset: Option<String>,
    /// Which system is which other one with ties shuffled: the name of a system, then that of its shuffled twin.
    pub shuffled: BTreeMap<String, String>,
    /// Metrics, in order; the first is the one that single figures are about.
    pub metrics: Vec<String>,
    /// Cut-offs, in order; the first is the one that single figures are about.
    pub k: Vec<u32>,
    /// How ties are counted: `listed`, `expected`, `optimistic` or `pessimistic`.
    pub ties: String,
}

impl Default for RenderReport {
    fn default() -> Self {
        RenderReport {
            title: "Report".into(),
            about: Vec::new(),
            dataset: None,
            shuffled: BTreeMap::new(),
            metrics: vec!["recall".into(), "ndcg".into()],
            k: vec![5, 10],
            ties: "expected".into(),
        }
    }
}

impl Operator for RenderReport {
    const NAME: &'static str = "render_report";
    const VERSION: u32 = 2;
    const INPUTS: &'static [Input] = &[Input::required(ANY, "a table; its columns say what it is")];

    fn bind(&self, binding: &Binding) -> Bound {
        for input in binding.inputs() {
            if let Shape::Folder(layout) = binding.shape(input) {
                let message = format!("input \"{input}\" wants a table, not a {layout} folder");
                let hint = "name a port with a table, such as \"tiger.curve\"";
                binding.input_problem(input, Error::user("wrong-input", message).hint(hint));
            }
        }
        let known = ["listed", "expected", "optimistic", "pessimistic"];
        if !known.contains(&self.ties.as_str()) {
            let message = format!("ties is \"{}\", not one of {}", self.ties, known.join(", "));
            binding.bad_value("ties", message);
        }
        if self.metrics.is_empty() || self.k.is_empty() {
            let field = if self.metrics.is_empty() { "metrics" } else { "k" };
            binding.bad_value(field, format!("\"{field}\" is empty"));
        }
        if let Some(dataset) = &self.dataset {
            match published::datasets() {
                Ok(known) if !known.contains(dataset) => {
                    let message = format!("no published figures of dataset \"{dataset}\"");
                    let error = Error::user("bad-value", message);
                    binding.problem(
                        "dataset",
                        error.hint(format!("known: {}; leave it out for others", known.join(", "))),
                    );
                }
                Ok(_) => {}
                Err(error) => binding.problem("dataset", error),
            }
        }
        Bound::whole().out(Shape::Folder(report::LAYOUT.into()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let document = self.document(&inputs, &context.inputs)?;
        let folder = context.folder(OUT)?;
        report::write(&document, &folder)?;
        Ok(Tables::new().with(OUT, Table::Folder(folder)))
    }
}

impl RenderReport {
    /// The document; `digests` of the inputs as far as they are known.
    fn document(&self, inputs: &Tables, digests: &BTreeMap<String, String>) -> Result<Document> {
        let read = Read::all(inputs, &self.ties)?;
        let choice = Choice {
            metrics: self.metrics.clone(),
            ks: self.k.clone(),
            ties: self.ties.clone(),
        };
        self.check_metrics(&read.systems)?;
        let twins = self.twins(&read.systems)?;
        // A shuffled twin was scored on other targets, so it stands beside its system and nowhere else.
        let is_twin = |system: &&System| twins.iter().any(|(_, twin)| twin.name == system.name);
        let systems: Vec<&System> = read.systems.iter().filter(|system| !is_twin(system)).collect();
        let mut parts: Vec<(Section, Vec<Finding>)> = Vec::new();
        parts.extend(results::section(&systems, &choice));
        parts.extend(order::section(&read.audits, &systems, &twins, &choice));
        if let Some(dataset) = &self.dataset {
            let rows = published::on(dataset)?;
            parts.extend(results::beside_published(&systems, &choice, &rows, dataset));
        }
        parts.extend(comparisons::section(&read.differences)?.map(|section| (section, Vec::new())));
        parts.extend(scaling::sections(&read.studies)?);
        parts.extend(semantic_ids::section(&read.semantic_ids)?);
        parts.extend(curves::section(&read.curves)?.map(|section| (section, Vec::new())));
        parts.extend(leakage::section(&read.leakage)?);
        if !read.plain.is_empty() {
            parts.push((Section::new("tables", "Further tables", read.plain), Vec::new()));
        }
        let (sections, findings): (Vec<Section>, Vec<Vec<Finding>>) = parts.into_iter().unzip();
        let mut findings: Vec<Finding> = findings.into_iter().flatten().collect();
        // The gravest first; equally grave ones in the order of the sections.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        let source = |(input, _): (&str, &Table)| Source {
            input: input.to_string(),
            digest: digests.get(input).cloned().unwrap_or_default(),
            made: None,
        };
        Ok(Document {
            title: self.title.clone(),
            about: self.about.clone(),
            findings,
            sections,
            sources: inputs.iter().map(source).collect(),
        })
    }

    /// A metric and a cut-off that are asked for must be there. Of those that are shown unasked, one is enough.
    fn check_metrics(&self, systems: &[System]) -> Result<()> {
        let figures = systems.iter().flat_map(|system| system.values.keys());
        let known: BTreeSet<&str> = figures.map(|figure| figure.metric.as_str()).collect();
        let is_known = |metric: &&String| known.contains(metric.as_str());
        let unasked = self.metrics == RenderReport::default().metrics;
        let enough = known.is_empty() || unasked && self.metrics.iter().any(|metric| is_known(&metric));
        let unknown = self.metrics.iter().find(|metric| !is_known(metric));
        let Some(metric) = unknown.filter(|_| !enough) else {
            return self.check_cut_offs(systems);
        };
        let message = format!("\"metrics\" names \"{metric}\", which no input has");
        let names = known.iter().copied().collect::<Vec<_>>().join(", ");
        let mut error = Error::user("unknown-metric", message).detail(format!("there are: {names}"));
        error.hint = did_you_mean(metric, known.iter().copied());
        Err(error)
    }

    /// Likewise for cut-offs: without any of them there would be no results.
    fn check_cut_offs(&self, systems: &[System]) -> Result<()> {
        let figures = systems.iter().flat_map(|system| system.values.keys());
        let shown = figures.filter(|figure| self.metrics.contains(&figure.metric));
        let known: BTreeSet<u32> = shown.map(|figure| figure.k).collect();
        let unasked = self.k == RenderReport::default().k;
        let enough = known.is_empty() || unasked && self.k.iter().any(|k| known.contains(k));
        let unknown = self.k.iter().find(|k| !known.contains(k));
        let Some(k) = unknown.filter(|_| !enough) else {
            return Ok(());
        };
        let there: Vec<String> = known.iter().map(u32::to_string).collect();
        let message = format!("\"k\" names {k}, which no input has");
        Err(Error::user("unknown-metric", message)
            .detail(format!("there are: {}", there.join(", ")))
            .hint("set \"k\" of the report to cut-offs that its inputs were scored at"))
    }

    /// Systems with their shuffled twins.
    fn twins<'a>(&self, systems: &'a [System]) -> Result<Vec<(&'a System, &'a System)>> {
        let find = |name: &String| {
            systems.iter().find(|system| system.name == *name).ok_or_else(|| {
                let names = || systems.iter().map(|system| system.name.as_str());
                let message = format!("\"shuffled\" names \"{name}\", which is no system of the inputs");
                let mut error = Error::user("unknown-system", message)
                    .detail(format!("there are: {}", names().collect::<Vec<_>>().join(", ")));
                error.hint = did_you_mean(name, names());
                error
            })
        };
        self.shuffled
            .iter()
            .map(|(of, twin)| Ok((find(of)?, find(twin)?)))
            .collect()
    }
}

/// The inputs by what they are.
#[derive(Default)]
struct Read<'a> {
    systems: Vec<System>,
    audits: Vec<Audit>,
    semantic_ids: Vec<(&'a str, RecordBatch)>,
    curves: Vec<(&'a str, RecordBatch)>,
    differences: Vec<(&'a str, RecordBatch)>,
    means: Vec<System>,
    /// Scaling laws by study.
    studies: Vec<(String, Fit)>,
    leakage: Vec<(&'a str, RecordBatch)>,
    plain: Vec<Block>,
}

impl<'a> Read<'a> {
    fn all(inputs: &'a Tables, ties: &str) -> Result<Self> {
        let mut read = Read::default();
        for (input, table) in inputs.iter() {
            let kind = Kind::of(table.schema()?.as_ref());
            let Some(batch) = rows_of(kind, table)? else {
                read.plain
                    .push(plain::table(input, &first_rows(table)?, table.rows()?)?);
                continue;
            };
            let named = (input.to_string(), batch.clone());
            match kind {
                Kind::Scores => read.systems.extend(scores::of_metrics(input, &batch, ties)?),
                Kind::Systems => read.systems.extend(scores::of_systems(input, &batch)?),
                Kind::Order => read.audits.push(Audit::read(input, &batch)?),
                Kind::SemanticIds => read.semantic_ids.push((input, batch)),
                Kind::Curve => read.curves.push((input, batch)),
                Kind::Differences => read.differences.push((input, batch)),
                Kind::Means => read.means.extend(scores::of_means(input, &batch)?),
                Kind::Fits => read.study(input).fits.push(named),
                Kind::LawCurve => read.study(input).curves.push(named),
                Kind::LawPoints => read.study(input).points.push(named),
                Kind::Findings => read.study(input).findings.push(named),
                Kind::Leakage => read.leakage.push((input, batch)),
                Kind::Plain => {}
            }
        }
        read.unique_names();
        // What is known of a system by its own metrics is more than its means.
        let systems = &mut read.systems;
        read.means
            .retain(|means| !systems.iter().any(|system| system.name == means.name));
        systems.append(&mut read.means);
        Ok(read)
    }

    /// The study that an input belongs to.
    fn study(&mut self, input: &str) -> &mut Fit {
        let name = scaling::study(input);
        let place = match self.studies.iter().position(|(known, _)| known == name) {
            Some(place) => place,
            None => {
                self.studies.push((name.to_string(), Fit::default()));
                self.studies.len() - 1
            }
        };
        &mut self.studies[place].1
    }

    /// Systems of one name from several inputs are told apart by their inputs.
    fn unique_names(&mut self) {
        let names: Vec<String> = self.systems.iter().map(|system| system.name.clone()).collect();
        for system in &mut self.systems {
            if names.iter().filter(|name| **name == system.name).count() > 1 {
                system.name = format!("{}.{}", system.input, system.name);
            }
        }
    }
}

/// The rows of a table, if it is of a kind with a section of its own.
fn rows_of(kind: Kind, table: &Table) -> Result<Option<RecordBatch>> {
    if kind == Kind::Plain {
        return Ok(None);
    }
    let batch = table.batch()?;
    Ok(kind.fits(&batch)?.then_some(batch))
}

fn first_rows(table: &Table) -> Result<RecordBatch> {
    let (mut batches, mut left) = (Vec::new(), PLAIN_ROWS);
    for batch in table.batches()? {
        let batch = batch?;
        let rows = batch.num_rows().min(left);
        batches.push(batch.slice(0, rows));
        left -= rows;
        if left == 0 {
            break;
        }
    }
    Ok(concat_batches(&table.schema()?, &batches)?)
}

#[cfg(test)]
#[path = "render_report/tests.rs"]
mod tests;
