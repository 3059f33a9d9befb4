"""What somebody new to the commands types, refused at once and in words that are not Python's, with nothing left."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.object_store import open_files
from cluster.templates.ray_up import Aws, Gcp
from pipelines.cli import main
from pipelines.export import ExportArguments
from pipelines.serve import _require_free
from pipelines.terminal.plain_words import plain_words
from preprocessing.store.card import is_known_licence
from preprocessing.store.file_system import file_system_of, is_local

PYTHONS_OWN = ("invalid literal", "could not convert", "<class", "NoneType", "Arguments:", "Config:", "KubeRay")


def refused(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """The one line that a command ends with, in plain words."""
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not any(word in said for word in PYTHONS_OWN), said
    return said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("preprocess a b --limit ten", "--limit: 'ten' is not a whole number"),
        ("preprocess a b --format jsonl --pictures two", "--pictures: 'two' is no whole number"),
        ("filter a b --keep much", "--keep: 'much' is not a number"),
        ("serve a --port eighty", "--port: 'eighty' is no whole number"),
        ("evaluate a --data b --episodes few", "--episodes: 'few' is not a whole number\n"),
        ("simulate out --episodes q", "--episodes: 'q' is no whole number"),
        ("store split a b --shares train x", "--shares: give pairs of a name and a value"),
        ("store delete a --episodes x", "--episodes: 'x' cannot be read as what is asked for"),
        ("mask a --detector owlvit:x --threshold q", "--threshold: 'q' is no number"),
        ("train rt1_tiny --data x --output y --loop.steps many", "--loop.steps: 'many' is no whole number\n"),
        ("train rt1_tiny --data x --output y --optimizer.lr fast", "--optimizer.lr: 'fast' is no number"),
        ("filter a b --languages", "--languages needs at least one value; leave it out for its default"),
        ("filter a b --languages --keep 0.1", "--languages needs at least one value"),
        ("store delete a --flag x --episodes", "--episodes needs at least one value"),
        ("train rt1_tiny --data x --output y --validation", "--validation needs at least one value; leave it out"),
        ("train rt1_tiny --data x --output y --accept --resume", "--accept needs at least one value"),
        ("tune rt1_lr_wd --validation --data x --output y", "--validation needs at least one value"),
        ("doctor rt1_tiny --data", "--data needs at least one value"),
        ("evaluate a --env metaworld:x --view sid", "--view cannot be 'sid': give one of front, side, top\n"),
        ("train rt1_tiny --data x --output y --loop.fixed-shapes 1", "give one of auto, on, off\n"),
        (
            "train rt1_tiny --data x --output y --engine.zero.stage 3",
            "no option --engine.zero.stage: --engine is TorchEngineConfig, which has none; it may also be DeepSpeedEng",
        ),
        ("train rt1_tiny --data x --output y --engine.precison x", "did you mean '--engine.precision'?"),
        ("list --jsn", "there is no option --jsn: did you mean '--json'?"),
        ("demo --steps 0", "--steps must be at least 1, got 0"),
        ("demo --rollouts -1", "--rollouts must be 0 or more, got -1"),
        ("inspect s3:/bucket/x", "s3:/bucket/x is no address: write s3://bucket/x"),
        ("train rt1_tiny --data x --output=gs:/b/x", "gs:/b/x is no address: write gs://b/x"),
        ("replay http://127.0.0.1:1 --data x", "give the server's address as ws://127.0.0.1:1"),
        ("evaluate a --data x --suites none.yaml", "--suites none.yaml: No such file or directory"),
        ("train rt1_tiny --data x --output y --config=none.yaml", "--config none.yaml: No such file or directory"),
        ("store merge out a b --split ../x", "'../x' cannot be a split: letters, digits"),
        ("store split a b --shares train 0.9 val 0.2 --by all", "--by cannot be 'all': give one of shards, episodes"),
        (
            "store delete a --episodes 1,2",
            "'1,2' cannot be read as what is asked for (several values",
        ),
        ("tune rt1_lr_wd --data x --output y --budget.trials 0", "limits above 0, got trials 0\n"),
        ("tune rt1_lr_wd --data x --output y --concurrency 0", "concurrency must be at least 1 trial, got 0\n"),
        ("tune rt1_lr_wd --data x --output y --seeds", "different numbers of at least 0, got none\n"),
        ("tune rt1_lr_wd --data x --output y --seeds 1 1", "different numbers of at least 0, got 1 1\n"),
        ("submit --address http://127.0.0.1:1 --status x", "Connection refused; start the cluster, or give --address"),
        ("preprocess a b --draft-spec .", "--draft-spec . is a folder: give a file in it"),
        ("inspect models:/arm/1", "models:/arm/1 is a registered model: rtp registry show NAME says"),
        ("evaluate a", "rtp evaluate: nothing to evaluate on"),
        ("cluster render kuberay --name X", "--name 'X': give up to 40"),
        ("cluster render aws --region us-west", "--region 'us-west' is no region of AWS, such as us-west-2"),
        ("simulate s3://bucket/x", "OUT s3://bucket/x is an address"),
        ("demo --output gs://bucket/x", "--output gs://bucket/x is an address"),
        ("preprocess a b --draft-spec s3://b/spec.yaml", "--draft-spec s3://b/spec.yaml is an address"),
        ("evaluate a --env metaworld:x --video s3://b/x", "is an address: give a local folder"),
        ("import-encoder nowhere s3://bucket/encoder", "OUT s3://bucket/encoder is an address"),
        ("import-weights nowhere out --world-vector-limit z", "--world-vector-limit: 'z' is not a number"),
    ],
)
def test_one_plain_sentence_and_nothing_left(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "train rt1_tiny --data x --output {}",
        "tune rt1_lr_wd --data x --output {}",
        "demo --output {}",
        "export run {}",
        "export-lerobot store {}",
        "import-weights weights {}",
        "import-encoder encoder {}",
        "simulate {}",
        "evaluate run --data x --output {}/scores.json",
        "evaluate run --data x --html {}/scores.html",
        "evaluate run --env metaworld:faucet-open --video {}",
        "inspect store --html {}/page.html",
    ],
)
@pytest.mark.parametrize("place", ["file", "file/in/it"])
def test_a_file_where_a_folder_is_to_be(
    line: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    said = refused(capsys, line.format(place))
    assert "file is a file: give a" in said or f"{tmp_path}/file is a file: give another folder" in said
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_a_store_is_no_place_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").touch()
    said = refused(capsys, f"train rt1_tiny --data x --output {tmp_path}")
    assert f"--output {tmp_path} holds a store: give a folder of its own" in said


def test_a_missing_model_of_an_encoder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("tensorflow") is None:  # it is not loaded here: see tests/conftest.py
        pytest.skip("needs the extra use")
    said = refused(capsys, f"import-encoder {tmp_path}/nowhere {tmp_path}/new/encoder")
    assert "nowhere does not exist: give SOURCE the folder or .tar.gz" in said
    assert list(tmp_path.iterdir()) == []


def test_words_beside_a_number_stay() -> None:
    text = "scores.csv: could not convert string to float: 'a \\'b\\' c' in line 3"
    assert plain_words(text) == "scores.csv: 'a \\'b\\' c' is no number in line 3"
    assert plain_words("the bucket x does not exist") == "the bucket x does not exist"


@pytest.mark.parametrize(
    "url", ["hf://x", "hf://me/policy", "hf://datasets/x", "hf://datasets/me", "hf://models/me/policy"]
)
def test_what_is_no_dataset_of_the_hub_is_not_asked_for(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="names no dataset of the Hugging Face hub: give hf://datasets/OWNER/NAME"):
        file_system_of(url)
    assert "names no dataset of the Hugging Face hub" in refused(capsys, f"preprocess {url} out")


@pytest.mark.parametrize(
    "kind", ["datasets/me/arms", "buckets/me/arms/stores", "spaces/me/arms", "me/siglip/scores.parquet"]
)
def test_what_may_hold_data_is_asked_for(kind: str) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    filesystem, path = file_system_of(f"hf://{kind}")
    assert not is_local(filesystem) and path == kind


@pytest.mark.parametrize("url", ["hf://x", "hf://datasets/x", "hf://datasets/datasets/x"])
def test_what_is_nothing_of_the_hub_is_not_asked_for(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="names nothing of the Hugging Face hub"):
        open_files(url)
    assert "Hugging Face hub" in refused(capsys, f"inspect {url}")


def test_a_dataset_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, f"export hf://datasets/me/arms {tmp_path}/out")
    assert "hf://datasets/me/arms is a dataset of the Hugging Face hub, and a model is needed" in said


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        (Aws, {"region": "eu-central-1", "zones": "eu-central-1a,eu-central-1b"}),
        (Aws, {"region": "us-gov-west-1"}),
        (Aws, {"zones": "us-west-2-lax-1a"}),
        (Aws, {"region": "us-east-1", "zones": "us-east-1-wl1-bos-wlz-1"}),
        (Gcp, {"region": "northamerica-northeast1", "zone": "northamerica-northeast1-c"}),
        (Gcp, {"zone": "us-central1-ai1a"}),
    ],
)
def test_places_of_machines_are_taken(kind: Any, places: dict[str, str]) -> None:
    assert kind(**places).region


@pytest.mark.parametrize(
    ("kind", "places", "words"),
    [
        (Aws, {"region": "us-west-2a"}, "is no region of AWS"),
        (Aws, {"region": "Frankfurt"}, "is no region of AWS"),
        (Aws, {"zones": "us-west-2a, us-west-2b"}, "' us-west-2b' is no zone of --region us-west-2"),
        (Aws, {"zones": "eu-west-1a"}, "'eu-west-1a' is no zone of --region us-west-2"),
        (Aws, {"zones": "us-west-2"}, "is no zone"),
        (Aws, {"zones": ""}, "is no zone"),
        (Gcp, {"region": "us-central1-a"}, "is no region of Google Cloud"),
        (Gcp, {"zone": "us-central1-"}, "--zone us-central1- does not lie in"),
        (Gcp, {"zone": "us-central1-a\nx: y"}, "does not lie in"),
    ],
)
def test_places_that_there_are_none_of_are_refused(kind: Any, places: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**places)


def test_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(map(is_known_licence, ("apache-2.0", "MIT OR GPL-3.0-only", "gemma", "cc-by-nc-4.0", "CC BY 4.0")))
    assert not any(map(is_known_licence, ("aapche-2.0", "mine", "MIT OR")))
    with pytest.raises(ValueError, match="has a line break or another control character"):
        ExportArguments(model="a", out="b", licence="mit\n---\n# Mine")


def test_a_port_that_is_taken_names_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"port {port} \(.*\): another program listens there; stop it, or give another"
        ):
            _require_free("127.0.0.1", port)
    with pytest.raises(OSError, match="--host is an address of this machine"):
        _require_free("192.0.2.1", port)


@pytest.mark.parametrize("action", ["append", "delete", "merge", "split", "log", "prune", "card"])
def test_each_change_of_a_store_shows_its_own_example(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["store", action, "--help"])
    assert f"  rtp store {action} stores/" in capsys.readouterr().out
