//! Files that commands write: complete or not at all, and never over another by accident.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Whether a file that is there already may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// Refuse.
    Keep,
    /// Replace it in one step; readers see the old one or the new one.
    Replace,
}

impl Existing {
    /// What `--force` means.
    pub(super) fn forced(force: bool) -> Self {
        if force { Self::Replace } else { Self::Keep }
    }
}

/// Mode of files that hold a private key.
pub(super) const PRIVATE: u32 = 0o600;

/// Mode of everything else.
pub(super) const PUBLIC: u32 = 0o644;

/// Writes a file beside its place and moves it there.
pub(super) fn write(path: &Path, contents: &[u8], mode: u32, existing: Existing) -> Result<()> {
    let temporary = temporary(path)?;
    let outcome = write_temporary(&temporary, contents, mode).and_then(|()| match existing {
        Existing::Replace => {
            fs::rename(&temporary, path).with_context(|| format!("replacing {}", path.display()))
        }
        Existing::Keep => put(&temporary, path),
    });
    // After a rename it is gone; in every other case it must not stay.
    let _ = fs::remove_file(&temporary);
    outcome
}

/// A name that no other process uses at this moment, in the same directory: a rename does not
/// cross file systems.
fn temporary(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else { bail!("{} names no file", path.display()) };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.new", std::process::id()));
    Ok(path.with_file_name(temporary))
}

fn write_temporary(temporary: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)
        .with_context(|| format!("creating {}", temporary.display()))?;
    file.write_all(contents)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", temporary.display()))
}

/// A hard link, other than a rename, never replaces.
fn put(temporary: &Path, path: &Path) -> Result<()> {
    match fs::hard_link(temporary, path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} is there already; --force replaces it", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("writing {}", path.display())),
    }
}

/// Refuses early, before anything is generated or written.
pub(super) fn refuse_existing(paths: &[&Path], existing: Existing) -> Result<()> {
    if existing == Existing::Replace {
        return Ok(());
    }
    for path in paths {
        if path.exists() {
            bail!("{} is there already; --force replaces it", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keeps_what_is_there_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.key");
        write(&path, b"first", PRIVATE, Existing::Keep).unwrap();
        let refusal = write(&path, b"second", PRIVATE, Existing::Keep).unwrap_err().to_string();
        assert!(refusal.contains("--force"), "{refusal}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        write(&path, b"third", PRIVATE, Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("there");
        fs::write(&path, "x").unwrap();
        assert!(refuse_existing(&[&dir.path().join("free"), &path], Existing::Keep).is_err());
        assert!(refuse_existing(&[&path], Existing::Replace).is_ok());
    }
}
