//! What anybody may send to the HTTP API: every body and every query that a handler reads, by the
//! handlers' own extractors, and the body of `POST runs` on to what a node is sent. None panics; what
//! is taken is taken again as it is written; a refusal is few words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_gateway::http::fuzzing::{BODIES, QUERIES, range};
use tokio::runtime::Runtime;

thread_local! {
    /// A body has a time to arrive in, so its extractor asks for a clock.
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
}

const MEDIA: [&str; 4] = [
    "application/json",
    "application/json; charset=utf-8",
    "application/merge-patch+json",
    "text/plain",
];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        match input.below(4) {
            0 => {
                let (_, read) = QUERIES[input.below(QUERIES.len())];
                read(&String::from_utf8_lossy(input.rest()));
            }
            1 => {
                let stored = input.number();
                if let Ok(header) = std::str::from_utf8(input.rest())
                    && let Some((from, to)) = range(header, stored)
                {
                    assert!(from <= to && to <= stored);
                }
            }
            _ => {
                let (_, read) = BODIES[input.below(BODIES.len())];
                let media = match input.byte() {
                    which @ 0..8 => MEDIA[usize::from(which) % MEDIA.len()],
                    _ => MEDIA[0],
                };
                read(media, input.rest());
            }
        }
    });
});
