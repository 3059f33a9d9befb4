"""Which objects a robot says are meant, by box, pixel or name, made the marks that a model of object masks reads (MOO).

Boxes are corners [x0, y0, x1, y1] in pixels of the frame that is sent, from its upper left, or [x, y] alone; a name is
looked for by an OWL-ViT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipelines.serving.request_values import frame_size, is_missing, numbers
from preprocessing.masks.boxes import box_centre
from preprocessing.masks.owl import OwlDetector
from preprocessing.store.images import resized_place
from rt_models.spec import ImageRecipe, ObjectMarks


@dataclass(frozen=True, kw_only=True)
class ObjectsMeant:
    """What a robot says, of the frame beside it; None: it says nothing."""

    object_box: object = None
    """Of the object acted on."""
    second_object_box: object = None
    """Of a second one: "move X near Y"."""
    object_name: object = None
    """In place of a box."""
    second_object_name: object = None
    """In place of the second box."""

    @staticmethod
    def of(said: Callable[[str], object]) -> ObjectsMeant:
        """What lies under `OBJECT_FIELDS`."""
        return ObjectsMeant(**{name: None if is_missing(said(name)) else said(name) for name in OBJECT_FIELDS})

    def said(self) -> list[str]:
        """The fields that are there."""
        return [name for name in OBJECT_FIELDS if getattr(self, name) is not None]


OBJECT_FIELDS = tuple(field.name for field in fields(ObjectsMeant))


@dataclass(frozen=True, kw_only=True)
class MarkReader:
    """Reads marks for pictures that are made training frames by `recipe`."""

    recipe: ImageRecipe
    detector: OwlDetector | None = None
    threshold: float = 0.1

    def marks(self, meant: ObjectsMeant, picture: object, frame_HWC: np.ndarray) -> ObjectMarks | None:
        """Of the picture as it was sent and the frame that it became; None if nothing is said of objects. Raises
        ValueError naming the field that is wrong."""
        said = meant.said()
        if not said:
            return None
        for box, name in (("object_box", "object_name"), ("second_object_box", "second_object_name")):
            if box in said and name in said:
                raise ValueError(f"{name}: {box} says already where the object is: send one of the two")
        named = {name: getattr(meant, name) for name in said if name.endswith("_name")}
        found = self._found(frame_HWC, named) if named else {}
        first = self._place("object_box", meant.object_box, picture) or found.get("object_name")
        second = self._place("second_object_box", meant.second_object_box, picture) or found.get("second_object_name")
        if first is None:
            raise ValueError(f"object_box: it is missing, and {said[0]} is of a second object: say where the first is")
        return ObjectMarks(first=first, second=second)

    def _place(self, field: str, box: object, picture: object) -> tuple[float, float] | None:
        if box is None:
            return None
        recipe, size = self.recipe, frame_size(picture, self.recipe)
        try:
            place = box_centre(_corners(box), *size)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{field}: {error}") from None
        return resized_place(place, size, (recipe.height, recipe.width), recipe.resize)

    def _found(self, frame_HWC: np.ndarray, named: Mapping[str, object]) -> dict[str, tuple[float, float]]:
        if self.detector is None:
            raise ValueError(f"{next(iter(named))}: nothing here looks for objects by name: send object_box, {_REMEDY}")
        for field, name in named.items():
            if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
                raise ValueError(f"{field}: must be a text of at most {_LONGEST_NAME} letters, got {name!r:.60}")
        found = self.detector.detect(frame_HWC, [str(name) for name in named.values()])
        for (field, name), each in zip(named.items(), found, strict=True):
            if each.score < self.threshold:
                raise ValueError(
                    f"{field}: no {name} is found in the frame (score {each.score:.2f}, --detector-threshold "
                    f"{self.threshold:g}): send its box"
                )
        return {field: each.centre for field, each in zip(named, found, strict=True)}


_REMEDY = "or start the server with --detector owlvit:PATH"
_LONGEST_NAME = 200


def _corners(box: object) -> Sequence[float]:
    """Four; of a pixel [x, y] its own."""
    values = numbers(box)
    if values.dtype.kind not in "iuf" or values.shape not in ((2,), (4,)):
        raise TypeError(f"must be corners [x0, y0, x1, y1] or a pixel [x, y], not {box!r:.60}")
    if len(values) == 4:
        return values.tolist()
    x, y = np.floor(values).tolist()
    return [x, y, x + 1, y + 1]
