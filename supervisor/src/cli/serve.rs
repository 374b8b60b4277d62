use super::{args::Serve, failure::Failure};
pub fn serve(_: Option<std::path::PathBuf>, _: Serve) -> Result<(), Failure> {
    Ok(())
}
