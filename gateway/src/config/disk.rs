//! The files a configuration consists of and names: a trait, so that decisions about them can be
//! tested without any, and the disk behind it.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The user and group that an installed daemon runs as (`sysusers.d` creates them).
const DAEMON_NAME: &str = "portcullis";

/// What `check` needs from a file system.
pub trait Files {
    /// The whole of a regular file, and who may use it; a file longer than `limit_bytes` is refused.
    fn read(&self, path: &Path, limit_bytes: usize) -> Result<Content, FileError>;

    /// The paths of a directory's entries, in any order; `NotFound` when it does not exist.
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError>;

    /// Whom the daemon runs as.
    fn daemon(&self) -> &Daemon;
}

/// A file as it was when read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Permission bits, as in `0o640`.
    pub mode: u32,
    /// User id of the owner.
    pub owner: u32,
    /// Group id.
    pub group: u32,
}

/// User and groups that are the daemon's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// User ids: of this process, and of the installed daemon's user.
    pub users: Vec<u32>,
    /// Group ids: of this process, and of the installed daemon's group.
    pub groups: Vec<u32>,
}

/// Why a file could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// Nothing there.
    NotFound,
    /// Permission denied.
    NotPermitted,
    /// A directory, device, pipe or socket.
    NotAFile,
    /// Longer than the limit given.
    TooLong {
        /// The limit.
        limit_bytes: usize,
    },
    /// Anything else the kernel said.
    Other(io::ErrorKind),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileError::NotFound => {
                f.write_str("does not exist; correct the path or create the file")
            }
            FileError::NotPermitted => f.write_str(
                "may not be read; give the daemon's user or group permission to read the file and \
                 to enter its directories",
            ),
            FileError::NotAFile => f.write_str("is not a regular file; name a file"),
            FileError::TooLong { limit_bytes } => write!(
                f,
                "is longer than {} KiB, which is more than such a file can need; name the right \
                 file",
                limit_bytes / 1024
            ),
            FileError::Other(kind) => write!(f, "cannot be read ({kind}); look at the file system"),
        }
    }
}

impl std::error::Error for FileError {}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> FileError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileError::NotFound,
            io::ErrorKind::PermissionDenied => FileError::NotPermitted,
            io::ErrorKind::IsADirectory => FileError::NotAFile,
            kind => FileError::Other(kind),
        }
    }
}

/// Where systemd puts the credentials of services (systemd.exec(5)), each in a directory that only
/// root and its service enter.
const CREDENTIALS: &str = "/run/credentials";

/// The file system of this machine.
#[derive(Clone, Debug)]
pub struct Disk {
    daemon: Daemon,
}

impl Disk {
    /// With the ids of this process, and of the user and group `portcullis` where they exist: an
    /// administrator checks as root what the daemon will read as its own user.
    pub fn new() -> Disk {
        let mut users = vec![nix::unistd::geteuid().as_raw()];
        let mut groups = vec![nix::unistd::getegid().as_raw()];
        groups.extend(nix::unistd::getgroups().into_iter().flatten().map(|group| group.as_raw()));
        if let Ok(Some(user)) = nix::unistd::User::from_name(DAEMON_NAME) {
            users.push(user.uid.as_raw());
            groups.push(user.gid.as_raw());
        }
        if let Ok(Some(group)) = nix::unistd::Group::from_name(DAEMON_NAME) {
            groups.push(group.gid.as_raw());
        }
        Disk { daemon: Daemon { users, groups } }
    }
}

impl Default for Disk {
    fn default() -> Disk {
        Disk::new()
    }
}

impl Files for Disk {
    fn read(&self, path: &Path, limit_bytes: usize) -> Result<Content, FileError> {
        // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile);
        }
        let mut bytes = Vec::new();
        // One byte over the limit tells a file that is too long from one that just fits; the length
        // in the metadata would not, for a file that is growing.
        file.take(limit_bytes as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit_bytes {
            return Err(FileError::TooLong { limit_bytes });
        }
        Ok(Content {
            bytes,
            mode: mode_of(path, metadata.uid(), metadata.mode() & 0o7777),
            owner: metadata.uid(),
            group: metadata.gid(),
        })
    }

    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory)? {
            paths.push(entry?.path());
        }
        Ok(paths)
    }

    fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}

/// Who may read. Of a credential, which is root's, the group's bits are not a group's: they are the
/// mask of the access list by which the service itself reads it.
fn mode_of(path: &Path, owner: u32, mode: u32) -> u32 {
    let is_credential = owner == 0 && path.starts_with(CREDENTIALS);
    if is_credential { mode & !0o070 } else { mode }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_access_list_is_no_group() {
        for (path, owner, mode, expected) in [
            ("/run/credentials/portcullis.service/server.key", 0, 0o440, 0o400),
            ("/run/credentials/portcullis.service/server.key", 0, 0o444, 0o404),
            ("/run/credentials/portcullis.service/server.key", 1000, 0o440, 0o440),
            ("/etc/portcullis/tls/server.key", 0, 0o440, 0o440),
        ] {
            assert_eq!(mode_of(Path::new(path), owner, mode), expected, "{path} {owner} {mode:o}");
        }
    }

    #[test]
    fn reads_regular_files_within_the_limit_and_says_why_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("file"), b"12345").unwrap();
        fs::set_permissions(path("file"), std::os::unix::fs::PermissionsExt::from_mode(0o640))
            .unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        let disk = Disk::new();
        for (name, limit_bytes, expected) in [
            ("file", 5, Ok(5)),
            ("file", 4, Err(FileError::TooLong { limit_bytes: 4 })),
            ("link", 5, Ok(5)),
            ("missing", 5, Err(FileError::NotFound)),
            ("file/below", 5, Err(FileError::NotFound)),
            (".", 5, Err(FileError::NotAFile)),
            ("pipe", 5, Err(FileError::NotAFile)), // and does not wait for a writer
        ] {
            let read = disk.read(&path(name), limit_bytes);
            assert_eq!(read.map(|content| content.bytes.len()), expected, "{name}");
        }
        let content = disk.read(&path("link"), 5).unwrap();
        assert_eq!(content.mode, 0o640);
        assert!(disk.daemon().users.contains(&content.owner));
        assert!(disk.daemon().groups.contains(&content.group));
    }

    #[test]
    fn lists_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.toml"), b"").unwrap();
        let disk = Disk::new();
        assert_eq!(disk.list(directory.path()), Ok(vec![directory.path().join("a.toml")]));
        assert_eq!(disk.list(&directory.path().join("b")), Err(FileError::NotFound));
        assert_eq!(disk.list(&directory.path().join("a.toml")), Err(FileError::NotFound));
    }
}
