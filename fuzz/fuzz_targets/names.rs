//! Names, ids, codes, addresses, labels and selectors from any text: none panics, what is taken is
//! taken again as it is written, and a selector means what it says.
#![no_main]

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use moltis_gateway::exec::select::{Known, Selector, Standing};
use moltis_identity::Fingerprint;
use moltis_node::GatewayUrl;
use moltis_proto::name::is_deceptive;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::{Labels, NodeId, NodeName, RunId};

fn parse<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    assert_eq!(value.to_string().parse::<T>().ok().as_ref(), Some(&value));
    Some(value)
}

fn node<'a>(name: &'a NodeName, labels: &'a Labels, standing: Standing) -> Known<'a> {
    Known {
        name: name.as_str(),
        standing,
        labels,
        os: "linux",
        arch: "x86_64",
        runtimes: vec!["python"],
        providers: Vec::new(),
    }
}

fuzz_target!(|text: &str| {
    parse::<NodeId>(text);
    parse::<RunId>(text);
    parse::<Fingerprint>(text);
    parse::<GatewayUrl>(text);
    let name = parse::<NodeName>(text);
    if let Some(name) = &name {
        assert!(!name.as_str().contains(is_deceptive));
    }
    if let Some(negotiated) = Negotiated::from_header_values(text.lines()) {
        let again = Negotiated::from_header_values([&*negotiated.offered]);
        assert_eq!(again, Some(negotiated));
    }

    let pairs = text.split([',', '\n']).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key.trim().to_owned(), value.trim().to_owned())
    });
    let pairs: BTreeMap<_, _> = pairs.collect();
    let labels = Labels::new(pairs.clone()).unwrap_or_default();
    let name = name.unwrap_or_else(|| "box".parse().expect("a name"));
    let Some(selector) = parse::<Selector>(text) else {
        return;
    };
    let online = node(&name, &labels, Standing::Online);
    let matches = selector.matches(&online);
    assert_eq!(matches, selector.matches(&online), "asked twice");
    // Each label that a selector of nothing else asks for is one that the node has, so it is meant.
    let only_labels = !labels.is_empty() && pairs.keys().all(|key| !Selector::is_reserved(key));
    if only_labels
        && text
            .split(',')
            .all(|term| term.contains('=') && !term.contains("!="))
    {
        let all_have = text.split(',').all(|term| {
            let (key, value) = term.split_once('=').unwrap_or_default();
            let key = key.trim();
            labels.get(key.strip_prefix("label:").unwrap_or(key)) == Some(value.trim())
        });
        assert_eq!(matches, all_have, "{text:?} {labels:?}");
    }
});
