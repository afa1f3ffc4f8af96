//! A node's own secret, where its state directory holds it in a form that is recognised. For the one
//! row that has to sign as the node itself.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use moltis_identity::SecretKey;
use moltis_proto::PublicKey;

/// Bytes of a file that is looked into, at the most: key files are small.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Directories below the first one that are looked into.
const DEPTH_MAX: u32 = 3;

/// Returns the secret key of `public`, if a file below `dir` is its 32 bytes, or has them among its
/// words in base64 or hexadecimal digits.
pub(super) fn find(dir: &Path, public: PublicKey) -> Option<SecretKey> {
    find_below(dir, public, DEPTH_MAX)
}

fn find_below(dir: &Path, public: PublicKey, depth: u32) -> Option<SecretKey> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let (path, Ok(about)) = (entry.path(), entry.metadata()) else {
            continue;
        };
        let found = if about.is_dir() && depth > 0 {
            find_below(&path, public, depth - 1)
        } else if about.is_file() && about.len() <= FILE_BYTES_MAX {
            let bytes = fs::read(&path).unwrap_or_default();
            let mut keys = seeds(&bytes).into_iter().map(SecretKey::from_seed);
            keys.find(|key| key.public_key() == public)
        } else {
            None
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Returns whatever may be a seed.
fn seeds(file: &[u8]) -> Vec<[u8; 32]> {
    let is_of_a_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    let words = file.split(|byte| !is_of_a_word(byte));
    let decoded = words.filter_map(|word| match word.len() {
        43 => STANDARD_NO_PAD.decode(word).ok(),
        64 => unhex(word),
        _ => None,
    });
    decoded
        .chain([file.to_vec()])
        .filter_map(|bytes| bytes.try_into().ok())
        .collect()
}

fn unhex(word: &[u8]) -> Option<Vec<u8>> {
    let text = str::from_utf8(word).ok()?;
    let pairs = (0..text.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use moltis_identity::NodeIdentity;
    use moltis_proto::NodeId;

    use super::*;

    #[test]
    fn a_secret_is_found_in_each_form_and_no_other_key_is_taken_for_it() {
        let seed = [0xa7; 32];
        let public = SecretKey::from_seed(seed).public_key();
        let hex = "a7".repeat(32);
        let base64 = "p6enp6enp6enp6enp6enp6enp6enp6enp6enp6enp6c";
        for file in [
            seed.to_vec(),
            format!("{{\"seed\": \"{hex}\", \"other\": 1}}").into_bytes(),
            format!("secret = {base64}=\n").into_bytes(),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("below")).unwrap();
            fs::write(dir.path().join("below/key"), file).unwrap();
            let found = find(dir.path(), public).unwrap();
            assert_eq!(found.public_key(), public);
            assert!(find(dir.path(), SecretKey::generate().public_key()).is_none());
        }
    }

    #[test]
    fn a_key_file_of_ours_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let id = NodeId::new("box").unwrap();
        let identity = NodeIdentity::create(&dir.path().join("node_key"), id).unwrap();
        let public = identity.secret.public_key();
        assert!(find(dir.path(), public).is_some());
    }
}
