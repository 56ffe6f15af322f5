//! How the structs are laid out that both sides read: native-endian and `repr(C)` without padding,
//! so that user space decodes in safe code. Times are `bpf_ktime_get_ns`, that is CLOCK_MONOTONIC
//! in nanoseconds; a time of 0 means "has not happened".

/// Adds the safe decoding that user space needs and the kernel side does not.
macro_rules! shared {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($body:tt)* } is $size:literal bytes) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(
            feature = "decode",
            derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
        )]
        #[repr(C)]
        $vis struct $name { $($body)* }

        const _: () = assert!(size_of::<$name>() == $size);
    };
}

pub(crate) use shared;
