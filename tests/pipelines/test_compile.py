"""Every pipeline compiles, to the bytes that are committed, and to what a cluster can read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from rsp.components.container import image, with_images
from rsp.pipelines.compiler import (
    COMPILED,
    PIPELINES,
    compile_manifest,
    compile_pipeline,
    parameters,
    refuse_placeholders,
)
from rsp.pipelines.parameters import CONFIG
from rsp.pipelines.resources import SECRETS
from rsp.pipelines.steps import PARALLELISM, called
from rsp.shared.errors import PipelineError, UsageError

ROOT = Path(__file__).parents[2]
CLASSES = ("type_field", "order")


@pytest.fixture(scope="module", params=PIPELINES)
def text(request) -> str:
    return compile_pipeline(request.param)


@pytest.fixture
def documents(text) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, yaml.CSafeLoader))


def executors(documents) -> dict[str, dict]:
    found = documents[0]["deploymentSpec"]["executors"]
    return {name: value["container"] for name, value in found.items() if "container" in value}


def same_sdk(text: str) -> str:
    """The text without the version of kfp, whose fixes change nothing else (pyproject.toml allows a range)."""
    return re.sub(r"^sdkVersion: kfp-2\.17\.\d+$", "sdkVersion: kfp-2.17", text, flags=re.M)


def test_what_is_committed_is_fresh_whatever_the_environment(tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.startswith("RSP_IMAGE")}
    # The registry and the tag change the images and nothing else.
    env |= {"RSP_IMAGE_REGISTRY": "r.example/x", "RSP_IMAGE_TAG": "9.8.7"}
    env |= {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LANG": "C", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "rsp.shared.cli", "pipeline", "compile", "--all", str(tmp_path / "compiled")]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(PIPELINES)
    fresh = {path.name: same_sdk(path.read_text()) for path in (tmp_path / "compiled").iterdir()}
    committed = {
        path.name: with_images(same_sdk(path.read_text()), "9.8.7", "r.example/x")
        for path in COMPILED.glob("*.yaml")
    }
    assert all("r.example/x/rsp-" in text and "unreleased" not in text for text in committed.values())
    assert fresh == committed, "run `make pipelines` and commit what it writes"


def test_protobufs(documents):
    """Unknown fields, bad enums and misspelt keys are what the shipped messages refuse."""
    from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig, PipelineSpec, PlatformSpec

    json_format.ParseDict(documents[0], PipelineSpec())
    json_format.ParseDict(documents[0]["deploymentSpec"], PipelineDeploymentConfig())
    assert len(documents) <= 2
    for document in documents[1:]:
        json_format.ParseDict(document, PlatformSpec())
        for config in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(config, KubernetesExecutorConfig())


def dags(document) -> Iterator[tuple[str, dict]]:
    yield "root", document["root"]
    yield from ((name, value) for name, value in document["components"].items() if "dag" in value)


def task_of(document: dict, name: str) -> dict:
    """The task of a name, in whichever graph it is."""
    (found,) = [part["dag"]["tasks"][name] for _, part in dags(document) if name in part["dag"]["tasks"]]
    return found


def check_references(document: dict) -> None:
    """What the protobufs do not see: names that stand for nothing."""
    declared, labels = document["components"], document["deploymentSpec"]["executors"]
    for name, component in declared.items():
        assert "dag" in component or component["executorLabel"] in labels, name
    for owner, component in dags(document):
        tasks = component["dag"]["tasks"]
        inputs = component.get("inputDefinitions", {})
        for name, task in tasks.items():
            where = f"{owner}/{name}"
            called_component = declared[task["componentRef"]["name"]]
            assert set(task.get("dependentTasks", [])) <= set(tasks), where
            needed = called_component.get("inputDefinitions", {})
            item = task.get("parameterIterator", {}).get("itemInput")  # which the loop gives
            for kind in ("parameters", "artifacts"):
                given = task.get("inputs", {}).get(kind, {})
                for key, spec in needed.get(kind, {}).items():
                    assert key in given or key == item or spec.get("isOptional"), f"{where} lacks {key}"
                for key, value in given.items():
                    if output := value.get("taskOutputParameter") or value.get("taskOutputArtifact"):
                        producer = declared[tasks[output["producerTask"]]["componentRef"]["name"]]
                        outputs = producer["outputDefinitions"][kind]
                        assert output.get("outputParameterKey") or output.get("outputArtifactKey") in outputs, (
                            where
                        )
                        assert output["producerTask"] in task["dependentTasks"], where
                    parent = value.get("componentInputParameter") or value.get("componentInputArtifact")
                    assert parent is None or parent in inputs.get(kind, {}), f"{where}: {key} is {parent}"


def test_references(documents):
    check_references(documents[0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: task_of(d, "compare")["componentRef"].update(name="comp-nothing"),
        lambda d: d["components"]["comp-compare"].update(executorLabel="exec-nothing"),
        lambda d: task_of(d, "compare")["dependentTasks"].append("nothing"),
        lambda d: task_of(d, "vectorize")["inputs"]["artifacts"]["masks"]["taskOutputArtifact"].update(
            producerTask="nothing"
        ),
    ],
)
def test_the_check_of_references_checks(spoil):
    document = next(yaml.load_all(compile_pipeline("hello_world"), yaml.CSafeLoader))
    check_references(document)
    spoil(document)
    with pytest.raises((AssertionError, KeyError)):
        check_references(document)


def test_each_step_has_the_image_of_its_tool(documents):
    for container in executors(documents).values():
        tool = container["image"].rpartition(":")[0].rpartition("/rsp-")[2]
        assert container["image"] == image(tool) and (ROOT / "components" / tool / "tool.py").is_file()


def test_what_is_committed_keeps_its_placeholders(monkeypatch, tmp_path, rsp):
    """`make pipelines` writes the same whatever the commit and the environment."""
    monkeypatch.setenv("RSP_IMAGE_TAG", "9.8.7")
    monkeypatch.setattr("rsp.pipelines.cli.COMPILED", tmp_path / "compiled")
    assert rsp("pipeline", "compile", "--all", tmp_path / "compiled").code == 0
    text = (tmp_path / "compiled" / "quality.yaml").read_text()
    assert image("compare") in text and text == compile_pipeline("quality")
    with pytest.raises(PipelineError, match="rsp-changes:unreleased is a placeholder"):
        refuse_placeholders(text)
    assert refuse_placeholders(compile_pipeline("quality", "9.8.7"))


def test_manifests_have_the_tag_and_a_name_of_their_own():
    first, second = (compile_manifest("quality", None, tag) for tag in ("1.0.0", "1.0.1"))
    assert "/rsp-compare:1.0.0" in first and "unreleased" not in first
    assert re.findall("quality-[0-9a-f]{12}", first) != re.findall("quality-[0-9a-f]{12}", second)


def test_nothing_is_installed_by_a_step(documents):
    for container in executors(documents).values():
        text = " ".join([*container["command"], *container["args"]])
        assert "pip install" not in text and "pip3" not in text and "ensurepip" not in text


def test_no_secret_is_compiled_in(text, documents):
    for container in executors(documents).values():
        assert not container.get("env"), "credentials come from a secret of the cluster, not from the pipeline"
    words = re.compile(r"(password|passwd|secret_?key|access_?key|api_?key|token)\s*[:=]", re.I)
    assert not words.search(text.partition("\n---\n")[0])
    assert "/root/" not in text and "/home/" not in text and str(ROOT) not in text


def test_secrets_are_named_and_may_be_absent(documents):
    for document in documents[1:]:
        for config in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            for secret in config.get("secretAsEnv", []):
                assert secret["optional"] and secret["secretName"] in SECRETS


def test_every_parameter_is_explained(text):
    found = parameters(text)
    assert found and all(parameter.text for parameter in found.values())


def test_accelerators_are_asked_for_at_run_time():
    """KFP's backend reads the count as text and takes nothing from a number: gpus must be a STRING."""
    first, second = yaml.load_all(compile_pipeline("hello_world"), yaml.CSafeLoader)
    resources = executors([first])["exec-train"]["resources"]
    assert resources["accelerator"] == {
        "resourceCount": "{{$.inputs.parameters['pipelinechannel--gpus']}}",
        "resourceType": "{{$.inputs.parameters['pipelinechannel--accelerator']}}",
    }
    for step, count in (("train", "gpus"), ("predict", "predict_gpus")):
        for name in (step, f"{step}-s3"):
            given = task_of(first, name)["inputs"]["parameters"]
            channel = f"pipelinechannel--{count}"
            assert given[channel] == {"componentInputParameter": channel}
            container = executors([first])[f"exec-{name}"]
            assert channel in container["resources"]["accelerator"]["resourceCount"]
            config = second["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{name}"]
            assert config["tolerations"] and config["nodeSelector"]["nodeSelectorJson"]
    declared = first["root"]["inputDefinitions"]["parameters"]
    assert declared["gpus"]["parameterType"] == declared["accelerator"]["parameterType"] == "STRING"
    (mount,) = second["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]["emptyDirMounts"]
    assert mount == {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "8Gi", "volumeName": "shm"}


@pytest.mark.parametrize(
    ("name", "asking"), [("hello_world", ["gate"]), ("retraining", ["changed", "champion", "judge"])]
)
def test_deploying_is_never_cached_and_needs_the_store_alone(name, asking):
    first, second = yaml.load_all(compile_pipeline(name), yaml.CSafeLoader)
    configs = second["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    # What the store wants at the moment is nothing that a cache knows.
    for step in ("deploy", *asking):
        for each in (step, f"{step}-s3"):
            assert not task_of(first, each)["cachingOptions"].get("enableCache")
        config = configs[f"exec-{step}"]
        assert "pvcMount" not in config and "podMetadata" not in config
        (secret,) = [each for each in config["secretAsEnv"] if each["secretName"] == "rsp-s3"]
        assert {each["secretKey"]: each["envVar"] for each in secret["keyToEnv"]} == {
            "access_key": "AWS_ACCESS_KEY_ID", "secret_key": "AWS_SECRET_ACCESS_KEY",
            "session_token": "AWS_SESSION_TOKEN", "endpoint": "AWS_ENDPOINT_URL_S3", "region": "AWS_REGION",
        }  # fmt: skip
    services = (ROOT / "k8s" / "base" / "services.yaml").read_text()
    given = first["root"]["inputDefinitions"]["parameters"]
    assert "name: rsp-serving-pods" in services
    assert name == "hello_world" or "rsp-serving-pods" in given["status"]["defaultValue"]
    for step in ("deploy", "deploy-s3"):
        (condition,) = [part for _, part in dags(first) if step in part["dag"]["tasks"]]
        assert set(condition["dag"]["tasks"]) == {step}
    outputs = first["components"]["comp-deploy"]["outputDefinitions"]["parameters"]
    assert set(outputs) == {"version", "endpoint", "replaced"}


@pytest.mark.parametrize("name", PIPELINES)
def test_what_lies_at_an_address_is_looked_up_every_time(name):
    document = next(yaml.load_all(compile_pipeline(name), yaml.CSafeLoader))
    assert not task_of(document, "resolve")["cachingOptions"].get("enableCache")


def test_a_nightly_run_downloads_again():
    document = next(yaml.load_all(compile_pipeline("retraining"), yaml.CSafeLoader))
    for name in ("download", "rasterize", "download-s3", "rasterize-s3"):
        assert not task_of(document, name)["cachingOptions"].get("enableCache"), name
    # An empty text stands for the day, which `resolve` knows.
    given = task_of(document, "download-s3")["inputs"]["parameters"]["refresh"]
    assert given == {"componentInputParameter": "pipelinechannel--resolve-refresh"}
    assert task_of(document, "train")["cachingOptions"]["enableCache"] is True


@pytest.mark.parametrize(("name", "count"), [("dataset", 4), ("retraining", 6)])
def test_every_step_that_draws_labels_is_told_the_classes(name, count):
    """Both ways, by artifacts and by addresses, wherever the polygons come from."""
    document = next(yaml.load_all(compile_pipeline(name), yaml.CSafeLoader))
    given = [
        {key: task["inputs"]["parameters"].get(key, {}).get("componentInputParameter") for key in CLASSES}
        for component in document["components"].values()
        for step, task in component.get("dag", {}).get("tasks", {}).items()
        if step.startswith("rasterize")
    ]
    assert len(given) == count
    assert all(found[key].endswith(key) for found in given for key in CLASSES)


def test_what_is_done_for_blocks_is_found_in_the_data_root_and_not_in_the_cache():
    """A cache would answer with what has been removed since, and not say that it is in use."""
    document = next(yaml.safe_load_all(compile_pipeline("prediction")))
    steps = ("blocks", "download", "predict", "vectorize-block", "join", "prune")
    for name in steps:
        assert not task_of(document, f"{name}-s3")["cachingOptions"].get("enableCache"), name
    assert task_of(document, "predict")["cachingOptions"]["enableCache"] is True
    assert "join-s3" in task_of(document, "prune-s3")["dependentTasks"]
    tasks = [task for _, part in dags(document) for task in part["dag"]["tasks"].values()]
    limits = [task["iteratorPolicy"]["parallelismLimit"] for task in tasks if "iteratorPolicy" in task]
    assert limits == [PARALLELISM]
    at_once = task_of(document, "blocks-s3")["inputs"]["parameters"]["at_once"]
    assert at_once["runtimeValue"]["constant"] == PARALLELISM


def test_another_parallelism_is_compiled_in():
    usual, other = compile_pipeline("prediction"), compile_pipeline("prediction", parallelism=12)
    changed = [line for line in other.splitlines() if line not in usual.splitlines()]
    assert sorted(line.strip() for line in changed) == ["constant: 12.0", "parallelismLimit: 12"]
    assert "parallelismLimit: 12" in compile_manifest("prediction", parallelism=12)
    with pytest.raises(UsageError, match="works in blocks, as prediction"):
        compile_pipeline("quality", parallelism=12)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        compile_pipeline("prediction", parallelism=0)


def test_steps_have_no_display_name(documents):
    """Backends up to 2.5 look for outputs under it, and fail: issue 11173 of kubeflow/pipelines."""
    for _, component in dags(documents[0]):
        for name, task in component["dag"]["tasks"].items():
            if task["componentRef"]["name"] not in dict(dags(documents[0])):
                assert task["taskInfo"]["name"] == name


def test_manifests_against_the_crds(shared_data):
    from jsonschema import Draft202012Validator

    kinds = {}
    for document in yaml.load_all(compile_manifest("hello_world", "team"), yaml.CSafeLoader):
        crd = yaml.safe_load(
            (shared_data / "crds" / f"pipelines.kubeflow.org_{document['kind'].lower()}s.yaml").read_text()
        )
        (version,) = [item for item in crd["spec"]["versions"] if item["name"] == "v2beta1"]
        schema = version["schema"]["openAPIV3Schema"]
        spec = schema["properties"]["spec"]
        if not spec.get("x-kubernetes-preserve-unknown-fields"):
            spec["additionalProperties"] = False
        Draft202012Validator(schema).validate(document)
        kinds[document["kind"]] = document["metadata"]
    assert kinds["Pipeline"]["name"] == "hello-world"
    assert re.fullmatch(r"hello-world-[0-9a-f]{12}", kinds["PipelineVersion"]["name"])
    assert {metadata["namespace"] for metadata in kinds.values()} == {"team"}


def test_what_is_asked_of_the_cluster(documents):
    """Every step says what it needs, what it may take, when it hangs, and how often it is tried again."""
    first, second = documents
    configs = second["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, container in executors(documents).items():
        resources = container["resources"]
        for name in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            assert resources[name], label
        assert int(configs[label]["activeDeadlineSeconds"]) >= 3600
    for _, part in dags(first):
        for name, task in part["dag"]["tasks"].items():
            if first["components"][task["componentRef"]["name"]].get("executorLabel") in configs:
                assert 1 <= task["retryPolicy"]["maxRetryCount"] <= 2, name


def test_what_speaks_to_s3_has_the_secret(documents):
    """Whatever may read or write an address; what only works on artifacts has nothing to say there."""
    first, second = documents
    configs = second["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for component in first["components"].values():
        if "executorLabel" not in component or component["executorLabel"] not in configs:
            continue
        names = set(component.get("inputDefinitions", {}).get("parameters", {}))
        speaks = names & {"data_root", "config_uri", "store", "source", "pbf", "raster", "parts"} or any(
            name.endswith("_at") for name in names
        )
        secrets = {each["secretName"] for each in configs[component["executorLabel"]].get("secretAsEnv", [])}
        assert bool(speaks) == ("rsp-s3" in secrets), component["executorLabel"]


def test_the_configuration_is_whole_and_the_same_as_that_of_the_project():
    import json
    import tomllib

    assert tomllib.loads((ROOT / "config.toml").read_text()) == CONFIG
    for name in PIPELINES:
        found = parameters(compile_pipeline(name))
        assert found["config"].kind == "STRUCT" and found["config"].default in (CONFIG, {})
        # KFP takes 10,000 bytes for all parameters together.
        defaults = {key: each.default for key, each in found.items()}
        assert len(json.dumps(defaults)) < 5000


def test_what_the_form_does_not_show_is_in_the_description(documents):
    first = documents[0]
    for name, declared in first["root"]["inputDefinitions"]["parameters"].items():
        assert f"{name}: {declared['description']}"[:40] in first["pipelineInfo"]["description"]


def test_no_such_pipeline():
    with pytest.raises(UsageError, match="hello_world, dataset"):
        compile_pipeline("hello")


def test_kfp_missing_says_what_to_install(tmp_path):
    """Another environment than ours: kfp cannot be imported there."""
    code = (
        "import sys; sys.modules['kfp'] = None\n"
        "from rsp.shared.cli import main; sys.exit(main(['pipeline', 'compile', 'quality']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "pip install 'rsp-tools[pipeline]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_copy_of_a_component_keeps_the_original():
    from rsp.components.cover.component import cover

    copied = called(cover, "cover-of-the-town")
    assert (copied.name, cover.name) == ("cover-of-the-town", "cover")


def test_each_parameter_has_one_text():
    from rsp.pipelines.parameters import TEXTS

    found: dict[str, set[str]] = {}
    for name in PIPELINES:
        for parameter in parameters(compile_pipeline(name)).values():
            found.setdefault(parameter.name, set()).add(parameter.text)
    assert found == {name: {text} for name, text in TEXTS.items()}


def test_images_that_keep_their_placeholder_are_refused():
    """Those of a component of one's own, say, whose name is not of ours: the tag of our code is not theirs."""
    for name in ("ghcr.io/rsp-tools/rsp-cover2:unreleased", "r.example/other:unreleased"):
        text = f"executors:\n  container:\n    image: {name}\n"
        with pytest.raises(PipelineError, match="is a placeholder that no registry has"):
            refuse_placeholders(text)
    assert refuse_placeholders("image: r.example/other:1.0\n") == "image: r.example/other:1.0\n"
