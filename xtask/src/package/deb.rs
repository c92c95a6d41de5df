//! The Debian package. Its scripts are in `deb/`, written out as debhelper would write them, with what
//! a gateway needs besides: nothing starts without a configuration that is good, an upgrade hands over
//! without a lost connection, and who removes the package is not filtered any more.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Source, gzip,
    tree::{self, CONFIGURATION, DOCUMENTATION, Tree},
};
use crate::harness::process::{run, succeed};

/// What dpkg runs.
const SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("deb/postinst")),
    ("prerm", include_str!("deb/prerm")),
    ("postrm", include_str!("deb/postrm")),
];

/// Whoever packs names themselves as Debian's tools ask: DEBFULLNAME and DEBEMAIL.
const MAINTAINER: (&str, &str) = ("Portcullis maintainers", "maintainers@portcullis.invalid");

/// Packs; gives the file.
///
/// # Errors
/// What cannot be written or run.
pub(super) fn make(source: &Source, tree: &Tree, out: &Path) -> Result<PathBuf> {
    let mut tree = tree.for_debian();
    let changes = changelog(source)?;
    tree.add(&format!("{DOCUMENTATION}/changelog.gz"), 0o644, gzip(changes.as_bytes())?);
    tree.add(
        "usr/share/lintian/overrides/portcullis",
        0o644,
        include_bytes!("deb/lintian-overrides").to_vec(),
    );
    let stage = tree::stage(out, "deb");
    tree.write(source, &stage)?;
    let control = stage.join("DEBIAN");
    fs::create_dir(&control)?;
    let write = |name: &str, text: &str, mode: u32| -> Result<()> {
        let file = control.join(name);
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(fs::set_permissions(&file, fs::Permissions::from_mode(mode))?)
    };
    write("control", &control_file(source, &tree)?, 0o644)?;
    write("conffiles", &format!("/{CONFIGURATION}\n"), 0o644)?;
    write("md5sums", &sums(&stage, &tree)?, 0o644)?;
    for (name, text) in SCRIPTS {
        write(name, text, 0o755)?;
    }
    tree::age(&stage, source)?;
    let file = out.join(format!("portcullis_{}_{}.deb", source.version, architecture()?));
    succeed(
        Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", source.epoch_s.to_string())
            .args(["--root-owner-group", "--threads-max=1", "-Zxz", "--build"])
            .arg(&stage)
            .arg(&file),
    )?;
    Ok(file)
}

/// Debian's own judgement; its errors are ours.
///
/// # Errors
/// When it finds any.
pub(super) fn lint(file: &Path) -> Result<()> {
    let ended = run(Command::new("lintian")
        .args(["--fail-on", "error", "--allow-root", "--tag-display-limit", "0"])
        .arg(file))?;
    eprint!("{}{}", ended.stdout, ended.stderr);
    if ended.status != Some(0) {
        bail!("lintian: {} is not as Debian wants it", file.display());
    }
    Ok(())
}

fn control_file(source: &Source, tree: &Tree) -> Result<String> {
    let binary = tree.entries().iter().find(|entry| entry.path == "usr/bin/portcullis");
    let libc = glibc_of(&binary.context("the binary was gathered")?.bytes);
    Ok(format!(
        "Package: portcullis\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: {maintainer}\n\
         Installed-Size: {size_kib}\n\
         Depends: libc6 (>= {libc}), libgcc-s1, init-system-helpers (>= 1.54~), \
         systemd | systemd-standalone-sysusers\n\
         Recommends: ca-certificates\n\
         Suggests: chrony, prometheus\n\
         Section: net\n\
         Priority: optional\n\
         Description: gateway that drops abusers in the kernel and ends mutual TLS\n \
         An XDP program drops abusive sources at the network card, and a daemon ends\n \
         TLS 1.3 with client certificates, checks bearer tokens and proxies what may\n \
         pass over HTTP/1.1, HTTP/2 and HTTP/3. What the daemon learns from failed\n \
         handshakes and refused requests goes back into the kernel's maps.\n",
        version = source.version,
        architecture = architecture()?,
        maintainer = maintainer(),
        size_kib = tree.size_bytes().div_ceil(1024),
    ))
}

/// The newest version of glibc whose symbols the binary asks for.
fn glibc_of(binary: &[u8]) -> String {
    const PREFIX: &[u8] = b"GLIBC_2.";
    let minor = binary
        .windows(PREFIX.len() + 3)
        .filter(|window| window.starts_with(PREFIX))
        .filter_map(|window| {
            let digits = window[PREFIX.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            digits.map(|byte| char::from(*byte)).collect::<String>().parse::<u32>().ok()
        })
        .max();
    format!("2.{}", minor.unwrap_or(17))
}

/// Who answers for a package, unless the environment names somebody else.
pub(super) fn maintainer() -> String {
    let named = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    format!("{} <{}>", named("DEBFULLNAME", MAINTAINER.0), named("DEBEMAIL", MAINTAINER.1))
}

fn architecture() -> Result<&'static str> {
    match env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no name for {other} among Debian's architectures is known here"),
    }
}

fn changelog(source: &Source) -> Result<String> {
    Ok(format!(
        "portcullis ({version}) unstable; urgency=medium\n\n  * Portcullis {version}.\n\n \
         -- {maintainer}  {date}\n",
        version = source.version,
        maintainer = maintainer(),
        date = source.date("+%a, %d %b %Y %H:%M:%S %z")?,
    ))
}

fn sums(stage: &Path, tree: &Tree) -> Result<String> {
    // The configuration is meant to change.
    let paths =
        tree.entries().iter().map(|entry| &entry.path).filter(|path| *path != CONFIGURATION);
    succeed(Command::new("md5sum").current_dir(stage).args(paths))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_counts() {
        for (binary, expected) in [
            (&b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0 and more"[..], "2.34"),
            (b"GLIBC_2.28\0\0\0", "2.28"),
            (b"nothing of the kind", "2.17"),
        ] {
            assert_eq!(glibc_of(binary), expected);
        }
    }
}
