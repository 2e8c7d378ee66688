//! The NUMA nodes of a full VM.

use crate::{InvalidJob, MiB, ParseSizeError, Topology};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Nodes of one machine.
const MAX_NODES: usize = 64;
/// Processors are numbered below it.
const MOST_CPUS: u16 = 1024;

/// A part of a full VM whose processors are near its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NumaNode {
    /// Its processors, such as `0-3` or `0,2`, of those that the VM can ever have. They are numbered thread by
    /// thread, core by core and socket by socket.
    pub cpus: CpuList,
    /// Its memory.
    pub memory: MiB,
}

/// Processors by number, written as Linux does: `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuList(BTreeSet<u16>);

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for CpuList {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::{ObjectBuilder, Type};
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("Processors by number, such as 0-3,8."))
            .pattern(Some(
                "^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$",
            ))
            .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for CpuList {}

impl CpuList {
    /// Their numbers, the lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<u16> for CpuList {
    fn from_iter<I: IntoIterator<Item = u16>>(numbers: I) -> Self {
        Self(numbers.into_iter().collect())
    }
}

/// A text that is no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNumaNodeError {
    /// No list of processors.
    #[error("{0:?} is no list of processors: write their numbers, from 0 to 1023, such as 0-3,8")]
    Cpus(String),
    /// Not two parts.
    #[error("{0:?} is no NUMA node: write its processors and its memory, such as 0-3:2g")]
    Form(String),
    /// Not an amount of memory.
    #[error(transparent)]
    Memory(#[from] ParseSizeError),
}

impl FromStr for CpuList {
    type Err = ParseNumaNodeError;

    fn from_str(text: &str) -> Result<Self, ParseNumaNodeError> {
        let bad = || ParseNumaNodeError::Cpus(text.to_owned());
        let number = |word: &str| {
            let is_plain =
                (1..=4).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_digit());
            let number = word.parse::<u16>().ok().filter(|_| is_plain);
            number.filter(|n| *n < MOST_CPUS).ok_or_else(bad)
        };
        let mut numbers = BTreeSet::new();
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }
}

impl TryFrom<String> for CpuList {
    type Error = ParseNumaNodeError;

    fn try_from(text: String) -> Result<Self, ParseNumaNodeError> {
        text.parse()
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for n in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == n => *last = n,
                _ => ranges.push((n, n)),
            }
        }
        let ranges = ranges.into_iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        f.write_str(&ranges.collect::<Vec<_>>().join(","))
    }
}

/// Reads `CPUS:MEMORY`.
///
/// ```
/// # use aleph_types::{MiB, NumaNode};
/// let node: NumaNode = "0-1,4:2g".parse()?;
/// assert_eq!(node.cpus.iter().collect::<Vec<_>>(), [0, 1, 4]);
/// assert_eq!(node.memory, MiB(2048));
/// # Ok::<(), aleph_types::ParseNumaNodeError>(())
/// ```
impl FromStr for NumaNode {
    type Err = ParseNumaNodeError;

    fn from_str(text: &str) -> Result<Self, ParseNumaNodeError> {
        let form = || ParseNumaNodeError::Form(text.to_owned());
        let (cpus, memory) = text.split_once(':').ok_or_else(form)?;
        Ok(Self {
            cpus: cpus.parse()?,
            memory: memory.parse()?,
        })
    }
}

/// Checks the nodes of a machine, if it has some. `cpus` is what it can ever have, `memory` what it has, in
/// pages of so much; `room` is the memory that it may get while it runs.
pub(crate) fn check(
    nodes: &[NumaNode],
    topology: Option<Topology>,
    cpus: u32,
    (memory, page, room): (MiB, MiB, MiB),
) -> Result<(), InvalidJob> {
    let bad = |why| {
        let field = "machine.numa";
        Err(InvalidJob::Machine { field, why })
    };
    if nodes.is_empty() {
        return Ok(());
    }
    if nodes.len() > MAX_NODES {
        return bad("has more than 64 nodes");
    }
    let mut all: Vec<u16> = nodes.iter().flat_map(|node| node.cpus.iter()).collect();
    all.sort_unstable();
    if nodes.iter().any(|node| node.cpus.0.is_empty())
        || !all.into_iter().map(u32::from).eq(0..cpus)
    {
        return bad("does not have each processor of the VM, room included, in one node");
    }
    let sum: u64 = nodes.iter().map(|node| u64::from(node.memory.0)).sum();
    if sum != u64::from(memory.0) {
        return bad("does not add up to the memory of the VM, which stays as it was made");
    }
    // What is plugged in is in no node that the next start could have it in.
    if room.0 > 0 {
        return bad("is for a VM whose memory does not grow: leave machine.room.memory out");
    }
    let is_whole = |node: &NumaNode| node.memory.0 > 0 && node.memory.0.is_multiple_of(page.0);
    if !nodes.iter().all(is_whole) {
        return bad("has a node without memory, or one that is no number of its huge pages");
    }
    let threads = topology.map_or(1, |topology| topology.threads);
    let core = |cpu: u16| cpu / threads.max(1);
    let cores = |node: &NumaNode| node.cpus.iter().map(core).collect::<BTreeSet<_>>().len();
    let parts: usize = nodes.iter().map(cores).sum();
    if parts * usize::from(threads) != usize::try_from(cpus).unwrap_or(usize::MAX) {
        return bad("parts the threads of a core");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CloudInitSpec, HugePages, JobSpec, MachineSpec, Mode};

    #[test]
    fn lists_of_processors_are_those_of_linux() {
        for (text, numbers, shown) in [
            ("0", &[0][..], "0"),
            ("0-3", &[0, 1, 2, 3], "0-3"),
            ("3,1,0-1,7", &[0, 1, 3, 7], "0-1,3,7"),
            ("1023", &[1023], "1023"),
        ] {
            let list: CpuList = text.parse().unwrap();
            assert!(list.iter().eq(numbers.iter().copied()), "{text}");
            assert_eq!(list.to_string(), shown);
            let json = serde_json::to_string(&list).unwrap();
            assert_eq!(serde_json::from_str::<CpuList>(&json).unwrap(), list);
        }
        for bad in [
            "", ",", "0,", "-", "0-", "-1", "1-0", "0-1-2", "1024", "0-65535", "00000", "+1", " 1",
            "a",
        ] {
            assert!(bad.parse::<CpuList>().is_err(), "{bad:?}");
        }
        for bad in ["", "0", "0:", ":1g", "0-1:x", "0:1g:2"] {
            assert!(bad.parse::<NumaNode>().is_err(), "{bad:?}");
        }
    }

    fn vm(nodes: &[&str]) -> JobSpec {
        let mut job = JobSpec::new("debian", Vec::new());
        (job.mode, job.cloud_init) = (Mode::Vm, Some(CloudInitSpec::default()));
        (job.resources.cpus, job.resources.memory) = (4, MiB(1024));
        job.machine = Some(MachineSpec {
            numa: nodes.iter().map(|node| node.parse().unwrap()).collect(),
            ..MachineSpec::default()
        });
        job
    }

    #[test]
    fn nodes_have_all_that_the_machine_has() {
        for nodes in [
            &[][..],
            &["0-3:1g"],
            &["0-1:512m", "2-3:512m"],
            &["3:1000m", "0-2:24m"],
        ] {
            assert_eq!(vm(nodes).validate(), Ok(()), "{nodes:?}");
        }
        let why = |job: &JobSpec| job.validate().unwrap_err().to_string();
        for (nodes, says) in [
            (&["0-1:512m", "2:512m"][..], "each processor"),
            (&["0-1:512m", "1-3:512m"], "each processor"),
            (&["0-3:512m", "4:512m"], "each processor"),
            (&["0-1:512m", "2-3:511m"], "add up"),
            (&["0-1:512m", "2-3:1g"], "add up"),
            (&["0-1:1g", "2-3:0m"], "without memory"),
        ] {
            assert!(
                why(&vm(nodes)).contains(says),
                "{nodes:?}: {}",
                why(&vm(nodes))
            );
        }
        let mut many = vm(&["0-3:1g"]);
        let machine = many.machine.as_mut().unwrap();
        machine.numa = vec![machine.numa[0].clone(); MAX_NODES + 1];
        assert!(why(&many).contains("more than 64"));
    }

    #[test]
    fn nodes_go_with_what_else_a_machine_has() {
        let why = |job: &JobSpec| job.validate().unwrap_err().to_string();
        let with = |nodes: &[&str], change: fn(&mut MachineSpec)| {
            let mut job = vm(nodes);
            change(job.machine.as_mut().unwrap());
            job
        };
        // Processors that come later have their node from the start.
        let room = |machine: &mut MachineSpec| machine.room.cpus = 2;
        assert!(why(&with(&["0-1:512m", "2-3:512m"], room)).contains("room included"));
        let mut grows = with(&["0-2:512m", "3-5:512m"], room);
        assert_eq!(grows.validate(), Ok(()));
        assert_eq!(grows.set_size(6, MiB(1024)), Some(()));
        assert_eq!(grows.validate(), Ok(()));
        let memory = |machine: &mut MachineSpec| machine.room.memory = MiB(128);
        assert!(why(&with(&["0-3:1g"], memory)).contains("machine.room.memory"));
        // One without room, made smaller while it does not run.
        let mut smaller = vm(&["0-3:1g"]);
        assert_eq!(smaller.set_size(4, MiB(896)), Some(()));
        assert!(smaller.validate().is_err());

        let pages = |machine: &mut MachineSpec| machine.huge_pages = Some(HugePages::Mib2);
        assert!(why(&with(&["0-1:511m", "2-3:513m"], pages)).contains("huge pages"));
        assert_eq!(with(&["0-1:510m", "2-3:514m"], pages).validate(), Ok(()));
        let threads = |machine: &mut MachineSpec| {
            machine.topology = Some(Topology {
                sockets: 1,
                cores: 2,
                threads: 2,
            });
        };
        assert!(why(&with(&["0,2:512m", "1,3:512m"], threads)).contains("threads"));
        assert_eq!(with(&["0-1:512m", "2-3:512m"], threads).validate(), Ok(()));
    }
}
