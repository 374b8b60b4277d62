//! `--metrics-listen`: metrics over TCP, for a Prometheus that speaks to no Unix socket.
//!
//! Spoken to by every process of this host, whoever's it is: there is no caller to be asked for. It tells names, owners and
//! counters of all VMs, and nothing else: one path, reading only. Web pages in a browser of this host can reach it, too, and
//! under a name of their own read the answer: a `Host` that is not this host's loopback is refused.

use super::error::Refusal;
use super::listen::{BACK_OFF, http};
use super::types::ErrorCode;
use super::{handlers, metrics};
use crate::serve::Context;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How many connections there are at a time; the next ones wait in the socket's backlog. Each is one file, and the budget of
/// files knows of them.
const PLACES: usize = 3;
/// How long a connection may last.
pub const WHOLE: Duration = Duration::from_secs(30);

/// Whether others than this host could connect to that address.
///
/// # Errors
/// One sentence without a final full stop.
pub fn check(address: SocketAddr) -> Result<SocketAddr, String> {
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err(format!(
        "{} is not the loopback: whoever reaches it would read the names of all VMs; listen on 127.0.0.1:{port} or \
         [::1]:{port}, behind a proxy that asks who is there",
        address.ip(),
        port = address.port()
    ))
}

/// Serves for ever; each connection for so long at most.
pub async fn accept(listener: TcpListener, context: Arc<Context>, whole: Duration) {
    let router = Router::new()
        .route("/metrics", get(metrics::prometheus))
        .fallback(handlers::no_such_route)
        .method_not_allowed_fallback(handlers::no_such_method)
        .layer(from_fn(only_by_our_name))
        .with_state(context);
    let places = Arc::new(Semaphore::new(PLACES));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let serving = tokio::time::timeout(whole, serve(stream, router.clone()));
                tokio::spawn(async move {
                    let _ = serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let service = TowerToHyperService::new(router);
    if let Err(error) = http().keep_alive(false).serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection for metrics ended badly");
    }
}

async fn only_by_our_name(request: Request, next: Next) -> Response {
    if is_ours(request.headers()) {
        return next.run(request).await;
    }
    Refusal::new(ErrorCode::Forbidden, "ask for localhost, 127.0.0.1 or [::1]").into_response()
}

/// The host that was asked for is the loopback; one who asks for none is no browser.
fn is_ours(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::Bench;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn only_the_loopback_is_listened_on() {
        for good in ["127.0.0.1:9090", "127.8.0.1:1", "[::1]:9090"] {
            assert_eq!(check(good.parse().unwrap()), Ok(good.parse().unwrap()));
        }
        for bad in ["0.0.0.0:9090", "192.0.2.1:9090", "[::]:9090", "[::ffff:192.0.2.1]:9090"] {
            assert!(check(bad.parse().unwrap()).unwrap_err().contains("127.0.0.1:9090"), "{bad}");
        }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_tells_metrics_and_nothing_else_and_only_to_who_asks_for_this_host() {
        let bench = Bench::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, bench.context.clone(), WHOLE));
        let get = |path: &str, host: &str| format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        for host in [address.to_string().as_str(), "localhost", "LOCALHOST:1", "[::1]:9090", "127.0.0.2"] {
            let answer = ask(address, &get("/metrics", host)).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\nvmsup_jailer_up 1\n"), "{answer}");
        }
        for host in ["evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", "[::1"] {
            let answer = ask(address, &get("/metrics", host)).await;
            assert!(answer.starts_with("HTTP/1.1 403") && !answer.contains("vmsup_jailer_up"), "{host}: {answer}");
        }
        for path in ["/v1/vms", "/v1/stats", "/"] {
            assert!(ask(address, &get(path, "localhost")).await.starts_with("HTTP/1.1 404"), "{path}");
        }
        let posted = ask(address, "POST /metrics HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await;
        assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
    }

    #[tokio::test]
    async fn clients_that_send_nothing_are_dropped_and_others_get_their_places() {
        let bench = Bench::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, bench.context.clone(), Duration::from_millis(100)));
        let mut slow = Vec::new();
        for _ in 0..PLACES {
            slow.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for mut stream in slow {
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "it was dropped");
        }
    }
}
