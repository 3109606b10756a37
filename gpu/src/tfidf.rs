//! TF-IDF of short texts: tokenizer, vocabulary, weights and a sparse matrix, with scikit-learn's defaults.
//!
//! Source: `TfidfVectorizer` of scikit-learn: lower-case, tokens of two or more word characters, smoothed idf
//! `ln((1 + N) / (1 + df)) + 1`, rows divided by their L2 norm. Deviates: among equally frequent terms `max_features`
//! keeps the alphabetically first. Shape legend: N rows, V terms.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

/// What makes TF-IDF impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TfidfError {
    /// There is no text.
    #[error("tf-idf needs at least one text")]
    NoTexts,
    /// No term is left.
    #[error("no term is left of {terms} terms in {texts} texts after min_df {min_df}, max_df {max_df}")]
    NoTerms {
        /// Distinct terms before pruning.
        terms: usize,
        /// Number of texts.
        texts: usize,
        /// Fewest texts a term may be in.
        min_df: f64,
        /// Most texts a term may be in.
        max_df: f64,
    },
    /// A fraction of the texts lies outside [0, 1].
    #[error("{key} is {value}, a fraction of the texts must lie in [0, 1]")]
    Fraction {
        /// The option.
        key: &'static str,
        /// Its value.
        value: f64,
    },
}

/// A number of texts, absolute or as a share of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DocumentFrequency {
    /// This many texts.
    Count(usize),
    /// This share of the texts, in [0, 1].
    Fraction(f64),
}

/// How texts become weighted terms.
#[derive(Debug, Clone, PartialEq)]
pub struct TfidfConfig {
    /// Terms in fewer texts are dropped.
    pub min_df: DocumentFrequency,
    /// Terms in more texts are dropped.
    pub max_df: DocumentFrequency,
    /// Keep this many terms, the most frequent in all texts together (`None`: all).
    pub max_features: Option<usize>,
    /// Use `1 + ln(count)` for the count of a term in a text.
    pub sublinear_tf: bool,
    /// Also use pairs of neighbouring tokens, joined by one space.
    pub bigrams: bool,
}

impl Default for TfidfConfig {
    fn default() -> Self {
        TfidfConfig {
            min_df: DocumentFrequency::Count(1),
            max_df: DocumentFrequency::Fraction(1.0),
            max_features: None,
            sublinear_tf: false,
            bigrams: false,
        }
    }
}

/// A sparse matrix by rows: row r holds `values[offsets[r]..offsets[r + 1]]` at `columns` of the same range, ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseRows {
    /// Number of columns.
    pub width: usize,
    /// Where rows start, and the end: rows + 1 entries.
    pub offsets: Vec<usize>,
    /// Columns of the values, ascending within a row.
    pub columns: Vec<u32>,
    /// The values.
    pub values: Vec<f64>,
}

impl SparseRows {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Columns and values of a row.
    pub fn row(&self, row: usize) -> (&[u32], &[f64]) {
        let span = self.offsets[row]..self.offsets[row + 1];
        (&self.columns[span.clone()], &self.values[span])
    }

    /// The transpose, again by rows.
    pub fn transposed(&self) -> SparseRows {
        let mut offsets = vec![0usize; self.width + 1];
        self.columns.iter().for_each(|c| offsets[*c as usize + 1] += 1);
        (0..self.width).for_each(|c| offsets[c + 1] += offsets[c]);
        let mut next = offsets.clone();
        let (mut columns, mut values) = (vec![0u32; self.columns.len()], vec![0f64; self.values.len()]);
        for row in 0..self.rows() {
            let (own_columns, own_values) = self.row(row);
            for (column, value) in own_columns.iter().zip(own_values) {
                let at = &mut next[*column as usize];
                (columns[*at], values[*at]) = (row as u32, *value);
                *at += 1;
            }
        }
        SparseRows {
            width: self.rows(),
            offsets,
            columns,
            values,
        }
    }
}

/// Vocabulary and inverse document frequencies.
#[derive(Debug, Clone, PartialEq)]
pub struct Tfidf {
    config: TfidfConfig,
    /// Terms [V] in ascending order of code points; a term's index is its column.
    pub terms_v: Vec<String>,
    /// Inverse document frequency of every term [V].
    pub idf_v: Vec<f64>,
    columns: HashMap<String, u32>,
}

impl Tfidf {
    /// Learns the vocabulary and idf of `texts` and weighs them: rows [N, V]. A text without a known term is a zero row.
    ///
    /// Errors: no text, a fraction outside [0, 1], no term left.
    pub fn fit<S: AsRef<str> + Sync>(texts: &[S], config: &TfidfConfig) -> Result<(Tfidf, SparseRows), TfidfError> {
        if texts.is_empty() {
            return Err(TfidfError::NoTexts);
        }
        let min = limit("min_df", config.min_df, texts.len())?;
        let max = limit("max_df", config.max_df, texts.len())?;
        let counted: Vec<BTreeMap<String, u32>> =
            texts.par_iter().map(|t| counts(t.as_ref(), config.bigrams)).collect();
        let mut frequencies: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        for (term, count) in counted.iter().flatten() {
            let (documents, total) = frequencies.entry(term).or_default();
            *documents += 1;
            *total += *count as u64;
        }
        let terms = frequencies.len();
        let mut kept: Vec<(&str, usize, u64)> = frequencies
            .into_iter()
            .map(|(term, (documents, total))| (term, documents, total))
            .filter(|(_, documents, _)| (min..=max).contains(&(*documents as f64)))
            .collect();
        if let Some(most) = config.max_features {
            kept.sort_by(|a, b| b.2.cmp(&a.2).then(a.0.cmp(b.0)));
            kept.truncate(most);
            kept.sort_by(|a, b| a.0.cmp(b.0));
        }
        if kept.is_empty() {
            return Err(TfidfError::NoTerms {
                terms,
                texts: texts.len(),
                min_df: min,
                max_df: max,
            });
        }
        let n = texts.len() as f64;
        let tfidf = Tfidf {
            config: config.clone(),
            terms_v: kept.iter().map(|(term, ..)| term.to_string()).collect(),
            idf_v: kept
                .iter()
                .map(|(_, documents, _)| ((1.0 + n) / (1.0 + *documents as f64)).ln() + 1.0)
                .collect(),
            columns: kept
                .iter()
                .enumerate()
                .map(|(column, (term, ..))| (term.to_string(), column as u32))
                .collect(),
        };
        let rows = tfidf.weigh(&counted);
        Ok((tfidf, rows))
    }

    /// Weighs texts [N, V] with the vocabulary and idf learned; unknown terms are ignored.
    pub fn transform<S: AsRef<str> + Sync>(&self, texts: &[S]) -> SparseRows {
        let counted: Vec<BTreeMap<String, u32>> = texts
            .par_iter()
            .map(|text| counts(text.as_ref(), self.config.bigrams))
            .collect();
        self.weigh(&counted)
    }

    fn weigh(&self, counted: &[BTreeMap<String, u32>]) -> SparseRows {
        let weigh = |terms: &BTreeMap<String, u32>| -> Vec<(u32, f64)> {
            let mut row: Vec<(u32, f64)> = terms
                .iter()
                .filter_map(|(term, count)| {
                    let column = *self.columns.get(term)?;
                    let count = *count as f64;
                    let tf = if self.config.sublinear_tf {
                        1.0 + count.ln()
                    } else {
                        count
                    };
                    Some((column, tf * self.idf_v[column as usize]))
                })
                .collect();
            let norm = row.iter().map(|(_, x)| x * x).sum::<f64>().sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|(_, x)| *x /= norm);
            }
            row
        };
        let weighed: Vec<Vec<(u32, f64)>> = counted.par_iter().map(weigh).collect();
        let mut offsets = vec![0];
        offsets.extend(weighed.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        }));
        let (columns, values) = weighed.into_iter().flatten().unzip();
        SparseRows {
            width: self.terms_v.len(),
            offsets,
            columns,
            values,
        }
    }
}

/// Tokens of a text: lower-case runs of two or more letters, digits or underscores (scikit-learn's `\w\w+`). Letters and
/// digits are Unicode's `Alphabetic` and `Numeric`; Python differs for some combining marks.
pub fn tokens(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|token| token.chars().nth(1).is_some())
        .map(str::to_string)
        .collect()
}

fn counts(text: &str, bigrams: bool) -> BTreeMap<String, u32> {
    let tokens = tokens(text);
    let mut counts = BTreeMap::new();
    if bigrams {
        tokens
            .windows(2)
            .for_each(|pair| *counts.entry(pair.join(" ")).or_default() += 1);
    }
    tokens
        .into_iter()
        .for_each(|token| *counts.entry(token).or_default() += 1);
    counts
}

/// A document frequency as a number of texts (scikit-learn does not round fractions).
fn limit(key: &'static str, frequency: DocumentFrequency, texts: usize) -> Result<f64, TfidfError> {
    match frequency {
        DocumentFrequency::Count(count) => Ok(count as f64),
        DocumentFrequency::Fraction(value) if (0.0..=1.0).contains(&value) => Ok(value * texts as f64),
        DocumentFrequency::Fraction(value) => Err(TfidfError::Fraction { key, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_word_characters_in_lower_case() {
        assert_eq!(
            tokens("OPI Nail-Lacquer, a 0.5 oz; Crème_2 É!"),
            ["opi", "nail", "lacquer", "oz", "crème_2"]
        );
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/tfidf_svd.json")).expect("golden file");
        let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).expect("texts");
        for case in golden["tfidf"].as_array().expect("cases") {
            let frequency = |key: &str| match case[key].as_u64() {
                Some(count) => DocumentFrequency::Count(count as usize),
                None => DocumentFrequency::Fraction(case[key].as_f64().expect(key)),
            };
            let config = TfidfConfig {
                min_df: frequency("min_df"),
                max_df: frequency("max_df"),
                max_features: case["max_features"].as_u64().map(|n| n as usize),
                sublinear_tf: case["sublinear_tf"].as_bool().expect("sublinear_tf"),
                bigrams: case["bigrams"].as_bool().expect("bigrams"),
            };
            let (tfidf, rows) = Tfidf::fit(&texts, &config).unwrap();
            assert_eq!(serde_json::json!(tfidf.terms_v), case["terms"]);
            assert_eq!(serde_json::json!(rows.offsets), case["offsets"]);
            assert_eq!(serde_json::json!(rows.columns), case["columns"]);
            for (got, want) in rows.values.iter().zip(case["values"].as_array().expect("values")) {
                assert!((got - want.as_f64().expect("a number")).abs() < 1e-6);
            }
            assert_eq!(tfidf.transform(&texts), rows);
            assert_eq!(rows.transposed().transposed(), rows);
        }
    }

    #[test]
    fn user_mistakes_are_named() {
        let config = TfidfConfig {
            min_df: DocumentFrequency::Count(3),
            ..TfidfConfig::default()
        };
        let say = |texts: &[&str], config: &TfidfConfig| Tfidf::fit(texts, config).unwrap_err().to_string();
        assert_eq!(say(&[], &config), "tf-idf needs at least one text");
        assert_eq!(
            say(&["ab cd", "ab"], &config),
            "no term is left of 2 terms in 2 texts after min_df 3, max_df 2"
        );
        let config = TfidfConfig {
            max_df: DocumentFrequency::Fraction(1.5),
            ..TfidfConfig::default()
        };
        assert_eq!(
            say(&["ab"], &config),
            "max_df is 1.5, a fraction of the texts must lie in [0, 1]"
        );
    }
}
