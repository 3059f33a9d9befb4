"""Where a model comes from, through JSON: nothing is lost, whatever older or newer files say besides."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pipelines.publishing.model_origin import ModelOrigin
from pipelines.publishing.training_stores import StoreReference, references_json

TEXTS = st.text(max_size=8)
REFERENCES = st.builds(
    StoreReference, path=TEXTS, relative=TEXTS, fingerprint=st.text("0123456789abcdef", min_size=1), dataset=TEXTS
)
BY_FILES = st.lists(REFERENCES, max_size=3).map(references_json)
BY_PATH = st.fixed_dictionaries({"stores": st.lists(TEXTS, min_size=1, max_size=3)})
DOCUMENTS = st.builds(
    lambda stores, others: {"git_revision": "0a1b", **others, **stores},
    BY_FILES | BY_PATH,
    st.fixed_dictionaries(
        {},
        optional={
            "mlflow_run_id": st.none() | TEXTS,
            "weights": st.sampled_from(["averaged", "last"]),
            "experiment": st.fixed_dictionaries({"name": TEXTS, "loop": st.just({"steps": 3})}),
            "position": st.fixed_dictionaries({"sample": st.integers(0)}),
        },
    ),
)


@given(DOCUMENTS)
def test_what_was_read_is_written_again(document: dict[str, object]) -> None:
    data = json.loads(json.dumps(document))
    origin = ModelOrigin.from_json(data)
    assert json.loads(json.dumps(origin.to_json())) == data
    assert ModelOrigin.from_json(json.loads(json.dumps(origin.to_json()))) == origin


def test_what_older_files_do_not_say_has_a_default() -> None:
    origin = ModelOrigin.from_json({"stores": ["/data/taco/0.1.0/train"]})
    assert origin.stores == (StoreReference(path="/data/taco/0.1.0/train", dataset="taco/0.1.0/train"),)
    assert (origin.git_revision, origin.mlflow_run_id, origin.recipe, origin.weights) == ("unknown", None, None, None)


def test_weights_that_were_chosen_are_written() -> None:
    assert ModelOrigin(weights="averaged").to_json()["weights"] == "averaged"
    assert "weights" not in ModelOrigin().to_json()
