//! All devices of one VM.
