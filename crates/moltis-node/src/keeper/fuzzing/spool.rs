//! A spool that is written, befallen by a power cut, and read by the next keeper.

use std::fs::{self, File};
use std::iter;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use moltis_proto::RunId;
use moltis_proto::message::Windows;
use moltis_proto::run::outbox::{Outbox, OutboxLimits, Recovered, SpoolDone, SpoolOp, Transmit};
use moltis_proto::run::{Ending, GapReason, Outcome, Stream, Totals};

use super::super::disk::Disk;
use super::super::spool::sums::BLOCK_BYTES;
use super::super::spool::{BYTES_AT, HEADER_BYTES, Spool};
use super::PAGE_BYTES;

/// Room for little, so that little goes round. No figure is a whole number of blocks.
const LIMITS: OutboxLimits = OutboxLimits {
    memory_bytes: 9_000,
    spool_bytes: 61_000,
    spool_head_bytes: 14_000,
    kept_below_ack_bytes: 5_000,
    spool_after: Duration::from_millis(250),
};

const WINDOWS: Windows = Windows {
    run_bytes: 6_000,
    connection_bytes: 6_000,
    stdin_bytes: 100,
    chunk_bytes_max: 3_000,
};

/// What a power cut takes or leaves.
const FILE_PAGE: usize = 4096;

/// More than any story writes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

const RUN: RunId = RunId::from_bytes([1; 16]);

/// What happens to a spool while it is written.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// The child writes so many bytes, and they go to the file.
    Written(u16),
    /// All spools together have no more room.
    NoMoreRoom,
}

/// What a power cut leaves of a spool.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    /// How many writes each page is behind, one page after another, and from the front again.
    pub ages: Vec<u8>,
    /// The file ends here.
    pub ends_at: Option<u64>,
    /// These bits of this byte are the other way round.
    pub flipped: Option<(u64, u8)>,
}

/// What a client was told.
#[derive(Debug, Default)]
struct Told {
    next: u64,
    limit: u64,
    spoiled: u64,
}

/// A spool, and how it came to be.
#[derive(Debug)]
pub struct Story {
    written: u64,
    /// The file behind each step that its keeper took, but for bytes without their header.
    history: History,
    /// What has gone because there was no room, as a keeper of the same boot tells it.
    limit: u64,
}

impl Story {
    /// Writes a spool in `dir`, and has a keeper of the same boot tell it, whole and without the last
    /// header. Returns `None` where nothing was written.
    ///
    /// # Panics
    /// If that one tells what is not so, or not all.
    pub fn tell(dir: &Path, steps: &[Step]) -> Option<Self> {
        let mut spool = Spool::new(&Disk::default(), dir, RUN, Stream::Stdout);
        let path = path_in(dir);
        fs::remove_file(&path).ok(); // of another story
        let mut outbox = Outbox::new(LIMITS);
        let (mut written, mut history) = (0, History::default());
        for step in steps {
            match step {
                Step::Written(length) => {
                    let to = written + u64::from(*length);
                    let bytes = Bytes::from_static(output(written, to));
                    written = to;
                    outbox.handle_output(Stream::Stdout, bytes, start());
                    outbox.spill(start());
                }
                Step::NoMoreRoom => outbox.let_spools_grow(history.steps == 0),
            }
            while let Some(op) = outbox.poll_spool(Stream::Stdout) {
                for op in in_steps(op) {
                    let touched = touched(&op);
                    let done = spool.perform(op);
                    assert_eq!(done, Ok(SpoolDone::Done));
                    history.push(&path, &touched);
                }
                outbox.handle_spool(Stream::Stdout, Ok(SpoolDone::Done), start());
            }
        }
        let told = read(dir, false);
        assert!(told.next <= written && told.spoiled == 0, "{told:?}");
        if history.steps > 0 {
            let whole = fs::read(&path).expect("it is there");
            assert!(history.left(&Cut::default()) == whole, "an unseen write");
        }
        if history.steps > 1 {
            let mut file = history.left(&Cut::default());
            let before = history.page(0, history.steps - 2);
            file[..PAGE_BYTES].copy_from_slice(&before[..PAGE_BYTES]);
            fs::write(&path, file).expect("it can be written");
            assert_eq!(read(dir, false).spoiled, 0);
            // Behind a power cut it is right too, and only what stands about its last bytes may be gone.
            read(dir, true);
        }
        (history.steps > 0).then_some(Self {
            written,
            history,
            limit: told.limit,
        })
    }

    /// Has a power cut befall it, and the next keeper tell what is there. All output that it tells has
    /// to be right, and what is whole has to be told.
    ///
    /// # Panics
    /// If one of these is not so.
    pub fn befall(&self, dir: &Path, cut: &Cut) {
        fs::write(path_in(dir), self.history.left(cut)).expect("it can be written");
        let told = read(dir, true);
        assert!(told.next <= self.written, "{told:?}");
        let length = self.length();
        let flipped = cut.flipped.filter(|(at, bits)| *at < length && *bits != 0);
        let missing = cut.ends_at.map_or(0, |at| length.saturating_sub(at));
        let has_page = flipped.is_none_or(|(at, _)| at >= HEADER_BYTES);
        let has_sums = missing <= length - length.min(BYTES_AT);
        if !has_page || !has_sums || cut.ages.iter().any(|age| *age > 0) {
            return;
        }
        let mut most = flipped.map_or(0, |_| BLOCK_BYTES);
        if missing > 0 {
            most += missing + BLOCK_BYTES;
        }
        assert!(told.spoiled <= most, "{told:?}: more than {most} are gone");
        let most = self.limit + BLOCK_BYTES;
        assert!(told.limit <= most, "{told:?}: more than {most} are gone");
    }

    /// Returns the bytes of the file.
    pub fn length(&self) -> u64 {
        self.history.length as u64
    }
}

/// A file behind each step, as what each of its pages was.
#[derive(Debug, Default)]
struct History {
    steps: usize,
    /// Bytes of the file behind the last step.
    length: usize,
    /// What a page became, and at which step; nothing before the first of these.
    pages: Vec<Vec<(usize, Vec<u8>)>>,
}

impl History {
    /// Looks at what one more step has made of these pages.
    fn push(&mut self, path: &Path, touched: &[Range<usize>]) {
        let file = File::open(path).expect("it is there");
        let length = file.metadata().expect("it is open").len();
        self.length = index(length);
        self.pages
            .resize_with(self.length.div_ceil(FILE_PAGE), Vec::new);
        for at in touched.iter().cloned().flatten() {
            let Some(versions) = self.pages.get_mut(at) else {
                continue;
            };
            let from = at * FILE_PAGE;
            let mut page = vec![0; FILE_PAGE.min(self.length - from)];
            file.read_exact_at(&mut page, from as u64)
                .expect("it is so long");
            if versions.last().is_none_or(|(_, last)| *last != page) {
                versions.push((self.steps, page));
            }
        }
        self.steps += 1;
    }

    /// Returns what a page was behind a step; nothing where it was never written.
    fn page(&self, at: usize, step: usize) -> &[u8] {
        let versions = self.pages[at].iter().rev();
        let mut since = versions.skip_while(|(then, _)| *then > step);
        since.next().map_or(&[], |(_, page)| page)
    }

    /// Returns what a power cut leaves.
    fn left(&self, cut: &Cut) -> Vec<u8> {
        let mut ages = cut.ages.iter().cycle();
        let mut left = Vec::with_capacity(self.length);
        for at in 0..self.pages.len() {
            let age = ages.next().copied().unwrap_or(0);
            let then = self.steps - 1 - usize::from(age).min(self.steps - 1);
            left.extend_from_slice(self.page(at, then));
            // A hole, where the page was never written.
            left.resize(self.length.min((at + 1) * FILE_PAGE), 0);
        }
        if let Some(ends_at) = cut.ends_at {
            left.truncate(index(ends_at));
        }
        if let Some((at, bits)) = cut.flipped
            && let Some(byte) = left.get_mut(index(at))
        {
            *byte ^= bits;
        }
        left
    }
}

/// Returns the pages that this changes: that of the header, the first of the sums, which has all of
/// so small a spool, and those of the bytes.
fn touched(op: &SpoolOp) -> Vec<Range<usize>> {
    let parts = match op {
        SpoolOp::Write { parts, .. } => &parts[..],
        _ => &[],
    };
    let parts = parts.iter().map(|(position, bytes)| {
        let from = index(BYTES_AT + position);
        from / FILE_PAGE..(from + bytes.len()).div_ceil(FILE_PAGE)
    });
    iter::once(0..2).chain(parts).collect()
}

/// Takes a write apart, so that there is a time at which only its first header is there.
fn in_steps(op: SpoolOp) -> Vec<SpoolOp> {
    match op {
        SpoolOp::Write {
            before: Some(before),
            parts,
            after,
        } => {
            let write = |parts, after| SpoolOp::Write {
                before: None,
                parts,
                after,
            };
            vec![write(Vec::new(), before), write(parts, after)]
        }
        op => vec![op],
    }
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join(format!("{RUN}.out"))
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Has the next keeper tell all that is in the spool.
fn read(dir: &Path, was_rebooted: bool) -> Told {
    let mut spool = Spool::new(&Disk::default(), dir, RUN, Stream::Stdout);
    let header = spool.header();
    if was_rebooted {
        spool.doubt();
    }
    let stdout = Recovered {
        header,
        total: None,
    };
    let stderr = Recovered::default();
    let mut outbox = Outbox::recovered(LIMITS, [stdout, stderr], ending());
    let resumed = outbox.handle_resume(&WINDOWS, Totals::default(), start());
    resumed.expect("all begins at 0");
    let mut told = Told::default();
    loop {
        if let Some(op) = outbox.poll_spool(Stream::Stdout) {
            let done = match op {
                // It is read again.
                SpoolOp::Clear => Ok(SpoolDone::Done),
                op => spool.perform(op),
            };
            outbox.handle_spool(Stream::Stdout, done, start());
        }
        match outbox.poll_transmit(usize::MAX, start()) {
            Some(Transmit::Output { offset, bytes, .. }) => {
                assert_eq!(offset, told.next);
                let right = output(offset, offset + bytes.len() as u64);
                assert!(bytes == right, "at {offset}: what was never written");
                told.next += bytes.len() as u64;
            }
            Some(Transmit::Gap {
                from, to, reason, ..
            }) => {
                assert!(from == told.next && from < to);
                match reason {
                    GapReason::Limit => told.limit += to - from,
                    GapReason::PowerCut if was_rebooted => told.spoiled += to - from,
                    // What was below its beginning.
                    GapReason::Freed => assert_eq!(from, 0),
                    reason => unreachable!("a gap for {reason:?}"),
                }
                told.next = to;
            }
            Some(Transmit::Ended { totals, .. }) => {
                assert_eq!(totals.stdout, told.next);
                return told;
            }
            None => {
                let acked = Totals {
                    stdout: told.next,
                    stderr: 0,
                };
                let acked = outbox.handle_ack(acked, start());
                acked.expect("what was sent is acknowledged");
            }
        }
    }
}

/// Returns what the child writes from one offset to another.
fn output(from: u64, to: u64) -> &'static [u8] {
    static OUTPUT: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..OUTPUT_BYTES_MAX).map(byte_at).collect());
    &OUTPUT[index(from)..index(to)]
}

fn byte_at(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).to_le_bytes()[0]
}

fn ending() -> Ending {
    Ending::without_status(Outcome::Lost, None, String::new())
}

/// Nothing here takes time.
fn start() -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(now);
    *START
}

#[expect(
    clippy::disallowed_methods,
    reason = "where a clock begins that stands"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (1..9_000u16).prop_map(Step::Written),
            4 => (1..300u16).prop_map(Step::Written),
            2 => Just(Step::Written(4096)),
            1 => Just(Step::NoMoreRoom),
        ];
        prop::collection::vec(step, 1..40)
    }

    fn ages() -> impl Strategy<Value = Vec<u8>> {
        let age = prop_oneof![3 => Just(0), 2 => 1..4u8, 1 => any::<u8>()];
        prop_oneof![Just(Vec::new()), prop::collection::vec(age, 1..40)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn a_power_cut_spoils_nothing_that_is_told_and_hides_nothing_that_is_whole(
            steps in steps(),
            ages in ages(),
            ends_at in prop::option::weighted(0.3, 0..140_000u64),
            flipped in prop::option::weighted(0.3, (0..140_000u64, any::<u8>())),
        ) {
            let dir = tempfile::tempdir().unwrap();
            if let Some(story) = Story::tell(dir.path(), &steps) {
                let (whole, cut) = (Cut::default(), Cut { ages, ends_at, flipped });
                story.befall(dir.path(), &whole);
                story.befall(dir.path(), &cut);
            }
        }
    }

    /// Straight, cut short, full, and gone round.
    const STORIES: [&[Step]; 4] = [
        &[Step::Written(10), Step::Written(5_000)],
        &[
            Step::Written(9_500),
            Step::NoMoreRoom,
            Step::Written(3_000),
            Step::Written(9_000),
        ],
        &[Step::Written(9_500); 5],
        &[Step::Written(9_500); 9],
    ];

    #[test]
    fn no_byte_of_a_spool_can_change_and_be_told_as_output() {
        let dir = tempfile::tempdir().unwrap();
        for steps in STORIES {
            let story = Story::tell(dir.path(), steps).unwrap();
            let page = (0..270).chain(HEADER_BYTES..HEADER_BYTES + 70);
            for at in page.chain((BYTES_AT..story.length()).step_by(211)) {
                let cut = Cut {
                    flipped: Some((at, 1 << (at % 8))),
                    ..Cut::default()
                };
                story.befall(dir.path(), &cut);
            }
        }
    }

    #[test]
    fn what_an_earlier_turn_of_the_ring_has_left_is_not_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let story = Story::tell(dir.path(), &[Step::Written(9_500); 20]).unwrap();
        for age in 0..20 {
            // Of the file all but its header is so many writes behind.
            let mut ages = vec![age; 256];
            ages[0] = 0;
            let cut = Cut {
                ages,
                ..Cut::default()
            };
            story.befall(dir.path(), &cut);
        }
    }

    #[test]
    fn a_spool_that_ends_anywhere_comes_as_far_as_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        for steps in STORIES {
            let story = Story::tell(dir.path(), steps).unwrap();
            let bytes = (BYTES_AT - 9..story.length()).step_by(197);
            for at in (0..270).step_by(7).chain(bytes).chain([story.length()]) {
                let cut = Cut {
                    ends_at: Some(at),
                    ..Cut::default()
                };
                story.befall(dir.path(), &cut);
            }
        }
    }
}
