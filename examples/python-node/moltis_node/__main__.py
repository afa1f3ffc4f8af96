"""`python -m moltis_node`: joins this machine to a gateway, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import platform
import signal
import ssl
import sys
from pathlib import Path
from urllib.parse import urlsplit

from . import VERSION
from .codec import INTEGER_MAX
from .command import Settings
from .errors import Final
from .handshake import check_introduction
from .identity import StateDir, fingerprint
from .journal import Journal
from .messages import Introduction, Policy
from .node import Node, this_boot
from .runs import Runs
from .telemetry import this_platform

TIMEOUT_SECONDS_DEFAULT = 300


def main() -> int:
    """Returns the exit code: 0 when a signal ended the node, 1 when nothing changes by waiting, 2 for bad usage."""
    arguments = _parser().parse_args()
    try:
        asyncio.run(_run(arguments))
    except Final as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m moltis_node", description=__doc__)
    parser.add_argument("--host", required=True, type=_url, metavar="URL", help="as ws://192.168.1.5:9090/ws")
    parser.add_argument("--state", required=True, type=Path, metavar="DIR", help="where key, journal and output lie")
    parser.add_argument("--name", default=platform.node(), help="display name (default: the host name)")
    parser.add_argument("--node-id", metavar="ID", help="node id (default: a random UUID)")
    parser.add_argument(
        "--label", action="append", default=[], type=_label, metavar="KEY=VALUE", help="may be repeated"
    )
    parser.add_argument("--gateway-key", metavar="SHA256:…", help="pin the gateway's key before the first connection")
    parser.add_argument("--working-dir", default=str(Path.home()), metavar="DIR", help="where commands start")
    parser.add_argument(
        "--timeout", default=TIMEOUT_SECONDS_DEFAULT, type=_seconds, metavar="N", help="seconds; 0 is no limit"
    )
    parser.add_argument("--env-allow", action="append", default=[], metavar="NAME", help="a variable requests may set")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="a certificate authority to trust for wss://")
    return parser


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise argparse.ArgumentTypeError(f"`{text}` is no address as ws://192.168.1.5:9090/ws")
    return text


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) * 1000 > INTEGER_MAX:
        raise argparse.ArgumentTypeError(f"`{text}` is no number of seconds")
    return int(text)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"`{text}` is no KEY=VALUE")
    return key, value


def _tell(words: str) -> None:
    print(words, flush=True)


async def _run(arguments: argparse.Namespace) -> None:
    state = StateDir(arguments.state)
    identity = state.identity(arguments.node_id, arguments.gateway_key)
    settings = Settings(arguments.working_dir, arguments.timeout * 1000, tuple(arguments.env_allow))
    journal = Journal(state.path)
    introduction = Introduction(
        node_id=identity.node_id,
        name=arguments.name,
        labels=dict(arguments.label),
        platform=this_platform(),
        version=VERSION,
        user=getpass.getuser(),
        working_dir=settings.working_dir,
        timeout_ms=settings.timeout_ms,
        policy=Policy.FULL,
        env_allow=settings.env_allow,
        capabilities=(),
    )
    check_introduction(introduction)
    tls = ssl.create_default_context(cafile=arguments.tls_ca) if arguments.host.startswith("wss:") else None
    runs = Runs(journal, settings, this_boot())
    node = Node(arguments.host, state, identity, introduction, runs, journal, _tell, tls)
    _tell(f"node {identity.node_id}, whose key is {fingerprint(identity.public_key)}")
    await _until_signalled(node)


async def _until_signalled(node: Node) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.ensure_future(node.run())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        _tell("leaving")
    await node.leave()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    sys.exit(main())
