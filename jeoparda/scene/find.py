"""Which scenes are in an archive, and of which kind."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from jeoparda.errors import SceneError
from jeoparda.scene import cbers, folder, landsat, names, safe, stack
from jeoparda.scene.model import Scene
from jeoparda.scene.recipe import SceneRecipe

# in the order in which a folder is tried: what has metadata or telling names comes first
KINDS: dict[str, ModuleType] = {"safe": safe, "landsat": landsat, "cbers": cbers, "folder": folder, "stack": stack}


def find_scenes(root: Path, options: SceneRecipe = SceneRecipe()) -> list[Path]:  # noqa: B008 (frozen)
    """The scenes in `root`, at any depth, in the order of their paths: folders of bands, stacks, or FOLDER/SCENE for
    each of many scenes in a folder. A scene's own folder is not searched further.

    SceneError where there is none.
    """
    if not root.is_dir():
        raise SceneError(f"{root}: no such folder; expected one with scenes")
    found = list(_walk(root, options))
    if not found:
        raise SceneError(f"{root}: holds no scene of kind {options.kind}; there are {', '.join(KINDS)}")
    return found


def _walk(here: Path, options: SceneRecipe) -> Iterator[Path]:
    for module in _modules(options):
        if scenes := module.scenes(here, options):
            yield from scenes
            return
    for below in sorted(here.iterdir()):
        if below.is_dir():
            yield from _walk(below, options)
        elif below.is_symlink() and not below.exists() and not below.suffix:
            yield below  # was a scene's folder, perhaps: opening it tells


def _modules(options: SceneRecipe) -> list[ModuleType]:
    return list(KINDS.values()) if options.kind == "auto" else [KINDS[options.kind]]


def open_scene(
    path: Path,
    bands: tuple[str, ...] | None = None,
    options: SceneRecipe = SceneRecipe(),  # noqa: B008 (frozen)
) -> Scene:
    """What the files and the metadata of a scene say; no pixel is read. `path`: as `find_scenes` gives it, or a
    folder with one scene somewhere in it. `bands`: which, in this order within a pixel size; None: as `options` says.

    SceneError names what is missing, unreadable, on another grid, or not to be known.
    """
    wanted = options.bands if bands is None else tuple(bands)
    for module in _modules(options):
        if found := _named(module, path, options):
            return module.open_one(_only(found, path), wanted, options)
    if not path.is_dir():
        raise SceneError(f"{path}: no such folder or file; expected a scene")
    return open_scene(_only(find_scenes(path, options), path), bands, options)


def _named(module: ModuleType, path: Path, options: SceneRecipe) -> list[Path]:
    """The scenes of a kind that `path` names: a folder those in it, FOLDER/SCENE one, a file itself as a stack."""
    if path.is_dir():
        return module.scenes(path, options)
    if path.is_file():
        return [path] if module is stack and names.is_raster(path) else []
    return [path] if path.parent.is_dir() and path in module.scenes(path.parent, options) else []


def _only(found: list[Path], path: Path) -> Path:
    if len(found) > 1:
        some = ", ".join(str(p) for p in found[:3]) + (" ..." if len(found) > 3 else "")
        raise SceneError(f"{path}: expected one scene, found {len(found)}; give one of {some}")
    return found[0]
