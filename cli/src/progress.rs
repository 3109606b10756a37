//! Live progress: a line a stage on a terminal, plain log lines elsewhere, JSON lines on request.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use sluice_engine::event::{Event, Watch};
use sluice_engine::operator::{Notes, Progress};

use crate::display::{bytes, count, seconds};

/// Chooses how to tell.
pub fn watch(quiet: bool, json: bool) -> Box<dyn Watch> {
    if quiet {
        Box::new(|_: &Event| {})
    } else if json {
        Box::new(|event: &Event| {
            if let Ok(line) = serde_json::to_string(event) {
                // The reader may be gone; the run goes on.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
        })
    } else if std::io::stderr().is_terminal() {
        Box::new(Live {
            bars: MultiProgress::new(),
            stages: BTreeMap::new(),
        })
    } else {
        Box::new(Log { told: BTreeMap::new() })
    }
}

/// One line a stage, redrawn in place.
struct Live {
    bars: MultiProgress,
    stages: BTreeMap<String, (ProgressBar, Instant)>,
}

impl Watch for Live {
    fn event(&mut self, event: &Event) {
        match event {
            Event::StageStarted { stage, operator, .. } => {
                let bar = self.bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:<16} {wide_msg}") {
                    bar.set_style(style);
                }
                bar.set_prefix(stage.clone());
                bar.set_message(operator.clone());
                bar.enable_steady_tick(std::time::Duration::from_millis(200));
                self.stages.insert(stage.clone(), (bar, Instant::now()));
            }
            Event::StageProgress { stage, progress } => {
                if let Some((bar, start)) = self.stages.get(stage) {
                    bar.set_message(progress_line(progress, start.elapsed().as_secs_f64()));
                }
            }
            Event::StageFinished { stage, .. } | Event::StageFailed { stage, .. } => {
                if let Some((bar, _)) = self.stages.remove(stage) {
                    bar.finish_and_clear();
                }
                if let Some(line) = line(event) {
                    // The terminal may be gone; the run goes on.
                    let _ = self.bars.println(line);
                }
            }
            Event::RunFinished { .. } => {
                for (_, (bar, _)) in std::mem::take(&mut self.stages) {
                    bar.finish_and_clear();
                }
                if let Some(line) = line(event) {
                    let _ = self.bars.println(line);
                }
            }
            _ => {
                if let Some(line) = line(event) {
                    let _ = self.bars.println(line);
                }
            }
        }
    }
}

/// Plain lines; progress of a stage at most every ten seconds.
struct Log {
    told: BTreeMap<String, (Instant, Instant)>,
}

impl Watch for Log {
    fn event(&mut self, event: &Event) {
        match event {
            Event::StageStarted { stage, .. } => {
                self.told.insert(stage.clone(), (Instant::now(), Instant::now()));
            }
            Event::StageProgress { stage, progress } => {
                if let Some((start, told)) = self.told.get_mut(stage)
                    && told.elapsed().as_secs() >= 10
                {
                    *told = Instant::now();
                    let text = progress_line(progress, start.elapsed().as_secs_f64());
                    let _ = writeln!(std::io::stderr(), "{stage:<16} {text}");
                }
            }
            _ => {}
        }
        if let Some(line) = line(event) {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

fn line(event: &Event) -> Option<String> {
    match event {
        Event::StageReused {
            stage, cut_off: true, ..
        } => Some(format!("{stage:<16} reused: its inputs came out equal")),
        Event::StageFinished {
            stage,
            rows,
            bytes: size,
            seconds: cost,
            notes,
            ..
        } => {
            let total: u64 = rows.values().sum();
            let rate = if total >= 1000 && *cost > 0.0 {
                format!(", {}/s", count((total as f64 / cost) as u64))
            } else {
                String::new()
            };
            Some(format!(
                "{stage:<16} done in {}: {} rows{rate}, {}{}",
                seconds(*cost),
                count(total),
                bytes(*size),
                notes_line(notes)
            ))
        }
        Event::StageFailed { stage, .. } => Some(format!("{stage:<16} failed")),
        Event::RunFinished {
            run,
            ran,
            reused,
            failed,
            blocked,
            seconds: cost,
            ok,
        } => {
            let mut lost = String::new();
            if *failed > 0 {
                lost.push_str(&format!(", {failed} failed"));
            }
            if *blocked > 0 {
                lost.push_str(&format!(", {blocked} not run because of that"));
            }
            Some(format!(
                "run {run}: {}{ran} ran, {reused} reused{lost}, {}",
                if *ok { "" } else { "not finished, " },
                seconds(*cost)
            ))
        }
        Event::StageWaiting { stage, holder } => Some(format!("{stage:<16} waits: {holder} works on it")),
        Event::StageLost { stage } => Some(format!("{stage:<16} was taken over while this process was stopped")),
        Event::StageBlocked { stage, failed } => Some(format!("{stage:<16} not run: {failed} failed")),
        Event::StageVerified { stage, agrees, outputs } => {
            let word = if *agrees { "agrees" } else { "DIFFERS" };
            let outputs: Vec<String> = outputs.iter().map(|(port, how)| format!("{port}: {how}")).collect();
            Some(format!("{stage:<16} {word}: {}", outputs.join("; ")))
        }
        _ => None,
    }
}

/// The first few notes; the manifest (`sluice show STAGE --manifest`) has all.
fn notes_line(notes: &Notes) -> String {
    const MOST: usize = 5;
    let plain = notes
        .iter()
        .filter(|(_, value)| !value.is_object() && !value.is_array());
    let mut text = String::new();
    for (place, (name, value)) in plain.enumerate() {
        if place == MOST {
            text.push_str("; ...");
            break;
        }
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => match (other.as_u64(), other.as_f64()) {
                (Some(number), _) => count(number),
                (None, Some(number)) if number.fract() == 0.0 && number >= 0.0 => count(number as u64),
                (None, Some(number)) => format!("{number:.4}"),
                _ => other.to_string(),
            },
        };
        text.push_str(&format!("; {name}: {value}"));
    }
    text
}

fn progress_line(progress: &Progress, elapsed: f64) -> String {
    let rate = progress.done as f64 / elapsed.max(1e-3);
    let rate = if rate >= 10.0 {
        count(rate as u64)
    } else {
        format!("{rate:.1}")
    };
    let mut text = match progress.total {
        Some(total) if total > 0 => {
            let left = elapsed / progress.done.max(1) as f64 * total.saturating_sub(progress.done) as f64;
            format!(
                "{} of {} {} ({:.0} %), {rate}/s, {} left",
                count(progress.done),
                count(total),
                progress.unit,
                100.0 * progress.done as f64 / total as f64,
                seconds(left)
            )
        }
        _ => format!("{} {}, {rate}/s", count(progress.done), progress.unit),
    };
    for (name, value) in &progress.figures {
        text.push_str(&format!(", {name} {value:.4}"));
    }
    text
}
