//! `weft run --transparent` in network namespaces of its own: a hub with the control plane, and
//! hosts on its wire.
//!
//! Needs root, and `ip`, `nft`, `setpriv`, `curl` and `python3`. Without them each test says that
//! it was skipped; with `WEFT_NETNS=1` it fails instead.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use weft_control::token::{Request, Tokens};

/// Users that no machine has.
const APP: &str = "40007";
const OTHER: &str = "40009";
/// A group of the user `app`, who is APP.
const KEYS: &str = "40011";
const ROOT: &str = "root:x:0:0:root:/root:/bin/sh\n";

/// Whether the test cannot be run here; says why. `WEFT_NETNS=1` makes it a failure.
fn skip(test: &str) -> bool {
    let works = |line: &str| {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let needed = [
        "unshare --net true",
        "ip -V",
        "nft --version",
        "setpriv --version",
        "curl --version",
        "python3 --version",
    ];
    let Some(missing) = needed.into_iter().find(|line| !works(line)) else {
        return false;
    };
    let why = format!("`{missing}` does not work here, or not without root");
    assert!(
        std::env::var_os("WEFT_NETNS").is_none_or(|value| value != "1"),
        "{test}: {why}, and WEFT_NETNS=1 forbids to skip"
    );
    // Straight to standard error: what a test prints is shown only when it fails.
    let _ = writeln!(std::io::stderr(), "transparent::{test} SKIPPED: {why}");
    true
}

/// Everything that an ended process said.
fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .concat()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A network namespace and its resolver, which is the hub and knows nothing; both are deleted at
/// the end.
struct Host {
    name: String,
}

impl Host {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let host = Self {
            name: format!("wfi{}-{number}", std::process::id()),
        };
        let name = &host.name;
        sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        let files = host.files();
        fs::create_dir_all(&files).unwrap();
        fs::write(
            files.join("resolv.conf"),
            "nameserver 10.114.0.1\noptions timeout:1 attempts:1\n",
        )
        .unwrap();
        let passwd = format!("{ROOT}app:x:{APP}:{APP}::/srv/app:/bin/sh\n");
        fs::write(files.join("passwd"), passwd).unwrap();
        fs::write(files.join("group"), format!("keys:x:{KEYS}:app\n")).unwrap();
        host
    }

    /// What `ip netns exec` puts in the place of files in /etc.
    fn files(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn sh(&self, script: &str) -> Output {
        self.command("sh").args(["-c", script]).output().unwrap()
    }

    /// A call as a user; what it got, or nothing.
    fn curl(&self, user: &str, url: &str) -> String {
        let script = format!(
            "exec setpriv --reuid {user} --regid {user} --clear-groups curl -s --max-time 5 {url}"
        );
        String::from_utf8_lossy(&self.sh(&script).stdout).into_owned()
    }

    /// The rules that are in force.
    fn rules(&self) -> String {
        text(&self.sh("nft list ruleset"))
    }

    /// An application that serves its name on a port, as root.
    fn serve(&self, port: u16, body: &str) -> Process {
        let mut command = self.command("python3");
        command
            .args(["-c", SERVER, &port.to_string(), body])
            .stdin(Stdio::null());
        let process = Process(command.spawn().unwrap());
        wait_until("an application listens", || {
            self.curl("0", &format!("http://127.0.0.1:{port}/")) == body
        });
        process
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .output();
        let _ = fs::remove_dir_all(self.files());
    }
}

/// Answers every request with its second argument, on all addresses.
const SERVER: &str = "
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = sys.argv[2].encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(('::', int(sys.argv[1])), Handler).serve_forever()
";

/// A process; killed when dropped.
struct Process(Child);

impl Process {
    fn signal(&self, signal: &str) {
        let pid = self.0.id();
        sh(&format!("kill -s {signal} {pid}"));
    }

    /// Waits for the end; the exit code, and what it said.
    fn ended(mut self) -> (Option<i32>, String) {
        let code = self.0.wait().unwrap().code();
        let mut said = String::new();
        for stream in [
            self.0.stdout.take().map(read),
            self.0.stderr.take().map(read),
        ] {
            said += &stream.unwrap_or_default();
        }
        (code, said)
    }

    /// The children of this process that run as a user.
    fn children(&self, user: &str) -> Vec<u32> {
        let of_child = |entry: fs::DirEntry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().next().map(str::to_owned)
            };
            let is_child = field("PPid:")? == self.0.id().to_string() && field("Uid:")? == user;
            is_child.then_some(pid)
        };
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(of_child)
            .collect()
    }
}

fn read(mut stream: impl std::io::Read) -> String {
    let mut text = String::new();
    // A grandchild that outlives the process may hold the pipe: what is there is enough.
    let _ = stream.read_to_string(&mut text);
    text
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
}

/// The hub: a switch with hosts on it, and a control plane.
struct Mesh {
    hub: Host,
    hosts: Vec<Host>,
    server: Process,
    dir: tempfile::TempDir,
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: default }
spec:
  clusterIP: 10.96.4.7
  clusterIPs: [10.96.4.7, \"fd96::7\"]
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
";

impl Mesh {
    fn start(hosts: usize) -> Self {
        let hub = Host::new();
        let name = &hub.name;
        sh(&format!(
            "ip -n {name} link add br0 type bridge; ip -n {name} link set br0 up
             ip -n {name} address add 10.114.0.1/24 dev br0
             ip -n {name} address add fd14::1/64 dev br0 nodad"
        ));
        let hosts: Vec<Host> = (0..hosts).map(|_| Host::new()).collect();
        for (at, host) in hosts.iter().enumerate() {
            let (host, last) = (&host.name, at + 2);
            sh(&format!(
                "ip -n {name} link add port{at} type veth peer name eth0 netns {host}
                 ip -n {name} link set port{at} master br0 up
                 ip -n {host} address add 10.114.0.{last}/24 dev eth0
                 ip -n {host} address add fd14::{last}/64 dev eth0 nodad
                 ip -n {host} link set eth0 up
                 ip -n {host} route add default via 10.114.0.1
                 ip -n {host} -6 route add default via fd14::1"
            ));
        }
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("config")).unwrap();
        fs::write(data.join("config/services.yaml"), SERVICES).unwrap();
        let mut server = hub.command(env!("CARGO_BIN_EXE_weft"));
        server
            .args([
                "server",
                "--listen",
                "10.114.0.1:14012",
                "--admin",
                "127.0.0.1:0",
                "--data",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = Process(server.spawn().unwrap());
        wait_until("the server is up", || data.join("server.json").exists());
        Self {
            hub,
            hosts,
            server,
            dir,
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `weft run --transparent` on a host, with the server's documents.
    fn run(&self, host: &Host, name: &str, options: &str, command: &[&str]) -> Process {
        let data = self.data();
        let options = format!("--server-data {} {options}", data.display());
        Self::run_with(host, name, &options, command)
    }

    fn run_with(host: &Host, name: &str, options: &str, command: &[&str]) -> Process {
        let mut run = host.command(env!("CARGO_BIN_EXE_weft"));
        run.args(["run", "--transparent", "--name", name, "--port", "8080"])
            .args(options.split_whitespace())
            .arg("--")
            .args(command);
        Process(run.spawn().unwrap())
    }

    /// The application `web` on a host, which its own user can call by name when this returns.
    fn web(&self, host: &Host, options: &str) -> Process {
        self.run(
            host,
            "web",
            options,
            &["python3", "-c", SERVER, "8080", "hello from web"],
        )
    }

    /// A join token in a file.
    fn token(&self, account: &str) -> PathBuf {
        let announced = fs::read_to_string(self.data().join("server.json")).unwrap();
        let announced: serde_json::Value = serde_json::from_str(&announced).unwrap();
        let root = announced["root_sha256"].as_str().unwrap();
        let bytes = (0..32).map(|at| u8::from_str_radix(&root[2 * at..2 * at + 2], 16).unwrap());
        let root: Vec<u8> = bytes.collect();
        let trust_domain = announced["trust_domain"].as_str().unwrap().parse().unwrap();
        let tokens = Tokens::open(&self.data(), trust_domain, root.try_into().unwrap()).unwrap();
        let request = Request {
            namespace: "default",
            service_account: account,
            ttl: Duration::from_secs(600),
            reusable: false,
        };
        let path = self.dir.path().join(format!("{account}.token"));
        fs::write(&path, tokens.create(&request, SystemTime::now()).unwrap()).unwrap();
        path
    }
}

/// Whether a caller without mTLS was refused: what it got.
fn is_refused(answer: &str) -> bool {
    answer.contains("this port takes mTLS only")
}

/// Calls as the captured user until there is the answer of `web`.
fn answers(host: &Host, user: &str, url: &str) {
    let mut got = String::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    while got != "hello from web" {
        assert!(
            Instant::now() < deadline,
            "{url}: {got:?}\n{}",
            host.rules()
        );
        got = host.curl(user, url);
    }
}

#[test]
fn applications_call_each_other_by_name_and_by_address() {
    if skip("applications_call_each_other_by_name_and_by_address") {
        return;
    }
    let mesh = Mesh::start(2);
    let [server, client] = mesh.hosts.as_slice() else {
        panic!()
    };
    let user = format!("--user {APP}");
    let web = mesh.web(server, &user);
    let _plain = server.serve(9090, "plain");
    let calls = "for url in http://web http://web.default.svc.cluster.local http://10.96.4.7 \
                 http://[fd96::7] http://10.114.0.2:8080 http://[fd14::2]:8080 \
                 http://127.0.0.1:18000 http://10.114.0.2:9090; do \
                 curl -gs --max-time 20 --retry 20 --retry-all-errors --retry-delay 1 -f $url/ || echo failed; \
                 echo \" from $url\"; done; echo groups $(id -G) home $HOME user $(id -u); exit 7";
    wait_until("the server is captured", || !server.rules().is_empty());
    let (code, said) = mesh
        .run(
            client,
            "client",
            "--user app --to web=18000",
            &["sh", "-c", calls],
        )
        .ended();
    assert_eq!(code, Some(7), "{said}");
    for url in [
        "http://web",
        "http://web.default.svc.cluster.local",
        "http://10.96.4.7",
        "http://[fd96::7]",
        "http://10.114.0.2:8080",
        "http://[fd14::2]:8080",
        // An upstream's local port stays.
        "http://127.0.0.1:18000",
    ] {
        let line = format!("hello from web from {url}\n");
        assert!(said.contains(&line), "{line}: {said}");
    }
    let who = format!("groups {APP} {KEYS} home /srv/app user {APP}\n");
    assert!(said.contains(&who), "{said}");
    // Another service of that host, which has no sidecar.
    assert!(said.contains("plain from http://10.114.0.2:9090"), "{said}");
    assert_eq!(
        client.rules(),
        "",
        "after the application has ended by itself"
    );
    // The document was all that we wrote.
    let documents = mesh.data().join("config");
    assert_eq!(fs::read_dir(&documents).unwrap().count(), 2);

    // Callers without mTLS are refused: so those before had it.
    assert!(is_refused(&mesh.hub.curl("0", "http://10.114.0.2:8080/")));
    assert_eq!(mesh.hub.curl("0", "http://10.114.0.2:9090/"), "plain");
    // Other users of the host are as they were: the name and the address lead nowhere.
    answers(server, APP, "http://10.96.4.7/");
    assert_eq!(server.curl(OTHER, "http://10.96.4.7/"), "");
    assert_eq!(server.curl(OTHER, "http://web/"), "");
    assert_eq!(
        server.curl(OTHER, "http://10.114.0.2:8080/"),
        "hello from web"
    );

    web.signal("TERM");
    let (code, said) = web.ended();
    assert_eq!(code, Some(128 + 15), "{said}");
    assert!(
        said.contains("TCP and DNS of user app, callers of port 8080"),
        "{said}"
    );
    assert_eq!(server.rules(), "", "after SIGTERM");
    assert_eq!(fs::read_dir(&documents).unwrap().count(), 1);
}

#[test]
fn a_workload_registers_itself_at_a_control_plane_elsewhere() {
    if skip("a_workload_registers_itself_at_a_control_plane_elsewhere") {
        return;
    }
    let mesh = Mesh::start(2);
    let [server, client] = mesh.hosts.as_slice() else {
        panic!()
    };
    let state = mesh.dir.path().join("state");
    // The way to it is no secret, the token is.
    fs::set_permissions(mesh.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let token = mesh.token("web");
    let there = format!(
        "--user {APP} --control 10.114.0.1:14012 --token-file {} --state {}",
        token.display(),
        state.display()
    );
    let web = ["python3", "-c", SERVER, "8080", "hello from web"];

    let _client = mesh.run(
        client,
        "client",
        &format!("--user {APP}"),
        &["sleep", "600"],
    );
    wait_until("the client is captured", || !client.rules().is_empty());
    for start in [
        "with its token",
        "with its identity",
        "without control plane",
    ] {
        if start == "without control plane" {
            // Its only document is that of the client; the Service was there.
            assert_eq!(fs::read_dir(mesh.data().join("config")).unwrap().count(), 2);
            mesh.server.signal("KILL");
        }
        let run = Mesh::run_with(server, "web", &there, &web);
        // Nobody can tell the client of the one that starts without.
        if start != "without control plane" {
            answers(client, APP, "http://web/");
        }
        wait_until("callers without mTLS are refused", || {
            is_refused(&mesh.hub.curl("0", "http://10.114.0.2:8080/"))
        });
        // The sidecar is ready before the command has seen it, and only then says so and starts
        // the application.
        wait_until("the application serves", || {
            server.curl(OTHER, "http://10.114.0.2:8080/") == "hello from web"
        });
        assert_eq!(fs::metadata(&state).unwrap().uid(), 14_020);
        run.signal("INT");
        let (code, said) = run.ended();
        assert_eq!(code, Some(128 + 2), "{start}: {said}");
        assert!(said.contains("registered as default/web"), "{said}");
        assert_eq!(server.rules(), "", "{start}");
        let _ = fs::remove_file(&token);
    }

    let nowhere = there.replace("/state", "/none").replace("14012", "9");
    let (code, said) = Mesh::run_with(server, "web", &nowhere, &["true"]).ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("--token-file: ") && said.contains("token create"),
        "{said}"
    );
    mesh.token("web");
    let (code, said) = Mesh::run_with(server, "web", &nowhere, &["true"]).ended();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("cannot reach the control plane on 10.114.0.1:9"),
        "{said}"
    );
    assert_eq!(server.rules(), "");
}

#[test]
fn all_traffic_but_what_is_excluded() {
    if skip("all_traffic_but_what_is_excluded") {
        return;
    }
    let mesh = Mesh::start(1);
    let [host] = mesh.hosts.as_slice() else {
        panic!()
    };
    let (_excluded, _included) = (host.serve(2222, "ssh"), host.serve(9090, "plain"));
    let web = mesh.web(host, "--all-traffic --exclude-inbound-ports 2222");
    // Everybody is captured, who runs it included.
    for user in ["0", OTHER] {
        answers(host, user, "http://web/");
    }
    assert_eq!(mesh.hub.curl("0", "http://10.114.0.2:2222/"), "ssh");
    for port in [8080, 9090] {
        let plain = mesh.hub.curl("0", &format!("http://10.114.0.2:{port}/"));
        assert!(is_refused(&plain), "{port}: {plain}");
    }
    web.signal("TERM");
    assert_eq!(web.ended().0, Some(128 + 15));
    assert_eq!(host.rules(), "");
    assert_eq!(mesh.hub.curl("0", "http://10.114.0.2:9090/"), "plain");
}

#[test]
fn names_may_stay_as_they_are() {
    if skip("names_may_stay_as_they_are") {
        return;
    }
    let mesh = Mesh::start(1);
    let [host] = mesh.hosts.as_slice() else {
        panic!()
    };
    let web = mesh.web(host, &format!("--user {APP} --no-dns"));
    answers(host, APP, "http://10.96.4.7/");
    assert_eq!(host.curl(APP, "http://web/"), "");
    web.signal("TERM");
    let (code, said) = web.ended();
    assert_eq!(code, Some(128 + 15), "{said}");
    assert_eq!(host.rules(), "");
}

#[test]
fn whatever_is_killed_does_no_lasting_harm() {
    if skip("whatever_is_killed_does_no_lasting_harm") {
        return;
    }
    let mesh = Mesh::start(1);
    let [host] = mesh.hosts.as_slice() else {
        panic!()
    };
    let user = format!("--user {APP}");

    // Without its sidecar an application has nobody to call.
    let run = mesh.web(host, &user);
    answers(host, APP, "http://web/");
    let children = run.children("14020");
    assert_eq!(children.len(), 1, "{children:?}");
    sh(&format!("kill -s KILL {}", children[0]));
    let (code, said) = run.ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the application has been stopped"), "{said}");
    assert_eq!(host.rules(), "", "after the end of the sidecar");

    // Rules of a run that was killed are in force: nothing leaves uncaptured.
    let mut run = mesh.run(host, "web", &user, &["sleep", "600"]);
    wait_until("the sidecar is ready", || {
        host.curl("0", "http://127.0.0.1:14020/ready")
            .starts_with("ready")
    });
    wait_until("the application runs", || run.children(APP).len() == 1);
    let second = mesh.run(host, "second", &user, &["true"]).ended();
    assert_eq!(second.0, Some(1), "{}", second.1);
    assert!(
        second.1.contains("another `weft run --transparent`"),
        "{}",
        second.1
    );
    let application = run.children(APP)[0];
    run.signal("KILL");
    run.0.wait().unwrap();
    let left = host.rules();
    assert!(left.contains("table inet weft"), "{left}");
    sh(&format!("kill {application}"));
    // The next run waits for the sidecar of the last one, and takes its place.
    let run = mesh.web(host, &user);
    answers(host, APP, "http://web/");
    run.signal("TERM");
    let (code, said) = run.ended();
    assert_eq!(code, Some(128 + 15), "{said}");
    assert_eq!(host.rules(), "", "{said}");
}

#[test]
fn what_cannot_be_captured_is_not_started() {
    if skip("what_cannot_be_captured_is_not_started") {
        return;
    }
    let mesh = Mesh::start(1);
    let [host] = mesh.hosts.as_slice() else {
        panic!()
    };
    let data = mesh.data();
    let weft = env!("CARGO_BIN_EXE_weft");
    // Nobody else can read that directory, or the way to this program.
    let program = Path::new("/tmp").join(format!("wfi-weft-{}", std::process::id()));
    fs::copy(weft, &program).unwrap();
    let command = |program: &Path, options: &str| {
        format!(
            "{} run --transparent --server-data {} --name web --port 8080 {options} -- sh -c 'echo started'",
            program.display(),
            data.display()
        )
    };
    let user = format!("--user {APP}");
    let own = command(Path::new(weft), &user);
    let notrack = "nft add table ip own; nft add chain ip own out '{ type filter hook output priority raw; }'; nft add rule ip own out tcp dport 80 notrack";
    for (script, code, part) in [
        (
            format!(
                "setpriv --reuid {OTHER} --clear-groups {}",
                command(&program, &user)
            ),
            4,
            "no permission to capture connections",
        ),
        (
            format!("setpriv --bounding-set -net_admin --inh-caps -net_admin {own}"),
            4,
            "NET_ADMIN",
        ),
        (own.replace(&user, "--user 0"), 2, "root's traffic"),
        (
            own.replace("sh -c", "/no/such/command"),
            1,
            "cannot start /no/such/command",
        ),
        (format!("{notrack}; {own}"), 1, "self test"),
    ] {
        let output = host.sh(&script);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{script}: {said}");
        assert!(said.contains(part), "{script}: {said}");
        assert!(!said.contains("started\n"), "{said}");
        let rules = host.rules();
        assert!(!rules.contains("weft"), "{script}: {rules}");
    }
    assert!(host.rules().contains("notrack"), "rules of others stay");
    fs::remove_file(&program).unwrap();
    assert_eq!(fs::read_dir(data.join("config")).unwrap().count(), 1);
}
