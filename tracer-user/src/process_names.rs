//! The names of processes, read while they run.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use tracer_core::event::printable;
use tracer_core::verdict::ProcessName;

/// How many processes are asked for their names. Further ones have none.
const PROCESSES_MAX: usize = 1 << 14;

/// The names that one walk asked for. Another walk asks again: a process may execute another
/// program, and a PID may be reused.
#[derive(Debug, Default)]
pub(crate) struct ProcessNames(HashMap<u32, Option<Arc<ProcessName>>>);

impl ProcessNames {
    /// Returns the name of a process; `None` if it is gone.
    pub(crate) fn of(&mut self, pid: u32) -> Option<Arc<ProcessName>> {
        if self.0.len() >= PROCESSES_MAX && !self.0.contains_key(&pid) {
            return None;
        }
        self.0.entry(pid).or_insert_with(|| read(pid)).clone()
    }
}

/// Reads the name of a process. The process chooses what is in it.
fn read(pid: u32) -> Option<Arc<ProcessName>> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm));
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
    Some(Arc::new(ProcessName {
        comm: printable(&comm),
        executable: executable.map(|path| printable(&path.to_string_lossy())),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_executable_too() {
        let mut names = ProcessNames::default();
        let name = names.of(std::process::id()).unwrap();
        let own = std::env::current_exe().unwrap();
        assert_eq!(name.executable.as_deref(), own.to_str());
        assert!(
            own.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&name.comm)
        );
    }

    #[test]
    fn what_is_gone_has_no_name_and_the_number_of_names_is_bounded() {
        let mut names = ProcessNames::default();
        assert_eq!(names.of(u32::MAX), None);
        for n in 1..u32::try_from(PROCESSES_MAX).unwrap() {
            names.0.insert(u32::MAX - n, None);
        }
        assert_eq!(names.of(std::process::id()), None);
        assert_eq!(names.0.len(), PROCESSES_MAX);
    }
}
