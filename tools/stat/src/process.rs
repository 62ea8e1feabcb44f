// SPDX-License-Identifier: MIT
//! Which processes have queues.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use crate::fdinfo::{self, Queue};

/// What the link of a queue's descriptor says.
const LINK: &str = "anon_inode:[kevent]";

/// A descriptor of a queue.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    pub(crate) command: String,
    pub(crate) fd: u32,
    pub(crate) queue: Queue,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// In the order of processes and descriptors.
    pub(crate) holders: Vec<Holder>,
    /// How many processes this user may not look at.
    pub(crate) hidden: usize,
}

fn numbers(folder: &Path) -> std::io::Result<Vec<u32>> {
    let mut found: Vec<u32> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The queues of all processes; `proc` is where procfs is mounted.
pub(crate) fn find(proc: &Path) -> Result<Found> {
    let mut found = Found::default();
    let processes = numbers(proc).with_context(|| format!("cannot read {}", proc.display()))?;
    for pid in processes {
        let folder = proc.join(pid.to_string());
        let fds = match numbers(&folder.join("fd")) {
            Ok(fds) => fds,
            Err(error) => {
                // Else it has ended meanwhile.
                found.hidden += usize::from(error.kind() == ErrorKind::PermissionDenied);
                continue;
            }
        };
        for fd in fds {
            let link = fs::read_link(folder.join("fd").join(fd.to_string()));
            if !link.is_ok_and(|link| link.as_os_str() == LINK) {
                continue;
            }
            // It may have been closed, or the process have ended, since.
            let Ok(text) = fs::read_to_string(folder.join("fdinfo").join(fd.to_string())) else {
                continue;
            };
            let queue = match fdinfo::parse(&text) {
                Ok(queue) => queue,
                Err(_) if !text.contains("kevent-") => continue,
                Err(error) => return Err(error.context(format!("process {pid}, fd {fd}"))),
            };
            let command = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            found.holders.push(Holder {
                pid,
                command: command.trim_end().to_owned(),
                fd,
                queue,
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    /// A folder that looks like procfs, and is removed in the end.
    struct Proc(PathBuf);

    impl Proc {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn process(&self, pid: u32, fds: &[(u32, &str, &str)]) {
            let folder = self.0.join(pid.to_string());
            fs::create_dir_all(folder.join("fd")).unwrap();
            fs::create_dir(folder.join("fdinfo")).unwrap();
            fs::write(folder.join("comm"), format!("name {pid}\n")).unwrap();
            for (fd, link, text) in fds {
                symlink(link, folder.join(format!("fd/{fd}"))).unwrap();
                fs::write(folder.join(format!("fdinfo/{fd}")), text).unwrap();
            }
        }
    }

    impl Drop for Proc {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn queues_are_found_among_other_descriptors() {
        let proc = Proc::new("kevent-stat-proc");
        let text = fdinfo::tests::TEXT;
        let queue = "anon_inode:[kevent]";
        proc.process(
            40,
            &[
                (0, "/dev/null", text),
                (11, queue, text),
                (3, queue, text),
                (4, "anon_inode:[eventpoll]", text),
                // Closed, and the number used anew, after the link was read.
                (5, queue, "pos:\t0\n"),
            ],
        );
        proc.process(7, &[(9, queue, text)]);
        proc.process(8, &[(0, "/dev/tty", "pos:\t0\n")]);
        fs::write(proc.0.join("version"), "").unwrap();
        let found = find(&proc.0).unwrap();
        let places: Vec<_> = found.holders.iter().map(|it| (it.pid, it.fd)).collect();
        assert_eq!(places, [(7, 9), (40, 3), (40, 11)]);
        assert_eq!(found.holders[1].command, "name 40");
        assert_eq!(found.holders[1].queue.slots, 128);
        assert!(find(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn text_that_is_not_understood_is_not_passed_over() {
        let proc = Proc::new("kevent-stat-bad");
        proc.process(7, &[(9, LINK, "kevent-slots:\tmany\n")]);
        let error = format!("{:#}", find(&proc.0).unwrap_err());
        assert!(error.contains("process 7, fd 9"), "{error}");
    }
}
