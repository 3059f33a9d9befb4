"""The image's recipe is the one at the root of the repository, and a linter finds nothing in it."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from cluster.templates.docker import DEFAULT_TAG, Docker
from tests.support.linters import linter

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_repository_has_the_rendered_one() -> None:
    assert (REPOSITORY / "Dockerfile").read_text() == Docker().render()
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert DEFAULT_TAG.endswith(f":{version}")


def test_everything_that_it_copies_is_there() -> None:
    copied = [line.split()[1:-1] for line in Docker().render().splitlines() if line.startswith("COPY")]
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    for name in (name for names in copied for name in names):
        assert (REPOSITORY / name).exists() and name not in ignored, name


@pytest.mark.parametrize(("text", "code"), [(Docker().render(), 0), ("FROM python\nRUN cd /tmp && sudo ls\n", 1)])
def test_hadolint_finds_nothing(text: str, code: int) -> None:
    ended = subprocess.run([linter("hadolint"), "-"], input=text, capture_output=True, text=True)
    assert ended.returncode == code, ended.stdout
