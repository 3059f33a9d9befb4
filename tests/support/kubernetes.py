"""Kubernetes manifests against the schemas of the resources that they are of, as an API server with strict checks."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import jsonschema
import yaml

FOLDER = Path(__file__).resolve().parents[1] / "data/kuberay"


def schema_of(kind: str) -> dict[str, Any]:
    """The schema of KubeRay's resource `kind` (v1), in which a field that is not named is a mistake."""
    with gzip.open(FOLDER / f"ray.io_{kind.lower()}s.yaml.gz") as file:
        definition = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert definition["spec"]["names"]["kind"] == kind
    (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    return _strict(version["schema"]["openAPIV3Schema"])


def complaints(manifest: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    ]


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    is_object = isinstance(strict.get("properties"), dict) and strict.get("type") == "object"
    if is_object and not strict.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in strict:
        is_open = strict["properties"].keys() <= {"metadata"}
        strict["additionalProperties"] = is_open
    return strict
