"""Run in a process of its own: what TensorFlow gives for one or more calls of every op that an encoder may hold.

    python tensorflow_ops.py OUT

Writes OUT, a JSON list of {op, attributes, inputs, outputs}; arrays as {dtype, shape, values}, strings as Latin-1.
"""

from __future__ import annotations

import gc
import inspect
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # with garbage collection TensorFlow takes half as long again to import

import numpy as np
import tensorflow as tf

from preprocessing.saved_model.tensorflow_export import _plain

F = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
ROW = F[0]
BATCH = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
INTS = np.array([[3, -7, 2], [5, 1, -4]], np.int32)
B = np.array([True, False, True])
T = np.array([b"Pick up  the GREEN can!", "öffne — die Schublade".encode(), b"", b" x,y;z "], object)
SQUARE = np.array([[b"a", b"bc"], [b"", b"d"]], object)
i32, i64 = np.int32, np.int64
INDICES = np.array([[0, 1], [2, 0], [2, 2]], i64)


def n(*values: int, dtype: Any = i32) -> np.ndarray:
    return np.array(values, dtype)


def cases() -> list[tuple[str, list[Any], dict[str, Any]]]:
    """(op, inputs, attributes)."""
    smooth = "Neg Exp Square Abs Sign Floor Ceil Round Sin Cos Tanh Sigmoid Erf Erfc Relu Relu6 LeakyRelu Elu Softplus"
    same = "Identity Snapshot StopGradient PreventGradient ZerosLike OnesLike IsNan IsInf IsFinite Softmax LogSoftmax"
    positive = "Log Log1p Sqrt Rsqrt Reciprocal"
    both = "Add AddV2 Sub Mul RealDiv Div FloorDiv FloorMod Mod Maximum Minimum SquaredDifference Equal"
    both += " NotEqual Less LessEqual Greater GreaterEqual"
    whole = "Div TruncateDiv FloorDiv FloorMod TruncateMod Maximum Equal"
    found: list[tuple[str, list[Any], dict[str, Any]]] = [(op, [F], {}) for op in (smooth + " " + same).split()]
    found += [(op, [np.abs(F) + np.float32(0.1)], {}) for op in positive.split()]
    found += [(op, [F, ROW], {}) for op in both.split()]
    found += [(op, [INTS, n(2, -3, 3)], {}) for op in whole.split()]
    found += [("DivNoNan", [F, np.array([0, 1, 2, 0], np.float32)], {}), ("Pow", [np.abs(F), np.float32(1.5)], {})]
    found += [("Equal", [T, T[::-1].copy()], {}), ("NotEqual", [T, np.array(b"", object)], {})]
    found += [("LogicalNot", [B], {}), ("LogicalAnd", [B, ~B], {}), ("LogicalOr", [B, ~B], {})]
    found += [("AddN", [[F, F, F]], {}), ("ClipByValue", [F, np.float32(-0.5), np.float32(0.5)], {})]
    found += [
        ("BiasAdd", [F, ROW], {}),
        ("Cast", [F, tf.int32], {}),
        ("Cast", [INTS, tf.float32], {}),
        ("Cast", [INTS, tf.bool], {}),
    ]
    for op in ("Sum", "Prod", "Max", "Min", "Mean"):
        found += [(op, [BATCH, n(0, -1)], {}), (op, [BATCH, n(1)], {"keep_dims": True}), (op, [F, np.int32(0)], {})]
        found += [] if op == "Mean" else [(op, [np.zeros((0, 2), np.float32), n(0)], {}), (op, [INTS, n(1)], {})]
    found += [("All", [B, n(0)], {}), ("Any", [B, n(0)], {"keep_dims": True})]
    found += [("ArgMax", [F, np.int32(1)], {}), ("ArgMin", [F, np.int32(0)], {"output_type": tf.int32})]
    orders = [{"exclusive": exclusive, "reverse": reverse} for exclusive in (False, True) for reverse in (False, True)]
    endless = np.array([1, np.inf, 2, -np.inf, 3], np.float32)
    found += [("Cumsum", [x, np.int32(-1)], order) for x in (F, endless, F[:, :0]) for order in orders]
    found += [("MatMul", [F, F], {"transpose_b": True}), ("MatMul", [F, F], {"transpose_a": True})]
    found += [(op, [BATCH, BATCH], {"adj_y": True}) for op in ("BatchMatMul", "BatchMatMulV2")]
    found += [("BatchMatMulV3", [BATCH, BATCH, tf.float32], {"adj_x": True})]
    found += [("Einsum", [[BATCH, F], "bqd,kd->bqk"], {}), ("Einsum", [[BATCH, BATCH], "...qd,...kd->...qk"], {})]
    return found + shape_cases() + gather_cases() + text_cases()


def shape_cases() -> list[tuple[str, list[Any], dict[str, Any]]]:
    found: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("IdentityN", [[F, INTS]], {}),
        ("PlaceholderWithDefault", [F, (3, 4)], {}),
        ("EnsureShape", [F, (3, 4)], {}),
        ("Shape", [BATCH], {}),
        ("Shape", [BATCH], {"out_type": tf.int64}),
        ("ShapeN", [[BATCH, F]], {}),
        ("Size", [BATCH], {}),
        ("Rank", [BATCH], {}),
        ("Reshape", [BATCH, n(4, -1)], {}),
        ("Reshape", [np.zeros((0, 4), np.float32), n(-1, 4)], {}),
        ("ExpandDims", [F, np.int32(-1)], {}),
        ("Squeeze", [F[:, None]], {}),
        ("Squeeze", [F[None, :, None]], {"axis": [0]}),
        ("Transpose", [BATCH, n(2, 0, 1)], {}),
        ("Pack", [[F, F]], {"axis": 1}),
        ("Unpack", [F], {"num": 4, "axis": 1}),
        ("ConcatV2", [[F, F], np.int32(-1)], {}),
        ("ConcatV2", [[T, T], np.int32(0)], {}),
        ("Split", [np.int32(1), F, 2], {}),
        ("SplitV", [F, n(1, -1), np.int32(1), 2], {}),
        ("Slice", [F, n(1, 0), n(-1, 2)], {}),
        ("Tile", [F, n(2, 1)], {}),
        ("Fill", [n(2, 2), np.float32(3)], {}),
        ("Fill", [n(2), np.array(b"x", object)], {}),
        ("Range", [np.int32(1), np.int32(9), np.int32(3)], {}),
        ("Range", [np.float32(0), np.float32(1), np.float32(0.25)], {}),
        ("BroadcastTo", [ROW, n(2, 3, 4)], {}),
        ("BroadcastArgs", [n(3, 1), n(4)], {}),
        ("Pad", [F, np.array([[1, 0], [0, 2]], i32)], {}),
        ("PadV2", [F, np.array([[1, 0], [0, 2]], i32), np.float32(7)], {}),
        ("PadV2", [T, np.array([[0, 2]], i32), np.array(b"pad", object)], {}),
        ("ReverseV2", [BATCH, n(0, 2)], {}),
        ("InvertPermutation", [n(2, 0, 1)], {}),
        ("OneHot", [n(0, 2, -1), np.int32(3), np.float32(1), np.float32(0)], {}),
        ("OneHot", [n(0, 2), np.int32(3), np.float32(1), np.float32(0)], {"axis": 0}),
        ("MatrixBandPart", [F, i64(1), i64(-1)], {}),
        ("Select", [B, F, -F], {}),
        ("SelectV2", [B[:, None], F, ROW], {}),
        ("Where", [F > 0], {}),
        ("TopKV2", [F, np.int32(2)], {}),
        ("Unique", [n(5, 2, 5, 9, 2)], {"out_idx": tf.int64}),
        ("Unique", [np.array([b"b", b"a", b"b"], object)], {}),
        ("ListDiff", [n(0, 1, 2, 3), n(1, 3)], {}),
    ]
    strided = [
        (n(1, 0), n(3, 2), n(1, 1), {}),
        (n(0, -1), n(0, 0), n(1, 1), {"begin_mask": 1, "end_mask": 1, "shrink_axis_mask": 2}),
        (n(0, 1), n(0, 3), n(1, 1), {"ellipsis_mask": 1}),
        (n(0, 0), n(0, 0), n(1, 1), {"new_axis_mask": 1, "begin_mask": 2, "end_mask": 2}),
        (n(-1), n(-4), n(-1), {}),
        (n(1), n(99), n(2), {}),
    ]
    return found + [("StridedSlice", [F, begin, end, steps], masks) for begin, end, steps, masks in strided]


def gather_cases() -> list[tuple[str, list[Any], dict[str, Any]]]:
    ids = n(0, 0, 2)
    found: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("Gather", [F, n(2, 0, 2)], {}),
        ("GatherV2", [F, INTS % 3, np.int32(0)], {}),
        ("GatherV2", [F, n(3, 1), np.int32(1)], {}),
        ("GatherV2", [BATCH, np.array([[0, 2], [1, 1]], i32), np.int32(1)], {"batch_dims": 1}),
        ("GatherV2", [BATCH, np.array([[0, 2], [1, 1]], i32), np.int32(2)], {"batch_dims": 1}),
        ("GatherV2", [BATCH, np.array([[0, 2], [1, 1]], i32), np.int32(-1)], {"batch_dims": -1}),
        ("GatherV2", [BATCH, n(0, 2), np.int32(1)], {"batch_dims": -1}),
        ("GatherNd", [BATCH, np.array([[0, 1], [1, 2]], i32)], {}),
        ("ScatterNd", [np.array([[0], [2], [0]], i32), F, n(4, 4)], {}),
        ("TensorScatterUpdate", [F, np.array([[0], [2]], i32), F[1:]], {}),
        ("TensorScatterAdd", [F, np.array([[0], [0]], i32), F[1:]], {}),
        ("DynamicPartition", [F, ids, 3], {}),
        ("DynamicStitch", [[n(0, 2), n(1)], [F[:2], F[2:]]], {}),
        ("ParallelDynamicStitch", [[n(3, 0), n(1, 2)], [F[:2], F[1:]]], {}),
        ("SparseToDense", [INDICES, n(3, 4, dtype=i64), F[:, 0], np.float32(-1)], {}),
        ("SparseToDense", [n(1, 3), n(5), F[0, :2], np.float32(0)], {}),
        ("SparseReorder", [INDICES[::-1].copy(), F[:, 0], n(3, 3, dtype=i64)], {}),
        ("SparseReshape", [INDICES, n(3, 4, dtype=i64), n(2, -1, dtype=i64)], {}),
        ("SparseFillEmptyRows", [INDICES, F[:, 0], n(4, 4, dtype=i64), np.float32(9)], {}),
        ("SparseFillEmptyRows", [INDICES, T[:3], n(4, 4, dtype=i64), np.array(b"none", object)], {}),
        ("RaggedTensorToSparse", [[n(0, 1, 3, dtype=i64), n(0, 2, 2, 3, dtype=i64)], F[:, 0]], {}),
        ("RaggedRange", [n(2, 0), n(5, 1), np.int32(1)], {}),
        ("Bincount", [n(1, 1, 3), np.int32(5), np.zeros(0, np.float32)], {}),
        ("Bincount", [n(1, 1, 3), np.int32(3), F[0, :3]], {}),
        ("Bincount", [INTS**2, np.int32(5), np.zeros(0, np.float32)], {}),
        ("SegmentMean", [INTS[[0, 1, 1]], ids], {}),
    ]
    for weights in (np.zeros((2, 0), i64), INTS.astype(i64)):
        for binary in ({}, {"binary_output": True}):
            values = np.array([[0, 2, 2], [5, 1, 0]], i32)
            found += [("DenseBincount", [values, np.int32(4), weights], binary)]
            found += [("DenseBincount", [values[0], np.int32(4), weights[0]], binary)]
    one, two = n(0, 2, 2, 3, dtype=i64), n(0, 1, 3, dtype=i64)
    ragged = [
        (n(-1, -1, dtype=i64), [one], ["ROW_SPLITS"]),
        (i64(-1), [one], ["ROW_SPLITS"]),
        (n(2, 3, dtype=i64), [one], ["ROW_SPLITS"]),
        (n(-1, -1, dtype=i64), [i64(4), n(0, 0, 2, dtype=i64)], ["FIRST_DIM_SIZE", "VALUE_ROWIDS"]),
        (n(-1, -1, -1, dtype=i64), [two, one], ["ROW_SPLITS", "ROW_SPLITS"]),
    ]
    found += [("RaggedTensorToTensor", [shape, F[:, 0], np.float32(5), *parts], {}) for shape, *parts in ragged]
    found += [(f"Segment{kind}", [F, ids], {}) for kind in ("Sum", "Mean", "Prod", "Max", "Min")]
    found += [(f"UnsortedSegment{kind}", [F, n(2, -1, 0), np.int32(4)], {}) for kind in ("Sum", "Prod", "Max", "Min")]
    for kind in ("Sum", "Mean", "SqrtN"):
        found += [(f"SparseSegment{kind}", [F, n(1, 2, 0), ids], {})]
        found += [(f"SparseSegment{kind}WithNumSegments", [F, n(1, 2, 0), ids, np.int32(5)], {})]
    return found


def text_cases() -> list[tuple[str, list[Any], dict[str, Any]]]:
    long = np.array([b"x" * length for length in (0, 1, 3, 4, 7, 8, 16, 17, 32, 33, 64, 65, 128, 200)], object)
    spaced = np.array([b"a b ", b"a b", b"  ", b"a b c "], object)
    blank = np.array([b"  a b ", b"", b"  ", b"a  ", b"\ta\nb"], object)
    long[3:] = [text[:-2] + b"Zq" for text in long[3:]]
    return [
        ("StaticRegexReplace", [T, r"([\pP\pS])", r" \1 "], {}),
        ("StaticRegexReplace", [T, r"\s+", "_"], {"replace_global": False}),
        ("StaticRegexReplace", [SQUARE, "b|^$", "#"], {}),
        ("RegexReplace", [T, np.array(b"(?i)green", object), np.array(b"<\\0>", object)], {}),
        ("RegexReplace", [T, np.array(b"(e)", object), np.array(b"<\\2>", object)], {}),
        ("StaticRegexReplace", [SQUARE, "b", r"\1"], {"replace_global": False}),
        ("StaticRegexFullMatch", [T, r".*a.*|"], {}),
        ("RegexFullMatch", [T, np.array(b"", object)], {}),
        ("StringSplit", [T, np.array(b" ", object)], {}),
        ("StringSplit", [T, np.array(b" ,;", object)], {"skip_empty": False}),
        ("StringSplit", [T, np.array(b"", object)], {}),
        ("StringSplitV2", [T, np.array(b"", object)], {}),
        ("StringSplitV2", [T, np.array(b" ", object)], {}),
        ("StringSplitV2", [spaced, np.array(b"", object)], {"maxsplit": 2}),
        ("StringSplitV2", [spaced, np.array(b" ", object)], {"maxsplit": 1}),
        *(("StringSplitV2", [blank, np.array(b"", object)], {"maxsplit": most}) for most in (0, 1)),
        ("StringJoin", [[T, np.array(b"<s>", object), T]], {"separator": "|"}),
        ("ReduceJoin", [SQUARE, n(-1)], {"separator": "+"}),
        ("ReduceJoin", [SQUARE, n(0)], {"keep_dims": True}),
        ("ReduceJoin", [SQUARE, n(1, 0)], {}),
        *((op, [T], {"encoding": encoding}) for op in ("StringLower", "StringUpper") for encoding in ("", "utf-8")),
        ("StringStrip", [T], {}),
        *(("StringLength", [T], {"unit": unit}) for unit in ("BYTE", "UTF8_CHAR")),
        ("Substr", [T[:1], np.int32(-4), np.int32(2)], {}),
        ("Substr", [T[:2], np.int32(0), np.int32(9)], {"unit": "UTF8_CHAR"}),
        ("StringToHashBucketFast", [long, 1_000_003], {}),
        ("StringToHashBucketFast", [T, 10], {}),
    ]


def called(op: str, inputs: list[Any], attributes: dict[str, Any]) -> dict[str, Any]:
    """The op once, as a node of a graph has it."""
    argument_names = list(inspect.signature(getattr(tf.raw_ops, op)).parameters)
    graph = tf.Graph()
    with graph.as_default():
        given = {name: _constants(value) for name, value in zip(argument_names, inputs, strict=False)}
        getattr(tf.raw_ops, op)(**given, **attributes)
        node = [one for one in graph.get_operations() if one.type == op][-1]
        with tf.compat.v1.Session(graph=graph) as session:
            arrays, outputs = session.run([list(node.inputs), list(node.outputs)])
    plain = {key: _plain(value) for key, value in node.node_def.attr.items()}
    return {
        "op": op,
        "attributes": plain,
        "inputs": [_written(array) for array in arrays],
        "outputs": [_written(array) for array in outputs],
    }


def _constants(value: Any) -> Any:
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return [_constants(part) for part in value]
    return tf.constant(value) if isinstance(value, np.ndarray | np.generic) else value


def _written(array: Any) -> dict[str, Any]:
    array = np.asarray(array)
    strings = array.dtype.kind in "OS"
    flat = array.reshape(-1).tolist()
    values = [text.decode("latin-1") for text in flat] if strings else flat
    return {"dtype": "string" if strings else array.dtype.name, "shape": list(array.shape), "values": values}


if __name__ == "__main__":
    written = []
    for case in cases():
        try:
            written.append(called(*case))
        except Exception as error:
            raise SystemExit(f"{case[0]} {case[1:]}: {error}") from error
    Path(sys.argv[1]).write_text(json.dumps(written))
