//! Where a PCI function is.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The address of a PCI function: domain, bus, device and function, as Linux writes it
/// (`0000:18:00.0`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no address of a PCI function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the address of a PCI function: write it as 0000:18:00.0")]
pub struct ParsePciAddressError(String);

impl PciAddress {
    /// The number of its function: 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Domain and bus.
    #[must_use]
    pub const fn bus(self) -> (u32, u8) {
        (self.domain, self.bus)
    }

    /// Domain, bus and device: what all functions of one slot have in common.
    #[must_use]
    pub const fn slot(self) -> (u32, u8, u8) {
        (self.domain, self.bus, self.device)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads `0000:18:00.0`, and `18:00.0` as of domain 0.
impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParsePciAddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    // `from_str_radix` would take a sign too.
    let hex = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        let valid = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        valid.then(|| u32::from_str_radix(text, 16).ok()).flatten()
    };
    let (rest, function) = text.split_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.split_once(':').unwrap_or(("0", rest));
    let address = PciAddress {
        // Domains of virtual host bridges (VMD) have more than four digits.
        domain: hex(domain, 1..=8)?,
        bus: u8::try_from(hex(bus, 2..=2)?).ok()?,
        device: u8::try_from(hex(device, 2..=2)?).ok()?,
        function: u8::try_from(hex(function, 1..=1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

impl TryFrom<String> for PciAddress {
    type Error = ParsePciAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_linux_writes_them() {
        for text in ["0000:18:00.0", "10000:e1:1f.7"] {
            let address: PciAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let short: PciAddress = "18:00.1".parse().unwrap();
        assert_eq!(short.to_string(), "0000:18:00.1");
        assert_eq!((short.slot(), short.function()), ((0, 0x18, 0), 1));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "18",
            "18:00",
            "18:20.0",
            "18:00.8",
            "+8:00.0",
            "../18:00.0",
            "0000:18:00.0/..",
            "0000:0018:00.0",
            "0:0:18:00.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?}");
        }
    }
}
