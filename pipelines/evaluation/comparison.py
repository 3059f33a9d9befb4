"""Which metrics of two models compare.

A token metric counts exact bins, so it compares only models with the same bins: the same actions are 15 % right at 256
bins and 88 % at 16. An error in physical units compares across bins, but not between a model that learnt the commanded
actions and one that learnt the reached ones: their right answers differ. Losses compare only over the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.config.experiment import Experiment
from pipelines.config.serialization import flatten, to_plain
from pipelines.evaluation.report import Comparison, EpisodeReport, EvaluationReport, Labels
from rt_models.action_space import ActionSpec
from rt_models.spec import DatasetContract

PHYSICAL = "scaled_error"
"""The metric of robot actions that compares across bins: mean absolute error over each dimension's range."""

_COUNTS = ("episodes", "steps")


def labels_of(spec: ActionSpec, dataset: DatasetContract, dims: Sequence[int]) -> Labels:
    """What a token of this model means on this dataset, for the scored dimensions `dims`."""
    low, high = (dataset.transform.invert(bound) for bound in spec.bounds())
    return Labels(
        arm=dataset.arm,
        bins=spec.bins,
        binning=spec.binning,
        scaling=dataset.transform.name,
        bounds={spec.names[dim]: (float(low[dim]), float(high[dim])) for dim in dims},
    )


def compared(now: EvaluationReport, before: EvaluationReport, *, me: str, them: str) -> Comparison:
    """The headline scores of `before` that compare with `now`; both are evaluations on one store."""
    scores = before.headlines()
    refused = {name: obstacle(name, now, before, me=me, them=them) for name in scores}
    return Comparison(
        scores={name: value for name, value in scores.items() if refused[name] is None},
        not_compared={name: reason for name, reason in refused.items() if reason is not None},
    )


def obstacle(metric: str, mine: EvaluationReport, theirs: EvaluationReport, *, me: str, them: str) -> str | None:
    """Why `metric` of two evaluations on one store does not compare, with the remedy; None if it does.

    `me` and `them` name the two models in the sentence.
    """
    if not (isinstance(mine, EpisodeReport) and isinstance(theirs, EpisodeReport)):
        return None  # image-text examples have no action tokens
    ours, others = mine.labels, theirs.labels
    if ours == others or metric in _COUNTS:
        return None
    if ours.arm != others.arm:
        return (
            f"{them} was trained on what the arm {_ARM[others.arm]} and {me} on what it {_ARM[ours.arm]}, "
            f"so {metric} compares them with different right answers: use numbers of each alone"
        )
    if metric.startswith(PHYSICAL) or ".mean_absolute_error" in metric:
        return None
    difference = _difference(ours, others)
    return (
        f"{metric} counts exact tokens, and those of {them} ({difference[1]}) are not those of {me} ({difference[0]}): "
        f"compare {PHYSICAL}, which is measured in physical units"
    )


_ARM = {"commanded": "was commanded", "reached": "reached"}


def _difference(ours: Labels, others: Labels) -> tuple[str, str]:
    """The two sides in the first respect in which they differ."""

    def binning(labels: Labels) -> str:
        return f"{labels.bins} bins, {labels.binning}, scaling {labels.scaling}"

    def dimensions(labels: Labels) -> str:
        return f"of {', '.join(labels.bounds)}"

    def bounds(labels: Labels) -> str:
        name = next(name for name in ours.bounds if ours.bounds[name] != others.bounds[name])
        low, high = labels.bounds[name]
        return f"{labels.bins} bins of {name} from {low:.6g} to {high:.6g}"

    for describe in (binning, dimensions):
        if describe(ours) != describe(others):
            return describe(ours), describe(others)
    return bounds(ours), bounds(others)


# --- sweeps: the same question before anything is trained ---

_OTHER_ACTIONS = ("loader.relabel",)
# Under each of these a mean loss is taken over other tokens, or over other steps.
_OTHER_LOSSES = (
    *("model.type", "model.text", "model.tokenizer", "model.vocab_size", "model.path"),
    *("model.num_steps", "model.stride", "model.loss_on", "loader.mask_flags", "co_fine_tuning.plans"),
)
_OTHER_SAMPLES = ("mixture", "co_fine_tuning")


def require_comparable(metric: str, path: str, variants: Sequence[Experiment], *, sweep: str) -> None:
    """Raise ValueError if `metric` means something else under the values that a sweep gives to the setting `path`.

    `variants` are the experiment with each of them.
    """
    first, *others = (_meaning(metric, experiment) for experiment in variants)
    changed = sorted({key for one in others for key in first.keys() | one.keys() if first.get(key) != one.get(key)})
    if not changed:
        return
    reason = f"sweep {sweep} varies {path}, and trials that differ in {', '.join(changed)} do not compare by {metric}"
    if any(key.startswith(_OTHER_ACTIONS) for key in changed):
        raise ValueError(f"{reason}, as they learn different actions: leave {path} out of the space")
    if all(key.startswith(_OTHER_SAMPLES) for key in changed):
        raise ValueError(f"{reason}, as they train on other samples: make validation_loss the objective")
    raise ValueError(
        f"{reason}: make {PHYSICAL} the objective (direction min, scheduler ToTheEnd), which is in physical units"
    )


def _meaning(metric: str, experiment: Experiment) -> dict[str, object]:
    """The settings that decide what `metric` counts, by name."""
    is_loss = metric.startswith(("loss", "validation_loss"))
    if not is_loss and metric not in (PHYSICAL, "token_accuracy"):
        return {}
    names = _OTHER_ACTIONS + (_OTHER_LOSSES if is_loss else ()) + (_OTHER_SAMPLES if metric == "loss" else ())
    meant = {key: value for key, value in flatten(to_plain(experiment)).items() if key.startswith(names)}
    if metric == PHYSICAL:
        return meant
    spec = experiment.model.action_spec()
    low, high = spec.bounds()
    bounds = [low.tolist(), high.tolist()]
    return meant | {"bins": spec.bins, "binning": spec.binning, "bounds": bounds, "scaling": experiment.scaling}
