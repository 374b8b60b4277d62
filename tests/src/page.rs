//! A small web server in a network namespace: somebody for guests to reach, or not to reach.

use crate::netns::Netns;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Serves one page until it is dropped.
pub struct Page {
    over: Arc<AtomicBool>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Page {
    /// Serves `body` there, whatever is asked for.
    ///
    /// # Panics
    /// Where the address is not that namespace's.
    pub fn serve(netns: &Netns, address: Ipv4Addr, port: u16, body: &str) -> Page {
        let listener = netns.run(|| TcpListener::bind((address, port)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let (over, peers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (stop, seen) = (over.clone(), peers.clone());
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        seen.lock().unwrap().push(peer);
                        let _ = answer_one(stream, &answer);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
                    Err(e) => panic!("accept: {e}"),
                }
            }
        });
        Page { over, peers, thread: Some(thread) }
    }

    /// Who has connected so far.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap().clone()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_one(mut stream: TcpStream, answer: &str) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => request.extend(&buffer[..length]),
        }
    }
    stream.write_all(answer.as_bytes())
}

/// Fetches a page from within `netns`; nothing where nobody answers within some seconds.
pub fn fetch(netns: &Netns, address: Ipv4Addr, port: u16) -> Option<String> {
    netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })
}
