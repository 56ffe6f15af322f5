//! `struct task_struct`.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use tracer_abi::offsets::PID_NS_LEVELS;

use super::{is_audited, is_in_initial_namespace, offset, pid_namespace, read};

/// `PF_EXITING` (linux/sched.h).
const PF_EXITING: u32 = 0x4;

/// A task whose type the verifier knows.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const c_void);

impl Task {
    /// # Safety
    ///
    /// `task` must be a `struct task_struct *` as the kernel hands it to the program, not null.
    #[inline(always)]
    pub(crate) const unsafe fn new(task: *const c_void) -> Self {
        Self(task)
    }

    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: the helper has no preconditions.
        Self(unsafe { bpf_get_current_task_btf() } as *const c_void)
    }

    /// Loads a field without the call that [`read`] is; where the address is bad the kernel gives
    /// zeros.
    ///
    /// # Safety
    ///
    /// `offset` must be that of a field or an array of at least this size.
    #[inline(always)]
    unsafe fn load<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the caller's promise. Volatile: LLVM must not make other loads of it.
        unsafe { ptr::read_volatile(self.0.byte_add(offset).cast::<T>()) }
    }

    /// Returns the number of the process in the tracer's PID namespace (`task_tgid_nr_ns`); 0 when
    /// it has none there. `bpf_get_current_pid_tgid` is not offered to every program type that
    /// needs it, and knows the initial PID namespace only.
    #[inline(always)]
    pub(crate) fn tgid(self) -> u32 {
        if is_in_initial_namespace() {
            return self.initial_tgid();
        }
        self.number_in(pid_namespace()).unwrap_or(0)
    }

    #[inline(always)]
    fn number_in(self, wanted: u32) -> Option<u32> {
        let leader = read::<*const c_void>(self.0, offset!(task_group_leader))?;
        let pid = read::<*const c_void>(leader, offset!(task_thread_pid))?;
        let level = read::<u32>(pid, offset!(pid_level))?;
        for n in 0..=PID_NS_LEVELS {
            if n > level {
                break;
            }
            let number = offset!(pid_numbers) + n as usize * offset!(upid_size);
            let namespace = read::<*const c_void>(pid, number + offset!(upid_ns))?;
            if read::<u32>(namespace, offset!(pid_namespace_inum))? == wanted {
                return read::<u32>(pid, number);
            }
        }
        None
    }

    /// Returns the number of the process in the initial PID namespace, which is never 0.
    #[inline(always)]
    pub(crate) fn initial_tgid(self) -> u32 {
        let at = offset!(task_tgid);
        // SAFETY: the field's offset.
        unsafe { self.load(at) }
    }

    /// Returns the first thread of the process.
    #[inline(always)]
    fn leader(self) -> Self {
        let at = offset!(task_group_leader);
        // SAFETY: the field's offset; a leader is a task.
        unsafe { Self(self.load(at)) }
    }

    /// Returns `comm` of the process: that of its first thread, as threads have names of their own.
    #[inline(always)]
    pub(crate) fn comm(self) -> [u64; 2] {
        let at = offset!(task_comm);
        let leader = self.leader();
        // SAFETY: `comm` is an array of 16 bytes.
        unsafe { [leader.load(at), leader.load(at + 8)] }
    }

    /// Whether it is on its way out, so that the kernel and not the program drops its descriptors.
    #[inline(always)]
    pub(crate) fn is_exiting(self) -> bool {
        let at = offset!(task_flags);
        // SAFETY: the field's offset.
        let flags = unsafe { self.load::<u32>(at) };
        flags & PF_EXITING != 0
    }

    /// Returns when the process was started.
    #[inline(always)]
    pub(crate) fn started_ns(self) -> u64 {
        let at = offset!(task_start_time);
        // SAFETY: the field's offset.
        unsafe { self.leader().load(at) }
    }

    /// Returns a number that an exec changes, and that no other process of this process's number
    /// has: nobody execs once a nanosecond.
    #[inline(always)]
    pub(crate) fn life(self) -> u64 {
        let at = offset!(task_self_exec_id);
        // SAFETY: the field's offset. An exec counts it up, and a child begins with its parent's.
        let execs: u64 = unsafe { self.load(at) };
        self.started_ns().wrapping_add(execs)
    }

    /// Whether it is the first thread of its process, which goes last.
    #[inline(always)]
    pub(crate) fn is_leader(self) -> bool {
        ptr::eq(self.leader().0, self.0)
    }

    /// Whether a task that exits is the last thread of its process: `do_exit` has counted it off.
    #[inline(always)]
    pub(crate) fn is_last_thread(self) -> bool {
        read::<*const c_void>(self.0, offset!(task_signal))
            .and_then(|signal| read::<i32>(signal, offset!(signal_live)))
            .is_none_or(|live| live == 0)
    }

    /// Whether it is in the audited cgroup or below it.
    #[inline(always)]
    pub(crate) fn is_inside(self) -> bool {
        read::<*const c_void>(self.0, offset!(task_cgroups))
            .and_then(|set| read::<*const c_void>(set, offset!(css_set_dfl_cgrp)))
            .is_some_and(is_audited)
    }

    /// Returns where the kernel keeps the registers of user space, for [`read`].
    #[inline(always)]
    pub(crate) fn user_registers(self) -> *const c_void {
        // SAFETY: the verifier checks that it is a task.
        unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) as *const c_void }
    }
}
