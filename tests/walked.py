"""Which branches of the code that decides about real money do the quick tests walk? Prints a line per section, then
what was missed; ends with 1 if anything was. `python tests/walked.py` runs the tests, a quarter of an hour, and
`python tests/walked.py FILE` reads coverage's JSON report of the same program.

A branch is a jump from one statement to another: two outcomes of a condition within one statement count as one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).parent.parent
SECTIONS = ("PORTFOLIO", "RISK", "CYCLE", "GATES", "LEDGER", "REPLAY", "ORDERS", "SYSTEM", "EXECUTION", "LIVE",
            "ENGINE")
PARTS: Mapping[str, frozenset[str]] = {"SYSTEM": frozenset({"kill_file_found", "is_killed", "write_kill_file"})}
TESTS = tuple(f"tests/test_{name.lower()}.py" for name in (*SECTIONS, "LINE", "SECURITY", "UNLOCK"))


class Walked(NamedTuple):
    """Branches and lines of a section, walked and there, and the missed ones in words."""

    branches: tuple[int, int]
    lines: tuple[int, int]
    missed: tuple[str, ...]


def lines_of(source: Sequence[str], functions: Mapping[str, Mapping[str, list[int]]]) -> dict[str, set[int]]:
    """The line numbers of each section, or of the functions of it that count."""
    heads = [(n, found[1]) for n, text in enumerate(source, 1) if (found := re.match(r"# ([A-Z]+) \| ", text))]
    spans = {name: set(range(start, end)) for (start, name), (end, _) in pairwise([*heads, (len(source) + 1, "")])}
    for section, names in PARTS.items():
        parts = (functions[n]["executed_lines"] + functions[n]["missing_lines"] for n in names)
        spans[section] &= {line for part in parts for line in part}
    return {name: spans[name] for name in SECTIONS}


def walked_of(report: Mapping[str, list[list[int]]], own: set[int], source: Sequence[str]) -> Walked:
    """The figures of the lines that are a section's own."""
    taken, missed = ([(a, b) for a, b in report[f"{kind}_branches"] if a in own] for kind in ("executed", "missing"))
    lines, lost = (own.intersection(report[f"{kind}_lines"]) for kind in ("executed", "missing"))
    words = [f"{a} to {b if b > 0 else 'its end'}: {source[a - 1].strip()}" for a, b in missed]
    words += [f"{line}: {source[line - 1].strip()}" for line in sorted(lost)]
    return Walked((len(taken), len(taken) + len(missed)), (len(lines), len(lines) + len(lost)), tuple(words))


def measure(target: Path) -> None:
    """Run the tests and write coverage's own JSON report."""
    command = [sys.executable, "-m", "pytest", "-q", "--cov", f"--cov-report=json:{target}", *TESTS]
    subprocess.run(command, cwd=HOME, env=os.environ | {"COVERAGE_FILE": f"{target}.data"}, check=True)


def main() -> int:
    """Print the table and what was missed."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "walked.json"
        if len(sys.argv) < 2:
            measure(given)
        report = json.loads(given.read_text(encoding="utf-8"))["files"]["lunobiz.py"]
    source = (HOME / "lunobiz.py").read_text(encoding="utf-8").splitlines()
    found = {name: walked_of(report, own, source) for name, own in lines_of(source, report["functions"]).items()}
    for name, walked in found.items():
        (a, b), (c, d) = walked.branches, walked.lines
        print(f"{name:10} {a:4} of {b:4} branches, {c:4} of {d:4} lines")
    for name, walked in found.items():
        print(*(f"{name} {words}" for words in walked.missed), sep="\n", end="\n" * bool(walked.missed))
    return int(any(walked.missed for walked in found.values()))


if __name__ == "__main__":
    sys.exit(main())
