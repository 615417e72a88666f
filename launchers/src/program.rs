//! Finding the job's program before anything is started.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::Error;

/// The file that `name` stands for: a path where it has a slash, else the first of that name in
/// the folders of `PATH`.
pub(crate) fn find(name: &OsStr) -> Result<PathBuf, Error> {
    find_in(name, env::var_os("PATH").as_deref())
}

fn find_in(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Error> {
    if name.as_bytes().contains(&b'/') {
        let program = PathBuf::from(name);
        return match check(&program) {
            Ok(()) => Ok(program),
            Err(error) => Err(Error::NotRunnable {
                found: words(&error),
                program,
            }),
        };
    }
    env::split_paths(path.unwrap_or_default())
        .map(|folder| folder.join(name))
        .find(|program| check(program).is_ok())
        .ok_or_else(|| Error::NotRunnable {
            program: PathBuf::from(name),
            found: "there is no such program in PATH".to_owned(),
        })
}

/// Whether `program` is a file that we may run.
fn check(program: &Path) -> io::Result<()> {
    if !fs::metadata(program)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok(access(program, AccessFlags::X_OK)?)
}

/// What the system says, without its numbers.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "it may not be executed".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, path: &str) -> Result<PathBuf, String> {
        find_in(name.as_ref(), Some(path.as_ref())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_without_a_slash_is_looked_up_in_path() {
        assert_eq!(found("sh", "/nowhere:/bin"), Ok(PathBuf::from("/bin/sh")));
        assert!(found("sh", "/nowhere").unwrap_err().contains("sh"));
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        assert_eq!(found("/bin/sh", ""), Ok(PathBuf::from("/bin/sh")));
        assert!(found("./sh", "/bin").unwrap_err().contains("no such file"));
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        let file = found("/proc/version", "").unwrap_err();
        assert_eq!(file, "cannot run /proc/version: it may not be executed");
        assert!(found("/bin/", "").unwrap_err().contains("not a file"));
    }
}
