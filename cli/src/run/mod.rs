//! `weft run`: one application and its sidecar as one supervised process. The workload's
//! documents are in the server's configuration directory for as long as it runs.

use std::io::{self, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use clap::ValueEnum;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::process::Signal;
use tokio::process::{self, Command};
use tokio::runtime::Handle;

use crate::demo::{free_ports, loopback};
use crate::home::{self, Home};
use crate::inject::host_and_port;
use crate::output::{Exit, Failure, Format, Output};
use crate::registered::{Documents, Registered};
use crate::server::DEFAULT_DATA;
use crate::sidecar::{self, Sidecar};
use crate::supervise::{Child, GRACE, Signals, signal_pid};
use crate::transparent::{self, Transparent};
use crate::unit::{self, Part, Unit};

/// Run one application with a sidecar beside it, as one supervised process.
///
/// Signals go to the application; when it ends, the
/// sidecar is drained and this command exits with the application's code (128 + N after signal N).
///
/// The workload is registered by writing its documents into the configuration directory of a
/// `weft server` on this machine. With `--transparent` the control plane may be on another one,
/// and the application needs to know nothing of the mesh. For an application that runs already,
/// `--print-unit` prints a systemd service for the sidecar and the documents.
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
    /// Where the application listens, on 127.0.0.1 (with --transparent, on the machine's
    /// addresses); also the port of the service.
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
    #[arg(
        long,
        value_enum,
        value_name = "PART",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all",
        group = "placed",
        conflicts_with_all = [
            "user", "all_traffic", "exclude_inbound_ports", "no_dns", "proxy_uid", "proxy_gid",
            "token_file", "state",
        ]
    )]
    print_unit: Option<Part>,
    /// The control plane: of the unit (127.0.0.1:14012 if absent), or with --transparent one that
    /// is not the server of --server-data. The workload registers itself there; the Services that
    /// select its label `app`, its name, are yours.
    #[arg(long, value_name = "HOST:PORT", requires = "placed", value_parser = host_and_port)]
    control: Option<String>,
    /// An address of the machine where peers reach the sidecar. In the unit 127.0.0.1 if absent;
    /// with --transparent those of the default route's interface, and it may be given several
    /// times.
    #[arg(long, value_name = "IP", requires = "placed")]
    address: Vec<IpAddr>,
    #[command(flatten)]
    home: home::Args,
    /// The application and its arguments.
    #[arg(
        last = true,
        required_unless_present = "print_unit",
        conflicts_with = "print_unit",
        value_name = "COMMAND"
    )]
    command: Vec<String>,
    #[command(flatten)]
    transparent: transparent::Args,
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
    /// Those that the rules of capture lead to; the public admin pages are for everybody.
    const CAPTURED: Self = Self {
        outbound: unit::OUTBOUND,
        inbound: unit::INBOUND,
        admin: 14_000,
        public_admin: 14_020,
    };

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
        crate::printed_or_closed(out.data(&print_unit(args, part)?))?;
        return Ok(0);
    }
    crate::log("warn", out);
    let local: Vec<u16> = args.to.iter().filter_map(|to| to.local_port).collect();
    let transparent = args.transparent.check(args.port, &local, &args.address)?;
    if args.control.is_some() {
        args.check_control()?;
    }
    crate::runtime()?.block_on(supervise(args, transparent.as_ref(), out))
}

fn print_unit(args: &Args, part: Part) -> Result<String, Failure> {
    let address = match args.address.as_slice() {
        [] => Ipv4Addr::LOCALHOST.into(),
        [address] => *address,
        _ => {
            let message = "--address: a unit's sidecar listens on one address";
            return Err(Failure::new(Exit::Usage, message).help("give it once"));
        }
    };
    let upstreams: Vec<u16> = args.to.iter().filter_map(|to| to.local_port).collect();
    let unit = Unit {
        name: &args.name,
        namespace: &args.namespace,
        control: args.control.as_deref().unwrap_or("127.0.0.1:14012"),
        address,
        upstreams: &upstreams,
        documents: &args
            .documents(address, unit::OUTBOUND, unit::INBOUND)
            .text(),
    };
    Ok(unit.print(part))
}

async fn supervise(
    args: &Args,
    transparent: Option<&Transparent>,
    out: &Output,
) -> Result<u8, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::io("signals", &error))?;
    let home = args.home(transparent)?;
    home.reachable().await?;
    let capture = async {
        match transparent {
            Some(transparent) => transparent.install(out).await.map(Some),
            None => Ok(None),
        }
    };
    // In force until the application and its sidecar have ended.
    let _captured = tokio::select! {
        captured = capture => captured?,
        signal = signals.next() => return Ok(killed_by(signal.as_raw())),
    };
    let mut started = tokio::select! {
        started = start(args, transparent, &home) => started?,
        signal = signals.next() => return Ok(killed_by(signal.as_raw())),
    };
    args.introduce(transparent, &home, &started, out);
    let sidecar = &mut started.sidecar;
    let ended = application(args, transparent, started.ports, sidecar, &mut signals).await;
    // It may have ended by itself, which has been said.
    let _ = sidecar.stop(DRAIN + GRACE).await;
    ended
}

/// A registered workload with a sidecar that is ready. Dropping it kills the sidecar and removes
/// the documents.
struct Started {
    ports: Ports,
    sidecar: Child,
    registered: Option<Registered>,
}

/// Registers the workload and starts its sidecar; once more with other ports when somebody else
/// was faster with one of those that were free. Dropping the future undoes it.
async fn start(
    args: &Args,
    transparent: Option<&Transparent>,
    home: &Home,
) -> Result<Started, Failure> {
    if transparent.is_some() {
        return try_start(args, transparent, home, Ports::CAPTURED).await;
    }
    let mut ports = Ports::find();
    let mut tries = 1;
    loop {
        let chosen = ports.map_err(|error| Failure::io("ports", &error))?;
        match try_start(args, None, home, chosen).await {
            Err(failure) if tries < MAX_TRIES && args.may_choose_other_ports(&failure) => {
                tries += 1
            }
            ended => return ended,
        }
        ports = Ports::find_unusual();
    }
}

const MAX_TRIES: u32 = 3;

async fn try_start(
    args: &Args,
    transparent: Option<&Transparent>,
    home: &Home,
    ports: Ports,
) -> Result<Started, Failure> {
    let documents = match transparent {
        Some(transparent) => args.captured_documents(transparent),
        None => args.documents(loopback(0).ip(), ports.outbound, ports.inbound),
    };
    let registered = match home {
        Home::Here { server, .. } => Some(Registered::write(&documents, &server.config)?),
        Home::There(_) => None,
    };
    let mut sidecar = start_sidecar(args, transparent, home, ports)?;
    let teller = sidecar.teller();
    tokio::select! {
        started = sidecar::started(&teller, loopback(ports.public_admin)) => started?,
        failure = sidecar.failure() => return Err(failure),
    }
    Ok(Started {
        ports,
        sidecar,
        registered,
    })
}

/// The time that the sidecar has to finish what the application's clients still read.
const DRAIN: Duration = Duration::from_secs(10);

fn start_sidecar(
    args: &Args,
    transparent: Option<&Transparent>,
    home: &Home,
    ports: Ports,
) -> Result<Child, Failure> {
    let public_admin = match transparent {
        Some(_) => (Ipv4Addr::UNSPECIFIED, ports.public_admin).into(),
        None => loopback(ports.public_admin),
    };
    let sidecar = Sidecar {
        control: home.control(),
        workload: format!("{}/{}", args.namespace, args.name),
        token: home.token(&args.namespace, args.account())?,
        admin: loopback(ports.admin),
        public_admin,
        access_log: "errors",
        grace: DRAIN,
        owner: transparent.map(Transparent::sidecar),
        more: match home {
            Home::Here { .. } => Vec::new(),
            Home::There(there) => there.settings(&args.name, args.port),
        },
    };
    let child = sidecar.spawn(format!("the sidecar of {}", args.name));
    child.map_err(|error| Failure::io("cannot start the sidecar", &error))
}

/// Starts the application and waits for its end.
async fn application(
    args: &Args,
    transparent: Option<&Transparent>,
    ports: Ports,
    sidecar: &mut Child,
    signals: &mut Signals,
) -> Result<u8, Failure> {
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
    let spawned = match transparent {
        Some(transparent) => {
            command.envs(transparent.user.environment());
            let runtime = Handle::current();
            let spawn = || {
                let _inside = runtime.enter();
                command.spawn()
            };
            // A failure to become that user is one to start as that user.
            transparent.user.run(spawn).flatten()
        }
        None => command.spawn(),
    };
    let mut app = spawned
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

    /// What has no place in the registration that a sidecar makes itself.
    fn check_control(&self) -> Result<(), Failure> {
        if self.to.iter().any(|to| to.local_port.is_some()) {
            let message = "--to: with --control the workload has no document that could give it \
                           local ports";
            return Err(Failure::new(Exit::Usage, message)
                .help("leave =PORT out: with --transparent the application calls by name"));
        }
        if self.protocol.is_some() {
            let message = "--protocol: with --control the Service is not written by this command";
            return Err(
                Failure::new(Exit::Usage, message).help("set appProtocol in your Service instead")
            );
        }
        Ok(())
    }

    fn home(&self, transparent: Option<&Transparent>) -> Result<Home, Failure> {
        match (&self.control, transparent) {
            (Some(control), Some(transparent)) => {
                let workload = (self.namespace.as_str(), self.name.as_str());
                self.home.there(control, workload, transparent)
            }
            _ => self.home.here(&self.server_data),
        }
    }

    fn introduce(
        &self,
        transparent: Option<&Transparent>,
        home: &Home,
        started: &Started,
        out: &Output,
    ) {
        let (name, namespace) = (&self.name, &self.namespace);
        match home {
            Home::Here { .. } => {
                // Who calls an address needs its port; by an HTTP proxy the name is enough.
                let port = started
                    .registered
                    .as_ref()
                    .filter(|_| transparent.is_some());
                let port = port.and_then(|registered| registered.service_port(self.port));
                let port = port.map_or_else(String::new, |port| format!(":{port}"));
                out.done(
                    "sidecar",
                    format_args!("ready; peers call http://{name}.{namespace}{port}"),
                );
            }
            Home::There(_) => out.done(
                "sidecar",
                format_args!(
                    "ready; registered as {namespace}/{name} for Services that select app: {name}"
                ),
            ),
        }
        let outbound = loopback(started.ports.outbound);
        let by_name = transparent.is_some_and(Transparent::captures_dns);
        for to in &self.to {
            let service = &to.service;
            match to.local_port {
                Some(port) => {
                    out.done("upstream", format_args!("{service}: {}", loopback(port)));
                }
                None if by_name => {
                    let how = "by its name, at the ports of its Service";
                    out.done("upstream", format_args!("{service}: {how}"));
                }
                None => out.done(
                    "upstream",
                    format_args!(
                        "{service}: http://{service} through the HTTP proxy http://{outbound}"
                    ),
                ),
            }
        }
        if transparent.is_none() {
            out.next(&[format!(
                "curl -x http://{outbound} http://SERVICE/ (the application finds it in WEFT_OUTBOUND)"
            )]);
        }
    }

    /// The Service and Workload documents, for a sidecar with these ports on an address.
    fn documents(&self, address: IpAddr, outbound: u16, inbound: u16) -> Documents {
        let port = self.port;
        self.documents_of(&format!(
            "  address: \"{address}\"\n  outbound: {{ port: {outbound} }}\n  \
             ports:\n  - {{ name: main, port: {port}, listen: {inbound}, app: \"127.0.0.1:{port}\" }}\n"
        ))
    }

    /// The same for a workload whose connections the kernel leads to its sidecar.
    fn captured_documents(&self, transparent: &Transparent) -> Documents {
        let mut quoted = transparent.addresses.iter().map(|one| format!("\"{one}\""));
        let mut place = format!("  address: {}\n", quoted.next().unwrap_or_default());
        let others: Vec<String> = quoted.collect();
        if !others.is_empty() {
            place += &format!("  additionalAddresses: [{}]\n", others.join(", "));
        }
        place += &match transparent.excluded() {
            None => "  capture: { inboundPorts: declared }\n".to_owned(),
            Some(excluded) if excluded.is_empty() => "  capture: {}\n".to_owned(),
            Some(excluded) => format!("  capture: {{ excludeInboundPorts: {excluded:?} }}\n"),
        };
        place += &format!("  ports:\n  - {{ name: main, port: {} }}\n", self.port);
        self.documents_of(&place)
    }

    /// The documents with what tells where the workload is.
    fn documents_of(&self, place: &str) -> Documents {
        let Self {
            name,
            namespace,
            port,
            ..
        } = self;
        let protocol = self.protocol.map_or_else(String::new, |protocol| {
            format!(", appProtocol: \"{}\"", protocol.app_protocol())
        });
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
             spec:\n  selector: {{ app: {name} }}\n  ports:\n  \
             - {{ name: main, port: {port}, targetPort: main{protocol} }}\n"
        );
        let mut workload = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: Workload\n\
             metadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{ app: {name} }}\n\
             spec:\n  serviceAccount: {account}\n{place}",
            account = self.account(),
        );
        let mapped = self
            .to
            .iter()
            .filter_map(|to| Some((&to.service, to.local_port?)));
        for (at, (service, local)) in mapped.enumerate() {
            if at == 0 {
                workload += "  upstreams:\n";
            }
            workload += &format!("  - {{ service: {service}, localPort: {local} }}\n");
        }
        Documents {
            namespace: namespace.clone(),
            name: name.clone(),
            service,
            workload,
        }
    }
}

#[cfg(test)]
mod tests;
