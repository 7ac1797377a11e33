"""FILES: candles are read whole or refused with file, line and column; exports are complete and harmless."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lunobiz
from lunobiz import (
    DataError,
    Side,
    counter_of,
    csv_cell,
    export_audit,
    read_folder,
    utc_text,
    write_json,
)

HEADER = "timestamp,open,high,low,close,volume"
START_MS = 1_680_307_200_000
EXPORT_MS = 1_763_999_999_137  # 2025-11-24 15:59:59.137 UTC


def sample(rows: int, seconds: int = 900, price: float = 28_465.36, seed: int = 7) -> list[str]:
    """A random walk as lines of a file, without the header."""
    rng, lines = random.Random(seed), []
    for n in range(rows):
        close = round(price * math.exp(rng.gauss(0, 0.002)), 8)
        high, low = max(price, close) * 1.001, min(price, close) * 0.999
        cells = (price, high, low, close, abs(rng.gauss(0, 300)))
        lines.append(",".join([str(START_MS + n * seconds * 1000), *(repr(float(c)) for c in cells)]))
        price = close
    return lines


def put(folder: Path, name: str, lines: list[str], header: str = HEADER, end: str = "\n") -> Path:
    """Write a file of candles, packed if its name says so."""
    raw = (end.join([header, *lines]) + end).encode()
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def refused(folder: Path, *pairs: str) -> str:
    """The words with which a folder is refused."""
    with pytest.raises(DataError) as caught:
        read_folder(folder, pairs)
    return str(caught.value)


# ---- reading candles ----


def test_a_recorded_year_is_read_to_the_last_bit(tmp_path: Path) -> None:
    lines = sample(2000)
    packed = put(tmp_path, "XBTUSDT_900.csv.gz", lines)
    plain = put(tmp_path, "XRPUSDT_900.csv", sample(50, price=0.51), end="\r\n")
    folder = read_folder(tmp_path)
    assert (folder.seconds, folder.counter, list(folder.data)) == (900, "USDT", ["XBTUSDT", "XRPUSDT"])
    expected = np.array([[float(cell) for cell in line.split(",")] for line in lines])
    assert folder.data["XBTUSDT"].dtype == np.float64
    assert np.array_equal(folder.data["XBTUSDT"], expected)
    assert folder.hashes == {
        "XBTUSDT": hashlib.sha256(packed.read_bytes()).hexdigest(),
        "XRPUSDT": hashlib.sha256(plain.read_bytes()).hexdigest(),
    }
    with pytest.raises(ValueError, match="read-only"):
        folder.data["XBTUSDT"][0, 0] = 0


def test_a_folder_travels_to_another_process(tmp_path: Path) -> None:
    put(tmp_path, "XBTZAR_3600.csv", sample(20, 3600))
    folder = read_folder(tmp_path)
    again = pickle.loads(pickle.dumps(folder))  # noqa: S301 - our own bytes
    assert again.markets == folder.markets and np.array_equal(again.data["XBTZAR"], folder.data["XBTZAR"])


def test_gaps_zero_volume_and_a_byte_mark_are_fine(tmp_path: Path) -> None:
    lines = sample(40)
    del lines[10:17]
    lines[3] = ",".join([*lines[3].split(",")[:5], "0"])
    put(tmp_path, "ETHZAR_900.csv", [*lines, "", ""], header="\ufeff" + HEADER.title())
    assert len(read_folder(tmp_path).data["ETHZAR"]) == 33


def test_one_candle_is_enough(tmp_path: Path) -> None:
    put(tmp_path, "ETHZAR_900.csv", sample(1))
    assert read_folder(tmp_path).data["ETHZAR"].shape == (1, 6)


def bad(line: int, column: int, cell: str) -> Callable[[list[str]], list[str]]:
    """A change of one cell; `line` as an editor counts it."""

    def change(lines: list[str]) -> list[str]:
        cells = lines[line - 2].split(",")
        cells[column] = cell
        return [*lines[: line - 2], ",".join(cells), *lines[line - 1 :]]

    return change


FAULTS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "empty cell": (bad(7, 4, ""), "line 7, column close: is empty; allowed is a plain number"),
    "word": (bad(9, 1, "n/a"), "line 9, column open: is 'n/a'; allowed is a plain number"),
    "underscore": (bad(9, 1, "1_000"), "line 9, column open: is '1_000'; allowed is a plain number"),
    "nan": (bad(12, 5, "nan"), "line 12, column volume: is nan; allowed is a finite number"),
    "infinity": (bad(12, 2, "inf"), "line 12, column high: is inf; allowed is a finite number"),
    "negative price": (bad(5, 3, "-1"), "line 5, column low: is -1; allowed is a price above 0"),
    "zero price": (bad(2, 1, "0"), "line 2, column open: is 0; allowed is a price above 0"),
    "negative volume": (bad(41, 5, "-0.5"), "line 41, column volume: is -0.5; allowed is 0 or more"),
    "high too low": (bad(6, 2, "1"), "line 6, column high: is 1; allowed is not below open, low and close"),
    "low too high": (bad(6, 3, "28500000"), "line 6, column high: is "),
    "seconds": (bad(2, 0, "1680307200"), "column timestamp: is 1680307200; allowed is UTC milliseconds"),
    "date": (bad(3, 0, "2023-04-01"), "line 3, column timestamp: is '2023-04-01'"),
    "off the grid": (
        bad(4, 0, str(START_MS + 1_860_000)),
        "line 4, column timestamp: is 1680309060000; allowed is the start of a candle of 900 s",
    ),
    "same time twice": (
        bad(4, 0, str(START_MS + 900_000)),
        "line 4, column timestamp: is 1680308100000; allowed is later than the line before",
    ),
    "back in time": (
        lambda lines: [*lines[:20], lines[3], *lines[20:]],
        "line 22, column timestamp: is 1680309900000; allowed is later than the line before",
    ),
    "column too few": (
        lambda lines: [*lines[:5], "1,2,3,4,5", *lines[5:]],
        "line 7: 5 columns; allowed is 6",
    ),
    "column too many": (lambda lines: [line + ",1" for line in lines], "line 2: 7 columns; allowed is 6"),
    "empty line": (lambda lines: [*lines[:5], "", *lines[5:]], "line 7: the line is empty; remove it"),
    "comment": (lambda lines: [*lines[:5], "# note", *lines[5:]], "line 7: 1 columns; allowed is 6"),
    "no rows": (lambda lines: [], "there is no candle in it"),
    "cut off": (lambda lines: [*lines[:-1], lines[-1][:20]], "line 41: 2 columns; allowed is 6"),
    "hourly data": (lambda lines: sample(40, 3600), "its closest candles are 3600 s apart, not 900 s"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["XBTZAR_900.csv", "XBTZAR_900.csv.gz"])
def test_a_fault_is_named_with_file_line_and_column(tmp_path: Path, fault: str, name: str) -> None:
    change, words = FAULTS[fault]
    put(tmp_path, name, change(sample(40)))
    message = refused(tmp_path)
    assert message.startswith(name) and words in message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("timestamp,open,high,low,volume", "line 1: column close is missing"),
        ("time,o,h,l,c,v", "line 1: column timestamp, open, high, low, close, volume is missing"),
        ("timestamp,open,close,high,low,volume", "line 1: the columns are in another order"),
        (HEADER + ",trades", "line 1: the columns are in another order or there are more"),
        (HEADER.replace(",", ";"), "line 1: the columns are separated by semicolons"),
        (sample(1)[0], "line 1: column timestamp"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, words: str) -> None:
    put(tmp_path, "XBTZAR_900.csv", sample(3), header=header)
    message = refused(tmp_path)
    assert words in message and message.endswith(f"the line must read {HEADER}")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = put(tmp_path, "XBTZAR_900.csv.gz", sample(500))
    whole = path.read_bytes()
    scratched = whole[:200] + b"\xff" * 40 + whole[240:]
    for raw in (whole[:-100], b"", b"not gz", scratched, whole[:-8] + b"\0" * 8):
        path.write_bytes(raw)
        assert "XBTZAR_900.csv.gz: " in refused(tmp_path)
    path.write_bytes(gzip.compress(b"\xff\xfe\x00binary"))
    assert "this is no text" in refused(tmp_path)


def test_a_bomb_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lunobiz, "TEXT_LIMIT", 2**20)
    put(tmp_path, "XBTZAR_900.csv.gz", ["0" * 3 * 2**20])
    assert "more than 1 MB of text" in refused(tmp_path)


def test_folders_and_names_that_cannot_be_used(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "nowhere")
    assert "has no file named PAIR_SECONDS.csv" in refused(tmp_path)
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "._XBTZAR_900.csv").write_text("of another system")
    assert "has no file named PAIR_SECONDS.csv" in refused(tmp_path)
    for name, words in (
        ("XBTZAR-900.csv", "candle files are named PAIR_SECONDS.csv"),
        ("xbtzar_900.csv", "candle files are named PAIR_SECONDS.csv"),
        ("XBTZAR_901.csv", "901 s is no timeframe; allowed is 300, 900, 1800"),
        ("XBTZAR_60.csv.gz", "60 s is no timeframe"),
    ):
        path = put(tmp_path, name, sample(3))
        message = refused(tmp_path)
        assert message.startswith(name) and words in message
        path.unlink()
    (tmp_path / "XBTZAR_900.csv").mkdir()
    assert refused(tmp_path).startswith("XBTZAR_900.csv cannot be read")


def test_the_finest_timeframe_that_all_pairs_have(tmp_path: Path) -> None:
    put(tmp_path, "XBTZAR_300.csv", sample(12, 300))
    put(tmp_path, "XBTZAR_900.csv", sample(12, 900))
    put(tmp_path, "XBTZAR_3600.csv", sample(12, 3600))
    put(tmp_path, "ETHZAR_900.csv", sample(12, 900))
    put(tmp_path, "ETHZAR_3600.csv.gz", sample(12, 3600))
    assert read_folder(tmp_path).seconds == 900
    assert read_folder(tmp_path, ["xbtzar"]).seconds == 300
    put(tmp_path, "SOLZAR_86400.csv", sample(12, 86400))
    assert "have no timeframe in common" in refused(tmp_path)


def test_the_same_candles_packed_and_plain_are_a_doubt(tmp_path: Path) -> None:
    put(tmp_path, "XBTZAR_900.csv", sample(12))
    put(tmp_path, "XBTZAR_900.csv.gz", sample(12))
    assert refused(tmp_path).startswith("XBTZAR_900.csv: the same candles are there as .csv and as .csv.gz")


def test_pairs_are_chosen_in_the_order_asked_for(tmp_path: Path) -> None:
    for pair in ("XBTZAR", "ETHZAR", "XRPZAR"):
        put(tmp_path, f"{pair}_900.csv", sample(12))
    assert list(read_folder(tmp_path, ("XRPZAR", "ETHZAR")).data) == ["XRPZAR", "ETHZAR"]
    assert "has no candles of SOLZAR; it has ETHZAR, XBTZAR, XRPZAR" in refused(tmp_path, "XBTZAR", "SOLZAR")


def test_one_counter_for_all(tmp_path: Path) -> None:
    put(tmp_path, "XBTZAR_900.csv", sample(12))
    put(tmp_path, "ETHUSDC_900.csv", sample(12))
    assert "several counters (ETHUSDC in USDC, XBTZAR in ZAR)" in refused(tmp_path)
    assert read_folder(tmp_path, ["XBTZAR"]).counter == "ZAR"
    put(tmp_path, "ABCXYZ_900.csv", sample(12))
    assert "ABCXYZ: its counter is not known" in refused(tmp_path, "ABCXYZ")


@pytest.mark.parametrize(
    ("pair", "counter"),
    [("XBTUSDT", "USDT"), ("XBTUSD", "USD"), ("USDTZAR", "ZAR"), ("ETHXBT", "XBT"), ("XBTUSDC", "USDC")],
)
def test_the_counter_is_the_longest_known_end(pair: str, counter: str) -> None:
    assert counter_of(pair) == counter


def test_a_counter_alone_is_no_pair() -> None:
    with pytest.raises(DataError):
        counter_of("USDT")


# ---- markets ----


@pytest.mark.parametrize(
    ("price", "price_scale", "min_volume"),
    [
        (28_000.0, 1, 0.001786),  # 50 / 28000 = 0.00178571..., rounded up
        (1_950_000.0, 0, 0.000026),
        (99.0, 4, 0.505051),
        (0.5, 6, 100.0),
        (0.00012, 9, 416666.666667),
    ],
)
def test_markets_without_a_markets_file(
    tmp_path: Path, price: float, price_scale: int, min_volume: float
) -> None:
    lines = [f"{START_MS + n * 900_000},{price},{price},{price},{price},1" for n in range(12)]
    put(tmp_path, "XBTUSDT_900.csv", lines)
    folder = read_folder(tmp_path)
    market = folder.markets["XBTUSDT"]
    assert (market.base, market.counter, market.name) == ("XBT", "USDT", "XBT/USDT")
    assert (market.price_scale, market.volume_scale, market.model_spread) == (price_scale, 6, 0.001)
    assert market.min_volume == pytest.approx(min_volume, abs=1e-9)
    assert market.min_volume * price >= 50
    assert (market.maker_fee, market.taker_fee) == (0.004, 0.006)
    assert market.fee_source == "entry tier (documented)"
    assert folder.min_volume_24h == 50_000


def test_rand_markets_keep_the_setting_for_thin_markets(tmp_path: Path) -> None:
    put(tmp_path, "XBTZAR_900.csv", sample(12))
    assert read_folder(tmp_path).min_volume_24h == 1_000_000


def markets_folder(folder: Path, text: str) -> Path:
    """A folder of one market with this markets.json."""
    put(folder, "XBTZAR_900.csv", sample(12))
    (folder / "markets.json").write_text(text, encoding="utf-8")
    return folder


def test_what_markets_json_says_holds(tmp_path: Path) -> None:
    says = {"price_scale": 0, "volume_scale": 4, "min_volume": 0.0002, "spread": 0.002, "min_volume_24h": 777}
    folder = read_folder(markets_folder(tmp_path, json.dumps({"XBTZAR": says, "ETHZAR": {}})))
    market = folder.markets["XBTZAR"]
    assert (market.price_scale, market.volume_scale, market.min_volume) == (0, 4, 0.0002)
    assert (market.model_spread, folder.min_volume_24h) == (0.002, 777)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "this is no JSON text"),
        ("[" * 100_000, "this is no JSON text"),
        ('{"XBTZAR": {"spread": 0, "spread": 1}}', "a name stands twice"),
        ("[]", 'must read {"XBTZAR"'),
        ('{"XBTZAR": 3}', 'must read {"XBTZAR"'),
        ('{"XBTZAR": {"tick": 1}}', "markets.json, XBTZAR: 'tick' is not known; allowed is price_scale"),
        ('{"XBTZAR": {"spread": "0.1"}}', "XBTZAR: spread must be a number from 0 to 0.1"),
        ('{"XBTZAR": {"spread": 0.2}}', "spread must be a number from 0 to 0.1"),
        ('{"XBTZAR": {"spread": true}}', "spread must be a number"),
        ('{"XBTZAR": {"min_volume": NaN}}', "min_volume must be a number"),
        ('{"XBTZAR": {"price_scale": 1.5}}', "price_scale must be a whole number"),
        ('{"XBTZAR": {"min_volume": 2, "max_volume": 1}}', "XBTZAR: a minimum is not below its maximum"),
    ],
)
def test_a_wrong_markets_json_is_named(tmp_path: Path, text: str, words: str) -> None:
    message = refused(markets_folder(tmp_path, text))
    assert message.startswith("markets.json") and words in message


# ---- JSON ----


def test_json_is_written_whole_with_null_for_what_is_no_number(tmp_path: Path) -> None:
    value = {"a": (1, 2.5), "inf": math.inf, "n": np.float64("nan"), "x": {"deep": [-math.inf]}}
    path = tmp_path / "out.json"
    write_json(path, {**value, "side": Side.BUY, "b": True, "e": "é\u2028"})
    assert json.loads(path.read_text(encoding="ascii")) == {
        "a": [1, 2.5], "inf": None, "n": None, "x": {"deep": [None]}, "side": "BUY", "b": True, "e": "é\u2028",
    }  # fmt: skip
    assert path.read_text(encoding="ascii").startswith('{\n "a": [\n')  # for people to read
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    write_json(path, {"old": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"out\.json cannot be written: No"):
        patch.setattr(os, "fsync", fail)
        write_json(path, {"new": 1})
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["out.json"]


# ---- cells ----


@pytest.mark.parametrize("text", ["-1.25", "0", "12", "-0.000001", "1e-05", "1.5E+20", "XBTZAR", "a=b", ""])
def test_harmless_cells_stay_as_they_are(text: str) -> None:
    assert csv_cell(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1+cmd",
        "-",
        "@SUM(A1)",
        "\tx",
        "\rx",
        "\nx",
        "\0x",
        " =1",
        "--1",
        "-1\n",
        "\uff1d1",
        "+2782",
    ],
)
def test_cells_that_a_spreadsheet_would_run_are_quoted(text: str) -> None:
    assert csv_cell(text) == "'" + text


@given(st.text(max_size=40) | st.floats() | st.integers() | st.none() | st.decimals() | st.booleans())
def test_no_cell_starts_like_a_formula_and_none_is_lost(value: object) -> None:
    cell = csv_cell(value)
    text = "" if value is None else str(value)
    assert cell in (text, "'" + text)
    if cell.lstrip(" ")[:1] in tuple("=+-@\t\r\n\0"):
        assert cell == "" or float(cell) == float(text)  # a number, and nothing but a number
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerow([cell, "next"])
    stream.seek(0)
    assert list(csv.reader(stream, strict=True)) == [[cell, "next"]]


def test_times_in_words() -> None:
    assert utc_text(EXPORT_MS) == "2025-11-24T15:59:59.137Z"
    assert [utc_text(v) for v in (None, 0, -1, True, "1", 2**62)] == [""] * 6


# ---- exports ----


class FakeStore:
    """Pages of rows, as the audit gives them."""

    def __init__(self, **tables: list[dict[str, object]]) -> None:
        self.tables = tables
        self.calls = 0

    def table(self, name: str, since_rowid: int = 0, limit: int = 1000) -> list[dict[str, object]]:
        self.calls += 1
        rows = [{"rowid": n, **row} for n, row in enumerate(self.tables.get(name, []), start=1)]
        return [row for row in rows if row["rowid"] > since_rowid][:limit]  # type: ignore[operator]


def fill(day_ms: int, side: str, price: str, volume: str, **more: object) -> dict[str, object]:
    """A fill as the audit holds it: exact numbers as text."""
    row = {
        "mode": "paper",
        "fill_id": "f",
        "order_id": "o",
        "pair": "XBTZAR",
        "side": side,
        "time_ms": day_ms,
    }
    return {**row, "price": price, "volume": volume, "fee_base": "0", "fee_counter": "0", **more}


def rows_of(path: Path) -> list[dict[str, str]]:
    """A CSV file as a spreadsheet reads it."""
    assert path.read_bytes()[:3] == b"\xef\xbb\xbf" or path.stat().st_size == 0
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def test_an_export_holds_every_row_of_every_table_safely(tmp_path: Path) -> None:
    events: list[dict[str, object]] = [{"time_ms": EXPORT_MS + n, "text": f"row {n}"} for n in range(2500)]
    events.append({"time_ms": 0, "text": '=HYPERLINK("http://x")\nsecond line, "quoted"'})
    fills = [fill(EXPORT_MS, "buy", "100.10", "0.5")]
    store = FakeStore(events=events, fills=fills, decisions=[{"time_ms": 5, "numbers": None, "delta": -1.25}])
    names = export_audit(store, tmp_path / "exports", EXPORT_MS)
    home = tmp_path / "exports" / "lunobiz-export-20251124-155959"
    assert sorted(names) == sorted(f"{home.name}/{name}" for name in os.listdir(home))
    assert {name.rpartition("/")[2] for name in names} >= {"orders.csv", "snapshots.jsonl", "tax_fills.csv"}
    read = rows_of(home / "events.csv")
    assert len(read) == 2501
    assert read[2499] == {
        "rowid": "2500", "time_ms": str(EXPORT_MS + 2499), "time_utc": "2025-11-24T16:00:01.636Z",
        "text": "row 2499",
    }  # fmt: skip
    assert (
        read[2500]["text"] == '\'=HYPERLINK("http://x")\nsecond line, "quoted"'
        and read[2500]["time_utc"] == ""
    )
    (decision,) = rows_of(home / "decisions.csv")
    assert (decision["numbers"], decision["delta"]) == ("", "-1.25")
    lines = (home / "events.jsonl").read_text(encoding="ascii").split("\n")
    assert len(lines) == 2502 and lines[-1] == ""
    assert json.loads(lines[2500])["text"].startswith("=HYPERLINK")


def test_an_export_never_overwrites(tmp_path: Path) -> None:
    export_audit(FakeStore(), tmp_path, EXPORT_MS)
    with pytest.raises(DataError, match="is there already; nothing was overwritten"):
        export_audit(FakeStore(), tmp_path, EXPORT_MS)
    export_audit(FakeStore(), tmp_path, EXPORT_MS + 1000)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError):
        export_audit(FakeStore(), tmp_path / "file", EXPORT_MS)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_table_that_cannot_be_paged_ends_in_an_error(tmp_path: Path) -> None:
    class Stuck(FakeStore):
        def table(self, name: str, since_rowid: int = 0, limit: int = 1000) -> list[dict[str, object]]:
            return [{"rowid": 1, "text": "again"}]

    with pytest.raises(DataError, match="cannot be paged"):
        export_audit(Stuck(), tmp_path, EXPORT_MS)


def test_json_lines_hold_one_row_each_whatever_is_in_them(tmp_path: Path) -> None:
    text = 'a\r\n{"level":"forged"}\u2028\x1b[31m'
    rows: list[dict[str, object]] = [{"text": text, "x": math.inf, "long": "x" * 99_999}]
    export_audit(FakeStore(events=rows), tmp_path, EXPORT_MS)
    text = next(tmp_path.glob("*/events.jsonl")).read_text(encoding="ascii")
    assert text.count("\n") == 1 and "\x1b" not in text
    row = json.loads(text)
    assert row["text"] == rows[0]["text"] and row["x"] is None and len(row["long"]) == 32_000
