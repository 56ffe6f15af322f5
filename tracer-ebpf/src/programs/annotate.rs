//! `setsockopt`: the annotation channel.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockoptContext;
use aya_log_ebpf::warn;
use tracer_abi::annotation::{BIND, END, Header, LABEL_MAX, Owner, Role, SOL_WATERTIGHT, Utf8};
use tracer_abi::counter::Counter;
use tracer_abi::facts::{AF_INET, AF_INET6, Socket, fact};

use super::{ALLOW, REFUSE};
use crate::emit;
use crate::kernel;
use crate::storage::{self, annotates, count, held, mark, new_id, now_ns};

/// In `bpf_sockopt.optlen`: the call is done, the kernel's own handler is not to see it.
const HANDLED: i32 = -1;

#[inline(always)]
pub(super) fn annotated(ctx: &SockoptContext) -> i32 {
    // SAFETY: the context is valid; the verifier rewrites the accesses.
    let (level, name) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    if level != SOL_WATERTIGHT {
        return ALLOW;
    }
    let taken = match name {
        BIND => bind(ctx),
        END => end(ctx),
        _ => None,
    };
    if taken.is_none() {
        count(Counter::Refused);
        return REFUSE;
    }
    // SAFETY: as above; the field is writable for this program type.
    unsafe { (*ctx.sockopt).optlen = HANDLED };
    ALLOW
}

/// The annotation's bytes, as the verifier wants them: two bounds of one packet.
struct Value {
    start: *const u8,
    end: *const u8,
}

impl Value {
    #[inline(always)]
    fn of(ctx: &SockoptContext) -> Self {
        // SAFETY: both are pointers into the copied value; 64-bit contexts read them whole.
        unsafe {
            Self {
                start: ptr::read_volatile((&raw const (*ctx.sockopt).__bindgen_anon_2).cast()),
                end: ptr::read_volatile((&raw const (*ctx.sockopt).__bindgen_anon_3).cast()),
            }
        }
    }

    /// The fixed part, when it is there and well formed.
    #[inline(always)]
    fn header(&self) -> Option<Header> {
        if self.start.wrapping_add(Header::LEN) > self.end {
            return None;
        }
        // SAFETY: the bounds were checked. The copy is aligned (`kzalloc`, or the context's own buffer).
        let header = unsafe { ptr::read_unaligned(self.start.cast::<Header>()) };
        header.is_well_formed().then_some(header)
    }
}

/// The value's length, as the caller gave it. Where a tracer within this one has taken the call, it is what was copied.
#[inline(always)]
fn length(ctx: &SockoptContext, value: &Value) -> i32 {
    // SAFETY: the context is valid. Volatile: see `bind`.
    let length = unsafe { ptr::read_volatile(&raw const (*ctx.sockopt).optlen) };
    if length == HANDLED {
        return (value.end as i64 - value.start as i64) as i32;
    }
    length
}

/// `None` when the annotation is malformed.
#[inline(always)]
fn bind(ctx: &SockoptContext) -> Option<()> {
    // Here and not where it is needed: the verifier would follow its ways through PID namespaces anew each time.
    let tgid = kernel::tgid();
    let value = Value::of(ctx);
    let header = value.header()?;
    let role = Role::from_u16(header.detail)?;
    check_label(&value, label_len(ctx, &value)?)?;
    // Asked for anew: to the verifier what was checked is something else for every length of the label, and it would follow all
    // that comes for each of them.
    let value = Value::of(ctx);
    let label_len = label_len(ctx, &value)?;
    let Some(socket) = socket(ctx) else {
        warn!(
            ctx,
            "no storage for an annotated socket: its owner cannot be kept"
        );
        return Some(());
    };
    let now_ns = now_ns();
    if mark(socket, fact::BOUND) & fact::BOUND == 0 {
        count(Counter::Tagged);
    }
    // SAFETY: `socket` comes from the storage; the caller holds the socket's lock.
    let known = unsafe { &mut *socket.as_ptr() };
    // As it was until now: who annotates for the first time owed nothing yet.
    let unowned = storage::unowned_bit(&known.facts, now_ns, || tgid);
    annotates(tgid);
    let ends = storage::ends(&known.facts);
    if unowned != 0 || storage::is_late(&known.facts, &ends, now_ns) {
        emit::renewed(now_ns, unowned, tgid, known, ends);
    }
    storage::leave_pool(&mut known.facts, now_ns);
    storage::opened_by(&mut known.facts, || tgid);
    known.facts.owner = header.owner;
    known.facts.role = role as u16;
    known.facts.bound_ns = now_ns;
    known.facts.label_len = label_len;
    known.label = [0; LABEL_MAX];
    let label = value.start.wrapping_add(Header::LEN);
    kernel::copy((&raw mut known.label).cast(), label_len, label);
    emit::bound(tgid, &known.facts);
    Some(())
}

/// How long the label is, in bytes.
#[inline(always)]
fn label_len(ctx: &SockoptContext, value: &Value) -> Option<u32> {
    let length = u32::try_from(length(ctx, value) - Header::LEN as i32).ok()?;
    (length <= LABEL_MAX as u32).then_some(length)
}

/// Checks that the label is there, and UTF-8.
#[inline(always)]
fn check_label(value: &Value, length: u32) -> Option<()> {
    let mut text = Utf8::start();
    for n in 0..LABEL_MAX {
        if n as u32 >= length {
            break;
        }
        let from = value.start.wrapping_add(Header::LEN + n);
        if from.wrapping_add(1) > value.end {
            return None;
        }
        // SAFETY: the bounds were checked.
        text = text.next(unsafe { *from })?;
    }
    text.is_complete().then_some(())
}

/// `None` when the annotation is malformed.
#[inline(always)]
fn end(ctx: &SockoptContext) -> Option<()> {
    let value = Value::of(ctx);
    let header = value.header()?;
    if length(ctx, &value) != Header::LEN as i32 {
        return None;
    }
    let owner = if header.owner == Owner::PRESENT {
        present_owner(ctx)?
    } else {
        header.owner
    };
    let now_ns = now_ns();
    if storage::end(owner, now_ns) {
        emit::ended(now_ns, owner, header.detail);
    }
    Some(())
}

#[inline(always)]
fn sk(ctx: &SockoptContext) -> *mut bpf_sock {
    // SAFETY: the context is valid; `sk` is never null here.
    unsafe { (*ctx.sockopt).__bindgen_anon_1.sk }
}

/// The owner that the socket of this call is bound to; an END of nobody is malformed.
#[inline(always)]
fn present_owner(ctx: &SockoptContext) -> Option<Owner> {
    let sk = sk(ctx).cast::<c_void>();
    let socket = storage::lookup(sk, || kernel::cookie_of(sk))?;
    // SAFETY: `socket` comes from the storage.
    let facts = unsafe { &(*socket.as_ptr()).facts };
    (facts.bound_ns != 0).then_some(facts.owner)
}

/// What is known of the call's socket. One that no other hook saw is a child accepted on a listener from before, or
/// belongs to a family without create and release hooks.
#[inline(always)]
fn socket(ctx: &SockoptContext) -> Option<NonNull<Socket>> {
    let sk = sk(ctx);
    let met = storage::lookup(sk.cast(), || kernel::cookie_of(sk.cast()));
    let socket = met.or_else(|| storage::create(sk.cast()))?;
    // SAFETY: `socket` comes from the storage, `sk` is the context's.
    unsafe {
        let facts = &mut (*socket.as_ptr()).facts;
        if facts.id == 0 {
            facts.id = new_id();
            facts.born_ns = now_ns();
            facts.family = (*sk).family as u16;
            facts.protocol = (*sk).protocol as u16;
            if facts.family == AF_INET || facts.family == AF_INET6 {
                mark(socket, fact::CHILD);
            } else {
                count(Counter::Unhooked);
            }
        }
    }
    held(socket, now_ns);
    Some(socket)
}
