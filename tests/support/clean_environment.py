"""Environments made from a model's requirements.txt: by pip from its index, or of links to what is installed here."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

PREDICT = """
import base64, json, sys
import mlflow, pandas as pd
asked = json.load(open(sys.argv[1]))
model = mlflow.pyfunc.load_model(asked["model"])
rows = {"image": [base64.b64decode(image) for image in asked["images"]], "instruction": asked["texts"], "robot": "arm"}
actions = model.predict(pd.DataFrame(rows))
foreign = {"ray", "deepspeed", "tensorflow", "cluster", "tuning"} & set(sys.modules)
here = [path for path in sys.path if path and not path.startswith(sys.prefix) and not path.startswith(sys.base_prefix)]
print(json.dumps({"actions": actions.to_dict("records"), "foreign": sorted(foreign), "path": here}))
"""


def linked(requirements: Path, folder: Path) -> Path:
    """An environment in which nothing can be imported but what `requirements` bring; its interpreter."""
    site = _environment(folder, "--without-pip")
    pending = [Requirement(line) for line in requirements.read_text().splitlines() if line.strip()]
    done: set[str] = set()
    while pending:
        wanted = pending.pop()
        if wanted.name.lower() in done or (wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})):
            continue
        done.add(wanted.name.lower())
        found = importlib.metadata.distribution(wanted.name)
        assert wanted.specifier.contains(found.version.split("+")[0], prereleases=True), f"{wanted}: {found.version}"
        pending += [Requirement(line) for line in found.requires or []]
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin/python"


def installed(requirements: Path, folder: Path) -> Path:
    """An environment that pip has filled from its package index; its interpreter."""
    _environment(folder)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", "-r", requirements], check=True)
    return folder / "bin/python"


def _environment(folder: Path, *flags: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", *flags, folder], check=True)
    return next((folder / "lib").glob("python*")) / "site-packages"
