//! Programs of packages that must not be installed, because that would start a service: `cargo xtask
//! setup` takes them out into `.tools/unpacked`.

use std::{
    env,
    path::{Path, PathBuf},
};

/// A program: the one taken out, else one that is installed all the same.
///
/// Where there is none it says so and gives `None`.
///
/// # Panics
/// Where every test is expected to run (`CI` is set).
pub fn program(name: &str) -> Option<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let unpacked = package.parent().unwrap_or(package).join(".tools/unpacked/usr");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = vec![unpacked.join("bin"), unpacked.join("sbin")];
    places.extend(env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]));
    let found = places.into_iter().map(|place| place.join(name)).find(|file| file.is_file());
    if found.is_none() {
        assert!(env::var_os("CI").is_none(), "there is no {name}; `cargo xtask setup` brings it");
        eprintln!("NOT RUN: there is no {name}; `cargo xtask setup` brings it");
    }
    found
}
