//! The verb `init` of `weft-proxy`.

use std::process::ExitCode;

use super::{
    CaptureError, Options, Proof, check, install,
    options::{Verb, parse},
    print, remove,
};

/// What `--help` says.
pub const HELP: &str = "\
Leads the traffic of this network namespace through the sidecar (docs/capture.md).

usage: weft-proxy init [OPTIONS] [--print | --check | --remove]

  --mode redirect|tproxy|route   tproxy: the application sees its callers' addresses;
                                 route: the kernel tracks no connection [redirect]
  --backend auto|nft|iptables|iptables-legacy
                                 who installs the rules; auto: the first that works [auto]
  --inbound-ports all|LIST       inbound ports to capture [all]
  --exclude-inbound-ports LIST   inbound ports that stay with the application
  --exclude-outbound-ports LIST  destination ports that are not captured
  --exclude-outbound-cidrs LIST  destinations that are not captured
  --exclude-uids LIST            users whose traffic is not captured
  --only-uids LIST               the only users whose outbound traffic is captured
  --no-dns                       leave DNS queries alone
  --no-ipv6                      leave IPv6 alone
  --proxy-uid ID                 the sidecar's user [14020]
  --proxy-gid ID                 the sidecar's group [14020]
  --inbound-port PORT            where the sidecar takes inbound connections [14006]
  --outbound-port PORT           where it takes outbound ones [14001]
  --dns-port PORT                where it answers DNS [14053]

  --print    write the rules and change nothing
  --check    prove that the rules are in force; needs no privilege
  --remove   remove the rules

LIST is separated by commas; ports may be ranges, as in 80,8000-8100.
Exit codes: 0 done, 1 failure, 2 the command line.
";

/// Does what the arguments after `init` say.
pub fn main(args: &[String]) -> ExitCode {
    if matches!(args, [help] if help == "--help" || help == "-h") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let (verb, options) = match parse(args) {
        Ok(parsed) => parsed,
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("error: {line}");
            }
            return ExitCode::from(2);
        }
    };
    match act(verb, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(verb: Verb, options: &Options) -> Result<(), CaptureError> {
    match verb {
        Verb::Print => print!("{}", print(options)),
        Verb::Check => show(&check(options)?),
        Verb::Remove => {
            remove()?;
            println!("the rules are removed");
        }
        Verb::Install => {
            let report = install(options)?;
            for note in &report.notes {
                println!("info: {note}");
            }
            let families = if report.ipv6 { "IPv4 and IPv6" } else { "IPv4" };
            println!(
                "the rules are in force: {families}, mode {}, by {}",
                options.settings().mode,
                report.backend
            );
            show(&report.proof);
        }
    }
    Ok(())
}

fn show(proof: &Proof) {
    for line in &proof.proved {
        println!("proved: {line}");
    }
    for line in &proof.skipped {
        println!("warning: {line}");
    }
}
