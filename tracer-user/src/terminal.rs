//! Lends the terminal to a command that needs it.
//!
//! The command has a process group of its own, so that Ctrl-C ends the audit while the command
//! still runs. But the kernel stops a background group that reads the terminal (SIGTTIN) or
//! configures it (SIGTTOU). Such a command gets the terminal, and with it Ctrl-C.

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
    pub(crate) fn from_stdin() -> Option<Self> {
        let terminal = Self {
            // `None` in a PID namespace that the group is not part of.
            own: Pid::from_raw(getpgrp().as_raw())?,
            is_lent: false,
        };
        terminal.is_foreground().then_some(terminal)
    }

    fn is_foreground(&self) -> bool {
        tcgetpgrp(stdin()).is_ok_and(|group| group == self.own)
    }

    /// Lends the terminal to the process group of `command` if it was stopped because it needs it.
    /// If the user stops a command that has the terminal, this process stops too, as its shell
    /// expects.
    pub(crate) fn handle_stop(&mut self, command: Pid) {
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let Ok(Some(status)) = waitid(WaitId::Pid(command), stopped) else {
            return;
        };
        let Some(signal) = status.stopping_signal().and_then(Signal::from_named_raw) else {
            return;
        };
        if self.is_lent && signal == Signal::TSTP {
            self.take_back();
            // Continues here after the shell's SIGCONT.
            let _ = kill_process(getpid(), Signal::STOP);
        } else if signal != Signal::TTIN && signal != Signal::TTOU {
            return;
        }
        if self.is_foreground() && tcsetpgrp(stdin(), command).is_ok() {
            self.is_lent = true;
        }
        // It may have ended already.
        let _ = kill_process_group(command, Signal::CONT);
    }

    fn take_back(&mut self) {
        // Blocked, or the kernel would stop this group for configuring the terminal in the
        // background.
        let mut signals = SigSet::empty();
        signals.add(Blockable::SIGTTOU);
        let blocked = signals.thread_block();
        if let Err(error) = tcsetpgrp(stdin(), self.own) {
            log::debug!("cannot take the terminal back: {error}");
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
