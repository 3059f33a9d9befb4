"""Camera frames as a video that browsers play: H.264 in MP4, yuv420p, its index first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.evaluation.closed_loop import EpisodeResult
from preprocessing.store.images import decode_image

_SMALLEST_HEIGHT = 192  # smaller frames are enlarged by a whole factor: players blur them otherwise


def video_name(result: EpisodeResult) -> str:
    """The file of an episode's video, which says how it ended."""
    return f"{result.task}-{result.seed}-{result.ending.replace(' ', '-')}.mp4"


def write_video(path: Path, frames: Sequence[bytes], *, frames_per_second: float) -> None:
    """Encode pictures of one size. Raises ImportError with the remedy without PyAV, ValueError without frames.

    Odd sizes lose their last row or column, as yuv420p asks.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install 'rt-pipelines[sim]'") from error
    if not frames:
        raise ValueError(f"{path}: an episode without frames makes no video")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = None
        for encoded in frames:
            picture = _enlarged(decode_image(encoded))
            if stream is None:
                stream = container.add_stream("h264", rate=round(frames_per_second))
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        assert stream is not None
        for packet in stream.encode():
            container.mux(packet)


def _enlarged(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = -(-_SMALLEST_HEIGHT // height)
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.ascontiguousarray(large[: factor * height // 2 * 2, : factor * width // 2 * 2])
