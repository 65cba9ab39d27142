"""rsp review: what decisions make of a map."""

from __future__ import annotations

import json

import pytest
from shapely.geometry import shape

from rsp.components.changes.tool import changes
from rsp.components.review.component import correct
from rsp.components.review.decisions import (
    accept_worst,
    apply_decisions,
    read_decisions,
    tiles_of,
    write_decisions,
)
from rsp.components.review.suspects import STATUSES, Suspect, Suspects, read_map, read_suspects
from rsp.components.review.tool import review
from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.features import Feature, feature_writer
from rsp.shared.tiles import read_cover
from tests.review import MAPPED, PREDICTED, house, make_changes, write


@pytest.fixture
def scene(tmp_path):
    """A map, what is predicted, and the changes between them."""
    make_changes(tmp_path)
    return tmp_path


def by_status(suspects):
    return {each.status: each for each in suspects.objects}


def read(path):
    return [(shape(each["geometry"]), each["properties"]) for each in json.loads(path.read_text())["features"]]


def same(one, other, share=1e-3):
    return one.symmetric_difference(other).area < share * other.area


def test_changes_are_read_as_they_were_written(scene):
    suspects = read_suspects(scene / "changes.geojson")
    found = by_status(suspects)
    assert set(found) == set(STATUSES) and len(suspects.objects) == len(STATUSES)
    assert found["merged"].mapped == (4, 5) and found["missing_on_map"].mapped == ()
    assert found["moved"].measures["offset_m"] == pytest.approx(4.6, abs=0.3)
    assert [each.score for each in suspects.objects] == sorted((e.score for e in suspects.objects), reverse=True)
    assert found["gone"].title == "building" and found["gone"].measures["support"] == 0
    assert "iou" not in found["gone"].measures


@pytest.mark.parametrize(
    ("status", "shapes", "names"),
    [
        ("matched", [PREDICTED[0]], ["matched"]),
        ("moved", [PREDICTED[1]], ["moved"]),
        ("reshaped", [PREDICTED[2]], ["reshaped"]),
        ("split", [PREDICTED[3], PREDICTED[4]], ["split", "split"]),
        ("merged", [PREDICTED[5]], ["merged"]),
        ("missing_on_map", [PREDICTED[6]], [None]),
        ("gone", [], []),
    ],
)
def test_what_accepting_means(scene, status, shapes, names):
    suspects, mapped = read_suspects(scene / "changes.geojson"), read_map(scene / "mapped.geojson")
    one = by_status(suspects)[status]
    applied = apply_decisions(suspects, {one.number: "accept"}, mapped)
    old = [mapped[number] for number in one.mapped]
    stay = [each for each in mapped if each not in old]
    assert applied.corrected[: len(stay)] == stay
    new = applied.corrected[len(stay) :]
    assert new == applied.accepted and len(new) == len(shapes)
    for feature, wanted, name in zip(new, shapes, names, strict=True):
        assert same(feature.geometry, wanted)
        assert feature.properties["review"] == status and feature.properties["class"] == "building"
        assert feature.properties.get("name") == name
    counts = applied.added, applied.replaced, applied.removed, applied.kept
    if status == "missing_on_map":
        assert counts == (1, 0, 0, 7)
    elif status == "gone":
        assert counts == (0, 0, 1, 6)
    else:
        assert counts == (0, len(old), 0, 7 - len(old))
    assert not applied.doubtful


@pytest.mark.parametrize("status", STATUSES)
def test_what_is_rejected_or_in_doubt_leaves_the_map_as_it_is(scene, status):
    suspects, mapped = read_suspects(scene / "changes.geojson"), read_map(scene / "mapped.geojson")
    one = by_status(suspects)[status]
    rejected = apply_decisions(suspects, {one.number: "reject"}, mapped)
    assert rejected.corrected == mapped and not rejected.accepted and not rejected.doubtful
    doubtful = apply_decisions(suspects, {one.number: "doubt"}, mapped)
    assert doubtful.corrected == mapped and not doubtful.accepted and doubtful.doubtful == [one]


def suspect(status, geometry, mapped, *, cut=False):
    return Suspect(0, status, 0.5, "", geometry, mapped, cut, {})


def test_of_what_the_border_cuts_only_the_part_that_was_seen_goes():
    """The area ends in the middle of a house."""
    whole, inside, outside = house(0, 0, 20), house(0, 0, 10), house(10, 0, 10)
    mapped = [Feature(whole, {"name": "hall"}, 0)]
    gone = Suspects((suspect("gone", inside, (0,), cut=True),), "")
    applied = apply_decisions(gone, {0: "accept"}, mapped)
    assert len(applied.corrected) == 1 and same(applied.corrected[0].geometry, outside, 0.01)
    assert applied.corrected[0].properties == {"name": "hall"} and (applied.removed, applied.kept) == (0, 1)
    all_of_it = Suspects((suspect("gone", whole, (0,), cut=True),), "")
    assert apply_decisions(all_of_it, {0: "accept"}, mapped).corrected == []
    # What it looks like outside nobody knows: it stays, and is to be looked at.
    moved = Suspects((suspect("reshaped", inside, (0,), cut=True),), "")
    applied = apply_decisions(moved, {0: "accept"}, mapped)
    assert applied.corrected == mapped and applied.partial == 1 and not applied.accepted
    assert applied.doubtful == list(moved.objects) and applied.replaced == 0


def test_the_worst_are_accepted_at_once(scene):
    suspects = read_suspects(scene / "changes.geojson")
    order = [each.number for each in suspects.objects]
    assert accept_worst(suspects, 40) == dict.fromkeys(order[:3], "accept")  # 40 % of 7 are 3, rounded up
    assert accept_worst(suspects, 0) == {}
    # What is not suspicious at all is none of them.
    assert [each.score for each in suspects.objects].count(0) == 7 - len(accept_worst(suspects, 100))


def test_the_worst_come_first_whatever_the_order_of_the_file(tmp_path):
    """FlatGeobuf has an order of its own; what has no score is no suspect."""
    told = [{"status": "gone", "score": score, "mapped": str(n)} for n, score in enumerate((0.1, 0.9, 0, 0.5))]
    suspects = read_suspects(write(tmp_path / "c.geojson", MAPPED[:4], told))
    assert [each.number for each in suspects.objects] == [1, 3, 0, 2]
    assert set(accept_worst(suspects, 100)) == {0, 1, 3}


def test_at_the_command_line(scene, rsp):
    """All outputs, by decisions that come before what is accepted at once."""
    suspects = read_suspects(scene / "changes.geojson")
    found = by_status(suspects)
    write_decisions(scene / "d.json", suspects, {found["gone"].number: "reject", found["moved"].number: "doubt"})
    ran = rsp(
        *("review", "--changes", scene / "changes.geojson", "--mapped", scene / "mapped.geojson"),
        *("--decisions", scene / "d.json", "--accept_worst", 100, "--corrected", scene / "c.geojson"),
        *("--accepted", scene / "a.geojson", "--doubtful", scene / "doubtful.csv", "--zoom", 24),
        *("--report", scene / "report.json"),
    )
    assert ran.code == 0, ran.stderr
    corrected, accepted = read(scene / "c.geojson"), read(scene / "a.geojson")
    told = [(properties.get("name"), properties.get("review")) for _, properties in corrected]
    assert ("gone", None) in told and ("moved", None) in told and ("reshaped", "reshaped") in told
    assert (None, "missing_on_map") in told and ("merged too", None) not in told
    assert {properties["review"] for _, properties in accepted} == {
        *("reshaped", "split", "merged", "missing_on_map"),
        *({"matched"} if found["matched"].score else ()),
    }
    # The tiles of both places of what has moved.
    tiles = read_cover(scene / "doubtful.csv")
    mapped = {each.number: each for each in read_map(scene / "mapped.geojson")}
    assert tiles == tiles_of([found["moved"]], 24, mapped)
    corners = [PREDICTED[1].bounds, MAPPED[1].bounds]
    assert set(tiles) >= {tile for corner in corners for tile in tiles_around(*corner, 24)}
    report = json.loads((scene / "report.json").read_text())
    assert (report["objects"], report["doubt"], report["reject"], report["tiles"]) == (7, 1, 1, len(tiles))
    assert report["accept"] + report["undecided"] == 5


def test_the_share_that_is_accepted(scene):
    """Of 7 objects 14 % are one, and 15 % are two."""
    words = {"changes": scene / "changes.geojson", "accepted": scene / "a.geojson"}
    assert review(**words, accept_worst=14).accept == 1
    assert review(**words, accept_worst=15).accept == 2


def test_how_many_the_page_shows(scene):
    """Of 7 objects 28 % are two, and 29 % are three."""
    words = {"changes": scene / "changes.geojson"}
    assert review(scene / "page.html", **words, worst=28).suspects == 2
    assert review(scene / "page.html", **words, worst=29).suspects == 3


def tiles_around(west, south, east, north, zoom):
    import mercantile

    return set(mercantile.tiles(west, south, east, north, zoom))


def test_decisions_say_whose_they_are(scene, tmp_path):
    """They name objects by numbers, so they are worth nothing for other changes."""
    suspects = read_suspects(scene / "changes.geojson")
    path = tmp_path / "d.json"
    decided = {3: "accept", 0: "doubt"}
    write_decisions(path, suspects, decided)
    assert read_decisions(path, suspects) == decided
    write(scene / "predicted.geojson", PREDICTED[1:])
    places = {name: scene / f"{name}.geojson" for name in ("mapped", "predicted")}
    changes(scene / "others.geojson", **places)
    with pytest.raises(UsageError, match="were made on other changes"):
        read_decisions(path, read_suspects(scene / "others.geojson"))


def test_the_same_changes_in_another_format_are_the_same(scene):
    places = {name: scene / f"{name}.geojson" for name in ("mapped", "predicted")}
    changes(scene / "changes.gpkg", **places)
    one, other = (read_suspects(scene / name) for name in ("changes.geojson", "changes.gpkg"))
    assert one.digest == other.digest
    assert [each.status for each in one.objects] == [each.status for each in other.objects]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "holds no decisions"),
        ("{", "cannot read the decisions"),
        ('{"version": 2, "changes": "?", "decisions": {}}', "decisions of version 2"),
        ('{"version": 1, "changes": "DIGEST", "decisions": {"1": "yes"}}', "expected accept, doubt or reject"),
        ('{"version": 1, "changes": "DIGEST", "decisions": {"-1": "doubt"}}', "for object -1"),
        ('{"version": 1, "changes": "DIGEST", "decisions": {"7": "doubt"}}', "decision on object 7"),
    ],
)
def test_decisions_that_are_none(scene, text, said):
    (scene / "d.json").write_text(text.replace("DIGEST", read_suspects(scene / "changes.geojson").digest))
    with pytest.raises(UsageError, match=said):
        review(changes=scene / "changes.geojson", decisions=scene / "d.json", accepted=scene / "a.geojson")
    assert not (scene / "a.geojson").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--accept_worst 15", "nothing to write"),
        ("--accepted a.json", "nothing is decided"),
        ("--accept_worst 15 --corrected c.json", "--corrected needs --mapped"),
        ("--accept_worst 15 --doubtful c.csv", "--doubtful needs --zoom"),
        ("--masks absent page.html", "no tile set at absent"),
        ("page.csv", "the output is a page"),
        ("changes.geojson/", "the output is"),
        ("--accept_worst 15 --accepted a.csv", "cannot write a.csv"),
        ("--accept_worst 15 --accepted changes.geojson", "is the input"),
    ],
)
def test_wrong_usage(scene, rsp, monkeypatch, words, said):
    monkeypatch.chdir(scene)
    ran = rsp("review", "--changes", "changes.geojson", *words.split())
    assert ran.code in (1, 2) and said in ran.stderr


def test_a_map_in_another_crs(scene, rsp, tmp_path):
    """The corrected map is in degrees, whatever the map was in."""
    from rsp.shared.geometry import to_mercator

    with feature_writer(tmp_path / "mapped.gpkg", crs=3857) as writer:
        for each in MAPPED:
            writer.write(to_mercator(each, 4326), {})
    found = read_map(tmp_path / "mapped.gpkg")
    assert all(same(each.geometry, wanted) for each, wanted in zip(found, MAPPED, strict=True))
    with feature_writer(tmp_path / "unsaid.geojson") as writer:
        for each in MAPPED:
            writer.write(to_mercator(each, 4326), {})
    words = ["--changes", scene / "changes.geojson", "--mapped", tmp_path / "unsaid.geojson"]
    words += ["--accept_worst", 0, "--corrected", tmp_path / "c.geojson"]
    assert rsp("review", *words, "--crs", "EPSG:3857").code == 0
    assert all(same(one, two) for (one, _), two in zip(read(tmp_path / "c.geojson"), MAPPED, strict=True))


def test_features_that_are_no_changes(scene, tmp_path):
    with pytest.raises(FeatureError, match="has no status of `rsp changes`"):
        read_suspects(scene / "mapped.geojson")
    write(tmp_path / "short.geojson", MAPPED[:2])
    suspects = read_suspects(scene / "changes.geojson")
    number = by_status(suspects)["gone"].number
    with pytest.raises(FeatureError, match="is feature 6 of the map, which has no such feature"):
        apply_decisions(suspects, {number: "accept"}, read_map(tmp_path / "short.geojson"))


def test_as_a_step(scene):
    class Artifact:
        def __init__(self, path):
            self.path, self.metadata, self.uri = str(path), {}, str(path)

    outputs = {name: Artifact(scene / "step" / name) for name in ("corrected", "accepted", "doubtful")}
    correct.python_func(
        **outputs, changes_at=str(scene / "changes.geojson"), mapped_at=str(scene / "mapped.geojson"),
        accept_worst=100.0, zoom=18.0,
    )  # fmt: skip
    assert (scene / "step" / "corrected.geojson").exists() and (scene / "step" / "doubtful.csv").exists()
    assert outputs["corrected"].metadata["rsp_kind"] == "features"
    assert outputs["corrected"].metadata["removed"] == 1
