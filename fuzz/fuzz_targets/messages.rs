//! Any bytes as any message, in both codecs: none panics, and what is read is written and read again
//! as the same.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use moltis_proto::handshake::{GatewayProof, Introduction, NodeProof, Verdict};
use moltis_proto::{Codec, FromKeeper, ToGateway, ToKeeper, ToNode};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn read<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) {
    for codec in [Codec::Postcard, Codec::Json] {
        let Ok(message) = codec.decode::<T>(bytes) else {
            continue;
        };
        let Ok(written) = codec.encode(&message) else {
            continue; // longer in our own words than a frame
        };
        let again: T = codec.decode(&written).expect("what is written is read");
        // As bytes: a number that is none does not equal itself.
        let twice = codec.encode(&again).expect("and written again");
        assert_eq!(twice, written, "{message:?}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    read::<GatewayProof>(bytes);
    read::<NodeProof>(bytes);
    read::<Introduction>(bytes);
    read::<Verdict>(bytes);
    read::<ToNode>(bytes);
    read::<ToGateway>(bytes);
    read::<ToKeeper>(bytes);
    read::<FromKeeper>(bytes);
});
