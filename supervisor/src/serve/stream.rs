//! A console attached: bytes of the ring to a client, bytes of the client to the guest.
//!
//! The stream ends when this run of the VM is over and all its output was sent, or when the client hangs up. A client that does
//! not read holds up nobody but itself: it waits in `write`, and what the ring forgets meanwhile it gets as one line.

use super::console::{Console, Input, Reader};
use super::readiness::watch;
use super::vm::Hold;
use std::io::Result;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Bytes that are moved at once, each way.
const CHUNK: usize = 8 << 10;

/// A console that a client asked for, before its connection is handed over.
#[derive(Debug)]
pub struct Attached {
    hold: Hold,
    /// Of which run of the VM.
    run: u64,
    reader: Reader,
    input: Option<Input>,
}

impl Attached {
    /// Output from the first byte that is kept or from now on; input where it was asked for and is free.
    pub fn new(hold: Hold, console: &Arc<Console>, history: bool, input: bool) -> Attached {
        let reader = console.reader(history);
        let input = if input { console.take_input() } else { None };
        let run = hold.vm.run();
        Attached { hold, run, reader, input }
    }

    /// Whether this client's bytes reach the guest.
    pub fn has_input(&self) -> bool {
        self.input.is_some()
    }

    /// Serves the client until the end. `early` are bytes that came with its request.
    pub async fn run(self, stream: UnixStream, early: &[u8]) {
        let Attached { hold, run, reader, input } = self;
        let gone = match stream.as_fd().try_clone_to_owned() {
            Ok(copy) => copy,
            Err(error) => return tracing::warn!(%error, "no file descriptor for a console stream"),
        };
        let (read, write) = stream.into_split();
        tokio::select! {
            biased;
            // What a client does wrong or how it hangs up concerns it alone.
            _ = send(&hold, run, reader, write) => {}
            _ = receive(read, input, early) => {}
            _ = hung_up(gone) => {}
        }
    }
}

/// Sends what the guest writes until this run of the VM is over and all of it is sent.
async fn send(hold: &Hold, run: u64, mut reader: Reader, mut to: OwnedWriteHalf) -> Result<()> {
    let mut buffer = Vec::new();
    let mut ended = false;
    loop {
        buffer.resize(CHUNK, 0);
        let chunk = reader.take(&mut buffer);
        if chunk.lost > 0 {
            let line = format!("\r\n[vmsup: {} bytes of console output lost]\r\n", chunk.lost);
            to.write_all(line.as_bytes()).await?;
        }
        if chunk.bytes > 0 {
            to.write_all(&buffer[..chunk.bytes]).await?;
        }
        if chunk.bytes > 0 || chunk.lost > 0 {
            continue;
        }
        if ended {
            return to.shutdown().await;
        }
        // Idle streams, and there may be hundreds, hold no buffer.
        buffer = Vec::new();
        tokio::select! {
            () = reader.news() => {}
            // Once more round: the worker may have written just before it ended.
            () = hold.vm.until_run_over(run) => ended = true,
        }
    }
}

/// Passes on what the client writes; without the right to, reads and forgets it. Comes back only on an error: a
/// client that has said all (its end of the file) still wants the output.
async fn receive(from: OwnedReadHalf, input: Option<Input>, early: &[u8]) -> Result<()> {
    // A guest that does not read stalls this client's input, not its output.
    let forward = async |bytes: &[u8]| match &input {
        Some(input) => input.write(bytes).await,
        None => Ok(()),
    };
    let mut open = forward(early).await.is_ok();
    loop {
        let mut buffer = Vec::with_capacity(256);
        match from.readable().await.and_then(|()| from.try_read_buf(&mut buffer)) {
            Ok(0) => break,
            Ok(_) if open => open = forward(&buffer).await.is_ok(),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    drop(input);
    std::future::pending().await
}

/// Waits until the client is gone for good. Its end of the file is not enough (it may still read), and an idle guest
/// gives no occasion to notice at a write. A registration for priority data alone reports nothing of an open stream
/// and of a half-closed one, but the hang-up, which epoll always reports.
async fn hung_up(socket: std::os::fd::OwnedFd) -> Result<()> {
    let socket = watch(socket, Interest::PRIORITY)?;
    let _guard = socket.ready(Interest::PRIORITY).await?;
    Ok(())
}
