"""A disk that fails at each write of a LIVE session.

Every statement that writes is counted; a play is the same session with one of them failing in one way. No order may be
at the exchange that is not written, the session ends in words that name the cure, and the next start agrees with the
exchange to the last digit.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from types import TracebackType

import pytest

import lunobiz
from lunobiz import AuditBroken, DemoExchange, SteppedClock
from sessions import Run, disagreements, lively_exchange

WRITING = ("BEGIN", "INSERT", "DELETE", "UPDATE")
KINDS = {  # what SQLite says, and what the owner must read
    "full": (sqlite3.SQLITE_FULL, "the disk is full"),
    "io": (sqlite3.SQLITE_IOERR_FSYNC, "the disk reports an error"),
    "locked": (sqlite3.SQLITE_BUSY, "held by another program"),
    "io after": (sqlite3.SQLITE_IOERR_FSYNC, "the disk reports an error"),  # but what it says has been written
}
LOOKS, REST_LOOKS = 60, 30


class Disk:
    """Counts writes; from number `at` on so many fail, each in the same way."""

    def __init__(self) -> None:
        self.count, self.at, self.kind, self.times = 0, 0, "", 1
        self.failed: Counter[str] = Counter()

    def fail(self, at: int, kind: str, times: int = 1) -> None:
        """Plan trouble, counting from now."""
        self.count, self.at, self.kind, self.times = 0, at, kind, times

    def is_failing(self, what: str) -> bool:
        """One more write; True if it fails."""
        self.count += 1
        is_hit = self.at > 0 and self.at <= self.count < self.at + self.times
        self.failed[what] += is_hit
        return is_hit

    def error(self) -> sqlite3.OperationalError:
        """The error as SQLite raises it."""
        made = sqlite3.OperationalError("of the disk")
        made.sqlite_errorcode = KINDS[self.kind][0]
        return made


class BrittleLink(sqlite3.Connection):
    """A connection on such a disk."""

    disk: Disk

    def execute(self, sql: str, parameters: object = (), /) -> sqlite3.Cursor:
        """A statement; those that write may fail, before or after they did."""
        word = sql.split(maxsplit=1)[0].upper()
        is_hit = word in WRITING and self.disk.is_failing(" ".join(sql.split()[:3]))
        if is_hit and self.disk.kind != "io after":
            raise self.disk.error()
        made = super().execute(sql, parameters)  # type: ignore[arg-type]
        if is_hit:
            raise self.disk.error()
        return made

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,  # type: ignore[override]
                 trace: TracebackType | None) -> bool:
        """The end of a transaction: a commit may fail, or be done and not be told."""
        if kind is None and self.disk.is_failing("COMMIT"):
            self.commit() if self.disk.kind == "io after" else self.rollback()
            raise self.disk.error()
        return bool(super().__exit__(kind, error, trace))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """All databases lie on this disk from now on."""
    made = Disk()
    link = type("Link", (BrittleLink,), {"disk": made})

    def linked(path: Path, mode: str) -> sqlite3.Connection:
        address = f"{path.resolve().as_uri()}?mode={mode}"
        factory = link if mode == "rw" else sqlite3.Connection
        return sqlite3.connect(address, uri=True, timeout=0.1, isolation_level=None, factory=factory)

    monkeypatch.setattr(lunobiz, "_link", linked)
    return made


class Play:
    """One session on one copy of a database, with the exchange it belongs to."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        folder.mkdir(parents=True)
        self.clock = SteppedClock(0)
        self.exchange: DemoExchange = lively_exchange(self.clock, skipped_h=340)
        self.database = folder / "live.db"
        if template is not None:
            shutil.copy(template, self.database)
        self.run: Run | None = None

    def start(self) -> Run:
        """Open what is there."""
        self.run = Run(self.exchange, self.clock, self.database)
        return self.run

    def written(self) -> set[str]:
        """Client ids of orders that are on disk, read by another connection."""
        with contextlib.closing(sqlite3.connect(self.database)) as db:
            return {row[0] for row in db.execute("SELECT client_id FROM sendings")}

    def posted(self) -> list[str]:
        """Client ids at the exchange."""
        return [o.client_id for o in self.exchange.accounts.orders.values()]

    def settle(self) -> list[str]:
        """A start on a sound disk, and what does not agree after it."""
        run = self.start()
        run.rest(REST_LOOKS)
        wrong = disagreements(run, self.exchange)
        run.store.verify()
        run.close()
        return wrong


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with history and nothing else, so that plays begin quickly."""
    play = Play(tmp_path_factory.mktemp("template") / "made")
    play.start().close()
    return play.database


def count_writes(folder: Path, template: Path, disk: Disk) -> int:
    """How many writes the session of all plays has, from its opening on."""
    play = Play(folder, template)
    disk.fail(0, "")
    run = play.start()
    run.look(LOOKS)
    run.close()
    assert len(play.posted()) >= 8 and len(play.exchange.accounts.fills) >= 3
    return disk.count


def play_with(folder: Path, template: Path, disk: Disk, at: int, kind: str, times: int = 1) -> None:
    """The session with a disk that fails there; then a start on a sound one."""
    play = Play(folder, template)
    disk.fail(at, kind, times)
    told = ""
    try:
        run = play.start()
        run.look(LOOKS)
        run.close()
    except AuditBroken as error:
        told = str(error)
    disk.fail(0, "")
    assert KINDS[kind][1] in told and str(play.database) in told, (at, kind, told)
    assert set(play.posted()) <= play.written(), (at, kind)
    if play.run is not None:
        play.run.drop()
    assert play.settle() == [], (at, kind)
    posted = play.posted()
    assert len(posted) == len(set(posted)) == play.exchange.calls["POST /api/1/postorder"], (at, kind)
    shutil.rmtree(folder)


def plays(tmp_path: Path, template: Path, disk: Disk, every: int) -> int:
    """A play for each write in each way, or for every so manieth of them; how many there were."""
    total = count_writes(tmp_path / "count", template, disk)
    cases = [(at, kind) for at in range(1, total + 1) for kind in KINDS]
    chosen = cases[:: every] if every > 1 else cases
    for at, kind in chosen:
        play_with(tmp_path / f"{at}{kind}", template, disk, at, kind)
    return len(chosen)


def test_a_disk_that_fails_at_a_write(tmp_path: Path, template: Path, disk: Disk) -> None:
    """A part of all; the step is prime, so that all kinds and all tables come up."""
    assert plays(tmp_path, template, disk, 101) >= 10
    assert {"COMMIT", "BEGIN IMMEDIATE"} <= set(disk.failed)


@pytest.mark.parametrize(("word", "kind"), [("INSERT INTO sendings", "full"), ("INSERT INTO sendings", "io after"),
                                            ("INSERT INTO answers", "locked"), ("INSERT INTO ledger", "full")])
def test_a_disk_that_fails_where_it_matters_most(tmp_path: Path, template: Path, disk: Disk, word: str, kind: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """The intent, the answer, the ledger: the first three of each."""
    marks: list[int] = []
    is_failing = Disk.is_failing

    def noting(self: Disk, what: str) -> bool:
        found = is_failing(self, what)
        if what == word:
            marks.append(self.count)
        return found

    monkeypatch.setattr(Disk, "is_failing", noting)
    count_writes(tmp_path / "count", template, disk)
    assert len(marks) >= 3
    for at in list(marks[:3]):
        play_with(tmp_path / f"{at}", template, disk, at, kind)


def test_a_disk_that_stays_full(tmp_path: Path, template: Path, disk: Disk) -> None:
    """All writes fail from some point on: nothing more is sent, and the next start on a sound disk agrees."""
    total = count_writes(tmp_path / "count", template, disk)
    for at in range(total // 3, total, total // 3):
        play_with(tmp_path / f"{at}", template, disk, at, "full", 10**9)


@pytest.mark.long
def test_a_disk_that_fails_at_every_write(tmp_path: Path, template: Path, disk: Disk) -> None:
    """Each write in each of the four ways, about an hour: pytest -m long -k at_every_write"""
    assert plays(tmp_path, template, disk, 1) >= 1_000
