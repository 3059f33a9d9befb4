"""A checkpoint exported, loaded where neither Ray nor DeepSpeed can be imported, and trained on from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from cluster.shards import each_weight
from pipelines.cli import main
from pipelines.publishing.folder import DESCRIPTION, WEIGHTS
from pipelines.publishing.instructions import INSTRUCTIONS
from pipelines.publishing.model_card import CARD
from pipelines.publishing.trained_model import find_checkpoint, load_trained
from preprocessing.store.episode_store import EpisodeStore
from tests.support.command_line import REPOSITORY

LOADED_ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "deepspeed", "mlflow", "cluster"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Absent())
import torch
from pipelines.publishing.folder import read_bundle

model = read_bundle(sys.argv[1]).model
size, steps = model.config.input.image_size, model.config.num_steps
image = torch.linspace(0, 1, steps * size * size * 3).view(1, steps, size, size, 3)
with torch.no_grad():
    print(float(model(image, torch.ones(1, steps, 512)).double().abs().sum()))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(store: str, home: Path) -> str:
    """A short run that keeps averaged weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        flags = ["--output", str(home / "run"), "--loop.steps", "4", "--optimizer.lr", "1e-2"]
        assert main(["train", "rt1_tiny", "--data", store, *flags, "--engine.ema_decay", "0.5"]) == 0
    return str(home / "run")


@pytest.fixture(scope="module")
def bundle(run: str, home: Path) -> Path:
    assert main(["export", run, str(home / "bundle")]) == 0
    return home / "bundle"


def test_an_export_is_one_file_of_weights_with_configuration_and_contract(bundle: Path, run: str) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == [CARD, INSTRUCTIONS, WEIGHTS, DESCRIPTION]
    described = json.loads((bundle / DESCRIPTION).read_text())
    assert described["model"]["type"] == "RT1Config" and described["step"] == 4
    assert described["metadata"]["weights"] == "averaged"
    loaded, trained = load_trained(str(bundle)), load_trained(run)
    assert loaded.contract == trained.contract and loaded.model.config == trained.model.config


def test_the_card_states_contract_data_and_scores_and_no_path(store: str, run: str, home: Path) -> None:
    flags = ["--bootstrap-samples", "20", "--no-perturbations"]
    assert main(["evaluate", run, "--data", store, *flags]) == 0
    assert main(["export", run, str(home / "scored"), "--licence", "apache-2.0"]) == 0
    card = (home / "scored" / CARD).read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    (result,) = head["model-index"][0]["results"]
    score = next(each["value"] for each in result["metrics"] if each["type"] == "token_accuracy")
    saved = json.loads(next(Path(run, "evaluations").glob("step-4-*.json")).read_text())["evaluations"][0]
    assert head["license"] == "apache-2.0" and score == saved["token_accuracy"]["mean"]
    trained = load_trained(run)
    for text in (trained.contract.id, trained.origin.stores[0].fingerprint, "metaworld_sample val (trained on)"):
        assert text in card, text
    assert str(home) not in card and str(Path(store).parents[3]) not in card and "load_policy('scored')" in card
    assert main(["export", run, str(home / "unscored"), "--weights", "last"]) == 0
    assert "None is recorded for these weights" in (home / "unscored" / CARD).read_text()


def test_pushed_to_an_object_store_it_loads_from_there(
    run: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "memory://pushed/policy"
    assert main(["export", run, str(home / "kept"), "--push", url]) == 0
    pushed = load_trained(url)
    for name, value in load_trained(str(home / "kept")).model.state_dict().items():
        assert torch.equal(pushed.model.state_dict()[name], value), name
    described = fsspec.filesystem("memory").cat_file("/pushed/policy/policy.json").decode()
    assert str(home) not in described and pushed.origin.stores[0].fingerprint in described
    assert "load_policy('memory://pushed/policy')" in (home / "kept" / CARD).read_text()
    capsys.readouterr()
    assert main(["export", run, str(home / "again"), "--push", url]) == 2
    assert "exists: give a new folder" in capsys.readouterr().err and not (home / "again").exists()


class Hub:
    """Stands where the hub's client does; `pushed` is what it was given."""

    endpoint = "https://hub"
    pushed: ClassVar[dict[str, Any]] = {}
    is_down: ClassVar[bool] = False

    def whoami(self) -> None:
        if self.is_down:
            raise RuntimeError("[Errno -2] Name or service not known")  # the HTTP client's are no OSError either

    def create_repo(self, repo_id: str, **options: Any) -> None:
        if repo_id == "someone/else":
            said = "hf_secretsecret Bearer secret {'authorization': 'Bearer secret'} https://me:secret@hub"
            raise OSError(f"403 for https://hub/api?X-Amz-Signature=secret {said}")
        self.pushed.setdefault(repo_id, {"files": {}}).update(options)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, delete_patterns: str | None = None, **options: Any
    ) -> None:
        before = self.pushed[repo_id]["files"]
        left = {name: data for name, data in before.items() if not fnmatch(name, delete_patterns or "")}
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.pushed[repo_id] |= {"files": left | files, **options}


def test_pushed_to_the_hub_it_is_private_and_no_secret_is_said(
    run: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    monkeypatch.setattr(hub, "HfApi", Hub)
    Hub.pushed["me/policy"] = {"files": {"tokenizer/tokenizer.json": b"of an earlier model"}}
    assert main(["export", run, str(home / "hub"), "--push", "hf://me/policy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pushed"] == "https://hub/me/policy"
    given = Hub.pushed["me/policy"]
    assert given["private"] is True and set(given["files"]) == {CARD, INSTRUCTIONS, WEIGHTS, DESCRIPTION}
    assert b"name: policy" in given["files"][CARD] and b"load_policy('hf://me/policy')" in given["files"][CARD]
    assert main(["export", run, str(home / "refused"), "--push", "hf://someone/else"]) == 2
    said = capsys.readouterr().err
    assert "could not be pushed to" in said and "the export itself is whole in" in said and "secret" not in said
    assert load_trained(str(home / "refused")).step == 4
    monkeypatch.setattr(Hub, "is_down", True)
    assert main(["export", run, str(home / "offline"), "--push", "hf://me/policy"]) == 2
    assert "check the network and HF_TOKEN" in capsys.readouterr().err and not (home / "offline").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("models/mine", "is no place to push to: give hf://OWNER/MODEL"),
        ("https://huggingface.co/me/mine", "is no place to push to"),
        ("file:///models/mine", "is no place to push to"),
        ("s3://", "is no place to push to"),
        ("s3://bucket", "is no place to push to"),
        ("hf://alone", "names no model of the hub: give hf://OWNER/MODEL"),
    ],
)
def test_where_it_cannot_go_is_said_before_anything_is_written(
    run: str, home: Path, url: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", run, str(home / "nothing"), "--push", url]) == 2
    assert words in capsys.readouterr().err and not (home / "nothing").exists()


def test_averaged_and_last_weights_are_told_apart(run: str, bundle: Path, home: Path) -> None:
    assert main(["export", run, str(home / "last"), "--weights", "last"]) == 0
    engine = Path(find_checkpoint(run)[1].path) / "engine"
    for folder, averaged in ((bundle, True), (home / "last", False)):
        expected, exported = dict(each_weight(engine, averaged=averaged)), load_file(folder / WEIGHTS)
        assert exported.keys() == expected.keys()
        assert all(torch.equal(exported[name], value) for name, value in expected.items())
    assert (bundle / WEIGHTS).read_bytes() != (home / "last" / WEIGHTS).read_bytes()


def test_it_loads_and_answers_without_ray_deepspeed_and_mlflow(bundle: Path) -> None:
    command = [sys.executable, "-c", LOADED_ALONE, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    model = load_trained(str(bundle)).model
    size, steps = model.config.input.image_size, model.config.num_steps
    image = torch.linspace(0, 1, steps * size * size * 3).view(1, steps, size, size, 3)
    with torch.no_grad():
        expected = float(model(image, torch.ones(1, steps, 512)).double().abs().sum())
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)


def test_the_loader_script_would_notice_an_import(bundle: Path) -> None:
    script = LOADED_ALONE.replace(
        "from pipelines.publishing.folder",
        "import pipelines.publishing.trained_model\nfrom pipelines.publishing.folder",
    )
    done = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, check=False, cwd=REPOSITORY)
    assert done.returncode != 0


def trained_from(init: Path | str, store: str, home: Path, name: str, *flags: str) -> int:
    common = ["train", "rt1_tiny", "--data", store, "--output", str(home / name), "--loop.steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return main([*common, "--init", str(init), *flags])


def test_training_starts_from_a_bundles_weights(bundle: Path, store: str, home: Path) -> None:
    assert trained_from(bundle, store, home, "still", "--optimizer.lr", "0") == 0
    before, after = load_trained(str(bundle)).model, load_trained(str(home / "still")).model
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new), name


def test_only_what_is_not_frozen_is_trained(bundle: Path, store: str, home: Path) -> None:
    assert trained_from(bundle, store, home, "half", "--freeze", "tokenizer.", "--optimizer.lr", "1e-2") == 0
    before = dict(load_trained(str(bundle)).model.named_parameters())
    moved = {n for n, p in load_trained(str(home / "half")).model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not any(name.startswith("tokenizer.") for name in moved)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.num_image_tokens", "2"], ["is another model", "model.num_image_tokens, 4 there and 2 here"]),
        (["--freeze", "tokenizr."], ["no parameter's name begins with 'tokenizr.'", "did you mean 'tokenizer'?"]),
        (["--freeze", "tokenizer", "transformer"], ["leaves nothing to train"]),
        (["--loop.patience", "2"], ["--validation STORE and loop.evaluate_every"]),
        (["--loop.best_by", "validaton_loss"], ["no 'validaton_loss': did you mean 'validation_loss'?"]),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    flags: list[str], words: list[str], bundle: Path, store: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained_from(bundle, store, home, "refused", *flags) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("rtp: ") and all(word in last for word in words), last
    assert not (home / "refused/checkpoints").exists()


def test_weights_of_another_encoder_are_refused(
    bundle: Path, store: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = home / "other"
    other.mkdir()
    (other / WEIGHTS).write_bytes((bundle / WEIGHTS).read_bytes())
    described: dict[str, Any] = json.loads((bundle / DESCRIPTION).read_text())
    described["contract"]["encoder"] = "universal-sentence-encoder-large/5"
    (other / DESCRIPTION).write_text(json.dumps(described))
    assert trained_from(other, store, home, "refused") == 2
    assert "trained with instruction vectors of universal-sentence-encoder-large/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{home}/nowhere", "{home}/out"], "nowhere is not there: give a run's output folder"),
        (["{run}", "{run}"], "exists: give a new folder"),
        (["{run}", "{home}/out", "--weights", "best"], "--weights"),
    ],
)
def test_a_mistake_exports_nothing(
    arguments: list[str], words: str, run: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *(argument.format(home=home, run=run) for argument in arguments)]) == 2
    assert words in capsys.readouterr().err and not (home / "out").exists()


@pytest.mark.parametrize("flags", [["export", "{run}", "out"], ["train", "rt1_tiny", "--output", "{run}", "--resume"]])
def test_a_checkpoint_that_was_altered_is_not_used(
    flags: list[str], run: str, store: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit of a weight: its size and the file's form are as they were."""
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run, tmp_path / "run")
    (shard,) = copy.glob("checkpoints/*/engine/shard-*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    more = ["--data", store, "--engine.ema_decay", "0.5", "--loop.steps", "8"] if flags[0] == "train" else []
    assert main([flag.format(run=copy) for flag in flags] + more) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{shard.name} is not the file that was saved" in last and f"remove {shard.parents[1]} to use" in last
    assert not (tmp_path / "out").exists() and len(list(copy.glob("checkpoints/*"))) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (DESCRIPTION, b"", "policy.json does not describe a model"),
        (DESCRIPTION, b'{"model": 3}', "policy.json does not describe a model"),
        (DESCRIPTION, b"[1]", "policy.json does not describe a model"),
        (WEIGHTS, b"", "model.safetensors cannot be read"),
        (WEIGHTS, save({"a": torch.zeros(1)}), "holds the weights of another model"),
    ],
)
def test_a_damaged_bundle_is_one_sentence(
    name: str, content: bytes, words: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / name).write_bytes(content)
    assert main(["export", str(damaged), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line and not (tmp_path / "out").exists()


def test_an_export_goes_to_an_object_store_and_is_evaluated_from_there(run: str, store: str) -> None:
    assert main(["export", run, "memory://exported/model"]) == 0
    assert main(["export", run, "memory://exported/model"]) == 2
    from pipelines.evaluation.config import EvaluationConfig
    from pipelines.evaluation.scoring import evaluate

    trained = load_trained("memory://exported/model")
    config = EvaluationConfig(bootstrap_samples=10, perturbations=False)
    scores = [evaluate(t.model, t.contract, EpisodeStore.open(store), config) for t in (trained, load_trained(run))]
    assert np.isfinite(scores[0].token_accuracy.mean) and scores[0] == scores[1]
