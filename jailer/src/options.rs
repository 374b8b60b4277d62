//! The command line of `vmsup-jailer serve`: three options, given by the supervisor.

use crate::serve::{Error, POOL_MAX};
use std::path::PathBuf;

/// The command line of `vmsup-jailer serve`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The program that becomes the VM.
    pub worker: String,
    /// How many warm workers are kept.
    pub pool: u32,
    /// The delegated cgroup to use.
    pub cgroup: Option<PathBuf>,
}

impl Options {
    /// Parses `--worker FILE [--pool N] [--cgroup DIR]`.
    ///
    /// # Errors
    /// [`Error::Usage`] names what is wrong.
    pub fn parse(args: &[String]) -> Result<Options, Error> {
        let mut options = Options { pool: 2, ..Options::default() };
        let mut args = args.iter();
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| Error::Usage(format!("{name} needs a value")))?;
            match name.as_str() {
                "--worker" => options.worker = value.clone(),
                "--pool" => {
                    options.pool = value.parse().ok().filter(|n| *n <= POOL_MAX).ok_or_else(|| {
                        Error::Usage(format!("--pool {value}: a number from 0 to {POOL_MAX} is needed"))
                    })?;
                }
                "--cgroup" => options.cgroup = Some(value.into()),
                _ => return Err(Error::Usage(format!("{name}: no such option"))),
            }
        }
        if options.worker.is_empty() {
            return Err(Error::Usage("--worker FILE is needed: the program that becomes the VM".into()));
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, Error> {
        Options::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_command_line_is_checked() {
        let options = parse(&["--worker", "/w", "--pool", "3", "--cgroup", "/c"]).unwrap();
        assert_eq!(options, Options { worker: "/w".into(), pool: 3, cgroup: Some("/c".into()) });
        for bad in [
            &["--worker"][..],
            &[],
            &["--worker", "/w", "--pool", "x"],
            &["--worker", "/w", "--pool", "65"],
            &["--what", "x"],
        ] {
            assert!(matches!(parse(bad), Err(Error::Usage(_))), "{bad:?}");
        }
    }
}
