//! `node.json` as the rules of a node's keeper: read again whenever the file has changed, so that
//! what the owner decides holds for the next run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moltis_proto::handshake::PolicyMode;

use super::{ConfigFile, NodeConfig, Stamp};
use crate::keeper::config::RulesError;
use crate::keeper::{Policy, Rules, RulesSource};

/// The rules that stand in a `node.json`.
#[derive(Debug)]
pub struct NodeRules {
    file: ConfigFile,
    base_env: BTreeMap<String, String>,
    known: Option<(Option<Stamp>, Arc<Rules>)>,
}

impl NodeRules {
    /// Takes the rules from `file`. `base_env` is what every child starts with (HOME, USER,
    /// LOGNAME, SHELL, TMPDIR); its PATH is that of the file.
    pub fn new(file: ConfigFile, base_env: BTreeMap<String, String>) -> Self {
        Self {
            file,
            base_env,
            known: None,
        }
    }

    fn read(&self) -> Result<Rules, RulesError> {
        let config = self.file.load().map_err(|source| RulesError {
            path: self.file.path().to_owned(),
            source: source.into(),
        })?;
        Ok(rules(config, self.base_env.clone()))
    }
}

impl RulesSource for NodeRules {
    fn current(&mut self) -> Result<Arc<Rules>, RulesError> {
        // The stamp is taken first: a change in this moment is read once more the next time.
        let stamp = self.file.stamp();
        if let Some((known, rules)) = &self.known
            && stamp.is_some()
            && *known == stamp
        {
            return Ok(Arc::clone(rules));
        }
        self.known = None;
        let rules = Arc::new(self.read()?);
        self.known = Some((stamp, Arc::clone(&rules)));
        Ok(rules)
    }
}

fn rules(config: NodeConfig, mut base_env: BTreeMap<String, String>) -> Rules {
    let timeout = (config.timeout_seconds > 0).then(|| Duration::from_secs(config.timeout_seconds));
    base_env.insert("PATH".to_owned(), config.path);
    Rules {
        policy: match config.policy.mode {
            PolicyMode::Full => Policy::Full,
            PolicyMode::Off => Policy::Off,
            PolicyMode::AllowList => Policy::AllowList(config.policy.allow),
        },
        env_allow: config.env_allow,
        timeout_max: timeout,
        timeout_default: timeout,
        working_dir: PathBuf::from(config.working_dir),
        base_env,
    }
}

#[cfg(test)]
mod tests {
    use moltis_proto::NodeName;

    use super::*;

    #[test]
    fn what_the_owner_changes_holds_for_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = ConfigFile::new(dir.path().join("node.json"));
        let mut config = NodeConfig::new(
            "ws://h:1/ws".parse().unwrap(),
            NodeName::new("box").unwrap(),
            "/home/ada",
            "/opt/bin",
        );
        config.timeout_seconds = 0;
        file.save(&config).unwrap();
        let base = BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]);
        let mut source = NodeRules::new(file.clone(), base);
        let first = source.current().unwrap();
        assert_eq!(first.policy, Policy::Full);
        assert_eq!(first.timeout_max, None);
        assert_eq!(first.base_env["PATH"], "/opt/bin");
        assert!(Arc::ptr_eq(&first, &source.current().unwrap()), "read once");

        config.policy.mode = PolicyMode::AllowList;
        config.policy.allow = vec![vec!["uname".to_owned()]];
        config.timeout_seconds = 7;
        file.save(&config).unwrap();
        let second = source.current().unwrap();
        assert_eq!(
            second.policy,
            Policy::AllowList(vec![vec!["uname".to_owned()]])
        );
        assert_eq!(second.timeout_max, Some(Duration::from_secs(7)));

        std::fs::write(file.path(), "{").unwrap();
        assert!(
            source.current().is_err(),
            "no run starts by rules that cannot be read"
        );
        std::fs::remove_file(file.path()).unwrap();
        assert!(source.current().is_err());
    }
}
