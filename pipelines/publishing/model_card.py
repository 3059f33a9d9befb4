"""README.md of an exported model, as the Hugging Face hub shows it: contract, training data with their rights, scores.

Nothing is guessed, and no path of the machine that trained it is in it: stores have their names and fingerprints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.training_stores import StoreReference
from preprocessing.store.card import UNKNOWN, front_matter, hub_licence, rights_lines, table, words
from preprocessing.store.store_manifest import Rights
from rt_models.spec import Contract

CARD = "README.md"
Score = Mapping[str, Any]
"""One store's evaluation, as rtp evaluate saves it."""
_HEADLINES = ("token_accuracy", "scaled_error", "vqa_accuracy", "cider_d")


def model_card(
    trained: TrainedModel, scores: Sequence[Score], *, name: str, address: str = "", licence: str = ""
) -> str:
    """The card of a model; `scores` are those of the very weights, `licence` the user's word for them, and `address` is
    what loads it, by default its name."""
    kind = type(trained.model.config).__name__.removesuffix("Config")
    head = front_matter(
        {
            "license": hub_licence(licence) or ("other" if licence else ""),
            "license_name": "" if hub_licence(licence) else licence,
            "library_name": "rt-pipelines",
            "pipeline_tag": "robotics",
            "tags": ["robotics", "rt-pipelines", kind],
            "model-index": _index(name, scores),
        }
    )
    sections = [
        f"# {words(name)}",
        "",
        f"{kind}, {sum(p.numel() for p in trained.model.parameters()):,} parameters, step {trained.step}.",
        "",
        "```python",
        "from pipelines.publishing.policy import load_policy",
        "",
        f"policy = load_policy({address or name!r})  # or: rtp serve, rtp evaluate, rtp train --init",
        "```",
        *_contract(trained.contract),
        *_stores(trained.origin.stores),
        *_scores(scores),
        *_origin(trained, licence),
    ]
    return head + "\n".join(sections) + "\n"


def _contract(contract: Contract) -> Iterator[str]:
    action = contract.action
    yield from ("", "## Contract", "", f"`{contract.id}`. Whoever calls it has to keep to this.", "")
    rows = [
        ("action space", action.name),
        ("bins", f"{action.bins}, {action.binning}"),
        ("frames", f"{contract.image.height}x{contract.image.width}, camera {contract.image.camera}"),
        ("instructions", contract.encoder),
    ]
    yield from table(["", ""], rows)
    for dataset in contract.datasets:
        yield from ("", f"In the units of `{words(dataset.name)}` {words(dataset.version)}:", "")
        known = zip(action.names, dataset.units, dataset.action_mask, strict=True)
        yield from table(["dimension", "unit"], [(n, unit if has else "not in this dataset") for n, unit, has in known])


def _stores(stores: Sequence[StoreReference]) -> Iterator[str]:
    yield from ("", "## Trained on", "")
    if not stores:
        yield "No store is recorded."
    for store in stores:
        name = words(store.name or store.path.rpartition("/")[2])
        yield f"### {name}"
        records = f"{store.records} episodes or images, " if store.records else ""
        yield from ("", f"{records}manifest `{store.fingerprint or 'unknown'}`.", "")
        yield from rights_lines(Rights(licence=store.licence, citation=store.citation, source=store.urls))
        yield ""


def _scores(scores: Sequence[Score]) -> Iterator[str]:
    yield from ("## Scores", "")
    if not scores:
        yield "None is recorded for these weights: `rtp evaluate` makes them."
        return
    rows = []
    for score in scores:
        seen = " (trained on)" if score.get("seen_in_training") else ""
        manifest = f", manifest {score['manifest']}" if score.get("manifest") else ""
        where = f"{score.get('dataset')} {score.get('split')}{seen}{manifest}"
        for metric in _HEADLINES:
            value = score.get(metric)
            if value is not None:
                rows.append((where, metric.replace("_", " "), _interval(value)))
    yield from table(["episodes or examples of", "score", "mean and 95 % interval"], rows)
    yield from ("", "How well recorded actions are predicted does not tell whether a robot succeeds.")


def _origin(trained: TrainedModel, licence: str) -> Iterator[str]:
    origin = trained.origin
    yield from ("", "## Where it comes from", "")
    yield f"- Licence of the weights: {words(licence) or 'not stated. Those of the training data stand above.'}"
    yield f"- Recipe: {words(origin.recipe or '') or UNKNOWN.replace('The source', 'The checkpoint')}"
    yield f"- Weights: {origin.weights or 'as imported'}; code: git {words(origin.git_revision)}"


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"


def _index(name: str, scores: Sequence[Score]) -> list[dict[str, object]]:
    """The hub's table of results."""
    results = [
        {
            "task": {"type": "robotics"},
            "dataset": {
                "name": str(score.get("dataset")),
                "type": str(score.get("dataset")),
                "split": score.get("split"),
                **({"args": {"manifest": score["manifest"]}} if score.get("manifest") else {}),
            },
            "metrics": [
                {"type": metric, "value": float(score[metric]["mean"])} for metric in _HEADLINES if score.get(metric)
            ],
        }
        for score in scores
    ]
    return [{"name": name, "results": results}] if results else []
