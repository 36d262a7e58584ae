//! What a group has cost the sidecars: their largest memory and their CPU time.

use std::time::Duration;

use crate::error::Result;
use crate::procfs;

/// A measurement that runs.
#[derive(Debug)]
pub(super) struct Cost {
    /// Process, its memory and its CPU time when it began.
    before: Vec<(u32, u64, Duration)>,
}

impl Cost {
    pub(super) fn start(pids: &[u32]) -> Result<Self> {
        let look = |pid: &u32| {
            procfs::forget_peak(*pid)?;
            Ok((*pid, procfs::peak(*pid)?, procfs::cpu(*pid)?))
        };
        let before = pids.iter().map(look).collect::<Result<_>>()?;
        Ok(Self { before })
    }

    /// The largest growth of one process over what it had, in bytes: peak, not present.
    pub(super) fn growth(&self) -> Result<u64> {
        let mut most = 0;
        for (pid, rss, _) in &self.before {
            most = most.max(procfs::peak(*pid)?.saturating_sub(*rss));
        }
        Ok(most)
    }

    /// In words, for the end of a line.
    pub(super) fn text(&self) -> Result<String> {
        let (mut peak, mut cpu) = (0, Duration::ZERO);
        for (pid, _, before) in &self.before {
            peak = peak.max(procfs::peak(*pid)?);
            cpu += procfs::cpu(*pid)?.saturating_sub(*before);
        }
        let tenths = peak * 10 / (1 << 20);
        let (whole, tenth) = (tenths / 10, tenths % 10);
        let cpu = cpu.as_secs_f64();
        Ok(format!(
            "sidecars: peak RSS {whole}.{tenth} MiB, {cpu:.2} s CPU"
        ))
    }
}
