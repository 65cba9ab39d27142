"""Bad input through the command line of every tool: a line that explains, its exit code, and nothing else touched.

All cases of a tool run in one child process whose memory and CPU time are limited.
"""

# ruff: noqa: E501 (a case is a line)

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rsp.shared.tiles import Tile, write_cover
from tests.networks import make_card, make_checkpoint
from tests.tilesets import BLOCK, CONFIG, make_tileset, squares

# Bytes and seconds that the cases of one tool may take together.
MEMORY, SECONDS = 6 << 30, 120

SEED = 5


def collection(*geometries: object, **members: object) -> str:
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    return json.dumps({"type": "FeatureCollection", "features": features, **members})


def ring(*points: tuple[float, float]) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": [[*points, points[0]]]}


def tangle(points: int) -> dict[str, object]:
    rng = random.Random(SEED)
    return ring(*((rng.uniform(1.1, 1.3), rng.uniform(1.1, 1.3)) for _ in range(points)))


HERE = ring((1.1, 1.1), (1.2, 1.1), (1.2, 1.2))
LAMBERT = ring((842000.0, 6519000.0), (842100.0, 6519000.0), (842100.0, 6519100.0))

# Features that cannot be meant, and what is said of them by cover and rasterize.
FEATURES = {
    "metres.json": (collection(LAMBERT), "feature 0: .*looks like metres: give --crs"),
    "swapped.json": (collection(HERE, ring((45.7, 104.8), (45.8, 104.8), (45.8, 104.9))), "feature 1: .*swapped"),
    "far.json": (collection({"type": "Polygon", "coordinates": [[[0, 0], [1e7, 0], [1, 1], [0, 0]]]}), "feature 0"),
    "huge.json": (collection(ring((0, 0), (1e300, 0), (1, 1))), "feature 0"),
    "deep.json": ("[" * 200_000, "deep.json"),
    "deep_inside.json": (
        '{"type":"Feature","properties":{},"geometry":{"type":"Polygon","coordinates":' + "[" * 200_000, "deep",
    ),
    "deep_object.json": ('{"a":' * 200_000, "200 deep"),
    "half.json": (collection(HERE)[:90], "JSON"),
    "labels.gpkg": ("SQLite format 3\0" + "x" * 500, "GeoPackage"),
    "binary.json": ("\0\1\2\3", "JSON|GeoJSON"),
    "late.json": (collection(HERE, crs={"type": "name", "properties": {"name": "EPSG:99999"}}), "unknown CRS"),
    "numbers.json": ('{"type":"Polygon","coordinates":[[["a",1],[2,3],[4,5],["a",1]]]}', "cannot be built|no polygon"),
}  # fmt: skip


@pytest.fixture(scope="module")
def stock(tmp_path_factory, scene) -> Path:
    """Inputs of every kind, good and bad."""
    root = tmp_path_factory.mktemp("front_door")
    make_tileset(root / "images")
    for name in ("labels", "masks"):
        make_tileset(root / name, draw=squares)
    make_tileset(root / "good.pmtiles")
    (root / "config.toml").write_text(CONFIG)
    write_cover(root / "cover", BLOCK)
    write_cover(root / "zooms", [BLOCK[0], Tile(BLOCK[0].x >> 1, BLOCK[0].y >> 1, BLOCK[0].z - 1)])
    make_checkpoint(root / "model.safetensors", make_card(tile_size=64))
    for part in ("training", "validation"):
        for name in ("images", "labels"):
            shutil.copytree(root / name, root / "dataset" / part / name)
    for name, (text, _) in FEATURES.items():
        (root / name).write_text(text)
    (root / "good.json").write_text(collection(HERE))
    told = json.loads(collection(HERE))
    for number, feature in enumerate(told["features"]):
        feature["properties"] = {"status": "gone", "score": 0.5, "mapped": str(number)}
    (root / "changes.json").write_text(json.dumps(told))
    shutil.copy(scene.pbf, root / "good.osm.pbf")
    for name, data in {
        "c_text": b"hello\n", "c_negative": b"-1,0,3\n", "c_zoom": b"0,0,31\n", "c_big": b"9" * 5000 + b",0,3\n",
        "c_utf16": "1,2,3\n".encode("utf-16"), "c_short": b"1,2\n", "c_nul": b"\0\0\0",
        "t_text.toml": b"[[channels]\n", "t_kind.toml": b"channels = 3\n", "t_nul.toml": b"\0\xff",
        "p_head.pmtiles": b"PMTiles\x03" + b"\xff" * 200, "p_short.pmtiles": b"PMTiles\x03", "p_empty.pmtiles": b"",
        "r_text.tif": b"II*\0hello", "s_long.safetensors": struct.pack("<Q", 1 << 60) + b"{}",
        "s_deep.safetensors": struct.pack("<Q", 4000) + b"[" * 4000, "o_text.onnx": b"\x08\x07hello",
    }.items():  # fmt: skip
        (root / name).write_bytes(data)
    (root / "loop").symlink_to("loop")
    mutate(root)
    return root


def mutate(root: Path) -> None:
    """Make damaged copies of good files: bytes turned at random, and cut off."""
    rng = random.Random(SEED)
    for name in ("good.pmtiles", "good.json", "good.osm.pbf", "model.safetensors", "cover"):
        data = (root / name).read_bytes()
        suffix = "".join(Path(name).suffixes)
        for number in range(4):
            spoilt = bytearray(data[: rng.randrange(1, len(data))] if number % 2 else data)
            for _ in range(1 + number * 4):
                spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
            (root / f"x{number}_{Path(name).name.partition('.')[0]}{suffix}").write_bytes(spoilt)


def cases(tool: str, root: Path) -> list[tuple[str, str]]:
    """Return command lines without the output, and what each must say (empty: anything, and it may succeed)."""
    features = {name: said for name, (_, said) in FEATURES.items()}
    covers = [("c_" + name, "c_" + name) for name in ("text", "negative", "zoom", "big", "utf16", "short", "nul")]
    covers += [("absent", "absent"), ("images", "images"), ("loop", "loop"), ("config.toml", "config.toml")]
    damaged = {kind: sorted(path.name for path in root.glob(f"x?_{kind}*")) for kind in ("good", "model", "cover")}
    archives = [name for name in damaged["good"] if name.endswith(".pmtiles")]
    archives += ["p_head.pmtiles", "p_short.pmtiles", "p_empty.pmtiles", "absent", "config.toml", "loop"]
    if tool == "cover":
        lines = [(f"--zoom 14 {name}", said) for name, said in features.items() if name != "numbers.json"]
        lines += [(f"--zoom 12 {name}", "") for name in damaged["good"] if name.endswith(".json")]
        lines += [(f"--type dir {name}", "") for name in archives]
        lines += [
            ("--type bbox 5,45,6,46 --zoom 30", "tiles, and the limit is 10,000,000"),
            ("--type bbox 104,86,105,89 --zoom 3", "swapped"),
            ("--type bbox 6,45,5,46,EPSG:3857 --zoom 3", "upside down"),
            ("--type bbox 0,0,1,1,EPSG:99999 --zoom 3", "unknown CRS"),
            ("--type bbox nan,0,1,inf --zoom 3", "not finite"),
            ("--type bbox 1e300,0,1e301,1,EPSG:2154 --zoom 3", "bbox"),
            ("--type bbox 842000,6519000,842100,6519100 --zoom 3", "for metres"),
            ("--zoom 30 good.json", "tiles, and the limit is"),
            ("--zoom 14 good.json --crs EPSG:99999", "unknown CRS"),
            ("--zoom 14 good.json --crs nonsense", "unknown CRS"),
            ("--zoom 14 good.json --crs EPSG:3857", ""),
            ("--zoom 99 good.json", "from 0 to 30"),
        ]  # fmt: skip
        return lines
    if tool == "rasterize":
        lines = [
            (f"--geojson {name} cover", "" if name == "numbers.json" else said) for name, said in features.items()
        ]
        lines += [(f"--geojson {name} cover", "") for name in damaged["good"] if name.endswith(".json")]
        lines += [(f"--geojson good.json {name}", said) for name, said in covers]
        lines += [
            (f"--geojson good.json --config {name} cover", name)
            for name in ("t_text.toml", "t_kind.toml", "t_nul.toml")
        ]
        return [
            *lines,
            ("--geojson good.json zooms", "mixes the zooms"),
            ("--geojson good.json cover --ts 99999", "1 to 4096"),
        ]
    if tool == "tile":
        return [
            ("--zoom 14 r_text.tif", "r_text.tif"), ("--zoom 14 cover", "cover"), ("--zoom 14 absent.tif", "absent"),
            ("--zoom 20 world.tif", "tiles, and the limit is"), ("--zoom 14 moon.tif", "CRS"),
            ("--zoom 99 world.tif", "from 0 to 30"), ("--zoom 14 loop", "loop"), ("--zoom 3 --bands 9 world.tif", "no band 9"),
        ]  # fmt: skip
    if tool == "info":
        # Some are whole: a text, or an image that was spoilt where nothing looks.
        lines = [(path.name, "") for path in sorted(root.iterdir()) if path.is_file()]
        lines += [("absent", "there is no absent"), ("loop", "loop")]
        lines += [(f"--channels {name}", "") for name in archives] + [("--labels images", "one band|single-band")]
        return [*lines, ("--dataset dataset", ""), ("--sample 0 images", "at least 1")]
    if tool == "subset":
        lines = [(f"--dir images --filter {name}", said) for name, said in covers]
        lines += [(f"--dir images --filter {name}", "") for name in damaged["cover"]]
        return lines + [(f"--dir {name} --filter cover", "") for name in archives]
    if tool == "download":
        return [(f"http://127.0.0.1:9/{{z}}/{{x}}/{{y}}.png {name}", said) for name, said in covers] + [
            ("file:///etc/{z}/{x}/{y} cover", "http"), ("nonsense cover", ""), ("http://[/{z}/{x}/{y} cover", ""),
        ]  # fmt: skip
    if tool == "extract":
        names = [name for name in damaged["good"] if name.endswith(".pbf")]
        return [(f"--type building {name}", "") for name in [*names, "good.json", "absent", "images", "loop"]]
    if tool == "vectorize":
        return [(f"--type building {name}", "") for name in [*archives, "images"]] + [
            ("--type building masks --config t_text.toml", "t_text.toml"), ("--type tree masks", "tree"),
        ]  # fmt: skip
    if tool == "changes":
        lines = [
            (f"--mapped {name} --predicted masks", said if name != "numbers.json" else "")
            for name, said in features.items()
        ]
        lines += [(f"--mapped {name} --predicted masks", "") for name in damaged["good"] if name.endswith(".json")]
        lines += [(f"--mapped good.json --predicted {name}", "") for name in [*archives, "images"]]
        return [
            *lines, ("--mapped masks --predicted masks", "run `rsp vectorize` first"),
            ("--mapped good.json --predicted masks --probabilities images", ""),
            ("--mapped good.json --predicted good.json --suspects s.csv", "--zoom"),
            ("--mapped good.json --predicted masks --type tree", "tree"),
            ("--mapped good.json --predicted masks --crs nonsense", "unknown CRS"),
        ]  # fmt: skip
    if tool == "review":
        rest = "--accept_worst 100 --accepted"
        lines = [
            (f"--changes {name} {rest}", said if name != "numbers.json" else "") for name, said in features.items()
        ]
        lines += [(f"--changes {name} {rest}", "") for name in damaged["good"] if name.endswith(".json")]
        lines += [(f"--changes {name} {rest}", "") for name in [*archives, "images"]]
        lines += [
            (f"--changes changes.json --mapped {name} {rest}", "") for name in features if name != "numbers.json"
        ]
        return [
            *lines, (f"--changes good.json {rest}", "no status of `rsp changes`"),
            ("--changes changes.json --decisions good.json --accepted", "holds no decisions"),
            ("--changes changes.json --decisions images --accepted", "cannot read the decisions"),
            ("--changes changes.json --decisions t_nul.toml --accepted", "cannot read the decisions"),
        ]  # fmt: skip
    if tool == "compare":
        lines = [(f"--mode list --labels labels --masks {name} --out", "") for name in archives]
        return [
            *lines,
            ("--images images labels --cover zooms --out", ""),
            ("--images images --cover c_nul --out", "c_nul"),
        ]
    models = [
        *damaged["model"],
        "s_long.safetensors",
        "s_deep.safetensors",
        "o_text.onnx",
        "absent",
        "loop",
        "cover",
    ]
    if tool == "evaluate":
        lines = [(f"--checkpoint {name} labels images --out", "") for name in models]
        lines += [(f"labels {name} --out", "") for name in archives]
        lines += [(f"labels masks --cover {name} --out", said) for name, said in covers]
        return [
            *lines, ("--checkpoint model.safetensors --checkpoint model.safetensors labels images --out", "give each once"),
            ("labels masks --cover zooms --out", "mixes the zooms|lacks"), ("--out", "LABELS MASKS, got nothing"),
            ("labels masks --probabilities images --out", "expected probabilities"),
        ]  # fmt: skip
    if tool == "predict":
        lines = [(f"--checkpoint {name} images", "") for name in models]
        lines += [(f"--checkpoint model.safetensors {name}", "") for name in archives]
        return [
            *lines, ("--checkpoint model.safetensors images --cover zooms", "mixes the zooms"),
            ("--checkpoint model.safetensors --checkpoint model.safetensors images", "give each once"),
        ]  # fmt: skip
    # A byte turned among the weights may make another good model, whose export takes long.
    models = [name for name in models if name[:2] not in ("x0", "x2")]
    if tool == "export":
        return [(f"--type onnx --checkpoint {name}", "") for name in models]
    if tool == "deploy":
        lines = [(f"--model {name} --store images", "") for name in models]
        return [
            *lines, ("--store http://127.0.0.1:9/x --list", "is not known"), ("--store s3:// --list", ""),
            ("--store images --rollback", "nothing to go back from"), ("--store images --name a/b --list", ""),
            ("--model model.safetensors --store images --status nonsense", "takes URLs"),
            ("--model model.safetensors --store masks.pmtiles", ""),
        ]  # fmt: skip
    assert tool == "train"
    return [
        ("--dataset absent", "absent"), ("--dataset images", ""), ("--dataset dataset --config t_kind.toml", "t_kind"),
        ("--dataset dataset --checkpoint s_long.safetensors --epochs 1", "s_long"),
        ("--dataset dataset --lr -1", "--lr"), ("--dataset dataset --model nonsense --epochs 1", "nonsense"),
    ]  # fmt: skip


# What runs in the child: every case in turn, what came out as JSON, one a line.
CHILD = """
import contextlib, io, json, os, shutil, sys
from pathlib import Path
from rsp.shared.cli import main

report = os.fdopen(os.dup(1), "w")
for number, (argv, out) in enumerate(json.load(sys.stdin)):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(argv + out)
        except SystemExit as leaving:
            code = leaving.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    print(json.dumps([code, err.getvalue()]), file=report, flush=True)
"""


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "-"
        for path in sorted(root.rglob("*"))
    }


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


TOOLS = (
    "cover", "download", "extract", "rasterize", "subset", "tile", "train", "export", "predict", "evaluate", "compare",
    "vectorize", "changes", "review", "deploy", "info",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_bad_input(tool, stock, tmp_path, monkeypatch):
    if tool == "tile":
        rasters(stock)
    monkeypatch.setenv("RSP_CONFIG", str(stock / "config.toml"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lines = cases(tool, stock)
    jobs, outs = [], []
    for number, (line, _) in enumerate(lines):
        outs.append(tmp_path / str(number) / "out")
        jobs.append(
            ["--workers", "1"]
            if tool in ("rasterize", "tile", "compare", "vectorize", "predict", "changes")
            else []
        )
        jobs[-1] = ([tool, *line.split(), *jobs[-1]], [] if tool == "deploy" else [str(outs[-1])])
        if tool == "info":
            jobs[-1] = ([tool, *line.split(), "--html"], [str(outs[-1])])
        if line.endswith("--out"):
            jobs[-1] = ([tool, *line.split()[:-1], "--workers", "1", "--out"], [str(outs[-1])])
    before = digest(stock)
    ran = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(jobs), capture_output=True, text=True, cwd=stock,
        preexec_fn=limit, timeout=600, check=False,
    )  # fmt: skip
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(results) == len(jobs), (lines[len(results)], ran.returncode, ran.stderr[-2000:])
    assert digest(stock) == before
    wrong = []
    for (line, said), (code, err), out in zip(lines, results, outs, strict=True):
        if (
            (code not in (1, 2) and (said or code not in (0, 3)))
            or "Traceback" in err
            or "unexpected" in err
            or (code and not err.strip())
            or not re.search(said, err)
        ):
            wrong.append((line, code, err))
        elif code in (1, 2) and out.parent.exists():
            left = [path for path in out.parent.rglob("*") if path.is_file() and tool != "train"]
            if left:
                wrong.append((line, code, left))
    assert not wrong, "\n".join(str(each)[:600] for each in wrong)


def rasters(root: Path) -> None:
    """A raster of the world, and one of the Moon."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_bounds

    moon = (
        'GEOGCS["Moon",DATUM["Moon",SPHEROID["Moon",1737400,0]],PRIMEM["0",0],UNIT["degree",0.0174532925199433]]'
    )
    for name, crs in (("world.tif", "EPSG:4326"), ("moon.tif", moon)):
        with rasterio.open(
            root / name, "w", driver="GTiff", width=64, height=32, count=1, dtype="uint8", crs=crs,
            transform=from_bounds(-170, -80, 170, 80, 64, 32),
        ) as raster:  # fmt: skip
            raster.write(np.ones((1, 32, 64), np.uint8))
