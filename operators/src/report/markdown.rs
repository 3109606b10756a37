//! A document as Markdown: tables of GitHub's kind, figures as files beside it.

use super::document::{Block, Cell, Document, Finding, Level, Mark, Table};

/// The file of a figure, counted from 1.
pub fn figure_file(number: usize) -> String {
    format!("figure-{number}.svg")
}

/// The document.
pub fn page(document: &Document) -> String {
    let mut text = format!("# {}\n\n", escape(&document.title));
    for words in &document.about {
        text.push_str(&format!("{}\n\n", line(words)));
    }
    text.push_str(&findings(&document.findings));
    let (mut tables, mut figures) = (0, 0);
    for section in &document.sections {
        text.push_str(&format!("## {}\n\n", escape(&section.title)));
        for block in &section.blocks {
            match block {
                Block::Text(words) => text.push_str(&format!("{}\n\n", line(words))),
                Block::Findings(found) => text.push_str(&findings(found)),
                Block::Table(block) => {
                    tables += 1;
                    text.push_str(&format!(
                        "**Table {tables}.** {}{}\n\n{}\n",
                        escape(&block.caption),
                        from(&block.sources),
                        table(block)
                    ));
                }
                Block::Figure(figure) => {
                    figures += 1;
                    text.push_str(&format!(
                        "![{}]({})\n\n**Figure {figures}.** {}{}\n\n",
                        escape(&figure.alt),
                        figure_file(figures),
                        escape(&figure.caption),
                        from(&figure.sources)
                    ));
                }
                Block::Graph(graph) => {
                    text.push_str(&format!(
                        "```mermaid\n{}```\n\n{}\n\n",
                        graph.mermaid(),
                        line(&graph.caption)
                    ));
                }
            }
        }
    }
    if !document.sources.is_empty() {
        text.push_str("## Sources\n\n");
        for source in &document.sources {
            let made = source.made.as_ref().map(|made| {
                format!(
                    ", stage {} ({}), key {}, run {}",
                    escape(&made.stage),
                    escape(&made.operator),
                    escape(&made.key),
                    escape(&made.run)
                )
            });
            let digest = match source.digest.is_empty() {
                true => String::new(),
                false => format!(": artifact {}", escape(&source.digest)),
            };
            text.push_str(&format!(
                "- {}{digest}{}\n",
                line(&source.input),
                made.unwrap_or_default()
            ));
        }
    }
    text
}

/// A table of GitHub's kind.
pub fn table(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = table.columns.iter().map(|column| escape(&column.name));
    let rule = table
        .columns
        .iter()
        .map(|column| if column.number { "---:" } else { "---" }.to_string());
    let rows = table.rows.iter().map(|row| line(row.cells.iter().map(cell).collect()));
    format!(
        "{}{}{}",
        line(head.collect()),
        line(rule.collect()),
        rows.collect::<String>()
    )
}

fn cell(cell: &Cell) -> String {
    let text = escape(&cell.text);
    let mut inside = match cell.mark {
        Some(Mark::Best) => format!("**{text}**"),
        Some(Mark::Second) => format!("<u>{text}</u>"),
        None => text,
    };
    for more in [&cell.after, &cell.below].into_iter().filter(|more| !more.is_empty()) {
        inside.push_str(&format!(" {}", escape(more)));
    }
    inside
}

fn findings(findings: &[Finding]) -> String {
    let item = |finding: &Finding| {
        let word = match finding.level {
            Level::Plain | Level::Bad => "",
            Level::Warning => "**Careful:** ",
        };
        format!("- {word}{}\n", line(&finding.text))
    };
    match findings.is_empty() {
        true => String::new(),
        false => findings.iter().map(item).collect::<String>() + "\n",
    }
}

fn from(sources: &[String]) -> String {
    match sources.is_empty() {
        true => String::new(),
        false => format!(
            " *From {}.*",
            sources.iter().map(|input| escape(input)).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Text at the beginning of a line, where further signs would begin a list, a quotation or code.
fn line(text: &str) -> String {
    let text = text.trim_start();
    let rest = text.trim_start_matches(|sign: char| sign.is_ascii_digit());
    let number = &text[..text.len() - rest.len()];
    let begins = match number {
        "" => rest.starts_with(['+', '-', '>']),
        _ => rest.starts_with(['.', ')']),
    };
    match begins {
        true => format!("{number}\\{}", escape(rest)),
        false => escape(text),
    }
}

/// Text so that Markdown takes no sign of it for its own. A line break would end a table.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut before = ' ';
    let mut signs = text.chars().peekable();
    while let Some(sign) = signs.next() {
        match sign {
            // Within a word it is a letter.
            '_' if before.is_alphanumeric() && signs.peek().is_some_and(|next| next.is_alphanumeric()) => {
                escaped.push(sign);
            }
            '_' | '~' | '#' | '|' | '*' | '<' | '[' | ']' | '\\' | '`' | '$' => escaped.extend(['\\', sign]),
            '&' => escaped.push_str("&amp;"),
            '\n' | '\r' => escaped.push(' '),
            _ => escaped.push(sign),
        }
        before = sign;
    }
    escaped
}
