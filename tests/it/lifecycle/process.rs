//! The sidecar as a process: signals, the program started again, sockets from a service
//! manager.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::keeping;
use crate::support::app;
use crate::support::http1::{self, Http1};
use crate::support::mesh::{Mesh, Settings, Workload, service, settings};
use crate::support::{free_port, loopback, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: echo\r\n\r\n";

/// A running program; killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) public: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub(crate) fn start(settings: &Settings) -> Self {
        Self::start_with(settings, |_| {})
    }

    /// `more`: what else the command needs.
    pub(crate) fn start_with(settings: &Settings, more: impl FnOnce(&mut Command)) -> Self {
        let (admin, public) = (loopback(free_port()), loopback(free_port()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
        command
            .arg("run")
            .env_clear()
            .envs(settings.iter().map(|(k, v)| (format!("WEFT_PROXY_{k}"), v)))
            .env("WEFT_PROXY_ADMIN", admin.to_string())
            .env("WEFT_PROXY_PUBLIC_ADMIN", public.to_string())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .stdin(Stdio::null());
        more(&mut command);
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (log.clone(), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().push(line);
            }
        });
        Self { child, public, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    pub(crate) async fn logged(&self, text: &str) {
        until(&format!("{text:?} in the log"), async || {
            let log = self.log.lock();
            if log.iter().any(|line| line.contains(text)) {
                Ok(())
            } else {
                Err(log.join("\n"))
            }
        })
        .await;
    }

    pub(crate) async fn ready(&self) {
        until("/ready", async || {
            match http1::try_send(self.public, "GET /ready HTTP/1.1\r\nhost: a\r\n\r\n").await {
                Ok(reply) if reply.status == 200 => Ok(()),
                Ok(reply) => Err(reply.text()),
                Err(error) => Err(format!("{error}\n{}", self.log.lock().join("\n"))),
            }
        })
        .await;
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the end of the process", async || {
            match self.child.try_wait().unwrap() {
                Some(status) => Ok(status),
                None => Err(self.log.lock().join("\n")),
            }
        })
        .await
    }

    /// Generation and process ID of who answers.
    async fn answers(&self) -> Result<(u64, u32), String> {
        let get = "GET /version HTTP/1.1\r\nhost: a\r\n\r\n";
        let reply = http1::try_send(self.public, get).await?;
        let info: serde_json::Value =
            serde_json::from_str(&reply.text()).map_err(|error| error.to_string())?;
        let number = |name: &str| info[name].as_u64().ok_or(format!("no {name}"));
        Ok((
            number("generation")?,
            u32::try_from(number("pid")?).unwrap(),
        ))
    }

    /// Waits for a process of this generation; its ID.
    async fn generation(&self, wanted: u64) -> u32 {
        until("the next generation", async || match self.answers().await {
            Ok((found, pid)) if found == wanted => Ok(pid),
            other => Err(format!("{other:?}\n{}", self.log.lock().join("\n"))),
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Ends processes whose parents are gone when a test fails.
struct KillOnDrop(u32);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Not another that has the number by now.
        let program = std::fs::read_link(format!("/proc/{}/exe", self.0));
        let ours = program.is_ok_and(|path| path.ends_with("weft-proxy"));
        if let Some(pid) = Pid::from_raw(i32::try_from(self.0).unwrap()).filter(|_| ours) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

async fn world() -> (Mesh, Workload, app::Server, tempfile::TempDir) {
    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    (mesh, workload, app, tempfile::tempdir().unwrap())
}

#[tokio::test]
async fn usr2_starts_the_program_again_and_the_first_process_stands_in() {
    let (mesh, workload, _app, state) = world().await;
    let mut settings = keeping(&mesh, &workload, state.path());
    settings.insert("GRACE".to_owned(), "5".to_owned());
    let mut process = Process::start(&settings);
    process.ready().await;
    let first = process.pid();
    assert_eq!(process.answers().await, Ok((1, first)));
    process.signal(Signal::HUP);
    process.logged("SIGHUP: nothing to do").await;
    let mut open = Http1::connect(workload.outbound).await.unwrap();
    assert_eq!(open.exchange(GET).await.unwrap().status, 200);

    process.signal(Signal::USR2);
    let second = process.generation(2).await;
    let _second = KillOnDrop(second);
    assert_ne!(second, first);
    // The connection is the first one's; its answer says that it is the last.
    let reply = open.exchange(GET).await.unwrap();
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    process
        .logged("standing in for the process that serves")
        .await;
    assert_eq!(http1::send(workload.outbound, GET).await.status, 200);

    // The stand-in starts the program again when asked, and is still the one.
    process.signal(Signal::USR2);
    let third = process.generation(3).await;
    let _third = KillOnDrop(third);
    assert!(third != second && third != first);
    assert_eq!(http1::send(workload.outbound, GET).await.status, 200);
    until("the end of the second", async || {
        let ended = rustix::process::test_kill_process(
            Pid::from_raw(i32::try_from(second).unwrap()).unwrap(),
        );
        ended
            .err()
            .map(drop)
            .ok_or_else(|| "it is there".to_owned())
    })
    .await;

    // What ends the first process ends the workload's sidecar, and it says how that went.
    process.signal(Signal::TERM);
    let status = process.ended().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(http1::try_send(workload.outbound, GET).await.is_err());
}

/// Whose token is no good, or whose control plane was never there, has nobody to say goodbye to.
#[tokio::test]
async fn a_sidecar_without_a_certificate_ends_at_once() {
    let (mesh, workload, _app, _state) = world().await;
    let nowhere = loopback(free_port());
    let mut settings = settings(&workload, &mesh.token(&workload), nowhere);
    // More than is waited for below.
    settings.insert("GRACE".to_owned(), "3600".to_owned());
    let mut process = Process::start(&settings);
    process.logged("no certificate yet").await;
    process.signal(Signal::TERM);
    let status = process.ended().await;
    assert_eq!(status.code(), Some(0), "{status}");
}

#[tokio::test]
async fn a_program_that_cannot_start_leaves_the_old_one() {
    let (mesh, workload, _app, state) = world().await;
    let settings = keeping(&mesh, &workload, state.path());
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("weft-proxy");
    std::fs::copy(env!("CARGO_BIN_EXE_weft-proxy"), &program).unwrap();
    let mut command = Command::new(&program);
    let process = Process::start_with(&settings, |prepared| {
        command.arg("run").env_clear();
        for (name, value) in prepared.get_envs() {
            command.env(name, value.unwrap());
        }
        command
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .stdin(Stdio::null());
        std::mem::swap(prepared, &mut command);
    });
    process.ready().await;
    // A new version that does not know what it is told, and one that is no program.
    std::fs::remove_file(&program).unwrap();
    std::fs::copy("/bin/false", &program).unwrap();
    process.signal(Signal::USR2);
    process
        .logged("the new process has ended before it took over")
        .await;
    std::fs::remove_file(&program).unwrap();
    process.signal(Signal::USR2);
    process
        .logged("cannot be started; this process serves on")
        .await;
    assert_eq!(process.answers().await, Ok((1, process.pid())));
    assert_eq!(http1::send(workload.outbound, GET).await.status, 200);
}

#[tokio::test]
async fn a_service_manager_gives_sockets_and_is_told() {
    let (mesh, workload, _app, state) = world().await;
    let mut settings = keeping(&mesh, &workload, state.path());
    settings.insert("GRACE".to_owned(), "5".to_owned());
    // Bound and listening before the process exists: its clients can connect already.
    let listener = std::net::TcpListener::bind(workload.outbound).unwrap();
    let mut early = Http1::connect(workload.outbound).await.unwrap();
    early.write(GET).await.unwrap();
    let path = state.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut process = Process::start_with(&settings, |command| {
        // Descriptor 0 is the one that a test can choose.
        command
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDS_FIRST_FD", "0")
            .env("LISTEN_FDNAMES", "outbound")
            .env("NOTIFY_SOCKET", &path);
    });
    process.ready().await;
    assert_eq!(early.reply().await.unwrap().status, 200);
    let told = || {
        let mut text = [0; 256];
        let n = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..n]).into_owned()
    };
    assert_eq!(told(), "READY=1\n");
    // An upgrade: the manager hears of the new main process, and the old one just ends.
    process.signal(Signal::USR2);
    let second = process.generation(2).await;
    let _second = KillOnDrop(second);
    assert_eq!(told(), format!("MAINPID={second}\n"));
    assert_eq!(told(), "READY=1\n");
    drop(early);
    assert_eq!(process.ended().await.code(), Some(0));
    assert_eq!(http1::send(workload.outbound, GET).await.status, 200);
    send(second, Signal::TERM);
    assert_eq!(told(), "STOPPING=1\n");
}
