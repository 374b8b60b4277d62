//! Netlink, as much of it as netd needs: requests, dumps, batches of nf_tables, events.
//!
//! Runs in netd; only the kernel sends to these sockets, and what it sends is parsed as if it were wrong: no length is
//! believed. Nothing here waits: the kernel works on a request within `sendmsg(2)`, so that an answer which is not there
//! then never comes. Formats: linux/netlink.h.

use crate::sys;
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, ReturnFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `struct nlmsghdr`: length, kind, flags, sequence, port.
const HEADER: usize = 16;
/// The kernel's largest message of a dump, as long as nobody reads with more.
const BUFFER: usize = 32 * 1024;
/// Bytes of events that wait to be read.
const EVENTS: usize = 4 << 20;
/// How often a dump is begun anew that changed while it was read.
const ATTEMPTS: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// What the kernel said: errno, and what was wrong in its own words, where it has some.
#[derive(Debug, thiserror::Error)]
#[error("{source}{words}")]
pub struct Error {
    /// The errno.
    pub source: io::Error,
    /// " (words)", or nothing.
    pub words: String,
}

impl<E: Into<io::Error>> From<E> for Error {
    fn from(source: E) -> Error {
        Error { source: source.into(), words: String::new() }
    }
}

/// A message on its way out. Attributes are appended; all values are our own, and short.
#[derive(Clone)]
pub struct Message(Vec<u8>);

impl Message {
    /// `family` is the header of the protocol family: `struct ifinfomsg` and the like.
    pub fn new(kind: u16, flags: i32, family: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16 | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend(family);
        Message(bytes).padded()
    }

    /// Appends an attribute.
    pub fn attr(self, kind: u16, value: &[u8]) -> Message {
        self.filled(kind, |mut message| {
            message.0.extend(value);
            message
        })
    }

    /// Appends an attribute of attributes.
    pub fn nest(self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        self.filled(kind | libc::NLA_F_NESTED as u16, fill)
    }

    fn filled(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.0.len();
        self.0.extend([[0; 2], kind.to_ne_bytes()].concat());
        let mut message = fill(self);
        let length = (message.0.len() - start) as u16;
        message.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message.padded()
    }

    fn padded(mut self) -> Message {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The kernel closes its answer to this one with an ack, or with the end of a dump.
    fn is_answered(&self) -> bool {
        let flags = read_u16(&self.0, 6).unwrap_or_default();
        flags & (libc::NLM_F_ACK | libc::NLM_F_DUMP) as u16 != 0
    }
}

/// A message that came.
#[derive(Debug)]
pub struct Received {
    /// `RTM_*`; of nf_tables, the subsystem and `NFT_MSG_*`.
    pub kind: u16,
    flags: u16,
    sequence: u32,
    /// Port of the socket whose request this is about; in events: whose doing it was.
    pub port: u32,
    body: Vec<u8>,
}

impl Received {
    /// The header of the protocol family; nothing where the message is shorter.
    pub fn family(&self, bytes: usize) -> &[u8] {
        self.body.get(..bytes).unwrap_or_default()
    }

    /// The attributes behind a header of that many bytes.
    pub fn attrs(&self, header: usize) -> Attrs<'_> {
        Attrs(self.body.get(header..).unwrap_or_default())
    }
}

/// Attributes, one after the other, up to the first one that is not well-formed.
#[derive(Debug, Clone, Copy)]
pub struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// The value of the first of that kind.
    pub fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// The attributes within the one of that kind; none where it is not there.
    pub fn within(self, kind: u16) -> Attrs<'a> {
        Attrs(self.get(kind).unwrap_or_default())
    }

    /// The attributes within a value.
    pub fn of(value: &'a [u8]) -> Attrs<'a> {
        Attrs(value)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & libc::NLA_TYPE_MASK as u16;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A socket for requests, or one for events.
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// `groups` is the mask of multicast groups whose events are wanted; 0 for requests.
    pub fn open(protocol: Option<Protocol>, groups: u32) -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        if groups == 0 {
            sys::netlink_errors_in_words(&fd)?;
        } else {
            // Room for the events of a burst; what is lost all the same is told (ENOBUFS). In a user namespace the usual
            // limit holds.
            sockopt::set_socket_recv_buffer_size_force(&fd, EVENTS)
                .or_else(|_| sockopt::set_socket_recv_buffer_size(&fd, EVENTS))?;
        }
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        let port = SocketAddrNetlink::try_from(rustix::net::getsockname(&fd)?)?.pid();
        Ok(Socket { fd, port, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// For `poll(2)`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The socket's own address, by which the kernel names it in events.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends the messages at once and returns what came before the ack, or the end of the dump, of the last one that asks
    /// for one.
    pub fn request(&mut self, messages: &[Message]) -> Result<Vec<Received>, Error> {
        self.request_each(messages, Some)
    }

    /// As [`Socket::request`], for answers that may be many: keeps what is made of each as it comes.
    pub fn request_each<T>(
        &mut self,
        messages: &[Message],
        keep: impl Fn(Received) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut result = self.request_once(messages, &keep);
        for _ in 1..ATTEMPTS {
            match result {
                Err(e) if e.source.kind() == io::ErrorKind::Interrupted => result = self.request_once(messages, &keep),
                result => return result,
            }
        }
        result
    }

    fn request_once<T>(
        &mut self,
        messages: &[Message],
        keep: &impl Fn(Received) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let (mut packet, first, mut last) = (Vec::new(), self.sequence.wrapping_add(1), 0);
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            if message.is_answered() {
                last = self.sequence;
            }
            let start = packet.len();
            packet.extend(&message.0);
            packet[start..start + 4].copy_from_slice(&(message.0.len() as u32).to_ne_bytes());
            packet[start + 8..start + 12].copy_from_slice(&self.sequence.to_ne_bytes());
        }
        rustix::net::sendmsg(&self.fd, &[IoSlice::new(&packet)], &mut Default::default(), SendFlags::empty())?;
        let (mut replies, mut failure, mut intact) = (Vec::new(), None, true);
        loop {
            for reply in self.receive()?.ok_or(Errno::TIMEDOUT)? {
                // What is older than this request is what an earlier one, which failed, left behind.
                if reply.sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                intact &= reply.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                if !matches!(i32::from(reply.kind), libc::NLMSG_ERROR | libc::NLMSG_DONE) {
                    replies.extend(keep(reply));
                    continue;
                }
                let error = failure_of(&reply);
                // An error of the first one of a batch, its beginning, is about all of it.
                let over = reply.sequence == last || (reply.sequence == first && error.is_some());
                failure = failure.or(error);
                if over {
                    return match failure {
                        Some(error) => Err(error),
                        None if intact => Ok(replies),
                        None => Err(Errno::INTR.into()),
                    };
                }
            }
        }
    }

    /// The messages of the next packet; `None` where there is none.
    ///
    /// # Errors
    /// ENOBUFS where events were lost.
    pub fn receive(&mut self) -> io::Result<Option<Vec<Received>>> {
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let packet = match rustix::net::recvmsg(&self.fd, &mut parts, &mut Default::default(), RecvFlags::empty()) {
            Err(Errno::AGAIN) => return Ok(None),
            packet => packet?,
        };
        if packet.flags.contains(ReturnFlags::TRUNC) {
            return Err(Errno::MSGSIZE.into());
        }
        let sender = packet.address.and_then(|address| SocketAddrNetlink::try_from(address).ok());
        // Port 0 is the kernel; whoever else may write here is not heard.
        let bytes = if sender.is_some_and(|sender| sender.pid() == 0) { packet.bytes } else { 0 };
        Ok(Some(parse(self.buffer.get(..bytes).unwrap_or_default())))
    }
}

/// The messages of a packet, up to the first one that is not well-formed.
pub(crate) fn parse(mut packet: &[u8]) -> Vec<Received> {
    let mut messages = Vec::new();
    while let Some(length) = read_u32(packet, 0) {
        let Some(message) = packet.get(..length as usize) else { break };
        let (Some(kind), Some(flags), Some(sequence), Some(port), Some(body)) = (
            read_u16(message, 4),
            read_u16(message, 6),
            read_u32(message, 8),
            read_u32(message, 12),
            message.get(HEADER..),
        ) else {
            break;
        };
        messages.push(Received { kind, flags, sequence, port, body: body.to_vec() });
        packet = packet.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// What an ack or the end of a dump says, where it is an error: `struct nlmsgerr` is a negative errno and the header of
/// the request; the words come as an attribute behind it.
fn failure_of(reply: &Received) -> Option<Error> {
    let errno = reply.body.get(..4).map_or(-libc::EPROTO, |b| read_u32(b, 0).unwrap_or_default().cast_signed());
    let words = reply.attrs(4 + HEADER).get(NLMSGERR_ATTR_MSG).map(text);
    (errno != 0).then(|| Error {
        source: io::Error::from_raw_os_error(errno.saturating_neg()),
        words: words.map(|words| format!(" ({})", words.escape_debug())).unwrap_or_default(),
    })
}

/// A string up to its NUL; empty where it is none.
pub fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or_default()
}

/// The number at that offset, in the byte order of the machine.
pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// The same for 64 bits.
pub fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::Random;

    fn sample() -> Vec<u8> {
        let message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &[1, 2, 3])
            .attr(3, b"vt1\0")
            .nest(18, |info| info.attr(1, b"tun").nest(2, |data| data.attr(6, &[1])))
            .attr(4, &[1, 2, 3, 4, 5, 6]);
        let mut bytes = message.0;
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn what_is_built_is_what_is_read() {
        let messages = parse(&[sample(), sample()].concat());
        assert_eq!(messages.len(), 2);
        let attrs = messages[1].attrs(4);
        assert_eq!((messages[1].kind, messages[1].family(3)), (libc::RTM_NEWLINK, &[1, 2, 3][..]));
        assert_eq!(attrs.get(3).map(text), Some("vt1"));
        assert_eq!(attrs.within(18).get(1).map(text), Some("tun"));
        assert_eq!(attrs.within(18).within(2).get(6), Some(&[1][..]));
        assert_eq!((attrs.get(4), attrs.get(5)), (Some(&[1, 2, 3, 4, 5, 6][..]), None));
    }

    #[test]
    fn lengths_are_not_believed() {
        let whole = sample();
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_empty(), "a message cut off after {end} bytes");
        }
        for (at, length) in [(0, 15), (0, 3), (0, 0), (0, 0xffff_ffff)] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(length));
            assert!(parse(&bytes).is_empty(), "length {length}");
        }
        // The first attribute's length: too short for its own header, and past the end.
        for length in [0u16, 3, 200, 0xffff] {
            let mut bytes = whole.clone();
            bytes[20..22].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(parse(&bytes)[0].attrs(4).count(), 0, "length {length}");
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut random = Random::new(1);
        for round in 0..20_000 {
            let mut bytes = if round % 2 == 0 { sample() } else { random.bytes(120) };
            for _ in 0..random.below(8) {
                let at = random.below(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.below(256) as u8;
                }
            }
            for message in parse(&bytes) {
                let _ = failure_of(&message);
                for (_, value) in message.attrs(random.below(40)) {
                    let _ = (text(value), Attrs::of(value).count(), read_u32(value, random.below(9)));
                }
            }
        }
    }

    #[test]
    fn an_error_is_told_with_the_kernels_words() {
        let mut socket = Socket::open(None, 0).unwrap();
        // A link of a kind that there is none of.
        let message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK | libc::NLM_F_CREATE, &[0; 16])
            .nest(libc::IFLA_LINKINFO, |info| info.attr(libc::IFLA_INFO_KIND, b"no-such-kind"));
        let error = socket.request(std::slice::from_ref(&message)).unwrap_err();
        if rustix::process::geteuid().is_root() {
            assert_eq!(error.source.raw_os_error(), Some(libc::EOPNOTSUPP));
            assert!(error.to_string().contains("Unknown device type"), "{error}");
        } else {
            assert_eq!(error.source.raw_os_error(), Some(libc::EPERM));
        }
        // The socket is of use afterwards.
        let loopback = Message::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &[0; 16]).attr(libc::IFLA_IFNAME, b"lo\0");
        assert_eq!(socket.request(&[loopback]).unwrap().len(), 1);
    }

    #[test]
    fn a_request_without_an_answer_is_an_error_not_a_wait() {
        let mut socket = Socket::open(None, 0).unwrap();
        let unanswered = Message::new(libc::NLMSG_NOOP as u16, 0, &[]);
        assert_eq!(socket.request(&[unanswered]).unwrap_err().source.kind(), io::ErrorKind::TimedOut);
    }
}
