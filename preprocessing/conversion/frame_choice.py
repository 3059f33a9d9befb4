"""Which cameras a conversion stores and at what sizes: what --cameras and --image-size say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from preprocessing.dataset_spec import DatasetSpec
from preprocessing.store.images import ImageSize
from rt_models.spec import MAIN_CAMERA, camera_role


@dataclass(frozen=True, kw_only=True)
class FrameSizes:
    """Sizes that frames are brought to. `of_all` is that of the cameras that `by_role` does not name; None leaves
    their frames as they were recorded."""

    of_all: ImageSize | None = None
    by_role: Mapping[str, ImageSize] = field(default_factory=dict)

    @staticmethod
    def parse(text: str | None) -> FrameSizes:
        """Of --image-size, such as 256x320, or 256x320,wrist=128x128. Raises ValueError for text that is no size."""
        of_all, by_role = None, dict[str, ImageSize]()
        for word in [] if text is None else text.split(","):
            role, equals, size = word.rpartition("=")
            if role in by_role or (not equals and of_all is not None):
                raise ValueError(f"--image-size gives {role or 'all cameras'} two sizes: {text!r}")
            if equals:
                by_role[role] = ImageSize.parse(size)
            else:
                of_all = ImageSize.parse(size)
        return FrameSizes(of_all=of_all, by_role=by_role)

    def of(self, spec: DatasetSpec, roles: Sequence[str]) -> dict[str, ImageSize | None]:
        """By role the size of its frames. Raises ValueError for the size of a camera that is not stored."""
        named = {own_roles(spec, (role,))[0]: size for role, size in self.by_role.items()}
        idle = [role for role in named if role not in roles]
        if idle:
            raise ValueError(f"--image-size names {idle[0]}, which is not stored: add it to --cameras")
        return {role: named.get(role, self.of_all) for role in roles}


def camera_names(words: Sequence[str]) -> tuple[str, ...]:
    """The cameras that --cameras names, in words or separated by commas. Raises ValueError without the main one."""
    names = tuple(dict.fromkeys(name for word in words for name in word.split(",")))
    if MAIN_CAMERA not in names:
        raise ValueError(f"--cameras must name {MAIN_CAMERA}, the main camera")
    return names


def own_roles(spec: DatasetSpec, names: Sequence[str]) -> tuple[str, ...]:
    """The cameras `names` as `spec` calls them: wrist is also its hand. Raises ValueError for one that it lacks."""
    by_role = {camera_role(own): own for own in spec.all_cameras}
    unknown = [name for name in names if name not in spec.all_cameras and camera_role(name) not in by_role]
    if unknown:
        raise ValueError(f"{spec.name} has no camera {unknown[0]!r}: choose of {', '.join(spec.all_cameras)}")
    own = (name if name in spec.all_cameras else by_role[camera_role(name)] for name in names)
    return tuple(dict.fromkeys(own))
