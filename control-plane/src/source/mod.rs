//! Where documents come from: a directory of YAML files.

mod file;
#[cfg(test)]
mod tests;

pub use file::{FileSource, Load};
