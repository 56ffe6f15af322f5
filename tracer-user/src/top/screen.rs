//! The terminal while `tracer top` refreshes: the alternate screen, and the key that ends it.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::sync::Arc;
use std::thread;

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::sync::Notify;

/// DECSET 1049 and DECTCEM (XTerm control sequences): another screen, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[H";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// The size of a terminal that does not tell.
const SIZE: (usize, usize) = (24, 80);

/// The alternate screen. Dropping it restores what was there.
pub(super) struct Screen {
    modes: Option<Termios>,
    quit: Arc<Notify>,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let quit = Arc::new(Notify::new());
        let modes = if io::stdin().is_terminal() {
            read_keys(Arc::clone(&quit))
        } else {
            None
        };
        let screen = Self { modes, quit };
        let mut stdout = io::stdout();
        writeln!(stdout, "{ENTER}taking two looks, a second apart")?;
        stdout.flush()?;
        Ok(screen)
    }

    /// Waits until the user wants to end.
    pub(super) async fn quit(&self) {
        self.quit.notified().await;
    }

    /// Returns the rows and columns of the terminal.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
                (size.ws_row.into(), size.ws_col.into())
            }
            Ok(_) | Err(_) => SIZE,
        }
    }

    /// Shows `text` in the place of what was there.
    pub(super) fn draw(&mut self, text: &str) -> io::Result<()> {
        let mut stdout = anstream::stdout();
        write!(io::stdout(), "\x1b[H\x1b[J")?;
        write!(stdout, "{}", text.trim_end())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = io::stdout();
        // The terminal may be gone.
        let _ = write!(stdout, "{LEAVE}").and_then(|()| stdout.flush());
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, modes);
        }
    }
}

/// Makes keys readable as they are pressed, and reads them until one is q. Returns the modes of the
/// terminal before.
fn read_keys(quit: Arc<Notify>) -> Option<Termios> {
    let before = tcgetattr(io::stdin()).ok()?;
    let mut modes = before.clone();
    modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
    // Ctrl-Z would leave the shell on the other screen.
    modes.special_codes[SpecialCodeIndex::VSUSP] = 0;
    tcsetattr(io::stdin(), OptionalActions::Now, &modes).ok()?;
    thread::spawn(move || {
        let mut key = [0];
        while io::stdin().read_exact(&mut key).is_ok() {
            if matches!(key, [b'q' | b'Q']) {
                quit.notify_one();
            }
        }
    });
    Some(before)
}
