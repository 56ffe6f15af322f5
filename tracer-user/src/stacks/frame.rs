//! One frame of a stack.

use std::sync::Arc;

use super::module::File;

/// An instruction in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Frame {
    /// Its address in the process.
    pub(super) address: u64,
    /// Its file and its offset there; `None` outside of any file, as in generated code.
    pub(super) location: Option<(Arc<File>, u64)>,
}
