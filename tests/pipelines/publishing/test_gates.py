"""Conditions on metrics: what they say, what they refuse, and that nothing but a better number passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.report import ActionScore, DimensionScores
from pipelines.publishing.gates import Gate, judge_all, metrics_of
from pipelines.publishing.registration import PromotionPolicy
from tests.support.reports import episode_report, interval, labels, web_report

REPORT = episode_report(
    token_accuracy=interval(0.5, 0.4, 0.6),
    per_dimension={
        "world_vector_x": DimensionScores(
            unit="m", policies={"policy": ActionScore(token_accuracy=0.5, mean_absolute_error=0.01)}
        )
    },
)

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def test_metrics_are_paths_into_the_report_and_an_interval_is_its_mean() -> None:
    metrics = metrics_of(REPORT)
    assert metrics["token_accuracy"] == metrics["token_accuracy.mean"] == 0.5
    assert metrics["token_accuracy.low"] == 0.4 and metrics["episodes"] == 24
    assert metrics["per_dimension.world_vector_x.policy.mean_absolute_error"] == 0.01
    assert not any("unit" in path or path == "store" for path in metrics)


@given(value=finite, bound=finite)
def test_a_number_is_compared_as_python_compares(value: float, bound: float) -> None:
    for relation, expected in {
        "<=": value <= bound,
        ">=": value >= bound,
        "<": value < bound,
        ">": value > bound,
    }.items():
        gate = Gate.parse(f"loss{relation}{bound!r}")
        assert gate.judge({"loss": value}, None, holder=None).passed == expected


@given(mine=finite, champion=finite)
def test_only_what_is_not_worse_than_the_champion_passes(mine: float, champion: float) -> None:
    gate = Gate.parse("token_accuracy >= champion")
    verdict = gate.judge({"token_accuracy": mine}, {"token_accuracy": champion}, holder="3")
    assert verdict.passed == (mine >= champion) and "version 3" in verdict.text


@pytest.mark.parametrize("condition", ["a>=champion+0.1", "a >= champion + 0.1", "a>0.59", "a>=.6", "a>=6e-1"])
def test_every_way_of_writing_it(condition: str) -> None:
    gate = Gate.parse(condition)
    passed = [gate.judge({"a": value}, {"a": 0.5}, holder="1").passed for value in (0.55, 0.65)]
    assert passed == [False, True]


def test_without_a_champion_there_is_none_to_beat() -> None:
    assert Gate.parse("a>=champion").judge({"a": 0.0}, None, holder=None).passed
    assert not Gate.parse("a>=1").judge({"a": 0.0}, None, holder=None).passed


@pytest.mark.parametrize("relation", ["<=", ">=", "<", ">"])
def test_what_is_no_number_passes_nothing(relation: str) -> None:
    assert not Gate.parse(f"a{relation}0").judge({"a": math.nan}, None, holder=None).passed
    assert not Gate.parse(f"a{relation}champion").judge({"a": 1.0}, {"a": math.nan}, holder="1").passed
    assert not Gate.parse(f"a{relation}champion").judge({"a": math.nan}, None, holder=None).passed


@pytest.mark.parametrize("text", ["", "a", "a=1", "a==1", "a>=", "a>=best", ">=1", "a>=1 and b>=2", "a>=champion*2"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition: write METRIC>=NUMBER"):
        Gate.parse(text)


def test_a_mistyped_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no metric 'token_acuracy': did you mean 'token_accuracy'"):
        judge_all([Gate.parse("token_acuracy>=0")], {"store": REPORT}, None, holder=None)


def test_a_condition_is_judged_where_its_metric_is() -> None:
    stores = {"robots": REPORT, "web": web_report(0.9)}
    gates = [Gate.parse(text) for text in ("token_accuracy>=champion", "vqa_accuracy>=champion")]
    verdicts = judge_all(gates, stores, stores, holder="1")
    assert [verdict.text.split()[0] for verdict in verdicts] == ["token_accuracy", "vqa_accuracy"]
    assert all(verdict.passed for verdict in verdicts)


def test_a_condition_holds_on_every_store_or_not_at_all() -> None:
    better = episode_report(token_accuracy=interval(0.9))
    verdicts = judge_all([Gate.parse("token_accuracy>=0.6")], {"a": better, "b": REPORT}, None, holder=None)
    assert [verdict.passed for verdict in verdicts] == [True, False]


def test_a_token_metric_of_other_bins_than_the_champions_is_refused_in_one_sentence() -> None:
    mine = episode_report(labels=labels(bins=256), scaled_error=interval(0.1))
    theirs = episode_report(labels=labels(bins=16), scaled_error=interval(0.2))
    for metric in ("token_accuracy", "token_accuracy.low"):
        with pytest.raises(ValueError, match=r"version 3 \(16 bins.* the new model \(256 bins.*compare scaled_error"):
            judge_all([Gate.parse(f"{metric}>=champion")], {"s": mine}, {"s": theirs}, holder="3")
    (verdict,) = judge_all([Gate.parse("scaled_error<=champion")], {"s": mine}, {"s": theirs}, holder="3")
    assert verdict.passed
    (alone,) = judge_all([Gate.parse("token_accuracy>=0.4")], {"s": mine}, None, holder=None)
    assert alone.passed, "a number is judged without comparing"


def test_the_default_gate_on_image_text_examples_alone_names_one_that_works() -> None:
    with pytest.raises(ValueError, match=r"image-text examples: .*--gate 'vqa_accuracy>=champion'"):
        judge_all([Gate.parse("scaled_error<=champion")], {"web": web_report(0.9)}, None, holder=None)


def test_without_gates_data_alone_mean_not_worse_than_the_champion() -> None:
    (gate,) = PromotionPolicy.of("champion", (), ("stores",)).gates
    assert (gate.metric, gate.relation, gate.bound) == ("scaled_error", "<=", 0) and gate.against_champion
    assert PromotionPolicy.of("champion", (), ()).gates == ()


def test_a_verdict_says_its_numbers_and_whose_they_are() -> None:
    def text(condition: str, mine: float, champion: float | None) -> str:
        theirs = None if champion is None else {"a": champion}
        return Gate.parse(condition).judge({"a": mine}, theirs, holder="3").text

    assert text("a>=0.5", 0.25, 0.1) == "a 0.25 >= 0.5: failed"
    assert text("a<=champion", 0.25, 0.5) == "a 0.25 <= 0.5 (version 3): passed"
    assert text("a>champion-0.1", 0.25, 0.5) == "a 0.25 > 0.4 (version 3-0.1): failed"
    assert text("a>=champion", 0.25, None) == "a 0.25: passed, there is no champion yet"
    assert text("a>=champion", math.nan, None) == "a nan: failed"


def test_a_mistyped_end_of_an_interval_is_answered_too() -> None:
    with pytest.raises(ValueError, match=r"no metric 'token_accuracy.lo': did you mean 'token_accuracy.low'"):
        judge_all([Gate.parse("token_accuracy.lo>=0")], {"store": REPORT}, None, holder=None)


def test_a_metric_like_no_other_is_answered_with_all_names_but_the_ends_of_intervals() -> None:
    metrics = {"a.b": 1.0, "a": 0.5, "a.mean": 0.5, "a.low": 0.4, "a.high": 0.6}
    with pytest.raises(ValueError, match=r"^--gate: there is no metric 'speed_of_light': known are a, a\.b$"):
        Gate.parse("speed_of_light>=0").judge(metrics, None, holder=None)
