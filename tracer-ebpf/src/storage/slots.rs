//! Slots for what is known of sockets, allocated at start. A socket that finds its slot taken has
//! an `sk_storage` instead. That is two allocations, and two objects to free a grace period later:
//! two fifths of what the hooks would cost.
//!
//! The kernel reports no end of a socket but the release of its last descriptor. A socket that
//! never had one, such as a connection in a backlog when the listener goes, leaves its slot behind.
//! So a slot is a socket's own only if the cookie is right as well as the address. The next socket
//! at the same address takes the slot over.

use core::arch::asm;
use core::intrinsics::{AtomicOrdering, atomic_cxchg};
use core::ptr::{self, NonNull};

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use tracer_abi::facts::Socket;
use tracer_abi::limits::SLOTS;

use crate::kernel::{self, Sock};
use crate::socket::SocketRef;

#[repr(C)]
struct Slot {
    /// The [`address`] of the socket whose slot it is; 0 when it is free.
    owner: u64,
    socket: Socket,
}

#[btf_map(name = "SLOTS")]
static TABLE: Array<Slot, { SLOTS as usize }> = Array::new();

/// Set before load: how many slots there are, a power of two, less one.
#[unsafe(no_mangle)]
static SLOTS_MASK: u32 = SLOTS - 1;

/// Spreads the addresses, whose low bits are alike: 2^64 divided by the golden ratio (Knuth, The
/// Art of Computer Programming, volume 3, section 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns a number that stands for a socket's address, never 0. The verifier rejects arithmetic on
/// such a pointer but for the difference of two (`adjust_reg_min_max_vals`). The other one points
/// to data of our own, which every program sees at the same address.
#[inline(always)]
fn address(sk: Sock) -> u64 {
    let mut address = sk.as_ptr() as u64;
    // SAFETY: a subtraction. LLVM must not see it: it would compute with each of the two pointers.
    unsafe {
        asm!(
            "{0} -= {1}",
            inout(reg) address,
            in(reg) kernel::offsets() as u64,
            options(pure, nomem)
        );
    }
    address
}

/// Refers to a slot, which other CPUs read and write at the same time.
#[derive(Clone, Copy)]
struct SlotRef(NonNull<Slot>);

impl SlotRef {
    #[inline(always)]
    fn at(address: u64) -> Option<Self> {
        // SAFETY: a static of our own; volatile because user space writes it before the load.
        let mask = unsafe { ptr::read_volatile(&raw const SLOTS_MASK) };
        let [_, _, _, _, high @ ..] = address.wrapping_mul(SPREAD).to_le_bytes();
        let n = u32::from_le_bytes(high) & mask;
        NonNull::new(TABLE.get_ptr_mut(n)?).map(Self)
    }

    #[inline(always)]
    fn owner(self) -> u64 {
        // SAFETY: the map returned the pointer; the field is an aligned word.
        unsafe { (&raw const (*self.0.as_ptr()).owner).read_volatile() }
    }

    /// Makes `to` the owner if `from` is, and returns the owner before. Ordered against all that
    /// either does with the slot.
    #[inline(always)]
    fn change_owner(self, from: u64, to: u64) -> u64 {
        // SAFETY: the map returned the pointer; the field is an aligned word.
        let (owner, _) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(
                &raw mut (*self.0.as_ptr()).owner,
                from,
                to,
            )
        };
        owner
    }

    #[inline(always)]
    fn socket(self) -> SocketRef {
        // SAFETY: a part of a map's value.
        unsafe { SocketRef::new(NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).socket)) }
    }
}

/// Looks for the slot of a socket with this cookie.
#[inline(always)]
pub(super) fn find(sk: Sock, cookie: impl FnOnce() -> u64) -> Option<SocketRef> {
    let address = address(sk);
    let slot = SlotRef::at(address)?;
    (slot.owner() == address && slot.socket().cookie() == cookie()).then(|| slot.socket())
}

/// Gives a socket that is not known yet its slot, with facts of nothing but its cookie, unless
/// another has it.
#[inline(always)]
pub(super) fn claim(sk: Sock, cookie: u64) -> Option<SocketRef> {
    let address = address(sk);
    let slot = SlotRef::at(address)?;
    let owner = slot.change_owner(0, address);
    if owner != 0 && owner != address {
        return None;
    }
    // Nobody else has this address, and the socket that had it is gone.
    let socket = slot.socket();
    socket.clear();
    socket.set_cookie(cookie);
    Some(socket)
}

/// Frees the slot of a socket that is released, if it has one. No other program may be at the
/// socket any more: the caller holds the socket's lock, or TCP has no more callbacks for it.
#[inline(always)]
pub(crate) fn release(sk: Sock) {
    let address = address(sk);
    if let Some(slot) = SlotRef::at(address) {
        slot.change_owner(address, 0);
    }
}
