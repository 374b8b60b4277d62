//! Names of users and groups to ids, from the text of `passwd` and `group`. libc's resolver is not asked: it would load
//! modules, open sockets and wait for servers.

use crate::places::Place;
use std::io;

/// Both files, as they were when they were read.
#[derive(Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads both in the directory `etc`.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn read(etc: &Place) -> io::Result<Accounts> {
        Ok(Accounts { passwd: etc.read("passwd")?.0, group: etc.read("group")?.0 })
    }

    /// Of given text.
    pub fn of(passwd: &str, group: &str) -> Accounts {
        Accounts { passwd: passwd.to_owned(), group: group.to_owned() }
    }

    /// Uid and gid of a user.
    pub fn user(&self, name: &str) -> Option<(u32, u32)> {
        let mut fields =
            self.passwd.lines().map(|l| l.split(':')).find_map(|mut f| (f.next() == Some(name)).then_some(f))?;
        fields.next()?;
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    }

    /// Uid and gid of a user by name or number. A number without a user is its own group's.
    pub fn user_or_number(&self, user: &str) -> Option<(u32, u32)> {
        let Ok(uid) = user.parse::<u32>() else { return self.user(user) };
        let names = self.passwd.lines().filter_map(|l| l.split(':').next());
        Some(names.filter_map(|n| self.user(n)).find(|(u, _)| *u == uid).unwrap_or((uid, uid)))
    }

    /// Gid of a group.
    pub fn group(&self, name: &str) -> Option<u32> {
        let mut fields =
            self.group.lines().map(|l| l.split(':')).find_map(|mut f| (f.next() == Some(name)).then_some(f))?;
        fields.nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whole_and_broken_lines_are_nobody() {
        let accounts = Accounts::of(
            "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:100::/:\nal:x:1001:1001::/:\nbad:x\nneg:x:-1:0::/:\n",
            "root:x:0:\nusers:x:100:alice,al\nbroken\n",
        );
        assert_eq!(accounts.user("alice"), Some((1000, 100)));
        assert_eq!(accounts.user("al"), Some((1001, 1001)));
        for nobody in ["ali", "", "bad", "neg", "bob"] {
            assert_eq!(accounts.user(nobody), None, "{nobody}");
        }
        assert_eq!((accounts.group("users"), accounts.group("broken"), accounts.group("al")), (Some(100), None, None));
    }

    #[test]
    fn a_user_may_be_a_number() {
        let accounts = Accounts::of("alice:x:1000:100::/:\n", "");
        assert_eq!(accounts.user_or_number("1000"), Some((1000, 100)));
        assert_eq!(accounts.user_or_number("7"), Some((7, 7)));
        assert_eq!(accounts.user_or_number("nobody"), None);
    }
}
