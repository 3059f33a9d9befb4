"""The process that writes recorded episodes: encoding and serialising them would hold up a server that shares a
process with it.

Steps of an episode that goes on lie in a file without a name, which a kill takes away; the episode is published whole
when it ends. Axes: as messages.py.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from pipelines.serving.recording.config import RecordingConfig
from pipelines.serving.recording.dataset import UNKNOWN, dataset_of, episode
from pipelines.serving.recording.messages import EpisodeEnd, LayoutTold, Message, RecordedStep, RobotLayout
from pipelines.serving.server_log import log_as_json
from preprocessing.store.images import encode_jpeg
from preprocessing.tfds.growing import GrowingDataset

log = logging.getLogger("rtp.serve")

MOST_STEPS = 2000  # of an episode; a longer one is cut, so that it fits into memory when it is serialised
_LEAST_FREE = 2**30  # bytes of the disk
_STEPS_OF_A_RATE, _NEAR_RATE = 5, 0.25  # a rate is measured over so many steps, and said if it is so far off


def write_episodes(messages: Connection, config: RecordingConfig) -> None:
    """Write what is told until the server closes its end, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the server says when to end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_as_json(each_request=False)
    writer = EpisodeWriter(config)
    while True:
        try:
            message = messages.recv()
        except EOFError:
            break
        writer.take(message)
    writer.finish_all()


class EpisodeWriter:
    """Episodes that go on, and the folders of those that have ended."""

    def __init__(self, config: RecordingConfig) -> None:
        self._config, self._root = config, config.folder()
        self._layouts: dict[int, tuple[RobotLayout, GrowingDataset]] = {}
        self._open: dict[int, _Spool] = {}
        self._used = sum(file.stat().st_size for file in self._root.rglob("*.tfrecord-*"))
        self._is_full = False

    def take(self, message: Message) -> None:
        """What goes wrong costs one episode, and the log says so."""
        try:
            if isinstance(message, LayoutTold):
                dataset = dataset_of(self._root, message.layout)
                self._layouts[message.number] = message.layout, dataset
                log.info("recording", extra={"folder": str(dataset.folder)})
            elif isinstance(message, RecordedStep):
                self._add(message)
            else:
                self._end(message)
        except Exception as error:  # of the disk, or of what TFDS makes of a step
            number = None if isinstance(message, LayoutTold) else message.episode
            if number in self._open:
                self._open.pop(number).close()
            log.warning("an episode is not recorded", extra={"error": " ".join(str(error).split())})

    def finish_all(self) -> None:
        """The server has ended: what is here ends too."""
        for number, spool in list(self._open.items()):
            self.take(EpisodeEnd(episode=number, steps=spool.first + spool.steps))

    def _add(self, step: RecordedStep) -> None:
        if step.layout not in self._layouts or self._without_room():
            return
        spool = self._open.get(step.episode)
        if spool is None and step.number == 0:
            spool = self._open[step.episode] = _Spool(self._root, step, first=0)
        if spool is None:  # its beginning never came
            return
        if step.number != spool.first + spool.steps:
            self._open.pop(step.episode).close()
            log.warning("an episode is not recorded: the writer was too slow", extra={"robot": step.robot})
            return
        if spool.steps == MOST_STEPS:
            self._publish(self._open.pop(step.episode))
            spool = self._open[step.episode] = _Spool(self._root, step, first=step.number)
        spool.add(step, self._config.record_jpeg_quality)

    def _end(self, end: EpisodeEnd) -> None:
        spool = self._open.pop(end.episode, None)
        if spool is None:
            return
        if end.success is not None:
            spool.success = end.success
        if end.steps == spool.first + spool.steps:
            self._publish(spool)
        else:
            spool.close()
            log.warning("an episode is not recorded: the writer was too slow", extra={"robot": spool.about["robot"]})

    def _publish(self, spool: _Spool) -> None:
        layout, dataset = self._layouts[spool.layout]
        with spool:
            payload = dataset.writer.serialize(episode(layout, spool.read(), spool.metadata()))
            shard = dataset.append(payload)
        self._used += shard.stat().st_size
        about = {"robot": spool.about["robot"], "steps": spool.steps}
        log.info("recorded", extra={**about, "file": str(shard)})
        measured_hz, control_hz = spool.measured_hz(), layout.side.control_hz
        if spool.steps >= _STEPS_OF_A_RATE and not math.isclose(measured_hz, control_hz, rel_tol=_NEAR_RATE):
            rates = {"measured_hz": round(measured_hz, 2), "control_hz": control_hz}
            log.warning("an episode's steps came at another rate than is recorded", extra=about | rates)

    def _without_room(self) -> bool:
        spooled = sum(spool.bytes for spool in self._open.values())
        most = self._config.record_gib * 2**30
        is_full = self._used + spooled >= most or shutil.disk_usage(self._root).free < _LEAST_FREE
        if is_full and not self._is_full:
            used = f"{(self._used + spooled) / 2**30:.2f} GiB"
            log.warning("recording has stopped: the disk or --record-gib is used up", extra={"used": used})
            for number in list(self._open):
                self._open.pop(number).close()
        self._is_full = is_full
        return is_full


class _Spool:
    """The steps of an episode that goes on."""

    def __init__(self, root: Path, step: RecordedStep, *, first: int) -> None:
        self.layout, self.first, self.steps, self.bytes = step.layout, first, 0, 0
        began = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.about = {"robot": step.robot, "model": step.model, "contract": step.contract, "began": began}
        self.success: bool | None = None
        self._told_hz, self._arrived = 0.0, [step.arrived]
        self._file = tempfile.TemporaryFile(dir=root)  # noqa: SIM115, it is open for as long as the episode

    def add(self, step: RecordedStep, quality: int) -> None:
        row = {
            "frames": {role: _encoded(frame, quality) for role, frame in step.frames.items()},
            "instruction": step.instruction,
            "embedding": None if step.embedding is None else np.asarray(step.embedding, np.float32).tobytes(),
            "values": step.values_A,
            "state": step.state,
            "tokens": step.tokens_T.tolist(),
            "success": step.success is True,
        }
        packed = msgpack.packb(row)
        assert packed is not None
        self._file.write(packed)
        self.steps += 1
        self.bytes += len(packed)
        self.success = self.success if step.success is None else step.success
        self._told_hz, self._arrived[1:] = step.told_hz, [step.arrived]

    def measured_hz(self) -> float:
        """Steps a second between the first and the last; 0 of a single one."""
        seconds = self._arrived[-1] - self._arrived[0]
        return (self.steps - 1) / seconds if seconds > 0 else 0.0

    def metadata(self) -> dict[str, str | int | float]:
        """What is known of the whole episode."""
        success = UNKNOWN if self.success is None else int(self.success)
        return {**self.about, "success": success, "told_hz": self._told_hz, "measured_hz": self.measured_hz()}

    def read(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        yield from msgpack.Unpacker(self._file, max_buffer_size=2**26)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _encoded(frame: np.ndarray | bytes, quality: int) -> bytes:
    return frame if isinstance(frame, bytes) else encode_jpeg(frame, quality=quality)
