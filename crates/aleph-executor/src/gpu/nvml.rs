//! What NVIDIA's driver says of the GPUs that it drives, by its management library (NVML).
//!
//! The library is asked in a process that ends when it has answered ([`NvmlReader`]): one that still had
//! it open would keep the driver from letting a GPU go. The answer is kept: it is about the GPUs
//! themselves, and one that was given to a guest is not among those that NVML lists.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | no GPU that the driver drives | nobody is asked |
//! | no library | nothing is known by it |
//! | a GPU that fell off the bus has NVML wait for it | the process is killed after [`LIMIT`]; nothing is known by it |
//! | the library crashes, or answers nonsense | the same |
//! | one GPU does not answer | nothing is known of that one |
//! | a part of one does not (MIG) | the others are known |
//! | a job is to get a GPU that another process just asks of | it waits until that process has ended |
//!
//! Where nothing is known so, it is asked again when the driver has another GPU, or by the next process. It is
//! asked each time while a GPU is divided (MIG): its operator ends that without a word to anybody. Nor is a word said
//! when that begins, so of GPUs that can be divided it is asked again before one is given away ([`Asks::OfWhole`]);
//! where it did not answer the last time, not for [`REST`], or each start would wait for a GPU that fell off the bus.

use super::address::PciAddress;
use super::inventory::{Inventory, Vram, VramSource};
use aleph_types::MiB;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long NVML may take: where no process keeps them awake, it wakes eight GPUs one after the other.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// How long NVML is not asked again about GPUs that it has spoken of, where it did not answer.
const REST: Duration = Duration::from_secs(300);

/// The driver whose GPUs it knows.
const DRIVER: &str = "nvidia";

/// What NVML says of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmlGpu {
    /// Where it is.
    pub address: PciAddress,
    /// Who made it, and which device it is.
    pub ids: (u16, u16),
    /// Its name for NVIDIA's own tools.
    pub uuid: Option<String>,
    /// Its name for people.
    pub name: Option<String>,
    /// Its memory in bytes, without what ECC and its firmware take.
    pub memory: Option<u64>,
    /// Whether it is divided (MIG); none of one that cannot be.
    pub mig: Option<bool>,
    /// The parts that it is divided into.
    pub instances: Vec<NvmlInstance>,
}

/// What NVML says of a part of a GPU that MIG divides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmlInstance {
    /// Its number on its GPU.
    pub index: u32,
    /// Its name for NVIDIA's own tools.
    pub uuid: Option<String>,
    /// What NVIDIA calls a part of its size.
    pub profile: Option<String>,
    /// Its memory in bytes.
    pub memory: Option<u64>,
}

/// The seam to the library.
pub trait Nvml: fmt::Debug + Send + Sync {
    /// The GPUs that it lists. It blocks, and does not keep the library open.
    ///
    /// # Errors
    /// [`NvmlError`].
    fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError>;
}

impl<T: Nvml + ?Sized> Nvml for Arc<T> {
    fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError> {
        T::gpus(self)
    }
}

/// Why NVML says nothing.
#[derive(Debug, thiserror::Error)]
pub enum NvmlError {
    /// The library cannot be loaded, or finds no driver.
    #[error("NVML is not there: {0}")]
    Absent(String),
    /// The process that reads it cannot be started or waited for.
    #[error("the process that asks NVML cannot be run")]
    Process(#[source] io::Error),
    /// It does not answer.
    #[error("NVML does not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The process that reads it has failed.
    #[error("the process that asked NVML ended with {how}: {said}")]
    Failed {
        /// How.
        how: String,
        /// What it said.
        said: String,
    },
    /// It wrote something else than an answer.
    #[error("what was read from NVML cannot be understood")]
    Nonsense(#[from] serde_json::Error),
}

/// What it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// What there is: what was said of a GPU that was whole stays known.
    WhatIsNew,
    /// Whether GPUs are whole that are to be given away.
    OfWhole,
}

/// What was asked of NVML so far.
#[derive(Debug)]
pub(super) struct Asked {
    nvml: Box<dyn Nvml>,
    known: Mutex<Known>,
    /// One asks at a time. What is known can be had meanwhile.
    asking: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// How often it was asked.
    times: u64,
    /// The GPUs that the driver had when it was asked.
    driven: BTreeSet<PciAddress>,
    gpus: BTreeMap<PciAddress, NvmlGpu>,
    /// When it was asked last, where it did not answer then.
    silent_since: Option<Instant>,
}

impl Known {
    /// Whether something may be so by now that is not known of this GPU.
    fn is_old(&self, at: &PciAddress, asks: Asks) -> bool {
        let said = self.gpus.get(at).and_then(|gpu| gpu.mig);
        let rests = || self.silent_since.is_some_and(|at| at.elapsed() < REST);
        match (said, asks) {
            (Some(true), _) => true,
            (Some(false), Asks::OfWhole) => !rests(),
            (Some(false), Asks::WhatIsNew) | (None, _) => false,
        }
    }
}

impl Asked {
    pub(super) fn new(nvml: Box<dyn Nvml>) -> Self {
        let (known, asking) = (Mutex::default(), Mutex::default());
        Self {
            nvml,
            known,
            asking,
        }
    }

    /// Asks, where the driver has a GPU of which it was not asked yet, or that may be divided otherwise by now.
    pub(super) fn learn(&self, inventory: &Inventory, asks: Asks) {
        let gpus = inventory.gpus().iter();
        let driven = gpus.filter(|gpu| gpu.driver.as_deref() == Some(DRIVER));
        let driven: BTreeSet<PciAddress> = driven.map(|gpu| gpu.address).collect();
        let times = {
            let known = self.known();
            let is_old = |at: &PciAddress| known.is_old(at, asks);
            if driven.is_subset(&known.driven) && !driven.iter().any(is_old) {
                return;
            }
            known.times
        };
        let _turn = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let known = self.known();
            // Another one has just asked.
            if known.times > times && driven.is_subset(&known.driven) {
                return;
            }
        }
        let said = self.nvml.gpus();
        let silent_since = said.is_err().then(Instant::now);
        let said = said.unwrap_or_else(|error| {
            let text = crate::vm::chain(&error);
            match error {
                NvmlError::Absent(_) => tracing::debug!(error = text, "NVML is not asked"),
                _ => tracing::warn!(
                    error = text,
                    "GPUs are known by their ids and regions alone"
                ),
            }
            Vec::new()
        });
        let mut known = self.known();
        known.times += 1;
        known.silent_since = silent_since;
        let said = said.into_iter().map(|gpu| (gpu.address, gpu));
        known.gpus.extend(said);
        known.driven.extend(driven);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what is known by now.
    pub(super) fn tell(&self, inventory: &mut Inventory) {
        inventory.know(&self.known().gpus);
    }
}

/// The memory of a GPU that its ids do not tell, as its maker names it: jobs ask for that, and what NVML
/// says is less by what ECC and firmware take, mostly less than a GiB.
pub(super) fn vram(bytes: u64) -> Option<Vram> {
    let gib = u32::try_from(bytes.div_ceil(1 << 30)).ok()?;
    let mib = MiB(gib.checked_mul(1024)?);
    let source = VramSource::Nvml;
    (mib.0 > 0).then_some(Vram { mib, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    /// Answers when it may.
    #[derive(Debug)]
    struct Gated(Mutex<mpsc::Receiver<()>>, mpsc::Sender<()>);

    impl Nvml for Gated {
        fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError> {
            let Self(open, asked) = self;
            asked.send(()).unwrap();
            let _ = open.lock().unwrap().recv();
            Ok(Vec::new())
        }
    }

    #[test]
    fn what_is_known_can_be_had_while_nvml_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let description = "0000:01:00.0 root 10de:2335 class=030200 group=1 driver=nvidia\n";
        aleph_testkit::expand_pci_tree(description, dir.path()).unwrap();
        let tree = crate::gpu::HostTree::recorded(dir.path());
        let functions = tree.functions().unwrap();
        let mut inventory =
            Inventory::of(functions, &crate::gpu::Names::none(), &Default::default());
        let (open, gate) = mpsc::channel();
        let (said, asked) = mpsc::channel();
        let nvml = Asked::new(Box::new(Gated(Mutex::new(gate), said)));
        let of_asking = inventory.clone();
        std::thread::scope(|scope| {
            // It goes when this does, so that a test that fails ends.
            let open = open;
            scope.spawn(|| nvml.learn(&of_asking, Asks::WhatIsNew));
            asked.recv().unwrap();
            assert!(nvml.known.try_lock().is_ok());
            nvml.tell(&mut inventory);
            drop(open);
        });
    }

    #[derive(Debug)]
    struct Counted(Arc<AtomicUsize>);

    impl Nvml for Counted {
        fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(NvmlError::Silent(LIMIT))
        }
    }

    #[test]
    fn memory_is_what_the_maker_names() {
        let named = |mib: u64| vram(mib << 20).map(|vram| vram.mib.0 / 1024);
        assert_eq!(named(81_559), Some(80), "an H100");
        assert_eq!(named(143_771), Some(141), "an H200");
        assert_eq!(named(24_564), Some(24), "a GeForce RTX 4090");
        assert_eq!((named(0), vram(u64::MAX)), (None, None));
    }

    #[test]
    fn nvml_is_asked_once_of_each_gpu_that_its_driver_has() {
        let inventory = |drivers: [&str; 2]| {
            let dir = tempfile::tempdir().unwrap();
            let description = format!(
                "0000:01:00.0 root 10de:2335 class=030200 group=1 driver={}\n\
                 0000:02:00.0 root 10de:2335 class=030200 group=2 driver={}\n",
                drivers[0], drivers[1]
            );
            aleph_testkit::expand_pci_tree(&description, dir.path()).unwrap();
            let tree = crate::gpu::HostTree::recorded(dir.path());
            let functions = tree.functions().unwrap();
            Inventory::of(functions, &crate::gpu::Names::none(), &Default::default())
        };
        let count = Arc::new(AtomicUsize::new(0));
        let asked = Asked::new(Box::new(Counted(Arc::clone(&count))));
        for (drivers, times) in [
            (["nouveau", "vfio-pci"], 0),
            (["nvidia", "vfio-pci"], 1),
            (["nvidia", "vfio-pci"], 1),
            (["vfio-pci", "vfio-pci"], 1),
            (["vfio-pci", "nvidia"], 2),
            (["nvidia", "nvidia"], 2),
        ] {
            // It has said of none that it can be divided.
            for asks in [Asks::WhatIsNew, Asks::OfWhole] {
                asked.learn(&inventory(drivers), asks);
                assert_eq!(count.load(Ordering::Relaxed), times, "{drivers:?}");
            }
        }
    }

    /// Says of one GPU whether it is divided, or nothing.
    #[derive(Debug)]
    struct Said {
        mig: Mutex<Result<Option<bool>, ()>>,
        times: AtomicUsize,
    }

    impl Nvml for Said {
        fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError> {
            self.times.fetch_add(1, Ordering::Relaxed);
            let mig = *self.mig.lock().unwrap();
            Ok(vec![NvmlGpu {
                address: "0000:01:00.0".parse().unwrap(),
                ids: (0x10de, 0x2335),
                uuid: None,
                name: None,
                memory: None,
                mig: mig.map_err(|()| NvmlError::Silent(LIMIT))?,
                instances: Vec::new(),
            }])
        }
    }

    #[test]
    fn a_gpu_that_can_be_divided_is_asked_of_before_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let description = "0000:01:00.0 root 10de:2335 class=030200 group=1 driver=nvidia\n";
        aleph_testkit::expand_pci_tree(description, dir.path()).unwrap();
        let tree = crate::gpu::HostTree::recorded(dir.path());
        let functions = tree.functions().unwrap();
        let inventory = Inventory::of(functions, &crate::gpu::Names::none(), &Default::default());
        let said = Arc::new(Said {
            mig: Mutex::new(Ok(None)),
            times: AtomicUsize::new(0),
        });
        let asked = Asked::new(Box::new(Arc::clone(&said)));
        for (answer, asks, times) in [
            (Ok(None), Asks::WhatIsNew, 1),
            // It cannot be.
            (Ok(Some(false)), Asks::OfWhole, 1),
        ] {
            *said.mig.lock().unwrap() = answer;
            asked.learn(&inventory, asks);
            assert_eq!(said.times.load(Ordering::Relaxed), times);
        }
        let asked = Asked::new(Box::new(Arc::clone(&said)));
        for (answer, asks, times) in [
            (Ok(Some(false)), Asks::WhatIsNew, 2),
            (Ok(Some(true)), Asks::WhatIsNew, 2),
            // Somebody has divided it.
            (Ok(Some(true)), Asks::OfWhole, 3),
            (Ok(Some(false)), Asks::WhatIsNew, 4),
            (Ok(Some(false)), Asks::OfWhole, 5),
            // One that does not answer is let be for a while.
            (Err(()), Asks::OfWhole, 6),
            (Ok(Some(true)), Asks::OfWhole, 6),
        ] {
            *said.mig.lock().unwrap() = answer;
            asked.learn(&inventory, asks);
            assert_eq!(said.times.load(Ordering::Relaxed), times, "{answer:?}");
        }
    }
}
