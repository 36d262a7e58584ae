//! The hidden subcommand `floor`: a naked hyper proxy, the least that this stack can cost.
//! One thread, no routing, no limits, no metrics. Two of them make the pair that Weft is
//! held against: the client side takes plaintext and speaks TLS 1.3 with certificates on
//! both ends to the server side, which speaks plaintext to the application. HTTP/1.1 stays
//! HTTP/1.1 over a last-in-first-out pool, HTTP/2 stays HTTP/2 over one connection.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::accept::{self, Protocol};
use crate::error::{Context as _, Error, Result};
use crate::pki::{Files, SERVER_NAME};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    /// Takes plaintext, sends TLS.
    Client,
    /// Takes TLS, sends plaintext.
    Server,
}

/// One of the two proxies.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[arg(long)]
    side: Side,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    upstream: SocketAddr,
    /// Directory with root.pem and the side's .pem and .key.
    #[arg(long)]
    certs: PathBuf,
}

/// Serves until killed.
pub(crate) async fn run(options: Options) -> Result<()> {
    let upstream = Rc::new(Upstream::new(&options)?);
    let tls = match options.side {
        Side::Client => None,
        Side::Server => Some(TlsAcceptor::from(Arc::new(server_config(&Files::of(
            &options.certs,
            "server",
        ))?))),
    };
    let listener = accept::bind(options.listen).await?;
    LocalSet::new()
        .run_until(async move {
            loop {
                let stream = accept::next(&listener).await;
                // A broken connection is the load generator's to report.
                spawn_local(serve(stream, tls.clone(), upstream.clone()));
            }
        })
        .await
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, upstream: Rc<Upstream>) {
    let Some(tls) = tls else {
        if let Some(protocol) = accept::protocol(&stream).await {
            serve_http(TokioIo::new(stream), protocol, upstream).await;
        }
        return;
    };
    if let Ok(stream) = tls.accept(stream).await {
        let protocol = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        serve_http(TokioIo::new(stream), protocol, upstream).await;
    }
}

async fn serve_http<S: Read + Write + Unpin + 'static>(
    io: S,
    protocol: Protocol,
    upstream: Rc<Upstream>,
) {
    let service = service_fn(move |request| {
        let upstream = upstream.clone();
        async move { upstream.send(protocol, request).await }
    });
    // A broken connection is the load generator's to report.
    let _ = match protocol {
        Protocol::Http1 => http1::Builder::new().serve_connection(io, service).await,
        Protocol::Http2 => {
            http2::Builder::new(Local)
                .timer(TokioTimer::new())
                .max_concurrent_streams(1000)
                .serve_connection(io, service)
                .await
        }
    };
}

/// Spawns on this thread: hyper's own executor wants futures that could move.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

type Idle = Rc<RefCell<Vec<client1::SendRequest<Incoming>>>>;

/// Where requests go, and the connections to it.
struct Upstream {
    address: SocketAddr,
    /// Connectors that offer HTTP/1.1 and HTTP/2.
    tls: Option<(TlsConnector, TlsConnector)>,
    idle: Idle,
    shared: RefCell<Option<client2::SendRequest<Incoming>>>,
}

impl Upstream {
    fn new(options: &Options) -> Result<Self> {
        let tls = match options.side {
            Side::Server => None,
            Side::Client => {
                let config = client_config(&Files::of(&options.certs, "client"))?;
                let offer = |protocol: &[u8]| {
                    let mut config = config.clone();
                    config.alpn_protocols = vec![protocol.to_vec()];
                    TlsConnector::from(Arc::new(config))
                };
                Some((offer(b"http/1.1"), offer(b"h2")))
            }
        };
        Ok(Self {
            address: options.upstream,
            tls,
            idle: Idle::default(),
            shared: RefCell::default(),
        })
    }

    async fn send(
        &self,
        protocol: Protocol,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>> {
        match protocol {
            Protocol::Http1 => self.send_http1(request).await,
            Protocol::Http2 => self.send_http2(request).await,
        }
    }

    async fn send_http1(&self, mut request: Request<Incoming>) -> Result<Response<Answer>> {
        *request.version_mut() = Version::HTTP_11;
        let mut sender = loop {
            let idle = self.idle.borrow_mut().pop();
            match idle {
                Some(mut sender) => {
                    if sender.ready().await.is_ok() {
                        break sender;
                    }
                }
                None => break self.connect_http1().await?,
            }
        };
        let response = sender.send_request(request).await.context("send")?;
        Ok(response.map(|body| Answer {
            body,
            lease: Some((sender, self.idle.clone())),
        }))
    }

    async fn send_http2(&self, request: Request<Incoming>) -> Result<Response<Answer>> {
        let shared = self.shared.borrow().clone();
        let mut sender = match shared {
            Some(sender) if !sender.is_closed() => sender,
            _ => {
                let sender = self.connect_http2().await?;
                *self.shared.borrow_mut() = Some(sender.clone());
                sender
            }
        };
        sender.ready().await.context("HTTP/2")?;
        let response = sender.send_request(request).await.context("send")?;
        Ok(response.map(|body| Answer { body, lease: None }))
    }

    async fn connect_http1(&self) -> Result<client1::SendRequest<Incoming>> {
        match &self.tls {
            None => handshake_http1(TokioIo::new(self.connect().await?)).await,
            Some((connector, _)) => {
                handshake_http1(TokioIo::new(self.encrypt(connector).await?)).await
            }
        }
    }

    async fn connect_http2(&self) -> Result<client2::SendRequest<Incoming>> {
        match &self.tls {
            None => handshake_http2(TokioIo::new(self.connect().await?)).await,
            Some((_, connector)) => {
                handshake_http2(TokioIo::new(self.encrypt(connector).await?)).await
            }
        }
    }

    async fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.address)
            .await
            .context(self.address)?;
        stream.set_nodelay(true).context(self.address)?;
        Ok(stream)
    }

    async fn encrypt(
        &self,
        connector: &TlsConnector,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(SERVER_NAME).context("the server's name")?;
        connector
            .connect(name, self.connect().await?)
            .await
            .context("TLS")
    }
}

async fn handshake_http1<S: Read + Write + Unpin + 'static>(
    io: S,
) -> Result<client1::SendRequest<Incoming>> {
    let (sender, connection) = client1::handshake(io).await.context("HTTP/1.1")?;
    spawn_local(connection);
    Ok(sender)
}

async fn handshake_http2<S: Read + Write + Unpin + 'static>(
    io: S,
) -> Result<client2::SendRequest<Incoming>> {
    let (sender, connection) = client2::Builder::new(Local)
        .timer(TokioTimer::new())
        .handshake(io)
        .await
        .context("HTTP/2")?;
    spawn_local(connection);
    Ok(sender)
}

/// A response body that gives its connection back when it has been read to its end.
struct Answer {
    body: Incoming,
    lease: Option<(client1::SendRequest<Incoming>, Idle)>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let ended = match &frame {
            None => true,
            Some(Ok(_)) => self.body.is_end_stream(),
            Some(Err(_)) => false,
        };
        if ended && let Some((sender, idle)) = self.lease.take() {
            idle.borrow_mut().push(sender);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // Only with the lease given back: otherwise hyper would never poll for the end.
        self.lease.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// TLS 1.3 with a client certificate; ALPN is the caller's.
pub(crate) fn client_config(files: &Files) -> Result<ClientConfig> {
    let (chain, key) = identity(files)?;
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3")?
        .with_root_certificates(roots(&files.root)?)
        .with_client_auth_cert(chain, key)
        .context(files.chain.display())
}

/// TLS 1.3 that demands a client certificate, for HTTP/2 and HTTP/1.1.
pub(crate) fn server_config(files: &Files) -> Result<ServerConfig> {
    let (chain, key) = identity(files)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(&files.root)?),
        provider.clone(),
    )
    .build()
    .context(files.root.display())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context(files.chain.display())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn identity(files: &Files) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let leaf = CertificateDer::from_pem_file(&files.chain).context(files.chain.display())?;
    let key = PrivateKeyDer::from_pem_file(&files.key).context(files.key.display())?;
    Ok((vec![leaf], key))
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(path).context(path.display())?;
    roots
        .add(root)
        .map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
    Ok(roots)
}
