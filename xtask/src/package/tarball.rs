//! The archive for everybody who has neither dpkg nor rpm: the same files below one directory.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    Source,
    tree::{self, Tree},
};
use crate::harness::process::succeed;

/// What to do with the files by hand.
const INSTALL: &str = "\
Copy these files to where they stand below this directory, then, as root:

    systemd-sysusers
    chown root:portcullis /etc/portcullis /etc/portcullis/portcullis.toml
    systemd-tmpfiles --create portcullis.conf
    systemctl daemon-reload
    systemctl enable portcullis

Write /etc/portcullis/portcullis.toml, then: portcullis check && systemctl start portcullis
";

/// Packs; gives the file.
///
/// # Errors
/// What cannot be written or run.
pub(super) fn make(source: &Source, tree: &Tree, out: &Path) -> Result<PathBuf> {
    let name = format!("portcullis-{}-{}-linux", source.version, std::env::consts::ARCH);
    let mut tree = tree.clone();
    tree.add("INSTALL", 0o644, INSTALL.as_bytes().to_vec());
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let text = std::fs::read(source.root.join(licence))?;
        tree.add(licence, 0o644, text);
    }
    let stage = tree::stage(out, "tar");
    tree.write(source, &stage.join(&name))?;
    let file = out.join(format!("{name}.tar.xz"));
    succeed(
        Command::new("tar")
            .args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
            .arg(format!("--mtime=@{}", source.epoch_s))
            // One thread: how many there are changes the blocks.
            .args(["--format=gnu", "--use-compress-program=xz -6 --threads=1", "--file"])
            .arg(&file)
            .arg("--directory")
            .arg(&stage)
            .arg(&name),
    )?;
    Ok(file)
}
