use super::{client::Client, failure::Failure};
pub fn inspect(_: &Client, _: &str, _: bool) -> Result<(), Failure> {
    Ok(())
}
