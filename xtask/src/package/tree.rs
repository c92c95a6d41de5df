//! The files of an installed package, by their places.

use std::{
    fs::{self, File},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

use super::{Source, gzip, legal, sbom};
use crate::harness::process::succeed;

/// The configuration; an upgrade asks before it replaces what an administrator has changed.
pub(super) const CONFIGURATION: &str = "etc/portcullis/portcullis.toml";

/// The configuration's directory, which only root and the daemon read.
pub(super) const CONFIGURATION_DIRECTORY: &str = "etc/portcullis";

/// Files that are installed as they are in the repository.
const COPIED: [(&str, &str); 5] = [
    ("systemd/portcullis.toml", CONFIGURATION),
    ("systemd/portcullis.service", "usr/lib/systemd/system/portcullis.service"),
    ("systemd/portcullis.socket", "usr/lib/systemd/system/portcullis.socket"),
    ("systemd/sysusers.conf", "usr/lib/sysusers.d/portcullis.conf"),
    ("systemd/tmpfiles.conf", "usr/lib/tmpfiles.d/portcullis.conf"),
];

/// What operators may copy or import.
const SHARED: [(&str, &str); 3] = [
    ("systemd/sysctl.conf", "usr/share/portcullis/sysctl.conf"),
    ("systemd/alerts.yml", "usr/share/portcullis/alerts.yml"),
    ("systemd/dashboard.json", "usr/share/portcullis/dashboard.json"),
];

/// Completion scripts. Debian's own place for zsh differs from everybody else's.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/portcullis"),
    ("zsh", ZSH),
    ("fish", "usr/share/fish/vendor_completions.d/portcullis.fish"),
];

/// Where zsh looks, on most distributions.
const ZSH: &str = "usr/share/zsh/site-functions/_portcullis";
/// Where it looks on Debian.
const ZSH_DEBIAN: &str = "usr/share/zsh/vendor-completions/_portcullis";

/// Where those are.
pub(super) const SHARED_DIRECTORY: &str = "usr/share/portcullis";

/// Texts for people who look into licences.
pub(super) const DOCUMENTATION: &str = "usr/share/doc/portcullis";

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Without the slash in front.
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) bytes: Vec<u8>,
}

/// All files, by their paths.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    entries: Vec<Entry>,
}

impl Tree {
    /// Reads, and has the binary write what it writes of itself.
    ///
    /// # Errors
    /// What cannot be read or run.
    pub(super) fn gather(source: &Source, binary: &Path) -> Result<Tree> {
        let mut tree = Tree::default();
        tree.add("usr/bin/portcullis", 0o755, read(binary)?);
        for (from, to) in COPIED {
            let mode = if to == CONFIGURATION { 0o640 } else { 0o644 };
            tree.add(to, mode, read(&source.root.join(from))?);
        }
        for (from, to) in SHARED {
            tree.add(to, 0o644, read(&source.root.join(from))?);
        }
        for (shell, to) in COMPLETIONS {
            let script = succeed(Command::new(binary).args(["completions", shell]))?;
            tree.add(to, 0o644, script.into_bytes());
        }
        tree.add_manuals(binary)?;
        let packages = sbom::packages(source)?;
        let bill = sbom::bill(source, &packages)?;
        tree.add(&format!("{DOCUMENTATION}/sbom.cdx.json"), 0o644, bill);
        let licences = gzip(&legal::licences_of(&packages)?)?;
        tree.add(&format!("{DOCUMENTATION}/third-party-licences.txt.gz"), 0o644, licences);
        tree.add(&format!("{DOCUMENTATION}/copyright"), 0o644, legal::copyright(source)?);
        Ok(tree)
    }

    fn add_manuals(&mut self, binary: &Path) -> Result<()> {
        let written = tempfile::tempdir()?;
        succeed(Command::new(binary).arg("man").arg(written.path()))?;
        for section in fs::read_dir(written.path())? {
            let section = section?;
            for page in fs::read_dir(section.path())? {
                let page = page?;
                let (section, page) = (section.file_name(), page.file_name());
                let to = format!(
                    "usr/share/man/{}/{}.gz",
                    section.to_string_lossy(),
                    page.to_string_lossy()
                );
                let text = read(&written.path().join(&section).join(&page))?;
                self.add(&to, 0o644, gzip(&text)?);
            }
        }
        Ok(())
    }

    /// Sorted.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// One more file, in its place.
    pub(super) fn add(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        let place = self.entries.partition_point(|entry| entry.path.as_str() < path);
        self.entries.insert(place, Entry { path: path.to_owned(), mode, bytes });
    }

    /// With Debian's place for zsh.
    pub(super) fn for_debian(&self) -> Tree {
        let mut tree = self.clone();
        if let Some(entry) = tree.entries.iter_mut().find(|entry| entry.path == ZSH) {
            ZSH_DEBIAN.clone_into(&mut entry.path);
        }
        tree.entries.sort_by(|one, other| one.path.cmp(&other.path));
        tree
    }

    /// Writes everything below a directory that is made anew, each file as old as the commit.
    ///
    /// # Errors
    /// What cannot be written.
    pub(super) fn write(&self, source: &Source, directory: &Path) -> Result<()> {
        if directory.exists() {
            fs::remove_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        for entry in &self.entries {
            let file = directory.join(&entry.path);
            if let Some(parent) = file.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
            }
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            fs::write(&file, &entry.bytes).with_context(|| file.display().to_string())?;
            // Not at the opening: the mask of whoever builds would count.
            fs::set_permissions(&file, fs::Permissions::from_mode(entry.mode))?;
        }
        age(directory, source)
    }

    /// The files that are not there as they are here, below a directory or the only one in it.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn missing_in(&self, directory: &Path) -> Result<Vec<String>> {
        let mut places = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
        let root = match (places.pop(), places.is_empty()) {
            (Some(only), true) => only.path(),
            _ => directory.to_owned(),
        };
        let is_missing = |entry: &&Entry| {
            fs::read(root.join(&entry.path)).map_or(true, |bytes| bytes != entry.bytes)
        };
        Ok(self.entries.iter().filter(is_missing).map(|entry| entry.path.clone()).collect())
    }

    /// Octets of all files.
    pub(super) fn size_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes.len()).sum()
    }
}

/// Sets the modes of directories, and the time of everything, below and including this directory.
pub(super) fn age(directory: &Path, source: &Source) -> Result<()> {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(source.epoch_s);
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            age(&path, source)?;
        } else {
            File::open(&path)?.set_modified(then)?;
        }
    }
    let is_private = directory.ends_with(CONFIGURATION_DIRECTORY);
    let mode = if is_private { 0o750 } else { 0o755 };
    fs::set_permissions(directory, fs::Permissions::from_mode(mode))?;
    File::open(directory)?.set_modified(then)?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// Where a package's files are put before they are packed.
pub(super) fn stage(out: &Path, kind: &str) -> PathBuf {
    out.join("stage").join(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_as_old_as_the_commit_and_nobody_else_reads_the_configuration() {
        use std::os::unix::fs::MetadataExt as _;
        let place = tempfile::tempdir().unwrap();
        let source = Source {
            root: PathBuf::new(),
            version: "1".to_owned(),
            epoch_s: 1_700_000_000,
            commit: None,
        };
        let mut tree = Tree::default();
        tree.add("usr/bin/portcullis", 0o755, b"binary".to_vec());
        tree.add(CONFIGURATION, 0o640, b"text".to_vec());
        tree.add(ZSH, 0o644, Vec::new());
        assert!(tree.for_debian().entries().iter().any(|entry| entry.path == ZSH_DEBIAN));
        let directory = place.path().join("stage");
        tree.write(&source, &directory).unwrap();
        for (path, mode) in [
            ("usr/bin/portcullis", 0o755),
            ("usr/bin", 0o755),
            (CONFIGURATION, 0o640),
            (CONFIGURATION_DIRECTORY, 0o750),
        ] {
            let found = fs::metadata(directory.join(path)).unwrap();
            assert_eq!((found.mode() & 0o7777, found.mtime()), (mode, 1_700_000_000), "{path}");
        }
        assert_eq!(tree.size_bytes(), 10);
        assert_eq!(tree.missing_in(&directory).unwrap(), [""; 0]);
        assert_eq!(tree.missing_in(place.path()).unwrap(), [""; 0]);
        fs::write(directory.join(CONFIGURATION), "other").unwrap();
        fs::remove_file(directory.join(ZSH)).unwrap();
        assert_eq!(tree.missing_in(&directory).unwrap(), [CONFIGURATION, ZSH]);
    }
}
