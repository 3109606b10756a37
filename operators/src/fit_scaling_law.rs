//! Fits scaling laws to the metrics of a sweep, and says what the points do not tell.

mod points;
mod tables;

use std::collections::BTreeSet;

use arrow::datatypes::DataType;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};

pub use crate::scaling::intervals::Resampling;
pub use crate::scaling::laws::Law;

use crate::count_parameters::{PARAMETERS, PART};
use crate::scaling::findings::{Fitted, findings};
use crate::scaling::fit::fit;
use crate::scaling::intervals::{freedom, over_points, over_users};
use crate::scaling::judgement::judge;
use crate::scaling::laws::{Form, varies};
use crate::scaling::{PARTS, by_size};
use crate::schema::USER_ID;
use points::Read;

const POINTS: &str = "points";
const PER_USER: &str = "per_user";
const FITS: &str = "fits";
const CORRELATIONS: &str = "correlations";
const CURVE: &str = "curve";
const FINDINGS: &str = "findings";

/// Fits scaling laws to metrics and parameter counts, with intervals, correlations, held-out sizes, and plain words.
///
/// # In
/// `points`: metrics of `score_ranking` gathered from a sweep (`scores[*]`), of which `metric`, `k`, `slice` and `ties`
/// choose; or any table with a column of values, a row a point: published points, or what `sql` makes. `rs`, `llm`,
/// `quantizer`, `lora`, `data` (optional): `part`, `parameters` of `count_parameters`, gathered alike (`counts[*]`) and
/// joined by the axes that both have; or else a column of `points` that `sizes` names. `per_user` (optional): values by
/// user, gathered (`scores.per_user[*]`), for intervals over users.
///
/// # Out
/// `fits`: a row a parameter: `law`, `parameter`, `value` (null where it means nothing: the exponent of a term whose factor
/// is 0), `low`, `high` over points, `low_users`, `high_users`, then of the law `points`, `sizes`, `loss` (the Huber losses
/// added), `r2`, `aic`, `aicc`, `bic`, `delta_aic`, `held_out` (mean absolute error on the largest 20 % of the sizes, of a
/// fit to the others; null where those are fewer than parameters). `correlations`: rank correlations of parameters over
/// resamples. `curve`: predictions with a band on a grid of equal ratios; other parts go with the size by the power that
/// fits the points. `points`: what was fitted, with residuals. `findings`: `law`, `kind`, `sentence`.
///
/// | law | formula |
/// |---|---|
/// | `sid_gr` | R0 - A/(N_RS + g1 N_LLM + g2 N_QT)^a - B/N_RS^b |
/// | `llm` | R0 - A/(N_LoRA + gamma N_LLM)^a - B/N_LoRA^b |
/// | `llm_cf` | R0 - A/(N_LoRA + gamma N_LLM)^a - B/(N_LoRA + beta N_LLM)^b |
/// | `additive` | R0 - A/N^a - B/D^b |
/// | `power`, `log`, `constant` | R0 - A/N^a, c + s ln N, c |
///
/// # Source
/// arXiv 2509.25522: the laws, Huber's loss with delta 1e-3, L-BFGS with positive parameters in log space from a grid of
/// starts, the best kept. Its `beta = 0` is `llm`. `additive` with `falls` is the law of arXiv 2203.15556.
///
/// # Deviates
/// Offsets and factors are solved for, not searched for: exactly where all residuals are within delta, by Newton's steps
/// beyond. Factors may be 0. Exponents lie in .001 to 25. A part whose size is not known or takes one value is left out,
/// and a finding says so. Where two terms are powers of sums of the same parts, the one that matters more is A. AIC and
/// BIC take errors for normal; laws are compared by AIC corrected for few points where all have it. Several points of one
/// size (seeds) are resampled within their size. Intervals are percentiles, expanded by Student's t for few points.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FitScalingLaw {
    /// Laws to fit.
    pub laws: Vec<Law>,
    /// The part that simple laws call N, and that curves run over; null takes the first of `rs`, `llm`, `lora`,
    /// `quantizer`, `data` that has sizes.
    pub size: Option<SizedPart>,
    /// Whether the metric falls with size, as a loss does: terms are added, and the offset is called E.
    pub falls: bool,
    /// The column of values in `points`; of a metrics table, `value`.
    pub value: String,
    /// Which metric, of a metrics table.
    pub metric: String,
    /// At which cut-off, of a metrics table; null for metrics without one.
    pub k: Option<u32>,
    /// Which users, of a metrics table.
    pub slice: String,
    /// How ties are counted, of a metrics table.
    pub ties: String,
    /// Columns of `points` that are sizes, for parts that have no input.
    pub sizes: SizeColumns,
    /// Parts of the counts of `rs` that count, such as `encoder` and `decoder`; none for all.
    pub parts: Vec<String>,
    /// Residuals beyond this count by their size and not by their square.
    pub delta: f64,
    /// Resamples of the intervals; 0 for none.
    pub resamples: u32,
    /// What is resampled.
    pub resampling: Resampling,
    /// Coverage of the intervals.
    pub confidence: f64,
    /// Points of a curve.
    pub curve_points: u32,
    /// A curve ends at so many times the largest size.
    pub curve_reach: f64,
}

/// A part of a system that has a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SizedPart {
    /// The recommender.
    Rs,
    /// The language model: an encoder, or what recommends.
    Llm,
    /// The quantizer.
    Quantizer,
    /// What is trained of a language model.
    Lora,
    /// Data.
    Data,
}

/// Columns that are sizes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SizeColumns {
    /// N_RS.
    pub rs: Option<String>,
    /// N_LLM.
    pub llm: Option<String>,
    /// N_QT.
    pub quantizer: Option<String>,
    /// N_LoRA.
    pub lora: Option<String>,
    /// D.
    pub data: Option<String>,
}

impl SizeColumns {
    /// In the order of [`PARTS`].
    fn all(&self) -> [Option<&str>; PARTS.len()] {
        [&self.rs, &self.llm, &self.quantizer, &self.lora, &self.data].map(Option::as_deref)
    }
}

impl Default for FitScalingLaw {
    fn default() -> Self {
        FitScalingLaw {
            laws: vec![Law::SidGr, Law::Power, Law::Log, Law::Constant],
            size: None,
            falls: false,
            value: "value".into(),
            metric: "recall".into(),
            k: Some(10),
            slice: "all".into(),
            ties: "expected".into(),
            sizes: SizeColumns::default(),
            parts: Vec::new(),
            delta: 1e-3,
            resamples: 1000,
            resampling: Resampling::Points,
            confidence: 0.95,
            curve_points: 60,
            curve_reach: 4.0,
        }
    }
}

impl Operator for FitScalingLaw {
    const NAME: &'static str = "fit_scaling_law";
    const VERSION: u32 = 2;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::required(POINTS, "metrics gathered from a sweep, or a table with a row a point"),
        Input::optional(
            "rs",
            "parameters of the recommender by part (count_parameters), gathered",
        ),
        Input::optional("llm", "those of the language model or encoder"),
        Input::optional("quantizer", "those of the quantizer"),
        Input::optional("lora", "those that are trained of a language model"),
        Input::optional("data", "amounts of data: part, parameters"),
        Input::optional(PER_USER, "values by user, gathered (score_ranking.per_user)"),
    ];

    fn seeded(&self) -> bool {
        self.resamples > 0
    }

    fn bind(&self, binding: &Binding) -> Bound {
        if self.laws.is_empty() || self.laws.iter().collect::<BTreeSet<_>>().len() < self.laws.len() {
            binding.bad_value("laws", "\"laws\" wants one or more laws, each once");
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            binding.bad_value("confidence", "\"confidence\" must lie between 0 and 1");
        }
        if !(self.delta > 0.0 && self.delta.is_finite()) {
            binding.bad_value("delta", "\"delta\" must be positive");
        }
        if self.curve_points < 2 {
            binding.bad_value("curve_points", "a curve has at least 2 points");
        }
        if !(self.curve_reach >= 1.0 && self.curve_reach <= 1e6) {
            binding.bad_value("curve_reach", "\"curve_reach\" must lie between 1 and 1e6");
        }
        binding.require(POINTS, &[]);
        if let Some(schema) = binding.schema(POINTS) {
            let columns = std::iter::once(self.value.as_str()).chain(self.sizes.all().into_iter().flatten());
            for column in columns {
                match schema.field_with_name(column) {
                    Err(_) => binding.missing_column(POINTS, column),
                    Ok(field) if !field.data_type().is_numeric() => {
                        let message = format!("column \"{column}\" of input \"{POINTS}\" holds no numbers");
                        binding.input_problem(POINTS, Error::user("wrong-type", message));
                    }
                    Ok(_) => {}
                }
            }
        }
        for (part, column) in PARTS.iter().zip(self.sizes.all()) {
            binding.require(part, &[(PART, DataType::Utf8), (PARAMETERS, DataType::UInt64)]);
            if binding.has(part) && column.is_some() {
                let message = format!("the size of \"{part}\" is said twice: by an input and by a column");
                binding.bad_value("sizes", message);
            }
        }
        if !self.parts.is_empty() && !binding.has("rs") {
            binding.bad_value(
                "parts",
                "\"parts\" chooses from the counts of input \"rs\", which is not connected",
            );
        }
        let sized: Vec<bool> = PARTS
            .iter()
            .zip(self.sizes.all())
            .map(|(part, column)| binding.has(part) || column.is_some())
            .collect();
        let main = self.main(|part| sized[part]);
        let missing: BTreeSet<usize> = self
            .laws
            .iter()
            .flat_map(|law| law.wanted(main))
            .filter(|part| !sized[*part])
            .collect();
        for part in missing {
            let names: Vec<&str> = self
                .laws
                .iter()
                .filter(|law| law.wanted(main).contains(&part))
                .map(|law| law.name())
                .collect();
            let message = format!("{} wants sizes of \"{}\"", names.join(", "), PARTS[part]);
            let hint = format!(
                "connect input \"{0}\" (count_parameters), or name a column: sizes: {{ {0}: COLUMN }}",
                PARTS[part]
            );
            binding.problem("laws", Error::user("missing-size", message).hint(hint));
        }
        binding.require(PER_USER, &[(USER_ID, DataType::Utf8)]);
        if let Some(column) = binding.schema(POINTS).map(|schema| self.user_value(schema)) {
            binding.require(PER_USER, &[(&column, DataType::Float64)]);
        }
        Bound::whole()
            .output(FITS, Shape::table(tables::fit_fields()))
            .output(CORRELATIONS, Shape::table(tables::correlation_fields()))
            .output(CURVE, Shape::table(tables::curve_fields()))
            .output(POINTS, Shape::table(tables::point_fields()))
            .output(FINDINGS, Shape::table(tables::finding_fields()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let Read { points, labels, users } = self.read(&inputs)?;
        let main = self.main(|part| points[0].sizes[part].is_finite());
        let sizes = by_size(&points).len();
        for law in &self.laws {
            let form = Form::new(*law, &points, main, self.falls);
            if points.len() < form.parameters() {
                let message = format!(
                    "{} has {} parameters, there are {} points",
                    law.name(),
                    form.parameters(),
                    points.len()
                );
                return Err(
                    Error::data("few-points", message).hint("leave it out of \"laws\", or add sizes to the sweep")
                );
            }
            if sizes == 1 && *law != Law::Constant {
                let message = format!("all {} points are of one size", points.len());
                return Err(Error::data("one-size", message)
                    .hint("a law wants several sizes; those that were joined may all be the same"));
            }
            if let Some(part) = law.varying(main).into_iter().find(|part| !varies(&points, *part)) {
                let (name, size) = (PARTS[part], points[0].sizes[part]);
                let message = format!(
                    "{} goes by the size of {name}, which is {size} in all points",
                    law.name()
                );
                return Err(Error::data("one-size", message)
                    .hint("leave it out of \"laws\", or say in \"size\" which part varies"));
            }
        }
        let fitted: Vec<Fitted> = self
            .laws
            .par_iter()
            .map(|law| {
                context.check_cancelled()?;
                let form = Form::new(*law, &points, main, self.falls);
                let best = fit(&form, &points, self.delta);
                let count = self.resamples as usize;
                let random = context.random("points");
                let draws = over_points(&form, &points, &best, self.delta, self.resampling, count, random);
                let user_draws = users
                    .as_ref()
                    .map(|users| over_users(&form, &points, &best, self.delta, users, count, context.random("users")));
                Ok(Fitted {
                    judgement: judge(&form, &points, &best, self.delta),
                    freedom: freedom(&form, &points, self.resampling),
                    form,
                    fit: best,
                    draws,
                    user_draws,
                })
            })
            .collect::<Result<_>>()?;
        let told = findings(&fitted, &points, self.confidence);
        for (at, finding) in told.iter().filter(|finding| finding.kind == "best").enumerate() {
            let name = if at == 0 {
                "best".to_string()
            } else {
                format!("best_{}", at + 1)
            };
            context.note(&name, finding.sentence.clone());
        }
        Ok(Tables::new()
            .with(FITS, tables::fits(&fitted, &points, self.confidence)?)
            .with(CORRELATIONS, tables::correlations(&fitted)?)
            .with(CURVE, self.curve(&fitted, &points, main)?)
            .with(POINTS, tables::points(&fitted, &points, &labels)?)
            .with(FINDINGS, tables::findings(&told)?))
    }

    fn conclude(
        &self,
        _context: &Context,
        _rows_in: &std::collections::BTreeMap<String, u64>,
        outputs: &Tables,
    ) -> Result<Notes> {
        let laws = self.laws.len() as u64;
        let points = outputs.table(POINTS)?.rows()? / laws.max(1);
        Ok(Notes::from_iter([("points".to_string(), points.into())]))
    }
}

impl FitScalingLaw {
    /// The part that is called N.
    fn main(&self, sized: impl Fn(usize) -> bool) -> usize {
        use crate::scaling::{DATA, LLM, LORA, QUANTIZER, RS};
        match self.size {
            Some(SizedPart::Rs) => RS,
            Some(SizedPart::Llm) => LLM,
            Some(SizedPart::Quantizer) => QUANTIZER,
            Some(SizedPart::Lora) => LORA,
            Some(SizedPart::Data) => DATA,
            None => [RS, LLM, LORA, QUANTIZER, DATA]
                .into_iter()
                .find(|part| sized(*part))
                .unwrap_or(RS),
        }
    }
}

#[cfg(test)]
mod tests;
