//! The RPM package: rpmbuild, from a specification that only places the files that are there already;
//! and what rpm's own tools say of it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;

use super::{
    Source, deb,
    tree::{self, CONFIGURATION, CONFIGURATION_DIRECTORY, DOCUMENTATION, SHARED_DIRECTORY, Tree},
};
use crate::harness::{
    netns,
    process::{run, run_with_input, succeed},
};

/// The head and the scripts; the list of files is put behind.
const SPECIFICATION: &str = include_str!("rpm/portcullis.spec");

/// Installs, changes, installs again and removes it in a copy of this machine.
const TRIAL: &str = include_str!("rpm/trial.sh");

/// What rpmlint takes for mistakes and is meant.
const MEANT: [&str; 3] = [
    // Whoever publishes it signs it, with a key that is not here.
    "no-signature",
    // Only root and the daemon read the configuration, which may name secrets.
    "non-standard-dir-perm",
    "non-readable",
];

/// As rpm lists a file: mode, owner, what it is, SHA-256 where it has one, path.
const LISTED: &str = "[%{FILEMODES:octal} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEFLAGS:fflags}| %{FILEDIGESTS} %{FILENAMES}\n]";

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
    let mut text = SPECIFICATION
        .replace("@VERSION@", &source.version)
        .replace("@MAINTAINER@", &deb::maintainer());
    text.push_str("%files\n");
    text.push_str(&format!("%dir %attr(0750,root,portcullis) /{CONFIGURATION_DIRECTORY}\n"));
    for directory in [DOCUMENTATION, SHARED_DIRECTORY] {
        text.push_str(&format!("%dir /{directory}\n"));
    }
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
    let (version, maintainer) = (&source.version, deb::maintainer());
    text.push_str(&format!(
        "\n%changelog\n* {date} {maintainer} - {version}-1\n- Portcullis {version}.\n"
    ));
    Ok(text)
}

/// What rpm's own tools say of it: digests, files, scripts, and how it installs and goes.
///
/// # Errors
/// What is not as it should be.
pub(super) fn judge(file: &Path, tree: &Tree, out: &Path) -> Result<()> {
    let said = succeed(Command::new("rpm").args(["--checksig", "--nosignature"]).arg(file))?;
    ensure!(said.contains("digests OK"), "{said}");
    let ask = |format: &str| {
        succeed(Command::new("rpm").args(["-qp", "--nosignature", "--qf", format]).arg(file))
    };
    let staged = tree.entries().iter().map(|entry| &entry.path);
    let stage = tree::stage(out, "rpm");
    let digests = succeed(Command::new("sha256sum").current_dir(stage).args(staged))?;
    let (listed, expected) = (ask(LISTED)?, expected(tree, &digests));
    let mut listed: Vec<&str> = listed.lines().map(str::trim).collect();
    listed.sort_unstable();
    ensure!(listed == expected, "rpm lists {listed:#?}\nand not {expected:#?}");
    for script in ["PREIN", "POSTIN", "PREUN", "POSTUN"] {
        let text = ask(&format!("%{{{script}}}"))?;
        let read = run_with_input(Command::new("sh").arg("-n"), text.as_bytes())?;
        ensure!(read.status == Some(0) && text.len() > 1, "{script}: {}\n{text}", read.stderr);
    }
    lint(file)?;
    if !geteuid().is_root() {
        eprintln!("package: installing the rpm is not tried: that takes root");
        return Ok(());
    }
    let place = netns::directory("rpm")?;
    let mut trial = Command::new("unshare");
    trial.args(["--mount", "--propagation", "private", "sh", "-c", TRIAL, "trial"]);
    let ended = run(trial.arg(file).arg(place.path()))?;
    ensure!(ended.status == Some(0), "{}{}", ended.stdout, ended.stderr);
    for line in ended.stdout.lines() {
        eprintln!("package: rpm: {line}");
    }
    Ok(())
}

/// What rpm has to list, sorted; `digests` are as sha256sum writes them.
fn expected(tree: &Tree, digests: &str) -> Vec<String> {
    let digest_of = |path: &str| {
        let line = digests.lines().find_map(|line| line.strip_suffix(path)?.strip_suffix("  "));
        line.unwrap_or("none").to_owned()
    };
    let mut lines = vec![
        format!("40750 root:portcullis |  /{CONFIGURATION_DIRECTORY}"),
        format!("40755 root:root |  /{DOCUMENTATION}"),
        format!("40755 root:root |  /{SHARED_DIRECTORY}"),
    ];
    for entry in tree.entries() {
        let path = entry.path.as_str();
        let (group, kind) = match path {
            CONFIGURATION => ("portcullis", "cn"),
            path if path.ends_with("/copyright") => ("root", "l"),
            path if path.starts_with(DOCUMENTATION) || path.starts_with("usr/share/man") => {
                ("root", "d")
            }
            _ => ("root", ""),
        };
        let mode = 0o100_000 | entry.mode;
        lines.push(format!("{mode:o} root:{group} {kind}| {} /{path}", digest_of(path)));
    }
    lines.sort_unstable();
    lines
}

fn lint(file: &Path) -> Result<()> {
    // It ends with an error for those that are meant, too.
    let said = run(Command::new("rpmlint").arg(file))?;
    ensure!(said.stdout.contains("1 packages"), "{}{}", said.stdout, said.stderr);
    let mistakes = mistakes(&said.stdout);
    if !mistakes.is_empty() {
        bail!("rpmlint: {}", mistakes.join("\n"));
    }
    Ok(())
}

/// The lines of rpmlint that tell of mistakes which are not meant.
fn mistakes(said: &str) -> Vec<&str> {
    let is_mistake = |line: &&str| {
        let told = line.split_once(": E: ").map(|(_, told)| told);
        told.is_some_and(|told| !told.split(' ').next().is_some_and(|name| MEANT.contains(&name)))
    };
    said.lines().filter(is_mistake).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rpm_should_list_is_what_the_tree_has() {
        let mut tree = Tree::default();
        tree.add("usr/bin/portcullis", 0o755, Vec::new());
        tree.add(CONFIGURATION, 0o640, Vec::new());
        tree.add("usr/share/man/man8/portcullis.8.gz", 0o644, Vec::new());
        let digests = format!("aa  usr/bin/portcullis\nbb  {CONFIGURATION}\n");
        assert_eq!(
            expected(&tree, &digests),
            [
                "100640 root:portcullis cn| bb /etc/portcullis/portcullis.toml",
                "100644 root:root d| none /usr/share/man/man8/portcullis.8.gz",
                "100755 root:root | aa /usr/bin/portcullis",
                "40750 root:portcullis |  /etc/portcullis",
                "40755 root:root |  /usr/share/doc/portcullis",
                "40755 root:root |  /usr/share/portcullis",
            ]
        );
    }

    #[test]
    fn mistakes_are_those_that_are_not_meant() {
        let said = "portcullis.x86_64: W: no-url-tag\nportcullis.x86_64: E: no-signature\n\
                    portcullis.x86_64: E: non-readable /etc/portcullis/portcullis.toml 640\n\
                    portcullis.x86_64: E: no-binary\n";
        assert_eq!(mistakes(said), ["portcullis.x86_64: E: no-binary"]);
    }
}
