"""What draws beside what else a process holds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from preprocessing.simulation.gl_backend import gl_backend

PROGRAM = """
from preprocessing.simulation.gl_backend import choose_gl_backend
choose_gl_backend()
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom type='box' size='.1 .1 .1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 8, 8)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer.update_scene(data)
renderer.render()
from rt_models.vision import image_kernels
print("both")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs the extra sim")
def test_a_policys_kernels_are_found_by_a_process_that_draws() -> None:
    """Imported after Mesa has drawn, Triton would end the process."""
    if gl_backend() is None:
        pytest.skip("no OpenGL draws here")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "both\n", done.stderr[-2000:]
