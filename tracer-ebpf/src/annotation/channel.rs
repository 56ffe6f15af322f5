//! The one system call of the channel, in safe clothes.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::vec::Vec;

use super::{BIND, END, Header, LABEL_MAX, Owner, Role, SOL_WATERTIGHT, VERSION};

/// Whether a tracer took an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A tracer is attached and recorded it.
    Yes,
    /// No tracer is attached to this socket's cgroup; nothing happened.
    No,
}

/// Tells the kernel that `socket` now serves `owner` as `role`. A label longer than [`LABEL_MAX`]
/// bytes is cut at a character boundary.
///
/// # Errors
///
/// The system call's own error, EPERM when a tracer refuses the annotation. It never matters to the
/// program's work.
pub fn bind(socket: &impl AsFd, role: Role, owner: Owner, label: &str) -> io::Result<Heard> {
    let header = Header {
        version: VERSION,
        detail: role as u16,
        reserved: 0,
        owner,
    };
    let mut value = Vec::with_capacity(Header::LEN + LABEL_MAX);
    value.extend_from_slice(&header.to_bytes());
    let label = label
        .get(..label.floor_char_boundary(LABEL_MAX))
        .unwrap_or_default();
    value.extend_from_slice(label.as_bytes());
    annotate(socket, BIND, &value)
}

/// Tells the kernel that `owner`'s request is over by protocol. `socket` only carries the call: it
/// need not be bound to `owner`, which may be [`Owner::PRESENT`]. The reason is for the reader of a
/// report and has no meaning to the tracer.
///
/// # Errors
///
/// The system call's own error, EPERM when a tracer refuses the annotation.
pub fn end(socket: &impl AsFd, owner: Owner, reason: u16) -> io::Result<Heard> {
    let header = Header {
        version: VERSION,
        detail: reason,
        reserved: 0,
        owner,
    };
    annotate(socket, END, &header.to_bytes())
}

/// Makes the call with any `optname` and value. [`bind`] and [`end`] give it well-formed ones.
///
/// # Errors
///
/// The system call's own error, EPERM when a tracer refuses the annotation for its form.
pub fn annotate(socket: &impl AsFd, name: c_int, value: &[u8]) -> io::Result<Heard> {
    let fd = socket.as_fd().as_raw_fd();
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "std has no setsockopt")]
    // SAFETY: `value` is readable for `length` bytes and outlives the call, which only reads it.
    let status = unsafe {
        libc::setsockopt(
            fd,
            SOL_WATERTIGHT,
            name,
            value.as_ptr().cast::<c_void>(),
            length,
        )
    };
    if status == 0 {
        return Ok(Heard::Yes);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => Ok(Heard::No),
        _ => Err(error),
    }
}
