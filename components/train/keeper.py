"""What is kept of a training: checkpoints, history, and the state that it goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from rsp.components.train.folder import OutFolder, link_checkpoint
from rsp.components.train.history import BEST, LAST, Row, State, write_history, write_state
from rsp.components.train.interrupted import Part
from rsp.components.train.optimise import Optimiser
from rsp.components.train.start import StartingPoint
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.checkpoint import fingerprint, save_checkpoint
from rsp.shared.learning.models import plan_of


class Keeper:
    """Writes what is kept, in the process that writes.

    Attributes:
        epoch: The last one that was finished and kept.
        part: How many batches of the next one are kept.
    """

    def __init__(
        self,
        folder: OutFolder | None,
        model: nn.Module,
        optimiser: Optimiser,
        settings: Mapping[str, Any],
        start: StartingPoint,
    ) -> None:
        """Make it.

        Args:
            folder: Where to write; None where another process does.
            model: The network that learns.
            optimiser: Of it.
            settings: What must be the same where it goes on.
            start: What it starts from.
        """
        self.epoch, self.part = start.epoch, start.part.batches if start.part else 0
        self._folder, self._model, self._optimiser = folder, model, optimiser
        self._settings, self._identity = dict(settings), start.uuid

    def keep(
        self, card: ModelCard, history: Sequence[Row], metrics: Mapping[str, float], *, is_best: bool
    ) -> None:
        """Write checkpoints, history and, once they are there, the state.

        Args:
            card: Of the network after an epoch.
            history: Up to that epoch.
            metrics: What the network reached.
            is_best: Whether no other epoch is better.
        """
        self.epoch, self.part = card.epoch, 0
        if self._folder is None:
            return
        out, network = self._folder.path, self._optimiser.kept
        self._identity = fingerprint(network)
        card = replace(card, metrics=dict(metrics), uuid=self._identity)
        if is_best:
            save_checkpoint(out / BEST, network, card)
        save_checkpoint(out / LAST, network, card)
        link_checkpoint(out, card.epoch, card.epochs)
        write_history(out, list(history))
        self._write_state(self._folder, card, history, None)

    def keep_part(self, card: ModelCard, history: Sequence[Row], part: Part) -> None:
        """Write the state within an epoch; what else is kept is that of the epoch before.

        Args:
            card: Of the network after the epoch before.
            history: Up to that epoch.
            part: Of the epoch.
        """
        if self._folder is not None:
            self._write_state(self._folder, card, history, part)
            self.part = part.batches

    def _write_state(self, folder: OutFolder, card: ModelCard, history: Sequence[Row], part: Part | None) -> None:
        state = State(
            epoch=self.epoch,
            uuid=self._identity,
            card=card.to_json(),
            plan=json.dumps(plan_of(self._model)),
            weights=self._model.state_dict(),
            optimizer=self._optimiser.state_dict(),
            settings=self._settings,
            history=list(history),
            part=part.to_dict() if part else None,
        )
        write_state(folder.path, state)
        folder.publish()
