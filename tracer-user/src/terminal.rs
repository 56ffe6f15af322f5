//! The terminal, lent to a command that wants it.
//!
//! The command is a process group of its own, so that Ctrl-C ends the audit, which judges while the command still runs. But the
//! kernel stops a group that reads the terminal (SIGTTIN) or sets it up (SIGTTOU) in the background. Such a command gets the
//! terminal, and Ctrl-C with it.

use std::io::stdin;

use nix::sys::signal::{SigSet, Signal as Blockable};
use nix::unistd::getpgrp;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process, kill_process_group, waitid,
};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

/// The terminal of this process, which may be lent. It is taken back when this is dropped.
#[derive(Debug)]
pub(crate) struct Terminal {
    own: Pid,
    is_lent: bool,
}

impl Terminal {
    /// Returns the terminal on standard input, if there is one and this process's group has it.
    pub(crate) fn of_stdin() -> Option<Self> {
        let terminal = Self {
            // None in a PID namespace that the group was not made in.
            own: Pid::from_raw(getpgrp().as_raw())?,
            is_lent: false,
        };
        terminal.is_here().then_some(terminal)
    }

    fn is_here(&self) -> bool {
        tcgetpgrp(stdin()).is_ok_and(|group| group == self.own)
    }

    /// Lends the terminal to `command` and its group if they were stopped for want of it. A command that has it and is
    /// stopped by its user stops this process too, as its shell expects.
    pub(crate) fn look_after(&mut self, command: Pid) {
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let Ok(Some(status)) = waitid(WaitId::Pid(command), stopped) else {
            return;
        };
        let Some(signal) = status.stopping_signal().and_then(Signal::from_named_raw) else {
            return;
        };
        if self.is_lent && signal == Signal::TSTP {
            self.take_back();
            // Goes on here when the shell lets it.
            let _ = kill_process(getpid(), Signal::STOP);
        } else if signal != Signal::TTIN && signal != Signal::TTOU {
            return;
        }
        if self.is_here() && tcsetpgrp(stdin(), command).is_ok() {
            self.is_lent = true;
        }
        // It may have ended meanwhile.
        let _ = kill_process_group(command, Signal::CONT);
    }

    fn take_back(&mut self) {
        // Blocked, or the kernel would stop this group for setting up the terminal in the background.
        let mut signals = SigSet::empty();
        signals.add(Blockable::SIGTTOU);
        let blocked = signals.thread_block();
        if let Err(error) = tcsetpgrp(stdin(), self.own) {
            log::debug!("the terminal cannot be taken back: {error}");
        }
        if blocked.is_ok() {
            let _ = signals.thread_unblock();
        }
        self.is_lent = false;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.is_lent {
            self.take_back();
        }
    }
}
