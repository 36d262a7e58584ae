pub mod double;
pub mod message;

mod resolver;
mod server;
mod wire;
