//! A client's connection that does not wait for ever: who asks and does not take the answer is hung up on.
//!
//! A stream of events may stand still as long as its reader likes, and a console is no longer this one's when it begins.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;

/// How long a client may take none of an answer.
const TAKE_TIME: Duration = Duration::from_secs(30);

/// A connection.
#[derive(Debug)]
pub struct Patient {
    stream: UnixStream,
    /// Its client may take its time.
    endless: Arc<AtomicBool>,
    /// Since it takes nothing.
    since: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// One whose client may take its time from when `endless` is set on.
    pub fn new(stream: UnixStream, endless: Arc<AtomicBool>) -> Patient {
        Patient { stream, endless, since: None }
    }

    /// The connection itself.
    pub fn into_inner(self) -> UnixStream {
        self.stream
    }

    /// What a write came to, or that it has waited for too long.
    fn judge(&mut self, written: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_ready() || self.endless.load(Ordering::Relaxed) {
            self.since = None;
            return written;
        }
        let since = self.since.get_or_insert_with(|| Box::pin(tokio::time::sleep(TAKE_TIME)));
        since.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// More than a socket's buffers hold.
    const MUCH: usize = 4 << 20;

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_of_an_answer_is_hung_up_on_and_who_takes_some_is_not() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut server = Patient::new(server, Arc::default());
        // As long as something is taken now and then, it goes on.
        let reads = tokio::spawn(async move {
            let mut some = vec![0; 256 << 10];
            for _ in 0..MUCH / some.len() / 2 {
                tokio::time::sleep(TAKE_TIME / 2).await;
                client.read_exact(&mut some).await.unwrap();
            }
            client
        });
        let begun = tokio::time::Instant::now();
        let error = server.write_all(&vec![1; MUCH]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= TAKE_TIME * 4, "{:?}", begun.elapsed());
        drop(reads.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn who_follows_may_take_its_time() {
        let (client, server) = UnixStream::pair().unwrap();
        let mut server = Patient::new(server, Arc::new(AtomicBool::new(true)));
        let much = vec![1; MUCH];
        let write = server.write_all(&much);
        tokio::time::timeout(TAKE_TIME * 1000, write).await.unwrap_err();
        drop(client);
    }
}
