//! The report, written as JSON or as text.

pub mod file;
pub mod json;
pub mod text;
