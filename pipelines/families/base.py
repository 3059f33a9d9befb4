"""What differs by kind of model: a `ModelFamily` answers it for one kind, and no other file asks which kind it has.

A new kind of model is two files: the model in rt_models/, and here a module that names its family FAMILY
(families/models.py finds it). Models of windows of frames start from `WindowFamily` (windows.py), models of prompts and
answers from `PromptFamily` (prompts.py). tests/support/pixel_mlp_{model,family,recipe}.py are a complete example.

Axes: B rows of a batch, A actions, K fields of a text, F frames, T places for frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from pipelines.training.co_fine_tuning import CoFineTuningConfig
from preprocessing.loading.reader import Batch, LoaderConfig, Reader
from preprocessing.loading.web_reader import WebText
from preprocessing.mixture import MixtureConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import Store, WebStore
from rt_models.action_space import ActionSpace
from rt_models.control.action import Action
from rt_models.control.observation import Frame, RobotState
from rt_models.object_marks import MIDDLE
from rt_models.robot_model import RobotModel, RobotModelConfig
from rt_models.spec import MAIN_CAMERA, Contract, DatasetContract, ObjectMarks, StateInput, frames_key


class LoopSettings(Protocol):
    @property
    def segment_windows(self) -> int: ...


class TrainingRun(Protocol):
    """What a family reads of an Experiment (pipelines/config/experiment.py, which itself imports the families)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> Any: ...
    @property
    def mixture(self) -> MixtureConfig: ...
    @property
    def co_fine_tuning(self) -> CoFineTuningConfig | None: ...
    @property
    def loop(self) -> LoopSettings: ...


class BatchCost(Protocol):
    """What the batches of one model cost. They lie on the host, but for `trained_tokens`."""

    def frames(self, batch: Batch) -> int:
        """Images that a training step encodes: distinct frames, and with random crops distinct (frame, crop) pairs."""
        ...

    def training_flops(self, batch: Batch, frames: int) -> float:
        """Operations of forward and backward with so many encoded frames.

        They are the model's own: what activation checkpointing computes again is not counted.
        """
        ...

    def trained_tokens(self, batch: Batch) -> Tensor:
        """int64 (B,): how many tokens of each sample the loss is taken over."""
        ...


@dataclass(frozen=True, kw_only=True)
class PredictedSteps:
    """Some steps of a store that are trained on, in episode order: what was recorded and what the model answers."""

    episode_B: np.ndarray
    step_B: np.ndarray
    action_BA: np.ndarray
    """float32 model values of the recorded actions."""
    target_tokens_BA: np.ndarray
    tokens_BA: np.ndarray
    valid_mass_BK: np.ndarray | None = None
    """Of models that answer in text: see `rt_models.language.generation.PredictedActions`."""
    invalid_BK: np.ndarray | None = None
    log_likelihood_BAJ: np.ndarray | None = None
    """Of models that answer in one pass: the recorded token's log-probability at each of `TEMPERATURES`."""
    confidence_BAJ: np.ndarray | None = None
    """The largest probability, in the same way."""


ChangeFrames = Callable[[Tensor], Tensor]
"""From uint8 frames (F, H, W, 3) to others of the same shape."""
TEMPERATURES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.8, 4.0)
"""What logits are divided by."""


class WebAnswers(Protocol):
    """A model that answers questions about the pictures of a web store; rows count through its examples."""

    def texts(self, rows: np.ndarray) -> list[WebText]: ...

    def answers(self, rows: np.ndarray, images: np.ndarray, *, max_new_tokens: int) -> list[str]:
        """Answers to the prompts of `rows` (B,), given the pictures of the examples `images` (B,)."""
        ...

    def close(self) -> None: ...


class Policy(Protocol):
    """A model that acts for one robot and keeps its history."""

    def act(self, frame: Any, instruction: Any, state: RobotState = None) -> Action:
        """The action for the newest frame, uint8 (H, W, 3), of several cameras by role. The instruction is a text or a
        vector, as the family says, and the state physical values of a robot whose model reads one.

        A new instruction begins a new episode.
        """
        ...

    def reset(self) -> None:
        """Begin an episode: forget the frames seen."""
        ...

    def for_another_robot(self) -> Policy:
        """A policy with the same weights and a history of its own."""
        ...


Instruction: TypeAlias = str | np.ndarray
"""What a model reads: a text, or a vector (512,)."""

ConfigT = TypeVar("ConfigT", bound=RobotModelConfig)
ModelT = TypeVar("ModelT", bound=RobotModel)
RunT = TypeVar("RunT", bound=TrainingRun)


class ModelFamily(ABC, Generic[ConfigT, ModelT]):
    """One kind of model. What has a default here need not be answered."""

    config_class: type[ConfigT]
    """In plain data a config names this class under "type"."""
    model_class: type[ModelT]
    label: str
    """The model in a sentence: "an RT-1"."""
    instruction: Literal["text", "vector"] = "vector"
    """What the policy reads: the text itself, or its vector (512,) by the contract's encoder."""
    requirements: tuple[str, ...] = ()
    """Packages that a registered model needs beside those that every one needs."""

    kept_on_cpu: float = 3.0
    """What glibc keeps of freed memory after some hundred steps on a CPU, over the most that a step's tensors hold:
    batches of a different number of images leave holes (benchmarks/doctor_estimates.py)."""

    # --- training ---

    def in_space(self, config: ConfigT, space: ActionSpace) -> ConfigT:
        """The config acting in `space`, which its stores hold. Raises ValueError if such a model cannot."""
        own = config.action_spec().space()
        if own.identity != space.identity:
            raise ValueError(f"{self.label} acts in {own.name} alone, and the stores hold {space.name}")
        return config

    def cameras(self, config: ConfigT) -> tuple[str, ...]:
        """The cameras that the model reads, by role, in its order."""
        return (MAIN_CAMERA,)

    def state(self, config: ConfigT) -> StateInput | None:
        """What the model reads of the robot's state."""
        return None

    def with_state(self, config: ConfigT, names: tuple[str, ...]) -> ConfigT:
        """The config of a model that reads a state, which is these values of the stores."""
        raise ValueError(f"{self.label} reads no state, and {', '.join(names)} was asked for")

    def folders(self, config: ConfigT) -> tuple[str, ...]:
        """Local folders that a model of this config is built from; every node of a training must have them."""
        return ()

    def resolved(self, experiment: RunT, stores: Sequence[Store]) -> RunT:
        """The experiment with what only the stores can say. Raises ValueError if the two do not fit."""
        return experiment

    @abstractmethod
    def sample_shares(self, experiment: TrainingRun, stores: Sequence[Store]) -> Sequence[float] | None:
        """The share of samples of each store; None if all their rows are one epoch.

        Raises ValueError if a store cannot be trained on.
        """

    @abstractmethod
    def open_reader(
        self,
        experiment: TrainingRun,
        stores: Sequence[Store],
        contract: Contract,
        config: LoaderConfig,
        *,
        is_training: bool,
    ) -> Reader:
        """Reads what the model is trained on from `stores`, in model values; what is random in it, in training."""

    def built(self, config: ConfigT, device: torch.device) -> ModelT:
        """The model with fresh parameters. Weights that are read from a file may lie on `device` at once; random ones
        are drawn on the CPU, so that every device starts from the same."""
        return cast(ModelT, config.build())

    @abstractmethod
    def batch_cost(self, config: ConfigT) -> BatchCost:
        """What the batches of such a model cost. It may draw random numbers."""

    def planned(self, config: ConfigT, batch: Batch, capacity: int, *, is_training: bool) -> Batch:
        """A batch that was read for a capacity (preprocessing/loading/fixed_shapes.py), with what else the model needs
        to compute it in shapes that follow from the capacity."""
        return batch

    def largest_size(self, config: ConfigT, num_rows: int, segment_rows: int, loader: LoaderConfig) -> int:
        """As `SizedReader.largest_size` of the reader; 0 where its batches are all alike."""
        return 0

    def batch_on_meta(
        self, config: ConfigT, num_rows: int, size: int, *, frame_sizes: Mapping[str, tuple[int, int]], places: int
    ) -> Batch | None:
        """A planned batch of so many rows and of this size, on the meta device: the memory of a training step is
        counted with it. None if that is not known.

        frame_sizes: height and width of frames by camera. places: pictures of a camera that a row has room for.
        """
        return None

    def left_uncast(self, config: ConfigT) -> ConfigT | None:
        """Of a model that computes under autocast in bf16 by itself, whatever the engine says, the one that does not;
        None for any other."""
        return None

    # --- evaluation ---

    @abstractmethod
    def predict(
        self,
        model: ModelT,
        contract: Contract,
        store: EpisodeStore,
        *,
        batch: int,
        change_frames: ChangeFrames | None,
        rewording: Mapping[str, str] | None,
    ) -> Iterator[PredictedSteps]:
        """Predictions for the steps of `store` that are trained on, one item for every `batch` rows of it.

        `rewording` gives instructions other words; those it does not name stay. `change_frames` is applied to frames.
        """

    def frame_maps(
        self, model: ModelT, contract: Contract, store: EpisodeStore, rows: np.ndarray
    ) -> Mapping[str, np.ndarray]:
        """By name float (N, h, w): where the model looks in the frames of the first camera at these rows of `store`;
        each sums to 1. Empty for a kind of model that does not tell."""
        return {}

    def web_answers(self, model: ModelT, contract: Contract, store: WebStore) -> WebAnswers:
        """The model at work on a web store. Raises ValueError if such a model answers no questions."""
        raise ValueError(
            f"{store.root} holds image-text examples, and {self.label} says actions only: give it robot stores"
        )

    # --- acting and publishing ---

    @abstractmethod
    def num_frames(self, config: ConfigT) -> int:
        """Camera frames that an answer may rest on."""

    def stride(self, config: ConfigT) -> int:
        """Control steps from one of these frames to the next."""
        return 1

    def answered_dims(self, config: ConfigT) -> tuple[bool, ...]:
        """Per dimension of the action space whether the model answers in it; a policy's others are neutral."""
        return (True,) * config.action_spec().size

    def for_inference(self, model: ModelT) -> ModelT:
        """The model as its policies share it, once it lies on its device: itself, or a copy made ready."""
        return model.eval()

    @abstractmethod
    def policies(self, model: ModelT) -> Callable[[DatasetContract], Policy]:
        """Makes policies of a model that is made ready, each for one dataset of its contract. All share its weights."""

    def reads_object_masks(self, config: ConfigT) -> bool:
        """Whether marks in the image tell the model which objects are meant, and its instructions are verbs alone."""
        return False

    def mark(self, policy: Policy, marks: ObjectMarks) -> None:
        """Tell a policy where the objects meant lie in its episode's first frame; others than before begin an episode.

        Raises ValueError if such a model reads no marks.
        """
        raise ValueError(f"{self.label} reads no object masks: leave out where the object is")

    def instructions(self, config: ConfigT, store: EpisodeStore) -> Mapping[str, np.ndarray]:
        """The instructions of `store` as the model is told them, each with its vector (512,). Raises ValueError or
        OSError if the store no longer says them."""
        return dict(zip(store.instruction_texts, store.embeddings, strict=True))

    def with_plans(self, policy: Policy, tokens: int) -> Policy:
        """A policy of the same weights that says a plan of at most so many tokens before it acts (`Action.plans`).

        Raises ValueError if such a model says none.
        """
        raise ValueError(f"{self.label} says no plans: leave out --plan-tokens {tokens}")

    def act_together(
        self,
        policies: Sequence[Policy],
        frames: Sequence[Frame],
        instructions: Sequence[Instruction],
        states: Sequence[RobotState],
    ) -> list[Action]:
        """The action of each policy for its frame, instruction and state; they are different ones of one model.

        One by one, unless the family answers them in one pass.
        """
        taken = zip(policies, frames, instructions, strict=True)
        return [policy.act(frame, instruction) for policy, frame, instruction in taken]

    def carry(self, config: ConfigT, folder: Path) -> ConfigT:
        """Copy into `folder` what `config.build` reads beside the weights; the config that refers to the copy."""
        return config

    def carried(self, config: ConfigT, folder: Path) -> ConfigT:
        """A config that `carry` returned, now that its folder lies at `folder`."""
        return config


def chosen_space(asked: ActionSpace | None, space: ActionSpace, setting: str) -> ActionSpace | None:
    """The space of a config whose stores hold `space`: None for RT-1's own, as `asked` has it where nothing is set.

    Raises ValueError if `setting` asks for another one.
    """
    if asked is not None and asked.identity != space.identity:
        raise ValueError(f"{setting} is {asked.name}, and the stores hold {space.name}: leave it out")
    return asked if asked is not None else None if space.is_rt1 else space


def encoded_frames(batch: Batch, index_of_role: Mapping[str, Tensor], is_cropped_B: Tensor) -> int:
    """Distinct (frame, crop) pairs of the cameras of a batch, each with int64 (B, T) rows of its frames: in rows that
    are not cropped, all crops of a frame are one."""
    _, crop_B = batch["crop_key"].unique(return_inverse=True)
    crop_B = torch.where(is_cropped_B, crop_B + 1, 0)
    count = 0
    for role, index_BT in index_of_role.items():
        pairs_BT = crop_B[:, None] * len(batch[frames_key(role)]) + index_BT
        count += len(pairs_BT[index_BT >= 0].unique())
    return count


def row_pieces(num_rows: int, size: int) -> Iterator[np.ndarray]:
    """int64: the numbers of all rows, `size` at a time."""
    rows = np.arange(num_rows)
    return (rows[first : first + size] for first in range(0, num_rows, size))


def changed_frames(batch: Batch, change: ChangeFrames) -> Batch:
    """The frames of every camera, changed, by key. Object masks of blank frames mark the middle."""
    changed = {key: change(value) for key, value in batch.items() if key.partition("_")[0] == "frames"}
    if change is blank and "object_mask" in batch:
        mask_FHW = np.zeros(tuple(batch["object_mask"].shape), np.uint8)
        MIDDLE.draw(mask_FHW)
        changed["object_mask"] = torch.from_numpy(mask_FHW).to(batch["object_mask"].device)
    return changed


def blank(frame_FHWC: Tensor) -> Tensor:
    """Black."""
    return torch.zeros_like(frame_FHWC)


def selected(columns: Mapping[str, Tensor], rows_B: Tensor) -> PredictedSteps:
    """The rows that are True in `rows_B`, from tensors named as the fields of `PredictedSteps`."""
    kept_B = rows_B.cpu().numpy()
    return PredictedSteps(**{name: column.cpu().numpy()[kept_B] for name, column in columns.items()})
