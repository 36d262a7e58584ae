//! Tables of messages, good and bad, and a hundred thousand mutations of them.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::message::{
    self, a, aaaa, client_query, cname, counts, id, message, name, opt, parsed, query, record, soa,
};
use crate::{
    dns::wire::{self, A, AAAA, ANY, HTTPS, Incoming, Lifetime, Rcode, Scan},
    util::Rng,
};

fn with_header(counts: [u16; 4], body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0];
    packet.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    packet.extend(body);
    packet
}

fn question(host: &[u8]) -> Vec<u8> {
    [host, &[0, 1, 0, 1]].concat()
}

#[test]
fn queries_are_read_or_refused() {
    let good = client_query(7, "Post.Blog", A, None);
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    let one = [1, 0, 0, 0];
    let long_label = [&[64][..], &[b'a'; 64], &[0]].concat();
    let long_name = [&[3, b'a', b'b', b'c'].repeat(64)[..], &[0]].concat();
    let longest_name = [&[3, b'a', b'b', b'c'].repeat(63)[..], &[1, b'a', 0]].concat();
    let looks = |packet: Vec<u8>| match wire::read(packet) {
        Incoming::Question(_) => "question",
        Incoming::Other(_) => "other",
        Incoming::Malformed(_) => "malformed",
        Incoming::Noise => "noise",
    };
    for (what, packet, expected) in [
        ("good", good.clone(), "question"),
        (
            "with EDNS",
            client_query(7, "post", A, Some(1232)),
            "question",
        ),
        ("of the root", with_header(one, &question(&[0])), "question"),
        ("empty", vec![], "noise"),
        ("no ID", vec![1], "noise"),
        ("no flags", vec![1, 2, 1], "noise"),
        ("header cut", good[..11].to_vec(), "malformed"),
        ("response", with(2, 0x81), "noise"),
        ("opcode", with(2, 0x28), "other"),
        ("no question", with_header([0, 0, 0, 0], &[]), "other"),
        (
            "two questions",
            with_header([2, 0, 0, 0], &question(&name("a")).repeat(2)),
            "other",
        ),
        ("name cut", good[..18].to_vec(), "malformed"),
        ("type cut", good[..good.len() - 3].to_vec(), "malformed"),
        ("header only", good[..12].to_vec(), "malformed"),
        (
            "pointer to itself",
            with_header(one, &question(&[0xc0, 12])),
            "malformed",
        ),
        (
            "pointer to the header",
            with_header(one, &question(&[0xc0, 4])),
            "malformed",
        ),
        (
            "pointer forward",
            with_header(one, &question(&[1, b'a', 0xc0, 40])),
            "malformed",
        ),
        (
            "reserved label type",
            with_header(one, &question(&[0x80, 1, 0])),
            "malformed",
        ),
        (
            "label of 64",
            with_header(one, &question(&long_label)),
            "malformed",
        ),
        (
            "name of 257",
            with_header(one, &question(&long_name)),
            "malformed",
        ),
        (
            "name of 255",
            with_header(one, &question(&longest_name)),
            "question",
        ),
        ("records that are not there", with(11, 3), "malformed"),
        (
            "record cut",
            client_query(7, "post", A, Some(512))[..30].to_vec(),
            "malformed",
        ),
    ] {
        assert_eq!(looks(packet), expected, "{what}");
    }
    assert_eq!(longest_name.len(), 255);
}

#[test]
fn questions_have_a_host_and_a_key() {
    let q = parsed(client_query(7, "Post.BLOG", HTTPS, None));
    assert_eq!(q.host().as_deref(), Some("post.blog"));
    assert_eq!(q.kind(), HTTPS);
    for (what, host) in [("space", "a b"), ("umlaut", "\u{e4}"), ("slash", "a/b")] {
        assert_eq!(query(host, A).host(), None, "{what}");
    }
    let dotted = with_header([1, 0, 0, 0], &question(&[3, b'a', b'.', b'b', 0]));
    assert_eq!(
        parsed(dotted).host(),
        None,
        "a dot in a label is no separator"
    );
    assert_eq!(
        parsed(with_header([1, 0, 0, 0], &question(&[0]))).host(),
        None
    );
    let mut chaos = client_query(1, "a", A, None);
    *chaos.last_mut().unwrap() = 3;
    assert_eq!(parsed(chaos).host(), None, "class CHAOS");

    let changed = |edit: fn(&mut Vec<u8>)| {
        let mut packet = client_query(1, "post.blog", A, Some(1232));
        edit(&mut packet);
        parsed(packet).key()
    };
    let key = changed(|_| ());
    for (what, other, same) in [
        ("ID", changed(|p| p[0] = 9), true),
        ("case", changed(|p| p[13] = b'P'), true),
        ("UDP size", changed(|p| p[31] = 9), true),
        ("RD", changed(|p| p[2] = 0), false),
        ("CD", changed(|p| p[3] |= 0x10), false),
        ("AD", changed(|p| p[3] |= 0x20), false),
        ("DO", changed(|p| p[34] |= 0x80), false),
        ("name", changed(|p| p[13] = b'q'), false),
        ("type", changed(|p| p[24] = 28), false),
        ("class", changed(|p| p[26] = 3), false),
        (
            "no EDNS",
            parsed(client_query(1, "post.blog", A, None)).key(),
            false,
        ),
    ] {
        assert!(other.is_some(), "{what}");
        assert_eq!(other == key, same, "{what}");
    }
    for (what, other) in [
        (
            "an option",
            changed(|p| {
                let end = p.len();
                p[end - 1] = 4;
                p.extend([0, 10, 0, 0]);
            }),
        ),
        ("something behind", changed(|p| p.push(0))),
        ("EDNS version 1", changed(|p| p[33] = 1)),
        (
            "a second record",
            changed(|p| {
                p[11] = 2;
                p.extend(opt(512));
            }),
        ),
    ] {
        assert_eq!(other, None, "{what}");
    }
}

#[test]
fn hosts_become_queries() {
    let q = query("post.blog.", AAAA);
    assert_eq!(q.packet(), client_query(0, "post.blog", AAAA, None));
    for host in ["", ".", "a..b", ".a", &"a".repeat(64), &"abc.".repeat(64)] {
        let error = wire::Query::new(host, A).unwrap_err();
        assert!(error.contains("characters"), "{error}");
    }
    assert!(wire::Query::new(&format!("{}a", "abc.".repeat(63)), A).is_ok());
}

#[test]
fn addresses_are_answered_by_type() {
    let all: Vec<IpAddr> = ["10.0.0.1", "fd00::1", "10.0.0.2"]
        .map(|a| a.parse().unwrap())
        .into();
    for (kind, edns, expected) in [
        (A, None, &["10.0.0.1", "10.0.0.2"][..]),
        (A, Some(1232), &["10.0.0.1", "10.0.0.2"]),
        (AAAA, None, &["fd00::1"]),
        (HTTPS, None, &[]),
        (ANY, Some(4096), &[]),
    ] {
        let packet = client_query(0x1234, "Post.Blog", kind, edns);
        let q = parsed(packet.clone());
        let answer = q.answer(&all, 30);
        assert!(wire::is_answer(&answer, &packet));
        let question_end = 12 + name("post.blog").len() + 4;
        assert_eq!(
            answer[12..question_end],
            packet[12..question_end],
            "as it was asked"
        );
        assert_eq!(Rcode::of(&answer), Rcode::OK);
        // QR, AA, RD; RA
        assert_eq!(answer[2..4], [0x85, 0x80]);
        let opt_count = u16::from(edns.is_some());
        assert_eq!(counts(&answer), [1, expected.len() as u16, 0, opt_count]);
        let mut found = wire::addresses(&answer, kind);
        found.sort();
        let expected: Vec<IpAddr> = expected.iter().map(|a| a.parse().unwrap()).collect();
        assert_eq!(found, expected, "{kind}");
        assert!(message::ttls(&answer).iter().all(|ttl| *ttl == 30));
    }
}

#[test]
fn the_first_address_changes_with_the_query() {
    let all: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        .map(|a| a.parse().unwrap())
        .into();
    let first = |id| {
        let q = parsed(client_query(id, "post", A, None));
        wire::addresses(&q.answer(&all, 5), A)[0]
    };
    assert_eq!(
        [first(0), first(1), first(2), first(3)],
        [all[0], all[1], all[2], all[0]]
    );
}

#[test]
fn answers_of_ours_echo_edns_and_flags() {
    let mut packet = client_query(1, "post", A, Some(512));
    let end = packet.len();
    packet[3] |= 0x10;
    packet[end - 4] |= 0x80;
    let answer = parsed(packet).reply(Rcode::FAILED);
    assert_eq!(
        answer[2..4],
        [0x81, 0x92],
        "QR, RD; RA, CD, SERVFAIL; not AA"
    );
    assert_eq!(
        answer[answer.len() - 11..],
        [0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 0]
    );
    assert_eq!(counts(&answer), [1, 0, 0, 1]);
    let refusal = wire::refusal(&[0x12, 0x34, 0x29, 0], Rcode::FORMAT);
    assert_eq!(refusal, [0x12, 0x34, 0xa9, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn answers_belong_to_their_request() {
    let request = client_query(7, "post.blog", A, None);
    let ok = |edit: fn(&mut Vec<u8>)| {
        let mut answer = message(
            &parsed(client_query(7, "post.blog", A, None)),
            Rcode::OK,
            &[],
            &[],
        );
        edit(&mut answer);
        wire::is_answer(&answer, &request)
    };
    for (what, accepted, expected) in [
        ("as it should be", ok(|_| ()), true),
        ("case", ok(|p| p[13] = b'P'), true),
        ("ID", ok(|p| p[1] ^= 1), false),
        ("a query", ok(|p| p[2] &= 0x7f), false),
        ("opcode", ok(|p| p[2] |= 0x20), false),
        ("name", ok(|p| p[13] = b'q'), false),
        ("type", ok(|p| p[24] = 28), false),
        (
            "class that differs in bit 5 only",
            ok(|p| p[26] ^= 0x20),
            false,
        ),
        ("cut", ok(|p| p.truncate(20)), false),
        (
            "without question",
            ok(|p| {
                p.truncate(12);
                p[5] = 0;
            }),
            false,
        ),
        (
            "failure without question",
            ok(|p| {
                p.truncate(12);
                p[5] = 0;
                p[3] |= 2;
            }),
            true,
        ),
        (
            "no name, without question",
            ok(|p| {
                p.truncate(12);
                p[5] = 0;
                p[3] |= 3;
            }),
            false,
        ),
        ("empty", ok(Vec::clear), false),
    ] {
        assert_eq!(accepted, expected, "{what}");
    }
}

#[test]
fn answers_are_scanned() {
    let q = query("post.blog", A);
    let here = [1, 2, 3, 4];
    let answer = message(
        &q,
        Rcode::OK,
        &[cname("post.blog", "b", 9), a("b", here, 60)],
        &[],
    );
    let found = Some(Lifetime::Found(9));
    assert_eq!(wire::scan(&answer, A).map(|scan| scan.lifetime), found);
    assert_eq!(message::ttls(&answer), [9, 60]);
    // The OPT record has flags where others have their TTL.
    let with_edns = parsed(client_query(1, "post.blog", A, Some(512)));
    let answer = message(&with_edns, Rcode::OK, &[a("post.blog", here, 60)], &[]);
    assert_eq!(message::ttls(&answer), [60]);
    let mut lying = answer;
    lying[7] = 200;
    assert_eq!(wire::scan(&lying, A), None);
    let short_soa = message(&q, Rcode::NO_NAME, &[], &[record("blog", 6, 60, &[0; 8])]);
    let none = Scan {
        lifetime: Lifetime::None,
        ttls: vec![0],
    };
    let scan = wire::scan(&short_soa, A).unwrap();
    assert_eq!(
        (scan.lifetime, scan.ttls.len()),
        (none.lifetime, none.ttls.len())
    );
    let mut looped = message(&q, Rcode::OK, &[a("b", here, 60)], &[]);
    let at = q.packet().len();
    looped.splice(at..at + 3, [0xc0, at as u8]);
    assert_eq!(wire::scan(&looped, A), None, "a name that points to itself");
}

#[test]
fn answers_are_cut_to_what_the_client_takes() {
    let q = parsed(client_query(1, "post.blog", A, Some(1232)));
    let many: Vec<_> = (0..100)
        .map(|n| a("post.blog", [10, 0, 0, n], 60))
        .collect();
    let answer = message(&q, Rcode::OK, &many, &[soa("blog", 60, 60)]);
    for limit in [0, 512, 513, 700, 1232] {
        let cut = wire::fit(answer.clone(), limit);
        assert!(cut.len() <= limit.max(512), "{limit}");
        assert!(cut.len() + 25 > limit, "{limit}: one more would not fit");
        assert!(wire::is_truncated(&cut));
        let [questions, answers, authority, additional] = counts(&cut);
        assert_eq!([questions, authority, additional], [1, 0, 1], "{limit}");
        assert_eq!(wire::addresses(&cut, A).len(), usize::from(answers));
        assert!(answers > 15, "{limit}");
    }
    assert_eq!(wire::fit(answer.clone(), answer.len()), answer, "as it is");
    let cut = wire::fit(answer.clone(), answer.len() - 1);
    assert_eq!(
        counts(&cut),
        [1, 100, 0, 1],
        "what does not fit is not in the answer"
    );
    let garbage = [&[0x12, 0x34, 0x81, 0x80][..], &[0xff; 2000]].concat();
    let cut = wire::fit(garbage, 512);
    assert_eq!(cut, [0x12, 0x34, 0x83, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn more_addresses_than_a_message_holds_are_left_out() {
    let all: Vec<IpAddr> = (0..5_000_u128)
        .map(|n| std::net::Ipv6Addr::from(n).into())
        .collect();
    let answer = parsed(client_query(1, "post", AAAA, Some(512))).answer(&all, 5);
    assert!(answer.len() <= wire::MAX_MESSAGE && answer.len() > 65_000);
    assert_eq!(
        wire::addresses(&answer, AAAA).len(),
        usize::from(counts(&answer)[1])
    );
}

#[test]
fn ttls_change_in_place() {
    let q = query("post.blog", A);
    let records = [
        a("post.blog", [1, 2, 3, 4], 60),
        a("post.blog", [1, 2, 3, 5], 1 << 31),
    ];
    let mut answer = message(&q, Rcode::OK, &records, &[soa("blog", 3, 3)]);
    wire::cap_ttls(&mut answer, 5);
    assert_eq!(message::ttls(&answer), [5, 0, 3]);
    wire::change_ttls(&mut answer, &[u16::MAX], |_| 1);
    assert_eq!(message::ttls(&answer), [5, 0, 3], "a place outside");
}

/// Everything that reads what others have sent, on one packet.
fn exercise(packet: &[u8], request: &wire::Query) {
    for kind in [A, AAAA, ANY] {
        if let Some(scan) = wire::scan(packet, kind) {
            let mut copy = packet.to_vec();
            wire::change_ttls(&mut copy, &scan.ttls, |ttl| ttl / 2);
            assert!(wire::scan(&copy, kind).is_some(), "ageing breaks nothing");
        }
        assert!(wire::addresses(packet, kind).len() <= packet.len() / 11);
    }
    let cut = wire::fit(packet.to_vec(), 512);
    assert!(cut.len() <= 512);
    if packet.len() > 512 {
        assert!(wire::scan(&cut, A).is_some(), "what was cut can be read");
    }
    let _ = wire::is_answer(packet, request.packet());
    let mut adopted = packet.to_vec();
    request.adopt(&mut adopted);
    assert_eq!(adopted.len(), packet.len());
    wire::set_id(&mut adopted, 5);
    match wire::read(packet.to_vec()) {
        Incoming::Question(q) => {
            let _ = (q.host(), q.udp_limit());
            let reply = q.reply(Rcode::FAILED);
            assert!(wire::is_answer(&reply, packet));
            let answer = q.answer(&[[10, 0, 0, 1].into()], 30);
            assert!(wire::is_answer(&answer, packet));
            if let Some(key) = q.key() {
                assert!(key.len() <= 255 + 4 + 2 + 4);
            }
        }
        Incoming::Other(packet) | Incoming::Malformed(packet) => {
            let refusal = wire::refusal(&packet, Rcode::FORMAT);
            assert_eq!((refusal.len(), id(&refusal)), (12, id(&packet)));
        }
        Incoming::Noise => {}
    }
}

#[test]
fn mutated_packets_are_survived() {
    let q = parsed(client_query(7, "post.blog.svc", A, Some(1232)));
    let many: Vec<_> = (0..60)
        .map(|n| a("post.blog.svc", [10, 0, 0, n], 60))
        .collect();
    let compressed = q.answer(&[[10, 0, 0, 1].into(), [10, 0, 0, 2].into()], 30);
    let chain = [
        cname("post.blog.svc", "b.org", 9),
        a("b.org", [1, 2, 3, 4], 60),
        aaaa("b.org", 60),
    ];
    let seeds = [
        q.packet().to_vec(),
        client_query(1, "a", HTTPS, None),
        message(&q, Rcode::OK, &chain, &[soa("org", 60, 60)]),
        message(&q, Rcode::NO_NAME, &[], &[soa("org", 60, 60)]),
        message(&q, Rcode::OK, &many, &[]),
        compressed,
        with_header([2, 0, 0, 0], &question(&name("a")).repeat(2)),
    ];
    let rng = Rng::new(0x5eed);
    let below = |n: usize| (rng.next() % n as u64) as usize;
    let started = Instant::now();
    for _ in 0..100_000 {
        let mut packet = seeds[below(seeds.len())].clone();
        for _ in 0..=below(4) {
            let at = below(packet.len().max(1));
            let byte = [rng.next() as u8, 0, 0xff, 0xc0, 0x3f][below(5)];
            match below(6) {
                0..=2 => {
                    if let Some(target) = packet.get_mut(at) {
                        *target = byte;
                    }
                }
                // The header and the start of the question matter most.
                3 => {
                    if let Some(target) = packet.get_mut(at % 40) {
                        *target = byte;
                    }
                }
                4 => packet.truncate(at),
                _ => {
                    let tail = packet[at.min(packet.len())..].to_vec();
                    packet.extend(tail);
                }
            }
        }
        exercise(&packet, &q);
    }
    // The worst there is: as many records as a message holds, and a name of pointers.
    let mut worst = with_header([1, u16::MAX, 0, 0], &question(&name("a")));
    while worst.len() + 12 <= wire::MAX_MESSAGE {
        worst.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0]);
    }
    exercise(&worst, &q);
    let count = (worst.len() - 19) / 12;
    worst[6..8].copy_from_slice(&(count as u16).to_be_bytes());
    assert!(wire::scan(&worst, A).is_some());
    exercise(&worst, &q);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
}
