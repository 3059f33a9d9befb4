"""Models of prompts: pictures and text in, text out, and actions are text (the RT-2s).

They train on batches of prompts and answers, read by `PromptReader` from robot and web stores.

Axes: B rows, A actions, K fields of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from pipelines.families.base import (
    ChangeFrames,
    ModelFamily,
    ModelT,
    PredictedSteps,
    RunT,
    TrainingRun,
    changed_frames,
    chosen_space,
    encoded_frames,
    row_pieces,
    selected,
)
from pipelines.families.meta_batches import on_meta
from pipelines.training.co_fine_tuning import CoFineTuningConfig, require_room, sample_shares, texts
from preprocessing.loading.prompt_reader import PromptReader
from preprocessing.loading.reader import Batch, LoaderConfig
from preprocessing.loading.web_reader import WebText
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import Store, WebStore, robot_stores
from rt_models.action_space import ActionSpace
from rt_models.action_tokens import encode
from rt_models.control.action import Action
from rt_models.control.observation import Frame, RobotState
from rt_models.control.rt2_policy import RT2Policy, act_together
from rt_models.language.action_vocabulary import LeastFrequentTokens, Tokenizer
from rt_models.language.answer_loss import ANSWER_MULTIPLE, plan_answers
from rt_models.language.generation import LanguageModel, generate, predict_actions
from rt_models.language.prompts import RT2Text, RT2TextConfig
from rt_models.robot_model import RobotModel, RobotModelConfig
from rt_models.spec import (
    MAIN_CAMERA,
    Contract,
    DatasetContract,
    StateInput,
    frames_key,
    image_index_key,
    rt2_batch_fields,
)


class CountedCost(Protocol):
    """A cost of rt_models/cost/rt2_flops.py."""

    def training_flops(self, batch: Mapping[str, Tensor], pictures: int | None = None) -> float: ...


@dataclass(frozen=True, kw_only=True)
class PromptCost:
    """What batches of prompts and answers cost (`pipelines.families.base.BatchCost`)."""

    counted: CountedCost
    random_crop: bool
    """Whether training crops robot frames at random, by each row's crop key."""
    cameras: tuple[str, ...] = (MAIN_CAMERA,)

    def frames(self, batch: Batch) -> int:
        if not self.random_crop:
            return sum(len(batch[frames_key(role)]) for role in self.cameras)
        of_role = {role: batch[image_index_key(role)] for role in self.cameras}
        return encoded_frames(batch, of_role, batch["is_robot"].bool())

    def training_flops(self, batch: Batch, frames: int) -> float:
        return self.counted.training_flops(batch, frames)

    def trained_tokens(self, batch: Batch) -> Tensor:
        return batch["answer_mask"].sum(dim=1)


class PromptConfig(RobotModelConfig, Protocol):
    """The config of a model that reads prompts and answers in tokens."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def text(self) -> RT2TextConfig: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def state(self) -> StateInput | None: ...
    def build_text(self) -> RT2Text: ...
    def longest_row(self) -> int: ...
    def build_tokenizer(self) -> Tokenizer: ...


PromptConfigT = TypeVar("PromptConfigT", bound=PromptConfig)


class PromptFamily(ModelFamily[PromptConfigT, ModelT]):
    """A kind of model that reads prompts; the model is a `LanguageModel` (rt_models/language/generation.py)."""

    instruction = "text"
    kept_on_cpu = 0.4  # pictures are most of a row, and every row has as many

    def planned(self, config: PromptConfigT, batch: Batch, capacity: int, *, is_training: bool) -> Batch:
        return plan_answers(batch)

    def largest_size(self, config: PromptConfigT, num_rows: int, segment_rows: int, loader: LoaderConfig) -> int:
        return config.longest_row()

    def batch_on_meta(
        self,
        config: PromptConfigT,
        num_rows: int,
        size: int,
        *,
        frame_sizes: Mapping[str, tuple[int, int]],
        places: int,
    ) -> Batch:
        said = len(config.text.said_fields()) + 1  # a robot's answer and its end; those of the web may be longer
        answer = -(-said // ANSWER_MULTIPLE) * ANSWER_MULTIPLE
        lengths = {"B": num_rows, "I": places, "F": num_rows * places, "L": size, "R": answer}
        lengths["A"] = config.action_spec().size
        return on_meta(rt2_batch_fields(config.cameras), lengths, config.cameras, frame_sizes)

    def completed(self, config: PromptConfigT, stores: Sequence[Store]) -> PromptConfigT:
        """The config with what only the stores can say. Raises OSError or ValueError if it cannot be built."""
        return with_vocabulary(config, stores)

    def in_space(self, config: Any, space: ActionSpace) -> Any:
        chosen = chosen_space(config.text.action_space, space, "model.text.action_space")
        return replace(config, text=config.text.in_space(chosen))

    def resolved(self, experiment: RunT, stores: Sequence[Store]) -> RunT:
        model = self.completed(experiment.model, stores)
        mix = experiment.co_fine_tuning
        if mix is None:
            raise ValueError(f"{experiment.name}: an RT-2 needs co_fine_tuning, and its recipe sets none")
        if experiment.loop.segment_windows > 1:
            raise ValueError("RT-2 trains on single samples: set loop.segment_windows 1")
        if mix.plans:
            mix = replace(mix, plans=str(Path(mix.plans).absolute()))  # workers run in other folders
        require_room(stores, model.build_text(), mix.read_plans())
        return replace(experiment, model=model, co_fine_tuning=mix)

    def sample_shares(self, experiment: TrainingRun, stores: Sequence[Store]) -> Sequence[float]:
        return sample_shares(experiment.co_fine_tuning or CoFineTuningConfig(), experiment.mixture, stores)

    def open_reader(
        self,
        experiment: TrainingRun,
        stores: Sequence[Store],
        contract: Contract,
        config: LoaderConfig,
        *,
        is_training: bool,
    ) -> PromptReader:
        mix = experiment.co_fine_tuning or CoFineTuningConfig()
        return PromptReader(
            stores,
            contract,
            experiment.model.build_text(),
            num_frames=self.num_frames(experiment.model),
            plans=mix.read_plans(),
            plan_share=mix.plan_share,
            config=config,
            perturbs_state=is_training and experiment.model.state is not None,
            **_inputs(experiment.model, contract, stores),
        )

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
        others = {line.strip(): other.strip() for line, other in (rewording or {}).items() if line.strip()}
        text, reader = _read_alone(model, contract, store, others)
        cameras = self.cameras(cast(PromptConfigT, model.config))
        device = next(model.parameters()).device
        for rows in row_pieces(sum(reader.store_rows), batch):
            read = reader.read(rows, rows)
            if change_frames is not None:
                read |= changed_frames(read, change_frames)
            told = zip(read["tokens"].tolist(), read["prompt_length"].tolist(), strict=True)
            prompts = text.collate_prompts([ids[:length] for ids, length in told])
            prompted = _pictures(read, cameras) | prompts
            prompted = {key: value.to(device) for key, value in prompted.items()}
            actions = predict_actions(
                cast(LanguageModel, model), prompted, text, action_mask_BA=read["action_mask"].to(device)
            )
            columns = {
                "episode_B": read["episode"],
                "step_B": read["step"],
                "action_BA": read["action"],
                "target_tokens_BA": encode(read["action"], model.spec),
                "tokens_BA": actions.bins_BA,
                "valid_mass_BK": actions.valid_mass_BK,
                "invalid_BK": actions.invalid_BK,
            }
            yield selected(columns, read["answer_mask"].any(dim=1))
        reader.close()

    def web_answers(self, model: ModelT, contract: Contract, store: WebStore) -> PromptAnswers:
        return PromptAnswers(model, *_read_alone(model, contract, store))

    def cameras(self, config: PromptConfigT) -> tuple[str, ...]:
        return config.cameras

    def state(self, config: PromptConfigT) -> StateInput | None:
        return config.state

    def with_state(self, config: Any, names: tuple[str, ...]) -> Any:
        return replace(config, state=replace(config.state, names=names))

    def num_frames(self, config: PromptConfigT) -> int:
        return config.text.frames

    def answered_dims(self, config: PromptConfigT) -> tuple[bool, ...]:
        return config.text.answered_dims()

    def policies(self, model: ModelT) -> Callable[[DatasetContract], RT2Policy]:
        text = cast(PromptConfig, model.config).build_text()
        return lambda dataset: RT2Policy(cast(LanguageModel, model), text, dataset=dataset)

    def with_plans(self, policy: RT2Policy, tokens: int) -> RT2Policy:
        return policy.with_plans(tokens)

    def act_together(
        self,
        policies: Sequence[RT2Policy],
        frames: Sequence[Frame],
        instructions: Sequence[str],
        states: Sequence[RobotState],
    ) -> list[Action]:
        return act_together(policies, frames, instructions, states)


class PromptAnswers:
    """A model that answers the prompts of a web store (`pipelines.families.base.WebAnswers`)."""

    def __init__(self, model: RobotModel, text: RT2Text, reader: PromptReader) -> None:
        self._model, self._text, self._reader = model, text, reader

    def texts(self, rows: np.ndarray) -> list[WebText]:
        return self._reader.web_texts(rows)

    @torch.no_grad()
    def answers(self, rows: np.ndarray, images: np.ndarray, *, max_new_tokens: int) -> list[str]:
        text, device = self._text, next(self._model.parameters()).device
        prompts = text.collate_prompts([text.web_prompt(web.prompt) for web in self.texts(rows)])
        pictures = _pictures(self._reader.read(images, images), text.cameras)
        prompted = {key: value.to(device) for key, value in (pictures | prompts).items()}
        answers = generate(
            cast(LanguageModel, self._model), prompted, eos_id=text.tokenizer.eos_id, max_new_tokens=max_new_tokens
        )
        return [text.decode(ids) for ids in answers]

    def close(self) -> None:
        self._reader.close()


def _read_alone(
    model: RobotModel, contract: Contract, store: Store, rewording: Mapping[str, str] | None = None
) -> tuple[RT2Text, PromptReader]:
    """The texts of a model, and a store read as in its training but for the mixture and other words."""
    config = cast(PromptConfig, model.config)
    text, inputs = config.build_text(), _inputs(config, contract, [store])
    plain = {"num_frames": text.config.frames, "config": LoaderConfig(), "rewording": rewording}
    return text, PromptReader([store], contract, text, **plain, **inputs)


def _inputs(config: PromptConfig, contract: Contract, stores: Sequence[Store]) -> dict[str, Any]:
    """What a reader must know of cameras and state."""
    return {
        "cameras": config.cameras,
        "recipes": {recipe.camera: recipe for recipe in contract.cameras},
        "state": contract.state_columns([store.name for store in robot_stores(stores)]),
    }


def _pictures(batch: Batch, cameras: Sequence[str]) -> Batch:
    return {key: batch[key] for role in cameras for key in (frames_key(role), image_index_key(role))}


def with_vocabulary(config: PromptConfigT, stores: Sequence[Store]) -> PromptConfigT:
    """The config with the tokens that are rarest in the texts of `stores`, where its vocabulary asks for them."""
    vocabulary = config.text.vocabulary
    if not isinstance(vocabulary, LeastFrequentTokens) or vocabulary.frequency == "rank" or vocabulary.ids:
        return config
    said = texts(stores, config.text, config.cameras, config.state)
    counted = vocabulary.counted(config.build_tokenizer(), said, bins=config.text.bins)
    return replace(config, text=replace(config.text, vocabulary=counted))
