"""Measures this program beside others and says which figures it reaches.

    python tests/bench/run.py                         everything; the first time it installs the others, an hour or so
    python tests/bench/run.py A C --peers compiled    two works, this program and the compiled limit only
    python tests/bench/run.py PL PD PU PG             what has no peer: live cycle, cache, window, gates

Run it with a Python that has the program's requirements. `works.py` tells the works and their rules. The others live
in environments of their own in the work folder, which stays for the next time. Times are CPU seconds, medians of
runs taken in turns; only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import market
from figures import Figure, of_works
from systems import HERE, NAMES, ONE_THREAD, SYSTEMS, Result, last_line, measure
from works import RULES, WORKS

OWN = {"PG": "gates.py", "PL": "live.py", "PD": "cache.py", "PU": "window.py"}
OWN_S = 3600.0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description="Benchmarks of this program beside others.")
    p.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join((*WORKS, *OWN))}; all if none is named")
    p.add_argument("--peers", nargs="*", choices=NAMES[1:], default=NAMES[1:], help="whom to measure beside it")
    default = Path(tempfile.gettempdir()) / "lunobiz-bench"
    p.add_argument("--work-dir", type=Path, default=default, metavar="DIR", help=f"default {default}")
    p.add_argument("--rounds", type=int, default=5, help="runs that count, per system and work (default 5)")
    p.add_argument("--budget", type=float, default=60.0, metavar="S",
                   help="no further run of a system whose runs of a work would take more CPU than this (default 60)")
    p.add_argument("--sets", type=int, help=f"sets to run of the {len(RULES)} of a sweep, for all; the rest is scaled")
    p.add_argument("--json", type=Path, metavar="OUT", help="a file for all results")
    a = p.parse_args(argv)
    a.works = tuple(word.upper() for word in a.works) or (*WORKS, *OWN)
    unknown = [word for word in a.works if word not in (*WORKS, *OWN)]
    if unknown:
        p.error(f"there is no work {', '.join(unknown)}")
    return a


def table(rows: Sequence[Sequence[str]], left: frozenset[int]) -> str:
    """Rows as text; the columns in `left` start at the left, the others end at the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(n) if i in left else cell.rjust(n)
                       for i, (cell, n) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * n for n in widths))
    return "\n".join(lines)


def seconds(value: float) -> str:
    """Seconds with three digits that count."""
    return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def note_of(r: Result) -> str:
    """What must be known to read the line."""
    notes = [r.trouble] if r.trouble else []
    notes += ["its own rules"] if r.system == NAMES[0] else []
    notes += [f"{round(r.share * len(RULES))} of {len(RULES)} sets, scaled"] if r.share < 1 else []
    notes += [f"first run {seconds(r.runs[0]['cpu_s'] / r.share)} s"] if r.compiles and r.runs else []
    return "; ".join(notes)


def work_table(results: Sequence[Result]) -> str:
    """What was measured in one work."""
    rows = [("system", "version", "CPU s", "wall s", "runs", "round trips", "profit", "peak MB", "")]
    for r in results:
        last = r.runs[-1] if r.runs else None
        told = (f"{last['round_trips']:,}", f"{last['profit']:,.0f}", f"{r.peak_mb:,.0f}") if last else ("-", "-", "-")
        rows.append((r.system, r.version or "-", seconds(r.cpu_s), seconds(r.wall_s), str(len(r.counted)), *told,
                     note_of(r)))
    return table(rows, frozenset((0, 1, 8)))


def figure_table(figures: Sequence[Figure]) -> str:
    """Each figure with what it needs and what was measured."""
    rows = [("id", "figure", "needed", "measured", "verdict", "")]
    for f in figures:
        sign = ">=" if f.least else "<="
        actual = "-" if math.isnan(f.actual) else f"{f.actual:.3g} {f.unit}"
        rows.append((f.id, f.text, f"{sign} {f.needed:g} {f.unit}", actual, f.verdict, f.note))
    return table(rows, frozenset((0, 1, 4, 5)))


def own(name: str, folder: Path) -> list[Figure]:
    """Run one of the scripts that measure this program alone; it prints its figures as JSON lines."""
    log = folder / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"  {name}: {OWN[name]}", file=sys.stderr, flush=True)
    with log.open("wb") as errors:
        try:
            done = subprocess.run([sys.executable, str(HERE / OWN[name]), str(folder)], stdout=subprocess.PIPE,
                                  stderr=errors, env=os.environ | ONE_THREAD, timeout=OWN_S, check=True)
        except subprocess.SubprocessError as error:
            return [Figure(name, OWN[name], math.nan, math.nan, note=f"{type(error).__name__}: {last_line(log)}")]
    return [Figure(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith(b"{")]


def machine() -> str:
    """What it runs on, and how busy that is: above its cores the clock on the wall means little."""
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}{busy}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, keep."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    a = arguments(argv)
    a.work_dir.mkdir(parents=True, exist_ok=True)
    systems = tuple(s for s in SYSTEMS if not s.packages or s.name in a.peers)
    results: dict[str, dict[str, Result]] = {}
    print(machine())
    for work in (x for x in WORKS if x in a.works):
        found = measure(work, systems, market.saved(a.work_dir), a.work_dir, a.sets, a.rounds, a.budget)
        results[work] = {r.system: r for r in found}
        print(f"\nWork {work}\n{work_table(found)}", flush=True)
    figures = of_works(results) + [f for name in OWN if name in a.works for f in own(name, a.work_dir)]
    print(f"\n{machine()}\n\n{figure_table(figures)}")
    if a.json is not None:
        kept = {"machine": machine(), "works": {w: [asdict(r) for r in by.values()] for w, by in results.items()},
                "figures": [{**f._asdict(), "verdict": f.verdict} for f in figures]}
        a.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit("broken off") from None
