"""What LIVE asks of the audit: a pass of every gate on Luno's own candles, and a set that training has chosen."""

from __future__ import annotations

from dataclasses import replace

import lunobiz


def keep_a_pass(engine: lunobiz.Engine, now_ms: int, **changes: object) -> None:
    """Store one for exactly what this session trades, with its own key, code, fees and settings."""
    store = engine.parts.store
    task = lunobiz.gate_task(engine, lunobiz.BacktestRequest("cache"), now_ms)
    assert isinstance(task.source, lunobiz.GateJob)
    job = replace(task.source, is_self_tested=True, self_test_id="T-1")
    gates = tuple(lunobiz.Gate(f"G{n}", "Gate", "PASS", "", "", None, "") for n in range(10))
    found = lunobiz.Evaluation(gates, (), (), "", 1, 0.5, now_ms - 720 * lunobiz.DAY_MS, now_ms, "{}", "luno")
    held = replace(lunobiz.gate_pass(job, found, task.code_hash), **changes)  # type: ignore[arg-type]
    attempts = store.links("attempts")
    if not attempts:
        look = lunobiz.look_of(job, task.code_hash, (now_ms - 720 * lunobiz.DAY_MS, now_ms), now_ms)
        attempts = (store.add_link("attempts", now_ms, lambda _: lunobiz.canonical(look)),)
    store.add_link("gate_rows", now_ms, lambda before: lunobiz.sealed(
        lunobiz.canonical(held), before, now_ms, attempts[-1].hash, engine.parts.install.key))  # fmt: skip


def keep_a_choice(engine: lunobiz.Engine, now_ms: int, chosen: int = 0) -> None:
    """Store a choice for exactly this configuration, as training would have; a session knows it once it is opened."""
    held = lunobiz.HeldChoice(chosen, max(0, chosen), 1.5, now_ms // lunobiz.DAY_MS * lunobiz.DAY_MS)
    engine.parts.store.record_metrics(now_ms, "choice", {
        "configuration": lunobiz.configuration_of(engine.settings, engine.parts.install), **held._asdict()})
