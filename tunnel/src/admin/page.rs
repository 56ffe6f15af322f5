//! The page for people: plain HTML that a template escapes, without scripts; it loads itself again
//! every few seconds.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::admin::Admin;
use crate::admin::view::{SessionView, StreamView, Streams, name_of};

/// Rows of the table of sessions.
const SESSIONS_MAX: usize = 200;

/// Rows of the table of streams.
const STREAMS_MAX: usize = 100;

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em;color:#222;background:#fff}\
table{border-collapse:collapse;margin-bottom:2em}\
th,td{text-align:left;padding:.2em .8em .2em 0;border-bottom:1px solid #ddd;vertical-align:top}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.bad{color:#b00020}.note{color:#666}";

pub(super) fn write(admin: &Admin) -> String {
    let shown = admin.sessions(STREAMS_MAX);
    let count = shown.len();
    let streams = Streams::of(shown.clone());
    let sessions: Vec<SessionView> = shown.into_iter().take(SESSIONS_MAX).collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="refresh" content="5";
                title { "tunnel" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "tunnel " (env!("CARGO_PKG_VERSION")) }
                @match admin.not_ready_reason() {
                    None => p { "ready" },
                    Some(why) => p.bad { "not ready: " (why) },
                }
                h2 { "Sessions" }
                (note(sessions.len(), count))
                (table_of_sessions(&sessions))
                h2 { "Streams" }
                (note(streams.streams.len(), streams.total))
                (table_of_streams(&streams.streams))
                p.note { "As data: /metrics, /livez, /readyz, /admin/sessions, /admin/streams" }
            }
        }
    };
    page.into_string()
}

fn note(shown: usize, total: usize) -> Markup {
    html! {
        p.note {
            @if shown < total { (shown) " of " (total) } @else { (total) }
        }
    }
}

fn table_of_sessions(sessions: &[SessionView]) -> Markup {
    html! {
        table {
            tr {
                th { "name" } th { "party" } th { "address" } th { "dialect" } th { "session" }
                th { "link" } th { "health" }
                th.n { "age" } th.n { "streams" } th.n { "to peer" } th.n { "from peer" } th.n { "round trip" }
            }
            @for session in sessions {
                tr {
                    td { (session.name) }
                    td { (name_of(session.party)) }
                    td { (session.address) }
                    td { (session.stats.dialect.name()) }
                    td { (session.stats.session) }
                    td { @if let Some(link) = &session.link { (link) } }
                    td { (session.stats.health) }
                    td.n { (age(session.stats.age)) }
                    td.n { (session.stats.streams) }
                    td.n { (bytes(session.stats.to_peer)) }
                    td.n { (bytes(session.stats.from_peer)) }
                    td.n { @if let Some(rtt) = session.stats.rtt { (format!("{:.1} ms", rtt.as_secs_f64() * 1000.0)) } }
                }
            }
        }
    }
}

fn table_of_streams(streams: &[StreamView]) -> Markup {
    html! {
        table {
            tr {
                th { "name" } th { "target" } th { "state" } th { "session" } th.n { "stream" }
                th.n { "age" } th.n { "to peer" } th.n { "from peer" }
            }
            @for stream in streams {
                tr {
                    td { (stream.name) }
                    td { (stream.stats.target) }
                    td { (stream.stats.state) }
                    td { (stream.session) }
                    td.n { (stream.stats.stream) }
                    td.n { (age(stream.stats.age)) }
                    td.n { (bytes(stream.stats.to_peer)) }
                    td.n { (bytes(stream.stats.from_peer)) }
                }
            }
        }
    }
}

fn age(age: Duration) -> String {
    let seconds = age.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else if seconds < 3600.0 {
        format!("{:.1} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}

fn bytes(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(bits, _)| bytes >> bits > 0);
    match unit {
        Some((bits, name)) => {
            let tenths = (u128::from(bytes) * 10) >> bits;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::stats::StreamStats;

    #[test]
    fn what_comes_from_the_network_is_escaped() {
        let stream = StreamView {
            session: 1,
            name: "\"><img src=x>".to_owned(),
            stats: StreamStats {
                stream: 2,
                target: "<script>alert(1)</script>&amp;".to_owned(),
                state: "open",
                age: Duration::from_secs(61),
                to_peer: 1536,
                from_peer: u64::MAX,
            },
        };
        let text = table_of_streams(&[stream]).into_string();
        assert!(
            !text.contains("<script") && !text.contains("<img"),
            "{text}"
        );
        assert!(
            text.contains("&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;"),
            "{text}"
        );
        for cell in ["1.0 min", "1.5 KiB", "17179869183.9 GiB"] {
            assert!(text.contains(cell), "{text}");
        }
    }
}
