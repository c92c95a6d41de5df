//! Files that change under a running daemon: taken without a reload, whole or not at all.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::{
    binary,
    harness::{
        clock,
        gateway::{Gateway, SOON},
        process,
        site::{GATEWAY, HOST, SERVER, Site},
    },
};

/// The serial number of the certificate that the gateway presents.
fn served_serial(site: &Site) -> Result<String> {
    let mut command = site.client_host.command("timeout");
    command.args(["15", "openssl", "s_client", "-servername", HOST, "-connect"]);
    command.arg(SERVER.to_string()).arg("-cert").arg(&site.client.certificate);
    command.arg("-key").arg(&site.client.key);
    let said = process::run_with_input(&mut command, b"")?.stdout;
    let pem = said.split_once("-----BEGIN CERTIFICATE-----").context("no certificate")?.1;
    let pem = pem.split_once("-----END CERTIFICATE-----").context("half a certificate")?.0;
    let file = site.directory.path().join("served.pem");
    fs::write(&file, format!("-----BEGIN CERTIFICATE-----{pem}-----END CERTIFICATE-----\n"))?;
    serial(&file)
}

fn serial(certificate: &Path) -> Result<String> {
    let mut command = std::process::Command::new("openssl");
    command.args(["x509", "-noout", "-serial", "-in"]).arg(certificate);
    process::succeed(&mut command)
}

pub(crate) fn wait_refused(gateway: &Gateway, files: f64) -> Result<()> {
    clock::wait_for("the number of refused files", SOON, || {
        Ok((gateway.metric("gateway_files_refused", &[])? == files).then_some(()))
    })
}

pub(crate) fn wait_served(site: &Site, certificate: &Path) -> Result<()> {
    let wanted = serial(certificate)?;
    clock::wait_for("the new certificate", SOON, || {
        Ok((served_serial(site)? == wanted).then_some(()))
    })
}

#[test]
fn a_renewed_certificate_is_served_and_a_bad_one_never() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "follow")?;
    // As a mounted secret: a link to a directory, replaced as a whole.
    let live = site.directory.path().join("live");
    let renewal = |number: &str| -> Result<std::path::PathBuf> {
        let names = [HOST, &GATEWAY.to_string()];
        let fresh = site.authority.server(&names, &format!("server{number}"))?;
        let directory = site.directory.path().join(number);
        fs::create_dir(&directory)?;
        fs::copy(&fresh.certificate, directory.join("server.pem"))?;
        fs::copy(&fresh.key, directory.join("server.key"))?;
        Ok(directory)
    };
    let (first, second, third) = (renewal("1")?, renewal("2")?, renewal("3")?);
    symlink(&first, &live)?;
    site.config.server.certificate = live.join("server.pem");
    site.config.server.key = live.join("server.key");
    let gateway = site.start()?;
    assert_eq!(served_serial(&site)?, serial(&first.join("server.pem"))?);

    let next = site.directory.path().join("next");
    symlink(&second, &next)?;
    fs::rename(&next, &live)?;
    wait_served(&site, &second.join("server.pem"))?;
    assert_eq!(gateway.metric("gateway_config_generation", &[])?, 1.0, "nothing was reloaded");

    // Half a certificate, a certificate without its key, a key open to all: the last good is served.
    let current = fs::read(second.join("server.pem"))?;
    let key = fs::read(second.join("server.key"))?;
    let refused = |detail: &str| {
        let word = detail.to_owned();
        wait_refused(&gateway, 1.0)?;
        gateway.wait_log("why it is refused", |line| {
            line["message"]
                .as_str()
                .or(line["event"].as_str())
                .is_some_and(|what| what.starts_with("file refused"))
                && line["detail"].as_str().is_some_and(|detail| detail.contains(&word))
        })
    };
    fs::write(second.join("server.pem"), &current[..current.len() / 2])?;
    refused("does not parse")?;
    fs::write(second.join("server.pem"), fs::read(third.join("server.pem"))?)?;
    refused("it is not the key of")?;
    assert_eq!(served_serial(&site)?, {
        let kept = site.directory.path().join("kept.pem");
        fs::write(&kept, &current)?;
        serial(&kept)?
    });
    fs::write(second.join("server.key"), fs::read(third.join("server.key"))?)?;
    wait_served(&site, &third.join("server.pem"))?;
    wait_refused(&gateway, 0.0)?;
    fs::set_permissions(second.join("server.key"), Permissions::from_mode(0o644))?;
    refused("is open to everybody")?;
    wait_served(&site, &third.join("server.pem"))?;
    let status = gateway.launch().ended(&["status", "--json"])?;
    assert!(status.stdout.contains("open to everybody"), "{status:?}");
    fs::set_permissions(second.join("server.key"), Permissions::from_mode(0o600))?;
    wait_refused(&gateway, 0.0)?;
    // Written back as it was.
    fs::write(second.join("server.pem"), &current)?;
    fs::write(second.join("server.key"), &key)?;
    wait_served(&site, &second.join("server.pem"))?;
    Ok(())
}
