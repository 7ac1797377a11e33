"""TAX: gains worked out by hand, exact sums, and files that say what they are."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz as lb
from lunobiz import Disposal, Mode, Side, TaxFill, TaxSource, tax_fills, tax_steps, tax_tables

DAY = 86_400_000
NOON = 1_763_812_800_000  # 2025-11-22 12:00:00 UTC
LAST_MS = 1_740_779_999_999  # 2025-02-28 21:59:59.999 UTC, the last millisecond of a tax year in South Africa
LEAP_LAST_MS = 1_709_243_999_999  # 2024-02-29 21:59:59.999 UTC, the same in a leap year

Row = dict[str, object]


def fill(time_ms: int, side: str, price: str, volume: str, **more: object) -> Row:
    """A fill as the audit holds it: exact numbers as text."""
    known: Row = {"mode": "paper", "fill_id": f"f{time_ms}", "order_id": "o", "pair": "XBTZAR", "side": side}
    money: Row = {"price": price, "volume": volume, "fee_base": "0", "fee_counter": "0"}
    return {**known, "time_ms": time_ms, **money, **more}


def disposals(*rows: Row) -> list[Disposal]:
    return [step.disposal for step in tax_steps(tax_fills(rows)) if step.disposal]


def gains(sold: Disposal) -> tuple[object, object]:
    """By first in first out, and on average."""
    return sold.proceeds - sold.fifo_cost, sold.proceeds - sold.average_cost


def table(name: str, *rows: Row, mode: Mode = Mode.PAPER, desk: lb.Desk | None = None) -> list[Row]:
    return tax_tables(TaxSource(mode, rows, desk=desk))[name]


# ---- gains by hand ----


def test_partial_sales_over_several_lots() -> None:
    sold = disposals(
        fill(NOON, "buy", "100", "2", fee_counter="2"),  # 2 for 202
        fill(NOON + DAY, "buy", "130", "2", fee_counter="4"),  # 2 for 264; together 4 for 466 = 116.50 each
        fill(NOON + 2 * DAY, "sell", "150", "1", fee_counter="1.5"),  # 148.50
        fill(NOON + 3 * DAY, "sell", "160", "2", fee_counter="3"),  # 317: one of each lot
        fill(NOON + 4 * DAY, "sell", "90", "1"),  # 90
    )
    # first in first out: 148.5 - 101, 317 - 101 - 132, 90 - 132; average: 148.5, 317, 90 less 116.5 a coin
    assert [gains(s)[0] for s in sold] == [Decimal("47.5"), 84, -42]
    assert [gains(s)[1] for s in sold] == [32, 84, Decimal("-26.5")]
    assert [lot.time_ms for lot in sold[1].used] == [NOON, NOON + DAY]


def test_the_average_follows_a_buy_after_a_sale() -> None:
    sold = disposals(
        fill(NOON, "buy", "100", "2"),  # 2 for 200
        fill(NOON + 1, "sell", "120", "1"),  # 1 for 100 is left
        fill(NOON + 2, "buy", "160", "1"),  # 2 for 260, 130 each
        fill(NOON + 3, "sell", "150", "1"),
    )
    assert gains(sold[1]) == (50, 20)


def test_a_fee_in_base_of_a_buy_is_paid_for_and_never_held() -> None:
    rows = fill(NOON, "buy", "100", "1", fee_base="0.2"), fill(NOON + 1, "sell", "100", "0.4")
    (sold,) = disposals(*rows)
    assert gains(sold) == (-10, -10)  # 0.8 coins for 100: 0.4 cost 50 and bring 40
    first, second = table("tax_fills", *rows)
    assert (first["held_volume"], first["fee_value"], first["fee_zar"]) == ("0.8", "20", "20")
    assert (second["held_volume"], second["fifo_lots"]) == ("0.4", "0.4 of 2025-11-22 for 50")


def test_a_fee_in_base_of_a_sale_takes_coins_with_it() -> None:
    (sold,) = disposals(
        fill(NOON, "buy", "100", "2"), fill(NOON + 1, "sell", "150", "1", fee_base="0.25")
    )
    assert (sold.gone, gains(sold)) == (Decimal("1.25"), (25, 25))  # 1.25 cost 125


def test_a_fee_in_counter_and_a_rebate() -> None:
    sold = disposals(
        fill(NOON, "buy", "100", "1", fee_counter="-1"),  # a rebate: 99
        fill(NOON + 1, "sell", "100", "1", fee_counter="0.6"),  # 99.40
    )
    assert gains(sold[0]) == (Decimal("0.4"), Decimal("0.4"))


def test_a_fee_that_comes_late_still_counts() -> None:
    buy, late = fill(NOON, "buy", "100", "1"), fill(NOON + 1, "buy", "100", "0", fee_counter="3")
    (sold,) = disposals(buy, late, fill(NOON + 2, "sell", "110", "1"))
    assert gains(sold) == (7, 7)
    sale, loss = disposals(buy, fill(NOON + 1, "sell", "110", "1"), late | {"time_ms": NOON + 2})
    assert (gains(sale), gains(loss)) == ((10, 10), (-3, -3))  # the coins are gone: it lessens the gain by itself
    (sold,) = disposals(buy, fill(NOON + 1, "buy", "100", "0", fee_base="0.5"), fill(NOON + 2, "sell", "90", "0.5"))
    assert gains(sold) == (-55, -55)  # half a coin for 100, sold for 45


def test_several_coins_have_their_own_lots() -> None:
    eth = {"pair": "ETHZAR"}
    sold = disposals(
        fill(NOON, "buy", "100", "1"), fill(NOON + 1, "buy", "10", "5", **eth),
        fill(NOON + 2, "sell", "12", "5", **eth), fill(NOON + 3, "sell", "90", "1"),
    )  # fmt: skip
    assert [s.fill.pair for s in sold] == ["ETHZAR", "XBTZAR"]
    assert [gains(s) for s in sold] == [(10, 10), (-10, -10)]


def test_coins_never_bought_here_have_no_cost_and_are_told() -> None:
    rows = fill(NOON, "buy", "100", "1"), fill(NOON + 1, "sell", "150", "3")
    (sold,) = disposals(*rows)
    assert sold.unmatched == 2 and gains(sold) == (350, 350)  # 450 - 100
    (row,) = table("tax_disposals", *rows)
    assert "2 XBT never bought by the bot" in str(row["note"]) and row["unmatched_volume"] == "2"


# ---- tax years ----


@pytest.mark.parametrize(
    ("time_ms", "year"),
    [(LAST_MS, 2025), (LAST_MS + 1, 2026), (LEAP_LAST_MS, 2024), (LEAP_LAST_MS + 1, 2025),
     (LEAP_LAST_MS - DAY + 1, 2024), (NOON, 2026)],
)  # fmt: skip
def test_a_tax_year_ends_at_midnight_in_south_africa(time_ms: int, year: int) -> None:
    """28 February, or 29 in a leap year, 24:00 SAST is 22:00 UTC."""
    assert lb.tax_year_of(time_ms) == year


def test_the_sums_of_a_tax_year() -> None:
    buys = fill(LAST_MS - DAY, "buy", "100", "4", fee_counter="4")  # 101 each
    rows = table("tax_years", buys, fill(LAST_MS, "sell", "111", "1", fee_counter="1"),
                 fill(LAST_MS + 1, "sell", "91", "1"), fill(LAST_MS + 2, "sell", "101", "1"))
    told = [(r["tax_year"], r["market"], r["disposals"], r["proceeds"], r["fifo_gain"], r["fees_of_all_fills"])
            for r in rows]
    assert told == [
        (2025, "XBTZAR", 1, "110", "9", "5"), (2025, "all in ZAR", 1, "110", "9", "5"),
        (2026, "XBTZAR", 2, "192", "-10", "0"), (2026, "all in ZAR", 2, "192", "-10", "0"),
    ]  # fmt: skip
    assert (rows[0]["from_sast"], rows[0]["to_sast"]) == ("2024-03-01", "2025-02-28")
    assert table("tax_years", fill(LEAP_LAST_MS, "buy", "1", "1"))[0]["to_sast"] == "2024-02-29"


def test_both_clocks_stand_in_a_row() -> None:
    (row,) = table("tax_fills", fill(LAST_MS + 1, "buy", "100", "1"))
    assert row["time_utc"] == "2025-02-28T22:00:00.000Z"
    assert row["time_sast"] == "2025-03-01T00:00:00.000+02:00"


def test_a_market_that_is_not_in_rand_has_no_rand_value() -> None:
    usdc = {"pair": "XBTUSDC"}
    rows = fill(NOON, "buy", "100", "1", **usdc), fill(NOON + 1, "sell", "110", "1", **usdc)
    (sold,) = table("tax_disposals", *rows)
    assert (sold["counter"], sold["fifo_gain"], sold["fifo_gain_zar"]) == ("USDC", "10", "")
    assert "no ZAR value is known" in str(sold["note"])
    years = table("tax_years", *rows, fill(NOON, "buy", "1", "1"), fill(NOON + 1, "sell", "3", "1"))
    assert [(r["market"], r["fifo_gain"], r["fifo_gain_zar"]) for r in years] == [
        ("XBTUSDC", "10", ""), ("all in USDC", "10", ""), ("XBTZAR", "2", "2"), ("all in ZAR", "2", "2"),
    ]  # fmt: skip
    assert all(r["value_zar"] == r["fee_zar"] == "" for r in table("tax_fills", *rows))


# ---- exactness and order ----


def test_the_journal_of_real_orders_gives_the_exact_amounts() -> None:
    """The second fill's price was rounded; the journal has 33.34 for it."""
    rows = [fill(NOON, "buy", "100", "1", order_id="A"), fill(NOON + 1, "buy", "33.333", "1", order_id="A")]
    ledger: list[Row] = [
        {"order_id": "A", "base": "1", "counter": "100", "fee_base": "0.001", "fee_counter": "0"},
        {"order_id": "A", "base": "2", "counter": "133.34", "fee_base": "0.003", "fee_counter": "0.5"},
    ]
    first, second = tax_fills(rows, ledger)
    assert (first.value, first.fee_base, first.is_exact) == (Decimal(100), Decimal("0.001"), True)
    assert (second.value, second.fee_base, second.fee_counter) == (
        Decimal("33.34"), Decimal("0.002"), Decimal("0.5"))  # fmt: skip
    assert not tax_fills(rows)[1].is_exact


def test_fills_of_one_moment_keep_the_order_of_the_audit() -> None:
    """A sale and a buy at one moment: whichever was written first comes first."""
    rows = [fill(NOON, "buy", "100", "1", fill_id="a"), fill(NOON, "buy", "200", "1", fill_id="b"),
            fill(NOON, "sell", "150", "1", fill_id="c")]
    assert gains(disposals(*rows)[0])[0] == 50
    assert gains(disposals(rows[1], rows[0], rows[2])[0])[0] == -50
    sale_first = [fill(NOON - 1, "buy", "100", "1"), rows[2], rows[1]]
    assert gains(disposals(*sale_first)[0]) == (50, 50)
    late_first = [fill(NOON + 5, "sell", "150", "1", fill_id="z"), *rows[:2]]
    assert [step.fill.fill_id for step in tax_steps(tax_fills(late_first))] == ["a", "b", "z"]


AMOUNTS = st.integers(1, 10**12).map(lambda n: Decimal(n).scaleb(-8))
MOVES = st.lists(st.tuples(st.booleans(), AMOUNTS, AMOUNTS, AMOUNTS), min_size=1, max_size=30)


@given(MOVES)
def test_a_history_sold_in_full_gains_the_same_by_both_methods(
    moves: Sequence[tuple[bool, Decimal, Decimal, Decimal]],
) -> None:
    """What both methods gain is the money that came in less the money that went out, to the last digit."""
    fills, held, money = [], Decimal(0), Decimal(0)
    for number, (is_buy, price, volume, fee) in enumerate((*moves, (False, Decimal(7), Decimal(0), Decimal(1)))):
        is_last = number == len(moves)
        side = Side.BUY if is_buy else Side.SELL
        size = volume if is_buy else held if is_last else min(held, volume)
        if not size:
            continue
        held += size if is_buy else -size
        fills.append(TaxFill(number // 3, str(number), "o", "XBTZAR", side, price, size,
                             round(price * size, 12), Decimal(0), fee))
        money += fills[-1].money
    steps = list(tax_steps(fills))
    sold = [s.disposal for s in steps if s.disposal]
    assert sum(s.proceeds - s.fifo_cost for s in sold) == money == sum(s.proceeds - s.average_cost for s in sold)
    assert not steps or steps[-1].pool == lb.Coins(volume=Decimal(0), cost=Decimal(0))


@given(MOVES)
def test_both_methods_hold_the_same_coins(moves: Sequence[tuple[bool, Decimal, Decimal, Decimal]]) -> None:
    fills = [TaxFill(n, str(n), "o", "XBTZAR", Side.BUY if is_buy else Side.SELL, price, volume,
                     round(price * volume, 12), min(fee, volume), Decimal(0))
             for n, (is_buy, price, volume, fee) in enumerate(moves)]
    coins = unmatched = Decimal(0)
    for step in tax_steps(fills):
        coins += step.fill.coins
        unmatched += step.disposal.unmatched if step.disposal else 0
        assert step.pool.volume == sum((lot.volume for lot in step.pool.lots), Decimal(0)) == coins + unmatched
        assert all(lot.volume > 0 for lot in step.pool.lots)


@pytest.mark.parametrize("value", ["abc", "NaN", "Infinity", "1,5", "1e9999"])
def test_a_fill_that_is_no_number_is_named(value: str) -> None:
    with pytest.raises(lb.DataError, match="price is no number"):
        tax_fills([fill(NOON, "buy", value, "1")])


# ---- against the desk ----


def position(pair: str, volume: float) -> lb.Position:
    return lb.Position(pair, volume, 90.0, 10.0, NOON, "trend", lb.Regime.TRENDING, 3600, 100.0, 100.0, volume,
                       volume * 100, 0.0, 0.0)  # fmt: skip


def balance(desk: lb.Desk | None, *rows: Row) -> Row:
    (row,) = table("tax_balance", *rows, desk=desk)
    return row


def test_the_coins_agree_with_position_and_dust() -> None:
    rows = (fill(NOON, "buy", "100", "2", fee_base="0.01"), fill(NOON + 1, "sell", "120", "1.5"),
            fill(NOON + 2, "buy", "100", "0.3"))
    desk = lb.Desk(0.0, (position("XBTZAR", 0.3),), dust=(("XBTZAR", 0.49),))
    row = balance(desk, *rows)
    assert [row[k] for k in ("bought", "sold", "fees_in_coins", "should_hold", "desk_holds", "desk_dust")] == [
        "2.3", "1.5", "0.01", "0.79", "0.3", "0.49"]  # fmt: skip
    assert (row["difference"], row["result"]) == ("0", "agrees")


def test_a_difference_to_the_desk_is_shown_and_named() -> None:
    buy = fill(NOON, "buy", "100", "2")
    row = balance(lb.Desk(0.0, (position("XBTZAR", 1.5),)), buy)
    assert row["difference"] == "-0.5" and "NOT EXPLAINED: the desk holds less" in str(row["result"])
    row = balance(lb.Desk(0.0), buy, fill(NOON + 1, "sell", "100", "2", fee_base="0.02"))
    assert (row["should_hold"], row["difference"], row["unmatched_volume"]) == ("-0.02", "0.02", "0.02")
    assert row["result"] == "sold, or taken as a fee, from coins that the bot never bought"
    assert balance(None, buy)["result"] == "no desk is recorded"
    (row,) = table("tax_balance", desk=lb.Desk(0.0, dust=(("ETHZAR", 0.1),)))
    assert row["market"] == "ETHZAR" and "holds more" in str(row["result"])


def test_the_owners_changes_are_listed_and_are_no_disposals() -> None:
    owners = [(NOON, {"XBT": Decimal("0.5"), "ZAR": Decimal(1000)}), (NOON + DAY, {"XBT": Decimal("0.2")})]
    tables = tax_tables(TaxSource(Mode.LIVE, [fill(NOON, "buy", "100", "1")], owners=owners))
    told = [(row["asset"], row["change"], row["total"], row["what"]) for row in tables["tax_owner"]]
    own = "deposit, withdrawal or own order: not the bot's"
    assert told == [("XBT", "0.5", "0.5", "there before the bot"), ("ZAR", "1000", "1000", "there before the bot"),
                    ("XBT", "-0.3", "0.2", own), ("ZAR", "-1000", "0", own)]  # fmt: skip
    assert tables["tax_disposals"][0]["rows"] == "none"


# ---- files ----


class Audit:
    """Pages of rows, as the audit gives them."""

    def __init__(self, **tables: list[Row]) -> None:
        self.tables = tables

    def table(self, name: str, since_rowid: int = 0, limit: int = 1000) -> list[Row]:
        rows = [{"rowid": n, **row} for n, row in enumerate(self.tables.get(name, []), start=1)]
        return [row for row in rows if int(str(row["rowid"])) > since_rowid][:limit]


def files(folder: Path) -> dict[str, str]:
    (home,) = folder.glob("lunobiz-export-*")
    found = [*home.glob("tax_*.csv"), *home.glob("tax_*.txt")]
    assert all(p.read_bytes()[:3] == b"\xef\xbb\xbf" for p in found if p.suffix == ".csv")
    return {p.name: p.read_text(encoding="utf-8-sig") for p in found}


@pytest.mark.parametrize("mode", [Mode.PAPER, Mode.DEMO, Mode.REPLAY])
def test_no_file_of_a_simulation_can_be_taken_for_real(tmp_path: Path, mode: Mode) -> None:
    lb.export_audit(Audit(fills=[fill(NOON, "buy", "100", "1", mode=mode.value)]), tmp_path, NOON)
    found = files(tmp_path)
    assert set(found) == {*(f"{name}.csv" for name in lb.TAX_FILES), "tax_notes.txt"}
    for name, text in found.items():
        lines = text.splitlines()[1:] if name.endswith(".csv") else [text]
        assert lines and all("SIMULATED" in line and "not tax advice" in line.lower() for line in lines), name


def test_live_has_the_plain_names_and_paper_others(tmp_path: Path) -> None:
    fills = [fill(NOON, "buy", "100", "1"), fill(NOON, "buy", "100", "1", mode="live")]
    desk = lb.desk_json(lb.Desk(5.0, (position("XBTZAR", 1.0),)))
    owner: Row = {"name": "baseline", "time_ms": NOON, "payload": '{"owner":{"XBT":"0.5"},"accounts":{}}'}
    old = lb.desk_json(lb.Desk(5.0))
    snapshots: list[Row] = [{"mode": "live", "desk": old}, {"mode": "live", "desk": desk}]
    lb.export_audit(Audit(fills=fills, snapshots=snapshots, metrics=[owner]), tmp_path, NOON)
    found = files(tmp_path)
    assert "REAL (LIVE)" in found["tax_fills.csv"] and "SIMULATED" not in found["tax_fills.csv"]
    assert "SIMULATED (PAPER)" in found["tax_fills_paper_simulated.csv"]
    assert "agrees" in found["tax_balance.csv"] and "there before the bot" in found["tax_owner.csv"]
    assert "no desk" in found["tax_balance_paper_simulated.csv"]


def test_live_on_a_test_exchange_is_not_real(tmp_path: Path) -> None:
    lb.export_audit(Audit(fills=[fill(NOON, "buy", "100", "1", mode="live")]), tmp_path, NOON, is_luno=False)
    assert all("SIMULATED" in text and "REAL" not in text for text in files(tmp_path).values())


def test_an_export_without_a_fill_says_so(tmp_path: Path) -> None:
    lb.export_audit(Audit(), tmp_path, NOON)
    assert '"SIMULATED (PAPER)' in files(tmp_path)["tax_years.csv"] and '"none"' in files(tmp_path)["tax_years.csv"]


def test_cells_of_the_tax_files_are_no_formulas_and_numbers_stay(tmp_path: Path) -> None:
    fills = [fill(NOON, "buy", "100", "1", fill_id="=cmd()"), fill(NOON + 1, "sell", "90", "1", order_id="@x")]
    lb.export_audit(Audit(fills=fills), tmp_path, NOON)
    found = files(tmp_path)
    rows = list(csv.DictReader(found["tax_fills.csv"].splitlines()))
    assert rows[0]["fill_id"] == "'=cmd()" and rows[1]["order_id"] == "'@x"
    assert next(csv.DictReader(found["tax_disposals.csv"].splitlines()))["fifo_gain"] == "-10"


def test_what_is_the_owners_must_be_readable(tmp_path: Path) -> None:
    rows: list[Row] = [{"name": "baseline", "time_ms": NOON, "payload": '{"owner": {"XBT": "much"}}'}]
    with pytest.raises(lb.DataError, match="what is the owner's cannot be read"):
        lb.export_audit(Audit(metrics=rows), tmp_path, NOON)


def test_many_lots_are_told_in_short() -> None:
    row = table("tax_fills", *[fill(NOON + n, "buy", "100", "1") for n in range(25)])[-1]
    assert str(row["fifo_lots"]).count("1 of ") == 20 and str(row["fifo_lots"]).endswith("; and 5 more")
