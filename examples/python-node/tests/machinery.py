"""A real gateway, a real node, and a road between them that can be cut."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parents[1]
SECONDS_MAX = 90.0
"""For a condition on a machine that is busy; no test waits for time to pass."""


def wait_for(what: str, condition: Callable[[], T], seconds_max: float = SECONDS_MAX) -> T:
    """Returns the first value of `condition` that is true; fails with `what` when none comes."""
    deadline = time.monotonic() + seconds_max
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds_max:.0f} s in vain for: {what}")
        time.sleep(0.02)


class Gateway:
    """`moltis gateway` with a home of its own."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self.home = Path(tempfile.mkdtemp(prefix="moltis-py-"))
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._binary, "gateway", "--listen", "127.0.0.1:0"],
            env=self._env(),
            stdout=subprocess.PIPE,
            stderr=(self.home / "stderr").open("a"),
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)
        assert found, f"the gateway says {line!r}: {(self.home / 'stderr').read_text()}"
        self.port = int(found[1])

    def _env(self) -> dict[str, str]:
        return {**os.environ, "MOLTIS_HOME": str(self.home)}

    def kill(self) -> None:
        """As a power cut of the gateway's process: no goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """As a service manager stops it: with a goodbye to its nodes."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(SECONDS_MAX)
            self._process = None

    def call(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._binary, *arguments], env=self._env(), input=stdin, capture_output=True, timeout=SECONDS_MAX
        )

    def begin(self, *arguments: str, stdin: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Starts a command of the client, to be watched while it goes on."""
        return subprocess.Popen(
            [self._binary, *arguments],
            env=self._env(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ask(self, *arguments: str) -> Any:
        """Returns the JSON that a command of the client prints."""
        done = self.call(*arguments, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def run_of(self, run_id: str) -> Any:
        return self.ask("runs", "show", run_id)

    def ending_of(self, run_id: str) -> Any:
        """Waits until a run has ended, and returns it."""
        return wait_for(f"the end of run {run_id}", lambda: _if_ended(self.run_of(run_id)))

    def state_of(self, node: str) -> str:
        found = [entry["state"] for entry in self.ask("node", "list", "--all") if entry["id"] == node]
        return str(found[0]) if found else "unknown"

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def _if_ended(run: Any) -> Any:
    return run if run["state"] == "ended" else None


class Relay:
    """A TCP relay in front of the gateway, so that a test can cut the road or move the gateway."""

    def __init__(self, port: int) -> None:
        self.target_port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
                self.accepted += 1
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def cut(self) -> None:
        """Ends every connection, in the middle of whatever is on it."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def close(self) -> None:
        self._server.close()
        self.cut()


class NodeProcess:
    """`python -m moltis_node` with a state folder of its own."""

    def __init__(self, url: str, node_id: str, *arguments: str, state: Path | None = None) -> None:
        self.state = state or Path(tempfile.mkdtemp(prefix="moltis-py-node-"))
        self.node_id = node_id
        self._url = url
        self._arguments = arguments
        self._log = self.state / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "moltis_node", "--host", self._url, "--state", str(self.state)]
        command += ["--name", f"Name of {self.node_id}", "--node-id", self.node_id, *self._arguments]
        log = self._log.open("ab")
        self._process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    def says(self, words: str) -> str:
        """Waits until the node has printed words, and returns all that it printed."""

        def found() -> str:
            log = self.log
            return log if words in log else ""

        try:
            return wait_for(f"the node to say {words!r}", found)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says: {self.log}") from None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def exit_code(self) -> int:
        assert self._process is not None
        return self._process.wait(SECONDS_MAX)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.state, ignore_errors=True)


def approve(gateway: Gateway, node: NodeProcess) -> Any:
    """Lets a node in that asks to pair; returns its request as the gateway showed it."""
    log = node.says("waiting for approval")
    request_id = log.rsplit("moltis node approve ", 1)[1].split()[0]
    request = next(request for request in gateway.ask("node", "pending") if request["id"] == request_id)
    done = gateway.call("node", "approve", request_id, "--yes")
    assert done.returncode == 0, done.stderr.decode()
    node.says("connected to")
    return request
