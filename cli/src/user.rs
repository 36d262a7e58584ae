//! Users of this machine, and work in their name.

use std::fs;
use std::io;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;

use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

/// A user as processes have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its other groups.
    groups: Vec<u32>,
    /// What /etc/passwd says besides; none for a mere number.
    entry: Option<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    home: PathBuf,
    shell: PathBuf,
}

impl User {
    /// Whom this process runs as.
    pub(crate) fn own() -> Self {
        Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: Vec::new(),
            entry: None,
        }
    }

    /// Finds a user by name or number in /etc/passwd and /etc/group. A number that is not there
    /// has the group of the same number.
    ///
    /// # Errors
    ///
    /// There is no such user; the text says what to do.
    pub(crate) fn find(text: &str) -> Result<Self, String> {
        let read = |path: &str| match fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            // An image without users: numbers will do.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(format!("{path}: {error}")),
        };
        Self::look_up(text, &read("/etc/passwd")?, &read("/etc/group")?)
    }

    fn look_up(text: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let number = text.parse::<u32>().ok().filter(|uid| *uid != u32::MAX);
        let mut users = passwd.lines().filter_map(user);
        let found = users.find(|user| match number {
            Some(uid) => user.uid == uid,
            None => user.entry.as_ref().is_some_and(|entry| entry.name == text),
        });
        match (found, number) {
            (Some(user), _) => Ok(Self {
                groups: user.groups_in(group),
                ..user
            }),
            (None, Some(uid)) => Ok(Self {
                uid,
                gid: uid,
                groups: Vec::new(),
                entry: None,
            }),
            (None, None) => Err(format!(
                "there is no user `{text}` in /etc/passwd; create it (useradd --system {text}), or give its number"
            )),
        }
    }

    fn groups_in(&self, group: &str) -> Vec<u32> {
        let name = self.entry.as_ref().map(|entry| entry.name.as_str());
        let of_line = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let &[_, _, gid, members, ..] = fields.as_slice() else {
                return None;
            };
            let is_member = members.split(',').any(|member| Some(member) == name);
            gid.parse().ok().filter(|_| is_member)
        };
        group.lines().filter_map(of_line).collect()
    }

    /// Whether its processes are of a group.
    pub(crate) fn has_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// What a login would set, so that nobody takes our home for its own.
    pub(crate) fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        self.entry.iter().flat_map(Entry::environment).collect()
    }

    /// Does something as this user, on a thread of its own: processes that it starts are this
    /// user's. Waits for the end.
    ///
    /// # Errors
    ///
    /// This process may not become that user.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        if self.uid == geteuid().as_raw() && self.gid == getegid().as_raw() {
            return Ok(work());
        }
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.become_this_thread()?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// The user before the groups would lose the right to change them.
    fn become_this_thread(&self) -> io::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_thread_groups(&groups)?;
        set_thread_gid(Gid::from_raw(self.gid))?;
        set_thread_uid(Uid::from_raw(self.uid))?;
        Ok(())
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.entry {
            Some(entry) => f.write_str(&entry.name),
            None => write!(f, "{}", self.uid),
        }
    }
}

impl Entry {
    fn environment(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("HOME", self.home.clone()),
            ("USER", PathBuf::from(&self.name)),
            ("LOGNAME", PathBuf::from(&self.name)),
            ("SHELL", self.shell.clone()),
        ]
    }
}

/// One line of /etc/passwd, without other groups.
fn user(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, _, uid, gid, _, home, shell] = fields.as_slice() else {
        return None;
    };
    Some(User {
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        groups: Vec::new(),
        entry: Some(Entry {
            name: name.to_owned(),
            home: home.into(),
            shell: shell.into(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\n\
                          shop:x:998:997:,,,:/srv/shop:/usr/sbin/nologin\n";
    const GROUP: &str = "root:x:0:\nshop:x:997:\nssl-cert:x:110:web,shop\nbroken:x:shop\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        for (text, uid, gid, groups, shown) in [
            ("shop", 998, 997, &[110][..], "shop"),
            ("998", 998, 997, &[110], "shop"),
            ("root", 0, 0, &[], "root"),
            ("4242", 4242, 4242, &[], "4242"),
        ] {
            let user = User::look_up(text, PASSWD, GROUP).unwrap();
            assert_eq!((user.uid, user.gid), (uid, gid), "{text}");
            assert_eq!(user.groups, groups, "{text}");
            assert_eq!(user.to_string(), shown);
            assert_eq!(user.has_group(110), groups.contains(&110));
            assert!(user.has_group(gid));
        }
        for text in ["nobody-here", "", "-1", "4294967295", "broken"] {
            let error = User::look_up(text, PASSWD, GROUP).unwrap_err();
            assert!(error.contains("useradd"), "{text}: {error}");
        }
    }

    #[test]
    fn a_user_has_its_own_home() {
        let user = User::look_up("shop", PASSWD, GROUP).unwrap();
        let environment = user.environment();
        assert!(environment.contains(&("HOME", "/srv/shop".into())));
        assert!(environment.contains(&("USER", "shop".into())));
        let number = User::look_up("4242", PASSWD, GROUP).unwrap();
        assert_eq!(number.environment(), []);
    }

    #[test]
    fn work_is_done_as_the_user() {
        let own = User::own();
        assert_eq!(own.run(|| geteuid().as_raw()).unwrap(), own.uid);
        let other = User::look_up("4242", "", "").unwrap();
        match other.run(|| (geteuid().as_raw(), getegid().as_raw())) {
            Ok(ids) => assert_eq!(ids, (4242, 4242)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
        assert_eq!(geteuid().as_raw(), own.uid, "other threads stay");
    }
}
