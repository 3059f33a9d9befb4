"""`rtp submit`: what goes along and what never does, and jobs on real clusters started on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.config.arguments import UsageError
from pipelines.submit import entrypoint, packed, settings_of
from pipelines.terminal.secret_values import is_secret
from pipelines.training.git_revision import git_revision
from tests.support.command_line import REPOSITORY, SAMPLE, rtp_command
from tests.support.servers import BIN, Cluster, mlflow_server, ray_cluster, s3_bucket

PLANTED = "planted-secret-5f1c"


# --- what goes along ---


def test_commands_of_rtp_are_checked_and_run_as_a_module_others_as_they_are() -> None:
    words = entrypoint(["train", "rt1_tiny", "--json"])
    assert words[:3] == ["python", "-m", "cluster.preflight"] and any(word.startswith("torch=2.") for word in words)
    assert words[words.index("--") :] == ["--", "python", "-m", "pipelines", "train", "rt1_tiny", "--json"]
    assert entrypoint(["rtp", "list"]) == entrypoint(["list"])
    assert entrypoint(["python", "x.py"]) == ["python", "x.py"]


@pytest.mark.parametrize("command", [["trian", "rt1_tiny"], ["rtp", "trian"], ["rtp", "dance"], ["rtp"]])
def test_a_mistyped_command_is_not_sent(command: list[str]) -> None:
    with pytest.raises(UsageError, match="rtp has no command"):
        entrypoint(command)


SECRETS = {
    "AWS_ACCESS_KEY_ID": PLANTED,
    "AWS_SECRET_ACCESS_KEY": PLANTED,
    "AWS_SESSION_TOKEN": PLANTED,
    "MLFLOW_TRACKING_TOKEN": PLANTED,
    "MLFLOW_TRACKING_PASSWORD": PLANTED,
    "RAY_AUTH_TOKEN": PLANTED,
    "FSSPEC_S3_SECRET": PLANTED,
    "FSSPEC_S3_KEY": PLANTED,
    "RTP_PASSWORD": PLANTED,
    "HF_TOKEN": PLANTED,
    "WANDB_API_KEY": PLANTED,
    "MLFLOW_REGISTRY_URI": f"http://me:{PLANTED}@host",
    "MLFLOW_TRACKING_URI_2": f"https://{PLANTED}@host",
    "RTP_URL": f"see https://{PLANTED}@host/x",
    "RTP_SIGNED": f"https://bucket/x?X-Amz-Signature={PLANTED}",
    "FSSPEC_S3": json.dumps({"client_kwargs": {"aws_secret_access_key": PLANTED}}),
    "FSSPEC_S3_1": json.dumps([{"key": PLANTED}]),
    "FSSPEC_GCS": json.dumps({"token": {"private": PLANTED}}),
    "FSSPEC_ABFS": "{'account_key': '" + PLANTED + "'}",
    "FSSPEC_SFTP": f"{{host: a, password: {PLANTED}}}",
    "FSSPEC_HTTP": json.dumps({"client_kwargs": json.dumps({"headers": {"x-api-token": PLANTED}})}),
}


def test_settings_go_along_and_secrets_do_not() -> None:
    settings = {"MLFLOW_TRACKING_URI": "http://tracking:5000", "AWS_ENDPOINT_URL": "http://s3", "OMP_NUM_THREADS": "1"}
    settings |= {"FSSPEC_S3_": '{"anon": true, "endpoint_url": "http://s3:9000/a@b"}', "RTP_X": "{not json"}
    assert settings_of({**settings, **SECRETS, "HOME": "/root", "PATH": "/bin"}, ["MINE=1", "HOME"]) == {
        **settings,
        "MINE": "1",
        "HOME": "/root",
    }


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_refused_even_where_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match=f"--env {name} looks like a secret"):
        settings_of(SECRETS, [name])


@given(
    name=st.sampled_from(["MLFLOW_TRACKING_URI", "RTP_X"]),
    user=st.text("abc", min_size=1),
    word=st.text("abc", min_size=1),
)
def test_a_url_with_a_password_is_a_secret(name: str, user: str, word: str) -> None:
    assert is_secret(name, f"http://{user}:{word}@host/path") and is_secret(name, f"redis://:{word}@{user}@host")
    assert is_secret(name, f"https://{user}@host") and is_secret(name, json.dumps({"a": [{f"{user}_token": word}]}))
    assert not is_secret(name, f"http://{user}/{word}@host") and not is_secret(name, json.dumps({user: word}))


def test_code_and_named_small_files_are_packed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "big.bin", "specs/arm.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    command = [
        "train",
        "rt1_tiny",
        "--config=mine.yaml",
        "--spec",
        "specs/arm.yaml",
        "--output",
        "runs/first",
        "s3://b/x.y",
    ]
    with packed(command, limit_mb=100) as folder:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"mine.yaml", "specs/arm.yaml", "pipelines/train.py", "cluster/preflight.py", "rt_models/spec.py"} <= files
    outside = {
        file
        for file in files
        if file.split("/")[0] not in {"pipelines", "preprocessing", "rt_models", "cluster", "tuning"}
    }
    assert outside == {"mine.yaml", "specs/arm.yaml"} and not any("__pycache__" in file for file in files)
    assert "runs/first will lie in the job's temporary folder" in capsys.readouterr().err
    assert not folder.exists()


def test_over_the_limit_is_one_sentence_that_names_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://nowhere")
    with Path("data.parquet").open("wb") as file:
        file.truncate(120_000_000)
    assert (
        main(["submit", "--address", "http://127.0.0.1:1", "--", "train", "rt1_tiny", "--data", "./data.parquet"]) == 2
    )
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "over the limit of 100 MB, with 120 MB in ./data.parquet" in line and "--max-mb" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a COMMAND after --"),
        (["--status", "a", "--", "list"], "give a COMMAND after --"),
        (["--adress", "x", "--", "list"], "did you mean '--address'"),
        (["--address", "ray://head:1", "--", "list"], "is not a dashboard's"),
        (["--", "train", "--data", "s3://me:pass@bucket/x"], "a URL with a user or password"),
        (["--", "train", "--data", "https://token@bucket/x"], "a URL with a user or password"),
        (["--", "python", "x.py", '{"client": {"secret": "x"}}'], "JSON with a key, secret, token or password"),
        (["--env", "=1", "--", "list"], "--env '=1' names no variable"),
        (["--env", "A B=1", "--", "list"], "--env 'A B=1' names no variable"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://nowhere")
        assert main(["submit", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


# --- on a cluster of one node ---


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ray_cluster(tmp_path_factory.mktemp("cluster"), variables={"NODE_SECRET": "of-the-node"}) as running:
        yield running


def submitted(cluster: Cluster, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = rtp_command("submit", "--address", cluster.dashboard, *arguments)
    environment = cluster.environment | {"MLFLOW_TRACKING_URI": "http://tracking.invalid"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_a_job_ends_with_its_own_exit_code_and_its_reason_on_the_last_line(cluster: Cluster) -> None:
    script = "import sys; print('at work', flush=True); sys.exit('no wheels')"
    failed = submitted(cluster, "--", "python", "-c", script)
    assert failed.returncode == 1 and "at work\n" in failed.stdout
    assert last_line(failed).endswith("failed (exit code 1): no wheels")
    refused = submitted(cluster, "--", "evaluate", "s3://nowhere/run", "--data", "/nowhere", "--json")
    assert refused.returncode == 2 and "failed (exit code 2): " in last_line(refused), refused.stdout + refused.stderr


def test_code_comes_along_and_no_secret_is_seen(cluster: Cluster) -> None:
    token = cluster.environment["RAY_AUTH_TOKEN"]
    planted = SECRETS | {"RAY_AUTH_TOKEN": token}
    settings = ("NODE_SECRET", "OMP_NUM_THREADS", "RTP_GIT_REVISION")
    script = f"import os, pipelines; print(pipelines.__path__[0], *(os.environ[name] for name in {settings}))"
    done = submitted(cluster, "--detach", "--json", "--", "python", "-c", script, **planted, OMP_NUM_THREADS="7")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout.splitlines()[-1])["job_id"]
    followed = submitted(cluster, "--follow", job)
    assert followed.returncode == 0 and "working_dir_files" in followed.stdout, followed.stdout + followed.stderr
    assert f"of-the-node 7 {git_revision()}" in followed.stdout
    status = submitted(cluster, "--status", job, "--json", **planted)
    assert json.loads(status.stdout.splitlines()[-1])["status"] == "SUCCEEDED"
    everything = status.stdout + done.stderr + cluster.logs() + job_info(cluster, job)
    assert "tracking.invalid" in everything  # so that this would be seen
    assert PLANTED not in everything and token not in everything


def job_info(cluster: Cluster, job: str) -> str:
    script = "import sys; from ray.job_submission import JobSubmissionClient as Jobs; "
    script += "print(Jobs(sys.argv[1]).get_job_info(sys.argv[2]))"
    command = [sys.executable, "-c", script, cluster.dashboard, job]
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=True).stdout


def test_a_cluster_converts_from_and_to_relative_folders_with_the_code_that_is_sent(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The nodes run in other folders, and have no code of ours."""
    shutil.copytree(SAMPLE, tmp_path / "sample/1.0.0")
    command = rtp_command("preprocess", "sample/1.0.0", "out", "--split", "train[:20]", "--encoder", "hash", "--json")
    at = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*command, "--address", cluster.address], env=cluster.environment, **at)
    assert done.returncode == 0, done.stdout + done.stderr
    account = json.loads(done.stdout.splitlines()[-1])
    assert account["episodes_out"] == 20 and account["store"] == "out/metaworld_sample/1.0.0/train-0-20"
    assert sorted(path.name for path in (tmp_path / account["store"]).glob("shard-*"))


def test_a_job_is_stopped_and_an_unknown_one_named(cluster: Cluster) -> None:
    script = "import time; print('begun', flush=True); time.sleep(600)"
    sent = submitted(cluster, "--detach", "--json", "--", "python", "-c", script)
    assert sent.returncode == 0, sent.stderr
    job = json.loads(sent.stdout.splitlines()[-1])["job_id"]
    stopped = submitted(cluster, "--stop", job)
    assert stopped.returncode == 0 and f"{job} STOPPED" in stopped.stdout
    assert submitted(cluster, "--follow", job).returncode == 1
    unknown = submitted(cluster, "--status", "raysubmit_none")
    assert unknown.returncode == 2 and "knows no job 'raysubmit_none'" in last_line(unknown)


# --- on a cluster of two nodes, with everything on S3 ---


@pytest.mark.slow
def test_the_whole_path_on_two_nodes_with_data_checkpoints_and_artifacts_on_s3(tmp_path: Path) -> None:
    with (
        s3_bucket(tmp_path) as s3,
        mlflow_server(tmp_path, s3.environment, artifacts=f"{s3.url}/artifacts") as tracking,
        ray_cluster(tmp_path, nodes=2, variables=s3.environment | {"PATH": f"{BIN}:/usr/bin:/bin"}) as cluster,
    ):
        shutil.copytree(SAMPLE, s3.folder / "source/metaworld_sample/1.0.0")

        def rtp(*words: str) -> dict[str, Any]:
            done = submitted(cluster, "--", *words, "--json", MLFLOW_TRACKING_URI=tracking)
            assert done.returncode == 0, done.stdout + done.stderr
            return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))

        stores = f"{s3.url}/stores"
        source = f"{s3.url}/source/metaworld_sample/1.0.0"
        for split in ("train", "val"):
            rtp("preprocess", source, stores, "--split", split, "--encoder", "hash")
        data = [f"{stores}/metaworld_sample/1.0.0/{split}" for split in ("train", "val")]
        flags = ["--data", data[0], "--validation", data[1], "--output", f"{s3.url}/runs/first", "--loop.steps", "4"]
        workers = [
            "--launch",
            "RayLaunch",
            "--launch.num_workers",
            "2",
            "--launch.storage_path",
            str(tmp_path / "shared"),
        ]
        trained = rtp("train", "rt1_tiny", *flags, *workers)
        assert trained["steps"] == 4
        evaluated = rtp("evaluate", f"{s3.url}/runs/first", "--data", data[1], "--bootstrap-samples", "10")
        assert evaluated["step"] == 4 and evaluated["evaluations"][0]["episodes"] == 24
        short = ["--budget.trials", "2", "--scheduler", "ToTheEnd", "--loop.steps", "2", "--loop.global_batch", "16"]
        rtp("tune", "rt1_lr_wd", *flags[:4], "--output", f"{s3.url}/runs/sweep", *short)
        assert (s3.folder / "runs/sweep/best.yaml").exists()
        registered = rtp("register", f"{s3.url}/runs/first", "--name", "arm", "--alias", "champion")
        assert registered["tracking_uri"] == tracking
        assert any((s3.folder / "artifacts").rglob("model.safetensors"))
        assert list((tmp_path / "server").iterdir()) == []
        plain = [
            str(BIN / "ray"),
            "job",
            "submit",
            "--address",
            cluster.dashboard,
            "--working-dir",
            str(REPOSITORY),
            "--",
        ]
        words = [*plain, "python", "-m", "pipelines", "list", "--json"]
        done = subprocess.run(words, env=cluster.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and '"recipes"' in done.stdout, done.stdout + done.stderr
