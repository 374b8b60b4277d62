//! Who asks: names and groups as the host's files have them, and ranges of subordinate ids.

use super::read::read;

/// Who asks.
#[derive(Debug, Clone)]
pub struct User {
    /// Uid.
    pub uid: u32,
    /// Name, where /etc/passwd has one (a static program cannot ask other sources).
    pub name: Option<String>,
    /// The groups of this host: name, gid.
    pub groups: Vec<(String, u32)>,
    /// The groups of this host that have this user as a member, now.
    pub member_of: Vec<String>,
    /// The groups of this process, which are those of the log-in.
    pub session: Vec<u32>,
}

impl User {
    /// The user of this process.
    pub fn current() -> User {
        let uid = rustix::process::getuid().as_raw();
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let table = |path: &str| read(path).unwrap_or_default().lines().map(fields).collect::<Vec<_>>();
        let id = |row: &[String]| row.get(2).and_then(|id| id.parse::<u32>().ok());
        let name = table("/etc/passwd").into_iter().find(|row| id(row) == Some(uid)).map(|row| row[0].clone());
        let rows = table("/etc/group");
        let has_us =
            |row: &&Vec<String>| row.get(3).is_some_and(|all| all.split(',').any(|m| Some(m) == name.as_deref()));
        let member_of = rows.iter().filter(has_us).map(|row| row[0].clone()).collect();
        let groups = rows.iter().filter_map(|row| Some((row[0].clone(), id(row)?))).collect();
        let own = rustix::process::getegid();
        let session = rustix::process::getgroups().unwrap_or_default().into_iter().chain([own]);
        let session = session.map(rustix::process::Gid::as_raw).collect();
        User { uid, name, groups, member_of, session }
    }

    /// The gid of a group.
    pub fn group_id(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(n, _)| n == name).map(|(_, gid)| *gid)
    }

    /// For commands: the name, or the uid where there is none.
    pub fn name_or_id(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uid.to_string())
    }

    /// The length of this user's largest range in the text of /etc/subuid or /etc/subgid.
    pub fn largest_range(&self, text: &str) -> Option<u32> {
        let id = self.uid.to_string();
        text.lines()
            .filter_map(|line| {
                let mut fields = line.trim().split(':');
                let who = fields.next()?;
                let mine = Some(who) == self.name.as_deref() || who == id;
                let _first: u32 = fields.next()?.parse().ok()?;
                let count: u32 = fields.next()?.parse().ok()?;
                (mine && count > 0).then_some(count)
            })
            .max()
    }
}

/// How many subordinate ids a user is given, as `useradd` does.
const RANGE: u32 = 65536;
/// Where the ids of `useradd` begin.
const RANGE_FIRST: u32 = 100_000;

/// The first range of [`RANGE`] ids that no line of these tables (/etc/subuid and /etc/subgid) touches: first and last.
pub fn free_range(tables: [&str; 2]) -> Option<(u32, u32)> {
    let taken = |line: &str| {
        let mut fields = line.trim().split(':').skip(1);
        let first: u64 = fields.next()?.trim().parse().ok()?;
        let count: u64 = fields.next()?.trim().parse().ok()?;
        (count > 0).then(|| (first, first.saturating_add(count)))
    };
    let mut ranges: Vec<(u64, u64)> = tables.iter().flat_map(|table| table.lines().filter_map(taken)).collect();
    ranges.sort_unstable();
    let mut first = u64::from(RANGE_FIRST);
    for (start, end) in ranges {
        if start >= first + u64::from(RANGE) {
            break;
        }
        first = first.max(end);
    }
    // The last id of all, u32::MAX, means "none" to the kernel.
    let last = first.checked_add(u64::from(RANGE) - 1).filter(|last| *last < u64::from(u32::MAX))?;
    Some((u32::try_from(first).ok()?, u32::try_from(last).ok()?))
}

#[cfg(test)]
impl User {
    /// Somebody.
    pub fn anna() -> User {
        User { uid: 1000, name: Some("anna".into()), groups: vec![], member_of: vec![], session: vec![1000] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_the_user_counts() {
        let text = "bob:1:99999\nanna:100000:10\n1000:200000:65536\nanna:x:9\nanna:1\n\n";
        assert_eq!(User::anna().largest_range(text), Some(65536));
        assert_eq!(User::anna().largest_range("annabell:1:65536\nanna:5:0"), None);
    }

    #[test]
    fn a_free_range_touches_nobodys() {
        assert_eq!(free_range(["", ""]), Some((100_000, 165_535)));
        assert_eq!(free_range(["bob:1:99999\n", ""]), Some((100_000, 165_535)));
        assert_eq!(free_range(["bob:100000:65536\n", "eve:165536:65536\n"]), Some((231_072, 296_607)));
        // Out of order, in both files, with a gap that is one id too small and one that fits.
        let uids = "c:400000:65536\na:100000:10\n# none\nx:y:z\ne:100:0\n";
        assert_eq!(free_range([uids, "b:165545:10\n"]), Some((165_555, 231_090)));
        assert_eq!(free_range([uids, "b:165546:10\n"]), Some((100_010, 165_545)));
        assert_eq!(free_range(["bob:100000:4294867296\n", ""]), None);
        assert_eq!(free_range(["bob:5:18446744073709551615\n", ""]), None);
    }
}
