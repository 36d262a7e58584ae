//! `weft-control`: the command line of the control plane.
//!
//! Data goes to stdout, words to stderr. Exit codes: 0 fine, 1 problems, 2 usage.

mod serve;

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weft_certs::{Ca, CaError, TrustDomain};
use weft_control::app::{CA_DIRECTORY, DEFAULT_ADMIN, DEFAULT_LISTEN, Options};
use weft_control::config::Level;
use weft_control::source::FileSource;
use weft_control::token::{Request, Tokens};
use weft_control::token_file::TokenFile;
use weft_control::translate::{Context, Node};

/// The Weft control plane: Gateway API documents in, Envoy xDS and SPIFFE certificates out.
#[derive(Parser)]
#[command(name = "weft-control", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve configuration and certificates to sidecars until SIGTERM or SIGINT. SIGUSR2 starts
    /// the program again, which takes over: an upgrade without a refused connection.
    Serve(Serve),
    /// Print, as JSON, every resource that a workload's sidecar could ask for; the trust bundle
    /// (ROOTCA) has the roots of the certificate authority in --data, if there is one.
    Render(Render),
    /// Say what is wrong with the documents of a directory; exit code 1 if there are errors.
    Check(Check),
    /// The certificate authority.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Join tokens.
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Args)]
struct Serve {
    /// The directory with the mesh's documents (*.yaml); changes are applied as they happen.
    #[arg(long, env = "WEFT_CONTROL_CONFIG", value_name = "DIR")]
    config: PathBuf,
    /// The directory of the certificate authority, the join tokens and the last good documents.
    #[arg(
        long,
        env = "WEFT_CONTROL_DATA",
        value_name = "DIR",
        default_value = "./weft-data"
    )]
    data: PathBuf,
    /// Where sidecars connect.
    #[arg(long, env = "WEFT_CONTROL_LISTEN", value_name = "ADDRESS", default_value = DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// Where the admin pages are: /metrics, /ready, /debug/config, /debug/clients.
    #[arg(long, env = "WEFT_CONTROL_ADMIN", value_name = "ADDRESS", default_value = DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// Keep a reusable join token for this service account in FILE, for a sidecar that can read
    /// it: written at the start and renewed every 15 days. May be given several times.
    #[arg(long = "join-token", value_name = "NAMESPACE/ACCOUNT=FILE")]
    join_tokens: Vec<TokenFile>,
}

#[derive(Args)]
struct Render {
    /// The directory with the mesh's documents.
    #[arg(long, value_name = "DIR")]
    config: PathBuf,
    /// The workload.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_node)]
    node: (String, String),
    /// The data directory of the control plane; only its certificate authority and the virtual
    /// addresses of services are read.
    #[arg(
        long,
        env = "WEFT_CONTROL_DATA",
        value_name = "DIR",
        default_value = "./weft-data"
    )]
    data: PathBuf,
}

#[derive(Args)]
struct Check {
    /// The directory with the mesh's documents.
    #[arg(long, value_name = "DIR")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum CaCommand {
    /// Make a certificate authority, or check the one that is there; prints its fingerprint.
    Init {
        /// The data directory of the control plane.
        #[arg(long, value_name = "DIR", default_value = "./weft-data")]
        data: PathBuf,
        /// The trust domain; it must be the one in the mesh's MeshConfig.
        #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
        trust_domain: TrustDomain,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a join token for a workload and print it; a running control plane accepts it at once.
    Create {
        /// The data directory of the control plane.
        #[arg(long, value_name = "DIR", default_value = "./weft-data")]
        data: PathBuf,
        /// The namespace of the workload.
        #[arg(long)]
        namespace: String,
        /// The service account of the workload.
        #[arg(long)]
        service_account: String,
        /// How long it may be used, as 90s, 15m, 1h or 7d; at most 30d.
        #[arg(long, default_value = "1h", value_parser = parse_ttl)]
        ttl: Duration,
        /// Let more than one replica use it. Otherwise it belongs to the first key that does.
        #[arg(long)]
        reusable: bool,
    },
}

/// A problem to print; the exit code is 1.
type Problem = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => serve_with(args),
        Command::Render(args) => render(&args),
        Command::Check(args) => check(&args),
        Command::Ca(CaCommand::Init { data, trust_domain }) => ca_init(&data, &trust_domain),
        Command::Token(TokenCommand::Create {
            data,
            namespace,
            service_account,
            ttl,
            reusable,
        }) => token_create(
            &data,
            &Request {
                namespace: &namespace,
                service_account: &service_account,
                ttl,
                reusable,
            },
        ),
    };
    result.unwrap_or_else(|problem| {
        eprintln!("error: {problem}");
        ExitCode::from(1)
    })
}

fn serve_with(args: Serve) -> Result<ExitCode, Problem> {
    log_to_stderr();
    let options = Options {
        data: Some(args.data),
        listen: args.listen,
        admin: args.admin,
        ..Options::new(args.config)
    };
    serve::serve(&options, &args.join_tokens)?;
    Ok(ExitCode::SUCCESS)
}

/// `WEFT_LOG`, or `RUST_LOG`, or `info`.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("WEFT_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Writes data to stdout. A reader that has gone, as `head` does, has what it wanted.
fn print(data: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{data}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes words to stderr; if nobody reads them, nothing is lost.
fn say(words: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{words}");
}

fn render(args: &Render) -> Result<ExitCode, Problem> {
    let load = FileSource::new(&args.config)
        .with_addresses_of(&args.data)
        .load();
    for diagnostic in &load.diagnostics {
        say(diagnostic);
    }
    let (namespace, workload) = (args.node.0.as_str(), args.node.1.as_str());
    if load.mesh.workload(namespace, workload).is_none() {
        let workloads = load.mesh.workloads();
        let known: Vec<String> = workloads
            .map(|w| format!("{}/{}", w.namespace, w.name))
            .collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        return Err(format!(
            "no workload {namespace}/{workload} in {}; there are: {known}",
            args.config.display()
        )
        .into());
    }
    let roots = roots(&args.data)?;
    if roots.is_none() {
        say(format_args!(
            "note: no certificate authority in {}: ROOTCA is shown without roots (--data names the directory)",
            args.data.display()
        ));
    }
    let context = Context {
        mesh: &load.mesh,
        roots_pem: roots.as_deref().unwrap_or_default(),
        draining: &Default::default(),
    };
    let node = Node {
        namespace,
        workload,
    };
    let rendered = weft_control::translate::render(&context, &node);
    print(format_args!("{rendered:#}"))?;
    Ok(ExitCode::SUCCESS)
}

/// The roots of the authority in a data directory as PEM; `None` if there is no authority.
fn roots(data: &Path) -> Result<Option<String>, CaError> {
    let directory = data.join(CA_DIRECTORY);
    if !directory.exists() {
        return Ok(None);
    }
    let ca = Ca::open(&directory)?;
    Ok(Some(ca.bundle().to_pem(ca.trust_domain())))
}

fn check(args: &Check) -> Result<ExitCode, Problem> {
    let load = FileSource::new(&args.config).load();
    for diagnostic in &load.diagnostics {
        print(diagnostic)?;
    }
    let of = |level| load.diagnostics.iter().filter(|d| d.level == level).count();
    let (errors, warnings) = (of(Level::Error), of(Level::Warning));
    say(format_args!(
        "{}: {}, {}, {}: {}, {}",
        args.config.display(),
        count(load.mesh.services().count(), "service"),
        count(load.mesh.workloads().count(), "workload"),
        count(load.mesh.route_count(), "route"),
        count(errors, "error"),
        count(warnings, "warning"),
    ));
    Ok(ExitCode::from(u8::from(errors > 0)))
}

/// A number of things in words.
fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

fn ca_init(data: &Path, trust_domain: &TrustDomain) -> Result<ExitCode, Problem> {
    let directory = data.join(CA_DIRECTORY);
    let (ca, created) = Ca::open_or_create(&directory, trust_domain, SystemTime::now())?;
    let what = if created { "made" } else { "found" };
    eprintln!(
        "{what} the certificate authority of {trust_domain} in {}",
        directory.display()
    );
    println!("{}", weft_control::hex(&ca.root_fingerprint()));
    Ok(ExitCode::SUCCESS)
}

fn token_create(data: &Path, request: &Request<'_>) -> Result<ExitCode, Problem> {
    let ca = Ca::open(&data.join(CA_DIRECTORY))?;
    let tokens = Tokens::open(data, ca.trust_domain().clone(), ca.root_fingerprint())?;
    println!("{}", tokens.create(request, SystemTime::now())?);
    Ok(ExitCode::SUCCESS)
}

fn parse_node(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("must be NAMESPACE/NAME, as in blog/post-v2".to_owned()),
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let help = || "must be a number with a unit, as in 90s, 15m, 1h or 7d".to_owned();
    let unit = text.chars().last().ok_or_else(help)?;
    let number: u64 = text[..text.len() - unit.len_utf8()]
        .parse()
        .map_err(|_| help())?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(help()),
    };
    let ttl = Duration::from_secs(number.saturating_mul(seconds));
    if ttl < weft_control::token::MIN_TTL || ttl > weft_control::token::MAX_TTL {
        return Err("must be between 1s and 30d".to_owned());
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ca_init, parse_node, parse_ttl, roots};

    #[test]
    fn lifetimes() {
        for (text, seconds) in [
            ("1s", 1),
            ("90s", 90),
            ("15m", 900),
            ("1h", 3600),
            ("30d", 2_592_000),
        ] {
            assert_eq!(parse_ttl(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "1",
            "h",
            "0s",
            "31d",
            "1w",
            "-1h",
            "1 h",
            "99999999999999999999d",
            "1é",
        ] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_roots_of_a_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        assert_eq!(roots(&data).unwrap(), None);
        ca_init(&data, &"demo.mesh".parse().unwrap()).unwrap();
        let pem = roots(&data).unwrap().unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
        assert_eq!(pem.matches("BEGIN").count(), 1, "{pem}");
        let ca = data.join(super::CA_DIRECTORY);
        std::fs::remove_dir_all(&ca).unwrap();
        std::fs::create_dir(&ca).unwrap();
        assert!(roots(&data).is_err(), "an authority without files is none");
    }

    #[test]
    fn nodes() {
        assert_eq!(
            parse_node("blog/post"),
            Ok(("blog".to_owned(), "post".to_owned()))
        );
        for text in ["", "post", "/post", "blog/"] {
            assert!(parse_node(text).is_err(), "{text}");
        }
    }
}
