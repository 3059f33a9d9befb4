"""Signals end a command wherever they find it."""

from __future__ import annotations

import signal
import sys
import time
import weakref

import pytest

from cluster.interrupts import Stopped, raised_as_stopped


class _Signalled:
    """Gets a signal while Python calls its destructor."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped), (signal.SIGHUP, Stopped)]
)
def test_a_signal_in_a_destructor_is_not_lost(number: signal.Signals, kind: type[KeyboardInterrupt]) -> None:
    with raised_as_stopped(), pytest.raises(kind) as raised:
        _Signalled(number)
        time.sleep(5)
    assert not isinstance(raised.value, Stopped) or raised.value.number == number


class _Referred:
    pass


def test_a_signal_in_the_callback_of_a_weak_reference_is_not_lost() -> None:
    referred = _Referred()
    reference = weakref.ref(referred, lambda _: signal.raise_signal(signal.SIGTERM))
    with raised_as_stopped(), pytest.raises(Stopped):
        del referred
        time.sleep(5)
    assert reference() is None


def test_other_errors_in_a_destructor_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("broken")

    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(what.exc_value))
    before = sys.unraisablehook
    with raised_as_stopped():
        Broken()
    assert sys.unraisablehook is before and str(told[0]) == "broken"
