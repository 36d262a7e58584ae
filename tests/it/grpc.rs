//! gRPC: all four kinds of calls, and errors in the form that its clients understand.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response};

use crate::support::app::{self, Body, Server, full};
use crate::support::http2::{self, Sender, Whole, call, channel, message, messages, whole};
use crate::support::mesh::{Mesh, Workload, pair, route, service};
use crate::support::soon;

/// The methods of `test.Echo`: `Unary` and `Chat` send each message back as it comes,
/// `Count` sends 1 to 3, `Sum` the number of messages, `Refuse` has only a status.
async fn echo() -> Server {
    app::http(|request| async move { answer(request) }).await
}

fn status(code: &str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    trailers.insert("x-trailer", "end".parse().unwrap());
    Frame::trailers(trailers)
}

fn grpc(body: Body) -> Response<Body> {
    Response::builder()
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap()
}

fn answer(request: Request<Incoming>) -> Response<Body> {
    assert_eq!(request.headers()["te"], "trailers");
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    if method == "Refuse" {
        let mut response = grpc(full(""));
        let headers = response.headers_mut();
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-message", "no%20such thing".parse().unwrap());
        return response;
    }
    let (out, body) = channel();
    tokio::spawn(async move {
        let mut incoming = request.into_body();
        let mut count = 0;
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.unwrap().into_data() else {
                continue;
            };
            count += messages(data.clone()).len();
            if matches!(method.as_str(), "Unary" | "Chat") {
                out.send(Frame::data(data)).unwrap();
            }
        }
        if method == "Count" {
            for i in 1..=3 {
                out.send(Frame::data(message(&i.to_string()))).unwrap();
            }
        } else if method == "Sum" {
            out.send(Frame::data(message(&count.to_string()))).unwrap();
        }
        let code = if method == "Fail" { "13" } else { "0" };
        // The client may have gone.
        let _ = out.send(status(code));
    });
    grpc(body)
}

async fn invoke(client: &mut Sender, method: &str, body: Body) -> Whole {
    let uri = format!("http://echo/test.Echo/{method}");
    let response = soon(method, client.send_request(call(&uri, body))).await;
    whole(response.unwrap()).await
}

fn several(texts: &[&str]) -> Body {
    let (out, body) = channel();
    for text in texts {
        out.send(Frame::data(message(text))).unwrap();
    }
    body
}

#[tokio::test]
async fn calls_of_all_kinds() {
    let app = echo().await;
    let pair = pair(Some("grpc"), &app).await;
    let mut client = http2::connect(pair.outbound).await;
    for (method, sent, expected) in [
        ("Unary", &["hello"][..], &["hello"][..]),
        ("Count", &["go"], &["1", "2", "3"]),
        ("Sum", &["a", "b", "c", "d"], &["4"]),
        ("Chat", &["a", "b"], &["a", "b"]),
    ] {
        let reply = invoke(&mut client, method, several(sent)).await;
        assert_eq!(reply.header("content-type"), "application/grpc", "{method}");
        assert_eq!(messages(reply.body), expected, "{method}");
        assert_eq!(reply.trailers["grpc-status"], "0", "{method}");
        assert_eq!(reply.trailers["x-trailer"], "end", "{method}");
    }
    let ok = "grpc_code=\"0\",code=\"200\",outcome=\"success\"}";
    let client = format!("weft_client_requests_total{{service=\"echo\",{ok}");
    pair.client.until_metric(&client, |n| n == 4.0).await;
    let server = format!("weft_server_requests_total{{port=\"8080\",{ok}");
    pair.server.until_metric(&server, |n| n == 4.0).await;
}

#[tokio::test]
async fn messages_of_a_stream_do_not_wait_for_each_other() {
    let app = echo().await;
    let pair = pair(Some("grpc"), &app).await;
    let mut client = http2::connect(pair.outbound).await;
    let (out, body) = channel();
    let request = call("http://echo/test.Echo/Chat", body);
    let response = soon("the head", client.send_request(request)).await;
    let mut incoming = response.unwrap().into_body();
    for text in ["one", "two", "three"] {
        out.send(Frame::data(message(text))).unwrap();
        let frame = soon("an echo", incoming.frame()).await.unwrap().unwrap();
        assert_eq!(messages(frame.into_data().unwrap()), [text]);
    }
    drop(out);
    let end = soon("the status", incoming.frame()).await.unwrap().unwrap();
    assert_eq!(end.into_trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn errors_of_the_server_arrive_as_they_are() {
    let app = echo().await;
    let pair = pair(Some("grpc"), &app).await;
    let mut client = http2::connect(pair.outbound).await;
    let reply = invoke(&mut client, "Refuse", several(&["x"])).await;
    assert_eq!(reply.head.status(), 200);
    assert_eq!(reply.header("grpc-status"), "5");
    assert_eq!(reply.header("grpc-message"), "no%20such thing");
    assert_eq!(reply.header("weft-reason"), "");
    let reply = invoke(&mut client, "Fail", several(&["x"])).await;
    assert_eq!(reply.trailers["grpc-status"], "13");
    // A wrong call is no failure of the service, an internal error is one.
    let counted = |more: &str| format!("weft_client_requests_total{{code=\"200\",{more}}}");
    for more in [
        "grpc_code=\"5\",outcome=\"success\",reason=\"\"",
        "grpc_code=\"13\",outcome=\"failure\",reason=\"app_error\"",
    ] {
        pair.client.until_metric(&counted(more), |n| n == 1.0).await;
    }
}

#[tokio::test]
async fn a_server_that_is_killed_ends_streams_with_unavailable() {
    let app = echo().await;
    let pair = pair(Some("grpc"), &app).await;
    let mut client = http2::connect(pair.outbound).await;
    let (out, body) = channel();
    let request = call("http://echo/test.Echo/Chat", body);
    let response = soon("the head", client.send_request(request)).await;
    let mut incoming = response.unwrap().into_body();
    out.send(Frame::data(message("one"))).unwrap();
    let frame = soon("an echo", incoming.frame()).await.unwrap().unwrap();
    assert_eq!(messages(frame.into_data().unwrap()), ["one"]);
    drop(app);
    let end = soon("the status", incoming.frame()).await.unwrap().unwrap();
    let trailers = end.into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "14");
    let message = trailers["grpc-message"].to_str().unwrap();
    assert!(message.contains("peer_"), "{message}");
    let failed = "weft_client_requests_total{grpc_code=\"14\",outcome=\"failure\"}";
    pair.client.until_metric(failed, |n| n == 1.0).await;

    // What comes after it cannot be delivered, in the same form.
    let reply = invoke(&mut client, "Unary", several(&["x"])).await;
    assert_eq!(reply.head.status(), 200);
    assert_eq!(reply.header("grpc-status"), "14");
}

#[tokio::test]
async fn a_sidecar_that_is_killed_ends_streams_with_unavailable() {
    let app = echo().await;
    let pair = pair(Some("grpc"), &app).await;
    let mut client = http2::connect(pair.outbound).await;
    let (_out, body) = channel();
    let request = call("http://echo/test.Echo/Chat", body);
    let response = soon("the head", client.send_request(request)).await;
    let mut incoming = response.unwrap().into_body();
    drop(pair.server);
    let end = soon("the status", incoming.frame()).await.unwrap().unwrap();
    assert_eq!(end.into_trailers().unwrap()["grpc-status"], "14");
}

#[tokio::test]
async fn routes_of_methods() {
    let (stable, beta) = (app::echo("stable").await, app::echo("beta").await);
    let stable_workload = Workload::replica("echo", "stable").serves(&stable);
    let beta_workload = Workload::replica("echo", "beta").serves(&beta);
    let client = Workload::new("client");
    let rules = "  - name: beta
    matches: [{method: {service: test.Echo, method: Beta}}]
    backendRefs: [{name: beta, port: 80}]
  - name: stable
    matches: [{method: {service: test.Echo}, headers: [{name: x-track, value: stable}]}]
    backendRefs: [{name: stable, port: 80}]";
    let documents = [
        service("echo", "app: echo", Some("grpc")),
        service("stable", "app: echo, version: stable", Some("grpc")),
        service("beta", "app: echo, version: beta", Some("grpc")),
        stable_workload.yaml(),
        beta_workload.yaml(),
        client.yaml(),
        route("GRPCRoute", "echo", rules),
    ];
    let mesh = Mesh::strict(&documents.concat()).await;
    let _stable = mesh.sidecar(&stable_workload).await;
    let _beta = mesh.sidecar(&beta_workload).await;
    let sidecar = mesh.sidecar(&client).await;
    let mut sender = http2::connect(client.outbound).await;
    for (path, track, expected) in [
        ("test.Echo/Beta", "", "beta"),
        ("test.Echo/Unary", "stable", "stable"),
        ("test.Echo/Beta", "stable", "beta"),
        ("test.Echo/Unary", "", "12 no_route"),
        ("test.Other/Beta", "", "12 no_route"),
    ] {
        let mut request = call(&format!("http://echo/{path}"), full(message("x")));
        if !track.is_empty() {
            let headers = request.headers_mut();
            headers.insert("x-track", track.parse().unwrap());
        }
        let reply = soon("an answer", sender.send_request(request)).await;
        let reply = whole(reply.unwrap()).await;
        let code = reply.header("grpc-status");
        let seen = match reply.header("x-app") {
            "" => format!("{code} {}", reply.header("weft-reason")),
            app => app.to_owned(),
        };
        assert_eq!(seen, expected, "{path} {track}");
    }
    let routed = "weft_client_requests_total{route=\"test/echo#beta\",backend=\"beta\"}";
    sidecar.until_metric(routed, |n| n == 2.0).await;
    let unrouted = "weft_client_requests_total{service=\"echo\",service_namespace=\"test\",\
                    grpc_code=\"12\",reason=\"no_route\"}";
    sidecar.until_metric(unrouted, |n| n == 2.0).await;
}

#[tokio::test]
async fn a_deadline_of_the_client_cancels_the_call() {
    let app = echo().await;
    let pair = pair(Some("grpc"), &app).await;
    let mut client = http2::connect(pair.outbound).await;
    let (out, body) = channel();
    let request = call("http://echo/test.Echo/Chat", body);
    let response = soon("the head", client.send_request(request))
        .await
        .unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(50), response.collect()).await;
    assert!(waited.is_err(), "nobody has sent anything");
    drop(out);
    // The stream was reset: both sidecars have let go of it.
    for (sidecar, series) in [
        (&pair.client, "weft_client_requests_in_flight"),
        (&pair.server, "weft_server_requests_in_flight"),
    ] {
        sidecar.until_metric(series, |n| n == 0.0).await;
    }
}
