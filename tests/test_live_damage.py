"""Databases of LIVE that were damaged, cut, swapped or put back: refused and kept, or found out by the exchange.

What opens must be what was written: the same orders, the same desk, the same stock. A copy that lacks orders which the
exchange has never sends anything until the owner has looked.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import lunobiz
from lunobiz import AuditBroken, CauseKind, Mode, OrderJournal, Redactor, Store, TradingState
from sessions import SHAPES, Run
from test_live_disk import Play

ORDERS_BEFORE, ORDERS_AFTER = 6, 11  # of the older copy, and of the newest


class Crashed(NamedTuple):
    """A session that was killed: its exchange, its files as they lay there, and an older copy of them."""

    play: Play
    files: Path
    older: Path

    def put_back(self, source: Path, names: tuple[str, ...] = ("live.db", "live.db-wal")) -> None:
        """Lay these files where the program looks."""
        home = self.play.database.parent
        for name in ("live.db", "live.db-wal", "live.db-shm"):
            (home / name).unlink(missing_ok=True)
        for name in names:
            if (source / name).exists():
                shutil.copy(source / name, home / name)


def look_until(play: Play, run: Run, orders: int) -> None:
    """Trade until so many orders went out."""
    for _ in range(400):
        if len(play.posted()) >= orders:
            return
        run.look()
    raise AssertionError("too few orders")


def copy_files(play: Play, to: Path) -> Path:
    """The files as a power cut leaves them, what is not merged yet included."""
    to.mkdir()
    for name in ("live.db", "live.db-wal"):
        shutil.copy(play.database.with_name(name), to / name)
    return to


@pytest.fixture
def crashed(tmp_path: Path) -> Crashed:
    """Six orders, a copy, five more orders, a crash."""
    play = Play(tmp_path / "home")
    run = play.start()
    look_until(play, run, ORDERS_BEFORE)
    older = copy_files(play, tmp_path / "older")
    look_until(play, run, ORDERS_AFTER)
    files = copy_files(play, tmp_path / "files")
    run.drop()
    return Crashed(play, files, older)


def known(store: Store) -> tuple[object, ...]:
    """All that LIVE reads of its past."""
    candles = tuple(store.candles(pair, 3600).tobytes() for pair in SHAPES)
    return (OrderJournal(store).orders(), store.last_desk(Mode.LIVE), store.results("baseline", 9),
            store.rows_of("trades", Mode.LIVE), store.is_session_open(), candles)


def opened(path: Path) -> tuple[object, ...] | str:
    """What a database holds, or why it was refused; any other error is a fault of the program."""
    try:
        store = Store(path, Redactor([]), "OFF")
    except AuditBroken as error:
        return str(error)
    try:
        return known(store)
    except AuditBroken as error:
        return str(error)
    finally:
        with contextlib.suppress(AuditBroken):
            store.close()


def whole(crashed: Crashed, folder: Path) -> Path:
    """The crashed session's database in one file."""
    folder.mkdir()
    for name in ("live.db", "live.db-wal"):
        shutil.copy(crashed.files / name, folder / name)
    with contextlib.closing(sqlite3.connect(folder / "live.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder / "live.db"


# ---- bytes that are not as they were -------------------------------------------------------------------


def flips(crashed: Crashed, tmp_path: Path, count: int, seed: int) -> Counter[str]:
    """Open the database so often, each time with something else wrong in it."""
    sound = whole(crashed, tmp_path / "sound")
    data, rng, seen = sound.read_bytes(), random.Random(seed), Counter[str]()
    truth = opened(sound)
    assert isinstance(truth, tuple)
    folder = tmp_path / "damaged"
    for number in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        harm = bytearray(data)
        kind = ("byte", "bit", "page", "cut", "noise")[number % 5]
        at = rng.randrange(len(data))
        page = at // 4096 * 4096
        if kind in ("byte", "bit"):
            harm[at] ^= rng.randrange(1, 256) if kind == "byte" else 1 << rng.randrange(8)
        elif kind == "cut":
            del harm[at:]
        else:
            harm[page : page + 4096] = bytes(4096) if kind == "page" else rng.randbytes(4096)
        path = folder / "live.db"
        path.write_bytes(harm)
        found = opened(path)
        seen["harmless" if found == truth else "refused" if isinstance(found, str) else "believed"] += 1
        assert found == truth or isinstance(found, str), (number, kind, at)
        if isinstance(found, str):
            assert str(path) in found and ": " in found, found
    return seen


def test_damage_is_refused_or_does_not_matter(crashed: Crashed, tmp_path: Path) -> None:
    seen = flips(crashed, tmp_path, 150, 7)
    assert seen["refused"] > 90 and seen["believed"] == 0


@pytest.mark.long
def test_a_thousand_damages(crashed: Crashed, tmp_path: Path) -> None:
    """And one more thousand, a few minutes: pytest -m long -k thousand_damages"""
    seen = flips(crashed, tmp_path, 2_000, 8)
    assert seen["refused"] > 1_200 and seen["believed"] == 0


def overwritten(text: bytes) -> Callable[[Path], None]:
    """Another file under this name."""
    return lambda path: (path.write_bytes(text), None)[1]


def foreign(path: Path) -> None:
    """Another program's database."""
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (text)")
        db.commit()


def executed(script: str) -> Callable[[Path], None]:
    """A change made by hand."""
    def change(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(script)

    return change


def as_folder(path: Path) -> None:
    """A folder where the file should be."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (overwritten(b""), "is empty, damaged or not a database"),
    "a text": (overwritten(b"orders\n" * 999), "is empty, damaged or not a database"),
    "a head only": (overwritten(b"SQLite format 3\0"), "damaged"),
    "a head and noise": (overwritten(b"SQLite format 3\0" + bytes(range(256)) * 64), "damaged"),
    "a folder": (as_folder, "cannot be"),
    "of another program": (foreign, "is not a LunoBiz database"),
    "newer": (executed("PRAGMA user_version = 99"), "was written by a newer LunoBiz (version 99)"),
    "a table missing": (executed("DROP TABLE answers"), "is damaged"),
    "a guard missing": (executed("DROP TRIGGER sendings_stay"), "is damaged"),
    "an order rewritten": (executed("DROP TRIGGER answers_stay; UPDATE answers SET state = 'rejected';"
                                    "CREATE TRIGGER answers_stay BEFORE UPDATE ON answers"
                                    " BEGIN SELECT RAISE(ABORT, 'audit'); END;"), "is damaged in its table answers"),
    "an order forgotten": (executed("DROP TRIGGER sendings_grow; DELETE FROM sendings WHERE rowid = 3;"
                                    "CREATE TRIGGER sendings_grow BEFORE DELETE ON sendings"
                                    " BEGIN SELECT RAISE(ABORT, 'audit'); END;"), "is damaged in its table sendings"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_another_file_in_its_place_is_refused_and_kept(
    crashed: Crashed, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a LIVE session and by the whole program, which ends with 4 and a sentence; nothing is sent or changed."""
    harm, words = DAMAGES[name]
    path = whole(crashed, tmp_path / "whole")
    harm(path)
    before = path.read_bytes() if path.is_file() else b""
    posts = crashed.play.exchange.calls.total()
    with pytest.raises(AuditBroken, match=r"live\.db") as told:
        Run(crashed.play.exchange, crashed.play.clock, path)
    assert words in str(told.value)
    assert crashed.play.exchange.calls.total() == posts
    home = tmp_path / "program"
    home.mkdir()
    path.rename(home / "demo.db")
    assert lunobiz.main(["--headless", "--demo", "--cycles", "1", "--home", str(home)]) == 4
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and "internal fault" not in said
    assert not before or (home / "demo.db").read_bytes() == before


def test_a_missing_database_whose_rest_is_there_is_not_made_anew(crashed: Crashed) -> None:
    crashed.put_back(crashed.files, ("live.db-wal",))
    with pytest.raises(AuditBroken, match=r"is missing but live\.db-wal is there"):
        crashed.play.start()
    assert not crashed.play.database.exists()


# ---- a past that is not the newest ----------------------------------------------------------------------


def assert_nothing_is_sent(crashed: Crashed) -> Run:
    """A start on what lies there halts by what the exchange has, and sends nothing for three hours."""
    play = crashed.play
    before = play.posted()
    run = play.start()
    run.look(15)
    assert play.posted() == before, "an order went out on a past that is not the newest"
    assert run.engine.desk.state is TradingState.HALTED
    assert CauseKind.DOUBLE_USE in {c.kind for c in run.engine.desk.causes}
    words = " ".join(banner.text for banner in run.live.findings())
    assert "restored" in words or "Is a second copy using" in words
    return run


@pytest.mark.parametrize("are_over", [False, True])
def test_an_older_copy_put_back_sends_nothing(crashed: Crashed, are_over: bool) -> None:
    """It lacks five orders of those at the exchange, some of which may still be open there, or none."""
    crashed.put_back(crashed.older)
    for order in crashed.play.exchange.accounts.orders.values() if are_over else ():
        if order.status != "COMPLETE":
            crashed.play.exchange.accounts.cancel(order.order_id, crashed.play.clock.now_ms())
    assert_nothing_is_sent(crashed).drop()


def test_after_an_older_copy_was_accepted_no_id_comes_twice(crashed: Crashed) -> None:
    """The owner has looked and lifts the halt: new orders have ids that the exchange has never seen."""
    crashed.put_back(crashed.older)
    play, run = crashed.play, assert_nothing_is_sent(crashed)
    for order in play.exchange.accounts.orders.values():  # the owner has taken off what the bot does not know
        if order.client_id not in run.sent and order.status != "COMPLETE":
            play.exchange.accounts.cancel(order.order_id, play.clock.now_ms())
    run.look(2)
    assert run.engine.resolve_halt(play.clock.now_ms()) == ""
    before = set(play.posted())
    look_until(play, run, ORDERS_AFTER + 3)
    run.look(20)
    assert len(set(play.posted())) == len(play.posted()) == play.exchange.calls["POST /api/1/postorder"]
    assert all(o.state is not lunobiz.OrderState.UNKNOWN for o in run.sent.values())
    assert set(play.posted()) - before <= set(run.sent)
    assert run.engine.desk.state is TradingState.READY
    run.close()
    again = play.start()  # what was accepted once is not asked again
    again.look(10)
    assert again.engine.desk.state is TradingState.READY and not again.live.lost
    again.close()


def test_what_was_sold_since_the_copy_is_not_sold_once_more(tmp_path: Path) -> None:
    """The owner has the same coins himself: after his word the position is off the desk and his coins stay his."""
    play = Play(tmp_path / "home")
    run = play.start()
    own = {pair[:3]: 7 for pair in SHAPES}
    for asset in own:
        play.exchange.accounts.total[asset] += own[asset]
    run.look(3)
    assert run.engine.resolve_halt(play.clock.now_ms()) == ""
    look_until(play, run, ORDERS_BEFORE)
    held = {p.pair: p.opened_ms for p in run.engine.desk.positions}
    assert held
    older = copy_files(play, tmp_path / "older")
    for _ in range(400):
        if not run.engine.desk.positions:
            break
        run.look()
    run.drop()
    crashed = Crashed(play, older, older)
    crashed.put_back(older)
    run = assert_nothing_is_sent(crashed)
    assert held.items() <= {p.pair: p.opened_ms for p in run.engine.desk.positions}.items()
    for order in play.exchange.accounts.orders.values():
        if order.client_id not in run.sent and order.status != "COMPLETE":
            play.exchange.accounts.cancel(order.order_id, play.clock.now_ms())
    run.look(2)
    assert run.engine.resolve_halt(play.clock.now_ms()) == ""
    assert all(p.volume < 1e-4 for p in run.engine.desk.positions)  # less than a lot is left
    told = [e.text for e in run.events if "less in the position" in e.text]
    assert len(told) == len(held)
    run.look(3)
    assert not {(p.pair, p.opened_ms) for p in run.engine.desk.positions} & set(held.items())
    run.look(60)
    assert run.engine.desk.state is TradingState.READY
    for asset, count in own.items():
        bots = sum(p.volume for p in run.engine.desk.positions if p.pair.startswith(asset))
        assert float(play.exchange.accounts.total[asset]) >= count + bots - 1e-9
    run.close()


def test_a_database_without_its_wal_sends_nothing(crashed: Crashed) -> None:
    """The last commits were only there."""
    crashed.put_back(crashed.files, ("live.db",))
    path = crashed.play.database
    if isinstance(opened(path), str):
        return  # refused
    assert_nothing_is_sent(crashed).drop()


def test_an_empty_new_database_on_an_account_in_use_sends_nothing(crashed: Crashed) -> None:
    """The owner has moved the file away, though orders of this installation are at the exchange."""
    crashed.put_back(crashed.files, ())
    assert_nothing_is_sent(crashed).drop()


def test_the_newest_copy_put_back_goes_on(crashed: Crashed) -> None:
    crashed.put_back(crashed.files)
    assert crashed.play.settle() == []


def cuts(crashed: Crashed, tmp_path: Path, step: int) -> Counter[str]:
    """Cut the WAL after every so many bytes, as a power cut does: what is there is a beginning of what was."""
    wal = (crashed.files / "live.db-wal").read_bytes()
    complete = opened(whole(crashed, tmp_path / "all"))
    assert isinstance(complete, tuple)
    sent: list[str] = list(complete[0])
    seen, folder = Counter[str](), tmp_path / "cut"
    for size in range(0, len(wal), step):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if (crashed.files / "live.db").exists():
            shutil.copy(crashed.files / "live.db", folder / "live.db")
        (folder / "live.db-wal").write_bytes(wal[:size])
        found = opened(folder / "live.db")
        assert isinstance(found, tuple), (size, found)
        orders: list[str] = list(found[0])
        assert orders == sent[: len(orders)], size
        for order_id, order in found[0].items():  # type: ignore[attr-defined]
            assert order.filled.base <= complete[0][order_id].filled.base  # type: ignore[index]
        seen["whole" if len(orders) == len(sent) else "a beginning"] += 1
    return seen


def test_a_wal_that_was_cut_is_a_beginning(crashed: Crashed, tmp_path: Path) -> None:
    seen = cuts(crashed, tmp_path, 99_700)
    assert seen["a beginning"] > 1


@pytest.mark.long
def test_a_wal_cut_at_every_997th_byte(crashed: Crashed, tmp_path: Path) -> None:
    """Some minutes: pytest -m long -k 997th"""
    assert cuts(crashed, tmp_path, 997)["a beginning"] > 100


# ---- another version ------------------------------------------------------------------------------------


def version_of(path: Path) -> int:
    """The version a database says it has."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_an_older_version_is_led_on_in_one_step_and_then_trades(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that breaks off leaves the older version as it was; the next start leads it on."""
    play, every = Play(tmp_path / "home"), lunobiz.MIGRATIONS
    with contextlib.closing(sqlite3.connect(play.database, isolation_level=None)) as db:
        for script in every[:2]:
            db.executescript(script())
    assert version_of(play.database) == 2
    with monkeypatch.context() as broken:
        torn = every[2]().replace("COMMIT;", "SELECT no_such_function();")
        broken.setattr(lunobiz, "MIGRATIONS", (*every[:2], lambda: torn))
        with pytest.raises(AuditBroken, match=r"live\.db"):
            Store(play.database, Redactor([]))
    assert version_of(play.database) == 2
    run = play.start()
    look_until(play, run, 2)
    assert version_of(play.database) == len(every)
    run.close()
