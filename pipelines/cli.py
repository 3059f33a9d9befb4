"""`rtp`: one file per command. Bad input ends with one sentence on stderr and exit code 2, never with a traceback."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TextIO

from cluster.interrupts import exit_code_of, raised_as_stopped
from cluster.quick_imports import quick_exit, quick_imports
from cluster.session import find_lost_nodes_sooner
from pipelines.catalogue import require_first
from pipelines.config.serialization import did_you_mean
from pipelines.terminal.commands import COMMANDS, JsonSummary
from pipelines.terminal.full_disk import full_disk
from pipelines.terminal.plain_words import plain_words

# What follows "stopped" when a command is interrupted; nothing for a command that has to start over.
_GOES_ON = {
    "preprocess": "; running the same command again continues",
    "mask": "; running the same command again continues",
    "store": "; running the same command again continues",
    "filter": "; running the same command again continues",
    "demo": "; running the same command again continues",
    "train": " at once; with --resume the same command goes on from the newest checkpoint, if there is one",
    "tune": " at once; with --resume the same command continues the sweep",
    "submit": "; a job that the cluster has taken goes on",
}

_NAME_IN_AWS = re.compile(r"arn:aws[\w-]*:")  # such as that of an instance profile
_ONE_SLASH = re.compile(r"(s3|gs|hf|https?|wss?):/(?!/)")
_STORE_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs")  # not all of their errors are OSErrors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    quick_exit()
    try:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        _let_go_of(sys.stdout)
        return 128 + signal.SIGPIPE


def _reader_has_left(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream, 0)
    except (OSError, ValueError):  # no file
        return False
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _let_go_of(stream: TextIO) -> None:
    """Discard what is still buffered, so that the interpreter does not complain when it exits."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help") or words == ["help"]:
        print(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"rtp {_version()}")
        return 0
    if words[0] == "help":
        words = [*words[1:], "--help"]
    name = words[0]
    rest = words[1:]
    if name not in COMMANDS:
        return _fail(f"rtp has no command {name!r}{did_you_mean(name, list(COMMANDS))} (rtp --help lists them)")
    end = rest.index("--") if "--" in rest else len(rest)  # after it comes the command that rtp submit passes on
    as_json = "--json" in rest[:end]
    _set_up_logging()
    find_lost_nodes_sooner()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported; why: tracking/mlflow_run
    result = _run_explained(name, [word for word in rest[:end] if word != "--json"] + rest[end:])
    if isinstance(result, int):
        return result
    if as_json and result is not None:
        print(json.dumps(result))
    code = result.get("exit_code") if result else None
    return code if isinstance(code, int) else 0


def _set_up_logging() -> None:
    terminal = logging.StreamHandler(sys.stderr)
    terminal.addFilter(Once())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[terminal])
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints a traceback of each error that it raises


class Once(logging.Filter):
    """Lets a warning through the first time, and not again."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        warning = (record.levelname, record.getMessage())
        is_new = warning not in self._seen
        self._seen.add(warning)
        return is_new


def _run_explained(name: str, arguments: list[str]) -> JsonSummary | int | None:
    """Run the command: its summary, or the exit code after one sentence on stderr about what went wrong."""
    try:
        with raised_as_stopped():
            _require_plain_names(arguments)
            return _run(name, arguments)
    except BrokenPipeError:
        if _reader_has_left(sys.stdout):
            raise
        return _fail("a connection was closed at its other end")
    except (FloatingPointError, ChildProcessError) as error:  # no mistake in the command line
        return _fail(full_disk(error, arguments) or _one_sentence(error, arguments), code=1)
    except (ValueError, OSError, ImportError) as error:
        return _fail(full_disk(error, arguments) or _one_sentence(error, arguments))
    except Exception as error:
        if (sentence := full_disk(error, arguments)) is not None:
            return _fail(sentence)
        if type(error).__module__.partition(".")[0] not in _STORE_CLIENTS:
            raise
        sentence = f"the object store cannot be reached ({type(error).__name__}: {_one_sentence(error, arguments)})"
        return _fail(f"{sentence}: check the address and the credentials")
    except KeyboardInterrupt as interrupt:
        return _fail(f"stopped{_GOES_ON.get(name, '')}", code=exit_code_of(interrupt))


def _require_plain_names(arguments: list[str]) -> None:
    """Raise ValueError for a local path with '::', which fsspec splits: for /a::b/c it would open, and write to, /a.
    And for an address with one slash, which would be a folder of that name."""
    end = arguments.index("--") if "--" in arguments else len(arguments)  # the rest runs on another machine
    for path in (os.getcwd(), *arguments[:end]):
        value = path.partition("=")[2] if path.startswith("--") else path
        if "::" in value and "://" not in value and not _NAME_IN_AWS.match(value):
            raise ValueError(f"{value} has '::' in it, which joins two file systems in a URL: rename that folder")
        if match := _ONE_SLASH.match(value):
            raise ValueError(f"{value} is no address: write {match[1]}://{value[match.end() :]}")


def _run(name: str, arguments: list[str]) -> JsonSummary | None:
    if COMMANDS[name].first:
        require_first(name, arguments)
    with quick_imports():
        command = importlib.import_module(f"pipelines.{COMMANDS[name].file(name)}")
    return command.main(arguments)


def _version() -> str:
    try:
        return importlib.metadata.version("rt-pipelines")
    except importlib.metadata.PackageNotFoundError:
        return "from a source tree that is not installed"


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    head = "usage: rtp COMMAND ... [--json] [--help]\n       rtp help COMMAND, rtp --version"
    return "\n".join([head, "", *lines, "", "start with: rtp demo"])


def _one_sentence(error: BaseException, arguments: Sequence[str]) -> str:
    text = plain_words(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        flag = _flag_of(str(error.filename), arguments)
        return f"{flag} {error.filename}: {error.strerror}" if flag else f"{error.strerror}: {error.filename}"
    return text


def _flag_of(path: str, arguments: Sequence[str]) -> str:
    """The flag that this path was given to, or nothing."""
    for before, word in pairwise(["", *arguments]):
        name, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if name.startswith("--") and path in (value, os.path.abspath(value)):
            return name
    return ""


def _fail(sentence: str, *, code: int = 2) -> int:
    print(f"rtp: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
