"""The step that tells somebody when a run has failed. It comes last, however the others ended."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("download"), packages_to_install=[], install_kfp_package=False)
def notify(status: dsl.PipelineTaskFinalStatus, pipeline: str = "") -> None:
    """Post JSON to the URL in the environment variable RSP_WEBHOOK_URL where the run has failed.

    Args:
        status: How the run ended; KFP fills it in.
        pipeline: Name of the pipeline, for the message.
    """
    from rsp.shared.webhook import notify_failure

    run = (status.pipeline_job_resource_name or "").rpartition("/")[2]
    reason = status.error_message or ""
    message = {
        "text": f"The run {run} of the pipeline {pipeline} ended as {status.state}. {reason}".strip(),
        "pipeline": pipeline,
        "run": run,
        "error": reason,
    }
    print(notify_failure(status.state, message))
