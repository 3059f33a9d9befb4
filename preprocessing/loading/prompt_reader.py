"""Reads batches of prompts and answers: robot steps and web examples side by side, each pictures and a row of tokens.

The counterpart of `WindowReader` for models that read and write text. How texts become tokens is the model's own:
`PromptText` lists what is asked of it.

Axes: B rows, I image places, F frames, L tokens, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from preprocessing.loading.reader import Batch, LoaderConfig, Reader
from preprocessing.loading.web_reader import WebReader, WebText
from preprocessing.loading.window_reader import WindowReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.robot_inputs import own_camera
from preprocessing.store.web_store import Store, WebStore, num_samples, robot_stores
from rt_models.action_space import ActionSpec
from rt_models.spec import MAIN_CAMERA, Contract, ImageRecipe, StateColumns, frames_key, image_index_key, index_key

NO_INSTRUCTION = "nothing"  # stands in a prompt that is not trained on


class TokenRow(Protocol):
    """One row of tokens, prompt and answer."""

    @property
    def ids(self) -> Sequence[int]: ...


class PromptText(Protocol):
    """A model's texts as tokens. `spec` is its action space, `field_dims` the dimensions that an answer spells out,
    `max_tokens` the length of the longest row there may be."""

    spec: ActionSpec
    field_dims: list[int]
    max_tokens: int

    def robot_prompt(
        self, instruction: str, *, state: np.ndarray | None = None, cameras: Sequence[str] = ()
    ) -> Sequence[int]:
        """Ids up to where the model must say the action.

        `state` float (P,) normalised, NaN where the dataset lacks a value: their number does not depend on what is no
        NaN. `cameras` are the roles of the pictures, of a model that reads several.
        """
        ...

    def robot(
        self,
        instruction: str,
        action_A: np.ndarray,
        mask_A: np.ndarray,
        plan: str = "",
        *,
        state: np.ndarray | None = None,
        cameras: Sequence[str] = (),
    ) -> TokenRow:
        """A robot's step: float (A,) model values, bool (A,) dimensions that the dataset has."""
        ...

    def perturbed(self, state: np.ndarray, *, key: int) -> np.ndarray:
        """`state` as training shows it: with noise, or absent, as `key` draws it."""
        ...

    def web(self, question: str, answer: str) -> TokenRow:
        """A question with its answer; question "": a caption."""
        ...

    def collate(self, examples: Sequence[Any], num_tokens: int | None = None) -> dict[str, torch.Tensor]:
        """Rows of `robot` and `web` as a batch: "tokens" int64, "token_mask", "answer_mask" bool, all (B, L).

        L is num_tokens, by default the length of the longest row.
        """
        ...


class PromptReader(Reader):
    """Reads batches of prompts and answers from robot and web stores; rows count through the stores in their order.

    `num_frames` consecutive frames of each of `cameras` go before a robot's prompt, `recipes` say how those beside the
    main one are stored; pictures of the web stand among the first one's, those of an example in their order. `state` is
    said in the prompt if it is given, under `perturbs_state` as training shows it. `plans` {instruction: plan}: of the
    steps that have one, the share `plan_share` says it before the action. `rewording` gives instructions other words.
    A batch is `rt_models.spec.rt2_batch_fields(cameras)`.
    """

    counts = "tokens a row"
    counted = 256  # some 2 s, as every text is made tokens; more of them changed no capacity that was tried

    def __init__(
        self,
        stores: Sequence[Store],
        contract: Contract,
        text: PromptText,
        *,
        num_frames: int,
        config: LoaderConfig,
        plans: Mapping[str, str] | None = None,
        plan_share: float = 0.0,
        cameras: Sequence[str] = (MAIN_CAMERA,),
        recipes: Mapping[str, ImageRecipe] | None = None,
        state: StateColumns | None = None,
        perturbs_state: bool = False,
        rewording: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.text, self.stores, self.cameras = config, text, stores, tuple(cameras)
        self._num_frames, self._plans, self._plan_share = num_frames, plans or {}, plan_share
        robots, web = robot_stores(stores), [store for store in stores if isinstance(store, WebStore)]
        recipe_of = {MAIN_CAMERA: contract.image, **(recipes or {})}
        self._frame_sizes = {role: (recipe_of[role].height, recipe_of[role].width) for role in cameras}
        transforms = [contract.dataset(store.name).transform for store in robots]
        self._windows = None
        if robots:
            own = replace(config, frames="distinct")  # web images are put behind them
            self._windows = WindowReader(
                robots, transforms, num_steps=num_frames, config=own, cameras=cameras, recipes=recipes, state=state
            )
        self._instructions = _Instructions(robots, rewording or {})
        self._state_mask = None if state is None else state.mask()
        self._perturbs_state = perturbs_state
        self._seen_by = [[role for role in cameras if own_camera(store, role) is not None] for store in robots]
        web_size = self._frame_sizes[cameras[0]]  # images of the web are fitted to the robots' frames
        self._web = WebReader(web, frame_size=web_size, config=config)
        self._places = max(num_frames, self._web.most_pictures)  # of pictures in a row, for each camera
        self._answer_tokens = len(text.field_dims) + 1
        self.store_rows = [num_samples(store) for store in stores]
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
        places, said_of = np.flatnonzero(robot_B), [self._said(store) for store in range(len(self._seen_by))]
        stores = self._instructions.stores(own_B[robot_B])
        for place, store, text in zip(places, stores, self._instructions.of(own_B[robot_B]), strict=True):
            prompt = self.text.robot_prompt(text or NO_INSTRUCTION, **said_of[store])
            lengths[place] = len(prompt) + self._answer_tokens
        for place, web in zip(np.flatnonzero(~robot_B), self._web.texts(own_B[~robot_B]), strict=True):
            lengths[place] = len(self.text.web(web.prompt, web.answer).ids)
        return lengths

    def size(self, rows: np.ndarray, crop_keys: np.ndarray, *, crops: bool) -> int:
        """Tokens of the longest row; where there are plans, which some samples say and others do not, the most there
        may be."""
        return self.text.max_tokens if self._plans else int(self.cost(rows).max())

    def largest_size(self, num_rows: int, segment_rows: int) -> int:
        return self.text.max_tokens

    def read(
        self,
        sample_ids: np.ndarray,
        rows: np.ndarray,
        crop_keys: np.ndarray | None = None,
        *,
        capacity: int | None = None,
    ) -> Batch:
        """The batch of `rows` (B,), named `sample_ids` (B,).

        With a capacity its rows have so many tokens, and it has a picture for every image place of every camera;
        "num_images" says how many of them are real.
        """
        store_B, own_B = self._locate(rows)
        robot_B = self._is_robot[store_B]
        keys_B = sample_ids if crop_keys is None else crop_keys
        examples: list[TokenRow | None] = [None] * len(rows)
        robot = self._robot_columns(own_B, sample_ids, np.flatnonzero(robot_B), examples)
        first, index = self.cameras[0], image_index_key(self.cameras[0])
        robot[frames_key(first)] = self._web_columns(
            own_B, np.flatnonzero(~robot_B), examples, robot[index], robot[frames_key(first)]
        )
        batch = {
            "store": store_B,
            "is_robot": robot_B,
            "sample_id": sample_ids,
            "crop_key": keys_B,
            **robot,
        }
        written = [example for example in examples if example is not None]
        if capacity is None:
            tokens = self.text.collate(written)
        else:
            tokens = self.text.collate(written, capacity)
            keys = [frames_key(role) for role in self.cameras]
            batch["num_images"] = np.array([sum(len(robot[key]) for key in keys)], np.int32)
            batch |= {key: _with_room(robot[key], len(rows) * self._places) for key in keys}
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
        examples: list[TokenRow | None],
    ) -> dict[str, np.ndarray]:
        """Frames, and columns (B, ...) that robot rows fill; texts are written into `examples`."""
        count, actions = len(own_B), self.text.spec.size
        columns = {
            "action": np.zeros((count, actions), np.float32),
            "action_mask": np.zeros((count, actions), bool),
            "episode": np.full(count, -1, np.int64),
            "step": np.full(count, -1, np.int64),
            "trained": np.zeros(count, bool),
        }
        for role, size in self._frame_sizes.items():
            columns[frames_key(role)] = np.zeros((0, *size, 3), np.uint8)
            columns[image_index_key(role)] = np.full((count, self._places), -1, np.int64)
        if not len(places) or self._windows is None:
            return columns
        read = {key: value.numpy() for key, value in self._windows.read(places, own_B[places]).items()}
        for role in self.cameras:
            columns[frames_key(role)] = read[frames_key(role)]
            columns[image_index_key(role)][places, -self._num_frames :] = read[index_key(role)]
        columns["trained"][places] = read["loss_mask"][:, -1]
        columns["action"][places], columns["action_mask"][places] = read["action"][:, -1], read["action_mask"]
        columns["episode"][places], columns["step"][places] = read["episode"], read["step"]
        stores = self._instructions.stores(own_B[places])
        for row, (place, text) in enumerate(zip(places, self._instructions.of(own_B[places]), strict=True)):
            columns["trained"][place] &= text != ""
            plan = self._plan(text, int(sample_ids[place]))
            state_P = None if self._state_mask is None else read["state"][row, -1]
            said = self._said(stores[row], state_P, int(sample_ids[place]))
            action_A, mask_A = columns["action"][place], columns["action_mask"][place]
            examples[place] = self.text.robot(text or NO_INSTRUCTION, action_A, mask_A, plan, **said)
        return columns

    def _said(self, store: int, state_P: np.ndarray | None = None, sample_id: int = 0) -> dict[str, Any]:
        """What a prompt says beside the instruction, of a step of a robot store; without a state of one of its kind."""
        said: dict[str, Any] = {}
        if self._state_mask is not None:
            known_P = np.zeros(self._state_mask.shape[1], np.float32) if state_P is None else state_P
            said["state"] = np.where(self._state_mask[store], known_P, np.float32(np.nan))
            if self._perturbs_state and state_P is not None:
                said["state"] = self.text.perturbed(said["state"], key=sample_id)
        return said | ({"cameras": self._seen_by[store]} if len(self.cameras) > 1 else {})

    def _web_columns(
        self,
        own_B: np.ndarray,
        places: np.ndarray,
        examples: list[TokenRow | None],
        index_BI: np.ndarray,
        frames: np.ndarray,
    ) -> np.ndarray:
        """`frames` and after them the distinct images of the web rows."""
        web_texts = self._web.texts(own_B[places])
        images = list(dict.fromkeys(image for web in web_texts for image in web.images))
        row_of = {image: len(frames) + number for number, image in enumerate(images)}
        for place, web in zip(places, web_texts, strict=True):
            examples[place] = self.text.web(web.prompt, web.answer)
            index_BI[place, self._places - len(web.images) :] = [row_of[image] for image in web.images]
        return np.concatenate([frames, np.stack(self._web.frames(images))]) if images else frames

    def _plan(self, instruction: str, sample_id: int) -> str:
        """The plan to say first, for the declared share of the samples that have one."""
        share = np.random.default_rng((sample_id,)).random() if self._plans else 1.0
        return self._plans.get(instruction, "") if share < self._plan_share else ""


def _with_room(frames: np.ndarray, count: int) -> np.ndarray:
    """`frames` (F, H, W, 3) and black ones after them, `count` in all."""
    padded = np.zeros((count, *frames.shape[1:]), np.uint8)
    padded[: len(frames)] = frames
    return padded


class _Instructions:
    """The instruction of each step of robot stores, row groups at a time."""

    def __init__(self, stores: Sequence[EpisodeStore], rewording: Mapping[str, str]) -> None:
        self._stores, self._rewording = stores, rewording
        shards = [(number, shard) for number, store in enumerate(stores) for shard in range(len(store.shards))]
        self._shards = shards
        self._first_row = np.cumsum([0, *(stores[number].shards[shard].rows for number, shard in shards)])
        self._group = lru_cache(4096)(self._read_group)

    def stores(self, rows: np.ndarray) -> list[int]:
        """The number of the store of each row (B,)."""
        shard_B = np.searchsorted(self._first_row, rows, side="right") - 1
        return [self._shards[shard][0] for shard in shard_B]

    def of(self, rows: np.ndarray) -> list[str]:
        """The instruction of each row (B,), counted through the stores; "" for none."""
        shard_B = np.searchsorted(self._first_row, rows, side="right") - 1
        texts = []
        for shard, inside in zip(shard_B, rows - self._first_row[shard_B], strict=True):
            number, own = self._shards[shard]
            store = self._stores[number]
            group, place = divmod(int(inside), store.shards[own].row_group_rows)
            text = store.instruction_texts[int(self._group(number, own, group)[place])].strip()
            texts.append(self._rewording.get(text, text))
        return texts

    def _read_group(self, number: int, shard: int, group: int) -> np.ndarray:
        """int64: places in the store's instruction table."""
        table = self._stores[number].read_rows(shard, group, ["instruction"])
        return np.searchsorted(self._stores[number].instruction_ids, table["instruction"].to_numpy())
