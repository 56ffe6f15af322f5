//! The eBPF programs: loaded into the kernel, attached to a cgroup, and read. Only this module and
//! those below it name aya.

mod counts;
mod error;
mod links;
mod maps;
mod offsets;
pub mod pinned;
mod programs;
mod settings;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya::programs::Iter;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
pub use counts::{Counts, HistogramSum};
pub use error::{KERNEL_BTF, ProbeError};
use error::{map_error, program_error};
use links::AttachState;
use maps::Maps;
use offsets::offsets;
use pinned::PinDir;
use programs::{Birth, HookLink, pid_namespace, program, take_map};
pub use settings::{Limits, LoadSettings, Scope};
use tracer_abi::annotation::Owner;
use tracer_abi::limits::{ENDS_MAX, RELEASES_MAX, STACKS_BYTES, VIOLATIONS_BYTES};
use tracer_abi::record::{BriefEvent, Head, LeftEvent};
use tracer_core::btf::Btf;
use tracer_core::report::Attachment;
use zerocopy::{FromBytes, IntoBytes};

use crate::clock;

/// The size of a ring that nothing is put into: one page, on any machine with pages of at most 64
/// KiB.
const UNUSED_BYTES: u32 = 64 << 10;

static OBJECT: &[u8] = include_bytes_aligned!(env!("TRACER_EBPF_EMBEDDED"));

/// The programs.
enum Programs {
    /// Loaded by this process.
    Loaded(Box<Ebpf>),
    /// Found pinned: the witness, and the links of the others with their names.
    Pinned(Box<Iter>, Vec<(String, FdLink)>),
}

/// The programs, attached to nothing yet or to one cgroup. Dropping it detaches and unloads them,
/// unless they are pinned.
pub struct Probes {
    programs: Programs,
    ring: RingBuf<MapData>,
    violations: RingBuf<MapData>,
    stacks: RingBuf<MapData>,
    /// How many records fit into the two rings.
    capacity: usize,
    /// A violation that was taken off its ring and is later than the next record.
    next_violation: Option<Vec<u8>>,
    counts: Counts,
    ends: HashMap<MapData, [u64; 2], u64>,
    targets: HashMap<MapData, u32, u8>,
    links: Vec<HookLink>,
    scope: Scope,
    /// Where to pin, and the map that is pinned last.
    pin_to: Option<(PinDir, Map)>,
}

/// Returns name and id of every program that is loaded.
fn program_ids(ebpf: &Ebpf) -> Result<Vec<(String, u32)>, ProbeError> {
    let unknown = |source| ProbeError::AttachState(io::Error::other(source));
    let programs = ebpf.programs();
    programs
        .filter(|(_, program)| program.fd().is_ok())
        .map(|(name, program)| Ok((name.to_owned(), program.info().map_err(unknown)?.id())))
        .collect()
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
            all_records,
            stacks,
            pin: _,
        } = settings.clone();
        let bytes = std::fs::read(KERNEL_BTF).map_err(ProbeError::NoBtf)?;
        let kernel = Btf::parse(&bytes)?;
        let (offsets, birth) = (offsets(&kernel)?, Birth::on(&kernel));
        drop(bytes);
        let namespace = pid_namespace()?;
        // The memory of this map is allocated as it is made.
        let ends = if scope == Scope::Machine { 1 } else { ENDS_MAX };
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
            .override_global("ALL_RECORDS", &u32::from(all_records), true)
            .override_global("STACKS_WANTED", &u32::from(stacks), true)
            .map_max_entries("EVENTS", limits.ring_bytes)
            .map_max_entries("SLOTS", limits.places)
            .map_max_entries("ENDS", ends)
            .map_max_entries("RELEASES", if all_records { 1 } else { RELEASES_MAX })
            .map_max_entries("STACKS", if stacks { STACKS_BYTES } else { UNUSED_BYTES })
            .load(OBJECT)
            .map_err(|error| ProbeError::Object(Box::new(error)))?;
        let btf =
            aya::Btf::from_sys_fs().map_err(|error| ProbeError::NoBtf(io::Error::other(error)))?;
        if scope == Scope::Machine {
            programs::load_witness(&mut ebpf, &btf)?;
        } else {
            programs::load_all(&mut ebpf, &btf, birth)?;
        }
        let mut map = |name| take_map(&mut ebpf, name);
        let maps = Maps::take(&mut map)?;
        let settings_map = map(pinned::SETTINGS)?;
        let pin_to = match &settings.pin {
            Some(path) => Some(PinDir::open(path)?),
            None => None,
        };
        if let Some(to) = &pin_to {
            // What an interrupted start has left is not whole.
            to.clear()?;
            maps.pin(to)?;
        }
        let mut probes = Self::of(Programs::Loaded(Box::new(ebpf)), maps, settings)?;
        probes.pin_to = pin_to.map(|to| (to, settings_map));
        Ok(probes)
    }

    /// Goes on with programs that are pinned, if they are. They are attached.
    ///
    /// # Errors
    ///
    /// When they were loaded otherwise, or cannot be read. Those of a cgroup that is gone are
    /// removed, as if there were none.
    pub fn resume(settings: &LoadSettings) -> Result<Option<Self>, ProbeError> {
        let Some(path) = &settings.pin else {
            return Ok(None);
        };
        let from = PinDir::open(path)?;
        if !from.is_whole() {
            return Ok(None);
        }
        let programs = Programs::Pinned(Box::new(from.witness()?), from.links()?);
        let probes = Self::of(programs, Maps::from_pins(&from)?, settings)?;
        let (attachments, _) = probes.attachments()?;
        if !attachments.iter().any(|link| link.attached) {
            // The cgroup is gone, and what happens in another one of its name is not seen.
            drop(probes);
            from.clear()?;
            return Ok(None);
        }
        from.check(&settings.pinned())?;
        Ok(Some(probes))
    }

    fn of(programs: Programs, maps: Maps, settings: &LoadSettings) -> Result<Self, ProbeError> {
        Ok(Self {
            programs,
            ring: RingBuf::try_from(maps.events).map_err(map_error("EVENTS"))?,
            violations: RingBuf::try_from(maps.violations).map_err(map_error("VIOLATIONS"))?,
            stacks: RingBuf::try_from(maps.stacks).map_err(map_error("STACKS"))?,
            capacity: capacity(settings.limits.ring_bytes),
            next_violation: None,
            counts: Counts::new(maps.counters, maps.histograms, maps.releases)?,
            ends: HashMap::try_from(maps.ends).map_err(map_error("ENDS"))?,
            targets: HashMap::try_from(maps.targets).map_err(map_error("TARGETS"))?,
            links: Vec::new(),
            scope: settings.scope,
            pin_to: None,
        })
    }

    /// Pins the witness and the links, which stay attached when this process ends. The maps are
    /// pinned already, if they should be.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pin(&mut self, settings: &LoadSettings) -> Result<(), ProbeError> {
        let (Some((to, map)), Programs::Loaded(ebpf)) = (self.pin_to.take(), &mut self.programs)
        else {
            return Ok(());
        };
        to.pin_witness(program(ebpf, "witness")?)?;
        let attach_state = AttachState::read().map_err(ProbeError::AttachState)?;
        for (name, program_id) in program_ids(ebpf)? {
            let mut links = attach_state.descriptors.iter();
            if let Some((fd, _)) = links.find(|(_, of)| *of == program_id) {
                to.pin_link(&name, *fd)?;
            }
        }
        Ok(to.pin_settings(map, &settings.pinned())?)
    }

    /// Attaches the programs that follow processes, of the whole machine.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach_processes(&mut self) -> Result<(), ProbeError> {
        match &mut self.programs {
            Programs::Loaded(ebpf) => programs::attach_processes(ebpf),
            Programs::Pinned(..) => Ok(()),
        }
    }

    /// Attaches the hooks to a cgroup and everything below it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), ProbeError> {
        if let Programs::Loaded(ebpf) = &mut self.programs {
            self.links.extend(programs::attach(ebpf, cgroup)?);
        }
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

    /// Whether one of these processes, which were named, has not exited since.
    #[must_use]
    pub fn has_target(&self, processes: &[u32]) -> bool {
        processes
            .iter()
            .any(|process| self.targets.get(process, 0).is_ok())
    }

    /// Removes a process from those of [`Scope::Processes`]. What it has started stays.
    pub fn remove_target(&mut self, process: u32) {
        // It may be gone already.
        let _ = self.targets.remove(&process);
    }

    /// Returns the links of the programs, and how many runs of them the kernel skipped that are
    /// neither made up for nor noticed otherwise.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read or the kernel refuses.
    pub fn attachments(&self) -> Result<(Vec<Attachment>, u64), ProbeError> {
        let attach_state = AttachState::read().map_err(ProbeError::AttachState)?;
        let unknown = |source| ProbeError::AttachState(io::Error::other(source));
        let programs = match &self.programs {
            Programs::Loaded(ebpf) => program_ids(ebpf)?,
            Programs::Pinned(_, links) => links
                .iter()
                .map(|(name, link)| Ok((name.clone(), link.info().map_err(unknown)?.program_id())))
                .collect::<Result<_, ProbeError>>()?,
        };
        let mut attachments = Vec::new();
        let mut skipped = 0;
        for (name, program_id) in programs {
            if !programs::is_made_up_for(&name, self.scope)? {
                skipped += attach_state.misses.get(&program_id).unwrap_or(&0);
            }
            let links = attach_state.links.iter();
            let links = links.filter(|link| link.program_id == program_id);
            attachments.extend(links.map(|link| Attachment {
                program: name.clone(),
                link_id: link.link_id,
                attached: link.is_attached,
            }));
        }
        attachments.sort_by_key(|attachment| attachment.link_id);
        Ok((attachments, skipped))
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

    /// Returns what the kernel side counts.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Sets all that the kernel side has counted to zero.
    ///
    /// # Errors
    ///
    /// When a map cannot be written.
    pub fn reset_counts(&mut self) -> Result<(), ProbeError> {
        self.counts.reset()
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
        let witness = match &mut self.programs {
            Programs::Loaded(ebpf) => program::<Iter>(ebpf, "witness")?,
            Programs::Pinned(witness, _) => witness,
        };
        let link = witness.attach().map_err(failed)?;
        let link = witness.take_link(link).map_err(failed)?;
        link.into_file()
            .map_err(|error| ProbeError::Witness(io::Error::other(error)))
    }

    /// Starts to forward the log of the programs to the `log` crate. It must be flushed regularly.
    /// That of pinned programs went with the process that loaded them.
    ///
    /// # Errors
    ///
    /// When the log's map is missing.
    pub fn program_log(&mut self) -> Result<Option<ProgramLog>, ProbeError> {
        let Programs::Loaded(ebpf) = &mut self.programs else {
            return Ok(None);
        };
        EbpfLogger::init(ebpf)
            .map(|logger| Some(ProgramLog(logger)))
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
