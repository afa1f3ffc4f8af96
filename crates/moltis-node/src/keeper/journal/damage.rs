//! What becomes of a journal with bytes in it that no keeper wrote: it is told, and kept aside.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::{BODY_BYTES_MAX, HEAD_BYTES, MAGIC, crc_of, length_of};

/// How a damaged journal ends that is kept, for whoever wants to look.
const KEPT: &str = "journal-bad";
/// So many are kept. The oldest goes for one more.
const KEPT_MAX: usize = 8;

/// Returns whether what follows the last good record is more than the beginning of one, which a
/// keeper leaves that dies while it writes.
pub(super) fn is_spoiled(rest: &[u8]) -> bool {
    let (Some(length), Some(crc), Some(body)) =
        (length_of(rest), crc_of(rest), rest.get(HEAD_BYTES..))
    else {
        return false;
    };
    // A power cut leaves zeros where nothing came to the disk.
    if rest.iter().all(|byte| *byte == 0) {
        return false;
    }
    length > BODY_BYTES_MAX || body.len() >= length || is_whole_otherwise(body, crc)
}

/// Returns whether a file that does not begin as a journal is more than the beginning of one.
pub(super) fn is_no_beginning(bytes: &[u8]) -> bool {
    match bytes.strip_prefix(MAGIC) {
        Some(rest) => is_spoiled(rest),
        None => !MAGIC.starts_with(bytes) && bytes.iter().any(|byte| *byte != 0),
    }
}

/// Returns whether a record is there as a whole, and only its length is wrong.
fn is_whole_otherwise(body: &[u8], crc: u32) -> bool {
    let mut hasher = crc32fast::Hasher::new();
    body.iter().any(|byte| {
        hasher.update(&[*byte]);
        hasher.clone().finalize() == crc
    })
}

/// Puts a copy of a damaged journal beside it, and says so. One that cannot be kept is only told.
pub(super) fn keep(path: &Path, bytes: &[u8], good: usize) {
    let kept = path.with_extension(KEPT);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let copied = make_room(&kept)
        .and_then(|()| options.open(&kept))
        .and_then(|mut file| file.write_all(bytes));
    match copied {
        Ok(()) => {
            tracing::warn!(path = %path.display(), kept = %kept.display(), good_bytes = good, bytes = bytes.len(), "a dead keeper's journal is damaged: what stands behind its good bytes is not known any more; a copy is kept");
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %error, good_bytes = good, bytes = bytes.len(), "a dead keeper's journal is damaged: what stands behind its good bytes is not known any more; no copy could be kept");
        }
    }
}

/// Deletes what stands at `kept`, and the oldest of the others where there are too many.
fn make_room(kept: &Path) -> io::Result<()> {
    let dir = kept.parent().unwrap_or(Path::new("."));
    let mut others = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if path == kept {
            fs::remove_file(&path)?;
        } else if path.extension().is_some_and(|kind| kind == KEPT) {
            let changed = entry.metadata().and_then(|found| found.modified());
            others.push((changed.ok(), path));
        }
    }
    others.sort();
    let too_many = (others.len() + 1).saturating_sub(KEPT_MAX);
    let mut oldest = others.into_iter().take(too_many);
    oldest.try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::super::{Record, encode_into};
    use super::*;

    #[test]
    fn a_record_cut_short_is_no_damage_and_any_flipped_byte_is() {
        let run_id = moltis_proto::RunId::from_bytes([7; 16]);
        let mut bytes = Vec::new();
        encode_into(&Record::Forgotten { run_id }, &mut bytes).unwrap();
        let whole = bytes.len();
        encode_into(&Record::Forgotten { run_id }, &mut bytes).unwrap();
        for at in 0..whole {
            assert!(!is_spoiled(&bytes[..at]), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x01;
            assert!(is_spoiled(&flipped), "flipped at {at}");
        }
        assert!(!is_spoiled(&[0; 4_096]));
    }

    #[test]
    fn the_newest_copies_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |number: usize| dir.path().join(format!("k{number}.journal"));
        for number in 0..KEPT_MAX + 3 {
            keep(&path(number), &[1; 10], 0);
            keep(&path(number), &[2; 10], 0);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT_MAX);
        let newest = path(KEPT_MAX + 2).with_extension(KEPT);
        assert_eq!(fs::read(newest).unwrap(), [2; 10]);
    }
}
