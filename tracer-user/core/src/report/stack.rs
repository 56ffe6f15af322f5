//! The stack that opened a socket: which of its calls is the program's own, and why there is none.

use std::fmt;

/// One call of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// The function, demangled; `None` where no symbol table names it.
    pub function: Option<String>,
    /// The file of the code, as the process named it; `None` for generated code.
    pub module: Option<String>,
    /// The offset in the file, in bytes; without a file, the address in the process.
    pub offset: u64,
    /// File and line of the source, if there is debug information.
    pub source: Option<String>,
}

/// Writes the function and the line, without the folders: `main.get at proxy.go:41`.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let module = self.module.as_deref().map(file_name);
        match (&self.function, &self.source, module) {
            (Some(function), Some(source), _) => {
                write!(f, "{function} at {}", file_name(source))
            }
            (Some(function), None, Some(module)) => write!(f, "{function} in {module}"),
            (Some(function), None, None) => write!(f, "{function}"),
            (None, _, Some(module)) => write!(f, "{module}+{:#x}", self.offset),
            (None, _, None) => write!(f, "{:#x}", self.offset),
        }
    }
}

/// Why a finding has no stack, or only its innermost call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackGap {
    /// The ring for stacks was full.
    Lost,
    /// The hook of accept(2) fires only when the program asks for the address.
    AcceptUnseen,
    /// It was opened before the audit began.
    OpenedBefore,
    /// No call opened it.
    NotOpened,
    /// The process was gone before its mappings were read.
    ProcessGone,
    /// The tracer may not read the mappings.
    NotPermitted,
    /// More stacks than are kept.
    TooMany,
    /// The stack ends with its innermost call.
    NotUnwound,
}

impl StackGap {
    /// Returns the reason, as a clause.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Lost => "the ring for stacks was full when it was opened",
            Self::AcceptUnseen => {
                "accept(2) was called without an address to fill in, which no hook sees"
            }
            Self::OpenedBefore => "it was opened before the audit began",
            Self::NotOpened => {
                "no call of a process in the audit opened it: it came from elsewhere"
            }
            Self::ProcessGone => "its process had exited or run another program before it was read",
            Self::NotPermitted => {
                "the tracer may not read the process's mappings: it needs CAP_CHECKPOINT_RESTORE \
                 (or CAP_SYS_ADMIN), and CAP_SYS_PTRACE for processes of other users"
            }
            Self::TooMany => "more sockets were open at once than stacks are kept for",
            Self::NotUnwound => {
                "the rest cannot be unwound: the code has no unwind tables and no frame pointers"
            }
        }
    }
}

/// Returns the index of the program's own innermost call: the first one that is not of the
/// language's runtime or of a library for input and output. `None` if all are, as in an
/// interpreter.
#[must_use]
pub fn own_call(calls: &[Call]) -> Option<usize> {
    first_own(calls, true).or_else(|| first_own(calls, false))
}

/// Returns the call that says most about what opened a socket: the program's own innermost one, or
/// the outermost one of a goroutine that has none.
pub(super) fn opener(calls: &[Call]) -> Option<&Call> {
    let index = first_own(calls, true)
        .or_else(|| outermost_go(calls))
        .or_else(|| first_own(calls, false));
    calls.get(index?)
}

fn first_own(calls: &[Call], is_named: bool) -> Option<usize> {
    calls
        .iter()
        .position(|call| call.function.is_some() == is_named && !is_of_runtime(call))
}

/// Go's HTTP client dials in goroutines of its own: their outermost call names it.
fn outermost_go(calls: &[Call]) -> Option<usize> {
    let is_named = |function: &str| is_go(function) && !function.starts_with("runtime.");
    calls
        .iter()
        .rposition(|call| call.function.as_deref().is_some_and(is_named))
}

fn is_of_runtime(call: &Call) -> bool {
    let module = call.module.as_deref().map(file_name).unwrap_or_default();
    is_runtime_module(module)
        || call
            .function
            .as_deref()
            .is_some_and(|function| is_rust(function) || is_go(function) || is_c(function))
        || call.source.as_deref().is_some_and(is_rust_source)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// C's library, and what executes the programs of an interpreter.
fn is_runtime_module(name: &str) -> bool {
    const LIBRARIES: [&str; 13] = [
        "ld-linux",
        "ld-musl",
        "libc",
        "libpthread",
        "libstdc++",
        "libuv",
        "libpython",
        "libruby",
        "libjvm",
        "libjava",
        "libnet",
        "libnio",
        "libjli",
    ];
    const INTERPRETERS: [&str; 5] = ["python", "ruby", "perl", "php", "java"];
    // libc.so.6, libc-2.31.so, libpython3.11.so.1.0; python3.11.
    let is_version = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_one_of = |names: &[&str]| {
        names
            .iter()
            .any(|of| name.strip_prefix(of).is_some_and(is_version))
    };
    name.contains(".so") && (is_one_of(&LIBRARIES) || name.contains(".cpython-"))
        || !name.contains(".so") && is_one_of(&INTERPRETERS)
}

/// Rust's standard library, and the crates between it and the program.
const RUST_CRATES: [&str; 20] = [
    "std",
    "core",
    "alloc",
    "tokio",
    "tokio_util",
    "tokio_rustls",
    "mio",
    "hyper",
    "hyper_util",
    "h2",
    "tower",
    "tower_service",
    "reqwest",
    "socket2",
    "rustix",
    "nix",
    "libc",
    "futures",
    "futures_util",
    "futures_core",
];

/// The names of inlined functions lack their crates: the source is in the folder of the crate, of
/// cargo's registry or of the standard library.
fn is_rust_source(source: &str) -> bool {
    let registry = source.split_once("/registry/src/");
    let folder = registry.and_then(|(_, path)| path.split('/').nth(1));
    let is_listed = folder
        .and_then(|it| it.rsplit_once('-'))
        .is_some_and(|(name, _)| RUST_CRATES.contains(&name.replace('-', "_").as_str()));
    let is_std = ["/library/std/", "/library/core/", "/library/alloc/"];
    is_listed || is_std.iter().any(|folder| source.contains(folder))
}

fn is_rust(function: &str) -> bool {
    // `<std::net::TcpStream as ...>::connect` is of std, too.
    let path = function.trim_start_matches(['<', '&', '*', '(', '[']);
    let path = path.strip_prefix("dyn ").unwrap_or(path);
    path.split_once("::")
        .is_some_and(|(name, _)| RUST_CRATES.contains(&name))
}

/// Go: the runtime, and the packages of the standard library between it and the program.
fn is_go(function: &str) -> bool {
    const PACKAGES: [&str; 12] = [
        "runtime", "syscall", "net", "internal", "os", "crypto", "context", "sync", "io", "bufio",
        "time", "vendor",
    ];
    const MODULES: [&str; 3] = [
        "golang.org/x/net/",
        "golang.org/x/sys/",
        "golang.org/x/crypto/",
    ];
    let first = function.split(['/', '.']).next().unwrap_or_default();
    function.contains('.')
        && !function.contains("::")
        && (PACKAGES.contains(&first) || MODULES.iter().any(|of| function.starts_with(of)))
}

/// C: what a static program has of its library.
fn is_c(function: &str) -> bool {
    const FUNCTIONS: [&str; 13] = [
        "socket",
        "connect",
        "accept",
        "accept4",
        "syscall",
        "getpeername",
        "clone",
        "clone3",
        "start_thread",
        "pthread_create",
        "libc_start_main",
        "libc_start_call_main",
        "rust_try",
    ];
    let name = function.trim_start_matches('_');
    let name = name
        .strip_prefix("libc_")
        .filter(|of| !of.starts_with("start"))
        .unwrap_or(name);
    let name = name.split('@').next().unwrap_or(name);
    FUNCTIONS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(function: &str, module: &str) -> Call {
        Call {
            function: (!function.is_empty()).then(|| function.to_owned()),
            module: Some(module.to_owned()),
            offset: 0x1040,
            source: None,
        }
    }

    fn own(calls: &[(&str, &str)]) -> Option<usize> {
        let calls: Vec<Call> = calls.iter().map(|(f, m)| call(f, m)).collect();
        own_call(&calls)
    }

    #[test]
    fn inlined_functions_are_known_by_their_sources() {
        let at = |function: &str, source: &str| Call {
            source: Some(source.to_owned()),
            ..call(function, "/srv/app")
        };
        let registry = "/home/a/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
        let calls = [
            at(
                "new_socket",
                &format!("{registry}/mio-1.2.5/src/sys/unix/mod.rs:8"),
            ),
            at("poll", &format!("{registry}/tokio-util-0.7.1/src/x.rs:1")),
            at("poll", "/rustc/abc/library/core/src/future/future.rs:133"),
            at("dial", "/home/a/app/src/main.rs:168"),
            at("main", "/home/a/app/src/main.rs:1"),
        ];
        assert_eq!(own_call(&calls), Some(3));
        let other = [at(
            "open",
            &format!("{registry}/my-client-0.1.0/src/lib.rs:1"),
        )];
        assert_eq!(
            own_call(&other),
            Some(0),
            "who opens sockets is worth naming"
        );
    }

    #[test]
    fn the_own_call_is_the_first_outside_of_the_runtime() {
        let go = "/srv/proxy";
        let of_go = [
            ("internal/runtime/syscall.Syscall6", go),
            ("syscall.Socket", go),
            ("net.(*sysDialer).dialSingle.func1", go),
            ("net/http.(*Transport).dialConn", go),
            ("golang.org/x/net/http2.(*ClientConn).readLoop", go),
            ("example.com/proxy/internal/dial.Get", go),
            ("main.main", go),
        ];
        assert_eq!(own(&of_go), Some(5));
        let of_rust = [
            ("socket", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
            (
                "std::sys::net::connection::socket::Socket::new",
                "/srv/agent",
            ),
            (
                "<tokio::net::tcp::stream::TcpStream as core::fmt::Debug>::fmt",
                "/srv/agent",
            ),
            ("agent::dial::{{closure}}", "/srv/agent"),
        ];
        assert_eq!(own(&of_rust), Some(3));
        let of_c = [
            ("__libc_connect", "/srv/static"),
            ("__connect", "/srv/static"),
            ("network_connect", "/srv/static"),
        ];
        assert_eq!(own(&of_c), Some(2));
    }

    #[test]
    fn a_goroutine_of_the_runtime_is_named_by_its_outermost_call() {
        let of_go = [
            ("syscall.Socket", "/srv/proxy"),
            ("net.(*Dialer).DialContext", "/srv/proxy"),
            ("net/http.(*Transport).dialConnFor", "/srv/proxy"),
            ("runtime.goexit", "/srv/proxy"),
        ];
        assert_eq!(own(&of_go), None);
        let calls: Vec<Call> = of_go.iter().map(|(f, m)| call(f, m)).collect();
        assert_eq!(opener(&calls), calls.get(2));
    }

    #[test]
    fn an_interpreter_has_no_call_of_the_program() {
        let python = [
            ("", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
            (
                "",
                "/usr/lib/python3.11/lib-dynload/_socket.cpython-311-x86_64-linux-gnu.so",
            ),
            ("_PyEval_EvalFrameDefault", "/usr/bin/python3.11"),
        ];
        assert_eq!(own(&python), None);
    }

    #[test]
    fn names_that_only_look_like_a_runtime_are_the_programs_own() {
        for function in [
            "networking.Dial",
            "netpoll::open",
            "runtimes::start",
            "iot.connect",
            "main.net",
            "my_connect",
            "standard::net::connect",
        ] {
            assert_eq!(own(&[(function, "/srv/libcurious")]), Some(0), "{function}");
        }
        for module in [
            "libcurl.so.4",
            "libnetwork.so",
            "pythonic",
            "libc_wrapper.so",
        ] {
            assert_eq!(own(&[("open", module)]), Some(0), "{module}");
        }
    }

    #[test]
    fn a_named_call_comes_before_one_without_a_name() {
        let stripped = [
            ("connect", "/lib/libc.so.6"),
            ("", "/srv/plugin.so"),
            ("serve", "/srv/server"),
        ];
        assert_eq!(own(&stripped), Some(2));
        assert_eq!(own(&stripped[..2]), Some(1));
        assert_eq!(own(&[]), None);
    }

    #[test]
    fn a_call_is_told_with_what_is_known_of_it() {
        let mut of = call("main.get", "/srv/proxy");
        assert_eq!(of.to_string(), "main.get in proxy");
        of.source = Some("/home/me/proxy/proxy.go:41".to_owned());
        assert_eq!(of.to_string(), "main.get at proxy.go:41");
        assert_eq!(call("", "/srv/proxy").to_string(), "proxy+0x1040");
    }
}
