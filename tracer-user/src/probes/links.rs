//! Whether the programs are still attached, and how often the kernel skipped one, from
//! `/proc/self/fdinfo`.

use std::{fs, io};

/// The eBPF objects of this process in `/proc/self/fdinfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AttachState {
    /// Program id, link id and whether it is attached, of each link to a cgroup.
    pub(super) links: Vec<(u32, u32, bool)>,
    /// How often the kernel skipped a program because it was already running
    /// (`bpf_prog_stats.misses`).
    pub(super) misses: u64,
}

impl AttachState {
    /// Reads it.
    pub(super) fn read() -> io::Result<Self> {
        let mut attach_state = Self::default();
        for entry in fs::read_dir("/proc/self/fdinfo")? {
            // The descriptor of the directory itself is gone by then.
            if let Ok(text) = fs::read_to_string(entry?.path()) {
                attach_state.take(&text);
            }
        }
        attach_state.links.sort_unstable();
        Ok(attach_state)
    }

    /// Adds one descriptor's text (`bpf_link_show_fdinfo`, `bpf_prog_show_fdinfo`).
    fn take(&mut self, text: &str) {
        let field = |name| {
            text.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key == name).then_some(value.trim())
            })
        };
        let number = |name| field(name).and_then(|text: &str| text.parse::<u64>().ok());
        self.misses += number("recursion_misses").unwrap_or(0);
        if field("link_type") != Some("cgroup") {
            return;
        }
        let id = |name| number(name).and_then(|id| u32::try_from(id).ok());
        if let (Some(program), Some(link), Some(cgroup)) =
            (id("prog_id"), id("link_id"), number("cgroup_id"))
        {
            self.links.push((program, link, cgroup != 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_a_cgroup_is_detached() {
        let mut attach_state = AttachState::default();
        attach_state.take("pos:\t0\nlink_type:\tcgroup\nlink_id:\t7\nprog_tag:\tab\nprog_id:\t31\ncgroup_id:\t812\nattach_type:\t34\n");
        attach_state.take("link_type:\tcgroup\nlink_id:\t8\nprog_id:\t32\ncgroup_id:\t0\n");
        attach_state.take("link_type:\titer\nlink_id:\t9\nprog_id:\t33\n");
        attach_state.take("prog_type:\t8\nprog_id:\t31\nrecursion_misses:\t5\n");
        assert_eq!(attach_state.links, [(31, 7, true), (32, 8, false)]);
        assert_eq!(attach_state.misses, 5);
    }
}
