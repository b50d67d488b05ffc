"""What is imported is declared in pyproject.toml, and what is declared has bounds and is imported."""

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Distributions whose modules have other names.
MODULES = {
    "griffelib": "griffe",
    "hibari_tts": "hibari",
    "orbax_checkpoint": "orbax",
    "piper_tts": "piper",
    "praat_parselmouth": "parselmouth",
    "pyyaml": "yaml",
}
# Modules of the authors' repository, which is no package: tools take its folder as an argument.
UNPACKAGED = {"sparktts"}
# Declared for what they do, not for what they are imported for: plug-ins, commands, and backends.
NOT_IMPORTED = {"python_multipart", "pytest_xdist", "beartype", "ruff", "pre_commit", "pre_commit_hooks"}
NOT_IMPORTED |= {"mkdocs", "mkdocs_material", "mkdocstrings"}

# Dependencies by the project's own choice, though only comparisons with other implementations import them.
CHOSEN = {"transformers"}


def declared(requirements: list[str]) -> set[str]:
    """The modules of a list of requirements."""
    names = {re.split(r"[\[<>=~!; ]", requirement)[0].lower().replace("-", "_") for requirement in requirements}
    return {MODULES.get(name, name) for name in names}


CORE = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(requirements) for name, requirements in PROJECT["optional-dependencies"].items()}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


OWN = {"spark_jax"} | {path.stem for path in sources("tools", "tests")} | {path.name for path in ROOT.glob("t*/*/")}


def imports(path: Path) -> Iterator[tuple[int, str, str | None, bool]]:
    """Line and name of each imported package, the extra that it is said to be of, and whether it is at the top."""

    def walk(node: ast.AST, extra: str | None, at_top: bool) -> Iterator[tuple[int, str, str | None, bool]]:
        for child in ast.iter_child_nodes(node):
            inner = extra
            if isinstance(child, ast.With):
                for call in (item.context_expr for item in child.items):
                    if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("needs_extra"):
                        inner = ast.literal_eval(call.args[0])
            names = [name.name for name in child.names] if isinstance(child, ast.Import) else []
            if isinstance(child, ast.ImportFrom) and not child.level:
                names = [child.module]
            for name in {name.partition(".")[0] for name in names}:
                if name not in sys.stdlib_module_names and name not in OWN | UNPACKAGED:
                    yield child.lineno, name.lower(), inner, at_top
            yield from walk(child, inner, at_top and not isinstance(child, ast.FunctionDef))

    return walk(ast.parse(path.read_text(encoding="utf-8")), None, True)


def report(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)


def test_the_package_imports_what_it_declares():
    """A package of an extra is imported where `needs_extra` names the extra."""
    violations = []
    for path in sources("spark_jax", "train"):
        said: set[str] = set()
        for line, name, extra, _ in imports(path):
            if extra is not None:
                said |= EXTRAS.get(extra, set())
            if name not in CORE | said:
                where = f"extra {extra!r}" if extra else "dependencies"
                violations.append(f"{path.relative_to(ROOT)}:{line}: {name} is not in {where} of pyproject.toml")
    report(violations)


def test_tools_and_tests_import_what_some_extra_declares():
    any_extra = CORE.union(*EXTRAS.values())
    violations = []
    for path in sources("tools", "tests"):
        for line, name, _, at_top in imports(path):
            # What only some tests need they import inside of functions, after pytest.importorskip.
            allowed = CORE | EXTRAS["dev"] if at_top and path.is_relative_to(ROOT / "tests") else any_extra
            if name not in allowed:
                violations.append(f"{path.relative_to(ROOT)}:{line}: {name} is not declared in pyproject.toml")
    report(violations)


def test_what_is_declared_is_imported():
    everywhere = {name for path in sources("spark_jax", "tools", "tests") for _, name, _, _ in imports(path)}
    extras = set().union(*EXTRAS.values())
    violations = [f"{name}: not imported" for name in (CORE | extras) - everywhere - NOT_IMPORTED]
    needed = set()
    for path in sources("spark_jax"):
        found = list(imports(path))
        of_extras = set().union(*(EXTRAS.get(extra, set()) for _, _, extra, _ in found if extra))
        needed |= {name for _, name, _, _ in found} - of_extras
    violations += [f"{name}: needed by an extra only" for name in CORE - needed - CHOSEN if name in everywhere]
    report(sorted(f"pyproject.toml: {violation}" for violation in violations))


def test_versions_have_bounds():
    requirements = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    own = re.compile(r"spark-jax\[")  # an extra of extras
    report(
        [
            f"pyproject.toml: {requirement}: expected a lower and an upper bound, or one version"
            for requirement in requirements
            if not own.match(requirement) and not re.search(r">=[\d.]+,<[\d.]+$|==[\d.]+$", requirement)
        ]
    )
