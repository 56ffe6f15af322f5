//! Findings by cause: one group for what one program does to one target.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::stack::{Call, opener};
use crate::verdict::{Finding, Kind, Level, Levels};

/// Findings of one kind, of one program (its name and its executable), about one target or opened
/// by one stack.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The kind.
    pub kind: Kind,
    /// What it does to the verdict.
    pub level: Level,
    /// The name of the process that holds the sockets, or else of the one that opened or released
    /// them; `None` if none is known.
    pub program: Option<&'a str>,
    /// The executable of that process; `None` if it exited before it could be asked.
    pub executable: Option<&'a str>,
    /// Where the connections go, or where they were accepted; `None` for sockets without addresses.
    pub target: Option<String>,
    /// The stack that opened them, if it was recorded.
    pub stack: Option<&'a Arc<[Call]>>,
    /// How many sockets.
    pub sockets: u64,
    /// When the oldest was opened.
    pub oldest_ns: u64,
    /// How many more there were each minute, from the first to the last; `None` for those of less
    /// than two seconds.
    pub growth_per_min: Option<f64>,
    /// The one that broke the rule first.
    pub example: &'a Finding,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key<'a> {
    kind: Kind,
    program: Option<&'a str>,
    executable: Option<&'a str>,
    place: Option<(bool, SocketAddr)>,
    stack: Option<&'a Arc<[Call]>>,
}

impl<'a> Key<'a> {
    fn of(
        finding: &'a Finding,
        executables: &Executables<'a>,
        stacks: &'a HashMap<u64, Arc<[Call]>>,
    ) -> Self {
        let process = process(finding);
        let is_by_program = is_by_program(finding.kind);
        let stack = stacks.get(&finding.id).filter(|_| !is_by_program);
        Self {
            kind: finding.kind,
            program: process.map(|(_, comm)| comm),
            executable: process.and_then(|it| executables.get(&it).copied()),
            // What opened them says more than where they go.
            place: place(finding).filter(|_| !is_by_program && stack.is_none()),
            stack,
        }
    }

    /// Whether this is the same but for a stack that goes on where that of the other ends.
    fn is_deeper_than(&self, other: &Self) -> bool {
        let (Some(calls), Some(cut_off)) = (self.stack, other.stack) else {
            return false;
        };
        calls.len() > cut_off.len()
            && calls.starts_with(cut_off)
            && (self.kind, self.program, self.executable)
                == (other.kind, other.program, other.executable)
    }
}

/// Joins the groups whose stack is where that of a larger depth begins: it was unwound less deep,
/// and the cause is the same. Where there are very many stacks they are left as they are.
fn join_cut_off<'a>(groups: &mut HashMap<Key<'a>, Vec<&'a Finding>>) {
    const STACKS_MAX: usize = 512;
    if groups.len() > STACKS_MAX {
        return;
    }
    let keys: Vec<Key<'a>> = groups.keys().copied().collect();
    for key in &keys {
        let deeper = keys.iter().filter(|other| other.is_deeper_than(key));
        let deepest = deeper.max_by_key(|other| {
            let depth = other.stack.map_or(0, |calls| calls.len());
            (depth, groups.get(other).map_or(0, Vec::len))
        });
        if let Some(deepest) = deepest
            && let Some(findings) = groups.remove(key)
        {
            groups.entry(*deepest).or_default().extend(findings);
        }
    }
}

/// Whether findings of a kind have one cause for each program, whatever their targets are.
fn is_by_program(kind: Kind) -> bool {
    kind == Kind::OpenAtExit
}

/// Groups findings by cause, the largest groups first.
#[must_use]
pub fn group_by_cause<'a>(
    findings: &[&'a Finding],
    stacks: &'a HashMap<u64, Arc<[Call]>>,
    levels: &Levels,
) -> Vec<Group<'a>> {
    let mut groups: HashMap<Key<'a>, Vec<&'a Finding>> = HashMap::new();
    let executables = executables(findings);
    for finding in findings {
        let key = Key::of(finding, &executables, stacks);
        groups.entry(key).or_default().push(finding);
    }
    join_cut_off(&mut groups);
    let mut groups: Vec<Group<'a>> = groups
        .into_iter()
        .filter_map(|(key, findings)| {
            let example = *findings.iter().min_by_key(|it| (it.since_ns, it.id))?;
            Some(Group {
                kind: key.kind,
                level: levels.of(key.kind),
                program: key.program,
                executable: key.executable,
                target: place(example)
                    .filter(|_| !is_by_program(key.kind))
                    .map(target),
                stack: key.stack,
                sockets: u64::try_from(findings.len()).unwrap_or(u64::MAX),
                oldest_ns: findings.iter().map(|it| it.born_ns).min()?,
                growth_per_min: growth_per_min(&findings),
                example,
            })
        })
        .collect();
    groups.sort_by_key(|group| {
        let warns = group.level == Level::Warn;
        let first = (group.example.since_ns, group.example.id);
        (Reverse(group.sockets), warns, group.kind, first)
    });
    groups
}

/// Splits off the groups that are too many to list, those that warn before those that deny. Both
/// parts keep the order.
#[must_use]
pub fn split_listed<'g, 'a>(
    groups: &'g [Group<'a>],
    limit: usize,
) -> (Vec<&'g Group<'a>>, Vec<&'g Group<'a>>) {
    let denied = groups.iter().filter(|it| it.level == Level::Deny).count();
    let mut deny_room = limit;
    let mut warn_room = limit.saturating_sub(denied);
    groups.iter().partition(|group| {
        let room = if group.level == Level::Deny {
            &mut deny_room
        } else {
            &mut warn_room
        };
        let is_listed = *room > 0;
        *room = room.saturating_sub(1);
        is_listed
    })
}

fn target((is_accepted, address): (bool, SocketAddr)) -> String {
    if is_accepted {
        format!("accepted at {address}")
    } else {
        address.to_string()
    }
}

/// A process by its PID and `comm`.
type Process<'a> = (u32, &'a str);

/// The executables of the processes that could be asked.
type Executables<'a> = HashMap<Process<'a>, &'a str>;

/// Collects what the holders of all findings tell, so that it is also known of the processes of
/// findings that no holder is left of.
fn executables<'a>(findings: &[&'a Finding]) -> Executables<'a> {
    let holders = findings.iter().flat_map(|finding| &finding.holders);
    holders
        .filter_map(|holder| {
            let executable = holder.name.as_ref()?.executable.as_deref()?;
            Some(((holder.pid, holder.comm()?), executable))
        })
        .collect()
}

/// Returns the process that holds the socket, or else the one that opened or released it.
fn process(finding: &Finding) -> Option<Process<'_>> {
    let holder = finding
        .holders
        .iter()
        .find_map(|it| Some((it.pid, it.comm()?)));
    let others = [&finding.opener, &finding.releaser];
    let other = others.into_iter().flatten().next();
    holder.or_else(|| other.map(|(pid, comm)| (*pid, comm.as_str())))
}

/// Returns the end of a connection that does not differ from one to the next, and whether it was
/// accepted there.
fn place(finding: &Finding) -> Option<(bool, SocketAddr)> {
    let tuple = finding.tuple?;
    Some(if finding.accepted {
        (true, tuple.local)
    } else {
        (false, tuple.remote)
    })
}

/// Returns how many more were opened each minute; `None` when all were within a moment, which says
/// nothing of a minute.
fn growth_per_min(findings: &[&Finding]) -> Option<f64> {
    const SPAN_MIN: Duration = Duration::from_secs(2);
    let first_ns = findings.iter().map(|it| it.born_ns).min()?;
    let last_ns = findings.iter().map(|it| it.born_ns).max()?;
    let span = Duration::from_nanos(last_ns - first_ns);
    let more = u32::try_from(findings.len() - 1).unwrap_or(u32::MAX);
    (span >= SPAN_MIN).then(|| f64::from(more) / (span.as_secs_f64() / 60.0))
}

impl Group<'_> {
    /// Returns what to do, as one sentence. For a pile it ends with the call that opens them.
    #[must_use]
    pub fn advice(&self) -> String {
        let advice = advice(self.example);
        let calls = self.stack.filter(|_| self.kind == Kind::PileUp);
        match calls.and_then(|calls| opener(calls)) {
            Some(call) => format!("{advice}; opened by {call}"),
            None => advice.to_owned(),
        }
    }
}

/// Returns what to do about findings like this one, as one sentence.
#[must_use]
pub const fn advice(finding: &Finding) -> &'static str {
    match finding.kind {
        Kind::OutlivedRequest => {
            "close the socket where its request ends, on every path: errors, timeouts, cancelled clients"
        }
        Kind::SessionRemnant => "close every socket of a session when the session ends",
        Kind::PeerClosed if finding.released_ns.is_none() => {
            "close the socket when a read returns its end, on every path"
        }
        Kind::PeerClosed if finding.accepted => {
            "stop the work for a visitor who has finished; raise --grace if it may take that long"
        }
        Kind::PeerClosed => {
            "set the idle limit of the pool below the server's, which ends idle connections first"
        }
        Kind::DeadSocket => "close the socket after an error too: a reset, a failed connect",
        Kind::Unowned => {
            "bind each socket to the owner that it serves, or to a pool, as it is opened"
        }
        Kind::PileUp => {
            "use one client with one connection pool for all requests, or give it an idle timeout"
        }
        Kind::Stuck => {
            "set a timeout for writes, reads and connects, and close the socket when it passes"
        }
        Kind::Idle => {
            "set an idle timeout, or a longer --idle if the connection is quiet on purpose"
        }
        Kind::OpenAtExit => "nothing, if the process was to end while they were in use",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Holder, ProcessName, Tuple};

    fn finding(id: u64, kind: Kind, remote: u16) -> Finding {
        Finding {
            kind,
            id,
            cookie: None,
            tuple: Some(Tuple {
                local: ([127, 0, 0, 1], 1000 + u16::try_from(id).unwrap()).into(),
                remote: ([127, 0, 0, 1], remote).into(),
            }),
            accepted: false,
            tcp_state: None,
            owner: None,
            holders: Vec::new(),
            holders_unlisted: 0,
            opener: Some((7, "server".to_owned())),
            born_ns: id * 1_000_000_000,
            is_adopted: false,
            ended_ns: None,
            since_ns: id * 1_000_000_000,
            released_ns: None,
            releaser: None,
            seen_ns: 0,
            bytes_in: None,
            bytes_out: None,
            unread: None,
            unsent: None,
        }
    }

    fn of(findings: &[Finding]) -> Vec<(Kind, Option<String>, u64, Option<f64>)> {
        let findings: Vec<&Finding> = findings.iter().collect();
        let stacks = HashMap::new();
        let groups = group_by_cause(&findings, &stacks, &Levels::default());
        let rows = groups.into_iter().map(|group| {
            assert_eq!(group.program, Some("server"));
            (
                group.kind,
                group.target,
                group.sockets,
                group.growth_per_min,
            )
        });
        rows.collect()
    }

    #[test]
    fn what_has_one_cause_is_one_group_and_the_largest_comes_first() {
        let mut findings: Vec<Finding> =
            (1..=61).map(|id| finding(id, Kind::PileUp, 6080)).collect();
        findings.push(finding(70, Kind::PeerClosed, 80));
        findings.extend((71..=73).map(|id| finding(id, Kind::Idle, 6080)));
        assert_eq!(
            of(&findings),
            [
                (Kind::PileUp, Some("127.0.0.1:6080".into()), 61, Some(60.0)),
                (Kind::Idle, Some("127.0.0.1:6080".into()), 3, Some(60.0)),
                (Kind::PeerClosed, Some("127.0.0.1:80".into()), 1, None),
            ]
        );
    }

    #[test]
    fn a_stack_that_was_unwound_less_deep_is_no_other_cause() {
        let call = |name: &str| Call {
            function: Some(name.to_owned()),
            module: None,
            offset: 0,
            source: None,
        };
        let stack = |names: &[&str]| names.iter().map(|name| call(name)).collect::<Arc<[Call]>>();
        let findings: Vec<Finding> = (1..=6).map(|id| finding(id, Kind::PileUp, 80)).collect();
        let findings: Vec<&Finding> = findings.iter().collect();
        let whole = stack(&["connect", "dial", "get", "main"]);
        let stacks = HashMap::from([
            (1, Arc::clone(&whole)),
            (2, Arc::clone(&whole)),
            (3, stack(&["connect", "dial"])),
            (4, stack(&["connect"])),
            (5, stack(&["connect", "dial", "put", "main"])),
            (6, stack(&["accept"])),
        ]);
        let groups = group_by_cause(&findings, &stacks, &Levels::default());
        let mut sockets: Vec<u64> = groups.iter().map(|group| group.sockets).collect();
        sockets.sort_unstable();
        assert_eq!(sockets, [1, 1, 4], "of two that go on, the larger group");
    }

    #[test]
    fn when_not_all_are_listed_those_that_warn_are_left_out() {
        let warned = (1..=5).map(|id| finding(id, Kind::Idle, 80));
        let denied = (6..=7).map(|id| finding(id, Kind::PileUp, u16::try_from(id).unwrap()));
        let findings: Vec<Finding> = warned.chain(denied).collect();
        let findings: Vec<&Finding> = findings.iter().collect();
        let stacks = HashMap::new();
        let groups = group_by_cause(&findings, &stacks, &Levels::default());
        let listed = |limit| {
            let (listed, rest) = split_listed(&groups, limit);
            let sockets = |groups: Vec<&Group<'_>>| groups.iter().map(|it| it.sockets).collect();
            (sockets(listed), sockets(rest)) as (Vec<u64>, Vec<u64>)
        };
        assert_eq!(listed(3), (vec![5, 1, 1], vec![]));
        assert_eq!(listed(2), (vec![1, 1], vec![5]));
        assert_eq!(listed(1), (vec![1], vec![5, 1]));
    }

    #[test]
    fn programs_are_told_apart_by_their_executables() {
        let held = |id, pid, executable: &str| {
            let name = ProcessName {
                comm: "server".to_owned(),
                executable: Some(executable.to_owned()),
            };
            let mut finding = finding(id, Kind::PileUp, 80);
            finding.holders.push(Holder {
                pid,
                fd: 3,
                name: Some(Arc::new(name)),
            });
            finding
        };
        // The opener of the last one, which is released, is the first process.
        let findings = [
            held(1, 7, "/usr/bin/a"),
            held(2, 8, "/usr/bin/b"),
            held(3, 8, "/usr/bin/b"),
            held(4, 8, "/usr/bin/b"),
            finding(5, Kind::PileUp, 80),
        ];
        let findings: Vec<&Finding> = findings.iter().collect();
        let stacks = HashMap::new();
        let groups = group_by_cause(&findings, &stacks, &Levels::default());
        let rows: Vec<_> = groups
            .iter()
            .map(|it| (it.executable, it.sockets))
            .collect();
        assert_eq!(rows, [(Some("/usr/bin/b"), 3), (Some("/usr/bin/a"), 2)]);
    }

    #[test]
    fn accepted_connections_are_grouped_by_where_they_were_accepted() {
        let accepted = |id, remote| {
            let mut finding = finding(id, Kind::PeerClosed, remote);
            finding.accepted = true;
            finding.tuple.as_mut().unwrap().local = ([127, 0, 0, 1], 80).into();
            finding
        };
        let groups = of(&[accepted(1, 5000), accepted(2, 6000)]);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].1.as_deref(), Some("accepted at 127.0.0.1:80"));
    }

    #[test]
    fn what_is_open_at_exit_is_counted_by_program() {
        let findings: Vec<Finding> = (1..=9)
            .map(|id| finding(id, Kind::OpenAtExit, 80 + u16::try_from(id).unwrap()))
            .collect();
        assert_eq!(of(&findings), [(Kind::OpenAtExit, None, 9, Some(60.0))]);
    }
}
