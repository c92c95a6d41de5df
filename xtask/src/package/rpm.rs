//! The RPM package: rpmbuild, from a specification that only places the files that are there already.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    Source,
    tree::{self, CONFIGURATION, CONFIGURATION_DIRECTORY, DOCUMENTATION, Tree},
};
use crate::harness::process::succeed;

/// The head and the scripts; the list of files is put behind.
const SPECIFICATION: &str = include_str!("rpm/portcullis.spec");

/// Packs; gives the file.
///
/// # Errors
/// What cannot be written or run.
pub(super) fn make(source: &Source, tree: &Tree, out: &Path) -> Result<PathBuf> {
    let stage = tree::stage(out, "rpm");
    tree.write(source, &stage)?;
    let work = out.join("rpmbuild");
    if work.exists() {
        fs::remove_dir_all(&work).context("what an earlier run left")?;
    }
    fs::create_dir_all(&work)?;
    let specification = work.join("portcullis.spec");
    fs::write(&specification, text(source, tree)?)?;
    succeed(
        Command::new("rpmbuild")
            .env("SOURCE_DATE_EPOCH", source.epoch_s.to_string())
            .args(["-bb", "--quiet"])
            .arg("--define")
            .arg(format!("_topdir {}", work.display()))
            .arg("--define")
            // A macro, not a shell: what is in the name stays one word.
            .arg(format!("staged {}", stage.display()))
            .arg(&specification),
    )?;
    let name = format!("portcullis-{}-1.{}.rpm", source.version, env::consts::ARCH);
    let made = work.join("RPMS").join(env::consts::ARCH).join(&name);
    let file = out.join(&name);
    fs::rename(&made, &file).with_context(|| made.display().to_string())?;
    fs::remove_dir_all(&work).context("the work directory of rpmbuild")?;
    Ok(file)
}

fn text(source: &Source, tree: &Tree) -> Result<String> {
    let mut text = SPECIFICATION.replace("@VERSION@", &source.version);
    text.push_str("%files\n");
    text.push_str(&format!("%dir %attr(0750,root,portcullis) /{CONFIGURATION_DIRECTORY}\n"));
    for entry in tree.entries() {
        let path = &entry.path;
        let kind = match path.as_str() {
            CONFIGURATION => "%attr(0640,root,portcullis) %config(noreplace) ",
            path if path.ends_with("/copyright") => "%license ",
            path if path.starts_with(DOCUMENTATION) || path.starts_with("usr/share/man") => "%doc ",
            _ => "",
        };
        text.push_str(&format!("{kind}/{path}\n"));
    }
    let date = source.date("+%a %b %d %Y")?;
    let version = &source.version;
    text.push_str(&format!(
        "\n%changelog\n* {date} Portcullis maintainers <maintainers@portcullis.invalid> - {version}-1\n\
         - Portcullis {version}.\n"
    ));
    Ok(text)
}
