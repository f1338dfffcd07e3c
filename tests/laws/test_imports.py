"""The import DAG of the packages, what may not be imported at all, and what importing costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "seguro"

ALLOWED = {
    "core": {"core"},
    "data": {"core", "data"},
    "networks": {"core", "data", "networks"},
    "losses": {"core", "data", "losses"},
    "methods": {"core", "data", "networks", "losses", "methods"},
    "engine": {"core", "data", "networks", "losses", "methods", "engine"},
    "inference": {"core", "data", "networks", "losses", "methods", "engine", "inference"},
    "attacks": {"core", "data", "networks", "losses", "methods", "engine", "inference", "attacks"},
    "federated": {
        *("core", "data", "networks", "losses", "methods", "engine", "inference", "federated"),
        "evaluation",  # the audit of made images, which each site does of its own
    },
    "evaluation": {"core", "evaluation"},
    "report": {"core", "report"},
}
"""Part -> parts it may import; `cli` and `api` may import every part."""
SHARED_BY_METHODS = ("consistency", "contract", "generators", "painter", "patches", "streams")
"""Modules of `methods` that every method may import; methods do not import each other."""
WITHOUT_TORCH = ("core", "evaluation", "report")
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "lightning", "hydra"}
BANNED_CALLS = {"eval", "exec", "joblib.load", "os.popen", "os.system"}
BANNED_CALLS |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}
BANNED_IMPORTS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "joblib.load", "os.system"}
"""Names that must not be imported, because a bare call of them would not be recognized."""
FILES = sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the part a file belongs to: its first folder, or its own name when it lies at the top."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def method_of(path: Path) -> str | None:
    """Return the method whose folder a file lies in."""
    parts = path.relative_to(SOURCE).parts
    return parts[1] if parts[0] == "methods" and len(parts) > 2 else None


def imports(tree: ast.Module, path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (absolute module, line, whether it runs at import) of each import that runs."""
    package = ("seguro", *path.relative_to(SOURCE).parts[:-1])

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from walk(other, at_import)
            elif isinstance(child, ast.Import):
                for name in child.names:
                    yield name.name, child.lineno, at_import
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                stem = ".".join((*base, *((child.module,) if child.module else ())))
                for name in child.names:
                    yield f"{stem}.{name.name}", child.lineno, at_import
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_import and not inside)

    yield from walk(tree, True)


def faults(path: Path, source: str) -> list[str]:
    """Return what is wrong with the imports and calls of one file."""
    tree, part, out = ast.parse(source), part_of(path), []
    for module, line, at_import in imports(tree, path):
        names = module.split(".")
        if names[0] == "seguro" and len(names) > 1 and part in ALLOWED:
            target = names[1]
            if not target.startswith("__") and target not in ALLOWED[part]:
                out.append(f"{path.name}:{line}: {part} imports {module}")
        if module == "seguro" and part in ALLOWED:
            out.append(f"{path.name}:{line}: {part} imports the whole package")
        own = method_of(path)
        shared = ([], [own], *([m] for m in SHARED_BY_METHODS))
        if own and names[:2] == ["seguro", "methods"] and names[2:3] not in shared:
            out.append(f"{path.name}:{line}: method {own} imports {module}")
        if module in BANNED_IMPORTS:
            out.append(f"{path.name}:{line}: imports {module}")
        if module.startswith("safetensors.torch") and part in WITHOUT_TORCH:
            out.append(f"{path.name}:{line}: {part} imports torch by way of {module}")
        if names[0] in ("torch", "monai") and (
            part in WITHOUT_TORCH or (part in ("cli", "api", "__init__") and at_import)
        ):
            out.append(f"{path.name}:{line}: {part} imports {names[0]}")
        if names[0] in BANNED_MODULES:
            out.append(f"{path.name}:{line}: imports {names[0]}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.endswith("import_module") and node.args and isinstance(node.args[0], ast.Constant):
                out += faults(path, f"import {node.args[0].value}")
            if name in BANNED_CALLS:
                out.append(f"{path.name}:{node.lineno}: calls {name}")
            if name in ("torch.load", "np.load", "numpy.load"):
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                safe = options.get("weights_only") == "True" if name == "torch.load" else True
                if not safe or options.get("allow_pickle", "False") != "False":
                    out.append(f"{path.name}:{node.lineno}: {name} may unpickle")
            if any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords):
                out.append(f"{path.name}:{node.lineno}: shell=True")
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_follow_the_dag(path: Path) -> None:
    assert faults(path, path.read_text()) == []


def test_every_part_is_in_the_table() -> None:
    parts = {part_of(p) for p in FILES} - {"cli", "api", "__init__", "__main__"}
    assert parts <= set(ALLOWED)


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "import torch"),
        ("core", "from seguro.data import plan"),
        ("core", "def f():\n    from seguro import data"),
        ("evaluation", "from seguro.data.plan import Plan"),
        ("report", "from ..evaluation import overlap"),
        ("data", "from seguro.engine.loop import train"),
        ("methods", "import seguro.inference.predict"),
        ("cli", "import torch"),
        ("cli", "class A:\n    import torch.nn"),
        ("engine", "import pickle"),
        ("engine", "from pickle import loads"),
        ("data", "x = yaml.load(y)"),
        ("data", "x = eval('1')"),
        ("engine", "torch.load(path)"),
        ("data", "np.load(path, allow_pickle=True)"),
        ("cli", "subprocess.run('ls', shell=True)"),
        ("data", "import seguro"),
        ("engine", "from torch import load"),
        ("data", "from yaml import load"),
        ("data", "joblib.load(path)"),
        ("data", "importlib.import_module('pickle')"),
        ("evaluation", "from safetensors.torch import load_file"),
        ("methods/rog", "from seguro.methods.roam.method import Roam"),
    ],
)
def test_the_walk_finds_what_it_looks_for(part: str, source: str) -> None:
    assert len(faults(SOURCE / part / "made_up.py", source)) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("cli", "def f():\n    import torch"),
        ("evaluation", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("data", "from seguro import __version__"),
        ("data", "yaml.safe_load(y)\nmodel.eval()\nnp.load(path, mmap_mode='r')"),
        ("methods", "from .contract import Method"),
        ("methods/rog", "from seguro.methods.contract import Method\nfrom seguro.methods.rog import config"),
        ("data", "importlib.import_module(name)"),
    ],
)
def test_the_walk_lets_the_rest_pass(part: str, source: str) -> None:
    assert faults(SOURCE / part / "made_up.py", source) == []


@pytest.mark.parametrize("module", ["seguro", "seguro.api", "seguro.cli.main", "seguro.core.stage"])
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "seguro" in loaded
    assert not {"torch", "monai", "scipy", "nibabel"} & set(loaded)
