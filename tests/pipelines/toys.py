"""Small pipelines that show one thing each (components must live in files)."""

from kfp import dsl

from rsp.pipelines import steps


@dsl.component(base_image="registry/toy:1", packages_to_install=[], install_kfp_package=False)
def measure(text: str, numbers: list, metrics: dsl.Output[dsl.Metrics], data: dsl.Output[dsl.Dataset]):
    from pathlib import Path

    print("measuring", text)
    Path(data.path).write_text(text)
    metrics.log_metric("iou", sum(numbers) / 10)


@dsl.component(base_image="registry/toy:1", packages_to_install=[], install_kfp_package=False)
def length(text: str) -> int:
    return len(text)


@dsl.component(base_image="registry/toy:1", packages_to_install=[], install_kfp_package=False)
def fail(message: str):
    raise ValueError(message)


@dsl.component(base_image="registry/toy:1", packages_to_install=[], install_kfp_package=False)
def flaky(folder: str) -> int:
    from pathlib import Path

    marks = Path(folder)
    attempt = len(list(marks.iterdir())) + 1
    (marks / str(attempt)).touch()
    if attempt < 2:
        raise ValueError("not yet")
    return attempt


@dsl.component(base_image="registry/toy:1", packages_to_install=[], install_kfp_package=False)
def leave_temporary() -> str:
    import tempfile

    return tempfile.mkdtemp()


@dsl.pipeline(name="plain")
def plain(text: str, numbers: list = [1, 2], word: str = ""):  # noqa: B006
    measure(text=text, numbers=numbers)
    counted = length(text=text)
    with dsl.If(counted.output == 3, name="three"):
        leave_temporary()


@dsl.component(base_image="registry/toy:1", packages_to_install=[], install_kfp_package=False)
def write(text: str, data: dsl.Output[dsl.Dataset], at: dsl.OutputPath(str)):
    from pathlib import Path

    Path(data.path).write_text(text)
    Path(at).write_text(text.upper())


@dsl.component(base_image="registry/toy:1", packages_to_install=[], install_kfp_package=False)
def show(data: dsl.Input[dsl.Dataset], at: str) -> str:
    from pathlib import Path

    return f"{Path(data.path).read_text()} {at}"


@dsl.pipeline(name="choosing")
def choosing(text: str):
    def written(text: str) -> steps.Tiles:
        task = write(text=text)
        return steps.Tiles(task.outputs["data"], task.outputs["at"])

    found = steps.one_of(
        (text == "", lambda: written("nothing")),
        (text == "second", lambda: written("other")),
        otherwise=lambda: written(text),
    )
    show(data=found.artifact, at=found.at)


@dsl.pipeline(name="failing")
def failing(message: str = "this is wrong"):
    fail(message=message)


@dsl.pipeline(name="retrying")
def retrying(folder: str):
    flaky(folder=folder).set_retry(num_retries=2, backoff_duration="1s")


@dsl.pipeline(name="told")
def told(message: str):
    with steps.notified("told"):
        fail(message=message)
