//! A worker's place in a job, as its launcher told it.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::{fd::RawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::unistd::{self, Uid};
use transport::Secret;

use super::Error;

/// Which worker a process is, of how many, and where its coordinator is.
#[derive(Debug, Clone)]
pub struct Membership {
    /// This worker's number, from 0.
    pub worker: u32,
    /// How many workers the job has.
    pub workers: u32,
    /// Where the coordinator listens: `unix:NAME` or `tcp:HOST:PORT`.
    pub coordinator: String,
    /// What the processes of the job share.
    pub secret: Secret,
}

impl Membership {
    /// Reads what a launcher left in the environment, or `None` when no launcher did.
    ///
    /// The secret comes through the inherited descriptor `UPDRAFT_SECRET_FD`, which is read once
    /// and closed, or from the file `UPDRAFT_SECRET_FILE`, which nobody else may be able to read.
    ///
    /// # Errors
    ///
    /// The variable that is missing or makes no sense, or why there is no secret to be read.
    pub fn from_env() -> Result<Option<Self>, Error> {
        Self::from_variables(env::var_os)
    }

    fn from_variables(
        variable: impl Fn(&'static str) -> Option<OsString>,
    ) -> Result<Option<Self>, Error> {
        let Some(coordinator) = variable("UPDRAFT_COORDINATOR") else {
            return Ok(None);
        };
        let worker: u32 = number("UPDRAFT_WORKER", &variable)?;
        let workers: u32 = number("UPDRAFT_WORKERS", &variable)?;
        if worker >= workers {
            return Err(Error::BadVariable {
                variable: "UPDRAFT_WORKER",
                text: worker.to_string(),
                expected: "less than UPDRAFT_WORKERS",
            });
        }
        Ok(Some(Self {
            worker,
            workers,
            coordinator: text("UPDRAFT_COORDINATOR", coordinator)?,
            secret: secret(&variable)?,
        }))
    }
}

/// The secret read from an inherited descriptor. That descriptor is closed by then, and its number
/// may stand for something else: a second look must not read it again.
static INHERITED: Mutex<Option<(RawFd, Secret)>> = Mutex::new(None);

fn secret(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<Secret, Error> {
    if variable("UPDRAFT_SECRET_FD").is_some() {
        return secret_of_descriptor(number("UPDRAFT_SECRET_FD", &variable)?);
    }
    match variable("UPDRAFT_SECRET_FILE") {
        Some(path) => secret_of_file(PathBuf::from(path)),
        None => Err(Error::MissingVariable {
            variable: "UPDRAFT_SECRET_FD",
        }),
    }
}

fn secret_of_descriptor(descriptor: RawFd) -> Result<Secret, Error> {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    match &*inherited {
        Some((known, secret)) if *known == descriptor => Ok(secret.clone()),
        _ => {
            let secret = take_secret(descriptor)?;
            *inherited = Some((descriptor, secret.clone()));
            Ok(secret)
        }
    }
}

/// Reads the secret from a descriptor this process was born with, and closes it.
fn take_secret(descriptor: RawFd) -> Result<Secret, Error> {
    if descriptor <= 2 {
        return Err(Error::BadVariable {
            variable: "UPDRAFT_SECRET_FD",
            text: descriptor.to_string(),
            expected: "above 2, the standard streams",
        });
    }
    let path = PathBuf::from(format!("/proc/self/fd/{descriptor}"));
    let secret = File::open(&path)
        .and_then(|mut file| read_secret(&mut file))
        .map_err(|source| Error::UnreadableSecret { path, source })?;
    // It was open a moment ago; if it no longer is, there is nothing to close.
    let _ = unistd::close(descriptor);
    Ok(secret)
}

fn secret_of_file(path: PathBuf) -> Result<Secret, Error> {
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, mut file) = match opened {
        Ok(opened) => opened,
        Err(source) => return Err(Error::UnreadableSecret { path, source }),
    };
    let owner = metadata.uid();
    if owner != Uid::effective().as_raw() {
        return exposed(&path, format!("user {owner} owns it"));
    }
    if metadata.mode() & 0o077 != 0 {
        return exposed(
            &path,
            format!("its mode is {:o}, not 600", metadata.mode() & 0o777),
        );
    }
    read_secret(&mut file).map_err(|source| Error::UnreadableSecret { path, source })
}

fn exposed(path: &Path, found: String) -> Result<Secret, Error> {
    Err(Error::ExposedSecret {
        path: path.to_owned(),
        found,
    })
}

/// Reads a secret, and makes sure that it is one: neither shorter nor longer.
fn read_secret(file: &mut impl Read) -> io::Result<Secret> {
    let mut bytes = [0; Secret::BYTES];
    file.read_exact(&mut bytes)?;
    if file.read(&mut [0])? > 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is longer than {} bytes", Secret::BYTES),
        ));
    }
    Ok(Secret::from(bytes))
}

fn number<N: std::str::FromStr>(
    name: &'static str,
    variable: impl Fn(&'static str) -> Option<OsString>,
) -> Result<N, Error> {
    let held = variable(name).ok_or(Error::MissingVariable { variable: name })?;
    let held = text(name, held)?;
    held.parse().map_err(|_| Error::BadVariable {
        variable: name,
        text: held,
        expected: "a number",
    })
}

fn text(name: &'static str, held: OsString) -> Result<String, Error> {
    held.into_string().map_err(|held| Error::BadVariable {
        variable: name,
        text: held.to_string_lossy().into_owned(),
        expected: "UTF-8",
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        io::Write,
        os::{fd::IntoRawFd, unix::fs::PermissionsExt},
    };

    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn read(variables: Variables<'_>) -> Result<Option<Membership>, Error> {
        Membership::from_variables(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    fn with_secret_at(variable: &'static str, at: &str) -> Result<Option<Membership>, Error> {
        read(&[
            ("UPDRAFT_COORDINATOR", "unix:here"),
            ("UPDRAFT_WORKER", "1"),
            ("UPDRAFT_WORKERS", "3"),
            (variable, at),
        ])
    }

    /// What comes of a file with these bytes and this mode.
    fn with_secret_file(bytes: &[u8], mode: u32) -> Result<Option<Membership>, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        with_secret_at("UPDRAFT_SECRET_FILE", file.path().to_str().unwrap())
    }

    #[test]
    fn a_process_that_no_launcher_started_is_in_no_job() {
        assert!(read(&[("UPDRAFT_WORKER", "1")]).unwrap().is_none());
    }

    #[test]
    fn a_secret_is_read_from_an_inherited_descriptor_once_and_kept() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[7; Secret::BYTES]).unwrap();
        drop(writer);
        let descriptor = reader.into_raw_fd().to_string();
        for _ in 0..2 {
            let membership = with_secret_at("UPDRAFT_SECRET_FD", &descriptor)
                .unwrap()
                .unwrap();
            assert_eq!((membership.worker, membership.workers), (1, 3));
            assert_eq!(membership.secret.as_bytes(), &[7; Secret::BYTES]);
        }
    }

    #[test]
    fn a_secret_file_must_be_ours_alone() {
        let own = with_secret_file(&[1; Secret::BYTES], 0o600);
        assert!(own.unwrap().is_some());
        let shared = with_secret_file(&[1; Secret::BYTES], 0o640);
        let error = shared.unwrap_err();
        assert!(error.to_string().contains("640"), "{error}");
    }

    #[test]
    fn a_secret_must_be_as_long_as_one() {
        for length in [0, Secret::BYTES - 1, Secret::BYTES + 1] {
            let error = with_secret_file(&vec![1; length], 0o600).unwrap_err();
            assert!(
                matches!(error, Error::UnreadableSecret { .. }),
                "{length} bytes: {error}"
            );
        }
    }

    #[test]
    fn variables_that_make_no_sense_are_named() {
        let bad: [(Variables<'_>, &str); 4] = [
            (&[], "UPDRAFT_WORKER"),
            (&[("UPDRAFT_WORKER", "one")], "\"one\""),
            (
                &[("UPDRAFT_WORKER", "2"), ("UPDRAFT_WORKERS", "2")],
                "UPDRAFT_WORKERS",
            ),
            (
                &[("UPDRAFT_WORKER", "0"), ("UPDRAFT_WORKERS", "2")],
                "UPDRAFT_SECRET_FD",
            ),
        ];
        for (variables, named) in bad {
            let all = [&[("UPDRAFT_COORDINATOR", "unix:here")], variables].concat();
            let error = read(&all).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
