//! What applications speak, by name and by address, over IPv4 and IPv6, passes two captured
//! pods unharmed, and a router between them reads none of it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::resolver::Resolver;
use super::sniffer::Sniffer;
use super::tools::{LIMIT, curl, fetched};
use crate::error::{Context as _, Result};
use crate::netns::{Family, Host, User};
use crate::pods::{
    self, Cluster, Mode, Pod, listens, mesh_config, service, until_answered, workload,
};
use crate::process::{Process, tail, which};
use crate::verify::protocols::{PYTHON_CLIENT, python_with_grpc, server_first, websocket};
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::write_config;

/// Sent through every protocol; must not be seen on the wire.
const SECRET: &str = "swordfish-77ae";
/// Sent past the mesh; must be seen, or the sniffer sees nothing.
const OPEN: &str = "postcard-d2f0";
/// What is not for the sidecar.
const EXCLUDED: u16 = 9999;

pub(super) async fn run(setting: &Setting, mode: Mode, cases: &mut Cases) -> Result<()> {
    let dir = setting.dir();
    write_config(dir, "mesh.yaml", &documents(mode))?;
    let cluster = Cluster::start(&setting.programs, dir).await?;
    let _resolver = Resolver::start(&cluster.outside, &[])?;
    let sniffer = Sniffer::start(&cluster.network.router, &[SECRET, OPEN])?;
    let exclude = ["--exclude-inbound-ports", "9999"];
    let shop = cluster.pod("shop", 2, mode, &exclude).await?;
    let data = cluster.pod("data", 3, mode, &[]).await?;
    let client = cluster.pod("client", 1, mode, &[]).await?;
    let _apps = [
        shop.backend(8080, None).await?,
        shop.backend(EXCLUDED, None).await?,
        data.backend(8080, Some(9000)).await?,
        data.backend(8081, Some(9001)).await?,
        pods::backend(&cluster.outside, "outside", 8080, None, dir).await?,
    ];
    let _sidecars = [
        shop.start_ready().await?,
        data.start_ready().await?,
        client.start_ready().await?,
    ];
    for pod in [&client, &shop, &data] {
        cluster.reach(&pod.host).await;
    }
    until_answered(&client.host, address(Family::V4, 10, 80), |reply| {
        reply.status == 200
    })
    .await?;

    let python = python_with_grpc(dir).await;
    for family in Family::BOTH {
        let name = |case: &str| format!("{case}-{}", family.name());
        let echo = address(family, 10, 80);
        let check = rest(&client, dir, family);
        cases
            .check(
                &name("rest"),
                "404 201 200 200 200 204 404, by the name of the service",
                check,
            )
            .await;
        let check = async {
            let got = curl(&client, dir, &[&format!("http://{echo}/")]).await?;
            Ok(fetched(&got, 200, got.body.len() == 100))
        };
        cases
            .check(
                &name("cluster-ip"),
                "200 by the address of the service",
                check,
            )
            .await;
        let check = async {
            let got = curl(
                &client,
                dir,
                &[&format!("http://{}/", shop.host.at(family, 8080))],
            )
            .await?;
            Ok(fetched(&got, 200, got.body.len() == 100))
        };
        cases
            .check(&name("pod-address"), "200 by the address of a pod", check)
            .await;
        let check = async {
            let got = curl(&client, dir, &[flag(family), "http://shop-pods:8080/"]).await?;
            Ok(fetched(
                &got,
                200,
                got.address == shop.host.ip(family).to_string(),
            ))
        };
        cases
            .check(
                &name("headless"),
                "a headless name has the addresses of its pods",
                check,
            )
            .await;
        let check = async {
            let url = "http://echo/";
            let got = curl(
                &client,
                dir,
                &["--http2-prior-knowledge", flag(family), url],
            )
            .await?;
            Ok(fetched(&got, 200, got.version == "2"))
        };
        cases
            .check(
                &name("http2"),
                "200 over HTTP/2, from its first byte",
                check,
            )
            .await;
        let expected = "a unary call and 3 messages of a stream come back";
        match &python {
            Some(python) => {
                let check = grpc(&client, dir, family, python);
                cases.check(&name("grpc"), expected, check).await;
            }
            None => cases.skip(
                &name("grpc"),
                expected,
                "no python3 with grpcio: pip install grpcio",
            ),
        }
        let check = async { websocket(client.host.connect(echo).await?, "echo", SECRET).await };
        cases
            .check(&name("websocket"), "a text frame comes back", check)
            .await;
        for (case, port) in [("tcp-declared", 9000), ("tcp-undeclared", 9001)] {
            let check = async {
                let stream = client.host.connect(address(family, 20, port)).await?;
                server_first(stream, SECRET).await
            };
            cases
                .check(&name(case), "the server's greeting, then an echo", check)
                .await;
        }
        let expected = match mode {
            Mode::Tproxy => format!("the application sees {}", client.host.ip(family)),
            Mode::Redirect | Mode::Route => {
                "the application sees a loopback address of its own".to_owned()
            }
        };
        cases
            .check(
                &name("source"),
                expected,
                source(&client, &shop, mode, family),
            )
            .await;
        let check = async {
            let got = curl(&shop, dir, &[flag(family), "http://echo/"]).await?;
            Ok(fetched(&got, 200, true))
        };
        cases
            .check(
                &name("self"),
                "a pod is answered by the service whose only pod it is",
                check,
            )
            .await;
        cases
            .check(
                &name("loop"),
                "calls to the ports of the sidecar end within 2 s",
                loops(&client, family),
            )
            .await;
        let check = async {
            let inside = get(&client.host, shop.host.at(family, EXCLUDED)).await?;
            let outside = get(&cluster.outside, shop.host.at(family, EXCLUDED)).await?;
            Ok(seen(
                inside.starts_with("200") && outside.starts_with("200"),
                format!("from a pod: {inside}; from outside: {outside}"),
            ))
        };
        cases
            .check(
                &name("excluded-port"),
                "200 to a pod and to a stranger, in plaintext",
                check,
            )
            .await;
        let check = async {
            let answer = get(&cluster.outside, shop.host.at(family, 8080)).await?;
            Ok(seen(answer.starts_with("403 identity_required"), answer))
        };
        cases
            .check(
                &name("stranger"),
                "403 identity_required to a host without sidecar",
                check,
            )
            .await;
    }
    foreign_servers(setting, &shop, &data, &client, cases).await?;
    let expected = "no packet between the pods has the text that all protocols carried; one past the mesh has its own";
    let check = wire(&cluster, &client, &shop, &sniffer);
    cases.check("wire", expected, check).await;
    Ok(())
}

/// Servers and clients that were not written for this.
async fn foreign_servers(
    setting: &Setting,
    shop: &Pod,
    data: &Pod,
    client: &Pod,
    cases: &mut Cases,
) -> Result<()> {
    let dir = setting.dir();
    let expected = "SET and GET by name and by both addresses";
    match (which("redis-server"), which("redis-cli")) {
        (Some(server), Some(cli)) => {
            let spec = data.app("redis", server).pair("--port", "6379");
            let spec = spec
                .pair("--bind", "*")
                .arg("-::*")
                .pair("--save", "")
                .pair("--protected-mode", "no");
            let mut server = spec.start(dir)?;
            listens(&data.host, &mut server, 6379).await?;
            cases
                .check("redis", expected, redis(client, dir, &cli))
                .await;
        }
        _ => cases.skip(
            "redis",
            expected,
            "no redis-server and redis-cli: apt-get install redis",
        ),
    }
    let expected = "a query by the name of a service without an address of its own";
    match (postgres(), which("psql")) {
        (Some(bin), Some(psql)) => {
            let check = async {
                let _server = start_postgres(data, dir, &bin).await?;
                query(client, dir, &psql).await
            };
            cases.check("postgresql", expected, check).await;
        }
        _ => cases.skip(
            "postgresql",
            expected,
            "no postgresql: apt-get install postgresql",
        ),
    }
    let expected = "200 of nginx by name, on a port whose protocol nobody declared";
    match which("nginx") {
        Some(nginx) => {
            let check = async {
                let _server = start_nginx(shop, dir, &nginx).await?;
                let got = curl(client, dir, &["--include", "http://www/"]).await?;
                let nginx = got.body.to_ascii_lowercase().contains("server: nginx");
                Ok(fetched(&got, 200, nginx && got.body.contains(SECRET)))
            };
            cases.check("nginx", expected, check).await;
        }
        None => cases.skip("nginx", expected, "no nginx: apt-get install nginx"),
    }
    let expected =
        "200 of python3 -m http.server by name, on a port that no document of the pod names";
    match which("python3") {
        Some(python) => {
            let check = async {
                let pages = dir.join("pages");
                fs::create_dir_all(&pages).context(pages.display())?;
                fs::write(pages.join("page"), SECRET).context(pages.display())?;
                let spec = shop.host.spec("http.server", python, User::Root);
                let spec = spec
                    .pair("-m", "http.server")
                    .pair("--directory", &pages)
                    .arg("8001");
                let mut server = spec.start(dir)?;
                listens(&shop.host, &mut server, 8001).await?;
                let got = curl(client, dir, &["http://pages.bench.svc.cluster.local/page"]).await?;
                Ok(fetched(&got, 200, got.body == SECRET))
            };
            cases.check("python-server", expected, check).await;
        }
        None => cases.skip("python-server", expected, "no python3"),
    }
    Ok(())
}

fn documents(mode: Mode) -> String {
    let echo = [
        ("http", 80, 8080, Some("http")),
        ("grpc", 50051, 8080, Some("grpc")),
    ];
    let queue = [
        ("declared", 9000, 9000, Some("tcp")),
        ("undeclared", 9001, 9001, None),
    ];
    [
        mesh_config("allow"),
        workload("client", "client", 1, mode, &[], &[]),
        workload("shop", "shop", 2, mode, &[EXCLUDED], &[8080, 8000]),
        workload("data", "data", 3, mode, &[], &[9000, 9001, 6379, 5432]),
        service("echo", "shop", "10.96.0.10 fd00:96::a", &echo),
        service(
            "shop-pods",
            "shop",
            "None",
            &[("http", 8080, 8080, Some("http"))],
        ),
        service("queue", "data", "10.96.0.20 fd00:96::14", &queue),
        service(
            "redis",
            "data",
            "10.96.0.30 fd00:96::1e",
            &[("redis", 6379, 6379, None)],
        ),
        service("db", "data", "", &[("postgresql", 5432, 5432, None)]),
        service("www", "shop", "", &[("http", 80, 8000, None)]),
        service("pages", "shop", "10.96.0.40", &[("http", 80, 8001, None)]),
    ]
    .concat()
}

/// The address of the service of that number.
fn address(family: Family, number: u8, port: u16) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => [10, 96, 0, number].into(),
        Family::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)].into(),
    };
    SocketAddr::new(ip, port)
}

const fn flag(family: Family) -> &'static str {
    match family {
        Family::V4 => "--ipv4",
        Family::V6 => "--ipv6",
    }
}

/// Creates, reads, replaces and deletes an account.
async fn rest(client: &Pod, dir: &Path, family: Family) -> Result<Finding> {
    let calls = [
        ("GET", ""),
        ("POST", "{}"),
        ("GET", ""),
        ("PUT", SECRET),
        ("GET", ""),
        ("DELETE", ""),
        ("GET", ""),
    ];
    let (mut codes, mut read) = (Vec::new(), String::new());
    for (i, (method, body)) in calls.into_iter().enumerate() {
        let mut args = vec!["--request", method, flag(family), "http://echo/accounts/7"];
        if !body.is_empty() {
            args.extend(["--data-raw", body]);
        }
        let got = curl(client, dir, &args).await?;
        if i == 4 {
            read.clone_from(&got.body);
        }
        if got.status == 0 {
            return Ok(seen(false, got.line()));
        }
        codes.push(got.status);
    }
    let ok = codes == [404, 201, 200, 200, 200, 204, 404] && read == SECRET;
    Ok(seen(ok, format!("{codes:?}, read back {read:?}")))
}

/// Python's client in the pod.
async fn grpc(client: &Pod, dir: &Path, family: Family, python: &Path) -> Result<Finding> {
    let script = dir.join("client.py");
    fs::write(&script, PYTHON_CLIENT).context(script.display())?;
    let target = match family {
        Family::V4 => "dns:///echo.bench:50051".to_owned(),
        Family::V6 => format!("ipv6:{}", address(family, 10, 50051)),
    };
    // As root: grpcio may be where nobody else may read.
    let spec = client
        .host
        .spec("grpcio", python, User::Root)
        .env("GRPC_DNS_RESOLVER", "native");
    let output = spec
        .arg(&script)
        .arg(target)
        .arg("")
        .arg(SECRET)
        .run(dir, LIMIT)
        .await?;
    let said = format!("{}{}", output.stdout, tail(&output.stderr, 5));
    let ok = output.status.success() && output.stdout.contains("stream ok");
    Ok(seen(ok, said.trim().to_owned()))
}

/// Whom the application takes for its caller.
async fn source(client: &Pod, shop: &Pod, mode: Mode, family: Family) -> Result<Finding> {
    // By address: which family a service's pods are called over is the mesh's business.
    let address = shop.host.at(family, 8080);
    let reply = pods::get(&client.host, address, &address.to_string(), "/peer").await?;
    let ok = match (mode, reply.body.parse::<IpAddr>()) {
        (Mode::Tproxy, Ok(peer)) => peer == client.host.ip(family),
        (Mode::Redirect | Mode::Route, Ok(IpAddr::V4(peer))) => peer.is_loopback(),
        (Mode::Redirect | Mode::Route, Ok(IpAddr::V6(peer))) => peer.segments()[..7] == [0; 7],
        (_, Err(_)) => false,
    };
    Ok(seen(ok && reply.status == 200, reply.line()))
}

/// What is sent to the sidecar's own ports comes to an end.
async fn loops(client: &Pod, family: Family) -> Result<Finding> {
    let loopback: IpAddr = match family {
        Family::V4 => [127, 0, 0, 1].into(),
        Family::V6 => [0, 0, 0, 0, 0, 0, 0, 1].into(),
    };
    let (mut ends, mut ok) = (Vec::new(), true);
    for (ip, port) in [
        (loopback, 14001),
        (client.host.ip(family), 14001),
        (client.host.ip(family), 14006),
    ] {
        let address = SocketAddr::new(ip, port);
        let call = tokio::time::timeout(Duration::from_secs(2), get(&client.host, address)).await;
        let end = match call {
            Ok(Ok(answer)) => {
                ok &= !answer.starts_with('2');
                answer.lines().next().unwrap_or_default().to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                ok = false;
                "no end in 2 s".to_owned()
            }
        };
        ends.push(format!("{address}: {end}"));
    }
    let ready = client.admin("/ready").await?.status;
    Ok(seen(
        ok && ready == 200,
        format!("{}; then /ready is {ready}", ends.join("; ")),
    ))
}

/// A GET by address: status, reason and body.
async fn get(host: &Host, address: SocketAddr) -> Result<String> {
    Ok(pods::get(host, address, &address.to_string(), "/")
        .await?
        .line())
}

async fn redis(client: &Pod, dir: &Path, cli: &Path) -> Result<Finding> {
    let v4 = address(Family::V4, 30, 0).ip().to_string();
    let v6 = address(Family::V6, 30, 0).ip().to_string();
    let mut said = Vec::new();
    for (host, command) in [
        ("redis", vec!["SET", "key", SECRET]),
        ("redis.bench", vec!["GET", "key"]),
        (&v4, vec!["GET", "key"]),
        (&v6, vec!["GET", "key"]),
    ] {
        let spec = client.app("redis-cli", cli).pair("-h", host).arg("--raw");
        let spec = command.iter().fold(spec, |spec, arg| spec.arg(arg));
        let output = spec.run(dir, LIMIT).await?;
        said.push(format!("{}{}", output.stdout.trim(), output.stderr.trim()));
    }
    Ok(seen(said == ["OK", SECRET, SECRET, SECRET], said.join(" ")))
}

/// The directory of PostgreSQL's own programs: Debian keeps them out of PATH.
fn postgres() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file())
        .max()
}

async fn start_postgres(data: &Pod, dir: &Path, bin: &Path) -> Result<Process> {
    let store = dir.join("postgresql");
    fs::create_dir_all(&store).context(store.display())?;
    let (uid, gid) = (Some(User::Nobody.uid()), Some(User::Nobody.uid()));
    std::os::unix::fs::chown(&store, uid, gid).context(store.display())?;
    let spec = data.app("initdb", bin.join("initdb")).pair("-D", &store);
    let spec = spec
        .arg("--auth=trust")
        .arg("--username=bench")
        .arg("--no-sync")
        .arg("--no-locale");
    spec.run(dir, Duration::from_secs(60)).await?.ok("initdb")?;
    let spec = data
        .app("postgres", bin.join("postgres"))
        .pair("-D", &store);
    let hosts = "host all all all trust\n";
    fs::write(store.join("pg_hba.conf"), hosts).context(store.display())?;
    let mut server = spec
        .pair("-h", "*")
        .pair("-k", &store)
        .arg("-F")
        .start(dir)?;
    listens(&data.host, &mut server, 5432).await?;
    Ok(server)
}

async fn query(client: &Pod, dir: &Path, psql: &Path) -> Result<Finding> {
    let statement = format!("select '{SECRET}', 40 + 2");
    let spec = client
        .app("psql", psql)
        .pair("-h", "db")
        .pair("-U", "bench")
        .pair("-d", "postgres");
    let spec = spec.arg("-X").arg("-A").arg("-t").pair("-c", statement);
    let output = spec.env("PGSSLMODE", "disable").run(dir, LIMIT).await?;
    let said = format!("{}{}", output.stdout.trim(), output.stderr.trim());
    Ok(seen(said == format!("{SECRET}|42"), said))
}

async fn start_nginx(shop: &Pod, dir: &Path, nginx: &Path) -> Result<Process> {
    let prefix = dir.join("nginx");
    fs::create_dir_all(&prefix).context(prefix.display())?;
    let at = prefix.display();
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         server {{ listen 8000; listen [::]:8000; location / {{ return 200 {SECRET}; }} }} }}\n"
    );
    let file = prefix.join("nginx.conf");
    fs::write(&file, text).context(file.display())?;
    let spec = shop.host.spec("nginx", nginx, User::Root);
    let mut server = spec
        .pair("-p", &prefix)
        .pair("-e", "stderr")
        .pair("-c", &file)
        .start(dir)?;
    listens(&shop.host, &mut server, 8000).await?;
    Ok(server)
}

/// All that passed the router so far. A text that goes past the mesh proves the sniffer.
async fn wire(cluster: &Cluster, client: &Pod, shop: &Pod, sniffer: &Sniffer) -> Result<Finding> {
    let outside = cluster.outside.at(Family::V4, 8080);
    pods::get(
        &client.host,
        outside,
        &outside.to_string(),
        &format!("/{OPEN}"),
    )
    .await?;
    let until = std::time::Instant::now() + Duration::from_secs(3);
    while sniffer.seen(1) == 0 && std::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (secret, open, tls) = (sniffer.seen(0), sniffer.seen(1), sniffer.tls());
    let metrics = shop.admin("/metrics").await?.body;
    let mtls = metrics
        .lines()
        .filter(|line| line.contains("tls=\"mtls\""))
        .count();
    let ok = secret == 0 && open > 0 && tls > 100 && mtls > 0;
    Ok(seen(
        ok,
        format!(
            "{secret} readable, {open} past the mesh, {tls} of TLS; {mtls} series with tls=\"mtls\" at the server"
        ),
    ))
}
