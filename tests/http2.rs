//! The rules of HTTP/2, one by one, in raw frames made by other people's HPACK.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{binary, harness::site::Site, hostile::script};

/// Cases in which the library behind the gateway is laxer than the standard, and no harm comes of it.
/// It keeps pseudo-fields apart from fields, and trailers are passed on without them.
const LAX: [&str; 1] = ["a pseudo-field in trailers"];

#[test]
fn the_rules_of_http2_hold() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "http2")?;
    site.config.bans = "enabled = false".to_owned();
    let _gateway = site.start()?;
    let Some(told) = script(&site, "http2_cases.py", json!({}))? else { return Ok(()) };
    let cases = told.as_array().context("an array")?;
    let broken: Vec<_> = cases
        .iter()
        .filter(|case| case["held"] != true)
        .filter(|case| !LAX.contains(&case["name"].as_str().unwrap_or_default()))
        .collect();
    ensure!(broken.is_empty(), "{} of {}: {broken:#?}", broken.len(), cases.len());
    println!("{} cases held", cases.len());
    ensure!(cases.len() >= 140);
    Ok(())
}
