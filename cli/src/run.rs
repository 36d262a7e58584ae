//! `weft run`: one application and its sidecar as one supervised process. The workload's
//! documents are in the server's configuration directory for as long as it runs.

use std::fs;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use clap::ValueEnum;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::process::{self, Command};
use weft_certs::spiffe::TrustDomain;
use weft_control::token::Tokens;

use crate::control::join_token;
use crate::demo::{free_ports, is_alive, loopback};
use crate::files;
use crate::inject::host_and_port;
use crate::output::{Exit, Failure, Format, Output};
use crate::server::{Announcement, DEFAULT_DATA};
use crate::sidecar::{self, Sidecar};
use crate::supervise::{Child, GRACE, Signals, signal_pid};
use crate::unit::{self, Part, Unit};

/// Run one application with a sidecar beside it, as one supervised process.
///
/// Signals go to the application; when it ends, the
/// sidecar is drained and this command exits with the application's code (128 + N after signal N).
///
/// The workload is registered by writing its documents into the configuration directory of a
/// `weft server` on this machine. With a server on another machine, or for an application that
/// runs already, `--print-unit` prints a systemd service for the sidecar and the documents.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The workload, and the service that it serves.
    #[arg(long, value_parser = name)]
    name: String,
    /// Its namespace.
    #[arg(long, short, default_value = "default", value_parser = name)]
    namespace: String,
    /// Its service account: who it proves to be. The name if absent.
    #[arg(long, value_name = "NAME", value_parser = name)]
    service_account: Option<String>,
    /// Where the application listens on 127.0.0.1; also the port of the service.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// What the application speaks; detected if absent.
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// A service that the application calls, as `name` or `name.namespace`; with `=PORT` it is
    /// reached on that local port, whatever protocol it speaks. May be given several times.
    #[arg(long, value_name = "SERVICE[=PORT]", value_parser = upstream)]
    to: Vec<Upstream>,
    /// The data directory of the server.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA, env = "WEFT_DATA")]
    server_data: PathBuf,
    /// Run nothing: print units of systemd for a sidecar beside an application that runs already,
    /// and its documents for the control plane.
    #[arg(long, value_enum, value_name = "PART", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    print_unit: Option<Part>,
    /// The control plane in the unit.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "command", default_value = "127.0.0.1:14012", value_parser = host_and_port)]
    control: String,
    /// The address of the machine in the documents, where peers reach the sidecar.
    #[arg(
        long,
        value_name = "IP",
        conflicts_with = "command",
        default_value = "127.0.0.1"
    )]
    address: IpAddr,
    /// The application and its arguments.
    #[arg(
        last = true,
        required_unless_present = "print_unit",
        conflicts_with = "print_unit",
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
}

impl Protocol {
    /// As a Service's `appProtocol`.
    const fn app_protocol(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "kubernetes.io/h2c",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// A service that the application calls.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Upstream {
    service: String,
    local_port: Option<u16>,
}

/// Checks the name of an object: a DNS label.
fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=63).contains(&text.len())
        && text.chars().all(good)
        && !text.starts_with('-')
        && !text.ends_with('-')
    {
        return Ok(text.to_owned());
    }
    Err(
        "use 1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends"
            .to_owned(),
    )
}

fn upstream(text: &str) -> Result<Upstream, String> {
    let (service, port) = match text.split_once('=') {
        Some((service, port)) => (service, Some(port)),
        None => (text, None),
    };
    let (short, namespace) = match service.split_once('.') {
        Some((short, namespace)) => (short, Some(namespace)),
        None => (service, None),
    };
    name(short)?;
    namespace.map(name).transpose()?;
    let port = port.map(|port| match port.parse() {
        Ok(1..) => port.parse().map_err(|_| String::new()),
        _ => Err(format!("`{port}` is no port: use 1 to 65535")),
    });
    Ok(Upstream {
        service: service.to_owned(),
        local_port: port.transpose()?,
    })
}

/// The ports of the sidecar, all on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
struct Ports {
    outbound: u16,
    inbound: u16,
    admin: u16,
    public_admin: u16,
}

impl Ports {
    /// The usual outbound port if it is free; any others, since every workload of this machine
    /// needs its own.
    fn find() -> io::Result<Self> {
        let mut ports = Self::find_unusual()?;
        if TcpListener::bind(loopback(USUAL_OUTBOUND)).is_ok() {
            ports.outbound = USUAL_OUTBOUND;
        }
        Ok(ports)
    }

    fn find_unusual() -> io::Result<Self> {
        let ports = free_ports(4, &mut SmallRng::from_os_rng())?;
        Ok(Self {
            outbound: ports[0],
            inbound: ports[1],
            admin: ports[2],
            public_admin: ports[3],
        })
    }
}

const USUAL_OUTBOUND: u16 = 14001;

/// Runs the application; returns the exit code.
///
/// # Errors
///
/// There is no server, the sidecar fails, or the application cannot be started.
pub(crate) fn run(args: &Args, out: &Output) -> Result<u8, Failure> {
    if out.format != Format::Table {
        let message = "with `weft run` stdout is the application's: -o does not apply";
        return Err(Failure::new(Exit::Usage, message).help("leave -o out"));
    }
    if let Some(part) = args.print_unit {
        crate::printed_or_closed(out.data(&print_unit(args, part)))?;
        return Ok(0);
    }
    crate::log("warn", out);
    crate::runtime()?.block_on(supervise(args, out))
}

fn print_unit(args: &Args, part: Part) -> String {
    let upstreams: Vec<u16> = args.to.iter().filter_map(|to| to.local_port).collect();
    let unit = Unit {
        name: &args.name,
        namespace: &args.namespace,
        control: &args.control,
        address: args.address,
        upstreams: &upstreams,
        documents: &args.documents(args.address, unit::OUTBOUND, unit::INBOUND),
    };
    unit.print(part)
}

async fn supervise(args: &Args, out: &Output) -> Result<u8, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::io("signals", &error))?;
    let server = Announcement::read(&args.server_data)?;
    reachable(server.address).await?;
    let mut started = tokio::select! {
        started = start(args, &server) => started?,
        signal = signals.next() => return Ok(killed_by(signal.as_raw())),
    };
    let sidecar = &mut started.sidecar;
    let ended = application(args, started.ports, sidecar, &mut signals, out).await;
    // It may have ended by itself, which has been said.
    let _ = sidecar.stop(DRAIN + GRACE).await;
    ended
}

/// A registered workload with a sidecar that is ready. Dropping it kills the sidecar and removes
/// the documents.
struct Started {
    ports: Ports,
    sidecar: Child,
    _registered: Registered,
}

/// Registers the workload and starts its sidecar; once more with other ports when somebody else
/// was faster with one of those that were free. Dropping the future undoes it.
async fn start(args: &Args, server: &Announcement) -> Result<Started, Failure> {
    let mut ports = Ports::find();
    let mut tries = 1;
    loop {
        let chosen = ports.map_err(|error| Failure::io("ports", &error))?;
        match try_start(args, server, chosen).await {
            Err(failure) if tries < MAX_TRIES && args.may_choose_other_ports(&failure) => {
                tries += 1
            }
            ended => return ended,
        }
        ports = Ports::find_unusual();
    }
}

const MAX_TRIES: u32 = 3;

async fn try_start(args: &Args, server: &Announcement, ports: Ports) -> Result<Started, Failure> {
    let registered = Registered::write(args, ports, &server.config)?;
    let mut sidecar = start_sidecar(args, ports, server)?;
    let teller = sidecar.teller();
    tokio::select! {
        started = sidecar::started(&teller, loopback(ports.public_admin)) => started?,
        failure = sidecar.failure() => return Err(failure),
    }
    Ok(Started {
        ports,
        sidecar,
        _registered: registered,
    })
}

/// The time that the sidecar has to finish what the application's clients still read.
const DRAIN: Duration = Duration::from_secs(10);

async fn reachable(server: SocketAddr) -> Result<(), Failure> {
    let connected = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(server)).await;
    let why = match connected {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer within 2 s".to_owned(),
    };
    let message = format!("cannot reach the control plane on {server}: {why}");
    Err(Failure::new(Exit::Unreachable, message).help("start it again with `weft server`"))
}

fn start_sidecar(args: &Args, ports: Ports, server: &Announcement) -> Result<Child, Failure> {
    let trust_domain: TrustDomain = server
        .trust_domain
        .parse()
        .map_err(|error| Failure::new(Exit::Problems, format!("trust domain: {error}")))?;
    let root = fingerprint(&server.root_sha256)
        .ok_or_else(|| Failure::new(Exit::Problems, "the announced root is no SHA-256"))?;
    let tokens = Tokens::open(&args.server_data, trust_domain, root)
        .map_err(|error| crate::control::failed(&error))?;
    let sidecar = Sidecar {
        control: server.address,
        workload: format!("{}/{}", args.namespace, args.name),
        token: join_token(&tokens, &args.namespace, args.account())?,
        admin: loopback(ports.admin),
        public_admin: loopback(ports.public_admin),
        access_log: "errors",
        grace: DRAIN,
    };
    let child = sidecar.spawn(format!("the sidecar of {}", args.name));
    child.map_err(|error| Failure::io("cannot start the sidecar", &error))
}

/// The bytes of a SHA-256 in hexadecimal.
fn fingerprint(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Starts the application and waits for its end.
async fn application(
    args: &Args,
    ports: Ports,
    sidecar: &mut Child,
    signals: &mut Signals,
    out: &Output,
) -> Result<u8, Failure> {
    introduce(args, ports, out);
    let mut command = Command::new(&args.command[0]);
    command
        .args(&args.command[1..])
        .env(
            "WEFT_OUTBOUND",
            format!("http://{}", loopback(ports.outbound)),
        )
        .kill_on_drop(true);
    // At a terminal it stays in our process group, so that it may read from there; then the
    // terminal sends it Ctrl-C itself.
    let terminal = io::stdin().is_terminal();
    if !terminal {
        command.process_group(0);
    }
    let mut app = command
        .spawn()
        .map_err(|error| Failure::io(format_args!("cannot start {}", args.command[0]), &error))?;
    loop {
        tokio::select! {
            status = app.wait() => {
                return status.map(exit_code).map_err(|error| Failure::io(&args.name, &error));
            }
            signal = signals.next() => {
                if !(terminal && signal == Signal::INT) {
                    signal_pid(app.id(), signal);
                }
            }
            mut failure = sidecar.failure() => {
                failure.message += "\nthe application has been stopped: none of its calls would arrive";
                stop(&mut app).await;
                return Err(failure);
            }
        }
    }
}

async fn stop(app: &mut process::Child) {
    signal_pid(app.id(), Signal::TERM);
    if tokio::time::timeout(GRACE, app.wait()).await.is_err() {
        // It has had its time; a failure means that it has ended just now.
        let _ = app.kill().await;
    }
}

fn introduce(args: &Args, ports: Ports, out: &Output) {
    let (name, namespace) = (&args.name, &args.namespace);
    out.done(
        "sidecar",
        format_args!("ready; peers call http://{name}.{namespace}"),
    );
    let outbound = loopback(ports.outbound);
    for to in &args.to {
        let service = &to.service;
        match to.local_port {
            Some(port) => out.done("upstream", format_args!("{service}: {}", loopback(port))),
            None => out.done(
                "upstream",
                format_args!(
                    "{service}: http://{service} through the HTTP proxy http://{outbound}"
                ),
            ),
        }
    }
    out.next(&[format!(
        "curl -x http://{outbound} http://SERVICE/ (the application finds it in WEFT_OUTBOUND)"
    )]);
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .map(|code| u8::try_from(code & 0xff).unwrap_or(u8::MAX));
    code.unwrap_or_else(|| killed_by(status.signal().unwrap_or_default()))
}

/// As a shell reports it.
fn killed_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

impl Args {
    fn account(&self) -> &str {
        self.service_account.as_deref().unwrap_or(&self.name)
    }

    /// Whether a start failed because of a taken port that nobody has asked for.
    fn may_choose_other_ports(&self, failure: &Failure) -> bool {
        let asked_for = self.to.iter().filter_map(|to| to.local_port);
        let mut asked_for = asked_for.map(|port| format!("127.0.0.1:{port} is in use"));
        failure.message.contains(" is in use")
            && !asked_for.any(|taken| failure.message.contains(&taken))
    }

    /// The Service and Workload documents, for a sidecar with these ports on an address.
    fn documents(&self, address: IpAddr, outbound: u16, inbound: u16) -> String {
        let Self {
            name,
            namespace,
            port,
            ..
        } = self;
        let protocol = self.protocol.map_or_else(String::new, |protocol| {
            format!(", appProtocol: \"{}\"", protocol.app_protocol())
        });
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
             spec:\n  selector: {{ app: {name} }}\n  ports:\n  \
             - {{ name: main, port: {port}, targetPort: main{protocol} }}\n\
             ---\napiVersion: weft.dev/v1alpha1\nkind: Workload\n\
             metadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{ app: {name} }}\n\
             spec:\n  serviceAccount: {account}\n  address: \"{address}\"\n  outbound: {{ port: {outbound} }}\n  \
             ports:\n  - {{ name: main, port: {port}, listen: {inbound}, app: \"127.0.0.1:{port}\" }}\n",
            account = self.account(),
        );
        let mapped = self
            .to
            .iter()
            .filter_map(|to| Some((&to.service, to.local_port?)));
        for (at, (service, local)) in mapped.enumerate() {
            if at == 0 {
                text += "  upstreams:\n";
            }
            text += &format!("  - {{ service: {service}, localPort: {local} }}\n");
        }
        text
    }

    /// The same as a file that belongs to a process, which removes it.
    fn file_of(&self, ports: Ports, owner: u32) -> String {
        let documents = self.documents(loopback(0).ip(), ports.outbound, ports.inbound);
        format!("{MARK}{owner}\n{documents}")
    }

    /// One file for each workload.
    fn file(&self) -> String {
        match self.namespace.as_str() {
            "default" => format!("{}.yaml", self.name),
            namespace => format!("{}.{namespace}.yaml", self.name),
        }
    }
}

/// The first line of a document file that `weft run` has written, up to the process.
const MARK: &str = "# Written by `weft run`, which removes it when it ends: process ";

/// The documents of a running workload; dropping them removes them.
struct Registered {
    path: PathBuf,
}

impl Registered {
    fn write(args: &Args, ports: Ports, config: &Path) -> Result<Self, Failure> {
        let path = config.join(args.file());
        match fs::read_to_string(&path) {
            Ok(text) => may_replace(&text, is_alive).map_err(|reason| {
                Failure::new(Exit::Problems, format!("{}: {reason}", path.display()))
                    .help("choose another --name or --namespace")
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io(path.display(), &error)),
        }
        let text = args.file_of(ports, std::process::id());
        files::replace(&path, &text).map_err(|error| Failure::io(path.display(), &error))?;
        Ok(Self { path })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // If it cannot be removed, the next run with the name replaces it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a file may be replaced: only what a process that has ended has left behind.
fn may_replace(text: &str, is_alive: impl Fn(u32) -> bool) -> Result<(), String> {
    let owner = text
        .strip_prefix(MARK)
        .and_then(|rest| rest.lines().next()?.parse().ok());
    match owner {
        None => Err("the file has not been written by `weft run`".to_owned()),
        Some(pid) if is_alive(pid) => Err(format!("the workload runs already, as process {pid}")),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    const PORTS: Ports = Ports {
        outbound: 1,
        inbound: 2,
        admin: 3,
        public_admin: 4,
    };

    fn args(line: &str) -> Args {
        Line::try_parse_from(line.split(' ')).unwrap().args
    }

    #[test]
    fn documents_describe_the_workload() {
        let args = args(
            "run --name web -n shop --port 8080 --protocol grpc --to pay.bank=9000 --to log --service-account w -- ./web -x",
        );
        assert_eq!(args.command, ["./web", "-x"]);
        assert_eq!(args.file(), "web.shop.yaml");
        let expect = "# Written by `weft run`, which removes it when it ends: process 7
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  selector: { app: web }
  ports:
  - { name: main, port: 8080, targetPort: main, appProtocol: \"grpc\" }
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata:
  name: web
  namespace: shop
  labels: { app: web }
spec:
  serviceAccount: w
  address: \"127.0.0.1\"
  outbound: { port: 1 }
  ports:
  - { name: main, port: 8080, listen: 2, app: \"127.0.0.1:8080\" }
  upstreams:
  - { service: pay.bank, localPort: 9000 }
";
        assert_eq!(args.file_of(PORTS, 7), expect);
    }

    #[test]
    fn the_control_plane_accepts_the_documents() {
        for options in [
            "",
            " --protocol http",
            " --protocol http2",
            " --protocol grpc",
            " --protocol tcp",
        ] {
            let args = args(&format!("run --name web --port 8080{options} -- ./web"));
            let config = tempfile::tempdir().unwrap();
            let _registered = Registered::write(&args, PORTS, config.path()).unwrap();
            let load = weft_control::source::FileSource::new(config.path()).load();
            let complaints: Vec<_> = load.diagnostics.iter().map(ToString::to_string).collect();
            assert_eq!(complaints, Vec::<String>::new(), "{options}");
            assert_eq!(
                load.mesh
                    .workload("default", "web")
                    .unwrap()
                    .service_account,
                "web"
            );
        }
    }

    #[test]
    fn a_unit_needs_no_command() {
        let line = "run --name web --port 8080 --print-unit --address fd00::1 --to pay=9000";
        let args = args(line);
        assert_eq!(args.print_unit, Some(Part::All));
        let text = print_unit(&args, Part::Mesh);
        let expect = "  address: \"fd00::1\"\n  outbound: { port: 14001 }\n  ports:\n  - { name: main, port: 8080, listen: 14006, app: \"127.0.0.1:8080\" }\n  upstreams:\n  - { service: pay, localPort: 9000 }\n";
        assert!(text.ends_with(expect), "{text}");
        let config = tempfile::tempdir().unwrap();
        fs::write(config.path().join("web.yaml"), text.replace("pay", "web")).unwrap();
        let load = weft_control::source::FileSource::new(config.path()).load();
        assert!(load.diagnostics.is_empty(), "{:?}", load.diagnostics);
    }

    #[test]
    fn defaults() {
        let args = args("run --name web --port 8080 -- ./web");
        assert_eq!((args.file().as_str(), args.account()), ("web.yaml", "web"));
        let text = args.file_of(PORTS, 7);
        assert!(
            !text.contains("appProtocol") && !text.contains("upstreams"),
            "{text}"
        );
    }

    #[test]
    fn arguments_are_checked() {
        for line in [
            "run --name Web --port 1 -- x",
            "run --name -web --port 1 -- x",
            "run --name web --port 0 -- x",
            "run --name web --port 1",
            "run --name web -- x",
            "run --name web --port 1 --to a=b -- x",
            "run --name web --port 1 --to a=0 -- x",
            "run --name web --port 1 --to a=65536 -- x",
            "run --name web --port 1 --to a.b.c -- x",
            "run --name web --port 1 --to = -- x",
            "run --name web --port 1 --print-unit -- x",
            "run --name web --port 1 --print-unit=timer",
            "run --name web --port 1 --control h:1 -- x",
            "run --name web --port 1 --print-unit --control h",
        ] {
            assert!(Line::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn other_ports_are_tried_unless_asked_for() {
        let args = args("run --name web --port 8080 --to a=7000 --to b -- ./web");
        for (message, expect) in [
            ("error=127.0.0.1:14001 is in use by another process", true),
            ("error=127.0.0.1:7000 is in use by another process", false),
            ("the sidecar has ended", false),
        ] {
            let failure = Failure::new(Exit::Problems, message);
            assert_eq!(args.may_choose_other_ports(&failure), expect, "{message}");
        }
    }

    #[test]
    fn only_leftovers_are_replaced() {
        let config = tempfile::tempdir().unwrap();
        let args = args("run --name web --port 8080 -- ./web");
        let first = Registered::write(&args, PORTS, config.path()).unwrap();
        let second = Registered::write(&args, PORTS, config.path())
            .err()
            .unwrap();
        let expect = format!(
            "the workload runs already, as process {}",
            std::process::id()
        );
        assert!(second.message.ends_with(&expect), "{second}");
        drop(first);
        assert_eq!(fs::read_dir(config.path()).unwrap().count(), 0);

        let left_behind = args.file_of(PORTS, 4);
        assert_eq!(may_replace(&left_behind, |pid| pid != 4), Ok(()));
        assert!(
            may_replace("apiVersion: v1", |_| false)
                .unwrap_err()
                .contains("not been written")
        );
    }

    #[test]
    fn exit_codes_are_the_applications() {
        for (raw, expect) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (15, 143), (9, 137)] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), expect, "{raw}");
        }
    }

    #[test]
    fn fingerprints() {
        assert_eq!(fingerprint(&"0f".repeat(32)), Some([15; 32]));
        for wrong in ["", "0f", &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(fingerprint(wrong), None, "{wrong}");
        }
    }
}
