"""The measured systems: an environment of its own for each, a process for each work, runs taken in turns."""

from __future__ import annotations

import json
import os
import queue
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from works import RULES

HERE = Path(__file__).parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
INSTALL_S, READY_S, RUN_S = 1200.0, 300.0, 1800.0


class Trouble(Exception):
    """A system that cannot be measured, with the reason in one line."""


@dataclass(frozen=True)
class System:
    """A name, its script and packages; `sets` says of which sweeps only so many sets are run.

    `compiles` is true where the first run compiles: it is told apart and never counts.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    works: tuple[str, ...]
    compiles: bool = False
    sets: Mapping[str, int] = field(default_factory=dict)


SYSTEMS = (
    System("this program", "program.py", (), ("A", "B", "C", "PF", "D", "WF")),
    System("compiled", "compiled.py", ("numba",), ("A", "B", "C", "PF", "D", "WF"), compiles=True),
    System("vectorbt", "peer_vectorbt.py", ("vectorbt",), ("A", "B", "C"), compiles=True),
    System("backtesting", "peer_backtesting.py", ("backtesting",), ("A", "B"), sets={"B": 10}),
    System("nautilus", "peer_nautilus.py", ("nautilus_trader",), ("A", "C")),
    System("freqtrade", "peer_freqtrade.py", ("freqtrade",), ("A", "C")),
    System("backtrader", "peer_backtrader.py", ("backtrader", "pandas"), ("A", "C")),
)
NAMES = tuple(s.name for s in SYSTEMS)


def last_line(file: Path) -> str:
    """What a log ends with."""
    lines = file.read_text("utf-8", "replace").strip().splitlines() if file.exists() else []
    return lines[-1][:200] if lines else "it says nothing"


def interpreter(system: System, folder: Path) -> Path:
    """The Python of a system's environment, made and filled if it is not there; Trouble if that fails."""
    if not system.packages:
        return Path(sys.executable)
    home, log = folder / "environments" / system.name, folder / "logs" / f"install-{system.name}.txt"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / "filled"
    if stamp.exists():
        return python
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {' '.join(system.packages)} into {home}", file=sys.stderr, flush=True)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *system.packages]
    with log.open("wb") as out:
        for command in ([sys.executable, "-m", "venv", str(home)], install):
            try:
                subprocess.run(command, stdout=out, stderr=out, check=True, timeout=INSTALL_S)
            except (OSError, subprocess.SubprocessError) as error:
                raise Trouble(f"not installed ({type(error).__name__}): {last_line(log)}") from None
    stamp.touch()
    return python


@dataclass
class Result:
    """What was measured of one system in one work; seconds are of the whole work."""

    system: str
    version: str = ""
    share: float = 1.0
    runs: list[dict[str, float]] = field(default_factory=list)
    trouble: str = ""
    compiles: bool = False

    @property
    def counted(self) -> list[dict[str, float]]:
        """The runs that count."""
        return self.runs[1:] if self.compiles else self.runs

    def _median(self, name: str) -> float:
        return statistics.median(r[name] for r in self.counted) / self.share

    @property
    def cpu_s(self) -> float:
        """Median CPU seconds, NaN if there are none."""
        return self._median("cpu_s") if self.counted else float("nan")

    @property
    def wall_s(self) -> float:
        """Median seconds by the clock on the wall."""
        return self._median("wall_s") if self.counted else float("nan")

    @property
    def peak_mb(self) -> float:
        """The most memory its process has had."""
        return max((r["peak_mb"] for r in self.runs), default=float("nan"))


class Running:
    """A system's process for one work; its answers come through a queue, so that waiting has an end."""

    def __init__(self, system: System, work: str, candles: Path, folder: Path, sets: int | None) -> None:
        self.system, self.result = system, Result(system.name, compiles=system.compiles)
        self._log = folder / "logs" / f"{system.name}-{work}.txt"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        count = str(min(sets or system.sets.get(work, len(RULES)), len(RULES)))
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        python = interpreter(system, folder)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(HERE / system.script), work, str(candles), count], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | ONE_THREAD, cwd=folder,
            )
        threading.Thread(target=self._read, daemon=True).start()
        ready = self._answer(READY_S)
        self.result.version = str(ready["version"])
        self.result.share = float(ready["share"]) if work in ("B", "PF", "WF") else 1.0

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put("")

    def _answer(self, patience_s: float) -> dict[str, float]:
        try:
            line = self._answers.get(timeout=patience_s)
        except queue.Empty:
            line = ""
        if line:
            return dict(json.loads(line))
        self.end()
        raise Trouble(f"no answer: {last_line(self._log)}")

    def run(self) -> dict[str, float]:
        """One run."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write("run\n")
        stdin.flush()
        self.result.runs.append(self._answer(RUN_S))
        return self.result.runs[-1]

    def wants_more(self, rounds: int, budget_s: float) -> bool:
        """True while there are rounds left and the last run leaves hope that the next fits the budget."""
        counted = self.result.counted
        spent = sum(r["cpu_s"] for r in counted)
        return not counted or (len(counted) < rounds and spent + counted[-1]["cpu_s"] <= budget_s)

    def end(self, patience_s: float = 10.0) -> None:
        """Close its stdin, which ends it, and if it does not, end it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def measure(work: str, systems: tuple[System, ...], candles: Path, folder: Path, sets: int | None, rounds: int,
            budget_s: float) -> list[Result]:
    """One work on all systems that do it: all are started, then they run in turns until each has had enough."""
    running: list[Running] = []
    results: list[Result] = []
    try:
        for system in (s for s in systems if work in s.works):
            try:
                running.append(Running(system, work, candles, folder, sets))
                results.append(running[-1].result)
            except Trouble as trouble:
                results.append(Result(system.name, trouble=str(trouble)))
        take_turns(work, running, rounds, budget_s)
    finally:  # broken off: nothing goes on behind our back
        for one in running:
            one.end(0.0)
    return results


def take_turns(work: str, running: list[Running], rounds: int, budget_s: float) -> None:
    """A run of each, again and again, until each has had enough; who has is taken from the list."""
    while running:
        for one in tuple(running):
            try:
                print(f"  {work}: {one.system.name}, run {len(one.result.runs) + 1}", file=sys.stderr, flush=True)
                one.run()
            except (Trouble, OSError) as trouble:
                one.result.trouble = str(trouble)
                one.end()
                running.remove(one)
                continue
            if not one.wants_more(rounds, budget_s):
                one.end()
                running.remove(one)
