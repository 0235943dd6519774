"""A digest for each stage over the code that decides its result: a reminder to raise the stage's version.

`make confirm` (python -m tests.stage_versions) records the digests in stage_versions.txt. tests/test_stage_versions.py
fails while the code and the recorded digests differ.

The code of a stage is what can be reached from its task: top-level definitions of flows/ and tasks/, followed name by
name through all imports, into child processes too, and the templates that it names. The table of stages names the
tasks; no list of modules is kept.
Left out of a digest: docstrings, comments, annotations of functions, log and print statements, text of raised errors,
descriptions of fields, and where a definition stands.
"""

import ast
import functools
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path

from flows import stages
from tasks.download.identity import DIFFERENCE_VERSION
from tasks.download.models import MODEL_VERSION
from tasks.evaluation.identity import ANSWERS_VERSION, WATCH_VERSION
from tasks.report.report import VERSION as REPORT_VERSION

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_suffix(".txt")
BESIDE = {
    "answers": (ANSWERS_VERSION, ["tasks.evaluation.answers.generate"]),
    "difference": (DIFFERENCE_VERSION, ["tasks.download.difference"]),
    "model": (MODEL_VERSION, ["tasks.download.models"]),
    "report": (REPORT_VERSION, ["tasks.report.report"]),
    "watch": (WATCH_VERSION, ["tasks.evaluation.watch"]),
}
"""What is written beside the stages → its version, and the modules that write it."""
NOT_FOLLOWED = ("tasks.store.artifact", "tasks.store.caching")
"""They store results, and decide none."""
LOGS = {"log", "_log", "say", "_say", "print", "info", "warning"}
LOOSE = "statements that bind no name"


class Module:
    """The top-level definitions of a source file by name, and what it imports."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.loose: list[ast.stmt] = []  # statements that bind no name: they run whenever the module is imported
        self.imports: dict[str, str] = {}
        for statement in ast.parse(_file(name).read_text()).body:
            self.imports |= _imports(statement)
            for bound in (names := _bound(statement)):
                self.definitions.setdefault(bound, []).append(statement)
            if not names and not isinstance(statement, ast.Import | ast.ImportFrom):
                self.loose.append(statement)


def digest(entries: list[str]) -> str:
    """16 hex digits over everything that can be reached from some modules, or module:function."""
    found = reachable(entries)
    texts = {_text(module, statement) for module, statement in found}
    texts |= {template.read_text() for module, statement in found for template in _templates(module, statement)}
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]


def reachable(entries: list[str]) -> list[tuple[Module, ast.stmt]]:
    """Every top-level statement that the code of some modules uses, with its module."""
    found: dict[ast.stmt, Module] = {}
    wanted, seen = [entry.partition(":")[::2] for entry in entries], set[tuple[str, str]]()
    while wanted:
        if (place := wanted.pop()) in seen or place[0] in NOT_FOLLOWED:
            continue
        seen.add(place)
        module, name = _module(place[0]), place[1]
        if _file(package := module.name.rpartition(".")[0]):
            wanted.append((package, LOOSE))
        if name in module.imports and name not in module.definitions:
            wanted += _split(module.imports[name])
        for bound, statements in [(name, module.loose), *module.definitions.items()]:  # loose ones in any case
            if name in ("", bound):
                for statement in statements:
                    found[statement] = module
                    wanted += _used(module, statement)
    return [(module, statement) for statement, module in found.items()]


def recorded() -> list[str]:
    """Lines `stage version digest`, as confirmed; a merge leaves those of both sides."""
    return RECORD.read_text().splitlines() if RECORD.exists() else []


def entries() -> dict[str, tuple[int, list[str]]]:
    """Name → version, and where the code that writes the result begins: of a stage its task."""
    found = dict(BESIDE)
    for stage in stages.STAGES:
        room = stage.decided_by.__module__.rpartition(".")[0]
        version = importlib.import_module(f"{room}.identity").VERSION
        found[stage.name] = version, [f"{room}.task:{_task(f'{room}.task', stage.name)}"]
    return found


def _task(module: str, name: str) -> str:
    """The function of the Prefect task of this name."""
    for function, (statement, *_) in _module(module).definitions.items():
        for decorator in getattr(statement, "decorator_list", ()):
            if ast.unparse(decorator).startswith(f"task(name={name!r}"):
                return function
    raise LookupError(f"{module} has no @task(name={name!r})")


def current(name: str) -> str:
    """The line of a stage as the code is now."""
    version, begins = entries()[name]
    return f"{name} {version} {digest(begins)}"


def _used(module: Module, statement: ast.stmt) -> Iterator[tuple[str, str]]:
    """(module, name) of each definition of this project that a statement names; an empty name is a whole module."""
    imports = {**module.imports, **_imports(statement)}
    nodes = list(ast.walk(statement))
    owners = {node.value for node in nodes if isinstance(node, ast.Attribute)}  # `similar` in `similar.sketch`
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imports:
            yield from _split(f"{imports[node.value.id]}.{node.attr}")
        if isinstance(node, ast.Name) and node.id in imports:
            if node not in owners or not _file(imports[node.id]):
                yield from _split(imports[node.id])
        elif isinstance(node, ast.Name) and node.id in module.definitions:
            yield module.name, node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("tasks."):
            yield from _split(node.value)  # a module that is started as a child process


def _templates(module: Module, statement: ast.stmt) -> Iterator[Path]:
    """The template files that a statement names."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".j2"):
            yield (ROOT / module.name.replace(".", "/")).with_name(node.value)


def _split(qualified: str) -> Iterator[tuple[str, str]]:
    """`tasks.text.visible` → (tasks.text, visible); nothing for what is not of this project."""
    if qualified.partition(".")[0] in ("flows", "tasks"):
        module, _, name = qualified.rpartition(".")
        if _file(qualified):
            yield qualified, ""
        elif _file(module):
            yield module, name


@functools.cache
def _module(name: str) -> Module:
    return Module(name)


@functools.cache
def _file(name: str) -> Path | None:
    place = ROOT / name.replace(".", "/")
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _imports(statement: ast.stmt) -> dict[str, str]:
    """Local name → qualified name, of every import within a statement."""
    found: dict[str, str] = {}
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found |= {alias.asname: alias.name} if alias.asname else {top: top}
    return found


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return set()
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def _text(module: Module, statement: ast.stmt) -> str:
    """A statement as text that is the same in every Python version, with what its outside names stand for."""
    imports = {**module.imports, **_imports(statement)}
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    outside = sorted(f"{name}={imports[name]}" for name in names & imports.keys() if not [*_split(imports[name])])
    return f"{_dump(statement)} {' '.join(outside)}"


def _dump(value: object, in_function: bool = False, in_error: bool = False) -> str:
    if isinstance(value, list):
        return "[" + " ".join(text for item in value if (text := _dump(item, in_function, in_error))) + "]"
    if not isinstance(value, ast.AST):
        return repr(value)
    if isinstance(value, ast.Import | ast.ImportFrom) or (isinstance(value, ast.Expr) and _says_only(value.value)):
        return ""
    if in_error and (
        isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and isinstance(value.value, str))
    ):
        return "text"
    function = isinstance(value, ast.FunctionDef | ast.AsyncFunctionDef)
    left_out = {"ctx", "type_comment", "kind", "type_params"}
    if function or isinstance(value, ast.arg) or (in_function and isinstance(value, ast.AnnAssign)):
        left_out |= {"returns", "annotation"}
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Field":
        value.keywords = [keyword for keyword in value.keywords if keyword.arg != "description"]
    in_function = in_function or function
    in_error = in_error or isinstance(value, ast.Raise)
    fields = (
        f"{name}={text}"
        for name, field in ast.iter_fields(value)
        if name not in left_out
        and field is not None
        and (text := _dump(field, in_function, in_error)) not in ("", "[]")
    )
    return f"({type(value).__name__} {' '.join(fields)})"


def _says_only(expression: ast.expr) -> bool:
    """Whether a statement is a docstring, or tells something and does no more."""
    if isinstance(expression, ast.Constant):
        return True
    function = expression.func if isinstance(expression, ast.Call) else None
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    return name in LOGS


def main() -> None:
    before, now = recorded(), [current(stage) for stage in sorted(entries())]
    for line in now:
        stage, version, _ = line.split()
        if line not in before:
            same = any(old.startswith(f"{stage} {version} ") for old in before)
            print(f"{stage}: recorded, {'still' if same else 'new'} version {version}")
    RECORD.write_text("".join(f"{line}\n" for line in now))


if __name__ == "__main__":
    main()
