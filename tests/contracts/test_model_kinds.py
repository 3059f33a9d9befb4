"""Only pipelines/families asks which kind of model it has; recipes and import-weights name the one they are about."""

from __future__ import annotations

import ast

import pytest

from pipelines.families.models import FAMILIES
from tests.contracts.test_import_rule import FILES, REPOSITORY, imported_modules

KINDS = {name for family in FAMILIES for name in (family.config_class.__name__, family.model_class.__name__)}
KINDS |= {"RT1Policy", "RT2Policy"}
MODULES = {family.model_class.__module__ for family in FAMILIES}
MODULES |= {f"rt_models.{name}" for name in ("control.rt1_policy", "control.rt2_policy", "cost.rt1_flops")}
MODULES |= {
    "rt_models.cost.rt2_flops",
    "pipelines.families.rt1",
    "pipelines.families.rt2",
    "pipelines.families.rt2_vlm",
}
ABOUT_ONE_KIND = ("pipelines/families/", "pipelines/recipes/")
PIPELINES = [f for f in FILES if f.parts[0] == "pipelines" and not f.as_posix().startswith(ABOUT_ONE_KIND)]


def kinds_asked(source: str) -> list[str]:
    """The kinds of model that the source imports, or names anywhere, as in isinstance, a table by class or a match."""
    named = [node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and node.id in KINDS]
    return named + [module for module in imported_modules(source) if module.rpartition(".")[0] in MODULES]


def test_no_file_outside_families_asks_for_the_kind_of_model() -> None:
    asked = {file.as_posix(): kinds_asked((REPOSITORY / file).read_text()) for file in PIPELINES}
    assert {file: kinds for file, kinds in asked.items() if kinds} == {}


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(model, RT1)",
        "isinstance(model, RT2 | RT2VLM)",
        "WORKING = {RT1Config: 3.0}",
        "type(model) is RT2VLMConfig",
        "match model:\n    case RT1():\n        pass",
        "from rt_models.rt1 import RT1",
        "def f():\n    from rt_models.control.rt2_policy import RT2Policy",
    ],
)
def test_the_rule_goes_red(source: str) -> None:
    assert kinds_asked(source)
