//! A gateway that could not be built leaves nothing behind.

use std::path::Path;

use moltis_gateway::store::{Store, Target};
use moltis_gateway::{BuildError, Gateway, GatewayConfig};
use moltis_proto::key::Digest;
use moltis_proto::{BootId, JournalId, RunId};
use tempfile::TempDir;

#[tokio::test]
async fn hosts_are_looked_at_before_anything_is_made() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let mut config = GatewayConfig::new(&home);
    config.hosts = vec!["not a host".to_owned()];
    let error = Gateway::builder(config).build().await.unwrap_err();
    assert!(matches!(error, BuildError::Host(_)), "{error:?}");
    assert!(!home.exists());
}

#[tokio::test]
async fn the_store_is_free_after_a_failure_in_the_middle() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let store = Store::open(&home).await.unwrap();
    let id = RunId::from_bytes([1; 16]);
    let open = store.add_unclaimed(
        id,
        Digest::from_bytes([1; 32]),
        &Target::Local,
        "local".to_owned(),
        BootId::from_bytes([1; 16]),
        JournalId::from_bytes([1; 16]),
        7,
        jiff::Timestamp::UNIX_EPOCH,
    );
    open.await.unwrap().unwrap();
    store.close().await;
    drop(store);
    // The key is no key.
    let key = home.join("gateway_key");
    std::fs::write(&key, "nothing").unwrap();
    let config = GatewayConfig::new(&home);
    let error = Gateway::builder(config.clone()).build().await.unwrap_err();
    assert!(matches!(error, BuildError::Key(_)), "{error:?}");
    std::fs::remove_file(&key).unwrap();
    // A place that no version of Moltis writes stops it late, with tasks at work.
    let database = home.join("gateway.db");
    replace(&database, b"local", b"lokal").unwrap();
    let error = Gateway::builder(config.clone()).build().await.unwrap_err();
    assert!(matches!(error, BuildError::Runs(_)), "{error:?}");
    replace(&database, b"lokal", b"local").unwrap();
    let gateway = Gateway::builder(config).build().await.unwrap();
    gateway.shutdown().await;
}

/// Puts one word of a file in the place of another that is as long.
fn replace(file: &Path, word: &[u8], by: &[u8]) -> std::io::Result<()> {
    let mut bytes = std::fs::read(file)?;
    for at in 0..=bytes.len() - word.len() {
        if bytes[at..].starts_with(word) {
            bytes[at..at + by.len()].copy_from_slice(by);
        }
    }
    std::fs::write(file, bytes)
}
