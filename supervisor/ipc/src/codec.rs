//! Values to bytes and back. Nothing outside this file knows that it is bincode.

use crate::Error;
use serde::{Serialize, de::DeserializeOwned};

/// The hard limit of any frame, in bytes. A message type sets its own below this ([`crate::Message::MAX_BYTES`]).
pub const FRAME_LIMIT: usize = 64 * 1024;

/// Little-endian, variable-length integers, and no container whose claimed length exceeds the frame limit.
fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_LIMIT>()
}

/// Encodes `value`.
///
/// # Errors
/// [`Error::TooLarge`] past `limit` bytes; [`Error::Malformed`] where the type cannot be encoded.
pub fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, Error> {
    let bytes =
        bincode::serde::encode_to_vec(value, config()).map_err(|_| Error::Malformed("value that cannot be encoded"))?;
    if bytes.len() > limit.min(FRAME_LIMIT) {
        return Err(Error::TooLarge(limit));
    }
    Ok(bytes)
}

/// Decodes one value that fills `bytes` exactly.
///
/// # Errors
/// [`Error::TooLarge`] past `limit` bytes; [`Error::Malformed`] for anything that is not exactly one value, trailing
/// bytes included.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, Error> {
    if bytes.len() > limit.min(FRAME_LIMIT) {
        return Err(Error::TooLarge(limit));
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|_| Error::Malformed("bytes that are no message of this protocol"))?;
    if used != bytes.len() {
        return Err(Error::Malformed("bytes after the end of the message"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_as_it_went() {
        let value = (7u64, String::from("vm"), vec![1u8, 2, 3], Some(-5i32));
        let bytes = encode(&value, 100).unwrap();
        assert_eq!(decode::<(u64, String, Vec<u8>, Option<i32>)>(&bytes, 100).unwrap(), value);
    }

    #[test]
    fn a_claimed_length_past_the_limit_is_refused_before_it_is_allocated() {
        // A byte vector that says it holds 2^40 bytes: 253 introduces a 64-bit length.
        let mut bytes = vec![253u8];
        bytes.extend_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(matches!(decode::<Vec<u8>>(&bytes, 1000), Err(Error::Malformed(_))));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&1u32, 100).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<u32>(&bytes, 100), Err(Error::Malformed(_))));
    }

    #[test]
    fn an_unknown_tag_is_refused_and_does_not_panic() {
        #[derive(serde::Serialize, serde::Deserialize)]
        enum One {
            A,
        }
        let _ = One::A;
        assert!(matches!(decode::<One>(&[9], 100), Err(Error::Malformed(_))));
    }

    #[test]
    fn a_value_larger_than_its_type_allows_is_not_sent() {
        assert!(matches!(encode(&vec![0u8; 101], 100), Err(Error::TooLarge(100))));
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for length in 0..200usize {
            for _ in 0..50 {
                let bytes: Vec<u8> = (0..length)
                    .map(|_| {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        state as u8
                    })
                    .collect();
                let result = decode::<(String, Vec<String>, Option<u64>)>(&bytes, 200);
                assert!(!matches!(result, Err(Error::TooLarge(_))));
            }
        }
    }
}
