//! The offsets of the fields that the programs read, from this kernel's BTF.

use tracer_abi::offsets::Offsets;
use tracer_core::btf::{Btf, BtfError};

use crate::stacks;

/// Finds them.
pub(super) fn offsets(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let register = |member| {
        if stacks::SUPPORTED {
            btf.offset_of("pt_regs", member)
        } else {
            Ok(0)
        }
    };
    let common = |member: &str| btf.offset_of("sock", &format!("__sk_common.{member}"));
    Ok(Offsets {
        task_flags: btf.offset_of("task_struct", "flags")?,
        task_tgid: btf.offset_of("task_struct", "tgid")?,
        task_comm: btf.offset_of("task_struct", "comm")?,
        task_group_leader: btf.offset_of("task_struct", "group_leader")?,
        task_start_time: btf.offset_of("task_struct", "start_time")?,
        task_self_exec_id: btf.offset_of("task_struct", "self_exec_id")?,
        task_signal: btf.offset_of("task_struct", "signal")?,
        task_cgroups: btf.offset_of("task_struct", "cgroups")?,
        signal_live: btf.offset_of("signal_struct", "live")?,
        css_set_dfl_cgrp: btf.offset_of("css_set", "dfl_cgrp")?,
        cgroup_kn: btf.offset_of("cgroup", "kn")?,
        cgroup_self_parent: btf.offset_of("cgroup", "self.parent")?,
        css_cgroup: btf.offset_of("cgroup_subsys_state", "cgroup")?,
        kernfs_node_id: btf.offset_of("kernfs_node", "id")?,
        task_thread_pid: btf.offset_of("task_struct", "thread_pid")?,
        pid_level: btf.offset_of("pid", "level")?,
        pid_numbers: btf.offset_of("pid", "numbers")?,
        upid_ns: btf.offset_of("upid", "ns")?,
        upid_size: btf.size_of("upid")?,
        pid_namespace_inum: btf.offset_of("pid_namespace", "ns.inum")?,
        regs_ip: register("ip")?,
        regs_sp: register("sp")?,
        regs_bp: register("bp")?,
        socket_sk: btf.offset_of("socket", "sk")?,
        sock_family: common("skc_family")?,
        sock_state: common("skc_state")?,
        inet_sport: btf.offset_of("inet_sock", "inet_sport")?,
        sock_cookie: common("skc_cookie")?,
        sock_dport: common("skc_dport")?,
        sock_daddr: common("skc_daddr")?,
        sock_rcv_saddr: common("skc_rcv_saddr")?,
        sock_v6_daddr: common("skc_v6_daddr").unwrap_or(0),
        sock_v6_rcv_saddr: common("skc_v6_rcv_saddr").unwrap_or(0),
        sock_protocol: btf.offset_of("sock", "sk_protocol")?,
        sock_err: btf.offset_of("sock", "sk_err")?,
        sock_cgrp_data: btf.offset_of("sock", "sk_cgrp_data")?,
        tcp_bytes_received: btf.offset_of("tcp_sock", "bytes_received")?,
        tcp_bytes_acked: btf.offset_of("tcp_sock", "bytes_acked")?,
        tcp_rcv_nxt: btf.offset_of("tcp_sock", "rcv_nxt")?,
        tcp_copied_seq: btf.offset_of("tcp_sock", "copied_seq")?,
        tcp_write_seq: btf.offset_of("tcp_sock", "write_seq")?,
        tcp_snd_una: btf.offset_of("tcp_sock", "snd_una")?,
        tcp_lsndtime: btf.offset_of("tcp_sock", "lsndtime")?,
    })
}
