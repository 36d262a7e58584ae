//! Mode route: routing has brought to `lo` what applications send ([`super::super::policy`]), and
//! only what opens a connection, and DNS over UDP, is looked at. What follows finds its socket
//! without anybody's help, since nothing is translated; so conntrack has nothing to do.

use super::{Action, Chain, Hook, Kind, Match, Protocol, Rule, Rules, SOURCE_V4, SOURCE_V6, rule};
use crate::capture::options::Cidr;

/// The packet mark of a call of the workload to itself, from here to where it arrives on `lo`.
const SELF: u32 = super::MARK;
/// The same of a DNS query to an address of this host.
const DNS: u32 = 14_053;

impl Rules<'_> {
    /// All chains of this mode.
    pub(super) fn routed(&self) -> Vec<Chain> {
        let mangle = Kind::Mangle;
        let (output, prerouting) = (Some(Hook::Output), Some(Hook::Prerouting));
        vec![
            self.chain("leaving", mangle, output, self.leaving()),
            self.chain("leaving_sidecar", mangle, None, self.leaving_sidecar()),
            self.chain("leaving_application", mangle, None, {
                self.leaving_application()
            }),
            self.chain("inbound", mangle, prerouting, self.arriving()),
            self.chain("arriving_from_here", mangle, None, {
                self.arriving_from_here()
            }),
            self.chain("arriving_elsewhere", mangle, None, {
                self.arriving_elsewhere()
            }),
            self.chain("arriving_dns", mangle, None, self.arriving_dns()),
        ]
    }

    fn leaving(&self) -> Vec<Rule> {
        let user = Match::User(self.options.settings().proxy_uid);
        let mut rules = vec![
            // Nearly every packet ends here.
            rule([Match::NotOpening], Action::Leave),
            rule([user], Action::Goto("leaving_sidecar")),
        ];
        rules.extend(self.users("leaving_application"));
        rules
    }

    fn leaving_sidecar(&self) -> Vec<Rule> {
        let mut rules = vec![
            rule([Match::NotOutLoopback], Action::Leave),
            rule([Match::To(Cidr::LOOPBACK_V4)], Action::Leave),
            rule([Match::To(Cidr::LOOPBACK_V6)], Action::Leave),
            rule([Match::FromAddress(SOURCE_V4.into())], Action::Leave),
            rule([Match::FromAddress(SOURCE_V6.into())], Action::Leave),
        ];
        rules.extend(self.inbound_exceptions());
        rules.push(rule([Match::Tcp], Action::MarkPacket(SELF)));
        rules
    }

    /// Queries to addresses of this host need a mark, as they would be here without us. And what
    /// routing did not catch is dropped, not sent in plaintext: it is bound to an interface, or
    /// to a source port that is excluded on arrival.
    fn leaving_application(&self) -> Vec<Rule> {
        let mut rules = self.outbound_exceptions();
        let dns = self.dns_ports();
        for port in &dns {
            let local = [Match::OutLoopback, port.clone(), Match::ToLocal];
            rules.push(rule(local, Action::MarkPacket(DNS)));
        }
        rules.push(rule([Match::OutLoopback], Action::Leave));
        rules.push(rule([Match::Tcp], Action::Drop));
        rules.extend(dns.into_iter().map(|port| rule([port], Action::Drop)));
        rules
    }

    fn arriving(&self) -> Vec<Rule> {
        let mut rules = vec![
            // Nearly every packet ends here.
            rule([Match::NotOpening], Action::Leave),
            rule([Match::InLoopback], Action::Goto("arriving_from_here")),
            rule([Match::NotTcp], Action::Leave),
            rule([Match::NotToLocal], Action::Leave),
        ];
        rules.extend(self.inbound_exceptions());
        rules.extend(Self::to_sidecar(
            &Match::Tcp,
            self.options.settings().inbound_port,
        ));
        rules
    }

    fn arriving_from_here(&self) -> Vec<Rule> {
        let inbound = self.options.settings().inbound_port;
        let mut rules: Vec<_> = [
            Action::Tproxy(inbound),
            // Nobody listens.
            Action::Drop,
        ]
        .map(|action| rule([Match::PacketMarked(SELF), Match::Tcp], action))
        .into();
        if !self.dns_ports().is_empty() {
            let dns = Action::Goto("arriving_dns");
            rules.push(rule([Match::PacketMarked(DNS)], dns));
        }
        let elsewhere = Action::Goto("arriving_elsewhere");
        rules.push(rule([Match::NotToLocal], elsewhere));
        rules
    }

    fn arriving_elsewhere(&self) -> Vec<Rule> {
        let to_dns = |port| rule([port], Action::Goto("arriving_dns"));
        let mut rules: Vec<_> = self.dns_ports().into_iter().map(to_dns).collect();
        rules.extend(Self::to_sidecar(
            &Match::Tcp,
            self.options.settings().outbound_port,
        ));
        rules
    }

    fn arriving_dns(&self) -> Vec<Rule> {
        let port = self.options.settings().dns_port;
        let ports = self.dns_ports().into_iter();
        ports.flat_map(|dns| Self::to_sidecar(&dns, port)).collect()
    }

    /// To a port of the sidecar; while nobody listens there, nowhere.
    fn to_sidecar(what: &Match, port: u16) -> [Rule; 2] {
        [Action::Tproxy(port), Action::Drop].map(|action| rule([what.clone()], action))
    }

    fn dns_ports(&self) -> Vec<Match> {
        if !self.options.captures_dns() {
            return Vec::new();
        }
        [Protocol::Udp, Protocol::Tcp]
            .map(|protocol| Match::ToPort(protocol, 53))
            .into()
    }
}
