use super::{client::Client, failure::Failure};
pub fn doctor(_: &Client, _: bool) -> Result<(), Failure> {
    Ok(())
}
