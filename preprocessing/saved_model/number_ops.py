"""TensorFlow ops on numbers: arithmetic, comparisons, reductions, products of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from preprocessing.saved_model.op import Attributes, Op, integer, of_arrays


def truncated_division(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The quotient; of integers without what is behind the point."""
    if x.dtype.kind == "f":
        return x / y
    return np.where((x < 0) != (y < 0), -(np.abs(x) // np.abs(y)), np.abs(x) // np.abs(y)).astype(x.dtype)


def _or_zero(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator == 0, np.zeros((), numerator.dtype), numerator / denominator)


def _one_by_one(function: Callable[[float], float]) -> Op:
    def apply(attributes: Attributes, x: np.ndarray) -> np.ndarray:
        return np.array([function(value) for value in x.reshape(-1).tolist()], x.dtype).reshape(x.shape)

    return apply


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _cast(attributes: Attributes, x: np.ndarray) -> np.ndarray:
    return x.astype(np.dtype(attributes["DstT"]))


def _bias_add(attributes: Attributes, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    last = attributes.get("data_format", "NHWC") == "NHWC"
    return x + (bias if last else bias.reshape(-1, *(1,) * (x.ndim - 2)))


def _axes(x: np.ndarray, axes: np.ndarray) -> tuple[int, ...]:
    return tuple(int(axis) % max(x.ndim, 1) for axis in axes.reshape(-1)) if x.ndim else ()


def _reduction(ufunc: np.ufunc, empty: str) -> Op:
    """The reduction by `ufunc`; over nothing it is `empty`: the ufunc's own identity, or the type's lowest or highest
    value."""

    def reduce(attributes: Attributes, x: np.ndarray, axes: np.ndarray) -> np.ndarray:
        initial: dict[str, Any] = (
            {"initial": extreme(x.dtype, highest=empty == "highest")} if empty != "identity" else {}
        )
        keep = attributes.get("keep_dims", False)
        return np.asarray(ufunc.reduce(x, axis=_axes(x, axes), dtype=x.dtype, keepdims=keep, **initial))

    return reduce


def extreme(dtype: np.dtype, *, highest: bool) -> float | int:
    """The highest or lowest value of a type of numbers."""
    if dtype.kind == "f":
        return np.inf if highest else -np.inf
    return np.iinfo(dtype).max if highest else np.iinfo(dtype).min


def _mean(attributes: Attributes, x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    total = np.mean(x, axis=_axes(x, axes), keepdims=attributes.get("keep_dims", False), dtype=x.dtype)
    return np.asarray(total, x.dtype)


def _best(function: np.ufunc | object) -> Op:
    def arg(attributes: Attributes, x: np.ndarray, axis: np.ndarray) -> np.ndarray:
        best = function(x, axis=integer(axis))  # type: ignore[operator]
        return np.asarray(best, np.dtype(attributes.get("output_type", "int64")))

    return arg


def _cumulative_sum(attributes: Attributes, x: np.ndarray, axis: np.ndarray) -> np.ndarray:
    place = integer(axis)
    turned = np.flip(x, place) if attributes.get("reverse") else x
    sums = np.cumsum(turned, axis=place, dtype=x.dtype)
    if attributes.get("exclusive"):  # moved on by one: subtracting would make infinity nan
        before = np.zeros_like(sums)
        np.moveaxis(before, place, 0)[1:] = np.moveaxis(sums, place, 0)[:-1]
        sums = before
    return np.flip(sums, place) if attributes.get("reverse") else sums


def _product(flag_x: str, flag_y: str) -> Op:
    def multiply(attributes: Attributes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x = x.swapaxes(-1, -2) if attributes.get(flag_x) else x
        y = y.swapaxes(-1, -2) if attributes.get(flag_y) else y
        return np.matmul(x, y)

    return multiply


def _einsum(attributes: Attributes, *arrays: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum(attributes["equation"], *arrays, optimize=True))


def _add_all(attributes: Attributes, *arrays: np.ndarray) -> np.ndarray:
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


_BATCH_PRODUCT = _product("adj_x", "adj_y")

NUMBER_OPS: dict[str, Op] = {
    **{name: of_arrays(lambda x: x) for name in ("Identity", "Snapshot", "StopGradient", "PreventGradient")},
    **{name: of_arrays(lambda x, *_: x) for name in ("PlaceholderWithDefault", "EnsureShape")},
    "Neg": of_arrays(np.negative),
    "Exp": of_arrays(np.exp),
    "Log": of_arrays(np.log),
    "Log1p": of_arrays(np.log1p),
    "Sqrt": of_arrays(np.sqrt),
    "Rsqrt": of_arrays(lambda x: 1 / np.sqrt(x)),
    "Square": of_arrays(np.square),
    "Reciprocal": of_arrays(lambda x: 1 / x),
    "Abs": of_arrays(np.abs),
    "Sign": of_arrays(np.sign),
    "Floor": of_arrays(np.floor),
    "Ceil": of_arrays(np.ceil),
    "Round": of_arrays(np.rint),
    "Sin": of_arrays(np.sin),
    "Cos": of_arrays(np.cos),
    "Tanh": of_arrays(np.tanh),
    "Sigmoid": of_arrays(lambda x: 1 / (1 + np.exp(-x))),
    "Erf": _one_by_one(math.erf),
    "Erfc": _one_by_one(math.erfc),
    "Relu": of_arrays(lambda x: np.maximum(x, 0)),
    "Relu6": of_arrays(lambda x: np.clip(x, 0, 6)),
    "LeakyRelu": lambda attributes, x: np.where(x > 0, x, x * np.float32(attributes.get("alpha", 0.2))),
    "Elu": of_arrays(lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
    "Softplus": of_arrays(lambda x: np.logaddexp(x, np.zeros((), x.dtype))),
    "LogicalNot": of_arrays(np.logical_not),
    "ZerosLike": of_arrays(np.zeros_like),
    "OnesLike": of_arrays(np.ones_like),
    "IsNan": of_arrays(np.isnan),
    "IsInf": of_arrays(np.isinf),
    "IsFinite": of_arrays(np.isfinite),
    "Cast": _cast,
    **{name: of_arrays(np.add) for name in ("Add", "AddV2")},
    "AddN": _add_all,
    "Sub": of_arrays(np.subtract),
    "Mul": of_arrays(np.multiply),
    "RealDiv": of_arrays(np.divide),
    **{name: of_arrays(truncated_division) for name in ("Div", "TruncateDiv")},
    "DivNoNan": of_arrays(_or_zero),
    "FloorDiv": of_arrays(np.floor_divide),
    "FloorMod": of_arrays(np.mod),
    **{name: of_arrays(np.fmod) for name in ("Mod", "TruncateMod")},
    "Maximum": of_arrays(np.maximum),
    "Minimum": of_arrays(np.minimum),
    "Pow": of_arrays(np.power),
    "SquaredDifference": of_arrays(lambda x, y: np.square(x - y)),
    "Equal": of_arrays(np.equal),
    "NotEqual": of_arrays(np.not_equal),
    "Less": of_arrays(np.less),
    "LessEqual": of_arrays(np.less_equal),
    "Greater": of_arrays(np.greater),
    "GreaterEqual": of_arrays(np.greater_equal),
    "LogicalAnd": of_arrays(np.logical_and),
    "LogicalOr": of_arrays(np.logical_or),
    "ClipByValue": of_arrays(np.clip),
    "BiasAdd": _bias_add,
    "Sum": _reduction(np.add, "identity"),
    "Prod": _reduction(np.multiply, "identity"),
    "Max": _reduction(np.maximum, "lowest"),
    "Min": _reduction(np.minimum, "highest"),
    "All": _reduction(np.logical_and, "identity"),
    "Any": _reduction(np.logical_or, "identity"),
    "Mean": _mean,
    "ArgMax": _best(np.argmax),
    "ArgMin": _best(np.argmin),
    "Cumsum": _cumulative_sum,
    "MatMul": _product("transpose_a", "transpose_b"),
    **dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _BATCH_PRODUCT),
    "Einsum": _einsum,
    "Softmax": of_arrays(_softmax),
    "LogSoftmax": of_arrays(_log_softmax),
}
