//! Taking a kernel and modules out of a kernel package.

use super::elf::{ModInfo, modinfo};
use super::error::KernelError;
use super::initramfs::Module;
use super::modules::{Available, ModuleError, load_order, name_of};
use super::signature;
use super::wanted::WANTED;
use crate::apt;
use crate::program::ProgramError;
use crate::progress::Progress;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

/// Debian's largest kernel is a tenth of it.
const MOST_KERNEL: u64 = 128 << 20;
/// Its largest module is 10 MiB.
const MOST_MODULE: u64 = 64 << 20;
const MOST_LIST: u64 = 4 << 20;

/// What is taken out of a package.
pub(crate) struct Content {
    pub(crate) vmlinuz: Vec<u8>,
    /// In the order to load.
    pub(crate) modules: Vec<Module>,
}

/// Reads the package in the file `deb` twice: which modules are needed is known only after all
/// of them were seen, and keeping all of them would take as much memory as a small node has.
pub(crate) fn read(
    deb: &Path,
    package: &str,
    progress: &mut dyn Progress,
) -> Result<Content, KernelError> {
    progress.begin("read the kernel package", None);
    let mut first = FirstPass::default();
    apt::content(deb, |tar| first.read(tar)).map_err(|error: Unreadable| error.of(package))?;
    let lacks = |what: &str| apt::PackageError::Lacks {
        name: package.to_owned(),
        what: what.to_owned(),
    };
    let vmlinuz = first.vmlinuz.ok_or_else(|| lacks("boot/vmlinuz"))?;
    let modules_error = |source| KernelError::Modules {
        package: package.to_owned(),
        source,
    };
    let order = load_order(&first.available, &WANTED).map_err(modules_error)?;

    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    apt::content(deb, |tar| {
        each_file(tar, |path, file| {
            let name = name_of(path).filter(|name| order.iter().any(|(_, n)| n == name));
            if let Some(name) = name {
                files.insert(name.clone(), plain_module(path, file)?);
            }
            Ok(())
        })
    })
    .map_err(|error: Unreadable| error.of(package))?;
    let modules = order
        .into_iter()
        .map(|(stage, name)| {
            let bytes = files.remove(&name).ok_or_else(|| ModuleError::Missing {
                name: name.clone(),
                by: None,
            })?;
            let bytes = signature::without(bytes);
            Ok(Module { name, stage, bytes })
        })
        .collect::<Result<_, _>>()
        .map_err(modules_error)?;
    progress.end();
    Ok(Content { vmlinuz, modules })
}

#[derive(Default)]
struct FirstPass {
    vmlinuz: Option<Vec<u8>>,
    available: Available,
}

impl FirstPass {
    fn read(&mut self, tar: &mut dyn Read) -> Result<(), Unreadable> {
        each_file(tar, |path, file| {
            if let Some(name) = name_of(path) {
                let info = needs(&name, &plain_module(path, file)?)?;
                self.available.files.insert(name, info);
            } else if path.starts_with("boot/vmlinuz-") {
                self.vmlinuz = Some(bounded(file, MOST_KERNEL)?);
            } else if path.ends_with("/modules.builtin") {
                let list = bounded(file, MOST_LIST)?;
                self.available.add_built_in(&String::from_utf8_lossy(&list));
            }
            Ok(())
        })
    }
}

/// What can go wrong while reading.
enum Unreadable {
    Program(ProgramError),
    Io(io::Error),
    Module(ModuleError),
}

impl From<ProgramError> for Unreadable {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Unreadable {
    fn of(self, package: &str) -> KernelError {
        match self {
            Self::Program(error) => error.into(),
            Self::Io(source) => KernelError::Program(ProgramError::Output {
                program: "dpkg-deb".into(),
                source,
            }),
            Self::Module(source) => KernelError::Modules {
                package: package.to_owned(),
                source,
            },
        }
    }
}

fn each_file(
    tar: &mut dyn Read,
    mut visit: impl FnMut(&str, &mut dyn Read) -> Result<(), Unreadable>,
) -> Result<(), Unreadable> {
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path()?.to_string_lossy().into_owned();
        visit(path.trim_start_matches("./"), &mut entry)?;
    }
    Ok(())
}

/// A module's bytes; newer kernel packages have them compressed.
fn plain_module(path: &str, file: &mut dyn Read) -> io::Result<Vec<u8>> {
    let extension = path.rsplit('.').next().unwrap_or_default();
    match extension {
        "xz" => bounded(&mut xz2::read::XzDecoder::new(file), MOST_MODULE),
        "gz" => bounded(&mut flate2::read::GzDecoder::new(file), MOST_MODULE),
        "zst" => bounded(&mut zstd::stream::read::Decoder::new(file)?, MOST_MODULE),
        _ => bounded(file, MOST_MODULE),
    }
}

fn needs(name: &str, module: &[u8]) -> Result<ModInfo, Unreadable> {
    modinfo(module).map_err(|error| {
        Unreadable::Module(ModuleError::Unreadable {
            name: name.to_owned(),
            why: error.to_string(),
        })
    })
}

fn bounded(file: &mut dyn Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "a file in the package is larger than any such file",
        ));
    }
    Ok(bytes)
}
