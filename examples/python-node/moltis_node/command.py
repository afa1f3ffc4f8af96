"""What a command may be, and in which surroundings it starts (docs/protocol.md, 6, Starting and Environment)."""

from __future__ import annotations

import errno
import os
import pwd
import re
import subprocess
import tempfile
from dataclasses import dataclass

from .messages import Argv, Reason, RunRefusal, Spec, Stdin, TimeoutTooLong

GRACE_MS_MAX = 300_000
VARIABLES_MAX = 64
VALUE_BYTES_MAX = 4 * 1024
PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STANDARD_VARIABLE = re.compile("TERM|LANG|COLORTERM|NO_COLOR|FORCE_COLOR|LC_[A-Z0-9_]+")
NEVER = re.compile(
    "(LD_|DYLD_|MOLTIS_).*|.*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL).*"
    "|ENV|BASH_ENV|IFS|SHELLOPTS|BASHOPTS|PS4|PROMPT_COMMAND"
    "|NODE_OPTIONS|PYTHONSTARTUP|PERL5OPT|RUBYOPT|GIT_SSH_COMMAND",
    re.IGNORECASE,
)
"""Names that no owner can allow."""


@dataclass(frozen=True)
class Settings:
    """What the node's owner decided."""

    working_dir: str
    timeout_ms: int
    """The longest time of a command; 0 is no limit."""
    env_allow: tuple[str, ...]


class CannotStart(Exception):
    """Nothing ran; the words are for a person."""

    def __init__(self, reason: Reason | None, words: str) -> None:
        super().__init__(words)
        self.reason = reason


def refusal_of(spec: Spec, settings: Settings) -> RunRefusal | TimeoutTooLong | None:
    """Returns why a spec is refused, or nothing."""
    if not _is_valid(spec):
        return RunRefusal.INVALID
    if not _env_is_allowed(spec, settings):
        return RunRefusal.ENV_NOT_ALLOWED
    if settings.timeout_ms and spec.timeout_ms is not None and spec.timeout_ms > settings.timeout_ms:
        return TimeoutTooLong(settings.timeout_ms)
    return None


def _is_valid(spec: Spec) -> bool:
    if isinstance(spec.command, Argv):
        words, is_empty = spec.command.words, not spec.command.words
    else:
        words, is_empty = (spec.command.line,), not spec.command.line
    return (
        not is_empty
        and not any("\0" in word for word in words)
        and (spec.cwd is None or (spec.cwd.startswith("/") and "\0" not in spec.cwd))
        and spec.timeout_ms != 0
        and spec.grace_ms <= GRACE_MS_MAX
    )


def _env_is_allowed(spec: Spec, settings: Settings) -> bool:
    term = {"TERM": spec.tty.term} if spec.tty else {}
    if len(spec.env) + len(term) > VARIABLES_MAX:
        return False
    return all(_variable_is_allowed(name, value, settings) for name, value in [*spec.env.items(), *term.items()])


def _variable_is_allowed(name: str, value: str, settings: Settings) -> bool:
    if len(value.encode()) > VALUE_BYTES_MAX or any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in value):
        return False
    if NEVER.fullmatch(name):
        return False
    if STANDARD_VARIABLE.fullmatch(name):
        return "/" not in value
    return name in settings.env_allow and re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) is not None


def environment(spec: Spec) -> dict[str, str]:
    """Returns the child's environment: a base that does not depend on ours, and what the request adds."""
    user = pwd.getpwuid(os.getuid())
    base = {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh",
        "TMPDIR": tempfile.gettempdir(),
        "PATH": os.environ.get("PATH", PATH_DEFAULT),
    }
    return {**base, **spec.env}


def spawn(spec: Spec, settings: Settings) -> subprocess.Popen[bytes]:
    """Starts the command in a session, and so a process group, of its own. Raises CannotStart."""
    if spec.tty is not None:
        raise CannotStart(None, "this node offers no terminal")
    argv = list(spec.command.words) if isinstance(spec.command, Argv) else ["/bin/sh", "-c", spec.command.line]
    if not argv[0]:
        raise CannotStart(Reason.NOT_FOUND, "the name of the program is empty")
    cwd = spec.cwd or settings.working_dir
    if not os.path.isdir(cwd) or not os.access(cwd, os.X_OK):
        raise CannotStart(Reason.WORKING_DIR, f"`{cwd}` is no directory that this node can enter")
    try:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env=environment(spec),
            stdin=subprocess.PIPE if spec.stdin is Stdin.OPEN else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise CannotStart(_reason_of(error), f"cannot start `{argv[0]}`: {words}") from error


def _reason_of(error: Exception) -> Reason | None:
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Reason.NOT_FOUND
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR):
        return Reason.NOT_EXECUTABLE
    return None
