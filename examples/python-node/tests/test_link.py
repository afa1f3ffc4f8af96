"""A connection after `accepted`, rule by rule, against a gateway in memory."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from moltis_node import link, spool
from moltis_node.codec import Id
from moltis_node.command import Settings
from moltis_node.errors import Advice, Final, HandshakeError, ProtocolError

from .scripted import DIGEST, LIMITS, RUN_ID, WINDOWS, Gateway, NodeInMemory, spec

Script = Callable[[NodeInMemory, Gateway], Coroutine[Any, Any, None]]


def play(folder: Path, script: Script, settings: Settings | None = None, **accepted: Any) -> None:
    """Connects a node, waits for its list of runs, and lets a script go on."""

    async def scene() -> None:
        node = NodeInMemory(folder, settings)
        gateway = node.connect(**accepted)
        await gateway.hear_run("runs")
        await script(node, gateway)
        await gateway.cut()
        await node.runs.leave()

    asyncio.run(asyncio.wait_for(scene(), 120))


def test_the_first_message_lists_no_runs_and_marks_the_page_as_the_last(tmp_path: Path) -> None:
    async def scene() -> None:
        node = NodeInMemory(tmp_path)
        gateway = node.connect()
        first = (await gateway.hear())["run"]["runs"]
        assert (first["runs"], first["last"]) == ([], True)
        assert first["journals"] == [node.journal.id.hex()]
        assert "telemetry" in await gateway.hear()
        assert "clock" in await gateway.hear()
        await gateway.cut()

    asyncio.run(scene())


def test_a_gateway_of_the_first_ledger_hears_no_clock(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.say("sample")
        gateway.say({"ping": {"number": 1}})
        heard = [list(await gateway.hear()) for _ in range(3)]
        assert heard == [["telemetry"], ["telemetry"], ["pong"]]

    play(tmp_path, script, ledger=1)


def test_a_run_is_started_once_and_told_again_to_who_repeats_the_start(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run(
            "start", digest=DIGEST, spec=spec("sh", "-c", "echo $$ >> counted; exec sleep 100", cwd=str(tmp_path))
        )
        pid = (await gateway.hear_run("started"))["pid"]
        gateway.run("start", digest=DIGEST, spec=spec("true"))
        summary = (await gateway.hear_run("state"))["summary"]
        assert summary["state"] == {"running": {"pid": pid}}
        gateway.run("start", digest=base64.b64encode(bytes(32)).decode(), spec=spec("true"))
        assert (await gateway.hear_run("refused"))["code"] == "digest_mismatch"
        gateway.run("cancel", grace_ms=0)
        assert (await gateway.hear_run("ended"))["ending"]["outcome"] == "cancelled"

    play(tmp_path, script)


def test_a_forgotten_run_is_refused_also_by_the_next_process(tmp_path: Path) -> None:
    async def script(node: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("true"))
        await gateway.hear_output()
        gateway.run("forget")
        gateway.run("start", digest=DIGEST, spec=spec("true"))
        assert (await gateway.hear_run("refused"))["code"] == "forgotten"
        await gateway.cut()
        assert list((node.folder / "runs").iterdir()) == []
        node.begin()
        gateway = node.connect()
        assert (await gateway.hear_run("runs"))["runs"] == []
        gateway.run("start", digest=DIGEST, spec=spec("true"))
        assert (await gateway.hear_run("refused"))["code"] == "forgotten"
        await gateway.cut()

    play(tmp_path, script)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"command": {"argv": []}}, "invalid"),
        ({"command": {"argv": ["true", "a\0b"]}}, "invalid"),
        ({"command": {"shell": ""}}, "invalid"),
        ({"command": {"shell": "a\0b"}}, "invalid"),
        ({"cwd": "relative"}, "invalid"),
        ({"cwd": "/a\0b"}, "invalid"),
        ({"timeout_ms": 0}, "invalid"),
        ({"grace_ms": 300_001}, "invalid"),
        ({"timeout_ms": 60_001}, {"timeout_too_long": {"longest_ms": 60_000}}),
        ({"env": {"LD_PRELOAD": "x"}}, "env_not_allowed"),
        ({"env": {"OTHER": "x"}}, "env_not_allowed"),
        ({"env": {"MY_TOKEN": "x"}}, "env_not_allowed"),
        ({"env": {"BASH_ENV": "x"}}, "env_not_allowed"),
        ({"env": {"LANG": "../x"}}, "env_not_allowed"),
        ({"env": {"LC_": "x"}}, "env_not_allowed"),
        ({"env": {"LC_lower": "x"}}, "env_not_allowed"),
        ({"env": {"BUILD_ID": "a\nb"}}, "env_not_allowed"),
        ({"env": {"BUILD_ID": "é" * 2049}}, "env_not_allowed"),
        ({"env": {f"LC_{number}": "x" for number in range(65)}}, "env_not_allowed"),
    ],
)
def test_what_the_page_does_not_allow_is_refused_and_never_runs(
    tmp_path: Path, changes: dict[str, Any], code: object
) -> None:
    async def script(node: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("true", **changes))
        assert (await gateway.hear_run("refused"))["code"] == code
        assert list(node.runs) == []

    play(tmp_path, script, Settings("/", 60_000, ("BUILD_ID", "MY_TOKEN", "BASH_ENV")))


def test_a_terminal_is_not_offered(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        tty = {"size": {"cols": 80, "rows": 24}, "term": "xterm"}
        gateway.run("start", digest=DIGEST, spec=spec("true", tty=tty))
        ending = (await gateway.hear_run("ended"))["ending"]
        assert (ending["outcome"], ending["reason"], ending["status"]) == ("failed_to_start", None, None)
        assert ending["detail"] == "this node offers no terminal"

    play(tmp_path, script)


def test_output_stays_within_the_windows_until_it_is_acknowledged(tmp_path: Path) -> None:
    windows = replace(WINDOWS, run_bytes=100_000, chunk_bytes_max=30_000)

    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("head", "-c", "150000", "/dev/zero"))
        await gateway.hear_run("started")
        lengths: list[int] = []
        while sum(lengths) < 64 * 1024:  # the road is not known to carry more yet
            lengths.append(len(base64.b64decode((await gateway.hear_run("output"))["bytes"])))
        assert sum(lengths) == 64 * 1024
        assert max(lengths) <= 30_000
        await gateway.hear_nothing_more()
        gateway.run("ack", stdout=65_536, stderr=0)
        while sum(lengths) < 65_536 * 2:
            lengths.append(len(base64.b64decode((await gateway.hear_run("output"))["bytes"])))
        await gateway.hear_nothing_more()
        gateway.run("ack", stdout=65_536 * 2, stderr=0)
        data, ended = await gateway.hear_output()
        assert sum(lengths) + len(data) == 150_000
        assert ended["totals"] == {"stdout": 150_000, "stderr": 0}

    play(tmp_path, script, windows=windows)


def test_no_more_is_under_way_than_the_window_of_a_run(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("head", "-c", "5000", "/dev/zero"))
        await gateway.hear_run("started")
        assert len(base64.b64decode((await gateway.hear_run("output"))["bytes"])) == 1_000
        await gateway.hear_nothing_more()
        gateway.run("ack", stdout=400, stderr=0)
        output = await gateway.hear_run("output")
        assert (output["offset"], len(base64.b64decode(output["bytes"]))) == (1_000, 400)

    play(tmp_path, script, windows=replace(WINDOWS, run_bytes=1_000))


def test_output_starts_again_exactly_where_the_gateway_stands(tmp_path: Path) -> None:
    async def script(node: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("sh", "-c", "seq 10000; seq 5 >&2"))
        await gateway.hear_output()
        await gateway.cut()
        expected = b"".join(b"%d\n" % number for number in range(1, 10_001))
        for offset in (20_000, 777, 0, len(expected)):
            gateway = node.connect()
            await gateway.hear_run("runs")
            await gateway.hear_nothing_more()  # a run that is not resumed is not sent
            gateway.run("resume", stdout=offset, stderr=10)
            data, ended = await gateway.hear_output()
            assert data == expected[offset:]
            assert ended["totals"] == {"stdout": len(expected), "stderr": 10}
            await gateway.hear_nothing_more()  # the ending is told once for a resume
            await gateway.cut()

    play(tmp_path, script)


def test_what_was_freed_is_told_as_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 50_000)

    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("head", "-c", "1000000", "/dev/zero"))
        await gateway.hear_output()
        gateway.run("resume", stdout=0, stderr=0)
        gap = await gateway.hear_run("gap")
        assert (gap["stream"], gap["from"], gap["reason"]) == ("stdout", 0, "freed")
        assert 0 < gap["to"] <= 1_000_000 - 64 * 1024
        data, _ = await gateway.hear_output()
        assert len(data) == 1_000_000 - gap["to"]

    play(tmp_path, script)


def test_after_a_power_cut_a_gateway_that_knows_more_than_the_files_is_believed(tmp_path: Path) -> None:
    async def script(node: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("echo", "hello"))
        await gateway.hear_output()
        await gateway.cut()
        for file in (node.folder / "runs" / RUN_ID).iterdir():
            file.write_bytes(b"he")
        node.boot_id = Id(bytes(16))
        node.begin()
        gateway = node.connect()
        await gateway.hear_run("runs")
        gateway.run("resume", stdout=6, stderr=0)
        assert (await gateway.hear_run("ended"))["totals"]["stdout"] == 6
        await gateway.cut()

    play(tmp_path, script)


def test_what_a_power_cut_took_is_told_as_a_gap(tmp_path: Path) -> None:
    async def script(node: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("echo", "hello"))
        await gateway.hear_output()
        await gateway.cut()
        for file in (node.folder / "runs" / RUN_ID).iterdir():
            file.write_bytes(b"he")
        node.boot_id = Id(bytes(16))
        node.begin()
        gateway = node.connect()
        await gateway.hear_run("runs")
        gateway.run("resume", stdout=0, stderr=0)
        assert (await gateway.hear_run("output"))["bytes"] == base64.b64encode(b"he").decode()
        gap = await gateway.hear_run("gap")
        assert (gap["from"], gap["to"], gap["reason"]) == (2, 6, "power_cut")
        assert (await gateway.hear_run("ended"))["totals"]["stdout"] == 6
        await gateway.cut()

    play(tmp_path, script)


def test_a_resume_beyond_what_was_written_closes(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("echo", "hello"))
        await gateway.hear_output()
        gateway.run("resume", stdout=7, stderr=0)
        with pytest.raises(ProtocolError, match="`resume`"):
            await gateway.ended

    play(tmp_path, script)


def test_a_run_of_another_boot_is_lost_by_the_reboot(tmp_path: Path) -> None:
    async def script(node: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("sleep", "1"))
        await gateway.hear_run("started")
        await gateway.cut()
        node.boot_id = Id(bytes(16))
        node.begin()
        gateway = node.connect()
        (summary,) = (await gateway.hear_run("runs"))["runs"]
        assert summary["state"] == "ended"
        gateway.run("resume", stdout=0, stderr=0)
        ending = (await gateway.hear_run("ended"))["ending"]
        assert (ending["outcome"], ending["reason"]) == ("lost", "node_rebooted")
        await gateway.cut()

    play(tmp_path, script)


def test_a_disk_that_fails_leaves_a_hole_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: spool.Spool, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("sh", "-c", "echo kept; read x; echo lost", stdin="open"))
        await gateway.hear_run("started")
        await gateway.hear_run("output")
        monkeypatch.setattr(spool.Spool, "_keep", fail)
        gateway.run("stdin", offset=0, bytes=base64.b64encode(b"\n").decode(), eof=True)
        assert (await gateway.hear_run("stdin_ack"))["closed"] is True
        gap = await gateway.hear_run("gap")
        assert (gap["from"], gap["to"], gap["reason"]) == (5, 10, "disk_full")
        assert (await gateway.hear_run("ended"))["totals"]["stdout"] == 10

    play(tmp_path, script)


def test_stdin_is_taken_in_order_and_what_came_before_is_skipped(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("cat", stdin="open"))
        await gateway.hear_run("started")
        for offset, text, eof in ((0, b"abc", False), (0, b"abcd", False), (2, b"cdef", True)):
            gateway.run("stdin", offset=offset, bytes=base64.b64encode(text).decode(), eof=eof)
        data, ended = b"", None
        while ended is None:
            message = (await gateway.hear()).get("run", {})
            data += base64.b64decode(message["output"]["bytes"]) if "output" in message else b""
            ended = message.get("ended")
        assert data == b"abcdef"

    play(tmp_path, script)


def test_stdin_of_a_command_that_has_none_is_closed(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("sleep", "100"))
        await gateway.hear_run("started")
        gateway.run("stdin", offset=0, bytes="", eof=True)
        assert await gateway.hear_run("stdin_ack") == {"run_id": RUN_ID, "offset": 0, "closed": True}

    play(tmp_path, script)


def test_the_name_of_a_program_may_not_be_empty(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec(""))
        assert (await gateway.hear_run("ended"))["ending"]["reason"] == "not_found"

    play(tmp_path, script)


@pytest.mark.parametrize(("offset", "length"), [(1, 1), (0, 262_145)])
def test_stdin_with_a_hole_or_beyond_its_window_closes(tmp_path: Path, offset: int, length: int) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("sleep", "100", stdin="open"))
        await gateway.hear_run("started")
        gateway.run("stdin", offset=offset, bytes=base64.b64encode(bytes(length)).decode(), eof=False)
        with pytest.raises(ProtocolError):
            await gateway.ended
        assert (await gateway.hear()) == {"close": {"code": "protocol"}}

    play(tmp_path, script)


def test_messages_about_runs_that_nobody_knows_are_passed_over(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("ack", stdout=0, stderr=0)
        gateway.run("resume", stdout=0, stderr=0)
        gateway.run("stdin", offset=0, bytes="", eof=True)
        gateway.run("signal", signal=2)
        gateway.run("cancel", grace_ms=0)
        gateway.run("resize", size={"cols": 1, "rows": 1})
        gateway.run("forget")
        await gateway.hear_nothing_more()

    play(tmp_path, script)


def test_a_signal_reaches_the_process_group_and_nonsense_reaches_nobody(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("sleep", "100"))
        await gateway.hear_run("started")
        for number in (0, -1, 99_999):
            gateway.run("signal", signal=number)
        await gateway.hear_nothing_more()
        gateway.run("signal", signal=2)
        ending = (await gateway.hear_run("ended"))["ending"]
        assert (ending["outcome"], ending["status"]) == ("signaled", {"signal": 2})

    play(tmp_path, script)


def test_a_run_that_goes_on_is_not_forgotten(tmp_path: Path) -> None:
    async def script(node: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("sleep", "100"))
        await gateway.hear_run("started")
        gateway.run("forget")
        await gateway.hear_nothing_more()
        assert len(list(node.runs)) == 1

    play(tmp_path, script)


@pytest.mark.parametrize(
    "message",
    [
        {"run": "leave"},
        {"run": {"attach": {"windows": WINDOWS.__dict__}}},
    ],
)
def test_what_belongs_on_a_keeper_s_socket_closes(tmp_path: Path, message: Any) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.say(message)
        with pytest.raises(ProtocolError):
            await gateway.ended

    play(tmp_path, script)


def test_an_ack_of_what_was_never_sent_closes(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.run("start", digest=DIGEST, spec=spec("sleep", "100"))
        await gateway.hear_run("started")
        gateway.run("ack", stdout=1, stderr=0)
        with pytest.raises(ProtocolError, match="`ack`"):
            await gateway.ended

    play(tmp_path, script)


def test_a_silent_gateway_is_pinged_and_then_given_up(tmp_path: Path) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        with pytest.raises(link.SilenceError):
            await gateway.ended
        heard = []
        while {"close": {"code": "silence"}} not in heard:
            heard.append(await gateway.hear())
        assert {"ping": {"number": 1}} in heard

    limits = replace(LIMITS, ping_after_ms=100, silence_max_ms=400)
    play(tmp_path, script, limits=limits)


def test_what_is_buffered_from_before_a_sleep_is_not_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(node: NodeInMemory, gateway: Gateway) -> None:
        await gateway.hear_nothing_more()
        now = link.boot_seconds()
        monkeypatch.setattr(link, "boot_seconds", lambda: now + 46)
        gateway.run("start", digest=DIGEST, spec=spec("true"))
        with pytest.raises(link.SleptError):
            await gateway.ended
        assert list(node.runs) == []
        assert await gateway.hear() == {"close": {"code": "slept"}}

    play(tmp_path, script)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"goodbye": {"reason": "upgrade", "back_in_ms": 2500}}, Advice),
        ({"close": {"code": "revoked"}}, Final),
        ({"close": {"code": "superseded"}}, HandshakeError),
        ({"close": {"code": "settings"}}, HandshakeError),
    ],
)
def test_the_word_of_a_gateway_that_leaves_is_heard(tmp_path: Path, message: Any, expected: type[Exception]) -> None:
    async def script(_: NodeInMemory, gateway: Gateway) -> None:
        gateway.say(message)
        with pytest.raises(expected) as raised:
            await gateway.ended
        if isinstance(raised.value, Advice):
            assert raised.value.wait_seconds == 2.5

    play(tmp_path, script)


def test_many_runs_are_listed_in_pages_that_fit_a_frame(tmp_path: Path) -> None:
    async def scene() -> None:
        node = NodeInMemory(tmp_path)
        gateway = node.connect()
        await gateway.hear_run("runs")
        ids = [f"{number:032x}" for number in range(250)]
        for run_id in ids:
            gateway.say({"run": {"start": {"run_id": run_id, "digest": DIGEST, "spec": spec("/nowhere/program")}}})
        for _ in ids:
            await gateway.hear_run("ended")
        await gateway.cut()
        gateway = node.connect()
        pages = [await gateway.hear_run("runs") for _ in range(3)]
        assert [page["last"] for page in pages] == [False, False, True]
        assert [run["run_id"] for page in pages for run in page["runs"]] == ids
        await gateway.cut()

    asyncio.run(scene())


def test_a_damaged_journal_is_put_aside_and_a_new_one_begins(tmp_path: Path) -> None:
    first = NodeInMemory(tmp_path).journal.id
    assert NodeInMemory(tmp_path).journal.id == first
    (tmp_path / "journal").write_bytes(b"nonsense\n")
    assert NodeInMemory(tmp_path).journal.id != first
    assert (tmp_path / "journal.unreadable").exists()
