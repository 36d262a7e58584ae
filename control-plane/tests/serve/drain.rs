//! A sidecar that shuts down is told when nobody calls it any more.

use std::path::Path;
use std::time::Duration;

use tonic::{Code, Status, Streaming};
use weft_api::Kind;
use weft_api::envoy::config::core::v3::HealthStatus;
use weft_api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use weft_certs::WorkloadCert;

use crate::support::*;

/// A control plane, and a sidecar of `blog/post-v1` that has begun to shut down while others
/// watch its service.
struct Leaving {
    plane: Plane,
    web: WorkloadCert,
    post: WorkloadCert,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Leaving {
    /// `watchers` follow the endpoints and have acknowledged that the workload is up; none has
    /// read that it drains.
    async fn begin<const N: usize>(directory: &Path, deadline: Duration) -> (Self, [Ads; N]) {
        let plane = Plane::start_with(directory, |o| o.drain_deadline = deadline).await;
        let (web, post) = (plane.svid("web").await, plane.svid("post").await);
        let mut watchers = Vec::new();
        for n in 0..N {
            watchers.push(watcher(&plane, &web, &format!("blog/watcher-{n}")).await);
        }
        let mut ads = plane.ads(&post, "blog/post-v1").await;
        ads.expect("listener: inbound|8080 outbound").await;
        drop(ads.requests);
        let leaving = Self {
            plane,
            web,
            post,
            responses: ads.responses,
        };
        let page = "\"state\": \"leaving\"";
        leaving.plane.until_page("/debug/clients", page).await;
        let watchers = watchers.try_into().ok().unwrap();
        (leaving, watchers)
    }

    /// The stream stays open for now.
    async fn goes_on(&mut self) {
        let end = tokio::time::timeout(Duration::from_millis(100), self.responses.message());
        assert!(end.await.is_err(), "the stream has ended");
    }

    async fn end(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        soon(self.responses.message()).await
    }

    async fn counted(&self, result: &str) {
        let line = format!("weft_control_drains_total{{result=\"{result}\"}} 1");
        self.plane.until_page("/metrics", &line).await;
    }
}

/// A client that follows the endpoints of `post.blog:80` and knows them as up.
async fn watcher(plane: &Plane, web: &WorkloadCert, node: &str) -> Ads {
    let mut ads = plane.ads(web, node).await;
    ads.expect("listener:").await;
    ads.subscribe(Kind::Endpoint, &["post.blog:80"]).await;
    let response = ads.expect("endpoint: post.blog:80").await;
    assert_eq!(health(&response), [HealthStatus::Healthy]);
    // Once it is answered, the acknowledgement before it has been taken in.
    ads.subscribe(Kind::Secret, &["ROOTCA"]).await;
    ads.expect("secret: ROOTCA").await;
    ads
}

/// The next response, that the workload drains, not acknowledged.
async fn draining(ads: &mut Ads) -> DeltaDiscoveryResponse {
    let response = ads.next().await.unwrap();
    assert_eq!(health(&response), [HealthStatus::Draining]);
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_for_the_last_acknowledgement_and_for_no_other_client() {
    let directory = directory();
    let (mut leaving, [mut fast, mut slow, mut gone]) =
        Leaving::begin(directory.path(), PATIENCE).await;
    // Clients that acknowledge nothing, but do not call it: they are not waited for.
    let mut stranger = leaving.plane.ads(&leaving.web, "blog/stranger").await;
    stranger.next().await.unwrap();
    stranger
        .subscribe(Kind::Endpoint, &["nobody.blog:80"])
        .await;
    stranger.next().await.unwrap();

    let response = draining(&mut fast).await;
    fast.ack(&response).await;
    let response = draining(&mut slow).await;
    leaving.goes_on().await;
    slow.ack(&response).await;
    leaving.goes_on().await;
    draining(&mut gone).await;
    drop(gone);
    assert_eq!(leaving.end().await.unwrap(), None, "ended with OK");
    leaving.counted("acknowledged").await;
    let page = "weft_control_drain_seconds_count 1";
    leaving.plane.until_page("/metrics", page).await;

    // Who comes later is told at once that it drains.
    let mut late = leaving.plane.ads(&leaving.web, "blog/late").await;
    late.expect("listener:").await;
    late.subscribe(Kind::Endpoint, &["post.blog:80"]).await;
    draining(&mut late).await;
    leaving.plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_of_an_older_version_is_none() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let mut slow = plane.ads(&web, "blog/slow").await;
    slow.expect("listener:").await;
    slow.subscribe(Kind::Endpoint, &["post.blog:80"]).await;
    let up = slow.next().await.unwrap();
    let mut ads = plane.ads(&post, "blog/post-v1").await;
    ads.told().await;
    drop(ads.requests);
    plane.until_page("/debug/clients", "leaving").await;
    slow.ack(&up).await;
    let response = draining(&mut slow).await;
    let end = tokio::time::timeout(Duration::from_millis(100), ads.responses.message());
    assert!(end.await.is_err(), "it is known as up");
    slow.ack(&response).await;
    assert_eq!(soon(ads.responses.message()).await.unwrap(), None);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_acknowledges_is_waited_for_until_the_deadline() {
    let directory = directory();
    let deadline = Duration::from_millis(300);
    let (mut leaving, [mut fast, _never]) = Leaving::begin(directory.path(), deadline).await;
    let response = draining(&mut fast).await;
    fast.ack(&response).await;
    assert_eq!(leaving.end().await.unwrap(), None, "ended with OK");
    leaving.counted("timed_out").await;
    // It is held up by nobody: others are told as ever.
    std::fs::write(directory.path().join("config/v2.yaml"), POST_V2).unwrap();
    let response = fast.expect("endpoint: post.blog:80").await;
    assert_eq!(health(&response).len(), 2);
    leaving.plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_rejects_it_is_not_waited_for() {
    let directory = directory();
    let (mut leaving, [mut odd]) = Leaving::begin(directory.path(), PATIENCE * 2).await;
    let response = draining(&mut odd).await;
    odd.answer(&response, Some("I do not like it")).await;
    assert_eq!(leaving.end().await.unwrap(), None, "ended with OK");
    leaving.counted("acknowledged").await;
    leaving.plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_comes_back_is_not_told_that_nobody_calls_it() {
    let directory = directory();
    let (mut leaving, [_never]) = Leaving::begin(directory.path(), PATIENCE * 2).await;
    let mut again = leaving.plane.ads(&leaving.post, "blog/post-v1").await;
    again.told().await;
    let status = leaving.end().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    leaving.counted("overtaken").await;
    leaving.plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_control_plane_is_no_acknowledgement() {
    let directory = directory();
    let (mut leaving, [_never]) = Leaving::begin(directory.path(), PATIENCE * 2).await;
    leaving.plane.stop.send(()).unwrap();
    let status = soon(leaving.responses.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    soon(leaving.plane.task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_waited_for_where_nobody_calls() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let _others = watcher(&plane, &post, "blog/other").await;
    for (svid, node) in [(&web, "blog/web"), (&web, "blog/unknown")] {
        let mut ads = plane.ads(svid, node).await;
        ads.told().await;
        drop(ads.requests);
        assert_eq!(soon(ads.responses.message()).await.unwrap(), None, "{node}");
    }
    plane.stop().await;
}
