//! What the kernel counts: CPU time and memory of a process, busy time of the machine.
//! Parsing is apart from reading, so that it can be tested on text.

use std::fs;
use std::time::Duration;

use serde::Serialize;

use crate::error::{Context as _, Result};

/// Memory of one process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    /// What only this process holds and has written: what one more of it costs.
    pub(crate) private_dirty: u64,
}

/// Time of all processors since boot, in clock ticks of 10 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) busy: u64,
    pub(crate) steal: u64,
    pub(crate) total: u64,
}

/// CPU time of all living threads of the process. Threads that have ended are not in it.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let tasks =
        fs::read_dir(format!("/proc/{pid}/task")).context(format!("process {pid} is gone"))?;
    let mut sum = Duration::ZERO;
    for task in tasks.flatten() {
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
            sum += parse_schedstat(&text)
                .context(format!("schedstat of process {pid} is not understood"))?;
        }
    }
    Ok(sum)
}

/// The memory of the process now.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).context(&path)?;
    parse_smaps(&text).context(format!("{path} is not understood"))
}

/// Lets [`peak`] begin anew (proc(5), `clear_refs`).
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").context(&path)
}

/// The most that the process has had in memory since it began, or since it was forgotten, in bytes.
pub(crate) fn peak(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).context(&path)?;
    kilobytes(&text, "VmHWM").context(format!("{path} is not understood"))
}

/// The time of all processors so far.
pub(crate) fn machine() -> Result<Machine> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    parse_stat(&text).context("/proc/stat is not understood")
}

/// First field: nanoseconds on a processor.
fn parse_schedstat(text: &str) -> Option<Duration> {
    text.split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Duration::from_nanos)
}

fn parse_smaps(text: &str) -> Option<Memory> {
    Some(Memory {
        rss: kilobytes(text, "Rss")?,
        private_dirty: kilobytes(text, "Private_Dirty")?,
    })
}

/// The bytes of a line `name: n kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// `cpu user nice system idle iowait irq softirq steal ..`
fn parse_stat(text: &str) -> Option<Machine> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    let busy = user + nice + system + irq + softirq;
    Some(Machine {
        busy,
        steal,
        total: busy + idle + iowait + steal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_is_nanoseconds_first() {
        assert_eq!(
            parse_schedstat("123456789 42 7\n"),
            Some(Duration::from_nanos(123_456_789))
        );
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("x 1 2"), None);
    }

    #[test]
    fn smaps_fields_are_found_by_their_whole_name() {
        let text = "00400000-7fff [rollup]\nRss:                5120 kB\nPss_Dirty:  1 kB\n\
                    Shared_Dirty:          8 kB\nPrivate_Dirty:       640 kB\n";
        assert_eq!(
            parse_smaps(text),
            Some(Memory {
                rss: 5120 * 1024,
                private_dirty: 640 * 1024
            })
        );
        assert_eq!(parse_smaps("Rss: 12 kB\n"), None);
    }

    #[test]
    fn stat_separates_busy_from_stolen() {
        let text = "cpu  10 1 5 100 2 0 3 4 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(
            parse_stat(text),
            Some(Machine {
                busy: 19,
                steal: 4,
                total: 125
            })
        );
        assert_eq!(parse_stat("cpu 1 2\n"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().rss > 0);
        assert!(peak(pid).unwrap() > 0);
        forget_peak(pid).unwrap();
        let before = cpu(pid).unwrap();
        let mut x = 0_u64;
        while cpu(pid).unwrap() == before {
            x = x.wrapping_add(1);
        }
        assert!(machine().unwrap().total > 0);
    }
}
