//! The laws: which sizes, which parameters, and what they predict.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DATA, LLM, LORA, PARTS, Point, QUANTIZER, RS};

/// Largest number of linear parameters of a law.
pub const LINEAR: usize = 3;
/// Exponents are searched between these.
const EXPONENTS: (f64, f64) = (1e-3, 25.0);
/// Weights of parts are searched between these, relative to the ratio of typical sizes; below, they are 0.
const WEIGHTS: (f64, f64) = (1e-6, 1e6);
/// Where searches for exponents start.
const EXPONENT_GRID: [f64; 9] = [0.01, 0.04, 0.12, 0.3, 0.6, 1.2, 2.5, 6.0, 15.0];
/// Where searches for weights start.
const WEIGHT_GRID: [f64; 4] = [1e-4, 0.05, 0.7, 10.0];

/// A law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Law {
    /// R0 - A/(N_RS + g1 N_LLM + g2 N_QT)^a - B/N_RS^b.
    SidGr,
    /// R0 - A/(N_LoRA + gamma N_LLM)^a - B/N_LoRA^b.
    Llm,
    /// R0 - A/(N_LoRA + gamma N_LLM)^a - B/(N_LoRA + beta N_LLM)^b.
    LlmCf,
    /// R0 - A/N^a - B/D^b.
    Additive,
    /// R0 - A/N^a.
    Power,
    /// c + s ln N.
    Log,
    /// c.
    Constant,
}

/// A part of a size: N_RS, or g1 N_LLM.
#[derive(Clone, Debug, PartialEq)]
struct Share {
    part: usize,
    /// Which nonlinear parameter weighs it; `None` for 1.
    weight: Option<usize>,
    /// A typical size of the part (geometric mean over the points): sizes are divided by it, weights are multiplied by
    /// its ratio to that of the first part.
    typical: f64,
}

/// A power of a size.
#[derive(Clone, Debug, PartialEq)]
struct Term {
    shares: Vec<Share>,
    /// Which nonlinear parameter is its exponent.
    exponent: usize,
}

/// A parameter that is searched for, in log space.
#[derive(Clone, Debug, PartialEq)]
pub struct Searched {
    /// Its name.
    pub name: &'static str,
    /// Bounds of its logarithm.
    pub bounds: (f64, f64),
    /// Logarithms to start from.
    pub grid: Vec<f64>,
    /// Whether it is a weight, which may be 0, and not an exponent.
    pub weight: bool,
}

/// A law over given points: the parts that vary, scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// The law.
    pub law: Law,
    /// Names of the linear parameters: the offset, then a factor a term.
    pub linear: Vec<&'static str>,
    /// The nonlinear parameters.
    pub searched: Vec<Searched>,
    /// Parts that the law asks for and that are left out: weight, part, why.
    pub left_out: Vec<(&'static str, usize, &'static str)>,
    terms: Vec<Term>,
    /// Part of a logarithm, and its typical size.
    logarithm: Option<(usize, f64)>,
    /// What a term is multiplied with: -1 where the metric rises with size.
    sign: f64,
}

impl Law {
    /// Its name in configs and tables.
    pub fn name(self) -> &'static str {
        match self {
            Law::SidGr => "sid_gr",
            Law::Llm => "llm",
            Law::LlmCf => "llm_cf",
            Law::Additive => "additive",
            Law::Power => "power",
            Law::Log => "log",
            Law::Constant => "constant",
        }
    }

    /// Its formula.
    pub fn formula(self) -> &'static str {
        match self {
            Law::SidGr => "R0 - A/(N_RS + g1 N_LLM + g2 N_QT)^a - B/N_RS^b",
            Law::Llm => "R0 - A/(N_LoRA + gamma N_LLM)^a - B/N_LoRA^b",
            Law::LlmCf => "R0 - A/(N_LoRA + gamma N_LLM)^a - B/(N_LoRA + beta N_LLM)^b",
            Law::Additive => "R0 - A/N^a - B/D^b",
            Law::Power => "R0 - A/N^a",
            Law::Log => "c + s ln N",
            Law::Constant => "c",
        }
    }

    /// Parts that it cannot do without; `main` is the part whose size is N.
    pub fn wanted(self, main: usize) -> Vec<usize> {
        match self {
            Law::SidGr => vec![RS],
            Law::Llm | Law::LlmCf => vec![LORA, LLM],
            Law::Additive => vec![main, DATA],
            Law::Power | Law::Log => vec![main],
            Law::Constant => vec![],
        }
    }

    /// Parts whose sizes must differ from point to point; `main` is the part whose size is N.
    pub fn varying(self, main: usize) -> Vec<usize> {
        match self {
            Law::Additive => vec![main, DATA],
            Law::Power | Law::Log => vec![main],
            Law::SidGr | Law::Llm | Law::LlmCf | Law::Constant => vec![],
        }
    }
}

/// The geometric mean of a part's size over the points.
fn typical(points: &[Point], part: usize) -> f64 {
    let logs: f64 = points.iter().map(|point| point.sizes[part].ln()).sum();
    (logs / points.len() as f64).exp()
}

/// Whether the points have several sizes of a part.
pub fn varies(points: &[Point], part: usize) -> bool {
    points.windows(2).any(|pair| pair[0].sizes[part] != pair[1].sizes[part])
}

/// The parts that a term adds up, each with the name of its weight.
type Sum = [(usize, &'static str)];

impl Form {
    /// A law over points. `main` is the part that simple laws call N; `falls` says that the metric falls with size, as
    /// a loss does. Parts that a law weighs and that are not known or take one value are left out.
    pub fn new(law: Law, points: &[Point], main: usize, falls: bool) -> Self {
        let mut form = Form {
            law,
            linear: vec![match (law, falls) {
                (Law::Log | Law::Constant, _) => "c",
                (_, true) => "E",
                (_, false) => "R0",
            }],
            searched: Vec::new(),
            left_out: Vec::new(),
            terms: Vec::new(),
            logarithm: None,
            sign: if falls { 1.0 } else { -1.0 },
        };
        let sums: &[(&Sum, &str, &str)] = match law {
            Law::SidGr => &[
                (&[(RS, ""), (LLM, "g1"), (QUANTIZER, "g2")], "A", "a"),
                (&[(RS, "")], "B", "b"),
            ],
            Law::Llm => &[(&[(LORA, ""), (LLM, "gamma")], "A", "a"), (&[(LORA, "")], "B", "b")],
            Law::LlmCf => &[
                (&[(LORA, ""), (LLM, "gamma")], "A", "a"),
                (&[(LORA, ""), (LLM, "beta")], "B", "b"),
            ],
            Law::Additive => &[(&[(main, "")], "A", "a"), (&[(DATA, "")], "B", "b")],
            Law::Power => &[(&[(main, "")], "A", "a")],
            Law::Log | Law::Constant => &[],
        };
        for (parts, factor, exponent) in sums {
            form.term(points, parts, factor, exponent);
        }
        if law == Law::Log {
            form.linear.push("s");
            form.logarithm = Some((main, typical(points, main)));
        }
        // Exponents first: tables read a, b, then weights.
        form.exponents_first();
        form
    }

    fn term(&mut self, points: &[Point], parts: &Sum, factor: &'static str, exponent: &'static str) {
        self.linear.push(factor);
        let log = |(low, high): (f64, f64)| (low.ln(), high.ln());
        self.searched.push(Searched {
            name: exponent,
            bounds: log(EXPONENTS),
            grid: EXPONENT_GRID.map(f64::ln).to_vec(),
            weight: false,
        });
        let exponent = self.searched.len() - 1;
        let mut shares = Vec::new();
        for &(part, weight) in parts {
            let known = points.iter().all(|point| point.sizes[part].is_finite());
            let weighed = !weight.is_empty();
            if weighed && !(known && varies(points, part)) {
                let why = if known {
                    "takes one value in all points"
                } else {
                    "is not known"
                };
                self.left_out.push((weight, part, why));
                continue;
            }
            let weight = weighed.then(|| {
                self.searched.push(Searched {
                    name: weight,
                    bounds: log(WEIGHTS),
                    grid: WEIGHT_GRID.map(f64::ln).to_vec(),
                    weight: true,
                });
                self.searched.len() - 1
            });
            let typical = typical(points, part);
            shares.push(Share { part, weight, typical });
        }
        self.terms.push(Term { shares, exponent });
    }

    fn exponents_first(&mut self) {
        let mut order: Vec<usize> = (0..self.searched.len()).collect();
        order.sort_by_key(|at| self.searched[*at].weight);
        let place = |old: usize| order.iter().position(|at| *at == old).unwrap_or(old);
        for term in &mut self.terms {
            term.exponent = place(term.exponent);
            for share in &mut term.shares {
                share.weight = share.weight.map(place);
            }
        }
        self.searched = order.iter().map(|at| self.searched[*at].clone()).collect();
    }

    /// Names of all parameters: the linear ones, then those that are searched for.
    pub fn names(&self) -> Vec<&'static str> {
        let searched = self.searched.iter().map(|searched| searched.name);
        self.linear.iter().copied().chain(searched).collect()
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.linear.len() + self.searched.len()
    }

    /// Whether the metric falls with size.
    pub fn falls(&self) -> bool {
        self.sign > 0.0
    }

    /// Number of terms that are powers.
    pub fn terms(&self) -> usize {
        self.terms.len()
    }

    /// Whether both terms are powers of sums of the same parts, so that they can be exchanged.
    pub fn exchangeable(&self) -> bool {
        let parts = |term: &Term| term.shares.iter().map(|share| share.part).collect::<Vec<_>>();
        self.terms.len() == 2 && parts(&self.terms[0]) == parts(&self.terms[1])
    }

    /// Parameters with the two terms exchanged.
    pub fn exchanged(&self, parameters: &[f64]) -> Vec<f64> {
        let mut other = parameters.to_vec();
        other.swap(1, 2);
        let at = |searched: usize| self.linear.len() + searched;
        let [one, two] = &self.terms[..] else { return other };
        other.swap(at(one.exponent), at(two.exponent));
        for pair in one.shares.iter().zip(&two.shares) {
            if let (Some(a), Some(b)) = (pair.0.weight, pair.1.weight) {
                other.swap(at(a), at(b));
            }
        }
        other
    }

    /// How many linear parameters may be negative: the first ones. Factors of terms are not.
    pub fn free(&self) -> usize {
        self.linear.len() - self.terms.len()
    }

    /// A part's size over the first part's of its term, both relative to what is typical.
    fn scaled(&self, term: &Term, theta: &[f64], sizes: &[f64; PARTS.len()]) -> f64 {
        let shares = term.shares.iter();
        shares
            .map(|share| share.weight.map_or(1.0, |weight| theta[weight].exp()) * sizes[share.part] / share.typical)
            .sum()
    }

    /// What the linear parameters are multiplied with at a point.
    pub fn row(&self, theta: &[f64], sizes: &[f64; PARTS.len()]) -> [f64; LINEAR] {
        let mut row = [1.0, 0.0, 0.0];
        if let Some((part, typical)) = self.logarithm {
            row[1] = (sizes[part] / typical).ln();
        }
        for (at, term) in self.terms.iter().enumerate() {
            row[at + 1] = self.sign * self.scaled(term, theta, sizes).powf(-theta[term.exponent].exp());
        }
        row
    }

    /// Adds to `gradient` by how much a point's prediction moves with the logarithms of what is searched for, times
    /// `weight`.
    pub fn slope(&self, theta: &[f64], sizes: &[f64; PARTS.len()], linear: &[f64], weight: f64, gradient: &mut [f64]) {
        for (at, term) in self.terms.iter().enumerate() {
            let exponent = theta[term.exponent].exp();
            let size = self.scaled(term, theta, sizes);
            let value = weight * linear[at + 1] * self.sign * size.powf(-exponent);
            gradient[term.exponent] -= value * exponent * size.ln();
            for share in &term.shares {
                if let Some(weight) = share.weight {
                    let part = theta[weight].exp() * sizes[share.part] / share.typical;
                    gradient[weight] -= value * exponent * part / size;
                }
            }
        }
    }

    /// Parameters as the formula has them. Exponents and weights of a term whose factor is 0 mean nothing: NaN.
    pub fn natural(&self, theta: &[f64], linear: &[f64]) -> Vec<f64> {
        let mut values: Vec<f64> = linear[..self.linear.len()].to_vec();
        values.resize(self.parameters(), f64::NAN);
        if let Some((_, typical)) = self.logarithm {
            values[0] -= values[1] * typical.ln();
        }
        for (at, term) in self.terms.iter().enumerate() {
            let exponent = theta[term.exponent].exp();
            let typical = term.shares[0].typical;
            values[at + 1] *= typical.powf(exponent);
            if linear[at + 1] == 0.0 {
                continue;
            }
            values[self.linear.len() + term.exponent] = exponent;
            for share in &term.shares {
                if let Some(weight) = share.weight {
                    values[self.linear.len() + weight] = theta[weight].exp() * typical / share.typical;
                }
            }
        }
        values
    }

    /// What parameters, as the formula has them, predict.
    pub fn predict(&self, parameters: &[f64], sizes: &[f64; PARTS.len()]) -> f64 {
        let mut value = parameters[0];
        if let Some((part, _)) = self.logarithm {
            value += parameters[1] * sizes[part].ln();
        }
        value
            + (0..self.terms.len())
                .map(|term| self.contribution(parameters, term, sizes))
                .sum::<f64>()
    }

    /// What a term adds to a prediction.
    pub fn contribution(&self, parameters: &[f64], term: usize, sizes: &[f64; PARTS.len()]) -> f64 {
        let (factor, term) = (parameters[term + 1], &self.terms[term]);
        if factor == 0.0 {
            return 0.0;
        }
        let weight = |share: &Share| {
            share
                .weight
                .map_or(1.0, |weight| parameters[self.linear.len() + weight])
        };
        let size: f64 = term.shares.iter().map(|share| weight(share) * sizes[share.part]).sum();
        // The logarithm of the product: factors of steep terms are beyond what powers of sizes can hold.
        let log = factor.ln() - parameters[self.linear.len() + term.exponent] * size.ln();
        self.sign * log.exp()
    }

    /// Names of a term's parameters: its factor, its exponent, its weights.
    pub fn term_names(&self, term: usize) -> (&'static str, &'static str, Vec<&'static str>) {
        let of = &self.terms[term];
        let weights = of.shares.iter().filter_map(|share| share.weight);
        let weights = weights.map(|weight| self.searched[weight].name).collect();
        (self.linear[term + 1], self.searched[of.exponent].name, weights)
    }
}
