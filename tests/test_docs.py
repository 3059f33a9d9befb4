"""The commands and programs of README.md and docs/: what a reader copies runs, in the pages' order, in one folder.

Every block marked sh or python runs, a command with the flags of `TINY` in place of its own, except those under a
comment `<!-- not run: REASON -->`. A block under `<!-- file: NAME -->` is written to that file. Relative links lead
somewhere.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import cli
from tests.support.command_line import REPOSITORY, environment

_FOLLOWED = ("own_dataset", "own_robot", "serving", "training", "extending", "laptop", "ray_up", "kubernetes", "slurm")
PAGES = ("README.md", *(f"docs/{name}.md" for name in _FOLLOWED))
TEXTS = sorted(
    path.relative_to(REPOSITORY)
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("*/README.md"))
)
TINY = {
    "preprocess": "--workers 0 --limit 4",
    "train": "--launch InProcess --engine TorchEngineConfig --loop.steps 2 --loop.global-batch 4 --loop.micro-batch 4"
    " --loop.checkpoint-every 1 --loop.evaluate-windows 4",
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (not run|file): (.+?) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, the line it begins on, and the comment above it."""

    language: str
    text: str
    line: int
    mark: str
    value: str


def blocks(page: str) -> Iterator[Block]:
    text = (REPOSITORY / page).read_text()
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        mark = _MARK.search(before)
        kind, value = mark.groups() if mark else ("", "")
        yield Block(fence[1], fence[2], before.count("\n") + 1, kind, value)


def commands(text: str) -> Iterator[str]:
    """One shell command after another; a command goes on over lines that end in a backslash or within quotes."""
    pending = ""
    for line in text.splitlines():
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        pending += line + "\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on
            continue
        if words:
            yield pending
        pending = ""
    assert not pending.strip(), f"a command does not end: {pending}"


def made_tiny(words: list[str]) -> list[str]:
    """The command with the flags of `TINY`, which replace its own."""
    tiny = [] if "--draft-spec" in words else shlex.split(TINY.get(words[0], ""))
    for flag in tiny[::2]:
        if flag in words:
            place = words.index(flag)
            words = words[:place] + words[place + 2 :]
    return words + tiny


@dataclass
class Reader:
    """Someone who follows the pages in one folder."""

    folder: Path
    server: subprocess.Popen[bytes] | None = None

    def follow(self, page: str) -> None:
        programs: dict[str, object] = {"__name__": "docs"}
        for block in blocks(page):
            where = f"{page}:{block.line}"
            if block.mark == "file":
                Path(block.value).parent.mkdir(parents=True, exist_ok=True)
                Path(block.value).write_text(block.text)
            elif block.mark == "not run":
                continue
            elif block.language == "python":
                exec(compile("\n" * block.line + block.text, where, "exec"), programs)
            elif block.language == "sh":
                for command in commands(block.text):
                    self.run(command, where)

    def run(self, command: str, where: str) -> None:
        words = shlex.split(command, comments=True)
        if words[:2] == ["rtp", "serve"]:
            self.serve(words[2:])
        elif words[0] == "rtp":
            code = cli.main(made_tiny(words[1:]))
            assert code == 0, f"{where}: {command}"
        else:
            programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            ended = subprocess.run(
                ["bash", "-ec", command], env=environment() | {"PATH": programs}, capture_output=True, text=True
            )
            assert ended.returncode == 0, f"{where}: {command}\n{ended.stderr}"
            assert "error_code" not in ended.stdout, f"{where}: {command}\n{ended.stdout}"

    def serve(self, words: list[str]) -> None:
        """Start the server in a process of its own, and wait until it answers."""
        self.leave()
        command = [sys.executable, "-m", "pipelines", "serve", *words]
        self.server = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        port = words[words.index("--port") + 1]
        for _ in range(1200):
            assert self.server.poll() is None, f"rtp serve ended with {self.server.returncode}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("rtp serve does not answer")

    def leave(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            self.server.wait(30)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    shutil.copytree(REPOSITORY / "tests/data/bridge_dataset", folder / "bridge_dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        reading = Reader(folder)
        yield reading
        reading.leave()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_what_a_reader_copies_runs(page: str, reader: Reader) -> None:
    reader.follow(page)


def test_every_page_with_programs_is_followed() -> None:
    for path in TEXTS:
        if path.parts[0] == "docs" and str(path) not in PAGES:
            unrun = [block.line for block in blocks(str(path)) if block.language in ("sh", "python") and not block.mark]
            assert not unrun, f"{path}: lines {unrun} are neither run nor marked as not run"


def test_a_command_goes_on_over_lines_and_quotes() -> None:
    text = textwrap.dedent(
        """\
        rtp train a \\
            --data b   # why
        # nothing
        curl -d '{"a":
        "b"}'
        """
    )
    words = [shlex.split(command, comments=True) for command in commands(text)]
    assert words == [["rtp", "train", "a", "--data", "b"], ["curl", "-d", '{"a":\n"b"}']]


def test_tiny_flags_replace_those_of_the_page() -> None:
    words = made_tiny(["preprocess", "a", "--workers", "8", "out"])
    assert " ".join(words) == "preprocess a out --workers 0 --limit 4"
    assert made_tiny(["inspect", "a"]) == ["inspect", "a"]


# --- links ---

_LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """As GitHub and the site name headings: lower case, dashes for spaces, no punctuation."""
    without_code = _FENCE.sub("", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in _HEADING.findall(without_code)}


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a text of `path` to files or headings that do not exist."""
    broken = []
    for target in _LINK.findall(_FENCE.sub("", text)):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        linked = (path.parent / name) if name else path
        if not linked.exists() or (anchor and anchor not in anchors(linked.read_text())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_links_lead_somewhere(path: Path) -> None:
    assert not broken_links(REPOSITORY / path, (REPOSITORY / path).read_text())


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One heading: two\n")
    text = "[a](there.md) [b](there.md#one-heading-two) [c](gone.md) [d](there.md#gone) [e](https://example.com/x)"
    assert broken_links(tmp_path / "page.md", text) == ["gone.md", "there.md#gone"]


# --- the changelog ---


def changelog_mistakes(text: str) -> list[str]:
    """What is wrong with a changelog: an Unreleased section first and not empty, then versions with dates."""
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE)
    mistakes = []
    if not sections or sections[0][0] != "Unreleased":
        mistakes.append("the first section is not Unreleased")
    if sections and not re.search(r"^- \S", sections[0][1], re.MULTILINE):
        mistakes.append("the first section has no entry")
    for title, _ in sections[1:]:
        if not re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", title):
            mistakes.append(f"{title} is no version with a date")
    for title, body in sections:
        for paragraph in filter(None, re.split(r"\n\s*\n|\n(?=- )", body.strip())):
            if not re.match(r"- |\*\*[\w ]+\*\*$", paragraph):
                mistakes.append(f"{title}: {paragraph[:40]!r} is neither an entry nor a heading")
    return mistakes


def test_the_changelog_is_in_form() -> None:
    assert changelog_mistakes((REPOSITORY / "CHANGELOG.md").read_text()) == []


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("# Changelog\n\n## 0.1.0 (2026-01-01)\n\n- a\n", "not Unreleased"),
        ("# Changelog\n\n## Unreleased\n\n**Data**\n", "has no entry"),
        ("# Changelog\n\n## Unreleased\n\n- a\n\n## 0.1\n\n- b\n", "no version with a date"),
        ("# Changelog\n\n## Unreleased\n\n- a\n\nloose words\n", "neither an entry nor a heading"),
    ],
)
def test_a_changelog_out_of_form_is_seen(text: str, mistake: str) -> None:
    assert mistake in changelog_mistakes(text)[0]
