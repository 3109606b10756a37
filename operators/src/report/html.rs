//! A document as one page: no script, no network, nothing beside it.

use std::fmt::Write;

use sluice_engine::Result;

use super::document::{Block, Cell, Document, Finding, Level, Mark, Row, Section, Source, Table};
use super::figure::Figure;
use super::{graph, svg};

/// Words of a cell beyond so many characters need some width.
const LONG: usize = 24;

/// Text so that HTML takes no sign of it for its own; also in attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// The page.
pub fn page(document: &Document) -> Result<String> {
    let mut page = Page {
        document,
        text: String::new(),
        tables: 0,
        figures: 0,
    };
    let title = escape(&document.title);
    page.put(format_args!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
        <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
        <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
        <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n:root{{color-scheme:light dark;{}}}\n\
        @media(prefers-color-scheme:dark){{:root{{{}}}}}\n{}{}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n",
        svg::LIGHT,
        svg::DARK,
        include_str!("page.css"),
        if page.has_graph() { graph::style() } else { String::new() },
    ));
    for line in &document.about {
        page.put(format_args!("<p class=\"about\">{}</p>\n", escape(line)));
    }
    page.contents();
    page.put(format_args!("</header>\n<main>\n"));
    if !document.findings.is_empty() {
        page.put(format_args!(
            "<section id=\"findings\" class=\"first\">\n<h2>In short</h2>\n"
        ));
        page.findings(&document.findings);
        page.put(format_args!("</section>\n"));
    }
    for section in &document.sections {
        page.section(section)?;
    }
    page.sources();
    page.put(format_args!("</main>\n</body>\n</html>\n"));
    Ok(page.text)
}

struct Page<'a> {
    document: &'a Document,
    text: String,
    tables: usize,
    figures: usize,
}

impl Page<'_> {
    fn put(&mut self, words: std::fmt::Arguments) {
        // A String takes everything.
        let _ = self.text.write_fmt(words);
    }

    fn has_graph(&self) -> bool {
        let mut blocks = self.document.sections.iter().flat_map(|section| &section.blocks);
        blocks.any(|block| matches!(block, Block::Graph(_)))
    }

    fn contents(&mut self) {
        self.put(format_args!("<nav aria-label=\"sections\">\n"));
        for section in &self.document.sections {
            self.put(format_args!(
                "<a href=\"#{}\">{}</a>\n",
                escape(&section.id),
                escape(&section.title)
            ));
        }
        if !self.document.sources.is_empty() {
            self.put(format_args!("<a href=\"#sources\">Sources</a>\n"));
        }
        self.put(format_args!("</nav>\n"));
    }

    fn findings(&mut self, findings: &[Finding]) {
        self.put(format_args!("<ul class=\"findings\">\n"));
        for finding in findings {
            let (class, word) = match finding.level {
                Level::Plain => ("plain", ""),
                Level::Warning => ("warning", "<b>Careful:</b> "),
                Level::Bad => ("bad", ""),
            };
            self.put(format_args!(
                "<li class=\"{class}\">{word}{}</li>\n",
                escape(&finding.text)
            ));
        }
        self.put(format_args!("</ul>\n"));
    }

    fn section(&mut self, section: &Section) -> Result<()> {
        let (id, title) = (escape(&section.id), escape(&section.title));
        self.put(format_args!("<section id=\"{id}\">\n<h2>{title}</h2>\n"));
        for block in &section.blocks {
            match block {
                Block::Text(text) => self.put(format_args!("<p>{}</p>\n", escape(text))),
                Block::Findings(findings) => self.findings(findings),
                Block::Table(table) => self.table(table),
                Block::Figure(figure) => self.figure(figure)?,
                Block::Graph(graph) => self.put(format_args!(
                    "<figure>\n<div class=\"graph scroll\" tabindex=\"0\">\n{}</div>\n<figcaption>{}</figcaption>\n</figure>\n",
                    graph.svg(),
                    escape(&graph.caption)
                )),
            }
        }
        self.put(format_args!("</section>\n"));
        Ok(())
    }

    /// Where numbers are from, for the tooltip of what shows them.
    fn origin<'b>(&self, sources: impl IntoIterator<Item = &'b String>) -> String {
        let origins = sources.into_iter().map(|input| self.document.origin(input));
        escape(&origins.collect::<Vec<_>>().join("\n\n"))
    }

    /// Links to where numbers are from, for a caption.
    fn links(&self, sources: &[String]) -> String {
        let known = |input: &String| self.document.sources.iter().position(|source| source.input == *input);
        let link = |input: &String| match known(input) {
            Some(place) => format!(
                "<a href=\"#source-{}\" title=\"{}\">{}</a>",
                place + 1,
                self.origin([input]),
                escape(input)
            ),
            None => escape(input),
        };
        match sources {
            [] => String::new(),
            some => format!(
                " <span class=\"from\">From {}.</span>",
                some.iter().map(link).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    fn table(&mut self, table: &Table) {
        self.tables += 1;
        let number = self.tables;
        let caption = escape(&table.caption);
        let links = self.links(&table.sources);
        self.put(format_args!(
            "<figure class=\"table\">\n<figcaption id=\"table-{number}\"><b>Table {number}.</b> {caption}{links}</figcaption>\n\
            <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"table-{number}\">\n<table>\n<thead><tr>"
        ));
        for column in &table.columns {
            let class = if column.number { " class=\"n\"" } else { "" };
            let title = match column.about.is_empty() {
                true => String::new(),
                false => format!(" title=\"{}\"", escape(&column.about)),
            };
            self.put(format_args!(
                "<th scope=\"col\"{class}{title}>{}</th>",
                escape(&column.name)
            ));
        }
        self.put(format_args!("</tr></thead>\n<tbody>\n"));
        for row in &table.rows {
            self.row(table, row);
        }
        self.put(format_args!("</tbody>\n</table>\n</div>\n</figure>\n"));
    }

    fn row(&mut self, table: &Table, row: &Row) {
        let class = match (row.level, row.strong) {
            (Level::Bad, _) => " class=\"bad\"",
            (Level::Warning, _) => " class=\"warning\"",
            (Level::Plain, true) => " class=\"strong\"",
            (Level::Plain, false) => "",
        };
        let title = match &row.source {
            Some(input) => self.origin([input]),
            None => self.origin(&table.sources),
        };
        let title = if title.is_empty() {
            title
        } else {
            format!(" title=\"{title}\"")
        };
        self.put(format_args!("<tr{class}{title}>"));
        for (place, cell) in row.cells.iter().enumerate() {
            let number = table.columns.get(place).is_some_and(|column| column.number);
            match (place, number) {
                (0, false) => self.put(format_args!("<th scope=\"row\">{}</th>", inside(cell))),
                (_, true) => self.put(format_args!("<td class=\"n\">{}</td>", inside(cell))),
                _ if cell.text.chars().count() > LONG => {
                    self.put(format_args!("<td class=\"long\">{}</td>", inside(cell)))
                }
                _ => self.put(format_args!("<td>{}</td>", inside(cell))),
            }
        }
        self.put(format_args!("</tr>\n"));
    }

    fn figure(&mut self, figure: &Figure) -> Result<()> {
        self.figures += 1;
        let number = self.figures;
        let drawing = svg::inline(figure, &format!("figure-{number}"))?;
        let (caption, links) = (escape(&figure.caption), self.links(&figure.sources));
        self.put(format_args!(
            "<figure>\n<div class=\"plot scroll\" tabindex=\"0\">\n{drawing}\n</div>\n\
            <figcaption><b>Figure {number}.</b> {caption}{links}</figcaption>\n</figure>\n"
        ));
        Ok(())
    }

    fn sources(&mut self) {
        let sources = &self.document.sources;
        if sources.is_empty() {
            return;
        }
        let known = sources.iter().any(|source| source.made.is_some());
        self.put(format_args!(
            "<section id=\"sources\">\n<h2>Sources</h2>\n<p>What the numbers are from. Digests and keys say exactly which \
            content; <code>sluice show STAGE --manifest</code> says how it was made.</p>\n\
            <div class=\"scroll\" tabindex=\"0\">\n<table class=\"sources\">\n<thead><tr><th>#</th><th>input</th>{}<th>artifact</th></tr></thead>\n<tbody>\n",
            if known { "<th>stage</th><th>operator</th><th>key</th><th>made in run</th>" } else { "" }
        ));
        for (number, source) in (1..).zip(sources) {
            self.source(number, source, known);
        }
        self.put(format_args!("</tbody>\n</table>\n</div>\n</section>\n"));
    }

    fn source(&mut self, number: usize, source: &Source, known: bool) {
        let long = |text: &str| {
            let start: String = text.chars().take(12).collect();
            format!("<code title=\"{}\">{}</code>", escape(text), escape(&start))
        };
        let made = source.made.clone().unwrap_or_default();
        let made = match known {
            true => format!(
                "<td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
                escape(&made.stage),
                escape(&made.operator),
                long(&made.key),
                escape(&made.run)
            ),
            false => String::new(),
        };
        self.put(format_args!(
            "<tr id=\"source-{number}\"><td>{number}</td><th scope=\"row\">{}</th>{made}<td>{}</td></tr>\n",
            escape(&source.input),
            long(&source.digest)
        ));
    }
}

/// A cell without its element.
fn inside(cell: &Cell) -> String {
    let text = escape(&cell.text);
    let mut inside = match cell.mark {
        Some(Mark::Best) => format!("<b class=\"best\">{text}</b>"),
        Some(Mark::Second) => format!("<u>{text}</u>"),
        None => text,
    };
    if !cell.after.is_empty() {
        inside.push_str(&format!(" <small>{}</small>", escape(&cell.after)));
    }
    if !cell.below.is_empty() {
        inside.push_str(&format!("<span class=\"below\">{}</span>", escape(&cell.below)));
    }
    inside
}
