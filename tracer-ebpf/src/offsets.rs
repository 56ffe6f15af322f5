//! What the programs must know of the kernel.

use crate::layout::shared;

/// The inode number of the initial PID namespace (`PID_NS_INIT_INO`, linux/nsfs.h).
pub const PID_NS_INIT_INUM: u32 = 0xefff_fffc;
/// How deep PID namespaces are nested at most (`MAX_PID_NS_LEVEL`, linux/pid_namespace.h).
pub const PID_NS_LEVELS: u32 = 32;

shared! {
    /// Where the fields of kernel structs are that the programs read, in bytes, from this kernel's
    /// BTF.
    ///
    /// rustc emits no CO-RE relocations, so user space fills this in before the programs are
    /// loaded.
    pub struct Offsets {
        /// `task_struct.flags`
        pub task_flags: u32,
        /// `task_struct.tgid`
        pub task_tgid: u32,
        /// `task_struct.comm`
        pub task_comm: u32,
        /// `task_struct.group_leader`
        pub task_group_leader: u32,
        /// `task_struct.start_time`
        pub task_start_time: u32,
        /// `task_struct.self_exec_id`
        pub task_self_exec_id: u32,
        /// `task_struct.signal`
        pub task_signal: u32,
        /// `task_struct.cgroups`
        pub task_cgroups: u32,
        /// `signal_struct.live`
        pub signal_live: u32,
        /// `css_set.dfl_cgrp`
        pub css_set_dfl_cgrp: u32,
        /// `cgroup.kn`
        pub cgroup_kn: u32,
        /// `cgroup.self.parent`
        pub cgroup_self_parent: u32,
        /// `cgroup_subsys_state.cgroup`
        pub css_cgroup: u32,
        /// `kernfs_node.id`
        pub kernfs_node_id: u32,
        /// `task_struct.thread_pid`
        pub task_thread_pid: u32,
        /// `pid.level`
        pub pid_level: u32,
        /// `pid.numbers`
        pub pid_numbers: u32,
        /// `upid.ns`
        pub upid_ns: u32,
        /// The size of `struct upid`.
        pub upid_size: u32,
        /// `pid_namespace.ns.inum`
        pub pid_namespace_inum: u32,
        /// `pt_regs.ip`
        pub regs_ip: u32,
        /// `pt_regs.sp`
        pub regs_sp: u32,
        /// `pt_regs.bp`
        pub regs_bp: u32,
        /// `socket.sk`
        pub socket_sk: u32,
        /// `sock.__sk_common.skc_family`
        pub sock_family: u32,
        /// `sock.__sk_common.skc_state`
        pub sock_state: u32,
        /// `inet_sock.inet_sport`
        pub inet_sport: u32,
        /// `sock.__sk_common.skc_cookie`
        pub sock_cookie: u32,
        /// `sock.__sk_common.skc_dport`
        pub sock_dport: u32,
        /// `sock.__sk_common.skc_daddr`
        pub sock_daddr: u32,
        /// `sock.__sk_common.skc_rcv_saddr`
        pub sock_rcv_saddr: u32,
        /// `sock.__sk_common.skc_v6_daddr`; 0 in a kernel without IPv6.
        pub sock_v6_daddr: u32,
        /// `sock.__sk_common.skc_v6_rcv_saddr`; 0 in a kernel without IPv6.
        pub sock_v6_rcv_saddr: u32,
        /// `sock.sk_protocol`
        pub sock_protocol: u32,
        /// `sock.sk_err`
        pub sock_err: u32,
        /// `sock.sk_cgrp_data`
        pub sock_cgrp_data: u32,
        /// `tcp_sock.bytes_received`
        pub tcp_bytes_received: u32,
        /// `tcp_sock.bytes_acked`
        pub tcp_bytes_acked: u32,
        /// `tcp_sock.rcv_nxt`
        pub tcp_rcv_nxt: u32,
        /// `tcp_sock.copied_seq`
        pub tcp_copied_seq: u32,
        /// `tcp_sock.write_seq`
        pub tcp_write_seq: u32,
        /// `tcp_sock.snd_una`
        pub tcp_snd_una: u32,
        /// `tcp_sock.lsndtime`
        pub tcp_lsndtime: u32,
    } is 172 bytes
}
