"""The videos of one camera: episodes one after another, in a new file once the present one is large."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from preprocessing.lerobot.video import require_av

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

CHUNK_FILES = 1000
# Encoder and its settings. A key frame every second frame lets a window be read by decoding two frames at most; crf and
# preset of AV1 are LeRobot's, those of H.264 come to about the same size with less loss.
CODECS = {
    "h264": ("libx264", {"g": "2", "crf": "18"}),
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
}


class VideoFiles:
    """Writes `videos/CAMERA/chunk-000/file-000.mp4` and on; frames of an episode lie in one file."""

    def __init__(self, folder: Path, camera: str, *, fps: int, codec: str, most_bytes: int) -> None:
        self._folder, self._camera, self._fps, self._codec = folder, camera, fps, codec
        self._most_bytes = most_bytes
        self._number, self._shown, self._bytes = -1, 0, 0
        self._file: OutputContainer | None = None
        self._stream: VideoStream | None = None

    def add(self, frames: Iterable[np.ndarray]) -> dict[str, int | float]:
        """Append an episode; where it lies, by the names of LeRobot's episode table."""
        if self._file is None or self._bytes > self._most_bytes:
            self._begin_file()
        first = self._shown
        for frame_HWC in frames:
            self._append(frame_HWC)
        chunk, file = divmod(self._number, CHUNK_FILES)
        return {
            "chunk_index": chunk,
            "file_index": file,
            "from_timestamp": first / self._fps,
            "to_timestamp": self._shown / self._fps,
        }

    def info(self, height: int, width: int) -> dict[str, object]:
        """What `meta/info.json` says of the videos."""
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": self._codec,
            "video.pix_fmt": _pixel_format(height, width),
            "video.is_depth_map": False,
            "video.fps": self._fps,
            "video.channels": 3,
            "has_audio": False,
        }

    def close(self) -> None:
        if self._file is not None and self._stream is not None:
            self._file.mux(self._stream.encode())
            self._file.close()
        self._file = self._stream = None

    def _path(self) -> Path:
        chunk, file = divmod(self._number, CHUNK_FILES)
        return self._folder / f"videos/{self._camera}/chunk-{chunk:03d}/file-{file:03d}.mp4"

    def _begin_file(self) -> None:
        self.close()
        self._number += 1
        self._shown, self._bytes = 0, 0
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = require_av().open(str(path), "w")

    def _append(self, frame_HWC: np.ndarray) -> None:
        av = require_av()
        height, width = frame_HWC.shape[:2]
        assert self._file is not None  # `add` has begun one
        if self._stream is None:
            encoder, options = CODECS[self._codec]
            stream = cast("VideoStream", self._file.add_stream(encoder, rate=self._fps, options=dict(options)))
            stream.height, stream.width, stream.pix_fmt = height, width, _pixel_format(height, width)
            stream.time_base = Fraction(1, self._fps)
            self._stream = stream
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        frame.pts, frame.time_base = self._shown, Fraction(1, self._fps)
        packets = self._stream.encode(frame)
        self._bytes += sum(packet.size for packet in packets)
        self._file.mux(packets)
        self._shown += 1


def _pixel_format(height: int, width: int) -> str:
    """Colours at half the resolution, as every player reads them; odd sizes cannot halve."""
    return "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
