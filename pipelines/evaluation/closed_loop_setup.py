"""From the command line to an evaluation in closed loop that can run: models, simulator, seeds, demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from pipelines.config.compute import Compute
from pipelines.evaluation.closed_loop_config import ClosedLoopConfig, ShownFrames
from pipelines.evaluation.closed_loop_run import ClosedLoop
from pipelines.evaluation.demonstrations import Demonstration, first_demonstrations
from pipelines.evaluation.record import home_of
from pipelines.evaluation.shown_frames import main_camera, remarks_on_limits, shown_frames, simulated_source
from pipelines.evaluation.wordings import Wordings, require_known
from pipelines.families.models import family_of
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.trained_model import load_trained
from pipelines.publishing.training_stores import open_training_store
from preprocessing.simulation.choice import choose_environments
from preprocessing.simulation.environment import FIRST_EVALUATION_SEED, EnvironmentConfig
from preprocessing.simulation.metaworld_rollout import MOUNTED_VIEWS, Camera
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_space import ActionSpec
from rt_models.spec import MAIN_CAMERA, Contract, DatasetContract, ImageRecipe

log = logging.getLogger(__name__)


def prepare(
    model: str,
    config: ClosedLoopConfig,
    *,
    episodes: int,
    seed: int,
    data: Sequence[EpisodeStore] = (),
    compute: Compute | None = None,
    wordings: Wordings | None = None,
) -> ClosedLoop:
    """Load and check everything. `data`: stores with demonstrations; by default those that the model was trained on.
    `wordings`: the policy also acts told them.

    Seeds begin at `FIRST_EVALUATION_SEED` + `seed`: no demonstration of rtp simulate has one of them. Raises ValueError
    if the policy does not act in what moves the simulated robot.
    """
    if episodes < 1 or seed < 0:
        raise ValueError(f"--episodes must be 1 or more and --seed 0 or more, got {episodes} and {seed}")
    compute = compute or Compute()
    trained = load_trained(model, device=compute.resolved())
    against = None if config.against is None else load_trained(config.against)  # on the CPU until it acts
    if config.shuffle_embeddings and family_of(trained.model).instruction == "text":
        raise ValueError(f"{model} reads instructions as text, which has no embedding: leave out --shuffle-embeddings")
    dataset = trained.contract.dataset(config.dataset)
    source = simulated_source(trained.contract, dataset)
    frames = shown_frames(config, trained.contract.image, source)
    environments = environments_of(config, trained.contract, dataset)
    remarks = [*frames.remarks, *remarks_on_limits(source, environments), *_remarks_on(against, config, frames)]
    require_known(wordings or {}, [environment.instruction for environment in environments], str(config.env))
    for policy in [trained] if against is None else [trained, against]:
        for environment in environments:
            side = policy.contract.dataset(config.dataset)
            require_fit(policy.source, policy.contract.action, side, environment)
    for remark in remarks:
        log.warning("%s", remark)
    return ClosedLoop(
        trained=trained,
        against=against,
        dataset=dataset,
        environments=environments,
        seeds=[FIRST_EVALUATION_SEED + seed + number for number in range(episodes)],
        config=config,
        demonstrations=_demonstrations(trained, data, environments) if "replay" in config.baselines else {},
        home=home_of(model),
        compute=compute,
        wordings=wordings or {},
        frames=replace(frames, remarks=tuple(remarks)),
    )


def environments_of(config: ClosedLoopConfig, contract: Contract, dataset: DatasetContract) -> list[EnvironmentConfig]:
    """Those that are asked for, with the cameras that a model reads under `contract` for this dataset's robot. Raises
    ValueError for one that there is not, and for a camera that it lacks."""
    frames = shown_frames(config, contract.image, simulated_source(contract, dataset))
    return list(
        choose_environments(
            str(config.env),
            camera=main_camera(frames, contract.image),
            control_hz=dataset.control_hz,
            further_cameras={
                recipe.camera: _mounted_camera(frames, recipe)
                for recipe in contract.cameras
                if recipe.camera not in dataset.without_cameras
            },
        )
    )


def _remarks_on(against: TrainedModel | None, config: ClosedLoopConfig, shown: ShownFrames) -> list[str]:
    """In what the frames differ from those that the other model was trained on: both are shown the same."""
    if against is None:
        return []
    asked = replace(config, view=shown.view, jpeg_quality=shown.jpeg_quality)
    contract = against.contract
    theirs = shown_frames(asked, contract.image, simulated_source(contract, contract.dataset(config.dataset)))
    return [f"{config.against}: {remark}" for remark in theirs.remarks]


def _mounted_camera(frames: ShownFrames, recipe: ImageRecipe) -> Camera:
    """One that demonstrations have beside the main camera. Raises ValueError for a role that no simulator draws."""
    if recipe.camera not in MOUNTED_VIEWS:
        raise ValueError(
            f"the policy reads camera {recipe.camera}, and Meta-World has {MAIN_CAMERA} and {', '.join(MOUNTED_VIEWS)}"
        )
    view = MOUNTED_VIEWS[recipe.camera]
    return Camera(view=view, height=recipe.height, width=recipe.width, jpeg_quality=frames.jpeg_quality)


def require_fit(policy: str, action: ActionSpec, dataset: DatasetContract, environment: EnvironmentConfig) -> None:
    """Raise ValueError unless the policy of this name answers in every dimension that moves the robot, and the
    simulator knows every value of the state that it reads; `action` is its contract's."""
    space, side = dataset.acted(action)
    answered = zip(space.names, side.action_mask, strict=True)
    present = {name for name, is_present in answered if is_present}
    missing = [name for name in environment.moved_by if name not in present]
    if missing:
        raise ValueError(
            f"{policy} was trained on {dataset.name}, whose robot has no {missing[0]}: {environment.task} moves by "
            f"{', '.join(environment.moved_by)}"
        )
    felt = () if dataset.state is None else dataset.state.recorded_names
    unknown = [name for name in felt if name not in environment.state_names]
    if unknown:
        raise ValueError(
            f"{policy} reads the state {unknown[0]}, and the simulator has none of this name in {environment.task}: it "
            f"has {', '.join(environment.state_names)}"
        )


def _demonstrations(
    trained: TrainedModel, data: Sequence[EpisodeStore], environments: Sequence[EnvironmentConfig]
) -> dict[str, Demonstration]:
    """Of the tasks that a store has; the others are not replayed."""
    stores = list(data)
    if not stores:
        opened = (open_training_store(reference) for reference in trained.origin.stores)
        stores = [store for store in opened if isinstance(store, EpisodeStore)]
    return first_demonstrations(stores, {environment.task: environment.instruction for environment in environments})
