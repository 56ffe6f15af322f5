//! The eBPF programs: loaded into the kernel, attached to a cgroup, and read. Only this module and
//! those below it name aya.

mod error;
mod links;
mod offsets;
mod programs;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::Iter;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
pub use error::{KERNEL_BTF, ProbeError};
use error::{map_error, program_error};
use links::AttachState;
use offsets::offsets;
use programs::{HookLink, program, take_map};
use tracer_abi::annotation::Owner;
use tracer_abi::counter::Counter;
use tracer_abi::limits::{RING_BYTES, SLOTS, STACKS_BYTES, VIOLATIONS_BYTES};
use tracer_abi::record::{BriefEvent, Head, LeftEvent};
use tracer_abi::scope;
use tracer_core::btf::Btf;
use tracer_core::counters::Counters;
use tracer_core::report::Attachment;
use zerocopy::{FromBytes, IntoBytes};

use crate::clock;

/// The size of a ring that nothing is put into: one page, on any machine with pages of at most 64
/// KiB.
const UNUSED_BYTES: u32 = 64 << 10;

static OBJECT: &[u8] = include_bytes_aligned!(env!("TRACER_EBPF_EMBEDDED"));

/// The programs, attached to nothing yet or to one cgroup. Dropping it detaches and unloads them.
pub struct Probes {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    violations: RingBuf<MapData>,
    stacks: RingBuf<MapData>,
    /// How many records fit into the two rings.
    capacity: usize,
    /// A violation that was taken off its ring and is later than the next record.
    next_violation: Option<Vec<u8>>,
    counters: PerCpuArray<MapData, u64>,
    ends: HashMap<MapData, [u64; 2], u64>,
    targets: HashMap<MapData, u32, u8>,
    links: Vec<HookLink>,
    scope: Scope,
}

/// Which processes and sockets belong to the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of a cgroup that is made for the audit.
    Command,
    /// Those of a cgroup that is there already.
    Cgroup,
    /// Those of processes that are named, and of what they start.
    Processes,
    /// All of the machine: nothing is attached or kept.
    Machine,
}

impl Scope {
    const fn number(self) -> u32 {
        match self {
            Self::Command => scope::COMMAND,
            Self::Cgroup => scope::CGROUP,
            Self::Processes => scope::PROCESSES,
            Self::Machine => scope::MACHINE,
        }
    }
}

/// What the programs must know before they are loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadSettings {
    /// Which processes and sockets belong to the audit.
    pub scope: Scope,
    /// The id of the audited cgroup.
    pub cgroup_id: u64,
    /// The grace in nanoseconds.
    pub grace_ns: u64,
    /// The sizes of what the kernel side keeps.
    pub limits: Limits,
    /// Whether each socket's opener is asked for its stack.
    pub stacks: bool,
}

/// The sizes of what the kernel side keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the ring buffer for records: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Sockets that find a place ready, a power of two.
    pub places: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ring_bytes: RING_BYTES,
            places: SLOTS,
        }
    }
}

impl Probes {
    /// Loads the programs and makes their maps.
    ///
    /// # Errors
    ///
    /// When the kernel has no BTF, lacks a field, or refuses a map or a program.
    pub fn load(settings: &LoadSettings) -> Result<Self, ProbeError> {
        let LoadSettings {
            scope,
            cgroup_id,
            grace_ns,
            limits,
            stacks,
        } = *settings;
        let bytes = std::fs::read(KERNEL_BTF).map_err(ProbeError::NoBtf)?;
        let offsets = offsets(&Btf::parse(&bytes)?)?;
        drop(bytes);
        let namespace = pid_namespace().map_err(ProbeError::NoNamespace)?;
        let mut ebpf = EbpfLoader::new()
            .override_global("OFFSETS", offsets.as_bytes(), true)
            .override_global("GRACE_NS", &grace_ns, true)
            .override_global("TICK_NS", &clock::tick_ns(), true)
            .override_global("SCOPE", &scope.number(), true)
            .override_global("CGROUP_ID", &cgroup_id, true)
            .override_global("TRACER_TGID", &std::process::id(), true)
            .override_global("PID_NS_INUM", &namespace, true)
            .override_global("WAKE_UP_BYTES", &u64::from(limits.ring_bytes / 2), true)
            .override_global("SLOTS_MASK", &(limits.places - 1), true)
            .override_global("STACKS_WANTED", &u32::from(stacks), true)
            .map_max_entries("EVENTS", limits.ring_bytes)
            .map_max_entries("SLOTS", limits.places)
            .map_max_entries("STACKS", if stacks { STACKS_BYTES } else { UNUSED_BYTES })
            .load(OBJECT)
            .map_err(|error| ProbeError::Object(Box::new(error)))?;
        programs::load_all(&mut ebpf)?;
        Ok(Self {
            ring: RingBuf::try_from(take_map(&mut ebpf, "EVENTS")?).map_err(map_error("EVENTS"))?,
            violations: RingBuf::try_from(take_map(&mut ebpf, "VIOLATIONS")?)
                .map_err(map_error("VIOLATIONS"))?,
            stacks: RingBuf::try_from(take_map(&mut ebpf, "STACKS")?)
                .map_err(map_error("STACKS"))?,
            capacity: capacity(limits.ring_bytes),
            next_violation: None,
            counters: PerCpuArray::try_from(take_map(&mut ebpf, "COUNTERS")?)
                .map_err(map_error("COUNTERS"))?,
            ends: HashMap::try_from(take_map(&mut ebpf, "ENDS")?).map_err(map_error("ENDS"))?,
            targets: HashMap::try_from(take_map(&mut ebpf, "TARGETS")?)
                .map_err(map_error("TARGETS"))?,
            links: Vec::new(),
            scope,
            ebpf,
        })
    }

    /// Attaches the programs that follow processes, of the whole machine.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach_processes(&mut self) -> Result<(), ProbeError> {
        programs::attach_processes(&mut self.ebpf)
    }

    /// Attaches the hooks to a cgroup and everything below it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), ProbeError> {
        self.links.extend(programs::attach(&mut self.ebpf, cgroup)?);
        Ok(())
    }

    /// Detaches the hooks from every cgroup.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// Whether a process belongs to the audit as soon as it enters the cgroup.
    #[must_use]
    pub fn follows_cgroup(&self) -> bool {
        self.scope != Scope::Processes
    }

    /// Begins to adopt what the processes of the cgroup have ([`Scope::Cgroup`]).
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn begin_adopting(&mut self) -> Result<(), ProbeError> {
        self.add_target(0)
    }

    /// Adds a process, by its number in this PID namespace, to those of [`Scope::Processes`].
    ///
    /// # Errors
    ///
    /// When the kernel's table is full.
    pub fn add_target(&mut self, process: u32) -> Result<(), ProbeError> {
        self.targets
            .insert(process, 1, 0)
            .map_err(map_error("TARGETS"))
    }

    /// Removes a process from those of [`Scope::Processes`]. What it has started stays.
    pub fn remove_target(&mut self, process: u32) {
        // It may be gone already.
        let _ = self.targets.remove(&process);
    }

    /// Returns the links of the programs, and how many runs of them the kernel skipped.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read or the kernel refuses.
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

    /// Calls `take` with each record of both rings, in order of time, until both are empty or
    /// `limit` is reached. Returns the number of records. While another CPU fills in a record,
    /// those after it in the same ring must wait.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut taken = 0;
        while taken < limit {
            // Each ring is read after the other one: what a process did before is in the other ring
            // by then.
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

    /// Calls `take` with each stack that was recorded since the last call.
    pub fn drain_stacks(&mut self, mut take: impl FnMut(&[u8])) {
        while let Some(record) = self.stacks.next() {
            take(&record);
        }
    }

    /// The ring, which becomes readable when it is half full.
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
        let per_cpu = self.counters.get(&slot, 0).map_err(map_error("COUNTERS"))?;
        // A counter may go up on one CPU and down on another.
        Ok(per_cpu
            .iter()
            .fold(0, |sum, value| sum.wrapping_add(*value)))
    }

    /// Removes the ENDs of these owners from the kernel's table.
    pub fn forget(&mut self, owners: &[Owner]) {
        for owner in owners {
            // It may be gone already.
            let _ = self.ends.remove(&[owner.session, owner.stream]);
        }
    }

    /// Starts a walk of the witness over every file descriptor of the machine. It is read as a
    /// stream of sightings.
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

    /// Starts to forward the log of the programs to the `log` crate. It must be flushed regularly.
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

/// The log of the programs, for rare faults.
pub struct ProgramLog(EbpfLogger<&'static dyn log::Log>);

impl ProgramLog {
    /// Forwards what was logged since the last call.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

/// Returns the inode number of this process's PID namespace.
fn pid_namespace() -> io::Result<u32> {
    let inode = std::fs::metadata("/proc/self/ns/pid")?.ino();
    u32::try_from(inode).map_err(io::Error::other)
}

/// Returns how many of the smallest records fit. Each has a header of eight bytes.
fn capacity(ring_bytes: u32) -> usize {
    let records = |bytes: u32, smallest: usize| bytes as usize / (8 + smallest);
    records(ring_bytes, size_of::<BriefEvent>()) + records(VIOLATIONS_BYTES, size_of::<LeftEvent>())
}

fn owned(ring: &mut RingBuf<MapData>) -> Option<Vec<u8>> {
    ring.next().map(|record| record.to_vec())
}

fn happened_at(record: &[u8]) -> u64 {
    Head::read_from_prefix(record).map_or(0, |(head, _)| head.at_ns)
}
