//! Which links the host forwards from.
//!
//! A host that is no router drops packets for others. Answers to a guest, and connections to its
//! forwarded ports, arrive on the host's own links, so these have to forward while there are VMs.
//! It is switched on for single links, never for the host, and off again after the last VM; a
//! record in the node's runtime folder says which, so that this survives a crash. Links on which
//! we switched it on pass nothing but what concerns VMs ([`crate::ruleset::Set::Uplinks`]), so
//! that the host does not become a router for its neighbours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The links that were switched on.
#[derive(Debug)]
pub struct Forwarding {
    record: PathBuf,
    switched: Vec<String>,
}

impl Forwarding {
    /// With the record in this file, which need not be there.
    #[must_use]
    pub fn open(record: PathBuf) -> Self {
        let text = fs::read_to_string(&record).unwrap_or_default();
        let mut lines = text.lines();
        // What another boot of the host switched on is off.
        let of_this_boot = lines.next().is_some_and(|boot| boot == boot_id());
        let links = lines.filter(|_| of_this_boot).map(str::to_owned);
        Self {
            switched: links.collect(),
            record,
        }
    }

    /// The links that forward for VMs alone: none where the host forwards for others as well.
    #[must_use]
    pub fn for_vms_alone(&self) -> &[String] {
        let everywhere = read("all").is_ok_and(|on| on);
        if everywhere { &[] } else { &self.switched }
    }

    /// Switches it on for those of these links that do not forward. Says whether any did not.
    ///
    /// # Errors
    /// Those of the files.
    pub fn switch_on<'a>(&mut self, links: impl Iterator<Item = &'a str>) -> io::Result<bool> {
        let mut any = false;
        for link in links {
            if read(link)? {
                continue;
            }
            if !self.switched.iter().any(|known| known == link) {
                self.switched.push(link.to_owned());
                let text = [&[boot_id()], &self.switched[..]].concat().join("\n");
                replace(&self.record, &text)?;
            }
            write(link, true)?;
            any = true;
        }
        Ok(any)
    }

    /// Puts back what was switched on, unless the host has become a router for others meanwhile.
    ///
    /// # Errors
    /// Those of the files; a link that is gone is none.
    pub fn put_back(&mut self) -> io::Result<()> {
        let everywhere = read("all").is_ok_and(|on| on);
        for link in self.switched.iter().filter(|_| !everywhere) {
            match write(link, false) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        self.switched.clear();
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// Writes a record whole, whatever ends this process.
pub(crate) fn replace(record: &Path, text: &str) -> io::Result<()> {
    let new = record.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, record)
}

pub(crate) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn file(link: &str) -> PathBuf {
    // A name with a dot is one folder here, as it is for the kernel.
    Path::new("/proc/sys/net/ipv4/conf")
        .join(link)
        .join("forwarding")
}

fn read(link: &str) -> io::Result<bool> {
    Ok(fs::read_to_string(file(link))?.trim() != "0")
}

fn write(link: &str, on: bool) -> io::Result<()> {
    fs::write(file(link), if on { "1" } else { "0" })
}
