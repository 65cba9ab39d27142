"""Compile pipelines to KFP's intermediate representation, the YAML that every Kubeflow reads."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rsp.components.container import PLACEHOLDER, with_images
from rsp.shared.atomic import write_bytes
from rsp.shared.config import parse_config, parse_tables
from rsp.shared.errors import ConfigError, PipelineError, UsageError
from rsp.shared.keys import shortened

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

# Each is the function of that name in the module of that name, and one line for `rsp pipeline list`, which
# does not wait for kfp to be imported.
PIPELINES = {
    "hello_world": "from an area and its features to a served model and a map",
    "dataset": "make imagery and labels of an area, split for training and validation",
    "training": "train on tile sets that are there, export and measure",
    "prediction": "map an area with a model that is there",
    "quality": "measure masks against labels",
    "retraining": "retrain where something has changed, and deploy what is better; to be scheduled",
}
COMPILED = Path(__file__).parent / "compiled"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a pipeline.

    Attributes:
        name: Its name.
        kind: KFP's type: STRING, NUMBER_INTEGER, NUMBER_DOUBLE, BOOLEAN, LIST or STRUCT.
        required: Whether a run must give it.
        default: Its value where a run does not.
        text: What it means.
    """

    name: str
    kind: str
    required: bool
    default: Any
    text: str


def require_kfp() -> None:
    """Raise `PipelineError` where kfp is not installed."""
    # kfp imports the client of Kubernetes, which would import this where it is installed, for more than a second.
    hidden = "kfp" not in sys.modules and "kubernetes_validate" not in sys.modules
    if hidden:
        sys.modules["kubernetes_validate"] = None  # type: ignore[assignment]
    try:
        import_module("kfp")
    except ImportError as error:
        raise PipelineError(f"pipelines need kfp: pip install 'rsp-tools[pipeline]' ({error})") from error
    finally:
        if hidden:
            del sys.modules["kubernetes_validate"]


def load(name: str) -> BaseComponent:
    """Return a pipeline by name.

    Raises:
        UsageError: there is none of that name.
        PipelineError: kfp is not installed, or the pipeline cannot be imported.
    """
    key = name.replace("-", "_")
    if key not in PIPELINES:
        raise UsageError(f"no pipeline {name!r}; there are {', '.join(PIPELINES)}")
    require_kfp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(import_module(f"rsp.pipelines.{key}"), key)


def compile_pipeline(pipeline: str | BaseComponent, tag: str | None = None, parallelism: int | None = None) -> str:
    """Return the YAML of a pipeline: the same text at every call.

    Args:
        pipeline: One of ours by name, or any pipeline as a function.
        tag: The tag of the images, from `rsp.components.container.image_tag`. Without it they keep the
            placeholder, with which a pipeline runs on this machine and on no cluster.
        parallelism: How many blocks it works on at once; None for what the pipeline says.

    Raises:
        UsageError: a parallelism for a pipeline that does not work in blocks.
        PipelineError: it cannot be compiled.
    """
    component = load(pipeline) if isinstance(pipeline, str) else pipeline
    require_kfp()
    from kfp import compiler

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "pipeline.yaml"
        try:
            compiler.Compiler().compile(component, str(path))
        except (TypeError, ValueError, RuntimeError) as error:
            raise PipelineError(f"the pipeline cannot be compiled: {error}") from error
        return _tagged(with_parallelism(_settled(path.read_text("utf-8")), parallelism), tag)


def with_parallelism(text: str, parallelism: int | None) -> str:
    """Return a compiled pipeline that works on another number of blocks at once; None leaves it as it is.

    It is a constant of what is compiled, of the loop and of the step that cuts the blocks: KFP has no parameter
    for it.

    Raises:
        UsageError: less than one, or the pipeline does not work in blocks.
    """
    if parallelism is None:
        return text
    if parallelism < 1:
        raise UsageError(f"--parallelism must be at least 1, got {parallelism}")
    text, loops = re.subn(r"^( +parallelismLimit: )\d+$", rf"\g<1>{parallelism}", text, flags=re.M)
    if not loops:
        raise UsageError("--parallelism is for a pipeline that works in blocks, as prediction")
    told = re.compile(r"^( +at_once:\n +runtimeValue:\n +constant: )\d+\.0$", re.M)
    return told.sub(rf"\g<1>{parallelism}.0", text)


def _settled(text: str) -> str:
    """Return the text with the tables of its comments in order: kfp writes them in that of a hash table."""

    def in_order(found: re.Match[str]) -> str:
        return found[1] + json.dumps(ast.literal_eval(found[2]), sort_keys=True) + "]"

    return re.sub(r"^(#    \w+: (?:list|dict) \[Default: )(.*)\]$", in_order, text, flags=re.M)


def _tagged(text: str, tag: str | None) -> str:
    return text if tag is None else with_images(text, tag)


def refuse_placeholders(text: str) -> str:
    """Return a compiled pipeline if all of its images have real tags.

    Raises:
        PipelineError: one has the placeholder of committed files.
    """
    if found := re.search(rf"image: (\S+:{PLACEHOLDER})$", text, re.M):
        raise PipelineError(f"the image {found[1]} is a placeholder that no registry has; compile with --tag")
    return text


def compile_manifest(
    name: str, namespace: str | None = None, tag: str | None = None, parallelism: int | None = None
) -> str:
    """Return a pipeline as Kubernetes manifests, a Pipeline and a PipelineVersion, for a cluster that is declared.

    The version is named by the content, so that applying the same pipeline twice changes nothing.
    """
    component = load(name)
    from kfp import compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    title = str(component.name)
    options = KubernetesManifestOptions(
        pipeline_name=title,
        pipeline_version_name=f"{title}-{fingerprint(compile_pipeline(component, tag, parallelism))}",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(
            component, str(path), kubernetes_manifest_format=True, kubernetes_manifest_options=options
        )
        return _tagged(with_parallelism(path.read_text("utf-8"), parallelism), tag)


def fingerprint(text: str) -> str:
    """Return twelve characters that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compile_all(folder: Path, tag: str | None = None) -> list[Path]:
    """Compile every pipeline into a folder; returns the files."""
    files = []
    for name in PIPELINES:
        files.append(folder / f"{name}.yaml")
        write_bytes(files[-1], compile_pipeline(name, tag).encode())
    return files


def specification(text: str) -> dict[str, Any]:
    """Return the first document of a compiled pipeline, all but what only Kubernetes knows."""
    import yaml

    # libyaml's loader where there is one: the other takes half a second.
    return next(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def parameters(text: str) -> dict[str, Parameter]:
    """Return the parameters of a compiled pipeline: those that a run must give, then the others, by name."""
    declared = specification(text).get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    required = {name: spec for name, spec in declared.items() if not spec.get("isOptional")}
    ordered = [*required, *(name for name in declared if name not in required)]
    return {
        name: Parameter(
            name,
            declared[name]["parameterType"],
            name in required,
            _whole(declared[name]["parameterType"], declared[name].get("defaultValue")),
            declared[name].get("description", ""),
        )
        for name in ordered
    }


def _whole(kind: str, value: Any) -> Any:
    """Return a default as declared: the YAML holds every number as a float."""
    return int(value) if kind == "NUMBER_INTEGER" and value is not None else value


def check_parameters(text: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a run in the types that the pipeline declares.

    Text stands for any type, as a command line gives nothing else. A configuration is checked here, and not by the
    first step that reads it, which may be hours later.

    Raises:
        UsageError: a parameter that the pipeline does not have, one that is missing, or a value of another type.
        ConfigError: a configuration that is wrong, or that the training of the pipeline cannot follow.
    """
    declared = parameters(text)
    unknown = sorted(set(values) - set(declared))
    if unknown:
        raise UsageError(f"the pipeline has no parameter {unknown[0]!r}; it has {', '.join(declared)}")
    missing = [name for name, parameter in declared.items() if parameter.required and name not in values]
    if missing:
        raise UsageError(f"missing: {', '.join(f'-p {name}=... ({declared[name].text})' for name in missing)}")
    typed = {name: _typed(declared[name], value) for name, value in values.items()}
    tables = typed.get("config", declared["config"].default if "config" in declared else None)
    if tables and not typed.get("config_uri"):
        config = parse_config(tables, "the parameter config")
        if re.search(r"^  comp-train:$", text, re.M):
            from rsp.components.train.sets import check_channels, check_weights

            check_channels(config)
            check_weights(config, bool(typed.get("weights")))
    return typed


def _typed(parameter: Parameter, value: Any) -> Any:
    wanted = {
        "STRING": "a text",
        "NUMBER_INTEGER": "a whole number",
        "NUMBER_DOUBLE": "a number",
        "BOOLEAN": "true or false",
        "LIST": "a list",
        "STRUCT": "a table, TOML or JSON",
    }[parameter.kind]
    try:
        match parameter.kind, value:
            case "STRING", str():
                return value
            # `-p gpus=2` from a file is a number, and what is meant is clear.
            case "STRING", int() | float() if not isinstance(value, bool):
                return str(value)
            case "NUMBER_INTEGER", str() | int() if not isinstance(value, bool):
                return int(value)
            case "NUMBER_INTEGER", float() if value.is_integer():
                return int(value)
            case "NUMBER_DOUBLE", str() | int() | float() if not isinstance(value, bool):
                return float(value)
            case "BOOLEAN", bool():
                return value
            case "BOOLEAN", "true" | "false" | "True" | "False":
                return value.lower() == "true"
            case "LIST", list():
                return value
            case "STRUCT", dict():
                return value
            case "LIST" | "STRUCT", str():
                # A table may be the text of a configuration, as `-p config=@config.toml` gives it.
                parsed = parse_tables(value) if parameter.kind == "STRUCT" else json.loads(value)
                if isinstance(parsed, list if parameter.kind == "LIST" else dict):
                    return parsed
    except (ConfigError, ValueError):
        pass
    raise UsageError(f"the parameter {parameter.name} is {wanted}, got {shortened(value)}")
