//! HTTP/1.1 as a client, over one Unix stream socket, blocking.
//!
//! By hand and not with hyper: a command makes one to three requests, and a runtime, its epoll set and its tasks would
//! cost a quick start more than they do for it. Heads are parsed by httparse (which hyper uses). The peer is the
//! supervisor of the same user; all the same nothing it sends is trusted for a length.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// The most bytes of a response's head.
const HEAD_MAX: usize = 16 * 1024;
/// The most header lines of a response.
const HEADERS_MAX: usize = 32;
/// The most bytes of a body; a console's whole log is 256 KiB, a list of 4096 VMs about 2 MiB.
const BODY_MAX: usize = 16 * 1024 * 1024;

/// The most bytes of lines that are waited for: many times what a supervisor sends at once.
const LINE_MAX: usize = 1024 * 1024;

/// One connection, used for one request after the other.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Bytes that came and are not used yet.
    unread: Vec<u8>,
}

/// An answer in full.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// The answer to a request for an upgrade.
#[derive(Debug)]
pub enum Upgrade {
    /// The stream is the peer's now, and these bytes came already.
    Stream(UnixStream, Vec<u8>),
    /// Another answer than 101.
    Refused(Response),
}

/// The answer to a request whose body comes line by line.
#[derive(Debug)]
pub enum Streamed {
    /// It comes.
    Lines(Lines),
    /// Another answer than 200.
    Refused(Response),
}

/// A body that comes line by line, for as long as its sender likes.
#[derive(Debug)]
pub struct Lines {
    connection: Connection,
    /// Bytes of the body that came and are not used yet.
    unread: Vec<u8>,
    over: bool,
}

impl Lines {
    /// The next line, without its end; none at the body's end.
    ///
    /// # Errors
    /// As [`Connection::receive`]; a line without an end.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.unread.drain(..=at).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.over {
                return if self.unread.is_empty() { Ok(None) } else { Err(invalid("a line without an end")) };
            }
            match self.connection.chunk(LINE_MAX.saturating_sub(self.unread.len()))? {
                Some(chunk) => self.unread.extend(chunk),
                None => self.over = true,
            }
        }
    }
}

impl Connection {
    /// Wraps a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Connection { stream, unread: Vec::new() }
    }

    /// The socket, to set its time limits or to poll it.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a request.
    ///
    /// # Errors
    /// What writing to the socket says.
    pub fn send(&mut self, method: &str, target: &str, body: Option<&[u8]>) -> io::Result<()> {
        let length = match body {
            Some(body) => format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()),
            None if method == "GET" => String::new(),
            None => "content-length: 0\r\n".into(),
        };
        let mut request = format!("{method} {target} HTTP/1.1\r\nhost: vmsup\r\n{length}\r\n").into_bytes();
        request.extend_from_slice(body.unwrap_or_default());
        self.stream.write_all(&request)
    }

    /// Receives the answer to the request sent before.
    ///
    /// # Errors
    /// What reading says; `UnexpectedEof` where the peer went away, `InvalidData` where it does not speak HTTP.
    pub fn receive(&mut self) -> io::Result<Response> {
        let (status, headers) = self.head()?;
        let mut response = Response { status, headers, body: Vec::new() };
        response.body = self.body(&response)?;
        Ok(response)
    }

    /// Receives the head of the answer to the request sent before, and its body line by line where it is a success.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn receive_lines(mut self) -> io::Result<Streamed> {
        let (status, headers) = self.head()?;
        let mut response = Response { status, headers, body: Vec::new() };
        let chunked = response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        if chunked && status == 200 {
            return Ok(Streamed::Lines(Lines { connection: self, unread: Vec::new(), over: false }));
        }
        response.body = self.body(&response)?;
        Ok(Streamed::Refused(response))
    }

    /// Sends a request that makes the connection a stream of `protocol`, and receives the answer.
    ///
    /// # Errors
    /// As [`Connection::send`] and [`Connection::receive`].
    pub fn upgrade(mut self, target: &str, protocol: &str) -> io::Result<Upgrade> {
        let request =
            format!("GET {target} HTTP/1.1\r\nhost: vmsup\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        let response = self.receive()?;
        Ok(match response.status {
            101 => Upgrade::Stream(self.stream, self.unread),
            _ => Upgrade::Refused(response),
        })
    }

    fn body(&mut self, response: &Response) -> io::Result<Vec<u8>> {
        let chunked = response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        match response.header("content-length").map(|v| v.parse::<usize>()) {
            _ if response.status == 204 || response.status == 304 || response.status < 200 => Ok(Vec::new()),
            _ if chunked => self.chunks(),
            Some(Ok(length)) if length <= BODY_MAX => self.exactly(length),
            Some(_) => Err(invalid("a body of an impossible length")),
            None => Err(invalid("a body without a length")),
        }
    }

    fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut response = httparse::Response::new(&mut headers);
            let parsed = response.parse(&self.unread).map_err(|_| invalid("no HTTP"))?;
            if let (httparse::Status::Complete(used), Some(status)) = (parsed, response.code) {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let headers = response.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect();
                self.unread.drain(..used);
                return Ok((status, headers));
            }
            if self.unread.len() > HEAD_MAX {
                return Err(invalid("a head without an end"));
            }
            self.fill()?;
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < length {
            self.fill()?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(BODY_MAX - body.len())? {
            body.extend(chunk);
        }
        Ok(body)
    }

    /// The next chunk of a body; none at its end.
    fn chunk(&mut self, max: usize) -> io::Result<Option<Vec<u8>>> {
        let (used, size) = loop {
            match httparse::parse_chunk_size(&self.unread) {
                Ok(httparse::Status::Complete((used, size))) => break (used, usize::try_from(size)),
                Ok(httparse::Status::Partial) if self.unread.len() <= HEAD_MAX => self.fill()?,
                _ => return Err(invalid("a chunk without a size")),
            }
        };
        let size = size.ok().filter(|size| *size <= max).ok_or_else(|| invalid("a body without an end"))?;
        self.unread.drain(..used);
        let chunk = self.exactly(size)?;
        // No trailers are asked for, so none come: each chunk, the last one too, is followed by an empty line.
        if self.exactly(2)? != b"\r\n" {
            return Err(invalid("a chunk of another size than it says"));
        }
        Ok((size > 0).then_some(chunk))
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0u8; 16 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.unread.extend_from_slice(&piece[..n]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One segment of a path: everything but unreserved characters (RFC 3986, 2.3) is percent-encoded.
pub fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection whose peer says `script` and goes away. The peer's end comes back, to read what was asked.
    fn answered(script: &[u8]) -> (Connection, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(script).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        (Connection::new(ours), theirs)
    }

    fn body_of(script: &[u8]) -> io::Result<Vec<u8>> {
        let (mut connection, _theirs) = answered(script);
        connection.send("GET", "/", None).unwrap();
        connection.receive().map(|r| r.body)
    }

    #[test]
    fn two_answers_on_one_connection_are_told_apart() {
        let (mut connection, mut theirs) =
            answered(b"HTTP/1.1 201 Created\r\nX-A: b\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 204 No Content\r\n\r\n");
        connection.send("POST", "/v1/vms", Some(b"{}")).unwrap();
        let first = connection.receive().unwrap();
        assert_eq!((first.status, first.header("x-a"), first.body.as_slice()), (201, Some("b"), b"hi".as_slice()));
        connection.send("DELETE", "/v1/vms/a", None).unwrap();
        assert_eq!(connection.receive().unwrap().status, 204);
        drop(connection);
        let mut asked = String::new();
        theirs.read_to_string(&mut asked).unwrap();
        assert_eq!(
            asked,
            "POST /v1/vms HTTP/1.1\r\nhost: vmsup\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}\
             DELETE /v1/vms/a HTTP/1.1\r\nhost: vmsup\r\ncontent-length: 0\r\n\r\n"
        );
    }

    #[test]
    fn a_chunked_body_is_joined() {
        let script = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(body_of(script).unwrap(), b"abcde");
    }

    #[test]
    fn a_body_comes_line_by_line_however_it_was_cut() {
        let lines = |script: &[u8]| {
            let (mut connection, theirs) = answered(script);
            connection.send("GET", "/", None).unwrap();
            let Ok(Streamed::Lines(mut lines)) = connection.receive_lines() else { panic!("no lines") };
            let mut all = Vec::new();
            let end = loop {
                match lines.next() {
                    Ok(Some(line)) => all.push(String::from_utf8(line).unwrap()),
                    end => break end.map(drop),
                }
            };
            drop(theirs);
            (all.join(" "), end.map_err(|e| e.kind()))
        };
        const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let good = format!("{HEAD}3\r\na\nb\r\n4\r\nc\n\nd\r\n1\r\n\n\r\n0\r\n\r\n");
        assert_eq!(lines(good.as_bytes()), ("a bc  d".into(), Ok(())));
        let cut = format!("{HEAD}2\r\na\n\r\n");
        assert_eq!(lines(cut.as_bytes()), ("a".into(), Err(io::ErrorKind::UnexpectedEof)));
        let unended = format!("{HEAD}1\r\na\r\n0\r\n\r\n");
        assert_eq!(lines(unended.as_bytes()), (String::new(), Err(io::ErrorKind::InvalidData)));
        let endless = format!("{HEAD}ffffff\r\n");
        assert_eq!(lines(endless.as_bytes()), (String::new(), Err(io::ErrorKind::InvalidData)));
        let (mut connection, _theirs) = answered(b"HTTP/1.1 503 No\r\nContent-Length: 1\r\n\r\nx");
        connection.send("GET", "/", None).unwrap();
        assert!(matches!(connection.receive_lines(), Ok(Streamed::Refused(r)) if r.status == 503 && r.body == b"x"));
    }

    #[test]
    fn an_upgraded_stream_keeps_the_bytes_that_came_with_the_answer() {
        let (connection, _theirs) = answered(b"HTTP/1.1 101 Switching\r\nUpgrade: vmsup-console\r\n\r\nfirst");
        let Ok(Upgrade::Stream(mut stream, mut bytes)) = connection.upgrade("/c", "vmsup-console") else {
            panic!("no stream")
        };
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"first");
        let (connection, _theirs) = answered(b"HTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nx");
        assert!(matches!(connection.upgrade("/c", "x"), Ok(Upgrade::Refused(r)) if r.status == 404 && r.body == b"x"));
    }

    #[test]
    fn a_peer_that_lies_or_leaves_is_an_error() {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(HEAD_MAX));
        for (script, kind) in [
            (b"".as_slice(), UnexpectedEof),
            (b"HTTP/1.1 200 OK\r\n", UnexpectedEof),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", UnexpectedEof),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", InvalidData),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", InvalidData),
            (b"HTTP/1.1 200 OK\r\n\r\nabc", InvalidData),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", InvalidData),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", InvalidData),
            (b"SSH-2.0-OpenSSH\r\n", InvalidData),
            (long.as_bytes(), InvalidData),
        ] {
            let error = body_of(script).unwrap_err();
            assert_eq!(error.kind(), kind, "{}", String::from_utf8_lossy(script));
        }
    }

    #[test]
    fn a_name_cannot_leave_its_segment() {
        assert_eq!(segment("web-1.x_y~"), "web-1.x_y~");
        assert_eq!(segment("a/../b?c=d e\n%ü"), "a%2F..%2Fb%3Fc%3Dd%20e%0A%25%C3%BC");
    }
}
