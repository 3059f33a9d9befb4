"""What a row of a request holds: a camera frame as bytes, base64, nested lists or array, numbers and flags."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import pandas as pd

from preprocessing.images import decode_image, resize_image
from rt_models.spec import ImageRecipe


def camera_frame(image: Any, recipe: ImageRecipe) -> np.ndarray:
    """uint8 (H, W, 3) as the training frames were. Raises ValueError for what is no image or has another size."""
    frame = _pixels(_decoded_text(image) if isinstance(image, str) else image, recipe)
    height, width = recipe.height, recipe.width
    if frame.shape[:2] == (height, width):
        return frame
    if recipe.resize == "none":
        raise ValueError(
            f"the camera frame is {frame.shape[0]}x{frame.shape[1]}, this policy was trained on {height}x{width} as "
            f"the camera gave it: send frames of that size, or train on a store made with --image-size"
        )
    return resize_image(frame, height, width, recipe.resize)


def _pixels(image: Any, recipe: ImageRecipe) -> np.ndarray:
    if isinstance(image, bytes | bytearray | memoryview):
        encoded = bytes(image)
        if len(encoded) == recipe.height * recipe.width * 3 and not encoded.startswith(_HEADERS):
            return np.frombuffer(encoded, np.uint8).reshape(recipe.height, recipe.width, 3).copy()
        try:
            return decode_image(encoded)
        except ValueError as error:
            raise ValueError(f"image cannot be decoded: {error}") from error
    frame = numbers(image) if isinstance(image, np.ndarray | list | tuple) else np.zeros(0)
    if frame.dtype.kind in "iu" and frame.size and frame.min() >= 0 and frame.max() <= 255:
        frame = frame.astype(np.uint8)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(
            f"image must be PNG or JPEG bytes, raw RGB bytes of {recipe.height}x{recipe.width}, or a uint8 array "
            f"(H, W, 3), got {described(image)}"
        )
    return frame


_HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def _decoded_text(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("image is a text that is not base64: encode the frame's bytes so") from None


def numbers(value: Any) -> np.ndarray:
    """The array of nested sequences, also where a data frame has made the outer ones arrays of objects."""
    try:
        return np.array(value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value)
    except ValueError:  # sequences of unequal length
        return np.zeros(())


def is_missing(value: Any) -> bool:
    """Whether a data frame's cell was left out."""
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def flag(value: Any) -> bool:
    """True or false; a cell left out is false."""
    if not is_missing(value) and not isinstance(value, bool | np.bool_):
        raise ValueError(f"reset must be true or false, got {value!r}")
    return not is_missing(value) and bool(value)


def described(value: Any) -> str:
    """A value in words for an error: dtype and shape, or its type."""
    if isinstance(value, np.ndarray | list | tuple):
        array = numbers(value)
        return f"{array.dtype} {array.shape}" if array.ndim else "sequences of unequal length"
    return "nothing" if is_missing(value) else type(value).__name__
