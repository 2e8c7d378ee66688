//! What is known of volumes, in one SQLite database beside their layers.
//!
//! | table | what it holds |
//! | --- | --- |
//! | `volumes` | each volume, from before its first file is made until its last is to go |
//! | `layers` | each file, from before it is made until after it is gone |
//! | `snapshots` | names of layers that are kept |
//! | `leases` | which job has which volume |
//! | `keys` | the keys of encrypted layers, encrypted with the node's ([`keys`](super::keys)) |
//! | `covers`, `covered`, `points` | layers that are put over a disk while a guest writes, those below them, and what such a state is ([`live`](super::live)) |
//! | `thaws` | guests whose filesystems may stand still and have to be told to go on ([`live`](super::live)) |
//! | `merges` | layers that are being merged while a guest writes ([`merge`](super::merge)) |
//! | `store` | what these records call themselves |
//!
//! Each change is one transaction, durable when it returns (WAL, full synchronisation). A crash leaves
//! layers that are `making` or `removing`, and volumes that are `making`: nobody sees those, and whoever
//! opens the volumes next removes them. A file without a row is never ours to remove.
//!
//! A key goes with the last layer that has it. What is deleted is overwritten (`secure_delete`), and
//! [`Records::forget`] has that reach the disk.

use super::error::VolumeError;
use super::keys::{KeyId, NewKey};
use super::layer::{Home, LayerFormat};
use crate::failpoint;
use aleph_types::{
    Filesystem, Incarnation, JobId, MiB, Timestamp, VolumeAccess, VolumeConsistency, VolumeId,
    VolumeLease, VolumeSnapshot,
};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// The form of the tables, in `PRAGMA user_version`.
const FORM: u32 = 3;

const TABLES: &str = "
    CREATE TABLE volumes (
        id TEXT PRIMARY KEY, account TEXT NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL,
        filesystem TEXT NOT NULL, state TEXT NOT NULL, top INTEGER NOT NULL,
        unclean INTEGER NOT NULL, created INTEGER NOT NULL, purged INTEGER
    );
    CREATE UNIQUE INDEX volumes_name ON volumes (account, name) WHERE state != 'deleted';
    CREATE TABLE layers (
        id INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL, format TEXT NOT NULL,
        parent INTEGER, state TEXT NOT NULL, charge INTEGER NOT NULL, written INTEGER NOT NULL
    );
    CREATE INDEX layers_parent ON layers (parent);
    CREATE TABLE snapshots (
        volume TEXT NOT NULL, name TEXT NOT NULL, layer INTEGER NOT NULL, size INTEGER NOT NULL,
        created INTEGER NOT NULL, PRIMARY KEY (volume, name)
    );
    CREATE INDEX snapshots_layer ON snapshots (layer);
    CREATE TABLE leases (
        volume TEXT NOT NULL, job TEXT NOT NULL, incarnation INTEGER NOT NULL,
        access TEXT NOT NULL, since INTEGER NOT NULL, PRIMARY KEY (volume, job)
    );
";

/// What form 2 has more than form 1.
const SINCE_1: &str = "
    ALTER TABLE layers ADD COLUMN home TEXT NOT NULL DEFAULT 'folder';
    ALTER TABLE layers ADD COLUMN key TEXT;
    CREATE TABLE keys (id TEXT PRIMARY KEY, wrapped BLOB NOT NULL);
    CREATE TABLE store (name TEXT NOT NULL);
    INSERT INTO store VALUES (lower(hex(randomblob(4))));
    CREATE TABLE covers (
        volume TEXT PRIMARY KEY, job TEXT NOT NULL, incarnation INTEGER NOT NULL,
        layer INTEGER NOT NULL, below INTEGER NOT NULL, name TEXT, size INTEGER NOT NULL,
        created INTEGER NOT NULL, step TEXT NOT NULL, guest TEXT NOT NULL
    );
    CREATE TABLE covered (layer INTEGER PRIMARY KEY, volume TEXT NOT NULL);
    CREATE TABLE points (
        volume TEXT NOT NULL, name TEXT NOT NULL, consistency TEXT NOT NULL,
        PRIMARY KEY (volume, name)
    );
";

/// It goes with its job's VM, so that an older program, which leaves it alone, misses nothing.
const THAWS: &str = "
    CREATE TABLE IF NOT EXISTS thaws (
        job TEXT NOT NULL, incarnation INTEGER NOT NULL, guest TEXT NOT NULL,
        PRIMARY KEY (job, incarnation)
    );
";

/// What form 3 has more than form 2.
const SINCE_2: &str = "
    ALTER TABLE layers ADD COLUMN merged INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE merges (
        volume TEXT PRIMARY KEY, layer INTEGER NOT NULL, over INTEGER NOT NULL, first INTEGER NOT NULL
    );
";

type Result<T> = std::result::Result<T, VolumeError>;
type SqlResult<T> = rusqlite::Result<T>;

/// Where a volume's or a layer's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Nobody sees it.
    Making,
    Ready,
    /// A volume that can be had back.
    Deleted,
    /// A layer whose file goes.
    Removing,
}

impl Life {
    fn word(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Ready => "ready",
            Self::Deleted => "deleted",
            Self::Removing => "removing",
        }
    }
}

impl FromStr for Life {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let all = [Self::Making, Self::Ready, Self::Deleted, Self::Removing];
        let found = all.into_iter().find(|life| life.word() == text);
        found.ok_or_else(|| format!("{text:?} is no state"))
    }
}

/// A layer that is to be made.
#[derive(Debug)]
pub(super) struct NewLayer {
    pub(super) format: LayerFormat,
    pub(super) parent: Option<LayerId>,
    pub(super) home: Home,
    pub(super) key: Option<KeyId>,
}

/// The number of a layer, which none had before it.
pub(super) type LayerId = i64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeRow {
    pub(super) id: VolumeId,
    pub(super) account: String,
    pub(super) name: String,
    pub(super) size: MiB,
    pub(super) filesystem: Filesystem,
    pub(super) life: Life,
    pub(super) top: LayerId,
    pub(super) unclean: bool,
    pub(super) created: Timestamp,
    pub(super) purged: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LayerRow {
    pub(super) id: LayerId,
    pub(super) account: String,
    pub(super) format: LayerFormat,
    pub(super) parent: Option<LayerId>,
    /// Bytes that its account pays for: all that it can hold while it is written, then what it does hold.
    pub(super) charge: u64,
    /// Whether anybody may have written to it since it was made from its parent.
    pub(super) written: bool,
    pub(super) home: Home,
    /// What it is encrypted with.
    pub(super) key: Option<KeyId>,
    /// Whether a VMM still has it open for writing, although nothing of it may change any more.
    pub(super) exposed: bool,
    /// Whether it holds what several layers did: it was never a state of a volume that anybody was given.
    pub(super) merged: bool,
}

#[derive(Debug)]
pub(super) struct Records(Mutex<Connection>);

impl Records {
    /// Opens the records, or makes them.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        // Before the journal's mode: then its index is in memory, and not in a file that is mapped, where a disk
        // that fails would end the process (SIGBUS) instead of one change. Nobody else opens the records.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "secure_delete", true)?;
        let form: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if form > FORM {
            return Err(VolumeError::Newer(form, FORM));
        }
        if form < FORM {
            let tx = connection.transaction()?;
            if form == 0 {
                tx.execute_batch(TABLES)?;
            }
            if form < 2 {
                tx.execute_batch(SINCE_1)?;
            }
            tx.execute_batch(SINCE_2)?;
            tx.pragma_update(None, "user_version", FORM)?;
            tx.commit()?;
        }
        connection.execute_batch(THAWS)?;
        Ok(Self(Mutex::new(connection)))
    }

    /// Has what was deleted be gone from the disk, and not in a journal of it either.
    pub(super) fn forget(&self) -> Result<()> {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        Ok(done?)
    }

    /// One change, whole or not at all. A test may have the process die before and after it.
    pub(super) fn write<T>(
        &self,
        step: &'static str,
        work: impl FnOnce(&Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        failpoint::pass(step, "before");
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tx = Tx(connection.transaction()?);
        let done = work(&tx)?;
        tx.0.commit()?;
        failpoint::pass(step, "after");
        Ok(done)
    }

    /// Looks at one state of all.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work(&Tx(connection.transaction()?))
    }
}

/// The records within a transaction.
pub(super) struct Tx<'a>(pub(super) Transaction<'a>);

const VOLUME: &str =
    "SELECT id, account, name, size, filesystem, state, top, unclean, created, purged FROM volumes";
const LAYER: &str = "SELECT id, account, format, parent, charge, written, home, key,
    EXISTS (SELECT 1 FROM covered WHERE layer = id), merged FROM layers";

impl Tx<'_> {
    pub(super) fn add_volume(&self, row: &VolumeRow) -> Result<()> {
        self.0.execute(
            "INSERT INTO volumes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                row.id.to_string(),
                row.account,
                row.name,
                row.size.0,
                row.filesystem.to_string(),
                row.life.word(),
                row.top,
                row.unclean,
                row.created.as_millisecond(),
                row.purged.map(Timestamp::as_millisecond),
            ],
        )?;
        Ok(())
    }

    /// Puts down what has changed of a volume.
    pub(super) fn put_volume(&self, row: &VolumeRow) -> Result<()> {
        self.0.execute(
            "UPDATE volumes SET name = ?2, size = ?3, state = ?4, top = ?5, unclean = ?6, purged = ?7
             WHERE id = ?1",
            params![
                row.id.to_string(),
                row.name,
                row.size.0,
                row.life.word(),
                row.top,
                row.unclean,
                row.purged.map(Timestamp::as_millisecond),
            ],
        )?;
        Ok(())
    }

    /// Forgets a volume with its snapshots. Its layers are for [`Tx::orphans`].
    pub(super) fn drop_volume(&self, id: VolumeId) -> Result<()> {
        let id = id.to_string();
        for table in [
            "snapshots",
            "leases",
            "covers",
            "covered",
            "points",
            "merges",
        ] {
            let sql = format!("DELETE FROM {table} WHERE volume = ?1");
            self.0.execute(&sql, [&id])?;
        }
        self.0.execute("DELETE FROM volumes WHERE id = ?1", [&id])?;
        Ok(())
    }

    pub(super) fn volume(&self, id: VolumeId) -> Result<Option<VolumeRow>> {
        let sql = format!("{VOLUME} WHERE id = ?1");
        let found = self.0.query_row(&sql, [id.to_string()], volume_row);
        Ok(found.optional()?)
    }

    /// All volumes, the oldest first; also those that nobody sees.
    pub(super) fn volumes(&self) -> Result<Vec<VolumeRow>> {
        let sql = format!("{VOLUME} ORDER BY created, id");
        self.all(&sql, &[], volume_row)
    }

    /// Whether another volume than one that was deleted has this name.
    pub(super) fn is_taken(&self, account: &str, name: &str) -> Result<bool> {
        let sql = "SELECT count(*) FROM volumes
                   WHERE account = ?1 AND name = ?2 AND state != 'deleted'";
        let count: u32 = self.0.query_row(sql, [account, name], |row| row.get(0))?;
        Ok(count > 0)
    }

    /// How many volumes an account has, and what it is charged for in bytes.
    pub(super) fn held(&self, account: &str) -> Result<(u64, u64)> {
        let sql = "SELECT (SELECT count(*) FROM volumes WHERE account = ?1),
                   (SELECT coalesce(sum(charge), 0) FROM layers WHERE account = ?1)";
        Ok(self
            .0
            .query_row(sql, [account], |row| Ok((number(row, 0)?, number(row, 1)?)))?)
    }

    /// Begins a layer.
    pub(super) fn add_layer(&self, account: &str, new: &NewLayer, charge: u64) -> Result<LayerRow> {
        self.0.execute(
            "INSERT INTO layers (account, format, parent, state, charge, written, home, key)
             VALUES (?1, ?2, ?3, 'making', ?4, 0, ?5, ?6)",
            params![
                account,
                new.format.word(),
                new.parent,
                whole(charge)?,
                new.home.word(),
                new.key.as_ref().map(|key| &key.0),
            ],
        )?;
        self.layer(self.0.last_insert_rowid())
    }

    /// Notes of a layer that it holds what several do.
    pub(super) fn mark_merged(&self, id: LayerId) -> Result<()> {
        let sql = "UPDATE layers SET merged = 1 WHERE id = ?1";
        self.0.execute(sql, [id])?;
        Ok(())
    }

    /// Puts a key down, in the change that begins the first layer with it.
    pub(super) fn add_key(&self, key: &NewKey) -> Result<()> {
        let sql = "INSERT INTO keys VALUES (?1, ?2)";
        self.0.execute(sql, params![key.id.0, key.wrapped])?;
        Ok(())
    }

    /// A key, as it was put down.
    pub(super) fn key(&self, id: &KeyId) -> Result<Vec<u8>> {
        let sql = "SELECT wrapped FROM keys WHERE id = ?1";
        Ok(self.0.query_row(sql, [&id.0], |row| row.get(0))?)
    }

    pub(super) fn has_keys(&self) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM keys)";
        Ok(self.0.query_row(sql, [], |row| row.get(0))?)
    }

    /// What these records call themselves: no other ones do.
    pub(super) fn store(&self) -> Result<String> {
        Ok(self
            .0
            .query_row("SELECT name FROM store", [], |row| row.get(0))?)
    }

    /// The layers that are at a place.
    pub(super) fn layers_at(&self, home: Home) -> Result<Vec<LayerRow>> {
        let sql = format!("{LAYER} WHERE home = ?1");
        self.all(&sql, &[&home.word()], layer_row)
    }

    pub(super) fn put_layer(&self, row: &LayerRow) -> Result<()> {
        self.0.execute(
            "UPDATE layers SET state = 'ready', charge = ?2, written = ?3 WHERE id = ?1",
            params![row.id, whole(row.charge)?, row.written],
        )?;
        Ok(())
    }

    pub(super) fn finish_layer(&self, id: LayerId) -> Result<()> {
        let sql = "UPDATE layers SET state = 'ready' WHERE id = ?1";
        self.0.execute(sql, [id])?;
        Ok(())
    }

    /// What comes before its file is removed.
    pub(super) fn condemn_layer(&self, id: LayerId) -> Result<()> {
        let sql = "UPDATE layers SET state = 'removing' WHERE id = ?1";
        self.0.execute(sql, [id])?;
        Ok(())
    }

    /// Forgets a layer, and its key where no other layer has it.
    pub(super) fn drop_layer(&self, id: LayerId) -> Result<()> {
        self.0.execute("DELETE FROM layers WHERE id = ?1", [id])?;
        let sql = "DELETE FROM keys WHERE id NOT IN (SELECT key FROM layers WHERE key NOT NULL)";
        self.0.execute(sql, [])?;
        Ok(())
    }

    pub(super) fn layer(&self, id: LayerId) -> Result<LayerRow> {
        let sql = format!("{LAYER} WHERE id = ?1");
        Ok(self.0.query_row(&sql, [id], layer_row)?)
    }

    /// A layer with those below it, down to the one without a parent.
    pub(super) fn chain(&self, top: LayerId) -> Result<Vec<LayerRow>> {
        let mut chain = vec![self.layer(top)?];
        // None is ever put below itself, so this ends.
        while let Some(parent) = chain.last().and_then(|layer| layer.parent) {
            chain.push(self.layer(parent)?);
        }
        Ok(chain)
    }

    /// Layers that nothing leads to: of no volume, no snapshot, no merge and no other layer.
    pub(super) fn orphans(&self) -> Result<Vec<LayerRow>> {
        let sql = format!(
            "{LAYER} AS l WHERE state = 'ready'
             AND NOT EXISTS (SELECT 1 FROM volumes WHERE top = l.id)
             AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = l.id)
             AND NOT EXISTS (SELECT 1 FROM merges WHERE layer = l.id)
             AND NOT EXISTS (SELECT 1 FROM layers WHERE parent = l.id)"
        );
        self.all(&sql, &[], layer_row)
    }

    /// Layers that were never finished, or whose removal was not.
    pub(super) fn unfinished(&self) -> Result<Vec<LayerRow>> {
        let sql = format!("{LAYER} WHERE state != 'ready' ORDER BY id DESC");
        self.all(&sql, &[], layer_row)
    }

    pub(super) fn add_snapshot(
        &self,
        volume: VolumeId,
        layer: LayerId,
        snapshot: &VolumeSnapshot,
    ) -> Result<()> {
        self.0.execute(
            "INSERT INTO snapshots VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                volume.to_string(),
                snapshot.name,
                layer,
                snapshot.size.0,
                snapshot.created_at.as_millisecond(),
            ],
        )?;
        Ok(())
    }

    /// Whether there was one.
    pub(super) fn drop_snapshot(&self, volume: VolumeId, name: &str) -> Result<bool> {
        let of = [&volume.to_string(), name];
        let sql = "DELETE FROM points WHERE volume = ?1 AND name = ?2";
        self.0.execute(sql, of)?;
        let sql = "DELETE FROM snapshots WHERE volume = ?1 AND name = ?2";
        Ok(self.0.execute(sql, of)? > 0)
    }

    /// A volume's snapshots, the oldest first, with their layers.
    pub(super) fn snapshots(&self, volume: VolumeId) -> Result<Vec<(VolumeSnapshot, LayerId)>> {
        let sql = "SELECT name, layer, size, created, (SELECT consistency FROM points
                       WHERE volume = s.volume AND name = s.name)
                   FROM snapshots AS s WHERE volume = ?1 ORDER BY created, rowid";
        self.all(sql, &[&volume.to_string()], |row| {
            let snapshot = VolumeSnapshot {
                name: row.get(0)?,
                size: MiB(row.get(2)?),
                created_at: time(row, 3)?,
                consistency: consistency(row, 4)?,
            };
            Ok((snapshot, row.get(1)?))
        })
    }

    /// Puts a lease down, over one that the job had before.
    pub(super) fn put_lease(&self, volume: VolumeId, lease: &VolumeLease) -> Result<()> {
        let incarnation = whole(lease.incarnation.get())?;
        self.0.execute(
            "INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                volume.to_string(),
                lease.job.to_string(),
                incarnation,
                word_of(lease.access),
                lease.since.as_millisecond(),
            ],
        )?;
        Ok(())
    }

    /// Ends a lease of one start of a job. Whether there was one: a later start may have it by now.
    pub(super) fn drop_lease(
        &self,
        volume: VolumeId,
        job: JobId,
        incarnation: Incarnation,
    ) -> Result<bool> {
        let sql = "DELETE FROM leases WHERE volume = ?1 AND job = ?2 AND incarnation = ?3";
        let of = params![
            volume.to_string(),
            job.to_string(),
            whole(incarnation.get())?
        ];
        Ok(self.0.execute(sql, of)? > 0)
    }

    pub(super) fn leases(&self, volume: VolumeId) -> Result<Vec<VolumeLease>> {
        let sql = "SELECT job, incarnation, access, since FROM leases WHERE volume = ?1
                   ORDER BY since, job";
        self.all(sql, &[&volume.to_string()], |row| lease(row, 0))
    }

    /// All leases, with their volumes.
    pub(super) fn all_leases(&self) -> Result<Vec<(VolumeId, VolumeLease)>> {
        let sql = "SELECT job, incarnation, access, since, volume FROM leases";
        self.all(sql, &[], |row| Ok((parsed(row, 4)?, lease(row, 0)?)))
    }

    pub(super) fn all<T>(
        &self,
        sql: &str,
        values: &[&dyn rusqlite::ToSql],
        read: impl FnMut(&Row<'_>) -> SqlResult<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.0.prepare_cached(sql)?;
        let rows = statement.query_map(values, read)?;
        Ok(rows.collect::<SqlResult<_>>()?)
    }
}

fn word_of(access: VolumeAccess) -> &'static str {
    match access {
        VolumeAccess::Exclusive => "exclusive",
        VolumeAccess::ReadOnly => "read-only",
    }
}

pub(super) fn whole(number: u64) -> Result<i64> {
    i64::try_from(number)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()).into())
}

pub(super) fn number(row: &Row<'_>, at: usize) -> SqlResult<u64> {
    let number: i64 = row.get(at)?;
    u64::try_from(number).map_err(|error| wrong(at, Type::Integer, error))
}

pub(super) fn time(row: &Row<'_>, at: usize) -> SqlResult<Timestamp> {
    Timestamp::from_millisecond(row.get(at)?).map_err(|error| wrong(at, Type::Integer, error))
}

pub(super) fn parsed<T: FromStr>(row: &Row<'_>, at: usize) -> SqlResult<T>
where
    T::Err: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let text: String = row.get(at)?;
    text.parse()
        .map_err(|error: T::Err| wrong(at, Type::Text, error))
}

pub(super) fn wrong(
    at: usize,
    kind: Type,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(at, kind, error.into())
}

fn consistency(row: &Row<'_>, at: usize) -> SqlResult<Option<VolumeConsistency>> {
    let text: Option<String> = row.get(at)?;
    Ok(match text.as_deref() {
        None => None,
        Some("filesystem") => Some(VolumeConsistency::Filesystem),
        Some("crash") => Some(VolumeConsistency::Crash),
        Some(other) => {
            let why = format!("{other:?} is no consistency");
            return Err(wrong(at, Type::Text, why));
        }
    })
}

fn lease(row: &Row<'_>, at: usize) -> SqlResult<VolumeLease> {
    let access: String = row.get(at + 2)?;
    Ok(VolumeLease {
        job: parsed(row, at)?,
        incarnation: Incarnation::from_count(number(row, at + 1)?),
        access: match access.as_str() {
            "exclusive" => VolumeAccess::Exclusive,
            "read-only" => VolumeAccess::ReadOnly,
            other => return Err(wrong(at + 2, Type::Text, format!("{other:?} is no access"))),
        },
        since: time(row, at + 3)?,
    })
}

fn volume_row(row: &Row<'_>) -> SqlResult<VolumeRow> {
    let purged: Option<i64> = row.get(9)?;
    Ok(VolumeRow {
        id: parsed(row, 0)?,
        account: row.get(1)?,
        name: row.get(2)?,
        size: MiB(row.get(3)?),
        filesystem: parsed(row, 4)?,
        life: parsed(row, 5)?,
        top: row.get(6)?,
        unclean: row.get(7)?,
        created: time(row, 8)?,
        purged: purged.map(|_| time(row, 9)).transpose()?,
    })
}

fn layer_row(row: &Row<'_>) -> SqlResult<LayerRow> {
    Ok(LayerRow {
        id: row.get(0)?,
        account: row.get(1)?,
        format: parsed(row, 2)?,
        parent: row.get(3)?,
        charge: number(row, 4)?,
        written: row.get(5)?,
        home: parsed(row, 6)?,
        key: row.get::<_, Option<String>>(7)?.map(KeyId),
        exposed: row.get(8)?,
        merged: row.get(9)?,
    })
}
