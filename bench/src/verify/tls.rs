//! Reads TLS from the outside: record headers, and the version that the server chose. Pure.

use super::relay::Recording;

const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const TLS13: u16 = 0x0304;

/// Why a recorded connection is not TLS 1.3 throughout; `Ok` says how many records it had.
pub(crate) fn check(recording: &Recording) -> Result<usize, String> {
    let sent = records(&recording.sent).map_err(|error| format!("client to server: {error}"))?;
    let received =
        records(&recording.received).map_err(|error| format!("server to client: {error}"))?;
    match sent.first() {
        Some(record) if record.kind == HANDSHAKE => {}
        _ => return Err("the client did not begin with a handshake record".to_owned()),
    }
    match received.first().map(|record| chosen_version(record)) {
        Some(Some(TLS13)) => {}
        Some(Some(version)) => return Err(format!("the server chose version {version:#06x}")),
        _ => {
            return Err(
                "the server did not answer with a ServerHello that names a version".to_owned(),
            );
        }
    }
    // In TLS 1.3 the hellos are all of the handshake that is readable.
    let readable = |record: &&Record<'_>| {
        !matches!(record.kind, CHANGE_CIPHER_SPEC | APPLICATION_DATA) && !is_hello(record)
    };
    if let Some(record) = sent.iter().chain(&received).find(readable) {
        let (kind, first) = (record.kind, record.body.first());
        return Err(format!(
            "a record of type {kind} is not encrypted; its first byte: {first:?}"
        ));
    }
    Ok(sent.len() + received.len())
}

/// A ClientHello or ServerHello (which may also be a HelloRetryRequest).
fn is_hello(record: &Record<'_>) -> bool {
    record.kind == HANDSHAKE && matches!(record.body.first(), Some(1 | 2))
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record<'a> {
    kind: u8,
    body: &'a [u8],
}

/// Splits a stream; the last record may be cut off by the end of the recording.
fn records(mut stream: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut records = Vec::new();
    while let [kind, major, minor, high, low, rest @ ..] = stream {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // change_cipher_spec, alert, handshake, application_data; at most 2^14 + 256 bytes.
        if !(20..=23).contains(kind) || *major != 3 || !(1..=3).contains(minor) || length > 16_640 {
            let shown: Vec<String> = stream
                .iter()
                .take(16)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            return Err(format!(
                "no TLS record after {} records: {}",
                records.len(),
                shown.join(" ")
            ));
        }
        let body = &rest[..length.min(rest.len())];
        records.push(Record { kind: *kind, body });
        stream = &rest[body.len()..];
    }
    Ok(records)
}

/// The `supported_versions` extension of a ServerHello.
fn chosen_version(record: &Record<'_>) -> Option<u16> {
    let be16 = |bytes: &[u8]| Some(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]));
    if record.kind != HANDSHAKE || *record.body.first()? != 2 {
        return None;
    }
    // Handshake header 4, version 2, random 32; then the session id.
    let rest = record.body.get(4 + 2 + 32..)?;
    let session = usize::from(*rest.first()?);
    // Cipher suite 2, compression 1, length of extensions 2.
    let mut extensions = rest.get(1 + session + 2 + 1 + 2..)?;
    while extensions.len() >= 4 {
        let (kind, length) = (be16(extensions)?, usize::from(be16(&extensions[2..])?));
        let body = extensions.get(4..4 + length)?;
        if kind == 43 {
            return be16(body);
        }
        extensions = &extensions[4 + length..];
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::accept;
    use crate::floor::{client_config, server_config};
    use crate::pki::{self, Files, SERVER_NAME};
    use crate::process::free_address;
    use crate::verify::relay::Relay;

    #[tokio::test]
    async fn a_real_connection_is_recognized() {
        let dir = tempfile::tempdir().unwrap();
        pki::write(dir.path()).unwrap();
        let server_tls = TlsAcceptor::from(Arc::new(
            server_config(&Files::of(dir.path(), "server")).unwrap(),
        ));
        let client_tls = TlsConnector::from(Arc::new(
            client_config(&Files::of(dir.path(), "client")).unwrap(),
        ));
        let (outer, inner) = (free_address().unwrap(), free_address().unwrap());
        let listener = accept::bind(inner).await.unwrap();
        let relay = Relay::start(outer, inner).await.unwrap();
        let server = async {
            let mut stream = server_tls
                .accept(accept::next(&listener).await)
                .await
                .unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            stream.write_all(&byte).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let client = async {
            let stream = TcpStream::connect(outer).await.unwrap();
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            let mut stream = client_tls.connect(name, stream).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
        };
        tokio::join!(server, client);
        let recording = &relay.recordings()[0];
        assert!(check(recording).unwrap() > 4);
        // One plaintext byte among the records, and a version that was not negotiated.
        let mut leaky = recording.clone();
        leaky.sent.extend(b"GET / HTTP/1.1");
        assert!(
            check(&leaky)
                .unwrap_err()
                .starts_with("client to server: no TLS record")
        );
        let mut readable = recording.clone();
        readable.received.extend([22, 3, 3, 0, 1, 11]);
        assert_eq!(
            check(&readable).unwrap_err(),
            "a record of type 22 is not encrypted; its first byte: Some(11)"
        );
        let mut old = recording.clone();
        let at = old
            .received
            .windows(6)
            .position(|window| window == [0, 43, 0, 2, 3, 4])
            .unwrap();
        old.received[at + 5] = 3;
        assert_eq!(check(&old).unwrap_err(), "the server chose version 0x0303");
    }

    #[test]
    fn plaintext_is_not_tls() {
        let plain = Recording {
            sent: b"GET / HTTP/1.1\r\n".to_vec(),
            received: Vec::new(),
        };
        assert!(
            check(&plain)
                .unwrap_err()
                .contains("no TLS record after 0 records")
        );
        let nothing = Recording::default();
        assert!(check(&nothing).unwrap_err().contains("did not begin"));
    }

    #[test]
    fn a_record_may_be_cut_off_at_the_end() {
        let stream = [23, 3, 3, 0, 4, 1, 2, 3, 4, 23, 3, 3, 0, 9, 1];
        let kinds: Vec<_> = records(&stream)
            .unwrap()
            .iter()
            .map(|record| record.body.len())
            .collect();
        assert_eq!(kinds, [4, 1]);
    }
}
