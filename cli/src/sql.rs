//! `sluice sql`: statements over the store, from the command line, a file, the standard input or a shell.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sluice_engine::operator::Cancel;
use sluice_engine::store::Store;
use sluice_engine::{Error, Result};
use sluice_sql::output::{self, Format, Show};
use sluice_sql::{Limits, Rows, Session, Source, Statement, queries};

use crate::arguments::{self, SqlFormat};
use crate::check::data_root;
use crate::display::{count, say};
use crate::shell;
use crate::signals::cancel_on_ctrl_c;

/// Rows and characters of a cell that a table shows unless all are asked for.
pub const SHOWN: Show = Show { rows: 1000, cell: 80 };

/// `sluice sql`.
pub fn sql(command: &arguments::Sql) -> Result<(), Vec<Error>> {
    if command.query.as_deref() == Some("") {
        for query in queries::all() {
            say!("{}\n    {}", query.usage(), query.about);
        }
        return Ok(());
    }
    let one = |error: Error| vec![error];
    let (session, cancel) = open(&command.look, command.allow_files)?;
    let query = command.query.as_deref().map(queries::find).transpose().map_err(one)?;
    let text = match &query {
        Some(query) => Ok(Some(query.text.to_string())),
        None => text(command),
    };
    let Some(text) = text.map_err(one)? else {
        return shell::shell(session, &cancel, command.timing).map_err(one);
    };
    let params = params(&command.params).map_err(one)?;
    let statements = Statement::parse_all(&text).map_err(one)?;
    if statements.is_empty() {
        return Err(one(Error::user("empty-statement", "there is no statement to run")));
    }
    let format = format(command).map_err(one)?;
    if format.is_whole() && statements.len() > 1 {
        let message = format!(
            "{} statements do not fit into one file of this format",
            statements.len()
        );
        let error = Error::user("many-statements", message);
        return Err(one(match format {
            Format::Json => error.hint("an object a line has room for all: --format ndjson"),
            _ => error,
        }));
    }
    let show = if command.all || command.output.is_some() {
        Show::ALL
    } else {
        SHOWN
    };
    let mut file = command.output.as_deref().map(Output::create).transpose().map_err(one)?;
    // Of several statements each takes the values that it names; what none names the first one refuses.
    let unknown = |name: &str| !statements.iter().any(|statement| statement.wants(name));
    for statement in &statements {
        let started = Instant::now();
        let rows = match &query {
            Some(query) => query.run(&session, &params),
            None => {
                let mut params = params.clone();
                params.retain(|(name, _)| statement.wants(name) || unknown(name));
                session.run_with(statement, &params)
            }
        };
        let rows = rows.map_err(one)?;
        let written = match &mut file {
            Some(file) => file.write(rows, format, show),
            None => print(rows, format, show),
        };
        let written = written.map_err(one)?;
        if command.timing {
            eprintln!(
                "{} rows in {:.1} ms",
                count(written),
                started.elapsed().as_secs_f64() * 1e3
            );
        }
    }
    file.map_or(Ok(()), Output::finish).map_err(one)
}

/// A session over what the flags name, and what Ctrl-C sets.
pub fn open(look: &arguments::Look, any_file: bool) -> Result<(Session, Cancel), Vec<Error>> {
    open_within(look, any_file, None)
}

/// The same; statements end after `patience` unless the flags say another time.
pub fn open_within(
    look: &arguments::Look,
    any_file: bool,
    patience: Option<Duration>,
) -> Result<(Session, Cancel), Vec<Error>> {
    let one = |error: Error| vec![error];
    let limits = Limits {
        threads: look.threads.map_or(0, usize::from),
        memory: look.memory,
        spill: None,
        timeout: look.timeout.map(Duration::from_secs_f64).or(patience),
    };
    let source = Source {
        store: Store::existing(&look.store).map_err(one)?,
        registry: sluice_operators::registry(),
        run: look.run.clone(),
        data_root: data_root(look.data.as_deref()),
        any_file,
    };
    let cancel = cancel_on_ctrl_c()?;
    let session = Session::new(&limits, &cancel).map_err(one)?;
    Ok((session.over(source).map_err(one)?, cancel))
}

/// The statements to run; `None` for a shell.
fn text(command: &arguments::Sql) -> Result<Option<String>> {
    let stdin = || {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        read.map_err(|error| Error::io("read", "the standard input".as_ref(), &error))?;
        Ok(Some(text))
    };
    match (&command.statement, &command.file) {
        (Some(statement), _) if statement == "-" => stdin(),
        (Some(statement), _) => Ok(Some(statement.clone())),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, &error))?;
            Ok(Some(text))
        }
        (None, None) if std::io::stdin().is_terminal() => Ok(None),
        (None, None) => stdin(),
    }
}

/// Values as `NAME=VALUE`.
pub fn params(given: &[String]) -> Result<Vec<(String, String)>> {
    let split = |param: &String| match param.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err(Error::user("bad-param", format!("\"{param}\" is no NAME=VALUE"))),
    };
    given.iter().map(split).collect()
}

/// The format that a flag names.
pub fn format_of(flag: SqlFormat) -> Format {
    match flag {
        SqlFormat::Table => Format::Table,
        SqlFormat::Csv => Format::Csv,
        SqlFormat::Json => Format::Json,
        SqlFormat::Ndjson => Format::Ndjson,
        SqlFormat::Parquet => Format::Parquet,
        SqlFormat::Arrow => Format::Arrow,
        SqlFormat::Markdown => Format::Markdown,
        SqlFormat::Latex => Format::Latex,
    }
}

fn format(command: &arguments::Sql) -> Result<Format> {
    let chosen = command.format.map(format_of);
    let name = command.output.as_ref().map(|path| path.to_string_lossy().to_string());
    let format = chosen.or_else(|| Format::of_file(&name?)).unwrap_or(Format::Table);
    if format.is_binary() && command.output.is_none() && std::io::stdout().is_terminal() {
        let error = Error::user("binary-output", "this format is not for a terminal");
        return Err(error.hint("write it to a file: --output FILE, or into a pipe"));
    }
    Ok(format)
}

/// A file that gets its name when it is whole: until then it is `NAME.part` beside it. What is there and is no regular file,
/// such as a pipe, is written to as it is.
pub struct Output {
    path: PathBuf,
    part: Option<PathBuf>,
    file: BufWriter<Watched<File>>,
}

impl Output {
    /// Opens it; what has its name stays until [`Output::finish`].
    pub fn create(path: &Path) -> Result<Output> {
        let failed = |error: std::io::Error| Error::io("write", path, &error);
        // /dev/stdout may lead to a file, of which others write the rest.
        let device = path.starts_with("/dev") || path.starts_with("/proc");
        // A link stays one.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let known = std::fs::metadata(&path).ok();
        let whole = !device && known.as_ref().is_none_or(std::fs::Metadata::is_file);
        if whole && known.is_some() {
            // Whether it may be written.
            OpenOptions::new().write(true).open(&path).map_err(failed)?;
        }
        let part = whole.then(|| {
            let mut name = path.clone().into_os_string();
            name.push(".part");
            PathBuf::from(name)
        });
        let file = File::create(part.as_ref().unwrap_or(&path)).map_err(failed)?;
        Ok(Output {
            path,
            part,
            file: BufWriter::with_capacity(1 << 20, Watched::over(file)),
        })
    }

    /// Writes rows, after those that were written before.
    pub fn write(&mut self, rows: Rows, format: Format, show: Show) -> Result<u64> {
        let failed = |error: &std::io::Error| Error::io("write", &self.path, error);
        write(rows, format, show, &mut self.file, failed)
    }

    /// Gives it its name.
    pub fn finish(mut self) -> Result<()> {
        let Some(part) = &self.part else { return Ok(()) };
        if let Ok(known) = std::fs::metadata(&self.path) {
            // Whoever could read it can still.
            let _ = std::fs::set_permissions(part, known.permissions());
        }
        let named = std::fs::rename(part, &self.path);
        named.map_err(|error| Error::io("write", &self.path, &error))?;
        self.part = None;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // A part of the rows is nobody's.
        let _ = self.part.take().map(std::fs::remove_file);
    }
}

/// Passes on what is written and remembers why that failed: the writers of some formats tell it in words of their own.
struct Watched<W> {
    out: W,
    failed: Option<std::io::Error>,
}

impl<W> Watched<W> {
    fn over(out: W) -> Self {
        Watched { out, failed: None }
    }

    fn watch<T>(&mut self, done: std::io::Result<T>) -> std::io::Result<T> {
        if let Err(error) = &done
            && error.kind() != ErrorKind::Interrupted
        {
            let kept = error.raw_os_error().map(std::io::Error::from_raw_os_error);
            self.failed = Some(kept.unwrap_or_else(|| error.kind().into()));
        }
        done
    }
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let done = self.out.write(bytes);
        self.watch(done)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let done = self.out.flush();
        self.watch(done)
    }
}

/// Writes all rows; a reader that went away ends them without an error.
fn write<W: Write>(
    rows: Rows,
    format: Format,
    show: Show,
    out: &mut BufWriter<Watched<W>>,
    failed: impl Fn(&std::io::Error) -> Error,
) -> Result<u64> {
    let schema = rows.schema();
    let written = output::write(&schema, rows, format, show, out);
    let written = match (written, out.get_mut().failed.take()) {
        (Ok(count), _) => out.flush().map(|()| count),
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => return Err(error),
    };
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(0),
        other => other.map_err(|error| failed(&error)),
    }
}

/// Prints rows; a table that is higher than the terminal goes through the pager.
pub fn print(rows: Rows, format: Format, show: Show) -> Result<u64> {
    if format != Format::Table || !std::io::stdout().is_terminal() {
        let mut out = BufWriter::with_capacity(1 << 16, Watched::over(std::io::stdout().lock()));
        let failed =
            |error: &std::io::Error| Error::device("cannot-write", format!("cannot write the output: {error}"));
        return write(rows, format, show, &mut out, failed);
    }
    let mut text = Vec::new();
    let written = output::write(&rows.schema(), rows, format, show, &mut text)?;
    page(&text);
    Ok(written)
}

/// Text to the terminal, through `$PAGER` (else `less`) if it does not fit.
fn page(text: &[u8]) {
    let lines = text.iter().filter(|byte| **byte == b'\n').count();
    let height = terminal_size::terminal_size().map_or(24, |(_, height)| usize::from(height.0));
    if lines + 1 > height {
        let pager = std::env::var("PAGER").unwrap_or_else(|_| "less -SFX".to_string());
        let mut words = pager.split_whitespace();
        let started = words
            .next()
            .filter(|program| *program != "cat")
            .and_then(|program| Command::new(program).args(words).stdin(Stdio::piped()).spawn().ok());
        if let Some(mut child) = started {
            // A pager may be left before it read everything.
            let _ = child.stdin.take().map(|mut stdin| stdin.write_all(text));
            let _ = child.wait();
            return;
        }
    }
    say!("{}", String::from_utf8_lossy(text).trim_end());
}
