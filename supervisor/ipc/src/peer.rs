//! Who is at the other end of a socket, and whom a configuration means: uids and groups as the kernel tells them, names from
//! the text of `passwd` and `group`, and who is nobody of his own, from `subuid`. libc's resolver is not asked: it would load
//! modules, open sockets and wait for servers.

use crate::{peer_groups, peer_ids};
use std::io;
use std::os::fd::AsFd;

/// Who asks: what the kernel says of the socket's peer, at the time it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its uid.
    pub uid: u32,
    /// All of its groups.
    pub groups: Vec<u32>,
}

impl Peer {
    /// The peer of a Unix socket: uid and gid by SO_PEERCRED, the other groups by SO_PEERGROUPS.
    ///
    /// # Errors
    /// What `getsockopt(2)` says.
    pub fn of(socket: impl AsFd) -> io::Result<Peer> {
        let (uid, gid) = peer_ids(&socket)?;
        let mut groups = peer_groups(&socket)?;
        groups.push(gid);
        Ok(Peer { uid, groups })
    }
}

/// Users and groups who may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// Uids.
    pub users: Vec<u32>,
    /// Gids.
    pub groups: Vec<u32>,
    /// Subordinate uids, first and last: who has them is them all in a user namespace of his own, and keeps his groups
    /// there. Were they members, too, he had each quota many thousand times.
    pub subordinate: Vec<(u32, u32)>,
}

impl Who {
    /// Is the peer one of them?
    pub fn includes(&self, peer: &Peer) -> bool {
        let somebody = !self.subordinate.iter().any(|(first, last)| (first..=last).contains(&&peer.uid));
        self.users.contains(&peer.uid) || somebody && self.groups.iter().any(|g| peer.groups.contains(g))
    }
}

/// `passwd`, `group` and `subuid` as they were when they were read.
#[derive(Debug, Default, Clone)]
pub struct Accounts {
    passwd: String,
    group: String,
    subuid: String,
}

impl Accounts {
    /// Of the text of `passwd`, `group` and `subuid`.
    pub fn of(passwd: impl Into<String>, group: impl Into<String>, subuid: impl Into<String>) -> Accounts {
        Accounts { passwd: passwd.into(), group: group.into(), subuid: subuid.into() }
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

    /// Name of the user with this uid.
    pub fn name(&self, uid: u32) -> Option<&str> {
        let mut names = self.passwd.lines().filter_map(|l| l.split(':').next());
        names.find(|name| self.user(name).is_some_and(|(u, _)| u == uid))
    }

    /// All groups of the user with this uid, as far as the files know.
    pub fn groups_of(&self, uid: u32) -> Vec<u32> {
        let Some(name) = self.name(uid) else { return Vec::new() };
        let of = |line: &str| {
            let mut fields = line.split(':');
            let gid: u32 = fields.nth(2)?.parse().ok()?;
            fields.next()?.split(',').any(|member| member.trim() == name).then_some(gid)
        };
        self.user(name).map(|(_, gid)| gid).into_iter().chain(self.group.lines().filter_map(of)).collect()
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
            "",
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
        let accounts = Accounts::of("", "", subuid);
        assert_eq!(accounts.subordinate(), [(100_000, 165_535), (5, 5), (u32::MAX, u32::MAX)]);
        assert_eq!(Accounts::default().subordinate(), []);
    }

    #[test]
    fn a_user_may_be_a_number() {
        let accounts = Accounts::of("alice:x:1000:100::/:\n", "", "");
        assert_eq!(accounts.user_or_number("1000"), Some((1000, 100)));
        assert_eq!(accounts.user_or_number("7"), Some((7, 7)));
        assert_eq!(accounts.user_or_number("nobody"), None);
    }

    #[test]
    fn a_gid_is_no_uid() {
        let who = Who { users: vec![50], groups: vec![1000], ..Who::default() };
        assert!(!who.includes(&Peer { uid: 1000, groups: vec![50] }));
    }

    #[test]
    fn a_subordinate_uid_is_a_member_of_no_group_and_may_what_it_may_by_number() {
        let who = Who { users: vec![100_007], groups: vec![50], subordinate: vec![(100_000, 165_535), (7, 7)] };
        for (uid, member) in [(1000, true), (99_999, true), (100_000, false), (100_007, true), (165_535, false)] {
            assert_eq!(who.includes(&Peer { uid, groups: vec![50] }), member, "{uid}");
        }
        assert!(!who.includes(&Peer { uid: 7, groups: vec![50] }) && who.includes(&Peer { uid: 8, groups: vec![50] }));
    }
}
