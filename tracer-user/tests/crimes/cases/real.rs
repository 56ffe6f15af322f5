//! Servers of other people under load: nothing may be denied, unless the server leaks.

use serde_json::Value;

use crate::case::{Case, Holders, clean, leaks};

/// What is stuck is denied, too, so that it is found if a server leaves bytes waiting.
const STRICT: &[&str] = &[
    "--grace",
    "1s",
    "--pile-up-after",
    "1s",
    "--stuck-after",
    "2s",
    "--deny",
    "stuck",
];

pub(super) fn cases() -> Vec<Case> {
    vec![
        real("real_nginx", &["nginx"]),
        real("real_haproxy", &["haproxy"]),
        real("real_redis", &["redis-server", "redis-benchmark"]),
        real("real_postgres", &["initdb", "pgbench", "setpriv"]),
        real("real_go", &["go"]),
        real("real_python_threads", &["python3"]),
        real("real_python_asyncio", &["python3"]),
        real("real_node", &["node"]),
        Case {
            holders: Holders::OneEach,
            options: STRICT,
            needs: &["python3"],
            ..leaks("real_python_leaking", &[("peer-closed", 50)])
        },
    ]
}

const fn real(name: &'static str, needs: &'static [&'static str]) -> Case {
    Case {
        options: STRICT,
        needs,
        more: had_visitors,
        ..clean(name)
    }
}

/// The load is of no use if the server was not reached.
fn had_visitors(report: &Value) -> Result<(), String> {
    let accepted = report["sockets"]["accepted"].as_u64();
    if accepted.is_some_and(|accepted| accepted >= 50) {
        return Ok(());
    }
    Err(format!("{accepted:?} connections were accepted"))
}
