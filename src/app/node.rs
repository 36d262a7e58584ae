//! Who we say we are. The control plane believes the certificate, and of the rest only what a
//! workload may say of itself.

use serde_json::{Value as Json, json};
use weft_api::{
    envoy::config::core::v3::{Node, node::UserAgentVersionType},
    google::protobuf::{ListValue, Struct, Value, value::Kind},
};

use crate::bootstrap::{Bootstrap, Capture, InboundPorts, Registration};

/// The key of everything of ours in metadata.
const METADATA_KEY: &str = "weft.dev";

/// The node of every stream.
pub(super) fn node(bootstrap: &Bootstrap) -> Node {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let metadata = bootstrap.registration.as_ref().map(|registration| {
        let weft = json!({ METADATA_KEY: describe(registration) });
        structure(&weft)
    });
    Node {
        id: format!("{}/{}", bootstrap.namespace, bootstrap.workload),
        user_agent_name: "weft-proxy".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(version)),
        metadata,
        ..Node::default()
    }
}

fn describe(registration: &Registration) -> Json {
    let ports = registration.ports.iter();
    let ports: Vec<Json> = ports
        .map(|(name, port)| json!({ "name": name, "port": port }))
        .collect();
    let mut described = json!({
        "register": true,
        "addresses": registration.addresses,
        "labels": registration.labels,
        "ports": ports,
        "capture": match registration.capture {
            Capture::Redirect => "redirect",
            Capture::Tproxy => "tproxy",
            Capture::Off => "",
        },
        "excludeInboundPorts": registration.exclude_inbound,
    });
    // The default is left unsaid: older control planes do not know the field.
    if registration.inbound_ports == InboundPorts::Declared {
        described["inboundPorts"] = "declared".into();
    }
    described
}

fn structure(json: &Json) -> Struct {
    let fields = json.as_object().into_iter().flatten();
    Struct {
        fields: fields
            .map(|(name, json)| (name.clone(), value(json)))
            .collect(),
    }
}

fn value(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(yes) => Kind::BoolValue(*yes),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => Kind::ListValue(ListValue {
            values: items.iter().map(value).collect(),
        }),
        Json::Object(_) => Kind::StructValue(structure(json)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_api::google::protobuf::value::Kind;

    use super::{METADATA_KEY, node};
    use crate::bootstrap::Bootstrap;

    fn bootstrap(settings: &[(&str, &str)]) -> Bootstrap {
        let token = format!("{}.a.b", "0".repeat(64));
        let mut map = BTreeMap::from([
            ("WORKLOAD".to_owned(), "blog/web-7f".to_owned()),
            ("TOKEN".to_owned(), token),
        ]);
        map.extend(
            settings
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        Bootstrap::parse(&map, None).unwrap()
    }

    #[test]
    fn only_who_registers_has_metadata() {
        let plain = node(&bootstrap(&[]));
        assert_eq!((plain.id.as_str(), plain.metadata), ("blog/web-7f", None));
        let registering = node(&bootstrap(&[
            ("REGISTER", "true"),
            ("ADDRESSES", "10.0.0.7"),
            ("LABELS", "app=web"),
            ("PORTS", "http:8080"),
            ("INBOUND_PORTS", "declared"),
            ("EXCLUDE_INBOUND", "9999"),
        ]));
        let metadata = registering.metadata.unwrap();
        let Some(Kind::StructValue(weft)) = &metadata.fields[METADATA_KEY].kind else {
            panic!("{metadata:?}");
        };
        let text = |name: &str| format!("{:?}", weft.fields[name].kind);
        for (name, expected) in [
            ("register", "BoolValue(true)"),
            ("capture", "StringValue(\"redirect\")"),
            ("addresses", "10.0.0.7"),
            ("labels", "StringValue(\"web\")"),
            ("ports", "NumberValue(8080.0)"),
            ("inboundPorts", "StringValue(\"declared\")"),
            ("excludeInboundPorts", "NumberValue(9999.0)"),
        ] {
            assert!(text(name).contains(expected), "{name}: {}", text(name));
        }
    }
}
