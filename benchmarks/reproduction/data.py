"""The public data and the released weights: what `rtp` makes of them, beside what is published."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from reproduction.lab import Check, Lab, Need, Stage, expect, is_there, noted

from preprocessing.rlds import open_dataset
from preprocessing.store.episode_store import EpisodeStore

EPISODES = 87_212
"""Of the catalogue page of fractal20220817_data 0.1.0 (tensorflow.org/datasets)."""
COSINE = 0.999
"""Between a vector of USE-large/5 computed here and the one that the episodes ship."""
PARAMETERS = 56_896_809
"""Of the official RT-1-X module with 15 frames, 81 tokens and 512 bins, counted in JAX."""
NOT_PUBLISHED = (
    "no token accuracy of RT-1-X is published; success on the real Google robot: pick coke can 0.76, move near 0.45, "
    "open drawer 0.52, close drawer 0.74 (SIMPLER, arXiv 2405.05941)"
)
FRACTAL = Need(
    what="--fractal with dataset_info.json in it, or the internet",
    is_there=lambda lab: is_there(f"{lab.settings.fractal.rstrip('/')}/dataset_info.json"),
)
RT1X = Need(what="--rt1x with the released weights, or the internet", is_there=lambda lab: is_there(lab.settings.rt1x))
GCS = Need(
    what="the extra gcs, for gs:// addresses",
    is_there=lambda lab: (
        not any(url.startswith("gs:") for url in (lab.settings.fractal, lab.settings.rt1x))
        or importlib.util.find_spec("gcsfs") is not None
    ),
)


def store(lab: Lab, label: str, split: str, *flags: object, folder: str = "stores") -> str:
    """The store of a slice of the data, which is made once."""
    words = ["preprocess", lab.settings.fractal, lab.path(folder), "--split", split]
    workers = ["--workers", 0] if lab.settings.toy else []
    return str(lab.rtp(label, *words, *workers, *flags)["store"])


def training_store(lab: Lab) -> str:
    return store(lab, "store-train", lab.settings.train)


def held_out_store(lab: Lab) -> str:
    return store(lab, "store-held-out", lab.settings.held_out)


# --- fractal20220817_data ---


def _fractal(lab: Lab) -> list[Check]:
    released = lab.settings.is_released_data
    declared = sum(shard.num_records for shard in open_dataset(lab.settings.fractal).splits["train"])
    made = training_store(lab)
    held_out_store(lab)
    account = lab.rtp("inspect-train", "inspect", made, "--audit", "--verify")
    counts, frames = account["counts"], account["image"]
    quarantined = counts["quarantined"]
    checks = [
        expect("episodes declared", f"{EPISODES:,}", f"{declared:,}", declared == EPISODES, applies=released),
        expect(
            "episodes in = out + quarantined",
            "the sum holds, none quarantined",
            f"{counts['episodes_in']} = {counts['episodes_out']} + {quarantined}",
            counts["episodes_in"] == counts["episodes_out"] + quarantined and quarantined == 0,
        ),
        noted("steps", f"{counts['steps']:,}"),
        expect("control rate", "3 Hz", account["control_hz"], account["control_hz"] == 3),
        expect("frames", "256x320, undecoded", frames, frames == "256x320", applies=released),
        expect("checksums of the store", "all as in the manifest", "all as in the manifest", True),
    ]
    return [*checks, *_audit(account["audit"]), *_vectors(lab, made)]


def _audit(audit: Mapping[str, Any]) -> list[Check]:
    blocking = "; ".join(map(str, audit["blocking"])) or "none"
    held = expect("findings that would stop a training", "none", blocking, not audit["blocking"])
    return [
        held,
        *(noted(f"audit: {row['name']}", f"{row['finding']}: {row['sentence']}") for row in audit["verdicts"]),
    ]


def _vectors(lab: Lab, shipped: str) -> list[Check]:
    """Instruction vectors of the encoder against those in the episodes, text by text."""
    flags = ["--encoder", lab.settings.encoder]
    flags += [] if lab.settings.use_model is None else ["--use-model", lab.settings.use_model]
    computed = EpisodeStore.open(store(lab, "store-vectors", lab.settings.texts, *flags, folder="vectors"))
    known = EpisodeStore.open(shipped)
    theirs = dict(zip(known.instruction_texts, known.embeddings, strict=True))
    pairs = [
        (vector, theirs[text])
        for text, vector in zip(computed.instruction_texts, computed.embeddings, strict=True)
        if text in theirs and text.strip()
    ]
    if not pairs:
        return [expect("texts compared", "some", 0, False)]
    cosines = [float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in pairs]
    what = f"cosine of {computed.manifest.encoder} to the shipped vectors, {len(cosines)} texts"
    found = f"lowest {min(cosines):.6f}, mean {np.mean(cosines):.6f}"
    return [expect(what, f"at least {COSINE}", found, min(cosines) >= COSINE, applies=lab.settings.encoder == "use")]


# --- RT-1-X ---


def rt1x(lab: Lab, limit: int = 2) -> Mapping[str, Any]:
    """The released weights as a model of ours, with a world vector of +-`limit`: the account of the import."""
    words = ["import-weights", lab.settings.rt1x, lab.path(f"models/rt1x-{limit}"), "--data", training_store(lab)]
    return lab.rtp(f"import-{limit}", *words, "--world-vector-limit", limit)


def evaluated(lab: Lab, label: str, model: str, *flags: object) -> Mapping[str, Any]:
    """The scores of a model on the held-out slice."""
    words = ["evaluate", model, "--data", held_out_store(lab), "--split", "train", *flags]
    return lab.rtp(label, *words, "--html", lab.path(f"{label}.html"))["evaluations"][0]


def interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def above_lazy(scores: Mapping[str, Any], *, applies: bool) -> list[Check]:
    """Token accuracy above those who look at nothing."""
    return [
        expect(
            f"token accuracy minus that of {name.replace('_', ' ')}",
            "above 0, with its interval",
            interval(margin),
            margin["low"] > 0,
            applies=applies,
        )
        for name, margin in scores["margin"].items()
        if name != "previous_action"
    ]


def _rt1x(lab: Lab) -> list[Check]:
    released = lab.settings.is_released_model
    imported = rt1x(lab)
    scores = evaluated(lab, "evaluate-rt1x", imported["output"])
    narrow = evaluated(lab, "evaluate-rt1x-1", rt1x(lab, 1)["output"], "--no-perturbations")
    shape = tuple(imported[name] for name in ("parameters", "steps", "image_tokens", "bins"))
    blank = (scores.get("perturbed") or {}).get("blank_images")
    checks = [
        expect(
            "parameters, frames, tokens a frame, bins",
            f"{PARAMETERS:,}, 15, 81, 512",
            f"{shape[0]:,}, {shape[1]}, {shape[2]}, {shape[3]}",
            shape == (PARAMETERS, 15, 81, 512),
            applies=released,
        ),
        noted(f"token accuracy, {scores['episodes']} episodes", interval(scores["token_accuracy"]), NOT_PUBLISHED),
        noted(
            "were these episodes held out from it",
            "no: the release has one split, which RT-1-X was trained on; the slice was not used here",
        ),
        *above_lazy(scores, applies=released),
        noted(
            "token accuracy if a world vector reached +-1",
            interval(narrow["token_accuracy"]),
            "the notebook tokenises labels with +-1 and decodes with +-2; the higher accuracy is the range trained on",
        ),
        noted("mean absolute error over the range", interval(scores["scaled_error"])),
    ]
    if blank is not None:
        fall = blank["fall"]
        checks.append(
            expect(
                "what black frames take",
                "above 0, with its interval",
                interval(fall),
                fall["low"] > 0,
                applies=released,
            )
        )
    return checks


STAGES = (
    Stage(
        name="fractal",
        question="A slice of the public RT-1 data: does the store add up, does the audit agree with the spec, and does "
        "the Universal Sentence Encoder give the vectors that the episodes ship?",
        needs=(
            FRACTAL,
            GCS,
            Need(
                what="--use-model, where it is given",
                is_there=lambda lab: lab.settings.use_model is None or is_there(lab.settings.use_model),
            ),
            Need(
                what="for --encoder use: TensorFlow (extra use)",
                is_there=lambda lab: (
                    lab.settings.encoder != "use" or importlib.util.find_spec("tensorflow") is not None
                ),
            ),
        ),
        run=_fractal,
    ),
    Stage(
        name="rt1x",
        question="The released RT-1-X weights: do they import, and do they predict recorded actions better than a "
        "policy that looks at nothing?",
        needs=(
            FRACTAL,
            RT1X,
            GCS,
            Need(what="the extra jax", is_there=lambda lab: importlib.util.find_spec("tensorstore") is not None),
        ),
        run=_rt1x,
    ),
)
