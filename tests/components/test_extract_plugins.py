"""rsp extract with extractors of other packages: what they do wrong is said with their name."""

from __future__ import annotations

import pytest

from rsp.components.extract.plugin import find_extractor
from rsp.components.extract.tool import extract
from rsp.shared.errors import PluginError
from tests.osm import Scene, features_of, square

PARKING = """
class Parking:
    geometry = "polygon"
    keys = ("amenity",)
    tags = ("amenity",)
    def accept(self, tags):
        return tags["amenity"] == "parking"
    def width(self, tags):
        raise NotImplementedError
"""

RAIL = """
class Rail:
    geometry = "line"
    keys = ["railway"]
    tags = ()
    def accept(self, tags):
        return True
    def hidden(self, tags):
        return "tunnel" in tags
    def width(self, tags):
        return 4.0, ["gauge=broad"]
"""


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path / "scene.osm.pbf")
    scene.way(square(9.5, 47.1), amenity="parking", building="yes")
    scene.way(square(9.6, 47.1), amenity="school")
    scene.way([(9.5, 47.1), (9.51, 47.1)], railway="rail")
    scene.way([(9.5, 47.2), (9.51, 47.2)], railway="rail", tunnel="yes")
    scene.write()
    return scene


@pytest.fixture
def plugin(tmp_path, monkeypatch, request):
    """Write a module, whose name is not that of any other test's, and return the name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        name = f"osm_plugin_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def test_a_class_or_an_object(scene, tmp_path, rsp, plugin):
    module = plugin(PARKING + "parking = Parking()\n")
    for name in ("Parking", "parking"):
        assert rsp("extract", "--type", f"{module}:{name}", scene.path, tmp_path / "p.json").code == 0
        assert list(features_of(tmp_path / "p.json")) == [("way", 1)]


def test_hidden_objects_and_lines(scene, tmp_path, plugin):
    kind = f"{plugin(RAIL)}:Rail"
    result = extract(scene.path, tmp_path / "r.json", kind=kind)
    assert (result.features, result.hidden, result.unreadable_tags) == (1, 1, 1)
    assert features_of(tmp_path / "r.json")["way", 3][1]["width"] == 4.0
    assert extract(scene.path, tmp_path / "r.json", kind=kind, with_hidden=True).features == 2


def parking(old, new):
    """The plug-in with one thing wrong."""
    assert old in PARKING
    return PARKING.replace(old, new, 1)


WRONG = {
    "no return": (parking("return tags", "tags"), "accept(tags) of the extractor {} returned None for the tags"),
    "an exception": (parking('"amenity"]', '"x"]'), "accept(tags) of the extractor {} failed with KeyError: 'x'"),
    "a string of keys": (parking('("amenity",)', '"amenity"'), "keys of the extractor {} is 'amenity'; expected"),
    "no keys": (parking('("amenity",)', "()"), "expected at least one key"),
    "a number of tags": (parking("tags =", "tags = 7 #"), "tags of the extractor {} is 7"),
    "another geometry": (parking('"polygon"', '"point"'), "geometry of the extractor {} is 'point'; expected"),
    "a part missing": (parking("def width", "def length"), "{} is not an extractor: it has no width"),
    "a number": ("Parking = 7", "{} is not an extractor: it has no geometry, keys, tags, accept, width"),
    "not created": ("def Parking(): raise ValueError('no map')", "{} cannot be created: ValueError: no map"),
    "no width": (parking('"polygon"', '"line"'), "width(tags) of the extractor {} failed with NotImplemented"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a6_what_a_plug_in_does_wrong_is_said_with_its_name(scene, tmp_path, rsp, plugin, what):
    code, complaint = WRONG[what]
    kind = f"{plugin(code)}:Parking"
    ran = rsp("extract", "--type", kind, scene.path, tmp_path / "p.json")
    assert ran.code == 1 and "Traceback" not in ran.stderr
    assert complaint.format(repr(kind)) in ran.stderr and kind in ran.stderr
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize("width", ["'ab'", "4.0", "None", "(-1.0, ())", "(1e999, ())", "(1, 2, 3)", "(1, 2)"])
def test_a6_a_width_of_the_wrong_type(scene, tmp_path, rsp, plugin, width):
    code = RAIL.replace('4.0, ["gauge=broad"]', width)
    kind = f"{plugin(code)}:Rail"
    ran = rsp("extract", "--type", kind, scene.path, tmp_path / "p.json")
    assert ran.code == 1 and "Traceback" not in ran.stderr
    assert f"width(tags) of the extractor '{kind}' returned {width.replace('1e999', 'inf')}" in ran.stderr


def test_an_unknown_type(scene, tmp_path, rsp):
    ran = rsp("extract", "--type", "forest", scene.path, tmp_path / "p.json")
    assert ran.code == 1 and "building, parking, road" in ran.stderr
    with pytest.raises(PluginError, match="forest"):
        find_extractor("forest")
