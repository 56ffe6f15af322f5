//! `struct sock`.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;

use super::{is_audited, offset, read, since_jiffies32};

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
    /// For programs that are not offered `bpf_get_socket_cookie`.
    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        self.address()
            .and_then(|sk| read(sk, offset!(sock_cookie)))
            .unwrap_or(0)
    }

    /// Returns the state, `TCP_*`.
    #[inline(always)]
    pub(crate) fn state(self) -> Option<u32> {
        read::<u8>(self.address()?, offset!(sock_state)).map(u32::from)
    }

    /// Returns when a TCP socket last sent a byte, as of `now_ns`: now, while bytes wait to be sent
    /// or acknowledged. Returns 0 if that cannot be read.
    #[inline(always)]
    pub(crate) fn sent_ns(self, now_ns: u64) -> u64 {
        let Some(sk) = self.address() else { return 0 };
        let (Some(written), Some(acknowledged), Some(sent)) = (
            read::<u32>(sk, offset!(tcp_write_seq)),
            read::<u32>(sk, offset!(tcp_snd_una)),
            read::<u32>(sk, offset!(tcp_lsndtime)),
        ) else {
            return 0;
        };
        if written != acknowledged {
            return now_ns;
        }
        now_ns.saturating_sub(since_jiffies32(sent))
    }

    /// Returns the address as a number that may be counted with. The verifier rejects pointer
    /// arithmetic on sockets, so the address goes by the stack: the helper that reads it from there
    /// does not know what it is.
    #[inline(always)]
    fn address(self) -> Option<*const c_void> {
        let mut on_stack = core::ptr::null::<c_void>();
        // SAFETY: a variable of our own; volatile so that it is one.
        unsafe { (&raw mut on_stack).write_volatile(self.0) };
        read::<*const c_void>((&raw const on_stack).cast(), 0)
    }

    /// Whether it was made in the audited cgroup or below it.
    #[inline(always)]
    pub(crate) fn is_made_inside(self) -> bool {
        self.read::<*const c_void>(offset!(sock_cgrp_data))
            .is_some_and(is_audited)
    }
}
