//! A question to the full admin interface of the sidecar beside this process: for hooks in
//! containers that have no other program than ours.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// How long each step may take: the interface is on this machine.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const MAX_ANSWER: u64 = 64 * 1024;

/// POSTs to a page; returns the body of the answer. Blocks.
///
/// # Errors
/// Nobody answers there, or the page refuses; the text says which.
pub fn post(admin: SocketAddr, path: &str) -> Result<String, String> {
    let answer =
        exchange(admin, path).map_err(|error| format!("no sidecar answers on {admin}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!(
            "POST {path} on {admin}: {} {}",
            head.lines().next().unwrap_or("no answer"),
            body.trim_end()
        )),
    }
}

fn exchange(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::TcpListener,
    };

    use super::post;

    #[test]
    fn answers_and_refusals() {
        for (answer, expect) in [
            ("HTTP/1.1 200 OK\r\n\r\ndraining\n", Ok("draining\n")),
            (
                "HTTP/1.1 409 Conflict\r\n\r\ntoo late\n",
                Err("HTTP/1.1 409 Conflict too late"),
            ),
            ("", Err("no answer")),
        ] {
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = server.local_addr().unwrap();
            let serving = std::thread::spawn(move || {
                let (mut stream, _) = server.accept().unwrap();
                let head = BufReader::new(&stream).lines().next().unwrap().unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                head
            });
            match (post(address, "/drain"), expect) {
                (Ok(body), Ok(expect)) => assert_eq!(body, expect),
                (Err(error), Err(expect)) => assert!(error.contains(expect), "{error}"),
                (got, expect) => panic!("{got:?}, not {expect:?}"),
            }
            assert_eq!(serving.join().unwrap(), "POST /drain HTTP/1.1");
        }
    }

    #[test]
    fn nobody_there() {
        let gone = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = post(gone, "/drain").unwrap_err();
        assert!(error.starts_with("no sidecar answers on"), "{error}");
    }
}
