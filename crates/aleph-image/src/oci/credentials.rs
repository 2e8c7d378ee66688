//! Logins for registries, from docker's configuration file and its helper programs.

use super::error::{CredentialError, RegistryError};
use super::reference::DOCKER_HUB;
use super::registries::Registries;
use crate::program::{Program, ProgramError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The key that docker keeps Docker Hub's login under.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The name that a helper gives where the secret is a token.
const TOKEN_USER: &str = "<token>";
const LARGEST_FILE: u64 = 1 << 20;
/// A helper may have to ask a service of its own.
const HELPER_LIMIT: Duration = Duration::from_secs(30);

/// How to log in to a registry. Debug output does not show secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password, or an access token in a password's place.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that the registry's token service takes for one of its own (OAuth 2's refresh
    /// token).
    Identity(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user:?})"),
            Self::Identity(_) => f.write_str("Identity"),
        }
    }
}

/// `config.json`: what we use of it.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The login for `host`, if there is one. Blocks: it reads a file and may run a program.
pub(crate) fn login(registries: &Registries, host: &str) -> Result<Option<Login>, RegistryError> {
    if registries.anonymous {
        return Ok(None);
    }
    if let Some(login) = registries.logins.get(host) {
        return Ok(Some(login.clone()));
    }
    let (path, named) = match &registries.docker_config {
        Some(path) => (path.clone(), true),
        None => match usual_place(
            |name| std::env::var_os(name),
            rustix::process::geteuid().is_root(),
        ) {
            Some(path) => (path, false),
            None => return Ok(None),
        },
    };
    let refused = |source| RegistryError::Credentials {
        path: path.clone(),
        source,
    };
    let text = match read(&path) {
        Err(CredentialError::Read(error)) if error.kind() == ErrorKind::NotFound && !named => {
            return Ok(None);
        }
        other => other.map_err(refused)?,
    };
    let config: DockerConfig =
        serde_json::from_slice(&text).map_err(|error| refused(CredentialError::Json(error)))?;
    config.login(host).map_err(refused)
}

fn usual_place(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    let folder = |name| {
        variable(name)
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
    };
    if let Some(folder) = folder("DOCKER_CONFIG") {
        return Some(folder.join("config.json"));
    }
    // systemd gives services of root no home.
    let home = folder("HOME").or_else(|| is_root.then(|| "/root".into()))?;
    Some(home.join(".docker/config.json"))
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST_FILE).read_to_end(&mut text))
        .map_err(CredentialError::Read)?;
    Ok(text)
}

impl DockerConfig {
    fn login(&self, host: &str) -> Result<Option<Login>, CredentialError> {
        let same = |key: &&String| host_of(key) == host;
        let helper = self.cred_helpers.keys().find(same);
        let helper = helper.map(|key| &self.cred_helpers[key]);
        if let Some(name) = helper.or(self.creds_store.as_ref()) {
            // Docker asks the file next when a helper knows nothing.
            if let Some(login) = ask(name, server_of(host))? {
                return Ok(Some(login));
            }
        }
        match self.auths.keys().find(same) {
            Some(key) => self.auths[key].login(key),
            None => Ok(None),
        }
    }
}

impl Auth {
    fn login(&self, key: &str) -> Result<Option<Login>, CredentialError> {
        let present = |text: &&String| !text.is_empty();
        if let Some(token) = self.identitytoken.as_ref().filter(present) {
            return Ok(Some(Login::Identity(token.clone())));
        }
        if let Some(auth) = self.auth.as_ref().filter(present) {
            let decoded = STANDARD.decode(auth.trim()).ok();
            let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = text.as_deref().and_then(|text| text.split_once(':'));
            let (user, password) = pair.ok_or_else(|| CredentialError::Auth {
                key: key.to_owned(),
            })?;
            return Ok(Some(Login::Password {
                user: user.to_owned(),
                password: password.trim_end_matches('\0').to_owned(),
            }));
        }
        Ok(match (&self.username, &self.password) {
            (Some(user), Some(password)) if !user.is_empty() => Some(Login::Password {
                user: user.clone(),
                password: password.clone(),
            }),
            _ => None,
        })
    }
}

/// Finds the program `docker-credential-NAME` and asks it.
fn ask(name: &str, server: &str) -> Result<Option<Login>, CredentialError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(CredentialError::HelperName {
            name: name.to_owned(),
        });
    }
    let program = format!("docker-credential-{name}");
    let package = "golang-docker-credential-helpers";
    match Program::find(&program, package, HELPER_LIMIT) {
        Ok(program) => get(program, server),
        Err(source) => Err(CredentialError::Helper(source)),
    }
}

/// Speaks the protocol of docker-credential-helpers.
fn get(program: Program, server: &str) -> Result<Option<Login>, CredentialError> {
    let mut answer = Vec::new();
    let ended = program
        .arg("get")
        .input(server.as_bytes())
        .and_then(|program| {
            program.stream(|stdout| {
                // What cannot be read is no valid answer.
                let _ = stdout.take(LARGEST_FILE).read_to_end(&mut answer);
                Ok::<_, ProgramError>(())
            })
        });
    match ended {
        Ok(()) => {}
        // It says so on standard output, and fails.
        Err(ProgramError::Failed { .. })
            if String::from_utf8_lossy(&answer).contains("credentials not found") =>
        {
            return Ok(None);
        }
        Err(source) => return Err(CredentialError::Helper(source)),
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(CredentialError::Answer)?;
    Ok(Some(if answer.username == TOKEN_USER {
        Login::Identity(answer.secret)
    } else {
        Login::Password {
            user: answer.username,
            password: answer.secret,
        }
    }))
}

/// The host that a key of the file means: it may be a whole address.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest);
    match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

/// What a helper is asked for.
fn server_of(host: &str) -> &str {
    if host == DOCKER_HUB {
        DOCKER_HUB_KEY
    } else {
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::Classify;
    use std::os::unix::fs::PermissionsExt;

    fn stored(text: &str, host: &str) -> Result<Option<Login>, RegistryError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let registries = Registries {
            docker_config: Some(file.path().to_owned()),
            ..Registries::default()
        };
        login(&registries, host)
    }

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password {
            user: user.into(),
            password: password.into(),
        })
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        let text = r#"{"HttpHeaders": {}, "auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
            "a.example:5000": {"username": "u", "password": "p"},
            "https://b.example": {"auth": "eDp5", "identitytoken": "t"},
            "c.example": {}
        }}"#;
        assert_eq!(
            stored(text, "docker.io").unwrap(),
            password("user", "pa:ss")
        );
        assert_eq!(stored(text, "a.example:5000").unwrap(), password("u", "p"));
        assert_eq!(
            stored(text, "b.example").unwrap(),
            Some(Login::Identity("t".into()))
        );
        for none in ["c.example", "a.example", "d.example"] {
            assert_eq!(stored(text, none).unwrap(), None);
        }
        assert!(!format!("{:?}", password("u", "hidden")).contains("hidden"));
    }

    #[test]
    fn the_file_is_where_docker_has_it_and_without_a_home_where_root_has_it() {
        for (docker, home, is_root, expected) in [
            (Some("/d"), Some("/h"), true, Some("/d/config.json")),
            (Some(""), Some("/h"), true, Some("/h/.docker/config.json")),
            (None, None, true, Some("/root/.docker/config.json")),
            (None, Some(""), true, Some("/root/.docker/config.json")),
            (None, None, false, None),
        ] {
            let variable = |name: &str| match name {
                "DOCKER_CONFIG" => docker.map(Into::into),
                "HOME" => home.map(Into::into),
                _ => None,
            };
            let place = usual_place(variable, is_root);
            assert_eq!(place, expected.map(Into::into), "{docker:?} {home:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said() {
        for (text, why) in [
            ("{", "it is not valid JSON"),
            (
                r#"{"auths": {"a.b": {"auth": "?"}}}"#,
                "the login of \"a.b\" cannot be read",
            ),
            (
                r#"{"credsStore": "../sh"}"#,
                "cannot be a credential helper's name",
            ),
            (
                r#"{"credsStore": "no-such-one"}"#,
                "the program docker-credential-no-such-one is not installed",
            ),
        ] {
            let error = stored(text, "a.b").unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(why), "{source}");
            assert_eq!(error.code(), "registry_credentials");
        }
        let registries = Registries {
            docker_config: Some("/no/such/file".into()),
            ..Registries::default()
        };
        assert!(login(&registries, "a.b").is_err());
    }

    #[test]
    fn a_helper_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let helper = folder.path().join("docker-credential-x");
        let script = "#!/bin/sh\nread host\ncase $host in\n\
            a.b) echo '{\"Username\": \"u\", \"Secret\": \"p\"}';;\n\
            c.d) echo '{\"Username\": \"<token>\", \"Secret\": \"t\"}';;\n\
            e.f) echo 'credentials not found in native keychain'; exit 1;;\n\
            i.j) echo what;;\n\
            *) echo broken; exit 1;; esac\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let asked = |server: &str| get(Program::at(&helper, "helper", HELPER_LIMIT), server);
        assert_eq!(asked("a.b").unwrap(), password("u", "p"));
        assert_eq!(asked("c.d").unwrap(), Some(Login::Identity("t".into())));
        assert_eq!(asked("e.f").unwrap(), None);
        assert!(matches!(asked("g.h"), Err(CredentialError::Helper(_))));
        assert!(matches!(asked("i.j"), Err(CredentialError::Answer(_))));
    }
}
