//! Destinations of captured applications: by address and by DNS name.

use std::path::Path;

use weft_api::envoy::config::route::v3::VirtualHost;
use weft_api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use weft_api::google::protobuf::{Value, value::Kind as Is};
use weft_api::{Kind, any};

use crate::support::*;

/// `blog/post` has no cluster IP: this is what its name gives.
const POST_IP: &str = "240.240.136.185";

const DB: &str = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: blog}
spec: {selector: {app: db}, clusterIP: None, ports: [{port: 5432}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: reader, namespace: blog, labels: {app: reader}}
spec: {serviceAccount: reader, address: 10.9.0.2, capture: {}, ports: [{port: 8080}]}
";

fn member(number: u8) -> String {
    format!(
        "
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {{name: db-{number}, namespace: blog, labels: {{app: db}}}}
spec: {{serviceAccount: db, address: 10.9.1.{number}, capture: {{}}, ports: [{{port: 5432}}]}}
"
    )
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join("config").join(name), text).unwrap();
}

/// The addresses that the DNS name of a response stands for.
fn addresses(response: &DeltaDiscoveryResponse, name: &str) -> Vec<String> {
    let mut resources = response.resources.iter();
    let resource = resources.find(|r| r.name == name).unwrap();
    let host: VirtualHost = any::unpack(resource.resource.as_ref().unwrap()).unwrap();
    let metadata = host.metadata.unwrap();
    let text = |value: &Value| match &value.kind {
        Some(Is::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    match &metadata.filter_metadata["weft.dev"].fields["addresses"].kind {
        Some(Is::ListValue(list)) => list.values.iter().map(text).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destinations_are_looked_up_by_address_and_by_dns_name() {
    let directory = directory();
    let path = directory.path();
    write(path, "db.yaml", DB);
    write(path, "db-0.yaml", &member(0));
    let plane = Plane::start(path).await;
    let svid = plane.svid("reader").await;
    let mut ads = plane.ads(&svid, "blog/reader").await;
    ads.expect("listener: dns inbound inbound|8080 outbound")
        .await;

    let by_ip = format!("outbound/{POST_IP}:80");
    let names = [
        by_ip.as_str(),
        "outbound/10.9.1.0:5432",
        "outbound/10.9.1.1:5432",
        "outbound/[::ffff:10.9.1.0]:5432",
        "dns/post",
        "dns/db.blog.svc.cluster.local",
        "dns/db-1.db.blog.svc.cluster.local",
        "dns/example.com",
    ];
    ads.subscribe(Kind::VirtualHost, &names).await;
    let response = ads
        .expect(&format!(
            "virtual_host: dns/db.blog.svc.cluster.local dns/post outbound/10.9.1.0:5432 {by_ip} outbound/[::ffff:10.9.1.0]:5432 -dns/db-1.db.blog.svc.cluster.local -dns/example.com -outbound/10.9.1.1:5432"
        ))
        .await;
    assert_eq!(addresses(&response, "dns/post"), [POST_IP]);
    let db = "dns/db.blog.svc.cluster.local";
    assert_eq!(addresses(&response, db), ["10.9.1.0"]);
    ads.subscribe(Kind::Cluster, &["pod|10.9.1.0:5432", "pod|10.9.1.1:5432"])
        .await;
    ads.expect("cluster: pod|10.9.1.0:5432 -pod|10.9.1.1:5432")
        .await;
    ads.subscribe(Kind::Endpoint, &["pod|10.9.1.0:5432"]).await;
    ads.expect("endpoint: pod|10.9.1.0:5432").await;

    // Another one comes: what was absent is told, and what has changed.
    write(path, "db-1.yaml", &member(1));
    ads.expect("cluster: pod|10.9.1.1:5432").await;
    let response = ads
        .expect("virtual_host: dns/db-1.db.blog.svc.cluster.local dns/db.blog.svc.cluster.local outbound/10.9.1.1:5432")
        .await;
    assert_eq!(addresses(&response, db), ["10.9.1.0", "10.9.1.1"]);

    // One goes.
    std::fs::remove_file(path.join("config/db-0.yaml")).unwrap();
    let response = ads
        .expect("virtual_host: dns/db.blog.svc.cluster.local -outbound/10.9.1.0:5432 -outbound/[::ffff:10.9.1.0]:5432")
        .await;
    assert_eq!(addresses(&response, db), ["10.9.1.1"]);
    ads.expect("cluster: -pod|10.9.1.0:5432").await;
    ads.expect("endpoint: -pod|10.9.1.0:5432").await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_keep_their_virtual_addresses() {
    let directory = directory();
    let path = directory.path();
    write(path, "db.yaml", DB);
    let file = path.join("data/vips.json");
    for (stored, expect) in [
        // What the name gives is stored; what is stored goes before what the name gives.
        (None, POST_IP),
        (
            Some(r#"{"version": 1, "addresses": {"blog/post": "240.240.0.7"}}"#),
            "240.240.0.7",
        ),
        // What cannot be used is given anew.
        (Some("{"), POST_IP),
    ] {
        if let Some(text) = stored {
            std::fs::write(&file, text).unwrap();
        }
        let plane = Plane::start(path).await;
        let svid = plane.svid("reader").await;
        let mut ads = plane.ads(&svid, "blog/reader").await;
        ads.expect("listener: dns inbound inbound|8080 outbound")
            .await;
        ads.subscribe(Kind::VirtualHost, &["dns/post"]).await;
        let response = ads.expect("virtual_host: dns/post").await;
        assert_eq!(addresses(&response, "dns/post"), [expect], "{stored:?}");
        soon(async {
            while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains(expect)) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        plane.stop().await;
    }
}
