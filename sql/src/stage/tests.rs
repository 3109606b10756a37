//! Statements of stages: what they give, what they refuse, and that the order of their inputs' rows does not matter.

use super::*;
