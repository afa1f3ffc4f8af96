//! Names, ids, codes and addresses from any text: none panics, and what is taken is taken again as it
//! is written.
#![no_main]

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use moltis_identity::Fingerprint;
use moltis_node::GatewayUrl;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::{NodeId, NodeName, RunId, env};

fn parse<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
}

fuzz_target!(|text: &str| {
    parse::<NodeId>(text);
    parse::<NodeName>(text);
    parse::<RunId>(text);
    parse::<Fingerprint>(text);
    parse::<GatewayUrl>(text);
    Negotiated::from_header_values(text.lines());
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let asked = BTreeMap::from([(name.to_owned(), value.to_owned())]);
    env::check(&asked, &[name.to_owned()]).ok();
});
