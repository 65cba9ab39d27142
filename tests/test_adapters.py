"""The command line and the component of a tool are adapters of one function: here they may not drift from it."""

from __future__ import annotations

import argparse
import inspect
from importlib import import_module

import pytest

from rsp.shared.cli import make_parser, tools

TOOLS = [name for name in tools() if name not in ("pipeline", "serve")]

# Flags of every tool that are none of its function.
COMMON = {"help", "report", "debug"}

# Flags that are another spelling of a parameter, which `resolve` brings together.
SPELLINGS = {"cover": {"geojson", "bbox", "dir", "cover", "raster", "sql"}, "evaluate": {"places"}}

# The components of each module, and which parameter of the function each artifact or parameter stands for.
# Artifacts that are what the function returns stand for none.
COMPONENTS: dict[tuple[str, str], dict[str, str | None]] = {
    ("info", "info"): {"page": None, "what": "path"},
    ("cover", "cover"): {"cover": "out"},
    ("cover", "split"): {"tiles": "source", "training": "out", "validation": "out", "share": "splits"},
    ("download", "download"): {"tiles": "out", "at_once": None, "refresh": None},
    ("extract", "extract"): {"features": "out"},
    ("rasterize", "rasterize"): {
        "labels": "out", "features": "geojson", "layers": "geojson", "queries": "postgis", "images": "like"
    },
    ("compare", "review"): {"listing": "out", "cover": None},
    ("subset", "subset"): {"subset": "out"},
    ("tile", "tile"): {"tiles": "out", "raster": "rasters"},
    ("train", "train"): {
        "training_images": "dataset", "training_labels": "dataset", "validation_images": "dataset",
        "training_weights": "dataset",
        "validation_labels": "dataset", "checkpoint": "out", "metrics": None, "confusion": None, "history": None,
        # What a step asks of the cluster.
        "nodes": None, "node_gpus": None, "accelerator": None, "runtime": None,
        # Called `checkpoint` by the command line: here that is what comes out.
        "start": "checkpoint",
    },
    ("export", "export"): {"model": "out"},
    ("predict", "predict"): {
        "images": "tiles", "model": "checkpoint", "masks": "out", "overlap": "tile_overlap",
        "with_probabilities": None,
    },
    ("evaluate", "evaluate"): {
        "metrics": None, "confusion": None, "page": "out", "tiles": "out", "evaluation": "out",
        "model": "checkpoint", "overlap": "tile_overlap",
    },
    ("compare", "compare"): {
        "metrics": None, "confusion": None, "map": None, "side_by_side": None, "table": "metrics",
    },
    ("vectorize", "vectorize"): {"features": "out"},
    ("changes", "changes"): {"changes": "out", "metrics": None, "evaluation": "metrics"},
    ("review", "review_page"): {"page": "out"},
    ("review", "correct"): {},
    ("deploy", "deploy"): {},
    ("cover", "blocks"): {},
    ("vectorize", "vectorize_block"): {"config_uri": None},
    ("vectorize", "join"): {"features": "out", "failed": None, "absent": None},
}  # fmt: skip

# Parameters of components that stand for none of a function: those are of `rsp.components.reference` and of
# `rsp.components.artifacts`, or say by address what another one says as an artifact.
OF_STEPS = {"data_root", "refresh", "config_uri", "failed", "max_failed"}

# Components of another function of their tool: how many blocks it works on is no option of a command.
OTHER_FUNCTIONS = {
    ("cover", "blocks"): "rsp.components.cover.blocks:listed",
    ("vectorize", "vectorize_block"): "rsp.components.vectorize.step:part_of_block",
    ("vectorize", "join"): "rsp.components.vectorize.join:join",
}

WEB = {"web_ui_base_url", "web_ui_template", "web_ui"}  # pages of a folder; a component's page is an artifact

# What only the command line has.
LEFT_OUT = {
    ("info", "info"): {
        "as_json", "channels", "config", "dataset", "devices", "html", "labels", "sample", "seed", "workers",
    },
    ("cover", "cover"): {"splits", "seed", "block", "stable"},  # that is `split`
    ("cover", "split"): {"crs", "kind", "layer", "max_tiles", "out_format", "pg", "union", "zoom"},
    ("download", "download"): {"overwrite", "refresh", "workers", *WEB},  # a step begins with nothing
    ("extract", "extract"): {"index"},
    ("rasterize", "rasterize"): {
        "append", "counts", "resume", "tile_format", "weight_sigma", "weights", "workers", *WEB
    },  # no step reads weights yet
    ("subset", "subset"): {"kind", "mode", "resume", "workers", *WEB},
    ("tile", "tile"): {"resume", "workers", *WEB},
    # What else there is to say about training stands in the configuration.
    ("train", "train"): {"bs", "classes_weights", "device", "loss", "lr", "model", "resume", "ts", "workers"},
    ("export", "export"): {"config", "seed", "tiles"},
    ("predict", "predict"): {
        "batch_size", "config", "device", "model", "precision", "resume", "source", "tile_size",
        "trust_model", "workers", *WEB,
    },
    ("evaluate", "evaluate"): {"batch_size", "device", "precision", "trust_model", "workers"},
    ("compare", "compare"): {
        "captions", "cover", "geojson", "maximum", "maximum_fg", "maximum_qod", "minimum", "minimum_fg",
        "minimum_qod", "mode", "out", "resume", "tile_format", "vertical", "workers", *WEB,
    },
    ("compare", "review"): {
        "captions", "cover", "geojson", "images", "metrics", "mode", "resume", "tile_format", "vertical",
        "workers", *WEB,
    },
    ("vectorize", "vectorize"): {"merge", "workers"},
    ("changes", "changes"): {"workers"},
    ("review", "review_page"): {
        "accept_worst", "accepted", "attribution", "corrected", "decisions", "doubtful", "web_ui_template", "zoom",
    },  # that is `correct`
    ("review", "correct"): {
        "attribution", "embed", "images", "labels", "masks", "out", "title", "web_ui_template", "worst",
    },
    ("cover", "blocks"): set(),
    ("vectorize", "vectorize_block"): set(),
    ("vectorize", "join"): set(),
    ("deploy", "deploy"): {"force", "keep", "listing", "rollback", "single_writer", "timeout", "trust_model"},
}  # fmt: skip

REQUIRED = inspect.Parameter.empty

# Where a component means another default than the command line, whose is the seed's.
OTHER_DEFAULTS = {
    ("cover", "cover", "kind"): ("geojson", "bbox"),
    ("cover", "cover", "zoom"): (None, 18),
    ("cover", "split", "share"): (None, 70),
    ("tile", "tile", "zoom"): (None, 18),
    ("tile", "tile", "tile_size"): (512, 0),  # the configuration's, which every pipeline has
    ("extract", "extract", "kind"): (None, "building"),
    ("vectorize", "vectorize", "kind"): (REQUIRED, "building"),
    ("export", "export", "kind"): ("jit", "pt2"),
    ("review", "correct", "zoom"): (None, 18),
    ("review", "review_page", "embed"): (None, 8.0),
    ("deploy", "deploy", "name"): ("", "rsp"),  # a list is of all names
}

# Kubeflow knows no None for numbers: these stand for it. Artifacts may be left out.
NONE = ("", 0, "0", -1, {}, [], None)


def parameters(function):
    return dict(inspect.signature(function).parameters)


def components(name):
    """The components of a tool's module, as functions."""
    module = import_module(f"rsp.components.{name}.component")
    return {key: value.python_func for key, value in vars(module).items() if hasattr(value, "python_func")}


def test_every_tool_is_here():
    assert len(TOOLS) == 16 and {tool for tool, _ in COMPONENTS} == set(TOOLS)
    assert set(LEFT_OUT) == set(COMPONENTS)
    assert {(name, key) for name in TOOLS for key in components(name)} == set(COMPONENTS)


@pytest.mark.parametrize("name", TOOLS)
def test_the_command_line_is_the_function(name):
    module = import_module(tools()[name])
    expected = parameters(getattr(module, name))
    defaults: dict[str, list] = {}
    positional = set()
    for action in make_parser(name, module)._actions:
        if action.dest not in COMMON:
            defaults.setdefault(action.dest, [])
            if action.default is not argparse.SUPPRESS:
                defaults[action.dest].append(action.default)
            if not action.option_strings or action.required:
                positional.add(action.dest)
    assert set(defaults) - SPELLINGS.get(name, set()) == set(expected)
    for key, parameter in expected.items():
        if parameter.default is REQUIRED:
            # Given always: argparse demands it, or `resolve` does.
            assert (key in positional or hasattr(module, "resolve")) and set(defaults[key]) <= {None}, key
        else:
            assert defaults[key], key
            for default in defaults[key]:
                assert (default, type(default)) == (parameter.default, type(parameter.default)), key


@pytest.mark.parametrize(("name", "component"), COMPONENTS)
def test_the_component_is_the_function(name, component):
    module, function = OTHER_FUNCTIONS.get((name, component), f"{tools()[name]}:{name}").split(":")
    known = parameters(getattr(import_module(module), function))
    meant = COMPONENTS[name, component]
    found = parameters(components(name)[component])
    assert set(meant) <= set(found)
    stands_for = {key: meant.get(key, key) for key in found}
    if (name, component) not in OTHER_FUNCTIONS:  # these take addresses, and nothing else, as the function does
        assert {key.removesuffix("_at") for key in found if key.endswith("_at")} <= set(found)
        stands_for |= {key: None for key in found if key not in meant and (key in OF_STEPS or key.endswith("_at"))}
    named = {value for value in stands_for.values() if value is not None}
    assert named <= set(known), "a parameter that the function does not have"
    assert set(known) - named == LEFT_OUT[name, component]
    for key, parameter in found.items():
        if parameter.default is REQUIRED or stands_for[key] is None:
            continue
        if f"{key}_at" in found:  # one of the two is given, whatever the function says of it
            assert parameter.default is None and found[f"{key}_at"].default == "", key
            continue
        default = known[stands_for[key]].default
        if (name, component, key) in OTHER_DEFAULTS:
            assert (default, parameter.default) == OTHER_DEFAULTS[name, component, key]
        elif default is None:
            assert parameter.default in NONE, key
        else:
            assert parameter.default == default, key


@pytest.mark.parametrize("name", TOOLS)
def test_the_function_is_typed_and_explained(name):
    function = getattr(import_module(tools()[name]), name)
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    assert signature.return_annotation not in (None, inspect.Signature.empty)
    for key, parameter in signature.parameters.items():
        assert parameter.annotation is not REQUIRED, key
        assert f"{key}: " in text or f"{key} (" in text, f"{key} is not explained"
