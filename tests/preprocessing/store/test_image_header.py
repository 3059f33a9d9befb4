"""Headers of frames that begin alike: what was read before changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessing.store import image_header
from preprocessing.store.images import encode_jpeg
from tests.preprocessing.store.test_images import saved, turned


@pytest.mark.parametrize("kind", ["plain", "turned", "progressive"])
def test_the_frame_read_before_changes_no_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.full((16, 24, 3), 90, np.uint8)
    frame = {
        "plain": encode_jpeg(grey),
        "turned": turned("JPEG", 6),
        "progressive": saved(grey, "JPEG", progressive=True),
    }[kind]
    begins = frame.index(b"\xff\xda") + 16
    changed = [frame[:place] + bytes([frame[place] ^ 0x11]) + frame[place + 1 :] for place in range(begins)]
    for other in [*changed, *(frame[:length] for length in range(2, len(frame)))]:
        monkeypatch.setattr(image_header, "_recent", None)
        alone = _told(other)
        assert _told(frame) == _told(frame)
        assert _told(other) == alone


def _told(encoded: bytes) -> object:
    """The header, or what is wrong with it."""
    try:
        return image_header.read_header(encoded)
    except ValueError as error:
        return str(error)
