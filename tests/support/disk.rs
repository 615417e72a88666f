//! Disks that are soon full.

use std::{path::Path, process::Command};

use super::skip::skipped;

/// A small file system in memory, for as long as the value is there.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None, and the reason said, where nothing may be mounted.
    pub(crate) fn new(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]);
        match mount.arg(folder.path()).output() {
            Ok(output) if output.status.success() => Some(Self(folder)),
            Ok(output) => {
                skipped(String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                skipped(format_args!("mount: {error}"));
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// What `df` says is used of it.
    pub(crate) fn used(&self) -> String {
        let mut used = Command::new("df");
        let output = used.args(["--output=used"]).arg(self.path()).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.lines().nth(1).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
