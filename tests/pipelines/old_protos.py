"""Parse compiled pipelines with the messages of another version of Kubeflow Pipelines.

python old_protos.py FOLDER < compiled.yaml

FOLDER holds the wheels' files. It is a program of its own, because a process can know each message only once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import yaml
from google.protobuf import json_format


def load(folder: Path, package: str, module: str) -> ModuleType:
    """Import a module without the code of the packages around it, which wants a whole kfp of that version."""
    for name in ("kfp", f"kfp.{package}"):
        parent = sys.modules.setdefault(name, ModuleType(name))
        parent.__path__ = [str(folder.joinpath(*name.split(".")))]
    return import_module(f"kfp.{package}.{module}")


def main(folder: Path, text: str) -> None:
    ir = load(folder, "pipeline_spec", "pipeline_spec_pb2")
    config = load(folder, "kubernetes", "kubernetes_executor_config_pb2")
    pipeline, *platforms = yaml.load_all(text, yaml.CSafeLoader)
    json_format.ParseDict(pipeline, ir.PipelineSpec())
    json_format.ParseDict(pipeline["deploymentSpec"], ir.PipelineDeploymentConfig())
    for platform in platforms:
        json_format.ParseDict(platform, ir.PlatformSpec())
        for each in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(each, config.KubernetesExecutorConfig())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.stdin.read())
    except json_format.ParseError as error:
        sys.exit(str(error))
