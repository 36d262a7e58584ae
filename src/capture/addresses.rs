//! Where this machine is reached: the addresses of the interface that a default route leaves by.
//!
//! Source: rtnetlink(7), `linux/rtnetlink.h`, `linux/if_addr.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::netlink::{DUMP, Message, Socket, attributes};

const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const MAIN_TABLE: u8 = 254;
const UNICAST: u8 = 1;
const EVERYWHERE: u8 = 0;

/// `IFA_F_TEMPORARY`; for IPv4 the same bit says that the address is not the interface's first.
const TEMPORARY: u32 = 0x01;
/// `IFA_F_DADFAILED`, `IFA_F_DEPRECATED` and `IFA_F_TENTATIVE`: not to be used (yet, any more).
const UNUSABLE: u32 = 0x08 | 0x20 | 0x40;

/// A default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DefaultRoute {
    is_ipv4: bool,
    interface: u32,
    /// The lowest is taken.
    metric: u32,
}

/// An address that peers may dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Own {
    interface: u32,
    address: IpAddr,
}

/// The addresses of the interface of the default route, of IPv4 and then of IPv6; none without
/// one.
///
/// # Errors
/// When the kernel does not tell.
pub fn addresses() -> Result<Vec<IpAddr>, Errno> {
    let (mut defaults, mut own) = (Vec::new(), Vec::new());
    let mut socket = Socket::open(None)?;
    let request = Message::new(
        GET_ROUTE,
        DUMP,
        &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    socket.dump(request, |kind, body| {
        if kind == NEW_ROUTE {
            defaults.extend(default(body));
        }
    })?;
    let request = Message::new(GET_ADDRESS, DUMP, &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0]);
    socket.dump(request, |kind, body| {
        if kind == NEW_ADDRESS {
            own.extend(usable(body));
        }
    })?;
    Ok(choose(&defaults, &own))
}

fn choose(defaults: &[DefaultRoute], own: &[Own]) -> Vec<IpAddr> {
    let mut chosen = Vec::new();
    for is_ipv4 in [true, false] {
        let default = defaults
            .iter()
            .filter(|default| default.is_ipv4 == is_ipv4)
            .min_by_key(|default| default.metric);
        let Some(default) = default else { continue };
        let on_it = own
            .iter()
            .filter(|one| one.interface == default.interface && one.address.is_ipv4() == is_ipv4);
        chosen.extend(on_it.map(|one| one.address));
    }
    chosen
}

/// The route, if it is a default one of the main table by one interface.
fn default(body: &[u8]) -> Option<DefaultRoute> {
    let (head, rest) = body.split_at_checked(12)?;
    let (family, prefix, table, kind) = (head[0], head[1], head[4], head[7]);
    let is_default = prefix == 0 && table == MAIN_TABLE && kind == UNICAST;
    if !is_default || ![AF_INET, AF_INET6].contains(&family) {
        return None;
    }
    Some(DefaultRoute {
        is_ipv4: family == AF_INET,
        interface: number(find(rest, 4)?)?,
        metric: find(rest, 6).and_then(number).unwrap_or(0),
    })
}

/// The address, if it is good for everybody and will stay.
fn usable(body: &[u8]) -> Option<Own> {
    let (head, rest) = body.split_at_checked(8)?;
    let (family, scope) = (head[0], head[3]);
    let flags = find(rest, 8).and_then(number);
    let flags = flags.unwrap_or_else(|| head[2].into());
    // On a point-to-point interface the first is the other side.
    let value = find(rest, 2).or_else(|| find(rest, 1))?;
    let address = match family {
        AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into(),
        AF_INET6 if flags & TEMPORARY != 0 => return None,
        AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into(),
        _ => return None,
    };
    (scope == EVERYWHERE && flags & UNUSABLE == 0).then_some(Own {
        interface: number(&head[4..])?,
        address,
    })
}

fn find(attributes_of: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut all = attributes(attributes_of);
    all.find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{DefaultRoute, Own, addresses, choose, default, usable};

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes
    }

    #[test]
    fn the_best_default_route_of_each_family_decides() {
        let default = |is_ipv4, interface, metric| DefaultRoute {
            is_ipv4,
            interface,
            metric,
        };
        let own = |interface, address: &str| Own {
            interface,
            address: address.parse().unwrap(),
        };
        let all = [
            own(1, "127.0.0.1"),
            own(2, "10.0.0.1"),
            own(2, "fd00::1"),
            own(3, "10.1.0.1"),
            own(2, "10.0.0.2"),
        ];
        for (defaults, expect) in [
            (&[][..], &[][..]),
            (&[default(true, 2, 0)], &["10.0.0.1", "10.0.0.2"]),
            (&[default(true, 2, 9), default(true, 3, 1)], &["10.1.0.1"]),
            (
                &[default(false, 2, 0), default(true, 3, 1)],
                &["10.1.0.1", "fd00::1"],
            ),
            (&[default(false, 3, 0)], &[]),
        ] {
            let chosen = choose(defaults, &all);
            let chosen: Vec<String> = chosen.iter().map(ToString::to_string).collect();
            assert_eq!(chosen, expect, "{defaults:?}");
        }
    }

    #[test]
    fn routes_that_are_no_default() {
        let route = |prefix: u8, table: u8, kind: u8| {
            let mut body = vec![2, prefix, 0, 0, table, 0, 0, kind, 0, 0, 0, 0];
            body.extend(attribute(4, &7_u32.to_ne_bytes()));
            body.extend(attribute(6, &5_u32.to_ne_bytes()));
            default(&body).map(|default| (default.is_ipv4, default.interface, default.metric))
        };
        assert_eq!(route(0, 254, 1), Some((true, 7, 5)));
        assert_eq!(route(8, 254, 1), None, "to a network");
        assert_eq!(route(0, 133, 1), None, "of another table");
        assert_eq!(route(0, 254, 7), None, "unreachable");
        assert_eq!(default(&[2, 0, 0]), None, "cut off");
    }

    #[test]
    fn addresses_that_come_and_go_are_left_out() {
        let address = |family: u8, flags: u8, scope: u8| {
            let mut body = vec![family, 24, 0, scope];
            body.extend(7_u32.to_ne_bytes());
            let value: &[u8] = if family == 2 {
                &[10, 0, 0, 1]
            } else {
                &[1; 16]
            };
            body.extend(attribute(1, value));
            body.extend(attribute(8, &u32::from(flags).to_ne_bytes()));
            usable(&body).is_some()
        };
        for (family, flags, scope, expect) in [
            (2, 0x80, 0, true),
            (2, 0x01, 0, true),
            (2, 0, 254, false),
            (10, 0x80, 0, true),
            (10, 0x01, 0, false),
            (10, 0x20, 0, false),
            (10, 0x40, 0, false),
            (10, 0, 253, false),
        ] {
            let found = address(family, flags, scope);
            assert_eq!(found, expect, "{family} {flags:#x} {scope}");
        }
        let mut tunnel = vec![2, 32, 0, 0, 7, 0, 0, 0];
        tunnel.extend(attribute(1, &[10, 0, 0, 2]));
        tunnel.extend(attribute(2, &[10, 0, 0, 1]));
        let own = usable(&tunnel).unwrap().address;
        assert_eq!(own.to_string(), "10.0.0.1");
    }

    #[test]
    fn the_kernel_is_understood() {
        for address in addresses().unwrap() {
            assert!(std::net::UdpSocket::bind((address, 0)).is_ok(), "{address}");
        }
    }
}
