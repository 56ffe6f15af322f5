//! `setsockopt`: the annotation channel.

use core::ptr;

use aya_ebpf::programs::SockoptContext;
use aya_log_ebpf::warn;
use tracer_abi::annotation::{BIND, END, Header, LABEL_MAX, Owner, Role, SOL_WATERTIGHT, Utf8};
use tracer_abi::counter::Counter;
use tracer_abi::facts::{AF_INET, AF_INET6, fact};

use super::{ALLOW, REFUSE};
use crate::counters::count;
use crate::emit;
use crate::kernel::{self, Sock, low_u16, now_ns, size_u32};
use crate::rules;
use crate::socket::SocketRef;
use crate::storage::{self, hold, new_id};

/// In `bpf_sockopt.optlen`: the call is done, and the kernel's own handler does not see it.
const HANDLED: i32 = -1;

/// The length of an annotation's fixed part, as `optlen` has it.
const HEADER_LEN: i32 = size_u32(Header::LEN).cast_signed();

#[inline(always)]
pub(super) fn annotated(ctx: &SockoptContext) -> i32 {
    // SAFETY: the context is valid; the verifier rewrites the accesses.
    let (level, name) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    if level != SOL_WATERTIGHT || storage::is_bystander() {
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

    /// Returns how many bytes were copied.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the kernel copies a page at most"
    )]
    fn copied(&self) -> i32 {
        (self.end as u64).wrapping_sub(self.start as u64) as i32
    }

    /// Returns the fixed part, when it is there and well formed.
    #[inline(always)]
    fn header(&self) -> Option<Header> {
        if self.start.wrapping_add(Header::LEN) > self.end {
            return None;
        }
        // SAFETY: the bounds were checked. The copy is aligned (`kzalloc`, or the context's own
        // buffer).
        let header = unsafe { ptr::read_unaligned(self.start.cast::<Header>()) };
        header.is_well_formed().then_some(header)
    }
}

/// Returns the value's length, as the caller gave it. Where a tracer within this one has taken the
/// call, it is what was copied.
#[inline(always)]
fn length(ctx: &SockoptContext, value: &Value) -> i32 {
    // SAFETY: the context is valid. Volatile: see `bind`.
    let length = unsafe { ptr::read_volatile(&raw const (*ctx.sockopt).optlen) };
    if length == HANDLED {
        return value.copied();
    }
    length
}

/// `None` when the annotation is malformed.
#[inline(always)]
fn bind(ctx: &SockoptContext) -> Option<()> {
    // Here and not where it is needed: the verifier would follow the loop over PID namespaces anew
    // each time.
    let tgid = kernel::tgid();
    let value = Value::of(ctx);
    let header = value.header()?;
    let role = Role::from_u16(header.detail)?;
    check_label(&value, label_len(ctx, &value)?)?;
    // Read anew: after the check the verifier has a state for every length of the label, and would
    // follow the rest for each of them.
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
    if socket.mark(fact::BOUND) & fact::BOUND == 0 {
        count(Counter::Tagged);
    }
    // Before the process is remembered: one that annotates for the first time owed nothing yet.
    let unowned = rules::unowned_bit(socket, now_ns, || tgid);
    storage::remember_annotator(tgid);
    let ends = storage::ends(socket);
    if unowned != 0 || rules::is_late(socket, &ends, now_ns) {
        emit::renewed(now_ns, unowned, tgid, socket, ends);
    }
    rules::leave_pool(socket, now_ns);
    storage::set_opener(socket, || tgid);
    socket.set_owner(header.owner);
    socket.set_role(role as u16);
    socket.set_bound_ns(now_ns);
    socket.set_label(value.start.wrapping_add(Header::LEN), label_len);
    emit::bound(tgid, socket);
    Some(())
}

/// Returns how long the label is, in bytes.
#[inline(always)]
fn label_len(ctx: &SockoptContext, value: &Value) -> Option<u32> {
    let length = u32::try_from(length(ctx, value) - HEADER_LEN).ok()?;
    (length <= size_u32(LABEL_MAX)).then_some(length)
}

/// Checks that the label is there, and UTF-8.
#[inline(always)]
fn check_label(value: &Value, length: u32) -> Option<()> {
    let mut text = Utf8::start();
    for n in 0..LABEL_MAX {
        if size_u32(n) >= length {
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
    if length(ctx, &value) != HEADER_LEN {
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
fn sk(ctx: &SockoptContext) -> Sock {
    // SAFETY: the context is valid; `sk` is a socket, never null here.
    unsafe { Sock::new((*ctx.sockopt).__bindgen_anon_1.sk.cast()) }
}

/// Returns the owner that the socket of this call is bound to; an END without one is malformed.
#[inline(always)]
fn present_owner(ctx: &SockoptContext) -> Option<Owner> {
    let sk = sk(ctx);
    let socket = storage::lookup(sk, || sk.cookie())?;
    (socket.bound_ns() != 0).then(|| socket.owner())
}

/// Returns what is known of the call's socket. One that no other hook saw is a child accepted on a
/// listener from before, or belongs to a family without create and release hooks.
#[inline(always)]
fn socket(ctx: &SockoptContext) -> Option<SocketRef> {
    let sk = sk(ctx);
    let known = storage::lookup(sk, || sk.cookie());
    let socket = known.or_else(|| storage::create(sk))?;
    if socket.id() == 0 {
        // SAFETY: the context is valid; the verifier rewrites the accesses.
        let (family, protocol) = unsafe {
            let sk = (*ctx.sockopt).__bindgen_anon_1.sk;
            (low_u16((*sk).family), low_u16((*sk).protocol))
        };
        socket.set_id(new_id());
        socket.set_born_ns(now_ns());
        socket.set_family(family);
        socket.set_protocol(protocol);
        if family == AF_INET || family == AF_INET6 {
            socket.mark(fact::CHILD | fact::UNWATCHED);
        } else {
            count(Counter::Unhooked);
        }
    }
    hold(socket, now_ns);
    Some(socket)
}
