"""Sentinel-2: SAFE products of Level-1C and Level-2A, old names and new, and bare folders of their images.

    X.SAFE/MTD_MSIL2A.xml                                      offsets, scale, baseline, time
    X.SAFE/GRANULE/L2A_T33UUU_.../IMG_DATA/R10m/T33UUU_20170216T102101_B02_10m.jp2
    X.SAFE/GRANULE/L1C_T33UUU_.../IMG_DATA/T33UUU_20170216T102101_B02.jp2

Source: Sentinel-2 Products Specification Document (ESA), from processing baseline 04.00 on: reflectance =
(digital number + offset) / quantification value, where a digital number above 0 was measured.
"""

import dataclasses
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

from jeoparda.errors import SceneError
from jeoparda.scene import names
from jeoparda.scene.fit import assemble, take
from jeoparda.scene.model import BandFile, Quality, Scene
from jeoparda.scene.names import Named
from jeoparda.scene.recipe import SceneRecipe
from jeoparda.sensors import REFLECTANCE, SENTINEL_2_L1C, SENTINEL_2_L2A

# bandId of the metadata -> name
BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
OFFSET_FROM = "0400"  # the first baseline with an offset, of 25 January 2022
_TOOLBOX = "9000"  # from here on baselines of Sen2Cor outside of ESA's ground segment, 99.99 most often
_OFFSET_DATE = "2022-01-25"
_IMAGE = re.compile(
    r"^(?P<scene>.*?)_?(?P<band>B\d{2}|B8A|SCL)(?:_(?P<m>\d+)m)?\.(?:jp2|tiff?)$", re.IGNORECASE
)  # fmt: skip
_TELLING = re.compile(r"T\d{2}[A-Z]{3}(?:_|$)|MSI_?L[12][AC]")
_LEVEL = re.compile(r"MSI_?(L1C|L2A)|_(L1C|L2A)_T")
_BASELINE = re.compile(r"_N(\d{4})_")
_TIME = re.compile(r"(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})")
_METADATA = re.compile(r"^(?:MTD_MSIL[12][AC]|S2[A-D]_\w+_MTD_(?:SAF|DAT)?L[12][AC]_.*)\.xml$")
_IMAGES = ("IMAGE_FILE", "IMAGE_ID", "IMAGE_FILE_2A")  # tags of the list of images, new and old
_FOLDERS = ("R10m", "R20m", "R60m")


@dataclass(frozen=True)
class Product:
    """What the product's metadata say. offsets: by band, in digital numbers; images: as the product lists them,
    without suffix, relative to it."""

    path: str
    level: str
    baseline: str
    date: str
    quantification: float
    offsets: dict[str, float] = field(default_factory=dict)
    images: tuple[str, ...] = ()


def scenes(folder: Path, options: SceneRecipe) -> list[Path]:
    """The scenes that `folder` itself is: a product, each granule of an old product with many, or bare images."""
    if is_product(folder):
        granules = _granules(folder)
        return [folder] if len(granules) <= 1 else granules
    named = [n for n in names.rasters(folder) if (m := _IMAGE.match(n)) and m["band"] != "SCL"]
    if not named or (options.kind == "auto" and not _TELLING.search(f"{named[0]} {folder.name}")):
        return []
    return names.paths(folder, names.by_scene(folder, named, _rule))


def is_product(folder: Path) -> bool:
    """Whether all that lies below is of one product, or of one of its granules."""
    if _granules(folder) or _metadata(folder):
        return True
    return any((folder / sub).is_dir() for sub in ("IMG_DATA", *_FOLDERS))


def open_one(path: Path, bands: tuple[str, ...], options: SceneRecipe) -> Scene:
    """The scene at `path`; SceneError where its metadata or bands are missing."""
    images = _images(path)
    product = _product(path)
    first = next(iter(images.values()), path)
    level = product.level if product else _level(f"{path.resolve()} {first}", first)
    sensor = SENTINEL_2_L1C if level == "L1C" else SENTINEL_2_L2A
    found = {b: names.band_file(p, options) for b, p in images.items() if b in (*bands, *sensor.bands)}
    if missing := [b for b in bands or sensor.bands if b not in found]:
        raise SceneError(_missing(path, missing, images, product))
    files = take(found, bands or sensor.bands, path)
    name = _name(path, first)
    scene = Scene(name, str(path), sensor.name, level, "", REFLECTANCE, sensor.rgb, files)
    scene = _scaled(scene, product, options)
    quality = _scene_classes(images, product, options) if level == "L2A" else ()
    rgb = names.colours(options, sensor.rgb, scene.bands)
    return assemble(dataclasses.replace(scene, quality=quality, rgb=rgb), options)


# ---- the images


def _granules(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("GRANULE/[!.]*") if (p / "IMG_DATA").is_dir())


def _images(path: Path) -> dict[str, Path]:
    """Band -> image, the finest of those that the product holds: that one was measured."""
    folder = path if path.is_dir() else path.parent
    key = "" if path.is_dir() else path.name
    below = [folder, *(p for pattern in ("IMG_DATA", "GRANULE/*/IMG_DATA") for p in sorted(folder.glob(pattern)))]
    below += [p / sub for p in list(below) for sub in _FOLDERS if (p / sub).is_dir()]
    found: dict[str, tuple[int, Path]] = {}
    for image in sorted(p / n for p in below for n in names.rasters(p)):
        m = _IMAGE.match(image.name)
        if not m or (key and m["scene"] != key):
            continue
        band, size = m["band"].upper(), int(m["m"] or 0)
        if band in found and found[band][0] == size:
            raise SceneError(f"{folder}: band {band} is there twice, {found[band][1]} and {image}; give one scene")
        if band not in found or size < found[band][0]:
            found[band] = (size, image)
    return {band: image for band, (_, image) in sorted(found.items())}


def _rule(name: str) -> Named | None:
    m = _IMAGE.match(name)
    return Named(m["scene"], m["band"].upper() + (m["m"] or ""), _iso(name)) if m else None


def _scene_classes(images: dict[str, Path], product: Product | None, options: SceneRecipe) -> tuple[Quality, ...]:
    """The mask by the scene classification. SceneError where the product lists it and it is gone."""
    if not options.invalid_scl:
        return ()
    if "SCL" not in images:
        if listed := [i for i in product.images if "_SCL" in i] if product else []:
            raise SceneError(
                f"{product.path if product else ''}: lists the mask {listed[0]}.jp2, and it is missing; get it, or set "
                "invalid_scl: []"
            )
        return ()
    return (Quality(names.band_file(images["SCL"], options), options.invalid_scl),)


def _missing(path: Path, missing: list[str], images: dict[str, Path], product: Product | None) -> str:
    text = f"{path}: no raster for band {', '.join(missing)}; found {', '.join(images) or 'none'}"
    if not product:
        return text
    listed = [i for i in product.images if any(re.search(rf"_{b}(_\d+m)?$", i) for b in missing)]
    if not listed:
        return f"{text}; {product.path} lists no image of them"
    more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
    return f"{text}; {product.path} lists {listed[0]}.jp2{more}: the product is incomplete, download it again"


# ---- what is said of them


def _metadata(folder: Path) -> Path | None:
    return next((p for p in sorted(folder.glob("*.xml")) if _METADATA.match(p.name)), None)


def _product(path: Path) -> Product | None:
    """The metadata of the product that `path` is, or lies in: GRANULE/X/IMG_DATA is three folders down."""
    at = path.resolve()
    for folder in (at, *at.parents[:4]):
        if folder.is_dir() and (found := _metadata(folder)):
            return parse(found)
        if folder.suffix == ".SAFE":
            return None
    return None


def parse(path: Path) -> Product:
    """MTD_MSIL1C.xml or MTD_MSIL2A.xml. SceneError where it does not say what it must."""
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError) as e:
        raise SceneError(f"{path}: cannot be read as a product's metadata: {e}") from e

    def one(*tags: str) -> str:
        for tag in tags:
            if (text := root.findtext(f".//{tag}")) is not None:
                return text.strip()
        raise SceneError(f"{path}: says no {' or '.join(tags)}; expected the metadata of a Sentinel-2 product")

    level = "L2A" if re.search(r"L2A", path.name) else "L1C"
    entries = [e for tag in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET") for e in root.iter(tag)]
    offsets = {BAND_IDS[int(e.attrib["band_id"])]: float(e.text or 0) for e in entries}
    baseline = one("PROCESSING_BASELINE")
    if OFFSET_FROM <= baseline.replace(".", "") < _TOOLBOX and not offsets:
        raise SceneError(f"{path}: baseline {baseline} has no offsets in it; expected one a band from 04.00 on")
    return Product(
        path=str(path),
        level=level,
        baseline=baseline,
        date=one("PRODUCT_START_TIME", "DATATAKE_SENSING_START")[:19],
        quantification=float(
            one("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE")
            if level == "L2A"
            else one("QUANTIFICATION_VALUE")
        ),
        offsets=offsets,
        images=tuple((e.text or "").strip() for tag in _IMAGES for e in root.iter(tag)),
    )


def _scaled(scene: Scene, product: Product | None, options: SceneRecipe) -> Scene:
    """With gain, offset and date: of the metadata; of the recipe; or, said in a note, of what was so at that date."""
    if product:
        gain, date = 1e4 / product.quantification, product.date
        offsets, notes = _told(scene, product, options)
    else:
        _check_types(scene)
        date = _iso(next(iter(scene.files.values())).path.rpartition("/")[2]) or _iso(Path(scene.folder).name)
        offset, notes = _assumed(scene, date, options)
        gain, offsets = 1.0, dict.fromkeys(scene.files, offset)

    def scaled(band: str, f: BandFile) -> BandFile:
        nodata = 0 if f.nodata is None else f.nodata  # zero is no data in all Sentinel-2 products
        return dataclasses.replace(f, gain=gain, offset=offsets.get(band, 0.0) * gain, nodata=nodata)

    files = {band: scaled(band, f) for band, f in scene.files.items()}
    return dataclasses.replace(scene, files=files, date=date, notes=notes)


def _told(scene: Scene, product: Product, options: SceneRecipe) -> tuple[dict[str, float], tuple[str, ...]]:
    """Offsets by band: the recipe's, which takes precedence, or the metadata's."""
    if options.offset is not None:
        said = f"Offset {options.offset:g} as the recipe says, whatever the metadata do."
        return dict.fromkeys(scene.files, options.offset), (said,)
    if product.offsets or product.baseline.replace(".", "") < _TOOLBOX:
        return product.offsets, ()
    return {}, (
        f"Baseline {product.baseline} is of Sen2Cor run by a user, and its metadata have no offsets: taken as 0. If "
        "the numbers carry one, set the scene's `offset`.",
    )


def _check_types(scene: Scene) -> None:
    """Without metadata, only the type of the product's own images has a scale that is known."""
    for band, f in scene.files.items():
        if f.info.dtype != "uint16":
            raise SceneError(
                f"{f.path}: band {band} is {f.info.dtype}; expected uint16 digital numbers of a Sentinel-2 product, or "
                "its metadata; use the scene's `kind: folder` to take pixels as they are"
            )


def _assumed(scene: Scene, date: str, options: SceneRecipe) -> tuple[float, tuple[str, ...]]:
    """The offset where no metadata tell it. SceneError where a wrong guess would be easy."""
    said = f"{scene.folder}: no MTD_MSIL1C.xml or MTD_MSIL2A.xml"
    if options.offset is not None:
        return options.offset, (f"Without metadata: offset {options.offset:g} as the recipe says, 10000 is 1.",)
    baseline = _BASELINE.search(str(Path(scene.folder).resolve()))
    if baseline and baseline[1] < OFFSET_FROM:
        return 0.0, (f"Without metadata: no offset, by baseline {baseline[1]} in the name; 10000 is 1.",)
    if baseline or date[:10] >= _OFFSET_DATE:
        why = f"baseline {baseline[1]} in the name" if baseline else f"a date of {date[:10]}"
        raise SceneError(
            f"{said}, and with {why} its numbers may carry an offset; expected that file beside the images, or in the "
            "recipe the scene's `offset`: -1000 from baseline 04.00 on, 0 before"
        )
    return 0.0, (
        "Without metadata: taken as of a baseline before 04.00, no offset, 10000 is 1. If it was processed again "
        "since 2022, set the scene's `offset` to -1000.",
    )


def _level(text: str, image: Path) -> str:
    if found := _LEVEL.search(text):
        return found[1] or found[2]
    # the compact names of L1C images carry no pixel size, those of L2A do
    if image.suffix.lower() != ".jp2":
        return ""
    return "L2A" if re.search(r"_\d+m\.jp2$", image.name, re.IGNORECASE) else "L1C"


def _name(path: Path, image: Path) -> str:
    """What the images are called but for the band, T33UUU_20170216T102101; without, the folder's name."""
    m = _IMAGE.match(image.name)
    return re.sub(r"^L2A_", "", m["scene"]) if m and m["scene"] else path.resolve().name.removesuffix(".SAFE")


def _iso(text: str) -> str:
    m = _TIME.search(text)
    return f"{m[1]}-{m[2]}-{m[3]}T{m[4]}:{m[5]}:{m[6]}" if m else ""
