//! The programs of the embedded object, by name: loaded, and found again.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::{fs, io};

use aya::maps::Map;
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, CgroupSockopt, Iter, ProgramError,
    SockOps,
};
use aya::{Btf, Ebpf};
use tracer_abi::offsets::PID_NS_INIT_INUM;
use tracer_core::btf::Btf as KernelBtf;

use super::Scope;
use super::error::{ProbeError, program_error};

/// How often a load that a signal interrupts is tried.
const LOAD_ATTEMPTS: u32 = 16;

/// The programs that see an accept, when it asks for the address, and a connect.
const SOCK_ADDR_PROGRAMS: [&str; 4] = ["getpeername4", "getpeername6", "connect4", "connect6"];

/// The programs that follow the processes of the audit, each with its tracepoint. One of the first
/// two is loaded.
const PROCESS_TRACEPOINTS: [(&str, &str); 6] = [
    (WAKEUP, "sched_wakeup_new"),
    (FORK, "sched_process_fork"),
    (EXEC, "sched_process_exec"),
    (EXIT, "sched_process_exit"),
    ("process_free", "sched_process_free"),
    ("cgroup_attach", "cgroup_attach_task"),
];
const WAKEUP: &str = "process_wakeup";
const FORK: &str = "process_fork";
/// The program whose skipped runs are noticed otherwise, if they matter (`Counter::UnseenExecs`).
const EXEC: &str = "process_exec";
/// The program whose skipped runs `process_free` makes up for.
const EXIT: &str = "process_exit";

/// Where a program of this kernel sees the birth of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Birth {
    /// Where nothing is preempted, since a run queue is locked.
    Wakeup,
    /// Where a hash table may be written to that takes the locks of the kernel's allocator.
    Fork,
}

impl Birth {
    pub(super) fn on(kernel: &KernelBtf<'_>) -> Self {
        // Since Linux 6.1 hash tables have an allocator that can be called anywhere.
        match kernel.offset_of("bpf_htab", "ma") {
            Ok(_) => Self::Wakeup,
            Err(_) => Self::Fork,
        }
    }

    fn unused(self) -> &'static str {
        match self {
            Self::Wakeup => FORK,
            Self::Fork => WAKEUP,
        }
    }
}

/// The link of a program to a cgroup, of any type: dropping it detaches the program.
pub(super) struct HookLink(
    #[expect(dead_code, reason = "kept until it is dropped")] Box<dyn Any + Send>,
);

/// Loads every program that this kernel needs.
pub(super) fn load_all(ebpf: &mut Ebpf, btf: &Btf, birth: Birth) -> Result<(), ProbeError> {
    let name = "sock_create";
    load(name, program(ebpf, name)?, CgroupSock::load)?;
    let name = "sock_release";
    load(name, program(ebpf, name)?, CgroupSock::load)?;
    let name = "sock_ops";
    load(name, program(ebpf, name)?, SockOps::load)?;
    let name = "setsockopt";
    load(name, program(ebpf, name)?, CgroupSockopt::load)?;
    for name in SOCK_ADDR_PROGRAMS {
        load(name, program(ebpf, name)?, CgroupSockAddr::load)?;
    }
    let needed = PROCESS_TRACEPOINTS.into_iter();
    for (name, tracepoint) in needed.filter(|(name, _)| *name != birth.unused()) {
        let program: &mut BtfTracePoint = program(ebpf, name)?;
        load(name, program, |program| program.load(tracepoint, btf))?;
    }
    load_witness(ebpf, btf)
}

/// Loads the program of the witness, which needs no other one.
pub(super) fn load_witness(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), ProbeError> {
    let name = "witness";
    let program: &mut Iter = program(ebpf, name)?;
    load(name, program, |program| program.load("task_file", btf))
}

/// Attaches those programs that follow processes and are loaded.
pub(super) fn attach_processes(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    for (name, _) in PROCESS_TRACEPOINTS {
        let program: &mut BtfTracePoint = program(ebpf, name)?;
        if program.fd().is_ok() {
            program
                .attach()
                .map_err(|error| program_error(name, "attached", error))?;
        }
    }
    Ok(())
}

/// Whether skipped runs of a program are made up for, or noticed otherwise.
pub(super) fn is_made_up_for(program: &str, scope: Scope) -> Result<bool, ProbeError> {
    if program == EXIT && scope == Scope::Processes {
        // When the process is freed it has lost its number in any other namespace.
        return Ok(pid_namespace()? == PID_NS_INIT_INUM);
    }
    Ok(program == EXIT || program == EXEC)
}

/// Returns the inode number of this process's PID namespace.
pub(super) fn pid_namespace() -> Result<u32, ProbeError> {
    let inode = fs::metadata("/proc/self/ns/pid").map(|namespace| namespace.ino());
    inode
        .and_then(|inode| u32::try_from(inode).map_err(io::Error::other))
        .map_err(ProbeError::NoNamespace)
}

/// Attaches every program of a cgroup to one and everything below it. They are detached when the
/// links are dropped.
pub(super) fn attach(ebpf: &mut Ebpf, cgroup: BorrowedFd<'_>) -> Result<Vec<HookLink>, ProbeError> {
    // Links allow several programs: other tracers and the container runtime keep theirs.
    let mode = CgroupAttachMode::Single;
    let mut links = Vec::new();
    macro_rules! attach {
        ($kind:ty, $name:expr) => {{
            let failed = |error| program_error($name, "attached", error);
            let program = program::<$kind>(ebpf, $name)?;
            let id = program.attach(cgroup, mode).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            links.push(HookLink(Box::new(link)));
        }};
    }
    attach!(CgroupSockopt, "setsockopt");
    attach!(SockOps, "sock_ops");
    for name in SOCK_ADDR_PROGRAMS {
        attach!(CgroupSockAddr, name);
    }
    // Last, in this order: the release of every socket created from here on is seen.
    attach!(CgroupSock, "sock_release");
    attach!(CgroupSock, "sock_create");
    Ok(links)
}

/// Loads a program. A signal interrupts the verifier (EAGAIN of `do_check`), even the SIGCONT of a
/// process that was stopped: the load is tried again, as libbpf does (`sys_bpf_prog_load`).
fn load<P>(
    name: &'static str,
    program: &mut P,
    load: impl Fn(&mut P) -> Result<(), ProgramError>,
) -> Result<(), ProbeError> {
    let mut attempts = 1;
    loop {
        match load(program) {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && attempts < LOAD_ATTEMPTS =>
            {
                attempts += 1;
            }
            loaded => return loaded.map_err(|error| program_error(name, "loaded", error)),
        }
    }
}

/// Returns the program of a name.
pub(super) fn program<'a, T>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut T, ProbeError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(ProbeError::Missing(name))
}

/// Takes the map of a name out of the object.
pub(super) fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, ProbeError> {
    ebpf.take_map(name).ok_or(ProbeError::Missing(name))
}
