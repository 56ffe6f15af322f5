//! The links of the programs: whether they are still attached, and how often the kernel skipped a
//! program, from `/proc/self/fdinfo`.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::{fs, io};

/// The eBPF objects of this process in `/proc/self/fdinfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AttachState {
    /// The links to cgroups.
    pub(super) links: Vec<LinkState>,
    /// Descriptor and program id of every link.
    pub(super) descriptors: Vec<(RawFd, u32)>,
    /// How often the kernel skipped a program because the CPU was already running it
    /// (`bpf_prog_stats.misses`), by program id.
    pub(super) misses: BTreeMap<u32, u64>,
}

/// A link to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinkState {
    pub(super) program_id: u32,
    pub(super) link_id: u32,
    pub(super) is_attached: bool,
}

impl AttachState {
    /// Reads it.
    pub(super) fn read() -> io::Result<Self> {
        let mut attach_state = Self::default();
        for entry in fs::read_dir("/proc/self/fdinfo")? {
            let entry = entry?;
            let fd = entry.file_name().to_str().and_then(|fd| fd.parse().ok());
            // The descriptor of the directory itself is gone by then.
            if let (Some(fd), Ok(text)) = (fd, fs::read_to_string(entry.path())) {
                attach_state.take(fd, &text);
            }
        }
        attach_state.links.sort_unstable();
        Ok(attach_state)
    }

    /// Adds one descriptor's text (`bpf_link_show_fdinfo`, `bpf_prog_show_fdinfo`).
    fn take(&mut self, fd: RawFd, text: &str) {
        let field = |name| {
            text.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key == name).then_some(value.trim())
            })
        };
        let number = |name| field(name).and_then(|text: &str| text.parse::<u64>().ok());
        let id = |name| number(name).and_then(|id| u32::try_from(id).ok());
        let Some(program_id) = id("prog_id") else {
            return;
        };
        if let Some(misses) = number("recursion_misses") {
            self.misses.insert(program_id, misses);
        }
        let Some(link_id) = id("link_id") else {
            return;
        };
        self.descriptors.push((fd, program_id));
        if let (Some("cgroup"), Some(cgroup)) = (field("link_type"), number("cgroup_id")) {
            self.links.push(LinkState {
                program_id,
                link_id,
                is_attached: cgroup != 0,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_a_cgroup_is_detached() {
        let mut attach_state = AttachState::default();
        attach_state.take(5, "pos:\t0\nlink_type:\tcgroup\nlink_id:\t7\nprog_tag:\tab\nprog_id:\t31\ncgroup_id:\t812\nattach_type:\t34\n");
        attach_state.take(
            5,
            "link_type:\tcgroup\nlink_id:\t8\nprog_id:\t32\ncgroup_id:\t0\n",
        );
        attach_state.take(5, "link_type:\titer\nlink_id:\t9\nprog_id:\t33\n");
        attach_state.take(5, "prog_type:\t8\nprog_id:\t31\nrecursion_misses:\t5\n");
        let links = attach_state.links.iter();
        let links: Vec<_> = links
            .map(|it| (it.program_id, it.link_id, it.is_attached))
            .collect();
        assert_eq!(links, [(31, 7, true), (32, 8, false)]);
        assert_eq!(attach_state.descriptors, [(5, 31), (5, 32), (5, 33)]);
        // The same program by another descriptor, and another program.
        attach_state.take(6, "prog_type:\t8\nprog_id:\t31\nrecursion_misses:\t5\n");
        attach_state.take(7, "prog_type:\t26\nprog_id:\t34\nrecursion_misses:\t3\n");
        assert_eq!(attach_state.misses, BTreeMap::from([(31, 5), (34, 3)]));
    }
}
