//! GPUs: NVIDIA's by its own tool, AMD's by what the kernel shows in sysfs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moltis_proto::telemetry::Gpu;

use crate::ask::{Question, find};
use crate::text::clean;

/// How long `nvidia-smi` may take. It wakes the driver, which takes seconds on some machines.
const NVIDIA_DEADLINE: Duration = Duration::from_secs(4);

/// How long the kernel may take to show its cards.
const SYSFS_DEADLINE: Duration = Duration::from_secs(1);

/// GPUs of one machine that are looked at.
const GPUS_MAX: usize = 64;

/// Returns NVIDIA's GPUs; empty where its tool is not there; `None` when the tool is there and
/// does not answer.
pub(crate) async fn nvidia(path: &OsStr) -> Option<Vec<Gpu>> {
    let Some(program) = find("nvidia-smi", path) else {
        return Some(Vec::new());
    };
    let answer = Question {
        program: &program,
        args: &[
            "--query-gpu=name,memory.total,memory.used",
            "--format=csv,noheader,nounits",
        ],
        env: &[("PATH", path), ("LC_ALL", OsStr::new("C"))],
        deadline: NVIDIA_DEADLINE,
    }
    .ask()
    .await?;
    let gpus = answer.stdout.lines().take(GPUS_MAX);
    Some(gpus.filter_map(nvidia_line).collect())
}

/// `NVIDIA GeForce RTX 3090, 24576, 1203`: sizes in MiB, or `[N/A]`.
fn nvidia_line(line: &str) -> Option<Gpu> {
    let mut fields = line.rsplitn(3, ',').map(str::trim);
    let used = mebibytes(fields.next()?);
    let total = mebibytes(fields.next()?);
    Some(Gpu {
        name: clean(fields.next()?)?,
        memory_total_bytes: total?,
        memory_used_bytes: used.unwrap_or(0),
    })
}

fn mebibytes(text: &str) -> Option<u64> {
    text.parse::<u64>().ok()?.checked_mul(1024 * 1024)
}

/// Returns AMD's GPUs.
pub(crate) async fn amd(sysfs: &Path) -> Vec<Gpu> {
    let cards = sysfs.join("class/drm");
    if !cards.exists() {
        return Vec::new();
    }
    let reading = tokio::task::spawn_blocking(move || read_cards(&cards));
    match tokio::time::timeout(SYSFS_DEADLINE, reading).await {
        Ok(Ok(gpus)) => gpus,
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

fn read_cards(cards: &Path) -> Vec<Gpu> {
    let Ok(entries) = std::fs::read_dir(cards) else {
        return Vec::new();
    };
    let mut devices: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| is_card(&entry.file_name()))
        .map(|entry| entry.path().join("device"))
        .take(GPUS_MAX)
        .collect();
    devices.sort();
    devices
        .iter()
        .filter_map(|device| read_card(device))
        .collect()
}

/// `card0`, and neither `card0-HDMI-A-1` nor `renderD128`.
fn is_card(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|name| name.strip_prefix("card"))
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn read_card(device: &Path) -> Option<Gpu> {
    let read = |name: &str| std::fs::read_to_string(device.join(name)).ok();
    if read("vendor")?.trim() != "0x1002" {
        return None;
    }
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let name = read("product_name")
        .and_then(|name| clean(&name))
        .or_else(|| Some(format!("AMD {}", clean(read("device")?.trim())?)));
    Some(Gpu {
        name: name.unwrap_or_else(|| "AMD".to_owned()),
        memory_total_bytes: number("mem_info_vram_total")?,
        memory_used_bytes: number("mem_info_vram_used").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::tests::Fakes;

    #[test]
    fn a_line_of_nvidias_tool_is_read_from_its_end() {
        let gpu = nvidia_line("NVIDIA H100, 80GB, HBM3, 81559, 1203").unwrap();
        assert_eq!(gpu.name, "NVIDIA H100, 80GB, HBM3");
        assert_eq!(gpu.memory_total_bytes, 81559 * 1024 * 1024);
        assert_eq!(gpu.memory_used_bytes, 1203 * 1024 * 1024);
        for line in [
            "",
            "name",
            "name, 1",
            "name, [N/A], [N/A]",
            ", 1, 1",
            "x, 99999999999999999999, 1",
        ] {
            assert_eq!(nvidia_line(line), None, "{line}");
        }
        assert_eq!(nvidia_line("x, 1, [N/A]").unwrap().memory_used_bytes, 0);
    }

    #[tokio::test]
    async fn no_tool_is_no_gpu_and_a_broken_tool_is_no_answer() {
        let fakes = Fakes::new();
        assert_eq!(nvidia(&fakes.path()).await, Some(Vec::new()));
        fakes.add("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9");
        assert_eq!(nvidia(&fakes.path()).await, None);
    }

    #[tokio::test]
    async fn amds_cards_are_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let card = |name: &str, vendor: &str, total: &str| {
            let device = sys.path().join("class/drm").join(name).join("device");
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("vendor"), vendor).unwrap();
            std::fs::write(device.join("device"), "0x744c\n").unwrap();
            std::fs::write(device.join("mem_info_vram_total"), total).unwrap();
            std::fs::write(device.join("mem_info_vram_used"), "1024\n").unwrap();
        };
        card("card1", "0x1002\n", "25753026560\n");
        card("card0", "0x8086\n", "1\n");
        card("card1-HDMI-A-1", "0x1002\n", "1\n");
        card("card2", "0x1002\n", "not a number\n");
        let gpus = amd(sys.path()).await;
        assert_eq!(gpus.len(), 1);
        assert_eq!(gpus[0].name, "AMD 0x744c");
        assert_eq!(gpus[0].memory_total_bytes, 25_753_026_560);
        assert_eq!(gpus[0].memory_used_bytes, 1024);
        assert!(amd(Path::new("/nonexistent")).await.is_empty());
    }
}
