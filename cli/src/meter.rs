//! How far a transfer is: a line that changes in a terminal, else a line now and then.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Tells on stderr; its line is gone when it is.
pub struct Meter {
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Meter {
    /// One that has told nothing yet.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Meter {
            bar,
            told: Instant::now(),
        }
    }

    /// Tells where that is due.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => bar.set_message(line()),
            None if self.told.elapsed() >= Duration::from_secs(10) => {
                // The reader may be gone; the transfer goes on.
                let _ = writeln!(std::io::stderr(), "{}", line());
                self.told = Instant::now();
            }
            None => {}
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
