//! `google.protobuf.Any`: packing and unpacking by type name.

use envoy_types::pb::google::protobuf::Any;
use prost::{DecodeError, Message, Name};

/// Packs a message under its `type.googleapis.com/` URL.
#[must_use]
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}

/// Whether the `Any` holds an `M`.
#[must_use]
pub fn holds<M: Name>(any: &Any) -> bool {
    any.type_url
        .rsplit_once('/')
        .map_or(any.type_url.as_str(), |(_, name)| name)
        == M::full_name()
}

/// Unpacks an `M`.
///
/// # Errors
/// When the type differs or the bytes are not that message.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    if !holds::<M>(any) {
        return Err(UnpackError::Type {
            expected: M::full_name(),
            found: any.type_url.clone(),
        });
    }
    M::decode(any.value.as_slice()).map_err(UnpackError::Bytes)
}

/// Why an `Any` could not be read.
#[derive(Debug)]
pub enum UnpackError {
    /// It holds another type.
    Type {
        /// The full name that was wanted.
        expected: String,
        /// The type URL that was there.
        found: String,
    },
    /// Its bytes are not a message of that type.
    Bytes(DecodeError),
}

impl std::fmt::Display for UnpackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Type { expected, found } => write!(f, "expected {expected}, found {found}"),
            Self::Bytes(error) => write!(f, "the bytes are no such message: {error}"),
        }
    }
}

impl std::error::Error for UnpackError {}
