//! See DESIGN.md §4.
