//! Paths (T31): `/private/secret` has a route of its own, to a guard; all else goes to a real
//! file server that has the secret. However a path is spelt, the file server must not get
//! one that it takes for the secret; whatever leads both ways is 400. What real applications
//! use passes.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use weft_kit::origin::capture::Capture;
use weft_kit::raw1::Client;
use weft_kit::strict::Message;

use super::lanes::{Dice, Door, Lane, PATIENCE, Speaks, Stage, connect};
use super::serving::{self, FileServer, SECRET, SECRET_PATH};
use crate::error::{Context as _, Error, Result};
use crate::verify::{Cases, Finding, Setting, seen};

/// Connections at one time.
const CLIENTS: usize = 8;
const FULL: Duration = Duration::from_secs(20 * 60);
/// What the guard answers.
const GUARDED: &str = "guarded";

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let servers = serving::start(setting.dir()).await?;
    let expected = "T31: the file server never serves the secret; the guard does, or 400";
    let benign = "T31: no path of the benign corpus is refused";
    if servers.is_empty() {
        let missing = "neither nginx nor python3";
        cases.skip("secret", expected, missing);
        cases.skip("benign", benign, missing);
        return Ok(());
    }
    let guard = Capture::answering(|_| {
        let length = GUARDED.len();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{GUARDED}").into_bytes()
    });
    let guard = guard.await.context("start the guard")?;
    let mut apps = vec![(guard.address(), Speaks::Http1)];
    apps.extend(servers.iter().map(|server| (server.address, Speaks::Http1)));
    let routes: String = (1..apps.len()).map(route).collect();
    let stage = Stage::start_as(setting, &apps, &routes, |spec| spec).await?;
    let count = if setting.quick { 2_000 } else { 100_000 };
    let all = corpus(count);
    for (number, server) in servers.iter().enumerate() {
        let lane = &stage.lanes[number + 1];
        // The first is the fastest.
        let share = if number == 0 { count } else { count / 10 };
        let some = &all[..share.min(all.len())];
        let name = format!("secret-{}", server.name.replace(' ', "-"));
        cases
            .check_within(FULL, &name, expected, secret(&stage, lane, server, some))
            .await;
    }
    let ordinary = ordinary(count);
    cases
        .check_within(
            FULL,
            "benign",
            benign,
            refuses_none(&stage.lanes[1], &ordinary),
        )
        .await;
    Ok(())
}

/// The route of a lane: the secret to the guard, which is lane 0, all else to the lane.
fn route(lane: usize) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: lane-{lane}, namespace: bench}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: lane-{lane}}}]\n  rules:\n  \
         - matches: [{{path: {{type: PathPrefix, value: {SECRET_PATH}}}}}]\n    \
         backendRefs: [{{name: lane-0, port: 80}}]\n  \
         - backendRefs: [{{name: lane-{lane}, port: 80}}]\n"
    )
}

/// A client that comes back when its connection ends.
struct Asker {
    address: std::net::SocketAddr,
    host: String,
    client: Option<Client>,
}

impl Asker {
    fn new(address: std::net::SocketAddr, host: &str) -> Self {
        Self {
            address,
            host: host.to_owned(),
            client: None,
        }
    }

    /// The answer for a path; `None` if it was not answered with HTTP.
    async fn ask(&mut self, path: &str) -> Result<Option<Message>> {
        let host = &self.host;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        for _ in 0..2 {
            let (client, fresh) = match self.client.take() {
                Some(client) => (client, false),
                None => (Client::new(connect(self.address).await?), true),
            };
            let mut client = client.patience(PATIENCE);
            match client.exchange(&request).await {
                Ok(answer) => {
                    if !says_close(&answer) {
                        self.client = Some(client);
                    }
                    return Ok(Some(answer));
                }
                // A server may close a kept connection at any time.
                Err(_) if !fresh => {}
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }
}

fn says_close(answer: &Message) -> bool {
    answer.is_http10()
        || answer
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

fn is_secret(answer: Option<&Message>) -> bool {
    answer.is_some_and(|answer| answer.text().contains(SECRET))
}

#[derive(Debug, Default)]
struct Count {
    guarded: usize,
    refused: usize,
    served: usize,
    unanswered: usize,
    /// What the file server would have given out for its spelling, asked for directly.
    would_leak: usize,
    leaked: Vec<String>,
}

async fn secret(
    stage: &Stage,
    lane: &Lane,
    server: &FileServer,
    paths: &[String],
) -> Result<Finding> {
    let cost = stage.cost()?;
    let share = paths.len().div_ceil(CLIENTS);
    let work = paths.chunks(share).map(|paths| async move {
        let mut through = Asker::new(lane.door(Door::Outbound), &lane.host);
        let mut direct = Asker::new(server.address, &lane.host);
        let mut count = Count::default();
        for path in paths {
            let answer = through.ask(path).await?;
            let status = answer.as_ref().map_or(0, Message::status);
            if is_secret(answer.as_ref()) {
                count.leaked.push(path.clone());
            } else if answer
                .as_ref()
                .is_some_and(|answer| answer.text() == GUARDED)
            {
                count.guarded += 1;
            } else if status == 400 {
                count.refused += 1;
            } else if status == 0 {
                count.unanswered += 1;
            } else {
                count.served += 1;
            }
            // Those that a plain comparison would have let through to the secret.
            if !path.starts_with(SECRET_PATH) {
                count.would_leak += usize::from(is_secret(direct.ask(path).await?.as_ref()));
            }
        }
        Ok::<_, Error>(count)
    });
    let mut all = Count::default();
    for count in try_join_all(work).await? {
        all.guarded += count.guarded;
        all.refused += count.refused;
        all.served += count.served;
        all.unanswered += count.unanswered;
        all.would_leak += count.would_leak;
        all.leaked.extend(count.leaked);
    }
    let Count {
        guarded,
        refused,
        served,
        unanswered,
        would_leak,
        leaked,
    } = all;
    let mut text = format!(
        "{} paths on {}: {} wrongly forwarded; {guarded} to the guard, {refused} refused, {served} served by the file server; \
         {would_leak} others mean the secret to it; {}",
        paths.len(),
        server.name,
        leaked.len(),
        cost.text()?
    );
    for path in leaked.iter().take(8) {
        text += &format!("\n{path:?} has the secret");
    }
    if unanswered > 0 {
        text += &format!("\n{unanswered} were not answered");
    }
    // Without these the corpus would not be worth much.
    let told = refused > 0 && served > 0 && would_leak > 0;
    Ok(seen(leaked.is_empty() && unanswered == 0 && told, text))
}

async fn refuses_none(lane: &Lane, paths: &[String]) -> Result<Finding> {
    let share = paths.len().div_ceil(CLIENTS);
    let work = paths.chunks(share).map(|paths| async move {
        let mut through = Asker::new(lane.door(Door::Outbound), &lane.host);
        let mut refused = Vec::new();
        for path in paths {
            let answer = through.ask(path).await?;
            let by_mesh = answer
                .as_ref()
                .is_none_or(|answer| answer.header("weft-reason").is_some());
            if by_mesh {
                let status = answer.as_ref().map_or(0, Message::status);
                refused.push(format!("{path:?}: {status}"));
            }
        }
        Ok::<_, Error>(refused)
    });
    let refused = try_join_all(work).await?.concat();
    let mut text = format!("{} paths, {} refused", paths.len(), refused.len());
    for one in refused.iter().take(8) {
        text += &format!("\n{one}");
    }
    Ok(seen(refused.is_empty() && !paths.is_empty(), text))
}

/// What is put between or in place of parts of a path.
const PIECES: &[&str] = &[
    "/",
    "//",
    "///",
    "/./",
    "/.//",
    "/x/../",
    "/../",
    "/..",
    "/.",
    "/%2e/",
    "/%2E%2e/",
    "/x/%2e%2e/",
    "/..;/",
    "/x/..;/",
    "/x/..;a=b/",
    "/;/",
    ";",
    ";a=b",
    ";a=b/",
    "/;a/",
    "\\",
    "%5c",
    "%5C",
    "/\\",
    "\\..\\",
    "/x\\..\\",
    "%2f",
    "%2F",
    "%252f",
    "%25252f",
    "%2e",
    "%252e",
    "%00",
    "%00/",
    "%0a",
    "%0d%0a",
    "%20",
    "+",
    "%09",
    "%23",
    "%3f",
    "%3F",
    "?",
    "?a=/..",
    "%26",
    "%3b",
    "%3B",
    "%c0%af",
    "%c0%ae",
    "%e0%80%af",
    "%f0%80%80%af",
    "%c1%9c",
    "%u002f",
    "%u2215",
    "%ef%bc%8f",
    "%ff",
    "%80",
    "%",
    "%2",
    "%zz",
    "%%32%66",
    ".",
    "..",
    "...",
    "~",
    "*",
    ":",
    "@",
    "|",
    "^",
    "'",
    "\"",
    "<",
    ">",
    "`",
    "{",
    "}",
    "[",
    "]",
    ",",
    "$",
    "&",
    "!",
    "(",
    ")",
    "=",
    "-",
    "_",
    "/private/../",
    "/public/../",
    "/a/b/../../",
    "/a/./b/../../",
    "/%70rivate/../",
];

/// So many spellings of the secret's path, each once: first every byte in every place as an
/// escape, then mixtures.
fn corpus(count: usize) -> Vec<String> {
    let mut all: Vec<String> = Vec::with_capacity(count);
    let mut known = BTreeSet::new();
    let mut add = |all: &mut Vec<String>, path: String| {
        // One that is not even a target says nothing about paths.
        let is_target =
            path.starts_with('/') && path.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'#');
        if is_target && all.len() < count && known.insert(path.clone()) {
            all.push(path);
        }
    };
    let bytes = SECRET_PATH.as_bytes();
    let escape = |byte: u8, layers: usize| format!("%{}{byte:02x}", "25".repeat(layers));
    for layers in 0..3 {
        for at in 1..bytes.len() {
            let (before, after) = (&SECRET_PATH[..at], &SECRET_PATH[at + 1..]);
            add(
                &mut all,
                format!("{before}{}{after}", escape(bytes[at], layers)),
            );
            let shouting = escape(bytes[at], layers).to_ascii_uppercase();
            add(&mut all, format!("{before}{shouting}{after}"));
        }
    }
    for piece in PIECES {
        for at in 0..=bytes.len() {
            let (before, after) = SECRET_PATH.split_at(at);
            add(&mut all, format!("{before}{piece}{after}"));
        }
        add(&mut all, SECRET_PATH.replace('/', piece));
        add(&mut all, format!("/private{piece}secret"));
    }
    // In quick runs these are not all of them.
    let mut dice = Dice::new(31);
    let systematic = all.len();
    for byte in 0..=255_u8 {
        let at = dice.below(bytes.len() + 1);
        let (before, after) = SECRET_PATH.split_at(at);
        add(&mut all, format!("{before}%{byte:02x}{after}"));
    }
    let mut tries = 0;
    while all.len() < count && tries < count * 20 {
        tries += 1;
        let mut path = match dice.below(3) {
            0 => all[dice.below(systematic)].clone(),
            _ => SECRET_PATH.to_owned(),
        };
        for _ in 0..1 + dice.below(4) {
            path = mutated(&path, &mut dice);
        }
        add(&mut all, path);
    }
    // So that a part of it is a sample of all.
    for at in (1..all.len()).rev() {
        all.swap(at, dice.below(at + 1));
    }
    all
}

fn mutated(path: &str, dice: &mut Dice) -> String {
    // Only ASCII is in it.
    let at = dice.below(path.len() + 1);
    let (before, after) = path.split_at(at);
    match dice.below(6) {
        0 | 1 => format!("{before}{}{after}", PIECES[dice.below(PIECES.len())]),
        2 if !after.is_empty() => {
            let byte = after.as_bytes()[0];
            let layers = "25".repeat(dice.below(3));
            format!("{before}%{layers}{byte:02X}{}", &after[1..])
        }
        3 if !after.is_empty() => {
            let (first, rest) = after.split_at(1);
            format!("{before}{}{rest}", first.to_ascii_uppercase())
        }
        4 => path.replacen('/', PIECES[dice.below(PIECES.len())], 1 + dice.below(2)),
        _ => format!(
            "{}{path}",
            ["/x/..", "/%2e", "/.", "/a/b/../..", "/", "/;", "/public/.."][dice.below(7)]
        ),
    }
}

/// Paths as applications have them: names, numbers, dates, escapes, parameters, dots in
/// names, queries of all kinds.
fn ordinary(count: usize) -> Vec<String> {
    const WORDS: &[&str] = &[
        "api",
        "v1",
        "users",
        "orders",
        "products",
        "static",
        "assets",
        "images",
        "js",
        "css",
        "search",
        "health",
        "metrics",
        "login",
        "blog",
        "posts",
        "2026-11-23",
        "index.html",
        "app.min.js",
        "style.css",
        "logo@2x.png",
        "favicon.ico",
        "report.v1.2.pdf",
        "a.b.c",
        ".well-known",
        "robots.txt",
        "~alice",
        "caf%C3%A9",
        "%E6%97%A5%E6%9C%AC",
        "hello%20world",
        "a+b",
        "50%25",
        "name;v=1",
        "x;lang=en;q=1",
        "(paren)",
        "it's",
        "a,b,c",
        "k=v",
        "user:1",
        "me@example.com",
        "$value",
        "!important",
        "star*",
        "9f1c2d3e-0000-4000-8000-00000000beef",
        "Private",
        "secrets",
        "private-notes",
        "secret.txt",
        "privateer",
        "...",
        "a..b",
        "file.",
        "..hidden",
        "_internal",
        "-",
        "0",
    ];
    const QUERIES: &[&str] = &[
        "",
        "",
        "",
        "?",
        "?a=b",
        "?a=b&c=d",
        "?q=hello%20world",
        "?path=/private/secret",
        "?next=https://example.com/a/../b",
        "?a[]=1&a[]=2",
        "?x=%2e%2e%2f",
        "?x=..;/",
        "?%00",
        "?a=b;c=d",
        "?redirect=//evil",
        "?token=a.b.c",
        "?utm_source=x&utm_medium=y",
        "?q=a?b",
    ];
    let mut dice = Dice::new(97);
    (0..count)
        .map(|_| {
            let mut path = String::new();
            for _ in 0..1 + dice.below(5) {
                path.push('/');
                path.push_str(WORDS[dice.below(WORDS.len())]);
            }
            if dice.below(8) == 0 {
                path.push('/');
            }
            path + QUERIES[dice.below(QUERIES.len())]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_has_each_path_once_and_all_of_them_are_targets() {
        let all = corpus(20_000);
        assert_eq!(all.len(), 20_000);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert!(
            all.iter()
                .all(|path| path.starts_with('/') && !path.contains(' '))
        );
        for one in [
            "/private%2fsecret",
            "/private//secret",
            "/%70rivate/secret",
            "/private/..;/secret",
        ] {
            assert!(all.iter().any(|path| path == one), "{one}");
        }
        assert_eq!(corpus(100), corpus(100));
    }

    #[test]
    fn ordinary_paths_do_not_lead_to_the_secret() {
        assert!(
            ordinary(5_000)
                .iter()
                .all(|path| !path.starts_with("/private/"))
        );
    }
}
