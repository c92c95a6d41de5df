//! Other people's implementations, in Python: `cargo xtask setup` puts them into `.tools/python`.

use std::path::{Path, PathBuf};

/// The interpreter that has them.
pub fn interpreter() -> Option<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = package.parent().unwrap_or(package).join(".tools/python/bin/python");
    python.exists().then_some(python)
}
