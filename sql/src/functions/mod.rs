//! Functions for people who look at recommenders: vectors, semantic ids, ranking metrics. One file a family.

use datafusion::prelude::SessionContext;

/// Makes every function known to a session.
pub(crate) fn register(_context: &SessionContext) {}
