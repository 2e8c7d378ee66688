//! The users under which VMMs run: one for each VM, from a range.
//!
//! A claim is a symbolic link `uids/UID` that points to a [`VmId`]: it is there with its content
//! or not at all, two owners never get the same, and it outlives any crash. Where it is free, a
//! VM's user is the one that its id leads to ([`UidRange::preferred`]); in the default range that
//! is [`VmId::uid`]. A claim is made before anything that belongs to its user, and released after
//! all of that is gone.
//!
//! A node keeps its claims in one folder, whatever folders its jails are in: `uids` in a folder of
//! jails is a link to that.

use super::error::{JailError, at};
use aleph_types::VmId;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// User ids that VMs may have, and group ids of the same numbers. Written `FIRST-LAST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    first: u32,
    last: u32,
}

/// A text or a pair of numbers that is no range of user ids for VMs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no range of user ids: {why}")]
pub struct InvalidUidRange {
    text: String,
    why: &'static str,
}

/// Below are root and the users of the system's services (`login.defs(5)`).
const FIRST_ALLOWED: u32 = 1000;
/// Above are numbers that some systems read as negative.
const LAST_ALLOWED: u32 = i32::MAX.unsigned_abs();
/// `nobody`, and the number that sixteen bits read as -1 (<https://systemd.io/UIDS-GIDS/>).
const NEVER: [u32; 2] = [65_534, 65_535];

impl UidRange {
    /// The ids from `first` to `last`, both included.
    ///
    /// # Errors
    /// Where there are none, or some are not for VMs.
    pub fn new(first: u32, last: u32) -> Result<Self, InvalidUidRange> {
        let invalid = |why| InvalidUidRange {
            text: format!("{first}-{last}"),
            why,
        };
        if first > last {
            return Err(invalid("its end comes before its beginning"));
        }
        if first < FIRST_ALLOWED {
            return Err(invalid("ids below 1000 are the system's own"));
        }
        if last > LAST_ALLOWED {
            return Err(invalid("ids end at 2147483647"));
        }
        if NEVER.iter().any(|id| (first..=last).contains(id)) {
            return Err(invalid("65534 and 65535 stand for nobody"));
        }
        // With all of them each VM has the one that it has on QEMU as well.
        let (range, all) = (Self { first, last }, Self::default());
        if range != all && first <= all.last && last >= all.first {
            return Err(invalid(
                "ids from 1879048192 to 2013265919 are those of VMs on QEMU: take all of them or none",
            ));
        }
        Ok(range)
    }

    /// How many ids there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.last - self.first + 1
    }

    /// Whether this is one of them.
    #[must_use]
    pub fn contains(&self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    /// The id that a VM has where it is free.
    #[must_use]
    pub fn preferred(&self, vm: VmId) -> u32 {
        self.first + vm.bits() % self.count()
    }

    /// All ids, from the preferred one of a VM on.
    fn beginning_with_preferred(self, vm: VmId) -> impl Iterator<Item = u32> {
        let preferred = self.preferred(vm);
        (preferred..=self.last).chain(self.first..preferred)
    }
}

/// A user for each [`VmId`] that there is.
impl Default for UidRange {
    fn default() -> Self {
        let first = VmId::from_bits(0).map_or(FIRST_ALLOWED, VmId::uid);
        Self {
            first,
            last: first + (VmId::SPACE - 1),
        }
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for UidRange {
    type Err = InvalidUidRange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| digits.trim().parse().ok();
        let pair = text.split_once('-');
        match pair.and_then(|(first, last)| Some((number(first)?, number(last)?))) {
            Some((first, last)) => Self::new(first, last),
            None => Err(InvalidUidRange {
                text: text.to_owned(),
                why: "write it as FIRST-LAST, such as 200000-265535",
            }),
        }
    }
}

/// Which VM has which user.
#[derive(Debug, Clone)]
pub struct Users {
    folder: PathBuf,
    range: UidRange,
}

impl Users {
    /// The users of a range, with the claims in this folder.
    ///
    /// # Errors
    /// Where the folder cannot be made.
    pub(super) fn open(folder: PathBuf, range: UidRange) -> Result<Self, JailError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(at("make", &folder))?;
        Ok(Self { folder, range })
    }

    /// Takes over the claims of a folder of jails, which is a link to this one from then on. Where two
    /// VMs have one user already, those there stay apart until they are gone.
    ///
    /// # Errors
    /// [`JailError::Base`] where it is a link to another folder that is there.
    pub(super) fn take_over(self, there: &Self) -> Result<Self, JailError> {
        let find = |path: &Path| path.canonicalize().map_err(at("find", path));
        let (own, old) = (find(&self.folder)?, &there.folder);
        let meta = fs::symlink_metadata(old).map_err(at("look at", old))?;
        if meta.is_symlink() {
            if find(old)? == own {
                return Ok(self);
            }
            return Err(JailError::Base {
                path: old.clone(),
                why: "it leads to the claims of a node with another root: remove it, once that has no VM",
            });
        }
        for (uid, vm) in there.claims()? {
            let path = self.path(uid);
            match std::os::unix::fs::symlink(vm.to_string(), &path) {
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists
                        && claimant(&path) != Some(vm) =>
                {
                    tracing::warn!(%uid, %vm, "two VMs have one user");
                    return Ok(there.clone());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(at("make", &path))?,
            }
        }
        // Whoever dies in between finds the claims in both.
        let aside = old.with_extension("old");
        if aside.exists() {
            fs::remove_dir_all(&aside).map_err(at("remove", &aside))?;
        }
        fs::rename(old, &aside).map_err(at("rename", old))?;
        std::os::unix::fs::symlink(&own, old).map_err(at("make", old))?;
        fs::remove_dir_all(&aside).map_err(at("remove", &aside))?;
        Ok(self)
    }

    /// The range.
    #[must_use]
    pub fn range(&self) -> UidRange {
        self.range
    }

    /// Claims a user for a VM; one that has a claim keeps it.
    ///
    /// # Errors
    /// [`JailError::UidsExhausted`] where each is claimed.
    pub fn claim(&self, vm: VmId) -> Result<u32, JailError> {
        self.try_claim(vm).map(|(uid, _)| uid)
    }

    /// The same, and whether the claim is new.
    pub(super) fn try_claim(&self, vm: VmId) -> Result<(u32, bool), JailError> {
        // Ends soon however large the range is: only claims that there are make it go on.
        for uid in self.range.beginning_with_preferred(vm) {
            let path = self.path(uid);
            match std::os::unix::fs::symlink(vm.to_string(), &path) {
                Ok(()) => return Ok((uid, true)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if claimant(&path) == Some(vm) {
                        return Ok((uid, false));
                    }
                }
                Err(error) => return Err(at("make", &path)(error)),
            }
        }
        Err(JailError::UidsExhausted { range: self.range })
    }

    /// Checks that one is left to claim.
    ///
    /// # Errors
    /// [`JailError::UidsExhausted`] where each is claimed.
    pub fn check_free(&self) -> Result<(), JailError> {
        let entries = fs::read_dir(&self.folder).map_err(at("read", &self.folder))?;
        let uids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let claimed = uids.filter(|uid| self.range.contains(*uid)).count();
        match u32::try_from(claimed) {
            Ok(claimed) if claimed < self.range.count() => Ok(()),
            _ => Err(JailError::UidsExhausted { range: self.range }),
        }
    }

    /// All claims, those of an earlier range included.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn claims(&self) -> Result<BTreeMap<u32, VmId>, JailError> {
        let entries = fs::read_dir(&self.folder).map_err(at("read", &self.folder))?;
        let mut claims = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(at("read", &self.folder))?;
            let uid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let (Some(uid), Some(vm)) = (uid, claimant(&entry.path())) {
                claims.insert(uid, vm);
            }
        }
        Ok(claims)
    }

    /// The user of a VM, if it has claimed one.
    ///
    /// # Errors
    /// Where the claims cannot be read.
    pub fn of(&self, vm: VmId) -> Result<Option<u32>, JailError> {
        // Most have the preferred one.
        let preferred = self.range.preferred(vm);
        if claimant(&self.path(preferred)) == Some(vm) {
            return Ok(Some(preferred));
        }
        let claims = self.claims()?;
        Ok(claims.into_iter().find(|(_, who)| *who == vm).map(|c| c.0))
    }

    /// Gives up all claims of a VM. One without any is no error.
    ///
    /// # Errors
    /// Where one cannot be removed.
    pub(super) fn release(&self, vm: VmId) -> Result<(), JailError> {
        for (uid, who) in self.claims()? {
            if who == vm {
                let path = self.path(uid);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed.map_err(at("remove", &path))?,
                }
            }
        }
        Ok(())
    }

    fn path(&self, uid: u32) -> PathBuf {
        self.folder.join(uid.to_string())
    }
}

fn claimant(path: &Path) -> Option<VmId> {
    match rustix::fs::readlink(path, Vec::new()) {
        Ok(target) => target.to_str().ok()?.parse().ok(),
        Err(Errno::NOENT | Errno::INVAL) => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read who has a user id");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(bits: u32) -> VmId {
        VmId::from_bits(bits).unwrap()
    }

    #[test]
    fn the_default_range_gives_each_vm_the_user_that_its_id_has() {
        let range = UidRange::default();
        assert_eq!(range.count(), VmId::SPACE);
        for bits in [0, 1, 0x0123_4abc, VmId::SPACE - 1] {
            assert_eq!(range.preferred(vm(bits)), vm(bits).uid());
            assert!(range.contains(vm(bits).uid()));
        }
        assert_eq!(range.to_string().parse(), Ok(range));
        assert_eq!(UidRange::new(range.first, range.last), Ok(range));
    }

    #[test]
    fn ranges_that_reach_others_users_are_refused() {
        for (text, why) in [
            ("", "FIRST-LAST"),
            ("5", "FIRST-LAST"),
            ("a-b", "FIRST-LAST"),
            ("2000-1000", "before its beginning"),
            ("0-10", "below 1000"),
            ("999-2000", "below 1000"),
            ("60000-70000", "nobody"),
            ("65535-65535", "nobody"),
            ("70000-2147483648", "end at"),
            ("70000-4294967295", "end at"),
            ("70000-99999999999", "FIRST-LAST"),
            ("1879048192-1879048200", "VMs on QEMU"),
            ("200000-1879048192", "VMs on QEMU"),
            ("2013265919-2013265920", "VMs on QEMU"),
            ("1879048191-2013265920", "VMs on QEMU"),
        ] {
            let error = text.parse::<UidRange>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!("1000 - 65533".parse::<UidRange>().unwrap().count(), 64_534);
    }

    #[test]
    fn no_user_is_given_twice_and_the_last_one_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let range = UidRange::new(200_000, 200_006).unwrap();
        let users = Users::open(dir.path().join("uids"), range).unwrap();
        // All seven prefer the same one.
        let vms: Vec<_> = (0..7).map(|n| vm(3 + 7 * n)).collect();
        let mut given: Vec<_> = vms.iter().map(|vm| users.claim(*vm).unwrap()).collect();
        assert_eq!(given[0], 200_003);
        assert_eq!(users.claim(vms[4]).unwrap(), given[4], "it has one");
        given.sort_unstable();
        assert_eq!(given, (200_000..=200_006).collect::<Vec<_>>());

        assert!(users.check_free().is_err());
        let error = users.claim(vm(1)).unwrap_err();
        assert!(matches!(error, JailError::UidsExhausted { .. }), "{error}");
        use aleph_types::Classify;
        assert_eq!(error.class(), aleph_types::ErrorClass::Capacity);
        assert!(error.to_string().contains("200000-200006"), "{error}");

        // Another process of the node sees the same claims.
        let again = Users::open(dir.path().join("uids"), range).unwrap();
        let freed = again.of(vms[5]).unwrap().unwrap();
        again.release(vms[5]).unwrap();
        again.release(vms[5]).unwrap();
        users.check_free().unwrap();
        assert_eq!(again.of(vms[5]).unwrap(), None);
        assert_eq!(users.claim(vm(1)).unwrap(), freed);
    }

    #[test]
    fn claims_of_a_narrower_range_are_still_known() {
        let dir = tempfile::tempdir().unwrap();
        let wide = UidRange::new(200_000, 200_100).unwrap();
        let users = Users::open(dir.path().to_owned(), wide).unwrap();
        let uid = users.claim(vm(77)).unwrap();
        let narrow = UidRange::new(200_000, 200_001).unwrap();
        let users = Users::open(dir.path().to_owned(), narrow).unwrap();
        assert_eq!(users.of(vm(77)).unwrap(), Some(uid));
        users.release(vm(77)).unwrap();
        assert_eq!(users.claims().unwrap(), BTreeMap::new());
    }

    #[test]
    fn a_node_has_one_folder_of_claims_whatever_its_jails_are_in() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| dir.path().join(name);
        let open = |name: &str| {
            let range = UidRange::new(200_000, 200_001).unwrap();
            Users::open(folder(name), range).unwrap()
        };
        // Of an earlier version, which had them with the jails.
        let before = open("first").claim(vm(2)).unwrap();
        let users = open("node").take_over(&open("first")).unwrap();
        assert_eq!(users.of(vm(2)).unwrap(), Some(before));
        assert!(folder("first").is_symlink());
        // Jails that are elsewhere now: both prefer the same user.
        let users = open("node").take_over(&open("second")).unwrap();
        let after = users.claim(vm(4)).unwrap();
        assert_ne!(after, before);
        for name in ["first", "second"] {
            let claims = open(name).claims().unwrap();
            assert_eq!(claims, BTreeMap::from([(before, vm(2)), (after, vm(4))]));
        }
        open("node").take_over(&open("second")).unwrap();
        open("first").release(vm(2)).unwrap();
        assert_eq!(users.of(vm(2)).unwrap(), None);

        let error = open("another").take_over(&open("first")).unwrap_err();
        assert!(matches!(error, JailError::Base { .. }), "{error}");
        // Two that have one user stay as they are.
        open("third").claim(vm(6)).unwrap();
        let apart = open("node").take_over(&open("third")).unwrap();
        assert_eq!(apart.of(vm(6)).unwrap(), Some(before));
        open("third").release(vm(6)).unwrap();
        users.claim(vm(8)).unwrap();
        open("fourth").claim(vm(10)).unwrap();
        let apart = open("node").take_over(&open("fourth")).unwrap();
        assert_eq!(apart.of(vm(10)).unwrap(), Some(before));
        assert_eq!(users.of(vm(10)).unwrap(), None);
    }

    #[test]
    fn claims_made_at_once_are_all_different() {
        let dir = tempfile::tempdir().unwrap();
        let range = UidRange::new(200_000, 200_063).unwrap();
        let users = Users::open(dir.path().to_owned(), range).unwrap();
        let given = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let users = &users;
                    scope.spawn(move || -> Vec<u32> {
                        let vms = (0..8).map(|n| vm(64 * (8 * thread + n)));
                        vms.map(|vm| users.claim(vm).unwrap()).collect()
                    })
                })
                .collect();
            let given = threads.into_iter().flat_map(|t| t.join().unwrap());
            given.collect::<std::collections::BTreeSet<_>>()
        });
        assert_eq!(given.len(), 64);
    }
}
