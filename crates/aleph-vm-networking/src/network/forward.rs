//! When the host forwards, and what it forwards for VMs alone.

use super::{State, is_group};
use crate::NetworkError;
use crate::link::Link;
use crate::nft::Change;
use crate::ruleset::{Element, Set, alone, link};

impl State {
    /// Lets the host's own links forward while there are VMs.
    pub(super) fn forward(&mut self) -> Result<(), NetworkError> {
        if !self.vms.values().any(|vm| vm.attached) {
            return Ok(());
        }
        let at = || NetworkError::at("forward packets");
        let links = self.links.all().map_err(at())?;
        let routes = self.links.routes().map_err(at())?;
        let has_route = |link: &&Link| routes.iter().any(|route| route.link == link.index);
        let own = self.own(&links);
        let own = own.into_iter().filter(has_route);
        self.forwarding
            .switch_on(own.map(|link| link.name.as_str()))
            .map_err(at())?;
        // The rules first: IPv6 is switched for all links at once.
        self.part_links(&links)?;
        if self.ipv6.is_some() {
            self.forwarding6.switch_on().map_err(at())?;
        }
        Ok(())
    }

    /// Puts back what was switched on, where no other node of this host has VMs: it found it on,
    /// and knows nothing of who switched it.
    pub(super) fn stop_forwarding(&mut self) -> Result<(), NetworkError> {
        let links = self
            .links
            .all()
            .map_err(NetworkError::at("list the links"))?;
        let of_another = |link: &Link| {
            link.name.starts_with("tap-") && link.group & !1 != self.group && is_group(link.group)
        };
        if links.iter().any(of_another) {
            return Ok(());
        }
        let done = self.forwarding.put_back();
        done.and(self.forwarding6.put_back())
            .map_err(NetworkError::at("stop forwarding"))?;
        self.part_links(&links)
    }

    /// What the rules say of links: from which of them the host forwards for VMs alone.
    pub(super) fn parted(&self, links: &[Link]) -> Result<Vec<Element>, NetworkError> {
        let v4 = self.forwarding.for_vms_alone().iter();
        let mut elements: Vec<Element> = v4.map(|name| link(Set::Uplinks, name)).collect();
        if self.ipv6.is_none() {
            return Ok(elements);
        }
        let at = || NetworkError::at("forward packets");
        if self.forwarding6.is_for_vms_alone().map_err(at())? {
            elements.push(alone());
            let own = self.own(links);
            let routers = self
                .forwarding6
                .routers(own.into_iter().map(|link| &link.name[..]));
            let routers = routers.map_err(at())?.into_iter();
            elements.extend(routers.map(|name| link(Set::Routers6, name)));
        }
        Ok(elements)
    }

    fn part_links(&mut self, links: &[Link]) -> Result<(), NetworkError> {
        let wanted = self.parted(links)?;
        if wanted == self.uplinks {
            return Ok(());
        }
        let change = Change {
            flush: false,
            remove: self.uplinks.clone(),
            add: wanted.clone(),
        };
        match self.rules.change(&change) {
            // They are gone with the tables, and come back with them.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            done => done.map_err(NetworkError::at("change the firewall"))?,
        }
        self.uplinks = wanted;
        Ok(())
    }

    /// The host's own links: neither this node's TAPs nor those of another.
    fn own<'a>(&self, links: &'a [Link]) -> Vec<&'a Link> {
        let of_node = |group: u32| group & !1 == self.group || is_group(group & !1);
        let own = links.iter().filter(|link| !of_node(link.group));
        own.filter(|link| link.name != "lo").collect()
    }
}
