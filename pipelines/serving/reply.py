"""An answer as fields that every protocol sends, in its own encoding.

Axes: H steps ahead (1), D numbers of the adapter's command, A dimensions of the policy.
"""

from __future__ import annotations

import math

import numpy as np

from pipelines.serving.adapters.base import Adapter
from pipelines.serving.question import Answer


def fields(answer: Answer, adapter: Adapter) -> dict[str, object]:
    """`actions` float32 (H, D) and `tokens` int64 (H, A), with what they mean.

    No other array is sent: openpi's ActionChunkBroker slices every one on its first axis.
    """
    action = answer.action
    names = list(adapter.names(list(action.values)))
    reply: dict[str, object] = {
        "actions": adapter.command(action.values, action.units)[None],
        "tokens": np.asarray(answer.tokens_A, np.int64)[None],
        "action_names": names,
        "units": {name: adapter.unit_of(name, action.units) for name in names},
        "classes": dict(action.classes),
        "absent": list(action.absent),
        "clipped": [*answer.clipped, *adapter.clipped(action.values, action.units)],
        "frames_seen": action.frames_seen,
        "dataset": answer.dataset,
        "contract": answer.contract,
        "model": answer.model,
    }
    said = {} if action.plan is None else {"plan": action.plan}
    return reply | said | ({"read": dict(answer.read)} if answer.read else {})


def plain(value: object) -> object:
    """The same for JSON: arrays become lists, and what is no number becomes null."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
