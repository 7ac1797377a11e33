"""Stand-ins for the world: a clock that moves when told, a line to the exchange that follows a script."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import lunobiz


class FakeClock:
    """A clock that stands still; it starts at a random odd time, so code with its own clock is found out."""

    def __init__(self, start_ms: int | None = None) -> None:
        chance = random.Random()
        self._now_ms = float(chance.randrange(10**12 + 1, 3 * 10**12, 2) if start_ms is None else start_ms)
        self._mono_s = chance.uniform(1.0, 10**6)
        self.sleeps: list[float] = []

    def now_ms(self) -> int:
        """Wall time."""
        return int(self._now_ms)

    def mono_s(self) -> float:
        """Time that never goes back."""
        return self._mono_s

    def sleep(self, seconds: float) -> None:
        """Let time pass and remember that somebody waited."""
        assert seconds >= 0, "nobody can wait for the past"
        self.sleeps.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ms += seconds * 1000
        self._mono_s += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an owner or a time server does."""
        self._now_ms += seconds * 1000


class Request(NamedTuple):
    """What was asked."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...]
    key: lunobiz.Credentials | None


def reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> lunobiz.Reply:
    """An answer; bytes and texts go as they are, anything else as JSON."""
    raw = body if isinstance(body, (bytes, str)) else json.dumps(body)
    return lunobiz.Reply(status, dict(headers or {}), raw if isinstance(raw, bytes) else raw.encode())


Step = lunobiz.Reply | Exception | Callable[[Request], lunobiz.Reply]


class FakeTransport:
    """Answers by script: replies are given, errors raised, functions asked; the last step repeats."""

    def __init__(self, *script: Step, clock: FakeClock | None = None, took_s: float = 0.0) -> None:
        self._script = list(script)
        self._clock, self._took_s = clock, took_s
        self.requests: list[Request] = []
        self.is_closed = False

    def send(
        self,
        method: str,
        path: str,
        params: Sequence[tuple[str, str]] = (),
        key: lunobiz.Credentials | None = None,
    ) -> lunobiz.Reply:
        """The next step of the script."""
        request = Request(method, path, tuple(params), key)
        self.requests.append(request)
        if self._clock is not None:
            self._clock.advance(self._took_s)
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, lunobiz.Reply) else step(request)

    def close(self) -> None:
        """Hang up."""
        self.is_closed = True
