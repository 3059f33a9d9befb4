"""Aliases move under a lock, back again, and never to a worse version, also where two processes register at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.publishing.aliases import holder_of, promote, registered_model, require_names, rollback
from pipelines.publishing.gates import Gate, Verdict
from pipelines.publishing.registered import version_of
from pipelines.registry import show
from pipelines.tracking.mlflow_run import connect
from tests.support.fork_server import fork_server

NAME, ALIAS = "arm", "champion"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def client(database: str) -> Any:
    """A registry without `NAME`."""
    client = connect(database).MlflowClient()
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    return client


def versions(client: Any, *accuracies: float) -> list[str]:
    """Versions whose token accuracy stands in a tag, for `judge` to read."""
    if registered_model(client, NAME) is None:
        client.create_registered_model(NAME)
    made = [client.create_model_version(NAME, "file:///nowhere") for _ in accuracies]
    for version, accuracy in zip(made, accuracies, strict=True):
        client.set_model_version_tag(NAME, version.version, "accuracy", str(accuracy))
    return [str(version.version) for version in made]


def judge(client: Any, version: str):
    """As register's: against whoever holds the alias."""

    def metrics(number: str) -> dict[str, float]:
        return {"token_accuracy": float(client.get_model_version(NAME, number).tags["accuracy"])}

    def verdicts(holder: str | None) -> Sequence[Verdict]:
        champion = metrics(holder) if holder else None
        return [Gate.parse("token_accuracy>=champion").judge(metrics(version), champion, holder=holder)]

    return verdicts


def test_the_alias_moves_to_better_versions_only_and_says_why(client: Any) -> None:
    first, worse, better = versions(client, 0.5, 0.4, 0.6)
    decisions = [promote(client, NAME, ALIAS, v, judge(client, v)) for v in (first, worse, better)]
    assert [decision.promoted for decision in decisions] == [True, False, True]
    assert [decision.replaced for decision in decisions] == [None, None, first]
    assert holder_of(client, NAME, ALIAS) == better
    tags = client.get_model_version(NAME, worse).tags
    assert tags["champion.gates"] == "token_accuracy 0.4 >= 0.5 (version 1): failed"
    assert tags["champion.decision"].endswith(f"stays with version {first}")


def test_rollback_returns_step_by_step_past_versions_that_never_held_the_alias(client: Any) -> None:
    first, worse, better, best = versions(client, 0.5, 0.4, 0.6, 0.7)
    for version in (first, worse, better, best):
        promote(client, NAME, ALIAS, version, judge(client, version))
    assert rollback(client, NAME, ALIAS) == (best, better)
    assert rollback(client, NAME, ALIAS) == (better, first)
    with pytest.raises(ValueError, match=f"is version {first} and replaced no other"):
        rollback(client, NAME, ALIAS)
    assert holder_of(client, NAME, ALIAS) == first
    with pytest.raises(ValueError, match="has no alias 'staging'"):
        rollback(client, NAME, "staging")


def test_a_holder_that_changed_while_the_gates_were_judged_is_compared_with_anew(client: Any) -> None:
    first, candidate, rival = versions(client, 0.5, 0.6, 0.9)
    promote(client, NAME, ALIAS, first, judge(client, first))
    asked: list[str | None] = []

    def slow(holder: str | None) -> Sequence[Verdict]:
        asked.append(holder)
        verdicts = judge(client, candidate)(holder)
        if len(asked) == 1:  # while this one is being judged, a better one gets in
            promote(client, NAME, ALIAS, rival, judge(client, rival))
        return verdicts

    assert not promote(client, NAME, ALIAS, candidate, slow).promoted
    assert asked == [first, rival] and holder_of(client, NAME, ALIAS) == rival


def promote_all(database: str, start: Any, numbers: list[str]) -> None:
    client = connect(database).MlflowClient()
    start.wait()
    for number in numbers:
        promote(client, NAME, ALIAS, number, judge(client, number))


def test_two_processes_at_once_leave_the_best_and_an_unbroken_chain(client: Any, database: str) -> None:
    accuracies = [0.3, 0.8, 0.1, 0.6, 0.9, 0.2, 0.7, 0.4]
    numbers = versions(client, *accuracies)
    server = fork_server()
    start = server.Event()
    workers = [server.Process(target=promote_all, args=(database, start, numbers[half::2])) for half in (0, 1)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert holder_of(client, NAME, ALIAS) == numbers[accuracies.index(0.9)]
    held = [holder_of(client, NAME, ALIAS)]
    while held[-1] and (before := client.get_model_version(NAME, held[-1]).tags["champion.replaced"]):
        held.append(before)
    scores = [accuracies[numbers.index(str(number))] for number in held]
    assert scores == sorted(scores, reverse=True)  # nobody was ever replaced by a worse one
    assert [model.name for model in client.search_registered_models()] == [NAME]  # no lock is left


def test_an_unknown_model_is_answered_with_those_there_are(client: Any) -> None:
    versions(client, 0.5)
    with pytest.raises(ValueError, match=r"no registered model 'amr' at .*: known are arm"):
        show(client, "amr")


def test_an_unknown_alias_is_answered_with_those_there_are(client: Any, database: str) -> None:
    (version,) = versions(client, 0.5)
    with pytest.raises(ValueError, match="arm has no alias 'champoin': it has no alias, so give models:/NAME/VERSION"):
        version_of("models:/arm@champoin", database)
    client.set_registered_model_alias(NAME, ALIAS, version)
    assert version_of(f"models:/{NAME}@{ALIAS}", database) == f"models:/{NAME}/{version}"
    with pytest.raises(ValueError, match="arm has no alias 'champoin': it has @champion"):
        version_of("models:/arm@champoin", database)
    with pytest.raises(ValueError, match="no registered model 'amr'"):
        version_of("models:/amr@champion", database)


def test_a_version_that_was_deleted_is_not_returned_to(client: Any) -> None:
    first, second = versions(client, 0.5, 0.6)
    for version in (first, second):
        promote(client, NAME, ALIAS, version, judge(client, version))
    client.delete_model_version(NAME, first)
    with pytest.raises(ValueError, match=f"version {second}, and version {first}, .* has been deleted"):
        rollback(client, NAME, ALIAS)
    assert holder_of(client, NAME, ALIAS) == second
    client.delete_model_version(NAME, second)
    with pytest.raises(ValueError, match="has no alias 'champion': nothing to roll back"):
        rollback(client, NAME, ALIAS)
    with pytest.raises(ValueError, match="no registered model 'amr'"):
        rollback(client, "amr", ALIAS)


def test_a_version_whose_run_was_deleted_for_good_is_still_shown(client: Any) -> None:
    versions(client, 0.5)
    client.create_model_version(NAME, "file:///nowhere", run_id="f" * 32)
    assert [version.run for version in show(client, NAME).versions] == [None, None]


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@b", "..", "it's", "arm.champion.lock"])
def test_a_name_that_no_model_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"--name .* cannot name a model"):
        require_names(name, None)


@pytest.mark.parametrize("alias", ["", "latest", "LATEST", "v1", "V12", "a b", "a/b", "é"])
def test_an_alias_that_mlflow_does_not_take_is_refused(alias: str) -> None:
    with pytest.raises(ValueError, match=r"--alias .* cannot be an alias"):
        require_names("arm", alias)
    require_names("My arm_2.0+x", "v1-candidate")


def test_the_command_rolls_back_and_fails_in_one_sentence(
    client: Any, database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from pipelines.cli import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    first, second = versions(client, 0.5, 0.6)
    for version in (first, second):
        promote(client, NAME, ALIAS, version, judge(client, version))
    assert main(["registry", "rollback", NAME]) == 0
    assert "back from version 2 to version 1" in capsys.readouterr().out
    assert main(["registry", "rollback", NAME]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
