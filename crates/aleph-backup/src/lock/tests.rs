use super::*;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tokio::sync::Semaphore;

fn child() -> Child {
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).spawn().unwrap()
}

/// The lock that a process of this host would have.
fn held_by(child: &Child) -> Holder {
    let here = Origin::here().unwrap();
    Holder {
        sharing: Sharing::Exclusive,
        work: "a test".to_owned(),
        host: "here".to_owned(),
        process: child.id(),
        since: Timestamp::now(),
        origin: Some(Origin {
            began: match process::look(child.id()) {
                Sign::Began(began) => began,
                sign => panic!("{sign:?}"),
            },
            ..here
        }),
    }
}

#[tokio::test]
async fn a_lock_of_a_process_that_is_gone_is_taken_over() {
    let objects = Objects::new(Arc::new(InMemory::new()));
    let mut child = child();
    let holder = held_by(&child);
    let object = name(LOCKS, &Id::of(b"theirs"));
    let json = serde_json::to_vec(&holder).unwrap();
    objects.put(&object, json.into()).await.unwrap();
    let take = async || Lock::take(&objects, Sharing::Shared, "backup").await;
    let error = take().await.unwrap_err();
    assert!(matches!(error, BackupError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(object.as_ref()), "{error}");
    child.kill().unwrap();
    // It is there until somebody hears of its end, and gone all the same.
    aleph_testkit::wait_until("its end", Duration::from_secs(20), || {
        (holder.life(&object) == Life::Gone).then_some(())
    });
    let lock = take().await.unwrap();
    assert!(!objects.exists(&object).await.unwrap());
    lock.release().await;
    child.wait().unwrap();
    assert_eq!(holder.life(&object), Life::Gone);
}

#[test]
fn what_is_not_known_to_be_gone_is_not_gone() {
    let lock = name(LOCKS, &Id::of(b"theirs"));
    let mut child = child();
    let alive = held_by(&child);
    assert_eq!(alive.life(&lock), Life::Lives);
    child.kill().unwrap();
    child.wait().unwrap();
    let life = |change: &dyn Fn(&mut Origin)| {
        let mut holder = alive.clone();
        holder.origin.as_mut().map(change);
        holder.life(&lock)
    };
    assert_eq!(life(&|_| ()), Life::Gone);
    assert_eq!(
        life(&|origin| origin.boot = "another".to_owned()),
        Life::Unknown
    );
    assert_eq!(
        life(&|origin| origin.namespace = "pid:[1]".to_owned()),
        Life::Unknown
    );
    let older = Holder {
        origin: None,
        ..alive.clone()
    };
    assert_eq!(
        older.life(&lock),
        Life::Unknown,
        "an older program does not say"
    );
    // A number that somebody else has by now.
    let mut other = alive;
    other.process = std::process::id();
    other.origin.as_mut().unwrap().began += 1;
    assert_eq!(other.life(&lock), Life::Gone);
    // This process knows which it holds.
    other.origin = Origin::here();
    assert_eq!(other.life(&lock), Life::Gone);
    held().get_or_insert_default().insert(lock.clone());
    assert_eq!(other.life(&lock), Life::Lives);
    forget(&lock);
}

/// A store's own time is that of its files, where it is a folder.
#[tokio::test]
async fn a_process_of_this_host_holds_its_lock_at_any_age() {
    let folder = tempfile::tempdir().unwrap();
    let store = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let objects = Objects::new(Arc::new(store));
    let mut child = child();
    let put = async |who: &[u8], holder: &Holder| {
        let object = name(LOCKS, &Id::of(who));
        let json = serde_json::to_vec(holder).unwrap();
        objects.put(&object, json.into()).await.unwrap();
        let path = folder.path().join(object.as_ref());
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * STALE;
        file.set_modified(long_ago).unwrap();
        object
    };
    let theirs = put(b"theirs", &held_by(&child)).await;
    let elsewhere = Holder {
        origin: None,
        ..held_by(&child)
    };
    let stale = put(b"stale", &elsewhere).await;
    for _ in 0..2 {
        let error = Lock::take(&objects, Sharing::Shared, "backup").await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(theirs.as_ref()), "{error}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let lock = Lock::take(&objects, Sharing::Shared, "backup").await;
    lock.unwrap().release().await;
    for object in [theirs, stale] {
        assert!(!objects.exists(&object).await.unwrap(), "{object}");
    }
}

/// A store whose writes go on when nobody waits for them, as those of a folder do, each once it may.
#[derive(Debug)]
struct Deaf {
    inner: Arc<InMemory>,
    may: Arc<Semaphore>,
    began: Arc<Semaphore>,
    ended: Arc<Semaphore>,
}

impl std::fmt::Display for Deaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("deaf")
    }
}

type Outcome<T> = Result<T, object_store::Error>;

#[async_trait::async_trait]
impl ObjectStore for Deaf {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Outcome<PutResult> {
        let (inner, location) = (self.inner.clone(), location.clone());
        let (may, ended) = (self.may.clone(), self.ended.clone());
        self.began.add_permits(1);
        let write = tokio::spawn(async move {
            may.acquire().await.unwrap().forget();
            let written = inner.put_opts(&location, payload, options).await;
            ended.add_permits(1);
            written
        });
        write.await.unwrap()
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Outcome<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Outcome<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Outcome<Path>>,
    ) -> BoxStream<'static, Outcome<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Outcome<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Outcome<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Outcome<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_lock_that_is_being_refreshed_is_not_written_after_it_was_given_back() {
    for drops in [false, true] {
        let may = Arc::new(Semaphore::new(1));
        let (began, ended) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let store = Deaf {
            inner: Arc::default(),
            may: may.clone(),
            began: began.clone(),
            ended: ended.clone(),
        };
        let objects = Objects::new(Arc::new(store));
        let object = name(LOCKS, &Id::of(b"ours"));
        let content = Bytes::from_static(b"held");
        objects.put(&object, content.clone()).await.unwrap();
        let lock = Lock::hold(&objects, object.clone(), content, Duration::from_millis(1));
        began.acquire_many(2).await.unwrap().forget();
        let release = tokio::spawn(async move {
            if drops {
                drop(lock);
            } else {
                lock.release().await;
            }
        });
        // As far as it comes while the write is under way.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        may.add_permits(1);
        release.await.unwrap();
        ended.acquire_many(2).await.unwrap().forget();
        while held().as_ref().unwrap().contains(&object) {
            tokio::task::yield_now().await;
        }
        assert!(!objects.exists(&object).await.unwrap(), "{drops}");
    }
}
