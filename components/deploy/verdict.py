"""What a judge found about a candidate, in the file that `rsp deploy --verdict` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsp.serving.judgements import Judgement, read_judgement
from rsp.serving.manifest import DIGEST, MAX_MANIFEST, checked, expect
from rsp.shared.errors import ConflictError, ReleaseError, ServingError
from rsp.shared.locations import Location, on_disk

if TYPE_CHECKING:
    from rsp.serving.manifest import Pointer, Release


@dataclass(frozen=True)
class Order:
    """What a judge tells whoever deploys: a judgement, and the very model that it is about.

    Attributes:
        judgement: What was found.
        model: SHA-256 of the candidate's file, as 64 hexadecimal digits.
    """

    judgement: Judgement
    model: str

    @property
    def reason(self) -> str:
        """Why the candidate is deployed, for the history of the pointer."""
        return self.judgement.reason or "deployed by a verdict"

    def check(self, model: str, version: str, before: Pointer | None, current: Release | None) -> None:
        """Refuse to deploy what was not judged, or not against what is wanted now.

        Args:
            model: SHA-256 of what is to be deployed.
            version: As what.
            before: The pointer as it is now.
            current: What it names; None where it names nothing, or nothing that is there.

        Raises:
            ServingError: the verdict is about another model, or keeps the champion.
            ConflictError: another version is wanted than the one that the candidate was measured against.
        """
        judged = self.judgement
        if model != self.model:
            raise ServingError(
                f"the verdict is about another model: its SHA-256 digest is {self.model}, and that of "
                f"this one {model}"
            )
        if judged.verdict != "deploy":
            raise ServingError(f"the verdict of {judged.time} keeps the champion: {judged.reason}")
        wanted = None if before is None else before.version
        if (wanted or "") == judged.champion:
            return
        # Whoever was stopped after the move, and tries again, finds the candidate in the champion's place.
        if wanted == version and current is not None and current.files[current.model].sha256 == model:
            return
        raise ConflictError(
            f"the candidate was judged against {judged.champion or 'nothing'}, and {wanted or 'nothing'} is "
            "wanted now: somebody else has deployed since; judge it once more"
        )


def read_verdict(where: Location) -> Order:
    """Read a verdict and check every field of it.

    Args:
        where: A JSON file: the fields of a `Judgement`, and `model`.

    Raises:
        ReleaseError: it cannot be read, is not JSON, or has a field that is missing, unknown or out of bounds.
        StorageError: it is in a store that cannot be reached, or is not there.
    """

    def read(data: Any, name: str) -> Order:
        row = dict(data) if isinstance(data, dict) else data
        model = row.pop("model", None) if isinstance(row, dict) else None
        judgement = read_judgement(row, name)
        expect(isinstance(model, str) and DIGEST.fullmatch(model), name, "model: expected 64 hexadecimal digits")
        return Order(judgement, str(model))

    try:
        with on_disk(where) as path, path.open("rb") as file:
            text = file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise ReleaseError(f"cannot read the verdict {where}: {error.strerror}") from error
    return checked(text, f"the verdict {where}", read)
