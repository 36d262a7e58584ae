//! The matrix of certificates: each with one thing different from a good one, judged by the
//! verifier directly, by a server that meets it as a client, and by a client that meets it
//! as a server. Exactly the valid ones may pass.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DnType,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, KeyUsagePurpose as Ku, NameConstraints,
    SanType,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{handshake, show};
use crate::cert::WorkloadCert;
use crate::testing::TestPki;
use crate::tls::{client_config, server_config};
use crate::verify::{
    MAX_CHAIN, PinnedRoot, SvidError, SvidVerifier, peer_id, svid_error, svid_error_of_io,
};

const HOUR: Duration = Duration::from_secs(3600);

/// The slug of the refusal in each role; `None` is acceptance.
struct Case {
    name: &'static str,
    cert: WorkloadCert,
    as_client: Option<&'static str>,
    as_server: Option<&'static str>,
}

fn case(name: &'static str, cert: WorkloadCert, verdict: Option<&'static str>) -> Case {
    Case {
        name,
        cert,
        as_client: verdict,
        as_server: verdict,
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// An extension with the content given in DER.
fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

const OID_KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const OID_SAN: &[u64] = &[2, 5, 29, 17];
const OID_BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
/// A BIT STRING with digitalSignature.
const DIGITAL_SIGNATURE: &[u8] = &[3, 2, 7, 0x80];

/// GeneralNames with one URI of raw bytes.
fn raw_uri(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    [&[0x30, length + 2, 0x86, length], bytes].concat()
}

type Change = Box<dyn FnOnce(&mut CertificateParams)>;

fn change(change: impl FnOnce(&mut CertificateParams) + 'static) -> Change {
    Box::new(change)
}

fn names(names: Vec<SanType>) -> Change {
    change(move |params| params.subject_alt_names = names)
}

fn usages(usages: &'static [Ku]) -> Change {
    change(move |params| params.key_usages = usages.to_vec())
}

/// Replaces a standard extension that the parameters no longer write.
fn replaced(clear: impl FnOnce(&mut CertificateParams) + 'static, by: CustomExtension) -> Change {
    change(move |params| {
        clear(params);
        params.custom_extensions.push(by);
    })
}

/// Leaves that differ in their own fields, and the verdict for both roles.
fn leaf_changes() -> Vec<(&'static str, Change, Option<&'static str>)> {
    let id = "spiffe://td/ns/a/sa/b";
    let one = |text: &str| names(vec![uri(text)]);
    let long = format!("spiffe://td/{}", "x".repeat(2037));
    vec![
        ("good", change(|_| {}), None),
        (
            "no extended key usage",
            change(|p| p.extended_key_usages.clear()),
            None,
        ),
        ("a DNS name too", names(vec![uri(id), dns("a.test")]), None),
        (
            "no basic constraints",
            change(|p| p.is_ca = IsCa::NoCa),
            None,
        ),
        (
            "a subject",
            change(|p| p.distinguished_name.push(DnType::CommonName, "x")),
            None,
        ),
        ("another path shape", one("spiffe://td/anything"), None),
        (
            "keyAgreement too",
            usages(&[Ku::DigitalSignature, Ku::KeyAgreement]),
            None,
        ),
        ("no name", names(vec![]), Some("no_uri_san")),
        (
            "a DNS name only",
            names(vec![dns("a.test")]),
            Some("no_uri_san"),
        ),
        (
            "the ID in the CN only",
            change(|p| {
                p.subject_alt_names.clear();
                p.distinguished_name
                    .push(DnType::CommonName, "spiffe://td/ns/a/sa/b");
            }),
            Some("no_uri_san"),
        ),
        (
            "the ID as a DNS name",
            names(vec![dns(id)]),
            Some("no_uri_san"),
        ),
        (
            "two URIs",
            names(vec![uri(id), uri("spiffe://td/ns/a/sa/c")]),
            Some("many_uri_sans"),
        ),
        (
            "the URI twice",
            names(vec![uri(id), uri(id)]),
            Some("many_uri_sans"),
        ),
        (
            "a second URI of http",
            names(vec![uri(id), uri("http://td/x")]),
            Some("many_uri_sans"),
        ),
        ("http", one("http://td/ns/a/sa/b"), Some("bad_id")),
        ("no path", one("spiffe://td"), Some("no_path")),
        ("a slash for a path", one("spiffe://td/"), Some("bad_id")),
        (
            "upper-case trust domain",
            one("spiffe://TD/ns/a/sa/b"),
            Some("bad_id"),
        ),
        (
            "upper-case scheme",
            one("SPIFFE://td/ns/a/sa/b"),
            Some("bad_id"),
        ),
        (
            "percent-encoding",
            one("spiffe://td/ns/a/sa/%62"),
            Some("bad_id"),
        ),
        (
            "dot segments",
            one("spiffe://td/ns/x/../a/sa/b"),
            Some("bad_id"),
        ),
        (
            "a dot segment",
            one("spiffe://td/./ns/a/sa/b"),
            Some("bad_id"),
        ),
        ("query", one("spiffe://td/ns/a/sa/b?x"), Some("bad_id")),
        ("fragment", one("spiffe://td/ns/a/sa/b#x"), Some("bad_id")),
        ("user", one("spiffe://u@td/ns/a/sa/b"), Some("bad_id")),
        ("port", one("spiffe://td:443/ns/a/sa/b"), Some("bad_id")),
        ("NUL", one("spiffe://td/ns/a/sa/b\0.evil"), Some("bad_id")),
        (
            "trailing slash",
            one("spiffe://td/ns/a/sa/b/"),
            Some("bad_id"),
        ),
        (
            "double slash",
            one("spiffe://td/ns//a/sa/b"),
            Some("bad_id"),
        ),
        ("empty URI", one(""), Some("bad_id")),
        ("too long", one(&long), Some("bad_id")),
        (
            "a byte that is no text in the URI",
            replaced(
                |p| p.subject_alt_names.clear(),
                extension(OID_SAN, true, &raw_uri(b"spiffe://td/ns/a/sa/\xff")),
            ),
            Some("malformed"),
        ),
        (
            "UTF-8 in the URI",
            replaced(
                |p| p.subject_alt_names.clear(),
                extension(OID_SAN, true, &raw_uri("spiffe://td/ns/a/sa/é".as_bytes())),
            ),
            Some("bad_id"),
        ),
        (
            "names twice",
            replaced(
                |_| {},
                extension(OID_SAN, true, &raw_uri(b"spiffe://td/ns/a/sa/c")),
            ),
            Some("malformed"),
        ),
        (
            "other trust domain",
            one("spiffe://td2/ns/a/sa/b"),
            Some("unknown_trust_domain"),
        ),
        ("no key usage", usages(&[]), Some("key_usage")),
        (
            "no digitalSignature",
            usages(&[Ku::KeyAgreement]),
            Some("key_usage"),
        ),
        (
            "keyCertSign",
            usages(&[Ku::DigitalSignature, Ku::KeyCertSign]),
            Some("key_usage"),
        ),
        (
            "cRLSign",
            usages(&[Ku::DigitalSignature, Ku::CrlSign]),
            Some("key_usage"),
        ),
        (
            "key usage not critical",
            replaced(
                |p| p.key_usages.clear(),
                extension(OID_KEY_USAGE, false, DIGITAL_SIGNATURE),
            ),
            Some("key_usage"),
        ),
        (
            "key usage twice",
            replaced(|_| {}, extension(OID_KEY_USAGE, true, DIGITAL_SIGNATURE)),
            Some("malformed"),
        ),
        (
            "key usage that is no bit string",
            replaced(
                |p| p.key_usages.clear(),
                extension(OID_KEY_USAGE, true, &[4, 1, 0x80]),
            ),
            Some("malformed"),
        ),
        (
            "a CA",
            change(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            Some("is_ca"),
        ),
        (
            "basic constraints that cannot be read",
            replaced(
                |p| p.is_ca = IsCa::NoCa,
                extension(OID_BASIC_CONSTRAINTS, true, &[4, 1, 0xff]),
            ),
            Some("malformed"),
        ),
        (
            "code signing only",
            change(|p| p.extended_key_usages = vec![Eku::CodeSigning]),
            Some("extended_key_usage"),
        ),
        (
            "unknown critical extension",
            replaced(
                |_| {},
                extension(&[1, 3, 6, 1, 4, 1, 99999, 1], true, &[5, 0]),
            ),
            Some("chain"),
        ),
        (
            "unknown extension",
            replaced(
                |_| {},
                extension(&[1, 3, 6, 1, 4, 1, 99999, 1], false, &[5, 0]),
            ),
            None,
        ),
    ]
}

/// Leaves that differ in their validity. The bound is inclusive, and 5 minutes of skew are
/// tolerated at the start, not at the end.
fn validity_cases(pki: &TestPki) -> Vec<Case> {
    let now = pki.clock.now();
    let minute = Duration::from_secs(60);
    let from = |ahead: Duration| {
        pki.mutated("a", "b", |p| {
            p.not_before = OffsetDateTime::from(now + ahead)
        })
    };
    let to = |behind: Duration| {
        pki.mutated("a", "b", |p| {
            p.not_after = OffsetDateTime::from(now - behind)
        })
    };
    vec![
        case("begins in 4 minutes", from(4 * minute), None),
        case(
            "begins in 6 minutes",
            from(6 * minute),
            Some("not_yet_valid"),
        ),
        case("ended a minute ago", to(minute), Some("expired")),
        case(
            "ends before it begins",
            pki.mutated("a", "b", |p| p.not_after = p.not_before - minute),
            Some("expired"),
        ),
        case(
            "the intermediate expired",
            pki.mutated_chain("a", "b", |upper, _| {
                upper.not_after = OffsetDateTime::from(now - minute);
            }),
            Some("expired"),
        ),
        case(
            "the intermediate begins in an hour",
            pki.mutated_chain("a", "b", |upper, _| {
                upper.not_before = OffsetDateTime::from(now + HOUR);
            }),
            Some("not_yet_valid"),
        ),
    ]
}

/// Chains that differ in the intermediate.
fn intermediate_cases(pki: &TestPki) -> Vec<Case> {
    let upper = |change: &dyn Fn(&mut CertificateParams)| {
        pki.mutated_chain("a", "b", |upper, _| change(upper))
    };
    let refused = Some("intermediate");
    vec![
        case("good intermediate", upper(&|_| {}), None),
        case(
            "without an ID",
            upper(&|p| p.subject_alt_names.clear()),
            None,
        ),
        case(
            "with a DNS name",
            upper(&|p| p.subject_alt_names = vec![dns("a.test")]),
            None,
        ),
        case(
            "no keyCertSign",
            upper(&|p| p.key_usages = vec![Ku::CrlSign]),
            refused,
        ),
        case("no key usage", upper(&|p| p.key_usages.clear()), refused),
        case(
            "not a CA",
            upper(&|p| p.is_ca = IsCa::ExplicitNoCa),
            refused,
        ),
        case(
            "no basic constraints",
            upper(&|p| p.is_ca = IsCa::NoCa),
            refused,
        ),
        case(
            "of another trust domain",
            upper(&|p| p.subject_alt_names = vec![uri("spiffe://td2")]),
            refused,
        ),
        case(
            "with the ID of a workload",
            upper(&|p| p.subject_alt_names = vec![uri("spiffe://td/ns/a/sa/b")]),
            refused,
        ),
        case(
            "with two IDs",
            upper(&|p| p.subject_alt_names = vec![uri("spiffe://td"), uri("spiffe://td2")]),
            refused,
        ),
        // The library refuses these always, permitted or not.
        case(
            "with URI name constraints",
            upper(&|p| {
                p.custom_extensions.push(extension(
                    &[2, 5, 29, 30],
                    true,
                    // permittedSubtrees [0] { base [6] "td" }
                    &[0x30, 8, 0xa0, 6, 0x30, 4, 0x86, 2, b't', b'd'],
                ));
            }),
            Some("chain"),
        ),
        case(
            "with other name constraints",
            upper(&|p| {
                p.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![],
                    excluded_subtrees: vec![GeneralSubtree::IpAddress(
                        CidrSubnet::from_addr_prefix([10, 0, 0, 0].into(), 8),
                    )],
                });
            }),
            None,
        ),
    ]
}

/// Chains whose pieces do not fit.
fn chain_cases(pki: &TestPki) -> Vec<Case> {
    let with_chain = |chain: Vec<CertificateDer<'static>>| {
        let mut cert = pki.issue("a", "b");
        cert.chain = chain;
        cert
    };
    let edit = |edit: &dyn Fn(&mut WorkloadCert)| {
        let mut cert = pki.issue("a", "b");
        edit(&mut cert);
        cert
    };
    let foreign = TestPki::at("td2", pki.clock.now());
    let namesake = TestPki::at("td", pki.clock.now());
    let mut mixed = pki.issue("a", "b");
    mixed.chain[1] = namesake.issue("a", "b").chain[1].clone();
    vec![
        case("without the root", edit(&|c| c.chain.truncate(2)), None),
        case(
            "root before intermediate",
            edit(&|c| c.chain.swap(1, 2)),
            None,
        ),
        case(
            "without the intermediate",
            edit(&|c| c.chain.truncate(1)),
            Some("untrusted"),
        ),
        case("another CA's intermediate", mixed, Some("untrusted")),
        case(
            "an unknown trust domain",
            foreign.issue("a", "b"),
            Some("unknown_trust_domain"),
        ),
        case(
            "another CA of the same name",
            namesake.issue("a", "b"),
            Some("untrusted"),
        ),
        case(
            "self-signed",
            with_chain(vec![self_signed(pki)]),
            Some("untrusted"),
        ),
        case(
            "a leaf as intermediate",
            edit(&|c| c.chain.push(c.chain[0].clone())),
            Some("intermediate"),
        ),
        case(
            "a broken signature",
            edit(&|c| {
                let mut bytes = c.chain[0].to_vec();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                c.chain[0] = bytes.into();
            }),
            Some("untrusted"),
        ),
        case(
            "junk after the leaf",
            edit(&|c| c.chain[0] = [c.chain[0].as_ref(), &[0]].concat().into()),
            Some("malformed"),
        ),
        case(
            "junk for a leaf",
            edit(&|c| c.chain[0] = vec![1, 2, 3].into()),
            Some("malformed"),
        ),
        case(
            "junk for an intermediate",
            edit(&|c| c.chain[1] = vec![1, 2, 3].into()),
            Some("malformed"),
        ),
        case(
            "the longest chain",
            edit(&|c| c.chain.resize(MAX_CHAIN, c.chain[1].clone())),
            None,
        ),
        case(
            "a longer chain",
            edit(&|c| c.chain.resize(MAX_CHAIN + 1, c.chain[1].clone())),
            Some("chain_too_long"),
        ),
    ]
}

fn self_signed(pki: &TestPki) -> CertificateDer<'static> {
    pki.mutated_root(|params| {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![Ku::DigitalSignature];
        params.subject_alt_names = vec![uri("spiffe://td/ns/a/sa/b")];
    })
}

/// Leaves for one side of TLS only.
fn role_cases(pki: &TestPki) -> Vec<Case> {
    let only = |usage: Eku| pki.mutated("a", "b", |p| p.extended_key_usages = vec![usage]);
    vec![
        Case {
            name: "server only",
            cert: only(Eku::ServerAuth),
            as_client: Some("extended_key_usage"),
            as_server: None,
        },
        Case {
            name: "client only",
            cert: only(Eku::ClientAuth),
            as_client: None,
            as_server: Some("extended_key_usage"),
        },
    ]
}

fn matrix(pki: &TestPki) -> Vec<Case> {
    let leaves = leaf_changes().into_iter();
    let mut cases: Vec<Case> = leaves
        .map(|(name, change, verdict)| case(name, pki.mutated("a", "b", change), verdict))
        .collect();
    cases.extend(validity_cases(pki));
    cases.extend(intermediate_cases(pki));
    cases.extend(chain_cases(pki));
    cases.extend(role_cases(pki));
    cases
}

fn slug<T>(result: &Result<T, SvidError>) -> Option<&'static str> {
    result.as_ref().err().map(SvidError::slug)
}

#[test]
fn the_matrix_by_the_verifier() {
    let pki = TestPki::new("td");
    let verifier = pki.verifier();
    for case in matrix(&pki) {
        let result = verifier.verify(&case.cert.chain[0], &case.cert.chain[1..]);
        let expected = case.as_client.or(case.as_server);
        assert_eq!(slug(&result), expected, "{}: {result:?}", case.name);
        if let Ok(id) = result {
            assert_eq!(Ok(id), peer_id(&case.cert.chain), "{}", case.name);
        }
    }
}

#[test]
fn the_matrix_as_client() {
    let pki = TestPki::new("td");
    let good = pki.issue("server", "s").resolver().unwrap();
    let server = Arc::new(server_config(Arc::new(pki.verifier()), good, &[]));
    for case in matrix(&pki) {
        let client = client_config(Arc::new(pki.verifier()), Some(show(&case.cert)), &[]);
        match handshake(&Arc::new(client), &server) {
            Ok(ends) => {
                assert_eq!(case.as_client, None, "{} was accepted", case.name);
                let shown = ends.server.peer_certificates().unwrap();
                assert_eq!(shown, case.cert.chain, "{}", case.name);
            }
            Err(failed) => {
                let error = failed.server.unwrap_or_else(|| panic!("{}", case.name));
                let found = svid_error(&error).map(SvidError::slug);
                assert_eq!(found, case.as_client, "{}: {error}", case.name);
            }
        }
    }
}

#[test]
fn the_matrix_as_server() {
    let pki = TestPki::new("td");
    let good = pki.issue("client", "c").resolver().unwrap();
    let client = Arc::new(client_config(Arc::new(pki.verifier()), Some(good), &[]));
    for case in matrix(&pki) {
        let server = server_config(Arc::new(pki.verifier()), show(&case.cert), &[]);
        match handshake(&client, &Arc::new(server)) {
            Ok(ends) => {
                assert_eq!(case.as_server, None, "{} was accepted", case.name);
                let shown = ends.client.peer_certificates().unwrap();
                assert_eq!(shown, case.cert.chain, "{}", case.name);
            }
            Err(failed) => {
                let error = failed.client.unwrap_or_else(|| panic!("{}", case.name));
                let found = svid_error(&error).map(SvidError::slug);
                assert_eq!(found, case.as_server, "{}: {error}", case.name);
            }
        }
    }
}

#[test]
fn no_byte_of_a_leaf_can_be_changed() {
    let pki = TestPki::new("td");
    let verifier = pki.verifier();
    let cert = pki.issue("a", "b");
    for at in 0..cert.chain[0].len() {
        for bit in [1, 0x20, 0x80] {
            let mut bytes = cert.chain[0].to_vec();
            bytes[at] ^= bit;
            let result = verifier.verify(&bytes.into(), &cert.chain[1..]);
            assert!(result.is_err(), "byte {at}, bit {bit:#x}");
        }
    }
}

#[test]
fn a_large_chain_is_refused_unread() {
    let pki = TestPki::new("td");
    let padding = CertificateDer::from(vec![0; crate::verify::MAX_CHAIN_BYTES]);
    let leaf = &pki.issue("a", "b").chain[0];
    let result = pki.verifier().verify(leaf, &[padding]);
    assert_eq!(slug(&result), Some("chain_too_long"));
}

/// A trusted domain must not be able to vouch for another one.
#[test]
fn trust_domains_are_not_pooled() {
    let (pki, other) = (TestPki::new("td"), TestPki::new("td2"));
    let mut bundle = pki.ca.bundle();
    bundle.merge(&other.ca.bundle());
    let verifier = SvidVerifier::new(Arc::new(bundle), Arc::clone(&pki.clock) as _);
    let verify = |cert: &WorkloadCert| {
        let result = verifier.verify(&cert.chain[0], &cert.chain[1..]);
        result.map(|id| id.to_string()).map_err(|e| e.slug())
    };
    assert_eq!(
        verify(&pki.issue("a", "b")),
        Ok("spiffe://td/ns/a/sa/b".into())
    );
    assert_eq!(
        verify(&other.issue("a", "b")),
        Ok("spiffe://td2/ns/a/sa/b".into())
    );

    let stolen = || vec![uri("spiffe://td/ns/a/sa/b")];
    let by_intermediate = other.mutated("a", "b", |p| p.subject_alt_names = stolen());
    assert_eq!(verify(&by_intermediate), Err("intermediate"));
    // Neither without a trace of the other domain in the chain.
    let mut hidden = other.mutated_chain("a", "b", |upper, lower| {
        upper.subject_alt_names.clear();
        lower.subject_alt_names = stolen();
    });
    hidden.chain.truncate(2);
    assert_eq!(verify(&hidden), Err("untrusted"));
}

#[test]
fn an_intermediate_of_an_intermediate_breaks_the_path_length() {
    let pki = TestPki::new("td");
    // The authority's intermediate (path length 0) signs another CA, which signs a leaf.
    let key = rcgen::KeyPair::generate().unwrap();
    let now = pki.clock.now();
    let day = Duration::from_secs(86_400);
    let params = crate::ca::intermediate_params(pki.trust_domain(), now, now + day).unwrap();
    let (sub_ca, rest) = pki.ca.sign_params(&params, &key);
    let issuer = rcgen::Issuer::from_params(&params, &key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = crate::ca::leaf_params(&pki.id("a", "b"), now, now + day).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    let chain = [vec![sub_ca], rest].concat();
    let result = pki.verifier().verify(leaf.der(), &chain);
    assert_eq!(slug(&result), Some("chain"), "{result:?}");
}

#[test]
fn the_clock_of_the_verifier_decides() {
    let pki = TestPki::new("td");
    let cert = pki.issue_for(&pki.id("a", "b"), HOUR);
    let verifier = pki.verifier();
    let verify = || slug(&verifier.verify(&cert.chain[0], &cert.chain[1..]));
    assert_eq!(verify(), None);
    pki.clock.set(cert.not_after);
    assert_eq!(verify(), None, "the end is inclusive");
    pki.clock.advance(Duration::from_secs(1));
    assert_eq!(verify(), Some("expired"));
    // Backdated by 5 minutes, and 5 more are tolerated.
    pki.clock.set(cert.not_before - Duration::from_secs(300));
    assert_eq!(verify(), None);
    pki.clock.set(cert.not_before - Duration::from_secs(301));
    assert_eq!(verify(), Some("not_yet_valid"));
}

#[test]
fn the_pinned_root_is_the_end_of_the_chain() {
    let pki = TestPki::new("td");
    let other = TestPki::at("td", pki.clock.now());
    let cert = pki.issue("a", "b");
    let pin = |fingerprint| PinnedRoot::new(fingerprint, Arc::clone(&pki.clock) as _);
    let verify = |pin: &PinnedRoot, chain: &[CertificateDer<'_>]| {
        let result = pin.verify(&chain[0], &chain[1..]);
        result.map(|id| id.to_string()).map_err(|e| e.slug())
    };
    let ours = pin(pki.ca.root_fingerprint());
    let theirs = pin(other.ca.root_fingerprint());
    let good = || Ok("spiffe://td/ns/a/sa/b".to_owned());
    assert_eq!(verify(&ours, &cert.chain), good());
    assert_eq!(verify(&theirs, &cert.chain), Err("pinned_root"));
    assert_eq!(verify(&ours, &cert.chain[..2]), Err("pinned_root"));
    assert_eq!(verify(&ours, &cert.chain[..1]), Err("pinned_root"));

    // The right root behind a chain that it has not signed.
    let mut appended = other.issue("a", "b").chain;
    appended.push(cert.chain[2].clone());
    assert_eq!(verify(&ours, &appended), Err("untrusted"));
    appended.remove(2);
    assert_eq!(verify(&ours, &appended), Err("untrusted"));

    // A fingerprint of what is no root.
    let leaf_pin = pin(crate::x509::sha256(&cert.chain[0]));
    let twice = [cert.chain[0].clone(), cert.chain[0].clone()];
    assert_eq!(verify(&leaf_pin, &twice), Err("chain"));
    let middle_pin = pin(crate::x509::sha256(&cert.chain[1]));
    assert_eq!(
        verify(&middle_pin, &cert.chain[..2]),
        good(),
        "any CA may be pinned"
    );

    pki.clock.set(cert.not_after + HOUR);
    assert_eq!(verify(&ours, &cert.chain), Err("expired"));
}

#[test]
fn the_pinned_root_applies_the_whole_matrix() {
    let pki = TestPki::new("td");
    let pin = PinnedRoot::new(pki.ca.root_fingerprint(), Arc::clone(&pki.clock) as _);
    for case in matrix(&pki) {
        let (leaf, rest) = case.cert.chain.split_first().unwrap();
        let result = pin.verify(leaf, rest);
        if rest.last().map(|root| crate::x509::sha256(root)) != Some(pki.ca.root_fingerprint()) {
            assert!(result.is_err(), "{}", case.name);
            continue;
        }
        // There is no bundle to lack a trust domain; the root itself names its own.
        let expected = match case.as_server {
            Some("unknown_trust_domain") => Some("chain"),
            other => other,
        };
        assert_eq!(slug(&result), expected, "{}: {result:?}", case.name);
    }
}

#[test]
fn first_contact_in_a_handshake() {
    let pki = TestPki::new("td");
    let cert = pki.issue("weft-system", "weft-control");
    let pin = |root| PinnedRoot::new(root, Arc::clone(&pki.clock) as _);
    let resolver = rustls::sign::SingleCertAndKey::from(cert.certified_key_with_root().unwrap());
    let verifier = Arc::new(pki.verifier().mandatory(false));
    let server = Arc::new(server_config(verifier, Arc::new(resolver), &[]));

    let client = client_config(Arc::new(pin(pki.ca.root_fingerprint())), None, &[]);
    let ends = handshake(&Arc::new(client), &server).unwrap_or_else(|e| panic!("{e:?}"));
    let chain = ends.client.peer_certificates().unwrap();
    assert_eq!(peer_id(chain), Ok(cert.id));
    assert_eq!(crate::x509::sha256(&chain[2]), pki.ca.root_fingerprint());

    let client = client_config(Arc::new(pin([7; 32])), None, &[]);
    let failed = handshake(&Arc::new(client), &server).err().unwrap();
    let error = failed.client.unwrap();
    assert_eq!(svid_error(&error), Some(&SvidError::PinnedRoot));
}

#[test]
fn errors_are_carried_and_found_again() {
    let error = rustls::Error::from(SvidError::NoPath);
    assert_eq!(svid_error(&error), Some(&SvidError::NoPath));
    // The text of rustls holds no more than the variant: show the SvidError instead.
    assert!(error.to_string().contains("NoPath"), "{error}");
    let io = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    assert_eq!(svid_error_of_io(&io), Some(&SvidError::NoPath));

    assert_eq!(svid_error(&rustls::Error::DecryptError), None);
    assert_eq!(svid_error_of_io(&std::io::ErrorKind::NotFound.into()), None);
    assert_eq!(peer_id(&[]), Err(SvidError::NoCertificate));
}
