//! Values of the configuration, each with what it has to be.

use crate::accounts::is_account_name;
use crate::lambda::{Credential, Secret};
use aleph_executor::Hypervisor;
use aleph_executor::accel::Accelerator;
use aleph_executor::volumes::{BackendChoice, MAX_SIZE, ThinPool};
use aleph_image::oci::Reference;
use aleph_types::{BothWays, InvalidRate, Ipv4Network, MiB, NetworkLimits};
use aleph_vm_networking::Ipv6Config;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

/// What is wrong with a value, or with a part of it.
#[derive(Debug)]
pub(super) struct Fault {
    /// Where in the value, such as `[2]`; empty for the whole.
    pub(super) place: String,
    pub(super) message: String,
}

pub(super) type Parsed<T> = Result<T, Vec<Fault>>;

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            place: String::new(),
            message: message.into(),
        }
    }

    pub(super) fn kind(value: &DeValue<'_>, wanted: &str) -> Self {
        let kind = match value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        Self::new(format!("is {kind}, and has to be {wanted}"))
    }

    pub(super) fn at(mut self, place: &str) -> Self {
        self.place.insert_str(0, place);
        self
    }
}

fn wrong<T>(message: impl Into<String>) -> Parsed<T> {
    Err(vec![Fault::new(message)])
}

fn text<'v>(value: &'v DeValue<'_>, such_as: &str) -> Parsed<&'v str> {
    value
        .as_str()
        .ok_or_else(|| vec![Fault::kind(value, &format!("a string, such as {such_as}"))])
}

pub(super) fn absolute(value: &DeValue<'_>) -> Parsed<PathBuf> {
    let path = PathBuf::from(text(value, "\"/etc/aleph/key.pem\"")?);
    if path.is_absolute() {
        Ok(path)
    } else {
        wrong(format!("{path:?} has to be an absolute path"))
    }
}

pub(super) fn program(value: &DeValue<'_>) -> Parsed<PathBuf> {
    match text(value, "\"qemu-system-x86_64\"")? {
        "" => wrong("has to name a program"),
        name => Ok(name.into()),
    }
}

pub(super) fn boolean(value: &DeValue<'_>) -> Parsed<bool> {
    value
        .as_bool()
        .ok_or_else(|| vec![Fault::kind(value, "true or false")])
}

pub(super) fn pool(value: &DeValue<'_>) -> Parsed<Ipv4Network> {
    let text = text(value, "\"10.0.0.0/16\"")?;
    let network: Ipv4Network = match text.parse() {
        Ok(network) => network,
        Err(error) => return wrong(format!("{error}; write it as 10.0.0.0/16")),
    };
    if network.prefix() > 30 || network.prefix() < 8 {
        return wrong(format!("{network} has to be between a /8 and a /30"));
    }
    Ok(network)
}

pub(super) fn ipv6(value: &DeValue<'_>) -> Parsed<Ipv6Config> {
    let form = "\"auto\", \"off\", \"nat\" or a prefix as \"2001:db8::/56\"";
    let text = text(value, form)?;
    match text.parse() {
        Ok(Ipv6Config::Prefix(prefix)) if prefix.prefix() < 8 => {
            wrong(format!("{prefix} has to be a /8 or longer"))
        }
        Ok(ipv6) => Ok(ipv6),
        Err(error) => wrong(format!("{error}; say {form}")),
    }
}

pub(super) fn bandwidth(value: &DeValue<'_>) -> Parsed<BothWays> {
    rates(value, |rates| {
        NetworkLimits::default().with_bandwidth(rates).check()
    })
}

pub(super) fn packet_rate(value: &DeValue<'_>) -> Parsed<BothWays> {
    rates(value, |rates| {
        NetworkLimits::default().with_packet_rate(rates).check()
    })
}

fn rates(
    value: &DeValue<'_>,
    check: impl FnOnce(BothWays) -> Result<(), InvalidRate>,
) -> Parsed<BothWays> {
    let read = text(value, "\"100M\" or \"sent=10M,received=1G\"")?.parse();
    match read.and_then(|rates| check(rates).map(|()| rates)) {
        Ok(rates) => Ok(rates),
        Err(error) => wrong(format!("{error}; write 100M, or sent=10M,received=1G")),
    }
}

pub(super) fn group(value: &DeValue<'_>) -> Parsed<String> {
    let name = text(value, "\"aleph\"")?;
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(good) {
        return wrong(format!("{name:?} is no name or number of a group"));
    }
    Ok(name.to_owned())
}

pub(super) fn address(value: &DeValue<'_>) -> Parsed<SocketAddr> {
    let text = text(value, "\"127.0.0.1:7400\"")?;
    text.parse().map_err(|_| {
        let why =
            format!("{text:?} is no address with a port, such as 127.0.0.1:7400 or [::1]:7400");
        vec![Fault::new(why)]
    })
}

/// A region as clients write it: `us-east-1`. They build names of hosts of it.
pub(super) fn region(value: &DeValue<'_>) -> Parsed<String> {
    let name = text(value, "\"us-east-1\"")?;
    let parts: Vec<&str> = name.split('-').collect();
    let lower = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    match parts.as_slice() {
        [words @ .., number]
            if words.len() >= 2
                && words.iter().all(lower)
                && matches!(number.as_bytes(), [b'1'..=b'9']) =>
        {
            Ok(name.to_owned())
        }
        _ => wrong(format!("{name:?} is no region, such as us-east-1")),
    }
}

pub(super) fn account_id(value: &DeValue<'_>) -> Parsed<String> {
    let id = text(value, "\"000000000000\"")?;
    if id.len() == 12 && id.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(id.to_owned());
    }
    wrong(format!("{id:?} has to be 12 digits"))
}

/// Keys by which accounts sign.
pub(super) fn credentials(value: &DeValue<'_>) -> Parsed<Vec<Credential>> {
    let form = "{ access_key_id = \"…\", secret_access_key = \"…\", account = \"…\" }";
    let Some(array) = value.as_array() else {
        return Err(vec![Fault::kind(value, &format!("a list of {form}"))]);
    };
    if array.is_empty() {
        return wrong("has to name at least one key; leave it out where there are none");
    }
    let (mut all, mut faults, mut ids) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (n, item) in array.iter().enumerate() {
        let Some(table) = item.get_ref().as_table() else {
            faults.push(Fault::kind(item.get_ref(), form).at(&format!("[{n}]")));
            continue;
        };
        let mut fault = |key: &str, why: String| {
            faults.push(Fault::new(why).at(&format!("[{n}].{key}")));
        };
        let known = ["access_key_id", "secret_access_key", "account"];
        for key in table
            .keys()
            .filter(|key| !known.contains(&&**key.get_ref()))
        {
            fault(key.get_ref(), "there is no such key".into());
        }
        let [id, secret, account] = known.map(|key| match table.get(key) {
            None => {
                fault(key, "is missing".into());
                None
            }
            Some(value) => match value.get_ref().as_str() {
                Some("") => {
                    fault(key, "is empty".into());
                    None
                }
                Some(text) => Some(text.to_owned()),
                None => {
                    fault(key, Fault::kind(value.get_ref(), "a string").message);
                    None
                }
            },
        });
        if let Some(account) = account.as_ref().filter(|account| !is_account_name(account)) {
            fault(
                "account",
                format!("{account:?} cannot be an account's name"),
            );
        }
        let plain = |id: &str| id.bytes().all(|b| b.is_ascii_alphanumeric());
        if let Some(id) = &id {
            if !plain(id) {
                fault(
                    "access_key_id",
                    format!("{id:?} has to be letters and digits"),
                );
            } else if !ids.insert(id.clone()) {
                fault("access_key_id", format!("{id:?} is there twice"));
            }
        }
        if let (Some(id), Some(secret), Some(account)) = (id, secret, account) {
            all.push(Credential {
                access_key_id: id,
                secret_access_key: Secret::new(secret),
                account,
            });
        }
    }
    if faults.is_empty() {
        Ok(all)
    } else {
        Err(faults)
    }
}

pub(super) fn hypervisor(value: &DeValue<'_>) -> Parsed<Hypervisor> {
    text(value, "\"auto\"")?
        .parse()
        .map_err(|why: String| vec![Fault::new(why)])
}

pub(super) fn volume_backend(value: &DeValue<'_>) -> Parsed<BackendChoice> {
    text(value, "\"auto\"")?
        .parse()
        .map_err(|why: String| vec![Fault::new(why)])
}

pub(super) fn thin_pool(value: &DeValue<'_>) -> Parsed<ThinPool> {
    text(value, "\"GROUP/POOL\"")?
        .parse()
        .map_err(|why: String| vec![Fault::new(why)])
}

pub(super) fn accelerator(value: &DeValue<'_>) -> Parsed<Accelerator> {
    text(value, "\"kvm\"")?
        .parse()
        .map_err(|why: String| vec![Fault::new(why)])
}

fn integer(value: &DeValue<'_>) -> Parsed<i128> {
    let Some(integer) = value.as_integer() else {
        return Err(vec![Fault::kind(value, "an integer")]);
    };
    i128::from_str_radix(integer.as_str(), integer.radix())
        .or_else(|_| wrong("is too large a number"))
}

/// A whole number in a range.
pub(super) fn whole<T>(range: RangeInclusive<u32>) -> impl FnOnce(&DeValue<'_>) -> Parsed<T>
where
    T: TryFrom<i128>,
{
    move |value| {
        let number = integer(value)?;
        let inside = (i128::from(*range.start())..=i128::from(*range.end())).contains(&number);
        match T::try_from(number) {
            Ok(number) if inside => Ok(number),
            _ => wrong(format!(
                "is {number}, and has to be between {} and {}",
                range.start(),
                range.end()
            )),
        }
    }
}

pub(super) fn seconds(range: RangeInclusive<u32>) -> impl FnOnce(&DeValue<'_>) -> Parsed<Duration> {
    |value| whole::<u64>(range)(value).map(Duration::from_secs)
}

pub(super) fn ratio(value: &DeValue<'_>) -> Parsed<f64> {
    let number = match value {
        DeValue::Integer(_) => integer(value)?.to_string().parse().ok(),
        DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
        other => return Err(vec![Fault::kind(other, "a number, such as 2.0")]),
    };
    match number {
        Some(number) if (0.01..=1000.0).contains(&number) => Ok(number),
        _ => wrong("has to be between 0.01 and 1000"),
    }
}

pub(super) fn size(value: &DeValue<'_>) -> Parsed<MiB> {
    text(value, "\"512m\"")?
        .parse()
        .map_err(|why: aleph_types::ParseSizeError| vec![Fault::new(why.to_string())])
}

/// The size of a volume: enough for the smallest with ext4 on it.
pub(super) fn volume_size(value: &DeValue<'_>) -> Parsed<MiB> {
    match size(value)? {
        MiB(0..8) => wrong("has to be at least 8m"),
        size if size > MAX_SIZE => wrong("is more than a volume can have"),
        size => Ok(size),
    }
}

/// Memory for guests of functions: enough for the smallest.
pub(super) fn guest_memory(value: &DeValue<'_>) -> Parsed<MiB> {
    match size(value)? {
        MiB(0..128) => wrong("has to be at least 128m"),
        size => Ok(size),
    }
}

pub(super) fn log_bytes(value: &DeValue<'_>) -> Parsed<u64> {
    match size(value)? {
        MiB(0) => wrong("has to be at least 1m"),
        size => Ok(size.bytes()),
    }
}

/// A list of texts that all pass `check`; it gives what is wrong with one.
fn texts(
    value: &DeValue<'_>,
    such_as: &str,
    check: impl Fn(&str) -> Option<String>,
) -> Parsed<Vec<String>> {
    let Some(array) = value.as_array() else {
        let wanted = format!("a list, such as [{such_as}]");
        return Err(vec![Fault::kind(value, &wanted)]);
    };
    let (mut texts, mut faults) = (Vec::new(), Vec::new());
    for (n, item) in array.iter().enumerate() {
        match text(item.get_ref(), such_as) {
            Ok(text) => match check(text) {
                None => texts.push(text.to_owned()),
                Some(why) => faults.push(Fault::new(why).at(&format!("[{n}]"))),
            },
            Err(inner) => faults.extend(inner.into_iter().map(|f| f.at(&format!("[{n}]")))),
        }
    }
    if faults.is_empty() {
        Ok(texts)
    } else {
        Err(faults)
    }
}

fn no_registry(name: &str) -> Option<String> {
    let bad = name.is_empty() || name.contains(['/', ' ', '@']);
    bad.then(|| format!("{name:?} is no registry: write its host and port, such as host:5000"))
}

/// Files that are all named from the root.
pub(super) fn files(value: &DeValue<'_>) -> Parsed<Vec<PathBuf>> {
    let such_as = "\"/etc/aleph/registry.pem\"";
    let relative = |path: &str| {
        let bad = !path.starts_with('/');
        bad.then(|| format!("{path:?} has to be an absolute path"))
    };
    let paths = texts(value, such_as, relative)?;
    Ok(paths.into_iter().map(PathBuf::from).collect())
}

/// Registries as references name them: `docker.io`, and not another name of it.
pub(super) fn named_registries(value: &DeValue<'_>) -> Parsed<Vec<String>> {
    texts(value, "\"docker.io\"", |name| {
        let image = format!("{name}/a/b").parse::<Reference>();
        match image {
            Ok(image) if image.registry() == name => None,
            Ok(image) if name.contains('.') => {
                Some(format!("{name:?} is written {:?}", image.registry()))
            }
            _ => Some(format!(
                "{name:?} is no registry: write its host, such as docker.io, with its port"
            )),
        }
    })
}

pub(super) fn registries(value: &DeValue<'_>) -> Parsed<Vec<String>> {
    texts(value, "\"registry.local:5000\"", no_registry)
}

pub(super) fn mirrors(value: &DeValue<'_>) -> Parsed<BTreeMap<String, Vec<String>>> {
    let Some(table) = value.as_table() else {
        let wanted = "a table, such as { \"docker.io\" = [\"http://127.0.0.1:5000\"] }";
        return Err(vec![Fault::kind(value, wanted)]);
    };
    let no_url = |url: &str| {
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"));
        let bad = rest.is_none_or(|rest| rest.is_empty() || rest.contains(' '));
        bad.then(|| format!("{url:?} is no URL that begins with http:// or https://"))
    };
    let (mut mirrors, mut faults) = (BTreeMap::new(), Vec::new());
    for (key, value) in table {
        let name = key.get_ref();
        let place = format!(".{name:?}");
        faults.extend(no_registry(name).map(|why| Fault::new(why).at(&place)));
        match texts(value.get_ref(), "\"http://127.0.0.1:5000\"", no_url) {
            Ok(urls) => drop(mirrors.insert(name.to_string(), urls)),
            Err(inner) => faults.extend(inner.into_iter().map(|f| f.at(&place))),
        }
    }
    if faults.is_empty() {
        Ok(mirrors)
    } else {
        Err(faults)
    }
}
