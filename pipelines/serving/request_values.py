"""What a row of a request holds: a camera frame as bytes, base64, nested lists or array, numbers and flags."""

from __future__ import annotations

import base64
import math

import numpy as np
import pandas as pd

from preprocessing.store.images import Resize, decode_image, image_size, reencode, resize_image
from rt_models.spec import ImageRecipe

MAX_CAMERA_PIXELS = 2**23  # 8.4 million: a 4K camera's. A small file can claim more, and costs that memory and time.
MAX_ENCODED_BYTES = 2**25  # 32 MiB: a 4K frame in PNG
_HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def camera_frame(image: object, recipe: ImageRecipe) -> np.ndarray:
    """uint8 (H, W, 3) as the training frames were; another size is resized as they were.

    `image` is an encoded picture or raw RGB bytes of the recipe's size, both also in base64, or a uint8 array
    (H, W, 3), also as nested lists. Raises ValueError for what is none, or larger than any camera's.
    """
    if isinstance(image, str):
        image = _decoded_text(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return _of_bytes(bytes(image), recipe)
    frame = _of_numbers(image, recipe)
    return resize_image(frame, recipe.height, recipe.width, _resize(recipe))


def frame_size(image: object, recipe: ImageRecipe) -> tuple[int, int]:
    """(height, width) of a picture that `camera_frame` takes, as it was sent. Raises ValueError for what is none."""
    if isinstance(image, str):
        image = _decoded_text(image)
    if not isinstance(image, bytes | bytearray | memoryview):
        height, width, *_ = (*_leading_shape(image), 0, 0)
        return height, width
    encoded = bytes(image)
    return (recipe.height, recipe.width) if _is_raw(encoded, recipe) else image_size(encoded)


def _resize(recipe: ImageRecipe) -> Resize:
    """Training frames of one size were never resized: "pad", the default of preprocessing, keeps what is seen."""
    return "pad" if recipe.resize == "none" else recipe.resize


def _of_bytes(encoded: bytes, recipe: ImageRecipe) -> np.ndarray:
    if _is_raw(encoded, recipe):
        return np.frombuffer(encoded, np.uint8).reshape(recipe.height, recipe.width, 3).copy()
    if len(encoded) > MAX_ENCODED_BYTES:
        raise ValueError(f"image has {len(encoded)} bytes, at most {MAX_ENCODED_BYTES} are read: send a smaller frame")
    try:
        _require_camera(image_size(encoded))
        return decode_image(reencode(encoded, recipe.height, recipe.width, _resize(recipe)))
    except ValueError as error:
        raise ValueError(f"image cannot be decoded: {error}") from error


def _is_raw(encoded: bytes, recipe: ImageRecipe) -> bool:
    return len(encoded) == recipe.height * recipe.width * 3 and not encoded.startswith(_HEADERS)


def _of_numbers(image: object, recipe: ImageRecipe) -> np.ndarray:
    frame = np.zeros(0)
    if isinstance(image, np.ndarray | list | tuple):
        _require_camera(_leading_shape(image)[:2])
        frame = _pixels(image)
    if frame.dtype != np.uint8 and frame.dtype.kind in "iu" and frame.size and frame.min() >= 0 and frame.max() <= 255:
        frame = frame.astype(np.uint8)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
        raise ValueError(
            f"image must be PNG or JPEG bytes, raw RGB bytes of {recipe.height}x{recipe.width}, or a uint8 array "
            f"(H, W, 3), got {described(image)}"
        )
    return frame


def _pixels(image: object) -> np.ndarray:
    """The array, which may be written to: torch takes no other. Of a camera's own no copy is made twice."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        return numbers(image)
    return image if image.flags.writeable else image.copy()


def _leading_shape(value: object) -> tuple[int, ...]:
    """The lengths of nested sequences as their first elements have them, without building an array."""
    shape: list[int] = []
    while isinstance(value, np.ndarray | list | tuple) and len(shape) < 4:
        shape.append(len(value))
        value = value[0] if len(value) else None
    return tuple(shape)


def _require_camera(size: tuple[int, ...]) -> None:
    if math.prod(size) > MAX_CAMERA_PIXELS:
        raise ValueError(
            f"the camera frame is {'x'.join(map(str, size))}, at most {MAX_CAMERA_PIXELS} pixels are read: send a "
            f"smaller one"
        )


def _decoded_text(text: str) -> bytes:
    if len(text) > 4 * -(-MAX_ENCODED_BYTES // 3):
        raise ValueError(f"image has {len(text)} letters of base64, which is over {MAX_ENCODED_BYTES} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error, and another for letters beyond ASCII
        raise ValueError("image is a text that is not base64: encode the frame's bytes so") from None


def numbers(value: object) -> np.ndarray:
    """The array of nested sequences, also where a data frame has made the outer ones arrays of objects."""
    try:
        return np.array(value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value)
    except ValueError:  # sequences of unequal length
        return np.zeros(())


def is_missing(value: object) -> bool:
    """Whether a data frame's cell was left out."""
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def flag(name: str, value: object) -> bool:
    """True or false; a cell left out is false. Raises ValueError for anything else."""
    if not is_missing(value) and not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be true or false, got {value!r:.60}")
    return not is_missing(value) and bool(value)


def described(value: object) -> str:
    """A value in words for an error: dtype and shape, or its type."""
    if isinstance(value, np.ndarray | list | tuple):
        array = numbers(value)
        return f"{array.dtype} {array.shape}" if array.ndim else "sequences of unequal length"
    return "nothing" if is_missing(value) else type(value).__name__
