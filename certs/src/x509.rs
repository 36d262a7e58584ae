//! Reading certificates: the few fields that the X.509-SVID rules need, each taken from an
//! extension that occurs at most once and parses to its end.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::extensions::{BasicConstraints, GeneralName, KeyUsage, ParsedExtension};
use x509_parser::oid_registry::{
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
};
use x509_parser::prelude::{FromDer, X509Certificate, X509Extension};

/// The bytes are no certificate, or an extension is malformed or occurs twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Parses one certificate without trailing bytes.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Malformed> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Malformed("there are bytes after the certificate")),
        Err(_) => Err(Malformed("it is not a DER certificate")),
    }
}

fn extension<'a, 'c>(
    certificate: &'a X509Certificate<'c>,
    oid: &Oid<'_>,
) -> Result<Option<&'a X509Extension<'c>>, Malformed> {
    certificate
        .get_extension_unique(oid)
        .map_err(|_| Malformed("an extension occurs twice"))
}

/// The basic constraints; `None` when absent.
pub(crate) fn basic_constraints<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<Option<&'a BasicConstraints>, Malformed> {
    let Some(extension) = extension(certificate, &OID_X509_EXT_BASIC_CONSTRAINTS)? else {
        return Ok(None);
    };
    match extension.parsed_extension() {
        ParsedExtension::BasicConstraints(constraints) => Ok(Some(constraints)),
        _ => Err(Malformed("the basic constraints cannot be read")),
    }
}

/// The key usage and whether it is critical; `None` when absent.
pub(crate) fn key_usage(
    certificate: &X509Certificate<'_>,
) -> Result<Option<(KeyUsage, bool)>, Malformed> {
    let Some(extension) = extension(certificate, &OID_X509_EXT_KEY_USAGE)? else {
        return Ok(None);
    };
    match extension.parsed_extension() {
        ParsedExtension::KeyUsage(usage) => Ok(Some((*usage, extension.critical))),
        _ => Err(Malformed("the key usage cannot be read")),
    }
}

/// The URIs among the subject alternative names, in order.
pub(crate) fn uri_names<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<Vec<&'a str>, Malformed> {
    let Some(extension) = extension(certificate, &OID_X509_EXT_SUBJECT_ALT_NAME)? else {
        return Ok(Vec::new());
    };
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        return Err(Malformed("the subject alternative names cannot be read"));
    };
    let mut uris = Vec::new();
    for name in &names.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => {
                return Err(Malformed("a subject alternative name cannot be read"));
            }
            _ => {}
        }
    }
    Ok(uris)
}

/// `notBefore` and `notAfter`. A time before 1970 counts as 1970.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    let validity = certificate.validity();
    (
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    )
}

/// Whether subject and issuer are the same name: the end of a chain.
pub(crate) fn is_self_issued(der: &CertificateDer<'_>) -> bool {
    parse(der)
        .is_ok_and(|certificate| certificate.subject().as_raw() == certificate.issuer().as_raw())
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// One PEM block of 64-column base64 lines.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text + "-----END " + label + "-----\n"
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn pem_reads_back_at_every_length() {
        for length in 1..200u8 {
            let bytes: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37) ^ length).collect();
            let text = pem("CERTIFICATE", &bytes);
            let read = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
            assert_eq!(&*read, bytes.as_slice());
            assert!(text.lines().all(|line| line.len() <= 64), "{text}");
        }
    }
}
