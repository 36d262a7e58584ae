//! `weft run --print-unit`: the sidecar of a workload as units of systemd, for a process that
//! systemd runs already. The sockets are systemd's, so that a restart refuses no connection.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Which of the texts to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// All of them, each under the path of its file.
    All,
    /// The service unit.
    Service,
    /// The socket unit.
    Socket,
    /// The documents for the control plane.
    Mesh,
}

/// A sidecar with the usual ports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit<'a> {
    /// The workload.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// The control plane, `host:port`.
    pub control: &'a str,
    /// Where peers reach the sidecar.
    pub address: IpAddr,
    /// Local ports of upstreams.
    pub upstreams: &'a [u16],
    /// The documents of the workload.
    pub documents: &'a str,
}

/// The ports of a sidecar that has a machine to itself.
pub(crate) const OUTBOUND: u16 = 14001;
/// Where peers reach it.
pub(crate) const INBOUND: u16 = 14006;

impl Unit<'_> {
    /// The text of one part, or of all.
    pub(crate) fn print(&self, part: Part) -> String {
        match part {
            Part::Service => self.service(),
            Part::Socket => self.socket(),
            Part::Mesh => self.documents.to_owned(),
            Part::All => {
                let unit = self.unit();
                let mesh = format!("weft-data/config/{unit}.yaml on the control plane");
                let mut text = String::new();
                for (path, part) in [
                    (
                        format!("/etc/systemd/system/{unit}.service"),
                        self.service(),
                    ),
                    (format!("/etc/systemd/system/{unit}.socket"), self.socket()),
                    (mesh, self.documents.to_owned()),
                ] {
                    let gap = if text.is_empty() { "" } else { "\n" };
                    // A String takes everything.
                    let _ = write!(text, "{gap}# {path}\n{part}");
                }
                text
            }
        }
    }

    /// The name of the units.
    fn unit(&self) -> String {
        match self.namespace {
            "default" => format!("weft-{}", self.name),
            namespace => format!("weft-{}.{namespace}", self.name),
        }
    }

    fn service(&self) -> String {
        let unit = self.unit();
        let Self {
            name,
            namespace,
            control,
            ..
        } = self;
        format!(
            "[Unit]
Description=Weft sidecar of {namespace}/{name}
Wants=network-online.target
After=network-online.target
Requires={unit}.socket
After={unit}.socket

[Service]
Type=notify
# After an upgrade in place another process is the main one, and says so.
NotifyAccess=all
ExecStart=/usr/local/bin/weft-proxy run
ExecReload=/bin/kill -USR2 $MAINPID
Restart=on-failure
# Wrong settings do not get better.
RestartPreventExitStatus=2
TimeoutStopSec=40
User=14020
Group=14020
Environment=WEFT_PROXY_WORKLOAD={namespace}/{name}
Environment=WEFT_PROXY_CONTROL={control}
Environment=WEFT_PROXY_TOKEN_FILE=%d/token
Environment=WEFT_PROXY_STATE=%S/{unit}
StateDirectory={unit}
StateDirectoryMode=0700
LoadCredential=token:/etc/weft/{unit}.token
LimitNOFILE=65536
CapabilityBoundingSet=
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
"
        )
    }

    fn socket(&self) -> String {
        let inbound = match self.address {
            IpAddr::V4(address) => format!("{address}:{INBOUND}"),
            IpAddr::V6(address) => format!("[{address}]:{INBOUND}"),
        };
        let mut text = format!(
            "[Unit]
Description=Sockets of the Weft sidecar of {}/{}

[Socket]
ListenStream=127.0.0.1:{OUTBOUND}
ListenStream={inbound}
",
            self.namespace, self.name
        );
        for port in self.upstreams {
            let _ = writeln!(text, "ListenStream=127.0.0.1:{port}");
        }
        text += "ListenStream=127.0.0.1:14000
ListenStream=0.0.0.0:14020
FreeBind=yes
Backlog=1024

[Install]
WantedBy=sockets.target
";
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const UNIT: Unit<'_> = Unit {
        name: "web",
        namespace: "shop",
        control: "10.0.0.1:14012",
        address: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        upstreams: &[9000],
        documents: "kind: Workload\n",
    };

    #[test]
    fn the_parts() {
        assert_eq!(UNIT.print(Part::Mesh), "kind: Workload\n");
        let socket = UNIT.print(Part::Socket);
        for expect in ["=127.0.0.1:14001\n", "=[::1]:14006\n", "=127.0.0.1:9000\n"] {
            assert!(
                socket.contains(&format!("ListenStream{expect}")),
                "{socket}"
            );
        }
        let service = UNIT.print(Part::Service);
        for expect in [
            "Requires=weft-web.shop.socket\n",
            "Environment=WEFT_PROXY_WORKLOAD=shop/web\n",
            "Environment=WEFT_PROXY_CONTROL=10.0.0.1:14012\n",
            "ExecReload=/bin/kill -USR2 $MAINPID\n",
        ] {
            assert!(service.contains(expect), "{service}");
        }
        let all = UNIT.print(Part::All);
        for part in [&service, &socket] {
            assert!(all.contains(part.as_str()), "{all}");
        }
        assert!(all.starts_with("# /etc/systemd/system/weft-web.shop.service\n"));
    }

    #[test]
    fn every_variable_is_a_setting_of_the_sidecar() {
        let service = UNIT.print(Part::Service);
        let names = service.lines().filter_map(|line| {
            let line = line.strip_prefix("Environment=WEFT_PROXY_")?;
            Some(line.split_once('=')?.0)
        });
        for name in names {
            let known = weft_proxy::bootstrap::SETTINGS.iter().any(|s| s.0 == name);
            assert!(known, "WEFT_PROXY_{name} is no setting of the sidecar");
        }
    }

    #[test]
    fn systemd_accepts_the_units() {
        let directory = tempfile::tempdir().unwrap();
        let path = |suffix: &str| directory.path().join(format!("weft-web.shop.{suffix}"));
        // The program is not installed on the machine that tests.
        let service = UNIT.print(Part::Service);
        let service = service.replace("/usr/local/bin/weft-proxy", "/bin/true");
        std::fs::write(path("service"), service).unwrap();
        std::fs::write(path("socket"), UNIT.print(Part::Socket)).unwrap();
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .args([path("service"), path("socket")])
            .output();
        let Ok(verified) = verified else {
            println!("SKIPPED: systemd-analyze is not installed");
            return;
        };
        let words = String::from_utf8_lossy(&verified.stderr);
        let about_ours: Vec<&str> = words.lines().filter(|l| l.contains("weft-")).collect();
        assert!(
            verified.status.success() && about_ours.is_empty(),
            "{words}"
        );
    }
}
