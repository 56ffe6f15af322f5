//! The eBPF programs in the kernel: loaded, attached, read. The only file that names aya.

mod links;
mod offsets;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, CgroupSockopt, Iter, ProgramError,
    SockOps,
};
use aya::{Btf as AyaBtf, Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use thiserror::Error;
use tracer_abi::annotation::Owner;
use tracer_abi::counter::Counter;
use tracer_abi::limits::{CASES_BYTES, PLACES, RING_BYTES, STACKS_BYTES};
use tracer_abi::record::{BriefEvent, Head, LeftEvent};
use zerocopy::{FromBytes, IntoBytes};

use links::AttachState;
use offsets::offsets;
use tracer_core::btf::{Btf, BtfError};
use tracer_core::counters::Counters;
use tracer_core::report::Attachment;

/// The size of a ring that nothing is put into: a page, on every machine that has pages of at most 64 KiB.
const UNUSED_BYTES: u32 = 64 << 10;

static OBJECT: &[u8] = include_bytes_aligned!(env!("TRACER_EBPF_EMBEDDED"));

/// How often a program's load is tried that signals interrupt.
const LOAD_ATTEMPTS: u32 = 16;

/// Where the kernel shows its own type information.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What went wrong between the programs and the kernel.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// [`KERNEL_BTF`] cannot be read.
    #[error("{KERNEL_BTF} cannot be read: {0}")]
    NoBtf(#[source] io::Error),
    /// A field that the programs read is not in this kernel.
    #[error(transparent)]
    Offset(#[from] BtfError),
    /// `/proc/self/ns/pid` cannot be read.
    #[error("/proc/self/ns/pid cannot be read: {0}")]
    NoNamespace(#[source] io::Error),
    /// The object or its maps were refused.
    #[error("the eBPF maps could not be made: {}", chain(.0))]
    Object(#[source] Box<EbpfError>),
    /// A program was refused.
    #[error("the eBPF program {name} could not be {verb}: {}", chain(.source))]
    Program {
        /// The program.
        name: &'static str,
        /// "loaded" or "attached".
        verb: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// A map could not be read or written.
    #[error("the eBPF map {name} could not be read: {}", chain(.source))]
    Map {
        /// The map.
        name: &'static str,
        /// Why.
        source: Box<MapError>,
    },
    /// The witness could not be read.
    #[error("the witness (iter/task_file) could not be read: {0}")]
    Witness(#[source] io::Error),
    /// It cannot be told what is attached.
    #[error("the attachments of the eBPF programs could not be read: {0}")]
    AttachState(#[source] io::Error),
    /// The embedded object lacks a part: a broken build.
    #[error("the embedded eBPF object has no {0}: it was built from other sources")]
    Missing(&'static str),
}

/// Joins an error's causes: aya's outer errors say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl ProbeError {
    /// The system call's error number, if a system call failed.
    #[must_use]
    pub fn os_error(&self) -> Option<i32> {
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            if let Some(code) = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error)
            {
                return Some(code);
            }
            cause = error.source();
        }
        None
    }
}

/// The programs, attached to nothing yet or to one cgroup. Dropping it detaches and unloads all of it.
pub struct Probes {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    violations: RingBuf<MapData>,
    stacks: RingBuf<MapData>,
    /// How many records fit into the two rings.
    capacity: usize,
    /// A violation that was taken off its ring and is not due yet.
    next_violation: Option<Vec<u8>>,
    counters: PerCpuArray<MapData, u64>,
    ends: HashMap<MapData, [u64; 2], u64>,
}

/// How much limits the kernel side has.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the ring that records wait in, a power of two and of pages.
    pub ring_bytes: u32,
    /// Sockets that find a place ready, a power of two.
    pub places: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ring_bytes: RING_BYTES,
            places: PLACES,
        }
    }
}

/// The programs that see an accept, by its asking for the address, and a connect.
const SOCK_ADDR_PROGRAMS: [&str; 4] = ["getpeername4", "getpeername6", "connect4", "connect6"];

/// The programs that follow the processes of the audit, each with its tracepoint.
const PROCESS_TRACEPOINTS: [(&str, &str); 4] = [
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
    ("cgroup_attach", "cgroup_attach_task"),
];

impl Probes {
    /// Loads the programs for the cgroup of this id and makes their maps, with `grace_ns` as the grace in nanoseconds; with
    /// `stacks`, each socket's opener is next_scrape for its stack.
    ///
    /// # Errors
    ///
    /// When the kernel has no BTF, lacks a field, or refuses a map or a program.
    pub fn load(
        cgroup_id: u64,
        grace_ns: u64,
        limits: Limits,
        stacks: bool,
    ) -> Result<Self, ProbeError> {
        let bytes = std::fs::read(KERNEL_BTF).map_err(ProbeError::NoBtf)?;
        let offsets = offsets(&Btf::parse(&bytes)?)?;
        drop(bytes);
        let namespace = pid_namespace().map_err(ProbeError::NoNamespace)?;
        let mut ebpf = EbpfLoader::new()
            .override_global("OFFSETS", offsets.as_bytes(), true)
            .override_global("GRACE_NS", &grace_ns, true)
            .override_global("CGROUP_ID", &cgroup_id, true)
            .override_global("TRACER_TGID", &std::process::id(), true)
            .override_global("PID_NS_INUM", &namespace, true)
            .override_global("WAKE_UP_BYTES", &u64::from(limits.ring_bytes / 2), true)
            .override_global("PLACES_MASK", &(limits.places - 1), true)
            .override_global("STACKS_WANTED", &u32::from(stacks), true)
            .map_max_entries("EVENTS", limits.ring_bytes)
            .map_max_entries("PLACES", limits.places)
            .map_max_entries("STACKS", if stacks { STACKS_BYTES } else { UNUSED_BYTES })
            .load(OBJECT)
            .map_err(|error| ProbeError::Object(Box::new(error)))?;
        load_programs(&mut ebpf)?;
        Ok(Self {
            ring: RingBuf::try_from(take(&mut ebpf, "EVENTS")?).map_err(map("EVENTS"))?,
            violations: RingBuf::try_from(take(&mut ebpf, "CASES")?).map_err(map("CASES"))?,
            stacks: RingBuf::try_from(take(&mut ebpf, "STACKS")?).map_err(map("STACKS"))?,
            capacity: capacity(limits.ring_bytes),
            next_violation: None,
            counters: PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?)
                .map_err(map("COUNTERS"))?,
            ends: HashMap::try_from(take(&mut ebpf, "ENDS")?).map_err(map("ENDS"))?,
            ebpf,
        })
    }

    /// Attaches the hooks to a cgroup and everything below it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), ProbeError> {
        // A link is "multi" by nature: other tracers and the container runtime keep theirs.
        let mode = CgroupAttachMode::Single;
        let attached = |name| move |error| program_error(name, "attached", error);
        program::<CgroupSockopt>(&mut self.ebpf, "setsockopt")?
            .attach(cgroup, mode)
            .map_err(attached("setsockopt"))?;
        program::<SockOps>(&mut self.ebpf, "sock_ops")?
            .attach(cgroup, mode)
            .map_err(attached("sock_ops"))?;
        for name in SOCK_ADDR_PROGRAMS {
            program::<CgroupSockAddr>(&mut self.ebpf, name)?
                .attach(cgroup, mode)
                .map_err(attached(name))?;
        }
        for (name, _) in PROCESS_TRACEPOINTS {
            program::<BtfTracePoint>(&mut self.ebpf, name)?
                .attach()
                .map_err(attached(name))?;
        }
        // Last, in this order: what is created after this line is released under the tracer's eyes.
        program::<CgroupSock>(&mut self.ebpf, "sock_release")?
            .attach(cgroup, mode)
            .map_err(attached("sock_release"))?;
        program::<CgroupSock>(&mut self.ebpf, "sock_create")?
            .attach(cgroup, mode)
            .map_err(attached("sock_create"))?;
        Ok(())
    }

    /// Says which programs are attached, and how many runs of them the kernel skipped.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read or the kernel does not tell.
    pub fn attachments(&self) -> Result<(Vec<Attachment>, u64), ProbeError> {
        let attach_state = AttachState::read().map_err(ProbeError::AttachState)?;
        let mut attachments = Vec::new();
        for (name, program) in self.ebpf.programs() {
            let unknown = |source| ProbeError::AttachState(io::Error::other(source));
            let program_id = program.info().map_err(unknown)?.id();
            let links = attach_state.links.iter();
            attachments.extend(links.filter(|(of, _, _)| *of == program_id).map(
                |(_, link_id, attached)| Attachment {
                    program: name.to_owned(),
                    link_id: *link_id,
                    attached: *attached,
                },
            ));
        }
        attachments.sort_by_key(|attachment| attachment.link_id);
        Ok((attachments, attach_state.misses))
    }

    /// Gives each record in the two rings to `take`, in the order of their times, until both are empty or `limit` were
    /// given. Returns how many were. Where another CPU is about to fill in a record, those after it in its ring come late.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut taken = 0;
        while taken < limit {
            // Each ring is looked at after the other one: what a process did before what is met is in the other ring by then.
            if self.next_violation.is_none() {
                self.next_violation = owned(&mut self.violations);
            }
            let Some(record) = self.ring.next() else {
                let Some(violation) = self.next_violation.take() else {
                    break;
                };
                take(&violation);
                taken += 1;
                continue;
            };
            while let Some(violation) = self
                .next_violation
                .take()
                .or_else(|| owned(&mut self.violations))
            {
                if happened_at(&violation) > happened_at(&record) {
                    self.next_violation = Some(violation);
                    break;
                }
                take(&violation);
                taken += 1;
            }
            take(&record);
            taken += 1;
        }
        taken
    }

    /// Returns how many records fit into the two rings.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Gives each stack that was recorded since the last call to `take`.
    pub fn drain_stacks(&mut self, mut take: impl FnMut(&[u8])) {
        while let Some(record) = self.stacks.next() {
            take(&record);
        }
    }

    /// The ring, readable when the kernel side finds it half full.
    #[must_use]
    pub fn ring(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Reads the counters, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters, ProbeError> {
        let mut counters = Counters::default();
        for slot in 0..Counter::COUNT {
            counters.set(slot, self.slot(slot)?);
        }
        Ok(counters)
    }

    fn slot(&self, slot: u32) -> Result<u64, ProbeError> {
        let per_cpu = self.counters.get(&slot, 0).map_err(map("COUNTERS"))?;
        // A counter may be counted up on one CPU and down on another.
        Ok(per_cpu
            .iter()
            .fold(0, |sum, value| sum.wrapping_add(*value)))
    }

    /// Lets the kernel forget that these owners ended.
    pub fn forget(&mut self, owners: &[Owner]) {
        for owner in owners {
            // Gone already is as good.
            let _ = self.ends.remove(&[owner.session, owner.stream]);
        }
    }

    /// Opens a fresh walk of the witness over every file descriptor of the machine. It is read as a stream of sightings.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn walk(&mut self) -> Result<File, ProbeError> {
        let failed = |error| program_error("witness", "attached", error);
        let witness = program::<Iter>(&mut self.ebpf, "witness")?;
        let link = witness.attach().map_err(failed)?;
        let link = witness.take_link(link).map_err(failed)?;
        link.into_file()
            .map_err(|error| ProbeError::Witness(io::Error::other(error)))
    }

    /// Starts to pass on what the programs say of their rare program_log, to the `log` crate. Must be polled.
    ///
    /// # Errors
    ///
    /// When the log's map is missing.
    pub fn program_log(&mut self) -> Result<ProgramLog, ProbeError> {
        EbpfLogger::init(&mut self.ebpf)
            .map(ProgramLog)
            .map_err(|_| ProbeError::Missing("AYA_LOGS"))
    }
}

/// The programs' own log of rare program_log.
pub struct ProgramLog(EbpfLogger<&'static dyn log::Log>);

impl ProgramLog {
    /// Passes on what was logged since the last call.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

/// Returns the inode number of this process's PID namespace.
fn pid_namespace() -> io::Result<u32> {
    let inode = std::fs::metadata("/proc/self/ns/pid")?.ino();
    u32::try_from(inode).map_err(io::Error::other)
}

/// The smallest records that a ring holds have a header of eight bytes each.
fn capacity(ring_bytes: u32) -> usize {
    let records = |bytes: u32, smallest: usize| bytes as usize / (8 + smallest);
    records(ring_bytes, size_of::<BriefEvent>()) + records(CASES_BYTES, size_of::<LeftEvent>())
}

fn owned(ring: &mut RingBuf<MapData>) -> Option<Vec<u8>> {
    ring.next().map(|record| record.to_vec())
}

fn happened_at(record: &[u8]) -> u64 {
    Head::read_from_prefix(record).map_or(0, |(head, _)| head.at_ns)
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
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
    let btf = AyaBtf::from_sys_fs().map_err(|error| ProbeError::NoBtf(io::Error::other(error)))?;
    for (name, tracepoint) in PROCESS_TRACEPOINTS {
        let program: &mut BtfTracePoint = program(ebpf, name)?;
        load(name, program, |program| program.load(tracepoint, &btf))?;
    }
    let name = "witness";
    let program: &mut Iter = program(ebpf, name)?;
    load(name, program, |program| program.load("task_file", &btf))
}

/// Loads a program. A signal interrupts the verifier (EAGAIN of `do_check`), be it the SIGCONT of a process that was stopped: it
/// is next_scrape again, as libbpf does (`sys_bpf_prog_load`).
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

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, ProbeError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(ProbeError::Missing(name))
}

fn program_error(name: &'static str, verb: &'static str, source: ProgramError) -> ProbeError {
    ProbeError::Program {
        name,
        verb,
        source: Box::new(source),
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, ProbeError> {
    ebpf.take_map(name).ok_or(ProbeError::Missing(name))
}

fn map(name: &'static str) -> impl Fn(MapError) -> ProbeError {
    move |source| ProbeError::Map {
        name,
        source: Box::new(source),
    }
}
