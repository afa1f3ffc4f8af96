//! `moltis keeper`: the process that owns the runs of one directory.
//!
//! Everything about runs is the node crate's; here are its rules, from node.json or those of
//! `local`. [`super::starter`] starts it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moltis_node::config::{ConfigFile, NodeRules};
use moltis_node::keeper::{self, KeeperConfig, Policy, Rules};

use super::Context;
use crate::account::Account;
use crate::args::Keeper;
use crate::exit::Exit;
use crate::logging::{self, LogFormat, Target};
use crate::open_files;
use crate::settings::Settings;

/// The time of a run on the gateway's own machine that asks for none.
const LOCAL_TIMEOUT: Duration = Duration::from_mins(5);

/// The log of all keepers of a directory, in it.
pub(super) const LOG: &str = "keeper.log";

/// `moltis keeper`.
pub(super) async fn run(context: &Context, args: Keeper) -> anyhow::Result<Exit> {
    logging::install(
        context.settings.log.as_deref(),
        None,
        "warn",
        LogFormat::Text,
        // What comes before it, or is a panic, is on stderr, which leads there too.
        Target::File(args.dir.join(LOG)),
    )?;
    if let Some(soft) = args.open_files {
        // Before the keeper looks what its commands shall inherit.
        open_files::lower_to(soft);
    }
    let boot_id = moltis_telemetry::boot_id()?;
    let account = Account::of_process(&context.settings);
    let version = env!("CARGO_PKG_VERSION");
    let config = if args.local {
        let rules = Arc::new(local_rules(&account, &context.settings));
        KeeperConfig::new(args.dir, rules, boot_id, version)
    } else {
        let file = ConfigFile::new(context.home()?.node_config());
        let rules = NodeRules::new(file, account.base_env(&context.settings, None));
        KeeperConfig::new(args.dir, rules, boot_id, version)
    };
    let stop = crate::signals::stop_on_signal()?;
    keeper::serve(config, stop).await?;
    Ok(Exit::SUCCESS)
}

/// The rules for `local`: whoever administers the gateway owns the machine.
fn local_rules(account: &Account, settings: &Settings) -> Rules {
    Rules {
        policy: Policy::Full,
        env_allow: Vec::new(),
        timeout_max: None,
        timeout_default: Some(LOCAL_TIMEOUT),
        working_dir: PathBuf::from(&account.home),
        base_env: account.base_env(settings, settings.path.as_deref()),
    }
}
