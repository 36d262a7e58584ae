//! Which ports a service of compose has, and what they speak.

use super::super::problem::Report;
use super::super::yaml::Node;

/// The longest range of ports, as in `3000-3005`.
const MAX_RANGE: u16 = 64;

/// A TCP port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// Its number.
    pub number: u16,
}

/// Ports of images that are well known, for services that declare none. The protocol is said
/// where detection would have to wait for the server to speak first.
const KNOWN: &[(&str, u16, &str)] = &[
    ("postgres", 5432, "tcp"),
    ("mysql", 3306, "tcp"),
    ("mariadb", 3306, "tcp"),
    ("redis", 6379, "tcp"),
    ("valkey", 6379, "tcp"),
    ("mongo", 27017, "tcp"),
    ("rabbitmq", 5672, "tcp"),
    ("nats", 4222, "tcp"),
    ("memcached", 11211, "tcp"),
    ("nginx", 80, "http"),
    ("httpd", 80, "http"),
    ("caddy", 80, "http"),
    ("elasticsearch", 9200, "http"),
];

fn known(service: &Node) -> Option<(u16, &'static str)> {
    let image = service.text_at(&["image"])?;
    let name = image.rsplit('/').next()?.split([':', '@']).next()?;
    let found = KNOWN.iter().find(|(known, ..)| *known == name)?;
    Some((found.1, found.2))
}

/// What a port of a well-known image speaks.
pub(super) fn known_protocol(service: &Node, port: u16) -> Option<&'static str> {
    let (number, protocol) = known(service)?;
    (number == port).then_some(protocol)
}

/// The ports in `expose` and `ports`, or that of a well-known image. What is not understood is
/// a warning.
pub(super) fn ports_of(service: &Node, at: &str, report: &mut Report) -> Vec<Port> {
    let mut numbers: Vec<u16> = Vec::new();
    for key in ["expose", "ports"] {
        for item in service.get(key).into_iter().flat_map(Node::items) {
            match container_ports(item) {
                Some(found) => numbers.extend(found),
                None => report.warn(format!(
                    "{at}.{key}: a port that is not understood is left out; write the container's port as a number"
                )),
            }
        }
    }
    if numbers.is_empty() {
        match known(service) {
            Some((port, _)) => numbers.push(port),
            None => report.warn(format!(
                "{at}: no port is known (an image's EXPOSE is not read): if others call it, declare `expose`"
            )),
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().map(|number| Port { number }).collect()
}

/// The TCP ports of one element: none for UDP, `None` if it is not understood.
fn container_ports(item: &Node) -> Option<Vec<u16>> {
    let is_udp = |protocol: &str| !protocol.eq_ignore_ascii_case("tcp");
    if item.is_map() {
        if item.text_at(&["protocol"]).is_some_and(is_udp) {
            return Some(Vec::new());
        }
        return one(item.get("target")?).map(|port| vec![port]);
    }
    if let Some(port) = one(item) {
        return Some(vec![port]);
    }
    let text = item.as_text()?;
    let (text, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    if is_udp(protocol) {
        return Some(Vec::new());
    }
    // `[address:][published:]container`, where the first two may hold anything.
    let container = text.rsplit(':').next()?;
    let (first, last) = container.split_once('-').unwrap_or((container, container));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    let range = first > 0 && first <= last && last - first < MAX_RANGE;
    range.then(|| (first..=last).collect())
}

fn one(node: &Node) -> Option<u16> {
    let number = match node.as_text() {
        Some(text) => text.parse().ok(),
        None => node
            .as_number()
            .and_then(|number| u16::try_from(number).ok()),
    };
    number.filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::super::super::yaml::parse;
    use super::*;

    fn found(service: &str) -> (Vec<u16>, usize) {
        let node = parse(service).unwrap().unwrap().root;
        let mut report = Report::default();
        let ports = ports_of(&node, "services.a", &mut report);
        let numbers = ports.into_iter().map(|port| port.number).collect();
        (numbers, report.warnings.len())
    }

    #[test]
    fn every_form_of_a_port() {
        for (service, expect, warnings) in [
            ("ports: [80]", &[80][..], 0),
            ("ports: ['80']", &[80], 0),
            ("ports: ['8080:80']", &[80], 0),
            ("ports:\n- 8080:80\n", &[80], 0),
            ("ports: ['127.0.0.1:8080:80/tcp']", &[80], 0),
            ("ports: ['[::1]:8080:80']", &[80], 0),
            ("ports: ['${P:-1}:80']", &[80], 0),
            ("ports: ['9000-9002:3000-3002']", &[3000, 3001, 3002], 0),
            ("ports: ['53:53/udp', '80']", &[80], 0),
            ("ports: [{target: 80, published: '8080'}]", &[80], 0),
            ("ports: [{target: 53, protocol: udp}, 1]", &[1], 0),
            ("expose: ['1-3', 2]", &[1, 2, 3], 0),
            ("ports: ['80:${P}', 1]", &[1], 1),
            ("ports: ['1-60000']", &[], 2),
            ("ports: [0]", &[], 2),
            ("image: docker.io/library/postgres:16", &[5432], 0),
            ("{image: 'postgres:16', expose: [5433]}", &[5433], 0),
            ("build: .", &[], 1),
        ] {
            assert_eq!(found(service), (expect.to_vec(), warnings), "{service}");
        }
    }
}
