"""What an evaluation measured on one store, typed. `to_json` is the form that `rtp evaluate` writes and gates read.

Fields are named as in the JSON file. `lazy` and `margin` are by baseline (pipelines/evaluation/baselines.py), `margin`
is the model's score minus the baseline's, and `fall` is what a perturbation takes from the model's score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass

from pipelines.evaluation.diagnosis import Diagnosis
from pipelines.evaluation.off_policy import OffPolicyReport
from pipelines.evaluation.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a token of the model means on the store's dataset."""

    arm: str
    """"commanded" or "reached": which actions the model was trained on."""
    bins: int
    binning: str
    scaling: str
    bounds: Mapping[str, tuple[float, float]]
    """By scored dimension: the physical values of its first and last bin."""


@dataclass(frozen=True, kw_only=True)
class ActionScore:
    """One policy in one dimension."""

    token_accuracy: float
    mean_absolute_error: float
    """In the dimension's unit."""


@dataclass(frozen=True, kw_only=True)
class DimensionScores:
    """Scores of "policy", which is the model, and of each baseline in one dimension."""

    unit: str
    policies: Mapping[str, ActionScore]


@dataclass(frozen=True, kw_only=True)
class OwnSpaceErrors:
    """Of a dataset that a map brought into the model's space: errors in the robot's own `space`, by its dimension;
    those of "policy" and of each baseline."""

    space: str
    units: Mapping[str, str]
    mean_absolute_error: Mapping[str, Mapping[str, float]]
    """In the dimension's unit; of a class the share that is wrong."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """RT-2: probability mass on valid action tokens, and how often the likeliest token is not one."""

    valid_token_mass: float
    invalid_rate_without_mask: float


@dataclass(frozen=True, kw_only=True)
class PerturbedScores:
    """The model with perturbed inputs."""

    token_accuracy: Interval
    fall: Interval
    scaled_error: Interval


@dataclass(frozen=True, kw_only=True)
class SuiteScores:
    """The model on the episodes of a suite."""

    episodes: int
    steps: int
    token_accuracy: Interval
    scaled_error: Interval


@dataclass(frozen=True, kw_only=True)
class ShuffledAnswers:
    """Questions answered with the image of another example."""

    vqa_accuracy: Interval
    fall: Interval


@dataclass(frozen=True, kw_only=True)
class QuestionScores:
    """`questions` counts them."""

    questions: int
    vqa_accuracy: Interval
    lazy: Mapping[str, Interval]
    margin: Mapping[str, Interval]
    perturbed: Mapping[str, ShuffledAnswers]


@dataclass(frozen=True, kw_only=True)
class ShuffledCaptions:
    """Captions of the image of another example."""

    cider_d: Interval
    fall: Interval


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """`images` counts them."""

    images: int
    cider_d: Interval
    shuffled_images: ShuffledCaptions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The scores of an earlier model that compare with this one's, and why the others do not."""

    scores: Mapping[str, Interval]
    not_compared: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(ABC):
    """`contract` is the id of the model's. The last five are known to `rtp evaluate`, and None elsewhere.

    manifest: fingerprint of the store.
    """

    store: str
    contract: str
    dataset: str | None = None
    split: str | None = None
    manifest: str | None = None
    seen_in_training: bool | None = None
    before: Comparison | None = None

    @abstractmethod
    def headlines(self) -> dict[str, Interval]:
        """The scores by which models are compared."""

    @abstractmethod
    def measured(self) -> dict[str, object]:
        """The JSON of the scores alone."""

    def to_json(self) -> dict[str, object]:
        """Plain data, without what was not measured."""
        data: dict[str, object] = {"store": self.store, "contract": self.contract, **self.measured()}
        data |= _without_none(
            {
                "dataset": self.dataset,
                "split": self.split,
                "manifest": self.manifest,
                "seen_in_training": self.seen_in_training,
            }
        )
        if self.before is not None:
            reasons = self.before.not_compared
            data["before"] = plain_fields(self.before.scores) | ({"not_compared": dict(reasons)} if reasons else {})
        return data


@dataclass(frozen=True, kw_only=True)
class EpisodeReport(EvaluationReport):
    """Scores on robot episodes. `dimensions` are those scored, `ranges` their highest minus lowest value."""

    episodes: int
    steps: int
    dimensions: tuple[str, ...]
    labels: Labels
    token_accuracy: Interval
    scaled_error: Interval
    scaled_error_lazy: Mapping[str, Interval]
    ranges: Mapping[str, float]
    lazy: Mapping[str, Interval]
    margin: Mapping[str, Interval]
    per_dimension: Mapping[str, DimensionScores]
    decoding: Decoding | None = None
    perturbed: Mapping[str, PerturbedScores] | None = None
    """By perturbation; None if none was asked for."""
    not_measured: Mapping[str, str] | None = None
    """By perturbation that was asked for and left out, the reason; None if nothing was."""
    own_space: OwnSpaceErrors | None = None
    """None for a dataset that is in the model's space by itself."""
    negative_log_likelihood: Interval | None = None
    """Of the recorded bins, in nats, mean over scored dimensions; None for models that answer in text."""
    diagnosis: Diagnosis | None = None
    robustness: Mapping[str, Mapping[str, PerturbedScores]] | None = None
    """By kind of perturbation, then by strength, "1" the weakest; None if it was not asked for."""
    suites: Mapping[str, SuiteScores] | None = None
    """By declared suite; None without any."""
    off_policy: OffPolicyReport | None = None
    """None if it was not asked for."""

    def headlines(self) -> dict[str, Interval]:
        return {"scaled_error": self.scaled_error, "token_accuracy": self.token_accuracy}

    def measured(self) -> dict[str, object]:
        per_dimension = {
            name: {"unit": scores.unit, **plain_fields(scores.policies)} for name, scores in self.per_dimension.items()
        }
        return {**_own_fields(self), "per_dimension": per_dimension}


@dataclass(frozen=True, kw_only=True)
class WebReport(EvaluationReport):
    """Scores of an RT-2 on image-text examples; None for a kind that the store does not have."""

    examples: int
    questions: QuestionScores | None = None
    captions: CaptionScores | None = None

    def headlines(self) -> dict[str, Interval]:
        scores = {}
        if self.questions is not None:
            scores["vqa_accuracy"] = self.questions.vqa_accuracy
        if self.captions is not None:
            scores["cider_d"] = self.captions.cider_d
        return scores

    def measured(self) -> dict[str, object]:
        data = _own_fields(self)
        data.pop("questions", None)
        return data if self.questions is None else {**data, **plain_fields(vars(self.questions))}


def _own_fields(report: EvaluationReport) -> dict[str, object]:
    """The JSON of the fields that a kind of report adds."""
    shared = {each.name for each in fields(EvaluationReport)}
    own = {each.name: getattr(report, each.name) for each in fields(report) if each.name not in shared}
    return plain_fields(_without_none(own))


def plain_fields(values: Mapping[str, object]) -> dict[str, object]:
    """Plain data for JSON of named records."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _without_none(data: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in data.items() if value is not None}
