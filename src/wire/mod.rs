//! What may pass between a socket and hyper. hyper reads correctly, but more than there should
//! be to read; here messages are held to the letter, and floods to a budget. Pure machines over
//! bytes; what comes out of them is the same however the bytes arrive.

pub mod chunks;
pub mod expected;
pub mod head;
pub mod http1;
pub mod http2;
pub mod rules;

#[cfg(test)]
mod tests;
