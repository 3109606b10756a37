//! Ctrl-C: the first asks whatever runs to stop, the second does not wait.

use sluice_engine::Error;
use sluice_engine::operator::Cancel;

/// What Ctrl-C sets, from now on. Once a process.
pub fn cancel_on_ctrl_c() -> Result<Cancel, Vec<Error>> {
    let cancel = Cancel::default();
    let handler = cancel.clone();
    let installed = ctrlc::set_handler(move || {
        if handler.is_cancelled() {
            std::process::exit(130);
        }
        handler.cancel();
    });
    installed.map_err(|error| vec![Error::device("signal", format!("cannot handle Ctrl-C: {error}"))])?;
    Ok(cancel)
}
