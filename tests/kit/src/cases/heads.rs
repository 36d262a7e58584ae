//! Request lines, versions, field lines and lengths (T1, T2), authorities and targets (T4),
//! and what `Connection` may name (T7).

use super::{
    BAD, BAD_VERSION, BROKEN, Case, Expected, INCOMPLETE, ONE, REFUSED, TWO, Then, passed, refused,
    with_host,
};

type Row = (&'static str, &'static [u8], Expected);

/// Whole requests.
const WHOLE: &[Row] = &[
    ("plain", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\r\n", ONE),
    ("two", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\r\nGET /second HTTP/1.1\r\nHost: {host}\r\n\r\n", TWO),
    ("head, then get", b"HEAD /case HTTP/1.1\r\nHost: {host}\r\n\r\nGET /second HTTP/1.1\r\nHost: {host}\r\n\r\n", TWO),
    ("body, then get", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhelloGET /second HTTP/1.1\r\nHost: {host}\r\n\r\n", TWO),
    ("length 0, then get", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\nGET /second HTTP/1.1\r\nHost: {host}\r\n\r\n", TWO),
    ("chunks, then get", b"POST /case HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /second HTTP/1.1\r\nHost: {host}\r\n\r\n", TWO),
    ("request in a body", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 38\r\n\r\nGET /smug HTTP/1.1\r\nHost: smuggled\r\n\r\n", ONE),
    ("good, then bad", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\r\nGET /smug HTTP/1.1\nHost: {host}\r\n\r\n", passed(1, Then::Refused(BAD))),
    ("good, then garbage", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\r\nthis is no request\r\n\r\n", passed(1, Then::Refused(BAD))),
    ("body of a get", b"GET /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello", ONE),
    ("own method", b"M-SEARCH /case HTTP/1.1\r\nHost: {host}\r\n\r\n", ONE),
    ("method with all marks", b"A!#$%&'*+-.^_`|~9 /case HTTP/1.1\r\nHost: {host}\r\n\r\n", ONE),
    ("name with all marks", b"GET /case HTTP/1.1\r\nHost: {host}\r\na!#$%&'*+-.^`|~9: b\r\n\r\n", ONE),
    ("value with obs-text", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: \x80\xa0\xff\r\n\r\n", ONE),
    ("value with a tab", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\tc\r\n\r\n", ONE),
    ("value with blanks around", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: \t b \t\r\n\r\n", ONE),
    ("value without a blank", b"GET /case HTTP/1.1\r\nHost:{host}\r\na:b\r\n\r\n", ONE),
    ("empty value", b"GET /case HTTP/1.1\r\nHost: {host}\r\na:\r\nb: \r\n\r\n", ONE),
    ("value with colons", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: :b: c:\r\n\r\n", ONE),
    ("names in any case", b"GET /case HTTP/1.1\r\nhOST: {host}\r\ncONTENT-lENGTH: 0\r\n\r\n", ONE),
    ("length with zeros", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0005\r\n\r\nhello", ONE),
    ("http/1.0", b"GET /case HTTP/1.0\r\nHost: {host}\r\n\r\n", ONE),
    ("http/1.0 with a length", b"POST /case HTTP/1.0\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello", ONE),
    // Request lines.
    ("two blanks after method", b"GET  /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("two blanks after target", b"GET /case  HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("tab after method", b"GET\t/case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("tab after target", b"GET /case\tHTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("vertical tab after method", b"GET\x0b/case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("form feed after target", b"GET /case\x0cHTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("cr after method", b"GET\r/case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("blank after version", b"GET /case HTTP/1.1 \r\nHost: {host}\r\n\r\n", REFUSED),
    ("blank before method", b" GET /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("nul before method", b"\0GET /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("cr before method", b"\rGET /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("lf before method", b"\nGET /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("two empty lines before method", b"\r\n\r\nGET /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("word after version", b"GET /case HTTP/1.1 x\r\nHost: {host}\r\n\r\n", REFUSED),
    ("words in target", b"GET /case x HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("no version", b"GET /case\r\nHost: {host}\r\n\r\n", REFUSED),
    ("no target", b"GET HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("empty target", b"GET  HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("method with a colon", b"G:T /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("method with separators", b"G=\":<>(e),[T];?\" /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("method with obs-text", b"G\xcbT /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("method with nul", b"G\0T /case HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("target with nul", b"GET /ca\0se HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("target with delete", b"GET /ca\x7fse HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("target with escape", b"GET /ca\x1bse HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("target with cr", b"GET /ca\rse HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("target with lf", b"GET /ca\nse HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("target with obs-text", b"GET /ca\xffse HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("lf in request line", b"GET /case\nHTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("lf after version", b"GET /case HTTP/1.1\nHost: {host}\r\n\r\n", REFUSED),
    ("cr after version", b"GET /case HTTP/1.1\rHost: {host}\r\n\r\n", REFUSED),
    ("crcrlf after version", b"GET /case HTTP/1.1\r\r\nHost: {host}\r\n\r\n", REFUSED),
    // Versions.
    ("http/0.9", b"GET /case HTTP/0.9\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/1.2", b"GET /case HTTP/1.2\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/2.0", b"GET /case HTTP/2.0\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/1.32", b"GET /case HTTP/1.32\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/01.1", b"GET /case HTTP/01.1\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/1", b"GET /case HTTP/1\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/1.", b"GET /case HTTP/1.\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/+1.1", b"GET /case HTTP/+1.1\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/257.257", b"GET /case HTTP/257.257\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("http/4294967295.255", b"GET /case HTTP/4294967295.255\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("lower case version", b"GET /case http/1.1\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("ihttp", b"GET /case IHTTP/1.1\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("rtsp", b"GET /case RTSP/1.0\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    ("version with nul", b"GET /case HTTP/1.1\0\r\nHost: {host}\r\n\r\n", refused(BAD_VERSION)),
    // Field lines.
    ("lf between fields", b"GET /case HTTP/1.1\r\nHost: {host}\na: b\r\n\r\n", REFUSED),
    ("lf ends the head", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\nGET /smug HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("lflf ends the head", b"GET /case HTTP/1.1\r\nHost: {host}\n\nGET /smug HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("cr ends the head", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\rZGET /smug HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("only lf", b"GET /case HTTP/1.1\nHost: {host}\n\n", REFUSED),
    ("only cr", b"GET /case HTTP/1.1\rHost: {host}\r\r\r\n\r\n", REFUSED),
    ("cr in value", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\rc: d\r\n\r\n", REFUSED),
    ("cr before crlf", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\r\r\n\r\n", REFUSED),
    ("cr hides a length", b"POST /case HTTP/1.1\r\nHost: {host}\r\na: b\rContent-Length: 5\r\n\r\nhello", REFUSED),
    ("lf hides a length", b"POST /case HTTP/1.1\r\nHost: {host}\r\na: b\nContent-Length: 5\r\n\r\nhello", REFUSED),
    ("nul in value", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\0c\r\n\r\n", REFUSED),
    ("nul at the end of value", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\0\r\n\r\n", REFUSED),
    ("escape in value", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\x1bc\r\n\r\n", REFUSED),
    ("delete in value", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\x7fc\r\n\r\n", REFUSED),
    ("vertical tab in value", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: \x0bb\r\n\r\n", REFUSED),
    ("backspace in value", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\x08\r\n\r\n", REFUSED),
    ("blank before colon", b"GET /case HTTP/1.1\r\nHost: {host}\r\na : b\r\n\r\n", REFUSED),
    ("tab before colon", b"GET /case HTTP/1.1\r\nHost: {host}\r\na\t: b\r\n\r\n", REFUSED),
    ("blank before colon of a length", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length : 34\r\n\r\nGET /smug HTTP/1.1\r\nHost: {host}\r\n\r\n", REFUSED),
    ("blank before the first name", b"GET /case HTTP/1.1\r\n Host: {host}\r\n\r\n", REFUSED),
    ("tab before the first name", b"GET /case HTTP/1.1\r\n\tContent-Length: 1\r\nHost: {host}\r\n\r\nX", REFUSED),
    ("folded", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\r\n c\r\n\r\n", REFUSED),
    ("folded with a tab", b"GET /case HTTP/1.1\r\nHost: {host}\r\na: b\r\n\tc\r\n\r\n", REFUSED),
    ("folded empty", b"GET /case HTTP/1.1\r\nHost: {host}\r\na:\r\n \r\n\r\n", REFUSED),
    ("folded length", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length:\r\n 5\r\n\r\nhello", REFUSED),
    ("folded name", b"POST /case HTTP/1.1\r\nHost: {host}\r\nTransfer-\r\nEncoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", REFUSED),
    ("folded after request line", b"GET /case HTTP/1.1\r\n x\r\nHost: {host}\r\n\r\n", REFUSED),
    ("no colon", b"GET /case HTTP/1.1\r\nHost: {host}\r\nContent-Length 5\r\n\r\nhello", REFUSED),
    ("no colon at all", b"GET /case HTTP/1.1\r\nHost: {host}\r\na\r\n\r\n", REFUSED),
    ("empty name", b"GET /case HTTP/1.1\r\nHost: {host}\r\n: b\r\n\r\n", REFUSED),
    ("empty name and value", b"GET /case HTTP/1.1\r\n:\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n", REFUSED),
    ("blank name", b"GET /case HTTP/1.1\r\nHost: {host}\r\n : b\r\n\r\n", REFUSED),
    ("name with at", b"GET /case HTTP/1.1\r\nHost: {host}\r\na@: b\r\n\r\n", REFUSED),
    ("name with brackets", b"GET /case HTTP/1.1\r\nHost: {host}\r\na[]: b\r\n\r\n", REFUSED),
    ("name with quotes", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\"a\": b\r\n\r\n", REFUSED),
    ("name with a slash", b"GET /case HTTP/1.1\r\nHost: {host}\r\na/b: c\r\n\r\n", REFUSED),
    ("name with a semicolon", b"GET /case HTTP/1.1\r\nHost: {host}\r\na;b: c\r\n\r\n", REFUSED),
    ("name with a blank", b"GET /case HTTP/1.1\r\nHost: {host}\r\na b: c\r\n\r\n", REFUSED),
    ("name with nul", b"GET /case HTTP/1.1\r\nHost: {host}\r\na\0b: c\r\n\r\n", REFUSED),
    ("name with escape", b"GET /case HTTP/1.1\r\nHost: {host}\r\na\x1b: c\r\n\r\n", REFUSED),
    ("name with cr", b"GET /case HTTP/1.1\r\nHost: {host}\r\na\r\x1b5eep: c\r\n\r\n", REFUSED),
    ("name with obs-text", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\xefa: c\r\n\r\n", REFUSED),
    ("name with 0x85", b"GET /case HTTP/1.1\r\nHost: {host}\r\nContent-Length\x85: 10\r\n\r\n0123456789", REFUSED),
    // Lengths.
    ("length of plus", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: +5\r\n\r\nhello", REFUSED),
    ("length of minus", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: -5\r\n\r\nhello", REFUSED),
    ("length of minus zero", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: -0\r\n\r\n", REFUSED),
    ("length in hex", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0x5\r\n\r\nhello", REFUSED),
    ("length with an underscore", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1_0\r\n\r\n0123456789", REFUSED),
    ("length with letters", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5abc\r\n\r\nhello", REFUSED),
    ("length with a point", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5.0\r\n\r\nhello", REFUSED),
    ("length with an exponent", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5e0\r\n\r\nhello", REFUSED),
    ("length in quotes", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: \"5\"\r\n\r\nhello", REFUSED),
    ("length with a blank inside", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5 5\r\n\r\nhello", REFUSED),
    ("length of a list", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5, 5\r\n\r\nhello", REFUSED),
    ("length of an unequal list", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5, 0\r\n\r\nhello", REFUSED),
    ("length and a comma", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5,\r\n\r\nhello", REFUSED),
    ("comma and a length", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: ,5\r\n\r\nhello", REFUSED),
    ("length twice", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", REFUSED),
    ("length twice, unequal", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello", REFUSED),
    ("length twice, in two cases", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\ncontent-length: 5\r\n\r\nhello", REFUSED),
    ("length empty", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length:\r\n\r\n", REFUSED),
    ("length blank", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length:  \r\n\r\n", REFUSED),
    ("length empty and a length", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length:\r\nContent-Length: 5\r\n\r\nhello", REFUSED),
    ("length of 2^63", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9223372036854775808\r\n\r\nhello", REFUSED),
    ("length of 2^64", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 18446744073709551616\r\n\r\nhello", REFUSED),
    ("length of 2^64 and 5", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 18446744073709551621\r\n\r\nhello", REFUSED),
    ("length with nul", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\0\r\n\r\nhello", REFUSED),
    ("length with 0xa0", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: \xa05\r\n\r\nhello", REFUSED),
    ("length in arabic digits", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: \xd9\xa5\r\n\r\nhello", REFUSED),
    // Not all there.
    ("nothing but a method", b"GET", INCOMPLETE),
    ("no end of request line", b"GET /case HTTP/1.1", INCOMPLETE),
    ("no end of head", b"GET /case HTTP/1.1\r\nHost: {host}\r\n", INCOMPLETE),
    ("no lf at the end of head", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\r", INCOMPLETE),
    ("body longer than its length", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello there\r\n\r\n", passed(1, Then::Refused(BAD))),
    ("body where there is none", b"GET /case HTTP/1.1\r\nHost: {host}\r\n\r\nhello there\r\n\r\n", passed(1, Then::Refused(BAD))),
    ("length without its body", b"POST /case HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhell", BROKEN),
];

/// Targets and authorities.
const AUTHORITIES: &[Row] = &[
    (
        "star of options",
        b"OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n",
        ONE,
    ),
    (
        "query",
        b"GET /case?a=b&c=%00?/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        ONE,
    ),
    (
        "all that a target may have",
        b"GET /case/!$&'()*+,=:@-._~%41 HTTP/1.1\r\nHost: {host}\r\n\r\n",
        ONE,
    ),
    (
        "no host in http/1.1",
        b"GET /case HTTP/1.1\r\n\r\n",
        REFUSED,
    ),
    (
        "two hosts",
        b"GET /case HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "two hosts, unequal",
        b"GET /case HTTP/1.1\r\nHost: {host}\r\nHost: smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "two hosts, in two cases",
        b"GET /case HTTP/1.1\r\nhost: {host}\r\nHOST: smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "two hosts in http/1.0",
        b"GET /case HTTP/1.0\r\nHost: {host}\r\nHost: smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "empty host",
        b"GET /case HTTP/1.1\r\nHost:\r\n\r\n",
        REFUSED,
    ),
    (
        "blank host",
        b"GET /case HTTP/1.1\r\nHost: \t\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a blank",
        b"GET /case HTTP/1.1\r\nHost: {host} smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a comma",
        b"GET /case HTTP/1.1\r\nHost: {host},smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "host with user information",
        b"GET /case HTTP/1.1\r\nHost: good@{host}\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a path",
        b"GET /case HTTP/1.1\r\nHost: {host}/smug\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a query",
        b"GET /case HTTP/1.1\r\nHost: {host}?smug\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a fragment",
        b"GET /case HTTP/1.1\r\nHost: {host}#smug\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a backslash",
        b"GET /case HTTP/1.1\r\nHost: {host}\\smug\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a scheme",
        b"GET /case HTTP/1.1\r\nHost: http://{host}\r\n\r\n",
        REFUSED,
    ),
    (
        "host with nul",
        b"GET /case HTTP/1.1\r\nHost: {host}\0.smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "host with obs-text",
        b"GET /case HTTP/1.1\r\nHost: \xff{host}\xff\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a name as port",
        b"GET /case HTTP/1.1\r\nHost: {host}:port\r\n\r\n",
        REFUSED,
    ),
    (
        "host with two ports",
        b"GET /case HTTP/1.1\r\nHost: {host}:80:80\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a port too large",
        b"GET /case HTTP/1.1\r\nHost: {host}:99999999\r\n\r\n",
        REFUSED,
    ),
    (
        "host with a negative port",
        b"GET /case HTTP/1.1\r\nHost: {host}:-80\r\n\r\n",
        REFUSED,
    ),
    (
        "host of a port only",
        b"GET /case HTTP/1.1\r\nHost: :80\r\n\r\n",
        REFUSED,
    ),
    (
        "host of an open bracket",
        b"GET /case HTTP/1.1\r\nHost: [::1\r\n\r\n",
        REFUSED,
    ),
    (
        "host of empty brackets",
        b"GET /case HTTP/1.1\r\nHost: []\r\n\r\n",
        REFUSED,
    ),
    (
        "host with text after brackets",
        b"GET /case HTTP/1.1\r\nHost: [::1]smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "host of a name in brackets",
        b"GET /case HTTP/1.1\r\nHost: [{host}]\r\n\r\n",
        REFUSED,
    ),
    (
        "host in quotes",
        b"GET /case HTTP/1.1\r\nHost: \"{host}\"\r\n\r\n",
        REFUSED,
    ),
    (
        "host in angles",
        b"GET /case HTTP/1.1\r\nHost: <{host}>\r\n\r\n",
        REFUSED,
    ),
    (
        "blank before colon of host",
        b"GET /case HTTP/1.1\r\nHost : {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "folded host",
        b"GET /case HTTP/1.1\r\nHost:\r\n {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "target without a slash",
        b"GET case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "target of a query only",
        b"GET ?case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "target of a backslash",
        b"GET \\case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "target with a fragment",
        b"GET /case#smug HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "target with a fragment in its query",
        b"GET /case?a#smug HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "star of get",
        b"GET * HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "star and more",
        b"OPTIONS *x HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "authority of get",
        b"GET {host}:80 HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "path of connect",
        b"CONNECT /case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "connect without a port",
        b"CONNECT smuggled HTTP/1.1\r\nHost: smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute, another host",
        b"GET http://{host}/case HTTP/1.1\r\nHost: smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute, no host",
        b"GET http://{host}/case HTTP/1.1\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute, two hosts",
        b"GET http://{host}/case HTTP/1.1\r\nHost: {host}\r\nHost: smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute with user information",
        b"GET http://good@{host}/case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute with a fragment",
        b"GET http://{host}/case#a HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute without an authority",
        b"GET http:///case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute without slashes",
        b"GET http:{host}/case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute with one slash",
        b"GET http:/{host}/case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute with a comma",
        b"GET http://{host},smuggled/case HTTP/1.1\r\nHost: {host},smuggled\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute of another scheme",
        b"GET ftp://{host}/case HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
    (
        "absolute of file",
        b"GET file:///etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n",
        REFUSED,
    ),
];

/// Fields that `Connection` may not name: removing them would change what the request says.
const PROTECTED: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "authorization",
    "cookie",
    "content-type",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-client-cert",
    "x-real-ip",
    "x-request-id",
    "traceparent",
    "weft-reason",
];

/// Names that differ from a field that decides something by an underscore only.
const TWINS: &[&str] = &[
    "content_length",
    "transfer_encoding",
    "x_forwarded_for",
    "weft_reason",
];

fn rows(table: &[Row], host: &str) -> Vec<Case> {
    let case = |(name, bytes, expected): &Row| Case::new(*name, with_host(bytes, host), *expected);
    table.iter().map(case).collect()
}

/// T1, T2: request lines, versions, field lines, lengths.
pub fn heads(host: &str) -> Vec<Case> {
    let mut cases = rows(WHOLE, host);
    let one = format!("GET /case HTTP/1.1\r\nHost: {host}\r\n\r\n");
    cases.push(Case::new("empty line before method", format!("\r\n{one}"), ONE).meaning(&*one));
    cases
}

/// T4: targets and authorities.
pub fn authorities(host: &str) -> Vec<Case> {
    let mut cases = rows(AUTHORITIES, host);
    for (name, target, means) in [
        ("absolute", format!("http://{host}/case?a=b"), "/case?a=b"),
        (
            "absolute, scheme in capitals",
            format!("HTTP://{host}/case"),
            "/case",
        ),
        ("absolute without a path", format!("http://{host}"), "/"),
        (
            "absolute with a query only",
            format!("http://{host}?a"),
            "/?a",
        ),
    ] {
        let request = |target| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let case = Case::new(name, request(&*target), ONE);
        cases.push(case.meaning(request(means)));
    }
    cases
}

/// T7: what `Connection` names, and twins of names by underscore.
pub fn connection(host: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let request = |fields: &str| {
        let body = "Content-Length: 5\r\n\r\nhello";
        format!("POST /case HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n{body}")
    };
    for name in PROTECTED {
        let list = request(&format!("Connection: keep-alive, {name}"));
        cases.push(Case::new(format!("connection names {name}"), list, REFUSED));
        let shouting = request(&format!("Connection: {}", name.to_ascii_uppercase()));
        cases.push(Case::new(
            format!("connection is {name}"),
            shouting,
            REFUSED,
        ));
    }
    for name in TWINS {
        let twin = request(&format!("{name}: 1"));
        cases.push(Case::new(format!("twin {name}"), twin, REFUSED));
    }
    for (name, fields) in [
        (
            "connection names a field of its own",
            "Connection: x-hop\r\nx-hop: 1\r\nx-end: 2",
        ),
        (
            "hop-by-hop fields",
            "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nx-end: 2",
        ),
        (
            "connection names te",
            "Connection: TE\r\nTE: trailers\r\nx-end: 2",
        ),
        (
            "connection with empty words",
            "Connection: ,, x-hop ,\r\nx-hop: 1\r\nx-end: 2",
        ),
    ] {
        let case = Case::new(name, request(fields), ONE);
        cases.push(case.meaning(request("x-end: 2")));
    }
    cases
}
