//! Completions and manual pages: what shells and `man` make of them.

use std::fs;
use std::process::{Command, Stdio};

use crate::harness::Home;

#[test]
fn bash_completes_our_commands_and_none_of_the_programs_own() {
    let home = Home::new();
    let script = home.ok(["completions", "bash"]);
    let file = home.user().join("moltis.bash");
    fs::write(&file, script).unwrap();
    let complete = |words: &str| {
        let line = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _moltis moltis \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete("moltis node ex").trim(), "exec");
    let all = complete("moltis ''");
    for word in [
        "gateway",
        "node",
        "runs",
        "token",
        "doctor",
        "completions",
        "man",
    ] {
        assert!(all.lines().any(|line| line == word), "{word}: {all}");
    }
    assert!(!all.contains("keeper"), "{all}");
    assert!(complete("moltis node list --a").contains("--all"));
}

#[test]
fn every_shell_has_a_script() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.ok(["completions", shell]);
        assert!(script.contains("moltis"), "{shell}");
        assert!(!script.contains("keeper"), "{shell}");
    }
    let other = home.run(["completions", "csh"]);
    assert_eq!(other.code, 2, "{other:?}");
    assert!(other.stderr.contains("bash"), "{other:?}");
}

#[test]
fn every_command_has_a_manual_page_that_groff_reads_without_a_warning() {
    let home = Home::new();
    let dir = home.user().join("share/man1");
    let written = home.json(["man", dir.to_str().unwrap(), "--json"]);
    let pages = written["pages"].as_array().unwrap();
    let names: Vec<_> = pages.iter().map(|page| page.as_str().unwrap()).collect();
    for name in ["moltis.1", "moltis-node-exec.1", "moltis-gateway-backup.1"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"moltis-keeper.1"), "{names:?}");
    let page = fs::read_to_string(dir.join("moltis-node-exec.1")).unwrap();
    for words in [".TH moltis-node-exec 1", ".SH OPTIONS", "dmesg | tail"] {
        assert!(page.contains(words), "{words}: {page}");
    }
    for name in names {
        let groff = Command::new("groff")
            .args(["-Kutf8", "-man", "-Tutf8", "-ww", "-z"])
            .arg(dir.join(name))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&groff.stderr).into_owned();
        assert!(groff.status.success() && said.is_empty(), "{name}: {said}");
    }
    // Written again, over what is there.
    home.ok(["man", dir.to_str().unwrap()]);
}
