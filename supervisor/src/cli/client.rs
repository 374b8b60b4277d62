//! The API as commands use it: typed requests, and errors that are sentences.
//!
//! Speaks to the supervisor of this user (or the one of `--socket`). Who answers on the default socket is checked: the
//! runtime directory may be in /tmp, where others could have been first.

use super::background;
use super::failure::{BAD_INPUT, FAILED, Failure};
use super::http::{self, Connection, Response, Streamed, Upgrade, segment};
use serde::de::DeserializeOwned;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmsup::api::types::{ApiError, ErrorCode};

/// How long a supervisor may take for an answer that waits for nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// The protocol of a console's stream.
const CONSOLE: &str = "vmsup-console";

/// Why a request has no answer, or not the one that was asked for.
#[derive(Debug)]
pub enum CallError {
    /// The supervisor refused or failed, and said so.
    Api(ApiError),
    /// There is no supervisor, or it does not speak as one.
    Transport(String),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Api(error) => {
                let field = error.field.map(|field| format!("{field}: ")).unwrap_or_default();
                Failure { status: status_of(error.code), sentence: Some(field + &error.message) }
            }
            CallError::Transport(sentence) => Failure { status: FAILED, sentence: Some(sentence) },
        }
    }
}

/// The exit status of an error of the API.
pub fn status_of(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::Invalid => BAD_INPUT,
        _ => FAILED,
    }
}

/// Where the supervisor is.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    /// The user named the socket: nothing is started for it, and who answers there is the user's affair.
    named: bool,
}

/// One connection to the supervisor.
#[derive(Debug)]
pub struct Api(Connection);

impl Client {
    /// The supervisor on `socket`, or this user's own.
    pub fn new(socket: Option<&Path>) -> Self {
        match socket {
            Some(path) => Client { socket: path.to_owned(), named: true },
            None => Client { socket: vmsup::paths::api_socket(), named: false },
        }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects; starts a supervisor in the background where this user has none.
    ///
    /// # Errors
    /// One sentence.
    pub fn connect(&self) -> Result<Api, Failure> {
        match self.try_connect() {
            Ok(api) => Ok(api),
            Err(error) if self.named || !is_absent(&error) => Err(self.no_answer(&error)),
            Err(_) => {
                background::start(|| self.try_connect().is_ok())?;
                self.try_connect().map_err(|e| self.no_answer(&e))
            }
        }
    }

    /// Connects once more, to the supervisor that answered before: who waits for a VM is told where that one has gone.
    ///
    /// # Errors
    /// One sentence.
    pub fn connect_again(&self) -> Result<Api, Failure> {
        Ok(self.try_connect().map_err(|e| gone(&e))?)
    }

    /// Connects to a supervisor that is there already.
    ///
    /// # Errors
    /// What `connect(2)` says; `PermissionDenied` where a stranger listens.
    pub fn try_connect(&self) -> io::Result<Api> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        if !self.named {
            let peer = rustix::net::sockopt::socket_peercred(&stream)?.uid;
            if !peer.is_root() && peer != rustix::process::getuid() {
                let stranger = format!("uid {} listens there", peer.as_raw());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, stranger));
            }
        }
        Ok(Api(Connection::new(stream)))
    }

    fn no_answer(&self, error: &io::Error) -> Failure {
        let socket = vmsup::vmjson::check::escaped_path(&self.socket);
        let what = if is_absent(error) {
            format!("no supervisor answers; start one with `vmsup serve --socket {socket}`")
        } else if error.raw_os_error() == Some(rustix::io::Errno::ACCESS.raw_os_error()) {
            "no permission to connect; run as the user whose supervisor it is, or name your own with --socket".into()
        } else {
            format!("cannot connect ({error}); check that the socket is your supervisor's")
        };
        Failure::failed(format!("{socket}: {what}"))
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Api {
    /// Whether the supervisor is this very user's: what its user may open, it may, too.
    pub fn is_own(&self) -> bool {
        let peer = rustix::net::sockopt::socket_peercred(self.0.stream());
        peer.is_ok_and(|peer| peer.uid == rustix::process::getuid())
    }

    /// Sends a request; [`Api::answer`] receives what comes of it.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn ask(&mut self, method: &str, target: &str, body: Option<&impl serde::Serialize>) -> Result<(), CallError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|e| garbled(&e.to_string()))?;
        self.0.send(method, target, body.as_deref()).map_err(|e| gone(&e))
    }

    /// Receives the answer to a request.
    ///
    /// # Errors
    /// What the supervisor says.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T, CallError> {
        let response = success(self.0.receive().map_err(|e| gone(&e))?)?;
        serde_json::from_slice(&response.body).map_err(|e| garbled(&e.to_string()))
    }

    /// Receives the answer to a request that brings nothing.
    ///
    /// # Errors
    /// What the supervisor says.
    pub fn done(&mut self) -> Result<(), CallError> {
        success(self.0.receive().map_err(|e| gone(&e))?).map(drop)
    }

    /// Asks and receives.
    ///
    /// # Errors
    /// What the supervisor says.
    pub fn call<T: DeserializeOwned>(&mut self, method: &str, target: &str) -> Result<T, CallError> {
        self.ask(method, target, None::<&()>)?;
        self.answer()
    }

    /// Asks, and receives the raw body and headers.
    ///
    /// # Errors
    /// What the supervisor says.
    pub fn raw(&mut self, method: &str, target: &str) -> Result<Response, CallError> {
        self.ask(method, target, None::<&()>)?;
        success(self.0.receive().map_err(|e| gone(&e))?)
    }

    /// Lets the next answer take as long as it takes: it comes when a VM has ended.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn be_patient(&mut self) -> Result<(), CallError> {
        self.0.stream().set_read_timeout(None).map_err(|e| gone(&e))
    }

    /// Asks for a stream of JSON objects, one a line.
    ///
    /// # Errors
    /// What the supervisor says.
    pub fn lines(mut self, target: &str) -> Result<Lines, CallError> {
        self.ask("GET", target, None::<&()>)?;
        match self.0.receive_lines().map_err(|e| gone(&e))? {
            Streamed::Lines(lines) => Ok(Lines(lines)),
            Streamed::Refused(response) => Err(match success(response) {
                Err(error) => error,
                Ok(_) => garbled("an answer that is no stream"),
            }),
        }
    }

    /// Makes this connection the console of `vm`.
    ///
    /// # Errors
    /// What the supervisor says.
    pub fn console(self, vm: &str, history: bool, input: bool) -> Result<(UnixStream, Vec<u8>), CallError> {
        let target = vm_target(vm, &format!("/console?history={history}&input={input}"));
        match self.0.upgrade(&target, CONSOLE).map_err(|e| gone(&e))? {
            Upgrade::Stream(stream, early) => {
                stream.set_read_timeout(None).map_err(|e| gone(&e))?;
                stream.set_write_timeout(None).map_err(|e| gone(&e))?;
                Ok((stream, early))
            }
            Upgrade::Refused(response) => Err(match success(response) {
                Err(error) => error,
                Ok(_) => garbled("an answer that is no console"),
            }),
        }
    }
}

/// A stream of JSON objects.
#[derive(Debug)]
pub struct Lines(http::Lines);

impl Lines {
    /// The next one; none where the supervisor has no more.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CallError> {
        let Some(line) = self.0.next().map_err(|e| gone(&e))? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|e| garbled(&e.to_string()))
    }
}

/// The target of a request about a VM: `/v1/vms/NAME` and what follows.
pub fn vm_target(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}{rest}", segment(vm))
}

fn success(response: Response) -> Result<Response, CallError> {
    if (200..300).contains(&response.status) {
        return Ok(response);
    }
    Err(match serde_json::from_slice::<ApiError>(&response.body) {
        Ok(error) => CallError::Api(error),
        // Answers that the HTTP layer gives by itself have no such body.
        Err(_) => CallError::Api(ApiError {
            code: ErrorCode::Internal,
            message: format!("the supervisor answered with HTTP status {}; see its log", response.status),
            field: None,
        }),
    })
}

fn gone(error: &io::Error) -> CallError {
    use io::ErrorKind::{
        BrokenPipe, ConnectionRefused, ConnectionReset, InvalidData, NotFound, TimedOut, UnexpectedEof, WouldBlock,
    };
    CallError::Transport(match error.kind() {
        WouldBlock | TimedOut => "the supervisor does not answer; see its log, then restart it".into(),
        UnexpectedEof | BrokenPipe | ConnectionReset | ConnectionRefused | NotFound => {
            format!("the supervisor went away; see {}", vmsup::paths::log_file().display())
        }
        InvalidData => return garbled(&error.to_string()),
        _ => format!("the supervisor cannot be reached ({error})"),
    })
}

fn garbled(what: &str) -> CallError {
    CallError::Transport(format!(
        "the supervisor's answer makes no sense ({what}); check that it is of the same release (`vmsup version`)"
    ))
}
