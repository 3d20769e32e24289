"""Products in the real layouts, small, with pixels that are known."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jeoparda.raster import write_band
from jeoparda.sensors import SENTINEL_2_L1C, SENTINEL_2_L2A, Sensor

WEST, NORTH = 399_960.0, 5_400_000.0
BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
CLASSES = np.array([[4, 5, 8], [11, 3, 4]], np.uint8)  # of SCL, in blocks over the ground; none mirrors another


def pixel_m(sensor: Sensor, band: str) -> float:
    """Native pixel size of a band in metres."""
    return next(m for m, names in sensor.groups if band in names)


def numbers(height: int, width: int, seed: int = 0, low: int = 1, high: int = 9000) -> np.ndarray:
    """(row, col) uint16, no two rows or columns alike."""
    return np.random.default_rng(seed).integers(low, high, (height, width), np.uint16)


def at(pixel: float) -> tuple[float, ...]:
    return pixel, 0.0, WEST, 0.0, -pixel, NORTH


def blocks(classes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width): each class over an equal block."""
    return classes.repeat(height // classes.shape[0], 0).repeat(width // classes.shape[1], 1)


def metadata(
    level: str, baseline: str, offsets: dict[str, int], images: Iterable[str], quantification: int = 10000
) -> str:
    """MTD_MSI*.xml: what ESA's file says of these, in its elements and order."""
    name, number = ("BOA", "BOA_ADD_OFFSET") if level == "L2A" else ("Radiometric", "RADIO_ADD_OFFSET")
    quantity = (
        f'<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">{quantification}</BOA_QUANTIFICATION_VALUE>'
        "</QUANTIFICATION_VALUES_LIST>"
        if level == "L2A"
        else f'<QUANTIFICATION_VALUE unit="none">{quantification}</QUANTIFICATION_VALUE>'
    )
    entries = "".join(f'<{number} band_id="{BAND_IDS.index(b)}">{v}</{number}>' for b, v in offsets.items())
    listed = "".join(f"<IMAGE_FILE>{i}</IMAGE_FILE>" for i in images)
    return (
        f'<n1:Level-{level[1:]}_User_Product xmlns:n1="https://psd.example/{level}"><n1:General_Info><Product_Info>'
        "<PRODUCT_START_TIME>2023-06-13T10:10:31.024Z</PRODUCT_START_TIME>"
        f"<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE><Product_Organisation><Granule_List>"
        f'<Granule datastripIdentifier="x">{listed}</Granule></Granule_List></Product_Organisation></Product_Info>'
        f"<Product_Image_Characteristics>{quantity}"
        + (f"<{name}_Offset_List>{entries}</{name}_Offset_List>" if offsets else "")
        + f"</Product_Image_Characteristics></n1:General_Info></n1:Level-{level[1:]}_User_Product>"
    )


def safe(
    parent: Path, level: str, baseline: str = "02.05", offset: int = 0, side_m: int = 1200, tile: str = "T33UUU"
) -> tuple[Path, dict[str, np.ndarray]]:
    """A SAFE product and its digital numbers by band. With `offset`, every band's own: offset, offset - 1, ..."""
    sensor = SENTINEL_2_L1C if level == "L1C" else SENTINEL_2_L2A
    stamp = f"N{baseline.replace('.', '')}_R022_{tile}_20230613T120000"
    folder = parent / f"S2A_MSI{level}_20230613T101031_{stamp}.SAFE"
    images = folder / "GRANULE" / f"{level}_{tile}_A041640_20230613T101028" / "IMG_DATA"
    pixels, listed = {}, []
    for i, band in enumerate(BAND_IDS):
        if band not in sensor.bands:
            continue
        pixel = int(pixel_m(sensor, band))
        n = side_m // pixel
        pixels[band] = numbers(n, n * 3 // 2, i)
        pixels[band][0, :2] = 0, 1
        name = (
            f"R{pixel}m/{tile}_20230613T101031_{band}_{pixel}m" if level == "L2A" else f"{tile}_20230613T101031_{band}"
        )
        path = images / f"{name}.jp2"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_band(path, pixels[band], "EPSG:32633", at(pixel))  # a GeoTIFF by another name: GDAL looks inside
        listed.append(str(path.relative_to(folder).with_suffix("")))
    if level == "L2A":
        n = side_m // 20
        scl = blocks(CLASSES, n, n * 3 // 2)
        path = images / "R20m" / f"{tile}_20230613T101031_SCL_20m.jp2"
        write_band(path, scl, "EPSG:32633", at(20))
        listed.append(str(path.relative_to(folder).with_suffix("")))
        coarse = numbers(n, n * 3 // 2, 99)  # what was resampled for convenience: never to be taken
        write_band(images / "R20m" / f"{tile}_20230613T101031_B02_20m.jp2", coarse, "EPSG:32633", at(20))
    offsets = {b: offset - i for i, b in enumerate(BAND_IDS) if b in sensor.bands} if offset else {}
    (folder / f"MTD_MSI{level}.xml").write_text(metadata(level, baseline, offsets, listed))
    return folder, pixels


def landsat(
    parent: Path, collection: int = 2, level: str = "L2SP", spacecraft: str = "LANDSAT_8", pan: bool = False
) -> tuple[Path, dict[str, np.ndarray], np.ndarray]:
    """A Landsat folder, its digital numbers by band, and its quality band, which has one bit at a time in row 0."""
    name = f"LC08_{level}_227068_20200612_20200820_0{collection}_T1"
    folder = parent / name
    folder.mkdir(parents=True)
    prefix = "SR_B" if level.startswith("L2") else "B"
    bands = {b: numbers(40, 60, i, 7273, 40000) for i, b in enumerate("1234567")}
    contents, scale, surface = [], [], []
    for i, (b, array) in enumerate(bands.items()):
        array[0, :8] = 8000
        array[1, :2] = 0, 1
        write_band(folder / f"{name}_{prefix}{b}.TIF", array, "EPSG:32621", (30.0, 0.0, 4e5, 0.0, -30.0, -1e6))
        contents.append(f'    FILE_NAME_BAND_{b} = "{name}_{prefix}{b}.TIF"')
        scale += [
            f"    REFLECTANCE_MULT_BAND_{b} = {2 + i}.0000E-05",
            f"    REFLECTANCE_ADD_BAND_{b} = -0.{i + 1}00000",
        ]
        surface += [f"    REFLECTANCE_MULT_BAND_{b} = 2.75e-05", f"    REFLECTANCE_ADD_BAND_{b} = -0.2"]
    if pan:
        contents.append(f'    FILE_NAME_BAND_8 = "{name}_B8.TIF"')
        scale += ["    REFLECTANCE_MULT_BAND_8 = 2.0000E-05", "    REFLECTANCE_ADD_BAND_8 = -0.100000"]
        inside = (15.0, 0.0, 4e5 + 7.5, 0.0, -15.0, -1e6 - 7.5)  # as USGS lays it: the outer pixels' centres agree
        write_band(folder / f"{name}_B8.TIF", numbers(79, 119, 8, 7273, 40000), "EPSG:32621", inside)
    quality = np.full((40, 60), 21824 if collection == 2 else 2720, np.uint16)  # clear land
    quality[0, :8] = 2 ** np.arange(8)
    file = f"{name}_QA_PIXEL.TIF" if collection == 2 else f"{name}_BQA.TIF"
    write_band(folder / file, quality, "EPSG:32621", (30.0, 0.0, 4e5, 0.0, -30.0, -1e6))
    thermal = "FILE_NAME_BAND_ST_B10" if level == "L2SP" else "FILE_NAME_BAND_10"
    write_band(folder / f"{name}_B10.TIF", numbers(40, 60, 10), "EPSG:32621", (30.0, 0.0, 4e5, 0.0, -30.0, -1e6))
    contents.append(f'    {thermal} = "{name}_B10.TIF"')
    kind = "PROCESSING_LEVEL" if collection == 2 else "DATA_TYPE"
    listed = "FILE_NAME_QUALITY_L1_PIXEL" if collection == 2 else "FILE_NAME_BAND_QUALITY"
    contents += [f'    {listed} = "{file}"', f'    {kind} = "{level}"']
    image = [f'    SPACECRAFT_ID = "{spacecraft}"', "    DATE_ACQUIRED = 2020-06-12"]
    image += ['    SCENE_CENTER_TIME = "13:45:12.1234560Z"']
    sun = ["    SUN_ELEVATION = 30.00000000"]
    if collection == 2:
        groups = {"PRODUCT_CONTENTS": contents, "IMAGE_ATTRIBUTES": image + sun, "LEVEL1_RADIOMETRIC_RESCALING": scale}
        if level == "L2SP":  # the same keys twice, with other values
            groups = {**groups, "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": surface}
        outer = "LANDSAT_METADATA_FILE"
    else:
        groups = {"PRODUCT_METADATA": image + contents, "IMAGE_ATTRIBUTES": sun, "RADIOMETRIC_RESCALING": scale}
        outer = "L1_METADATA_FILE"
    lines = [f"GROUP = {outer}"]
    for group, entries in groups.items():
        lines += [f"  GROUP = {group}", *entries, f"  END_GROUP = {group}"]
    (folder / f"{name}_MTL.txt").write_text("\n".join([*lines, f"END_GROUP = {outer}", "END", ""]))
    return folder, {f"B{b}": a for b, a in bands.items()}, quality
