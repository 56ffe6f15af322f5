//! The page for people: plain HTML that a template escapes, without scripts; it loads itself again every few seconds.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::admin::Admin;
use crate::admin::view::{Session, SessionView, Sessions, Stream, Streams};

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
    let few: Vec<SessionView> = shown.into_iter().take(SESSIONS_MAX).collect();
    let sessions = Sessions::of(few);
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
                (note(sessions.sessions.len(), count))
                (table_of_sessions(&sessions.sessions))
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

fn table_of_sessions(sessions: &[Session]) -> Markup {
    html! {
        table {
            tr {
                th { "name" } th { "party" } th { "address" } th { "dialect" } th { "session" }
                th.n { "age" } th.n { "streams" } th.n { "to peer" } th.n { "from peer" } th.n { "round trip" }
            }
            @for session in sessions {
                tr {
                    td { (session.name) }
                    td { (session.party) }
                    td { (session.address) }
                    td { (session.dialect) }
                    td { (session.session) }
                    td.n { (age(session.age_seconds)) }
                    td.n { (session.streams) }
                    td.n { (bytes(session.to_peer_bytes)) }
                    td.n { (bytes(session.from_peer_bytes)) }
                    td.n { @if let Some(rtt) = session.rtt_seconds { (format!("{:.1} ms", rtt * 1000.0)) } }
                }
            }
        }
    }
}

fn table_of_streams(streams: &[Stream]) -> Markup {
    html! {
        table {
            tr {
                th { "name" } th { "target" } th { "state" } th { "session" } th.n { "stream" }
                th.n { "age" } th.n { "to peer" } th.n { "from peer" }
            }
            @for stream in streams {
                tr {
                    td { (stream.name) }
                    td { (stream.target) }
                    td { (stream.state) }
                    td { (stream.session) }
                    td.n { (stream.stream) }
                    td.n { (age(stream.age_seconds)) }
                    td.n { (bytes(stream.to_peer_bytes)) }
                    td.n { (bytes(stream.from_peer_bytes)) }
                }
            }
        }
    }
}

fn age(seconds: f64) -> String {
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

    #[test]
    fn what_comes_from_the_network_is_escaped() {
        let stream = Stream {
            session: "1".to_owned(),
            stream: "2".to_owned(),
            name: "\"><img src=x>".to_owned(),
            target: "<script>alert(1)</script>&amp;".to_owned(),
            state: "open",
            age_seconds: 61.0,
            to_peer_bytes: 1536,
            from_peer_bytes: u64::MAX,
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
