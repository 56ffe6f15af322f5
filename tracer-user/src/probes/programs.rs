//! The programs of the embedded object, by name: loaded, and found again.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;

use aya::maps::Map;
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, CgroupSockopt, Iter, ProgramError,
    SockOps,
};
use aya::{Btf, Ebpf};

use super::error::{ProbeError, program_error};

/// How often a load that a signal interrupts is tried.
const LOAD_ATTEMPTS: u32 = 16;

/// The programs that see an accept, when it asks for the address, and a connect.
const SOCK_ADDR_PROGRAMS: [&str; 4] = ["getpeername4", "getpeername6", "connect4", "connect6"];

/// The programs that follow the processes of the audit, each with its tracepoint.
const PROCESS_TRACEPOINTS: [(&str, &str); 4] = [
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
    ("cgroup_attach", "cgroup_attach_task"),
];

/// The link of a program to a cgroup, of any type: dropping it detaches the program.
pub(super) struct HookLink(
    #[expect(dead_code, reason = "kept until it is dropped")] Box<dyn Any + Send>,
);

/// Loads every program.
pub(super) fn load_all(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), ProbeError> {
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
    for (name, tracepoint) in PROCESS_TRACEPOINTS {
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

/// Attaches the programs that follow processes.
pub(super) fn attach_processes(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    for (name, _) in PROCESS_TRACEPOINTS {
        program::<BtfTracePoint>(ebpf, name)?
            .attach()
            .map_err(|error| program_error(name, "attached", error))?;
    }
    Ok(())
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
