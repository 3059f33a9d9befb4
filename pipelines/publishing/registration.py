"""A trained model becomes a version of a registered MLflow model, and an alias moves to it if all gates pass.

The version carries weights (safetensors), configuration, contract, the instruction table of its training stores and
the code it needs (`mlflow_model.py`).
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType

from pipelines.config.compute import Compute
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.report import EvaluationReport
from pipelines.evaluation.scoring import score
from pipelines.publishing.aliases import Comparator, holder_of, promote, require_names
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.gates import Gate, Verdict, judge_all
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.mlflow_model import mlflow_model, without_paths
from pipelines.publishing.success_gates import Trial, is_of_success, judge_success
from pipelines.publishing.trained_model import instructions_of, load_trained
from pipelines.publishing.training_stores import Store, StoreReference, named_anew, open_training_store
from pipelines.serving.request_format import ServedPolicy
from pipelines.tracking.mlflow_run import TrainingRun, connect, explained, tracking_uri
from pipelines.training.data import require_readable
from preprocessing.store.web_store import open_store, robot_stores

_DEFAULT_GATE, _DEFAULT_SUCCESS_GATE = "scaled_error<=champion", "success>=champion"


@dataclass(frozen=True, kw_only=True)
class PromotionPolicy:
    """What an alias's next holder must show, on which held-out stores and in which simulator. No gates: nothing."""

    gates: tuple[Gate, ...] = ()
    stores: tuple[str, ...] = ()
    split: str = "val"
    is_default: bool = False
    """Whether the gates are those that nobody asked for."""
    trial: Trial | None = None
    """Where gates on success are judged."""
    compute: Compute = field(default_factory=Compute)
    """Where models are scored for the gates, and act."""

    @staticmethod
    def of(
        alias: str | None,
        conditions: Sequence[str],
        stores: Sequence[str],
        split: str = "val",
        trial: Trial | None = None,
    ) -> PromotionPolicy:
        """Raises ValueError if conditions, stores, simulator and alias do not go together."""
        defaults = (_DEFAULT_GATE,) * bool(stores) + (_DEFAULT_SUCCESS_GATE,) * (trial is not None)
        gates = tuple(Gate.parse(text) for text in conditions or defaults)
        policy = PromotionPolicy(gates=gates, stores=tuple(stores), split=split, is_default=not conditions, trial=trial)
        if (conditions or trial) and alias is None:
            raise ValueError("--gate, --data and --env decide whether an alias moves: give --alias, such as champion")
        if policy.on_stores and not stores:
            raise ValueError("--gate needs held-out episodes to be judged on: give --data STORE")
        if policy.on_success and trial is None:
            raise ValueError("--gate success is judged in a simulator: give --env metaworld:TASK,...")
        if trial is not None and not policy.on_success:
            raise ValueError("--env is where gates on success are judged: add --gate 'success>=champion'")
        return policy

    @property
    def on_stores(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not is_of_success(gate))

    @property
    def on_success(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if is_of_success(gate))

    def without(self, training: Collection[str], alias: str | None) -> PromotionPolicy:
        """Where some of the stores only say where training stores lie now. Raises ValueError as `of` does."""
        held_out = tuple(path for path in self.stores if path not in training)
        if held_out and alias is None:
            raise ValueError(
                f"--data {held_out[0]} holds no training store that has moved, and held-out ones decide whether an "
                f"alias moves: give --alias, such as champion"
            )
        if self.on_stores and not self.is_default and not held_out:
            raise ValueError("--gate needs held-out episodes to be judged on: give --data another STORE")
        return replace(self, stores=held_out, gates=self.gates if held_out else self.on_success)

    def evaluations(self, trained: TrainedModel) -> dict[str, EvaluationReport]:
        """The evaluation of a model on every held-out store; its other scores only where a gate asks for them."""
        perturbations = any(gate.metric.startswith("perturbed") for gate in self.on_stores)
        config = EvaluationConfig(perturbations=perturbations, compute=self.compute)
        opened = [open_store(path, split=self.split) for path in self.stores] if self.on_stores else []
        return {store.root: score(trained, store, config) for store in opened}

    def judge(self, name: str, trained: TrainedModel, model: str) -> Comparator:
        """Compares `trained`, which was read from `model`, with any version of `name`, evaluating each version once."""
        mine = self.evaluations(trained)

        @cache
        def verdicts(holder: str | None) -> list[Verdict]:
            compared = holder is not None and any(gate.against_champion for gate in self.on_stores)
            theirs = self._of_holder(name, holder) if compared else None
            judged = judge_all(self.on_stores, mine, theirs, holder=holder)
            return [*judged, *self._successes(model, name, holder)]

        return verdicts

    def _successes(self, model: str, name: str, holder: str | None) -> list[Verdict]:
        """The gates on success: both models act, the champion only if a gate compares with it."""
        if self.trial is None:
            return []
        compared = holder is not None and any(gate.against_champion for gate in self.on_success)
        champion = f"models:/{name}/{holder}" if compared else None
        report = self.trial.report(model, champion, self.compute)
        return [judge_success(gate, report, holder=holder) for gate in self.on_success]

    def _of_holder(self, name: str, holder: str | None) -> dict[str, EvaluationReport]:
        try:
            return self.evaluations(load_trained(f"models:/{name}/{holder}", device=self.compute.resolved()))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"version {holder} of {name}, which the alias points at, cannot be compared with ({error}): give gates "
                f"with numbers instead of champion"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A new version of a registered model.

    promoted: whether the alias moved to it. holder: the version that the alias now points at, if it exists. gates: one
    sentence per gate, with its verdict.
    """

    model_uri: str
    version: str
    promoted: bool
    holder: str | None
    gates: list[str]
    tracking_uri: str
    run_id: str


def register(
    checkpoint: str, *, name: str, alias: str | None = None, guard: PromotionPolicy | None = None
) -> Registration:
    """Register the newest model under `checkpoint`, and point `alias` at it if `guard` lets it pass.

    The version belongs to the training's own MLflow run. Training stores may have moved: `guard.stores` gives their new
    paths. A store that is not found is described by what the run or bundle recorded of it. Raises FileNotFoundError if
    there is no instruction table to carry along, and ValueError if imported weights were given no store, or if the
    held-out stores do not fit the model; nothing is registered then.
    """
    require_names(name, alias)
    policy = guard or PromotionPolicy()
    policy.compute.resolved()  # a GPU that is not there is said before anything is read
    trained = load_trained(checkpoint)  # on the CPU: beside a champion that is scored or acts, the GPU holds no other
    anew = named_anew(trained.origin.stores, policy.stores)
    policy = policy.without(anew.values(), alias)
    stores = _training_stores(checkpoint, trained, anew)
    trained = _with_table(trained, [store for _, store in stores])
    uri = tracking_uri()
    mlflow = connect(uri)
    client = mlflow.MlflowClient()
    with explained(uri):
        judge = policy.judge(name, trained, checkpoint)
        if alias is not None:
            judge(holder_of(client, name, alias))  # what cannot be judged is not registered either
        run_id = _run_of(trained, uri)
        version = _logged(mlflow, trained, name, run_id)
        for key, value in _tags(trained, stores).items():
            client.set_model_version_tag(name, version, key, value)
        client.update_model_version(name, version, description=ServedPolicy.of(InferenceModel(trained)).description())
        decision = promote(client, name, alias, version, judge) if alias is not None else None
        holder = holder_of(client, name, alias) if alias is not None else None
    promoted = decision is not None and decision.promoted
    return Registration(
        model_uri=f"models:/{name}@{alias}" if promoted else f"models:/{name}/{version}",
        version=version,
        promoted=promoted,
        holder=holder,
        gates=decision.reasons if decision is not None else [],
        tracking_uri=uri,
        run_id=run_id,
    )


Known = tuple[StoreReference, Store | None]
"""A training store as it was recorded, and the store itself if it is found."""


def _training_stores(checkpoint: str, trained: TrainedModel, anew: Mapping[str, str]) -> list[Known]:
    references = trained.origin.stores
    if not references:
        raise ValueError(f"{checkpoint} is bound to no episode store: import its weights again with --data STORE")
    stores = [(each, open_training_store(each, anew.get(each.path))) for each in references]
    for store in robot_stores(store for _, store in stores if store is not None):
        require_readable(trained.contract, store)
    return stores


def _with_table(trained: TrainedModel, stores: Sequence[Store | None]) -> TrainedModel:
    """The model with the instructions of all its stores; if a store is missing, with those that it carries."""
    there = [store for store in stores if store is not None]
    if len(there) == len(stores):
        return replace(trained, instructions=instructions_of(trained, robot_stores(there)))
    if not trained.instructions.vectors:
        references = trained.origin.stores
        lost = next(each.path for each, store in zip(references, stores, strict=True) if store is None)
        raise FileNotFoundError(
            f"{trained.source} brings no instruction table, and the store {lost}, which has it, is not found: name the "
            f"place where it lies now with --data, or register what rtp export writes where the store is"
        )
    return trained


def _logged(mlflow: ModuleType, trained: TrainedModel, name: str, run_id: str) -> str:
    """Upload the model into the run and register it; its version."""
    with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(name="policy", **mlflow_model(trained, Path(scratch)))
        without_paths(mlflow, info, Path(scratch))
        return str(mlflow.register_model(info.model_uri, name).version)


def _run_of(trained: TrainedModel, uri: str) -> str:
    """The training's run if this tracking server knows it, else a new one that names the checkpoint."""
    run_id = trained.origin.mlflow_run_id
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
        "git_revision": trained.origin.git_revision,
        "python": platform.python_version(),
    }
