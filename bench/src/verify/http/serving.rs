//! Real file servers for paths to be tried on: nginx if it is there, and Python's.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::error::{Context as _, Result};
use crate::process::{Process, Spec, free_address, which};

/// What is in the file that nobody may get.
pub(super) const SECRET: &str = "swordfish-9d02";
/// Where it is.
pub(super) const SECRET_PATH: &str = "/private/secret";

#[derive(Debug)]
pub(super) struct FileServer {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    _process: Process,
}

/// All that are there, each serving the same directory.
pub(super) async fn start(dir: &Path) -> Result<Vec<FileServer>> {
    let root = dir.join("www");
    for (path, text) in [
        ("private/secret", SECRET),
        ("private/other", "other"),
        ("public/index.html", "public"),
        ("a/b/c", "letters"),
        ("index.html", "index"),
    ] {
        let path = root.join(path);
        let parent = path.parent().context("a file in a directory")?;
        fs::create_dir_all(parent).context(parent.display())?;
        fs::write(&path, text).context(path.display())?;
    }
    let mut servers = Vec::new();
    if let Some(nginx) = which("nginx") {
        servers.push(start_nginx(dir, &root, &nginx).await?);
    }
    if let Some(python) = which("python3") {
        let address = free_address()?;
        let spec = Spec::new("http.server", python)
            .pair("-c", PYTHON)
            .arg(address.port().to_string())
            .arg(&root);
        let mut process = spec.start(dir)?;
        process.listens(address).await?;
        servers.push(FileServer {
            name: "python3 http.server",
            address,
            _process: process,
        });
    }
    Ok(servers)
}

/// Threads, kept connections, no log.
const PYTHON: &str = "\
import sys, functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
class Quiet(SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
handler = functools.partial(Quiet, directory=sys.argv[2])
ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), handler).serve_forever()
";

async fn start_nginx(dir: &Path, root: &Path, nginx: &Path) -> Result<FileServer> {
    let address = free_address()?;
    let home = dir.join("nginx");
    fs::create_dir_all(&home).context(home.display())?;
    let at = home.display();
    // In one process, which is not to change its user: the directory is ours alone.
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log crit;\n\
         events {{}}\n\
         http {{\n  access_log off; default_type text/plain; keepalive_requests 1000000;\n  \
         client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n  \
         uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n  \
         server {{ listen {address}; root {}; merge_slashes on; }}\n}}\n",
        root.display()
    );
    let configuration = home.join("nginx.conf");
    fs::write(&configuration, text).context(configuration.display())?;
    let spec = Spec::new("nginx", nginx)
        .pair("-p", &home)
        .pair("-c", &configuration);
    let mut process = spec.start(dir)?;
    process.listens(address).await?;
    Ok(FileServer {
        name: "nginx",
        address,
        _process: process,
    })
}
