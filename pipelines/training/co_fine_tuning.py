"""RT-2's co-fine-tuning data: robot steps and web examples in every batch, at a declared share, as tokens.

The paper keeps web data in each batch and weighs robot data up to a share of it (arXiv 2307.15818, section 3.2). Here
the share is a number of the experiment and holds exactly: every prefix of the run is within one sample of it.

Axes: B rows, I image places, F frames, L tokens, A actions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from preprocessing.loading.reader import Batch, LoaderConfig
from preprocessing.loading.web_reader import WebReader, WebText
from preprocessing.loading.window_reader import WindowReader
from preprocessing.mixture import MixtureConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore, robot_stores
from rt_models.config_checks import require_share
from rt_models.language.action_vocabulary import LeastFrequentTokens
from rt_models.language.prompts import RT2Text, RT2TextConfig, TextExample
from rt_models.rt2 import RT2Config
from rt_models.rt2_vlm import RT2VLMConfig
from rt_models.spec import Contract

Store = EpisodeStore | WebStore

_TEXTS_LEARNT_FROM = 200_000
_INSTRUCTION_WEIGHT = 20
PLANS = "plans"  # in a checkpoint's metadata: what `plans_fingerprint` said
NO_INSTRUCTION = "nothing"  # stands in a prompt that is not trained on

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CoFineTuningConfig:
    """What a batch of RT-2 is made of. The paper's shares: 0.5 for PaLI-X, 0.66 for PaLM-E."""

    robot_share: float = 0.5
    """Share of robot steps among the samples; 1 trains on robots alone."""
    plans: str = ""
    """JSON file {instruction: plan}; a step with a plan is also asked to say it before the action."""
    plan_share: float = 0.5
    """Share of such steps whose answer begins with the plan."""

    def __post_init__(self) -> None:
        if not 0 < self.robot_share <= 1:
            raise ValueError(f"co_fine_tuning.robot_share must be above 0 and at most 1, got {self.robot_share}")
        require_share(self, "plan_share", "co_fine_tuning.")

    def read_plans(self) -> dict[str, str]:
        """{instruction: plan}. Raises ValueError where the file holds something else."""
        if not self.plans:
            return {}
        try:
            plans = json.loads(Path(self.plans).read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.plans} is no JSON ({error}): it must hold an object of instruction: plan"
            ) from None
        if not isinstance(plans, dict) or not all(isinstance(plan, str) for plan in plans.values()):
            raise ValueError(f"{self.plans} must hold one JSON object of instruction: plan")
        return plans


def plans_fingerprint(config: CoFineTuningConfig | None) -> str:
    """Of what the plans say; "" without any."""
    plans = {} if config is None else config.read_plans()
    return hashlib.sha256(json.dumps(plans, sort_keys=True).encode()).hexdigest()[:16] if plans else ""


def sample_shares(config: CoFineTuningConfig, mixture: MixtureConfig, stores: Sequence[Store]) -> list[float]:
    """The share of samples of each store, in order; they add up to 1.

    Robot stores share `robot_share` and web stores the rest: by the mixture's weights, or else by their sizes.
    Raises ValueError where a part that is asked for has no store, or the weights do not fit the stores.
    """
    sizes = {_name(store): _size(store) for store in stores}
    if len(sizes) < len(stores):
        twice = next(name for name, count in Counter(map(_name, stores)).items() if count > 1)
        raise ValueError(f"stores cannot be mixed: {twice} is given more than once; rtp preprocess --dataset renames")
    masses = mixture.shares(sizes) or sizes
    robots = [_name(store) for store in stores if isinstance(store, EpisodeStore)]
    if config.robot_share < 1 and len(robots) == len(stores):
        raise ValueError(
            f"co_fine_tuning.robot_share is {config.robot_share}, but no store of web data is given: "
            f"make one with rtp preprocess --format, or set robot_share 1 to train on robots alone"
        )
    if config.robot_share == 1 and len(robots) < len(stores):
        raise ValueError("co_fine_tuning.robot_share is 1, so web data would never be drawn: leave them out of --data")
    robot_mass = sum(masses[name] for name in robots)
    web_mass = sum(masses.values()) - robot_mass
    return [
        config.robot_share * mass / robot_mass if name in robots else (1 - config.robot_share) * mass / web_mass
        for name, mass in masses.items()
    ]


def _name(store: Store) -> str:
    return store.name


def _size(store: Store) -> int:
    return store.num_examples if isinstance(store, WebStore) else store.num_steps


# --- Texts ---


def with_tokenizer(model: RT2Config, stores: Sequence[Store]) -> RT2Config:
    """The config with a tokenizer learnt from the texts of `stores`, where it has none yet.

    The same stores in the same order give the same tokenizer.
    """
    if model.tokenizer.merges:
        return model
    sample = itertools.islice(texts(stores, model.text), _TEXTS_LEARNT_FROM)
    return replace(model, tokenizer=model.tokenizer.learnt(sample, vocab_size=model.vocab_size))


def with_vocabulary(model: RT2Config | RT2VLMConfig, stores: Sequence[Store]) -> RT2Config | RT2VLMConfig:
    """The config with the tokens that are rarest in the texts of `stores`, where its vocabulary asks for them."""
    vocabulary = model.text.vocabulary
    if not isinstance(vocabulary, LeastFrequentTokens) or vocabulary.frequency == "rank" or vocabulary.ids:
        return model
    counted = vocabulary.counted(model.build_tokenizer(), texts(stores, model.text), bins=model.text.bins)
    return replace(model, text=replace(model.text, vocabulary=counted))


def texts(stores: Sequence[Store], config: RT2TextConfig) -> Iterator[str]:
    """Every prompt and answer in words. An instruction, which goes with many steps, comes more than once."""
    for store in stores:
        if isinstance(store, EpisodeStore):
            lines = [config.robot_prompt.format(instruction=line) for line in store.instruction_texts]
            yield from lines * _INSTRUCTION_WEIGHT
            continue
        for prompts, answers, _ in store.texts():
            for prompt, answer in zip(prompts, answers, strict=True):
                asked = config.question_prompt.format(question=prompt) if prompt else config.caption_prompt
                yield f"{asked} {answer}"


def require_room(stores: Sequence[Store], text: RT2Text, plans: Mapping[str, str]) -> None:
    """Raise ValueError unless every instruction, plan and example fits into the model's context, and a robot's actions
    have something to say in it."""
    nothing = np.zeros(text.spec.size, np.float32), np.ones(text.spec.size, bool)
    said = {line.strip() for store in robot_stores(stores) for line in store.instruction_texts}
    if plans and stores and not said.intersection(plans):
        raise ValueError(
            f"co_fine_tuning.plans has plans for other instructions only, such as {next(iter(plans))!r}; these stores "
            f"have {next(iter(said), '')!r}"
        )
    for store in robot_stores(stores):
        if not any(store.dataset.action_mask[dim] for dim in text.field_dims):
            raise ValueError(
                f"{store.root} has none of the dimensions in model.text.fields ({', '.join(text.config.fields)}), so "
                f"there is nothing to learn from it: leave it out of --data, or choose other fields"
            )
    for store in stores:
        if isinstance(store, EpisodeStore):
            empty = [line for line in store.instruction_texts if not line.strip()]
            if empty:
                log.warning("%s has steps without an instruction: RT-2 does not train on them", store.root)
            for instruction in set(store.instruction_texts) - set(empty):
                text.robot(instruction, *nothing, plans.get(instruction, ""))
            continue
        for prompts, answers, _ in store.texts():
            for prompt, answer in zip(prompts, answers, strict=True):
                if len((prompt + answer).encode()) > text.max_tokens // 4:  # else it fits, with its template
                    text.web(prompt, answer)


# --- Batches ---


class CoFineTuningReader:
    """Reads RT-2's batches from robot and web stores; rows count through the stores in the order given.

    A reader of `preprocessing.loading.loader.Loader`: `store_rows`, `read`, `cost`, `close`.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        contract: Contract,
        text: RT2Text,
        *,
        mix: CoFineTuningConfig,
        config: LoaderConfig,
    ) -> None:
        self.config, self._text, self.mix, self.stores = config, text, mix, stores
        robots, web = robot_stores(stores), [store for store in stores if isinstance(store, WebStore)]
        self._frame_size = (contract.image.height, contract.image.width)  # web images are fitted to the robots' frames
        transforms = [contract.dataset(store.name).transform for store in robots]
        self._windows = None
        if robots:
            own = replace(config, frames="distinct")  # web images are put behind them
            self._windows = WindowReader(robots, transforms, num_steps=text.config.frames, config=own)
        self._instructions = _Instructions(robots)
        self._web = WebReader(web, frame_size=self._frame_size, config=config)
        self._plans = mix.read_plans()
        self._answer_tokens = len(text.field_dims) + 1
        self.store_rows = [_size(store) for store in stores]
        self._first_row = np.concatenate([[0], np.cumsum(self.store_rows)])
        self._is_robot = np.array([isinstance(store, EpisodeStore) for store in stores])
        self._own_first = np.zeros(len(stores), np.int64)  # where a store begins among the stores of its kind
        for kind in (True, False):
            rows = np.where(self._is_robot == kind, self.store_rows, 0)
            self._own_first[self._is_robot == kind] = (np.cumsum(rows) - rows)[self._is_robot == kind]

    def cost(self, rows: np.ndarray) -> np.ndarray:
        """int64 (B,): tokens of each sample. A plan, which depends on the sample's number, is left out."""
        store_B, own_B = self._locate(rows)
        lengths = np.zeros(len(rows), np.int64)
        robot_B = self._is_robot[store_B]
        for place, instruction in zip(np.flatnonzero(robot_B), self._instructions.of(own_B[robot_B]), strict=True):
            lengths[place] = len(self._text.robot_prompt(instruction or NO_INSTRUCTION)) + self._answer_tokens
        for place, web in zip(np.flatnonzero(~robot_B), self._web.texts(own_B[~robot_B]), strict=True):
            lengths[place] = len(self._text.web(web.prompt, web.answer).ids)
        return lengths

    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray | None = None) -> Batch:
        """The batch of `rows` (B,), named `sample_ids` (B,); the keys stand at the top of rt_models/rt2.py."""
        store_B, own_B = self._locate(rows)
        robot_B = self._is_robot[store_B]
        keys_B = sample_ids if crop_keys is None else crop_keys
        examples: list[TextExample | None] = [None] * len(rows)
        index_BI = np.full((len(rows), self._text.config.frames), -1, np.int64)
        robot = self._robot_columns(own_B, sample_ids, np.flatnonzero(robot_B), examples, index_BI)
        frames = robot.pop("frames")
        frames = self._web_columns(own_B, np.flatnonzero(~robot_B), examples, index_BI, frames)
        batch = {
            "frames": frames,
            "image_index": index_BI,
            "source": store_B,
            "store": store_B,
            "is_robot": robot_B,
            "sample_id": sample_ids,
            "crop_key": keys_B,
            **robot,
        }
        tokens = self._text.collate([example for example in examples if example is not None])
        tokens["answer_mask"] &= torch.from_numpy(robot["trained"] | ~robot_B)[:, None]
        del batch["trained"]
        return tokens | {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in batch.items()}

    def web_texts(self, rows: np.ndarray) -> list[WebText]:
        """The texts of rows that are web examples."""
        return self._web.texts(self._locate(rows)[1])

    def instructions(self, rows: np.ndarray) -> list[str]:
        """The instruction of rows that are robot steps."""
        return self._instructions.of(self._locate(rows)[1])

    def close(self) -> None:
        self._web.close()
        if self._windows is not None:
            self._windows.close()

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(store, row among the stores of its kind) of each row."""
        if len(rows) and rows.min() < 0:
            raise ValueError("RT-2 trains on single samples: set loop.segment_windows 1")
        store_B = np.searchsorted(self._first_row, rows, side="right") - 1
        return store_B, rows - self._first_row[store_B] + self._own_first[store_B]

    def _robot_columns(
        self,
        own_B: np.ndarray,
        sample_ids: np.ndarray,
        places: np.ndarray,
        examples: list[TextExample | None],
        index_BI: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Columns (B, ...) that robot rows fill; texts and image places are written into `examples` and `index_BI`."""
        count, actions = len(own_B), self._text.spec.size
        columns = {
            "action": np.zeros((count, actions), np.float32),
            "action_mask": np.zeros((count, actions), bool),
            "episode": np.full(count, -1, np.int64),
            "step": np.full(count, -1, np.int64),
            "trained": np.zeros(count, bool),
            "frames": np.zeros((0, *self._frame_size, 3), np.uint8),
        }
        if not len(places) or self._windows is None:
            return columns
        read = {key: value.numpy() for key, value in self._windows.read(places, own_B[places]).items()}
        columns["frames"] = read["frames"]
        index_BI[places] = read["frame_index"]
        columns["trained"][places] = read["loss_mask"][:, -1]
        columns["action"][places], columns["action_mask"][places] = read["action"][:, -1], read["action_mask"]
        columns["episode"][places], columns["step"][places] = read["episode"], read["step"]
        for place, instruction in zip(places, self._instructions.of(own_B[places]), strict=True):
            columns["trained"][place] &= instruction != ""
            plan = self._plan(instruction, int(sample_ids[place]))
            action_A, mask_A = columns["action"][place], columns["action_mask"][place]
            examples[place] = self._text.robot(instruction or NO_INSTRUCTION, action_A, mask_A, plan)
        return columns

    def _web_columns(
        self,
        own_B: np.ndarray,
        places: np.ndarray,
        examples: list[TextExample | None],
        index_BI: np.ndarray,
        frames: np.ndarray,
    ) -> np.ndarray:
        """`frames` and after them the distinct images of the web rows."""
        found = self._web.texts(own_B[places])
        images = list(dict.fromkeys(web.image for web in found if web.image is not None))
        row_of = {image: len(frames) + number for number, image in enumerate(images)}
        for place, web in zip(places, found, strict=True):
            examples[place] = self._text.web(web.prompt, web.answer)
            index_BI[place, -1] = -1 if web.image is None else row_of[web.image]
        return np.concatenate([frames, np.stack(self._web.frames(images))]) if images else frames

    def _plan(self, instruction: str, sample_id: int) -> str:
        """The plan to say first, for the declared share of the samples that have one."""
        share = np.random.default_rng((sample_id,)).random() if self._plans else 1.0
        return self._plans.get(instruction, "") if share < self.mix.plan_share else ""


class _Instructions:
    """The instruction of each step of robot stores, row groups at a time."""

    def __init__(self, stores: Sequence[EpisodeStore]) -> None:
        self._stores = stores
        shards = [(number, shard) for number, store in enumerate(stores) for shard in range(len(store.shards))]
        self._shards = shards
        self._first_row = np.cumsum([0, *(stores[number].shards[shard].rows for number, shard in shards)])
        self._group = lru_cache(4096)(self._read_group)

    def of(self, rows: np.ndarray) -> list[str]:
        """The instruction of each row (B,), counted through the stores; "" for none."""
        shard_B = np.searchsorted(self._first_row, rows, side="right") - 1
        found = []
        for shard, inside in zip(shard_B, rows - self._first_row[shard_B], strict=True):
            number, own = self._shards[shard]
            store = self._stores[number]
            group, place = divmod(int(inside), store.shards[own].row_group_rows)
            found.append(store.instruction_texts[int(self._group(number, own, group)[place])].strip())
        return found

    def _read_group(self, number: int, shard: int, group: int) -> np.ndarray:
        """int64: places in the store's instruction table."""
        table = self._stores[number].read_rows(shard, group, ["instruction"])
        return np.searchsorted(self._stores[number].instruction_ids, table["instruction"].to_numpy())
