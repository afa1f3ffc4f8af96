//! Domain labels: the first 32 bytes of everything that is signed or hashed, ASCII filled with
//! zero bytes, so that no structure can be taken for another.

/// Before what a gateway signs.
pub const GATEWAY_PROOF: [u8; 32] = label("moltis gateway proof 1");
/// Before what a node signs.
pub const NODE_PROOF: [u8; 32] = label("moltis node proof 1");
/// Before what becomes a connection code.
pub const CONNECTION_CODE: [u8; 32] = label("moltis connection code 1");
/// Before what becomes the id of a run with an idempotency key.
pub const RUN_ID: [u8; 32] = label("moltis run id 1");

/// Returns the text filled with zero bytes; longer than 32 bytes does not compile as a constant.
const fn label(text: &str) -> [u8; 32] {
    let text = text.as_bytes();
    let mut bytes = [0; 32];
    let mut at = 0;
    while at < text.len() {
        bytes[at] = text[at];
        at += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_differ_and_end_in_zero_bytes() {
        let all = [GATEWAY_PROOF, NODE_PROOF, CONNECTION_CODE, RUN_ID];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| other != one));
            assert_eq!(one[31], 0);
        }
        assert_eq!(
            &NODE_PROOF,
            b"moltis node proof 1\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
    }
}
