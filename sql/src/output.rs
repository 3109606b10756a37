//! Rows as files and as text: CSV, JSON, Parquet, Arrow; aligned tables, Markdown, LaTeX.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::FileWriter;
use arrow::json::WriterBuilder as JsonBuilder;
use arrow::json::writer::{EncoderOptions, JsonArray, LineDelimited, make_encoder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use sluice_engine::store::type_name;
use sluice_engine::{Error, Kind, Result};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns, for people.
    Table,
    /// Comma-separated values with a header; lists as JSON.
    Csv,
    /// One JSON array of objects; null is written.
    Json,
    /// A JSON object a line; null is written.
    Ndjson,
    /// A Parquet file.
    Parquet,
    /// An Arrow IPC file (Feather).
    Arrow,
    /// A Markdown table.
    Markdown,
    /// A LaTeX `tabular` with the rules of `booktabs`.
    Latex,
}

impl Format {
    /// Whether it is bytes that no terminal should see.
    pub fn is_binary(self) -> bool {
        matches!(self, Format::Parquet | Format::Arrow)
    }

    /// Whether the rows of one statement are all that a file of it holds.
    pub fn is_whole(self) -> bool {
        self.is_binary() || self == Format::Json
    }

    /// Whether columns are told apart by their names alone.
    fn is_named(self) -> bool {
        self.is_whole() || self == Format::Ndjson
    }

    /// The format that the ending of a file name tells.
    pub fn of_file(name: &str) -> Option<Format> {
        let (_, ending) = name.rsplit_once('.')?;
        Some(match ending {
            "txt" => Format::Table,
            "csv" => Format::Csv,
            "json" => Format::Json,
            "ndjson" | "jsonl" => Format::Ndjson,
            "parquet" => Format::Parquet,
            "arrow" | "feather" => Format::Arrow,
            "md" => Format::Markdown,
            "tex" => Format::Latex,
            _ => return None,
        })
    }
}

/// How much of a result a table for people shows.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    /// Most rows; the number of those left out is told.
    pub rows: usize,
    /// Most characters of a cell.
    pub cell: usize,
}

impl Show {
    /// Everything.
    pub const ALL: Show = Show {
        rows: usize::MAX,
        cell: usize::MAX,
    };
}

/// Writes rows; returns their number. Formats for machines are written as rows come, in little memory; files have texts in
/// their plain type, which every reader knows.
pub fn write(
    schema: &SchemaRef,
    rows: impl Iterator<Item = Result<RecordBatch>>,
    format: Format,
    show: Show,
    out: &mut dyn Write,
) -> Result<u64> {
    if format.is_named() {
        names_differ(schema)?;
    }
    if !format.is_binary() {
        return written(schema, rows, format, show, out);
    }
    let fields = schema.fields().iter().map(|field| {
        let plain = match field.data_type() {
            DataType::Utf8View => DataType::Utf8,
            DataType::BinaryView => DataType::Binary,
            other => other.clone(),
        };
        field.as_ref().clone().with_data_type(plain)
    });
    let plain: SchemaRef = Arc::new(Schema::new_with_metadata(
        fields.collect::<Vec<_>>(),
        schema.metadata().clone(),
    ));
    let to_plain = |batch: RecordBatch| {
        let columns = batch.columns().iter().zip(plain.fields());
        let columns = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()));
        Ok(RecordBatch::try_new(
            plain.clone(),
            columns.collect::<Result<Vec<_>, _>>()?,
        )?)
    };
    written(&plain, rows.map(|batch| batch.and_then(to_plain)), format, show, out)
}

/// Readers of most formats take one of two columns of a name, or neither.
fn names_differ(schema: &Schema) -> Result<()> {
    let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
    let twice = (1..names.len()).find(|at| names[..*at].contains(&names[*at]));
    twice.map_or(Ok(()), |at| {
        let message = format!("two columns are called \"{}\"", names[at]);
        Err(Error::user("duplicate-column", message).hint("give one a name: EXPRESSION AS name"))
    })
}

fn written(
    schema: &SchemaRef,
    rows: impl Iterator<Item = Result<RecordBatch>>,
    format: Format,
    show: Show,
    out: &mut dyn Write,
) -> Result<u64> {
    match format {
        Format::Table | Format::Markdown | Format::Latex => text(schema, rows, format, show, out),
        Format::Csv => csv(schema, rows, out),
        Format::Json => {
            let builder = JsonBuilder::new().with_explicit_nulls(true);
            let mut writer = builder.build::<_, JsonArray>(out);
            let count = each(rows, |batch| Ok(writer.write(batch)?))?;
            writer.finish()?;
            writer.into_inner().write_all(b"\n").map_err(lost)?;
            Ok(count)
        }
        Format::Ndjson => {
            let builder = JsonBuilder::new().with_explicit_nulls(true);
            let mut writer = builder.build::<_, LineDelimited>(out);
            let count = each(rows, |batch| Ok(writer.write(batch)?))?;
            writer.finish()?;
            Ok(count)
        }
        Format::Arrow => {
            let mut writer = FileWriter::try_new(out, schema)?;
            let count = each(rows, |batch| Ok(writer.write(batch)?))?;
            writer.finish()?;
            Ok(count)
        }
        Format::Parquet => {
            let level = ZstdLevel::try_new(1).map_err(|error| Error::internal(error.to_string()))?;
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(level))
                .build();
            // The writer wants to own what it writes to, and to send it along.
            let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?;
            let mut written = 0;
            let count = each(rows, |batch| {
                writer.write(batch)?;
                let buffer = writer.inner_mut();
                written += buffer.len();
                out.write_all(buffer).map_err(lost)?;
                buffer.clear();
                Ok(())
            })?;
            let rest = writer.into_inner()?;
            out.write_all(&rest).map_err(lost)?;
            Ok(count)
        }
    }
}

fn each(
    rows: impl Iterator<Item = Result<RecordBatch>>,
    mut take: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<u64> {
    let mut count = 0;
    for batch in rows {
        let batch = batch?;
        count += batch.num_rows() as u64;
        take(&batch)?;
    }
    Ok(count)
}

/// CSV has no lists, so they are written as JSON.
fn csv(schema: &SchemaRef, rows: impl Iterator<Item = Result<RecordBatch>>, out: &mut dyn Write) -> Result<u64> {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| match field.data_type().is_nested() {
            true => Field::new(field.name(), DataType::Utf8, field.is_nullable()),
            false => field.as_ref().clone(),
        })
        .collect();
    let flat = Arc::new(Schema::new(fields));
    let mut writer = WriterBuilder::new().with_header(true).build(out);
    // The header is written with the first batch, so an empty result still has one.
    writer.write(&RecordBatch::new_empty(flat.clone()))?;
    each(rows, |batch| {
        let columns = batch.columns().iter().map(flattened).collect::<Result<Vec<_>>>()?;
        Ok(writer.write(&RecordBatch::try_new(flat.clone(), columns)?)?)
    })
}

fn flattened(column: &ArrayRef) -> Result<ArrayRef> {
    if !column.data_type().is_nested() {
        return Ok(column.clone());
    }
    let field = Arc::new(Field::new("", column.data_type().clone(), true));
    let options = EncoderOptions::default().with_explicit_nulls(true);
    if let Ok(mut encoder) = make_encoder(&field, column.as_ref(), &options) {
        let mut cell = |row: usize| {
            let mut json = Vec::new();
            encoder.encode(row, &mut json);
            String::from_utf8_lossy(&json).into_owned()
        };
        let texts: StringArray = (0..column.len())
            .map(|row| column.is_valid(row).then(|| cell(row)))
            .collect();
        return Ok(Arc::new(texts));
    }
    // Of what JSON does not have, such as maps of numbers.
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let cell = |row: usize| column.is_valid(row).then(|| formatter.value(row).to_string());
    let texts: StringArray = (0..column.len()).map(cell).collect();
    Ok(Arc::new(texts))
}

/// Rows for a page: names and types of the columns, and cells as text.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Grid {
    /// The columns.
    pub columns: Vec<GridColumn>,
    /// The rows; `None` is null.
    pub rows: Vec<Vec<Option<String>>>,
    /// Whether there are more rows than these.
    pub more: bool,
}

/// A column of a [`Grid`].
#[derive(Clone, Debug, Serialize)]
pub struct GridColumn {
    /// Its name.
    pub name: String,
    /// Its type, as artifacts describe it.
    pub kind: String,
    /// Whether it holds numbers.
    pub numeric: bool,
}

/// The first `show.rows` rows, each cell cut to `show.cell` characters.
///
/// # Errors
///
/// The rows cannot be had.
pub fn grid(schema: &SchemaRef, rows: impl Iterator<Item = Result<RecordBatch>>, show: Show) -> Result<Grid> {
    let column = |field: &Arc<Field>| GridColumn {
        name: field.name().clone(),
        kind: type_name(field.data_type()),
        numeric: field.data_type().is_numeric(),
    };
    let mut grid = Grid {
        columns: schema.fields().iter().map(column).collect(),
        ..Grid::default()
    };
    for batch in rows {
        let batch = batch?;
        let take = batch.num_rows().min(show.rows - grid.rows.len());
        grid.more = take < batch.num_rows();
        let batch = batch.slice(0, take);
        for (row, cells) in cells(&batch, Some(show.cell), true)?.into_iter().enumerate() {
            let null = |(column, cell)| (!batch.column(column).is_null(row)).then_some(cell);
            grid.rows.push(cells.into_iter().enumerate().map(null).collect());
        }
        if grid.more {
            break;
        }
    }
    Ok(grid)
}

/// A table that is laid out as a whole, so its rows are held.
fn text(
    schema: &SchemaRef,
    rows: impl Iterator<Item = Result<RecordBatch>>,
    format: Format,
    show: Show,
    out: &mut dyn Write,
) -> Result<u64> {
    let show = if format == Format::Table { show } else { Show::ALL };
    let mut cells: Vec<Vec<String>> = vec![schema.fields().iter().map(|field| field.name().clone()).collect()];
    let numeric: Vec<bool> = schema
        .fields()
        .iter()
        .map(|field| field.data_type().is_numeric())
        .collect();
    let count = each(rows, |batch| {
        let take = batch
            .num_rows()
            .min((show.rows.saturating_add(1)).saturating_sub(cells.len()));
        let width = (!is_plan(schema)).then_some(show.cell);
        cells.extend(rendered(&batch.slice(0, take), width)?);
        Ok(())
    })?;
    let shown = (cells.len() - 1) as u64;
    let text = match format {
        // Plans are trees of lines.
        Format::Table if is_plan(schema) => {
            let plan = |row: &Vec<String>| format!("{}:\n{}\n", row[0], row[1]);
            cells[1..].iter().map(plan).collect()
        }
        Format::Markdown => markdown(&cells, &numeric),
        Format::Latex => latex(&cells, &numeric),
        _ => aligned(&cells, &numeric),
    };
    out.write_all(text.as_bytes()).map_err(lost)?;
    if shown < count {
        let more = format!(
            "… {} more rows: --all shows them, --format csv writes them\n",
            count - shown
        );
        out.write_all(more.as_bytes()).map_err(lost)?;
    }
    Ok(count)
}

/// Whether it is what EXPLAIN gives.
fn is_plan(schema: &SchemaRef) -> bool {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    names == ["plan_type", "plan"]
}

/// The cells of a batch, each one line of at most `width` characters, or as it is. Numbers are written as they are stored.
fn rendered(batch: &RecordBatch, width: Option<usize>) -> Result<Vec<Vec<String>>> {
    cells(batch, width, false)
}

/// The same; `lines` are kept where the cell is shown in a box of its own.
fn cells(batch: &RecordBatch, width: Option<usize>, lines: bool) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default().with_null("");
    let columns = batch.columns().iter();
    let formatters = columns
        .map(|column| ArrayFormatter::try_new(column, &options))
        .collect::<Result<Vec<_>, _>>()?;
    let cell = |row: usize, formatter: &ArrayFormatter| {
        let text = formatter.value(row).try_to_string()?;
        let Some(width) = width else { return Ok(text) };
        let text = if lines {
            text
        } else {
            text.replace(['\n', '\r', '\t'], " ")
        };
        Ok(match text.chars().count() > width {
            true => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
            false => text,
        })
    };
    let row = |row: usize| {
        formatters
            .iter()
            .map(|formatter| cell(row, formatter))
            .collect::<Result<Vec<_>>>()
    };
    (0..batch.num_rows()).map(row).collect()
}

fn widths(cells: &[Vec<String>]) -> Vec<usize> {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    (0..columns).map(width).collect()
}

fn padded(row: &[String], widths: &[usize], numeric: &[bool], between: &str) -> String {
    let cell = |column: usize| {
        let space = " ".repeat(widths[column].saturating_sub(row[column].chars().count()));
        match numeric[column] {
            true => format!("{space}{}", row[column]),
            false => format!("{}{space}", row[column]),
        }
    };
    (0..row.len()).map(cell).collect::<Vec<_>>().join(between)
}

fn aligned(cells: &[Vec<String>], numeric: &[bool]) -> String {
    let widths = widths(cells);
    let mut lines = Vec::new();
    for (number, row) in cells.iter().enumerate() {
        lines.push(padded(row, &widths, numeric, "  ").trim_end().to_string());
        if number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
            lines.push(rule.join("  "));
        }
    }
    lines.join("\n") + "\n"
}

fn markdown(cells: &[Vec<String>], numeric: &[bool]) -> String {
    let escaped: Vec<Vec<String>> = cells
        .iter()
        .map(|row| row.iter().map(|cell| cell.replace('|', "\\|")).collect())
        .collect();
    let widths: Vec<usize> = widths(&escaped).into_iter().map(|width| width.max(3)).collect();
    let mut lines = Vec::new();
    for (number, row) in escaped.iter().enumerate() {
        lines.push(format!("| {} |", padded(row, &widths, numeric, " | ")));
        if number == 0 {
            let rule = |(width, numeric): (&usize, &bool)| match numeric {
                true => format!("{}:", "-".repeat(width - 1)),
                false => "-".repeat(*width),
            };
            let rules: Vec<String> = widths.iter().zip(numeric).map(rule).collect();
            lines.push(format!("| {} |", rules.join(" | ")));
        }
    }
    lines.join("\n") + "\n"
}

fn latex(cells: &[Vec<String>], numeric: &[bool]) -> String {
    let columns: String = numeric.iter().map(|numeric| if *numeric { 'r' } else { 'l' }).collect();
    let mut text = format!("\\begin{{tabular}}{{{columns}}}\n\\toprule\n");
    for (number, row) in cells.iter().enumerate() {
        let row: Vec<String> = row.iter().map(|cell| escaped_latex(cell)).collect();
        let row = row.join(" & ");
        // What ended the line before would take these for its own.
        let apart = if row.trim_start().starts_with(['[', '*']) {
            "{}"
        } else {
            ""
        };
        text.push_str(&format!("{apart}{row} \\\\\n"));
        if number == 0 {
            text.push_str("\\midrule\n");
        }
    }
    text + "\\bottomrule\n\\end{tabular}\n"
}

fn escaped_latex(cell: &str) -> String {
    let mut text = String::new();
    for letter in cell.chars() {
        match letter {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => text.extend(['\\', letter]),
            '\\' => text.push_str("\\textbackslash{}"),
            '~' => text.push_str("\\textasciitilde{}"),
            '^' => text.push_str("\\textasciicircum{}"),
            '<' => text.push_str("\\textless{}"),
            '>' => text.push_str("\\textgreater{}"),
            '|' => text.push_str("\\textbar{}"),
            // \textquotedbl is no command in the encoding that LaTeX starts with.
            '"' => text.push_str("\\char34{}"),
            '…' => text.push_str("\\dots{}"),
            other => text.push(other),
        }
    }
    text
}

/// An output that cannot be written; a reader that went away is told by its code.
fn lost(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Error::new(Kind::Device, "broken-pipe", "nobody reads the output"),
        _ => Error::new(
            Kind::Device,
            "cannot-write",
            format!("cannot write the output: {error}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, ListBuilder, StringBuilder};
    use sluice_engine::text::parse;

    fn written(format: Format, show: Show) -> String {
        let batch = parse(
            "item:str | n:i64 | share:f64 | codes:[u16;2]
             a&b | 12 | 0.25 | 1,2
             null | 7 | null | 3,4",
        );
        let batch = batch.unwrap();
        let mut out = Vec::new();
        write(&batch.schema(), [Ok(batch)].into_iter(), format, show, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_formats_hold_what_is_there() {
        assert_eq!(
            written(Format::Table, Show::ALL),
            "item   n  share  codes\n────  ──  ─────  ──────\na&b   12   0.25  [1, 2]\n       7         [3, 4]\n"
        );
        assert_eq!(
            written(Format::Csv, Show::ALL),
            "item,n,share,codes\na&b,12,0.25,\"[1,2]\"\n,7,,\"[3,4]\"\n"
        );
        assert_eq!(
            written(Format::Markdown, Show::ALL),
            "| item |   n | share | codes  |\n| ---- | --: | ----: | ------ |\n| a&b  |  12 |  0.25 | [1, 2] |\n|      |   7 |       | [3, 4] |\n"
        );
        let latex = written(Format::Latex, Show::ALL);
        assert!(latex.contains("a\\&b & 12 & 0.25 & [1, 2] \\\\"), "{latex}");
        assert_eq!(
            written(Format::Ndjson, Show::ALL),
            "{\"item\":\"a&b\",\"n\":12,\"share\":0.25,\"codes\":[1,2]}\n{\"item\":null,\"n\":7,\"share\":null,\"codes\":[3,4]}\n"
        );
        let one = written(Format::Table, Show { rows: 1, cell: 4 });
        assert!(one.contains("[1,…") && one.contains("… 1 more rows"), "{one}");
    }

    fn written_of(batch: RecordBatch, format: Format) -> Result<String> {
        let mut out = Vec::new();
        write(&batch.schema(), [Ok(batch)].into_iter(), format, Show::ALL, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn lists_in_csv_are_json() {
        let mut texts = ListBuilder::new(StringBuilder::new());
        texts.append_value([Some("a, b"), Some("c\"d"), None, Some("")]);
        texts.append_null();
        let texts: ArrayRef = Arc::new(texts.finish());
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let batch = RecordBatch::try_from_iter([("texts", texts), ("n", numbers)]).unwrap();
        assert_eq!(
            written_of(batch, Format::Csv).unwrap(),
            "texts,n\n\"[\"\"a, b\"\",\"\"c\\\"\"d\"\",null,\"\"\"\"]\",1\n,2\n"
        );
    }

    #[test]
    fn latex_takes_no_sign_for_its_own() {
        let batch = parse("[a] | b\n [x] | <y>\n *z | \"").unwrap();
        assert_eq!(
            written_of(batch, Format::Latex).unwrap(),
            "\\begin{tabular}{ll}\n\\toprule\n{}[a] & b \\\\\n\\midrule\n{}[x] & \\textless{}y\\textgreater{} \\\\\n\
             {}*z & \\char34{} \\\\\n\\bottomrule\n\\end{tabular}\n"
        );
    }

    #[test]
    fn columns_of_one_name_go_where_names_do_not_matter() {
        let column: ArrayRef = Arc::new(StringArray::from(vec!["r1"]));
        let batch = RecordBatch::try_from_iter([("run", column.clone()), ("run", column)]).unwrap();
        for format in [Format::Parquet, Format::Arrow, Format::Json, Format::Ndjson] {
            let error = written_of(batch.clone(), format).expect_err("one name");
            assert_eq!(error.message, "two columns are called \"run\"", "{format:?}");
        }
        assert_eq!(written_of(batch, Format::Csv).unwrap(), "run,run\nr1,r1\n");
    }

    #[test]
    fn a_grid_tells_null_from_nothing_and_that_there_is_more() {
        let batch = parse("item:str | codes:[u16;2]\n null | 1,2\n b | 3,4\n c | 5,6").unwrap();
        let show = Show { rows: 2, cell: 4 };
        let grid = grid(&batch.schema(), [Ok(batch)].into_iter(), show).unwrap();
        assert_eq!(
            grid.rows,
            [[None, Some("[1,…".into())], [Some("b".into()), Some("[3,…".into())]]
        );
        assert!(grid.more && grid.columns[1].kind == "FixedSizeList<UInt16; 2>");
    }

    #[test]
    fn an_empty_result_has_its_columns() {
        let batch = parse("item:str | n:i64").unwrap();
        for (format, wanted) in [(Format::Csv, "item,n\n"), (Format::Json, "[]\n"), (Format::Ndjson, "")] {
            let mut out = Vec::new();
            let count = write(&batch.schema(), std::iter::empty(), format, Show::ALL, &mut out).unwrap();
            assert_eq!((count, String::from_utf8(out).unwrap().as_str()), (0, wanted));
        }
    }
}
