"""What draws without a screen here: MuJoCo's EGL on a GPU, OSMesa on a CPU."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import subprocess
import sys


@functools.cache
def gl_backend() -> str | None:
    """The backend that draws without a screen here: MUJOCO_GL if it is set, else egl or osmesa; None if all fail.

    Each is tried in a process of its own, because a failed attempt leaves PyOpenGL bound to its platform.
    """
    chosen = os.environ.get("MUJOCO_GL")
    for backend in [chosen] if chosen else ["egl", "osmesa"]:
        command = [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"]
        attempt = subprocess.run(command, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, check=False)
        if attempt.returncode == 0:
            return backend
    return None


def choose_gl_backend() -> None:
    """Set MUJOCO_GL to what draws here. MuJoCo reads it once, when it is imported."""
    os.environ["MUJOCO_GL"] = gl_backend() or "disable"
    if importlib.util.find_spec("triton") is not None:
        # Triton and Mesa (OSMesa, EGL on a CPU) each bring an LLVM: imported after Mesa has drawn, when a policy needs
        # it, Triton ends the process.
        with contextlib.suppress(Exception):  # one that does not load is for whoever needs it to say
            importlib.import_module("triton")


def require_gl_backend() -> None:
    """Raise OSError with the remedy if nothing draws."""
    if gl_backend() is None:
        raise OSError(
            "no OpenGL draws without a screen here (MUJOCO_GL, else egl and osmesa, were tried): "
            "install libosmesa6, or libegl1 with a GPU driver"
        )
