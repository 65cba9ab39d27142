"""Images are built from a commit, under its version; the engine is a stand-in that notes what it was asked for."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rsp.components import bases, slim
from rsp.components.container import IMAGES, PLACEHOLDER

ROOT = Path(__file__).parents[1]
BASES = "components/bases.Dockerfile"
CODE = "components/code.Dockerfile"
FINAL = ("components/Dockerfile", "serving/Dockerfile")
DOCKERFILES = (BASES, CODE, *FINAL)
SCRIPTS = ("components/images.sh", "components/bases.py", "components/sbom.py", "components/slim.py")

# It has the images whose names are lines of $LOG/local, and its registry those of $LOG/registry.
ENGINE = """#!/bin/sh
case $1 in
  image) exec grep -qxF "$3" "$LOG/local" ;;
  pull) exec grep -qxF "$3" "$LOG/registry" ;;
  build) tar -t > "$LOG/context"; echo "${DOCKER_BUILDKIT-}" >> "$LOG/buildkit" ;;
  version) echo "${CLIENT-}"; exit ;;
esac
echo "$@" >> "$LOG/calls"
# A container runs here.
if [ "$1" = run ]; then
  while [ "$1" != - ]; do shift; done
  exec "$PYTHON" "$@"
fi
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with what builds images, and two tools: one on each base."""
    root = tmp_path / "checkout"
    for name in (*SCRIPTS, "pyproject.toml", "constraints.txt", *DOCKERFILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for tool in ("cover", "train"):
        (root / "components" / tool).mkdir()
        (root / "components" / tool / "component.py").write_text("")
    (root / ".gitignore").write_text("secret\nbuild/\n")
    for argv in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        git(root, *argv)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(ENGINE)
    (tmp_path / "bin" / "docker").chmod(0o755)
    for name in ("local", "registry", "calls"):
        (tmp_path / name).touch()
    return root


def git(root: Path, *argv: str) -> str:
    command = ["git", "-C", root, "-c", "user.name=t", "-c", "user.email=t@example.org", *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def build(checkout: Path, *names: str, **env: str) -> subprocess.CompletedProcess[str]:
    folder = checkout.parent
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LOG": str(folder),
           "PYTHON": sys.executable, **env}  # fmt: skip
    return subprocess.run([checkout / "components/images.sh", *names], env=env, capture_output=True, text=True)


def calls(checkout: Path, kind: str) -> list[list[str]]:
    """What the engine was asked to do, in order: `calls(checkout, "build")`."""
    lines = (checkout.parent / "calls").read_text().splitlines()
    return [line.split() for line in lines if line.startswith(f"{kind} ")]


def base(checkout: Path, name: str, registry: str = IMAGES, torch: str = "cuda", refresh: str = "") -> str:
    return f"{registry}/rsp-{name}:{bases.base_tag(checkout, '', torch, refresh)}"


def test_images_of_a_commit(checkout):
    (checkout / "secret").write_text("what git ignores stays out")
    done = build(checkout, RSP_IMAGE_REGISTRY="r.example/x/")
    assert done.returncode == 0, done.stderr
    revision = git(checkout, "rev-parse", "HEAD")
    version = f"0.2.0.dev1+g{revision[:9]}"
    tag = version.replace("+", "-")
    assert done.stdout.split() == [f"r.example/x/rsp-{name}:{tag}" for name in ("cover", "train", "serving")]
    built = calls(checkout, "build")
    # Each base once, before the first image that stands on it; the code once for all.
    data, torch = (base(checkout, name, "r.example/x") for name in ("data", "torch"))
    code = f"r.example/x/rsp-code:{tag}"
    tagged = [words[words.index("--tag") + 1] for words in built]
    cover, train, serving = done.stdout.split()
    assert tagged == [data, code, cover, torch, train, serving]
    assert [words[words.index("--target") + 1] for words in (built[0], built[3])] == ["data", "torch"]
    assert {f"BASE={data}", f"RSP_VERSION={version}"} <= set(built[1])
    assert {f"BASE={data}", "TOOL=cover", f"RSP_REVISION={revision}"} <= set(built[2])
    assert {f"BASE={torch}", "TOOL=train"} <= set(built[4]) and f"BASE={torch}" in built[5]
    assert all({f"CODE={code}", f"RSP_VERSION={version}"} <= set(built[n]) for n in (2, 4, 5))
    context = (checkout.parent / "context").read_text().split()
    assert "serving/Dockerfile" in context and "secret" not in context
    # What is in each of them is written beside them.
    written = {path.name: json.loads(path.read_text()) for path in (checkout / "build/sbom").iterdir()}
    assert set(written) == {f"rsp-{name}-{tag}.cdx.json" for name in ("cover", "train", "serving")}
    for name, document in written.items():
        about = document["metadata"]["component"]
        assert name == f"{about['name']}-{tag}.cdx.json" and about["version"] == version
    assert all("--network none" in " ".join(words) for words in calls(checkout, "run"))
    assert not calls(checkout, "push")


def test_images_of_the_same_packages_are_asked_for_them_once(checkout):
    for tool in ("subset", "tile", "predict"):
        (checkout / "components" / tool).mkdir()
        (checkout / "components" / tool / "component.py").write_text("")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "more tools")
    done = build(checkout, RSP_SBOM=str(checkout.parent / "sbom"))
    images = [image.rpartition("/")[2].replace(":", "-") for image in done.stdout.split()]
    assert len(images) == 6
    assert {path.name for path in (checkout.parent / "sbom").iterdir()} == {f"{name}.cdx.json" for name in images}
    asked = [words[-3:] for words in calls(checkout, "run")]
    assert len(asked) == 3 and sorted(words[-1] for words in asked) == ["rsp-serving", "rsp-tile", "rsp-train"]


@pytest.mark.parametrize(("client", "given", "told"), [
    ("20.10.24", None, "1"), ("20.10.24", "0", "0"),
    # This one fails where it is told and has no buildx.
    ("28.2.2", None, ""), ("28.2.2", "1", "1"),
])  # fmt: skip
def test_a_client_that_has_buildkit_within_is_told_to_use_it(checkout, monkeypatch, client, given, told):
    monkeypatch.delenv("DOCKER_BUILDKIT", raising=False)
    assert build(checkout, "cover", CLIENT=client, **({"DOCKER_BUILDKIT": given} if given else {})).returncode == 0
    assert set((checkout.parent / "buildkit").read_text().splitlines()) == {told}


def test_one_image_of_a_release(checkout):
    git(checkout, "tag", "v1.2.3")
    assert build(checkout, "cover").stdout == f"{IMAGES}/rsp-cover:1.2.3\n"


@pytest.mark.parametrize("where", ["local", "registry"])
def test_a_base_that_is_there_is_not_built_again(checkout, where):
    (checkout.parent / where).write_text(base(checkout, "data") + "\n")
    assert build(checkout, "cover").returncode == 0
    code, image = calls(checkout, "build")
    assert CODE in code and f"BASE={base(checkout, 'data')}" in code and f"BASE={base(checkout, 'data')}" in image
    # With other packages, another build of torch, or Debian's updates of another month it is another base.
    for changed in ({"RSP_TORCH": "cpu"}, {"RSP_BASE_REFRESH": "2031-05"}):
        (checkout.parent / "calls").write_text("")
        assert build(checkout, "cover", **changed).returncode == 0
        assert len(calls(checkout, "build")) == 3


def test_a_base_changes_with_what_is_in_it_and_not_with_the_code(checkout):
    before = bases.base_tag(checkout)
    assert re.fullmatch(r"deps-[0-9a-f]{12}", before)
    path = checkout / "pyproject.toml"
    text = path.read_text()
    path.write_text(text.replace("line-length = 115", "line-length = 99").replace("moto[server]>=5", "moto>=5"))
    (checkout / "components/cover/component.py").write_text("# changed")
    assert bases.base_tag(checkout) == before
    path.write_text(text.replace('"rasterio>=1.4,<1.5"', '"rasterio>=1.4.1,<1.5"'))
    assert bases.base_tag(checkout) != before
    path.write_text(text)
    for name in ("constraints.txt", "components/slim.py", BASES):
        with (checkout / name).open("a") as file:
            file.write("# more\n")
        assert bases.base_tag(checkout) not in (before, None)
        before = bases.base_tag(checkout)


def test_slimming_names_nothing_that_packages_do_not_hold():
    """A version that puts its tests elsewhere would bring them into the images unseen."""
    installed = Path(np.__path__[0]).parent
    for package, patterns in slim.UNUSED.items():
        if package in ("onnx", "torch"):  # builds of torch differ
            continue
        nowhere = [pattern for pattern in patterns if not any((installed / package).glob(pattern))]
        assert not nowhere, f"{package}: {nowhere}"
    assert all((installed / package).is_dir() for package in slim.STRIPPED)


def test_slimming_takes_what_is_listed_and_leaves_the_rest(tmp_path, capfd):
    for name in ("pyarrow/tests/a.py", "pyarrow/lib.pyx", "pyarrow/parquet/core.pyx", "pyarrow/libarrow_python.so",
                 "pyarrow/libarrow_flight.so.1"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    kept = ("pyarrow/lib.py", "pyarrow/libarrow_python.so.1", "other/tests/a.py", "pyarrow-1.dist-info/LICENSE")
    for name in kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    assert slim.slim(tmp_path, strip=False) == {"pyarrow": 5000}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    # A second time there is nothing more to take, as where torch comes on top of the data base.
    slim.main([str(tmp_path)])
    assert capfd.readouterr().out == "pyarrow: 0.0 MB less\n"
    with pytest.raises(SystemExit, match=r"slim\.py FOLDER"):
        slim.main(["--strip"])


@pytest.mark.skipif(not shutil.which("strip"), reason="no binutils")
def test_slimmed_libraries_still_load(tmp_path):
    installed = Path(np.__path__[0]).parent
    for name in ("shapely", "shapely.libs"):
        shutil.copytree(installed / name, tmp_path / name)
    went = slim.slim(tmp_path, strip=True)
    assert went["shapely"] > 100_000 and went["shapely.libs"] > 100_000
    code = "import shapely; print(shapely.__file__, shapely.box(0, 0, 1, 2).area)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    said = subprocess.check_output([sys.executable, "-c", code], env=env, text=True).split()
    assert said == [str(tmp_path / "shapely/__init__.py"), "2.0"]


def test_push_after_all_are_built(checkout):
    done = build(checkout, "--push", "cover", "serving")
    pushed = [words[-1] for words in calls(checkout, "push")]
    assert pushed == [base(checkout, "data"), base(checkout, "torch"), *done.stdout.split()]
    last = [line.split()[0] for line in (checkout.parent / "calls").read_text().splitlines()][-4:]
    assert last == ["push"] * 4


def test_each_tool_stands_on_the_least_base_that_has_its_needs():
    about = bases.project(ROOT)
    assert bases.tools(about) == sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))
    on = {tool: bases.base_of(about, tool) for tool in bases.tools(about)}
    torch = {tool for tool, base in on.items() if base == "torch"}
    assert torch == {"train", "export", "predict", "evaluate", "deploy"}
    held: set[str] = set()
    for name in ("data", "torch", "serving"):
        lines = bases.requirements(about, name)
        assert not held & set(lines) and not any(line.startswith(about["name"]) for line in lines)
        held.update(lines)
        for tool in [tool for tool in on if on[tool] == name] + (["serve"] if name == "serving" else []):
            assert bases.needs(about, tool) | set(about["dependencies"]) <= held, tool
    with pytest.raises(ValueError, match="no base is called cuda; expected data, torch, serving"):
        bases.requirements(about, "cuda")


def test_every_image_that_something_runs_in_is_built():
    built = {*bases.tools(bases.project(ROOT)), "serving"}
    texts = [
        path.read_text()
        for path in (*(ROOT / "pipelines/compiled").glob("*.yaml"), *(ROOT / "k8s").rglob("*.yaml"))
    ]
    named = set(re.findall(rf"{re.escape(IMAGES)}/rsp-([\w-]+)", "\n".join(texts)))
    assert "cover" in named and named <= built


@pytest.mark.parametrize("change", ["edited", "added"])
def test_a_dirty_tree_is_refused(checkout, change):
    path = checkout / ("components/cover/component.py" if change == "edited" else "components/new.py")
    path.write_text("# not committed")
    done = build(checkout)
    assert done.returncode == 1 and path.name in done.stderr and "images hold what is committed" in done.stderr
    assert not calls(checkout, "build")


def test_an_unknown_image(checkout):
    done = build(checkout, "cover", "nothing")
    assert done.returncode == 2 and "no image is called nothing" in done.stderr and not calls(checkout, "build")


def test_the_version_of_the_build_is_the_tag_that_is_submitted(checkout, monkeypatch):
    from rsp.components import container

    monkeypatch.delenv("RSP_IMAGE_TAG", raising=False)
    monkeypatch.setattr(container, "__file__", str(checkout / "components" / "container.py"))
    assert build(checkout, "cover").stdout.strip() == container.with_images(
        container.image("cover"), container.image_tag(), IMAGES
    )


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile: what it stands on, and its steps as (instruction, text)."""

    below: str
    steps: list[tuple[str, str]]

    def where(self, instruction: str, text: str) -> int:
        """Return the number of the first step that has the text."""
        return next(n for n, step in enumerate(self.steps) if step[0] == instruction and text in step[1])


def stages(path: str) -> dict[str, Stage]:
    """Read a Dockerfile; the last stage is `""` if it has no name."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / path).read_text(), flags=re.M).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            below, _, name = rest.partition(" AS ")
            steps = found.setdefault(name, Stage(below, [])).steps
        elif found:
            steps.append((instruction, rest))
    return found


def test_the_reader_of_dockerfiles_reads_all_of_them():
    assert set(stages(BASES)) == {"requirements", "system", "packages", "data", "torch"}
    assert set(stages(CODE)) == {"build", ""} and stages(CODE)[""].below == "scratch"
    assert set(stages("components/Dockerfile")) == {"code", ""}
    assert set(stages("serving/Dockerfile")) == {"code", "requirements", "needs", ""}
    assert stages("components/Dockerfile")[""].steps[0] == ("COPY", "--from=code /code/ /")


@pytest.mark.parametrize("path", DOCKERFILES)
def test_a_dockerfile_is_clean(path):
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("no hadolint")
    done = subprocess.run([hadolint, ROOT / path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES)
def test_nothing_in_a_dockerfile_moves(path):
    """What it stands on is named by a whole tag, and nothing is fetched but by apt and pip."""
    text = (ROOT / path).read_text()
    for default in re.findall(r"^ARG BASE_IMAGE=(.*)$", text, re.M):
        assert re.fullmatch(r"python:3\.11-slim-[a-z]+", default)
    own = set(stages(path))
    for stage in stages(path).values():
        assert stage.below in {"${BASE_IMAGE}", "${BASE}", "${CODE}", "scratch", *own}
    assert not re.search(r"^ADD |curl|wget|git clone|:latest", text, re.M)


@pytest.mark.parametrize("path", DOCKERFILES)
def test_whoever_runs_an_image_is_nobody_by_number(path):
    for name, stage in stages(path).items():
        users = [text for instruction, text in stage.steps if instruction == "USER"]
        if name in ("", "data", "torch"):
            assert users[-1] == "10001"


def test_a_change_of_the_code_installs_nothing_else():
    """The code is above all packages, and what changes with every commit is above the code's own packages."""
    for name, stage in stages(BASES).items():
        copied = [text for instruction, text in stage.steps if instruction == "COPY"]
        wanted = ["pyproject.toml components/bases.py ./"] if name == "requirements" else []
        assert [text for text in copied if not text.startswith(("--from=", "constraints.txt"))] == wanted
        assert not any("RSP_VERSION" in text for _, text in stage.steps)
    build, code = stages(CODE)["build"], stages(CODE)[""]
    version = build.where("ARG", "RSP_VERSION")
    assert build.where("RUN", "pip install") < version < build.where("COPY", "src ./src")
    # It builds with what is there: pip would fetch the packages that build it each time.
    assert build.where("RUN", "--no-build-isolation --no-deps --root /code .") > version
    # The code is all that it leaves.
    assert [step for step in code.steps if step[0] != "USER"] == [("COPY", "--from=build /code/ /code/")]
    for path in FINAL:
        image = stages(path)[""]
        assert stages(path)["code"] == Stage("${CODE}", [])
        # Above the code nothing is installed, and an argument that differs spoils no layer of it.
        assert image.steps[0] == ("COPY", "--from=code /code/ /")
        assert not any(instruction in ("COPY", "ADD") for instruction, _ in image.steps[1:])
        assert not any("pip install" in text or "apt-get" in text for _, text in image.steps)
    needs = stages("serving/Dockerfile")["needs"]
    assert not any("RSP_VERSION" in text for _, text in needs.steps)


def test_the_code_is_the_same_layer_in_all_images():
    """What makes it does not know for which tool, and nobody else makes any."""
    made = [path for path in DOCKERFILES if "SETUPTOOLS_SCM_PRETEND_VERSION" in (ROOT / path).read_text()]
    assert made == [CODE]
    assert not any("TOOL" in text for _, text in stages(CODE)["build"].steps if "RSP_TOOL" not in text)
    steps = stages("components/Dockerfile")[""].steps
    assert ("ENV", "RSP_TOOL=${TOOL}") in steps
    # What runs something leaves a layer, with times of its own in each image.
    assert [step for step in steps if step[0] in ("COPY", "ADD", "RUN")] == [("COPY", "--from=code /code/ /")]


def test_what_builds_the_code_is_what_pyproject_asks_for():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    build = stages(CODE)["build"]
    installed = build.steps[build.where("RUN", "pip install")][1]
    assert set(re.findall(r"'([^']+)'", installed)) == set(wanted)


def script(text: str) -> str:
    """The step of the build of the code that has a text."""
    return next(rest for word, rest in stages(CODE)["build"].steps if word == "RUN" and text in rest)


def test_a_build_without_a_version_says_so():
    command = ["sh", "-c", script('test -n "${RSP_VERSION}"')]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 1 and "--build-arg RSP_VERSION=" in done.stderr


def test_an_image_that_was_built_without_its_tool_says_so(tmp_path):
    (printed,) = re.findall(r"printf .* > (?=/code)", script("rsp-tool"))
    entry = tmp_path / "rsp-tool"
    subprocess.run(["sh", "-c", f"{printed} {entry}"], check=True)
    (tmp_path / "rsp").write_text("#!/bin/sh\necho $# $1 $2\n")
    for path in (entry, tmp_path / "rsp"):
        path.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RSP_TOOL": "cover"}
    assert subprocess.check_output([entry, "--zoom 18"], env=env, text=True) == "2 cover --zoom 18\n"
    for nothing in ({"RSP_TOOL": ""}, {}):
        done = subprocess.run(
            [entry, "--help"], env={"PATH": env["PATH"], **nothing}, capture_output=True, text=True
        )
        assert done.returncode and "give docker build --build-arg TOOL=" in done.stderr


def test_the_code_is_checked_before_an_image_has_it():
    """Its version is that of the build, and each tool starts."""
    check = stages(CODE)["build"].steps[-1][1]
    assert "rsp.__version__ == os.environ['RSP_VERSION']" in check
    assert "components/*/component.py" in check and "--help > /dev/null || exit 1" in check


@pytest.mark.parametrize("path", FINAL)
def test_labels_say_what_an_image_is(path):
    (text,) = (text for instruction, text in stages(path)[""].steps if instruction == "LABEL")
    for label in ("title", "description", "version", "revision", "source", "licenses"):
        assert f"org.opencontainers.image.{label}=" in text


def test_an_sbom_is_valid_names_each_package_once_and_is_the_same_each_time(tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    # As on Debian, whose Python has a package in one folder and another version of it in the next.
    (tmp_path / "rasterio-0.1.dist-info").mkdir()
    about = "Metadata-Version: 2.4\nName: rasterio\nVersion: 0.1\nLicense-Expression: BSD-3-Clause\n"
    (tmp_path / "rasterio-0.1.dist-info" / "METADATA").write_text(about)
    command = [sys.executable, "-", "1.2.3+gabc", "rsp-cover", "rsp-tile"]
    options = {
        "input": (ROOT / "components/sbom.py").read_bytes(),
        "env": {**os.environ, "PYTHONPATH": str(tmp_path)},
    }
    archives = [subprocess.run(command, capture_output=True, check=True, **options).stdout for _ in range(2)]
    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as archive:
        texts = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}
    assert list(texts) == ["rsp-cover-1.2.3-gabc.cdx.json", "rsp-tile-1.2.3-gabc.cdx.json"]
    first, second = texts.values()
    for text in (first, second):
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert json.loads(first)["serialNumber"] != json.loads(second)["serialNumber"]
    document = json.loads(first)
    parts = {part["purl"]: part for part in document["components"]}
    assert len(parts) == len(document["components"])
    assert [purl for purl in parts if "/rasterio@" in purl] == ["pkg:pypi/rasterio@0.1"]
    assert parts["pkg:pypi/rasterio@0.1"]["licenses"] == [{"expression": "BSD-3-Clause"}]
    assert document["metadata"]["component"]["version"] == "1.2.3+gabc"


@pytest.mark.parametrize("path", ["k8s/base/kustomization.yaml", "k8s/overlays/front/kustomization.yaml"])
def test_manifests_name_the_placeholder(path):
    text = (ROOT / path).read_text()
    assert f"newName: {IMAGES}/rsp-serving\n    newTag: {PLACEHOLDER}" in text


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders the manifests; not installed")
@pytest.mark.parametrize("overlay", ["gpu", "local", "front"])
def test_manifests_with_the_images_of_a_commit(overlay):
    command = [sys.executable, "-m", "rsp.components.container", ROOT / "k8s" / "overlays" / overlay]
    env = {**os.environ, "RSP_IMAGE_TAG": "1.2.3", "RSP_IMAGE_REGISTRY": "r.example/x"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "image: r.example/x/rsp-serving:1.2.3" in done.stdout and PLACEHOLDER not in done.stdout
    command[-1] = ROOT / "k8s" / "overlays" / "nowhere"
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "kubectl cannot render" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("clients", "chosen"), [
    ([("28.2.2", False), ("20.10.24", False)], 1), ([("28.2.2", True), ("20.10.24", False)], 0),
    ([("28.2.2", False), ("18.03.0", False)], 0),
])  # fmt: skip
def test_the_tests_of_images_build_with_the_first_client_that_has_buildkit(tmp_path, monkeypatch, clients, chosen):
    from tests.images import engine

    folders = [tmp_path / str(number) for number in range(len(clients))]
    for folder, (version, buildx) in zip(folders, clients, strict=True):
        folder.mkdir()
        text = f'#!/bin/sh\n[ "$1" != buildx ] || exit {int(not buildx)}\necho "Docker version {version}, b1"\n'
        (folder / "docker").write_text(text)
        (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", ":".join(map(str, folders)))
    (tmp_path / "link").mkdir()
    engine.use_client(tmp_path / "link")
    assert Path(shutil.which("docker")).resolve() == folders[chosen] / "docker"


@pytest.mark.parametrize(("fails", "code", "made"), [
    ("", 0, ["lint", "test", "test-images"]),
    ("tests/images/install.sh", 0, ["lint", "test"]),
    (".venv/bin/python", 0, ["lint", "test"]),
    ("test-images", 1, ["lint", "test", "test-images"]),
    ("test", 1, ["lint", "test"]),
])  # fmt: skip
def test_ci_tests_the_images_where_there_is_an_engine(tmp_path, fails, code, made):
    """Without one it says so and passes; an engine that is there and tests that fail are a failure."""
    texts = {
        ".ci/run": (ROOT / ".ci/run").read_text(),
        "bin/make": '#!/bin/sh\necho "$1" >> made\n[ "$1" != "$FAILS" ]\n',
        "tests/images/install.sh": '#!/bin/sh\n[ "$0" != "$FAILS" ] || { echo "no apt" >&2; exit 1; }\n',
        ".venv/bin/python": '#!/bin/sh\n[ "$0" != "$FAILS" ] || { echo "no mount" >&2; exit 1; }\n',
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FAILS": fails}
    done = subprocess.run([tmp_path / ".ci/run"], env=env, capture_output=True, text=True)
    assert (done.returncode, (tmp_path / "made").read_text().split()) == (code, made)
    said = {"tests/images/install.sh": "no apt", ".venv/bin/python": "no mount"}.get(fails)
    wanted = f"SKIPPED make test-images, as there is no Docker engine: {said}" if said else ""
    assert done.stdout.strip() == wanted


def test_the_tests_of_images_believe_no_result_of_a_runner_that_they_do_not_know(monkeypatch):
    """kfp takes a container that it does not find for a success; where it calls another function, ours is idle."""
    from kfp.local import docker_task_handler as handler

    from tests.images import docker_runner

    monkeypatch.setattr(handler, "run_docker_container", handler.run_docker_container)
    docker_runner.replace_runner()
    assert handler.run_docker_container is docker_runner.run_container
    monkeypatch.delattr(handler, "run_docker_container")
    with pytest.raises(RuntimeError, match="its results cannot be believed"):
        docker_runner.replace_runner()
