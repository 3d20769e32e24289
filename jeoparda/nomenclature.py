"""CORINE Land Cover classes and the label sets that BigEarthNet makes of them.

Sources: CORINE Land Cover nomenclature (European Environment Agency: codes, names, colours);
BigEarthNet-43: Sumbul et al., IGARSS 2019 (level 3 without glaciers; patch counts from that paper);
BigEarthNet-19: Sumbul et al., IEEE GRSM 2021, table of the new nomenclature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jeoparda.errors import RecipeError

Color = tuple[int, int, int]  # red, green, blue, 0 to 255
IGNORE = 255  # value of a pixel or label that carries no class


@dataclass(frozen=True)
class ClcClass:
    """One CORINE level-3 class. `patches`: how many of BigEarthNet's 590,326 patches carry it."""

    code: int
    name: str
    color: Color
    patches: int


# code, name as BigEarthNet writes it, RGB of the official legend, patches in BigEarthNet v1
CLC: tuple[ClcClass, ...] = tuple(
    ClcClass(*row)
    for row in (
        (111, "Continuous urban fabric", (230, 0, 77), 10_784),
        (112, "Discontinuous urban fabric", (255, 0, 0), 69_872),
        (121, "Industrial or commercial units", (204, 77, 242), 12_895),
        (122, "Road and rail networks and associated land", (204, 0, 0), 3_384),
        (123, "Port areas", (230, 204, 204), 509),
        (124, "Airports", (230, 204, 230), 979),
        (131, "Mineral extraction sites", (166, 0, 204), 4_618),
        (132, "Dump sites", (166, 77, 0), 959),
        (133, "Construction sites", (255, 77, 255), 1_174),
        (141, "Green urban areas", (255, 166, 255), 1_786),
        (142, "Sport and leisure facilities", (255, 230, 255), 5_353),
        (211, "Non-irrigated arable land", (255, 255, 168), 196_695),
        (212, "Permanently irrigated land", (255, 255, 0), 13_589),
        (213, "Rice fields", (230, 230, 0), 3_793),
        (221, "Vineyards", (230, 128, 0), 9_567),
        (222, "Fruit trees and berry plantations", (242, 166, 77), 4_754),
        (223, "Olive groves", (230, 166, 0), 12_538),
        (231, "Pastures", (230, 230, 77), 103_554),
        (241, "Annual crops associated with permanent crops", (255, 230, 166), 7_022),
        (242, "Complex cultivation patterns", (255, 230, 77), 107_786),
        (
            243,
            "Land principally occupied by agriculture, with significant areas of natural vegetation",
            (230, 204, 77),
            147_095,
        ),
        (244, "Agro-forestry areas", (242, 204, 166), 30_674),
        (311, "Broad-leaved forest", (128, 255, 0), 150_944),
        (312, "Coniferous forest", (0, 166, 0), 211_703),
        (313, "Mixed forest", (77, 255, 0), 217_119),
        (321, "Natural grassland", (204, 242, 77), 12_835),
        (322, "Moors and heathland", (166, 255, 128), 5_890),
        (323, "Sclerophyllous vegetation", (166, 230, 77), 11_241),
        (324, "Transitional woodland/shrub", (166, 242, 0), 173_506),
        (331, "Beaches, dunes, sands", (230, 230, 230), 1_578),
        (332, "Bare rock", (204, 204, 204), 3_277),
        (333, "Sparsely vegetated areas", (204, 255, 204), 1_563),
        (334, "Burnt areas", (0, 0, 0), 328),
        (335, "Glaciers and perpetual snow", (166, 230, 204), 0),
        (411, "Inland marshes", (166, 166, 255), 6_236),
        (412, "Peatbogs", (77, 77, 255), 23_207),
        (421, "Salt marshes", (204, 204, 255), 1_562),
        (422, "Salines", (230, 230, 255), 424),
        (423, "Intertidal flats", (166, 166, 230), 1_003),
        (511, "Water courses", (0, 204, 242), 10_572),
        (512, "Water bodies", (128, 242, 230), 83_811),
        (521, "Coastal lagoons", (0, 255, 166), 1_498),
        (522, "Estuaries", (166, 255, 230), 1_086),
        (523, "Sea and ocean", (230, 242, 255), 81_612),
    )
)

CLC_BY_CODE: dict[int, ClcClass] = {c.code: c for c in CLC}
CLC_BY_NAME: dict[str, ClcClass] = {c.name: c for c in CLC}

# Level 1 by the first digit, level 2 by the first two.
LEVEL_1 = {
    1: "Artificial surfaces",
    2: "Agricultural areas",
    3: "Forest and semi-natural areas",
    4: "Wetlands",
    5: "Water bodies",
}
LEVEL_2 = {
    11: "Urban fabric",
    12: "Industrial, commercial and transport units",
    13: "Mine, dump and construction sites",
    14: "Artificial, non-agricultural vegetated areas",
    21: "Arable land",
    22: "Permanent crops",
    23: "Pastures",
    24: "Heterogeneous agricultural areas",
    31: "Forests",
    32: "Scrub and/or herbaceous vegetation associations",
    33: "Open spaces with little or no vegetation",
    41: "Inland wetlands",
    42: "Maritime wetlands",
    51: "Inland waters",
    52: "Marine waters",
}

# BigEarthNet-19: name -> the CORINE codes it holds. Codes that stand nowhere here are dropped.
_BEN19: dict[str, tuple[int, ...]] = {
    "Urban fabric": (111, 112),
    "Industrial or commercial units": (121,),
    "Arable land": (211, 212, 213),
    "Permanent crops": (221, 222, 223, 241),
    "Pastures": (231,),
    "Complex cultivation patterns": (242,),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (243,),
    "Agro-forestry areas": (244,),
    "Broad-leaved forest": (311,),
    "Coniferous forest": (312,),
    "Mixed forest": (313,),
    "Natural grassland and sparsely vegetated areas": (321, 333),
    "Moors, heathland and sclerophyllous vegetation": (322, 323),
    "Transitional woodland, shrub": (324,),
    "Beaches, dunes, sands": (331,),
    "Inland wetlands": (411, 412),
    "Coastal wetlands": (421, 422),
    "Inland waters": (511, 512),
    "Marine waters": (521, 522, 523),
}


@dataclass(frozen=True)
class Nomenclature:
    """A list of classes and how CORINE names fall into it.

    `index[clc_name]` is the class number, or absent where the class is dropped.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    index: dict[str, int]

    def encode(self, clc_names: list[str]) -> list[int]:
        """Class numbers (sorted, each once) of a patch's CORINE names; may be empty.

        Raises KeyError with the first name that is no CORINE level-3 class.
        """
        unknown = [n for n in clc_names if n not in CLC_BY_NAME]
        if unknown:
            raise KeyError(unknown[0])
        return sorted({self.index[n] for n in clc_names if n in self.index})


def _bigearthnet_43() -> Nomenclature:
    kept = [c for c in CLC if c.patches]
    return Nomenclature(
        "bigearthnet-43",
        tuple(c.name for c in kept),
        tuple(c.color for c in kept),
        {c.name: i for i, c in enumerate(kept)},
    )


def _bigearthnet_19() -> Nomenclature:
    return Nomenclature(
        "bigearthnet-19",
        tuple(_BEN19),
        tuple(CLC_BY_CODE[codes[0]].color for codes in _BEN19.values()),  # the colour of the first member
        {CLC_BY_CODE[code].name: i for i, codes in enumerate(_BEN19.values()) for code in codes},
    )


NOMENCLATURES: dict[str, Nomenclature] = {n.name: n for n in (_bigearthnet_43(), _bigearthnet_19())}


def nomenclature(name: str) -> Nomenclature:
    """The nomenclature of that name; RecipeError names the ones there are."""
    if name not in NOMENCLATURES:
        raise RecipeError(f"nomenclature {name!r} is unknown; there are {', '.join(NOMENCLATURES)}")
    return NOMENCLATURES[name]


# ---- coarser lists of classes


def corine_level(classes: Sequence[str]) -> int | None:
    """3 or 2 where all of these are names of that CORINE level, else None. Names of both ("Pastures") count as 3."""
    if all(n in CLC_BY_NAME for n in classes):
        return 3
    return 2 if all(n in LEVEL_2.values() for n in classes) else None


def coarser(classes: Sequence[str], to: str) -> tuple[tuple[str, ...], tuple[Color, ...], np.ndarray]:
    """What classes of CORINE level 3 become in a coarser list, "bigearthnet-19", "corine-2" or "corine-1"; those of
    level 2 in "corine-1".

    Returns names; colours, of the first member in the order of codes; (class, coarser class) uint8, 1 where the one
    falls into the other. A coarser class that none of `classes` falls into is left out; bigearthnet-19 drops some of
    `classes`, whose rows are 0. RecipeError where `classes` are of another kind.
    """
    level = corine_level(classes)
    if level is None or (level == 2 and to != "corine-1"):
        raise RecipeError(_not_corine(classes, to))
    members = _members(to)
    if level == 3:
        codes = [CLC_BY_NAME[n].code for n in classes]
    else:  # any member of a class stands for it
        codes = [_members("corine-2")[n][0] for n in classes]
    matrix = np.array([[code in held for held in members.values()] for code in codes], np.uint8)
    there = np.flatnonzero(matrix.any(0))
    if not len(there):
        raise RecipeError(f"labels = {to}: drops all of the store's classes, {', '.join(classes)}; take another list")
    names = list(members)
    colors = tuple(CLC_BY_CODE[members[names[i]][0]].color for i in there)
    return tuple(names[i] for i in there), colors, matrix[:, there]


def _members(to: str) -> dict[str, tuple[int, ...]]:
    """Coarser class -> the CORINE level-3 codes that it holds, rising."""
    if to == "bigearthnet-19":
        return _BEN19
    names, digits = {"corine-2": (LEVEL_2, 10), "corine-1": (LEVEL_1, 100)}[to]
    return {name: tuple(c.code for c in CLC if c.code // digits == code) for code, name in names.items()}


def _not_corine(classes: Sequence[str], to: str) -> str:
    if corine_level(classes) == 2:
        return f"labels = {to}: the store's classes are of CORINE level 2; take labels = store, or corine-1"
    wrong = next((n for n in classes if n not in CLC_BY_NAME), classes[0])
    text = f"labels = {to}: is made of CORINE level-3 classes, as the 43 of BigEarthNet v1; the store has {wrong!r}"
    if len(held := _BEN19.get(wrong, ())) > 1:
        text += (
            f", which in BigEarthNet-19 is {', '.join(map(str, held))} together. Those 19 make no CORINE levels: some "
            "span several classes of level 2, and some CORINE classes stand in none"
        )
    return f"{text}; take labels = store, or a store of the 43"
