//! What is not of the mesh: addresses that nobody knows, names that the pod's own nameserver
//! knows, and the death of that nameserver.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::time::{sleep, timeout};

use super::resolver::Resolver;
use super::tools::{curl, fetched};
use crate::error::{Error, Result};
use crate::netns::{self, Family};
use crate::pods::{self, Cluster, Mode, OUTSIDE, Pod, mesh_config, service, workload};
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::write_config;

/// Known to the nameserver alone, and to the mesh as well.
const NAME: &str = "web.example";
const PARTNER: &str = "partner.example";

pub(super) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let dir = setting.dir();
    write_config(dir, "mesh.yaml", &mesh_config("allow"))?;
    let partner = "---\napiVersion: v1\nkind: Service\nmetadata: {name: partner, namespace: bench}\nspec:\n  \
                   type: ExternalName\n  externalName: partner.example\n  ports: [{name: http, port: 8080}]\n";
    let documents = workload("client", "client", 1, Mode::Redirect, &[], &[])
        + &service(
            "nobody",
            "nobody",
            "10.96.0.50",
            &[("http", 80, 8080, Some("http"))],
        )
        + partner;
    write_config(dir, "client.yaml", &documents)?;
    let cluster = Cluster::start(&setting.programs, dir).await?;
    let address = match netns::address(OUTSIDE, Family::V4) {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let resolver = Resolver::start(&cluster.outside, &[(NAME, address), (PARTNER, address)])?;
    let _app = pods::backend(&cluster.outside, "outside", 8080, Some(9000), dir).await?;
    let client = cluster.pod("client", 1, Mode::Redirect, &[]).await?;
    let _sidecar = client.start_ready().await?;
    cluster.reach(&client.host).await;

    for family in Family::BOTH {
        let url = format!("http://{}/", cluster.outside.at(family, 8080));
        let check = async {
            let got = curl(&client, dir, &[&url]).await?;
            Ok(fetched(&got, 200, got.body.len() == 100))
        };
        cases
            .check(
                &format!("unknown-allow-{}", family.name()),
                "200 from a host outside of the mesh",
                check,
            )
            .await;
    }
    let check = async {
        let got = curl(&client, dir, &[&format!("http://{NAME}:8080/")]).await?;
        Ok(fetched(&got, 200, got.address == address.to_string()))
    };
    cases
        .check(
            "dns-forwarded",
            "200 by a name that the pod's nameserver knows",
            check,
        )
        .await;
    let check = async {
        let got = curl(&client, dir, &["http://nowhere.example/"]).await?;
        Ok(fetched(&got, 0, got.error.contains("resolve host")))
    };
    cases
        .check(
            "dns-unknown",
            "a name that nobody knows does not exist",
            check,
        )
        .await;
    let check = async {
        let got = curl(&client, dir, &["http://partner:8080/"]).await?;
        Ok(fetched(&got, 200, got.address.starts_with("240.240.")))
    };
    cases
        .check(
            "external-name",
            "200 by the name of an ExternalName service, at an address of 240.240.0.0/16",
            check,
        )
        .await;
    let check = async {
        let got = curl(&client, dir, &["http://nobody/"]).await?;
        Ok(fetched(&got, 503, true))
    };
    cases
        .check("no-pods", "503 from a service without pods", check)
        .await;
    drop(resolver);
    let check = dead_nameserver(&client, dir);
    cases
        .check(
            "dns-dead",
            "names asked before are answered while the nameserver is dead, beyond their TTL of 1 s",
            check,
        )
        .await;
    cases
        .check(
            "unknown-deny",
            "after `unknown: deny`, HTTP to a host outside is answered 502 unknown_destination and TCP is closed, within 1 s and 2 s; names of the mesh go on",
            denied(&cluster, &client, dir),
        )
        .await;
    Ok(())
}

async fn dead_nameserver(client: &Pod, dir: &Path) -> Result<Finding> {
    // The time to live has to pass; nothing else announces that it has.
    sleep(Duration::from_millis(1500)).await;
    let url = format!("http://{NAME}:8080/");
    let start = Instant::now();
    let first = curl(client, dir, &["--ipv4", &url]).await?;
    let took = start.elapsed();
    let start = Instant::now();
    let second = curl(client, dir, &["--ipv4", &url]).await?;
    let again = start.elapsed();
    let ok = first.status == 200 && second.status == 200 && again < Duration::from_secs(1);
    Ok(seen(
        ok,
        format!(
            "{} after {:.2} s, {} after {:.2} s",
            first.line(),
            took.as_secs_f64(),
            second.line(),
            again.as_secs_f64()
        ),
    ))
}

async fn denied(cluster: &Cluster, client: &Pod, dir: &Path) -> Result<Finding> {
    cluster.write("mesh.yaml", &mesh_config("deny"))?;
    let url = format!("http://{}/", cluster.outside.at(Family::V4, 8080));
    let deadline = Instant::now() + Duration::from_secs(10);
    let (got, took) = loop {
        let start = Instant::now();
        let got = curl(client, dir, &[&url]).await?;
        if got.status != 200 {
            break (got, start.elapsed());
        }
        if Instant::now() > deadline {
            return Err(Error::new(format!(
                "still answered after 10 s: {}",
                got.line()
            )));
        }
        sleep(Duration::from_millis(50)).await;
    };
    let mesh = curl(client, dir, &["http://nobody/"]).await?;
    let start = Instant::now();
    let mut stream = client
        .host
        .connect(cluster.outside.at(Family::V4, 9000))
        .await?;
    let read = timeout(Duration::from_secs(5), stream.read(&mut [0; 64])).await;
    let closed = !matches!(read, Ok(Ok(1..)) | Err(_));
    let tcp = start.elapsed();
    let named = got.status == 502 && got.body.contains("unknown_destination");
    // Who is silent might still speak HTTP, and be told.
    let in_time = took < Duration::from_secs(1) && tcp < Duration::from_secs(2);
    Ok(seen(
        named && closed && in_time && mesh.status == 503,
        format!(
            "{} after {:.3} s; a TCP connection closed: {closed}, after {:.3} s; the mesh: {}",
            got.line(),
            took.as_secs_f64(),
            tcp.as_secs_f64(),
            mesh.line()
        ),
    ))
}
