//! Places for what is known of sockets, allocated at start. A socket that finds its place taken has an `sk_storage` instead, which
//! is two allocations, and two objects to free a grace period later: two fifths of what the hooks would cost.
//!
//! The kernel tells of no socket's end but the release of its last descriptor. What never had one, such as a connection that waits
//! in a backlog when the listener goes, leaves its place behind. So the address is not enough to know a socket by: it must
//! have the cookie, too. Whoever comes to the same address takes the place over.

use core::arch::asm;
use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_cxchg};
use core::ptr::{self, NonNull};

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use tracer_abi::facts::{Facts, Socket};
use tracer_abi::limits::PLACES;

use crate::kernel;

#[repr(C)]
struct Place {
    /// The [`address`] of the socket whose place it is; 0 when it is free.
    tenant: u64,
    socket: Socket,
}

#[btf_map(name = "PLACES")]
static TABLE: Array<Place, { PLACES as usize }> = Array::new();

/// Set before load: how many places there are, a power of two, less one.
#[unsafe(no_mangle)]
static PLACES_MASK: u32 = PLACES - 1;

/// Spreads the addresses, whose low bits are alike: 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming,
/// volume 3, section 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns what tells a socket's address apart, never 0. The verifier lets nobody reckon with such a pointer, but for the
/// difference of two (`adjust_reg_min_max_vals`): it is the one to data of our own, which every program sees at the same address.
#[inline(always)]
fn address(sk: *mut c_void) -> u64 {
    let mut address = sk as u64;
    // SAFETY: a subtraction. LLVM must not see it: it would reckon with the two pointers, each for itself.
    unsafe {
        asm!("{0} -= {1}", inout(reg) address, in(reg) kernel::offsets(), options(pure, nomem));
    }
    address
}

#[inline(always)]
fn place(address: u64) -> Option<NonNull<Place>> {
    // SAFETY: a static of our own; volatile because user space writes it before the load.
    let mask = unsafe { ptr::read_volatile(&raw const PLACES_MASK) };
    let n = (address.wrapping_mul(SPREAD) >> 32) as u32 & mask;
    NonNull::new(TABLE.get_ptr_mut(n)?)
}

/// Looks for the place of a socket with this cookie.
#[inline(always)]
pub(super) fn find(sk: *mut c_void, cookie: impl FnOnce() -> u64) -> Option<NonNull<Socket>> {
    let address = address(sk);
    let place = place(address)?.as_ptr();
    // SAFETY: the verifier has checked the lookup; both are single loads of words that are there.
    unsafe {
        let is_mine = (&raw const (*place).tenant).read_volatile() == address
            && (*place).socket.facts.cookie == cookie();
        if is_mine {
            NonNull::new(&raw mut (*place).socket)
        } else {
            None
        }
    }
}

/// Gives a socket that nobody knows yet its place, with facts of nothing but its cookie, unless another has it.
#[inline(always)]
pub(super) fn claim(sk: *mut c_void, cookie: u64) -> Option<NonNull<Socket>> {
    let address = address(sk);
    let place = place(address)?;
    let tenant = change_tenant(place, 0, address);
    if tenant != 0 && tenant != address {
        return None;
    }
    let place = place.as_ptr();
    // SAFETY: the verifier has checked the lookup; nobody else has this address, and who had it is gone.
    unsafe {
        (&raw mut (*place).socket.facts)
            .cast::<[u64; size_of::<Facts>() / 8]>()
            .write([0; size_of::<Facts>() / 8]);
        (*place).socket.facts.cookie = cookie;
        NonNull::new(&raw mut (*place).socket)
    }
}

/// Lets others have the place of a socket that is released, if it has one. No program may be at the socket any more but the one
/// that calls this: it holds the socket's lock, or TCP has nothing to tell.
#[inline(always)]
pub(crate) fn free(sk: *mut c_void) {
    let address = address(sk);
    if let Some(place) = place(address) {
        change_tenant(place, address, 0);
    }
}

/// Makes `to` the tenant if `from` is, and returns who was. Ordered against all that either does with the place.
#[inline(always)]
fn change_tenant(place: NonNull<Place>, from: u64, to: u64) -> u64 {
    // SAFETY: the verifier has checked the lookup; the word is eight bytes and aligned.
    let (tenant, _) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(
            &raw mut (*place.as_ptr()).tenant,
            from,
            to,
        )
    };
    tenant
}
