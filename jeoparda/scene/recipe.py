"""The section of a recipe that says what the files of a scene are."""

from typing import Literal

from jeoparda.config import opt, recipe

Kind = Literal["auto", "safe", "landsat", "cbers", "folder", "stack"]
Cover = Literal["fill", "dilated cloud", "cirrus", "cloud", "cloud shadow", "snow", "water"]


@recipe
class SceneRecipe:
    """What the files of a scene are and how they become one grid."""

    kind: Kind = opt(
        "auto",
        "safe: Sentinel-2; landsat: with its MTL file; cbers: file names of INPE or the Brazil Data Cube; "
        "folder: one single-band raster a band; stack: one file with all bands; auto: by what is there",
    )
    pattern: str = opt(
        "",
        "folder: regular expression for a file name, with (?P<band>), and (?P<date>), (?P<scene>) where one folder "
        "holds many scenes; empty: the band is what differs between the names",
    )
    names: tuple[str, ...] = opt((), "stack: names of its bands in file order; empty: as the file describes them")
    bands: tuple[str, ...] = opt((), "bands to take; empty: all of the sensor but panchromatic and thermal ones")
    sensor: str = opt("", "folder, stack: name of the sensor, for the store's records")
    rgb: tuple[str, ...] = opt((), "bands of a picture in true colour; empty: the sensor's own")
    nodata: float | None = opt(None, "value of pixels without data; null: as the files say")
    offset: float | None = opt(
        None,
        "safe: what to add to digital numbers, -1000 from baseline 04.00 on, else 0; null: as the metadata say",
    )
    invalid_scl: tuple[int, ...] = opt(
        (0, 1, 3, 8, 9, 10), "safe L2A: scene classes that are not valid; 3 shadow, 8, 9 cloud, 10 cirrus, 11 snow"
    )
    invalid_qa: tuple[Cover, ...] = opt(
        ("fill", "dilated cloud", "cirrus", "cloud", "cloud shadow"), "landsat: what is not valid in QA_PIXEL"
    )
    invalid_cmask: tuple[int, ...] = opt(
        (2, 4, 255),
        "cbers: values of CMASK that are not valid, of 0, 1 clear, 2 shadow, 3 snow, 4 cloud, 255 no data; in newer "
        "ones (0 no data, 127 clear, 255 cloud) 0 and 255 always; []: no mask",
    )
    align: Literal["refuse", "resample"] = opt(
        "refuse", "bands on different grids; resample: bilinear onto the finest band's grid"
    )
    pansharpen: bool = opt(
        False, "fuse the panchromatic band into the others: GDAL, weighted Brovey, of digital numbers"
    )
    pan_weights: tuple[float, ...] = opt(
        (), "share of each band in the panchromatic one, in their order; empty: the same for all"
    )
    pan: str = opt("", "name of the panchromatic band; empty: the sensor's own")
