//! Lines for a reader who may be slow, stuck or gone: an audit must not wait for it.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

/// How many lines wait for the reader. Further ones are dropped and counted.
const WAITING_MAX: usize = 1 << 14;
/// How long the reader may take for what waits at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Lines on their way to a reader, which a thread of their own writes.
#[derive(Debug)]
pub(crate) struct Lines {
    sender: Option<SyncSender<Vec<u8>>>,
    /// Says nothing; it ends with the thread.
    done: Receiver<()>,
    dropped: u64,
}

impl Lines {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(crate) fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, lines) = sync_channel(WAITING_MAX);
        let (ends_with_thread, done) = sync_channel(0);
        thread::Builder::new()
            .name("lines".to_owned())
            .spawn(move || {
                if let Err(error) = write_all(&lines, to) {
                    log::warn!("findings cannot be printed any more: {error}; the metrics go on");
                }
                drop(ends_with_thread);
            })?;
        Ok(Self {
            sender: Some(sender),
            done,
            dropped: 0,
        })
    }

    /// Adds a line, or drops it when too many wait.
    pub(crate) fn push(&mut self, line: Vec<u8>) {
        let sent = self.sender.as_ref().map(|sender| sender.try_send(line));
        if let Some(Err(TrySendError::Full(_))) = sent {
            if self.dropped == 0 {
                log::warn!("nobody reads the findings fast enough: some are not printed");
            }
            self.dropped += 1;
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        drop(self.sender.take());
        // Ends with an error in either case: the thread has ended, or the time is up.
        let _ = self.done.recv_timeout(FLUSH_TIMEOUT);
        if self.dropped > 0 {
            log::warn!(
                "{} findings were not printed: nobody read them",
                self.dropped
            );
        }
    }
}

fn write_all(lines: &Receiver<Vec<u8>>, mut to: impl Write) -> io::Result<()> {
    for line in lines {
        to.write_all(&line)?;
        to.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Stuck;

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                thread::park();
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_waits_is_written_before_the_end() {
        let written = Written::default();
        let mut lines = Lines::start(written.clone()).unwrap();
        for n in 0..100 {
            lines.push(format!("{n}\n").into_bytes());
        }
        drop(lines);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 100);
        assert!(text.ends_with("99\n"));
    }

    #[test]
    fn a_reader_that_is_stuck_holds_nothing_up() {
        let mut lines = Lines::start(Stuck).unwrap();
        for _ in 0..2 * WAITING_MAX {
            lines.push(b"x".to_vec());
        }
        assert!(lines.dropped >= WAITING_MAX as u64 - 1, "{}", lines.dropped);
    }
}
