//! An initial file system for a kernel: cpio's "newc" format, as the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst describes it.
//!
//! Written here and not by `cpio`, because the kernel takes several archives one after the other:
//! what every guest has is packed once, and each kernel's own module is a second, small one.

use std::{
    collections::BTreeSet, ffi::OsStr, fmt::Write as _, os::unix::ffi::OsStrExt as _, path::Path,
};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LAST: &[u8] = b"TRAILER!!!";

/// An archive that grows.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<Vec<u8>>,
    entries: u32,
}

impl Archive {
    /// Adds an empty directory and those above it, where they are not there yet.
    pub fn directory(&mut self, path: &Path) {
        let mut above: Vec<&Path> = path.ancestors().filter(|path| !is_root(path)).collect();
        above.reverse();
        for directory in above {
            let name = name(directory);
            if self.directories.insert(name.to_vec()) {
                self.entry(name, DIRECTORY, &[]);
            }
        }
    }

    /// Adds a file that may be run, and the directories above it.
    pub fn file(&mut self, path: &Path, content: &[u8]) {
        if let Some(directory) = path.parent() {
            self.directory(directory);
        }
        self.entry(name(path), PROGRAM, content);
    }

    /// The archive's octets; a multiple of four, so that another may follow.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(LAST, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) {
        self.entries += 1;
        // inode, mode, user, group, links, time, size, device (2), special device (2), length of
        // the name with its zero, checksum. A size above 4 GB would not fit; ours are megabytes.
        let size = content.len() as u32;
        let name_bytes = name.len() as u32 + 1;
        let mut header = String::from("070701");
        for field in [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_bytes, 0] {
            // Writing to a String cannot fail.
            let _infallible = write!(header, "{field:08x}");
        }
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Names in the archive have no slash in front.
fn name(path: &Path) -> &[u8] {
    let name = path.as_os_str().as_bytes();
    name.strip_prefix(b"/").unwrap_or(name)
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.as_os_str() == OsStr::new("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, modes and contents, read back as the format says.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let number = |bytes: &[u8], field: usize| {
            let digits = std::str::from_utf8(&bytes[6 + 8 * field..][..8]).unwrap();
            u32::from_str_radix(digits, 16).unwrap()
        };
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size) = (number(bytes, 1), number(bytes, 6) as usize);
            let name_bytes = number(bytes, 11) as usize;
            let name = String::from_utf8(bytes[110..110 + name_bytes - 1].to_vec()).unwrap();
            let start = (110 + name_bytes).next_multiple_of(4);
            entries.push((name, mode, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn holds_each_directory_once_and_before_what_is_in_it() {
        let mut archive = Archive::default();
        archive.file(Path::new("/lib/a/one"), b"12345");
        archive.file(Path::new("/lib/a/two"), b"");
        archive.directory(Path::new("/lib/b"));
        archive.file(Path::new("/init"), b"1234");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let entry = |name: &str, mode, content: &[u8]| (name.to_owned(), mode, content.to_vec());
        assert_eq!(
            read(&bytes),
            [
                entry("lib", DIRECTORY, b""),
                entry("lib/a", DIRECTORY, b""),
                entry("lib/a/one", PROGRAM, b"12345"),
                entry("lib/a/two", PROGRAM, b""),
                entry("lib/b", DIRECTORY, b""),
                entry("init", PROGRAM, b"1234"),
                entry("TRAILER!!!", 0, b""),
            ]
        );
    }
}
