"""`rtp submit --address URL -- COMMAND ...`: run a command on a Ray cluster and follow it as if it ran here.

COMMAND is one of rtp's, such as `train rt1_fractal --data s3://...`, or any other. Code is sent, data is not: the job
gets this project's packages, the small files that COMMAND names by a relative path (a --config, a dataset spec), and
this machine's environment variables of SETTINGS below. Secrets are never sent, because Ray shows a job's environment to
everyone who can open its dashboard: set them in the environment that the nodes were started with.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

import cluster
import pipelines
import preprocessing
import rt_models
import tuning
from cluster.submit import Jobs, JobState
from pipelines.cli import COMMANDS
from pipelines.config.arguments import UsageError, parse
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.secret_values import holds_secret, is_secret

MEGABYTE = 10**6
PACKAGES = (pipelines, preprocessing, rt_models, cluster, tuning)
CHECKED = ("ray", "torch", "deepspeed", "pyarrow", "mlflow", "numpy")  # must agree in their minor versions
REQUIREMENTS = "requirements.txt"

# Forwarded unless they hold a secret.
SETTINGS = re.compile(
    r"MLFLOW_(TRACKING_URI|REGISTRY_URI|S3_ENDPOINT_URL|HTTP_REQUEST_\w+)"
    r"|AWS_(ENDPOINT_URL\w*|REGION|DEFAULT_REGION|RE\w+_CHECKSUM_\w+)|FSSPEC_\w+|RTP_\w+|RAY_TRAIN_\w+|OMP_NUM_THREADS"
    r"|NCCL_\w+|GLOO_SOCKET_IFNAME|TORCH_\w+|HF_HUB_OFFLINE|TFHUB_CACHE_DIR|MUJOCO_GL"
)


@dataclass(frozen=True, kw_only=True)
class SubmitArguments:
    """Flags of `rtp submit`, before the `--`."""

    address: str = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    """The cluster's dashboard."""
    detach: bool = False
    """Return as soon as the cluster has the job, instead of following it."""
    follow: str | None = None
    """Follow the job of this id, submitted before."""
    status: str | None = None
    """Say how the job of this id stands."""
    stop: str | None = None
    """Stop the job of this id."""
    install: bool = False
    """Let every node install the packages of this environment with pip first; else they must be there."""
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, or the NAME of a variable here, for the job's environment; never a secret. May be repeated."""
    max_mb: int = 100
    """Largest size of what is sent, in megabytes."""


def main(arguments: list[str]) -> JsonSummary:
    """Submit, follow, ask or stop; a followed job's exit code is this command's."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    flags = parse(SubmitArguments, arguments[:split], prog="rtp submit", description=__doc__ or "")
    command = arguments[split + 1 :]
    job_ids = [job for job in (flags.follow, flags.status, flags.stop) if job is not None]
    if len(job_ids) + bool(command) != 1:
        raise UsageError("rtp submit: give a COMMAND after --, or one of --follow, --status and --stop with a job's id")
    if job_ids:
        jobs = Jobs(flags.address)
        if flags.follow is not None:
            return follow(jobs, flags.follow)
        state = jobs.stop(flags.stop) if flags.stop is not None else jobs.state(job_ids[0])
        print(described(state))
        return asdict(state) | {"exit_code": 0, "job_exit_code": state.exit_code}
    job_id, jobs = submit(flags, command)
    if flags.detach:
        print(f"{job_id}: rtp submit --address {jobs.address} --follow {job_id} (or --status, --stop)")
        return {"job_id": job_id, "address": jobs.address}
    return follow(jobs, job_id)


def submit(flags: SubmitArguments, command: Sequence[str]) -> tuple[str, Jobs]:
    """Send code and settings and start the command; the job's id, and the client of the cluster's jobs."""
    from pipelines.training.git_revision import git_revision

    words = entrypoint(command)
    settings = {"RTP_GIT_REVISION": git_revision(), **settings_of(os.environ, flags.env)}
    if any(holds_secret(part) for word in words for part in (word, word.partition("=")[2])):
        raise ValueError(
            "COMMAND holds a URL with a user or password, or JSON with a key, secret, token or password, and Ray shows "
            "commands to everyone: set it on the nodes"
        )
    kept = [name for name, value in sorted(os.environ.items()) if SETTINGS.fullmatch(name) and is_secret(name, value)]
    if kept:
        _note(f"{', '.join(kept)} may hold a secret and stays here: set it where the cluster's nodes are started")
    if "MLFLOW_TRACKING_URI" not in settings:
        _note("MLFLOW_TRACKING_URI is not set: the job's runs are recorded in its temporary folder on the cluster")
    with packed(command, limit_mb=flags.max_mb, install=flags.install) as folder:
        jobs = Jobs(flags.address)
        requirements = REQUIREMENTS if flags.install else None
        job_id = jobs.submit(words, working_dir=folder, env_vars=settings, requirements=requirements)
    _note(f"job {job_id} at {jobs.address}; forwarded: {', '.join(settings) or 'no settings'}")
    return job_id, jobs


def follow(jobs: Jobs, job_id: str) -> JsonSummary:
    """Print the job's log until it ends; a failure's reason is the last line."""
    last = [""]

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        last[0] = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), last[0])

    try:
        state = jobs.follow(job_id, write)
    except KeyboardInterrupt:
        _note(f"the job goes on: rtp submit --address {jobs.address} --follow {job_id} (or --status, --stop)")
        return {"job_id": job_id, "exit_code": 130}
    sys.stdout.flush()
    if state.status != "SUCCEEDED":
        reason = (
            last[0].removeprefix("rtp: ") if state.exit_code is not None else " ".join(state.message.split())[-500:]
        )
        _note(f"job {job_id} {state.status.lower()}{_code(state)}: {reason or 'without a message'}")
    return asdict(state) | {"exit_code": exit_code(state)}


def exit_code(state: JobState) -> int:
    """The job's own exit code, as a shell gives it (128 + n for signal n); 1 if it never ran or was stopped."""
    if state.exit_code is None:
        return 0 if state.status == "SUCCEEDED" else 1
    return state.exit_code if state.exit_code >= 0 else 128 - state.exit_code


def described(state: JobState) -> str:
    """One line."""
    return f"{state.job_id} {state.status}{_code(state)} after {state.seconds:.0f} s: {state.command}"


def entrypoint(command: Sequence[str]) -> list[str]:
    """The words that run on the cluster. Raises UsageError for a misspelt command of rtp."""
    words = list(command[1:] if command[0] == "rtp" else command)
    if words and words[0] in COMMANDS:
        versions = {"python": platform.python_version(), **_versions(CHECKED)}
        wanted = [f"{name}={version}" for name, version in versions.items()]
        return ["python", "-m", "cluster.preflight", *wanted, "--", "python", "-m", "pipelines", *words]
    near = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.75) if words else []
    if near or command[0] == "rtp":
        raise UsageError(f"rtp has no command {' '.join(words[:1])!r}{f': did you mean {near[0]!r}?' if near else ''}")
    return words


def settings_of(environment: Mapping[str, str], extra: Sequence[str]) -> dict[str, str]:
    """The variables that the job gets: from `environment`, and those of --env (`extra`), which must not be secrets.

    Raises ValueError for a secret or a bad name in `extra`.
    """
    settings = {name: value for name, value in sorted(environment.items()) if SETTINGS.fullmatch(name)}
    settings = {name: value for name, value in settings.items() if not is_secret(name, value)}
    for text in extra:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"--env {text!r} names no variable: give NAME=VALUE, or the NAME of one here")
        if not equals and name not in environment:
            raise ValueError(f"--env {name}: there is no such variable here, give {name}=VALUE")
        value = value if equals else environment[name]
        if is_secret(name, value):
            raise ValueError(
                f"--env {name} looks like a secret, and Ray shows a job's environment to everyone: set it where the "
                f"cluster's nodes are started"
            )
        settings[name] = value
    return settings


@contextmanager
def packed(command: Sequence[str], *, limit_mb: int, install: bool = False) -> Iterator[Path]:
    """A folder with the packages and the files that the command names. Raises ValueError if it is over the limit."""
    roots = [Path(package.__path__[0]) for package in PACKAGES]
    named = {path: Path(path) for path in _named_here(command)}
    sizes = {name: _size(root) for name, root in {root.name: root for root in roots}.items()}
    sizes |= {name: _size(path) for name, path in named.items()}
    total = sum(sizes.values())
    if total > limit_mb * MEGABYTE:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"the job's folder would be {total / MEGABYTE:.0f} MB, over the limit of {limit_mb} MB, with "
            f"{sizes[largest] / MEGABYTE:.0f} MB in {largest}: put data where all nodes can read them (s3://, "
            f"gs://, a shared folder), or raise --max-mb"
        )
    with tempfile.TemporaryDirectory(prefix="rtp-submit-") as scratch:
        folder = Path(scratch)
        for root in roots:
            shutil.copytree(root, folder / root.name, ignore=_LEFT_OUT)
        for name, path in named.items():
            _copy(path, folder / name)
        if install:
            _write_requirements(folder)
        yield folder


_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def _named_here(command: Sequence[str]) -> list[str]:
    """Relative paths in the command that exist here; those that look like paths and do not are pointed out."""
    paths = []
    for word in command[1:]:
        value = word.partition("=")[2] if word.startswith("--") else word
        path = Path(value)
        if not value or "://" in value or path.is_absolute() or ".." in path.parts or not ("/" in value or path.suffix):
            continue
        if os.path.exists(value):  # False too for what is no path at all
            paths.append(value)
        elif re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", value):
            _note(f"{value} will lie in the job's temporary folder on the cluster: s3:// or a shared folder keeps it")
    return list(dict.fromkeys(paths))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=_LEFT_OUT, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def _write_requirements(folder: Path) -> None:
    """Write the project's requirements, pinned to the versions of this environment, so that nodes install the same."""
    try:
        needed = importlib.metadata.requires("rt-pipelines") or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError("--install sends the versions installed here: pip install this project first") from None
    here = {dist.name: dist.version for dist in importlib.metadata.distributions() if dist.name != "rt-pipelines"}
    constraints = [f"{name}=={version.split('+')[0]}" for name, version in sorted(here.items())]
    wanted = [line for line in needed if "extra ==" not in line]
    (folder / "constraints.txt").write_text("\n".join(constraints) + "\n")
    (folder / REQUIREMENTS).write_text("\n".join(["--constraint constraints.txt", *wanted]) + "\n")


def _versions(names: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name).split("+")[0] for name in names}


def _code(state: JobState) -> str:
    return f" (exit code {exit_code(state)})" if state.exit_code is not None else ""


def _note(sentence: str) -> None:
    print(f"rtp: {sentence}", file=sys.stderr, flush=True)
