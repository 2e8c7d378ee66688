//! Against a server that speaks S3: moto, on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use aleph_backup::{
    BackupRequest, Depth, FileSource, Location, ProgressSink, PruneOptions, Repository,
    RestoreRequest,
};
use aleph_testkit::python_with_moto;
use aleph_types::Classify;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A server of its own, which ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it on a port that the system chooses, with one bucket; says where it listens.
fn start() -> (Server, String) {
    const SCRIPT: &str = "
import boto3, logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger('werkzeug').setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
url = f'http://{host}:{port}'
boto3.client('s3', endpoint_url=url).create_bucket(Bucket='volumes')
print(url, flush=True)
sys.stdin.read()
";
    let mut child = Command::new(python_with_moto().unwrap())
        .args(["-c", SCRIPT])
        .envs(CREDENTIALS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (Server(child), line.trim().to_owned())
}

const CREDENTIALS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "an-id"),
    ("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-prints"),
    ("AWS_DEFAULT_REGION", "us-east-1"),
];

/// The environment is a process's, so the client of the server is one: this program again.
#[test]
fn a_volume_goes_to_a_bucket_and_comes_back() {
    let (_server, url) = start();
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "client", "--ignored", "--nocapture"])
        .envs(CREDENTIALS)
        .env("AWS_ENDPOINT_URL", &url)
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    assert!(ran.status.success());
    assert!(said.contains("1 passed"), "the client did not run");
    assert!(!said.contains(CREDENTIALS[1].1), "a secret was printed");
}

#[test]
#[ignore = "run by the test above, which gives it a server"]
fn client() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("volume");
        let mut bytes: Vec<u8> = (0..3_000_000u32)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes())
            .collect();
        bytes.resize(30 << 20, 0);
        fs::write(&path, &bytes).unwrap();

        let location = Location::parse("s3://volumes/node/7").unwrap();
        assert_eq!(
            Repository::open(&location, None).await.unwrap_err().code(),
            "backup_no_repository"
        );
        let repository = Repository::open_or_create(&location, None).await.unwrap();
        let back_up = async |name: &str| {
            let source = Arc::new(FileSource::new(File::open(&path).unwrap()).unwrap());
            let request = BackupRequest {
                volume: "data".to_owned(),
                name: name.to_owned(),
                ..BackupRequest::default()
            };
            repository.backup(source, request).await.unwrap()
        };
        let first = back_up("first").await;
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"changed", 5 << 20).unwrap();
        let second = back_up("second").await;
        assert_eq!(second.parent, Some(first.id));
        assert!(second.stats.stored < 1 << 20, "{:?}", second.stats);

        let again = Repository::open(&location, None).await.unwrap();
        assert_eq!(again.id(), repository.id());
        let request = |snapshot, name: &str| RestoreRequest {
            snapshot,
            target: folder.path().join(name),
            progress: ProgressSink::default(),
        };
        again.restore(request(first.id, "one")).await.unwrap();
        assert!(fs::read(folder.path().join("one")).unwrap() == bytes);
        again.forget(&[first.id]).await.unwrap();
        let now = PruneOptions {
            grace: Duration::ZERO,
            unused_percent: 0,
        };
        again.prune(now, &ProgressSink::default()).await.unwrap();
        let deleted = again
            .prune(now, &ProgressSink::default())
            .await
            .unwrap()
            .deleted;
        assert!(deleted > 0, "nothing of what was forgotten was deleted");
        again.restore(request(second.id, "two")).await.unwrap();
        assert!(fs::read(folder.path().join("two")).unwrap() == fs::read(&path).unwrap());
        assert_eq!(
            again
                .verify(Depth::Full, &ProgressSink::default())
                .await
                .unwrap()
                .damage,
            []
        );

        let absent = Location::parse("s3://no-such-bucket/x").unwrap();
        let error = Repository::open_or_create(&absent, None).await.unwrap_err();
        assert_eq!(error.code(), "backup_store_not_found", "{error}");
    });
}
