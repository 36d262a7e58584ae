//! The resolver's driver against resolvers that behave in every way.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::UdpSocket;

use super::{
    double::{Act, Double, Seen, until},
    message::{self, a, aaaa, client_query, cname, id, opt, parsed, query, record, response, soa},
};
use crate::{
    dns::{
        AnsweredBy, Resolver, Source, Transport,
        forward::Limits,
        wire::{self, A, AAAA, Query, Rcode},
    },
    telemetry::Metrics,
};

const NAME: &str = "example.org";
const HERE: [u8; 4] = [192, 0, 2, 1];

/// A good answer.
fn answer(seen: &Seen) -> Vec<u8> {
    response(&seen.packet, Rcode::OK, &[a(NAME, HERE, 60)], &[])
}

fn error(seen: &Seen, rcode: Rcode) -> Vec<u8> {
    response(&seen.packet, rcode, &[], &[])
}

fn quick() -> Limits {
    Limits {
        per_try: Duration::from_secs(1),
        total: Duration::from_millis(2500),
        patience: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// Enough for a busy machine: nothing times out.
fn patient() -> Limits {
    Limits {
        per_try: Duration::from_secs(20),
        total: Duration::from_secs(40),
        patience: Duration::from_secs(20),
        ..Limits::default()
    }
}

fn resolver(addresses: &[SocketAddr], limits: Limits) -> (Arc<Resolver>, Arc<Metrics>) {
    let metrics = Metrics::new();
    let source = Source::Fixed(addresses.to_vec());
    let resolver = Resolver::with_limits(source, vec![], metrics.clone(), limits);
    (resolver, metrics)
}

/// Asks over UDP with the ID 0x1234.
async fn ask(resolver: &Arc<Resolver>, host: &str) -> (AnsweredBy, Vec<u8>) {
    let query = parsed(client_query(0x1234, host, A, None));
    let answered = resolver.resolve(&query, Transport::Udp).await;
    assert!(wire::is_answer(&answered.packet, query.packet()));
    (answered.by, answered.packet)
}

async fn silent_address() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

async fn dead_address() -> SocketAddr {
    silent_address().await.1
}

fn count(metrics: &Metrics, series: &str) -> u64 {
    let text = metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

fn failures(metrics: &Metrics, reason: &str) -> u64 {
    count(
        metrics,
        &format!("weft_dns_resolver_failures_total{{reason=\"{reason}\"}}"),
    )
}

/// Puts an answer into the cache whose time has ended.
fn remember_expired(resolver: &Arc<Resolver>, query: &Query, answer: &[u8]) {
    let scan = wire::scan(answer, query.kind()).unwrap();
    let then = tokio::time::Instant::now() - Duration::from_secs(400);
    let key = query.key().unwrap();
    resolver.keep(key, answer, scan, then);
}

#[tokio::test]
async fn what_is_not_ours_passes_byte_for_byte_and_is_kept() {
    let double = Double::new(|seen| {
        // Things that no parser of ours knows.
        let unknown = record("x.example.org", 65_280, 77, &[1, 2, 3]);
        vec![Act::Send(response(
            &seen.packet,
            Rcode::OK,
            &[unknown, a(NAME, HERE, 60)],
            &[],
        ))]
    })
    .await;
    let (resolver, metrics) = resolver(&[double.address], patient());
    let packet = client_query(0x1234, "eXample.oRg", A, Some(1400));
    let query = parsed(packet.clone());
    let first = resolver.resolve(&query, Transport::Udp).await;
    assert_eq!(first.by, AnsweredBy::Resolver);
    let unknown = record("x.example.org", 65_280, 77, &[1, 2, 3]);
    let expected = response(&packet, Rcode::OK, &[unknown, a(NAME, HERE, 60)], &[]);
    assert_eq!(first.packet, expected);
    let sent = &double.seen()[0].packet;
    assert_eq!(sent[2..], packet[2..], "the query too, but for its ID");

    let again = parsed(client_query(0x4321, "EXAMPLE.org", A, Some(512)));
    let second = resolver.resolve(&again, Transport::Tcp).await;
    assert_eq!((second.by, id(&second.packet)), (AnsweredBy::Cache, 0x4321));
    assert_eq!(&second.packet[13..20], b"EXAMPLE");
    assert_eq!(double.count(), 1);
    assert_eq!(
        count(&metrics, "weft_dns_forward_duration_seconds_count"),
        1
    );
}

#[tokio::test]
async fn queries_with_options_are_for_one_client() {
    let double = Double::new(|seen| vec![Act::Send(answer(seen))]).await;
    let (resolver, _) = resolver(&[double.address], patient());
    let mut packet = client_query(0x1234, NAME, A, Some(1232));
    let end = packet.len();
    packet[end - 1] = 4;
    packet.extend([0, 10, 0, 0]);
    for n in 1..=2 {
        let answered = resolver
            .resolve(&parsed(packet.clone()), Transport::Udp)
            .await;
        assert_eq!(
            (answered.by, id(&answered.packet)),
            (AnsweredBy::Resolver, 0x1234)
        );
        assert_eq!(double.count(), n);
    }
    assert_eq!(double.seen()[0].packet[2..], packet[2..]);
}

#[tokio::test]
async fn many_who_ask_the_same_cause_one_query() {
    let double = Double::new(|seen| vec![Act::Hold, Act::Send(answer(seen))]).await;
    let (resolver, metrics) = resolver(&[double.address], patient());
    let tasks: Vec<_> = (0..300)
        .map(|n| {
            let resolver = resolver.clone();
            tokio::spawn(async move {
                let query = parsed(client_query(n, NAME, A, None));
                (n, resolver.resolve(&query, Transport::Udp).await)
            })
        })
        .collect();
    until("the query arrives", || double.count() > 0).await;
    double.release();
    for task in tasks {
        let (n, answered) = task.await.unwrap();
        assert_eq!(id(&answered.packet), n);
        assert_eq!(wire::addresses(&answered.packet, A).len(), 1);
    }
    assert_eq!(double.count(), 1);
    assert_eq!(
        count(&metrics, "weft_dns_forward_duration_seconds_count"),
        1
    );
    until("nothing is left", || resolver.in_flight() == 0).await;
}

#[tokio::test]
async fn who_goes_away_does_not_stop_the_query() {
    let double = Double::new(|seen| vec![Act::Hold, Act::Send(answer(seen))]).await;
    let (resolver, _) = resolver(&[double.address], patient());
    let gone = tokio::spawn({
        let resolver = resolver.clone();
        async move { ask(&resolver, NAME).await }
    });
    until("the query arrives", || double.count() > 0).await;
    gone.abort();
    double.release();
    until("nothing is left", || resolver.in_flight() == 0).await;
    assert_eq!(ask(&resolver, NAME).await.0, AnsweredBy::Cache);
    assert_eq!(double.count(), 1);
}

#[tokio::test]
async fn only_the_answer_to_the_query_counts() {
    let double = Double::new(|seen| {
        let good = answer(seen);
        let forged = || response(&seen.packet, Rcode::OK, &[a(NAME, [6, 6, 6, 6], 60)], &[]);
        let mut other_id = forged();
        other_id[0] ^= 1;
        let mut other_name = forged();
        other_name[13] = b'z';
        let mut a_query = forged();
        a_query[2] &= 0x7f;
        vec![
            Act::SendFromElsewhere(forged()),
            Act::Send(other_id),
            Act::Send(other_name),
            Act::Send(a_query),
            Act::Send(vec![1, 2, 3]),
            Act::Send(vec![]),
            Act::Send(good),
        ]
    })
    .await;
    let (resolver, metrics) = resolver(&[double.address], patient());
    let (by, packet) = ask(&resolver, NAME).await;
    assert_eq!(by, AnsweredBy::Resolver);
    assert_eq!(wire::addresses(&packet, A), [std::net::IpAddr::from(HERE)]);
    assert_eq!(double.count(), 1);
    assert!(
        !metrics
            .render()
            .contains("weft_dns_resolver_failures_total")
    );
}

#[tokio::test]
async fn a_flood_of_wrong_answers_ends_the_try() {
    let flood = Double::new(|_| (0..64).map(|_| Act::Send(vec![0; 12])).collect()).await;
    let good = Double::new(|seen| vec![Act::Send(answer(seen))]).await;
    let (resolver, metrics) = resolver(&[flood.address, good.address], patient());
    assert_eq!(wire::addresses(&ask(&resolver, NAME).await.1, A).len(), 1);
    assert_eq!(failures(&metrics, "malformed"), 1);
}

#[tokio::test]
async fn a_resolver_that_fails_is_followed_by_the_next() {
    let good = Double::new(|seen| vec![Act::Send(answer(seen))]).await;
    let dead = dead_address().await;
    let mut cases = vec![("dead", dead, "unreachable", None)];
    for (what, rcode) in [
        ("SERVFAIL", Rcode::FAILED),
        ("REFUSED", Rcode::REFUSED),
        ("NOTIMP", Rcode::NOT_SUPPORTED),
    ] {
        let double = Double::new(move |seen| vec![Act::Send(error(seen, rcode))]).await;
        cases.push((what, double.address, "error_answer", Some(double)));
    }
    let garbage = Double::new(|seen| {
        let mut packet = answer(seen);
        packet[7] = 9;
        vec![Act::Send(packet)]
    })
    .await;
    cases.push((
        "records that are not there",
        garbage.address,
        "malformed",
        Some(garbage),
    ));
    for (what, bad, reason, _double) in cases {
        let (resolver, metrics) = resolver(&[bad, good.address], patient());
        let (by, packet) = ask(&resolver, NAME).await;
        assert_eq!(
            (by, Rcode::of(&packet)),
            (AnsweredBy::Resolver, Rcode::OK),
            "{what}"
        );
        assert_eq!(failures(&metrics, reason), 1, "{what}");
    }
}

#[tokio::test]
async fn a_silent_resolver_is_waited_for_once() {
    let good = Double::new(|seen| vec![Act::Send(answer(seen))]).await;
    let silent = Double::new(|_| vec![]).await;
    let limits = Limits {
        total: Duration::from_secs(20),
        ..quick()
    };
    let (resolver, metrics) = resolver(&[silent.address, good.address], limits);
    for n in 0..5 {
        let (by, packet) = ask(&resolver, &format!("{n}.org")).await;
        assert_eq!((by, Rcode::of(&packet)), (AnsweredBy::Resolver, Rcode::OK));
    }
    assert_eq!((silent.count(), good.count()), (1, 5));
    assert_eq!(failures(&metrics, "timeout"), 1);
}

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let double = Double::new(|seen| match seen.number {
        0 => vec![],
        _ => vec![Act::Send(answer(seen))],
    })
    .await;
    let limits = Limits {
        total: Duration::from_secs(20),
        ..quick()
    };
    let (resolver, _) = resolver(&[double.address], limits);
    assert_eq!(wire::addresses(&ask(&resolver, NAME).await.1, A).len(), 1);
    let seen = double.seen();
    assert_ne!(
        id(&seen[0].packet),
        id(&seen[1].packet),
        "as a query of its own"
    );
}

#[tokio::test]
async fn failures_end_in_servfail_in_time() {
    let silent = Double::new(|_| vec![]).await;
    let (over_silent, metrics) = resolver(&[silent.address], quick());
    let started = Instant::now();
    let (by, packet) = ask(&over_silent, NAME).await;
    assert_eq!((by, Rcode::of(&packet)), (AnsweredBy::Error, Rcode::FAILED));
    assert!(started.elapsed() >= quick().total);
    assert_eq!((silent.count(), failures(&metrics, "timeout")), (3, 3));

    let (over_none, metrics) = resolver(&[], patient());
    assert_eq!(ask(&over_none, NAME).await.0, AnsweredBy::Error);
    assert_eq!(failures(&metrics, "no_resolver"), 1);

    let (over_dead, metrics) = resolver(&[dead_address().await], patient());
    assert_eq!(ask(&over_dead, NAME).await.0, AnsweredBy::Error);
    assert_eq!(failures(&metrics, "unreachable"), 1);
}

#[tokio::test]
async fn the_error_of_the_resolvers_is_the_answer_and_is_not_kept() {
    let double = Double::new(|seen| vec![Act::Send(error(seen, Rcode::REFUSED))]).await;
    let (resolver, _) = resolver(&[double.address], patient());
    for n in 1..=2 {
        let (by, packet) = ask(&resolver, NAME).await;
        assert_eq!(
            (by, Rcode::of(&packet)),
            (AnsweredBy::Resolver, Rcode::REFUSED)
        );
        assert_eq!(double.count(), n);
    }
}

#[tokio::test]
async fn the_absence_of_a_name_is_kept() {
    let double = Double::new(|seen| {
        let packet = response(&seen.packet, Rcode::NO_NAME, &[], &[soa("org", 900, 20)]);
        vec![Act::Send(packet)]
    })
    .await;
    let (resolver, _) = resolver(&[double.address], patient());
    assert_eq!(ask(&resolver, NAME).await.0, AnsweredBy::Resolver);
    let (by, packet) = ask(&resolver, NAME).await;
    assert_eq!(
        (by, Rcode::of(&packet)),
        (AnsweredBy::Cache, Rcode::NO_NAME)
    );
}

#[tokio::test]
async fn a_truncated_answer_is_had_over_tcp() {
    let double = Double::new(|seen| {
        let many: Vec<_> = (0..200).map(|n| a(NAME, [10, 0, 0, n], 60)).collect();
        let whole = response(&seen.packet, Rcode::OK, &many, &[]);
        vec![Act::Send(match seen.transport {
            Transport::Udp => message::truncated(error(seen, Rcode::OK)),
            Transport::Tcp => whole,
        })]
    })
    .await;
    let (over_both, _) = resolver(&[double.address], patient());
    let (by, packet) = ask(&over_both, NAME).await;
    assert_eq!(
        (by, wire::addresses(&packet, A).len()),
        (AnsweredBy::Resolver, 200)
    );
    let transports: Vec<_> = double.seen().iter().map(|seen| seen.transport).collect();
    assert_eq!(transports, [Transport::Udp, Transport::Tcp]);
    assert_eq!(ask(&over_both, NAME).await.0, AnsweredBy::Cache);

    // No TCP there: better the truncated answer than none; and it is not kept.
    let udp = Double::new(|seen| match seen.transport {
        Transport::Udp => vec![Act::Send(message::truncated(answer(seen)))],
        Transport::Tcp => vec![],
    })
    .await;
    let (over_udp, metrics) = resolver(&[udp.address], patient());
    for n in 1..=2 {
        let (by, packet) = ask(&over_udp, NAME).await;
        assert_eq!(
            (by, wire::is_truncated(&packet)),
            (AnsweredBy::Resolver, true)
        );
        assert_eq!(failures(&metrics, "truncated"), n);
    }
}

#[tokio::test]
async fn tcp_clients_are_served_over_tcp() {
    let double = Double::new(|seen| vec![Act::Send(answer(seen))]).await;
    let (over_tcp, _) = resolver(&[double.address], patient());
    let query = parsed(client_query(5, NAME, A, None));
    let answered = over_tcp.resolve(&query, Transport::Tcp).await;
    assert_eq!(answered.by, AnsweredBy::Resolver);
    assert_eq!(double.seen()[0].transport, Transport::Tcp);

    let wrong = Double::new(|seen| {
        let mut packet = answer(seen);
        packet[1] ^= 1;
        vec![Act::Send(packet)]
    })
    .await;
    let (over_wrong, metrics) = resolver(&[wrong.address], patient());
    let answered = over_wrong.resolve(&query, Transport::Tcp).await;
    assert_eq!(answered.by, AnsweredBy::Error);
    assert_eq!(failures(&metrics, "malformed"), 1);
}

#[tokio::test]
async fn an_old_answer_is_better_than_none() {
    let servfail = Double::new(|seen| vec![Act::Send(error(seen, Rcode::FAILED))]).await;
    let silent = Double::new(|_| vec![]).await;
    for (what, address) in [
        ("SERVFAIL", servfail.address),
        ("silent", silent.address),
        ("dead", dead_address().await),
    ] {
        let (resolver, _) = resolver(&[address], quick());
        let q = query(NAME, A);
        let old = message::message(
            &q,
            Rcode::OK,
            &[cname(NAME, "b.org", 200), a("b.org", HERE, 60)],
            &[],
        );
        remember_expired(&resolver, &q, &old);
        let started = Instant::now();
        let (by, packet) = ask(&resolver, "EXAMPLE.org").await;
        assert_eq!(by, AnsweredBy::Stale, "{what}");
        assert_eq!(message::ttls(&packet), [30, 30], "{what}");
        assert_eq!(&packet[13..20], b"EXAMPLE", "{what}");
        assert!(
            started.elapsed() < quick().total,
            "{what}: no longer than clients wait"
        );
        until("nothing is left", || resolver.in_flight() == 0).await;
    }
    // The resolvers are not asked again at once.
    let (resolver, _) = resolver(&[servfail.address], quick());
    let q = query(NAME, A);
    let old = message::message(&q, Rcode::NO_NAME, &[], &[soa("org", 60, 60)]);
    remember_expired(&resolver, &q, &old);
    let before = servfail.count();
    for _ in 0..10 {
        let (by, packet) = ask(&resolver, NAME).await;
        assert_eq!(
            (by, Rcode::of(&packet)),
            (AnsweredBy::Stale, Rcode::NO_NAME)
        );
        until("nothing is left", || resolver.in_flight() == 0).await;
    }
    assert_eq!(servfail.count() - before, 1);
}

#[tokio::test]
async fn a_late_answer_replaces_the_old_one() {
    let double = Double::new(|seen| vec![Act::Hold, Act::Send(answer(seen))]).await;
    let limits = Limits {
        patience: Duration::from_millis(50),
        ..patient()
    };
    let (resolver, _) = resolver(&[double.address], limits);
    let q = query(NAME, A);
    let old = message::message(&q, Rcode::OK, &[a(NAME, [9, 9, 9, 9], 60)], &[]);
    remember_expired(&resolver, &q, &old);
    let (by, packet) = ask(&resolver, NAME).await;
    assert_eq!(by, AnsweredBy::Stale);
    assert_eq!(
        wire::addresses(&packet, A),
        [std::net::IpAddr::from([9, 9, 9, 9])]
    );
    double.release();
    until("nothing is left", || resolver.in_flight() == 0).await;
    let (by, packet) = ask(&resolver, NAME).await;
    assert_eq!(by, AnsweredBy::Cache);
    assert_eq!(wire::addresses(&packet, A), [std::net::IpAddr::from(HERE)]);
    assert_eq!(double.count(), 1);
}

#[tokio::test]
async fn queries_under_way_are_bounded() {
    let double = Double::new(|seen| vec![Act::Hold, Act::Send(answer(seen))]).await;
    let limits = Limits {
        outstanding: 4,
        ..patient()
    };
    let (resolver, metrics) = resolver(&[double.address], limits);
    let held: Vec<_> = (0..4)
        .map(|n| {
            let resolver = resolver.clone();
            tokio::spawn(async move { ask(&resolver, &format!("{n}.org")).await })
        })
        .collect();
    until("they arrive", || double.count() == 4).await;
    let (by, packet) = ask(&resolver, "fifth.org").await;
    assert_eq!((by, Rcode::of(&packet)), (AnsweredBy::Error, Rcode::FAILED));
    let mut update = client_query(1, "zone.org", A, None);
    update[2] = 0x28;
    let relayed = resolver.relay(&update, Transport::Udp, 512).await;
    assert_eq!(relayed, None, "other requests count too");
    assert_eq!(failures(&metrics, "overload"), 2);
    // Who asks what is under way waits with the others.
    let same = tokio::spawn({
        let resolver = resolver.clone();
        async move { ask(&resolver, "0.org").await }
    });
    double.release();
    for task in held.into_iter().chain([same]) {
        let by = task.await.unwrap().0;
        assert!(
            matches!(by, AnsweredBy::Resolver | AnsweredBy::Cache),
            "{by:?}"
        );
    }
    until("nothing is left", || resolver.in_flight() == 0).await;
    assert_eq!(ask(&resolver, "fifth.org").await.0, AnsweredBy::Resolver);
}

#[tokio::test]
async fn ids_and_ports_cannot_be_guessed() {
    let double = Double::new(|seen| vec![Act::Send(answer(seen))]).await;
    let (resolver, _) = resolver(&[double.address], patient());
    for n in 0..64 {
        ask(&resolver, &format!("{n}.org")).await;
    }
    let seen = double.seen();
    let ids: Vec<u16> = seen.iter().map(|seen| id(&seen.packet)).collect();
    let distinct: HashSet<u16> = ids.iter().copied().collect();
    assert!(distinct.len() >= 60, "{ids:?}");
    let steps: HashSet<u16> = ids
        .windows(2)
        .map(|two| two[1].wrapping_sub(two[0]))
        .collect();
    assert!(steps.len() >= 55, "{ids:?}");
    let ports: HashSet<u16> = seen.iter().map(|seen| seen.from.port()).collect();
    assert!(ports.len() >= 40, "{ports:?}");
}

#[tokio::test]
async fn requests_of_other_kinds_pass_untouched() {
    let double = Double::new(|seen| {
        let mut packet = seen.packet.clone();
        packet[2] |= 0x80;
        vec![Act::Send(packet)]
    })
    .await;
    let (resolver, _) = resolver(&[double.address], patient());
    let mut update = client_query(0x1234, "zone.org", A, None);
    update[2] = 0x28;
    update.extend(opt(512));
    for transport in [Transport::Udp, Transport::Tcp] {
        let answered = resolver.relay(&update, transport, 512).await.unwrap();
        let mut expected = update.clone();
        expected[2] |= 0x80;
        assert_eq!(answered.packet, expected);
    }
    assert_eq!(double.seen()[0].packet[2..], update[2..]);
}

#[tokio::test]
async fn hosts_have_addresses() {
    let double = Double::new(|seen| {
        let q = parsed(seen.packet.clone());
        let host = q.host().unwrap();
        let records = match (&*host, q.kind()) {
            ("both.org", A) => vec![cname("both.org", "x.org", 9), a("x.org", HERE, 60)],
            ("both.org", AAAA) => vec![aaaa("both.org", 60)],
            ("v4.org", A) => vec![a("v4.org", HERE, 60)],
            ("half.org", A) => return vec![Act::Send(error(seen, Rcode::FAILED))],
            ("half.org", AAAA) => vec![aaaa("half.org", 60)],
            ("none.org", _) => {
                let packet = response(&seen.packet, Rcode::NO_NAME, &[], &[soa("org", 9, 9)]);
                return vec![Act::Send(packet)];
            }
            ("many.org", A) => (0..1000)
                .map(|n| a("many.org", [10, 0, (n / 250) as u8, n as u8], 60))
                .collect(),
            ("bad.org", _) => return vec![Act::Send(error(seen, Rcode::FAILED))],
            _ => vec![],
        };
        vec![Act::Send(response(&seen.packet, Rcode::OK, &records, &[]))]
    })
    .await;
    let (resolver, _) = resolver(&[double.address], patient());
    let v6: std::net::IpAddr = [0xfd_u8; 16].into();
    for (host, expected) in [
        ("both.org", vec![HERE.into(), v6]),
        ("Both.ORG.", vec![HERE.into(), v6]),
        ("v4.org", vec![HERE.into()]),
        ("half.org", vec![v6]),
        ("10.1.2.3", vec![[10, 1, 2, 3].into()]),
        ("fd00::1", vec!["fd00::1".parse().unwrap()]),
    ] {
        let found = resolver.addresses(host).await.unwrap();
        assert_eq!(*found, *expected, "{host}");
    }
    assert_eq!(resolver.addresses("many.org").await.unwrap().len(), 256);
    for (host, expected) in [
        ("none.org", "no such name"),
        ("empty.org", "no address"),
        ("bad.org", "no answer"),
        ("a..b", "1 to 63"),
    ] {
        let error = resolver.addresses(host).await.unwrap_err();
        assert!(error.contains(expected) && error.contains(host), "{error}");
    }
    // both.org was asked once for each type.
    let asked = double.seen();
    let both = asked.iter().filter(|seen| seen.packet[13..17] == *b"both");
    assert_eq!(both.count(), 2);
}

#[tokio::test]
async fn a_storm_of_names_is_bounded_in_memory() {
    let double = Double::new(|seen| vec![Act::Send(answer(seen))]).await;
    let limits = Limits {
        cache: crate::dns::cache::Bounds {
            entries: 100,
            bytes: 50_000,
        },
        ..patient()
    };
    let (resolver, _) = resolver(&[double.address], limits);
    for n in 0..1_000 {
        ask(&resolver, &format!("{n}.example.org")).await;
    }
    until("nothing is left", || resolver.in_flight() == 0).await;
    assert!(resolver.kept() <= 100, "{}", resolver.kept());
    assert!(resolver.kept() >= 50, "{}", resolver.kept());
}
