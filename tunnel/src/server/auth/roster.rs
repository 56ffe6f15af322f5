//! The agents that joined by an invitation, in a text file: one line each with the name and the
//! digest of the token.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use tunnel_proto::wire::handshake;

use crate::io::files;
use crate::io::token::Digest;

/// The most agents that a roster holds.
pub const ROSTER_MAX: usize = 16_384;

/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;

const HEAD: &str = "# Agents that joined by an invitation. Remove a line to revoke its agent.\n";

/// The agents that joined. Without a file they are forgotten when the server ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    file: Option<PathBuf>,
    agents: BTreeMap<String, Digest>,
}

impl Roster {
    /// Reads the file. A missing file is an empty roster.
    pub(crate) fn load(file: Option<&Path>) -> io::Result<Self> {
        let agents = match file {
            Some(file) => read(file).map_err(|error| {
                let kind = error.kind();
                io::Error::new(kind, format!("the roster {}: {error}", file.display()))
            })?,
            None => BTreeMap::new(),
        };
        let file = file.map(Path::to_owned);
        Ok(Self { file, agents })
    }

    /// Reads the file again.
    pub(crate) fn again(&self) -> io::Result<Self> {
        Self::load(self.file.as_deref())
    }

    pub(crate) fn agents(&self) -> impl Iterator<Item = (&String, Digest)> {
        self.agents.iter().map(|(name, digest)| (name, *digest))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.agents.contains_key(name)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.agents.len() >= ROSTER_MAX
    }

    /// Adds an agent. When this returns, the file contains it.
    pub(crate) fn add(&mut self, name: &str, digest: Digest) -> io::Result<()> {
        let before = self.agents.insert(name.to_owned(), digest);
        let written = match &self.file {
            Some(file) => write(file, &self.agents),
            None => Ok(()),
        };
        if written.is_err() {
            match before {
                Some(before) => self.agents.insert(name.to_owned(), before),
                None => self.agents.remove(name),
            };
        }
        written
    }
}

/// Checks that a server can use this file as its roster.
///
/// # Errors
///
/// What is wrong with the file, with its name.
pub fn check(file: &Path) -> io::Result<()> {
    Roster::load(Some(file)).map(drop)
}

fn read(file: &Path) -> io::Result<BTreeMap<String, Digest>> {
    let length = match std::fs::metadata(file) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    if length > FILE_MAX {
        let why = format!("it is longer than {FILE_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    parse(&std::fs::read_to_string(file)?)
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}

fn parse(text: &str) -> Result<BTreeMap<String, Digest>, String> {
    let mut agents = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let agent = line.split_once(char::is_whitespace);
        let agent = agent.and_then(|(name, digest)| {
            let digest = digest.trim().parse::<Digest>().ok()?;
            handshake::is_name(name).then(|| (name.to_owned(), digest))
        });
        let Some((name, digest)) = agent else {
            return Err(format!(
                "line {number} is not an agent's name and the digest of its token"
            ));
        };
        if agents.insert(name, digest).is_some() {
            return Err(format!("line {number} names an agent for a second time"));
        }
    }
    if agents.len() > ROSTER_MAX {
        return Err(format!("it names more than {ROSTER_MAX} agents"));
    }
    Ok(agents)
}

fn write(file: &Path, agents: &BTreeMap<String, Digest>) -> io::Result<()> {
    let mut text = HEAD.to_owned();
    for (name, digest) in agents {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name} {digest}");
    }
    files::replace(file, text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_roster_reads_back_as_written_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agents");
        let mut roster = Roster::load(Some(&file)).unwrap();
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        roster.add("home", one).unwrap();
        roster.add("away", other).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Roster::load(Some(&file)).unwrap();
        let agents: Vec<_> = again.agents().map(|(n, d)| (n.as_str(), d)).collect();
        assert_eq!(agents, [("away", other), ("home", one)]);
    }

    #[test]
    fn an_agent_that_cannot_be_written_down_is_not_taken_in() {
        let folder = tempfile::tempdir().unwrap();
        let mut roster = Roster::load(Some(&folder.path().join("no/such/folder"))).unwrap();
        assert!(roster.add("home", Digest::of(b"one")).is_err());
        assert!(!roster.has("home"));
    }

    #[test]
    fn what_is_no_roster_is_refused_by_line() {
        let digest = Digest::of(b"a");
        assert!(parse(&format!("# remark\n\n home  {digest}\n")).is_ok());
        for wrong in [
            "home".to_owned(),
            "home sha256:12".to_owned(),
            format!("a/b {digest}"),
            format!("home {digest} more"),
        ] {
            let error = parse(&format!("\n{wrong}\n")).unwrap_err();
            assert!(error.contains("line 2"), "{error}");
        }
        let twice = format!("home {digest}\nhome {digest}\n");
        assert!(parse(&twice).unwrap_err().contains("second time"));
    }
}
