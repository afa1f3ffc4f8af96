//! `moltis gateway backup`: a copy of the store, made from beside the gateway.

use std::path::PathBuf;

use moltis_gateway::store::{self, BackupError};
use serde::Serialize;

use super::super::Context;
use crate::args::Backup;
use crate::exit::Exit;
use crate::failure::{Failure, failure};
use crate::units::size;

#[derive(Debug, Serialize)]
struct Made {
    path: PathBuf,
    bytes: u64,
}

/// `moltis gateway backup`.
pub(in crate::commands) async fn run(context: &Context, args: Backup) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let path = std::path::absolute(&args.file).unwrap_or(args.file);
    let bytes = store::backup(home.dir(), &path).await.map_err(told)?;
    if args.format.json {
        context.output.json(&Made { path, bytes })?;
    } else {
        let shown = home.show(&path);
        context
            .output
            .note(&format!("wrote `{shown}`: {}", size(bytes)));
        context.output.note(&format!(
            "not in it: the gateway's key `{}`, and the output of commands in `{}`",
            home.show(&home.dir().join("gateway_key")),
            home.show(&home.dir().join("outputs"))
        ));
    }
    Ok(Exit::SUCCESS)
}

fn told(error: BackupError) -> Failure {
    match error {
        BackupError::Missing { .. } => failure(error.to_string())
            .hint("MOLTIS_HOME names the home of a gateway that lives elsewhere"),
        BackupError::Exists { .. } => failure(error.to_string()).hint("name another file"),
        BackupError::Store(error) => failure("there is no backup").because(error),
        error => failure("there is no backup").because(error),
    }
}
