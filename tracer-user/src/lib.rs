//! Watches a program's sockets from the kernel and says with evidence whether each one closed.
//!
//! [`tracer_core`] decides the verdict. This crate loads the eBPF programs, runs the command or
//! attaches to what runs already, and writes the report.

pub mod attach;
pub mod audit;
pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod doctor;
mod event_loop;
pub mod exec;
mod lines;
pub mod metrics;
pub mod probes;
mod process_names;
pub mod report;
pub mod run;
pub mod selftest;
pub mod stacks;
pub mod target;
mod terminal;
mod thaw;
pub mod top;
pub mod witness;
