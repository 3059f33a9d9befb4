"""Run in a process of its own: writes a SavedModel of texts to vectors, of the ops and the structure that are known of
USE-large/5: cleaning by regular expressions, words by a vocabulary with hash buckets for the others, embeddings in
shards, a Transformer over the words that are there, pooling by attention, a tanh layer, length 1.

    python sentence_encoder.py FOLDER TEXTS.json

FOLDER gets the model `plain`; `batch-dependent`, where a text changes the vectors of those beside it and none may be
empty; `loop`, with ops that cannot be converted; and `session`, of the form that TensorFlow 1 saves. The exports of all
but the first are written too, to FOLDER/exported: another start of TensorFlow is expensive.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # with garbage collection TensorFlow takes half as long again to import

import numpy as np
import tensorflow as tf

from preprocessing.saved_model.tensorflow_export import main as export

WIDTH, HEADS, BUCKETS, SHARDS = 32, 4, 8, 3
WORDS = ["the", "put", "open", "move", "green", "red", "bowl", "can", "drawer", "to", "of", "and", "arm", "cup", "'"]


def variable(random: np.random.Generator, *shape: int) -> tf.Variable:
    return tf.Variable(random.normal(0, 0.2, shape).astype(np.float32))


class SentenceEncoder(tf.Module):
    def __init__(self, kind: str) -> None:
        random = np.random.default_rng(0)
        self.kind = kind
        table = tf.lookup.KeyValueTensorInitializer(WORDS, np.arange(len(WORDS)), tf.string, tf.int64)
        self.words = tf.lookup.StaticVocabularyTable(table, BUCKETS)
        rows = len(WORDS) + BUCKETS
        self.shards = [variable(random, -(-rows // SHARDS), WIDTH) for _ in range(SHARDS)]
        self.layers = [
            {name: variable(random, *shape) for name, shape in LAYER.items()} | {"scale": tf.Variable(tf.ones(WIDTH))}
            for _ in range(2)
        ]
        self.pool = variable(random, WIDTH, 1)
        self.out = variable(random, WIDTH, 512)

    def tokens(self, texts):
        """Word ids (N,), and the text and place of each (N, 2)."""
        clean = tf.strings.lower(texts, encoding="utf-8")
        clean = tf.strings.regex_replace(clean, r"([\pP\pS])", r" \1 ")
        clean = tf.strings.regex_replace(clean, r"[0-9]+", "#")
        clean = tf.strings.strip(tf.strings.regex_replace(clean, r"\s+", " "))
        clean = tf.strings.join([clean, tf.fill(tf.shape(clean), "</s>")], separator=" ")
        words = tf.compat.v1.string_split(clean, " ")
        ids = tf.SparseTensor(words.indices, self.words.lookup(words.values), words.dense_shape)
        ids, _ = tf.sparse.fill_empty_rows(ids, tf.constant(0, tf.int64))
        tf.debugging.assert_non_negative(ids.values)
        return ids.values, ids.indices

    @tf.function
    def attention(self, states, places, shape, layer):
        """Self-attention of the words that are there: padded, attended, and taken out again."""
        normed = self.norm(states, layer["scale"])
        padded = tf.scatter_nd(places, normed, tf.concat([shape, [WIDTH]], 0))
        present = tf.scatter_nd(places, tf.ones(tf.shape(states)[:1]), shape)
        queries, keys, values = (
            tf.transpose(
                tf.reshape(tf.tensordot(padded, layer[name], 1), [shape[0], shape[1], HEADS, -1]), [0, 2, 1, 3]
            )
            for name in ("query", "key", "value")
        )
        logits = tf.matmul(queries, keys, transpose_b=True) * (WIDTH / HEADS) ** -0.5
        logits += tf.expand_dims(tf.expand_dims((1 - present) * -1e9, 1), 1)
        mixed = tf.einsum("bhqk,bhkd->bqhd", tf.nn.softmax(logits), values)
        joined = tf.reshape(mixed, [shape[0], shape[1], WIDTH])
        return tf.gather_nd(tf.tensordot(joined, layer["join"], 1), places)

    def norm(self, states, scale):
        mean, variance = tf.nn.moments(states, [-1], keepdims=True)
        return (states - mean) * tf.math.rsqrt(variance + 1e-6) * scale

    def positions(self, places):
        angles = tf.cast(places, tf.float32)[:, None] / 10000 ** (tf.range(0.0, WIDTH // 2) / (WIDTH // 2))
        return tf.concat([tf.sin(angles), tf.cos(angles)], 1)

    @tf.function
    def embed(self, texts):
        if self.kind == "batch-dependent":
            tf.debugging.assert_positive(tf.strings.length(texts))
        ids, places = self.tokens(texts)
        shape = tf.cast(tf.stack([tf.shape(texts, tf.int64)[0], tf.reduce_max(places[:, 1]) + 1]), tf.int64)
        states = tf.nn.embedding_lookup(self.shards, ids) * WIDTH**0.5 + self.positions(places[:, 1])
        for layer in self.layers:
            states += self.attention(states, places, shape, layer)
            hidden = tf.nn.relu(tf.matmul(self.norm(states, layer["scale"]), layer["wide"]))
            states += tf.matmul(hidden, layer["back"])
        weights = tf.exp(tf.matmul(states, self.pool))
        texts_of = places[:, 0]
        pooled = tf.math.segment_sum(states * weights, texts_of) / tf.math.segment_sum(weights, texts_of)
        pooled /= tf.sqrt(tf.math.segment_sum(tf.ones_like(weights), texts_of))
        if self.kind == "batch-dependent":
            pooled += tf.reduce_mean(pooled, 0, keepdims=True)
        if self.kind == "loop":
            pooled = tf.map_fn(lambda row: row * 2, pooled)
        return tf.nn.l2_normalize(tf.tanh(tf.matmul(pooled, self.out)), 1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        short = tf.size(texts) < 1_000_000
        return {"outputs": tf.cond(short, lambda: self.embed(texts), lambda: tf.zeros([tf.size(texts), 512]))}


def save_session(folder: str) -> None:
    """A mean of word vectors, the other way round for one text alone, in a graph with a session: signature, partitioned
    variable, table and condition as they were then."""
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    with tf.Graph().as_default(), v1.Session() as session:
        texts = v1.placeholder(tf.string, [None])
        entries = tf.lookup.KeyValueTensorInitializer(WORDS, np.arange(len(WORDS)), tf.string, tf.int64)
        table = tf.lookup.StaticVocabularyTable(entries, BUCKETS)
        words = v1.string_split(texts, " ")
        ids = tf.SparseTensor(words.indices, table.lookup(words.values), words.dense_shape)
        shape, parts = [len(WORDS) + BUCKETS, 512], v1.fixed_size_partitioner(SHARDS)
        shards = v1.get_variable("words", shape, partitioner=parts, initializer=v1.random_normal_initializer(seed=1))
        vectors = tf.nn.l2_normalize(v1.nn.safe_embedding_lookup_sparse(list(shards), ids, combiner="mean"), 1)
        several = tf.size(texts) > 1
        turned = v1.cond(several, lambda: tf.identity(vectors), lambda: tf.ones([1, 1]) * vectors[:, ::-1])
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        v1.saved_model.simple_save(session, folder, {"text": texts}, {"vectors": turned}, v1.tables_initializer())


LAYER = {
    **dict.fromkeys(("query", "key", "value", "join"), (WIDTH, WIDTH)),
    "wide": (WIDTH, 4 * WIDTH),
    "back": (4 * WIDTH, WIDTH),
}


if __name__ == "__main__":
    sys.setrecursionlimit(100_000)
    for kind in ("plain", "batch-dependent", "loop", "session"):
        folder, exported = Path(sys.argv[1], kind), Path(sys.argv[1], "exported", kind)
        if kind == "session":
            save_session(str(folder))
        else:
            tf.saved_model.save(SentenceEncoder(kind), str(folder))
        if kind != "plain":
            exported.mkdir(parents=True)
            export(str(folder), sys.argv[2], str(exported))
