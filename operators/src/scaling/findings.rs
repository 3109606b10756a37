//! What fits tell and what they do not, in plain words.

use super::fit::{Fit, spread};
use super::intervals::{Draws, correlation, interval};
use super::judgement::{FLAT, Judgement, log_size};
use super::laws::{Form, Law};
use super::{PARTS, Point, by_size};

/// A term that moves predictions by less than this share of the range of the values vanishes.
const VANISHED: f64 = 1e-3;
/// A positive parameter whose interval spans more than this ratio is not identified.
const WIDE: f64 = 100.0;
/// An offset whose interval spans more than this many ranges of the values is not identified.
const LOOSE: f64 = 3.0;
/// Rank correlations from here on.
const TOGETHER: f64 = 0.95;
/// Laws whose criteria differ by less are told apart by nothing.
const ALIKE: f64 = 2.0;

/// A law with all that is known of its fit.
pub struct Fitted {
    /// The law over the points.
    pub form: Form,
    /// The fit.
    pub fit: Fit,
    /// How good it is.
    pub judgement: Judgement,
    /// Fits to resampled points.
    pub draws: Draws,
    /// Fits under resampled users.
    pub user_draws: Option<Draws>,
    /// Degrees of freedom of the intervals over points.
    pub freedom: f64,
}

/// A finding: which law it is about, if one; what kind of finding; the sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The law.
    pub law: Option<Law>,
    /// `few_points`, `left_out`, `vanishes`, `not_identified`, `go_together`, `saturates`, `best` or `held_out`.
    pub kind: &'static str,
    /// In words.
    pub sentence: String,
}

impl Finding {
    fn new(law: Law, kind: &'static str, sentence: String) -> Self {
        let law = Some(law);
        Finding { law, kind, sentence }
    }
}

/// All findings, law by law, then those of the comparison.
pub fn findings(laws: &[Fitted], points: &[Point], confidence: f64) -> Vec<Finding> {
    let mut found: Vec<Finding> = laws
        .iter()
        .flat_map(|fitted| of_law(fitted, points, confidence))
        .collect();
    found.extend(between(laws));
    found
}

fn range(points: &[Point]) -> f64 {
    let values = || points.iter().map(|point| point.value);
    values().fold(f64::NEG_INFINITY, f64::max) - values().fold(f64::INFINITY, f64::min)
}

/// Whether all values are equal, but for rounding.
fn flat(points: &[Point]) -> bool {
    let most = points.iter().map(|point| point.value.abs()).fold(0.0, f64::max);
    range(points) <= FLAT * most
}

/// Covariance of the values with the logarithm of size.
fn trend(points: &[Point]) -> f64 {
    let mean = points.iter().map(|point| point.value).sum::<f64>() / points.len() as f64;
    points.iter().map(|point| (point.value - mean) * log_size(point)).sum()
}

fn of_law(fitted: &Fitted, points: &[Point], confidence: f64) -> Vec<Finding> {
    let Fitted { form, fit, .. } = fitted;
    let (law, name) = (form.law, form.law.name());
    let mut found = Vec::new();
    let sizes = by_size(points).len();
    if sizes < form.parameters() {
        let sentence = format!(
            "{name} has {} parameters and the points have {sizes} sizes: the fit is one of many",
            form.parameters()
        );
        found.push(Finding::new(law, "few_points", sentence));
    } else if sizes < form.parameters() + 3 && form.parameters() > 1 {
        let sentence = format!(
            "{name} spends {} parameters on {sizes} sizes: too few to tell",
            form.parameters()
        );
        found.push(Finding::new(law, "few_points", sentence));
    }
    for (weight, part, why) in &form.left_out {
        let sentence = format!("{weight} is left out of {name}: the size of {} {why}", PARTS[*part]);
        found.push(Finding::new(law, "left_out", sentence));
    }
    let mut gone = Vec::new();
    for term in 0..form.terms() {
        let (factor, exponent, weights) = form.term_names(term);
        let moved = spread(form, &fit.parameters, points, term);
        if flat(points) || moved <= VANISHED * range(points) {
            let what = match (form.terms(), term) {
                (1, _) if !flat(points) && form.falls() && trend(points) > 0.0 => {
                    "the metric rises with size, and with falls: true the law only falls"
                }
                (1, _) if !flat(points) && !form.falls() && trend(points) < 0.0 => {
                    "the metric falls with size, and the law only rises: a loss wants falls: true"
                }
                (1, _) => "the metric does not move with size",
                _ if gone.is_empty() => "the data do not support a second term",
                _ => "the metric moves with neither size",
            };
            let sentence = format!("{factor} and {exponent} vanish from {name}: {what}");
            found.push(Finding::new(law, "vanishes", sentence));
            gone.extend([factor, exponent]);
            gone.extend(weights);
            continue;
        }
        let value = |wanted: &str| {
            form.names()
                .iter()
                .position(|name| *name == wanted)
                .map(|at| fit.parameters[at])
        };
        for weight in weights {
            if value(weight) == Some(0.0) {
                let sentence = format!("{weight} vanishes from {name}: that part does not count");
                found.push(Finding::new(law, "vanishes", sentence));
                gone.push(weight);
            }
        }
        found.extend(at_bound(form, exponent, value(exponent), law));
    }
    if !flat(points) {
        found.extend(wide(fitted, points, confidence, &gone));
    }
    found.extend(together(fitted, &gone));
    found.extend(saturation(fitted, points, &gone));
    found
}

fn at_bound(form: &Form, exponent: &'static str, value: Option<f64>, law: Law) -> Option<Finding> {
    let searched = form.searched.iter().find(|searched| searched.name == exponent)?;
    let (low, high) = (searched.bounds.0.exp(), searched.bounds.1.exp());
    let (least, most) = (figure(low), figure(high));
    let value = value.filter(|value| value.is_finite())?;
    let sentence = if value <= low * 1.01 {
        format!(
            "{exponent} of {} is at its lower bound {least}: within these sizes the law is a logarithm, and {} is not bounded",
            law.name(),
            form.linear[0]
        )
    } else if value >= high * 0.99 {
        format!(
            "{exponent} of {} is at its upper bound {most}: the term bends the smallest size alone",
            law.name()
        )
    } else {
        return None;
    };
    Some(Finding::new(law, "not_identified", sentence))
}

fn wide(fitted: &Fitted, points: &[Point], confidence: f64, gone: &[&str]) -> Vec<Finding> {
    let Fitted {
        form, draws, freedom, ..
    } = fitted;
    let mut found = Vec::new();
    let percent = confidence * 100.0;
    for (at, name) in form
        .names()
        .into_iter()
        .enumerate()
        .filter(|(_, name)| !gone.contains(name))
    {
        let Some((low, high)) = interval(draws.iter().map(|draw| draw[at]), confidence, *freedom) else {
            continue;
        };
        let loose = match at < form.free() {
            true => high - low > LOOSE * range(points),
            false => high > WIDE * low,
        };
        if loose && high > low {
            let sentence = format!(
                "{name} of {} is not identified: its {percent:.0} % interval over points runs from {} to {}",
                form.law.name(),
                figure(low),
                figure(high)
            );
            found.push(Finding::new(form.law, "not_identified", sentence));
        }
    }
    found
}

fn together(fitted: &Fitted, gone: &[&str]) -> Option<Finding> {
    let (names, law) = (fitted.form.names(), fitted.form.law);
    let mut pairs = Vec::new();
    for (one, name) in names.iter().enumerate() {
        for (two, other) in names.iter().enumerate().skip(one + 1) {
            if gone.contains(name) || gone.contains(other) {
                continue;
            }
            if let Some(rank) = correlation(&fitted.draws, one, two).filter(|rank| rank.abs() >= TOGETHER) {
                pairs.push(format!("{name} and {other} ({rank:+.2})"));
            }
        }
    }
    (!pairs.is_empty()).then(|| {
        let sentence = format!(
            "in {} {} go together: the points know their combination best",
            law.name(),
            pairs.join(", ")
        );
        Finding::new(law, "go_together", sentence)
    })
}

/// How much of the asymptote the largest size has reached.
fn saturation(fitted: &Fitted, points: &[Point], gone: &[&str]) -> Option<Finding> {
    let Fitted { form, fit, .. } = fitted;
    let powers = (0..form.terms()).any(|term| !gone.contains(&form.term_names(term).0));
    let (offset, law) = (fit.parameters[0], form.law);
    if !powers || form.linear[0] != "R0" || offset <= 0.0 {
        return None;
    }
    let predicted = |point: &Point| form.predict(&fit.parameters, &point.sizes);
    let most = points.iter().map(predicted).fold(f64::NEG_INFINITY, f64::max);
    let sentence = format!(
        "by {} the best of these sizes reaches {} of R0 = {} ({:.0} %)",
        law.name(),
        figure(most),
        figure(offset),
        100.0 * most / offset
    );
    Some(Finding::new(law, "saturates", sentence))
}

/// The criterion that laws are compared by: AIC corrected for few points where all have it.
pub fn criterion(laws: &[Fitted]) -> (&'static str, Vec<f64>) {
    match laws
        .iter()
        .map(|fitted| fitted.judgement.aicc)
        .collect::<Option<Vec<f64>>>()
    {
        Some(corrected) => ("AICc", corrected),
        None => ("AIC", laws.iter().map(|fitted| fitted.judgement.aic).collect()),
    }
}

fn between(laws: &[Fitted]) -> Vec<Finding> {
    let (name, values) = criterion(laws);
    let mut order: Vec<usize> = (0..laws.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]).then(a.cmp(b)));
    let [best, others @ ..] = &order[..] else {
        return Vec::new();
    };
    let law = |at: &usize| laws[*at].form.law;
    let mut found = Vec::new();
    if !others.is_empty() {
        let alike: Vec<&str> = others
            .iter()
            .filter(|at| values[**at] - values[*best] < ALIKE)
            .map(|at| law(at).name())
            .collect();
        let sentence = match alike.is_empty() {
            true => format!("{} has the lowest {name}", law(best).name()),
            false => format!(
                "{} has the lowest {name}; {} within {ALIKE}: they cannot be told apart",
                law(best).name(),
                alike.join(", ")
            ),
        };
        found.push(Finding::new(law(best), "best", sentence));
    }
    // A law of two terms against the simpler ones.
    for at in &order {
        let simpler = order
            .iter()
            .filter(|other| {
                laws[**other].form.parameters() < laws[*at].form.parameters() && values[**other] < values[*at]
            })
            .min_by(|a, b| values[**a].total_cmp(&values[**b]));
        if let (2, Some(simpler)) = (laws[*at].form.terms(), simpler) {
            let sentence = format!(
                "{} beats {} by {name} ({:.1} lower): the data do not support a second term",
                law(simpler).name(),
                law(at).name(),
                values[*at] - values[*simpler]
            );
            found.push(Finding::new(law(at), "best", sentence));
        }
    }
    let held = |at: &usize| laws[*at].judgement.held_out;
    let nearest = order
        .iter()
        .filter_map(|at| held(at).map(|error| (at, error)))
        .min_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((at, error)) = nearest {
        let sentence = format!(
            "{} is nearest to the largest sizes when they are held out: mean absolute error {}",
            law(at).name(),
            figure(error)
        );
        found.push(Finding::new(law(at), "held_out", sentence));
    }
    found
}

/// A number in four digits.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && !(1e-3..1e5).contains(&size) => format!("{value:.3e}"),
        size if size >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.4}"),
    }
}
