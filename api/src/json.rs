//! Any xDS resource as JSON (proto3 JSON mapping), by reflection over a checked-in
//! descriptor set. For `render`, golden files and dumps.

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        DescriptorPool::decode(include_bytes!("gen/xds.fds").as_slice())
            .expect("the checked-in descriptor set decodes: tests/generated.rs made it")
    })
}

/// The JSON of an encoded message, with field names as in the proto files.
///
/// # Errors
/// When the type is not in the descriptor set or the bytes do not decode.
pub fn to_json(type_url: &str, bytes: &[u8]) -> Result<serde_json::Value, String> {
    let name = type_url.rsplit_once('/').map_or(type_url, |(_, name)| name);
    let descriptor = pool()
        .get_message_by_name(name)
        .ok_or_else(|| format!("{name} is not a known message"))?;
    let message = DynamicMessage::decode(descriptor, bytes).map_err(|e| format!("{name}: {e}"))?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|e| format!("{name}: {e}"))
}
