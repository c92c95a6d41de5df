//! A daemon whose clocks are moved, by libfaketime (Debian's package `faketime`): it stands between the
//! program and the C library's clocks, both the wall's and the monotonic one. The product knows nothing
//! of it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Where distributions put the library.
const PLACES: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// How far ahead of the machine's the clocks of whoever has this environment are.
#[derive(Debug)]
pub struct FixtureClock {
    library: PathBuf,
    file: PathBuf,
}

impl FixtureClock {
    /// A clock that is right, for now; its offset is kept in `directory`. `None` without the library.
    ///
    /// # Errors
    /// When the offset cannot be written.
    pub fn new(directory: &Path) -> Result<Option<FixtureClock>> {
        let Some(library) = library() else { return Ok(None) };
        let clock = FixtureClock { library, file: directory.join("clock.offset") };
        clock.set_ahead(Duration::ZERO)?;
        Ok(Some(clock))
    }

    /// What a process is started with, to be governed by this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            // The offset is looked up each time.
            ("FAKETIME_NO_CACHE", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// From now on it is so far ahead.
    ///
    /// # Errors
    /// When the offset cannot be written.
    pub fn set_ahead(&self, by: Duration) -> Result<()> {
        let beside = self.file.with_extension("new");
        fs::write(&beside, format!("+{}\n", by.as_secs())).context("the clock's offset")?;
        fs::rename(&beside, &self.file).context("the clock's offset")
    }
}

fn library() -> Option<PathBuf> {
    let below = |place: &str| {
        let inside = fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
        std::iter::once(PathBuf::from(place)).chain(inside).collect::<Vec<_>>()
    };
    PLACES
        .iter()
        .flat_map(|place| below(place))
        .map(|directory| directory.join(LIBRARY))
        .find(|library| library.exists())
}
