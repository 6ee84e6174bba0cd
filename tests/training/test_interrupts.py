"""SIGTERM means what Ctrl-C does; deferred, the first is only noted and the second is not waited for."""

import signal
import threading

import pytest

from harness.training.interrupts import deferred_interrupts, kill_as_interrupt

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def test_sigterm_interrupts() -> None:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    with pytest.raises(KeyboardInterrupt), kill_as_interrupt():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_interrupt_is_noted(number: signal.Signals) -> None:
    """The first signal raises nothing and can be asked for."""
    with deferred_interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()


def interrupt_twice() -> None:
    with deferred_interrupts():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_is_not_waited_for() -> None:
    """It raises at once."""
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


def test_the_handlers_of_before_are_back_afterwards() -> None:
    """Of both signals."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with deferred_interrupts(), kill_as_interrupt():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_another_thread_nothing_is_handled() -> None:
    """Python handles signals in the main thread alone."""
    seen = []

    def work() -> None:
        with deferred_interrupts() as interrupted, kill_as_interrupt():
            seen.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
