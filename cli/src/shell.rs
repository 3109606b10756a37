//! The shell of `sluice sql`: statements over several lines, history, completion.

use sluice_engine::Result;
use sluice_engine::operator::Cancel;
use sluice_sql::Session;

/// Reads statements and runs them until the end of the input.
pub fn shell(_session: Session, _cancel: &Cancel) -> Result<()> {
    Ok(())
}
