//! The demo's applications, each a process of its own: `web` in front of `account`, `post` and
//! `storage`, and a small message queue. They know nothing of the mesh but their sidecar's
//! ports. `post-v2` carries the planted fault.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::{bot, queue};

/// What an application prints on a line of its own once it serves.
pub(crate) const READY: &str = "ready";

/// The accounts and posts that exist from the start are numbered from 1 to this.
pub(crate) const SEEDED: u32 = 100;

/// The numbers of the posts that post-v2 can serve are multiples of this.
pub(crate) const V2_SERVES_EVERY: u32 = 7;

/// What an application needs to know.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// The workload to be.
    pub name: String,
    /// Where to listen.
    #[arg(long)]
    pub listen: SocketAddr,
    /// The sidecar's outbound port.
    #[arg(long)]
    pub outbound: SocketAddr,
    /// The sidecar's local port of the queue.
    #[arg(long)]
    pub queue: SocketAddr,
}

/// Runs one application until the process is stopped.
///
/// # Errors
///
/// The port is taken, or there is no such application.
pub(crate) async fn run(options: &Options) -> io::Result<()> {
    let app = match options.name.as_str() {
        "web" => App::Web(Web::new(options.outbound)),
        "account" => App::Account(Accounts::seeded()),
        "post-v1" => App::Post(Posts::new(Version::V1, options.outbound)),
        "post-v2" => App::Post(Posts::new(Version::V2, options.outbound)),
        "storage" => App::Storage(Storage {
            files: Mutex::default(),
            queue: options.queue,
        }),
        "queue" => return queue::serve(TcpListener::bind(options.listen).await?).await,
        "bot" => {
            println!("{READY}");
            return bot::run(options.outbound).await;
        }
        other => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no application `{other}`"),
            ));
        }
    };
    serve(TcpListener::bind(options.listen).await?, Arc::new(app)).await
}

enum App {
    Web(Web),
    Account(Accounts),
    Post(Posts),
    Storage(Storage),
}

type Reply = Response<Full<Bytes>>;

/// A request as the applications see it.
struct Call {
    method: Method,
    /// The path without the leading slash, split at the first slash: collection and item.
    collection: String,
    item: String,
    trace: HeaderMap,
    body: Bytes,
}

impl App {
    async fn reply(&self, call: Call) -> Reply {
        match self {
            Self::Web(web) => web.reply(call).await,
            Self::Account(accounts) => accounts.reply(&call),
            Self::Post(posts) => posts.reply(call).await,
            Self::Storage(storage) => storage.reply(call).await,
        }
    }
}

async fn serve(listener: TcpListener, app: Arc<App>) -> io::Result<()> {
    println!("{READY}");
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let app = Arc::clone(&app);
                async move { Ok::<_, Infallible>(answer(&app, request).await) }
            });
            // A connection that breaks has been noticed by the caller's sidecar.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(app: &App, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
        return problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is longer than 64 KiB",
        );
    };
    let path = head.uri.path().trim_start_matches('/');
    let (collection, item) = path.split_once('/').unwrap_or((path, ""));
    let call = Call {
        collection: collection.to_owned(),
        item: item.to_owned(),
        trace: trace_headers(&head.headers),
        method: head.method,
        body: body.to_bytes(),
    };
    app.reply(call).await
}

/// What an application hands on so that one request can be followed through the mesh.
fn trace_headers(headers: &HeaderMap) -> HeaderMap {
    let names = ["x-request-id", "traceparent", "tracestate"];
    let found = names.into_iter().filter_map(|name| {
        let value = headers.get(name)?.clone();
        Some((header::HeaderName::from_static(name), value))
    });
    found.collect()
}

fn reply(status: StatusCode, document: &Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(document.to_string())));
    *reply.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    reply.headers_mut().insert(header::CONTENT_TYPE, json);
    reply
}

fn problem(status: StatusCode, message: &str) -> Reply {
    reply(status, &json!({ "error": message }))
}

fn not_found() -> Reply {
    problem(StatusCode::NOT_FOUND, "there is no such thing here")
}

// ------------------------------------------------------------------------------------ peers

/// A service as its callers reach it: by name, through the sidecar's outbound port. Keeps idle
/// connections.
#[derive(Debug)]
pub(crate) struct Peer {
    outbound: SocketAddr,
    host: &'static str,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Peer {
    /// A peer by its host name in the mesh.
    pub(crate) const fn new(host: &'static str, outbound: SocketAddr) -> Self {
        Self {
            outbound,
            host,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Sends one request and reads the whole answer, within 5 seconds. Dropping the future
    /// closes the connection.
    ///
    /// # Errors
    ///
    /// A text; answers with an error status are no errors.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        trace: HeaderMap,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::new(Full::new(body));
        *request.uri_mut() = path.parse().map_err(|_| format!("{path} is no path"))?;
        *request.method_mut() = method;
        *request.headers_mut() = trace;
        let host = header::HeaderValue::from_static(self.host);
        request.headers_mut().insert(header::HOST, host);
        match tokio::time::timeout(CALL_TIMEOUT, self.send(request)).await {
            Ok(answer) => answer.map_err(|error| format!("{}: {error}", self.host)),
            Err(_) => Err(format!("{}: no answer within 5 s", self.host)),
        }
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let mut sender = self.connection().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES)
            .collect()
            .await?
            .to_bytes();
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
        Ok((status, body))
    }

    /// An idle connection that is still open, or a new one.
    async fn connection(
        &self,
    ) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        loop {
            let Some(mut sender) = self.idle.lock().pop() else {
                break;
            };
            if !sender.is_closed() && sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(self.outbound).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped or the sidecar closes; the caller sees the error.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }
}

// -------------------------------------------------------------------------------------- web

/// The front: everything it knows comes from the services behind it.
struct Web {
    account: Peer,
    post: Peer,
    storage: Peer,
}

impl Web {
    const fn new(outbound: SocketAddr) -> Self {
        Self {
            account: Peer::new("account.blog", outbound),
            post: Peer::new("post.blog", outbound),
            storage: Peer::new("storage.blog", outbound),
        }
    }

    async fn reply(&self, call: Call) -> Reply {
        let Call {
            method,
            collection,
            item,
            trace,
            body,
        } = call;
        let path = format!("/{collection}/{item}");
        let read_only = method == Method::GET;
        let answer = match collection.as_str() {
            "accounts" => self.account.call(method, &path, trace, body).await,
            "posts" if read_only => return self.post_page(&path, trace).await,
            "attachments" => self.storage.call(method, &path, trace, body).await,
            "" => {
                return reply(
                    StatusCode::OK,
                    &json!({ "pages": ["accounts", "posts", "attachments"] }),
                );
            }
            _ => return not_found(),
        };
        match answer {
            Ok((status, body)) => relay(status, body),
            Err(error) => problem(StatusCode::BAD_GATEWAY, &error),
        }
    }

    /// A page is there even when its post is not: readers of a blog forgive a gap, not a 500.
    async fn post_page(&self, path: &str, trace: HeaderMap) -> Reply {
        let answer = self.post.call(Method::GET, path, trace, Bytes::new()).await;
        let post = match answer {
            Ok((status, body)) if !status.is_server_error() => return relay(status, body),
            Ok((status, _)) => format!("post answered {}", status.as_u16()),
            Err(error) => error,
        };
        reply(
            StatusCode::OK,
            &json!({ "post": null, "missing_because": post }),
        )
    }
}

fn relay(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply
}

// ---------------------------------------------------------------------------------- account

/// A store of JSON documents by id.
struct Accounts {
    by_id: Mutex<BTreeMap<String, Value>>,
}

impl Accounts {
    fn seeded() -> Self {
        let seeds =
            (1..=SEEDED).map(|id| (id.to_string(), json!({ "name": format!("Author {id}") })));
        Self {
            by_id: Mutex::new(seeds.collect()),
        }
    }

    fn reply(&self, call: &Call) -> Reply {
        if call.collection != "accounts" || call.item.is_empty() {
            return not_found();
        }
        let id = call.item.as_str();
        match call.method {
            Method::GET => match self.by_id.lock().get(id) {
                Some(account) => reply(StatusCode::OK, &json!({ "id": id, "account": account })),
                None => not_found(),
            },
            Method::POST | Method::PUT => self.write(call, id),
            Method::DELETE => match self.by_id.lock().remove(id) {
                Some(_) => relay(StatusCode::NO_CONTENT, Bytes::new()),
                None => not_found(),
            },
            _ => problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "use GET, POST, PUT or DELETE",
            ),
        }
    }

    fn write(&self, call: &Call, id: &str) -> Reply {
        let Ok(account) = serde_json::from_slice::<Value>(&call.body) else {
            return problem(StatusCode::BAD_REQUEST, "the body is no JSON");
        };
        let mut by_id = self.by_id.lock();
        let exists = by_id.contains_key(id);
        if exists && call.method == Method::POST {
            return problem(StatusCode::CONFLICT, "this id is taken; change it with PUT");
        }
        if !exists && by_id.len() >= MAX_ACCOUNTS {
            return problem(
                StatusCode::INSUFFICIENT_STORAGE,
                "there are too many accounts",
            );
        }
        by_id.insert(id.to_owned(), account.clone());
        let status = if exists {
            StatusCode::OK
        } else {
            StatusCode::CREATED
        };
        reply(status, &json!({ "id": id, "account": account }))
    }
}

// ------------------------------------------------------------------------------------- post

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    /// The planted fault: it chokes on most posts.
    V2,
}

struct Posts {
    version: Version,
    account: Peer,
}

impl Posts {
    const fn new(version: Version, outbound: SocketAddr) -> Self {
        Self {
            version,
            account: Peer::new("account.blog", outbound),
        }
    }

    async fn reply(&self, call: Call) -> Reply {
        let Some(id) = call
            .item
            .parse::<u32>()
            .ok()
            .filter(|_| call.collection == "posts")
        else {
            return not_found();
        };
        if self.version == Version::V2 && !id.is_multiple_of(V2_SERVES_EVERY) {
            return problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "post v2 cannot read this post: the fault that weft demo plants",
            );
        }
        let path = format!("/accounts/{}", id.min(SEEDED));
        match self
            .account
            .call(Method::GET, &path, call.trace, Bytes::new())
            .await
        {
            Ok((status, author)) if status.is_success() => {
                let author: Value = serde_json::from_slice(&author).unwrap_or_default();
                let version = if self.version == Version::V1 {
                    "v1"
                } else {
                    "v2"
                };
                reply(
                    StatusCode::OK,
                    &json!({ "id": id, "version": version, "author": author }),
                )
            }
            Ok((status, _)) => problem(
                StatusCode::BAD_GATEWAY,
                &format!("account answered {}", status.as_u16()),
            ),
            Err(error) => problem(StatusCode::BAD_GATEWAY, &error),
        }
    }
}

// ---------------------------------------------------------------------------------- storage

/// The latest attachments; tells the queue about each.
struct Storage {
    files: Mutex<VecDeque<(String, Bytes)>>,
    queue: SocketAddr,
}

impl Storage {
    async fn reply(&self, call: Call) -> Reply {
        if call.collection != "attachments" || call.item.is_empty() {
            return not_found();
        }
        match call.method {
            Method::GET => {
                let files = self.files.lock();
                let found = files.iter().find(|(name, _)| *name == call.item);
                found.map_or_else(not_found, |(_, file)| relay(StatusCode::OK, file.clone()))
            }
            Method::PUT => self.store(call).await,
            _ => problem(StatusCode::METHOD_NOT_ALLOWED, "use GET or PUT"),
        }
    }

    async fn store(&self, call: Call) -> Reply {
        let news = format!("stored {} ({} bytes)", call.item, call.body.len());
        {
            let mut files = self.files.lock();
            files.retain(|(name, _)| *name != call.item);
            if files.len() == MAX_FILES {
                files.pop_front();
            }
            files.push_back((call.item.clone(), call.body));
        }
        let told = tokio::time::timeout(
            CALL_TIMEOUT,
            queue::publish(self.queue, "attachments", &news),
        );
        match told.await {
            Ok(Ok(())) => reply(StatusCode::CREATED, &json!({ "name": call.item })),
            Ok(Err(error)) => problem(StatusCode::BAD_GATEWAY, &format!("queue: {error}")),
            Err(_) => problem(StatusCode::GATEWAY_TIMEOUT, "queue: no answer within 5 s"),
        }
    }
}

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest body of a request, an answer or a message of the queue.
pub(super) const MAX_BODY_BYTES: usize = 64 << 10;
const MAX_IDLE: usize = 32;
const MAX_ACCOUNTS: usize = 10_000;
const MAX_FILES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::mesh::loopback;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

    /// Starts an application in this process and returns a peer that talks to it directly.
    async fn start(app: impl FnOnce(SocketAddr) -> App) -> Peer {
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(app(address))));
        Peer::new("app.test", address)
    }

    async fn call(peer: &Peer, method: Method, path: &str, body: &str) -> (u16, String) {
        let body = Bytes::from(body.to_owned());
        let (status, body) = peer
            .call(method, path, HeaderMap::new(), body)
            .await
            .unwrap();
        (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn account_is_a_store() {
        let peer = start(|_| App::Account(Accounts::seeded())).await;
        for (method, path, body, status, part) in [
            (Method::GET, "/accounts/100", "", 200, "Author 100"),
            (Method::GET, "/accounts/101", "", 404, "no such"),
            (
                Method::POST,
                "/accounts/101",
                "{\"name\":\"x\"}",
                201,
                "\"x\"",
            ),
            (Method::POST, "/accounts/101", "{}", 409, "taken"),
            (
                Method::PUT,
                "/accounts/101",
                "{\"name\":\"y\"}",
                200,
                "\"y\"",
            ),
            (Method::PUT, "/accounts/101", "no", 400, "no JSON"),
            (Method::GET, "/accounts/101", "", 200, "\"y\""),
            (Method::DELETE, "/accounts/101", "", 204, ""),
            (Method::DELETE, "/accounts/101", "", 404, ""),
            (Method::PATCH, "/accounts/1", "", 405, "use GET"),
            (Method::GET, "/", "", 404, ""),
            (Method::GET, "/accounts", "", 404, ""),
        ] {
            let (found, text) = call(&peer, method.clone(), path, body).await;
            assert_eq!(found, status, "{method} {path}");
            assert!(text.contains(part), "{method} {path}: {text}");
        }
        let long = "x".repeat(MAX_BODY_BYTES + 1);
        assert_eq!(call(&peer, Method::PUT, "/accounts/1", &long).await.0, 413);
        assert_eq!(peer.idle.lock().len(), 1, "one connection has been enough");
    }

    #[tokio::test]
    async fn only_v2_fails_and_web_hides_it() {
        let account = start(|_| App::Account(Accounts::seeded())).await.outbound;
        let v1 = start(|_| App::Post(Posts::new(Version::V1, account))).await;
        let v2 = start(|_| App::Post(Posts::new(Version::V2, account))).await;
        let mut served = 0;
        for id in 1..=SEEDED {
            let path = format!("/posts/{id}");
            let (status, text) = call(&v1, Method::GET, &path, "").await;
            assert_eq!(status, 200);
            assert!(text.contains(&format!("Author {id}\"")), "{text}");
            served += u32::from(call(&v2, Method::GET, &path, "").await.0 == 200);
        }
        assert_eq!(served, SEEDED / V2_SERVES_EVERY);

        let web = start(|_| App::Web(Web::new(v2.outbound))).await;
        assert_eq!(
            call(&web, Method::GET, "/posts/1", "").await,
            (
                200,
                r#"{"missing_because":"post answered 500","post":null}"#.to_owned()
            )
        );
        assert_eq!(call(&web, Method::GET, "/posts/7", "").await.0, 200);
        assert_eq!(call(&web, Method::GET, "/nothing/7", "").await.0, 404);
    }

    #[tokio::test]
    async fn storage_tells_the_queue() {
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        let queue = listener.local_addr().unwrap();
        tokio::spawn(queue::serve(listener));
        let peer = start(|_| {
            App::Storage(Storage {
                files: Mutex::default(),
                queue,
            })
        })
        .await;
        assert_eq!(
            call(&peer, Method::PUT, "/attachments/a.txt", "hello")
                .await
                .0,
            201
        );
        assert_eq!(
            call(&peer, Method::GET, "/attachments/a.txt", "").await,
            (200, "hello".to_owned())
        );
        assert_eq!(
            call(&peer, Method::GET, "/attachments/b.txt", "").await.0,
            404
        );

        let mut stream = BufReader::new(TcpStream::connect(queue).await.unwrap());
        let mut seen = queue::read_line(&mut stream).await.unwrap().unwrap();
        stream
            .write_all(b"GET attachments\r\nGET attachments\r\nFLY\r\nQUIT\r\n")
            .await
            .unwrap();
        stream.read_to_string(&mut seen).await.unwrap();
        assert_eq!(
            seen,
            "HELLO weft-queueMSG 22\r\nstored a.txt (5 bytes)NONE\r\n\
             ERR expected PUB <topic> <length>, GET <topic> or QUIT\r\nBYE\r\n"
        );
    }

    #[tokio::test]
    async fn storage_without_its_queue_says_so() {
        let nobody = TcpListener::bind(loopback(0))
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let peer = start(|_| {
            App::Storage(Storage {
                files: Mutex::default(),
                queue: nobody,
            })
        })
        .await;
        let (status, text) = call(&peer, Method::PUT, "/attachments/a.txt", "hello").await;
        assert_eq!(status, 502);
        assert!(text.contains("queue: "), "{text}");
    }
}
