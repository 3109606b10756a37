//! The shell of `sluice sql`: statements over several lines, history, completion, and commands that begin with `\`.

mod complete;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use rustyline::config::Config;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Editor};
use sluice_engine::operator::Cancel;
use sluice_engine::{Error, Result};
use sluice_sql::output::{Format, Show};
use sluice_sql::{Rows, Session, Statement, queries, system};

use crate::arguments::SqlFormat;
use crate::display::{count, say};
use crate::sql::{Output, SHOWN, format_of, params, print};
use complete::Completion;

const HELP: &str = "\
Statements end with a semicolon and may go over several lines. Tab completes.
  \\d              tables; \\d TABLE its columns
  \\queries        queries that come with the program; \\query NAME [NAME=VALUE ...] runs one
  \\format NAME    table, csv, json, ndjson, markdown, latex
  \\o FILE         write rows to a file, its ending says how; \\o back to the terminal
  \\all            all rows and whole cells, or not
  \\timing         how long statements take, or not
  \\i FILE         run the statements of a file
  \\q              leave (or Ctrl-D); Ctrl-C ends a statement";

/// What commands change.
struct State {
    session: Session,
    cancel: Cancel,
    format: Format,
    output: Option<PathBuf>,
    show: Show,
    timing: bool,
}

/// Reads statements and runs them until the end of the input.
pub fn shell(session: Session, cancel: &Cancel, timing: bool) -> Result<()> {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .history_ignore_space(true)
        .auto_add_history(true)
        .build();
    let failed = |error: ReadlineError| Error::device("terminal", format!("cannot use the terminal: {error}"));
    let mut editor: Editor<Completion, FileHistory> = Editor::with_config(config).map_err(failed)?;
    editor.set_helper(Some(Completion::over(session.clone())));
    let history = history_file();
    if let Some(path) = &history {
        // The first time there is none.
        let _ = editor.load_history(path);
    }
    say!("\\? for help, \\d for tables, \\q to leave");
    let mut state = State {
        session,
        cancel: cancel.clone(),
        format: Format::Table,
        output: None,
        show: SHOWN,
        timing,
    };
    loop {
        // Before the line is read: whoever presses Ctrl-C as soon as it is sent means its statement.
        state.cancel.clear();
        match editor.readline("sluice> ") {
            Ok(line) => {
                match state.take(line.trim()) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => eprintln!("{error}"),
                }
                if let Some(path) = &history {
                    // A shell without history is still a shell.
                    let _ = editor.append_history(path);
                }
            }
            // Ctrl-C at the prompt drops the line.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Where the shell remembers lines.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local").join("state"));
    let folder = state.or_else(home)?.join("sluice");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("sql_history"))
}

impl State {
    /// A line: a command or statements. Whether to go on.
    fn take(&mut self, line: &str) -> Result<bool> {
        let Some(command) = line.strip_prefix('\\') else {
            if matches!(line.trim_end_matches(';').trim(), "quit" | "exit") {
                return Ok(false);
            }
            self.statements(line)?;
            return Ok(true);
        };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim().trim_end_matches(';');
        match name {
            "q" => return Ok(false),
            "?" | "h" | "help" => say!("{HELP}"),
            "d" if rest.is_empty() => self.tables()?,
            "d" => self.statements(&format!("DESCRIBE {rest}"))?,
            "timing" => {
                self.timing = !self.timing;
                say!("timing is {}", if self.timing { "on" } else { "off" });
            }
            "all" => {
                self.show = if self.show.rows == SHOWN.rows { Show::ALL } else { SHOWN };
                let whole = self.show.rows == Show::ALL.rows;
                say!("{}", if whole { "all rows" } else { "the first rows" });
            }
            "format" => self.format = format_named(rest)?,
            "o" if rest.is_empty() => {
                self.output = None;
                self.format = Format::Table;
            }
            "o" => {
                self.format = Format::of_file(rest).ok_or_else(|| {
                    Error::user("unknown-format", format!("the ending of \"{rest}\" tells no format"))
                        .hint("txt, csv, json, ndjson, parquet, arrow, md or tex")
                })?;
                self.output = Some(PathBuf::from(rest));
            }
            "i" => {
                let text = std::fs::read_to_string(rest).map_err(|error| Error::io("read", rest.as_ref(), &error))?;
                self.statements(&text)?;
            }
            "queries" => {
                for query in queries::all() {
                    say!("{}\n    {}", query.usage(), query.about);
                }
            }
            "query" => {
                let mut words = rest.split_whitespace();
                let query = queries::find(words.next().unwrap_or_default())?;
                let params = params(&words.map(str::to_string).collect::<Vec<_>>())?;
                self.answer(|| query.run(&self.session, &params))?;
            }
            other => {
                let error = Error::user("unknown-command", format!("there is no command \"\\{other}\""));
                return Err(error.hint("\\? lists them"));
            }
        }
        Ok(true)
    }

    fn statements(&self, text: &str) -> Result<()> {
        for statement in Statement::parse_all(text)? {
            self.answer(|| self.session.run(&statement))?;
        }
        Ok(())
    }

    fn answer(&self, run: impl FnOnce() -> Result<Rows>) -> Result<()> {
        let started = Instant::now();
        let rows = run()?;
        let written = match &self.output {
            Some(path) => {
                let mut file = Output::create(path)?;
                let written = file.write(rows, self.format, Show::ALL)?;
                file.finish()?;
                written
            }
            None => print(rows, self.format, self.show)?,
        };
        if self.timing {
            say!(
                "{} rows in {:.1} ms",
                count(written),
                started.elapsed().as_secs_f64() * 1e3
            );
        } else if self.format == Format::Table || self.output.is_some() {
            say!("({} rows)", count(written));
        }
        Ok(())
    }

    /// What can be asked for.
    fn tables(&self) -> Result<()> {
        let names = self.session.tables();
        let own: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| !name.starts_with("sys."))
            .collect();
        match own.is_empty() {
            true => say!("no run yet: \"sluice run PIPELINE\" makes tables"),
            false => say!("{}", own.join("\n")),
        }
        for (name, about) in system::reference() {
            say!("sys.{name:<12} {about}");
        }
        Ok(())
    }
}

fn format_named(name: &str) -> Result<Format> {
    let format = <SqlFormat as clap::ValueEnum>::from_str(name, true).map(format_of);
    let format = format.map_err(|_| Error::user("unknown-format", format!("there is no format \"{name}\"")))?;
    if format.is_binary() && std::io::stdout().is_terminal() {
        let error = Error::user("binary-output", "this format is not for a terminal");
        return Err(error.hint("write it to a file: \\o FILE"));
    }
    Ok(format)
}
