//! Volumes by the API of a real daemon.

mod support;

use aleph_testkit::TestRoot;
use aleph_types::{MiB, Volume, VolumeState};
use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use serde_json::json;
use support::{Client, Server, config};

/// A disk of 3 MiB with a partition table's mark, and `hello` at 2 MiB.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 3 << 20];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    disk[2 << 20..(2 << 20) + 5].copy_from_slice(b"hello");
    disk
}

async fn import(client: &Client, query: &str, image: Vec<u8>) -> Result<support::Answer> {
    let path = format!("/v1/volumes/import?{query}");
    let request = client
        .request(Method::POST, &path)
        .header(CONTENT_TYPE, "application/octet-stream")
        .body(Full::new(Bytes::from(image)))?;
    client.send(request).await
}

#[tokio::test]
async fn a_volume_lives_from_its_making_to_its_purge() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    let made = json!({"name": "data", "size": "16m"});
    let answer = client.post("/v1/volumes", made.clone()).await?;
    assert_eq!(answer.status, StatusCode::CREATED);
    let data: Volume = answer.json()?;
    assert_eq!((data.size, data.state), (MiB(16), VolumeState::Ready));
    let again = client.post("/v1/volumes", made).await?;
    assert_eq!(
        (again.status.as_u16(), again.problem()?.code.as_str()),
        (409, "name_taken")
    );

    let kept = client
        .post("/v1/volumes/data/snapshots", json!({"name": "one"}))
        .await?;
    assert_eq!(kept.status, StatusCode::CREATED);
    let copy = json!({"name": "copy", "from": {"volume": "data", "snapshot": "one"}});
    let copy: Volume = client.post("/v1/volumes", copy).await?.json()?;
    assert_eq!((copy.size, copy.filesystem), (MiB(16), data.filesystem));
    let grown: Volume = client
        .post("/v1/volumes/copy/resize", json!({"size": 32}))
        .await?
        .json()?;
    assert_eq!(grown.size, MiB(32));
    let restored = client
        .post("/v1/volumes/data/restore", json!({"name": "one"}))
        .await?;
    assert_eq!(restored.status, StatusCode::OK);
    let forgotten = client.delete("/v1/volumes/data/snapshots/one").await?;
    assert_eq!(forgotten.status, StatusCode::NO_CONTENT);
    let known: Volume = client.get("/v1/volumes/data").await?.json()?;
    assert!(known.snapshots.is_empty());

    // Another daemon on the same root finds them.
    assert_eq!(
        client.delete("/v1/volumes/data").await?.status,
        StatusCode::NO_CONTENT
    );
    server.stop().await?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    let listed: Vec<Volume> = client.get("/v1/volumes").await?.json()?;
    assert_eq!(listed.len(), 1);
    let listed: Vec<Volume> = client.get("/v1/volumes?deleted=true").await?.json()?;
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().any(|volume| volume.purged_at.is_some()));
    let back: Volume = client
        .post("/v1/volumes/data/undelete", json!({}))
        .await?
        .json()?;
    assert_eq!((back.id, back.state), (data.id, VolumeState::Ready));
    assert_eq!(
        client.delete("/v1/volumes/data?now=true").await?.status,
        StatusCode::NO_CONTENT
    );
    let gone = client.get("/v1/volumes/data").await?.problem()?;
    assert_eq!(gone.code, "no_volume");
    server.stop().await
}

#[tokio::test]
async fn images_go_in_and_out_and_accounts_see_their_own() -> Result<()> {
    let root = TestRoot::new()?;
    let server = Server::start(&config(&root)).await?;
    let client = server.local();
    let answer = import(&client, "name=disk&size=4m", disk()).await?;
    assert_eq!(answer.status, StatusCode::CREATED);
    let imported: Volume = answer.json()?;
    assert_eq!(imported.size, MiB(4));
    let image = client.get("/v1/volumes/disk/export").await?;
    let mut wanted = disk();
    wanted.resize(4 << 20, 0);
    assert!(image.body == wanted, "{} bytes", image.body.len());
    let packed = client.get("/v1/volumes/disk/export?format=qcow2").await?;
    assert!(packed.body.starts_with(b"QFI\xfb"));
    // What went out comes in again, and what names another file does not.
    let back = import(&client, "name=back", packed.body.to_vec()).await?;
    assert_eq!(back.status, StatusCode::CREATED);
    let mut hostile = packed.body.to_vec();
    hostile[8..16].copy_from_slice(&0x1000_u64.to_be_bytes());
    hostile[16..20].copy_from_slice(&11_u32.to_be_bytes());
    for (image, code) in [(hostile, "bad_qcow2"), (b"<html>".to_vec(), "not_an_image")] {
        let refused = import(&client, "name=x", image).await?;
        let problem = refused.problem()?;
        assert_eq!(
            (refused.status.as_u16(), problem.code.as_str()),
            (400, code)
        );
        assert!(problem.advice.is_some());
    }
    for (path, code) in [
        ("/v1/volumes/import", "bad_query"),
        ("/v1/volumes/import?name=a%20b", "bad_volume_name"),
        ("/v1/volumes/import?name=x&format=vmdk", "bad_query"),
        ("/v1/volumes/import?name=x&size=lots", "bad_query"),
    ] {
        assert_eq!(client.act(path).await?.problem()?.code, code, "{path}");
    }
    // For an account there is what it has.
    let of_ann = client
        .request(Method::GET, "/v1/volumes/disk")
        .header("x-aleph-account", "ann")
        .body(Full::default())?;
    assert_eq!(client.send(of_ann).await?.problem()?.code, "no_volume");
    let job = json!({"image": "busybox", "command": ["true"],
        "volumes": [{"name": "disk", "path": "/srv"}]});
    let refused = client.post("/v1/jobs", job).await?.problem()?;
    assert_eq!(refused.code, "blank_volume");
    server.stop().await
}
