"""What kfp's local runner lacks: `dsl.OneOf` of artifacts. A cluster can do it.

The runner (kfp/local/orchestrator/orchestrator_utils.py) chooses among parameters, and refuses artifacts of which
there are several to choose from.
"""

from __future__ import annotations

from typing import Any


def choose_artifacts() -> None:
    """Let the local runner of this process take the artifact of `dsl.OneOf` from the branch that ran."""
    from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils

    refusing = OrchestratorUtils.get_dag_output_artifacts

    def choosing(dag_outputs_spec: Any, io_store: Any) -> Any:
        return refusing(dag_outputs_spec=_chosen(dag_outputs_spec, io_store), io_store=io_store)

    OrchestratorUtils.get_dag_output_artifacts = staticmethod(choosing)


def _chosen(outputs: Any, io_store: Any) -> Any:
    """Return the outputs of a group of steps with one producer for each artifact: the step that ran.

    Args:
        outputs: A `DagOutputsSpec`.
        io_store: What the steps have returned.
    """
    found = type(outputs)()
    found.CopyFrom(outputs)
    for spec in found.artifacts.values():
        if len(spec.artifact_selectors) > 1:
            ran = [each for each in spec.artifact_selectors if _has(io_store, each)]
            if len(ran) == 1:
                del spec.artifact_selectors[:]
                spec.artifact_selectors.extend(ran)
    return found


def _has(io_store: Any, selector: Any) -> bool:
    try:
        io_store.get_task_output(selector.producer_subtask, selector.output_artifact_key)
    except ValueError:
        return False  # the branch was skipped
    return True
