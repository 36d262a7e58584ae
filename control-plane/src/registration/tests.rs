use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::config::Content;

fn parse(values: Value) -> Result<Registration, String> {
    Registration::parse("blog", "post-1", "post", values).map_err(|invalid| invalid.to_string())
}

fn registration(name: &str, account: &str, address: &str) -> Arc<Registration> {
    let values = json!({ "register": true, "addresses": [address] });
    Arc::new(Registration::parse("blog", name, account, values).unwrap())
}

#[test]
fn what_a_sidecar_says_is_a_workload() {
    let registration = parse(json!({
        "register": true,
        "addresses": ["10.9.0.2", "fd00:9::2"],
        "labels": { "app": "web", "track": "stable" },
        "ports": [{ "name": "http", "port": 8080 }, { "port": 9000 }, { "name": "", "port": 9001 }],
        "capture": "tproxy",
        "excludeInboundPorts": [9999],
    }))
    .unwrap();
    let Content::Workload(workload) = &registration.document().content else {
        panic!("not a workload");
    };
    let addresses: Vec<String> = workload.addresses().map(|a| a.to_string()).collect();
    assert_eq!(addresses, ["10.9.0.2", "fd00:9::2"]);
    assert_eq!(workload.service_account, "post");
    assert_eq!(workload.labels["track"], "stable");
    let names: Vec<Option<&str>> = workload.ports.iter().map(|p| p.name.as_deref()).collect();
    assert_eq!(names, [Some("http"), None, None]);
    assert!(workload.capture.is_some());
    for capture in [json!(""), json!("off"), json!(null)] {
        let values = json!({ "addresses": ["127.0.0.1"], "capture": capture, "excludeInboundPorts": [], "ports": [{ "port": 80 }] });
        let registration = parse(values).unwrap();
        let Content::Workload(workload) = &registration.document().content else {
            panic!("not a workload");
        };
        assert_eq!(workload.capture, None);
    }
}

#[test]
fn what_is_wrong_is_said_of_the_field_that_the_sidecar_wrote() {
    let many = |n: usize| -> Value { (0..n).map(|i| json!({ "port": i + 1 })).collect() };
    let labels = |n: usize| -> Value {
        let labels = (0..n).map(|i| (format!("l{i}"), json!("")));
        Value::Object(labels.collect())
    };
    let addresses: Vec<String> = (1..=10).map(|n| format!("10.0.0.{n}")).collect();
    for (fields, field, text) in [
        (json!({ "addresses": null }), "addresses", "1 to 9"),
        (json!({ "addresses": [] }), "addresses", "1 to 9"),
        (json!({ "addresses": addresses }), "addresses", "1 to 9"),
        (json!({ "addresses": ["x"] }), "addresses[0]", "not an IP"),
        (
            json!({ "addresses": ["0.0.0.0"] }),
            "addresses[0]",
            "cannot",
        ),
        (
            json!({ "addresses": ["127.0.0.1"] }),
            "addresses[0]",
            "captured",
        ),
        (
            json!({ "addresses": ["10.0.0.1", "x"] }),
            "addresses[1]",
            "not an IP",
        ),
        (
            json!({ "addresses": ["10.0.0.1", "10.0.0.1"] }),
            "addresses[1]",
            "twice",
        ),
        (
            json!({ "addresses": ["10.0.0.1", "10.0.0.2"], "capture": "" }),
            "addresses",
            "needs `capture`",
        ),
        (
            json!({ "ports": [{ "port": 0 }] }),
            "ports[0].port",
            "out of range",
        ),
        (
            json!({ "ports": [{ "port": 80.5 }] }),
            "ports[0].port",
            "whole number",
        ),
        (
            json!({ "ports": [{ "port": "80" }] }),
            "ports[0].port",
            "quotes",
        ),
        (
            json!({ "ports": [{ "port": 14006 }] }),
            "ports[0].port",
            "sidecar",
        ),
        (
            json!({ "ports": [{ "name": "A", "port": 80 }] }),
            "ports[0].name",
            "valid",
        ),
        (
            json!({ "ports": [{ "prot": 80, "port": 80 }] }),
            "ports[0].prot",
            "",
        ),
        (json!({ "ports": 80 }), "ports", "list"),
        (json!({ "ports": many(65) }), "ports", "64"),
        (json!({ "labels": labels(65) }), "labels", "64"),
        (json!({ "labels": ["a"] }), "labels", "mapping"),
        (json!({ "labels": { "a": 1 } }), "labels.a", "string"),
        (json!({ "labels": { "": "b" } }), "labels", "1 to 317"),
        (json!({ "labels": { "a": "x".repeat(64) } }), "labels", "63"),
        (json!({ "capture": "ebpf" }), "capture", "tproxy"),
        (json!({ "capture": true }), "capture", "string"),
        (
            json!({ "excludeInboundPorts": [0] }),
            "excludeInboundPorts[0]",
            "out of range",
        ),
        (
            json!({ "excludeInboundPorts": [1, 1] }),
            "excludeInboundPorts[1]",
            "twice",
        ),
        (
            json!({ "capture": "", "excludeInboundPorts": [1] }),
            "excludeInboundPorts",
            "needs `capture`",
        ),
        (
            json!({ "capture": "", "inboundPorts": "declared", "excludeInboundPorts": [] }),
            "inboundPorts",
            "needs `capture`",
        ),
        (
            json!({ "inboundPorts": "some" }),
            "inboundPorts",
            "all, declared",
        ),
        (json!({ "weight": 7 }), "weight", "no such field"),
    ] {
        let mut values =
            json!({ "register": true, "addresses": ["10.9.0.2"], "capture": "redirect" });
        for (key, value) in fields.as_object().unwrap() {
            values[key] = value.clone();
        }
        let error = parse(values).unwrap_err();
        let start = format!("node.metadata[\"weft.dev\"].{field}: ");
        assert!(error.starts_with(&start), "{fields}: {error}");
        assert!(error.contains(text), "{fields}: {error}");
    }
    let error = parse(json!({ "register": true })).unwrap_err();
    assert!(error.contains(".addresses: is missing"), "{error}");
    let values = json!({ "register": true, "addresses": ["10.9.0.2"] });
    let error = Registration::parse("blog", "-x", "post", values).unwrap_err();
    assert!(error.to_string().starts_with("node.id: "), "{error}");
}

#[test]
fn few_of_many_errors_are_told() {
    let ports: Value = (0..20).map(|_| json!({ "port": 0 })).collect();
    let values = json!({ "addresses": ["10.9.0.2"], "capture": "redirect", "ports": ports });
    let error = parse(values).unwrap_err();
    assert_eq!(error.matches("out of range").count(), 5, "{error}");
    assert!(error.ends_with("and 15 more"), "{error}");
}

#[test]
fn only_who_asks_for_it_is_registered() {
    use weft_api::envoy::config::core::v3::Node;
    use weft_api::google::protobuf::{self as pb, value::Kind};
    let node = |fields: Vec<(&str, Kind)>| {
        let value = |kind| pb::Value { kind: Some(kind) };
        let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), value(v)));
        let own = pb::Struct {
            fields: fields.collect(),
        };
        let fields = [("weft.dev".to_owned(), value(Kind::StructValue(own)))];
        Node {
            metadata: Some(pb::Struct {
                fields: fields.into(),
            }),
            ..Node::default()
        }
    };
    assert_eq!(asked(&Node::default()), None);
    assert_eq!(asked(&node(vec![])), None);
    assert_eq!(
        asked(&node(vec![("register", Kind::BoolValue(false))])),
        None
    );
    let text = Kind::StringValue("true".to_owned());
    assert_eq!(asked(&node(vec![("register", text)])), None);
    let values = asked(&node(vec![
        ("register", Kind::BoolValue(true)),
        ("whole", Kind::NumberValue(8080.0)),
        ("part", Kind::NumberValue(0.5)),
        ("huge", Kind::NumberValue(1e300)),
        ("none", Kind::NullValue(0)),
    ]));
    assert_eq!(
        values,
        Some(json!({ "register": true, "whole": 8080, "part": 0.5, "huge": 1e300 }))
    );
    // However deep it is, it is read in bounded time and space.
    let mut deep = Kind::BoolValue(true);
    for _ in 0..1000 {
        let values = vec![pb::Value { kind: Some(deep) }];
        deep = Kind::ListValue(pb::ListValue { values });
    }
    let values = asked(&node(vec![
        ("register", Kind::BoolValue(true)),
        ("deep", deep),
    ]));
    assert!(values.unwrap().to_string().len() < 100);
}

/// One step of a table: what happens at a second, and whether it is taken.
enum Step {
    /// `(name, service account, address)` registers.
    Register(&'static str, &'static str, &'static str),
    Breaks(&'static str),
    Leaves(&'static str),
    Expire,
}
use Step::{Breaks, Expire, Leaves, Register};

/// Runs steps `(second, step, outcome, who is registered then)`.
fn run(registry: &mut Registry, start: Instant, steps: &[(u64, Step, &str, &[&str])]) {
    for (number, (second, step, outcome, registered)) in steps.iter().enumerate() {
        let now = start + Duration::from_secs(*second);
        let key = |name: &&str| ("blog".to_owned(), (*name).to_owned());
        let seen = match step {
            Register(name, account, address) => {
                match registry.register(registration(name, account, address), now) {
                    Ok(true) => "new",
                    Ok(false) => "same",
                    Err(Refusal::Name { .. }) => "name",
                    Err(Refusal::Address { .. }) => "address",
                    Err(_) => "limit",
                }
            }
            Breaks(name) => ["same", "new"][usize::from(registry.closed(&key(name), false, now))],
            Leaves(name) => ["same", "new"][usize::from(registry.closed(&key(name), true, now))],
            Expire => ["same", "new"][usize::from(registry.expire(now))],
        };
        assert_eq!(seen, *outcome, "step {number}");
        let names = registry.all().map(|r| r.workload().1.as_str());
        assert_eq!(names.collect::<Vec<_>>(), *registered, "step {number}");
    }
    let addresses: usize = registry.all().map(|r| r.addresses().len()).sum();
    let held = registry.all().filter(|r| {
        let (namespace, name) = r.workload();
        registry.holds(namespace, name, r.addresses()[0])
    });
    assert_eq!(held.count(), addresses, "the index is that of the entries");
}

#[test]
fn a_registration_lives_as_long_as_a_stream_and_a_minute_after_a_break() {
    let mut registry = Registry::default();
    let steps: &[(u64, Step, &str, &[&str])] = &[
        (0, Register("a", "x", "10.0.0.1"), "new", &["a"]),
        (0, Register("a", "x", "10.0.0.1"), "same", &["a"]),
        (1, Leaves("a"), "same", &["a"]),
        (2, Breaks("a"), "same", &["a"]),
        (61, Expire, "same", &["a"]),
        (61, Register("a", "x", "10.0.0.1"), "same", &["a"]),
        (200, Expire, "same", &["a"]),
        (200, Register("a", "x", "10.0.0.2"), "new", &["a"]),
        (200, Breaks("a"), "same", &["a"]),
        (200, Breaks("a"), "same", &["a"]),
        (259, Expire, "same", &["a"]),
        (260, Expire, "new", &[]),
        (260, Breaks("a"), "same", &[]),
        (261, Register("a", "x", "10.0.0.2"), "new", &["a"]),
        (262, Leaves("a"), "new", &[]),
    ];
    run(&mut registry, Instant::now(), steps);
}

#[test]
fn nobody_takes_the_name_or_the_address_of_another_identity() {
    let mut registry = Registry::default();
    let steps: &[(u64, Step, &str, &[&str])] = &[
        (0, Register("a", "x", "10.0.0.1"), "new", &["a"]),
        (0, Register("a", "evil", "10.0.0.9"), "name", &["a"]),
        (0, Register("b", "evil", "10.0.0.1"), "address", &["a"]),
        // The same pod under a new name; the old stream has not broken yet.
        (1, Register("c", "x", "10.0.0.1"), "new", &["a", "c"]),
        (2, Leaves("a"), "new", &["c"]),
        (3, Breaks("c"), "same", &["c"]),
        (4, Register("d", "x", "10.0.0.1"), "new", &["d"]),
        (5, Breaks("d"), "same", &["d"]),
        (14, Register("b", "y", "10.0.0.1"), "address", &["d"]),
        (14, Register("d", "y", "10.0.0.3"), "name", &["d"]),
        (15, Register("b", "y", "10.0.0.1"), "new", &["b"]),
        (16, Breaks("b"), "same", &["b"]),
        (26, Register("b", "z", "10.0.0.1"), "new", &["b"]),
        (26, Register("b", "y", "10.0.0.1"), "name", &["b"]),
    ];
    run(&mut registry, Instant::now(), steps);
}

#[test]
fn what_was_stored_is_defended_until_it_is_over() {
    let mut registry = Registry::default();
    let start = Instant::now();
    let values = |address| json!({ "addresses": [address] });
    let stored = ["a", "b"].map(|name| {
        let address = format!("10.0.0.{}", name.len() + usize::from(name == "b"));
        Registration::parse("blog", name, "x", values(address)).unwrap()
    });
    registry.restore(stored.into(), start);
    let steps: &[(u64, Step, &str, &[&str])] = &[
        (
            59,
            Register("evil", "y", "10.0.0.1"),
            "address",
            &["a", "b"],
        ),
        (59, Expire, "same", &["a", "b"]),
        (59, Register("a", "x", "10.0.0.1"), "new", &["a", "b"]),
        (60, Expire, "new", &["a"]),
        (60, Register("evil", "y", "10.0.0.2"), "new", &["a", "evil"]),
    ];
    run(&mut registry, start, steps);
}

#[test]
fn an_identity_has_so_many_and_changes_so_many_at_once() {
    let mut registry = Registry::default();
    let start = Instant::now();
    let mut later = start;
    let mut refused = 0;
    for n in 0..MAX_PER_IDENTITY {
        let address = format!("10.1.{}.{}", n / 256, n % 256);
        let one = || registration(&format!("w{n}"), "x", &address);
        while let Err(refusal) = registry.register(one(), later) {
            assert_eq!(refusal, Refusal::TooFast);
            refused += 1;
            later += Duration::from_secs(1);
        }
    }
    assert_eq!(refused, 20, "1,000 at once, then 50 a second");
    later += Duration::from_secs(60);
    let one_more = registry.register(registration("more", "x", "10.0.0.1"), later);
    assert_eq!(one_more, Err(Refusal::FullForIdentity(MAX_PER_IDENTITY)));
    // What is the same as before costs nothing, and another identity has its own quota.
    for n in 0..MAX_PER_IDENTITY {
        let address = format!("10.1.{}.{}", n / 256, n % 256);
        let again = registration(&format!("w{n}"), "x", &address);
        assert_eq!(registry.register(again, later), Ok(false));
    }
    assert_eq!(
        registry.register(registration("y", "y", "10.0.0.9"), later),
        Ok(true)
    );
    assert_eq!(registry.len(), MAX_PER_IDENTITY + 1);
}

#[test]
fn there_are_so_many_in_all() {
    let mut registry = Registry::default();
    let now = Instant::now();
    let stored = (0..MAX_REGISTRATIONS + 5).map(|n| {
        let account = format!("x{}", n / MAX_PER_IDENTITY);
        let values = json!({ "addresses": ["10.0.0.1"] });
        Registration::parse("blog", &format!("w{n:05}"), &account, values).unwrap()
    });
    registry.restore(stored.collect(), now);
    assert_eq!(registry.len(), MAX_REGISTRATIONS);
    let more = registry.register(registration("more", "y", "10.0.0.9"), now);
    assert_eq!(more, Err(Refusal::Full(MAX_REGISTRATIONS)));
}

#[test]
fn what_is_stored_is_read_and_what_is_damaged_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let before = Registrations::open(&data);
    assert_eq!(before.count(), 0);
    let values = json!({ "register": true, "addresses": ["10.9.0.2", "fd00::2"], "capture": "redirect", "labels": { "a": "ü" } });
    let registered = before.register(parse(values).unwrap()).unwrap();
    before.store(&data).unwrap();
    let after = Registrations::open(&data);
    assert_eq!(after.count(), 1);
    assert!(after.holds("blog", "post-1", "fd00::2".parse().unwrap()));
    drop(registered);

    let file = data.join("registrations.json");
    let good = std::fs::read_to_string(&file).unwrap();
    let aside = data.join("registrations.json.rejected");
    for bad in [
        String::new(),
        good[..good.len() - 1].to_owned(),
        good.replace("10.9.0.2", "10.9.0.3"),
        good.replacen(" 1 ", " 2 ", 1),
        crate::storage::seal("weft-registrations", 1, "{}"),
    ] {
        std::fs::write(&file, &bad).unwrap();
        assert_eq!(Registrations::open(&data).count(), 0, "{bad}");
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), bad);
        assert!(!file.exists());
    }
    // One that this version does not understand spoils no other.
    let odd = r#"[{"namespace":"blog","name":"a","service_account":"x","values":{"addresses":["10.0.0.1"]}},
        {"namespace":"blog","name":"b","service_account":"x","values":{"addresses":["nowhere"]}}]"#;
    let text = crate::storage::seal("weft-registrations", 1, odd);
    std::fs::write(&file, text).unwrap();
    assert_eq!(Registrations::open(&data).count(), 1);
}
