"""RT-2's co-fine-tuning: robot steps and web examples in every batch, at a declared share, and what their texts hold.

The paper keeps web data in each batch and weighs robot data up to a share of it (arXiv 2307.15818, section 3.2). Here
the share is a number of the experiment and holds exactly: every prefix of the run is within one sample of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.mixture import MixtureConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import Store, num_samples, robot_stores
from rt_models.config_checks import require_share
from rt_models.language.prompts import RT2Text, RT2TextConfig
from rt_models.spec import StateInput

_INSTRUCTION_WEIGHT = 20

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
        """{instruction: plan}. Raises ValueError if the file holds something else."""
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
    Raises ValueError if a part that is asked for has no store, or the weights do not fit the stores.
    """
    sizes = {_name(store): num_samples(store) for store in stores}
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


# --- Texts ---


def texts(
    stores: Sequence[Store], config: RT2TextConfig, cameras: Sequence[str], state: StateInput | None
) -> Iterator[str]:
    """Every prompt and answer as text. An instruction belongs to many steps and is repeated."""
    for store in stores:
        if isinstance(store, EpisodeStore):
            lines = [config.prompt_text(line, cameras, state) for line in store.instruction_texts]
            yield from lines * _INSTRUCTION_WEIGHT
            continue
        for prompts, answers, _ in store.texts():
            for prompt, answer in zip(prompts, answers, strict=True):
                question = config.question_prompt.format(question=prompt) if prompt else config.caption_prompt
                yield f"{question} {answer}"


def require_room(stores: Sequence[Store], text: RT2Text, plans: Mapping[str, str]) -> None:
    """Raise ValueError unless every instruction, plan and example fits into the model's context, and a robot's actions
    have something to say in it."""
    nothing = np.zeros(text.spec.size, np.float32), np.ones(text.spec.size, bool)
    longest_P = None if text.state is None else np.array([0.0] + [np.nan] * (len(text.state.names) - 1), np.float32)
    instructions = {line.strip() for store in robot_stores(stores) for line in store.instruction_texts}
    if plans and stores and not instructions.intersection(plans):
        raise ValueError(
            f"co_fine_tuning.plans has plans for other instructions only, such as {next(iter(plans))!r}; these stores "
            f"have {next(iter(instructions), '')!r}"
        )
    for store in robot_stores(stores):
        if not any(store.dataset.action_mask[dim] for dim in text.field_dims):
            fields = ", ".join(text.config.said_fields())
            raise ValueError(
                f"{store.root} has none of the dimensions in model.text.fields ({fields}), so nothing can be learnt "
                f"from it: leave it out of --data, or choose other fields"
            )
    for store in stores:
        if isinstance(store, EpisodeStore):
            empty = [line for line in store.instruction_texts if not line.strip()]
            if empty:
                log.warning("%s has steps without an instruction: RT-2 does not train on them", store.root)
            for instruction in set(store.instruction_texts) - set(empty):
                text.robot(instruction, *nothing, plans.get(instruction, ""), state=longest_P)
            continue
        for prompts, answers, _ in store.texts():
            for prompt, answer in zip(prompts, answers, strict=True):
                if len((prompt + answer).encode()) > text.max_tokens // 4:  # else it fits, with its template
                    text.web(prompt, answer)
