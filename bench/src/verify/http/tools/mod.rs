//! Other people's programs as clients and servers: what they find that our own do not think of.
//! Each is skipped, with the package to install, where it is missing. The outcome is in
//! `docs/interop.md`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use super::lanes::{Door, Lane, Speaks, Stage};
use crate::error::{Context as _, Result};
use crate::process::{Output, Process, Spec, free_address, tail, which};
use crate::verify::world::start_app;
use crate::verify::{Cases, Finding, Setting, seen};

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(100);

/// What varnishtest is to run, as client and server at once.
const VTC: [(&str, &str); 8] = [
    ("fields", include_str!("fields.vtc")),
    ("chunked", include_str!("chunked.vtc")),
    ("bodiless", include_str!("bodiless.vtc")),
    ("pipelined", include_str!("pipelined.vtc")),
    ("until-close", include_str!("until_close.vtc")),
    ("interim", include_str!("interim.vtc")),
    ("broken", include_str!("broken.vtc")),
    ("http2", include_str!("http2.vtc")),
];

/// Applications, in the order of their lanes.
const HTTP1: usize = 0;
const HTTP2: usize = 1;
const WEBSOCKET: usize = 2;
const GRPC: usize = 3;
const FIRST_VTC: usize = 4;

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let dir = setting.dir();
    let (app_at, _app) = start_app(dir, "v1", None).await?;
    let python = Python::find(dir).await;
    let (websocket_at, grpc_at) = (free_address()?, free_address()?);
    let mut apps = vec![
        (app_at, Speaks::Http1),
        (app_at, Speaks::Http2),
        (websocket_at, Speaks::Http1),
        (grpc_at, Speaks::Http2),
    ];
    for _ in VTC {
        apps.push((free_address()?, Speaks::Http1));
    }
    let stage = Stage::start_as(setting, &apps, "", |spec| spec).await?;
    let bench = Bench { dir, stage: &stage };
    bench.curl(cases).await;
    bench.nghttp(cases).await;
    bench.h2load(cases, setting.quick).await;
    bench.slowhttptest(cases, setting.quick).await;
    for (number, (name, text)) in VTC.iter().enumerate() {
        let app = apps[FIRST_VTC + number].0;
        bench.vtc(cases, name, text, number, app).await;
    }
    bench.websocket(cases, &python, websocket_at).await;
    bench.grpc(cases, &python, grpc_at).await;
    Ok(())
}

/// Which of Python's packages there are.
struct Python {
    program: Option<PathBuf>,
    grpc: bool,
    websockets: bool,
}

impl Python {
    async fn find(dir: &Path) -> Self {
        let program = which("python3");
        let has = async |module: &str| {
            let Some(python) = &program else {
                return false;
            };
            let import = Spec::new("python3", python).pair("-c", format!("import {module}"));
            let output = import.run(dir, LIMIT).await;
            output.is_ok_and(|output| output.status.success())
        };
        let (grpc, websockets) = (has("grpc").await, has("websockets.asyncio.server").await);
        Self {
            program,
            grpc,
            websockets,
        }
    }
}

struct Bench<'a> {
    dir: &'a Path,
    stage: &'a Stage,
}

impl Bench<'_> {
    fn lane(&self, number: usize) -> &Lane {
        &self.stage.lanes[number]
    }

    /// Where the client's sidecar takes requests.
    fn outbound(&self) -> SocketAddr {
        self.lane(HTTP1).door(Door::Outbound)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.outbound())
    }

    fn host(&self, lane: usize) -> &str {
        &self.lane(lane).host
    }

    async fn run(&self, name: &str, program: &Path, args: &[&str]) -> Result<Output> {
        let spec = Spec::new(name, program);
        let spec = args.iter().fold(spec, |spec, arg| spec.arg(arg));
        spec.run(self.dir, LIMIT).await
    }

    async fn curl(&self, cases: &mut Cases) {
        const MIB: &str = "1048576";
        let body = self.dir.join("body");
        let upload = format!("@{}", body.display());
        let echo = ["--data-binary", &upload];
        let calls: [(&str, &str, &[&str], &str); 12] = [
            ("http1", "/", &["--http1.1"], "200 1.1 100"),
            ("http1.0", "/", &["--http1.0"], "200 1 100"),
            ("http2", "/", &["--http2-prior-knowledge"], "200 2 100"),
            (
                "http2-upgrade-is-not-taken",
                "/",
                &["--http2"],
                "200 1.1 100",
            ),
            ("head", "/size/1000", &["--head"], "200 1.1 0"),
            (
                "expect-continue",
                "/echo",
                &[&echo[..], &["--header", "Expect: 100-continue"]].concat(),
                "200 1.1 MIB",
            ),
            (
                "chunked",
                "/echo",
                &[&echo[..], &["--header", "Transfer-Encoding: chunked"]].concat(),
                "200 1.1 MIB",
            ),
            (
                "http2-upload",
                "/echo",
                &[&echo[..], &["--http2-prior-knowledge"]].concat(),
                "200 2 MIB",
            ),
            ("long", "/size/67108864", &[], "200 1.1 67108864"),
            (
                "long-http2",
                "/size/67108864",
                &["--http2-prior-knowledge"],
                "200 2 67108864",
            ),
            (
                "path-as-is",
                "/a/../b/./c",
                &["--path-as-is", "--http1.1"],
                "200 1.1 100",
            ),
            (
                "connection-twice",
                "/[1-2]",
                &["--http1.1"],
                "200 1.1 100 200 1.1 100",
            ),
        ];
        let wrote = fs::write(&body, vec![b'b'; 1 << 20]).context(body.display());
        for lane in [HTTP1, HTTP2] {
            for (name, path, args, expected) in calls {
                let name = format!("curl-{name}-to-http{}", if lane == HTTP1 { 1 } else { 2 });
                let expected = expected.replace("MIB", MIB);
                let Some(curl) = which("curl") else {
                    cases.skip(&name, expected, "no curl: apt-get install curl");
                    continue;
                };
                let check = async {
                    wrote.clone()?;
                    let host = format!("Host: {}", self.host(lane));
                    let url = self.url(path);
                    let mut all = vec![
                        "--silent",
                        "--show-error",
                        "--noproxy",
                        "*",
                        "--max-time",
                        "60",
                        "--output",
                        "/dev/null",
                        "--header",
                        &host,
                        "--write-out",
                        "%{http_code} %{http_version} %{size_download} ",
                        &url,
                    ];
                    // The second output of a URL that stands for two.
                    all.extend(["--output", "/dev/null"]);
                    all.extend(args);
                    let output = self.run("curl", &curl, &all).await?;
                    let said = output.stdout.trim().to_owned();
                    let ok = output.status.success() && said == expected;
                    let errors = output.stderr.trim();
                    Ok(seen(ok, format!("{said} {errors}").trim().to_owned()))
                };
                cases.check(&name, expected.clone(), check).await;
            }
        }
    }

    async fn nghttp(&self, cases: &mut Cases) {
        let expected = "10 streams on one connection, with windows of 64 KiB, an upload and a trailer: each 200";
        let Some(nghttp) = which("nghttp") else {
            cases.skip(
                "nghttp",
                expected,
                "no nghttp: apt-get install nghttp2-client",
            );
            return;
        };
        for lane in [HTTP1, HTTP2] {
            let name = format!("nghttp-to-http{}", if lane == HTTP1 { 1 } else { 2 });
            let check = async {
                let body = self.dir.join("nghttp-body");
                fs::write(&body, vec![b'b'; 100_000]).context(body.display())?;
                let body = body.to_string_lossy();
                let authority = format!(":authority: {}", self.host(lane));
                let url = self.url("/echo");
                let args = [
                    "-nv",
                    "-m10",
                    "-w16",
                    "-W16",
                    "-d",
                    &*body,
                    "--trailer",
                    "x-end: 1",
                    "-H",
                    &authority,
                    &*url,
                ];
                let output = self.run("nghttp", &nghttp, &args).await?;
                let text = plain(&output.stdout);
                let answered = text.matches(":status: 200").count();
                let goodbye = text.contains("error_code=NO_ERROR");
                let other = text
                    .lines()
                    .find(|line| line.contains(":status: ") && !line.contains("200"))
                    .or_else(|| text.lines().find(|line| line.contains("RST_STREAM")));
                Ok(seen(
                    output.status.success() && answered == 10 && other.is_none(),
                    format!(
                        "{answered} of 10 streams 200, GOAWAY NO_ERROR: {goodbye} {}{}",
                        other.unwrap_or_default().trim(),
                        output.stderr.trim()
                    ),
                ))
            };
            cases.check(&name, expected, check).await;
        }
    }

    async fn h2load(&self, cases: &mut Cases, quick: bool) {
        let requests = if quick { "2000" } else { "200000" };
        let runs: [(&str, &[&str]); 3] = [
            ("http2", &["-c10", "-m20"]),
            ("http2-one-connection", &["-c1", "-m200"]),
            ("http1", &["-c20", "--h1"]),
        ];
        for (name, args) in runs {
            for lane in [HTTP1, HTTP2] {
                let name = format!("h2load-{name}-to-http{}", if lane == HTTP1 { 1 } else { 2 });
                let expected = format!("{requests} succeeded, 0 failed, all 2xx");
                let Some(h2load) = which("h2load") else {
                    let missing = "no h2load: apt-get install nghttp2-client";
                    cases.skip(&name, expected, missing);
                    continue;
                };
                let check = async {
                    let authority = format!(":authority: {}", self.host(lane));
                    let url = self.url("/");
                    let mut all = vec!["-n", requests, "-H", &authority, &url];
                    all.extend(args);
                    let output = self.run("h2load", &h2load, &all).await?;
                    let line = |start: &str| {
                        let mut lines = output.stdout.lines();
                        lines.find(|line| line.starts_with(start)).unwrap_or("-")
                    };
                    let ok = line("requests: ").contains(&format!(
                        "{requests} succeeded, 0 failed, 0 errored, 0 timeout"
                    )) && line("status codes: ").contains(&format!("{requests} 2xx"));
                    Ok(seen(
                        ok,
                        format!(
                            "{}; {}; {}",
                            line("finished in "),
                            line("requests: "),
                            line("status codes: ")
                        ),
                    ))
                };
                cases.check(&name, expected.clone(), check).await;
            }
        }
    }

    /// Slow heads, bodies and reads from a tool that is made for it, all at once; by its own
    /// judgement the service stays available.
    async fn slowhttptest(&self, cases: &mut Cases, quick: bool) {
        let expected = "its attack is connected, and its probes are answered to the end: `service available: YES`";
        let modes: [(&str, &str, &[&str]); 3] = [
            ("heads", "/", &["-H", "-i", "1"]),
            ("bodies", "/accounts/1", &["-B", "-i", "1", "-s", "8192"]),
            (
                "reads",
                "/size/200000",
                &[
                    "-X", "-w", "10", "-y", "20", "-n", "1", "-z", "5", "-k", "3",
                ],
            ),
        ];
        let program = which("slowhttptest");
        // It reports every 5 s.
        let (connections, seconds) = if quick { (200, "6") } else { (1000, "30") };
        let attacks = modes.map(|(_, path, args)| {
            let program = program.clone();
            async move {
                let program = program.context("no slowhttptest")?;
                self.slow_attack(&program, path, args, connections, seconds)
                    .await
            }
        });
        let [heads, bodies, reads] = attacks;
        let (heads, bodies, reads) = tokio::join!(heads, bodies, reads);
        for ((name, _, _), result) in modes.into_iter().zip([heads, bodies, reads]) {
            let name = format!("slowhttptest-{name}");
            if program.is_none() {
                let missing = "no slowhttptest: apt-get install slowhttptest";
                cases.skip(&name, expected, missing);
                continue;
            }
            cases.check(&name, expected, async { result }).await;
        }
    }

    async fn slow_attack(
        &self,
        program: &Path,
        path: &str,
        args: &[&str],
        connections: u32,
        seconds: &str,
    ) -> Result<Finding> {
        let url = format!("http://{}{path}", self.host(HTTP1));
        let (proxy, count) = (self.outbound().to_string(), connections.to_string());
        let mut all = vec!["-c", &count, "-r", &count, "-l", seconds, "-p", "2"];
        // Both its attack and its probes go through the sidecar as an HTTP proxy.
        all.extend(["-d", &proxy, "-u", &url]);
        all.extend(args);
        let output = self.run("slowhttptest", program, &all).await?;
        let text = plain(&output.stdout);
        let available: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once("service available:"))
            .map(|(_, answer)| answer.trim())
            .collect();
        let most = |what: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(what));
            let numbers = lines.filter_map(|rest| rest.trim().parse::<u32>().ok());
            numbers.max().unwrap_or_default()
        };
        let (connected, closed) = (most("connected:"), most("closed:"));
        let ok = !available.is_empty()
            && available.iter().all(|answer| *answer == "YES")
            && connected.max(closed) >= connections / 2;
        Ok(seen(
            ok,
            format!(
                "available: {}; at most {connected} connected, {closed} closed of {connections}",
                available.join(" ")
            ),
        ))
    }

    async fn vtc(&self, cases: &mut Cases, name: &str, text: &str, number: usize, app: SocketAddr) {
        let case = format!("varnishtest-{name}");
        let expected = text.lines().next().unwrap_or_default();
        let expected = expected.trim_start_matches("vtest ").trim_matches('"');
        let Some(program) = which("varnishtest") else {
            cases.skip(&case, expected, "no varnishtest: apt-get install varnish");
            return;
        };
        let check = async {
            let file = self.dir.join(format!("{name}.vtc"));
            fs::write(&file, text).context(file.display())?;
            let lane = self.lane(FIRST_VTC + number);
            let defines = [
                format!("app={app}"),
                format!("proxy={}", lane.door(Door::Outbound)),
                format!("host={}", lane.host),
            ];
            let file = file.to_string_lossy();
            let mut args = vec!["-t", "20"];
            for define in &defines {
                args.extend(["-D", define]);
            }
            args.push(&file);
            let output = self.run("varnishtest", &program, &args).await?;
            if output.status.success() {
                return Ok(seen(true, expected));
            }
            let failure = Regex::new("(?m)^---- .*$").context("a pattern")?;
            let said = failure.find(&output.stdout);
            let said = said.map_or_else(
                || tail(&output.stdout, 5),
                |found| found.as_str().to_owned(),
            );
            Ok(seen(false, said))
        };
        cases.check(&case, expected, check).await;
    }

    async fn websocket(&self, cases: &mut Cases, python: &Python, at: SocketAddr) {
        let expected =
            "every case is answered as the server answers it alone, and as RFC 6455 wants";
        let Some(program) = python.program.as_ref().filter(|_| python.websockets) else {
            let missing = "no python3 with websockets: pip install websockets";
            cases.skip("websocket", expected, missing);
            return;
        };
        let check = async {
            let script = self.dir.join("websocket_cases.py");
            fs::write(&script, include_str!("websocket_cases.py")).context(script.display())?;
            let mut server = self.serve("websocket", program, &script, at)?;
            server.listens(at).await?;
            let (direct, meshed) = (at.to_string(), self.outbound().to_string());
            let script = script.to_string_lossy();
            let host = self.host(WEBSOCKET);
            let args = [&*script, "call", &*direct, host, &*meshed, host];
            let output = self.run("websocket", program, &args).await?;
            Ok(lines(&output))
        };
        cases.check("websocket", expected, check).await;
    }

    async fn grpc(&self, cases: &mut Cases, python: &Python, at: SocketAddr) {
        let expected =
            "every kind of call, status, metadata, deadline and cancel as without the mesh";
        let Some(program) = python.program.as_ref().filter(|_| python.grpc) else {
            cases.skip(
                "grpc",
                expected,
                "no python3 with grpcio: pip install grpcio",
            );
            return;
        };
        let check = async {
            let script = self.dir.join("grpc_interop.py");
            fs::write(&script, include_str!("grpc_interop.py")).context(script.display())?;
            let mut server = self.serve("grpc", program, &script, at)?;
            server.listens(at).await?;
            let target = self.outbound().to_string();
            let script = script.to_string_lossy();
            let args = [&*script, "call", &*target, self.host(GRPC)];
            let output = self.run("grpc", program, &args).await?;
            Ok(lines(&output))
        };
        cases.check("grpc", expected, check).await;
    }

    fn serve(&self, name: &str, program: &Path, script: &Path, at: SocketAddr) -> Result<Process> {
        Spec::new(format!("{name}-server"), program)
            .arg(script)
            .arg("serve")
            .arg(at.port().to_string())
            .start(self.dir)
    }
}

/// Judges what a script of ours says: a line for each case, the last with their number.
fn lines(output: &Output) -> Finding {
    let count = |mark: &str| {
        let all = output.stdout.lines();
        all.filter(|line| line.starts_with(mark)).count()
    };
    let done = output.stdout.lines().last().and_then(|line| {
        let mut words = line.strip_prefix("done ")?.splitn(2, ' ');
        Some((words.next()?.parse::<usize>().ok()?, words.next()?))
    });
    let Some((total, with)) = done else {
        return seen(false, format!("no end: {}", tail(&output.stderr, 5)));
    };
    let others: Vec<&str> = output
        .stdout
        .lines()
        .filter(|line| !line.starts_with("ok ") && !line.starts_with("done "))
        .collect();
    let right = count("ok ");
    seen(
        right == total && total > 0,
        format!("{right} of {total} ({with}) {}", others.join("\n"))
            .trim()
            .to_owned(),
    )
}

/// Without colours.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain += before;
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(stdout: &str) -> Finding {
        lines(&Output {
            status: std::process::ExitStatus::default(),
            stdout: stdout.to_owned(),
            stderr: "boom".to_owned(),
        })
    }

    #[test]
    fn scripts_are_judged_by_their_lines() {
        for (stdout, ok, text) in [
            ("ok a\nok b c\ndone 2 x 1.0\n", true, "2 of 2 (x 1.0)"),
            (
                "ok a\nFAIL b: c\ndone 2 x 1.0\n",
                false,
                "1 of 2 (x 1.0) FAIL b: c",
            ),
            ("ok a\n", false, "no end: boom"),
            ("done 0 x 1.0\n", false, "0 of 0 (x 1.0)"),
        ] {
            assert_eq!(said(stdout), seen(ok, text), "{stdout}");
        }
    }

    #[test]
    fn colours_are_taken_away() {
        assert_eq!(plain("a\u{1b}[1;33mb\u{1b}[0mc"), "abc");
        assert_eq!(plain("a\u{1b}"), "a");
    }
}
