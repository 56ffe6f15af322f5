//! What is known of one socket, in memory that other CPUs read and write at the same time.

use core::intrinsics::{AtomicOrdering, atomic_and, atomic_or};
use core::mem::transmute;
use core::ptr::NonNull;

use tracer_abi::annotation::{LABEL_MAX, Owner};
use tracer_abi::facts::{Facts, Socket};
use tracer_abi::record::Brief;

use crate::kernel;

/// Refers to the value that a map keeps for a socket.
///
/// There is no Rust reference to the value, since nothing keeps other CPUs from writing to it.
/// Every field is loaded and stored by itself, as by the kernel's `READ_ONCE` and `WRITE_ONCE`: in
/// one instruction, which volatile gives. Fields of several words may be torn.
#[derive(Clone, Copy)]
pub(crate) struct SocketRef(NonNull<Socket>);

/// Methods that load and store the fields of [`Facts`].
macro_rules! fields {
    (load { $($name:ident: $number:ty,)* } store { $($set:ident: $field:ident: $value:ty,)* }) => {
        $(#[inline(always)]
        pub(crate) fn $name(self) -> $number {
            // SAFETY: a field of a map's value; `repr(C)` aligns it.
            unsafe { (&raw const (*self.facts()).$name).read_volatile() }
        })*
        $(#[inline(always)]
        pub(crate) fn $set(self, value: $value) {
            // SAFETY: a field of a map's value; `repr(C)` aligns it.
            unsafe { (&raw mut (*self.facts()).$field).write_volatile(value) };
        })*
    };
}

impl SocketRef {
    /// # Safety
    ///
    /// `socket` must be the value of a map, or lie in one.
    #[inline(always)]
    pub(crate) const unsafe fn new(socket: NonNull<Socket>) -> Self {
        Self(socket)
    }

    fields! {
        load {
            id: u64,
            born_ns: u64,
            held_ns: u64,
            bound_ns: u64,
            peer_done_ns: u64,
            dead_ns: u64,
            flags: u32,
            family: u16,
            protocol: u16,
            remote_port: u16,
            local_port: u16,
            state: u16,
            role: u16,
            opener: u32,
            cookie: u64,
        }
        store {
            set_id: id: u64,
            set_born_ns: born_ns: u64,
            set_held_ns: held_ns: u64,
            set_bound_ns: bound_ns: u64,
            set_peer_done_ns: peer_done_ns: u64,
            set_dead_ns: dead_ns: u64,
            set_flags: flags: u32,
            set_family: family: u16,
            set_protocol: protocol: u16,
            set_bytes_received: bytes_received: u64,
            set_bytes_acked: bytes_acked: u64,
            set_remote_port: remote_port: u16,
            set_local_port: local_port: u16,
            set_state: state: u16,
            set_role: role: u16,
            set_opener: opener: u32,
            set_label_len: label_len: u32,
            set_cookie: cookie: u64,
        }
    }

    #[inline(always)]
    pub(crate) const fn as_ptr(self) -> *mut Socket {
        self.0.as_ptr()
    }

    #[inline(always)]
    const fn facts(self) -> *mut Facts {
        // SAFETY: the field of a value that is there.
        unsafe { &raw mut (*self.as_ptr()).facts }
    }

    /// Sets bits of the flags and returns those that were set before.
    #[inline(always)]
    pub(crate) fn mark(self, bits: u32) -> u32 {
        // SAFETY: a field of a map's value, aligned. Not relaxed: LLVM gives relaxed atomics the
        // instructions that return nothing.
        unsafe {
            let flags = &raw mut (*self.facts()).flags;
            atomic_or::<u32, u32, { AtomicOrdering::AcqRel }>(flags, bits)
        }
    }

    /// Clears bits of the flags.
    #[inline(always)]
    pub(crate) fn unmark(self, bits: u32) {
        // SAFETY: as in `mark`.
        unsafe {
            let flags = &raw mut (*self.facts()).flags;
            atomic_and::<u32, u32, { AtomicOrdering::AcqRel }>(flags, !bits);
        }
    }

    /// Clears everything but the label. Only for a socket that no other program knows yet.
    #[inline(always)]
    pub(crate) fn clear(self) {
        const WORDS: usize = size_of::<Facts>() / 8;
        // SAFETY: the facts of a map's value, aligned to eight bytes.
        unsafe { self.facts().cast::<[u64; WORDS]>().write([0; WORDS]) };
    }

    #[inline(always)]
    pub(crate) fn brief(self) -> Brief {
        Brief {
            id: self.id(),
            born_ns: self.born_ns(),
            flags: self.flags(),
            family: self.family(),
            protocol: self.protocol(),
        }
    }

    #[inline(always)]
    pub(crate) fn owner(self) -> Owner {
        // SAFETY: fields of a map's value, aligned.
        unsafe {
            let owner = &raw mut (*self.facts()).owner;
            Owner {
                session: (&raw const (*owner).session).read_volatile(),
                stream: (&raw const (*owner).stream).read_volatile(),
            }
        }
    }

    #[inline(always)]
    pub(crate) fn set_owner(self, to: Owner) {
        // SAFETY: fields of a map's value, aligned.
        unsafe {
            let owner = &raw mut (*self.facts()).owner;
            (&raw mut (*owner).session).write_volatile(to.session);
            (&raw mut (*owner).stream).write_volatile(to.stream);
        }
    }

    /// Sets the label, of at most [`LABEL_MAX`] bytes, from memory that the kernel lets be read.
    #[inline(always)]
    pub(crate) fn set_label(self, from: *const u8, length: u32) {
        self.set_label_len(length);
        // SAFETY: the label of a map's value. The verifier rejects a program whose length is not
        // bounded by the label's.
        unsafe {
            let label = &raw mut (*self.as_ptr()).label;
            label.write([0; LABEL_MAX]);
            kernel::copy(label.cast(), length, from);
        }
    }

    /// Sets the name of the process that opened it.
    #[inline(always)]
    pub(crate) fn set_comm(self, words: [u64; 2]) {
        // SAFETY: sixteen bytes of a map's value, aligned to eight.
        unsafe {
            (&raw mut (*self.facts()).comm)
                .cast::<[u64; 2]>()
                .write(words)
        };
    }

    #[inline(always)]
    pub(crate) fn remote(self) -> [u8; 16] {
        // SAFETY: sixteen bytes of a map's value, aligned to eight.
        unsafe {
            let remote = (&raw const (*self.facts()).remote).cast::<[u64; 2]>();
            transmute::<[u64; 2], [u8; 16]>(remote.read_volatile())
        }
    }

    /// Sets the `N`th word of the addresses, which are in network order as their words are.
    #[inline(always)]
    pub(crate) fn set_addresses<const N: usize>(self, local: u32, remote: u32) {
        const { assert!(N < 4) };
        // SAFETY: a word of sixteen bytes of a map's value, aligned.
        unsafe {
            let facts = self.facts();
            (&raw mut (*facts).local)
                .cast::<u32>()
                .add(N)
                .write_volatile(local);
            (&raw mut (*facts).remote)
                .cast::<u32>()
                .add(N)
                .write_volatile(remote);
        }
    }

    /// Sets the `N`th word of the remote address.
    #[inline(always)]
    pub(crate) fn set_remote<const N: usize>(self, word: u32) {
        const { assert!(N < 4) };
        // SAFETY: a word of sixteen bytes of a map's value, aligned.
        unsafe {
            let remote = (&raw mut (*self.facts()).remote).cast::<u32>();
            remote.add(N).write_volatile(word);
        }
    }

    /// Copies everything, while other CPUs may write to it.
    ///
    /// # Safety
    ///
    /// `to` must be memory of a ring, of this size and aligned to eight bytes.
    #[inline(always)]
    pub(crate) unsafe fn copy_to(self, to: *mut Socket) {
        let (from, to) = (self.as_ptr().cast::<u64>(), to.cast::<u64>());
        for n in 0..size_of::<Socket>() / 8 {
            // SAFETY: a word of a map's value, aligned; `to` is the caller's promise.
            unsafe { to.add(n).write(from.add(n).read_volatile()) };
        }
    }
}
