"""Random lives of the order path: orders, fills, faults, crashes, the owner and the clock in any order.

Each life enables a random half of the rules and ends with an honest line, on which everything must agree. The rules
called `deep_` do several steps by themselves, an entry with fills, an exit with its reconcile, as most random steps
alone are refused early. The same seed gives the same life.

Invariants of reliability.md, section 6, that `World` holds: at each order sent I1, I4, I7-I10, I12, I14, I15, I22; at
each protection that is taken off I21; after each look I1-I4, I15, I20-I22; when the faults are over I5, I6, I17 and, in
each tenth life, the seals of the audit (I17) and a search of all that was written for the key (I18). I16 is held here
for a second computer (`deep_stranger`), I19 by a test of its own. I13 is held as far as it concerns orders: no entry
while the desk has resumed from a pause and not yet reconciled; candles are test_candles and test_feed. Not here, as
there is one process and no PAPER session: I11 (test_main, test_engine), I16 on one computer (test_system).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from decimal import Decimal
from functools import partial

import pytest

import lunobiz
from chaos import (
    BALANCE,
    LISTS,
    LOOK,
    MARKETS,
    POST,
    STOP,
    Crash,
    Disk,
    Violation,
    World,
    changed,
    instead,
    not_served,
    quickened,
    raised,
)
from desks import with_limits
from lunobiz import Fault
from mutants import MUTANTS
from test_faults import A, B, cancel_own, filled_ten_times, hidden, new_fees, stale, swapped, times

STEPS_OF_A_LIFE = 60
QUICK_STEPS, LONG_STEPS, MUTANT_STEPS = 20_000, 1_000_000, 50_000
CAUGHT_SHARE = 0.9
PATHS = (POST, POST, POST, STOP, STOP, LOOK, LOOK, BALANCE, LISTS, "/")
KINDS = ("down", "down_after", "timeout", "timeout_after", "late", "twice", "500", "500_after", "429", "429_after",
         "garbage_after", "wrong_shape_after", "truncated", "truncated_after", "ErrInternal_after", "401",
         "ErrDeadlineExceeded", "ErrInsufficientBalance", "ErrOrderCanceled",
         "ErrUnderMaintenance", "ErrCannotStopUnknownOrNonPendingOrder", "ErrOrderNotFound")  # fmt: skip


class Life:
    """One random life; `steps` counts rules and looks."""

    def __init__(self, disk: Disk, seed: int) -> None:
        self.rng, self.steps = random.Random(seed), 0
        self.world = World(disk, is_thorough=seed % 10 == 0)
        if self.rng.random() < 0.3:
            new_fees(self.world)  # the program learns of it with its first fill
        if self.rng.random() < 0.3:
            self.world.settings = with_limits(min_volume_24h=0.0, daily_loss_cap=0.0004, weekly_loss_cap=0.001)
            self.world.restart()
        rules = (self.enter, self.deep_entry, self.deep_exit, self.leave, self.rise, self.fall, self.fill, self.wait,
                 self.fault, self.fault, self.trick, self.crash, self.crash, self.disk, self.kill, self.jump,
                 self.sleep, self.restart, self.owner_cancels, self.owner_moves, self.owner_sells, self.stranger,
                 self.toggle, self.resolve, self.storm, self.lock, self.new_fees, self.deep_trail, self.deep_silence,
                 self.deep_kill, self.deep_stranger, self.deep_lie, self.deep_answer, self.deep_crash)  # fmt: skip
        self.rules = [r for r in rules if self.rng.random() < 0.5] + [self.deep_trail, self.deep_entry, self.deep_exit]

    def run(self, steps: int) -> int:
        """So many rules, then the end."""
        for _ in range(steps):
            self.rng.choice(self.rules)()
            self.steps += 1
            if self.rng.random() < 0.6:
                self.look()
        self.world.finish()
        return self.steps

    def look(self, *names: str, leave: tuple[str, ...] = (), is_due: bool = False) -> None:
        """One look, some seconds later."""
        self.world.beat(self.rng.choice((1.0, 5.0, 5.0, 11.0, 31.0)), names, leave, is_due)
        self.steps += 1

    def enter(self) -> None:
        """Wishes to buy."""
        self.look(*self.rng.choice(((A,), (B,), (A, B))))

    def deep_entry(self) -> None:
        """An entry, filled in two parts, and its protection."""
        self.look(A, B)
        self.look()
        for volume in (self.rng.choice((0.01, 3.0, 6.0)), 1000.0):
            self.world.fill(self.rng.choice((A, A, B)), volume)
            self.look()
        self.look()

    def deep_exit(self) -> None:
        """A sale, and time for all that follows."""
        self.look(leave=(A, B))
        for _ in range(3):
            self.look()
        self.world.beat(31.0)

    def deep_trail(self) -> None:
        """A position whose stop follows the price, and now and then answers of before."""
        if self.rng.random() < 0.5:
            stale(LOOK)(self.world)
        self.deep_entry()
        if self.rng.random() < 0.5:
            self.world.faults(Fault(self.rng.choice(("down", "500", "timeout_after")), STOP))
        self.rise()
        for _ in range(3):
            self.look()

    def deep_silence(self) -> None:
        """An order without an answer, which comes to light much later, while somebody sets the clock."""
        seconds, is_listed = self.rng.choice(((20.0, False), (40.0, False), (150.0, True)))
        hidden(seconds, is_listed, self.rng.choice((0, 7_200_000, -7_200_000)))(self.world)
        self.world.faults(Fault(self.rng.choice(("down_after", "timeout_after", "twice")), POST, 1, 0.5))
        self.look(self.rng.choice((A, B)))
        for _ in range(6):
            self.world.beat(6.0 if seconds < 100 else 20.0)
            self.steps += 1

    def deep_kill(self) -> None:
        """The kill file comes while orders are on their way out."""
        self.world.at[self.world.points + self.rng.randint(1, 40)] = partial(setattr, self.world, "is_killed", True)
        self.look(A, B)
        self.look(leave=(A, B))

    def deep_answer(self) -> None:
        """An order that arrives, and an answer that does not say so."""
        kinds = ("500_after", "429_after", "garbage_after", "truncated", "wrong_shape_after", "ErrInternal_after")
        self.world.faults(Fault(self.rng.choice(kinds), POST))
        self.look(self.rng.choice((A, B)))
        self.look()

    def deep_crash(self) -> None:
        """A fill, and the computer goes off somewhere between seeing it, writing it and protecting it."""
        self.look(A, B)
        self.look()
        self.world.fill(self.rng.choice((A, A, B)), self.rng.choice((6.0, 1000.0)))
        self.world.at[self.world.points + self.rng.randint(1, 25)] = off
        for _ in range(3):
            self.look()

    def deep_stranger(self) -> None:
        """On an honest line an order of another computer is seen within a minute."""
        self.world.calm()
        self.world.beat(31.0)
        self.world.plant(f"LB1-ffff0000-{self.rng.randint(1, 10**6)}")
        for _ in range(3):
            self.world.beat(31.0)
        self.steps += 4
        causes = {c.kind for c in self.world.desk.causes}
        if not causes & {lunobiz.CauseKind.DOUBLE_USE, lunobiz.CauseKind.KEY_REFUSED}:
            raise Violation("I16", "a second computer is not seen")
        self.world.resolve()

    def deep_lie(self) -> None:
        """Fills ten times what was ordered, or at ten times the price."""
        self.deep_entry()
        self.world.is_poisoned = True
        change = self.rng.choice((filled_ten_times, times("counter", 10), times("limit_price", 10)))
        self.world.trick(LOOK, changed(change), self.rng.choice((1, 2, 3)))
        for _ in range(2):
            self.look()

    def leave(self) -> None:
        """A wish to sell, for which there may be little to sell to."""
        if self.rng.random() < 0.5:
            self.world.advance(2.0, A, (self.world.prices[A],) * 2, 31.0)
        self.look(leave=(self.rng.choice((A, B)),))

    def rise(self) -> None:
        """Prices go up; stops follow."""
        for pair in MARKETS:
            self.world.prices[pair] = round(self.world.prices[pair] * self.rng.choice((1.01, 1.08)), 2)
        self.look(is_due=True)

    def fall(self) -> None:
        """Prices fall, perhaps through the stops."""
        pair, part = self.rng.choice((A, B)), self.rng.choice((0.99, 0.93))
        top = self.world.prices[pair]
        self.world.prices[pair] = round(top * part, 2)
        self.world.advance(2.0, pair, (round(top * part, 2), top), self.rng.choice((2.0, 1000.0)))

    def fill(self) -> None:
        """The market trades through what rests."""
        self.world.fill(self.rng.choice((A, B)), self.rng.choice((0.01, 1.0, 1000.0)))

    def wait(self) -> None:
        """Nobody looks for a while, though the loop goes on."""
        self.world.beat(self.rng.choice((61.0, 700.0, 7300.0)))

    def fault(self) -> None:
        """Trouble on the line for the next calls."""
        kind, wait_s = self.rng.choice(KINDS), self.rng.choice((0.0, 0.5, 3.0, 45.0))
        path = POST if kind == "late" else self.rng.choice(PATHS)
        times = self.rng.choice((1, 1, 1, 4))
        self.world.faults(Fault(kind, path, times, wait_s if kind.startswith(("late", "timeout")) else 0.0))

    def trick(self) -> None:
        """An answer that is not what it should be."""
        world, rng = self.world, self.rng
        rng.choice((
            partial(world.trick, LOOK, swapped), partial(stale(rng.choice((LOOK, LISTS, BALANCE))), world),
            partial(hidden(rng.choice((12.0, 40.0)), jump_ms=rng.choice((0, 7_200_000))), world),
            partial(world.trick, POST, raised(lunobiz.NotSent("no connection"))),
            partial(world.trick, rng.choice(PATHS), instead(rng.choice((200, 301, 502)))),
            partial(world.trick, rng.choice(PATHS), not_served(rng.choice((200, 301, 409, 503)))),
        ))()
        if rng.random() < 0.5:
            world.faults(Fault("timeout_after", POST, 1, 0.5))

    def crash(self) -> None:
        """The computer goes off in a moment."""
        self.world.at[self.world.points + self.rng.randint(1, 30)] = off

    def disk(self) -> None:
        """The disk is full in a moment."""
        self.world.writes_left, self.world.failing = self.rng.randint(0, 5), self.rng.randint(1, 3)

    def kill(self) -> None:
        """The kill file comes, now or in a moment, or goes."""
        if self.world.is_killed:
            self.world.is_killed = False
        else:
            self.world.at[self.world.points + self.rng.randint(1, 30)] = partial(setattr, self.world, "is_killed", True)

    def jump(self) -> None:
        """The computer's clock is set, or put right."""
        self.world.wall.offset_ms = self.rng.choice((0, 0, 1500, -1500, 9000, -9000, 7_200_000, -7_200_000))

    def sleep(self) -> None:
        """The laptop is closed."""
        seconds = self.rng.choice((60.0, 28_800.0))
        self.world.advance(seconds)
        self.world.gap_ms = seconds * 1000

    def restart(self) -> None:
        """The program ends and starts again."""
        self.world.crashes += 1
        self.world.restart()

    def owner_cancels(self) -> None:
        """The owner takes the bot's orders off."""
        cancel_own(self.rng.random() < 0.5)(self.world)

    def owner_moves(self) -> None:
        """The owner pays in or out."""
        asset, amount = self.rng.choice((("ZAR", "5000"), ("ZAR", "-700"), ("AAA", "2"), ("BBB", "-1")))
        if self.world.accounts.total[asset] + Decimal(amount) > 1:
            self.world.move(asset, amount)

    def owner_sells(self) -> None:
        """The owner takes the bot's sales off and sells most of a coin, the bot's too; fees are left to pay."""
        asset = self.rng.choice(("AAA", "BBB"))
        cancel_own(True)(self.world)
        total = self.world.accounts.total[asset]
        self.world.move(asset, str(-total * self.rng.choice((Decimal("0.97"), Decimal("0.9")))))

    def stranger(self) -> None:
        """An order that nobody here has sent."""
        if len(self.world.owner.planted) < 2:
            self.world.plant(self.rng.choice(("", "manual-1", "LB1-ffff0000-000001", "LB1-abcd1234-000900"))
                             + str(self.rng.randint(1, 10**6)))

    def toggle(self) -> None:
        """A market changes its state."""
        self.world.exchange.statuses[A] = self.rng.choice(("ACTIVE", "ACTIVE", "SUSPENDED", "POST_ONLY"))

    def resolve(self) -> None:
        """The owner lifts halts and re-arms, once or twice."""
        for _ in range(self.rng.choice((1, 2))):
            self.world.resolve()
            self.look()

    def storm(self) -> None:
        """Nothing works for some calls."""
        self.world.faults(Fault(self.rng.choice(("down", "429", "500")), "/", self.rng.randint(5, 40)))

    def lock(self) -> None:
        """What the gates found has grown too old, or is new again."""
        self.world.locks = () if self.world.locks else ("Evidence is 31 days old.",)

    def new_fees(self) -> None:
        """The exchange changes how it charges."""
        if self.rng.random() < 0.1:
            new_fees(self.world)


def off() -> None:
    """The computer is off."""
    raise Crash


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """One database file for all lives."""
    with quickened():
        made = Disk(tmp_path_factory.mktemp("chaos") / "lunobiz.db")
        yield made
        made.close()


def live(disk: Disk, seed: int) -> int:
    """One life; the seed is told if it breaks."""
    try:
        return Life(disk, seed).run(STEPS_OF_A_LIFE)
    except Violation as violation:
        raise Violation(violation.number, f"seed {seed}: {violation}") from violation


def many(disk: Disk, first: int, steps: int) -> None:
    """Lives until so many steps are done."""
    while steps > 0:
        steps -= live(disk, first)
        first += 1


@pytest.mark.parametrize("part", range(3))
def test_random_lives_end_in_agreement(disk: Disk, part: int) -> None:
    """Twenty thousand steps."""
    many(disk, part * 10**6, QUICK_STEPS // 3)


def journal_of(disk: Disk, seed: int) -> list[str]:
    """All that one life leaves in the database."""
    live(disk, seed)
    return list(disk.store.lines())


@pytest.mark.parametrize("seed", [3, 4])
def test_the_same_life_leaves_the_same_rows(disk: Disk, seed: int) -> None:
    """I19: whatever was in the file before."""
    first = journal_of(disk, seed)
    live(disk, seed + 100)
    assert journal_of(disk, seed) == first
    assert any("sendings" in row for row in first)


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_a_million_random_steps(disk: Disk, part: int) -> None:
    """The full figure, about an hour."""
    many(disk, 10**9 + part * 10**6, LONG_STEPS // 20)


def steps_until_caught(disk: Disk, name: str, most: int) -> int:
    """After how many steps a mutant is found; 0 if it is not."""
    steps, seed = 0, 0
    with pytest.MonkeyPatch.context() as patch:
        MUTANTS[name](patch)
        while steps < most:
            life = Life(disk, seed)
            try:
                life.run(STEPS_OF_A_LIFE)
            except Violation:
                return steps + max(1, life.steps)
            finally:
                disk.reopen(False)
            steps, seed = steps + life.steps, seed + 1
    return 0


QUICKLY_FOUND = ("blind_retry", "written_after", "trouble_is_no", "three_misses", "no_deadline", "cancel_is_done",
                 "any_order", "trading_on", "exit_at_once", "booked_in_memory", "one_look_at_the_file",
                 "forgotten_at_start", "duplicate_is_no", "counts_its_intents", "ready_by_itself",
                 "deaf_to_strangers")  # fmt: skip


@pytest.mark.parametrize("name", QUICKLY_FOUND)
def test_random_lives_find_the_mutant(disk: Disk, name: str) -> None:
    """Those that some two thousand steps find; the others take longer."""
    assert steps_until_caught(disk, name, MUTANT_STEPS // 10)


@pytest.mark.long
def test_random_lives_find_nine_mutants_in_ten(disk: Disk) -> None:
    """All of them, within fifty thousand steps each; `-s` shows after how many."""
    steps = {name: steps_until_caught(disk, name, MUTANT_STEPS) for name in MUTANTS}
    print(f"\n{steps}", flush=True)
    assert sum(map(bool, steps.values())) >= len(MUTANTS) * CAUGHT_SHARE, steps
