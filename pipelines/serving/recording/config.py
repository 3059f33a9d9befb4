"""Where and how a server records what its robots did; light to import, for the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """Episodes as RLDS, one for each robot and instruction, in a folder of this machine."""

    record: str | None = None
    """Folder for the episodes of all robots, in RLDS: what was seen, asked and answered; rtp preprocess reads it back.
    Without it nothing is recorded."""
    record_gib: float = 50.0
    """GiB that the recorded episodes take at most; at that size, and where the disk has less than one left, recording
    stops, and the log says so."""
    record_jpeg_quality: int = 95
    """JPEG quality, 1 to 100, of the frames. One that came as a JPEG of the policy's own size is kept as it is."""

    def __post_init__(self) -> None:
        if not self.record_gib > 0:
            raise ValueError(f"--record-gib {self.record_gib}: give a number above 0")
        if not 1 <= self.record_jpeg_quality <= 100:
            raise ValueError(f"--record-jpeg-quality {self.record_jpeg_quality}: give a number from 1 to 100")
        if self.record is not None and "://" in self.record:
            raise ValueError(f"--record {self.record}: give a folder of this machine; copy it elsewhere afterwards")

    def folder(self) -> Path:
        """The folder, which is there afterwards. Raises OSError where it cannot be written to."""
        assert self.record is not None
        folder = Path(self.record)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"--record {folder} cannot be made ({error.strerror}): give another folder") from error
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"--record {folder} cannot be written to: give another folder")
        return folder
