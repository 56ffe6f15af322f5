//! The pure half of the tracer: no socket, no task, no clock, no I/O. Time is an argument.

#![forbid(unsafe_code)]

pub mod btf;
pub mod counters;
pub mod event;
pub mod ledger;
pub mod report;
pub mod top;
pub mod verdict;
