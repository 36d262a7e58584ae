//! The memory limits that the kernel holds this process to: its cgroup and those around it, of
//! version 1 and 2. What files say is read by pure functions.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use super::{per_mille, text_of};

/// Cgroups around one another that are looked at.
const MAX_DEPTH: usize = 16;
/// Limits from here on are none: version 1 writes the largest number of whole pages.
const UNLIMITED: u64 = 1 << 60;
/// Below this share, per mille, it does not matter how much of a cgroup are files that may be
/// dropped; to ask is dear, since the kernel adds up all processors then.
const WORTH_ASKING: u64 = 800;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where the cgroup of a process is: a directory, and the one above which there is none.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    version: Version,
    top: PathBuf,
    own: PathBuf,
}

/// A cgroup with a limit; its files stay open.
#[derive(Debug)]
pub(super) struct Group {
    version: Version,
    /// The smallest counts.
    limits: Vec<File>,
    current: File,
    stat: Option<File>,
}

/// What is used of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupUse {
    /// Bytes that it may use.
    pub(super) limit: u64,
    /// Bytes in use, without files that may be dropped.
    pub(super) used: u64,
    /// The part of it that is kept in sockets.
    pub(super) sockets: u64,
}

/// The cgroups with a limit around a process, given its directory in /proc; from inside to
/// outside. What cannot be read counts as absent.
pub(super) fn find(process: &Path) -> Vec<Group> {
    let read = |name| std::fs::read_to_string(process.join(name)).unwrap_or_default();
    let Some(place) = place(&read("cgroup"), &read("mountinfo")) else {
        return Vec::new();
    };
    around(&place)
}

fn around(place: &Place) -> Vec<Group> {
    let inside = |path: &&Path| path.starts_with(&place.top);
    let directories = place.own.ancestors().take_while(inside).take(MAX_DEPTH);
    directories
        .filter_map(|directory| Group::open(place.version, directory))
        .filter(|group| group.limit().is_some())
        .collect()
}

impl Group {
    /// `None` where there are no such files: at the root of all, or where a container does not
    /// see the cgroup that it is in.
    fn open(version: Version, directory: &Path) -> Option<Self> {
        let open = |name: &str| File::open(directory.join(name)).ok();
        let (limits, current): (&[&str], &str) = match version {
            Version::One => (&["memory.limit_in_bytes"], "memory.usage_in_bytes"),
            Version::Two => (&["memory.max", "memory.high"], "memory.current"),
        };
        Some(Self {
            version,
            limits: limits.iter().filter_map(|name| open(name)).collect(),
            current: open(current)?,
            stat: open("memory.stat"),
        })
    }

    /// The bytes that it may use; `None`: as many as there are.
    pub(super) fn limit(&self) -> Option<u64> {
        let mut buffer = [0; 32];
        let mut limits = Vec::with_capacity(self.limits.len());
        for file in &self.limits {
            limits.extend(text_of(file, &mut buffer).and_then(bytes_of));
        }
        limits.into_iter().min()
    }

    /// What is used of it now.
    pub(super) fn read(&self) -> Option<GroupUse> {
        let mut buffer = [0; 8192];
        let limit = self.limit()?;
        let current = text_of(&self.current, &mut buffer).and_then(bytes_of)?;
        let mut used = GroupUse {
            limit,
            used: current,
            sockets: 0,
        };
        if per_mille(current, limit) >= WORTH_ASKING
            && let Some(stat) = self.stat.as_ref().and_then(|f| text_of(f, &mut buffer))
        {
            used.refine(self.version, stat);
        }
        Some(used)
    }
}

impl GroupUse {
    /// Takes `memory.stat` into account.
    fn refine(&mut self, version: Version, stat: &str) {
        // Of version 1, the plain names leave out the cgroups below, and sockets are not a part
        // of the use.
        let (droppable, sockets) = match version {
            Version::One => ("total_inactive_file", None),
            Version::Two => ("inactive_file", Some("sock")),
        };
        self.used = self.used.saturating_sub(entry(stat, droppable));
        self.sockets = sockets.map_or(0, |name| entry(stat, name));
    }
}

/// A limit or a use: `None` for `max`, for what stands for it, and for what is no number.
fn bytes_of(text: &str) -> Option<u64> {
    let bytes: u64 = text.trim().parse().ok()?;
    (bytes < UNLIMITED).then_some(bytes)
}

/// The number behind a name in `memory.stat`; 0 if there is none.
fn entry(stat: &str, name: &str) -> u64 {
    let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(found, _)| *found == name);
    found
        .and_then(|(_, number)| number.trim().parse().ok())
        .unwrap_or(0)
}

/// Where the cgroup that counts memory is, by /proc/<pid>/cgroup and /proc/<pid>/mountinfo
/// (cgroups(7), proc_pid_mountinfo(5)). Version 1 has it if the kernel was told so.
fn place(cgroup: &str, mountinfo: &str) -> Option<Place> {
    let mut entries = cgroup.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let _hierarchy = parts.next()?;
        Some((parts.next()?, parts.next()?))
    });
    let of_memory = |list: &str| list.split(',').any(|name| name == "memory");
    let one = entries.clone().find(|(list, _)| of_memory(list));
    let (version, path) = match one {
        Some((_, path)) => (Version::One, path),
        None => (Version::Two, entries.find(|(list, _)| list.is_empty())?.1),
    };
    let (root, top) = mountinfo.lines().find_map(|line| mount(line, version))?;
    let below = Path::new(path).strip_prefix(root).ok();
    // In a container the path may be one that only the host sees.
    let visible = below.filter(|below| !below.components().any(|c| c.as_os_str() == ".."));
    let top = PathBuf::from(top);
    let own = visible.map_or_else(|| top.clone(), |below| top.join(below));
    Some(Place { version, top, own })
}

/// Root and mount point of a line of mountinfo, if it is the file system of the cgroups.
fn mount(line: &str, version: Version) -> Option<(&str, &str)> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let (root, point) = (front.next()?, front.next()?);
    let mut back = back.split(' ');
    let (kind, options) = (back.next()?, back.nth(1)?);
    let fits = match version {
        Version::One => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        Version::Two => kind == "cgroup2",
    };
    fits.then_some((root, point))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{GroupUse, Place, Version, around, bytes_of, entry, find, place};

    const MOUNT_V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
    const MOUNT_V1: &str = "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw master:11 - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_cgroup_is_found() {
        let cases = [
            // Version 2, with a name space of its own and without.
            ("0::/\n", MOUNT_V2, Some((Version::Two, "", ""))),
            (
                "0::/user.slice/weft.service\n",
                MOUNT_V2,
                Some((Version::Two, "", "user.slice/weft.service")),
            ),
            // Version 1 beside it; other controllers have other places.
            (
                "5:cpu,cpuacct:/elsewhere\n4:memory:/docker/abc\n0::/\n",
                MOUNT_V1,
                Some((Version::One, "memory", "docker/abc")),
            ),
            // A container that sees its own part of version 1 only.
            (
                "4:memory:/docker/abc\n",
                "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                Some((Version::One, "memory", "")),
            ),
            (
                "4:memory:/docker/abc/inner\n",
                "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
                Some((Version::One, "memory", "inner")),
            ),
            // A path that is none here.
            ("0::/../../other\n", MOUNT_V2, Some((Version::Two, "", ""))),
            ("4:memory:/x\n", MOUNT_V2, None),
            ("", MOUNT_V2, None),
            ("0::/\n", "", None),
            ("garbage\n::\n", "garbage - \n - \n", None),
        ];
        for (cgroup, mountinfo, expected) in cases {
            let expected = expected.map(|(version, top, own)| {
                let top = Path::new("/sys/fs/cgroup").join(top);
                Place {
                    version,
                    own: top.join(own),
                    top,
                }
            });
            let found = place(cgroup, mountinfo);
            let same = match (&found, &expected) {
                (Some(found), Some(expected)) => {
                    // `join("")` leaves a slash behind.
                    found.version == expected.version
                        && found.top.components().eq(expected.top.components())
                        && found.own.components().eq(expected.own.components())
                }
                (None, None) => true,
                _ => false,
            };
            assert!(same, "{cgroup}: {found:?}, not {expected:?}");
        }
    }

    #[test]
    fn limits_are_read() {
        for (text, expected) in [
            ("134217728\n", Some(134_217_728)),
            ("0\n", Some(0)),
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("", None),
            ("-1\n", None),
            ("99999999999999999999\n", None),
        ] {
            assert_eq!(bytes_of(text), expected, "{text}");
        }
    }

    #[test]
    fn entries_are_whole_words() {
        let stat = "anon 1\nfile 2\nsock 3\ninactive_file 4\ntotal_inactive_file 5\n";
        for (name, expected) in [
            ("sock", 3),
            ("inactive_file", 4),
            ("total_inactive_file", 5),
            ("fil", 0),
            ("shmem", 0),
        ] {
            assert_eq!(entry(stat, name), expected, "{name}");
        }
        assert_eq!(entry("sock\nsock x\n", "sock"), 0);
    }

    /// A directory as the kernel would have it, and files below it.
    fn hierarchy(
        version: Version,
        own: &str,
        files: &[(&str, &str)],
    ) -> (tempfile::TempDir, Place) {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().to_owned();
        fs::create_dir_all(top.join(own)).unwrap();
        for (name, text) in files {
            fs::write(top.join(name), text).unwrap();
        }
        let own = top.join(own);
        (directory, Place { version, top, own })
    }

    #[test]
    fn nested_cgroups_of_version_2_all_count() {
        let (_directory, place) = hierarchy(
            Version::Two,
            "pod/proxy",
            &[
                ("memory.stat", "sock 7\n"),
                ("pod/memory.max", "2000\n"),
                ("pod/memory.high", "1000\n"),
                ("pod/memory.current", "900\n"),
                ("pod/memory.stat", "inactive_file 300\nsock 50\n"),
                ("pod/proxy/memory.max", "max\n"),
                ("pod/proxy/memory.current", "500\n"),
            ],
        );
        let groups = around(&place);
        let used: Vec<_> = groups.iter().map(|group| group.read().unwrap()).collect();
        let pod = GroupUse {
            limit: 1000,
            used: 600,
            sockets: 50,
        };
        assert_eq!(used, [pod]);
        // A limit that is changed later holds at once; what is gone is no reason to panic.
        let file = place.top.join("pod/memory.high");
        fs::write(&file, "max\n").unwrap();
        assert_eq!(groups[0].limit(), Some(2000));
        let unrefined = GroupUse {
            limit: 2000,
            used: 900,
            sockets: 0,
        };
        assert_eq!(groups[0].read(), Some(unrefined), "far from the limit");
        fs::write(place.top.join("pod/memory.current"), "").unwrap();
        assert_eq!(groups[0].read(), None);
    }

    #[test]
    fn version_1_is_read_by_its_own_names() {
        let (_directory, place) = hierarchy(
            Version::One,
            "docker/abc",
            &[
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.usage_in_bytes", "100000\n"),
                ("docker/abc/memory.limit_in_bytes", "1000\n"),
                ("docker/abc/memory.usage_in_bytes", "1000\n"),
                (
                    "docker/abc/memory.stat",
                    "inactive_file 1\ntotal_inactive_file 200\n",
                ),
            ],
        );
        let used: Vec<_> = around(&place)
            .iter()
            .filter_map(super::Group::read)
            .collect();
        let own = GroupUse {
            limit: 1000,
            used: 800,
            sockets: 0,
        };
        assert_eq!(used, [own]);
    }

    #[test]
    fn what_is_not_there_or_cannot_be_read_is_no_limit() {
        let (directory, place) = hierarchy(Version::Two, "a", &[("a/memory.max", "1000\n")]);
        assert!(around(&place).is_empty(), "no use");
        assert!(find(directory.path()).is_empty(), "no files");
        let gone = Place {
            own: place.top.join("b/c"),
            ..place
        };
        assert!(around(&gone).is_empty());
        let (_directory, place) = hierarchy(
            Version::Two,
            "a",
            &[("a/memory.max", "1000\n"), ("a/memory.current", "10\n")],
        );
        let used = around(&place)[0].read();
        let bare = GroupUse {
            limit: 1000,
            used: 10,
            sockets: 0,
        };
        assert_eq!(used, Some(bare), "without memory.stat");
    }
}
