//! Attempts to log in at any port: wrong secrets are logged, counted, slowed down and then refused.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};
use tunnel_proto::login_guard::{Admission, Guard, Limits, Source};
use tunnel_proto::token_bucket::Bucket;

use crate::io::clock::Clock;
use crate::io::socket::PeerAddr;
use crate::login::{Presented, Users};
pub(crate) use crate::metrics::LoginPort;
use crate::metrics::{LoginRefusal, Metrics};

/// The target of lines about refused logins. fail2ban's filter in docs/tunnel.md has it.
const LOG_TARGET: &str = "tunnel::login";

/// The longest name that is logged, in characters.
const NAME_MAX: usize = 253;

/// Lines about refused logins per second, and at once after a pause.
const LINES_PER_SECOND: NonZeroU64 = NonZeroU64::new(20).unwrap();
const LINES_BURST: u64 = 200;

/// The attempts to log in at the ports of one program.
#[derive(Debug)]
pub(crate) struct Logins {
    guard: Mutex<Guard>,
    lines: Mutex<Lines>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// Bounds the lines about refused logins.
#[derive(Debug)]
struct Lines {
    bucket: Bucket,
    suppressed: u64,
}

/// Who tries to log in where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) port: LoginPort,
    pub(crate) from: PeerAddr,
    /// The name that is claimed. Empty for a token that comes without one.
    pub(crate) name: &'a str,
    /// Whether there is such a name, or a token that needs none.
    pub(crate) exists: bool,
}

/// Why a login is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginRefused {
    #[error("this port asks for a user and a password")]
    Missing,
    #[error("the user or the password is wrong")]
    Wrong,
    #[error("there were too many wrong passwords or tokens from this address; try again later")]
    TooMany(Duration),
}

impl LoginRefused {
    /// Returns the status of the response, which is `unauthorized` where a login may be tried.
    pub(crate) const fn status(self, unauthorized: StatusCode) -> StatusCode {
        match self {
            Self::Missing | Self::Wrong => unauthorized,
            Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// Tells when to try again.
    pub(crate) fn add_retry_after(self, headers: &mut HeaderMap) {
        if let Self::TooMany(left) = self {
            let seconds = left.as_secs().max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

impl Logins {
    pub(crate) fn new(clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self {
            guard: Mutex::new(Guard::new(Limits::default())),
            lines: Mutex::new(Lines {
                bucket: Bucket::new(LINES_PER_SECOND, LINES_BURST),
                suppressed: 0,
            }),
            clock,
            metrics,
        }
    }

    /// Returns the one of `users` who has the secret that was presented.
    pub(crate) async fn log_in(
        &self,
        users: &Users,
        port: LoginPort,
        from: PeerAddr,
        presented: Option<Presented<'_>>,
    ) -> Result<String, LoginRefused> {
        let presented = presented.ok_or(LoginRefused::Missing)?;
        let name = presented.name();
        let attempt = Attempt {
            port,
            from,
            name: &name,
            exists: users.may_be(&presented),
        };
        let ticket = self.begin(attempt)?;
        match users.find(presented) {
            Some(user) => {
                ticket.right();
                Ok(user.to_owned())
            }
            None => Err(ticket.wrong().await),
        }
    }

    /// Begins an attempt.
    ///
    /// # Errors
    ///
    /// [`LoginRefused::TooMany`]: the secret must not be looked at.
    pub(crate) fn begin<'a>(&'a self, attempt: Attempt<'a>) -> Result<Ticket<'a>, LoginRefused> {
        let source = match attempt.from {
            PeerAddr::Inet(address) => Source::from(address.ip()),
            PeerAddr::Unix => Source::Local,
        };
        let now = self.clock.now();
        let admission = self
            .guard()
            .begin(now, source, attempt.name, attempt.exists);
        if let Admission::Refused(left) = admission {
            self.metrics
                .login_refused(attempt.port, LoginRefusal::TooMany);
            return Err(LoginRefused::TooMany(left));
        }
        Ok(Ticket {
            logins: self,
            attempt,
            source,
            admission,
            ended: false,
        })
    }

    /// Returns how many lines were left out since the last one, or `None` if one more is too many.
    pub(crate) fn line(&self) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.bucket.try_take(self.clock.now(), 1) {
            Some(std::mem::take(&mut lines.suppressed))
        } else {
            lines.suppressed += 1;
            None
        }
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt whose secret may be looked at. Dropping it says that it was none.
#[must_use]
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    logins: &'a Logins,
    attempt: Attempt<'a>,
    source: Source,
    admission: Admission,
    ended: bool,
}

impl Ticket<'_> {
    /// The secret is right.
    pub(crate) fn right(mut self) {
        self.ended = true;
        let now = self.logins.clock.now();
        let (name, admission) = (self.attempt.name, self.admission);
        self.logins.guard().right(now, self.source, name, admission);
    }

    /// The secret is wrong. Returns what to answer, when it is time to.
    pub(crate) async fn wrong(mut self) -> LoginRefused {
        self.ended = true;
        let Self {
            logins,
            attempt: Attempt {
                port, from, name, ..
            },
            ..
        } = self;
        let now = logins.clock.now();
        let wrong = logins.guard().wrong(now, self.source, self.admission);
        logins.metrics.login_refused(port, LoginRefusal::Wrong);
        let address = address(from);
        if let Some(suppressed) = logins.line() {
            // The name is the last field and quoted: who chooses it cannot forge another line.
            let name: String = name.chars().take(NAME_MAX).collect();
            tracing::warn!(
                target: LOG_TARGET,
                %port,
                %address,
                suppressed,
                ?name,
                "login refused"
            );
        }
        if wrong.blocks {
            let seconds = Limits::default().block.as_secs();
            tracing::warn!(
                target: LOG_TARGET,
                %address,
                seconds,
                "too many refused logins; this address is blocked for a while"
            );
        }
        tokio::time::sleep(wrong.delay).await;
        match self.admission {
            Admission::Open => LoginRefused::Wrong,
            // Otherwise the answer would tell which names exist.
            Admission::Reserved | Admission::Refused(_) => {
                LoginRefused::TooMany(Limits::default().block)
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let now = self.logins.clock.now();
            let (name, admission) = (self.attempt.name, self.admission);
            let mut guard = self.logins.guard();
            guard.undecided(now, self.source, name, admission);
        }
    }
}

/// Returns an address as it is logged.
pub(crate) fn address(from: PeerAddr) -> String {
    match from {
        PeerAddr::Inet(address) => address.ip().to_canonical().to_string(),
        PeerAddr::Unix => "unix".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins() -> (Logins, Arc<Metrics>) {
        let metrics = Metrics::new(None).unwrap();
        (Logins::new(Clock::start(), Arc::clone(&metrics)), metrics)
    }

    async fn try_password(
        logins: &Logins,
        user: &str,
        password: &str,
    ) -> Result<String, LoginRefused> {
        let users = Users::of_pair("anna:secret").unwrap();
        let presented = Presented::Pair {
            user: user.as_bytes(),
            password: password.as_bytes(),
        };
        let from = PeerAddr::Inet("10.0.0.1:1".parse().unwrap());
        let port = LoginPort::Connect;
        logins.log_in(&users, port, from, Some(presented)).await
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_are_bounded_and_a_user_behind_the_same_address_gets_in() {
        let (logins, metrics) = logins();
        let start = logins.clock.now();
        let mut wrong = 0;
        for guess in 0..1000 {
            match try_password(&logins, &format!("user-{guess}"), "guess").await {
                Err(LoginRefused::Wrong) => wrong += 1,
                Err(LoginRefused::TooMany(left)) => assert!(left <= Duration::from_secs(60)),
                other => panic!("{other:?}"),
            }
            if guess > 900 {
                assert_eq!(
                    try_password(&logins, "anna", "secret").await.unwrap(),
                    "anna"
                );
            }
        }
        // Some are forgotten while the answers are held back.
        assert!((100..130).contains(&wrong), "{wrong}");
        assert!(logins.clock.now() - start > Duration::from_secs(60));
        let text = metrics.text().unwrap();
        let counted = format!(
            "watertight_logins_refused_total{{port=\"connect\",reason=\"wrong\"}} {wrong}\n"
        );
        assert!(text.contains(&counted), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_does_not_tell_which_names_exist_while_the_address_is_blocked() {
        let (logins, _) = logins();
        while try_password(&logins, "nobody", "guess").await == Err(LoginRefused::Wrong) {}
        for user in ["anna", "nobody"] {
            let refused = try_password(&logins, user, "guess").await;
            assert!(
                matches!(refused, Err(LoginRefused::TooMany(_))),
                "{refused:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_bounded() {
        let (logins, _) = logins();
        let written = (0..1000).filter(|_| logins.line().is_some()).count();
        assert_eq!(written, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!((logins.line(), logins.line()), (Some(800), None));
    }
}
