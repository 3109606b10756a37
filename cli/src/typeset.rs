//! Comparisons as aligned text, CSV, Markdown and LaTeX.

use sluice_operators::comparison::{Comparison, Summary};
use sluice_operators::report::document::{Cell, Column, Mark, Row, Table};
use sluice_operators::report::marks::marks;
use sluice_operators::report::{latex, markdown};

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
    let tables = [sheet.systems_table(), sheet.differences_table()];
    let tables = || tables.iter().filter(|table| !table.rows.is_empty());
    let set = |set: fn(&Table) -> String| tables().map(|table| set(table) + "\n").collect::<String>();
    match format {
        Format::Csv => csv(sheet),
        Format::Text => set(aligned) + &sheet.about(),
        Format::Markdown => set(markdown::table) + &sheet.about(),
        Format::Latex => {
            let about: String = sheet.about().lines().map(|line| format!("% {line}\n")).collect();
            set(latex::tabular) + &about
        }
    }
}

impl Sheet {
    fn systems_table(&self) -> Table {
        let mut columns = vec![Column::words("system"), Column::numbers("seeds")];
        columns.extend(self.metrics.iter().map(|(metric, _)| Column::numbers(metric.as_str())));
        let mut table = Table::new("", columns);
        let marked: Vec<_> = self.metrics.iter().map(|(_, comparison)| places(comparison)).collect();
        for (system, name) in self.systems.iter().enumerate() {
            let seeds = self.metrics.first();
            let seeds = seeds.map_or(0, |(_, first)| first.summaries[system].runs);
            let mut cells = vec![Cell::new(name.as_str()), Cell::new(seeds.to_string())];
            for ((_, comparison), marked) in self.metrics.iter().zip(&marked) {
                let summary: Summary = comparison.summaries[system];
                cells.push(Cell {
                    text: format!("{:.4}", summary.mean),
                    mark: marked[system],
                    after: summary
                        .deviation
                        .map(|deviation| format!("± {deviation:.4}"))
                        .unwrap_or_default(),
                    ..Cell::default()
                });
            }
            table.rows.push(Row::new(cells));
        }
        table
    }

    fn differences_table(&self) -> Table {
        let words = ["difference", "metric"].map(Column::words).into_iter();
        let numbers = ["mean", "low", "high", "p", "Holm p"].map(Column::numbers);
        let mut table = Table::new("", words.chain(numbers).collect());
        let signed = |value: f64| format!("{value:+.4}");
        for (metric, comparison) in &self.metrics {
            for difference in &comparison.differences {
                let (one, two) = difference.pair;
                let end = |of: fn((f64, f64)) -> f64| difference.interval.map(of).map(signed).unwrap_or_default();
                let cells = [
                    format!("{} - {}", self.systems[one], self.systems[two]),
                    metric.clone(),
                    signed(difference.mean),
                    end(|(low, _)| low),
                    end(|(_, high)| high),
                    p_value(difference.p),
                    p_value(difference.holm),
                ];
                table.rows.push(Row::new(cells.map(Cell::new).to_vec()));
            }
        }
        table
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

/// The best and the second of a metric.
fn places(comparison: &Comparison) -> Vec<Option<Mark>> {
    let means: Vec<Option<f64>> = comparison.summaries.iter().map(|summary| Some(summary.mean)).collect();
    marks(&means)
}

fn p_value(p: f64) -> String {
    match p < 5e-5 {
        true => "<0.0001".to_string(),
        false => format!("{p:.4}"),
    }
}

/// Columns of equal width, words to the left and numbers to the right.
fn aligned(table: &Table) -> String {
    let text = |cell: &Cell| format!("{} {}", cell.text, cell.after).trim_end().to_string();
    let mut rows = vec![
        table
            .columns
            .iter()
            .map(|column| column.name.clone())
            .collect::<Vec<_>>(),
    ];
    rows.extend(table.rows.iter().map(|row| row.cells.iter().map(text).collect()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..table.columns.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).zip(&table.columns);
        let cells = cells.map(|((cell, &width), column)| match column.number {
            false => format!("{cell:width$}"),
            true => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
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
            text.contains("  {}a\\_b[x=1,y=2] & 3 & \\underline{0.2500} $\\pm$ 0.0125 \\\\\n"),
            "{text}"
        );
        assert!(
            text.contains("recall\\_10") && text.contains("\\textbf{0.5000}"),
            "{text}"
        );
        assert!(text.contains("& $-$0.2500 & $-$0.2600 &"), "{text}");
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
}
