//! Files that change while the daemon runs: certificates, keys, revocation lists, key sets.
//!
//! Looked at with `stat` again and again instead of waiting for events: it sees renames, links that
//! now lead elsewhere (mounted secrets), files on any file system, and files that come back, and there
//! is no queue that could overflow. [`marks`] looks; [`Watch`] decides when a change is complete. It
//! knows nothing of what the files hold: whoever reads one that was half written keeps what it had.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Time between two looks. A look costs a microsecond for each file, so that ten a second are
/// nothing, and a revoked certificate is out well within a second.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A file that was replaced (renamed over, linked anew) is complete at once; one look more takes
/// changes that belong together, as certificate and key, at the same time.
const SETTLED_AFTER_REPLACEMENT: Duration = LOOK_EVERY;

/// A file that is written in place, or gone, may be in the middle of it. A writer that pauses for
/// longer is only found out by what the file holds then.
const SETTLED_AFTER_WRITING: Duration = Duration::from_millis(400);

/// A file that never rests is taken at last after this, for a list that grows all the time must be
/// read too; and nobody waits longer than this for the changes of others.
const UNSETTLED_MAX: Duration = Duration::from_millis(800);

/// What tells one state of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A file.
    Present {
        /// Device and inode: differ after a replacement.
        place: (u64, u64),
        /// Its length.
        bytes: u64,
        /// Last change of its contents, in seconds and nanoseconds.
        modified: (i64, i64),
        /// Last change of its contents, owner or permissions.
        changed: (i64, i64),
    },
    /// Nothing that could be looked at.
    Absent(io::ErrorKind),
}

impl Mark {
    /// Follows links, so that a link that leads elsewhere is another file.
    pub fn of(path: &Path) -> Mark {
        match fs::metadata(path) {
            Ok(metadata) => Mark::Present {
                place: (metadata.dev(), metadata.ino()),
                bytes: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            },
            Err(error) => Mark::Absent(error.kind()),
        }
    }

    /// How long this has to last, after `before`, until it counts.
    fn settled_after(&self, before: &Mark) -> Duration {
        match (before, self) {
            (Mark::Present { place: before, .. }, Mark::Present { place, .. })
                if before != place =>
            {
                SETTLED_AFTER_REPLACEMENT
            }
            _ => SETTLED_AFTER_WRITING,
        }
    }
}

/// Looks at each file.
pub fn marks(paths: impl IntoIterator<Item = PathBuf>) -> Vec<(PathBuf, Mark)> {
    let look = |path: PathBuf| {
        let mark = Mark::of(&path);
        (path, mark)
    };
    paths.into_iter().map(look).collect()
}

/// The files that are watched, and how they were when they were last read.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    files: BTreeMap<PathBuf, Watched>,
    /// Complete changes that wait for those under way, and since when.
    complete: BTreeSet<PathBuf>,
    waiting_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    taken: Mark,
    change: Option<Change>,
}

/// A change under way.
#[derive(Clone, Copy, Debug)]
struct Change {
    seen: Mark,
    first_at: Instant,
    seen_at: Instant,
}

impl Watch {
    /// Watches these files, and takes these marks for those of what was read: look first, then read.
    /// A file that stands twice is watched once.
    pub fn new(marks: Vec<(PathBuf, Mark)>) -> Watch {
        let watched = |(path, taken)| (path, Watched { taken, change: None });
        Watch { files: marks.into_iter().map(watched).collect(), ..Watch::default() }
    }

    /// What to look at.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.keys().cloned().collect()
    }

    /// The files that have changed and are to be read now; empty when there are none, or when
    /// changes are still under way. Marks of other files are passed over.
    pub fn observe(&mut self, marks: Vec<(PathBuf, Mark)>, now: Instant) -> BTreeSet<PathBuf> {
        for (path, mark) in marks {
            if let Some(watched) = self.files.get_mut(&path)
                && watched.is_complete(mark, now)
            {
                self.complete.insert(path);
                self.waiting_since.get_or_insert(now);
            }
        }
        let waited = self.waiting_since.map(|since| now.saturating_duration_since(since));
        let under_way = self.files.values().any(|watched| watched.change.is_some());
        if waited.is_none_or(|waited| under_way && waited < UNSETTLED_MAX) {
            return BTreeSet::new();
        }
        self.waiting_since = None;
        std::mem::take(&mut self.complete)
    }
}

impl Watched {
    /// Takes note of a look; true when it completes a change.
    fn is_complete(&mut self, mark: Mark, now: Instant) -> bool {
        if mark == self.taken {
            self.change = None;
            return false;
        }
        let started = Change { seen: mark, first_at: now, seen_at: now };
        let change = self.change.get_or_insert(started);
        if change.seen != mark {
            *change = Change { first_at: change.first_at, ..started };
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        let settled = since(change.seen_at) >= mark.settled_after(&self.taken);
        if !settled && since(change.first_at) < UNSETTLED_MAX {
            return false;
        }
        *self = Watched { taken: mark, change: None };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time;

    /// A file of that inode, written at that time.
    fn mark(inode: u64, modified_s: i64) -> Mark {
        let modified = (modified_s, 0);
        Mark::Present { place: (1, inode), bytes: 1, modified, changed: modified }
    }

    const GONE: Mark = Mark::Absent(io::ErrorKind::NotFound);

    /// When, and how the files are then.
    type Look<'a> = (u64, &'a [(&'a str, Mark)]);

    /// When, and which.
    type Taken = Vec<(u64, Vec<String>)>;

    /// Looks at these times and tells at which one the files were to be read.
    fn taken(looks: &[Look]) -> Taken {
        let start = time::monotonic();
        let marks = |looks: &[(&str, Mark)]| {
            looks.iter().map(|(path, mark)| (PathBuf::from(path), *mark)).collect()
        };
        let mut watch = Watch::new(marks(&[("a", mark(1, 0)), ("b", mark(2, 0))]));
        let mut taken = Vec::new();
        for (at_ms, look) in looks {
            let found = watch.observe(marks(look), start + Duration::from_millis(*at_ms));
            if !found.is_empty() {
                let names = found.iter().map(|path| path.display().to_string()).collect();
                taken.push((*at_ms, names));
            }
        }
        taken
    }

    #[test]
    fn a_change_is_taken_when_it_is_complete() {
        let both = vec!["a".to_owned(), "b".to_owned()];
        let one = vec!["a".to_owned()];
        let table: [(&str, &[Look], Taken); 8] = [
            ("nothing", &[(0, &[("a", mark(1, 0))]), (900, &[("a", mark(1, 0))])], vec![]),
            (
                "a replacement at the next look, and once",
                &[
                    (0, &[("a", mark(3, 1))]),
                    (100, &[("a", mark(3, 1))]),
                    (200, &[("a", mark(3, 1))]),
                ],
                vec![(100, one.clone())],
            ),
            (
                "a file written in place when it rests",
                &[
                    (0, &[("a", mark(1, 1))]),
                    (300, &[("a", mark(1, 2))]),
                    (600, &[("a", mark(1, 2))]),
                    (700, &[("a", mark(1, 2))]),
                ],
                vec![(700, one.clone())],
            ),
            (
                "a file that never rests, at last",
                &[
                    (0, &[("a", mark(1, 1))]),
                    (300, &[("a", mark(1, 2))]),
                    (600, &[("a", mark(1, 3))]),
                    (800, &[("a", mark(1, 4))]),
                    (900, &[("a", mark(1, 5))]),
                ],
                vec![(800, one.clone())],
            ),
            (
                "certificate and key together",
                &[
                    (0, &[("a", mark(3, 1)), ("b", mark(2, 0))]),
                    (100, &[("a", mark(3, 1)), ("b", mark(4, 1))]),
                    (200, &[("a", mark(3, 1)), ("b", mark(4, 1))]),
                ],
                vec![(200, both.clone())],
            ),
            (
                "one does not wait for ever for the other",
                &[
                    (0, &[("a", mark(3, 1))]),
                    (100, &[("a", mark(3, 1)), ("b", mark(2, 1))]),
                    (400, &[("b", mark(2, 2))]),
                    (700, &[("b", mark(2, 3))]),
                    (899, &[("b", mark(2, 4))]),
                    (900, &[("b", mark(2, 5))]),
                ],
                vec![(900, both)],
            ),
            (
                "gone and back is no change",
                &[(0, &[("a", GONE)]), (300, &[("a", mark(1, 0))]), (600, &[("a", mark(1, 0))])],
                vec![],
            ),
            (
                "gone for long is one, and so is its return",
                &[
                    (0, &[("a", GONE), ("unknown", GONE)]),
                    (400, &[("a", GONE)]),
                    (500, &[("a", mark(1, 0))]),
                    (900, &[("a", mark(1, 0))]),
                ],
                vec![(400, one.clone()), (900, one)],
            ),
        ];
        for (what, looks, expected) in table {
            assert_eq!(taken(looks), expected, "{what}");
        }
    }

    #[test]
    fn marks_differ_after_every_kind_of_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("one"), "1").unwrap();
        fs::write(path("two"), "2").unwrap();
        std::os::unix::fs::symlink("one", path("link")).unwrap();
        let mut last = Mark::of(&path("link"));
        assert_eq!(last, Mark::of(&path("one")), "a link is what it leads to");
        let mut differs = |what: &str| {
            // Times have the grain of the kernel's tick, so the same change is made until it shows.
            let mark = Mark::of(&path("link"));
            let differs = mark != last;
            last = mark;
            assert!(differs || what.is_empty(), "{what}");
            differs
        };
        fs::write(path("one"), "11").unwrap();
        differs("written in place");
        fs::rename(path("two"), path("one")).unwrap();
        differs("renamed over");
        let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        while !differs("") {
            fs::set_permissions(path("one"), mode.clone()).unwrap();
        }
        fs::write(path("three"), "3").unwrap();
        std::os::unix::fs::symlink("three", path("link.new")).unwrap();
        fs::rename(path("link.new"), path("link")).unwrap();
        differs("the link leads elsewhere");
        fs::remove_file(path("three")).unwrap();
        differs("gone");
        assert_eq!(Mark::of(&path("link")), GONE);
    }
}
