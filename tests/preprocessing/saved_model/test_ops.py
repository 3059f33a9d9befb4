"""Every op of an imported encoder against TensorFlow's own, which runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.saved_model.farm_hash import fingerprint64
from preprocessing.saved_model.graph import OPS
from tests.preprocessing.conversion.test_embeddings import needs_tensorflow

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    needs_tensorflow()
    written = tmp_path_factory.mktemp("ops") / "ops.json"
    script = REPOSITORY / "tests/support/tensorflow_ops.py"
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    run = subprocess.run([sys.executable, script, written], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(written.read_text())


def test_every_op_gives_what_tensorflow_gives(calls: list[dict[str, Any]]) -> None:
    different = [f"{call['op']} {call['attributes']}: {wrong}" for call in calls if (wrong := difference(call))]
    assert different == []
    assert set(OPS) - {call["op"] for call in calls} == {"LookupTableFindV2"}  # which test_import_encoder.py covers


def difference(call: dict[str, Any]) -> str:
    """How our outputs differ from TensorFlow's, in type, shape or values; empty if they do not."""
    with np.errstate(all="ignore"):
        outputs = OPS[call["op"]](call["attributes"], *map(array, call["inputs"]))
    ours = outputs if isinstance(outputs, list | tuple) else [outputs]
    for one, other in zip(ours, map(array, call["outputs"]), strict=True):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return f"{one.dtype} {one.shape}, not {other.dtype} {other.shape}"
        same = one.tolist() == other.tolist() if one.dtype == object else np.allclose(one, other, 2e-6, 1e-6, True)
        if not same:
            return f"{one}, not {other}"
    return ""


def array(written: dict[str, Any]) -> np.ndarray:
    if written["dtype"] != "string":
        return np.array(written["values"], written["dtype"]).reshape(written["shape"])
    strings = np.empty(len(written["values"]), object)
    strings[:] = [text.encode("latin-1") for text in written["values"]]
    return strings.reshape(written["shape"])


def test_fingerprints_never_change() -> None:
    # Which bucket a word out of the vocabulary has decides its vector. Values of TensorFlow 2.21.
    assert [fingerprint64(b"x" * length) for length in (0, 3, 8, 17, 33, 65, 200)] == [
        11160318154034397263,
        3091163115821544028,
        14251512899351120510,
        11306081951414300581,
        12270365409943098935,
        4935023790501551929,
        13938988265971950527,
    ]
