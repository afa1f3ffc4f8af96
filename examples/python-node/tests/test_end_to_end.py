"""The node against the real gateway, whose binary `MOLTIS_BIN` names."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machinery import Gateway, NodeProcess, Relay, approve, wait_for

BINARY = os.environ.get("MOLTIS_BIN", "")
pytestmark = pytest.mark.skipif(not BINARY, reason="MOLTIS_BIN names no binary of moltis")


class Stage:
    """A gateway, a road to it, and a node at its end."""

    def __init__(self) -> None:
        self.gateway = Gateway(BINARY)
        self.relay = Relay(self.gateway.port)
        assert self.gateway.call("node", "pairing", "enable").returncode == 0
        arguments = ["--label", "lang=python", "--env-allow", "BUILD_ID", "--working-dir", "/"]
        self.node = NodeProcess(self.relay.url, "py", *arguments)
        self.request = approve(self.gateway, self.node)

    def exec(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return self.gateway.call("node", "exec", "py", *arguments, stdin=stdin)

    def detach(self, line: str) -> str:
        """Starts a shell line and returns its run's id once it runs."""
        done = self.exec("--detach", "--shell", line)
        assert done.returncode == 0, done.stderr.decode()
        run_id = done.stdout.decode().strip()
        wait_for("the run to run", lambda: self.gateway.run_of(run_id)["state"] != "starting")
        return run_id

    def stdout_of(self, run_id: str) -> bytes:
        return self.gateway.call("runs", "output", run_id, "--follow").stdout

    def close(self) -> None:
        self.node.close()
        self.relay.close()
        self.gateway.close()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """For tests that leave the node as they found it."""
    made = Stage()
    yield made
    made.close()


@pytest.fixture
def own_stage() -> Iterator[Stage]:
    """For tests that end the node or the gateway."""
    made = Stage()
    yield made
    made.close()


# ---- pairing


def test_both_screens_show_the_same_code_and_fingerprint(stage: Stage) -> None:
    log = stage.node.log
    assert f"connection code: {stage.request['connection_code']}" in log
    assert f"whose key is {stage.request['fingerprint']}" in log
    assert stage.request["labels"] == {"lang": "python"}
    assert stage.gateway.state_of("py") == "online"


def test_the_key_is_readable_by_its_owner_alone(stage: Stage) -> None:
    assert stat.S_IMODE((stage.node.state / "node.json").stat().st_mode) == 0o600


def test_a_second_process_does_not_share_the_state(stage: Stage) -> None:
    second = NodeProcess(stage.relay.url, "py", state=stage.node.state)
    assert second.exit_code() == 1
    second.says("another node runs with")


def test_a_rejected_node_ends_and_says_so(stage: Stage) -> None:
    node = NodeProcess(stage.relay.url, "unwanted")
    request_id = node.says("waiting for approval").rsplit("moltis node approve ", 1)[1].split()[0]
    assert stage.gateway.call("node", "reject", request_id, "--yes").returncode == 0
    assert node.exit_code() == 1
    assert "a person has rejected this node" in node.log
    node.close()


def test_a_node_with_another_pin_sends_nothing_and_ends(stage: Stage) -> None:
    node = NodeProcess(stage.relay.url, "careful", "--gateway-key", "SHA256:" + "A" * 43)
    assert node.exit_code() == 1
    assert "is pinned: nothing was sent" in node.log
    assert all(request["node_id"] != "careful" for request in stage.gateway.ask("node", "pending"))
    node.close()


def test_a_node_that_waits_for_approval_finds_its_request_again_after_a_cut(stage: Stage) -> None:
    node = NodeProcess(stage.relay.url, "patient")
    first = node.says("waiting for approval").split("connection code: ")[1].split()[0]
    stage.relay.cut()
    log = wait_for("a second code", lambda: node.log if node.log.count("connection code: ") > 1 else "")
    assert log.rsplit("connection code: ", 1)[1].split()[0] != first
    assert len([request for request in stage.gateway.ask("node", "pending") if request["node_id"] == "patient"]) == 1
    approve(stage.gateway, node)
    assert stage.gateway.state_of("patient") == "online"
    assert stage.gateway.call("node", "revoke", "patient", "--yes").returncode == 0
    assert node.exit_code() == 1
    assert "revoked" in node.log
    node.close()
    # The cut was one for the node of the stage too.
    wait_for("the first node to be back", lambda: stage.gateway.state_of("py") == "online")


# ---- commands


def test_output_exit_code_and_streams_are_exact(stage: Stage, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(data)
    done = stage.exec("--", "sh", "-c", f"cat {tmp_path}/data; head -c 100000 {tmp_path}/data >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout == data
    assert done.stderr == data[:100_000]


@pytest.mark.parametrize(
    ("arguments", "returned", "words"),
    [
        (["--", "/nowhere/program"], 127, "cannot start `/nowhere/program`: No such file or directory"),
        (["--", "no-such-program-anywhere"], 127, "No such file or directory"),
        (["--", "/etc/passwd"], 126, "Permission denied"),
        (["--cwd", "/nowhere", "--", "true"], 125, "`/nowhere` is no directory"),
        (["--tty", "--", "true"], 125, "this node offers no terminal"),
        (["--", "sh", "-c", "kill -9 $$"], 137, ""),
        (["--timeout", "9999", "--", "true"], 125, "300"),
        (["--env", "LD_PRELOAD=x", "--", "true"], 125, "LD_PRELOAD"),
        (["--env", "OTHER=x", "--", "true"], 125, "OTHER"),
    ],
)
def test_what_cannot_run_is_told(stage: Stage, arguments: list[str], returned: int, words: str) -> None:
    done = stage.exec(*arguments)
    assert done.returncode == returned, done.stderr.decode()
    assert words in done.stderr.decode()


def test_the_environment_is_the_page_s_and_nothing_else(stage: Stage) -> None:
    done = stage.exec("--env", "BUILD_ID=a/b", "--env", "LC_ALL=C", "--", "env")
    names = sorted(line.split("=")[0] for line in done.stdout.decode().splitlines())
    assert names == ["BUILD_ID", "HOME", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER"]
    assert b"BUILD_ID=a/b\n" in done.stdout


def test_a_command_starts_where_the_request_says_or_in_the_working_directory(stage: Stage) -> None:
    assert stage.exec("--", "pwd").stdout == b"/\n"
    assert stage.exec("--cwd", "/usr", "--shell", "pwd").stdout == b"/usr\n"


def test_stdin_reaches_the_command_whole_and_ends(stage: Stage) -> None:
    data = os.urandom(3_000_000)
    done = stage.exec("--stdin", "--", "cat", stdin=data)
    assert done.returncode == 0, done.stderr.decode()
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert stage.exec("--", "cat").stdout == b""


def test_a_command_that_closes_its_stdin_is_not_waited_for(stage: Stage) -> None:
    done = stage.exec("--stdin", "--shell", "exec <&-; echo closed", stdin=bytes(2_000_000))
    assert (done.returncode, done.stdout) == (0, b"closed\n")


def test_output_is_live(stage: Stage, tmp_path: Path) -> None:
    client = stage.gateway.begin(
        "node", "exec", "py", "--shell", f"echo first; {waits_for(tmp_path / 'go')}; echo second"
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"first\n"
    (tmp_path / "go").touch()
    assert client.communicate(timeout=90)[0] == b"second\n"


def test_eight_commands_run_side_by_side(stage: Stage, tmp_path: Path) -> None:
    """Each waits until all eight have begun, so one behind the other they would never end."""
    everybody = f'until [ "$(ls {tmp_path} | wc -l)" -ge 8 ]; do sleep 0.02; done'
    line = f"touch {tmp_path}/$0; {everybody}; yes line-$0 | head -n 100000"
    clients = [stage.gateway.begin("node", "exec", "py", "--", "sh", "-c", line, str(number)) for number in range(8)]
    for number, client in enumerate(clients):
        out, error = client.communicate(timeout=120)
        assert client.returncode == 0, error.decode()
        assert out == f"line-{number}\n".encode() * 100_000


def waits_for(path: Path) -> str:
    """Returns a shell line that ends when a file is there."""
    return f"until [ -e {path} ]; do sleep 0.02; done"


# ---- ending


def test_cancel_ends_the_whole_process_group(stage: Stage, tmp_path: Path) -> None:
    line = f"sleep 1000 & echo $! > {tmp_path}/child.new; mv {tmp_path}/child.new {tmp_path}/child; wait"
    run_id = stage.detach(line)
    wait_for("the child", (tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text())
    assert stage.gateway.call("runs", "cancel", run_id).returncode == 0
    run = stage.gateway.ending_of(run_id)
    assert (run["outcome"], run["signal"]) == ("cancelled", 15)
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1]


def test_a_cancelled_command_may_say_its_last_words(stage: Stage, tmp_path: Path) -> None:
    line = f"trap 'echo bye; exit 3' TERM; touch {tmp_path}/ready; while :; do sleep 0.02; done"
    run_id = stage.detach(line)
    wait_for("the trap", (tmp_path / "ready").exists)
    assert stage.gateway.call("runs", "cancel", run_id).returncode == 0
    run = stage.gateway.ending_of(run_id)
    assert (run["outcome"], run["exit_code"]) == ("cancelled", 3)
    assert stage.stdout_of(run_id) == b"bye\n"


def test_a_timeout_kills_what_ignores_sigterm(stage: Stage) -> None:
    done = stage.exec("--timeout", "1", "--shell", "trap '' TERM; echo stubborn; while :; do sleep 0.05; done")
    assert done.returncode == 124
    assert done.stdout == b"stubborn\n"


def test_a_background_process_does_not_hold_the_ending(stage: Stage, tmp_path: Path) -> None:
    done = stage.exec("--shell", f"({waits_for(tmp_path / 'go')}) & echo over")
    assert (done.returncode, done.stdout) == (0, b"over\n")
    (tmp_path / "go").touch()


# ---- cuts


def test_a_stream_is_whole_although_the_road_is_cut_in_full_flow(own_stage: Stage) -> None:
    stage = own_stage
    program = (
        "import random,sys; r=random.Random(7); [sys.stdout.buffer.write(r.randbytes(1000000)) for _ in range(30)]"
    )
    expected = subprocess.run(["python3", "-c", program], capture_output=True, check=True).stdout
    client = stage.gateway.begin("node", "exec", "py", "--", "python3", "-c", program)
    assert client.stdout is not None
    found = b""
    while data := client.stdout.read(1_000_000):
        found += data
        if len(found) in (2_000_000, 9_000_000, 17_000_000, 25_000_000):
            stage.relay.cut()
    assert client.wait(90) == 0
    assert hashlib.sha256(found).digest() == hashlib.sha256(expected).digest()


def test_stdin_and_its_echo_are_whole_although_the_road_is_cut(own_stage: Stage, tmp_path: Path) -> None:
    stage = own_stage
    data = os.urandom(8_000_000)
    (tmp_path / "data").write_bytes(data)
    with (tmp_path / "data").open("rb") as stdin:
        client = stage.gateway.begin("node", "exec", "py", "--stdin", "--", "cat", stdin=stdin)
    assert client.stdout is not None
    found = b""
    while piece := client.stdout.read(500_000):
        found += piece
        if len(found) in (1_000_000, 3_000_000, 5_000_000):
            stage.relay.cut()
    assert client.wait(90) == 0
    assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()


def test_a_command_goes_on_while_the_connection_is_away(own_stage: Stage, tmp_path: Path) -> None:
    stage = own_stage
    line = f"echo before; {waits_for(tmp_path / 'go')}; seq 200000; echo error >&2; touch {tmp_path}/done; exit 5"
    run_id = stage.detach(line)
    wait_for("the first output", lambda: stage.gateway.run_of(run_id)["stdout_bytes"] == len("before\n"))
    port, stage.relay.target_port = stage.relay.target_port, 1
    stage.relay.cut()
    wait_for("the gateway to miss the node", lambda: stage.gateway.state_of("py") != "online")
    (tmp_path / "go").touch()
    wait_for("the command to end while away", (tmp_path / "done").exists)
    stage.relay.target_port = port
    run = stage.gateway.ending_of(run_id)
    assert (run["outcome"], run["exit_code"]) == ("exited", 5)
    expected = b"before\n" + b"".join(b"%d\n" % number for number in range(1, 200_001))
    assert stage.stdout_of(run_id) == expected
    assert stage.gateway.call("runs", "output", run_id, "--stream", "stderr").stdout == b"error\n"


def test_runs_survive_a_gateway_that_is_killed_and_started_again(own_stage: Stage, tmp_path: Path) -> None:
    stage = own_stage
    lines = [f"seq 50000; {waits_for(tmp_path / 'go')}; echo end-{number}; exit {number}" for number in range(3)]
    run_ids = [stage.detach(line) for line in lines]
    for run_id in run_ids:
        wait_for("output", lambda run_id=run_id: stage.gateway.run_of(run_id)["stdout_bytes"] > 0)  # type: ignore[misc]
    for round_number in range(2):
        stage.gateway.kill()
        stage.gateway.start()
        stage.relay.target_port = stage.gateway.port
        wait_for("the node to come back", lambda: stage.gateway.state_of("py") == "online")
        if round_number == 0:
            assert all(stage.gateway.run_of(run_id)["state"] == "running" for run_id in run_ids)
    (tmp_path / "go").touch()
    numbers = b"".join(b"%d\n" % number for number in range(1, 50_001))
    for number, run_id in enumerate(run_ids):
        assert stage.gateway.ending_of(run_id)["exit_code"] == number
        assert stage.stdout_of(run_id) == numbers + f"end-{number}\n".encode()


def test_a_node_heeds_the_goodbye_of_a_gateway(own_stage: Stage) -> None:
    stage = own_stage
    stage.gateway.stop()
    stage.node.says("the gateway leaves (shutdown)")
    stage.gateway.start()
    stage.relay.target_port = stage.gateway.port
    wait_for("the node to come back", lambda: stage.gateway.state_of("py") == "online")
    assert stage.exec("--", "echo", "again").stdout == b"again\n"


# ---- the node's own death


def test_a_node_that_is_killed_says_that_its_runs_are_lost(own_stage: Stage, tmp_path: Path) -> None:
    stage = own_stage
    run_id = stage.detach(f"seq 1000; {waits_for(tmp_path / 'go')}; echo never heard")
    wait_for("output", lambda: stage.gateway.run_of(run_id)["stdout_bytes"] == 3893)
    stage.node.kill()
    stage.node.start()
    run = stage.gateway.ending_of(run_id)
    assert (run["outcome"], run["outcome_reason"]) == ("lost", "keeper_died")
    assert "lives on" in run["detail"]
    assert stage.stdout_of(run_id) == b"".join(b"%d\n" % number for number in range(1, 1001))
    (tmp_path / "go").touch()
    assert stage.exec("--", "echo", "new").stdout == b"new\n"


def test_output_that_was_not_sent_survives_the_death_of_the_node(own_stage: Stage, tmp_path: Path) -> None:
    stage = own_stage
    run_id = stage.detach(f"echo early; {waits_for(tmp_path / 'go')}; seq 50000; touch {tmp_path}/done")
    wait_for("output", lambda: stage.gateway.run_of(run_id)["stdout_bytes"] == 6)
    port, stage.relay.target_port = stage.relay.target_port, 1
    stage.relay.cut()
    (tmp_path / "go").touch()
    wait_for("the end of the command", (tmp_path / "done").exists)
    wait_for("the journal to know", lambda: '"ended"' in (stage.node.state / "journal").read_text())
    stage.node.kill()
    stage.relay.target_port = port
    stage.node.start()
    assert stage.gateway.ending_of(run_id)["outcome"] == "exited"
    assert stage.stdout_of(run_id) == b"early\n" + b"".join(b"%d\n" % number for number in range(1, 50_001))


def test_a_node_that_is_told_to_stop_ends_its_commands_and_leaves(own_stage: Stage) -> None:
    stage = own_stage
    run_id = stage.detach("echo here; exec sleep 1000")
    wait_for("output", lambda: stage.gateway.run_of(run_id)["stdout_bytes"] == 5)
    stage.node.signal(signal.SIGTERM)
    assert stage.node.exit_code() == 0
    run = stage.gateway.ending_of(run_id)
    assert (run["outcome"], run["signal"]) == ("signaled", 15)
    stage.node.start()
    wait_for("the node to come back", lambda: stage.gateway.state_of("py") == "online")


def test_a_node_whose_journal_is_gone_says_so_by_a_new_one(own_stage: Stage) -> None:
    stage = own_stage
    run_id = stage.detach("echo here; exec sleep 1000")
    wait_for("output", lambda: stage.gateway.run_of(run_id)["stdout_bytes"] == 5)
    stage.node.kill()
    (stage.node.state / "journal").unlink()
    stage.node.start()
    run = stage.gateway.ending_of(run_id)
    assert (run["outcome"], run["outcome_reason"]) == ("lost", "journal_wiped")


def test_telemetry_is_of_this_machine(stage: Stage) -> None:
    telemetry = stage.gateway.ask("node", "describe", "py")["telemetry"]
    assert telemetry["cpu_count"] == os.cpu_count()
    assert 0 < telemetry["memory_available_bytes"] < telemetry["memory_total_bytes"]
    assert 0 < telemetry["disk_available_bytes"] < telemetry["disk_total_bytes"]
    assert telemetry["uptime_seconds"] > 0
