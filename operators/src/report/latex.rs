//! A document as LaTeX: tables with rules of `booktabs`, figures drawn by `pgfplots`. It compiles on its own, and its
//! tables and figures can be taken out.

use super::document::{Block, Cell, Document, Finding, Level, Mark, Table};
use super::pgfplots;

/// The document.
pub fn page(document: &Document) -> String {
    let mut text = format!(
        "\\documentclass{{article}}\n\\usepackage[margin=2.5cm]{{geometry}}\n\\usepackage[T1]{{fontenc}}\n\\usepackage{{booktabs}}\n\
        \\usepackage{{pgfplots}}\n\\pgfplotsset{{compat=1.17}}\n\\usepgfplotslibrary{{fillbetween}}\n\\usepackage{{graphicx}}\n\
        \\title{{{}}}\n\\date{{}}\n\\begin{{document}}\n\\maketitle\n",
        escape(&document.title)
    );
    for line in &document.about {
        text.push_str(&format!("{}\n\n", escape(line)));
    }
    text.push_str(&findings(&document.findings));
    // A graph of stages is for screens.
    let is_graph = |block: &Block| matches!(block, Block::Graph(_));
    let sections = document.sections.iter();
    for section in sections.filter(|section| !section.blocks.iter().all(is_graph)) {
        text.push_str(&format!("\\section{{{}}}\n", escape(&section.title)));
        for block in &section.blocks {
            match block {
                Block::Text(words) => text.push_str(&format!("{}\n\n", escape(words))),
                Block::Findings(found) => text.push_str(&findings(found)),
                Block::Table(table) => text.push_str(&floating(table)),
                Block::Figure(figure) => text.push_str(&pgfplots::figure(figure)),
                Block::Graph(graph) => text.push_str(&format!("% {}\n", comment(&graph.caption))),
            }
        }
    }
    for source in &document.sources {
        let origin = document.origin(&source.input).replace('\n', "; ");
        text.push_str(&format!("% {}\n", comment(&origin)));
    }
    text.push_str("\\end{document}\n");
    text
}

fn floating(table: &Table) -> String {
    let from = match table.sources.is_empty() {
        true => String::new(),
        false => format!("% from {}\n", comment(&table.sources.join(", "))),
    };
    // A wide table shrinks to the width of the text.
    format!(
        "{from}\\begin{{table}}[ht]\n\\centering\n\\caption{{{}}}\n\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{}}}\n\\end{{table}}\n",
        escape(&table.caption),
        tabular(table)
    )
}

/// A table by itself.
pub fn tabular(table: &Table) -> String {
    let columns: String = table
        .columns
        .iter()
        .map(|column| if column.number { 'r' } else { 'l' })
        .collect();
    let line = |cells: Vec<String>| format!("  {} \\\\\n", cells.join(" & "));
    let head = line(table.columns.iter().map(|column| escape(&column.name)).collect());
    let cells = |cells: &[Cell]| {
        let number = |place: usize| table.columns.get(place).is_some_and(|column| column.number);
        line(
            cells
                .iter()
                .enumerate()
                .map(|(place, inside)| cell(inside, number(place)))
                .collect(),
        )
    };
    let rows: String = table.rows.iter().map(|row| cells(&row.cells)).collect();
    format!("\\begin{{tabular}}{{{columns}}}\n  \\toprule\n{head}  \\midrule\n{rows}  \\bottomrule\n\\end{{tabular}}\n")
}

fn cell(cell: &Cell, number: bool) -> String {
    let text = match number {
        true => signed(&cell.text),
        false => escape(&cell.text),
    };
    let mut inside = match cell.mark {
        Some(Mark::Best) => format!("\\textbf{{{text}}}"),
        Some(Mark::Second) => format!("\\underline{{{text}}}"),
        None => text,
    };
    if !cell.after.is_empty() {
        inside.push_str(&format!(" {}", escape(&cell.after)));
    }
    if !cell.below.is_empty() {
        inside.push_str(&format!(" {{\\scriptsize {}}}", signed(&cell.below)));
    }
    inside
}

/// LaTeX sets a sign in mathematics only.
fn signed(number: &str) -> String {
    match number.split_once(' ') {
        _ if !number.starts_with(['-', '+']) => escape(number),
        Some((number, unit)) => format!("${number}$ {}", escape(unit)),
        None => format!("${}$", number),
    }
}

fn findings(findings: &[Finding]) -> String {
    let item = |finding: &Finding| {
        let word = match finding.level {
            Level::Plain | Level::Bad => "",
            Level::Warning => "\\textbf{Careful:} ",
        };
        format!("  \\item {word}{}\n", escape(&finding.text))
    };
    match findings.is_empty() {
        true => String::new(),
        false => format!(
            "\\begin{{itemize}}\n{}\\end{{itemize}}\n",
            findings.iter().map(item).collect::<String>()
        ),
    }
}

/// Text in a line of comment.
fn comment(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Text so that LaTeX takes no sign of it for its own.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for sign in text.chars() {
        match sign {
            '_' | '%' | '&' | '#' | '$' | '{' | '}' => escaped.extend(['\\', sign]),
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("$<$"),
            '>' => escaped.push_str("$>$"),
            '"' => escaped.push_str("\\textquotedbl{}"),
            '±' => escaped.push_str("$\\pm$"),
            '×' => escaped.push_str("$\\times$"),
            '≤' => escaped.push_str("$\\leq$"),
            'Δ' => escaped.push_str("$\\Delta$"),
            '–' => escaped.push_str("--"),
            '…' => escaped.push_str("\\ldots{}"),
            '\n' | '\r' => escaped.push(' '),
            _ => escaped.push(sign),
        }
    }
    escaped
}
