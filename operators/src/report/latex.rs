//! A document as LaTeX: tables with rules of `booktabs`, figures drawn by `pgfplots`. It compiles on its own, and its
//! tables and figures can be taken out.

use super::document::{Block, Cell, Document, Finding, Level, Mark, Table};
use super::pgfplots;

/// Tables with more rows run over pages; a float would lose what is below its page.
const FLOATING: usize = 40;
/// What comes before the title.
const PREAMBLE: &str = "\\documentclass{article}
\\usepackage[margin=2.5cm]{geometry}
\\usepackage{iftex}
\\ifPDFTeX\\usepackage[T1]{fontenc}\\usepackage{textcomp}\\else\\usepackage{fontspec}\\fi
\\usepackage{booktabs}
\\usepackage{longtable}
\\usepackage{pgfplots}
\\pgfplotsset{compat=1.17}
\\usepgfplotslibrary{fillbetween}
\\usepackage{graphicx}
";
/// A sign that the fonts of pdfTeX do not have: its number there, itself elsewhere.
const SIGN: &str = "\\providecommand\\uni[2]{\\ifdefined\\pdftexversion[U+#1]\\else#2\\fi}\n";
/// Greek letters from alpha to omega; omicron is an o.
const GREEK: [&str; 25] = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "mathit o", "pi", "rho", "varsigma", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
];

/// The document.
pub fn page(document: &Document) -> String {
    let mut text = format!(
        "{PREAMBLE}{SIGN}\\title{{{}}}\n\\date{{}}\n\\begin{{document}}\n\\maketitle\n",
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
                Block::Table(table) if table.rows.len() > FLOATING => text.push_str(&long(table)),
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
    // A wide table shrinks to the width of the text.
    format!(
        "{}\\begin{{table}}[ht]\n\\centering\n\\caption{{{}}}\n\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{}}}\n\\end{{table}}\n",
        from(table),
        escape(&table.caption),
        bare(table)
    )
}

/// A table over several pages, each with the heading.
fn long(table: &Table) -> String {
    let (columns, head, rows) = parts(table);
    format!(
        "{}{{\\footnotesize\n\\begin{{longtable}}{{{columns}}}\n\\caption{{{}}}\\\\\n  \\toprule\n{head}  \\midrule\n\\endfirsthead\n\
        \x20 \\toprule\n{head}  \\midrule\n\\endhead\n  \\bottomrule\n\\endfoot\n{rows}\\end{{longtable}}\n}}\n",
        from(table),
        escape(&table.caption)
    )
}

fn from(table: &Table) -> String {
    match table.sources.is_empty() {
        true => String::new(),
        false => format!("% from {}\n", comment(&table.sources.join(", "))),
    }
}

/// A table by itself, with all that it needs.
pub fn tabular(table: &Table) -> String {
    let bare = bare(table);
    match bare.contains("\\uni{") {
        true => format!("{SIGN}{bare}"),
        false => bare,
    }
}

fn bare(table: &Table) -> String {
    let (columns, head, rows) = parts(table);
    format!("\\begin{{tabular}}{{{columns}}}\n  \\toprule\n{head}  \\midrule\n{rows}  \\bottomrule\n\\end{{tabular}}\n")
}

/// Columns, heading and rows.
fn parts(table: &Table) -> (String, String, String) {
    let columns: String = table
        .columns
        .iter()
        .map(|column| if column.number { 'r' } else { 'l' })
        .collect();
    // After a row or a rule, `[` and `*` would begin an option.
    let line = |cells: Vec<String>| format!("  {{}}{} \\\\\n", cells.join(" & "));
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
    let rows = table.rows.iter().map(|row| cells(&row.cells)).collect();
    (columns, head, rows)
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

/// LaTeX sets a sign in mathematics only, and bold figures outside of it only.
fn signed(number: &str) -> String {
    let rest = number.strip_prefix(['-', '+']).unwrap_or(number);
    let sign = match &number[..number.len() - rest.len()] {
        "" => String::new(),
        sign => format!("${sign}$"),
    };
    sign + &escape(rest).replace("e-", "e$-$")
}

fn findings(findings: &[Finding]) -> String {
    let item = |finding: &Finding| {
        let word = match finding.level {
            Level::Plain | Level::Bad => "",
            Level::Warning => "\\textbf{Careful:} ",
        };
        format!("  \\item {{}}{word}{}\n", escape(&finding.text))
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
            '≥' => escaped.push_str("$\\geq$"),
            '≈' => escaped.push_str("$\\approx$"),
            '∞' => escaped.push_str("$\\infty$"),
            '→' => escaped.push_str("$\\rightarrow$"),
            '−' => escaped.push_str("$-$"),
            '–' => escaped.push_str("--"),
            '—' => escaped.push_str("---"),
            '…' => escaped.push_str("\\ldots{}"),
            // Two of them would be a dash.
            '-' if escaped.ends_with('-') => escaped.push_str("{}-"),
            _ if sign.is_control() => escaped.push(' '),
            _ if in_fonts(sign) => escaped.push(sign),
            _ => match greek(sign) {
                Some(name) => escaped.push_str(&format!("$\\{name}$")),
                None => escaped.push_str(&format!("\\uni{{{:04X}}}{{{sign}}}", u32::from(sign))),
            },
        }
    }
    escaped
}

/// Whether pdfTeX knows a sign by itself: letters of Latin scripts, quotes, and what stands on keyboards.
fn in_fonts(sign: char) -> bool {
    matches!(sign, ' '..='ž' | '‘' | '’' | '‚' | '“' | '”' | '„' | '•' | '€')
        && !matches!(sign, 'Ħ' | 'ħ' | 'ĸ' | 'Ŀ' | 'ŀ' | 'ŉ' | 'Ŧ' | 'ŧ')
}

/// What a Greek letter is called, unless it looks like a Latin one.
fn greek(sign: char) -> Option<String> {
    let name = |number: u32| GREEK.get(number as usize - 'α' as usize).map(|name| name.to_string());
    match sign {
        'α'..='ω' => name(sign.into()),
        'Γ' | 'Δ' | 'Θ' | 'Λ' | 'Ξ' | 'Π' | 'Σ' | 'Υ' | 'Φ' | 'Ψ' | 'Ω' => {
            let small = name(u32::from(sign) + 32)?;
            Some(small[..1].to_uppercase() + &small[1..])
        }
        _ => None,
    }
}
