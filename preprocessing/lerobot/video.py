"""Frames of a video at given times: seek to the key frame before the first, decode on from there.

LeRobot puts many episodes into one file; only the part that shows the episode is decoded, at the speed of the codec.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from preprocessing.store.file_system import file_system_of
from preprocessing.store.shard_files import open_with_retries
from preprocessing.tfds.features import Frames

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MATCH = 0.25  # of a frame's duration: frames lie one duration apart, so that none is ever taken for its neighbour
_READ_BYTES = 4 << 20
_FURTHER_BACK_S = (1.0, 10.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFrames(Frames):
    """The frames of a video at `times_s` (N,), ascending, in seconds of the file; decoded anew by every iteration.

    Iterating gives uint8 (H, W, 3) RGB, one frame in memory at a time. Raises ValueError if the file cannot be decoded
    or has no frame within a quarter of a frame's duration of a wanted time.
    """

    url: str
    times_s: np.ndarray
    fps: float

    def __len__(self) -> int:
        return len(self.times_s)

    def __iter__(self) -> Iterator[np.ndarray]:
        av = require_av()
        try:
            with ExitStack() as opened:
                for frame in self._matched(_open(av, self.url, opened)):
                    yield frame.to_ndarray(format="rgb24")
        except (av.error.FFmpegError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.url} cannot be decoded ({reason})") from None

    def _matched(self, container: InputContainer) -> Iterator[VideoFrame]:
        """One decoded frame for each time."""
        if not container.streams.video:
            raise ValueError(f"{self.url} holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if stream.time_base is None:
            raise ValueError(f"{self.url} does not say when its frames are shown")
        tolerance_s = _MATCH / self.fps
        wanted = 0
        for frame in self._decoded(container, stream, self.times_s[0] - tolerance_s):
            if frame.time is None or frame.time < self.times_s[wanted] - tolerance_s:
                continue
            while wanted < len(self.times_s) and abs(frame.time - self.times_s[wanted]) <= tolerance_s:
                wanted += 1
                yield frame
            if wanted == len(self.times_s):
                return
            if frame.time > self.times_s[wanted] + tolerance_s:
                break
        raise ValueError(
            f"{self.url} has no frame at {self.times_s[wanted]:.4f} s (frame {wanted} of {len(self.times_s)})"
        )

    def _decoded(self, container: InputContainer, stream: VideoStream, start_s: float) -> Iterator[VideoFrame]:
        """Frames from one that is shown at `start_s` or before. Where frames of an open group are shown before its key
        frame, a decoder that begins there lacks them, and one begins further back."""
        tick_s, begin_s = float(stream.time_base or 1), max(start_s, 0.0)
        for back_s in (0.0, *_FURTHER_BACK_S, begin_s):
            container.seek(max(int((begin_s - back_s) / tick_s), 0), stream=stream, backward=True)
            frames = container.decode(stream)
            first = next((frame for frame in frames if frame.time is not None), None)
            if first is not None and first.time is not None and first.time <= begin_s + 2 * _MATCH / self.fps:
                break
        return chain([] if first is None else [first], frames)


def require_av() -> Any:
    """The module `av`. Raises ImportError with the remedy where it is missing."""
    try:
        import av
    except ImportError as error:
        raise ImportError("LeRobot's videos need PyAV: pip install 'rt-pipelines[lerobot]'") from error
    av.logging.set_level(None)
    return av


def _open(av: Any, url: str, opened: ExitStack) -> InputContainer:
    filesystem, path = file_system_of(url)
    if not filesystem.exists(path):
        raise FileNotFoundError("there is no such file")
    file = opened.enter_context(open_with_retries(filesystem, path, ahead_bytes=_READ_BYTES))
    return opened.enter_context(av.open(file))
