//! What can be seen of netd and its work from the outside: its process, interfaces, elements, counters.

use super::NetHost;
use crate::eventually;
use crate::netns::Caller;

impl NetHost {
    /// How many fds it has open.
    pub fn fds(&self) -> usize {
        crate::names(format!("/proc/{}/fd", self.pid())).len()
    }

    /// Memory of its own, KiB.
    ///
    /// # Panics
    /// Where the kernel does not say.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("RssAnon");
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Names of the interfaces `vt<n>`, sorted.
    pub fn ports(&self) -> Vec<String> {
        let links = self.inside.json(&["ip", "-j", "link", "show"]);
        let mut ports: Vec<String> = links
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|link| Some(link["ifname"].as_str()?.to_owned()))
            .filter(|name| name.starts_with("vt"))
            .collect();
        ports.sort();
        ports
    }

    /// Elements of a set or map (`bridge vmsup leases`, `inet vmsup forwards`), as nft prints them in JSON.
    ///
    /// # Panics
    /// Where there is none of that name.
    pub fn elements(&self, set: &str) -> Vec<serde_json::Value> {
        let name: Vec<&str> = set.split(' ').collect();
        let kind = if name[2] == "forwards" { "map" } else { "set" };
        let all = self.inside.json(&["nft", "-j", "list", kind, name[0], name[1], name[2]]);
        let found = all["nftables"].as_array().unwrap().iter().find_map(|item| item.get(kind));
        found.expect("the set")["elem"].as_array().cloned().unwrap_or_default()
    }

    /// True where a port may send at all.
    pub fn leased(&self, port: &str) -> bool {
        self.elements("bridge vmsup leases").iter().any(|element| element.to_string().contains(&format!("\"{port}\"")))
    }

    /// Packets that each named counter of the rules has seen, `bridge NAME` or `inet NAME`, where it is not none.
    ///
    /// # Panics
    /// Where there are no counters.
    pub fn counters(&self) -> std::collections::BTreeMap<String, u64> {
        let all = self.inside.json(&["nft", "-j", "list", "counters"]);
        let named = all["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("counter"));
        named
            .map(|c| {
                (format!("{} {}", c["family"], c["name"]).replace('"', ""), c["packets"].as_u64().expect("packets"))
            })
            .filter(|(_, packets)| *packets > 0)
            .collect()
    }

    /// The MAC of an interface.
    ///
    /// # Panics
    /// Where there is none of that name.
    pub fn mac(&self, interface: &str) -> [u8; 6] {
        let link = self.inside.json(&["ip", "-j", "link", "show", "dev", interface]);
        let text = link[0]["address"].as_str().expect("an address").to_owned();
        let mut mac = [0; 6];
        for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(digits, 16).unwrap();
        }
        mac
    }

    /// Waits until there are so many ports, so many elements of leases, and netd holds the fds of so many TAPs.
    pub fn nothing_but(&self, ports: usize, taps: usize) {
        eventually("so many ports", || self.ports().len() == ports);
        eventually("so many elements", || self.elements("bridge vmsup leases").len() == ports);
        eventually("so many TAPs", || crate::tun::held(self.pid()).len() == taps);
    }

    /// Waits until no port is left but `warm` ones, and no element of a lease but theirs, no forward, no lease.
    pub fn nothing_left(&self, warm: usize, who: impl Into<Caller>) {
        let client = self.client(who);
        eventually("no leases", || client.leases().is_empty());
        eventually("no port but the warm ones", || self.ports().len() == warm);
        eventually("no lease element but the warm ones", || self.elements("bridge vmsup leases").len() == warm);
        eventually("no forwards", || self.elements("inet vmsup forwards").is_empty());
    }
}
