//! Comparisons as aligned text, CSV, Markdown and LaTeX.

use sluice_operators::comparison::{Comparison, Summary};

use crate::arguments::Format;
use crate::display::count;

/// What is printed: systems by metrics, and their differences.
pub struct Sheet {
    /// Names of the systems.
    pub systems: Vec<String>,
    /// A comparison a metric, of all systems in order.
    pub metrics: Vec<(String, Comparison)>,
    /// Resamples of intervals and p values.
    pub resamples: usize,
    /// Coverage of the intervals.
    pub confidence: f64,
}

/// The sheet as text of a format.
pub fn typeset(sheet: &Sheet, format: Format) -> String {
    let tables = || [sheet.systems_table(format), sheet.differences_table(format)];
    match format {
        Format::Csv => csv(sheet),
        Format::Text => {
            let tables: String = tables().iter().flatten().map(|table| aligned(table) + "\n").collect();
            tables + &sheet.about()
        }
        Format::Markdown => {
            let tables: String = tables().iter().flatten().map(|table| markdown(table) + "\n").collect();
            tables + &sheet.about()
        }
        Format::Latex => {
            let tables: String = tables().iter().flatten().map(|table| latex(table) + "\n").collect();
            let about: String = sheet.about().lines().map(|line| format!("% {line}\n")).collect();
            tables + &about
        }
    }
}

/// Cells by row, the head first; the first `words` columns are words, the others numbers.
struct Table {
    words: usize,
    rows: Vec<Vec<String>>,
}

impl Sheet {
    fn systems_table(&self, format: Format) -> Option<Table> {
        let mut rows = vec![vec!["system".to_string(), "seeds".to_string()]];
        rows[0].extend(self.metrics.iter().map(|(metric, _)| escaped(metric, format)));
        let places: Vec<Vec<Place>> = self.metrics.iter().map(|(_, comparison)| places(comparison)).collect();
        for (system, name) in self.systems.iter().enumerate() {
            let seeds = self
                .metrics
                .first()
                .map_or(0, |(_, first)| first.summaries[system].runs);
            let mut row = vec![escaped(name, format), seeds.to_string()];
            for ((_, comparison), places) in self.metrics.iter().zip(&places) {
                row.push(figure(comparison.summaries[system], places[system], format));
            }
            rows.push(row);
        }
        Some(Table { words: 1, rows })
    }

    fn differences_table(&self, format: Format) -> Option<Table> {
        let head = ["difference", "metric", "mean", "low", "high", "p", "Holm p"];
        let mut rows = vec![head.map(str::to_string).to_vec()];
        let signed = |value: f64| minus(format!("{value:+.4}"), format);
        for (metric, comparison) in &self.metrics {
            for difference in &comparison.differences {
                let (one, two) = difference.pair;
                let [one, two] = [one, two].map(|system| escaped(&self.systems[system], format));
                let end = |of: fn((f64, f64)) -> f64| difference.interval.map(of).map(signed).unwrap_or_default();
                rows.push(vec![
                    format!("{one} - {two}"),
                    escaped(metric, format),
                    signed(difference.mean),
                    end(|(low, _)| low),
                    end(|(_, high)| high),
                    p_value(difference.p, format),
                    p_value(difference.holm, format),
                ]);
            }
        }
        (rows.len() > 1).then_some(Table { words: 2, rows })
    }

    /// What the figures are.
    fn about(&self) -> String {
        let users = self.metrics.first().map_or(0, |(_, comparison)| comparison.users);
        let seeds = self.metrics.iter().flat_map(|(_, comparison)| &comparison.summaries);
        let mut about = format!("{} users", count(users as u64));
        if seeds.into_iter().any(|summary| summary.deviation.is_some()) {
            about.push_str("; ±: sample standard deviation over seeds");
        }
        about.push('\n');
        let pairs = self.systems.len() * (self.systems.len() - 1) / 2;
        if pairs > 0 {
            about.push_str(&format!(
                "differences: paired by user, seeds averaged; low and high: {} % bootstrap interval over users;\n\
                 p: two-sided sign-flip test over users ({} resamples); Holm p: corrected for {} {}\n",
                self.confidence * 100.0,
                count(self.resamples as u64),
                pairs,
                if pairs == 1 { "pair" } else { "pairs" },
            ));
        }
        about
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Best,
    Second,
    Other,
}

/// The best and the second of a metric, by the figures as they are printed. Alone, nobody is the best.
fn places(comparison: &Comparison) -> Vec<Place> {
    let printed = |summary: &Summary| (summary.mean * 1e4).round() as i64;
    let mut levels: Vec<i64> = comparison.summaries.iter().map(printed).collect();
    levels.sort_unstable_by(|a, b| b.cmp(a));
    levels.dedup();
    let place = |summary: &Summary| match levels.iter().position(|level| *level == printed(summary)) {
        _ if levels.len() < 2 => Place::Other,
        Some(0) => Place::Best,
        Some(1) => Place::Second,
        _ => Place::Other,
    };
    comparison.summaries.iter().map(place).collect()
}

fn figure(summary: Summary, place: Place, format: Format) -> String {
    let mean = format!("{:.4}", summary.mean);
    let mean = match (format, place) {
        (Format::Markdown, Place::Best) => format!("**{mean}**"),
        (Format::Markdown, Place::Second) => format!("<u>{mean}</u>"),
        (Format::Latex, Place::Best) => format!("\\textbf{{{mean}}}"),
        (Format::Latex, Place::Second) => format!("\\underline{{{mean}}}"),
        _ => mean,
    };
    let sign = if format == Format::Latex { "$\\pm$" } else { "±" };
    match summary.deviation {
        Some(deviation) => format!("{mean} {sign} {deviation:.4}"),
        None => mean,
    }
}

fn p_value(p: f64, format: Format) -> String {
    match (p < 5e-5, format) {
        (false, _) => format!("{p:.4}"),
        (true, Format::Latex) => "$<$0.0001".to_string(),
        (true, Format::Markdown) => "&lt;0.0001".to_string(),
        (true, _) => "<0.0001".to_string(),
    }
}

/// LaTeX sets a minus in mathematics only.
fn minus(number: String, format: Format) -> String {
    match format {
        Format::Latex => format!("${number}$"),
        _ => number,
    }
}

/// A name so that the format takes no sign of it for its own.
fn escaped(name: &str, format: Format) -> String {
    let mut text = String::new();
    for sign in name.chars() {
        match (format, sign) {
            (Format::Latex, '_' | '%' | '&' | '#' | '$' | '{' | '}') => text.extend(['\\', sign]),
            (Format::Latex, '\\') => text.push_str("\\textbackslash{}"),
            (Format::Latex, '~') => text.push_str("\\textasciitilde{}"),
            (Format::Latex, '^') => text.push_str("\\textasciicircum{}"),
            (Format::Markdown, '|' | '*' | '<' | '[' | ']' | '\\' | '`') => text.extend(['\\', sign]),
            _ => text.push(sign),
        }
    }
    text
}

fn aligned(table: &Table) -> String {
    let width = |column: usize| table.rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..table.rows[0].len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column < table.words {
            true => format!("{cell:width$}"),
            false => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    table.rows.iter().map(line).collect()
}

fn markdown(table: &Table) -> String {
    let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
    let rule = |column: usize| if column < table.words { "---" } else { "---:" };
    let rules: Vec<String> = (0..table.rows[0].len())
        .map(|column| rule(column).to_string())
        .collect();
    let body: String = table.rows[1..].iter().map(line).collect();
    line(&table.rows[0]) + &line(&rules) + &body
}

fn latex(table: &Table) -> String {
    let columns = "l".repeat(table.words) + &"r".repeat(table.rows[0].len() - table.words);
    let line = |row: &Vec<String>| format!("  {} \\\\\n", row.join(" & "));
    let body: String = table.rows[1..].iter().map(line).collect();
    let head = line(&table.rows[0]);
    format!("\\begin{{tabular}}{{{columns}}}\n  \\hline\n{head}  \\hline\n{body}  \\hline\n\\end{{tabular}}\n")
}

/// One table: rows of kind `system`, then of kind `difference`; numbers in full, what does not apply is empty.
fn csv(sheet: &Sheet) -> String {
    let quoted = |name: &str| match name.contains([',', '"', '\n']) {
        true => format!("\"{}\"", name.replace('"', "\"\"")),
        false => name.to_string(),
    };
    let optional = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
    let mut text = "kind,metric,system,minus,users,seeds,mean,deviation,low,high,p,holm_p\n".to_string();
    for (metric, comparison) in &sheet.metrics {
        for (name, summary) in sheet.systems.iter().zip(&comparison.summaries) {
            text.push_str(&format!(
                "system,{},{},,{},{},{},{},,,,\n",
                quoted(metric),
                quoted(name),
                comparison.users,
                summary.runs,
                summary.mean,
                optional(summary.deviation),
            ));
        }
    }
    for (metric, comparison) in &sheet.metrics {
        for difference in &comparison.differences {
            let (one, two) = difference.pair;
            text.push_str(&format!(
                "difference,{},{},{},{},,{},,{},{},{},{}\n",
                quoted(metric),
                quoted(&sheet.systems[one]),
                quoted(&sheet.systems[two]),
                comparison.users,
                difference.mean,
                optional(difference.interval.map(|(low, _)| low)),
                optional(difference.interval.map(|(_, high)| high)),
                difference.p,
                difference.holm,
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use sluice_operators::comparison::Difference;

    use super::*;

    fn sheet() -> Sheet {
        let summary = |runs, mean, deviation| Summary { runs, mean, deviation };
        let difference = |pair, mean: f64, p| Difference {
            pair,
            mean,
            interval: Some((mean - 0.01, mean + 0.01)),
            p,
            holm: 2.0 * p,
        };
        Sheet {
            systems: vec!["a_b[x=1,y=2]".into(), "c".into(), "d".into()],
            metrics: vec![(
                "recall_10".into(),
                Comparison {
                    users: 1234,
                    summaries: vec![
                        summary(3, 0.25, Some(0.0125)),
                        summary(1, 0.5, None),
                        summary(1, 0.125, None),
                    ],
                    differences: vec![difference((0, 1), -0.25, 1e-6), difference((0, 2), 0.125, 0.03)],
                },
            )],
            resamples: 10_000,
            confidence: 0.95,
        }
    }

    #[test]
    fn text_is_aligned() {
        let text = typeset(&sheet(), Format::Text);
        let wanted = "\
system        seeds        recall_10
a_b[x=1,y=2]      3  0.2500 ± 0.0125
c                 1           0.5000
d                 1           0.1250

difference        metric        mean      low     high        p  Holm p
a_b[x=1,y=2] - c  recall_10  -0.2500  -0.2600  -0.2400  <0.0001  <0.0001
";
        let wanted = wanted.replace("p  Holm p", "p   Holm p");
        assert!(text.starts_with(&wanted), "{text}");
        assert!(
            text.contains("1,234 users") && text.contains("corrected for 3 pairs"),
            "{text}"
        );
    }

    #[test]
    fn documents_mark_the_best_and_the_second() {
        let text = typeset(&sheet(), Format::Markdown);
        assert!(
            text.starts_with("| system | seeds | recall_10 |\n| --- | ---: | ---: |\n"),
            "{text}"
        );
        assert!(
            text.contains("| a_b\\[x=1,y=2\\] | 3 | <u>0.2500</u> ± 0.0125 |\n| c | 1 | **0.5000** |"),
            "{text}"
        );
        let text = typeset(&sheet(), Format::Latex);
        assert!(
            text.contains("  a\\_b[x=1,y=2] & 3 & \\underline{0.2500} $\\pm$ 0.0125 \\\\\n"),
            "{text}"
        );
        assert!(
            text.contains("recall\\_10") && text.contains("\\textbf{0.5000}"),
            "{text}"
        );
        assert!(text.contains("& $-0.2500$ & $-0.2600$ &"), "{text}");
        let outside = text.lines().filter(|line| !line.starts_with('%'));
        assert!(
            outside.clone().all(|line| !line.replace("\\_", "").contains('_')),
            "{text}"
        );
        assert!(outside.clone().all(|line| line.is_ascii()), "{text}");
    }

    #[test]
    fn csv_has_one_table() {
        let text = typeset(&sheet(), Format::Csv);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[1], "system,recall_10,\"a_b[x=1,y=2]\",,1234,3,0.25,0.0125,,,,");
        assert!(
            lines[4].starts_with("difference,recall_10,\"a_b[x=1,y=2]\",c,1234,,-0.25,,-0.26,-0.24,"),
            "{text}"
        );
    }

    #[test]
    fn what_prints_alike_is_marked_alike() {
        let mut sheet = sheet();
        sheet.metrics[0].1.summaries[2].mean = 0.500_01;
        assert_eq!(places(&sheet.metrics[0].1), [Place::Second, Place::Best, Place::Best]);
        sheet.metrics[0].1.summaries.truncate(1);
        assert_eq!(places(&sheet.metrics[0].1), [Place::Other]);
    }
}
