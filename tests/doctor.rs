//! `portcullis doctor`: one line for each thing this host must have.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{binary, harness::site::Site};

/// The level and text of a topic.
fn line(report: &Value, topic: &str) -> Option<(String, String)> {
    let findings = report["findings"].as_array()?;
    let finding = findings.iter().find(|finding| finding["topic"] == topic)?;
    Some((finding["level"].as_str()?.to_owned(), finding.to_string()))
}

#[test]
fn the_doctor_tells_what_is_missing_and_what_to_do() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "doctor")?;
    let well = site.launch()?.ended(&["doctor", "--json"])?;
    let report: Value = serde_json::from_str(&well.stdout).context(well.stderr)?;
    let level = |topic: &str| line(&report, topic).map(|(level, _)| level);
    assert_eq!(level("upstream orders").as_deref(), Some("ok"), "{report}");
    assert_eq!(level("kernel").as_deref(), Some("ok"), "{report}");
    assert!(level("clock").is_some() && level("open files").is_some(), "{report}");
    assert_ne!(level("configuration").as_deref(), Some("fail"), "{report}");

    // Nobody listens there, and the key is gone.
    site.config.upstream.set_port(9009);
    std::fs::remove_file(&site.config.server.key)?;
    let ill = site.launch()?.ended(&["doctor"])?;
    assert_eq!(ill.status, Some(1), "{ill:?}");
    let fails: Vec<&str> = ill.stdout.lines().filter(|line| line.starts_with("fail")).collect();
    assert_eq!(fails, ["fail  configuration: 1 problems; run portcullis check"], "{ill:?}");
    Ok(())
}
