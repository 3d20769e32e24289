"""A scene: the bands of one acquisition, each at its own pixel size, over the same ground, and which pixels are valid.

`find_scenes` names the scenes of an archive, `open_scene` reads what their files and metadata say, `Scene.reader`
reads pixels. One module for each way in which scenes are published: `safe`, `landsat`, `cbers`, `folder`, `stack`.
"""

from jeoparda.scene.find import find_scenes, open_scene
from jeoparda.scene.model import BandFile, Fusion, Quality, Scene, SceneReader
from jeoparda.scene.recipe import SceneRecipe

__all__ = ["BandFile", "Fusion", "Quality", "Scene", "SceneReader", "SceneRecipe", "find_scenes", "open_scene"]
