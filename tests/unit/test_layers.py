"""Layers: a module imports only from its own or higher layers, without cycles, and each heavy dependency has one home.

Read off the syntax trees, function-local imports included, so that a lazy import is no way around.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "jeoparda"

LAYERS = (
    {"errors", "nomenclature", "sensors", "grid", "partition", "order", "launchers", "degrade"},
    {"config", "files", "raster", "vector", "scene", "labels", "footprint", "store", "journal", "progress", "signals"},
    {"comm", "workers", "models", "losses", "metrics", "targets", "schedule", "optimizers", "checkpoint", "stall"}
    | {"meter", "energy", "ranks", "board"},
    {"ingest", "synth", "feed", "train", "evaluate", "predict", "monitor", "annotate", "scaling"},
    {"stages", "launch", "report", "cli", "demo", "__main__"},
)
NAMES = (ast.Attribute, ast.Name)
HOMES = {
    "rasterio": ("raster.",),
    "osgeo": ("raster.",),
    "h5py": ("store.",),
    "numcodecs": ("store.",),
    "hdf5plugin": ("store.",),
    "isal": ("store.",),
    "pyproj": ("raster.", "vector", "footprint"),
    "pyogrio": ("vector",),
    "shapely": ("vector",),
    "pyarrow": ("ingest.",),
    "zstandard": ("ingest.",),
    "nvidia": ("feed.dali",),
    "horovod": ("comm.",),
    "torch.distributed": ("comm.",),
    "submitit": ("launch.", "launch"),
    "matplotlib": ("report.",),
    "pynvml": ("energy",),
    "tensorboard": ("board",),
    "torch.utils.tensorboard": ("board",),
}


def modules(package: Path) -> dict[str, ast.Module]:
    """Dotted name below the package -> syntax tree; "" is the package itself, a folder's __init__ its folder."""
    out = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        out[name] = ast.parse(path.read_text(), str(path))
    return out


def imported(tree: ast.Module, inside: set[str]) -> set[str]:
    """Every dotted name that the module imports, anywhere in it. `from a import b` counts as a and a.b, or as a.b
    alone where that is one of the package's own modules, `inside`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}: write the full name"
            both = {f"{node.module}.{a.name}" for a in node.names}
            names |= both if both <= inside else {*both, node.module or ""}
    return names


def late(tree: ast.Module) -> set[str]:
    """Dotted names in the text of a module that imports by name, as the command line does."""
    named = {n.attr if isinstance(n, ast.Attribute) else n.id for n in ast.walk(tree) if isinstance(n, NAMES)}
    if "import_module" not in named:
        return set()
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def edges(package: Path) -> dict[str, set[str]]:
    """Module -> the package's modules that it imports, at once or late."""
    found = modules(package)
    out: dict[str, set[str]] = {}
    whole = {f"jeoparda.{name}" for name in found}
    for name, tree in found.items():
        wanted = imported(tree, whole) | late(tree)
        inside = {w.removeprefix("jeoparda.") for w in wanted if w.startswith("jeoparda.")}
        out[name] = {w for w in inside if w in found} - {name}
    return out


def top(name: str) -> str:
    return name.partition(".")[0]


def faults(package: Path = PACKAGE) -> list[str]:
    """Every rule that is broken, in words."""
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    uses = edges(package)
    out = [f"{name}: in no layer" for name in uses if name and top(name) not in layer]
    for name, targets in uses.items():
        for target in targets:
            if layer.get(top(name), -1) < layer.get(top(target), -1):
                out.append(f"{name} imports {target}, which is in a lower layer")
    out += [f"cycle: {' -> '.join(c)}" for c in cycles(uses)]
    for name, tree in modules(package).items():
        out += [
            f"{name} imports {w}"
            for w in imported(tree, set())
            for lib, home in HOMES.items()
            if away(name, w, lib, home)
        ]
    return sorted(set(out))


def away(name: str, wanted: str, library: str, homes: tuple[str, ...]) -> bool:
    at_home = any(f"{name}." == h or name.startswith(h) if h.endswith(".") else name == h for h in homes)
    return f"{wanted}.".startswith(f"{library}.") and not at_home


def cycles(uses: dict[str, set[str]]) -> list[list[str]]:
    """One path for each cycle that a walk in depth comes upon."""
    found, done = [], set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for target in sorted(uses[name]):
            walk(target, [*path, name])
        done.add(name)

    for name in sorted(uses):
        walk(name, [])
    return found


def test_layers_hold():
    assert faults() == []


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"order.py": "from jeoparda.train import run"}, "order imports train, which is in a lower layer"),
        ({"raster.py": "def f():\n    import jeoparda.comm"}, "raster imports comm, which is in a lower layer"),
        ({"grid.py": "import importlib\nimportlib.import_module('jeoparda.cli')"}, "grid imports cli, which is in"),
        ({"helpers.py": ""}, "helpers: in no layer"),
        ({"evaluate.py": "import jeoparda.train", "train.py": "import jeoparda.evaluate"}, "cycle: evaluate -> train"),
        (
            {"feed/__init__.py": "from jeoparda.feed.a import X", "feed/a.py": "from jeoparda.feed import Y"},
            "cycle: feed -> feed.a -> feed",
        ),
        ({"scene.py": "from rasterio.windows import Window"}, "scene imports rasterio.windows"),
        ({"store/__init__.py": "", "train.py": "def f():\n    import h5py"}, "train imports h5py"),
        ({"feed/__init__.py": "import nvidia.dali"}, "feed imports nvidia.dali"),
        ({"train.py": "from torch import distributed"}, "train imports torch.distributed"),
        ({"evaluate.py": "import horovod.torch as hvd"}, "evaluate imports horovod.torch"),
        ({"cli.py": "import submitit"}, "cli imports submitit"),
        ({"demo.py": "import matplotlib.pyplot"}, "demo imports matplotlib.pyplot"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, files, fault):
    planted = {"__init__.py": "", "comm.py": "import torch.distributed", "cli.py": "", "train.py": ""} | files
    for name, text in planted.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert any(f.startswith(fault) for f in faults(tmp_path)), faults(tmp_path)


def test_a_sound_tree_has_no_fault(tmp_path):
    sound = {"__init__.py": "", "errors.py": "", "raster.py": "import rasterio\nfrom jeoparda.errors import X"}
    sound |= {"evaluate.py": "import jeoparda.raster", "train.py": "from jeoparda.evaluate import infer"}
    for name, text in sound.items():
        (tmp_path / name).write_text(text)
    assert faults(tmp_path) == []


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["recipe", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words):
    code = (
        "import sys\nfrom jeoparda.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as e:\n    assert e.code == 0, e.code\n"
        "print('loaded', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "click" in loaded
    assert not loaded & {
        "torch",
        "nvidia",
        "horovod",
        "mpi4py",
        "rasterio",
        "h5py",
        "sklearn",
        "submitit",
        "matplotlib",
    }
