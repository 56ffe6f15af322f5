//! `struct sock`.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;

use super::{is_audited, offset, read};

/// A socket's address, or the context that stands for it, which the helpers take for a socket.
#[derive(Clone, Copy)]
pub(crate) struct Sock(*mut c_void);

impl Sock {
    /// # Safety
    ///
    /// `sk` must be a socket that is not null, and the verifier must know that it is one.
    #[inline(always)]
    pub(crate) const unsafe fn new(sk: *mut c_void) -> Self {
        Self(sk)
    }

    /// Returns the socket of a program whose context is the socket.
    #[inline(always)]
    pub(crate) fn of(ctx: &impl EbpfContext) -> Self {
        Self(ctx.as_ptr())
    }

    #[inline(always)]
    pub(crate) const fn as_ptr(self) -> *mut c_void {
        self.0
    }

    /// Reads a field; `None` when the kernel refuses the address.
    #[inline(always)]
    pub(crate) fn read<T>(self, offset: usize) -> Option<T> {
        read(self.0, offset)
    }

    /// Returns the cookie; 0 while it has none.
    ///
    /// For programs that are not offered `bpf_get_socket_cookie`. The verifier rejects pointer
    /// arithmetic on their sockets, so the address goes by the stack: the helper that reads it from
    /// there does not know what it is.
    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        let mut on_stack = core::ptr::null::<c_void>();
        // SAFETY: a variable of our own; volatile so that it is one.
        unsafe { (&raw mut on_stack).write_volatile(self.0) };
        read::<*const c_void>((&raw const on_stack).cast(), 0)
            .and_then(|sk| read(sk, offset!(sock_cookie)))
            .unwrap_or(0)
    }

    /// Whether it was made in the audited cgroup or below it.
    #[inline(always)]
    pub(crate) fn is_made_inside(self) -> bool {
        self.read::<*const c_void>(offset!(sock_cgrp_data))
            .is_some_and(is_audited)
    }
}
