//! Where the randomness of a world comes from: `entropy.c`, by one number in the environment.
//!
//! Nothing of the product knows: std's hash maps, the getrandom crate and tokio's choices ask the
//! system as ever, and are answered out of that number. Only ring goes past it, with a system call of
//! its own: it draws the keys of handshakes, which show in the code that people compare and nowhere
//! else.

/// The variable that names the number. Without it the system answers.
pub(super) const SEED_VARIABLE: &str = "MOLTIS_SIM_SEED";

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::collections::HashSet;
    use std::fmt::Write as _;
    use std::process::Command;
    use std::time::SystemTime;

    use super::*;

    /// What the test below starts in a process of its own, to see what it prints.
    #[test]
    #[ignore = "it is a part of the test below"]
    fn what_a_process_draws() {
        let mut drawn = String::new();
        let set: HashSet<u32> = (0..64).collect();
        writeln!(drawn, "{:?}", set.iter().collect::<Vec<_>>()).unwrap();
        let mut bytes = [0; 100];
        getrandom::fill(&mut bytes).unwrap();
        writeln!(drawn, "{bytes:?} {}", uuid::Uuid::new_v4()).unwrap();
        writeln!(drawn, "{:?}", chosen()).unwrap();
        writeln!(drawn, "{:?}", elsewhere()).unwrap();
        writeln!(drawn, "{:?}", SystemTime::now()).unwrap();
        crate::report(&anyhow::anyhow!(drawn));
    }

    /// Which of four ready branches tokio takes, again and again.
    fn chosen() -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime can be built");
        runtime.block_on(async {
            let mut chosen = Vec::new();
            for _ in 0..64 {
                chosen.push(tokio::select! {
                    () = std::future::ready(()) => 0,
                    () = std::future::ready(()) => 1,
                    () = std::future::ready(()) => 2,
                    () = std::future::ready(()) => 3,
                });
            }
            chosen
        })
    }

    /// What other threads draw, whichever of them comes first.
    fn elsewhere() -> Vec<u64> {
        let draw = || std::thread::spawn(|| getrandom::u64().expect("random numbers"));
        let threads = [draw(), draw(), draw()];
        threads
            .map(|thread| thread.join().expect("it does not panic"))
            .to_vec()
    }

    fn draw(seed: Option<&str>) -> String {
        let mut process = Command::new(std::env::current_exe().expect("this program has a path"));
        process.args(["--exact", "simulate::entropy::tests::what_a_process_draws"]);
        process.args(["--ignored", "--nocapture"]);
        process.envs(seed.map(|seed| (SEED_VARIABLE, seed)));
        let output = process.output().expect("it can be started again");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).expect("it prints text")
    }

    #[test]
    fn one_number_makes_one_world() {
        let first = draw(Some("7"));
        assert_eq!(first.lines().count(), 6, "{first}");
        assert_eq!(first, draw(Some("7")));
        let different = |other: &str| {
            let lines = first.lines().zip(other.lines());
            lines.filter(|(a, b)| a != b).count()
        };
        // Map, bytes, choices and threads differ; the clock does not, and the last line is empty.
        assert_eq!(different(&draw(Some("8"))), 4, "{first}");
        assert_eq!(
            different(&draw(None)),
            5,
            "without a number it is the system's: {first}"
        );
    }
}
