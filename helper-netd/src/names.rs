//! Names of users and groups to ids, from the text of `passwd` and `group`, and who is nobody of his own, from `subuid`.
//! libc's resolver is not asked: it would load modules, open sockets and wait for servers.

use crate::places::Place;
use std::io;

/// The files, as they were when they were read.
#[derive(Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
    subuid: String,
}

impl Accounts {
    /// Reads them in the directory `etc`. Not every host has subordinate uids.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn read(etc: &Place) -> io::Result<Accounts> {
        let subuid = match etc.read("subuid") {
            Ok((text, _)) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Accounts { passwd: etc.read("passwd")?.0, group: etc.read("group")?.0, subuid })
    }

    /// Of given text.
    pub fn of(passwd: &str, group: &str) -> Accounts {
        Accounts { passwd: passwd.to_owned(), group: group.to_owned(), subuid: String::new() }
    }

    /// The ranges of uids that users have for user namespaces, first and last.
    pub fn subordinate(&self) -> Vec<(u32, u32)> {
        let range = |line: &str| {
            let mut numbers = line.split(':').skip(1).map(|n| n.trim().parse::<u32>().ok());
            let (first, count) = (numbers.next()??, numbers.next()??);
            Some((first, first.saturating_add(count.checked_sub(1)?)))
        };
        self.subuid.lines().filter_map(range).collect()
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
    fn subordinate_uids_are_ranges_and_broken_lines_are_none() {
        let subuid = "alice:100000:65536\n1000:5:1\nbob:9:0\nbob:x:1\nbob:7\n\nall:4294967295:4294967295\n".to_owned();
        let accounts = Accounts { subuid, ..Accounts::default() };
        assert_eq!(accounts.subordinate(), [(100_000, 165_535), (5, 5), (u32::MAX, u32::MAX)]);
        assert_eq!(Accounts::default().subordinate(), []);
    }

    #[test]
    fn a_user_may_be_a_number() {
        let accounts = Accounts::of("alice:x:1000:100::/:\n", "");
        assert_eq!(accounts.user_or_number("1000"), Some((1000, 100)));
        assert_eq!(accounts.user_or_number("7"), Some((7, 7)));
        assert_eq!(accounts.user_or_number("nobody"), None);
    }
}
