//! stub
use rustls_pki_types::UnixTime;
#[derive(Debug, clap::Subcommand)] pub enum Command { X }
pub fn run(_: Command, _: Option<&crate::identity::token::Issuers>, _: UnixTime) -> anyhow::Result<()> { Ok(()) }
