//! `weft run --transparent`: the kernel leads the application's connections through its sidecar
//! for as long as both run. Rules and self test are those of `weft-proxy init`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::process::geteuid;
use tokio::time::Instant;
use weft_proxy::capture::{self, CaptureError, Options, PortRange, Proof, Settings};

use crate::output::{Exit, Failure, Output};
use crate::user::User;

/// The options of `--transparent`.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "With --transparent")]
pub(crate) struct Args {
    /// The application's connections pass the sidecar by themselves, and so do its callers'.
    ///
    /// The kernel leads them there, and the application's DNS queries: it calls services by name
    /// or address, and listens on its own addresses (those of the loopback interface stay
    /// private). Needs root. One workload a network namespace; docs/capture.md.
    #[arg(long, group = "placed")]
    transparent: bool,
    /// Who the application runs as; what this user sends is captured, and nothing else of the
    /// machine. Required without --all-traffic.
    #[arg(long, value_name = "NAME|UID", requires = "transparent")]
    user: Option<String>,
    /// Everything that enters or leaves the network namespace is captured, except for the
    /// sidecar's own: for containers and machines of this application alone.
    #[arg(long, requires = "transparent")]
    all_traffic: bool,
    /// Ports whose connections do not pass the sidecar, such as 22 for SSH: their callers use
    /// plaintext.
    #[arg(
        long,
        value_name = "PORTS",
        requires = "all_traffic",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    exclude_inbound_ports: Vec<u16>,
    /// DNS queries are not captured: services are called by address or through the HTTP proxy.
    #[arg(long, requires = "transparent")]
    no_dns: bool,
    /// The user of the sidecar; nobody else may run as it.
    #[arg(long, value_name = "UID", requires = "transparent", default_value_t = SIDECAR, value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    proxy_uid: u32,
    /// The group of the sidecar; nobody else may run as it.
    #[arg(long, value_name = "GID", requires = "transparent", default_value_t = SIDECAR, value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    proxy_gid: u32,
}

const SIDECAR: u32 = 14_020;
/// Where the sidecar of a captured workload listens.
const PORTS: [u16; 5] = [14_000, 14_001, 14_006, 14_020, 14_053];

/// What is captured, for whom; checked.
#[derive(Debug)]
pub(crate) struct Transparent {
    /// Who the application runs as.
    pub user: User,
    /// Where peers reach it; 1 to 9.
    pub addresses: Vec<IpAddr>,
    options: Options,
}

/// Rules that are in force; dropping them removes them.
#[derive(Debug)]
pub(crate) struct Captured {
    _claim: UnixListener,
}

impl Args {
    /// What the options ask for; none without `--transparent`. The ports are the application's
    /// and those that its upstreams have on localhost; without addresses the machine's are taken.
    ///
    /// # Errors
    ///
    /// A contradiction, a user who cannot be told apart, or no permission.
    pub(crate) fn check(
        &self,
        port: u16,
        local: &[u16],
        addresses: &[IpAddr],
    ) -> Result<Option<Transparent>, Failure> {
        if !self.transparent {
            return Ok(None);
        }
        let mut decided = self.decide(port, local, addresses)?;
        if !geteuid().is_root() {
            let message = "no permission to capture connections";
            return Err(Failure::new(Exit::NotPermitted, message).help(
                "run it as root (sudo weft run …), in a container with the capability NET_ADMIN; \
                 the application runs as its --user all the same",
            ));
        }
        if decided.addresses.is_empty() {
            decided.addresses = own_addresses()?;
        }
        Ok(Some(decided))
    }

    /// The same as far as the command line and the users of this machine tell.
    pub(crate) fn decide(
        &self,
        port: u16,
        local: &[u16],
        addresses: &[IpAddr],
    ) -> Result<Transparent, Failure> {
        let user = match &self.user {
            Some(text) => User::find(text).map_err(|error| usage(format!("--user: {error}")))?,
            None if self.all_traffic => User::own(),
            None => {
                let message = "--transparent needs --user: the traffic of that user is captured";
                return Err(usage(message).help(
                    "create a user for the application alone (useradd --system web); or, if the \
                     container or machine is for this application alone, --all-traffic",
                ));
            }
        };
        self.check_user(&user)?;
        let upstreams = local.iter().map(|port| ("--to", port));
        let mut ports = upstreams.chain([("--port", &port)]);
        if let Some((option, port)) = ports.find(|(_, port)| PORTS.contains(port)) {
            let message = format!("{option}: {port} is a port of the sidecar");
            return Err(usage(message).help(format!("use another than {PORTS:?}")));
        }
        check_addresses(addresses)?;
        Ok(Transparent {
            options: self.options(&user, port)?,
            user,
            addresses: addresses.to_vec(),
        })
    }

    fn check_user(&self, user: &User) -> Result<(), Failure> {
        let (uid, gid) = (self.proxy_uid, self.proxy_gid);
        if user.uid == uid || user.has_group(gid) {
            let message = format!(
                "{user} is the sidecar's user {uid} or in its group {gid}: nothing that it sends \
                 would be captured"
            );
            let help = "run the application as another --user, or the sidecar as others with \
                        --proxy-uid and --proxy-gid";
            return Err(usage(message).help(help));
        }
        if user.uid == 0 && !self.all_traffic {
            let message = "--user: root's traffic is that of the whole machine, not only of the \
                           application";
            return Err(usage(message).help(
                "run the application as a user of its own; or, if the machine is for it alone, \
                 --all-traffic",
            ));
        }
        Ok(())
    }

    fn options(&self, user: &User, port: u16) -> Result<Options, Failure> {
        let mut settings = Settings {
            dns: !self.no_dns,
            proxy_uid: self.proxy_uid,
            proxy_gid: self.proxy_gid,
            ..Settings::default()
        };
        if self.all_traffic {
            if self.exclude_inbound_ports.contains(&port) {
                let message = format!("--exclude-inbound-ports: {port} is also the --port");
                return Err(usage(message).help("a port passes the sidecar or it does not"));
            }
            let excluded = &self.exclude_inbound_ports;
            if excluded.len() > MOST_EXCLUDED {
                let message = format!("--exclude-inbound-ports: more than {MOST_EXCLUDED} ports");
                return Err(usage(message));
            }
            settings.exclude_inbound_ports = excluded
                .iter()
                .filter_map(|port| PortRange::one(*port))
                .collect();
        } else {
            settings.only_uids = vec![user.uid];
            settings.inbound_ports = Some(PortRange::one(port).into_iter().collect());
        }
        Options::new(settings).map_err(|error| usage(error.to_string()))
    }
}

/// As many as a Workload may have.
const MOST_EXCLUDED: usize = 64;
const MOST_ADDRESSES: usize = 9;

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

fn own_addresses() -> Result<Vec<IpAddr>, Failure> {
    let found = capture::own_addresses().map_err(|error| failed(&error))?;
    match found.len() {
        0 => {
            let message = "this machine has no default route that would tell its address";
            Err(Failure::new(Exit::Problems, message)
                .help("say where peers reach it with --address"))
        }
        count if count > MOST_ADDRESSES => {
            let message = format!("the interface of the default route has {count} addresses");
            Err(Failure::new(Exit::Problems, message).help(format!(
                "choose up to {MOST_ADDRESSES} of them with --address"
            )))
        }
        _ => Ok(found),
    }
}

fn check_addresses(addresses: &[IpAddr]) -> Result<(), Failure> {
    if addresses.len() > MOST_ADDRESSES {
        return Err(usage(format!(
            "--address: more than {MOST_ADDRESSES} addresses"
        )));
    }
    for (at, address) in addresses.iter().enumerate() {
        if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            let message = format!("--address: peers cannot reach this machine at {address}");
            return Err(usage(message).help("use one of the addresses that `ip address` shows"));
        }
        if addresses[..at].contains(address) {
            return Err(usage(format!("--address: {address} is given twice")));
        }
    }
    Ok(())
}

impl Transparent {
    /// The sidecar's user and group.
    pub(crate) fn sidecar(&self) -> (u32, u32) {
        let settings = self.options.settings();
        (settings.proxy_uid, settings.proxy_gid)
    }

    /// Whether the application resolves the names of services.
    pub(crate) fn captures_dns(&self) -> bool {
        self.options.captures_dns()
    }

    /// The ports that stay with the application; none: all but its own do, because it shares
    /// its addresses with others.
    pub(crate) fn excluded(&self) -> Option<Vec<u16>> {
        let settings = self.options.settings();
        let ports = |range: &PortRange| range.first()..=range.last();
        let excluded = || settings.exclude_inbound_ports.iter().flat_map(ports);
        settings
            .inbound_ports
            .is_none()
            .then(|| excluded().collect())
    }

    /// Puts the rules in force and proves that they work. What an earlier run has left behind
    /// when it was killed is replaced; the sidecar of that run is waited for. Cancel safe.
    ///
    /// # Errors
    ///
    /// Then nothing is left behind.
    pub(crate) async fn install(&self, out: &Output) -> Result<Captured, Failure> {
        let claim = claim()?;
        wait_for_ports(self.options.sidecar_ports(), out).await?;
        // Calls to the kernel and a self test of at most 2 s, while nothing else is to be done.
        let report = capture::install(&self.options).map_err(|error| failed(&error))?;
        let captured = Captured { _claim: claim };
        let proof = match self.options.settings().only_uids.as_slice() {
            [] => report.proof,
            _ => self.prove()?,
        };
        for note in report.notes.iter().chain(&proof.skipped) {
            out.say(format_args!(" ! {:<15} {note}", "capture"));
        }
        let families = if report.ipv6 { "IPv4 and IPv6" } else { "IPv4" };
        out.done(
            "capture",
            format_args!("{families}, by {}: {self}", report.backend),
        );
        Ok(captured)
    }

    /// The self test as the user whose connections are captured; ours are not.
    fn prove(&self) -> Result<Proof, Failure> {
        let as_user = |error| Failure::io(format_args!("cannot run as {}", self.user), &error);
        let checked = self
            .user
            .run(|| capture::check(&self.options))
            .map_err(as_user)?;
        checked.map_err(|error| match error {
            CaptureError::CheckFailed(why) => failed(&CaptureError::NotCaptured(why)),
            other => failed(&other),
        })
    }
}

impl std::fmt::Display for Transparent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.captures_dns() {
            "TCP and DNS"
        } else {
            "TCP"
        };
        let ports = |f: &mut std::fmt::Formatter<'_>, ports: &[PortRange]| {
            ports.iter().try_for_each(|port| write!(f, " {port}"))
        };
        let settings = self.options.settings();
        match &settings.inbound_ports {
            Some(inbound) => {
                write!(f, "{what} of user {}, callers of port", self.user)?;
                ports(f, inbound)
            }
            None if settings.exclude_inbound_ports.is_empty() => {
                write!(f, "{what} of everybody, callers of all ports")
            }
            None => {
                write!(f, "{what} of everybody, callers of all ports but")?;
                ports(f, &settings.exclude_inbound_ports)
            }
        }
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        if let Err(error) = capture::remove() {
            tracing::error!("{error}; remove the rules with `weft-proxy init --remove`");
        }
    }
}

/// The right to capture in this network namespace; the kernel takes it back when the process
/// ends, however it ends.
fn claim() -> Result<UnixListener, Failure> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let message = "another `weft run --transparent` has this network namespace";
            Failure::new(Exit::Problems, message).help(
                "one workload is captured in each: end the other one, or use a container or a \
                 network namespace (ip netns) for this one",
            )
        }
        _ => Failure::io("the claim on this network namespace", &error),
    };
    let address = SocketAddr::from_abstract_name(b"weft-capture").map_err(failed)?;
    UnixListener::bind_addr(&address).map_err(failed)
}

/// Waits until nobody has the ports that the rules lead to: the sidecar of a run that was killed
/// drains before it ends.
async fn wait_for_ports(ports: [u16; 5], out: &Output) -> Result<(), Failure> {
    let deadline = Instant::now() + PREDECESSOR;
    let mut told = false;
    for port in ports {
        while let Err(error) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
            if error.kind() != io::ErrorKind::AddrInUse || Instant::now() >= deadline {
                return Err(Failure::io(format_args!("port {port}"), &error)
                    .help("the sidecar needs it: end the process that has it (ss -ltnp)"));
            }
            if !told {
                out.say(format_args!(
                    " ! {:<15} port {port} is in use; waiting up to {} s: the sidecar of an earlier run may be about to end",
                    "capture",
                    PREDECESSOR.as_secs()
                ));
                told = true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// The time that the sidecar of a run that was killed may take to end.
const PREDECESSOR: Duration = Duration::from_secs(35);

fn failed(error: &CaptureError) -> Failure {
    let exit = match error {
        CaptureError::NotPermitted => Exit::NotPermitted,
        _ => Exit::Problems,
    };
    let message = match error {
        // `init` has an option for it that is not ours.
        CaptureError::NoLoopbackIpv6 => "IPv6 is on, but off for the loopback interface: set the \
                                         sysctl net.ipv6.conf.lo.disable_ipv6=0"
            .to_owned(),
        other => other.to_string(),
    };
    Failure::new(exit, format!("capture: {message}"))
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

    fn args(line: &str) -> Args {
        let words = std::iter::once("run").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().args
    }

    fn refused(line: &str, port: u16, address: &str) -> Failure {
        let addresses: Vec<IpAddr> = address.split(',').map(|one| one.parse().unwrap()).collect();
        args(line).decide(port, &[15_001], &addresses).unwrap_err()
    }

    #[test]
    fn contradictions_are_refused_with_words() {
        for (line, port, address, part) in [
            ("", 80, "10.0.0.1", "needs --user"),
            ("--user 0", 80, "10.0.0.1", "root's traffic"),
            ("--user 14020", 80, "10.0.0.1", "the sidecar's user 14020"),
            (
                "--user 40007 --proxy-gid 40007",
                80,
                "10.0.0.1",
                "its group 40007",
            ),
            (
                "--all-traffic --user 40009 --proxy-uid 40009",
                80,
                "10.0.0.1",
                "the sidecar's user 40009",
            ),
            (
                "--user no-such-user",
                80,
                "10.0.0.1",
                "--user: there is no user",
            ),
            (
                "--user 40007",
                14_006,
                "10.0.0.1",
                "--port: 14006 is a port of the sidecar",
            ),
            (
                "--user 40007",
                80,
                "127.0.0.1",
                "--address: peers cannot reach",
            ),
            ("--user 40007", 80, "::", "--address: peers cannot reach"),
            ("--user 40007", 80, "10.0.0.1,10.0.0.1", "given twice"),
            (
                "--all-traffic --exclude-inbound-ports 22,80",
                80,
                "10.0.0.1",
                "80 is also the --port",
            ),
            (
                "--all-traffic --exclude-inbound-ports 14020",
                80,
                "10.0.0.1",
                "14020",
            ),
        ] {
            let line = format!("--transparent {line}");
            let failure = refused(&line, port, address);
            assert_eq!(failure.exit, Exit::Usage, "{line}: {failure}");
            assert!(failure.to_string().contains(part), "{line}: {failure}");
        }
        let local = args("--transparent --user 40007")
            .decide(80, &[14_053], &[])
            .unwrap_err();
        assert!(local.message.contains("--to: 14053"), "{local}");
        let many = (1..=10)
            .map(|last| format!("10.0.0.{last}"))
            .collect::<Vec<_>>();
        let many = refused("--transparent --user 40007", 80, &many.join(","));
        assert!(many.message.contains("more than 9"), "{many}");
    }

    #[test]
    fn only_root_captures() {
        let args = args("--transparent --user 40007");
        let checked = args.check(80, &[], &["10.0.0.1".parse().unwrap()]);
        if geteuid().is_root() {
            assert!(checked.unwrap().is_some());
        } else {
            let failure = checked.unwrap_err();
            assert_eq!(failure.exit, Exit::NotPermitted);
            assert!(failure.to_string().contains("sudo weft run"), "{failure}");
        }
    }

    #[test]
    fn without_transparent_its_options_are_errors() {
        assert!(args("").check(80, &[], &[]).unwrap().is_none());
        for line in [
            "--user web",
            "--all-traffic",
            "--no-dns",
            "--proxy-uid 7",
            "--transparent --exclude-inbound-ports 22",
            "--transparent --proxy-uid 0",
            "--transparent --proxy-gid 4294967295",
            "--transparent --all-traffic --exclude-inbound-ports 0",
        ] {
            let words = std::iter::once("run").chain(line.split(' '));
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn who_and_what_is_captured() {
        for (line, only, inbound, excluded, shown) in [
            (
                "--user 40007",
                &[40_007_u32][..],
                Some(1),
                None,
                "TCP and DNS of user 40007, callers of port 80",
            ),
            (
                "--user 40007 --no-dns",
                &[40_007],
                Some(1),
                None,
                "TCP of user 40007, callers of port 80",
            ),
            (
                "--all-traffic",
                &[],
                None,
                Some(vec![]),
                "TCP and DNS of everybody, callers of all ports",
            ),
            (
                "--all-traffic --exclude-inbound-ports 22,9100,9101",
                &[],
                None,
                Some(vec![22, 9100, 9101]),
                "TCP and DNS of everybody, callers of all ports but 22 9100-9101",
            ),
        ] {
            let args = args(&format!("--transparent {line}"));
            let user = args
                .user
                .as_deref()
                .map_or_else(User::own, |text| User::find(text).unwrap());
            let options = args.options(&user, 80).unwrap();
            let settings = options.settings();
            assert_eq!(settings.only_uids, only, "{line}");
            assert_eq!(
                settings.inbound_ports.as_ref().map(Vec::len),
                inbound,
                "{line}"
            );
            let transparent = Transparent {
                user,
                addresses: Vec::new(),
                options,
            };
            assert_eq!(transparent.excluded(), excluded, "{line}");
            assert_eq!(transparent.to_string(), shown);
            assert_eq!(transparent.captures_dns(), !line.contains("no-dns"));
            assert_eq!(transparent.sidecar(), (14_020, 14_020));
            assert_eq!(transparent.options.sidecar_ports(), PORTS);
        }
    }
}
