//! The directory below a bpffs that keeps the filter in force when the daemon is gone.
//!
//! `<pin>/v<layout>/` holds every map under its name and each interface's link as `link_<slot>`.
//! An object lives while it has a pin or an open descriptor; the daemon keeps no descriptor of a
//! link, so a link is gone when its pin is.

use std::{
    ffi::CString,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
};

use aya::programs::links::PinnedLink;
use gateway_ebpf::abi;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use super::{Notice, error::KernelError};

/// `BPF_FS_MAGIC` (linux/magic.h).
const BPFFS: FsType = FsType(0xcafe_4a11);
/// Where every distribution mounts it.
const BPFFS_MOUNT: &str = "/sys/fs/bpf";
const LINK_PREFIX: &str = "link_";

/// The directory of one running daemon, which no other may use meanwhile.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    directory: PathBuf,
    /// Advisory lock on the directory; the kernel lets go of it however the process ends.
    lock: File,
}

/// A link that is pinned somewhere below the pin directory.
#[derive(Debug)]
pub struct PinnedProgram {
    /// Its pin.
    pub path: PathBuf,
    /// The program it holds.
    pub program_id: u32,
}

impl Pins {
    /// Makes the directory and takes possession of it.
    pub fn open(
        root: &Path,
        notices: &mut Vec<Notice>,
        undo: &mut Undo,
    ) -> Result<Self, KernelError> {
        ensure_bpffs(root, notices)?;
        let directory = root.join(format!("v{}", abi::LAYOUT_VERSION));
        for directory in [root, &directory] {
            undo.create_directory(directory)?;
        }
        let lock = File::open(root).map_err(KernelError::file("open", root))?;
        if lock.try_lock().is_err() {
            return Err(KernelError::Busy { pin: root.to_owned() });
        }
        undo.watch(&directory)?;
        Ok(Self { root: root.to_owned(), directory, lock })
    }

    /// Where the maps are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The pin of a slot's link.
    pub fn link(&self, slot: u32) -> PathBuf {
        self.directory.join(format!("{LINK_PREFIX}{slot}"))
    }

    /// Every link that is pinned below the root, of this layout or an earlier one.
    pub fn links(&self) -> Result<Vec<PinnedProgram>, KernelError> {
        pinned_programs(&self.root)
    }

    /// What earlier layouts left: each directory with its layout's number.
    pub fn other_layouts(&self) -> Result<Vec<(PathBuf, u32)>, KernelError> {
        let directories = layout_directories(&self.root)?.into_iter();
        Ok(directories
            .filter(|directory| *directory != self.directory)
            .filter_map(|directory| Some((layout_version(&directory)?, directory)))
            .map(|(version, directory)| (directory, version))
            .collect())
    }

    /// Removes what an earlier layout left.
    pub fn remove_layout(&self, directory: &Path) -> Result<(), KernelError> {
        remove_directory(directory)
    }
}

/// What a failed start must take back.
#[derive(Debug, Default)]
pub struct Undo {
    created: Vec<PathBuf>,
    watched: Option<(PathBuf, Vec<PathBuf>)>,
}

impl Undo {
    fn create_directory(&mut self, directory: &Path) -> Result<(), KernelError> {
        // Counters and bans are nobody else's business.
        match DirBuilder::new().mode(0o700).create(directory) {
            Ok(()) => self.created.push(directory.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(KernelError::file("create", directory)(error)),
        }
        Ok(())
    }

    /// From now on, whatever is new in the directory is ours to remove.
    pub fn watch(&mut self, directory: &Path) -> Result<(), KernelError> {
        self.watched = Some((directory.to_owned(), entries(directory)?));
        Ok(())
    }

    /// All went well.
    pub fn keep(mut self) {
        self.created.clear();
        self.watched = None;
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Closing is not enough at once: a process that is just being started has a copy of the
        // descriptor until it is replaced by its program, and the lock belongs to all copies.
        // Without success the kernel lets go of it a moment later.
        let _soon = self.lock.unlock();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // Errors are left alone: this runs while another one is on its way out.
        if let Some((directory, before)) = self.watched.take() {
            let new = entries(&directory).unwrap_or_default();
            for path in new.iter().filter(|path| !before.contains(path)) {
                let _ = if slot(path).is_some() { remove_link(path) } else { remove_file(path) };
            }
        }
        for directory in self.created.drain(..).rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Removes everything below a pin directory; links first, so that no program runs on with maps
/// that are half gone. Returns the directories there were.
pub fn remove_all(root: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let directories = layout_directories(root)?;
    for directory in &directories {
        for link in links(directory) {
            remove_link(&link)?;
        }
    }
    for directory in &directories {
        remove_directory(directory)?;
    }
    match fs::remove_dir(root) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // Something in it is not ours, or it is not ours to remove: a service's sandbox has it as a
        // mount of its own.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::PermissionDenied
            ) => {}
        Err(error) => return Err(KernelError::file("remove", root)(error)),
    }
    Ok(directories)
}

/// Every link that is pinned below a pin directory.
pub fn pinned_programs(root: &Path) -> Result<Vec<PinnedProgram>, KernelError> {
    let directories = layout_directories(root)?;
    let links = directories.iter().flat_map(|directory| links(directory));
    let pinned = |path: PathBuf| Some(PinnedProgram { program_id: program_id(&path)?, path });
    Ok(links.filter_map(pinned).collect())
}

/// The pins of the links in a directory.
pub fn links(directory: &Path) -> Vec<PathBuf> {
    let mut links = entries(directory).unwrap_or_default();
    links.retain(|path| slot(path).is_some());
    links
}

/// The slot that a link's pin is named for.
pub fn slot(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix(LINK_PREFIX)?.parse().ok()
}

/// The program that a pinned link holds; `None` when it is no link.
pub fn program_id(path: &Path) -> Option<u32> {
    let link = PinnedLink::from_pin(path).ok()?;
    Some(aya::programs::links::FdLink::from(link).info().ok()?.program_id())
}

/// Takes the program off its interface and removes the pin; it is as good when there is none.
///
/// Removing the pin would do, but only some time later, when the kernel gets round to it, and not
/// while anybody else holds the link open.
pub fn remove_link(path: &Path) -> Result<(), KernelError> {
    match detach_link(path) {
        // No such pin, or the link lost its device.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOLINK)) => {
            Err(KernelError::file("detach", path)(error))
        }
        _ => remove_file(path),
    }
}

/// `BPF_LINK_DETACH` (since 5.9, like XDP links themselves), which aya does not offer.
fn detach_link(path: &Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    /// The part of `union bpf_attr` that `BPF_OBJ_GET` reads.
    #[repr(C)]
    struct Object {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let object = Object { path: name.as_ptr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the attributes are what the command reads, of the size that is given, and the path
    // is a string that ends with a zero and outlives the call.
    let descriptor = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const object, size_of::<Object>())
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) };
    let number = link.as_raw_fd() as u32;
    // SAFETY: the command reads one number, the descriptor of a link, which is open.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const number, size_of::<u32>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Removes one pin; it is as good when there is none.
pub fn remove_file(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn remove_directory(directory: &Path) -> Result<(), KernelError> {
    for path in entries(directory)? {
        remove_file(&path)?;
    }
    fs::remove_dir(directory).map_err(KernelError::file("remove", directory))
}

/// Directories named `v` and a number; none where there is no root.
fn layout_directories(root: &Path) -> Result<Vec<PathBuf>, KernelError> {
    if matches!(fs::exists(root), Ok(false)) {
        return Ok(Vec::new());
    }
    let mut directories = entries(root)?;
    directories.retain(|path| layout_version(path).is_some());
    Ok(directories)
}

/// The number in a layout's directory's name.
fn layout_version(directory: &Path) -> Option<u32> {
    directory.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    read().map_err(KernelError::file("list", directory))
}

/// The directory's place must be on a bpffs; where the usual one is not mounted, it is.
fn ensure_bpffs(root: &Path, notices: &mut Vec<Notice>) -> Result<(), KernelError> {
    if is_on_bpffs(root) {
        return Ok(());
    }
    let refused = |error| KernelError::NoBpffs { pin: root.to_owned(), error };
    if !root.starts_with(BPFFS_MOUNT) {
        return Err(refused(None));
    }
    mount(Some("bpf"), BPFFS_MOUNT, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|error| refused(Some(error.into())))?;
    notices.push(Notice::MountedBpffs { path: BPFFS_MOUNT.into() });
    Ok(())
}

fn is_on_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|existing| {
        statfs(existing).is_ok_and(|status| status.filesystem_type() == BPFFS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_start_takes_back_what_it_made_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (old, made) = (root.path().join("old"), root.path().join("made"));
        fs::create_dir(&old).unwrap();
        fs::write(old.join("before"), "").unwrap();
        let mut undo = Undo::default();
        undo.create_directory(&old).unwrap();
        undo.create_directory(&made).unwrap();
        undo.watch(&old).unwrap();
        fs::write(old.join("after"), "").unwrap();
        drop(undo);
        assert!(old.join("before").exists());
        assert!(!old.join("after").exists() && !made.exists());
    }

    #[test]
    fn a_good_start_keeps_everything() {
        let root = tempfile::tempdir().unwrap();
        let made = root.path().join("made");
        let mut undo = Undo::default();
        undo.create_directory(&made).unwrap();
        undo.watch(&made).unwrap();
        fs::write(made.join("after"), "").unwrap();
        undo.keep();
        assert!(made.join("after").exists());
    }

    #[test]
    fn an_ordinary_directory_holds_no_pins() {
        let root = tempfile::tempdir().unwrap();
        let error = Pins::open(root.path(), &mut Vec::new(), &mut Undo::default()).unwrap_err();
        assert!(matches!(error, KernelError::NoBpffs { error: None, .. }), "{error}");
    }

    #[test]
    fn finds_layouts_and_links_by_their_names() {
        let root = tempfile::tempdir().unwrap();
        for name in ["v1", "v12", "v", "vx", "other"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let mut found = layout_directories(root.path()).unwrap();
        found.sort();
        assert_eq!(found, [root.path().join("v1"), root.path().join("v12")]);
        assert!(layout_directories(&root.path().join("none")).unwrap().is_empty());
        for (name, expected) in
            [("link_0", Some(0)), ("link_12", Some(12)), ("link_", None), ("BANS", None)]
        {
            assert_eq!(slot(Path::new(name)), expected, "{name}");
        }
    }
}
