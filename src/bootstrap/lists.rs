//! The items of settings that are lists. Each parser says what it wants.

use std::net::{IpAddr, SocketAddr};

use http::uri::PathAndQuery;

/// The longest name of a label, a port or a service.
const MAX_NAME: usize = 253;

pub(super) fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err("a port, 1 to 65535".to_owned()),
    }
}

/// `8080/healthz?full=1`
pub(super) fn probe(text: &str) -> Result<(u16, PathAndQuery), String> {
    let wanted = || "a port and a path such as 8080/healthz".to_owned();
    let at = text.find('/').ok_or_else(wanted)?;
    let path = text[at..].parse().map_err(|_| wanted())?;
    Ok((port(&text[..at]).map_err(|_| wanted())?, path))
}

/// `50051` or `50051/shop.Cart`
pub(super) fn grpc_probe(text: &str) -> Result<(u16, Option<String>), String> {
    let wanted = || "a port, or a port and a service such as 50051/shop.Cart".to_owned();
    let (port_text, service) = match text.split_once('/') {
        Some((port, service)) => (port, Some(service)),
        None => (text, None),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if service.is_some_and(|s| s.is_empty() || s.len() > MAX_NAME || !s.chars().all(is_name)) {
        return Err(wanted());
    }
    let port = port(port_text).map_err(|_| wanted())?;
    Ok((port, service.map(str::to_owned)))
}

/// `10.0.0.2`, `10.0.0.2:5353`, `[fd00::2]:53`, `fd00::2`
pub(super) fn resolver(text: &str) -> Result<SocketAddr, String> {
    let address = match text.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, 53)),
        Err(_) => text.parse().ok(),
    };
    address
        .filter(|address| address.port() != 0)
        .ok_or_else(|| "an address of a resolver such as 10.96.0.10 or 10.96.0.10:53".to_owned())
}

pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let address = text.parse::<IpAddr>().ok();
    address
        .map(|ip| ip.to_canonical())
        .filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback())
        .ok_or_else(|| "an address where peers reach this workload, such as 10.0.0.7".to_owned())
}

/// `app=web`
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value))
            if !name.is_empty() && name.len() <= MAX_NAME && value.len() <= MAX_NAME =>
        {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("a label such as app=web".to_owned()),
    }
}

/// `http:8080` or `8080`
pub(super) fn named_port(text: &str) -> Result<(String, u16), String> {
    let (name, number) = text.split_once(':').unwrap_or(("", text));
    let wanted = || "a port such as http:8080 or 8080".to_owned();
    if name.len() > MAX_NAME || (name.is_empty() && text.contains(':')) {
        return Err(wanted());
    }
    Ok((name.to_owned(), port(number).map_err(|_| wanted())?))
}
