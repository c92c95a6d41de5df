//! Local stand-in until setup lands.
pub fn setup() -> anyhow::Result<()> {
    Ok(())
}
pub fn mount_bpffs() -> anyhow::Result<()> {
    Ok(())
}
