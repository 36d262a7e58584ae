//! `weft inject` and `weft uninject`: manifests of Kubernetes or a file of docker compose in,
//! the same with sidecars out. Text to text: nothing is asked of a cluster.

mod compose;
mod emit;
mod manifest;
mod pod;
mod probes;
mod problem;
mod settings;
mod yaml;

use std::fs;
use std::io::Read;

use manifest::{Done, Namespaces, Piece, Task};
use pod::{JoinSecret, Options};
use problem::{Problem, Report};

use crate::output::{Exit, Failure, Format, Output};
use crate::printed_or_closed;

/// The largest input.
const MAX_INPUT: u64 = 64 * 1024 * 1024;
/// The image of a sidecar that was not told another.
const PROXY_IMAGE: &str = concat!("weft-proxy:", env!("CARGO_PKG_VERSION"));
/// The image of the control plane in an override of compose.
const CONTROL_IMAGE: &str = concat!("weft-control:", env!("CARGO_PKG_VERSION"));

/// Add sidecars to Kubernetes manifests or a docker compose file, and print the result.
///
/// Manifests come out as they went in, with a sidecar in every pod; documents that make no pods
/// are not touched. Of a compose file an override is printed:
/// `weft inject compose.yaml > compose.mesh.yaml`, then
/// `docker compose -f compose.yaml -f compose.mesh.yaml up`.
///
/// A document that cannot be injected is left out, with its reason on stderr, and the exit code
/// is 1. Doing it again replaces the sidecar.
#[derive(Debug, clap::Args)]
pub(crate) struct InjectArgs {
    /// Files to read; `-` is stdin, as is no file.
    #[arg(value_name = "FILE")]
    files: Vec<String>,
    /// The image of the sidecar.
    #[arg(long, value_name = "IMAGE", default_value = PROXY_IMAGE, value_parser = settings::image)]
    proxy_image: String,
    /// The control plane of the cluster. Not for compose, where it is part of the override.
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_CONTROL, value_parser = host_and_port)]
    control: String,
    /// The Secret with the join token and its key; `{serviceAccount}` stands for the pod's.
    #[arg(long, value_name = "NAME[/KEY]", default_value = "weft-join/token", value_parser = join_secret)]
    join_secret: JoinSecret,
    /// The image of the control plane; only for compose.
    #[arg(long, value_name = "IMAGE", default_value = CONTROL_IMAGE, value_parser = settings::image)]
    control_image: String,
    /// The network of the mesh, an IPv4 network of 16 to 28 bits; only for compose.
    #[arg(long, value_name = "CIDR", default_value = compose::DEFAULT_SUBNET, value_parser = compose::subnet)]
    subnet: compose::Subnet,
}

const DEFAULT_CONTROL: &str = "weft-control.weft-system.svc:14012";

/// Take the sidecars that `weft inject` added out of Kubernetes manifests, and print the result.
///
/// A compose file was never changed: leave its override out.
#[derive(Debug, clap::Args)]
pub(crate) struct UninjectArgs {
    /// Files to read; `-` is stdin, as is no file.
    #[arg(value_name = "FILE")]
    files: Vec<String>,
}

/// Adds sidecars.
///
/// # Errors
///
/// A file cannot be read, or a document cannot be injected.
pub(crate) fn inject(args: &InjectArgs, out: &Output) -> Result<(), Failure> {
    let inputs = read("inject", &args.files, out)?;
    if let [input] = &inputs[..]
        && let Ok(Some(document)) = yaml::parse(&input.text)
        && manifest::is_compose(&document.root)
    {
        let images = compose::Images {
            proxy: &args.proxy_image,
            control: &args.control_image,
        };
        let (text, report) = compose::mesh(&document.root, &input.name, &images, &args.subnet);
        let done = Done {
            text,
            report,
            changed: Vec::new(),
        };
        return finish(&[done], "sidecars for", out);
    }
    let options = Options {
        image: args.proxy_image.clone(),
        control: args.control.clone(),
        join: args.join_secret.clone(),
    };
    finish(&transform(&inputs, Task::Inject(&options)), "injected", out)
}

/// Takes sidecars out.
///
/// # Errors
///
/// A file cannot be read, or a document is damaged.
pub(crate) fn uninject(args: &UninjectArgs, out: &Output) -> Result<(), Failure> {
    let inputs = read("uninject", &args.files, out)?;
    finish(&transform(&inputs, Task::Uninject), "uninjected", out)
}

/// A text and where it is from.
#[derive(Debug)]
struct Input {
    name: String,
    text: String,
}

fn read(verb: &str, files: &[String], out: &Output) -> Result<Vec<Input>, Failure> {
    if out.format != Format::Table {
        let message = format!("`weft {verb}` prints YAML: -o does not apply");
        return Err(Failure::new(Exit::Usage, message).help("leave -o out"));
    }
    let stdin = ["-".to_owned()];
    let files = if files.is_empty() { &stdin } else { files };
    files.iter().map(|file| read_one(file)).collect()
}

fn read_one(file: &str) -> Result<Input, Failure> {
    let name = if file == "-" { "stdin" } else { file };
    let failed = |error: &std::io::Error| Failure::io(name, error);
    let reader: Box<dyn Read> = if file == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(fs::File::open(file).map_err(|error| failed(&error))?)
    };
    let mut bytes = Vec::new();
    let mut bounded = reader.take(MAX_INPUT + 1);
    bounded
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_INPUT {
        let message = format!("{name}: more than {} MiB", MAX_INPUT >> 20);
        return Err(Failure::new(Exit::Problems, message));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::new(Exit::Problems, format!("{name}: no UTF-8")))?;
    Ok(Input {
        name: name.to_owned(),
        text,
    })
}

fn transform(inputs: &[Input], task: Task<'_>) -> Vec<Done> {
    let pieces: Vec<Piece<'_>> = inputs
        .iter()
        .flat_map(|input| manifest::pieces(&input.name, &input.text))
        .collect();
    let namespaces = Namespaces::collect(&pieces);
    let mut done: Vec<Done> = Vec::new();
    let mut last = None;
    for piece in &pieces {
        let mut one = manifest::apply(piece, task, &namespaces);
        let is_next_file = last.is_some_and(|last| last != piece.file);
        if is_next_file && !one.text.is_empty() && !one.text.starts_with("---") {
            one.text.insert_str(0, "---\n");
        }
        last = Some(piece.file);
        done.push(one);
    }
    done
}

/// Prints what came out, and says what was found.
fn finish(done: &[Done], verb: &str, out: &Output) -> Result<(), Failure> {
    let mut text = String::new();
    for one in done {
        if !text.is_empty() && !text.ends_with('\n') && !one.text.is_empty() {
            text.push('\n');
        }
        text.push_str(&one.text);
    }
    printed_or_closed(out.data(&text))?;
    let paint = out.words_paint;
    let say = |level: &str, problem: &Problem| {
        let help = problem.help.as_ref();
        let help = help.map_or_else(String::new, |help| format!("\n  help: {help}"));
        format!("{level}: {}{help}", problem.message)
    };
    let reports = || done.iter().map(|one| &one.report);
    for problem in reports().flat_map(|report: &Report| &report.warnings) {
        out.say(say("warning", problem));
    }
    let changed: Vec<&str> = done
        .iter()
        .filter(|one| one.report.errors.is_empty())
        .flat_map(|one| &one.changed)
        .map(String::as_str)
        .collect();
    if !changed.is_empty() {
        out.done(verb, changed.join(", "));
    }
    let mut errors = reports().flat_map(|report| &report.errors).peekable();
    if errors.peek().is_none() {
        return Ok(());
    }
    for problem in errors {
        eprintln!("{}", say(&paint.bad("error"), problem));
    }
    let bad = reports().filter(|report| !report.errors.is_empty()).count();
    let of = match bad {
        1 => "1 document is".to_owned(),
        bad => format!("{bad} documents are"),
    };
    Err(Failure::new(
        Exit::Problems,
        format!("{of} left out of the output"),
    ))
}

/// Checks `host:port`.
pub(crate) fn host_and_port(value: &str) -> Result<String, String> {
    let parts = value.rsplit_once(':');
    let good = parts.is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse().is_ok_and(|port: u16| port > 0)
    });
    match good {
        true => Ok(value.to_owned()),
        false => Err(format!("`{value}` is not host:port")),
    }
}

fn join_secret(value: &str) -> Result<JoinSecret, String> {
    let (name, key) = value.split_once('/').unwrap_or((value, "token"));
    for part in [name, key] {
        let plain = part.replace("{serviceAccount}", "a");
        let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if plain.is_empty() || !plain.chars().all(good) {
            return Err(format!(
                "`{value}` is not NAME or NAME/KEY of a Secret, as in weft-join-{{serviceAccount}}/token"
            ));
        }
    }
    Ok(JoinSecret {
        name: name.to_owned(),
        key: key.to_owned(),
    })
}
