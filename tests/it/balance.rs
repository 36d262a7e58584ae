//! Which replica gets a request, and that a dead one costs no request.

use std::collections::BTreeMap;

use hyper::{Request, Response};
use tokio::sync::Semaphore;

use crate::support::app::{self, Server, full};
use crate::support::http1::{Http1, get, try_send};
use crate::support::http2::{self, whole};
use crate::support::mesh::{Mesh, NAMESPACE, Sidecar, Workload, service};
use crate::support::{soon, until};

const NAMES: [&str; 3] = ["one", "two", "three"];

struct Replicas {
    sidecar: Sidecar,
    client: Workload,
    servers: Vec<(Server, Option<Sidecar>)>,
    _mesh: Mesh,
}

impl Replicas {
    /// A client and three replicas that say their names, under a balancing policy.
    async fn start(policy: Option<&str>) -> Self {
        let mut apps = Vec::new();
        for name in NAMES {
            apps.push(app::echo(name).await);
        }
        Self::around(apps, policy, "http").await
    }

    async fn around(apps: Vec<Server>, policy: Option<&str>, protocol: &str) -> Self {
        let client = Workload::new("client").upstream("echo");
        let mut documents =
            service("echo", "app: echo", Some(protocol)) + &client.yaml() + &traffic(policy);
        let mut replicas = Vec::new();
        for (app, name) in apps.into_iter().zip(NAMES) {
            let workload = Workload::replica("echo", name).serves(&app);
            documents += &workload.yaml();
            replicas.push((app, workload));
        }
        let mesh = Mesh::strict(&documents).await;
        let mut servers = Vec::new();
        for (app, workload) in replicas {
            servers.push((app, Some(mesh.sidecar(&workload).await)));
        }
        Self {
            sidecar: mesh.sidecar(&client).await,
            client,
            servers,
            _mesh: mesh,
        }
    }

    /// Requests on ten connections at a time, by who answered them.
    async fn spread(&self, requests: usize) -> BTreeMap<String, usize> {
        let address = self.client.outbound;
        let clients: Vec<_> = (0..10)
            .map(|_| {
                tokio::spawn(async move {
                    let mut client = Http1::connect(address).await.unwrap();
                    let mut names = Vec::new();
                    for _ in 0..requests / 10 {
                        let reply = client
                            .exchange("GET / HTTP/1.1\r\nhost: echo\r\n\r\n")
                            .await;
                        let reply = reply.unwrap();
                        assert_eq!(reply.outcome(), (200, ""));
                        names.push(reply.header("x-app").unwrap().to_owned());
                    }
                    names
                })
            })
            .collect();
        let mut out = BTreeMap::new();
        for client in clients {
            for name in soon("the answers", client).await.unwrap() {
                *out.entry(name).or_default() += 1;
            }
        }
        out
    }
}

impl Replicas {
    /// Waits until the connections of a replica that was killed are known to be closed.
    async fn settled(&self) {
        until("thirty answers in a row", async || {
            for _ in 0..30 {
                let request = "GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n";
                let reply = try_send(self.client.outbound, request).await?;
                if reply.outcome() != (200, "") {
                    return Err(format!("{:?}", reply.outcome()));
                }
            }
            Ok(())
        })
        .await;
    }
}

fn traffic(policy: Option<&str>) -> String {
    policy.map_or(String::new(), |policy| {
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\n\
             metadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{group: '', kind: Service, name: echo}}]\n  \
             loadBalancer: {{policy: {policy}}}\n"
        )
    })
}

#[tokio::test]
async fn requests_are_spread_by_every_policy() {
    for (policy, least) in [
        (Some("RoundRobin"), 100),
        // 100 each are expected; 5 standard deviations are 41.
        (Some("Random"), 59),
        (Some("LeastRequest"), 30),
        (Some("PeakEwma"), 10),
        (None, 10),
    ] {
        let replicas = Replicas::start(policy).await;
        let spread = replicas.spread(300).await;
        assert_eq!(spread.len(), 3, "{policy:?}: {spread:?}");
        assert!(
            spread.values().all(|n| *n >= least),
            "{policy:?}: {spread:?}"
        );
        let endpoints =
            "weft_endpoints{service=\"echo\",service_namespace=\"test\",state=\"ready\"}";
        replicas.sidecar.until_metric(endpoints, |n| n == 3.0).await;
    }
}

/// A server whose requests to `/held` wait for a permit.
async fn held(name: &'static str, gate: &'static Semaphore) -> Server {
    app::http(move |request| async move {
        if request.uri().path() == "/held" {
            gate.acquire().await.unwrap().forget();
        }
        let mut response = Response::new(full(name));
        response
            .headers_mut()
            .insert("x-app", name.parse().unwrap());
        response
    })
    .await
}

#[tokio::test]
async fn busy_replicas_get_fewer_requests() {
    static GATE: Semaphore = Semaphore::const_new(0);
    for policy in ["LeastRequest", "PeakEwma"] {
        let mut apps = Vec::new();
        for name in NAMES {
            apps.push(held(name, &GATE).await);
        }
        let replicas = Replicas::around(apps, Some(policy), "http2").await;
        // 30 requests that hang: however they are spread, no replica has none of them.
        let client = http2::connect(replicas.client.outbound).await;
        let calls: Vec<_> = (0..30)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    let request = Request::get("http://echo/held").body(full("")).unwrap();
                    let reply = client.send_request(request).await.unwrap();
                    whole(reply).await.header("x-app").to_owned()
                })
            })
            .collect();
        let waiting = "weft_client_requests_in_flight";
        replicas.sidecar.until_metric(waiting, |n| n == 30.0).await;
        for (_, sidecar) in &replicas.servers {
            let sidecar = sidecar.as_ref().unwrap();
            let arrived = "weft_server_requests_in_flight";
            sidecar
                .until_metric(arrived, |n| (5.0..=16.0).contains(&n))
                .await;
        }
        GATE.add_permits(30);
        for call in calls {
            soon("an answer", call).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_dead_replica_costs_no_request() {
    for policy in ["RoundRobin", "Random", "LeastRequest", "PeakEwma"] {
        let mut replicas = Replicas::start(Some(policy)).await;
        assert_eq!(replicas.spread(60).await.values().sum::<usize>(), 60);
        // Killed: the control plane does not know.
        let mut dead = replicas.servers[1].1.take().unwrap();
        dead.crash();
        dead.ended().await;
        // What was on its way to it may fail; from then on nothing does.
        replicas.settled().await;
        let failed = "weft_client_requests_total{outcome=\"failure\"}";
        let before = replicas.sidecar.metrics().await.sum(failed);
        let spread = replicas.spread(200).await;
        assert_eq!(spread.get("two"), None, "{policy}: {spread:?}");
        assert_eq!(spread.values().sum::<usize>(), 200);
        // Bodies are not lost either.
        for _ in 0..10 {
            let mut client = Http1::connect(replicas.client.outbound).await.unwrap();
            let request = "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 5\r\n\r\nhello";
            let reply = client.exchange(request).await.unwrap();
            assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
        }
        let retried = "weft_client_retries_total{service=\"echo\",decision=\"retried\"}";
        // PeakEwma remembers one failure for long enough not to meet another one here.
        let least = if policy == "PeakEwma" { 0.0 } else { 1.0 };
        let retried = replicas.sidecar.until_metric(retried, |n| n >= least).await;
        let recovered = "weft_client_retries_total{service=\"echo\",decision=\"recovered\"}";
        replicas
            .sidecar
            .until_metric(recovered, |n| n == retried)
            .await;
        let attempts = "weft_client_attempts_total{service=\"echo\",reason=\"connect_refused\"}";
        replicas
            .sidecar
            .until_metric(attempts, |n| n == retried)
            .await;
        assert_eq!(replicas.sidecar.metrics().await.sum(failed), before);
    }
}

#[tokio::test]
async fn without_replicas_the_reason_is_said() {
    let mut replicas = Replicas::start(None).await;
    for (_, sidecar) in &mut replicas.servers {
        let mut dead = sidecar.take().unwrap();
        dead.crash();
        dead.ended().await;
    }
    until("nobody is there", async || {
        match get(replicas.client.outbound, "echo", "/").await.outcome() {
            (502, "connect_refused") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    let client = Workload::new("client");
    let documents = service("empty", "app: nobody", Some("http")) + &client.yaml();
    let mesh = Mesh::strict(&documents).await;
    let _sidecar = mesh.sidecar(&client).await;
    let reply = get(client.outbound, "empty", "/").await;
    assert_eq!(reply.outcome(), (503, "no_endpoints"));
}
