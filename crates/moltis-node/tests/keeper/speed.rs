//! What a keeper costs. Asked for by name and in a release build; it prints and asserts nothing:
//! `cargo test --release --workspace --test keeper -- --ignored --nocapture speed`

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{argv, id, shell};
use crate::fixture::Outside;

const ROUNDS: usize = 400;

#[tokio::test]
#[ignore = "prints figures"]
async fn a_run_beside_a_bare_spawn() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let (mut bare, mut kept) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let began = Instant::now();
        let spawned = Command::new("/bin/sh")
            .args(["-c", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        spawned.wait_with_output().unwrap();
        bare.push(began.elapsed());
        let began = Instant::now();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&round.to_be_bytes());
        let run_id = moltis_proto::RunId::from_bytes(bytes);
        client.run(run_id, shell("true")).await;
        kept.push(began.elapsed());
        client.say(moltis_proto::ToKeeper::Forget { run_id }).await;
    }
    let (bare, kept) = (quantiles(bare), quantiles(kept));
    println!("bare spawn {bare:?}, keeper {kept:?}");
    let ms = (kept[0].as_secs_f64() - bare[0].as_secs_f64()) * 1e3;
    println!("figure: the keeper alone, over a bare spawn, p50 = {ms:.4}");
}

#[tokio::test]
#[ignore = "prints figures"]
async fn one_gibibyte() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    client.keeps = false;
    for round in 1..=5 {
        let (began, cpu_before) = (Instant::now(), cpu_ticks(keeper.pid()));
        client
            .run(id(round), argv(&["head", "-c", "1073741824", "/dev/zero"]))
            .await;
        let took = began.elapsed();
        let cpu = cpu_ticks(keeper.pid()) - cpu_before;
        println!(
            "1 GiB in {took:?}: {:.0} MB/s; the keeper worked {cpu}0 ms",
            1_073.741 / took.as_secs_f64()
        );
    }
    let pid = keeper.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
    {
        println!("{line}");
    }
}

#[tokio::test]
#[ignore = "prints figures"]
async fn runs_a_second() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    for width in [1u16, 8, 32] {
        let (began, total) = (Instant::now(), 1_000u16);
        let number = |n: u16| {
            let mut bytes = [u8::try_from(width).unwrap(); 16];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            moltis_proto::RunId::from_bytes(bytes)
        };
        for n in 0..width {
            client.start(number(n), shell("true")).await;
        }
        for n in 0..total {
            client.finish(number(n)).await;
            client
                .say(moltis_proto::ToKeeper::Forget { run_id: number(n) })
                .await;
            if n + width < total {
                client.start(number(n + width), shell("true")).await;
            }
        }
        let took = began.elapsed();
        println!(
            "{width} at a time: {:.0} runs a second",
            f64::from(total) / took.as_secs_f64()
        );
    }
}

/// Hundredths of a second that a process worked, as proc(5) counts them.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
    fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum()
}

fn quantiles(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort();
    [times[times.len() / 2], times[times.len() * 99 / 100]]
}
