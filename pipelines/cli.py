"""`rtp`: one command a file. Bad input ends with one sentence on stderr and exit code 2, never with a traceback."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.serialization import did_you_mean

COMMANDS = {
    "demo": "the whole path on the shipped robot episodes, some minutes on 2 cores",
    "simulate": "Meta-World's scripted experts -> an RLDS dataset in TFDS layout",
    "preprocess": "RLDS shards -> episode store (re-running resumes)",
    "inspect": "counts, statistics, conventions and pictures of an episode store",
    "train": "train a recipe on episode stores",
    "tune": "a sweep over a recipe's settings; resumable",
    "import-weights": "a flax or Orbax checkpoint of the JAX RT-1 or RT-1-X -> safetensors with a contract",
    "export": "a checkpoint -> one model.safetensors with configuration and contract",
    "evaluate": "score a checkpoint or registered model on held-out episodes",
    "register": "put a checkpoint into the MLflow model registry; gates decide whether an alias moves to it",
    "registry": "where registered models come from; roll an alias back",
    "serve": "answer camera frames with actions over HTTP",
    "submit": "run a command on a Ray cluster and follow it",
    "list": "recipes, datasets and encoders",
    "doctor": "what this machine or a cluster has, and whether a recipe will fit",
}

_STORE_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs")  # not all of their errors are OSErrors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        return _fail(f"rtp has no command {name!r}{did_you_mean(name, list(COMMANDS))}")
    end = rest.index("--") if "--" in rest else len(rest)  # what follows belongs to a command that submit passes on
    as_json = "--json" in rest[:end]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints a traceback of what it then raises
    try:
        result = _run(name, [word for word in rest[:end] if word != "--json"] + rest[end:])
    except (FloatingPointError, ChildProcessError) as error:  # not a mistake in what was asked for
        return _fail(_one_sentence(error), code=1)
    except (ValueError, OSError, ImportError) as error:
        return _fail(_one_sentence(error))
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _STORE_CLIENTS:
            raise
        sentence = f"the object store cannot be reached ({type(error).__name__}: {_one_sentence(error)})"
        return _fail(f"{sentence}: check the address and the credentials")
    except KeyboardInterrupt:
        return _fail("stopped; running the same command again continues where that is possible", code=130)
    if as_json and result is not None:
        print(json.dumps(result))
    return int(result.get("exit_code", 0)) if result else 0


def _run(name: str, arguments: list[str]) -> dict[str, Any] | None:
    module = importlib.import_module(f"pipelines.{_MODULES.get(name, name)}")
    return module.main(arguments)


# A module called list would shadow the builtin for its readers.
_MODULES = {"list": "catalogue", "import-weights": "import_weights"}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(["usage: rtp COMMAND ... [--json] [--help]", "", *lines])


def _one_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return text


def _fail(sentence: str, *, code: int = 2) -> int:
    print(f"rtp: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
