//! What a report says, apart from how it is typeset.

use serde::{Deserialize, Serialize};

use super::figure::Figure;
use super::graph::Graph;

/// A report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Its title.
    pub title: String,
    /// Paragraphs under the title.
    pub about: Vec<String>,
    /// What a reader sees first, the gravest first.
    pub findings: Vec<Finding>,
    /// Sections in order.
    pub sections: Vec<Section>,
    /// What it was made from, in order of the inputs.
    pub sources: Vec<Source>,
}

/// How grave something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing to worry about.
    #[default]
    Plain,
    /// To be read before the figures are used.
    Warning,
    /// The figures cannot be used.
    Bad,
}

/// A sentence that says what follows from the figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// How grave it is.
    pub level: Level,
    /// The sentence.
    pub text: String,
}

/// A part of the report with a heading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// A name for links: letters, digits and `-`.
    pub id: String,
    /// Its heading.
    pub title: String,
    /// What is in it.
    pub blocks: Vec<Block>,
}

/// Something in a section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// Sentences, one a line.
    Findings(Vec<Finding>),
    /// A table.
    Table(Table),
    /// A figure.
    Figure(Figure),
    /// Stages and what they read.
    Graph(Graph),
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows.
    pub rows: Vec<Row>,
    /// The inputs that its numbers are from.
    pub sources: Vec<String>,
}

/// A column of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// Whether it holds numbers (else words).
    pub number: bool,
    /// What the heading means.
    pub about: String,
}

/// A row of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// A cell a column.
    pub cells: Vec<Cell>,
    /// The input that its numbers are from, where rows differ in that.
    pub source: Option<String>,
    /// How grave it is.
    pub level: Level,
    /// Whether it stands out: a total, or one's own among others'.
    #[serde(default)]
    pub strong: bool,
}

/// A cell of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The word or the number.
    pub text: String,
    /// Its place among the numbers of its column.
    pub mark: Option<Mark>,
    /// What belongs to the number: a standard deviation (`± 0.0012`).
    pub after: String,
    /// What is set small below it: an interval, or a share.
    pub below: String,
}

/// A place among the numbers of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// The best.
    Best,
    /// The second.
    Second,
}

/// An input of the report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The name that the report reads it by.
    pub input: String,
    /// The digest of its content, where it is known.
    pub digest: String,
    /// Who made it, where a run is known.
    pub made: Option<Made>,
}

/// Who made an input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The stage, with its port where that is not the main one.
    pub stage: String,
    /// Its operator.
    pub operator: String,
    /// Its key.
    pub key: String,
    /// The run that made it.
    pub run: String,
}

impl Finding {
    /// Nothing to worry about.
    pub fn plain(text: impl Into<String>) -> Self {
        let level = Level::Plain;
        Finding {
            level,
            text: text.into(),
        }
    }

    /// To be read before the figures are used.
    pub fn warning(text: impl Into<String>) -> Self {
        let level = Level::Warning;
        Finding {
            level,
            text: text.into(),
        }
    }

    /// The figures cannot be used.
    pub fn bad(text: impl Into<String>) -> Self {
        let level = Level::Bad;
        Finding {
            level,
            text: text.into(),
        }
    }
}

impl Section {
    /// A section.
    pub fn new(id: &str, title: &str, blocks: Vec<Block>) -> Self {
        Section {
            id: id.to_string(),
            title: title.to_string(),
            blocks,
        }
    }
}

impl Column {
    /// A column of words.
    pub fn words(name: impl Into<String>) -> Self {
        Column {
            name: name.into(),
            ..Column::default()
        }
    }

    /// A column of numbers.
    pub fn numbers(name: impl Into<String>) -> Self {
        Column {
            name: name.into(),
            number: true,
            ..Column::default()
        }
    }

    /// The same with what its heading means.
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.about = about.into();
        self
    }
}

impl Row {
    /// A row of cells.
    pub fn new(cells: Vec<Cell>) -> Self {
        Row {
            cells,
            ..Row::default()
        }
    }

    /// The same with the input that it is from.
    pub fn from(mut self, input: &str) -> Self {
        self.source = Some(input.to_string());
        self
    }

    /// The same, so that it stands out.
    pub fn strong(mut self) -> Self {
        self.strong = true;
        self
    }

    /// The same, as grave as that.
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }
}

impl Cell {
    /// A word, or a number as text.
    pub fn new(text: impl Into<String>) -> Self {
        Cell {
            text: text.into(),
            ..Cell::default()
        }
    }

    /// The same with something small below it.
    pub fn below(mut self, below: impl Into<String>) -> Self {
        self.below = below.into();
        self
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::new(text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell::new(text)
    }
}

impl Table {
    /// An empty table.
    pub fn new(caption: impl Into<String>, columns: Vec<Column>) -> Self {
        Table {
            caption: caption.into(),
            columns,
            ..Table::default()
        }
    }

    /// The same with the inputs that it is from.
    pub fn from<S: Into<String>>(mut self, inputs: impl IntoIterator<Item = S>) -> Self {
        for input in inputs {
            let input = input.into();
            if !self.sources.contains(&input) {
                self.sources.push(input);
            }
        }
        self
    }
}

impl Table {
    /// The same without columns in which no row has anything.
    pub fn without_empty_columns(mut self) -> Self {
        let empty = |place: usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(place));
            cells.clone().count() == self.rows.len() && cells.clone().all(|cell| cell.text.is_empty())
        };
        let keep: Vec<bool> = (0..self.columns.len()).map(|place| !empty(place)).collect();
        let mut place = keep.iter();
        self.columns.retain(|_| *place.next().unwrap_or(&true));
        for row in &mut self.rows {
            let mut place = keep.iter();
            row.cells.retain(|_| *place.next().unwrap_or(&true));
        }
        self
    }
}

impl Document {
    /// All figures in order.
    pub fn figures(&self) -> impl Iterator<Item = &Figure> {
        let blocks = self.sections.iter().flat_map(|section| &section.blocks);
        blocks.filter_map(|block| match block {
            Block::Figure(figure) => Some(figure),
            _ => None,
        })
    }

    /// Where the numbers of an input are from, in a line for each fact that is known.
    pub fn origin(&self, input: &str) -> String {
        let Some(source) = self.sources.iter().find(|source| source.input == input) else {
            return format!("input {input}");
        };
        let mut lines = vec![format!("input {input}")];
        if let Some(made) = &source.made {
            lines.push(format!("stage {} ({})", made.stage, made.operator));
            lines.push(format!("key {}", made.key));
            lines.push(format!("run {}", made.run));
        }
        if !source.digest.is_empty() {
            lines.push(format!("artifact {}", source.digest));
        }
        lines.join("\n")
    }
}
