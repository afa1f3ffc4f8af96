//! Any bytes on a keeper's socket, as its client and before it has attached. The keeper lives for the
//! whole session and runs nothing: its owner's policy is off.
#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_node::keeper::wire::{FrameReader, FrameWriter};
use moltis_node::keeper::{Keeper, KeeperConfig, Policy, Rules};
use moltis_proto::message::Windows;
use moltis_proto::{BootId, FromKeeper, ToKeeper, limits};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

struct World {
    runtime: Runtime,
    keeper: Keeper,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .enable_io()
            .build()
            .expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let rules = Rules {
            policy: Policy::Off,
            env_allow: Vec::new(),
            timeout_max: None,
            timeout_default: None,
            working_dir: PathBuf::from("/"),
            base_env: BTreeMap::new(),
        };
        let boot_id = BootId::from_bytes([1; 16]);
        let config = KeeperConfig::new(dir.path(), Arc::new(rules), boot_id, "fuzz");
        let entered = runtime.enter();
        let keeper = Keeper::spawn_in_process(config).expect("a keeper");
        drop(entered);
        Self {
            runtime,
            keeper,
            _dir: dir,
        }
    }

    /// Says these bytes and hears what comes of them, up to the end. Returns nothing when the keeper
    /// has left: a client may ask it to.
    fn say(&self, attaches: bool, bytes: &[u8]) -> Option<()> {
        self.runtime.block_on(async {
            let stream = self.keeper.connect().await.ok()?;
            let (read, mut write) = tokio::io::split(stream);
            if attaches {
                let windows = Windows {
                    run_bytes: limits::RUN_WINDOW_BYTES,
                    connection_bytes: limits::CONNECTION_WINDOW_BYTES,
                    stdin_bytes: limits::STDIN_WINDOW_BYTES,
                    chunk_bytes_max: 60 * 1024,
                };
                let attach = ToKeeper::Attach { windows };
                let mut frames = FrameWriter::new(&mut write);
                frames.send(&attach).await.ok()?;
            }
            let said = async {
                write.write_all(bytes).await.ok(); // it may have closed in the middle
                write.shutdown().await.ok();
            };
            let heard = async {
                let mut frames = FrameReader::new(read);
                while let Ok(Some(_)) = frames.message::<FromKeeper>().await {}
            };
            tokio::join!(said, heard);
            Some(())
        })
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let attaches = input.byte() != 255;
    WORLD.with_borrow_mut(|world| {
        if world.say(attaches, input.rest()).is_none() {
            *world = World::new();
        }
    });
});
