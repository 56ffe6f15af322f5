//! The report, written down as JSON or as text.

pub mod json;
pub mod text;
