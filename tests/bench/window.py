"""PU: does the window stay smooth while a backtest runs, and what does a refresh of its four tables cost.

The real window over a real demo session, on a virtual screen where there is none. A heartbeat of 5 ms tells how late
the window's thread is: first with the demo alone, then while a backtest runs in its process, last with a crowded desk:
20 markets ranked and 200 rows in each other table, a tenth of which changes with each news, five times a second. The
clock on the wall counts here, so other programs on the same cores make it worse.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import market
import numpy as np
from own import lb, tell

BEAT_MS, ALONE_S, WITH_S, PATIENCE_S, REFRESHES = 5, 8.0, 20.0, 60.0, 200
MARKETS, ROWS, CHANGED, NEWS_MS, CROWD_S = 20, 200, 10, 200, 15.0
LATE_P99_MS, LATE_MAX_MS, REFRESH_P95_MS = 15.0, 50.0, 25.0


@contextlib.contextmanager
def a_screen() -> Iterator[None]:
    """The screen there is, or a virtual one for as long as this lasts."""
    server = shutil.which("Xvfb")
    if os.name == "nt" or os.environ.get("DISPLAY"):
        yield
        return
    if server is None:
        raise SystemExit("no screen and no Xvfb")
    reader, writer = os.pipe()
    process = subprocess.Popen([server, "-displayfd", str(writer), "-screen", "0", "1920x1080x24", "-nolisten", "tcp"],
                               pass_fds=(writer,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader) as answer:
            os.environ["DISPLAY"] = f":{answer.readline().strip()}"
        yield
    finally:
        process.terminate()
        process.wait(10)


def write_candles(folder: Path, source: Path) -> None:
    """The five generated markets as a folder that the backtest reads."""
    folder.mkdir()
    candles = market.load(source)
    for m, base in enumerate(("AAA", "BBB", "CCC", "DDD", "EEE")):
        columns = (candles.opened, candles.open[m], candles.high[m], candles.low[m], candles.close[m],
                   candles.volume[m])
        np.savetxt(folder / f"{base}ZAR_300.csv", np.column_stack(columns), fmt=["%d", *["%.6g"] * 5], delimiter=",",
                   header="timestamp,open,high,low,close,volume", comments="")


class Heart:
    """A timer every 5 ms that notes how late it came, in ms, and the news that the window shows meanwhile."""

    def __init__(self, window: lb.Dashboard) -> None:
        self._window, self.late_ms, self.news = window, [], []
        self._last = time.perf_counter()
        self._beat()

    def _beat(self) -> None:
        now = time.perf_counter()
        self.late_ms.append((now - self._last) * 1000 - BEAT_MS)
        news = self._window.screen.news
        if news is not None and (not self.news or news is not self.news[-1]):
            self.news.append(news)
        self._last = time.perf_counter()
        self._window.root.after(BEAT_MS, self._beat)

    def listen(self, seconds: float, is_over: Callable[[], bool] = lambda: False) -> np.ndarray:
        """How late each beat of the coming seconds was; ends early when `is_over` says so."""
        self.late_ms.clear()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not is_over():
            self._window.root.tk.dooneevent(0)
        return np.array(self.late_ms)


def refreshes_ms(window: lb.Dashboard, news: list[lb.DeskNews]) -> np.ndarray:
    """CPU of this thread for showing news in the four tables and drawing them, in ms."""
    found = []
    for number in range(REFRESHES):
        started = time.thread_time()
        window.screen.desk.show(news[number % len(news)])
        window.root.update_idletasks()
        found.append((time.thread_time() - started) * 1000)
    return np.array(found[len(found) // 10 :])


def crowd(news: lb.DeskNews, step: int) -> lb.DeskNews:
    """The same news with full tables; each step changes every tenth row in its last cell but one."""
    def full(rows: tuple[lb.Row, ...], count: int) -> tuple[lb.Row, ...]:
        found = []
        for n in range(count if rows else 0):
            row = rows[n % len(rows)]
            cells = list(row.cells)
            cells[-2] = f"{1_000 + n + step:,}" if n % CHANGED == step % CHANGED else cells[-2]
            found.append(lb.Row(f"{n}-{row.key}", tuple(cells), row.tone))
        return tuple(found)

    tables = {name: full(getattr(news, name), ROWS) for name in ("positions", "decisions", "fills", "orders")}
    return replace(news, time_ms=news.time_ms + step, ranking=full(news.ranking, MARKETS), **tables)


def crowded(window: lb.Dashboard, heart: Heart, news: lb.DeskNews) -> tuple[np.ndarray, np.ndarray]:
    """With a crowded desk: how late the beats are while news come, and CPU of a refresh, both in ms."""
    said, steps = [crowd(news, step) for step in range(CHANGED)], [0]

    def say() -> None:
        window.screen.show(said[steps[0] % CHANGED])
        steps[0] += 1
        window.root.after(NEWS_MS, say)

    window._take_events = lambda: None  # the news of the demo would throw all rows out again
    cost = refreshes_ms(window, said)
    say()
    heart.listen(1.0)
    late = heart.listen(CROWD_S)
    del window._take_events
    return late, cost


def words(late: np.ndarray) -> str:
    """The beats in short."""
    return f"p50 {np.percentile(late, 50):.1f}, p99 {np.percentile(late, 99):.1f}, max {late.max():.1f} ms"


def main(folder: Path) -> None:
    """Open the window, listen, backtest, listen, refresh, close."""
    with tempfile.TemporaryDirectory(dir=folder) as place, a_screen():
        home = Path(place)
        write_candles(home / "candles", market.saved(folder))
        (home / "desk").mkdir()
        settings = lb.Settings(schedule=lb.Schedule(timeframes=(3600,)))  # as the demo has them
        session = lb.Session(lb.Mode.DEMO, settings, home / "desk", {}, lb.DEMO_SEED, "", lb.DEMO_SPEED)
        worker = lb.Worker(lambda listen: lb.open_engine(session, listen))
        window = lb.Dashboard(worker, lb.WindowOptions(lb.Mode.DEMO, home / "desk", "benchmark", lambda: None))
        done: list[object] = []
        show_result = window.screen.backtest.show_result

        def note_result(event: lb.BacktestDone) -> None:
            done.append(event)
            show_result(event)

        window.screen.backtest.show_result = note_result
        worker.start()
        heart = Heart(window)
        heart.listen(PATIENCE_S, lambda: window.screen.news is not None and len(window.screen.news.decisions) > 50)
        heart.listen(2.0)
        alone = heart.listen(ALONE_S)
        worker.send(lb.RunBacktest(lb.BacktestRequest("folder", str(home / "candles"))))
        started = time.monotonic()
        during = heart.listen(WITH_S, lambda: bool(done))
        ran_s = time.monotonic() - started
        worker.send(lb.CancelBacktest())
        worker.send(lb.Stop())
        heart.listen(1.0)
        news = heart.news[-20:]
        cost = refreshes_ms(window, [replace(n, time_ms=n.time_ms + 1) for n in news])
        fullest = max(heart.news, key=lambda n: (bool(n.positions), bool(n.fills), len(n.decisions)))
        busy, crowd_cost = crowded(window, heart, fullest)
        window.leave()
        window.root.mainloop()
    note = f"{len(during):,} beats in {ran_s:.0f} s of backtest: {words(during)}; demo alone: {words(alone)}"
    tell("PU", f"window's beat of {BEAT_MS} ms during a backtest, late at p99", LATE_P99_MS,
         float(np.percentile(during, 99)), "ms", note)
    tell("PU", "the same, latest of all", LATE_MAX_MS, float(during.max()), "ms")
    tell("PU", "refresh of the four tables, CPU at p95", REFRESH_P95_MS, float(np.percentile(cost, 95)), "ms",
         f"{len(news)} states of a demo in turn, {len(news[-1].decisions)} decisions; median {np.median(cost):.1f} ms")
    sizes = ", ".join(f"{ROWS if getattr(fullest, name) else 0} {name}" for name in ("positions", "decisions", "fills"))
    tell("PU", f"window's beat of {BEAT_MS} ms with a crowded desk, late at p99", LATE_P99_MS,
         float(np.percentile(busy, 99)), "ms", f"{MARKETS} ranked, {sizes}; {words(busy)}")
    tell("PU", "refresh of the crowded tables, CPU at p95", REFRESH_P95_MS, float(np.percentile(crowd_cost, 95)), "ms",
         f"p99 {np.percentile(crowd_cost, 99):.1f}, median {np.median(crowd_cost):.1f} ms")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
