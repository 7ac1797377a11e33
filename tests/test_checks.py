"""The checks of LIVE with small amounts: what was ticked is kept, told again, and never more than there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import lunobiz as lb
from lunobiz import LIVE_CHECKS, AskChecks, ChecksDialog, ChecksTold, Mode, Session, Worker, checks_from, open_engine
from screen import a_screen  # noqa: F401  (a fixture, `screen`)
from test_worker import Listener

PATIENCE_S = 60.0


@pytest.mark.parametrize(
    ("payload", "done"),
    [
        ('{"done": [0, 2]}', {0, 2}), ('{"done": []}', set()), ("", set()), ("{}", set()), ("[]", set()),
        ('{"done": [99, -1, 1]}', {1}), ('{"done": "all"}', set()), ("null", set()),
    ],
)
def test_what_cannot_be_read_was_not_done(payload: str, done: set[int]) -> None:
    assert checks_from(payload) == ChecksTold(frozenset(done))


def test_ticks_are_kept_told_again_and_stand_in_the_audit(tmp_path: Path) -> None:
    session = Session(Mode.DEMO, lb.parse_settings({}), tmp_path, {}, 6, "", 0.0, "OFF")
    worker = Worker(lambda listen: open_engine(session, listen))
    worker.start()
    try:
        listener = Listener(worker)
        worker.send(AskChecks())
        assert listener.wait(lambda e: isinstance(e, ChecksTold)) == ChecksTold()
        worker.send(ChecksTold(frozenset((0, 3))))
        line = listener.wait(lambda e: isinstance(e, lb.LogLine) and e.kind == "checks")
        assert isinstance(line, lb.LogLine) and f"2 of {len(LIVE_CHECKS)} done" in line.text
        worker.send(AskChecks())
        assert listener.wait(lambda e: isinstance(e, ChecksTold)) == ChecksTold(frozenset((0, 3)))
    finally:
        worker.send(lb.Shutdown())
        assert worker.join(PATIENCE_S)


@pytest.fixture
def look(screen: None) -> Iterator[lb.Look]:
    root = lb.open_root("test", is_dark=True)
    yield lb.Look(root)
    root.destroy()


@pytest.mark.parametrize("answer", ["keep", ""])
def test_the_dialog_gives_its_ticks_only_when_they_are_to_be_kept(
    look: lb.Look, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    asked = ChecksDialog(look, ChecksTold(frozenset((1,))))
    assert [bool(t.get()) for t in asked.ticks] == [n == 1 for n in range(len(LIVE_CHECKS))]
    asked.ticks[4].set(True)
    monkeypatch.setattr(lb.Dialog, "show", lambda dialog, focus: answer)
    assert asked.ask() == (ChecksTold(frozenset((1, 4))) if answer else None)
