//! The filter of environment variables: what it lets through it lets through again, name by name and
//! all together, and no name that loads code or looks like a secret passes, whoever allowed it.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_proto::env::{self, VALUE_BYTES_MAX, VARIABLES_MAX};

/// What no owner can allow, written down once more: a name that goes missing in the product is missed
/// here.
const NEVER_BEGINS: [&str; 3] = ["LD_", "DYLD_", "MOLTIS_"];
const NEVER_IS: [&str; 12] = [
    "BASH_ENV",
    "ENV",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "IFS",
    "PROMPT_COMMAND",
    "NODE_OPTIONS",
    "PYTHONSTARTUP",
    "PERL5OPT",
    "RUBYOPT",
    "GIT_SSH_COMMAND",
];
const NEVER_HOLDS: [&str; 6] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"];

fn is_denied(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    NEVER_IS.contains(&&*upper)
        || NEVER_BEGINS.iter().any(|part| upper.starts_with(part))
        || NEVER_HOLDS.iter().any(|part| upper.contains(part))
}

/// The standard list, said in another way than the product says it.
fn is_standard(name: &str) -> bool {
    let category = name.strip_prefix("LC_").unwrap_or_default();
    ["TERM", "LANG", "COLORTERM", "NO_COLOR", "FORCE_COLOR"].contains(&name)
        || (!category.is_empty()
            && category.len() <= 32
            && category.chars().all(|c| c.is_ascii_uppercase()))
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut allowed = Vec::new();
    for _ in 0..input.below(5) {
        allowed.push(input.text(200).to_owned());
    }
    let mut asked = BTreeMap::new();
    while !input.is_empty() {
        let name = match input.below(4) {
            0 if !allowed.is_empty() => allowed[input.below(allowed.len())].clone(),
            _ => input.text(200).to_owned(),
        };
        let times = 1 + usize::from(input.byte()) * usize::from(input.flag());
        asked.insert(name, input.text(100).repeat(times));
    }
    let verdict = env::check(&asked, &allowed);
    assert_eq!(verdict, env::check(&asked, &allowed), "asked twice");

    // One by one: what passes together passes alone, and what passes alone passes together.
    let alone: BTreeMap<_, _> = asked
        .iter()
        .filter(|(name, value)| {
            let one = BTreeMap::from([((*name).clone(), (*value).clone())]);
            env::check(&one, &allowed).is_ok()
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    assert_eq!(
        verdict.is_ok(),
        alone.len() == asked.len() && asked.len() <= VARIABLES_MAX
    );
    if alone.len() <= VARIABLES_MAX {
        assert_eq!(env::check(&alone, &allowed), Ok(()), "filtered twice");
    }

    for (name, value) in &alone {
        assert!(!is_denied(name), "{name:?} passes");
        assert!(
            is_standard(name) || allowed.contains(name),
            "{name:?} passes"
        );
        assert!(value.len() <= VALUE_BYTES_MAX && !value.contains(char::is_control));
        assert!(!(is_standard(name) && value.contains('/')));
    }
    for name in &allowed {
        if env::may_be_allowed(name) {
            assert!(!is_denied(name), "{name:?} may be allowed");
            assert!(!name.contains(['=', '\0']));
        }
    }
});
