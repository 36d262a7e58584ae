use super::*;

const HEAD: &str = "POST /a HTTP/1.1\r\nHost: a\r\n";

fn rule(log: &str) -> &'static str {
    match requests(log.as_bytes()) {
        Ok(reading) => panic!("{log:?} is read as {reading:?}"),
        Err(violation) => violation.rule,
    }
}

#[test]
fn good_requests_are_read() {
    let long = format!("{HEAD}content-length: 3\r\n\r\nabc");
    let chunked = format!(
        "{HEAD}Transfer-Encoding: \tCHUNKED \r\n\r\n3;a=b;c=\"d\\\"e\"\r\nabc\r\n0a\r\n0123456789\r\n0\r\nx: y\r\n\r\n"
    );
    for (log, bodies) in [
        ("", &[][..]),
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", &[""]),
        ("GET / HTTP/1.0\r\n\r\n", &[""]),
        ("OPTIONS * HTTP/1.1\r\nhost: a:80\r\n\r\n", &[""]),
        (
            "GET http://a/b?c HTTP/1.1\r\nhost: [::1]:80\r\nempty:\r\n\r\n",
            &[""],
        ),
        (&long, &["abc"]),
        (&chunked, &["abc0123456789"]),
        (
            &format!("{long}{chunked}{long}"),
            &["abc", "abc0123456789", "abc"],
        ),
    ] {
        let reading = requests(log.as_bytes()).unwrap();
        let read: Vec<String> = reading.messages.iter().map(Message::text).collect();
        assert_eq!(read, bodies, "{log:?}");
        assert!(reading.whole, "{log:?}");
    }
}

#[test]
fn bad_requests_are_not() {
    for (log, expected) in [
        ("GET  / HTTP/1.1\r\n", "three words"),
        ("GET / HTTP/1.1 \r\n", "three words"),
        ("GET /\r\n", "three words"),
        ("\r\nGET / HTTP/1.1\r\n", "three words"),
        ("G(T / HTTP/1.1\r\n", "method"),
        ("GET / HTTP/1.2\r\n", "version"),
        ("GET / http/1.1\r\n", "version"),
        ("GET a HTTP/1.1\r\n", "form"),
        ("GET * HTTP/1.1\r\n", "form"),
        ("GET http:///a HTTP/1.1\r\n", "form"),
        ("GET http://u@a/ HTTP/1.1\r\n", "form"),
        ("GET /#a HTTP/1.1\r\n", "target"),
        ("GET /\u{e9} HTTP/1.1\r\n", "target"),
        ("CONNECT a HTTP/1.1\r\n", "CONNECT"),
        ("GET / HTTP/1.1\n", "LF without CR"),
        ("GET / HTTP/1.1\rX", "CR without LF"),
        ("GET / HTTP/1.1\r\nhost: a\0\r\n", "NUL"),
        ("GET / HTTP/1.1\r\n host: a\r\n", "blank"),
        ("GET / HTTP/1.1\r\nhost : a\r\n", "name"),
        ("GET / HTTP/1.1\r\n: a\r\n", "name"),
        ("GET / HTTP/1.1\r\nhost\r\n", "colon"),
        ("GET / HTTP/1.1\r\na: b\x0b\r\n", "value"),
        ("GET / HTTP/1.1\r\n\r\n", "no Host"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
            "more than one Host",
        ),
        ("GET / HTTP/1.1\r\nhost:\r\n\r\n", "no authority"),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", "no authority"),
        ("GET / HTTP/1.1\r\nhost: a,b\r\n\r\n", "no authority"),
        ("GET / HTTP/1.1\r\nhost: a:b\r\n\r\n", "no authority"),
        (
            "GET / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
            "in HTTP/1.0",
        ),
    ] {
        assert!(rule(log).contains(expected), "{log:?}: {}", rule(log));
    }
    for (fields, expected) in [
        ("content-length: +3\r\n\r\n", "not a number"),
        ("content-length: 3, 3\r\n\r\n", "not a number"),
        ("content-length:\r\n\r\n", "not a number"),
        (
            "content-length: 9223372036854775808\r\n\r\n",
            "not a number",
        ),
        (
            "content-length: 00000000000000000003\r\n\r\n",
            "not a number",
        ),
        (
            "content-length: 1\r\ncontent-length: 1\r\n\r\n",
            "more than one Content-Length",
        ),
        (
            "content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "both",
        ),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "more than one Tr",
        ),
        ("transfer-encoding: xchunked\r\n\r\n", "not `chunked`"),
        (
            "transfer-encoding: chunked, identity\r\n\r\n",
            "not `chunked`",
        ),
        ("transfer-encoding: chunked\r\n\r\n0x3\r\n", "chunk size"),
        ("transfer-encoding: chunked\r\n\r\n 3\r\n", "chunk size"),
        ("transfer-encoding: chunked\r\n\r\n3 \r\n", "chunk size"),
        ("transfer-encoding: chunked\r\n\r\n\r\n", "chunk size"),
        (
            "transfer-encoding: chunked\r\n\r\n8000000000000000\r\n",
            "too large",
        ),
        (
            "transfer-encoding: chunked\r\n\r\n00000000000000003\r\n",
            "chunk size",
        ),
        ("transfer-encoding: chunked\r\n\r\n3;=\r\n", "extensions"),
        ("transfer-encoding: chunked\r\n\r\n3;a=\"\r\n", "extensions"),
        (
            "transfer-encoding: chunked\r\n\r\n3\r\nabcd",
            "not followed",
        ),
        (
            "transfer-encoding: chunked\r\n\r\n0\r\nhost: b\r\n",
            "trailer",
        ),
    ] {
        let log = format!("{HEAD}{fields}");
        assert!(rule(&log).contains(expected), "{log:?}: {}", rule(&log));
    }
}

#[test]
fn a_violation_says_where() {
    let good = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let error = requests(format!("{good}GET / HTTP/1.1\r\nhost : a\r\n").as_bytes());
    let error = error.unwrap_err();
    assert_eq!(error.at, good.len() + 16);
    assert_eq!(error.near, "host : a");
    let error = requests(b"GET / HTTP/1.1\r\na: b\n").unwrap_err();
    assert_eq!(error.at, 20);
}

#[test]
fn slices_make_no_difference() {
    let log =
        format!("{HEAD}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: u\r\n\r\n{HEAD}\r\n");
    let whole = requests(log.as_bytes()).unwrap();
    assert_eq!(whole.messages.len(), 2);
    let mut reader = Reader::requests();
    for byte in log.as_bytes() {
        reader.push(std::slice::from_ref(byte)).unwrap();
    }
    assert_eq!(reader.reading().messages, whole.messages);
    for cut in 0..log.len() {
        let mut reader = Reader::requests();
        reader.push(&log.as_bytes()[..cut]).unwrap();
        let is_border = cut == 0 || whole.messages.iter().any(|message| message.end == cut);
        assert_eq!(reader.is_at_border(), is_border, "{cut}");
        reader.push(&log.as_bytes()[cut..]).unwrap();
        assert_eq!(reader.reading().messages, whole.messages, "{cut}");
    }
}

#[test]
fn what_is_unfinished_is_told_from_what_is_wrong() {
    let reading = requests(format!("{HEAD}content-length: 5\r\n\r\nab").as_bytes()).unwrap();
    assert!(!reading.whole);
    assert_eq!(reading.unfinished.unwrap().body, b"ab");
    let reading = requests(HEAD.as_bytes()).unwrap();
    assert!(!reading.whole && reading.unfinished.is_none() && reading.messages.is_empty());
}

#[test]
fn answers_end_by_what_was_asked() {
    let plain = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
    let close = "HTTP/1.1 200\r\n\r\nall of this";
    let early = "HTTP/1.1 100 Continue\r\n\r\n";
    for (log, asked, bodies) in [
        (format!("{plain}ab"), &[Asked::Plain][..], &["ab"][..]),
        (
            format!("{plain}{plain}ab"),
            &[Asked::Head, Asked::Plain],
            &["", "ab"],
        ),
        (format!("{early}{plain}ab"), &[Asked::Plain], &["", "ab"]),
        (
            format!("{plain}ab{close}"),
            &[Asked::Plain; 2],
            &["ab", "all of this"],
        ),
        (
            format!("HTTP/1.1 304 \r\ncontent-length: 9\r\n\r\n{plain}ab"),
            &[Asked::Plain; 2],
            &["", "ab"],
        ),
    ] {
        let reading = answers(log.as_bytes(), asked).unwrap();
        let read: Vec<String> = reading.messages.iter().map(Message::text).collect();
        assert_eq!(read, bodies, "{log:?}");
    }
    let tunnel = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nanything";
    let reading = answers(tunnel.as_bytes(), &[Asked::Upgrade]).unwrap();
    assert_eq!(reading.opaque, b"anything");
    for (log, asked, expected) in [
        (format!("{plain}a"), &[Asked::Plain][..], "cut off"),
        (format!("{plain}ab{plain}ab"), &[Asked::Plain], "to nothing"),
        (format!("{plain}abc"), &[Asked::Plain], "to nothing"),
        (tunnel.to_owned(), &[Asked::Plain], "nobody asked"),
        (
            "HTTP/1.1 204 \r\ncontent-length: 0\r\n\r\n".to_owned(),
            &[Asked::Plain],
            "has none",
        ),
        ("HTTP/1.1 99 \r\n\r\n".to_owned(), &[Asked::Plain], "status"),
        (
            "HTTP/1.1 600 \r\n\r\n".to_owned(),
            &[Asked::Plain],
            "status",
        ),
        (
            "HTTP/2 200 \r\n\r\n".to_owned(),
            &[Asked::Plain],
            "status line",
        ),
    ] {
        let error = answers(log.as_bytes(), asked).unwrap_err();
        assert!(error.rule.contains(expected), "{log:?}: {error}");
    }
}

#[test]
fn after_a_switch_nothing_is_read() {
    let head = "GET / HTTP/1.1\r\nhost: a\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    let log = format!("{head}\0\n\r anything");
    assert!(requests(log.as_bytes()).is_err());
    let reading = requests_until_switch(log.as_bytes(), 0).unwrap();
    assert_eq!(reading.opaque, b"\0\n\r anything");
}
