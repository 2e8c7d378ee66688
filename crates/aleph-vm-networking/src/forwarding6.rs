//! IPv6 forwarding of the host.
//!
//! Unlike with IPv4, the kernel knows no forwarding of single links: one setting of the host
//! (`net.ipv6.conf.all.forwarding`) decides, and switching it on makes every link a router's: one
//! that hears no router advertisements any more and whose default routes go. So all that is put
//! back at once, link by link; what is left is a host that forwards, whose links are what they
//! were. Those that are no router's pass nothing but what concerns VMs
//! ([`crate::ruleset::Set::Alone`]). A record in the node's runtime folder says that it was
//! switched on, so that this survives a crash.
//!
//! Whoever makes the host a router meanwhile switches every link and those to come; then nothing
//! is put back, and nothing is dropped any more.

use crate::forwarding::{boot_id, replace};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whether the host was made to forward.
#[derive(Debug)]
pub struct Forwarding6 {
    record: PathBuf,
    is_on: bool,
    /// Whether links to come were to forward even then.
    was_for_all: bool,
    /// Settings of links that are to be put back: in the record for as long as they are not.
    unsettled: Vec<Setting>,
}

/// A link, one of its settings, and the value.
type Setting = (String, String, String);

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// In the record: links to come forwarded before.
const FOR_ALL: &str = "for-all";

impl Forwarding6 {
    /// With the record in this file, which need not be there.
    #[must_use]
    pub fn open(record: PathBuf) -> Self {
        let text = fs::read_to_string(&record).unwrap_or_default();
        let mut lines = text.lines();
        // What another boot of the host switched on is off.
        let mut first = lines.next().unwrap_or_default().split(' ');
        let is_on = first.next() == Some(&boot_id());
        let unsettled = lines.filter_map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            Some((words.next()?, words.next()?, words.next()?))
        });
        Self {
            unsettled: unsettled.filter(|_| is_on).collect(),
            was_for_all: first.next() == Some(FOR_ALL),
            is_on,
            record,
        }
    }

    /// Whether this host has IPv6 at all.
    #[must_use]
    pub fn is_possible() -> bool {
        Path::new(SETTINGS).exists()
    }

    /// Whether the host forwards for VMs alone, or would if it were switched on now.
    ///
    /// # Errors
    /// Those of the files.
    pub fn is_for_vms_alone(&self) -> io::Result<bool> {
        match self.is_on {
            true => Ok(!self.has_become_router()?),
            false => Ok(read("all", "forwarding")?.is_some_and(|value| value == "0")),
        }
    }

    /// Those of these links that are a router's all the same.
    ///
    /// # Errors
    /// Those of the files.
    pub fn routers<'a>(&self, links: impl Iterator<Item = &'a str>) -> io::Result<Vec<&'a str>> {
        let mut routers = Vec::new();
        for link in links {
            // One that is gone forwards nothing.
            if read(link, "forwarding")?.is_some_and(|value| value != "0") {
                routers.push(link);
            }
        }
        Ok(routers)
    }

    /// Whether somebody has switched it on for links to come, which we left as it was.
    fn has_become_router(&self) -> io::Result<bool> {
        let settled = self.unsettled.is_empty() && !self.was_for_all;
        Ok(settled && read("default", "forwarding")?.is_some_and(|value| value != "0"))
    }

    /// Makes the host forward, unless it does.
    ///
    /// # Errors
    /// Those of the files.
    pub fn switch_on(&mut self) -> io::Result<()> {
        if !self.unsettled.is_empty() {
            self.settle()?;
        }
        if read("all", "forwarding")?.is_some_and(|value| value != "0") {
            return Ok(());
        }
        let advertised = links("accept_ra")?.into_iter();
        let advertised: Vec<Setting> = advertised.filter(|(_, _, value)| value == "1").collect();
        self.is_on = true;
        self.was_for_all = read("default", "forwarding")?.is_some_and(|value| value != "0");
        self.unsettled = [links("forwarding")?, advertised.clone()].concat();
        self.write_record()?;
        // Routes that a router advertised stay where advertisements are heard in any case.
        for (link, setting, _) in &advertised {
            write(link, setting, "2")?;
        }
        write("all", "forwarding", "1")?;
        self.settle()
    }

    /// Gives the links what they had.
    fn settle(&mut self) -> io::Result<()> {
        for (link, setting, value) in &self.unsettled {
            write(link, setting, value)?;
        }
        self.unsettled.clear();
        self.write_record()
    }

    fn write_record(&self) -> io::Result<()> {
        let lines = self.unsettled.iter().map(|(link, setting, value)| {
            // No name of a link has a space.
            format!("{link} {setting} {value}\n")
        });
        let for_all = if self.was_for_all { FOR_ALL } else { "" };
        let first = format!("{} {for_all}\n", boot_id());
        let text: String = std::iter::once(first).chain(lines).collect();
        replace(&self.record, &text)
    }

    /// Puts back what was switched on.
    ///
    /// # Errors
    /// Those of the files.
    pub fn put_back(&mut self) -> io::Result<()> {
        if self.is_on && !self.unsettled.is_empty() {
            self.settle()?;
        }
        if self.is_on && !self.has_become_router()? {
            // It is switched off for every link.
            self.unsettled = links("forwarding")?;
            self.write_record()?;
            write("all", "forwarding", "0")?;
            self.settle()?;
        }
        self.is_on = false;
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// A setting of every link, and of those to come.
fn links(setting: &str) -> io::Result<Vec<Setting>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(SETTINGS)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == "all" {
            continue;
        }
        if let Some(value) = read(&name, setting)? {
            found.push((name, setting.to_owned(), value));
        }
    }
    Ok(found)
}

fn read(link: &str, setting: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(Path::new(SETTINGS).join(link).join(setting)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => Ok(Some(text?.trim().to_owned())),
    }
}

/// A link that is gone is no error.
fn write(link: &str, setting: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new(SETTINGS).join(link).join(setting), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
