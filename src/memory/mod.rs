//! What the process may use of memory: a budget of bytes that are charged before they are kept,
//! and how close the process is to the end of what it has. What is measured is told from what
//! follows from it: `strain` and `after` are pure.

mod account;
mod cgroup;

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
};

use self::{
    account::Accounts,
    cgroup::{Group, GroupUse},
};

pub use account::{Account, Opened, Patience, Shedder};

/// What a process has that is told nothing and in no cgroup with a limit.
const WITHOUT_LIMIT: u64 = 256 << 20;
/// Per mille of the budget from where on connections are asked to end, and until where.
const HIGH: (u64, u64) = (850, 800);
/// Per mille of the budget from where on requests are refused, and until where.
const CRITICAL: (u64, u64) = (920, 870);

/// How close the process is to the end of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pressure {
    /// Far enough.
    Normal = 0,
    /// Clients are asked to go when their request has ended, and connections that keep more than
    /// their part wait.
    High = 1,
    /// New requests are refused, and the connections that keep most are ended.
    Critical = 2,
}

impl Pressure {
    const fn of(level: u8) -> Self {
        match level {
            0 => Self::Normal,
            1 => Self::High,
            _ => Self::Critical,
        }
    }
}

/// The byte budget of the process. Shared, atomic.
#[derive(Debug)]
pub struct Memory {
    budget: usize,
    /// From here on requests are refused.
    critical: usize,
    used: AtomicUsize,
    /// The last [`Pressure`] that was measured.
    measured: AtomicU8,
    /// Whether the kernel was short of memory for TCP then.
    sockets: AtomicBool,
    /// What single connections keep.
    accounts: Accounts,
}

impl Memory {
    /// A budget with nothing charged.
    #[must_use]
    pub fn new(budget: u64) -> Arc<Self> {
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        Arc::new(Self {
            budget,
            critical: (budget as u128 * u128::from(CRITICAL.0)).div_ceil(1000) as usize,
            used: AtomicUsize::new(0),
            measured: AtomicU8::new(Pressure::Normal as u8),
            sockets: AtomicBool::new(false),
            accounts: Accounts::default(),
        })
    }

    /// Takes bytes out of the budget until the charge is dropped; `None` if there are too few.
    #[must_use]
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        self.take(bytes).then(|| Charge {
            memory: self.clone(),
            bytes,
        })
    }

    fn take(&self, bytes: usize) -> bool {
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.budget);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .is_ok()
    }

    /// The bytes that are charged now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// What may be charged at one time.
    #[must_use]
    pub const fn budget(&self) -> usize {
        self.budget
    }

    /// HOT. How close the process is to the end of its memory: what was measured last, and what
    /// is charged now where that is more urgent. Two loads.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        if self.used() >= self.critical {
            return Pressure::Critical;
        }
        Pressure::of(self.measured.load(Ordering::Relaxed))
    }

    /// Whether what stands still has to go: there is little memory left here, or the kernel has
    /// little left for TCP (`net.ipv4.tcp_mem`), of which others on the machine want some.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.pressure() >= Pressure::High || self.sockets.load(Ordering::Relaxed)
    }
}

/// Bytes that are charged to the process; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Charge {
    /// Another charge to the same process.
    #[must_use]
    pub fn another(&self, bytes: usize) -> Option<Self> {
        self.memory.charge(bytes)
    }

    /// Charges more; false, and nothing is changed, if there is not enough.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let taken = self.memory.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Gives back what is more than so many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.shrink(self.bytes.saturating_sub(bytes));
    }

    /// Gives bytes back, at most all.
    pub fn shrink(&mut self, bytes: usize) {
        let back = bytes.min(self.bytes);
        self.bytes -= back;
        self.memory.used.fetch_sub(back, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

/// What was found at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Bytes that are charged.
    pub charged: u64,
    /// Bytes of this process that no file backs.
    pub resident: Option<u64>,
    /// Bytes of the cgroup whose limit is nearest.
    pub cgroup: Option<u64>,
    /// The largest share that is in use, per mille.
    pub strain: u64,
    /// What follows.
    pub pressure: Pressure,
}

/// Looks at the memory of the process. Its files stay open, so that it can look when there are
/// no file descriptors left.
#[derive(Debug)]
pub struct Gauge {
    memory: Arc<Memory>,
    /// The budget was set, not taken from a cgroup.
    fixed: bool,
    status: Option<File>,
    protocols: Option<File>,
    groups: Vec<Group>,
}

impl Gauge {
    /// Finds the cgroups of this process; with `setting` 0, the budget is a part of the smallest
    /// limit among them.
    #[must_use]
    pub fn new(setting: u64) -> Self {
        let groups = cgroup::find(Path::new("/proc/self"));
        let limit = groups.iter().filter_map(Group::limit).min();
        Self {
            memory: Memory::new(budget(setting, limit)),
            fixed: setting != 0,
            status: File::open("/proc/self/status").ok(),
            protocols: File::open("/proc/net/protocols").ok(),
            groups,
        }
    }

    /// The budget.
    #[must_use]
    pub fn memory(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    /// The smallest limit of the cgroups of this process.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.groups.iter().filter_map(Group::limit).min()
    }

    /// Measures, and puts what follows in force. Some small files of the kernel are read: no
    /// disk is waited for.
    pub fn look(&self) -> Look {
        let mut buffer = [0; 4096];
        let status = self.status.as_ref().and_then(|f| text_of(f, &mut buffer));
        let resident = status.and_then(anonymous);
        let tcp = self.protocols.as_ref().is_some_and(kernel_is_short);
        self.memory.sockets.store(tcp, Ordering::Relaxed);
        let groups: Vec<GroupUse> = self.groups.iter().filter_map(Group::read).collect();
        let budget = self.memory.budget as u64;
        let sample = Sample {
            charged: (self.memory.used() as u64, budget),
            resident: (resident.unwrap_or(0), budget),
            fixed: self.fixed,
            groups: &groups,
        };
        let before = Pressure::of(self.memory.measured.load(Ordering::Relaxed));
        let strain = sample.strain();
        let pressure = after(before, strain);
        self.memory
            .measured
            .store(pressure as u8, Ordering::Relaxed);
        let nearest = groups.iter().max_by_key(|g| per_mille(g.used, g.limit));
        Look {
            charged: sample.charged.0,
            resident,
            cgroup: nearest.map(|group| group.used),
            strain,
            pressure,
        }
    }
}

/// What was measured at one time: bytes in use, and of how many.
#[derive(Debug)]
struct Sample<'a> {
    charged: (u64, u64),
    resident: (u64, u64),
    fixed: bool,
    groups: &'a [GroupUse],
}

impl Sample<'_> {
    /// The largest share that is in use, per mille. A cgroup counts if at least half of it is
    /// ours; where one does, the process by itself may have a third more than a budget that
    /// nobody has set: four fifths of the cgroup, so that there is room for what was let in.
    fn strain(&self) -> u64 {
        let resident = self.resident.0;
        let ours = |group: &&GroupUse| resident + group.sockets >= group.used / 2;
        let groups = self.groups.iter().filter(ours);
        let cgroup = groups.map(|g| per_mille(g.used, g.limit)).max();
        let charged = per_mille(self.charged.0, self.charged.1);
        let process = per_mille(resident, self.resident.1);
        match cgroup {
            Some(cgroup) if !self.fixed => charged.max(cgroup).max(process / 4 * 3),
            cgroup => charged.max(process).max(cgroup.unwrap_or(0)),
        }
    }
}

/// What follows from a share of memory, per mille. A state ends well below where it began: it
/// must not come and go with every request.
fn after(before: Pressure, strain: u64) -> Pressure {
    let holds = |level: Pressure, (from, until): (u64, u64)| {
        strain >= if before >= level { until } else { from }
    };
    if holds(Pressure::Critical, CRITICAL) {
        Pressure::Critical
    } else if holds(Pressure::High, HIGH) {
        Pressure::High
    } else {
        Pressure::Normal
    }
}

/// The bytes that may be charged, given the setting and the smallest limit of a cgroup.
fn budget(setting: u64, limit: Option<u64>) -> u64 {
    match (setting, limit) {
        (0, Some(limit)) => limit / 10 * 6,
        (0, None) => WITHOUT_LIMIT,
        (set, _) => set,
    }
}

fn per_mille(part: u64, whole: u64) -> u64 {
    part.saturating_mul(1000) / whole.max(1)
}

/// The bytes that are resident and that no file backs, of `status` (proc_pid_status(5)).
fn anonymous(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

/// What a file of the kernel says now, as far as the buffer goes.
fn text_of<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a str> {
    let n = file.read_at(buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..n]).ok()
}

/// Whether the kernel is short of memory for TCP, given `/proc/net/protocols`.
fn kernel_is_short(file: &File) -> bool {
    // The kernel gives a page at a time.
    let mut bytes = [0; 16 << 10];
    let mut filled = 0;
    while let Ok(n @ 1..) = file.read_at(&mut bytes[filled..], filled as u64) {
        filled += n;
    }
    String::from_utf8_lossy(&bytes[..filled])
        .lines()
        .any(is_short_of_tcp)
}

/// A line of `/proc/net/protocols`: name, size, sockets, pages in use, pressure, more.
fn is_short_of_tcp(line: &str) -> bool {
    let mut columns = line.split_whitespace();
    matches!(columns.next(), Some("TCP" | "TCPv6")) && columns.nth(3) == Some("yes")
}

#[cfg(test)]
mod tests {
    use super::{
        Gauge, Memory, Pressure, Sample, after, anonymous, budget, cgroup::GroupUse,
        is_short_of_tcp,
    };

    #[test]
    fn charges_are_given_back_and_never_exceed_the_budget() {
        let memory = Memory::new(1000);
        let mut one = memory.charge(600).unwrap();
        assert!(memory.charge(401).is_none());
        let two = memory.charge(400).unwrap();
        assert_eq!(memory.used(), 1000);
        assert!(!one.grow(1));
        drop(two);
        assert!(one.grow(400) && memory.charge(1).is_none());
        one.shrink_to(100);
        assert_eq!(memory.used(), 100);
        one.shrink_to(200);
        assert_eq!(memory.used(), 100);
        one.shrink(900);
        assert_eq!(memory.used(), 0);
        assert!(memory.charge(usize::MAX).is_none());
        drop(one);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn charges_of_many_threads_add_up() {
        let memory = Memory::new(64);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let charge = memory.charge(16);
                        assert!(memory.used() <= 64);
                        drop(charge);
                    }
                });
            }
        });
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn what_is_charged_counts_at_once() {
        let memory = Memory::new(1000);
        let charge = memory.charge(919).unwrap();
        assert_eq!(memory.pressure(), Pressure::Normal);
        let more = memory.charge(1).unwrap();
        assert_eq!(memory.pressure(), Pressure::Critical);
        drop((charge, more));
        assert_eq!(memory.pressure(), Pressure::Normal);
    }

    #[test]
    fn pressure_comes_late_and_goes_later() {
        use Pressure::{Critical, High, Normal};
        for (before, strain, expected) in [
            (Normal, 0, Normal),
            (Normal, 849, Normal),
            (Normal, 850, High),
            (Normal, 919, High),
            (Normal, 920, Critical),
            (Normal, 5000, Critical),
            (High, 800, High),
            (High, 799, Normal),
            (High, 919, High),
            (High, 920, Critical),
            (Critical, 870, Critical),
            (Critical, 869, High),
            (Critical, 800, High),
            (Critical, 799, Normal),
        ] {
            assert_eq!(after(before, strain), expected, "{before:?} {strain}");
        }
    }

    #[test]
    fn the_largest_share_counts_but_not_that_of_others() {
        let group = |used, limit, sockets| GroupUse {
            limit,
            used,
            sockets,
        };
        let strain = |charged, resident, fixed, groups: &[GroupUse]| {
            let sample = Sample {
                charged: (charged, 600),
                resident: (resident, 600),
                fixed,
                groups,
            };
            sample.strain()
        };
        // Without a cgroup: the process against its budget.
        assert_eq!(strain(0, 300, false, &[]), 500);
        assert_eq!(strain(450, 300, false, &[]), 750);
        // In a cgroup of its own: that.
        let own = [group(500, 1000, 0)];
        assert_eq!(strain(0, 300, false, &own), 500);
        assert_eq!(strain(0, 480, false, &own), 600);
        // ... unless the budget was set.
        assert_eq!(strain(0, 480, true, &own), 800);
        // What the kernel keeps in sockets is ours.
        let sockets = [group(900, 1000, 400)];
        assert_eq!(strain(0, 60, false, &sockets), 900);
        // In the cgroup of an application that uses it up.
        let shared = [group(990, 1000, 0)];
        assert_eq!(strain(0, 60, false, &shared), 100);
        // Nested: the nearest limit.
        let nested = [group(200, 1000, 0), group(300, 400, 0)];
        assert_eq!(strain(0, 200, false, &nested), 750);
        // A limit of nothing is no reason to divide by it.
        assert_eq!(strain(0, 0, false, &[group(0, 0, 0)]), 0);
    }

    #[test]
    fn the_budget_is_the_setting_or_a_part_of_the_limit() {
        for (setting, limit, expected) in [
            (0, None, 256 << 20),
            (0, Some(1000), 600),
            (0, Some(u64::MAX), u64::MAX / 10 * 6),
            (5000, Some(1000), 5000),
            (5000, None, 5000),
        ] {
            assert_eq!(budget(setting, limit), expected);
        }
    }

    #[test]
    fn what_files_back_is_not_counted() {
        let status = "Name:\tx\nVmRSS:\t    5000 kB\nRssAnon:\t    400 kB\nRssFile:\t 4600 kB\n";
        assert_eq!(anonymous(status), Some(400 << 10));
        for broken in ["", "RssAnon:", "RssAnon: 4", "RssAnon: x kB", "Anon: 4 kB"] {
            assert_eq!(anonymous(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_kernel_says_when_it_is_short_of_memory_for_tcp() {
        for (line, short) in [
            (
                "TCP       2304  16614  614535   yes    192   yes  kernel",
                true,
            ),
            (
                "TCPv6     2432      0  614535   yes    192   yes  kernel",
                true,
            ),
            (
                "TCP       2304     14       3   no     192   yes  kernel",
                false,
            ),
            (
                "MPTCP     1896      0       3   yes      0   yes  kernel",
                false,
            ),
            (
                "UDP       1024      2       0   NI       0   yes  kernel",
                false,
            ),
            (
                "protocol  size sockets  memory press maxhdr  slab module",
                false,
            ),
            ("TCP 1 2", false),
            ("", false),
        ] {
            assert_eq!(is_short_of_tcp(line), short, "{line}");
        }
    }

    #[test]
    fn this_process_is_measured() {
        let gauge = Gauge::new(1 << 40);
        let look = gauge.look();
        assert!(look.resident.unwrap() > 100_000, "{look:?}");
        assert_eq!((look.charged, look.pressure), (0, Pressure::Normal));
        let tiny = Gauge::new(1);
        assert_eq!(tiny.look().pressure, Pressure::Critical);
        assert_eq!(tiny.memory().pressure(), Pressure::Critical);
    }
}
