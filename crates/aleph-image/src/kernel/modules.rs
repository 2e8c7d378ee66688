//! Which modules go into an initramfs, and in which order they are loaded.

use super::elf::{ModInfo, canonical};
use super::wanted::{Stage, Wanted};
use std::collections::{BTreeMap, BTreeSet};

/// Why modules cannot be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// A module is needed and is neither a file nor built in.
    #[error("the module {name}{} is neither in the package nor built into the kernel", for_whom(by.as_ref()))]
    Missing {
        /// The module.
        name: String,
        /// The module that needs it, unless it is wanted for itself.
        by: Option<String>,
    },
    /// Modules that need one another.
    #[error("the modules {} need one another", names.join(", "))]
    Cycle {
        /// The modules.
        names: Vec<String>,
    },
    /// A module's file is not what it should be.
    #[error("the module {name} cannot be read: {why}")]
    Unreadable {
        /// The module.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

fn for_whom(by: Option<&String>) -> String {
    by.map_or(String::new(), |by| format!(", which {by} needs,"))
}

/// What a kernel package has in modules; the names are canonical.
#[derive(Debug, Default)]
pub(crate) struct Available {
    pub(crate) files: BTreeMap<String, ModInfo>,
    pub(crate) built_in: BTreeSet<String>,
}

impl Available {
    /// Adds the names in a `modules.builtin`, which has one path a line.
    pub(crate) fn add_built_in(&mut self, list: &str) {
        self.built_in.extend(list.lines().filter_map(name_of));
    }
}

/// The canonical name of a module's file, with or without a compression's extension.
pub(crate) fn name_of(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let (name, extension) = file.split_once(".ko")?;
    matches!(extension, "" | ".xz" | ".gz" | ".zst").then(|| canonical(name))
}

/// The modules to load in order, each after those it needs and in the stage of the first that
/// needs it.
pub(crate) fn load_order(
    available: &Available,
    wanted: &[Wanted],
) -> Result<Vec<(Stage, String)>, ModuleError> {
    let mut order = Order {
        available,
        done: BTreeSet::new(),
        path: Vec::new(),
        loaded: Vec::new(),
    };
    let mut wanted = wanted.to_vec();
    wanted.sort_by_key(|module| module.stage);
    for module in &wanted {
        order.add(&canonical(module.name), module.stage)?;
    }
    Ok(order.loaded)
}

struct Order<'a> {
    available: &'a Available,
    done: BTreeSet<String>,
    /// From what is wanted to what is being added.
    path: Vec<String>,
    loaded: Vec<(Stage, String)>,
}

impl Order<'_> {
    fn add(&mut self, name: &str, stage: Stage) -> Result<(), ModuleError> {
        if self.done.contains(name) {
            return Ok(());
        }
        if self.path.iter().any(|other| other == name) {
            return Err(ModuleError::Cycle {
                names: self.path.clone(),
            });
        }
        let Some(info) = self.available.files.get(name) else {
            if self.available.built_in.contains(name) {
                return Ok(());
            }
            return Err(ModuleError::Missing {
                name: name.to_owned(),
                by: self.path.last().cloned(),
            });
        };
        self.path.push(name.to_owned());
        // A module that should go before and is not there is none that has to: the algorithm
        // it offers may be built in under another name.
        let soft = info
            .before
            .iter()
            .filter(|n| self.available.files.contains_key(*n));
        for needed in soft.chain(&info.depends) {
            self.add(needed, stage)?;
        }
        self.path.pop();
        self.done.insert(name.to_owned());
        self.loaded.push((stage, name.to_owned()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn available(files: &[(&str, &[&str])], built_in: &str) -> Available {
        let mut available = Available::default();
        available.add_built_in(built_in);
        for (name, depends) in files {
            let depends = depends.iter().map(|d| (*d).to_owned()).collect();
            let info = ModInfo {
                depends,
                before: vec![],
            };
            available.files.insert((*name).to_owned(), info);
        }
        available
    }

    fn wanted(list: &[(&'static str, Stage)]) -> Vec<Wanted> {
        list.iter()
            .map(|(name, stage)| Wanted {
                name,
                stage: *stage,
            })
            .collect()
    }

    #[test]
    fn modules_follow_what_they_need() {
        let available = available(
            &[
                ("virtio", &["virtio_ring"]),
                ("virtio_ring", &[]),
                ("virtio_blk", &["virtio", "virtio_ring"]),
                ("virtio_mmio", &["virtio"]),
                ("unused", &[]),
            ],
            "kernel/fs/ext4/ext4.ko\n",
        );
        let wanted = wanted(&[
            ("virtio-blk", Stage::Root),
            ("virtio_mmio", Stage::Early),
            ("ext4", Stage::Root),
        ]);
        let order: Vec<String> = load_order(&available, &wanted)
            .unwrap()
            .iter()
            .map(|(stage, name)| format!("{stage} {name}"))
            .collect();
        assert_eq!(
            order,
            [
                "early virtio_ring",
                "early virtio",
                "early virtio_mmio",
                "root virtio_blk"
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named_with_who_needs_it() {
        let available = available(&[("a", &["b"]), ("c", &["d"]), ("d", &["c"])], "");
        let error = load_order(&available, &wanted(&[("a", Stage::Early)])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the module b, which a needs, is neither in the package nor built into the kernel"
        );
        let error = load_order(&available, &wanted(&[("c", Stage::Early)])).unwrap_err();
        assert!(matches!(error, ModuleError::Cycle { .. }));
    }

    #[test]
    fn names_come_from_files() {
        assert_eq!(
            name_of("kernel/a/virtio-rng.ko").as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(name_of("x.ko.xz").as_deref(), Some("x"));
        assert_eq!(name_of("modules.order"), None);
        assert_eq!(name_of("x.ko.sig"), None);
    }

    proptest! {
        #[test]
        fn in_any_graph_the_order_holds_or_there_is_a_cycle(
            edges in proptest::collection::vec((0_usize..8, 0_usize..8), 0..20),
        ) {
            const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
            let mut all = available(&[], "");
            for name in NAMES {
                all.files.insert(name.into(), ModInfo::default());
            }
            for (from, to) in &edges {
                all.files.get_mut(NAMES[*from]).unwrap().depends.push(NAMES[*to].into());
            }
            if let Ok(order) = load_order(&all, &wanted(&NAMES.map(|n| (n, Stage::Root)))) {
                let place = |name: &str| order.iter().position(|(_, n)| n == name).unwrap();
                prop_assert_eq!(order.len(), NAMES.len());
                for (from, to) in edges {
                    prop_assert!(place(NAMES[to]) < place(NAMES[from]));
                }
            }
        }
    }
}
