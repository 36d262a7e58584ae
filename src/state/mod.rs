//! The last good configuration and identity on disk.
