"""The house rules of lunobiz.py, kept by a test.

Nine rules read the program with `ast`; nothing is imported from it. A rule is a function of (tree, sections,
source) and gives complaints with line numbers. Each rule is itself tried twice: on a small clean program,
which it must let pass, and on planted faults, each of which it must find at its line and nowhere else.

If a limit has to be passed, raise it here to the actual figure and say why; no function is exempt by name.
"""

from __future__ import annotations

import ast
import builtins
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

PROGRAM = Path(__file__).parent.parent / "lunobiz.py"
SETTINGS_OF_TOOLS = PROGRAM.with_name("pyproject.toml")

# ---- the plan --------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


PURE = words(
    """ERRORS TYPES SETTINGS CANDLES INDICATORS STRATEGIES PORTFOLIO RISK FILLS CYCLE METRICS
    BACKTEST LANES SKIP WALK GATES LEDGER SELFTEST REPLAY ORDERS ROWS REPORTS ACCOUNT WHY TAX SEEDED"""
)
SHELL = words(
    """SYSTEM STORE PARITY HTTP LUNO DEMO FEED EXECUTION LIVE NOTIFY KEYS FILES DOCTOR SUPPORT ENGINE REHEARSAL JOBS
    WORKER WIDGETS PANELS DIALOGS TOASTS FORMS WIZARD BARS DASHBOARD SETUP ARGUMENTS SESSION MAIN"""
)
ORDER = PURE + SHELL
MAY_BE_ABSENT = frozenset(words("LANES SKIP WALK GATES LEDGER SELFTEST EXECUTION KEYS JOBS"))  # planned
WINDOW = frozenset({"WIDGETS", "PANELS", "DIALOGS", "TOASTS", "FORMS", "WIZARD", "BARS", "DASHBOARD"})
NOT_FOR_THE_WINDOW = frozenset({"STORE", "HTTP", "LUNO", "FEED", "EXECUTION", "LIVE", "ENGINE", "REHEARSAL"})

OWNERS = {
    "sqlite3": frozenset({"STORE"}),
    "requests": frozenset({"HTTP"}),
    "ssl": frozenset({"HTTP"}),
    "urllib3": frozenset({"HTTP"}),
    "threading": frozenset({"WORKER"}),
    "queue": frozenset({"WORKER"}),
    "concurrent": frozenset({"JOBS"}),
    "multiprocessing": frozenset({"JOBS"}),
    "tkinter": WINDOW,
    "ttkbootstrap": WINDOW,
    "plyer": frozenset({"NOTIFY"}),
    "dotenv": frozenset({"SYSTEM"}),
    "pandas": frozenset({"FILES"}),
}
MAIN_MAY_NAME = {"multiprocessing": "freeze_support", "threading": "excepthook"}  # and nothing else of them

PURE_IMPORTS = frozenset(
    words(
        """__future__ bisect collections dataclasses datetime decimal difflib enum functools hashlib hmac
        itertools json math numpy operator random re statistics types typing"""
    )
)
GUARD_IMPORTS = frozenset({"io", "os", "sys"})  # the head's guard needs them; pure sections may not name them
NOT_PURE = frozenset(words("open print input getattr eval exec Any time __import__ globals breakpoint hash id"))
CLOCK_ANYWHERE = frozenset({"now", "today", "utcnow"})
# what the time is, SYSTEM alone tells; how long something took, any shell section may measure
CLOCK_OF_TIME = frozenset(words("time time_ns localtime gmtime ctime asctime"))
SEEDED = frozenset(words("default_rng Generator SeedSequence BitGenerator PCG64 PCG64DXSM Philox SFC64 MT19937"))

FORBIDDEN_LIBRARIES = frozenset({"pickle", "yaml", "marshal", "shelve"})
FORBIDDEN_TEXTS = frozenset({"CERT_NONE", "_create_unverified_context", "import_module"})

IMPORT_TIME_CALLS = frozenset(
    words("field auto Decimal frozenset MappingProxyType namedtuple TypeVar NewType ParamSpec tuple")
)
FREEZERS = frozenset({"MappingProxyType", "frozenset", "tuple"})

ORDER_HOMES = frozenset({"LUNO"})
BUILTIN_ERRORS = frozenset(
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
)
RAISABLE = frozenset({"ValueError", "TypeError"})

# The plan said 9,000 lines for the whole file. The first form with the demo exchange's order matching, the strict
# reading of every answer, the sealed audit and the window measures this; sections and functions keep their limits.
# The pages for splits, saved runs, comparison and gates, the lanes, the walk-forward, the gates with their ledger and
# self-test, the processes that evaluate them, and the recorded inputs with their check brought 5,300 more; the choice
# of the set that PAPER trades, its history and the days that count for G8 brought 370; reading many
# markets as one stack, 90; jobs whose cancel is answered at once, 80, and that fetch the history they need, 110; lanes
# that leave out the candles in which they cannot act, and what several sets read alike, 630; four-hour candles by
# default, the smallest order in G7 and the bad days in G8, 60. LIVE: orders, their journal, reconciles, the way there
# and a rehearsal brought 1,600. Closing all, the account's orders and coins in the window, what LIVE finds amiss, and
# its recorded answers, 300. The owner's settings as forms, how they are written, and the first run, 1,100. Tax
# tables and the support bundle, 800. Keys that Windows protects, the icon, and a second start that shows the first
# window, 250. Coins and cash that are gone, and what Windows says of file rights, 120; a demo market that holds its
# newest days and makes older ones again, 50. Words of the window, 150.
FILE_LINES, SECTION_LINES, CLASS_LINES = 23_300, 750, 250
FUNCTION_LINES, FUNCTION_P95, FUNCTION_MEDIAN, BRANCHES, PARAMETERS = 50, 35, 8, 10, 6
WIDTH = tomllib.loads(SETTINGS_OF_TOOLS.read_text(encoding="utf-8"))["tool"]["ruff"]["line-length"]

RULE_LINE = "# " + "=" * 78
NAME_LINE = re.compile(r"# ([A-Z]+) \| (\S.*)")
KIND_LINE = re.compile(r"# (pure|shell) \| uses ([A-Z]+(?: [A-Z]+)*|-)(?: \| owns ([a-z0-9]+(?: [a-z0-9]+)*))?")
BANNER_LIKE = re.compile(r"\s*#\s*([=\-#*~_])\1{3,}|# [A-Z]+ \|")
PLATFORM_FORK = re.compile(r"sys\.platform [!=]= |TYPE_CHECKING$")
MAP_ROW = re.compile(r"    ([A-Z]+) +(.*)")

# ---- reading the program ---------------------------------------------------


class Complaint(NamedTuple):
    """What is wrong, and where."""

    line: int
    text: str


class Section(NamedTuple):
    """One section as its banner tells it; the head has the name "" and no banner."""

    name: str
    question: str
    kind: str  # "" if the banner's third line cannot be read
    uses: tuple[str, ...]
    owns: tuple[str, ...]
    line: int
    end: int


Rule = Callable[[ast.Module, Sequence[Section], str], list[Complaint]]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
IMPORTS = (ast.Import, ast.ImportFrom)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign)


def sections_of(source: str) -> list[Section]:
    """The head and the sections, in the order of the file."""
    lines = source.split("\n")
    starts = [i for i in range(len(lines) - 3) if is_banner(lines[i : i + 4])]
    ends = [*starts, len(lines)][1:]
    head = Section("", "", "head", (), (), 1, starts[0] if starts else len(lines))
    return [head, *(section_from(lines[i : i + 4], i + 1, end) for i, end in zip(starts, ends, strict=True))]


def is_banner(lines: Sequence[str]) -> bool:
    """True for a rule, a name with its question, anything, a rule."""
    return lines[0] == lines[3] == RULE_LINE and NAME_LINE.fullmatch(lines[1]) is not None


def section_from(lines: Sequence[str], line: int, end: int) -> Section:
    """The section that a banner's four lines announce."""
    name, kind = NAME_LINE.fullmatch(lines[1]), KIND_LINE.fullmatch(lines[2])
    title = (name[1], name[2]) if name else ("", "")
    if kind is None:
        return Section(*title, "", (), (), line, end)
    uses = () if kind[2] == "-" else tuple(kind[2].split())
    return Section(*title, kind[1], uses, tuple((kind[3] or "").split()), line, end)


def section_at(sections: Sequence[Section], line: int) -> str:
    """The name of the section that holds the line."""
    return next(s.name for s in reversed(sections) if s.line <= line)


def located(tree: ast.Module, sections: Sequence[Section]) -> Iterator[tuple[ast.AST, str]]:
    """Every node of the program with the name of its section."""
    for statement in tree.body:
        name = section_at(sections, statement.lineno)
        for node in ast.walk(statement):
            yield node, name


def scoped(node: ast.AST, scope: tuple[str, ...] = ()) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """Every node below this one with the names of the classes and functions around it."""
    for child in ast.iter_child_nodes(node):
        yield child, scope
        yield from scoped(child, (*scope, child.name) if isinstance(child, DEFINITIONS) else scope)


def line_of(node: ast.AST) -> int:
    """The line of a node; 1 for nodes that have none."""
    return int(getattr(node, "lineno", 1))


def last_name(node: ast.AST | None) -> str:
    """`c` of `c`, of `a.b.c` and of a call of either; "" for anything else."""
    match node:
        case ast.Call(func=function):
            return last_name(function)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def is_attribute_of(node: ast.AST, *owners: str) -> bool:
    """True for `owner.anything` with one of the owners named."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners


def libraries(node: ast.AST) -> list[str]:
    """The top names of the modules that an import statement names."""
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module)):
            return [module.partition(".")[0]]
    return []


def docstrings(tree: ast.Module) -> set[ast.AST]:
    """The constants that are docstrings, which no rule about texts looks at."""
    owners = [tree, *(n for n in ast.walk(tree) if isinstance(n, DEFINITIONS))]
    first = [owner.body[0] for owner in owners if owner.body]
    return {s.value for s in first if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)}


# ---- which names a statement binds, and which it takes from the module -----


def bindings(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that these nodes bind in the scope they stand in."""
    for node in nodes:
        yield from bound_here(node)
        if not isinstance(node, (*DEFINITIONS, *COMPREHENSIONS, ast.Lambda)):
            yield from bindings(ast.iter_child_nodes(node))


def bound_here(node: ast.AST) -> Iterator[str]:
    """The names that this node binds, its children aside; a walrus escapes from its comprehension."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            yield name
        case ast.alias(name=name, asname=short):
            yield short or name.partition(".")[0]
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            yield from (n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr))


def parameters(arguments: ast.arguments) -> list[ast.arg]:
    """All parameters, `*args` and `**kwargs` with them."""
    plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return plain + [a for a in (arguments.vararg, arguments.kwarg) if a is not None]


def defaults(arguments: ast.arguments) -> list[ast.expr]:
    """The default values of all parameters."""
    return [*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)]


class FreeNames(ast.NodeVisitor):
    """Collects the names that a statement takes from the module; string annotations count like real ones."""

    def __init__(self) -> None:
        self.found: list[ast.Name] = []
        self._scopes: list[tuple[bool, frozenset[str]]] = []  # is it a class, the names it binds
        self._in_annotation = False

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and not self._is_local(node.id):
            self.found.append(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_all([*node.decorator_list, *defaults(node.args)])
        for annotation in (node.returns, *(a.annotation for a in parameters(node.args))):
            self._visit_annotation(annotation)
        self._visit_inside(False, {a.arg for a in parameters(node.args)} | set(bindings(node.body)), node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_all(defaults(node.args))
        self._visit_inside(False, {a.arg for a in parameters(node.args)} | set(bindings([node.body])), [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all([*node.decorator_list, *node.bases, *(k.value for k in node.keywords)])
        self._visit_inside(True, set(bindings(node.body)), node.body)

    def _visit_comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        first, *others = node.generators
        self.visit(first.iter)  # the first source is read outside
        names = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        conditions = [condition for g in node.generators for condition in g.ifs]
        self._visit_inside(False, names, [*results, *conditions, *(g.iter for g in others)])

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_annotation(node.annotation)
        self._visit_all([node.target, *([node.value] if node.value else [])])

    def visit_Call(self, node: ast.Call) -> None:
        if last_name(node) == "cast" and node.args:
            self._visit_annotation(node.args[0])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        if not (self._in_annotation and last_name(node.value) == "Literal"):
            self.visit(node.slice)

    def visit_Constant(self, node: ast.Constant) -> None:
        if self._in_annotation and isinstance(node.value, str):
            expression = ast.parse(node.value, mode="eval").body
            for part in ast.walk(expression):
                part.lineno = node.lineno  # type: ignore[attr-defined]
            self.visit(expression)

    def _visit_annotation(self, node: ast.expr | None) -> None:
        before, self._in_annotation = self._in_annotation, True
        self._visit_all([node] if node else [])
        self._in_annotation = before

    def _visit_inside(self, is_class: bool, names: set[str], nodes: Iterable[ast.AST]) -> None:
        before, self._in_annotation = self._in_annotation, False
        self._scopes.append((is_class, frozenset(names)))
        self._visit_all(nodes)
        self._scopes.pop()
        self._in_annotation = before

    def _visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def _is_local(self, name: str) -> bool:
        innermost = len(self._scopes) - 1  # a class body's names are not seen from its methods
        seen = (names for i, (is_class, names) in enumerate(self._scopes) if i == innermost or not is_class)
        return any(name in names for names in seen)


@cache
def free_names(statement: ast.stmt) -> tuple[ast.Name, ...]:
    """The names that a top-level statement takes from the module or from Python itself."""
    visitor = FreeNames()
    visitor.visit(statement)
    return tuple(visitor.found)


def section_names(tree: ast.Module, sections: Sequence[Section]) -> dict[str, str]:
    """Each name that a section defines, with the section; imported names belong to no section."""
    homes: dict[str, str] = {}
    for statement in tree.body:
        imported = {n for node in ast.walk(statement) if isinstance(node, IMPORTS) for n in bindings([node])}
        for name in set(bindings([statement])) - imported:
            homes.setdefault(name, section_at(sections, statement.lineno))
    return homes


def used_sections(tree: ast.Module, sections: Sequence[Section]) -> dict[str, tuple[str, ...]]:
    """For each section the other sections whose names occur in it, in the order of the file."""
    homes = section_names(tree, sections)
    used: dict[str, set[str]] = {s.name: set() for s in sections}
    for statement in tree.body:
        here = section_at(sections, statement.lineno)
        used[here] |= {homes[n.id] for n in free_names(statement) if n.id in homes} - {here, ""}
    return {name: tuple(s.name for s in sections if s.name in found) for name, found in used.items()}


# ---- rule 1 ----------------------------------------------------------------


def define_before_use(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """A top-level statement names only what stands above it, or itself, and no name is given twice."""
    known = set(dir(builtins)) - set(bindings(tree.body)) | {"__file__"}
    given: set[str] = set()
    complaints = []
    for statement in tree.body:
        new = set(bindings([statement]))
        modules = {n.asname or n.name.partition(".")[0] for n in ast.walk(statement) if isinstance(n, ast.alias)}
        made = new - modules  # two sections may import the same
        complaints += [Complaint(statement.lineno, f"{name} is given twice") for name in sorted(made & given)]
        given |= made
        itself = set() if isinstance(statement, ASSIGNMENTS) else new
        strangers = [n for n in free_names(statement) if n.id not in known | itself]
        complaints += [Complaint(n.lineno, f"{n.id} is not defined above") for n in strangers]
        known |= new
    return complaints


# ---- rule 2 ----------------------------------------------------------------


def banners_tell_the_truth(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """Map, banners and code say the same, in the order of the plan."""
    return [
        *stray_banners(sections, source),
        *order_complaints(sections),
        *kind_complaints(tree, sections),
        *uses_complaints(tree, sections),
        *map_complaints(tree, sections),
        *head_complaints(tree, sections),
    ]


def stray_banners(sections: Sequence[Section], source: str) -> Iterator[Complaint]:
    """Lines that look like part of a banner and are none, and banners that are not plain ASCII."""
    lines = source.split("\n")
    real = {line for s in sections[1:] for line in range(s.line, s.line + 4)}
    for number, text in enumerate(lines, 1):
        if number not in real and BANNER_LIKE.match(text):
            yield Complaint(number, "looks like a banner and is none")
        if number in real and not text.isascii():
            yield Complaint(number, "a banner is plain ASCII")


def order_complaints(sections: Sequence[Section]) -> Iterator[Complaint]:
    """Sections that the plan does not know, or knows in another place."""
    for section in sections[1:]:
        if section.name not in ORDER:
            yield Complaint(section.line + 1, f"{section.name} is not in the plan")
    planned = [s for s in sections[1:] if s.name in ORDER]
    for above, below in pairwise(planned):
        if ORDER.index(above.name) >= ORDER.index(below.name):
            yield Complaint(below.line + 1, f"{below.name} stands below {above.name}, against the plan")


def kind_complaints(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """Third lines that cannot be read, the wrong kind, or the wrong libraries."""
    owned: dict[str, set[str]] = {s.name: set() for s in sections}
    for _, name, library in owned_uses(tree, sections):
        owned[name] |= {library} if name in OWNERS[library] else set()
    for section in sections[1:]:
        kind = "pure" if section.name in PURE else "shell"
        if section.kind == "":
            yield Complaint(section.line + 2, "third line is not `pure|shell | uses A B|- [| owns lib lib]`")
        elif section.kind != kind:
            yield Complaint(section.line + 2, f"{section.name} is {kind}")
        elif set(section.owns) != owned[section.name]:
            yield Complaint(section.line + 2, f"owns should be: {' '.join(sorted(owned[section.name])) or 'nothing'}")


def uses_complaints(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """Banners whose `uses` is not what the code uses."""
    used = used_sections(tree, sections)
    for section in sections[1:]:
        if section.kind and section.uses != used[section.name]:
            yield Complaint(section.line + 2, f"uses should be: {' '.join(used[section.name]) or '-'}")


def map_rows(tree: ast.Module) -> list[tuple[int, str, str]]:
    """Line, name and question of each row between `Map:` and the next blank line of the docstring."""
    text = ast.get_docstring(tree, clean=False) or ""
    lines = [(number, line.rstrip()) for number, line in enumerate(text.split("\n"), line_of(tree.body[0]))]
    start = next((i + 1 for i, (_, line) in enumerate(lines) if line == "Map:"), len(lines))
    end = next((i for i in range(start, len(lines)) if not lines[i][1]), len(lines))
    found = ((number, MAP_ROW.fullmatch(line)) for number, line in lines[start:end])
    return [(number, match[1], match[2]) for number, match in found if match]


def map_complaints(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """Rows of the docstring's map that are not the banners, one for one."""
    for row, section in zip_longest(map_rows(tree), sections[1:]):
        if row is None:
            yield Complaint(section.line + 1, f"the map has no row for {section.name}")
        elif section is None:
            yield Complaint(row[0], f"the map's row {row[1]} has no section")
        elif row[1:] != (section.name, section.question):
            yield Complaint(row[0], f"the banner here says {section.name} | {section.question}")


def head_complaints(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """Code in the head: it holds docstring, imports, `__version__` and the guard for missing streams."""
    if ast.get_docstring(tree) is None:
        yield Complaint(1, "the file has no docstring")
    for statement in tree.body[1:]:
        if section_at(sections, statement.lineno) == "" and not belongs_in_head(statement):
            yield Complaint(statement.lineno, "the head holds no code")


def belongs_in_head(statement: ast.stmt) -> bool:
    """True for imports, dunder values and the guard for missing streams."""
    names = list(bindings([statement]))
    is_dunder = isinstance(statement, ASSIGNMENTS) and all(n.startswith("__") for n in names)
    return isinstance(statement, IMPORTS) or is_dunder or is_stream_guard(statement)


# ---- rule 3 ----------------------------------------------------------------


def owners_only(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """A library is named by its owner only, the clock by SYSTEM only, and what is dangerous by nobody."""
    strangers = [
        Complaint(line, f"{library} belongs to {' '.join(sorted(OWNERS[library]))}")
        for line, name, library in owned_uses(tree, sections)
        if name not in OWNERS[library]
    ]
    return [*strangers, *clock_reads(tree, sections), *window_reach(tree, sections), *dangers(tree)]


def owned_uses(tree: ast.Module, sections: Sequence[Section]) -> Iterator[tuple[int, str, str]]:
    """Line, section and library wherever an owned library is imported or named."""
    for node, name in located(tree, sections):
        for library in libraries(node):
            if library in OWNERS and not (name == "MAIN" and is_excused(node)):
                yield line_of(node), name, library
    aliases = owned_aliases(tree, sections)
    for statement in tree.body:
        here = section_at(sections, statement.lineno)
        excused = excused_names(statement) if here == "MAIN" else set()
        for node in free_names(statement):
            if node.id in aliases and node not in excused:
                yield node.lineno, here, aliases[node.id]
    yield from overreach_of_main(tree, sections)


def owned_aliases(tree: ast.Module, sections: Sequence[Section]) -> dict[str, str]:
    """The module's names that stand for an owned library or a part of one, MAIN's excused imports aside."""
    return {
        name: library
        for statement in tree.body
        for node in ast.walk(statement)
        if isinstance(node, IMPORTS) and not isinstance(statement, DEFINITIONS)
        if not (section_at(sections, node.lineno) == "MAIN" and is_excused(node))
        for library in libraries(node)
        if library in OWNERS
        for name in bindings([node])
    }


def is_excused(node: ast.AST) -> bool:
    """True for an import that MAIN may make: `freeze_support` and the module that holds `excepthook`."""
    if isinstance(node, ast.ImportFrom):
        return all(alias.name == MAIN_MAY_NAME.get(node.module or "") for alias in node.names)
    return isinstance(node, ast.Import) and all(alias.name in MAIN_MAY_NAME for alias in node.names)


def excused_names(statement: ast.stmt) -> set[ast.AST]:
    """The names of libraries that MAIN uses for nothing but what it may name."""
    attributes = (n for n in ast.walk(statement) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name))
    return {n.value for n in attributes if MAIN_MAY_NAME.get(last_name(n.value)) == n.attr}


def overreach_of_main(tree: ast.Module, sections: Sequence[Section]) -> Iterator[tuple[int, str, str]]:
    """What MAIN takes from an excused library beyond the one name it may; its import may be a local one."""
    aliases = owned_aliases(tree, sections)
    for node, name in located(tree, sections):
        if name == "MAIN" and isinstance(node, ast.Attribute) and is_attribute_of(node, *MAIN_MAY_NAME):
            library = last_name(node.value)
            if node.attr != MAIN_MAY_NAME[library] and library not in aliases:
                yield node.lineno, name, library


def clock_reads(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """Places outside SYSTEM that read the clock by themselves."""
    for node, name in located(tree, sections):
        is_clock = isinstance(node, ast.Attribute) and (
            node.attr in CLOCK_ANYWHERE or (is_attribute_of(node, "time") and node.attr in CLOCK_OF_TIME)
        )
        is_import = isinstance(node, ast.ImportFrom) and node.module == "time"
        taken = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) and is_import else set()
        if name != "SYSTEM" and (is_clock or taken & CLOCK_OF_TIME):
            yield Complaint(line_of(node), "the clock belongs to SYSTEM")


def window_reach(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """Names of the trading machinery inside the window, which holds values only."""
    homes = section_names(tree, sections)
    for statement in tree.body:
        if section_at(sections, statement.lineno) in WINDOW:
            reached = (n for n in free_names(statement) if homes.get(n.id) in NOT_FOR_THE_WINDOW)
            yield from (Complaint(n.lineno, f"the window may not name {n.id} of {homes[n.id]}") for n in reached)


def dangers(tree: ast.Module) -> Iterator[Complaint]:
    """What no section may do: run texts, unpickle, open shells, trust anybody, build SQL."""
    for node in ast.walk(tree):
        if why := danger_of(node):
            yield Complaint(line_of(node), why)


def danger_of(node: ast.AST) -> str:
    """Why a node is dangerous, or ""."""
    match node:
        case ast.Name(id="eval" | "exec" | "__import__" as name):
            return f"{name} is forbidden"
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) if name in FORBIDDEN_TEXTS:
            return f"{name} is forbidden"
        case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen") | ast.ImportFrom(module="os"):
            return shell_danger(node)
        case ast.Import() | ast.ImportFrom():
            return " ".join(f"{name} is forbidden" for name in libraries(node) if name in FORBIDDEN_LIBRARIES)
        case ast.Call():
            return call_danger(node)
        case ast.Assign(
            targets=[ast.Attribute(attr="verify" | "check_hostname" as name)], value=ast.Constant(value=False)
        ):
            return f"{name} may not be switched off"
    return ""


def shell_danger(node: ast.AST) -> str:
    """Why a use of `os` is dangerous, or ""."""
    names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else {last_name(node)}
    return "os.system and os.popen are forbidden" if names & {"system", "popen"} else ""


def call_danger(node: ast.Call) -> str:
    """Why a call is dangerous, or ""."""
    for keyword in node.keywords:
        value = keyword.value
        if keyword.arg == "shell" and not (isinstance(value, ast.Constant) and value.value is False):
            return "shell= is forbidden"
        if keyword.arg == "verify" and isinstance(value, ast.Constant) and not value.value:
            return "verify=False is forbidden"
    if isinstance(node.func, ast.Attribute) and node.func.attr.startswith("execute") and node.args:
        return "SQL is one literal text with parameters" if is_built_text(node.args[0]) else ""
    return ""


def is_built_text(node: ast.expr) -> bool:
    """True for a text put together on the spot: f-string, `+`, `%`, format, join."""
    is_made = isinstance(node, ast.Call) and last_name(node) in {"format", "join", "replace"}
    return isinstance(node, (ast.JoinedStr, ast.BinOp)) or is_made


# ---- rule 4 ----------------------------------------------------------------


def pure_is_pure(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """Above the waterline nothing touches disk, network, clock, threads, screen or unseeded chance."""
    complaints = []
    for node, name in located(tree, sections):
        why = impurity(node, name) if name in ("", *PURE) else ""
        complaints += [Complaint(line_of(node), why)] if why else []
    for statement in tree.body:
        if section_at(sections, statement.lineno) in PURE:
            names = [n for n in free_names(statement) if n.id in NOT_PURE | GUARD_IMPORTS]
            complaints += [Complaint(n.lineno, f"{n.id} is not pure") for n in names]
    return complaints


def impurity(node: ast.AST, section: str) -> str:
    """Why a node may not stand in a pure section or in the head, or ""."""
    match node:
        case ast.Import() | ast.ImportFrom():
            return import_impurity(node, section)
        case ast.Attribute(attr=name) if name in CLOCK_ANYWHERE:
            return f"{name} reads the clock"
        case ast.Attribute(value=ast.Name(id="typing"), attr="Any"):
            return "Any is not pure"
        case ast.Attribute(value=ast.Name(id="random"), attr=name) if name != "Random":
            return f"random.{name} has no seed of ours"
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"), attr=name):
            return "" if name in SEEDED else f"np.random.{name} has no seed of ours"
        case ast.Call() if last_name(node) in {"Random", *SEEDED} - {"Generator"}:
            return "" if has_seed(node) else f"{last_name(node)} without a seed"
    return ""


def import_impurity(node: ast.Import | ast.ImportFrom, section: str) -> str:
    """Why an import may not stand in the head or in a pure section, or ""."""
    names = {alias.name for alias in node.names}
    strangers = set(libraries(node)) - PURE_IMPORTS - (GUARD_IMPORTS if section == "" else set())
    if strangers:
        return f"{' '.join(sorted(strangers))} is not a pure library"
    if section != "":
        return "pure imports stand in the head"
    if isinstance(node, ast.ImportFrom):
        allowed = {"random": {"Random"}, "numpy.random": SEEDED, "numpy": names - {"random"}}.get(
            node.module or "", names
        )
        return "" if names <= set(allowed) else f"{' '.join(sorted(names - set(allowed)))} has no seed of ours"
    return ""


def has_seed(node: ast.Call) -> bool:
    """True when the first argument is there and is not None."""
    given = [*node.args, *(k.value for k in node.keywords)]
    return bool(given) and not (isinstance(given[0], ast.Constant) and given[0].value is None)


# ---- rule 5 ----------------------------------------------------------------


def no_hidden_state(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """Nothing mutable at module or class level or in a default, and import does nothing."""
    early = [node for statement in tree.body for node in at_import(statement)]
    return [
        *(
            Complaint(line_of(n), f"{type(n).__name__.lower()} is forbidden")
            for n in ast.walk(tree)
            if is_outer_write(n)
        ),
        *(c for node in early for c in mutable_complaints(node)),
        *(c for node in ast.walk(tree) for c in default_complaints(node)),
        *call_complaints(tree, early),
        *(Complaint(line_of(n), "this runs at import time") for n in early if is_early_statement(n)),
        *guard_complaints(tree, sections),
    ]


def is_outer_write(node: ast.AST) -> bool:
    """True for the statements that let a function change names outside itself."""
    return isinstance(node, (ast.Global, ast.Nonlocal))


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """This node and all below it that Python runs when the file is imported."""
    yield node
    for child in run_at_import(node):
        yield from at_import(child)


def run_at_import(node: ast.AST) -> Iterable[ast.AST]:
    """The children of a node that run at import: no function bodies, annotations or guarded blocks."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return [*node.decorator_list, *defaults(node.args)]
        case ast.Lambda():
            return defaults(node.args)
        case ast.AnnAssign():
            return [node.target, *([node.value] if node.value else [])]
        case ast.If() if is_main_guard(node) or is_stream_guard(node):
            return []
    return ast.iter_child_nodes(node)


def is_main_guard(node: ast.AST) -> bool:
    """True for `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" and not node.orelse


def is_stream_guard(node: ast.AST) -> bool:
    """True for `if sys.stdout is None:` (or stderr) with nothing but assignments to the two streams."""
    if not isinstance(node, ast.If) or node.orelse:
        return False
    streams = {"sys.stdout", "sys.stderr"}
    targets = [{ast.unparse(t) for t in s.targets} if isinstance(s, ast.Assign) else {""} for s in node.body]
    return ast.unparse(node.test) in {f"{s} is None" for s in streams} and all(t <= streams for t in targets)


def is_platform_fork(node: ast.AST) -> bool:
    """True for `if sys.platform == ...:` and `if TYPE_CHECKING:`, which a type checker reads as well."""
    return isinstance(node, ast.If) and PLATFORM_FORK.match(ast.unparse(node.test)) is not None


def mutable_complaints(node: ast.AST) -> Iterator[Complaint]:
    """Mutable values that a module or a class keeps."""
    if isinstance(node, ASSIGNMENTS) and node.value is not None:
        yield from (Complaint(line_of(n), "a mutable value is kept here") for n in mutable_parts(node.value))


def default_complaints(node: ast.AST) -> Iterator[Complaint]:
    """Mutable values that a function keeps as defaults."""
    if isinstance(node, (*FUNCTIONS, ast.Lambda)):
        for default in defaults(node.args):
            is_made = last_name(default) in {"list", "dict", "set"} and isinstance(default, ast.Call)
            parts = [default] if is_made else list(mutable_parts(default))
            yield from (Complaint(line_of(n), "a default is mutable") for n in parts)


def mutable_parts(node: ast.AST) -> Iterator[ast.AST]:
    """The mutable literals that a value keeps; what a freezer takes in is frozen, one level deep."""
    match node:
        case ast.Lambda():
            return
        case ast.Call():
            yield from (part for child in kept_by(node) for part in mutable_parts(child))
        case ast.Subscript():
            yield from mutable_parts(node.value)  # `Callable[[int], str]` holds a list that is none
        case _ if is_mutable(node):
            yield node
        case _:
            yield from (part for child in ast.iter_child_nodes(node) for part in mutable_parts(child))


def kept_by(call: ast.Call) -> Iterable[ast.AST]:
    """What a call's result keeps of its arguments: a freezer their parts, a row all, the others nothing."""
    given = [*call.args, *(k.value for k in call.keywords)]
    if last_name(call) in FREEZERS:
        return [part for a in given for part in (ast.iter_child_nodes(a) if is_mutable(a) else [a])]
    return [] if last_name(call) in IMPORT_TIME_CALLS else given


def is_mutable(node: ast.AST) -> bool:
    """True for literals and comprehensions that make a list, dict, set or generator."""
    return isinstance(node, (ast.List, ast.Dict, ast.Set, *COMPREHENSIONS))


def call_complaints(tree: ast.Module, early: Iterable[ast.AST]) -> Iterator[Complaint]:
    """Calls at import time beyond the allowed ones."""
    allowed = {d for n in ast.walk(tree) if isinstance(n, DEFINITIONS) for d in n.decorator_list}
    rows = row_types(tree)
    for node in early:
        is_row = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in rows
        if isinstance(node, ast.Call) and node not in allowed and not (is_row or is_allowed_call(node)):
            yield Complaint(node.lineno, f"{ast.unparse(node.func)} is called at import time")


def row_types(tree: ast.Module) -> set[str]:
    """The NamedTuple classes of the file: a call of one makes a row of a table and does nothing else."""
    classes = (n for n in tree.body if isinstance(n, ast.ClassDef))
    return {c.name for c in classes if any(last_name(base) == "NamedTuple" for base in c.bases)}


def is_allowed_call(node: ast.Call) -> bool:
    """True for calls that only make a frozen value or say something about a type."""
    name = last_name(node)
    if name == "Decimal":
        return all(isinstance(a, ast.Constant) and isinstance(a.value, str) for a in node.args)
    is_method = isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name)
    return not is_method and (name in IMPORT_TIME_CALLS or ast.unparse(node.func) == "re.compile")


def is_early_statement(node: ast.AST) -> bool:
    """True for a statement that does something at import: all but definitions, imports, values and guards."""
    if not isinstance(node, ast.stmt) or isinstance(node, (*DEFINITIONS, *IMPORTS, *ASSIGNMENTS, ast.Pass)):
        return False
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    is_guard = is_main_guard(node) or is_stream_guard(node) or is_platform_fork(node)
    return not (is_text or is_guard or type(node).__name__ == "TypeAlias")


def guard_complaints(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """Guards outside the sections that may have them."""
    for statement in tree.body:
        name = section_at(sections, statement.lineno)
        if is_main_guard(statement) and name != "MAIN":
            yield Complaint(statement.lineno, "the program starts in MAIN")
        if is_stream_guard(statement) and name not in ("", "MAIN"):
            yield Complaint(statement.lineno, "missing streams are replaced in the head or in MAIN")


# ---- rule 6 ----------------------------------------------------------------


class Door(NamedTuple):
    """A call that only one section may make."""

    what: str
    names: frozenset[str]
    home: str
    is_single: bool


DOORS = (
    Door("place(", frozenset({"place"}), "CYCLE", is_single=True),
    Door("order_form(", frozenset({"order_form"}), "LUNO", is_single=True),
    Door("connect(", frozenset({"connect"}), "STORE", is_single=False),
    Door("Thread(", frozenset({"Thread", "Timer", "ThreadPoolExecutor"}), "WORKER", is_single=False),
    Door("Process(", frozenset({"Process", "Pool", "ProcessPoolExecutor"}), "JOBS", is_single=False),
    Door("mainloop(", frozenset({"mainloop"}), "DASHBOARD", is_single=True),
)


def one_call_site(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """Money has one door, and the test counts the doors."""
    calls = [(node, name) for node, name in located(tree, sections) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: line_of(call[0]))
    complaints = [c for door in DOORS for c in door_complaints(door, calls, sections)]
    return complaints + list(order_path_complaints(tree, sections))


def door_complaints(
    door: Door, calls: Sequence[tuple[ast.Call, str]], sections: Sequence[Section]
) -> Iterator[Complaint]:
    """Calls through a door from elsewhere, a second call through a single one, and a door left out."""
    found = [(node, name) for node, name in calls if last_name(node) in door.names]
    yield from (Complaint(n.lineno, f"{door.what} belongs to {door.home}") for n, name in found if name != door.home)
    inside = [node for node, name in found if name == door.home]
    if door.is_single:
        yield from (Complaint(node.lineno, f"a second {door.what}") for node in inside[1:])
        empty = [s for s in sections if s.name == door.home and not inside]
        yield from (Complaint(s.line, f"{door.home} has no {door.what}") for s in empty)


def order_path_complaints(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """The order POST more than once or elsewhere, and any market order; DEMO itself answers both."""
    ignored = docstrings(tree)
    found = [
        (node, name)
        for node, name in located(tree, sections)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in ignored and name != "DEMO"
    ]
    found.sort(key=lambda text: line_of(text[0]))
    posts = [(node, name) for node, name in found if "/postorder" in str(node.value)]
    outside = [node for node, name in posts if name not in ORDER_HOMES]
    inside = [node for node, name in posts if name in ORDER_HOMES]
    yield from (Complaint(n.lineno, "the order POST belongs to LUNO") for n in outside)
    yield from (Complaint(n.lineno, "a second order POST") for n in inside[1:])
    yield from (Complaint(n.lineno, "no market orders") for n, _ in found if "/marketorder" in str(n.value))
    yield from posting_complaints(tree, sections)


def posting_complaints(tree: ast.Module, sections: Sequence[Section]) -> Iterator[Complaint]:
    """Calls that send: with a name of the order path, and `post` itself, outside LUNO by EXECUTION once."""
    paths = {target.id for statement in tree.body if isinstance(statement, ast.Assign)
             and "/postorder" in ast.unparse(statement.value) for target in statement.targets
             if isinstance(target, ast.Name)}
    calls = [(node, name) for node, name in located(tree, sections) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: line_of(call[0]))
    users = [(node, name) for node, name in calls
             if any(isinstance(v, ast.Name) and v.id in paths for v in (*node.args, *(k.value for k in node.keywords)))]
    yield from (Complaint(n.lineno, "the order POST belongs to LUNO") for n, name in users if name not in ORDER_HOMES)
    yield from (Complaint(n.lineno, "a second order POST") for n, name in users[1:] if name in ORDER_HOMES)
    posters = [(node, name) for node, name in calls if last_name(node) == "post" and name not in ("LUNO", "DEMO")]
    yield from (Complaint(n.lineno, "post( belongs to EXECUTION") for n, name in posters if name != "EXECUTION")
    yield from (Complaint(n.lineno, "a second post(") for n, _ in [p for p in posters if p[1] == "EXECUTION"][1:])


# ---- rule 7 ----------------------------------------------------------------


def errors_are_named(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """Errors are ours and named; a broad except stands at three places only."""
    complaints = []
    for node, scope in scoped(tree):
        section = section_at(sections, line_of(node))
        why = handler_fault(node, section, scope) or raise_fault(node, section) or class_fault(node, section)
        complaints += [Complaint(line_of(node), why)] if why else []
    return sorted(complaints)


def handler_fault(node: ast.AST, section: str, scope: tuple[str, ...]) -> str:
    """Why an except clause or a suppress catches too much, or ""."""
    if isinstance(node, ast.ExceptHandler):
        if node.type is None:
            return "a bare except"
        is_broad = names_everything(node.type) and not may_catch_all(section, scope)
        return "a broad except outside its three places" if is_broad else ""
    if not isinstance(node, ast.Call):
        return ""
    is_suppress = last_name(node) == "suppress"
    return "a broad suppress" if is_suppress and any(map(names_everything, node.args)) else ""


def names_everything(node: ast.expr) -> bool:
    """True for Exception and BaseException, alone or in a tuple."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(last_name(part) in {"Exception", "BaseException"} for part in parts)


def may_catch_all(section: str, scope: tuple[str, ...]) -> bool:
    """True in the worker's loop, in the window's drain and in main."""
    places = {
        "WORKER": scope == ("Worker", "_run"),
        "DASHBOARD": scope[-1:] == ("_drain",),
        "MAIN": scope == ("main",),
    }
    return places.get(section, False)


def raise_fault(node: ast.AST, section: str) -> str:
    """Why a raise or an assert is no named error, or ""."""
    if isinstance(node, ast.Assert):
        return "an assert: it is gone under -O"
    if not isinstance(node, ast.Raise):
        return ""
    name = last_name(node.exc)
    is_allowed = name in RAISABLE or (name == "SystemExit" and section == "MAIN")
    return f"raises {name}, which is not one of ours" if name in BUILTIN_ERRORS and not is_allowed else ""


def class_fault(node: ast.AST, section: str) -> str:
    """Why an error class is in the wrong place or says nothing, or ""."""
    if not isinstance(node, ast.ClassDef):
        return ""
    if section == "ERRORS":
        return "" if ast.get_docstring(node) else f"{node.name} does not say what the caller should do"
    bases = [last_name(base) for base in node.bases]
    is_error = any(name in BUILTIN_ERRORS or name.endswith("Error") for name in bases)
    return "error classes stand in ERRORS" if is_error else ""


# ---- rule 8 ----------------------------------------------------------------


def sizes(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """File, sections, classes, functions and lines stay within the house figures."""
    lines = source.split("\n")
    functions = [n for n in ast.walk(tree) if isinstance(n, FUNCTIONS)]
    classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    large = [Complaint(s.line, f"{s.name or 'head'} has {extent(s)} lines") for s in sections if is_large(s)]
    long = [Complaint(c.lineno, f"{c.name} has {length(c)} lines") for c in classes if length(c) > CLASS_LINES]
    too_wide = [(i, line) for i, line in enumerate(lines, 1) if len(line) > WIDTH]
    wide = [Complaint(i, f"{len(line)} columns") for i, line in too_wide if not KIND_LINE.fullmatch(line)]
    tall = [Complaint(FILE_LINES + 1, f"the file has {len(lines)} lines")] if len(lines) > FILE_LINES else []
    figures = [c for f in functions for c in function_complaints(f)]
    return [*large, *long, *wide, *tall, *figures, *spread_complaints(functions)]


def extent(section: Section) -> int:
    """Lines of a section, its banner included."""
    return section.end - section.line + 1


def is_large(section: Section) -> bool:
    """True for a section above the limit."""
    return extent(section) > SECTION_LINES


def length(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Lines from `def` or `class` to the end, docstring and blanks included, decorators not."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def function_complaints(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Complaint]:
    """Length, branches and parameters of one function above their limits."""
    figures = (
        (length(node), FUNCTION_LINES, "lines"),
        (branches(node.body), BRANCHES, "branches"),
        (len([a for a in parameters(node.args) if a.arg not in {"self", "cls"}]), PARAMETERS, "parameters"),
    )
    for figure, limit, what in figures:
        if figure > limit:
            yield Complaint(node.lineno, f"{node.name} has {figure} {what}, at most {limit}")


def branches(nodes: Iterable[ast.AST]) -> int:
    """Places where the way forks; functions and classes inside count for themselves."""
    forks = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
    total = 0
    for node in nodes:
        if not isinstance(node, DEFINITIONS):
            total += isinstance(node, forks) + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)
            total += branches(ast.iter_child_nodes(node))
    return total


def spread_complaints(functions: Sequence[ast.FunctionDef | ast.AsyncFunctionDef]) -> Iterator[Complaint]:
    """Median and 95th percentile of the function lengths above their limits."""
    lengths = sorted(length(f) for f in functions)
    for part, limit, what in ((0.5, FUNCTION_MEDIAN, "median"), (0.95, FUNCTION_P95, "p95")):
        figure = lengths[min(len(lengths) - 1, int(part * len(lengths)))] if lengths else 0
        if figure > limit:
            yield Complaint(1, f"{what} of the function lengths is {figure}, at most {limit}")


# ---- rule 9 ----------------------------------------------------------------


def documented_and_typed(tree: ast.Module, sections: Sequence[Section], source: str) -> list[Complaint]:
    """Public things say what they are for, and every function says what it takes and gives."""
    silent = [n for n in public(tree.body) if not ast.get_docstring(n)]
    untyped = [c for node in ast.walk(tree) for c in typing_complaints(node, methods(tree))]
    return [*(Complaint(n.lineno, f"{n.name} has no docstring") for n in silent), *untyped]


def public(body: Sequence[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes without a leading underscore, and the same inside public classes."""
    for node in body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
            yield node
            yield from public(node.body) if isinstance(node, ast.ClassDef) else ()
        elif isinstance(node, ast.If):
            yield from public([*node.body, *node.orelse])


@cache
def methods(tree: ast.Module) -> frozenset[ast.AST]:
    """The functions that stand in a class and take itself or the class first."""
    classes = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef))
    functions = (f for c in classes for f in c.body if isinstance(f, FUNCTIONS))
    return frozenset(f for f in functions if "staticmethod" not in map(last_name, f.decorator_list))


def typing_complaints(node: ast.AST, in_class: frozenset[ast.AST]) -> Iterator[Complaint]:
    """Parameters and results without an annotation."""
    if isinstance(node, FUNCTIONS):
        first = [*node.args.posonlyargs, *node.args.args][: 1 if node in in_class else 0]
        bare = [a.arg for a in parameters(node.args) if a.annotation is None and a not in first]
        yield from (Complaint(node.lineno, f"{node.name}: {name} has no annotation") for name in bare)
        if node.returns is None:
            yield Complaint(node.lineno, f"{node.name}: the result has no annotation")


# ---- the program keeps the rules -------------------------------------------

RULES: tuple[Rule, ...] = (
    define_before_use,
    banners_tell_the_truth,
    owners_only,
    pure_is_pure,
    no_hidden_state,
    one_call_site,
    errors_are_named,
    sizes,
    documented_and_typed,
)


def judge(rule: Rule, source: str) -> list[Complaint]:
    """The complaints of one rule about a program, in the order of its lines."""
    return sorted(rule(ast.parse(source), sections_of(source), source))


@pytest.fixture(scope="module")
def program() -> str:
    """The source of lunobiz.py."""
    return PROGRAM.read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_program_keeps_the_rule(rule: Rule, program: str) -> None:
    found = judge(rule, program)
    assert not found, "\n".join([f"{rule.__doc__}", *(f"lunobiz.py:{c.line}: {c.text}" for c in found)])


def test_only_the_announced_sections_are_missing(program: str) -> None:
    present = {section.name for section in sections_of(program)}
    assert set(ORDER) - present <= MAY_BE_ABSENT


# ---- the rules keep their word ---------------------------------------------

CLEAN = '''"""A small program that keeps every rule.

Map:
    ERRORS     what can go wrong
    TYPES      the words of the trade
    CYCLE      the one line from candle to order
    SYSTEM     the machine
    STORE      the audit on disk
    LUNO       the exchange
    DEMO       a small exchange
    EXECUTION  real orders
    WORKER     the thread that trades
    DASHBOARD  the window
    MAIN       read the arguments and go

Units: milliseconds.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, auto
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

import numpy as np

__version__ = "1.0"
if sys.stdout is None:
    sys.stdout = open("nul", "w")

# ===
# ERRORS | what can go wrong
# pure | uses -
# ===


class OurError(Exception):
    """Skip the cycle."""


class Late(OurError):
    """Wait."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"{wait_s} s")


# ===
# TYPES | the words of the trade
# pure | uses ERRORS
# ===

STEP = Decimal("0.01")
NAMES = ("a", "b")
WORD = re.compile("[a-z]+")
SCALES = MappingProxyType({"a": (1, 2), "b": (3, 4)})
KNOWN = frozenset(name for name in NAMES)
Judge = Callable[[int], bool]


class Limit(NamedTuple):
    """One row of the table."""

    name: str
    value: float


LIMITS = (Limit("a", 0.1), Limit("b", value=0.2))


class Side(Enum):
    """Buy or sell."""

    BUY = auto()
    SELL = auto()


@dataclass(frozen=True, slots=True)
class Order:
    """What is sent."""

    pair: str
    side: Side
    kind: Literal["limit", "stop"] = "limit"
    tags: tuple[str, ...] = field(default_factory=tuple, metadata={"unit": "none"})

    def other(self) -> Order:
        """The same order on the other side."""
        if not self.pair:
            raise ValueError("a pair is needed")
        return Order(self.pair, Side.SELL)


def is_known(name: str) -> bool:
    """True for the names we know."""
    return name in KNOWN


def is_long(name: str) -> bool:
    """True for names that do not fit."""
    return len(name) > len(NAMES)


def noise(seed: int, equity: float = 0.0) -> float:
    """A number drawn from a seed."""
    rows = [equity for time in range(3) if (last := time) > 0]
    last += random.Random(7).random()
    return random.Random(seed).random() + float(np.random.default_rng(seed).normal()) + len(rows) + last


def equity(orders: list[Order]) -> float:
    """What the orders are worth."""
    if any(order.pair == "" for order in orders):
        raise Late(1.0)
    return sum((lambda order: 1.0)(order) for order in orders)


# ===
# CYCLE | the one line from candle to order
# pure | uses TYPES
# ===


class Executor(Protocol):
    """Where orders go."""

    def place(self, order: Order) -> None:
        """Send one order."""


def trade_cycle(orders: list[Order], executor: "Executor") -> None:
    """The only way an order is born."""
    for order in orders:
        executor.place(order)


# ===
# SYSTEM | the machine
# shell | uses - | owns dotenv
# ===

import os
import time
from contextlib import suppress
from os import fspath

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class Clock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(time.time() * 1000)

    def mono_s(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def read_env(path: str) -> dict[str, str | None]:
    """The settings in a file."""
    from dotenv import dotenv_values

    with suppress(OSError):
        return dotenv_values(fspath(path))
    try:
        return dict(verify=path, shell=False, other=False) and {}
    except (OSError, ValueError) as error:
        return {os.name: str(isinstance(error, Exception))}


# ===
# STORE | the audit on disk
# shell | uses TYPES | owns sqlite3
# ===

import sqlite3


class Store:
    """The audit."""

    def __init__(self, path: str) -> None:
        self._link = sqlite3.connect(path)

    def record(self, orders: list[Order]) -> None:
        """Write them down."""
        self._link.executemany("insert into orders values (?)", [(order.pair,) for order in orders])


# ===
# LUNO | the exchange
# shell | uses TYPES
# ===


ORDER_PATH = "/api/1/postorder"


def order_form(order: Order) -> tuple[str, ...]:
    """The fields of an order."""
    return (order.pair,)


class LunoClient:
    """Luno's answers in our words."""

    def post(self, path: str, form: tuple[str, ...]) -> str:
        """One POST."""
        return path

    def post_order(self, order: Order) -> str:
        """Send one order; `/api/1/postorder` is in no text but one."""
        return self.post(ORDER_PATH, order_form(order))


# ===
# DEMO | a small exchange
# shell | uses -
# ===


def answer(path: str) -> int:
    """The status of a request."""
    started = time.monotonic()  # 1 µs is near enough

    def inner() -> None:
        pass

    return 200 if time.monotonic() > started and path in ("/api/1/postorder", "/api/1/marketorder") else 404


# ===
# EXECUTION | real orders
# shell | uses TYPES LUNO
# ===


def send_once(order: Order, client: LunoClient) -> str:
    """The one POST."""
    return client.post(order.pair, ())


# ===
# WORKER | the thread that trades
# shell | uses SYSTEM STORE | owns queue threading
# ===

import queue
import threading


class Worker:
    """The thread that trades."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(Clock(),))

    def _run(self, clock: Clock) -> None:
        try:
            Store(self._commands.get())
        except Exception:
            clock.sleep(1)


# ===
# DASHBOARD | the window
# shell | uses WORKER | owns tkinter
# ===

import tkinter as tk


class Dashboard:
    """The window."""

    def __init__(self, worker: Worker) -> None:
        self._root = tk.Tk()
        self._root.mainloop()

    def _drain(self) -> None:
        try:
            self._root.update()
        except Exception as error:
            self._root.title(str(error))


# ===
# MAIN | read the arguments and go
# shell | uses WORKER DASHBOARD
# ===


def main() -> int:
    """Wire the parts and go."""
    import multiprocessing
    from multiprocessing import freeze_support

    multiprocessing.freeze_support()
    freeze_support()
    threading.excepthook = lambda caught: None
    try:
        Dashboard(Worker())
    except BaseException:
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
'''.replace("# ===\n", RULE_LINE + "\n")


class Fault(NamedTuple):
    """One text of the clean program replaced by another; the line at fault begins with `at`."""

    rule: Rule
    old: str
    new: str
    at: str = ""  # "": the first line that differs

    def source(self) -> str:
        """The clean program with the fault in it."""
        assert CLEAN.count(self.old) >= 1, f"not in the clean program: {self.old}"
        return CLEAN.replace(self.old, self.new, 1)

    def line(self) -> int:
        """Where the rule must complain."""
        lines = self.source().split("\n")
        first = next(i for i, (a, b) in enumerate(zip(lines, CLEAN.split("\n"), strict=False), 1) if a != b)
        named = [i for i, text in enumerate(lines, 1) if text.startswith(self.at)]
        return min(named, key=lambda i: abs(i - first)) if self.at else first


INSERT = '.executemany("insert into orders values (?)"'
POST = 'ORDER_PATH = "/api/1/postorder"'
SENT = "        return self.post(ORDER_PATH, order_form(order))"
ONCE = "    return client.post(order.pair, ())"
LOOP = "        self._root.mainloop()\n"
IN_PURE = "    return random.Random(seed).random()"  # a line of a pure function, to plant things above it
IN_SHELL = "    return 200 if time"  # a line of a shell function


def above(line: str, planted: str) -> str:
    """The line with a statement planted above it."""
    return f"    {planted}\n{line}"


def pure(rule: Rule, planted: str) -> Fault:
    """A statement planted in a function of TYPES."""
    return Fault(rule, IN_PURE, above(IN_PURE, planted))


def shell(rule: Rule, planted: str, at: str = "") -> Fault:
    """A statement planted in a function of DEMO."""
    return Fault(rule, IN_SHELL, above(IN_SHELL, planted), at)


def top(rule: Rule, planted: str, at: str = "") -> Fault:
    """A statement planted at the top level of TYPES."""
    return Fault(rule, 'NAMES = ("a", "b")\n', f'NAMES = ("a", "b")\n{planted}\n', at)


TRY = "try:\n        x = 1\n    "
LONG = "".join(f"    x{i} = {i}\n" for i in range(60))
FORKS = "".join(f"    if path == '{i}':\n        return {i}\n" for i in range(11))
MANY = "".join(f"\ndef f{i}() -> None:\n" + "    x = 1\n" * 8 for i in range(26))
MID = "".join(f"\ndef g{i}() -> None:\n" + "    x = 1\n" * 36 for i in range(2))
CLASS = "\nclass Large:\n" + "    x = 1\n" * 251
CLASS_F = "class C:\n    'text'\n    @staticmethod\n    def f(x) -> None: 'text'"
DEMO_BANNER = f"{RULE_LINE}\n# DEMO | a small exchange\n# shell | uses -\n{RULE_LINE}\n"

FAULTS = (
    # a name from below, in a body, an annotation, a text of one, a default, a decorator, a base, a value
    pure(define_before_use, "Worker()"),
    pure(define_before_use, "rest = [trade_cycle for _ in NAMES]"),
    pure(define_before_use, "rest = {name: Worker for name in NAMES}"),
    pure(define_before_use, "found: 'list[Executor]' = []"),
    Fault(define_before_use, "def noise(seed: int,", "def noise(seed: Executor,"),
    Fault(define_before_use, "def noise(seed: int,", 'def noise(seed: "dict[str, Executor]",'),
    Fault(define_before_use, "equity: float = 0.0", "equity: float = LATER"),
    Fault(define_before_use, "@dataclass(frozen=True, slots=True)", "@later"),
    Fault(define_before_use, "class Side(Enum):", "class Side(Executor):"),
    top(define_before_use, "TWICE = TWICE + 1"),
    top(define_before_use, "FIRST = SCALES"),
    top(define_before_use, "STEP = Decimal('0.02')"),
    Fault(define_before_use, DEMO_BANNER, "WORD = re.compile('[0-9]+')\n\n" + DEMO_BANNER, at="WORD = re.compile('[0"),
    Fault(define_before_use, "    def other(self) -> Order:", '    def other(self) -> "Order | Store":'),
    Fault(define_before_use, "return Order(self.pair, Side.SELL)", "return Order(pair, Side.SELL)"),
    Fault(define_before_use, "if not self.pair:", "if isinstance(self, missing):"),
    shell(define_before_use, "from typing import cast; cast('Worker', path)"),
    # banners, map and code
    Fault(banners_tell_the_truth, "    STORE      the audit on disk", "    STORE      the audit"),
    Fault(banners_tell_the_truth, "# LUNO | the exchange", "# LUNO | the shop", at="    LUNO "),
    Fault(banners_tell_the_truth, "    MAIN       read the arguments and go\n", "", at="# MAIN |"),
    Fault(banners_tell_the_truth, "and go\n\nUnits", "and go\n    OTHER      nothing\n\nUnits"),
    Fault(banners_tell_the_truth, "# shell | uses SYSTEM STORE |", "# shell | uses STORE SYSTEM |"),
    Fault(banners_tell_the_truth, "# shell | uses SYSTEM STORE |", "# shell | uses SYSTEM |"),
    Fault(banners_tell_the_truth, "# pure | uses -", "# pure | uses TYPES"),
    Fault(banners_tell_the_truth, "# pure | uses -", "# pure | uses"),
    Fault(banners_tell_the_truth, "# pure | uses -", "# shell | uses -"),
    Fault(banners_tell_the_truth, "| owns queue threading", "| owns threading"),
    Fault(banners_tell_the_truth, "uses WORKER DASHBOARD", "uses WORKER DASHBOARD | owns requests"),
    Fault(banners_tell_the_truth, "NAMES = ", "# ----------\nNAMES = "),
    Fault(banners_tell_the_truth, "    pair: str\n", "    # ==== fields\n    pair: str\n"),
    Fault(banners_tell_the_truth, "NAMES = ", "# NAMES | what is known\nNAMES = "),
    Fault(banners_tell_the_truth, '__version__ = "1.0"', '__version__ = "1.0"\nx = 1'),
    # libraries and their owners
    shell(owners_only, "import sqlite3"),
    shell(owners_only, "from urllib3.util import Retry"),
    shell(owners_only, "import concurrent.futures"),
    shell(owners_only, "import pandas as pd"),
    shell(owners_only, "import multiprocessing"),
    Fault(owners_only, "    freeze_support()", "    import queue"),
    Fault(owners_only, "        self._root.mainloop()", "        threading.excepthook = print"),
    pure(owners_only, "import ssl"),
    Fault(owners_only, "    freeze_support()", "    tk.Tk()"),
    Fault(owners_only, "def main() -> int:", "def main(link: 'sqlite3.Connection') -> int:"),
    Fault(owners_only, "    threading.excepthook =", "    threading.stack_size ="),
    Fault(owners_only, "        self._root.mainloop()", "        threading.Lock()"),
    Fault(owners_only, "        self._root.mainloop()", "        self._news: queue.Queue[int]"),
    Fault(owners_only, "    freeze_support()", "    multiprocessing.Queue()"),
    Fault(owners_only, "import freeze_support\n", "import Queue as freeze_support\n"),
    # the clock, the window, and what nobody may do
    shell(owners_only, "time.time()"),
    shell(owners_only, "time.localtime()"),
    shell(owners_only, "from time import time_ns"),
    shell(owners_only, "datetime.now()"),
    Fault(owners_only, "        self._root.mainloop()", "        Store('x')"),
    Fault(owners_only, "    def _drain(self)", "    def _drain(self, client: 'LunoClient')"),
    shell(owners_only, "eval(path)"),
    shell(owners_only, "exec(path)"),
    shell(owners_only, "import pickle"),
    shell(owners_only, "from yaml import safe_load"),
    shell(owners_only, "os.system(path)"),
    shell(owners_only, "from os import popen"),
    shell(owners_only, "run(path, shell=True)"),
    shell(owners_only, "get(path, verify=False)"),
    shell(owners_only, "session.verify = False"),
    shell(owners_only, "context.check_hostname = False"),
    shell(owners_only, "mode = CERT_NONE"),
    shell(owners_only, "importlib.import_module('queue')"),
    Fault(owners_only, INSERT, '.executemany(f"insert into {orders}"'),
    Fault(owners_only, INSERT, '.execute("select " + orders'),
    Fault(owners_only, INSERT, '.execute("select %s" % orders'),
    Fault(owners_only, INSERT, '.executescript("{}".format(orders)'),
    # what a pure section may not do
    pure(pure_is_pure, "open('x')"),
    pure(pure_is_pure, "print('x')"),
    pure(pure_is_pure, "getattr(seed, 'x')"),
    pure(pure_is_pure, "x: 'Any' = 1"),
    pure(pure_is_pure, "x: typing.Any = 1"),
    pure(pure_is_pure, "time.sleep(1)"),
    pure(pure_is_pure, "datetime.now()"),
    pure(pure_is_pure, "date.today()"),
    pure(pure_is_pure, "sys.exit()"),
    pure(pure_is_pure, "hash('x')"),
    pure(pure_is_pure, "random.shuffle([])"),
    pure(pure_is_pure, "random.Random()"),
    pure(pure_is_pure, "np.random.normal()"),
    pure(pure_is_pure, "np.random.default_rng()"),
    pure(pure_is_pure, "np.random.default_rng(None)"),
    pure(pure_is_pure, "import os"),
    pure(pure_is_pure, "import math"),
    Fault(pure_is_pure, "import re\n", "import socket\n"),
    Fault(pure_is_pure, "import random\n", "from random import choice\n"),
    Fault(pure_is_pure, "import numpy as np", "from numpy import random as chance"),
    Fault(pure_is_pure, "import re\n", "import time\n"),
    # state that hides
    pure(no_hidden_state, "global NAMES"),
    Fault(no_hidden_state, "        if not self.pair:", "        nonlocal x\n        if not self.pair:"),
    top(no_hidden_state, "SEEN = []"),
    top(no_hidden_state, "SEEN: dict[str, int] = {}"),
    top(no_hidden_state, "SEEN = (1, [2])"),
    top(no_hidden_state, "SEEN = [n for n in NAMES]"),
    top(no_hidden_state, "SEEN = MappingProxyType({'a': [1]})"),
    Fault(no_hidden_state, "    pair: str\n", "    pair: str\n    seen = {}\n"),
    Fault(no_hidden_state, "equity: float = 0.0", "equity: float = {}"),
    Fault(no_hidden_state, "lambda order: 1.0", "lambda order, seen=[]: 1.0"),
    shell(no_hidden_state, "def other(seen: object = dict()) -> None: pass"),
    top(no_hidden_state, "NAMES[0]"),
    top(no_hidden_state, "SEEN = NAMES[0].field()"),
    top(no_hidden_state, "SEEN = Decimal(STEP)"),
    top(no_hidden_state, "SEEN = Limit('a', [])"),
    top(no_hidden_state, "SEEN = Order('a', 1)"),
    top(no_hidden_state, "SEEN = sorted(NAMES)"),
    top(no_hidden_state, "SEEN = ','.join(NAMES)"),
    top(no_hidden_state, "SEEN = tuple('a,b'.split(','))"),
    top(no_hidden_state, "SEEN = Decimal(0.1)"),
    top(no_hidden_state, "SEEN = WORD.match('a')"),
    Fault(no_hidden_state, "equity: float = 0.0", "equity: float = float('nan')"),
    Fault(no_hidden_state, "    pair: str\n", "    pair: str = str(1)\n"),
    top(no_hidden_state, "for name in NAMES: pass"),
    top(no_hidden_state, "STEP += 1"),
    top(no_hidden_state, "if NAMES: STEP = 1"),
    top(no_hidden_state, "try: STEP = 1\nfinally: pass"),
    top(no_hidden_state, 'if __name__ == "__main__": pass'),
    Fault(no_hidden_state, '    sys.stdout = open("nul", "w")', "    sys.path = None", at="if sys.stdout is"),
    top(no_hidden_state, "if sys.stderr is None: sys.stderr = None"),
    # doors
    shell(one_call_site, "executor.place(path)"),
    Fault(one_call_site, "executor.place(order)\n", "executor.place(order)\n    executor.place(orders)\n"),
    shell(one_call_site, "sqlite3.connect(path)"),
    shell(one_call_site, "connect(path)"),
    shell(one_call_site, "threading.Thread(target=answer)"),
    shell(one_call_site, "ProcessPoolExecutor()"),
    shell(one_call_site, "root.mainloop()"),
    Fault(one_call_site, LOOP, LOOP * 2),
    pure(one_call_site, "x = '/api/1/postorder'"),
    Fault(one_call_site, POST, POST + ' + f"{x}/postorder"'),
    Fault(one_call_site, POST, 'ORDER_PATH = "/api/1/marketorder"'),
    Fault(one_call_site, SENT, SENT + "\n        self.post(ORDER_PATH, ())"),
    Fault(one_call_site, SENT, SENT + "\n        self.post('', order_form(order))"),
    shell(one_call_site, "send(path=ORDER_PATH)"),
    shell(one_call_site, "order_form(path)"),
    Fault(one_call_site, ONCE, ONCE + "\n    client.post('', ())"),
    Fault(one_call_site, "    return {os.name", "    line.post(error)\n    return {os.name"),
    # errors
    shell(errors_are_named, TRY + "except: pass", at="    except"),
    shell(errors_are_named, TRY + "except Exception: pass", at="    except"),
    shell(errors_are_named, TRY + "except (ValueError, BaseException): pass", at="    except"),
    shell(errors_are_named, "with suppress(Exception): pass"),
    Fault(errors_are_named, "def _run(self,", "def _go(self,", at="        except Exception:"),
    Fault(errors_are_named, "def _drain(self)", "def _read(self)", at="        except Exception as error:"),
    Fault(errors_are_named, "def main() -> int:", "def start() -> int:", at="    except BaseException:"),
    shell(errors_are_named, "raise Exception('x')"),
    shell(errors_are_named, "raise RuntimeError"),
    shell(errors_are_named, "raise KeyError('x') from None"),
    shell(errors_are_named, "raise SystemExit(1)"),
    Fault(errors_are_named, "    freeze_support()", "    raise RuntimeError"),
    shell(errors_are_named, "assert path"),
    Fault(errors_are_named, '    """Wait."""\n\n', "", at="class Late"),
    top(errors_are_named, "class Other(Exception): pass"),
    top(errors_are_named, "class Other(OurError): pass"),
    # sizes
    Fault(sizes, IN_SHELL, LONG + IN_SHELL, at="def answer"),
    Fault(sizes, IN_SHELL, FORKS + IN_SHELL, at="def answer"),
    Fault(sizes, IN_SHELL, f"    [c for c in path{' if c' * 11}]\n" + IN_SHELL, at="def answer"),
    Fault(sizes, "def answer(path: str)", "def answer(a: int, b: int, c: int, d: int, e: int, *f: int, g: int)"),
    Fault(sizes, "NAMES = ", "# " + "x" * 120 + "\nNAMES = "),
    Fault(sizes, DEMO_BANNER, CLASS + DEMO_BANNER, at="class Large"),
    Fault(sizes, DEMO_BANNER, MANY + DEMO_BANNER, at='"""A small program'),
    Fault(sizes, DEMO_BANNER, MID + DEMO_BANNER, at='"""A small program'),
    # words and types
    Fault(documented_and_typed, '    """The status of a request."""\n', "", at="def answer"),
    Fault(documented_and_typed, '    """The machine\'s clock."""\n\n', "", at="class Clock"),
    Fault(documented_and_typed, '        """Send one order."""', "        ...", at="    def place"),
    Fault(documented_and_typed, "def answer(path: str)", "def answer(path)"),
    Fault(documented_and_typed, "def answer(path: str) -> int:", "def answer(path: str):"),
    Fault(documented_and_typed, "def answer(path: str)", "def answer(path: str, *more)"),
    Fault(documented_and_typed, "    def _drain(self) -> None:", "    def _drain(self):"),
    shell(documented_and_typed, "def inner(x) -> int: return (lambda y: 1)(x)"),
    top(documented_and_typed, "def f(self) -> None: 'text'"),
    top(documented_and_typed, CLASS_F, at="    def f"),
)


def label(fault: Fault) -> str:
    """A short name for a fault in pytest's list."""
    words = re.sub(r"[^\w.]+", " ", fault.new or "without " + fault.old).split()
    return f"{fault.rule.__name__}-{' '.join(words)[:50]}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_clean_program_passes(rule: Rule) -> None:
    assert judge(rule, CLEAN) == []


@pytest.mark.parametrize("fault", FAULTS, ids=label)
def test_the_rule_finds_the_planted_fault(fault: Fault) -> None:
    found = judge(fault.rule, fault.source())
    assert {complaint.line for complaint in found} == {fault.line()}, found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_has_planted_faults(rule: Rule) -> None:
    assert sum(fault.rule is rule for fault in FAULTS) >= 7


def test_sections_in_the_wrong_order_are_found() -> None:
    moved = CLEAN.replace("STORE", "@").replace("SYSTEM", "STORE").replace("@", "SYSTEM")
    texts = [c.text for c in judge(banners_tell_the_truth, moved)]
    assert "SYSTEM stands below STORE, against the plan" in texts


def test_a_section_that_stands_twice_is_found() -> None:
    texts = [c.text for c in judge(banners_tell_the_truth, CLEAN.replace("SYSTEM", "STORE"))]
    assert "STORE stands below STORE, against the plan" in texts


def test_a_banner_beyond_ascii_is_found() -> None:
    found = judge(banners_tell_the_truth, CLEAN.replace("the audit on disk", "the audit – on disk"))
    assert [c.text for c in found] == ["a banner is plain ASCII"]


@pytest.mark.parametrize("old", ["if sys.stdout is None:", 'if __name__ == "__main__":'])
def test_a_guard_may_hold_nothing_else(old: str) -> None:
    lines = CLEAN.split("\n")
    lines.insert(lines.index(old) + 2, "else:\n    pass")
    assert judge(no_hidden_state, "\n".join(lines))
    assert judge(no_hidden_state, CLEAN.replace(old, old.replace("is", "is not").replace("==", "!=")))


def test_a_section_beyond_the_plan_is_found() -> None:
    texts = [c.text for c in judge(banners_tell_the_truth, CLEAN.replace("WORKER", "UTILS"))]
    assert "UTILS is not in the plan" in texts


def test_a_single_door_left_out_is_found() -> None:
    texts = [c.text for c in judge(one_call_site, CLEAN.replace("executor.place(order)", "order.other()"))]
    assert texts == ["CYCLE has no place("]


def test_a_section_beyond_the_limit_is_found() -> None:
    long = CLEAN.replace(DEMO_BANNER, DEMO_BANNER + "# line\n" * SECTION_LINES)
    texts = [c.text for c in judge(sizes, long)]
    assert len(texts) == 1
    assert texts[0].startswith("DEMO has ")


def test_a_file_beyond_the_limit_is_found() -> None:
    found = judge(sizes, CLEAN + "\n" * FILE_LINES)
    assert FILE_LINES + 1 in {complaint.line for complaint in found}


def test_a_file_without_sections_is_all_head() -> None:
    assert [s.name for s in sections_of('"""Text."""\n')] == [""]


def test_the_map_is_read_up_to_its_blank_line() -> None:
    rows = map_rows(ast.parse(CLEAN))
    assert [name for _, name, _ in rows] == [s.name for s in sections_of(CLEAN)[1:]]
    assert rows[0] == (4, "ERRORS", "what can go wrong")


def test_a_name_is_local_only_where_python_says_so() -> None:
    body = "    x = 1\n    y = x\n    def f(self) -> None:\n        return x, [z for z in w], (lambda v=u: v)\n"
    source = "class A:\n" + body
    assert sorted(n.id for n in free_names(ast.parse(source).body[0])) == ["u", "w", "x"]
