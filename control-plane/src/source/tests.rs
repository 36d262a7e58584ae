//! The directory as people and Kubernetes change it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{FileSource, Load};

fn service(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{a: b}}, ports: [{{port: {port}}}]}}\n"
    )
}

fn ports(load: &Load) -> Vec<String> {
    load.mesh
        .services()
        .map(|service| format!("{}:{}", service.name, service.ports[0].port))
        .collect()
}

fn shown(load: &Load) -> Vec<String> {
    load.diagnostics.iter().map(ToString::to_string).collect()
}

fn write(directory: &Path, name: &str, text: &str) {
    fs::write(directory.join(name), text).unwrap();
}

fn directory() -> (TempDir, FileSource) {
    let directory = tempfile::tempdir().unwrap();
    let source = FileSource::new(directory.path());
    (directory, source)
}

#[test]
fn files_of_the_directory_and_one_level_below() {
    let (dir, mut source) = directory();
    write(dir.path(), "b.yaml", &service("b", 1));
    write(dir.path(), "a.yml", &service("a", 1));
    write(dir.path(), "c.txt", "not yaml: [");
    write(dir.path(), ".hidden.yaml", "not yaml: [");
    fs::create_dir_all(dir.path().join("team/deeper")).unwrap();
    write(&dir.path().join("team"), "t.yaml", &service("t", 1));
    write(&dir.path().join("team/deeper"), "d.yaml", &service("d", 1));
    let load = source.load();
    assert_eq!(ports(&load), ["a:1", "b:1", "t:1"]);
    assert_eq!((shown(&load).len(), load.documents), (0, 3));
}

#[test]
fn a_bad_document_keeps_its_last_good_version() {
    let (dir, mut source) = directory();
    let both = [service("a", 1), service("b", 1)].concat();
    write(dir.path(), "m.yaml", &both);
    assert_eq!(ports(&source.load()), ["a:1", "b:1"]);

    // One becomes bad while the other changes.
    write(
        dir.path(),
        "m.yaml",
        &[service("a", 0), service("b", 2)].concat(),
    );
    let load = source.load();
    assert_eq!(ports(&load), ["a:1", "b:2"]);
    assert_eq!(
        shown(&load),
        [
            "error: m.yaml:5:41: Service default/a: spec.ports[0].port: 0 is out of range\n  help: the value must be from 1 to 65535\n  in force: last good version"
        ]
    );

    // A syntax error hides which document it is: all that are missing stay.
    write(dir.path(), "m.yaml", &["a: [\n", &service("b", 3)].concat());
    let load = source.load();
    assert_eq!(ports(&load), ["a:1", "b:3"]);
    assert_eq!(load.diagnostics[0].in_force, Some("last good version"));

    // Deleting a document deletes it.
    write(dir.path(), "m.yaml", &service("b", 3));
    let load = source.load();
    assert_eq!(ports(&load), ["b:3"]);
    assert!(load.diagnostics.is_empty(), "{:?}", shown(&load));

    // A document that was never good has nothing to stand in for it.
    write(dir.path(), "n.yaml", &service("n", 0));
    let load = source.load();
    assert_eq!(ports(&load), ["b:3"]);
    assert_eq!(load.diagnostics[0].in_force, None);
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let (dir, mut source) = directory();
    let inner = dir.path().join("config");
    fs::create_dir(&inner).unwrap();
    source.directory.clone_from(&inner);
    write(&inner, "a.yaml", &service("a", 1));
    assert_eq!(ports(&source.load()), ["a:1"]);

    write(&inner, "a.yaml", "");
    let load = source.load();
    assert_eq!(ports(&load), ["a:1"]);
    assert!(shown(&load)[0].starts_with("warning: a.yaml: the file has become empty"));

    fs::write(inner.join("a.yaml"), b"a: \xff\n").unwrap();
    let load = source.load();
    assert_eq!(ports(&load), ["a:1"]);
    assert!(shown(&load)[0].contains("not UTF-8"), "{:?}", shown(&load));

    fs::write(inner.join("a.yaml"), vec![b'#'; (10 << 20) + 1]).unwrap();
    let load = source.load();
    assert_eq!(ports(&load), ["a:1"]);
    assert!(
        shown(&load)[0].contains("split the file"),
        "{:?}",
        shown(&load)
    );

    fs::rename(&inner, dir.path().join("away")).unwrap();
    let load = source.load();
    assert_eq!(ports(&load), ["a:1"]);
    assert!(shown(&load)[0].contains("cannot read the directory"));
    assert_eq!(load.diagnostics[0].in_force, Some("what was read before"));

    fs::create_dir(&inner).unwrap();
    assert!(ports(&source.load()).is_empty());
}

#[test]
fn the_first_of_two_documents_of_one_name_counts() {
    let (dir, mut source) = directory();
    write(
        dir.path(),
        "a.yaml",
        &[service("s", 1), service("s", 2)].concat(),
    );
    write(dir.path(), "b.yaml", &service("s", 3));
    let load = source.load();
    assert_eq!(ports(&load), ["s:1"]);
    let found = shown(&load);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("error: a.yaml:7:1: Service default/s: already defined in a.yaml:2"),
        "{found:?}"
    );
    assert!(
        found[1].starts_with("error: b.yaml:2:1: Service default/s: already defined in a.yaml:2"),
        "{found:?}"
    );
}

/// One run of a control plane with a data directory: reads, and stores what is good.
fn run(config: &Path, data: &Path) -> Load {
    let mut source = FileSource::new(config).keeping(data);
    let load = source.load();
    source.keep();
    load
}

#[test]
fn a_restart_keeps_the_last_good_version_and_says_the_same() {
    let (dir, _) = directory();
    let (config, data) = (dir.path().join("config"), dir.path().join("data"));
    fs::create_dir(&config).unwrap();
    write(&config, "a.yaml", &service("a", 1));
    let both = ["# head\n", &service("b", 1), &service("c", 1)].concat();
    write(&config, "b.yaml", &both);
    assert_eq!(ports(&run(&config, &data)), ["a:1", "b:1", "c:1"]);

    let steps: [(&str, &str, &[&str]); 6] = [
        // One bad field; a document that could be any; then the process starts twice.
        ("a.yaml", &service("a", 0), &["a:1", "b:1", "c:1"]),
        ("b.yaml", "b: [\n", &["a:1", "b:1", "c:1"]),
        // A file that is good again, one that has become empty.
        ("b.yaml", &both, &["a:1", "b:1", "c:1"]),
        ("b.yaml", "", &["a:1", "b:1", "c:1"]),
        ("a.yaml", &service("a", 2), &["a:2", "b:1", "c:1"]),
        // What is not there any more has been deleted.
        ("b.yaml", &service("c", 3), &["a:2", "c:3"]),
    ];
    for (name, text, expected) in steps {
        let mut running = FileSource::new(&config).keeping(&data);
        running.load();
        write(&config, name, text);
        let before = running.load();
        running.keep();
        assert_eq!(ports(&before), expected, "{text}");
        for _ in 0..2 {
            assert_eq!(run(&config, &data), before, "{text}");
        }
    }

    // The directory has gone: all of it stays, and warnings of it too.
    write(
        &config,
        "w.yaml",
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{group: '', kind: Service, name: none}], connectTimeout: 1s}\n",
    );
    let mut running = FileSource::new(&config).keeping(&data);
    assert_eq!(shown(&running.load()).len(), 1);
    running.keep();
    fs::rename(&config, dir.path().join("away")).unwrap();
    let before = running.load();
    assert_eq!(ports(&before), ["a:2", "c:3"]);
    assert_eq!(shown(&before).len(), 2);
    assert_eq!(run(&config, &data), before);

    // It is back without one of the files: that one was deleted.
    fs::rename(dir.path().join("away"), &config).unwrap();
    fs::remove_file(config.join("a.yaml")).unwrap();
    assert_eq!(ports(&run(&config, &data)), ["c:3"]);
    write(&config, "a.yaml", &service("a", 0));
    assert_eq!(ports(&run(&config, &data)), ["c:3"]);
}

#[test]
fn damaged_documents_are_not_used_and_nothing_is_kept_without_a_place() {
    let (dir, mut source) = directory();
    write(dir.path(), "a.yaml", &service("a", 1));
    source.load();
    source.keep();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let data = dir.path().join(".data");
    run(dir.path(), &data);
    write(dir.path(), "a.yaml", &service("a", 0));
    let file = data.join(super::kept::FILE);
    let good = fs::read(&file).unwrap();
    fs::write(&file, &good[..good.len() - 1]).unwrap();
    assert!(ports(&run(dir.path(), &data)).is_empty());
    // The damaged file has been replaced only by what is good now: nothing.
    assert!(ports(&run(dir.path(), &data)).is_empty());
    fs::write(&file, &good).unwrap();
    assert_eq!(ports(&run(dir.path(), &data)), ["a:1"]);

    // It cannot be written: everything else goes on.
    fs::remove_dir_all(&data).unwrap();
    fs::write(&data, "").unwrap();
    write(dir.path(), "a.yaml", &service("a", 2));
    assert_eq!(ports(&run(dir.path(), &data)), ["a:2"]);
}

#[tokio::test]
async fn a_watch_stores_what_is_good() {
    let (dir, _) = directory();
    let data = dir.path().join(".data");
    write(dir.path(), "a.yaml", &service("a", 1));
    let mut watch = Watch::start(FileSource::new(dir.path()).keeping(&data));
    watch.until(&["a:1"]).await;
    write(dir.path(), "a.yaml", &service("a", 2));
    watch.until(&["a:2"]).await;
    let stored = async {
        while !fs::read_to_string(data.join("last-good")).is_ok_and(|t| t.contains("port: 2")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), stored)
        .await
        .unwrap();
}

#[test]
fn what_a_name_stands_for_is_checked() {
    use std::os::unix::fs::symlink;
    let (dir, mut source) = directory();
    let config = dir.path().join("config");
    fs::create_dir(&config).unwrap();
    source.directory.clone_from(&config);
    write(&config, "good.yaml", &service("good", 1));
    symlink("good.yaml", config.join("link.yaml")).unwrap();
    write(dir.path(), "secret.yaml", "-----BEGIN PRIVATE KEY-----");
    symlink("../secret.yaml", config.join("outside.yaml")).unwrap();
    symlink("/dev/zero", config.join("endless.yaml")).unwrap();
    symlink("loop.yaml", config.join("loop.yaml")).unwrap();
    fs::create_dir(dir.path().join("other")).unwrap();
    write(&dir.path().join("other"), "o.yaml", &service("o", 1));
    symlink("../other", config.join("team")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(config.join("pipe.yaml"))
        .status();
    assert!(made.unwrap().success());

    let load = source.load();
    assert_eq!(ports(&load), ["good:1"]);
    let found = shown(&load).join("\n");
    for (file, reason) in [
        ("outside.yaml", "leaves the configuration directory"),
        (": team:", "leaves the configuration directory"),
        ("endless.yaml", "leaves the configuration directory"),
        ("pipe.yaml", "not a regular file"),
        ("loop.yaml", "symbolic links"),
    ] {
        let line = found.lines().find(|line| line.contains(file)).unwrap();
        assert!(line.contains(reason), "{line}");
    }
    assert!(!found.contains("PRIVATE"), "{found}");
}

#[test]
fn a_subdirectory_that_cannot_be_read_stops_only_itself() {
    use std::os::unix::fs::symlink;
    let (dir, mut source) = directory();
    let config = dir.path().join("config");
    fs::create_dir_all(config.join("team")).unwrap();
    source.directory.clone_from(&config);
    write(&config, "a.yaml", &service("a", 1));
    write(&config.join("team"), "t.yaml", &service("t", 1));
    assert_eq!(ports(&source.load()), ["a:1", "t:1"]);
    fs::rename(config.join("team"), dir.path().join("team")).unwrap();
    symlink("../team", config.join("team")).unwrap();
    write(&config, "a.yaml", &service("a", 2));
    let load = source.load();
    assert_eq!(ports(&load), ["a:2", "t:1"]);
    assert_eq!(load.diagnostics.len(), 1, "{:?}", shown(&load));
    assert_eq!(load.diagnostics[0].in_force, Some("what was read before"));
    fs::remove_file(config.join("team")).unwrap();
    let load = source.load();
    assert_eq!(
        (ports(&load), shown(&load)),
        (vec!["a:2".to_owned()], vec![])
    );
}

#[test]
fn what_one_file_can_cost_is_bounded() {
    let (dir, mut source) = directory();
    let bound = Duration::from_secs(4);
    let mut check = |text: &str, expected: &str| {
        write(dir.path(), "a.yaml", text);
        let start = Instant::now();
        let load = source.load();
        assert!(start.elapsed() < bound, "{expected}: {:?}", start.elapsed());
        let found = shown(&load);
        let size: usize = found.iter().map(String::len).sum();
        assert!(size < 2 << 20, "{expected}: {size} bytes of findings");
        assert!(
            found.iter().any(|line| line.contains(expected)),
            "{expected}: {found:.2000?}"
        );
    };
    check(&"---\na\n".repeat(25_000), "split the file");
    let head = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {}\n";
    let fields: String = (0..5_000).map(|n| format!("f{n}: 1\n")).collect();
    check(&[head, &fields].concat(), "more problems than are shown");
    let text = format!("apiVersion: v1\nkind: \"{}\"\n", "x".repeat(1 << 20));
    check(&text, "xxx…");
    check(&format!("a: b: {}\n", "x".repeat(1 << 20)), "a.yaml");

    // Many routes of one service, and many references to what does not exist.
    let services: String = (0..300)
        .map(|n| service(&format!("service-{n}"), 80))
        .collect();
    let routes = |target: fn(usize) -> String| -> String {
        let route = |n| {
            let name = target(n);
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{n}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: {name}, port: 80}}], rules: [{{backendRefs: [{{name: {name}, port: 80}}]}}]}}\n"
            )
        };
        (0..1_500).map(route).collect()
    };
    let missing = [services, routes(|n| format!("no-service-{n}"))].concat();
    check(&missing, "did you mean");
    let one = [
        service("s", 80),
        routes(|_| "s".to_owned()),
        "---\na: [".to_owned(),
    ]
    .concat();
    check(&one, "unclosed");
}

/// Starts a watch; `next` waits for the load in which the ports are these.
struct Watch {
    loads: mpsc::UnboundedReceiver<Load>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    fn start(source: FileSource) -> Self {
        let (sender, loads) = mpsc::unbounded_channel();
        let task = tokio::spawn(source.watch(move |load| {
            let _ = sender.send(load);
        }));
        Self { loads, task }
    }

    async fn until(&mut self, expect: &[&str]) -> Duration {
        let start = Instant::now();
        loop {
            let load = tokio::time::timeout(Duration::from_secs(10), self.loads.recv())
                .await
                .unwrap_or_else(|_| panic!("{expect:?} never came"))
                .unwrap();
            if ports(&load) == expect {
                return start.elapsed();
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn changes_are_in_force_at_once() {
    let (dir, source) = directory();
    write(dir.path(), "a.yaml", &service("a", 1));
    let mut watch = Watch::start(source);
    watch.until(&["a:1"]).await;

    // By rename, as careful programs do; ten in a row, so that the poll cannot help.
    let mut slowest = Duration::ZERO;
    for port in 2..12 {
        write(dir.path(), ".new", &service("a", port));
        fs::rename(dir.path().join(".new"), dir.path().join("a.yaml")).unwrap();
        slowest = slowest.max(watch.until(&[&format!("a:{port}")]).await);
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");

    // In place, a new file, and one in a new directory.
    write(dir.path(), "a.yaml", &service("a", 20));
    watch.until(&["a:20"]).await;
    write(dir.path(), "b.yaml", &service("b", 1));
    watch.until(&["a:20", "b:1"]).await;
    fs::create_dir(dir.path().join("team")).unwrap();
    write(&dir.path().join("team"), "c.yaml", &service("c", 1));
    watch.until(&["a:20", "b:1", "c:1"]).await;
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    watch.until(&["a:20", "c:1"]).await;
}

#[tokio::test]
async fn kubernetes_swaps_a_link() {
    use std::os::unix::fs::symlink;
    let (dir, source) = directory();
    let version = |name: &str, port: u16| {
        fs::create_dir(dir.path().join(name)).unwrap();
        write(&dir.path().join(name), "a.yaml", &service("a", port));
        symlink(name, dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
    };
    version("..1", 1);
    symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    let mut watch = Watch::start(source);
    watch.until(&["a:1"]).await;
    // The second swap is the one that others missed.
    version("..2", 2);
    watch.until(&["a:2"]).await;
    version("..3", 3);
    watch.until(&["a:3"]).await;
}

#[tokio::test]
async fn a_directory_may_be_replaced() {
    let (dir, mut source) = directory();
    let inner = dir.path().join("config");
    fs::create_dir(&inner).unwrap();
    write(&inner, "a.yaml", &service("a", 1));
    source.directory.clone_from(&inner);
    let mut watch = Watch::start(source);
    watch.until(&["a:1"]).await;
    for port in 2..5 {
        let next = dir.path().join("next");
        fs::create_dir(&next).unwrap();
        write(&next, "a.yaml", &service("a", port));
        fs::rename(&inner, dir.path().join(format!("old{port}"))).unwrap();
        fs::rename(&next, &inner).unwrap();
        let took = watch.until(&[&format!("a:{port}")]).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test]
async fn the_directory_may_be_a_link() {
    use std::os::unix::fs::symlink;
    let (dir, mut source) = directory();
    source.directory = dir.path().join("current");
    for port in 1..4 {
        let release = dir.path().join(format!("release{port}"));
        fs::create_dir(&release).unwrap();
        write(&release, "a.yaml", &service("a", port));
    }
    symlink("release1", dir.path().join("current")).unwrap();
    let mut watch = Watch::start(source);
    watch.until(&["a:1"]).await;
    for port in 2..4 {
        symlink(format!("release{port}"), dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), dir.path().join("current")).unwrap();
        let took = watch.until(&[&format!("a:{port}")]).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}
