"""The command lines that commands print, quoted so that they can be copied into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def command_line(*words: object) -> str:
    """`words` quoted for a shell; absolute paths below the present folder become relative."""
    return shlex.join(_shortened(str(word)) for word in words)


def print_next(*words: object) -> None:
    """Print the last line of a command: the command to run next."""
    print(f"next: {command_line('rtp', *words)}")


def print_next_evaluation(model: object, *, trained_on: Sequence[object], held_out: Sequence[object] = ()) -> None:
    """Print how to score `model`: on held-out stores, if they are known."""
    print_next("evaluate", model, "--data", *(held_out or trained_on or ["STORE"]))
    if trained_on and not held_out:
        print("      (it was trained on these: give held-out stores for a meaningful score)")


def _shortened(word: str) -> str:
    if not word.startswith("/"):
        return word
    try:
        return str(Path(word).relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere, or the present folder is gone
        return word
