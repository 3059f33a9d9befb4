"""What the configurations of the models refuse: sizes below 1, and words that are none of a setting's choices.

Python does not look at `Literal`: unchecked, `precision="fp16"` would be trained as whatever is not "bf16".
"""

from __future__ import annotations

from typing import Literal, get_args, get_origin, get_type_hints


def require_sizes(config: object, *names: str, part: str = "") -> None:
    """Raise ValueError unless these settings of `config` (called `part` in the message) are whole numbers from 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{part}{name} must be a whole number and at least 1, got {value}")


def require_choices(config: object, part: str = "") -> None:
    """Raise ValueError unless every `Literal` setting of the dataclass `config` is one of its words."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{part}{name} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")


def require_share(config: object, name: str, part: str = "") -> None:
    """Raise ValueError unless this setting lies in [0, 1]."""
    value = getattr(config, name)
    if not 0 <= value <= 1:
        raise ValueError(f"{part}{name} must be between 0 and 1, got {value}")
