//! Where documents come from: a directory of YAML files.

mod addresses;
mod file;
mod kept;
#[cfg(test)]
mod tests;

pub use file::{FileSource, Load};
