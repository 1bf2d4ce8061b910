"""The house keeps its order: layers, doors, sizes, docstrings.

Each rule reads syntax trees and imports nothing of the package. Each is first shown source that
breaks it, so that a rule which no longer bites fails by itself.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "glm_dist"

# Files that an exported model takes with it: transformers imports them there, nothing does here.
HUB = "convert/hub/"

# A layer imports from the lines above it, and from itself; never from a neighbour on its line.
LAYERS = (
    ("errors",),
    ("files", "seeds", "ancestors", "json_text"),
    ("stop_signals",),
    ("config",),
    ("data", "parallel", "observe"),
    ("model", "plan"),
    ("optim",),
    ("checkpoint",),
    ("train",),
    ("generate", "convert"),
    ("tasks",),
    ("report", "sweep"),
    ("cli",),
)

DOORS = {
    "hydra": (
        "config/load.py",
        "config/finetuning.py",
        "config/overrides.py",
        "config/explain.py",
    ),
    "omegaconf": (
        "config/load.py",
        "config/finetuning.py",
        "config/explain.py",
        "config/text_values.py",
    ),
    "megatron": ("parallel/*.py", "model/*.py", "model/attention/*.py"),
    "deepspeed": ("optim/deepspeed_engine.py",),
    "safetensors": ("convert/*.py",),
    "wandb": ("observe/wandb_process.py",),
    "tensorboard": ("observe/tensorboard_sink.py",),
    "fsspec": ("checkpoint/remote.py",),
    "sentencepiece": ("data/tokenizer/*.py",),
    "tokenizers": ("data/tokenizer/*.py",),
    "triton": ("model/attention/*.py",),
}

# May be missing on a machine that does not need them, so the importing function asks for them.
OPTIONAL_LIBRARIES = {
    "apex",
    "backports",
    "compression",
    "lm_eval",
    "pyarrow",
    "rouge_score",
    "sacrebleu",
    "tensorboard",
    "transformer_engine",
    "triton",
    "wandb",
}

# Import what they choose only when it is chosen: it takes seconds.
DISPATCHERS = ("cli/dryrun.py", "cli/main.py", "cli/train.py", "optim/open.py")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Module:
    """One source file: path below the package and text."""

    path: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=self.path)

    @property
    def layer(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")


def _modules() -> list[Module]:
    folder = ROOT / PACKAGE
    return [
        Module(path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
    ]


MODULES = [module for module in _modules() if not module.path.startswith(HUB)]
HUB_MODULES = [module for module in _modules() if module.path.startswith(HUB)]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the layer"
            if node.module == PACKAGE:
                yield from ((node.lineno, f"{PACKAGE}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def _functions(tree: ast.AST) -> Iterator[Function]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    yield from (node for node in ast.walk(tree) if isinstance(node, kinds))


def imports_go_down(module: Module) -> Iterator[str]:
    rank = {name: level for level, names in enumerate(LAYERS) for name in names}
    if module.path in ("__init__.py", "__main__.py"):
        return
    if module.layer not in rank:
        yield f"layer {module.layer} is not in the list of layers"
        return
    for line, name in _imports(module.tree):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package != PACKAGE or not target or target == module.layer:
            continue
        if rank[target] >= rank[module.layer]:
            yield f"line {line}: {module.layer} imports {target}, which is not below it"


def libraries_come_through_their_door(module: Module) -> Iterator[str]:
    for line, name in _imports(module.tree):
        doors = DOORS.get(name.split(".")[0])
        if doors and not any(PurePosixPath(module.path).match(door) for door in doors):
            yield f"line {line}: imports {name}; only {', '.join(doors)} may"


def imports_stand_at_the_top(module: Module) -> Iterator[str]:
    for function in _functions(module.tree):
        for line, name in _imports(function):
            library = name.split(".")[0]
            dispatches = module.path in DISPATCHERS and library == PACKAGE
            if library not in OPTIONAL_LIBRARIES and not dispatches:
                yield f"line {line}: {function.name} imports {name} when called"


def files_and_functions_are_short(module: Module) -> Iterator[str]:
    lines = len(module.source.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{lines} lines, {MAX_FILE_LINES} allowed"
    for function in _functions(module.tree):
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield f"{function.name}: {length} lines, {MAX_FUNCTION_LINES} allowed"


def public_things_are_described(module: Module) -> Iterator[str]:
    def visit(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
        if not ast.get_docstring(node):
            yield f"{name} has no docstring"
        for child in node.body:
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from visit(child, child.name)
            elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
                overload = any("overload" in ast.unparse(d) for d in child.decorator_list)
                if not overload and not ast.get_docstring(child):
                    yield f"{name}: {child.name} has no docstring"

    if module.source.strip():
        yield from visit(module.tree, "the module")


def nothing_prints(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "builtins.print"}:
            yield f"line {node.lineno}: print; use a logger, or the console in observe/"


def no_state_is_global(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"


def exceptions_are_named(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        named = all(c and ast.unparse(c) not in {"Exception", "BaseException"} for c in caught)
        # Some libraries raise Exception itself; what is raised again hides nothing.
        translated = node.type is not None and isinstance(node.body[-1], ast.Raise)
        if not named and not translated:
            yield f"line {node.lineno}: catches everything"


def no_module_is_a_drawer(module: Module) -> Iterator[str]:
    parts = set(PurePosixPath(module.path).with_suffix("").parts)
    for name in parts & {"utils", "util", "helpers", "common", "misc"}:
        yield f"a module named {name} says nothing about its content"


RULES: list[Callable[[Module], Iterator[str]]] = [
    imports_go_down,
    libraries_come_through_their_door,
    imports_stand_at_the_top,
    files_and_functions_are_short,
    public_things_are_described,
    nothing_prints,
    no_state_is_global,
    exceptions_are_named,
    no_module_is_a_drawer,
]

IMPORT_RULES = (
    imports_go_down,
    libraries_come_through_their_door,
    imports_stand_at_the_top,
)

BAD = [
    (imports_go_down, "data/rows.py", "from glm_dist.model import glm"),
    (imports_go_down, "data/rows.py", "from glm_dist.parallel.layout import Layout"),
    (imports_go_down, "model/glm.py", "from glm_dist import train"),
    (imports_go_down, "errors.py", "import glm_dist.config.schema"),
    (imports_go_down, "attic/old.py", ""),
    (libraries_come_through_their_door, "train/step.py", "import deepspeed"),
    (libraries_come_through_their_door, "config/checks.py", "from omegaconf import DictConfig"),
    (libraries_come_through_their_door, "train/loop.py", "import megatron.core as mc"),
    (libraries_come_through_their_door, "data/rows.py", "from tokenizers import Tokenizer"),
    (imports_stand_at_the_top, "train/step.py", "def f():\n    import json"),
    (imports_stand_at_the_top, "plan/memory.py", "def f():\n    from glm_dist.config import size"),
    (files_and_functions_are_short, "errors.py", "x = 1\n" * 401),
    (files_and_functions_are_short, "errors.py", "def f():\n" + "    x = 1\n" * 60),
    (public_things_are_described, "errors.py", "x = 1"),
    (public_things_are_described, "errors.py", '"""M."""\ndef f():\n    return 1'),
    (public_things_are_described, "errors.py", '"""M."""\nclass A:\n    x = 1'),
    (public_things_are_described, "a.py", '"""M."""\nclass A:\n    """C."""\n    def f(self): ...'),
    (nothing_prints, "errors.py", "print('x')"),
    (no_state_is_global, "errors.py", "def f():\n    global x\n    x = 1"),
    (exceptions_are_named, "errors.py", "try:\n    f()\nexcept:\n    f()"),
    (exceptions_are_named, "errors.py", "try:\n    f()\nexcept Exception as e:\n    log(e)"),
    (exceptions_are_named, "errors.py", "try:\n    f()\nexcept (OSError, Exception):\n    f()"),
    (no_module_is_a_drawer, "data/utils.py", ""),
    (no_module_is_a_drawer, "utils/files.py", ""),
]


@pytest.mark.parametrize(("rule", "path", "source"), BAD)
def test_rule_catches_what_it_forbids(
    rule: Callable[[Module], Iterator[str]], path: str, source: str
) -> None:
    assert list(rule(Module(path, source)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_follows_the_rule(rule: Callable[[Module], Iterator[str]]) -> None:
    assert MODULES

    broken = [f"{PACKAGE}/{m.path}: {problem}" for m in MODULES for problem in rule(m)]

    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize("rule", [r for r in RULES if r not in IMPORT_RULES])
def test_code_of_exported_models_follows_the_other_rules(
    rule: Callable[[Module], Iterator[str]],
) -> None:
    assert HUB_MODULES

    broken = [f"{PACKAGE}/{m.path}: {problem}" for m in HUB_MODULES for problem in rule(m)]

    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(("library", "door"), [(name, d) for name in DOORS for d in DOORS[name]])
def test_every_door_is_used(library: str, door: str) -> None:
    users = [
        module.path
        for module in MODULES
        if PurePosixPath(module.path).match(door)
        and any(name.split(".")[0] == library for _, name in _imports(module.tree))
    ]

    assert users, f"nothing in {door} imports {library}"


def test_documented_doors_are_those_of_the_rule() -> None:
    by_door: dict[tuple[str, ...], list[str]] = {}
    for library, doors in DOORS.items():
        by_door.setdefault(doors, []).append(library)
    table = "| library | door |\n| --- | --- |\n" + "".join(
        f"| {', '.join(libraries)} | {', '.join(f'`{door}`' for door in doors)} |\n"
        for doors, libraries in by_door.items()
    )

    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")

    assert table in text, f"docs/architecture.md should have this table:\n{table}"


def test_benchmarks_do_not_import_tests() -> None:
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    imported = {
        path.name: name
        for path in scripts
        for _, name in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if name.split(".")[0] == "tests"
    }

    assert scripts
    assert not imported


def test_every_imported_library_is_declared() -> None:
    distribution = {
        "backports": "backports-zstd",
        "hydra": "hydra-core",
        "megatron": "megatron-core",
        "yaml": "pyyaml",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["data"]]
    declared = {re.split(r"[<>=!~ ;\[]", line)[0].lower() for line in wanted}
    standard = set(sys.stdlib_module_names)

    imported = {name.split(".")[0] for m in MODULES for _, name in _imports(m.tree)}

    ours = {PACKAGE, *OPTIONAL_LIBRARIES - {"backports", "pyarrow", "wandb"}}
    missing = {distribution.get(name, name) for name in imported - standard - ours} - declared
    assert not missing, f"imported but not in pyproject.toml: {sorted(missing)}"


def test_tests_mirror_the_package() -> None:
    folders = {
        path.parent.relative_to(ROOT / PACKAGE).as_posix()
        for path in (ROOT / PACKAGE).glob("*/**/*.py")
    }
    tested = {
        path.parent.relative_to(ROOT / "tests").as_posix()
        for path in (ROOT / "tests").glob("*/**/test_*.py")
    }
    beside_the_package = {"golden", "gpu", "launchers", "docs", "benchmarks", "fuzz", "old_runs"}

    assert tested - folders <= beside_the_package
    assert not folders - tested, f"packages without a test: {sorted(folders - tested)}"
