"""Tell a web hook what happened: chat rooms, pagers and schedulers take a JSON that is posted to a URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rsp.shared.errors import PipelineError
from rsp.shared.http import TEMPORARY, Backoff, TryAgain, connection_problem, retry

VARIABLE = "RSP_WEBHOOK_URL"
BACKOFF = Backoff(attempts=4, first=1.0, jitter=0.2)


def notify_failure(state: str, message: Mapping[str, Any], backoff: Backoff = BACKOFF) -> str:
    """Post a message to the URL in `RSP_WEBHOOK_URL` where a run has failed, and return what was done.

    Args:
        state: How the run ended: what is neither SUCCEEDED nor SKIPPED is a failure.
        message: What to post, in types of JSON. `text` is what chat rooms show.
        backoff: When to try again.

    Raises:
        PipelineError: the URL does not take the message. It is not named: it is as good as a password.
    """
    import requests

    if state.upper() in ("SUCCEEDED", "SKIPPED"):
        return f"the run ended as {state}: nobody is told"
    url = os.environ.get(VARIABLE, "").strip()
    if not url:
        return f"the run ended as {state}, and {VARIABLE} names nobody to tell"

    def attempt() -> None:
        try:
            answer = requests.post(url, json={"state": state, **message}, timeout=(10, 30))
        except requests.RequestException as error:
            # What requests says holds the URL.
            raise TryAgain(PipelineError(f"the web hook cannot be reached: {connection_problem(error)}")) from None
        if answer.ok:
            return
        refused = PipelineError(f"the web hook answered {answer.status_code} {answer.reason}")
        if answer.status_code in TEMPORARY:
            raise TryAgain(refused)
        raise refused

    retry(attempt, backoff)
    return f"the run ended as {state}: the web hook has been told"
