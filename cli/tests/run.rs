//! `weft server` and `weft run` together: two applications that call each other through the
//! mesh, signals and exit codes handed on, nothing left behind.
#![allow(clippy::unwrap_used)] // A helper of a test may panic as the test may.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

/// A server on free ports with its data in a directory of the test's own; killed when dropped.
struct Server {
    process: Child,
    data: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args([
                "server",
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--data",
            ])
            .arg(data.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let announced = data.path().join("server.json");
        wait_until("the server is up", || announced.exists());
        Self { process, data }
    }

    fn run(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command
            .arg("run")
            .arg("--server-data")
            .arg(self.data.path())
            .args(args);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn config(&self) -> PathBuf {
        self.data.path().join("config")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .unwrap()
            .success()
    );
}

/// Waits for the line that says that the sidecar is ready; returns the rest of the words.
fn sidecar_is_up(child: &mut Child) -> BufReader<ChildStderr> {
    let mut words = BufReader::new(child.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("ready; peers call") {
        assert_ne!(words.read_line(&mut seen).unwrap(), 0, "{seen}");
    }
    words
}

/// An application: answers every HTTP request with `hello from callee`.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while lines
            .next()
            .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
        {}
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-length: 17\r\nconnection: close\r\n\r\nhello from callee";
        stream.write_all(answer.as_bytes()).unwrap();
    }
}

#[test]
fn two_applications_talk_through_the_mesh() {
    let server = Server::start();
    // The callee's application is in this process; its command only has to live.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || serve(&listener));
    let mut callee = server
        .run(&[
            "--name",
            "callee",
            "--port",
            &port,
            "--protocol",
            "http",
            "--",
            "sleep",
            "600",
        ])
        .spawn()
        .unwrap();
    let _words = sidecar_is_up(&mut callee);

    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let to = format!("callee={free}");
    let mut caller = server
        .run(&[
            "--name", "caller", "--port", "9", "--to", &to, "--", "sh", "-c",
        ])
        .arg("echo $WEFT_OUTBOUND; exec sleep 600")
        .spawn()
        .unwrap();
    let _words = sidecar_is_up(&mut caller);
    let mut outbound = String::new();
    BufReader::new(caller.stdout.take().unwrap())
        .read_line(&mut outbound)
        .unwrap();
    let outbound = outbound.trim().trim_start_matches("http://").to_owned();

    for (address, host) in [
        (outbound.as_str(), "callee"),
        (&format!("127.0.0.1:{free}"), "any"),
    ] {
        wait_until(&format!("{address} answers"), || {
            ask(address, host).contains("hello from callee")
        });
    }

    assert_eq!(files(&server.config()), 2);
    for mut child in [caller, callee] {
        signal(&child, "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    }
    assert_eq!(files(&server.config()), 0, "documents are left behind");
}

fn ask(address: &str, host: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

#[test]
fn exit_codes_and_signals_are_handed_on() {
    let server = Server::start();
    let ended = server
        .run(&["--name", "a", "--port", "9", "--", "sh", "-c", "exit 7"])
        .output()
        .unwrap();
    assert_eq!(
        ended.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );

    let script = "trap 'echo reloaded; exit 5' HUP; echo started; while :; do sleep 0.05; done";
    let mut running = server
        .run(&["--name", "a", "--port", "9", "--", "sh", "-c", script])
        .spawn()
        .unwrap();
    let mut out = BufReader::new(running.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");

    let again = server
        .run(&["--name", "a", "--port", "9", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1));
    let words = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(words.contains("the workload runs already"), "{words}");

    signal(&running, "HUP");
    assert_eq!(running.wait().unwrap().code(), Some(5));
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "started\nreloaded\n");
    assert_eq!(files(&server.config()), 0, "documents are left behind");
}

#[test]
fn a_command_that_does_not_exist_is_an_error() {
    let server = Server::start();
    let ended = server
        .run(&["--name", "a", "--port", "9", "--", "/no/such/command"])
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let words = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        words.contains("error: cannot start /no/such/command: "),
        "{words}"
    );
    assert_eq!(files(&server.config()), 0, "documents are left behind");
}

#[test]
fn a_local_port_that_is_taken_is_an_error() {
    let server = Server::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    // The service has to exist for its local port to be opened: the workload itself will do.
    let to = format!("a={port}");
    let ended = server
        .run(&["--name", "a", "--port", "9", "--to", &to, "--", "true"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{words}");
    let expect = format!("127.0.0.1:{port} is in use by another process");
    assert!(words.contains(&expect), "{words}");
}

#[test]
fn a_server_that_was_killed_is_not_reached() {
    let mut server = Server::start();
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let ended = server
        .run(&["--name", "a", "--port", "9", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(3));
    let words = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        words.contains("cannot reach the control plane on 127.0.0.1:"),
        "{words}"
    );
}
