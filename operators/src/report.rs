//! Reports: a document of findings, tables, figures and graphs, and how it is typeset.
//!
//! Sections are made from tables by what their columns say they are ([`kinds`]); nothing in here knows where a table comes
//! from or what it cost. Whoever knows that (the program, from the records of a run) adds it to the [`Document`].

pub mod comparisons;
pub mod curves;
pub mod document;
pub mod figure;
pub mod graph;
pub mod html;
pub mod kinds;
pub mod latex;
pub mod leakage;
pub mod markdown;
pub mod marks;
pub mod numbers;
pub mod order;
pub mod pgfplots;
pub mod plain;
pub mod published;
pub mod results;
pub mod scaling;
pub mod scores;
pub mod semantic_ids;
pub mod svg;

pub use document::Document;

use std::path::Path;

use sluice_engine::{Error, Result};

/// The layout of a folder with a report.
pub const LAYOUT: &str = "report";
/// The document in that folder, for programs.
pub const DOCUMENT: &str = "document.json";
/// The page in that folder.
pub const PAGE: &str = "report.html";

/// Writes a document into a folder: `report.html`, `report.md` with its figures as SVG files, `report.tex`, and the document
/// itself as JSON.
pub fn write(document: &Document, folder: &Path) -> Result<()> {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|error| Error::io("write", &path, &error))
    };
    file(PAGE, &html::page(document)?)?;
    file("report.md", &markdown::page(document))?;
    for (number, figure) in (1..).zip(document.figures()) {
        file(&markdown::figure_file(number), &svg::standalone(figure)?)?;
    }
    file("report.tex", &latex::page(document))?;
    let json = serde_json::to_string_pretty(document).map_err(|error| Error::internal(error.to_string()))?;
    file(DOCUMENT, &json)
}

/// Reads the document of a folder that [`write`] made.
pub fn read(folder: &Path) -> Result<Document> {
    let path = folder.join(DOCUMENT);
    let text = std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, &error))?;
    serde_json::from_str(&text).map_err(|error| {
        Error::data(
            "damaged-artifact",
            format!("\"{}\" is no document: {error}", path.display()),
        )
        .hint("run the stage again")
    })
}

#[cfg(test)]
mod tests;
