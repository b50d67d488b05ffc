"""Guards the structure of the code: imports point down, there are no circles, and files stay short.

Every test lists all violations as FILE:LINE.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Rooms, from top to bottom: a module imports modules of its own floor and of the floors below.
FLOORS = (
    ("cli",),
    ("planning",),
    ("training", "prepare"),
    ("evaluation",),
    ("serve", "jobs"),
    ("__init__", "inference", "convert"),
    ("model_directory",),
    ("bicodec", "qwen2", "wav2vec2", "data"),
    ("nn", "audio", "text"),
    ("sharding", "shared", "voices", "recipes"),
    ("config", "text_config", "dataclass_reader", "performance", "errors"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

MAX_LINES = 400

# Modules that do not exist on every system: they are imported where they are needed.
UNIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios"}

# Starts of words that American English spells in another way.
BRITISH = (
    r"analyse|artefact|behaviour|cancell(ed|ing)|catalogue|centre|colour|defence|endeavour|favour|flavour|grey|honour"
    r"|initialis|judgement|labell(ed|ing)|licence|maximis|minimis|modell(ed|ing)|neighbour|normalis|optimis|organis"
    r"|programme\b|quantis|recognis|serialis|specialis|standardis|summaris|synchronis|synthesis(e|ing)\b"
    r"|tokenis|travell(ed|ing)|utilis|vectoris|vocalis|whilst"
)
TEXTS = (".py", ".md", ".toml", ".yaml", ".yml")
UNREAD = ("assets", "site", "build")  # folders of goldens and of what is built


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def texts(folder: Path) -> Iterator[Path]:
    """Files in English and code, without hidden folders and this file."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in UNREAD:
            yield from texts(path)
        elif path.is_file() and (path.suffix in TEXTS or path.name == "Makefile") and path != Path(__file__):
            yield path


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PACKAGE = {module_name(path): path for path in sources("spark_jax")}


def room(module: str) -> str:
    _, _, inner = module.partition(".")
    return inner.partition(".")[0] or "__init__"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each of the package's modules that a file imports, at its top or inside of functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name in PACKAGE)
        elif isinstance(node, ast.ImportFrom) and node.module in PACKAGE:
            inner = [f"{node.module}.{name.name}" for name in node.names]
            modules = [name if name in PACKAGE else node.module for name in inner]
            yield from ((node.lineno, module) for module in dict.fromkeys(modules))


GRAPH = {module: list(imports(path)) for module, path in PACKAGE.items()}


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def report(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)


def test_every_room_has_a_floor():
    report(sorted({f"spark_jax/{room(module)}: on no floor" for module in PACKAGE if room(module) not in FLOOR}))


def test_imports_point_down():
    report(
        [
            f"{place(PACKAGE[module], line)}: {room(module)} imports {imported} from a floor above"
            for module, found in GRAPH.items()
            for line, imported in found
            if FLOOR.get(room(imported), 0) < FLOOR.get(room(module), 0)
        ]
    )


def test_imports_have_no_circles():
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            circle = [*trail[trail.index(module) :], module]
            line = next(line for line, name in GRAPH[trail[-1]] if name == module)
            return [f"{place(PACKAGE[trail[-1]], line)}: {' → '.join(circle)}"]
        if module in done:
            return []
        found = [circle for _, name in GRAPH[module] for circle in visit(name, [*trail, module])]
        done.add(module)
        return found

    report([circle for module in GRAPH for circle in visit(module, [])])


def test_imports_have_one_style():
    """`from spark_jax.room import module` or `from spark_jax.room.module import name`; a module has one name."""
    violations, names = [], {}
    for path in sources("spark_jax", "train", "tools", "tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wrong = [f"import {name.name}" for name in node.names if name.name.startswith("spark_jax.")]
            elif isinstance(node, ast.ImportFrom) and node.level:
                wrong = ["relative import"]
            elif isinstance(node, ast.ImportFrom):
                wrong = ["import *" for name in node.names if name.name == "*"]
                for name in node.names:
                    module = f"{node.module}.{name.name}"
                    if name.asname and module in PACKAGE and names.setdefault(module, name.asname) != name.asname:
                        wrong.append(f"{module} as {name.asname}, elsewhere as {names[module]}")
            else:
                continue
            violations += [f"{place(path, node.lineno)}: {what}" for what in wrong]
    report(violations)


def test_no_module_of_one_system_is_imported_at_the_top():
    violations = []
    for path in PACKAGE.values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = {name.name for name in node.names}
            else:
                names = {node.module} if isinstance(node, ast.ImportFrom) else set()
            violations += [f"{place(path, node.lineno)}: import {name}" for name in sorted(names & UNIX_ONLY)]
    report(violations)


def test_files_are_short():
    counts = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources("spark_jax", "train", "tools")
    }
    report(
        [f"{place(path, count)}: more than {MAX_LINES} lines" for path, count in counts.items() if count > MAX_LINES]
    )


def public_functions(parent: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods with public names, but properties and what only Flax and typing need."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            if not re.match("_|setup$", node.name) and not re.search(r"property|overload", decorators):
                yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)


def test_docstrings_of_functions_begin_with_a_verb():
    """In the third person: "Returns the …", not "The …" and not "Bytes of …". Those of commands are their help."""
    violations = []
    for path in (path for module, path in PACKAGE.items() if room(module) != "cli"):
        for node in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            words = (ast.get_docstring(node) or "").split()[:2]
            if not words or not re.fullmatch("[A-Z][a-z]+s,?", words[0]) or words[1:] == ["of"]:
                violations.append(f"{place(path, node.lineno)}: {node.name}: {' '.join(words) or 'no docstring'}")
    report(violations)


@pytest.mark.parametrize(
    ("name", "pattern"), [("british", rf"\b({BRITISH})\w*"), ("skipped", r"#\s*fmt:\s*skip"), ("noqa", r"#\s*noqa\s*$")]
)
def test_words_that_do_not_occur(name, pattern):
    """British spelling, single lines that the formatter skips, and lint exceptions without a rule."""
    violations = []
    for path in texts(ROOT):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if found := re.search(pattern, line, re.IGNORECASE):
                violations.append(f"{place(path, number)}: {found[0]}")
    report(violations)
