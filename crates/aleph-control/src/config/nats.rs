//! `[functions] nats`: the servers whose messages functions may get.

use super::value::{Fault, Parsed};
use crate::accounts::is_account_name;
use crate::lambda::{NatsServer, normal_nats_server};
use std::collections::BTreeSet;
use std::path::PathBuf;
use toml::Value;
use toml::de::DeValue;

const FORM: &str = "{ server = \"127.0.0.1:4222\" }";
const KEYS: [&str; 7] = [
    "server",
    "credentials",
    "tls",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "accounts",
];

/// Reads the list, with all that is wrong with it.
pub(super) fn servers(value: &DeValue<'_>) -> Parsed<Vec<NatsServer>> {
    let Some(array) = value.as_array() else {
        return Err(vec![Fault::kind(value, &format!("a list of {FORM}"))]);
    };
    let (mut all, mut faults, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (n, item) in array.iter().enumerate() {
        let mut found = Vec::new();
        let server = server(item.get_ref(), &mut found);
        let name = normal_nats_server(&server.server);
        if found.is_empty() && name.is_some_and(|name| !names.insert(name)) {
            found.push(Fault::new(format!("{:?} is there twice", server.server)).at(".server"));
        }
        let place = format!("[{n}]");
        faults.extend(found.into_iter().map(|fault| fault.at(&place)));
        all.push(server);
    }
    if faults.is_empty() {
        Ok(all)
    } else {
        Err(faults)
    }
}

fn server(value: &DeValue<'_>, faults: &mut Vec<Fault>) -> NatsServer {
    let mut server = NatsServer::default();
    let Some(table) = value.as_table() else {
        faults.push(Fault::kind(value, FORM));
        return server;
    };
    let (mut certificate, mut key) = (None, None);
    for (name, value) in table {
        let (name, value) = (&**name.get_ref(), value.get_ref());
        let path = |to: &mut Option<PathBuf>| match value.as_str() {
            Some(text) if text.starts_with('/') => {
                *to = Some(text.into());
                Ok(())
            }
            Some(text) => Err(Fault::new(format!("{text:?} has to be an absolute path"))),
            None => Err(Fault::kind(
                value,
                "a path, such as \"/etc/aleph/nats.creds\"",
            )),
        };
        let read = match name {
            "server" => match value.as_str() {
                Some(text) if normal_nats_server(text).is_some() => {
                    server.server = text.to_owned();
                    Ok(())
                }
                Some(text) => Err(Fault::new(format!(
                    "{text:?} is no server: write its host and port, such as 127.0.0.1:4222"
                ))),
                None => Err(Fault::kind(value, "a server, such as \"127.0.0.1:4222\"")),
            },
            "credentials" => path(&mut server.credentials),
            "tls" => match value.as_bool() {
                Some(tls) => {
                    server.tls = tls;
                    Ok(())
                }
                None => Err(Fault::kind(value, "true or false")),
            },
            "tls_ca" => path(&mut server.tls_ca),
            "tls_cert" => path(&mut certificate),
            "tls_key" => path(&mut key),
            "accounts" => accounts(value).map(|accounts| server.accounts = accounts),
            _ => Err(Fault::new("there is no such key")),
        };
        faults.extend(read.err().map(|fault| fault.at(&format!(".{name}"))));
    }
    if !table.keys().any(|key| &**key.get_ref() == KEYS[0]) {
        faults.push(Fault::new("is missing").at(".server"));
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => server.tls_cert = Some((certificate, key)),
        (Some(_), None) => faults.push(Fault::new("goes with tls_key").at(".tls_cert")),
        (None, Some(_)) => faults.push(Fault::new("goes with tls_cert").at(".tls_key")),
        (None, None) => {}
    }
    server
}

fn accounts(value: &DeValue<'_>) -> Result<Vec<String>, Fault> {
    let wanted = "a list of accounts, such as [\"default\"]";
    let array = value.as_array().ok_or_else(|| Fault::kind(value, wanted))?;
    if array.is_empty() {
        return Err(Fault::new(
            "has to name at least one account; leave it out where all may",
        ));
    }
    let name = |item: &DeValue<'_>| {
        let text = item.as_str().ok_or_else(|| Fault::kind(item, wanted))?;
        match is_account_name(text) {
            true => Ok(text.to_owned()),
            false => Err(Fault::new(format!("{text:?} cannot be an account's name"))),
        }
    };
    array.iter().map(|item| name(item.get_ref())).collect()
}

/// The list as it is written.
pub(super) fn shown(servers: &[NatsServer]) -> Value {
    let text = |text: &str| Value::String(text.to_owned());
    let one = |server: &NatsServer| {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| text(&path.to_string_lossy()));
        let certificate = server.tls_cert.as_ref();
        let accounts = server
            .accounts
            .iter()
            .map(|account| text(account))
            .collect();
        let values = [
            Some(text(&server.server)),
            path(&server.credentials),
            server.tls.then_some(Value::Boolean(true)),
            path(&server.tls_ca),
            path(&certificate.map(|pair| pair.0.clone())),
            path(&certificate.map(|pair| pair.1.clone())),
            (!server.accounts.is_empty()).then_some(Value::Array(accounts)),
        ];
        let pairs = KEYS.iter().zip(values);
        let pairs = pairs.filter_map(|(key, value)| Some(((*key).to_owned(), value?)));
        Value::Table(pairs.collect())
    };
    Value::Array(servers.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn servers_are_read_and_shown() {
        let text = "[functions]\nnats = [{ server = '127.0.0.1:4222' }, { server = \
                    'tls://nats.example.org', credentials = '/a.creds', tls = true, tls_ca = \
                    '/ca.pem', tls_cert = '/c.pem', tls_key = '/k.pem', accounts = ['team'] }]";
        let config = Config::check(text).unwrap();
        let [first, second] = &config.functions.nats[..] else {
            panic!("two servers")
        };
        assert_eq!(first.server, "127.0.0.1:4222");
        assert!(first.credentials.is_none() && !first.tls);
        assert_eq!(second.accounts, ["team"]);
        let shown = toml::to_string(&config.table()).unwrap();
        assert_eq!(Config::check(&shown), Ok(config), "{shown}");
    }

    #[test]
    fn each_mistake_has_its_place() {
        for (list, path) in [
            ("1", "functions.nats"),
            ("['127.0.0.1:4222']", "functions.nats[0]"),
            ("[{}]", "functions.nats[0].server"),
            ("[{ server = 'a b' }]", "functions.nats[0].server"),
            (
                "[{ server = 'a' }, { server = 'nats://A:4222' }]",
                "functions.nats[1].server",
            ),
            ("[{ server = 'a', x = 1 }]", "functions.nats[0].x"),
            ("[{ server = 'a', tls = 'yes' }]", "functions.nats[0].tls"),
            (
                "[{ server = 'a', credentials = 'b' }]",
                "functions.nats[0].credentials",
            ),
            (
                "[{ server = 'a', tls_cert = '/b' }]",
                "functions.nats[0].tls_cert",
            ),
            (
                "[{ server = 'a', accounts = [] }]",
                "functions.nats[0].accounts",
            ),
            (
                "[{ server = 'a', accounts = ['No'] }]",
                "functions.nats[0].accounts",
            ),
        ] {
            let problems = Config::check(&format!("[functions]\nnats = {list}")).unwrap_err();
            assert_eq!(problems[0].path, path, "{list}: {problems:?}");
        }
    }
}
