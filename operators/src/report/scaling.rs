//! Scaling laws: points, fits with their bands, parameters, and where more size stops to pay.

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use sluice_engine::Result;

use super::document::{Block, Cell, Column, Finding, Mark, Row, Section, Table};
use super::figure::{Axis, Figure, Guide, Point, Series, Shape};
use super::numbers::{short, size};
use super::plain;
use super::scores::{Labels, floats, texts};
use super::svg::COLORS;

/// A law counts as saturated where it has reached this share of its asymptote.
const SATURATED: f64 = 0.95;
/// Figures of a law as a whole, by column: heading, and whether less is better.
const OF_LAW: [(&str, &str, bool); 10] = [
    ("points", "points", false),
    ("sizes", "sizes", false),
    ("loss", "loss", false),
    ("r2", "R2", false),
    ("aic", "AIC", false),
    ("aicc", CORRECTED, true),
    ("bic", "BIC", false),
    ("delta_aic", "ΔAIC", true),
    ("held_out", "held-out error", true),
    ("held_out_error", "held-out error", true),
];
/// Names of an asymptote among parameters.
const ASYMPTOTES: [&str; 2] = ["R0", "r0"];
/// The criterion by which laws are compared where all of them have it; else the plain one.
const CORRECTED: &str = "AICc";
const PLAIN: [&str; 2] = ["ΔAIC", "AIC"];
/// Columns of points that are sizes, the one that laws are drawn over first.
const SIZES: [&str; 6] = ["size", "rs", "llm", "lora", "quantizer", "data"];

/// The tables of a fit, as far as they are there; each with the name of its input.
#[derive(Default)]
pub struct Fit {
    /// Parameters by law.
    pub fits: Vec<(String, RecordBatch)>,
    /// Predictions by law and size.
    pub curves: Vec<(String, RecordBatch)>,
    /// What was fitted.
    pub points: Vec<(String, RecordBatch)>,
    /// What follows, in sentences.
    pub findings: Vec<(String, RecordBatch)>,
}

/// Endings of names of inputs that say what a table of a fit is.
const ENDINGS: [&str; 7] = ["fits", "fit", "curve", "points", "findings", "laws", "scaling"];

/// The study that an input belongs to: `tiger` of `tiger_fits`; nothing where its name says no more than what it is.
pub fn study(input: &str) -> &str {
    let stem = ENDINGS.iter().find_map(|ending| input.strip_suffix(ending));
    stem.unwrap_or("").trim_end_matches(['_', '-'])
}

/// A section a study, each with what is to be said first; before them all studies in one figure, if they are several.
pub fn sections(studies: &[(String, Fit)]) -> Result<Vec<(Section, Vec<Finding>)>> {
    let mut sections = Vec::new();
    let mut together = empty_figure();
    for (index, (name, fit)) in studies.iter().enumerate() {
        let (mut section, mut findings, figure) = section(fit)?;
        if studies.len() > 1 {
            let shown = if name.is_empty() { "unnamed" } else { name };
            section.id = format!("scaling-{index}");
            section.title = format!("Scaling: {shown}");
            for finding in &mut findings {
                finding.text = format!("{shown}: {}", finding.text);
            }
            figure
                .into_iter()
                .for_each(|figure| join(&mut together, figure, shown, index));
        }
        sections.push((section, findings));
    }
    sections.retain(|(section, _)| !section.blocks.is_empty());
    if !together.is_empty() {
        together.alt = told(&together);
        together.caption =
            "All studies over logarithmic axes: points as measured, each with the law of least AIC.".into();
        let first = Section::new("scaling", "Scaling", vec![Block::Figure(together)]);
        sections.insert(0, (first, Vec::new()));
    }
    Ok(sections)
}

/// Puts the points, the best law and its band into a figure of several studies.
fn join(together: &mut Figure, figure: Figure, study: &str, color: usize) {
    for mut series in figure.series {
        series.color = color % COLORS;
        match series.shape {
            Shape::Dashed => continue,
            Shape::Band => {}
            _ => series.name = format!("{study}: {}", series.name),
        }
        together.series.push(series);
    }
    together.sources.extend(figure.sources);
}

/// The section of one study, what is to be said first, and its figure.
fn section(fit: &Fit) -> Result<(Section, Vec<Finding>, Option<Figure>)> {
    let mut blocks = Vec::new();
    let mut findings = Vec::new();
    for (_, batch) in &fit.findings {
        findings.extend(plain::findings(batch)?);
    }
    if !findings.is_empty() {
        blocks.push(Block::Findings(findings.clone()));
    }
    let mut best = None;
    let mut asymptote = None;
    for (input, batch) in &fit.fits {
        let laws = Laws::read(batch)?;
        best = best.or_else(|| laws.best());
        asymptote = asymptote.or_else(|| laws.asymptote(best.as_deref()?));
        blocks.extend(laws.comparison(input).map(Block::Table));
        blocks.push(Block::Table(laws.parameters(input)));
    }
    let figure = figure(fit, best.as_deref(), asymptote)?;
    if let Some(figure) = &figure {
        // After the sentences, before the tables.
        let place = usize::from(!findings.is_empty());
        blocks.insert(place, Block::Figure(figure.clone()));
    }
    for (input, batch) in &fit.points {
        let batch = of_law(batch, best.as_deref())?;
        blocks.push(plain::table(input, &batch, batch.num_rows() as u64)?);
    }
    // All of them are in the section.
    findings.truncate(3);
    Ok((Section::new("scaling", "Scaling", blocks), findings, figure))
}

/// The table of fits by law.
struct Laws {
    names: Vec<String>,
    parameters: Vec<(String, String, [Option<f64>; 3])>,
    figures: Vec<(&'static str, bool, Vec<Option<f64>>)>,
}

impl Laws {
    fn read(batch: &RecordBatch) -> Result<Self> {
        let labels = Labels::over(batch, |name| !is_axis(batch, name, "law"))?;
        let laws: Vec<String> = texts(batch, "law")?
            .into_iter()
            .enumerate()
            .map(|(row, law)| format!("{law}{}", labels.of(row).0))
            .collect();
        let parameters = texts(batch, "parameter")?;
        let optional = |name: &str| match batch.column_by_name(name) {
            Some(_) => floats(batch, name),
            None => Ok(vec![None; batch.num_rows()]),
        };
        let (values, lows, highs) = (optional("value")?, optional("low")?, optional("high")?);
        let mut names: Vec<String> = Vec::new();
        laws.iter().for_each(|law| {
            if !names.contains(law) {
                names.push(law.clone());
            }
        });
        let first = |law: &String| laws.iter().position(|other| other == law).unwrap_or(0);
        let mut figures = Vec::new();
        for (column, heading, less) in OF_LAW
            .iter()
            .filter(|(column, _, _)| batch.column_by_name(column).is_some())
        {
            let all = floats(batch, column)?;
            figures.push((*heading, *less, names.iter().map(|law| all[first(law)]).collect()));
        }
        let rows = laws.into_iter().zip(parameters).enumerate();
        Ok(Laws {
            names,
            parameters: rows
                .map(|(row, (law, name))| (law, name, [values[row], lows[row], highs[row]]))
                .collect(),
            figures,
        })
    }

    /// The law with the least AIC.
    fn best(&self) -> Option<String> {
        let figure = |wanted: &str| self.figures.iter().find(|(heading, _, _)| *heading == wanted);
        let corrected = figure(CORRECTED).filter(|(_, _, values)| values.iter().all(Option::is_some));
        let (_, _, aic) = corrected.or_else(|| PLAIN.iter().find_map(|heading| figure(heading)))?;
        let with = self.names.iter().zip(aic).filter_map(|(law, aic)| Some((law, (*aic)?)));
        with.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(law, _)| law.clone())
    }

    /// The value that a law goes to.
    fn asymptote(&self, law: &str) -> Option<f64> {
        let found = self
            .parameters
            .iter()
            .find(|(of, name, _)| of == law && ASYMPTOTES.contains(&name.as_str()));
        found.and_then(|(_, _, [value, _, _])| *value)
    }

    fn comparison(&self, input: &str) -> Option<Table> {
        if self.figures.is_empty() {
            return None;
        }
        let mut head = vec![Column::words("law")];
        head.extend(self.figures.iter().map(|(heading, _, _)| Column::numbers(*heading)));
        let caption =
            "Laws beside each other; less is better for AIC, BIC and the held-out error (of the largest sizes).";
        let mut table = Table::new(caption, head).from([input]);
        for (place, law) in self.names.iter().enumerate() {
            let mut cells = vec![Cell::new(&**law)];
            for (_, less, values) in &self.figures {
                let least = values.iter().flatten().copied().fold(f64::INFINITY, f64::min);
                let mut cell = Cell::new(values[place].map(short).unwrap_or_default());
                cell.mark = (*less && self.names.len() > 1 && values[place] == Some(least)).then_some(Mark::Best);
                cells.push(cell);
            }
            table.rows.push(Row::new(cells));
        }
        Some(table)
    }

    fn parameters(&self, input: &str) -> Table {
        let head = ["law", "parameter"].map(Column::words).into_iter();
        let head = head.chain(["value", "low", "high"].map(Column::numbers)).collect();
        let mut table = Table::new("Parameters with their intervals.", head).from([input]);
        for (law, name, values) in &self.parameters {
            let mut cells = vec![Cell::new(&**law), Cell::new(&**name)];
            cells.extend(values.map(|value| Cell::new(value.map(short).unwrap_or_default())));
            table.rows.push(Row::new(cells));
        }
        table
    }
}

/// Points as one law has them (residuals differ by law, points do not), without columns that say nothing.
fn of_law(batch: &RecordBatch, law: Option<&str>) -> Result<RecordBatch> {
    let mut batch = batch.clone();
    if batch.column_by_name("law").is_some() {
        let laws = texts(&batch, "law")?;
        let wanted = law
            .filter(|law| laws.iter().any(|known| known == law))
            .unwrap_or(laws.first().map_or("", String::as_str));
        let keep: BooleanArray = laws.iter().map(|law| Some(law == wanted)).collect();
        batch = filter_record_batch(&batch, &keep)?;
    }
    let known = (0..batch.num_columns()).filter(|column| batch.column(*column).null_count() < batch.num_rows());
    Ok(batch.project(&known.collect::<Vec<_>>())?)
}

/// The sizes of points: of the part that curves run over, where that is known.
fn sizes_of(batch: &RecordBatch, fit: &Fit) -> Result<Option<Vec<Option<f64>>>> {
    let mut names = SIZES.to_vec();
    for (_, curve) in &fit.curves {
        let sizes = floats(curve, "size")?;
        for name in &SIZES[1..] {
            if curve.column_by_name(name).is_some() && floats(curve, name)? == sizes {
                names.insert(0, name);
            }
        }
    }
    let found = names.into_iter().find(|name| batch.column_by_name(name).is_some());
    found.map(|name| floats(batch, name)).transpose()
}

/// Whether a column stands before the first of the table's own, as axes of a sweep do.
fn is_axis(batch: &RecordBatch, name: &str, first: &str) -> bool {
    let schema = batch.schema();
    let place = |name: &str| schema.index_of(name).unwrap_or(usize::MAX);
    place(name) < place(first)
}

/// Values by size, both logarithmic.
fn empty_figure() -> Figure {
    let axis = |label: &str, sizes| Axis {
        label: label.into(),
        log: true,
        sizes,
    };
    Figure {
        x: axis("parameters", true),
        y: axis("value", false),
        ..Figure::default()
    }
}

/// The ends of every line, in words.
fn told(figure: &Figure) -> String {
    let lines = figure.series.iter().filter(|series| series.shape != Shape::Band);
    let told = lines.filter_map(|series| {
        let (first, last) = (series.points.first()?, series.points.last()?);
        Some(format!(
            "{}: from {} at {} to {} at {}",
            series.name,
            short(first.y),
            size(first.x),
            short(last.y),
            size(last.x)
        ))
    });
    told.collect::<Vec<_>>().join("; ")
}

/// Points with their seeds, every law, and the band of the best, over logarithmic axes.
fn figure(fit: &Fit, best: Option<&str>, asymptote: Option<f64>) -> Result<Option<Figure>> {
    let mut figure = empty_figure();
    let mut saturated = None;
    let (mut bands, mut lines) = (Vec::new(), Vec::new());
    for (input, batch) in &fit.curves {
        let labels = Labels::over(batch, |name| !is_axis(batch, name, "law"))?;
        let laws = texts(batch, "law")?;
        let sizes = floats(batch, "size")?;
        let (values, lows, highs) = (floats(batch, "value")?, floats(batch, "low")?, floats(batch, "high")?);
        let mut by_law: Vec<(String, Vec<Point>)> = Vec::new();
        for (row, law) in laws.into_iter().enumerate() {
            let (Some(x), Some(y)) = (sizes[row], values[row]) else {
                continue;
            };
            let name = format!("{law}{}", labels.of(row).0);
            let point = Point {
                x,
                y,
                interval: lows[row].zip(highs[row]),
            };
            match by_law.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push(point),
                None => by_law.push((name, vec![point])),
            }
        }
        for (index, (law, mut points)) in by_law.into_iter().enumerate() {
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            let is_best = best.is_none_or(|best| best == law);
            let color = (index + 1) % COLORS;
            if is_best && points.iter().any(|point| point.interval.is_some()) {
                bands.push(Series {
                    name: String::new(),
                    color,
                    shape: Shape::Band,
                    points: points.clone(),
                });
            }
            if let Some(top) = asymptote.filter(|top| *top > 0.0 && best == Some(law.as_str())) {
                saturated = points
                    .iter()
                    .find(|point| point.y >= SATURATED * top)
                    .map(|point| point.x);
            }
            let shape = if is_best { Shape::Line } else { Shape::Dashed };
            lines.push(Series {
                name: law,
                color,
                shape,
                points,
            });
        }
        figure.sources.push(input.clone());
    }
    figure.series = bands.into_iter().chain(lines).collect();
    for (input, batch) in &fit.points {
        let batch = &of_law(batch, best)?;
        let Some(sizes) = sizes_of(batch, fit)? else { continue };
        let points = sizes.into_iter().zip(floats(batch, "value")?);
        let points: Vec<Point> = points.filter_map(|(x, y)| Some(Point::at(x?, y?))).collect();
        figure.series.push(Series {
            name: "measured".into(),
            color: 0,
            shape: Shape::Dots,
            points,
        });
        figure.sources.push(input.clone());
    }
    figure.alt = told(&figure);
    figure.caption = "What size buys, over logarithmic axes: points as measured, a line a law, the band of the one with the least AIC.".into();
    if let Some(top) = asymptote.filter(|_| !figure.series.is_empty()) {
        figure.guides.push(Guide {
            upright: false,
            at: top,
            label: format!("asymptote {}", short(top)),
        });
        let (point, words) = match saturated {
            Some(at) => (
                Some(at),
                format!(" From {} on it has 95 % of what it goes to: saturated.", size(at)),
            ),
            None => (
                None,
                " In this range it does not reach 95 % of what it goes to.".to_string(),
            ),
        };
        figure.guides.extend(point.map(|at| Guide {
            upright: true,
            at,
            label: "saturated".into(),
        }));
        figure.caption.push_str(&words);
    }
    Ok((!figure.is_empty()).then_some(figure))
}
