"""HTML pages about a training run and about an evaluation, and the rows of their tables.

Loss curve, scores beside the baselines, predicted beside recorded actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.evaluation.diagnosis import WITHIN, Diagnosis
from pipelines.evaluation.off_policy import OffPolicyReport
from pipelines.evaluation.report import EpisodeReport, EvaluationReport, OwnSpaceErrors, WebReport
from pipelines.evaluation.statistics import Interval
from pipelines.reports import attention_view, charts, episode_view, html_page

_STYLE = episode_view.STYLE + attention_view.STYLE


def run_page(
    title: str,
    summary: Mapping[str, object],
    metrics: Sequence[Mapping[str, float]],
    evaluation: EvaluationReport,
    pictures: str,
    more: Mapping[str, tuple[list[str], list[list[str]]]] | None = None,
) -> str:
    """About a training run; `more`: (head, rows) of tables by title.

    `pictures` is trusted HTML (pipelines/reports/prediction_view.py), everything else is escaped.
    """
    sections = [
        html_page.table(["", ""], list(summary.items())),
        html_page.heading("Loss"),
        loss_curve(metrics),
        *_evaluated("Held-out episodes", evaluation),
        *(html_page.heading(name) + html_page.table(*table) for name, table in (more or {}).items()),
        html_page.heading("Episodes"),
        pictures,
    ]
    return html_page.page(title, sections, style=_STYLE, script=episode_view.SCRIPT)


def evaluation_page(
    title: str, summary: Mapping[str, object], evaluations: Sequence[tuple[EvaluationReport, str]]
) -> str:
    """About `rtp evaluate`: each evaluation with its pictures, which are trusted HTML."""
    sections = [html_page.table(["", ""], list(summary.items()))]
    for evaluation, pictures in evaluations:
        sections += [*_evaluated(evaluation.store, evaluation), pictures]
    return html_page.page(title, sections, style=_STYLE, script=episode_view.SCRIPT)


def _evaluated(title: str, evaluation: EvaluationReport) -> list[str]:
    if isinstance(evaluation, WebReport):
        return [html_page.heading(title), html_page.table(WEB_HEAD, web_rows(evaluation))]
    assert isinstance(evaluation, EpisodeReport)
    return [
        html_page.heading(title),
        html_page.table(SCORE_HEAD, score_rows(evaluation)),
        html_page.note(f"{evaluation.steps} steps of {evaluation.episodes} episodes. {SCALED_ERROR}"),
        html_page.heading("Per dimension"),
        html_page.table(DIMENSION_HEAD, dimension_rows(evaluation)),
        *_own_space(evaluation),
        *(html_page.table(head, rows) for head, rows in further_tables(evaluation)),
        *(html_page.note(each) for each in (evaluation.not_measured or {}).values()),
        *(html_page.note(each) for each in (evaluation.off_policy.assumptions if evaluation.off_policy else ())),
    ]


def _own_space(evaluation: EpisodeReport) -> list[str]:
    own = evaluation.own_space
    if own is None:
        return []
    return [html_page.heading(f"In the robot's own space, {own.space}"), html_page.table(*own_space_table(own))]


def own_space_table(own: OwnSpaceErrors) -> tuple[list[str], list[list[str]]]:
    """(head, rows): the errors of each policy in the dimensions of the robot's own space."""
    rows = [
        [name, own.units[name], *(f"{error:.4g}" for error in errors.values())]
        for name, errors in own.mean_absolute_error.items()
    ]
    return [f"dimension of\n{own.space}", "unit", *DIMENSION_HEAD[3:]], rows


def further_tables(evaluation: EpisodeReport) -> list[tuple[list[str], list[list[str]]]]:
    """(head, rows) of what was measured beyond the scores: diagnosis, robustness, suites."""
    tables = []
    if evaluation.diagnosis is not None:
        tables.append((DIAGNOSIS_HEAD, diagnosis_rows(evaluation.diagnosis)))
        if seldom := detection_rows(evaluation.diagnosis):
            tables.append((DETECTION_HEAD, seldom))
    if evaluation.robustness:
        rows = [
            [f"{kind} {strength}", percent(own.token_accuracy), percent(own.fall), f"{own.scaled_error.mean:.4f}"]
            for kind, by_strength in evaluation.robustness.items()
            for strength, own in by_strength.items()
        ]
        tables.append((["perturbed", "token accuracy [95 %]", "fall", "scaled\nerror"], rows))
    if evaluation.suites is not None:
        rows = [
            [name, str(suite.episodes), percent(suite.token_accuracy), f"{suite.scaled_error.mean:.4f}"]
            for name, suite in evaluation.suites.items()
        ]
        tables.append((["suite", "episodes", "token accuracy [95 %]", "scaled\nerror"], rows))
    if evaluation.off_policy is not None:
        tables.append((["return of an episode", "[95 %]", "from"], off_policy_rows(evaluation.off_policy)))
    return tables


def off_policy_rows(estimates: OffPolicyReport) -> list[list[str]]:
    """[what, return with its interval, what it rests on]."""
    episodes, fitted = f"{estimates.episodes} episodes", estimates.fitted_q
    rows = [
        ["recorded, measured", plain(estimates.recorded_return), episodes],
        [
            "policy, estimated by fitted Q",
            "none: the fit diverges" if fitted is None else plain(fitted),
            estimates.state,
        ],
    ]
    if (sampled := estimates.importance) is not None:
        worth = f"worth {sampled.effective_episodes:.1f} of {episodes}"
        rows.append(["policy, estimated by importance sampling", plain(sampled.returns), worth])
    return rows


def diagnosis_rows(diagnosis: Diagnosis) -> list[list[str]]:
    """[dimension, within 1, 2 and 4 bins, negative log-likelihood, calibration error, temperature]."""
    rows = []
    for name, own in diagnosis.dimensions.items():
        near = [f"{100 * share:.1f} %" for share in own.within_bins.values()]
        sure = own.calibration
        numbers = [sure.negative_log_likelihood, sure.calibration_error, sure.temperature] if sure else []
        rows.append([name, *near, *(f"{number:.3g}" for number in numbers), *[""] * (3 - len(numbers))])
    return rows


def detection_rows(diagnosis: Diagnosis) -> list[list[str]]:
    """[what happens seldom, recorded, predicted, precision, recall, F1], where it was recorded or predicted."""
    whats = {"gripper turns": diagnosis.gripper_events, "ends of episodes": diagnosis.terminate}
    rows = []
    for what, found in whats.items():
        if found is not None and found.f1 is not None:
            scores = ["" if score is None else f"{score:.2f}" for score in (found.precision, found.recall, found.f1)]
            rows.append([what, str(found.recorded), str(found.predicted), *scores])
    return rows


def loss_curve(metrics: Sequence[Mapping[str, float]]) -> str:
    """SVG of the training and validation loss over optimizer steps."""
    series = []
    for key, name in (("loss", "training"), ("validation_loss", "validation")):
        points = [(line["step"], line[key]) for line in metrics if key in line]
        series.append(charts.Series(name=name, points=points, dots=len(points) <= 5))
    return charts.plot(series, x_title="optimizer step", y_title="cross-entropy per token")


def percent(interval: Interval) -> str:
    """ "61.2 % [58.0, 64.1]" """
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def score_rows(evaluation: EpisodeReport) -> list[list[str]]:
    """[policy, token accuracy, margin of the trained policy over it, both with 95 % intervals, scaled error]."""

    def row(who: str, accuracy: Interval, above: str, scaled_error: Interval) -> list[str]:
        return [who, percent(accuracy), above, f"{scaled_error.mean:.4f}"]

    rows = [row("policy", evaluation.token_accuracy, "", evaluation.scaled_error)]
    for name, accuracy in evaluation.lazy.items():
        above = percent(evaluation.margin[name])
        rows.append(row(name.replace("_", " "), accuracy, above, evaluation.scaled_error_lazy[name]))
    for name, scores in (evaluation.perturbed or {}).items():
        who = f"policy, {name.replace('_', ' ')}"
        rows.append(row(who, scores.token_accuracy, percent(scores.fall), scores.scaled_error))
    return rows


def dimension_rows(evaluation: EpisodeReport) -> list[list[str]]:
    """[dimension, unit, token accuracy, the policy's mean absolute error, then each baseline's]."""
    rows = []
    for name, scores in evaluation.per_dimension.items():
        errors = [f"{score.mean_absolute_error:.4g}" for score in scores.policies.values()]
        rows.append([name, scores.unit, f"{100 * scores.policies['policy'].token_accuracy:.1f} %", *errors])
    return rows


def web_rows(evaluation: WebReport) -> list[list[str]]:
    """[model, score, margin of the trained model over it] on image-text examples: VQA accuracy, then CIDEr-D."""
    rows = []
    questions = evaluation.questions
    captions = evaluation.captions
    if questions is not None:
        rows.append(["model, VQA accuracy", percent(questions.vqa_accuracy), ""])
        for name, accuracy in questions.lazy.items():
            rows.append([name.replace("_", " "), percent(accuracy), percent(questions.margin[name])])
        answers = questions.perturbed["shuffled_images"]
        rows.append(["model, shuffled images", percent(answers.vqa_accuracy), percent(answers.fall)])
    if captions is not None:
        rows.append(["model, CIDEr-D of captions", plain(captions.cider_d), ""])
        shuffled = captions.shuffled_images
        rows.append(["model, shuffled images", plain(shuffled.cider_d), plain(shuffled.fall)])
    return rows


def before_rows(before: Mapping[str, Interval], now: Mapping[str, Interval]) -> list[list[str]]:
    """[score, of the earlier model, of this one]."""
    formats = {"cider_d": plain, "scaled_error": error}
    rows = []
    for name in [name for name in now if name in before]:
        text = formats.get(name, percent)
        rows.append([name.replace("_", " "), text(before[name]), text(now[name])])
    return rows


def error(interval: Interval) -> str:
    """ "0.0412 [0.0388, 0.0437]" """
    return f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def plain(interval: Interval) -> str:
    """ "1.23 [1.10, 1.35]" """
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


WEB_HEAD = ["", "score [95 %]", "model is above by"]
_PROBABILITIES = ["log-loss\n[nats]", "calibration\nerror", "temper-\nature"]
DETECTION_HEAD = ["", "recorded", "predicted", "precision", "recall", "F1"]
DIAGNOSIS_HEAD = ["", *(f"within\n{k} bins" for k in WITHIN), *_PROBABILITIES]
SCORE_HEAD = ["", "token accuracy [95 %]", "policy is above by", "scaled\nerror"]
DIMENSION_HEAD = [
    "dimension",
    "unit",
    "accuracy",
    "error:\npolicy",
    "most\nfrequent",
    "mean\naction",
    "previous\naction",
]
SCALED_ERROR = "Scaled error: mean absolute error in physical units, each dimension over its range in the store."
