"""Work that hangs: nobody else waits for it, threads do not accumulate, and what answers too late changes nothing."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from threading import Event, get_ident
from uuid import uuid4

import pytest

from plateway.errors import Denied, PlatewayError, Unavailable
from plateway.isolation import Beat, run_apart

SHORT, LONG = timedelta(milliseconds=50), timedelta(seconds=60)


@pytest.fixture
def what() -> str:
    """Work that no other test does."""
    return f"work {uuid4().hex[:8]}"


@pytest.fixture
def gate() -> Iterator[Event]:
    """What hangs, hangs here; nothing is left hanging."""
    gate = Event()
    yield gate
    gate.set()


def hang(gate: Event, _beat: Beat) -> str:
    assert gate.wait(60)
    return "answered"


def threads(what: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith(what)]


def test_each_result_is_returned_by_its_name(what: str) -> None:
    """Each runs in a thread of its own, at once."""
    both = threading.Barrier(2)

    def act(_beat: Beat) -> int:
        both.wait(60)
        return get_ident()

    found = run_apart(what, {"b": act, "a": act}, patience=LONG)
    assert list(found) == ["b", "a"]
    assert len({*found.values(), get_ident()}) == 3


def test_what_hangs_holds_up_nobody(what: str, gate: Event) -> None:
    """Its result is an error, the others' are theirs."""
    acts: dict[str, Callable[[Beat], str]] = {"hung": partial(hang, gate), "well": lambda _: "well"}
    found = run_apart(what, acts, patience=SHORT)
    assert isinstance(found["hung"], Unavailable)
    assert found["well"] == "well"


def test_hung_threads_do_not_accumulate(what: str, gate: Event) -> None:
    """As long as it hangs no second thread is started, and nobody waits again; afterwards it is tried again."""
    met: list[str] = []

    def act(beat: Beat) -> str:
        met.append("begun")
        return hang(gate, beat)

    assert isinstance(run_apart(what, {"disk": act}, patience=SHORT)["disk"], Unavailable)
    for _ in range(20):
        assert isinstance(run_apart(what, {"disk": act}, patience=LONG)["disk"], Unavailable)
    assert (len(threads(what)), met) == (1, ["begun"])
    (thread,) = threads(what)
    gate.set()
    thread.join(60)
    assert run_apart(what, {"disk": act}, patience=LONG) == {"disk": "answered"}


def test_other_work_of_the_same_name_is_tried(what: str, gate: Event) -> None:
    """A disk that hangs for one verb may answer another."""
    run_apart(what, {"disk": partial(hang, gate)}, patience=SHORT)
    assert run_apart(f"{what} too", {"disk": lambda _: 1}, patience=LONG) == {"disk": 1}


def test_what_answers_too_late_does_nothing_more(what: str, gate: Event) -> None:
    """Its next step fails before it has an effect."""
    done: list[str] = []

    def act(beat: Beat) -> None:
        hang(gate, beat)
        beat()
        done.append("effect")

    assert isinstance(run_apart(what, {"disk": act}, patience=SHORT)["disk"], Unavailable)
    (thread,) = threads(what)
    gate.set()
    thread.join(60)
    assert done == []


def test_what_is_slow_and_moves_is_waited_for(what: str) -> None:
    """Progress counts, not the time that all of it takes."""
    tick = Event()

    def act(beat: Beat) -> str:
        for _ in range(20):
            tick.wait(0.02)
            beat()
        return "done"

    assert run_apart(what, {"disk": act}, patience=timedelta(seconds=0.2)) == {"disk": "done"}


@pytest.mark.parametrize(
    ("error", "rises"), [(Denied("no"), False), (ValueError("no"), True), (KeyboardInterrupt(), True)]
)
def test_errors_of_ours_are_results(what: str, error: BaseException, rises: bool) -> None:
    """Others are mistakes, and rise where the work was asked for."""

    def fail(_beat: Beat) -> None:
        raise error

    if rises:
        with pytest.raises(type(error)):
            run_apart(what, {"disk": fail}, patience=LONG)
    else:
        assert run_apart(what, {"disk": fail}, patience=LONG) == {"disk": error}


def test_no_work_is_no_results(what: str) -> None:
    """An empty bench."""
    acts: dict[str, Callable[[Beat], None]] = {}
    found: dict[str, PlatewayError | None] = run_apart(what, acts)
    assert found == {}
