//! Releases of Firecracker: archives that are right, and those that are anything else.

use aleph_image::Digest;
use aleph_image::NoProgress;
use aleph_image::release::{Origin, Release, ReleaseError, Releases, Version};
use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

const ARCH: &str = std::env::consts::ARCH;

/// Versions whose digests are not known, so that archives of the test's own can be theirs.
const VERSION: &str = "1.13.1";
const OTHER: &str = "1.14.4";

type Entries = Vec<(String, EntryType, Vec<u8>)>;

/// The path of a file in the archive of a version.
fn at(version: &str, name: &str) -> String {
    format!("release-v{version}-{ARCH}/{name}-v{version}-{ARCH}")
}

/// What a release has, as far as it matters.
fn entries(version: &str) -> Entries {
    let file = |name: &str, text: &str| {
        (
            at(version, name),
            EntryType::Regular,
            text.as_bytes().to_vec(),
        )
    };
    vec![
        (
            format!("release-v{version}-{ARCH}/"),
            EntryType::Directory,
            vec![],
        ),
        file("cpu-template-helper", "no"),
        file("firecracker", &format!("firecracker {version}")),
        file("jailer", &format!("jailer {version}")),
        (
            format!("release-v{version}-{ARCH}/LICENSE"),
            EntryType::Regular,
            b"no".to_vec(),
        ),
        (
            format!("release-v{version}-{ARCH}/link"),
            EntryType::Symlink,
            vec![],
        ),
    ]
}

fn tar_of(entries: &Entries) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (path, kind, bytes) in entries {
        let mut header = Header::new_gnu();
        // As it is: the library would not write what leads out.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4777);
        header.set_size(bytes.len() as u64);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("/etc/passwd")?;
        }
        header.set_cksum();
        tar.append(&header, &bytes[..])?;
    }
    Ok(tar.into_inner()?)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

fn archive(entries: &Entries) -> Result<Vec<u8>> {
    gzip(&tar_of(entries)?)
}

struct Node {
    dir: tempfile::TempDir,
    releases: Releases,
}

impl Node {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let releases = Releases::open(dir.path())?;
        Ok(Self { dir, releases })
    }

    fn run(
        &self,
        version: &str,
        from: Origin<'_>,
        hex: Option<&str>,
    ) -> Result<Release, ReleaseError> {
        let version = version.parse::<Version>()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| ReleaseError::BadVersion(error.to_string()))?;
        runtime.block_on(self.releases.install(version, from, hex, &mut NoProgress))
    }

    /// Installs these bytes from a file, said to be what they are.
    fn install(&self, version: &str, bytes: &[u8]) -> Result<Release, ReleaseError> {
        let path = self.dir.path().join("archive.tgz");
        let written = fs::write(&path, bytes);
        assert!(written.is_ok(), "{written:?}");
        let hex = Digest::of(bytes).hex();
        self.run(version, Origin::File(&path), Some(&hex))
    }

    /// What is in the folder of releases, but for its lock.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.dir.path().join("firecracker"))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != ".lock");
        names.sort();
        Ok(names)
    }
}

fn assert_installed(folder: &Path, version: &str) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().into_string().ok().context("a name")?);
    }
    names.sort();
    assert_eq!(names, ["firecracker", "jailer", "release.json"]);
    for name in ["firecracker", "jailer"] {
        let path = folder.join(name);
        assert_eq!(fs::read_to_string(&path)?, format!("{name} {version}"));
        // Nobody's rights come out of an archive.
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o7777, 0o555);
    }
    Ok(())
}

#[test]
fn versions_lie_side_by_side_and_one_is_the_default() -> Result<()> {
    let node = Node::new()?;
    for version in [VERSION, OTHER] {
        let bytes = archive(&entries(version))?;
        let release = node.install(version, &bytes)?;
        assert_eq!(release.archive, Digest::of(&bytes));
        assert_installed(&node.releases.folder(version.parse()?), version)?;
    }
    assert_installed(&node.releases.folder(VERSION.parse()?), VERSION)?;
    assert_eq!(node.names()?, [VERSION, OTHER]);

    assert_eq!(node.releases.default_version(), None);
    for version in [VERSION, OTHER, VERSION] {
        node.releases.set_default(version.parse()?)?;
        assert_eq!(node.releases.default_version(), Some(version.parse()?));
        let link = node.dir.path().join("firecracker/default/firecracker");
        assert_eq!(fs::read_to_string(link)?, format!("firecracker {version}"));
    }
    let missing = node.releases.set_default("1.10.0".parse()?);
    assert!(
        matches!(missing, Err(ReleaseError::NotInstalled(_))),
        "{missing:?}"
    );
    assert_eq!(node.releases.default_version(), Some(VERSION.parse()?));
    Ok(())
}

#[test]
fn a_version_is_installed_once() -> Result<()> {
    let node = Node::new()?;
    let bytes = archive(&entries(VERSION))?;
    let first = node.install(VERSION, &bytes)?;
    assert_eq!(node.install(VERSION, &bytes)?, first);
    // Another archive of the same version changes nothing.
    let mut changed = entries(VERSION);
    changed[2].2 = b"another".to_vec();
    let again = node.install(VERSION, &archive(&changed)?);
    assert!(
        matches!(again, Err(ReleaseError::Installed { .. })),
        "{again:?}"
    );
    assert_installed(&node.releases.folder(VERSION.parse()?), VERSION)
}

#[test]
fn what_is_not_the_archive_is_not_unpacked() -> Result<()> {
    let node = Node::new()?;
    let bytes = archive(&entries(VERSION))?;
    let path = node.dir.path().join("archive.tgz");
    fs::write(&path, &bytes)?;
    let other = Digest::of(b"another").hex();
    let wrong = node.run(VERSION, Origin::File(&path), Some(&other));
    assert!(
        matches!(wrong, Err(ReleaseError::WrongDigest { .. })),
        "{wrong:?}"
    );
    let none = node.run(VERSION, Origin::File(&path), None);
    assert!(matches!(none, Err(ReleaseError::NoPin { .. })), "{none:?}");
    // One that claims to be a version whose digest is known.
    let pinned = node.run("1.15.1", Origin::File(&path), None);
    assert!(
        matches!(pinned, Err(ReleaseError::WrongDigest { .. })),
        "{pinned:?}"
    );
    let given = Digest::of(&bytes).hex();
    let overruled = node.run("1.15.1", Origin::File(&path), Some(&given));
    assert!(
        matches!(overruled, Err(ReleaseError::PinDiffers { .. })),
        "{overruled:?}"
    );
    let missing = node.run(VERSION, Origin::File(Path::new("/no/file")), Some(&given));
    assert!(matches!(missing, Err(ReleaseError::Disk(_))), "{missing:?}");
    assert_eq!(node.names()?, [""; 0]);
    Ok(())
}

#[test]
fn hostile_archives_are_refused() -> Result<()> {
    let node = Node::new()?;
    let with = |change: &dyn Fn(&mut Entries)| {
        let mut entries = entries(VERSION);
        change(&mut entries);
        archive(&entries)
    };
    let extra = |path: &str, kind| {
        let entry = (path.to_owned(), kind, vec![]);
        move |entries: &mut Entries| entries.insert(0, entry.clone())
    };
    let good = archive(&entries(VERSION))?;
    let tar = tar_of(&entries(VERSION))?;
    let mut many = entries(VERSION);
    for n in 0..1000 {
        many.insert(1, (format!("file-{n}"), EntryType::Regular, vec![]));
    }
    let mut broken = good.clone();
    let end = broken.len() - 6;
    broken[end] ^= 1;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "up",
            with(&extra("../escaped", EntryType::Regular))?,
            "leads out",
        ),
        (
            "up within",
            with(&extra("a/../../escaped", EntryType::Regular))?,
            "leads out",
        ),
        (
            "absolute",
            with(&extra("/escaped", EntryType::Regular))?,
            "leads out",
        ),
        (
            "program as a link",
            with(&|e| e[2].1 = EntryType::Symlink)?,
            "no regular file",
        ),
        (
            "as a hard link",
            with(&|e| e[3].1 = EntryType::Link)?,
            "no regular file",
        ),
        (
            "as a folder",
            with(&|e| e[2].1 = EntryType::Directory)?,
            "no regular file",
        ),
        (
            "as a device",
            with(&|e| e[2].1 = EntryType::Char)?,
            "no regular file",
        ),
        ("twice", with(&|e| e.push(e[2].clone()))?, "twice"),
        ("empty program", with(&|e| e[2].2.clear())?, "too early"),
        (
            "without a jailer",
            with(&|e| drop(e.remove(3)))?,
            "has no release",
        ),
        ("without anything", archive(&vec![])?, "has no release"),
        (
            "of another version",
            archive(&entries(OTHER))?,
            "has no release",
        ),
        ("many entries", archive(&many)?, "more than 1000"),
        ("cut short", good[..good.len() / 2].to_vec(), ""),
        ("without its end", good[..good.len() - 4].to_vec(), ""),
        ("wrong checksum", broken, ""),
        ("cut within a program", gzip(&tar[..512 * 5 + 5])?, ""),
        ("no gzip", tar.clone(), ""),
        ("nothing", vec![], ""),
        ("noise", gzip(&[b'x'; 5000])?, ""),
    ];
    for (what, bytes, says) in cases {
        match node.install(VERSION, &bytes) {
            Err(error @ ReleaseError::Archive { .. }) => {
                assert!(error.to_string().contains(says), "{what}: {error}");
            }
            done => anyhow::bail!("{what}: {done:?}"),
        }
        assert_eq!(node.names()?, [""; 0], "{what}");
        ensure!(!node.dir.path().join("escaped").exists(), "{what}");
    }
    // None of them is in the way of the right one.
    node.install(VERSION, &good)?;
    Ok(())
}

#[test]
fn bombs_are_bounded() -> Result<()> {
    let node = Node::new()?;
    // A program of more bytes than any has; what is written stays below the limit.
    let mut large = entries(VERSION);
    large[2].2 = vec![0; (64 << 20) + 1];
    let refused = node.install(VERSION, &archive(&large)?);
    assert!(
        matches!(refused, Err(ReleaseError::Archive { .. })),
        "{refused:?}"
    );

    // An entry that nobody wants, of terabytes as its header says, in an archive of a megabyte.
    let mut header = Header::new_gnu();
    header.set_path(format!("release-v{VERSION}-{ARCH}/bomb"))?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(1 << 40);
    header.set_cksum();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(header.as_bytes())?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..1100 {
        gzip.write_all(&zeros)?;
    }
    let bomb = gzip.finish()?;
    ensure!(bomb.len() < 16 << 20);
    match node.install(VERSION, &bomb) {
        Err(error @ ReleaseError::Archive { .. }) => {
            assert!(error.to_string().contains("unpacks to more"), "{error}");
        }
        done => anyhow::bail!("{done:?}"),
    }
    assert_eq!(node.names()?, [""; 0]);
    Ok(())
}

#[test]
fn a_file_that_is_too_large_is_not_copied_to_its_end() -> Result<()> {
    let node = Node::new()?;
    let path = node.dir.path().join("archive.tgz");
    fs::File::create(&path)?.set_len(1 << 40)?;
    let hex = Digest::of(b"").hex();
    let refused = node.run(VERSION, Origin::File(&path), Some(&hex));
    assert!(
        matches!(refused, Err(ReleaseError::TooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(node.names()?, [""; 0]);
    Ok(())
}

/// Serves each of these answers once, in order, and gives the paths that were asked for.
fn serve(answers: Vec<Vec<u8>>) -> Result<(String, std::thread::JoinHandle<Vec<String>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let base = format!("http://{}/mirror", listener.local_addr()?);
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let Ok((mut client, _)) = listener.accept() else {
                break;
            };
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request);
            asked.extend(request.split(' ').nth(1).map(str::to_owned));
            let _ = client.write_all(&answer);
        }
        asked
    });
    Ok((base, server))
}

fn ok(body: &[u8], length: usize) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
            .into_bytes();
    answer.extend(body);
    answer
}

#[test]
fn archives_come_over_http() -> Result<()> {
    let node = Node::new()?;
    let bytes = archive(&entries(VERSION))?;
    let hex = Digest::of(&bytes).hex();
    let redirect = |to: &str| {
        format!(
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .into_bytes()
    };
    let (base, server) = serve(vec![
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        ok(&bytes[..bytes.len() / 2], bytes.len()),
        ok(b"<html>", 6),
        ok(b"", 1 << 40),
        redirect("/elsewhere"),
        ok(&bytes, bytes.len()),
    ])?;
    let mut errors = Vec::new();
    for _ in 0..4 {
        let failed = node.run(VERSION, Origin::Base(&base), Some(&hex));
        errors.push(failed.err().context("it was installed")?);
        assert_eq!(node.names()?, [""; 0]);
    }
    let [missing, cut, page, large] = errors.as_slice() else {
        anyhow::bail!("{errors:?}");
    };
    assert!(
        matches!(missing, ReleaseError::Answer { status: 404, .. }),
        "{missing:?}"
    );
    assert!(matches!(cut, ReleaseError::Unreachable { .. }), "{cut:?}");
    assert!(matches!(page, ReleaseError::WrongDigest { .. }), "{page:?}");
    assert!(matches!(large, ReleaseError::TooLarge { .. }), "{large:?}");
    // With a slash at its end it is the same address.
    node.run(VERSION, Origin::Base(&format!("{base}/")), Some(&hex))?;
    assert_installed(&node.releases.folder(VERSION.parse()?), VERSION)?;
    let asked = server
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))?;
    let path = format!("/mirror/v{VERSION}/firecracker-v{VERSION}-{ARCH}.tgz");
    let mut wanted = vec![path; 5];
    wanted.push("/elsewhere".into());
    assert_eq!(asked, wanted);
    // What is there is not asked for again; nobody listens there any more.
    node.run(VERSION, Origin::Base(&base), Some(&hex))?;
    let gone = node.run(OTHER, Origin::Base(&base), Some(&hex));
    assert!(
        matches!(gone, Err(ReleaseError::Unreachable { .. })),
        "{gone:?}"
    );
    Ok(())
}

#[test]
fn work_folders_of_the_dead_go() -> Result<()> {
    let node = Node::new()?;
    let dead: PathBuf = node.dir.path().join("firecracker/.tmp-1-0");
    fs::create_dir(&dead)?;
    fs::write(dead.join("archive.tgz"), "half")?;
    Releases::open(node.dir.path())?;
    assert_eq!(node.names()?, [""; 0]);
    Ok(())
}
