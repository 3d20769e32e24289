"""Which scenes are in an archive, and of which kind."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from jeoparda.errors import SceneError
from jeoparda.raster import session
from jeoparda.scene import cbers, folder, landsat, names, safe, stack
from jeoparda.scene.model import Scene
from jeoparda.scene.recipe import SceneRecipe

# in the order in which a folder is tried: what has metadata or telling names comes first
KINDS: dict[str, ModuleType] = {"safe": safe, "landsat": landsat, "cbers": cbers, "folder": folder, "stack": stack}
# products as they are downloaded
_PACKED = {
    "safe": re.compile(r"^S2.*\.zip$|\.SAFE\.zip$", re.IGNORECASE),
    "landsat": re.compile(r"^L[CEOT]0?\d.*\.(tar|tar\.\w+|tgz)$", re.IGNORECASE),
}


def find_scenes(root: Path, options: SceneRecipe = SceneRecipe()) -> list[Path]:  # noqa: B008 (frozen)
    """The scenes in `root`, at any depth, in the order of their paths: folders of bands, stacks, or FOLDER/SCENE for
    each of many scenes in a folder. A product's own folder is not searched further, hidden folders are not searched,
    and one that many links lead to is searched once. What cannot be told or is packed is among them: `open_scene`
    says why.

    SceneError where there is none.
    """
    if not root.is_dir():
        raise SceneError(f"{root}: no such folder; expected one with scenes")
    found = sorted(set(_walk(root, options, set())))
    if not found:
        raise SceneError(f"{root}: holds no scene of kind {options.kind}; there are {', '.join(KINDS)}")
    return found


def _walk(here: Path, options: SceneRecipe, seen: set[Path]) -> Iterator[Path]:
    if (real := here.resolve()) in seen:
        return
    seen.add(real)
    try:
        entries = sorted(p for p in here.iterdir() if not p.name.startswith("."))
        module, found = _held(here, options)
    except OSError:
        yield here  # opening it tells
        return
    yield from found
    if _whole(module, here, found):
        return
    for below in entries:
        if below.is_dir():
            yield from _walk(below, options, seen)
        elif _packed(below, options) or (below.is_symlink() and not below.exists() and not below.suffix):
            yield below  # was a scene's folder, perhaps: opening it tells


def _held(here: Path, options: SceneRecipe) -> tuple[ModuleType | None, list[Path]]:
    """The scenes that a folder itself holds, and the module of their kind. Where they cannot be told apart, it is the
    folder, and opening it tells why."""
    for module in _modules(options):
        try:
            scenes = module.scenes(here, options)
        except SceneError:
            return module, [here]
        if scenes:
            return module, scenes
    return None, []


def _whole(module: ModuleType | None, here: Path, found: list[Path]) -> bool:
    """Whether the folder is a product, and what lies below a part of it."""
    return (module is safe and safe.is_product(here)) or (module is landsat and found == [here])


def _packed(path: Path, options: SceneRecipe) -> bool:
    return any(p.search(path.name) for kind, p in _PACKED.items() if options.kind in ("auto", kind))


def _modules(options: SceneRecipe) -> list[ModuleType]:
    return list(KINDS.values()) if options.kind == "auto" else [KINDS[options.kind]]


def open_scene(
    path: Path,
    bands: tuple[str, ...] | None = None,
    options: SceneRecipe = SceneRecipe(),  # noqa: B008 (frozen)
) -> Scene:
    """What the files and the metadata of a scene say; no pixel is read but those of a CMASK. `path`: as `find_scenes`
    gives it, or a folder with one scene somewhere in it. `bands`: which, in this order within a pixel size; None: as
    `options` says.

    SceneError names what is missing, unreadable, on another grid, or not to be known.
    """
    wanted = options.bands if bands is None else tuple(bands)
    try:
        with session(sidecars=True):
            return _opened(path, wanted, options)
    except SceneError:  # is an OSError too
        raise
    except OSError as e:
        raise SceneError(f"{e.filename or path}: cannot be read: {e.strerror or e}") from e


def _opened(path: Path, bands: tuple[str, ...], options: SceneRecipe) -> Scene:
    for module in _modules(options):
        if found := _named(module, path, options):
            return module.open_one(_only(found, path), bands, options)
    if path.is_file() and _packed(path, options):
        raise SceneError(f"{path}: is packed; expected a product's folder: unpack it")
    if not path.is_dir():
        raise SceneError(f"{path}: no such folder or file; expected a scene")
    return _opened(_only(find_scenes(path, options), path), bands, options)


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
