//! What every integration test shares.
