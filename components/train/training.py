"""The training loop: the same on a CPU, a GPU, and several GPUs under torchrun."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rsp.components.train import lines
from rsp.components.train.batches import Batch, Batches, ahead, make_batches
from rsp.components.train.data import TileDataset
from rsp.components.train.events import Events
from rsp.components.train.folder import OutFolder
from rsp.components.train.guard import Divergence, check_counted, enough_memory
from rsp.components.train.history import BEST, Log, Row, best_row, finite
from rsp.components.train.interrupted import Part
from rsp.components.train.keeper import Keeper
from rsp.components.train.losses import build_loss, class_weights
from rsp.components.train.measure import count_labels, measure_channels
from rsp.components.train.metrics import RunningMetrics, counted, load_metrics, measure
from rsp.components.train.optimise import Optimiser
from rsp.components.train.plan import Plan
from rsp.components.train.processes import World
from rsp.components.train.profiling import watch_of
from rsp.components.train.result import TrainResult, number
from rsp.components.train.settings import settings_of
from rsp.components.train.signals import Terminated, hold, release
from rsp.components.train.sizes import check_sizes
from rsp.components.train.stages import Frozen, check_stages
from rsp.components.train.start import (
    check_values,
    choose_precision,
    keep_statistics,
    notes_on_filters,
    notes_on_zooms,
    starting_point,
)
from rsp.components.train.syncnorm import gather_batch, synchronised
from rsp.components.train.tones import prepare
from rsp.components.train.usage import peak_memory, reset_peak
from rsp.components.train.validation import share_buffers, validate
from rsp.shared.errors import ModelError, PluginError, RspError
from rsp.shared.learning.answers import check_logits, guarded_network
from rsp.shared.learning.card import ModelCard, library_versions
from rsp.shared.learning.inference import Predictor, classes_of
from rsp.shared.memory import keep_memory
from rsp.shared.metrics import iou_per_class
from rsp.shared.parallel import cpu_count
from rsp.shared.progress import progress


class Trainer:
    """One training. Make it and call `run`, in every process of the world."""

    def __init__(self, plan: Plan, world: World, folder: OutFolder | None) -> None:
        """Prepare it.

        Args:
            plan: What to train.
            world: This process among those that train together.
            folder: Where to write; None in all processes but the main one.
        """
        self.world, self.device = world, world.device
        keep_memory()
        plan.check()
        self.folder = folder
        self.log = Log(self.folder.path if self.folder else None)
        self.training = TileDataset(
            plan.config, plan.dataset / "training", training=True, seed=plan.seed, processes=world.size
        )
        # What was left to be settled by the training tiles is settled.
        self.plan = plan = replace(plan, config=self.training.config)
        self.config = plan.config
        self.validation = TileDataset(self.config, plan.dataset / "validation", training=False, seed=plan.seed)
        self.notes = [*self.training.notes, *self.validation.notes]
        self.training.check_same_values(self.validation)
        zooms = [sorted({tile.z for tile in part.loader.tiles}) for part in (self.training, self.validation)]
        self.zoom = zooms[0][0] if len(zooms[0]) == 1 else None
        self.notes += notes_on_zooms(*zooms)
        # Only the process that writes cards needs it. It costs less than a hundredth of one validation.
        self.digest = self.validation.digest() if world.is_main else None
        self.classes = [entry.title for entry in self.config.classes if not entry.ignore]
        names = dict.fromkeys(["iou", "miou", "mcc", *self.config.model.metrics])
        self.metrics = load_metrics(list(names), self.config.model.background)
        recipe = self.config.recipe
        self.loss = build_loss(
            self.config.model.loss,
            class_weights(self.config.classes, count_labels(self.training) if recipe.classes_weights else None).to(
                self.device
            ),
            smoothing=recipe.label_smoothing,
            hard=recipe.hard,
            weighted=recipe.weights is not None,
        )
        self.divergence = Divergence(self.loss)
        torch.manual_seed(plan.seed)
        self.settings = settings_of(
            plan, processes=world.size, tiles=self.training.loader.tiles, validation=self.digest
        )
        start = starting_point(plan, self.log, self.settings)
        self.history, self.done, self.best_from = start.history, start.epoch, start.best_from
        self.part = start.part
        if self.part and world.size > 1:
            raise ModelError(
                f"{plan.out} was stopped within epoch {start.epoch + 1}, in one process: let one resume it "
                "(--gpus 1, or --gpus 0 for the CPU)"
            )
        self.precision = choose_precision(
            self.config.recipe.precision, start.card if start.is_resumed else None, self.device
        )
        self._use_channels(start.card, start.is_resumed)
        self.model = start.model.to(self.device)
        check_sizes(self.model, self.config, self.training.recipe.crop)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Convolutions are quicker so, on a CPU (102.7 CPU-ms an image of 256 px become 61.8) and on a GPU.
        self._layout = torch.channels_last
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        if recipe.freeze:
            check_stages(self.model, self.config.model.nn, "freeze", recipe.freeze)
        self.notes += notes_on_filters(self.model, self.config.model)
        self.frozen = Frozen(self.model, recipe.freeze)
        self.wrapped = self._wrap()
        self._make_loaders()
        self.at_once = self.config.model.bs
        self.optimiser = Optimiser(
            self.model, self.config.model, recipe, batches=len(self.batches), epochs=plan.epochs
        )
        if start.optimizer is not None:
            self.optimiser.load_state_dict(start.optimizer)
        self.keeper = Keeper(folder, self.model, self.optimiser, self.settings, start)
        # Of the running epoch: when it began, how many batches were learned from, and what was counted.
        self.began, self.trained, self.running = 0.0, 0, RunningMetrics(len(self.config.classes), self.device)

        self.watch = watch_of(recipe.profile, self.log, self.wrapped, self.optimiser.optimizer, self.device)

    # --- what it trains with --------------------------------------------------------------------------------

    def _use_channels(self, card: ModelCard | None, is_resumed: bool) -> None:
        """Settle how the bands are normalised: as the weights are used to, as is said, or as is measured."""
        given = self.training.channels
        if card is not None and is_resumed:
            check_values(given, card)
        if card is not None:
            # Where all are known, no tile needs to be read.
            self.training.channels = keep_statistics(given, given, card)
        channels, notes = measure_channels(self.training)
        if card is not None:
            channels = keep_statistics(given, channels, card)
        self.training.channels = self.validation.channels = channels
        self.notes += notes

    def _wrap(self) -> nn.Module:
        """Return the network as it is trained: over several processes their gradients are averaged."""
        if self.world.size == 1:
            return self.model
        # A batch of one process is small; its statistics are taken over all of them.
        if self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        else:
            self.model = synchronised(self.model)
        devices = [self.device.index] if self.device.type == "cuda" else None
        # Some encoders have weights that no feature depends on.
        return DistributedDataParallel(self.model, device_ids=devices, find_unused_parameters=True)

    def _make_loaders(self) -> None:
        world, model, on_gpu = self.world, self.config.model, self.device.type == "cuda"
        workers = self.plan.workers
        if workers is None:
            # On a CPU the network takes all processors; loaders would only take them from it.
            workers = min(8, max(1, cpu_count() // world.size)) if on_gpu else 0
        shape = {"rank": world.rank, "world": world.size, "seed": self.plan.seed}
        self.batches = Batches(len(self.training), model.bs, shuffled=True, **shape)
        checks = Batches(len(self.validation), max(model.bs, 4), shuffled=False, **shape)
        self.training_loader = make_batches(self.training, self.batches, workers=workers, pinned=on_gpu)
        self.validation_loader = make_batches(self.validation, checks, workers=workers, pinned=on_gpu)

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train up to the last epoch."""
        try:
            return self._run()
        except Terminated:
            # With the checkpoint that is fine-tuned, --resume would go on with the training that made it.
            tuned = ", without --checkpoint," if self.plan.checkpoint is not None and not self.plan.resume else ""
            self.log(
                f"stopped by SIGTERM: {self._stopped()}; the same command with --resume{tuned} goes on from there"
            )
            raise

    def _run(self) -> TrainResult:
        start = time.monotonic()
        self._describe()
        events = None
        if self.folder and self.config.recipe.tensorboard:
            events = Events(self.folder.path, self.history)
        for epoch in range(self.done + 1, self.plan.epochs + 1):
            if self._is_stalled():
                break
            began = time.monotonic()
            self.began = began - (self.part.seconds if self.part else 0)
            reset_peak(self.device)
            rate, training = self._train(epoch)
            learned = time.monotonic() - began
            speed = sum(map(len, self.batches)) * self.world.size / learned
            # What is kept is the state before it, from which one can go on.
            self.divergence.check(epoch, training["loss"], self.config.model.lr)
            validation = self._validate(epoch)
            row = {
                "epoch": epoch,
                "lr": rate,
                "seconds": round(time.monotonic() - self.began, 3),
                "images_per_second": round(speed, 2),
                "waiting": round(self.watch.waited / learned, 4),
                "peak_memory": peak_memory(self.device),
                "training": training,
                "validation": validation,
            }
            if self.config.recipe.ema:
                row["ema"] = self.config.recipe.ema  # what was validated is the average
            if epoch == self.done + 1:
                check_counted(row)
            hold()  # what is written of an epoch belongs together
            self.history.append(finite(row))
            self._report(row)
            if events:
                events.add(self.history[-1])
            metrics = {key: number(validation[key]) for key in ("loss", *self.metrics)}
            self.keeper.keep(self._card(epoch), self.history, metrics, is_best=self._best() is self.history[-1])
            self.trained = 0
            release()
        return self._result(time.monotonic() - start)

    def _is_stalled(self) -> bool:
        """Tell whether the last epochs were no better than one before, as many as the recipe is patient for."""
        patience = self.config.recipe.patience
        if not patience or not self.history or self.history[-1]["epoch"] < self.best_from:
            return False
        last, best = self.history[-1]["epoch"], self._best()["epoch"]
        if last - best < patience:
            return False
        self._note(f"stopped after epoch {last} of {self.plan.epochs}: none was better than epoch {best}")
        return True

    def _batch(self, batch: Batch | RspError) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return images, labels and weights on the device, or raise the error that stands in their place."""
        if isinstance(batch, RspError):
            raise batch
        images = prepare(batch.images, batch.tones, self.training.channels, self.device)
        weights = None
        if batch.weights is not None:
            grey = batch.weights.to(self.device, non_blocking=True).float()
            weights = 1 + grey * (self.config.recipe.weight_scale / 255)
        labels = batch.labels.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=self._layout), labels, weights

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch, float32."""
        name = self.config.model.nn
        half = self.precision == "bfloat16"
        try:
            with guarded_network(name), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                answer = self.wrapped(images)
        except (ValueError, PluginError) as error:
            if "more than 1 value per channel" in str(error):
                raise ModelError(
                    f"the network {name!r} normalises over the batch, and cannot be trained with a single tile in "
                    'it: take --bs 2 or more, or norm = "group" in [model]'
                ) from error
            if "view size is not compatible" in str(error) and self._layout == torch.channels_last:
                # A plug-in that looks at its input by `view`, which only works on planes one behind the other.
                self._layout = torch.contiguous_format
                return self._forward(images.contiguous())
            raise
        return check_logits(answer, name, (len(images), len(self.config.classes), *images.shape[2:])).float()

    def _shown(self, batches: Iterable[Any], what: str, total: int) -> Iterable[Any]:
        """Return the batches, with progress in the main process."""
        return progress(batches, what, total=total, unit="step") if self.world.is_main else batches

    def _train(self, epoch: int) -> tuple[float, dict[str, Any]]:
        """Train an epoch; return the last learning rate and the metrics."""
        self.wrapped.train()
        self.frozen.hold()
        self.trained = self.batches.first = self.part.batches if self.part else 0
        self.batches.epoch = epoch
        self.optimiser.begin(epoch, self.trained)
        # Whatever chance the network takes (dropout) follows from seed and epoch, resumed or not.
        torch.manual_seed((self.plan.seed * 1_000_003 + epoch) * 4099 + self.world.rank)
        self.running = running = RunningMetrics(len(self.config.classes), self.device)
        if self.part:
            running.restore(self.part.matrix, self.part.loss)
            self.divergence.ignorant = self.part.ignorant
        name = f"epoch {epoch}/{self.plan.epochs}, training"
        with closing(ahead(self.training_loader)) as batches:
            shown = self._shown(batches, name, len(self.training_loader))
            for batch in self.watch.batches(shown, len(self.batches)):
                hold()
                if self.part:  # now, since the loader has drawn from the source of chance
                    self.part.set_chance(self.device)
                    self.part = None
                images, labels, weights = self._batch(batch)
                with self._exchange(), enough_memory(len(images), images.shape[-1], self.device):
                    logits = self._forward(images)
                    seen = logits, labels.long(), weights
                    if self.world.size > 1:
                        seen = gather_batch(*seen)
                    self.divergence.see(*seen)
                    loss = self.loss(*seen)
                    # Gradients are averaged over processes, each of which has only those of its own tiles.
                    self.optimiser.learn(loss * self.world.size, len(labels))
                running.add(classes_of(logits.detach()), labels, loss, len(labels))
                self.trained += 1
                if self.optimiser.is_between:
                    release()
        self.part = None
        self.optimiser.finish()
        return self.optimiser.rate, self._measured(running)

    def _exchange(self) -> AbstractContextManager[None]:
        """Keep gradients to this process in batches that are only joined to later ones."""
        if isinstance(self.wrapped, DistributedDataParallel) and not self.optimiser.is_last:
            return self.wrapped.no_sync()
        return nullcontext()

    def _validate(self, epoch: int) -> dict[str, Any]:
        """Return the metrics on the validation tiles, each of them once, none augmented."""
        kept, world = self.optimiser.kept, self.world
        kept.eval()
        if world.size > 1:
            share_buffers(kept)
        predictor = Predictor(
            kept,
            self._card(epoch),
            device=str(self.device),
            threads=max(1, cpu_count() // world.size),
            batch_size=self.at_once,
        )
        running = RunningMetrics(len(self.config.classes), self.device)
        name = f"epoch {epoch}/{self.plan.epochs}, validation"
        with closing(ahead(self.validation_loader)) as batches:
            validate(predictor, self._shown(batches, name, len(self.validation_loader)), self.loss, running)
        self.at_once = predictor.batch_size  # fewer where so many did not fit
        return self._measured(running)

    def _measured(self, running: RunningMetrics) -> dict[str, Any]:
        """Return the metrics that were counted, over all processes, the confusion matrix last."""
        matrix, loss = running.result()
        matrix = counted(matrix, self.config)
        ious = dict(zip(self.classes, iou_per_class(matrix).tolist(), strict=True))
        return {"loss": loss, **measure(self.metrics, matrix), "iou_of": ious, "confusion": matrix.tolist()}

    # --- what it tells and keeps ----------------------------------------------------------------------------

    def _describe(self) -> None:
        for note in self.notes:
            self.log(f"note: {note}")
        weights = sum(weight.numel() for weight in self.model.parameters())
        parts = len(self.training.loader.tiles), len(self.validation)
        crops = len(self.training) if self.config.recipe.crop else None
        where = f"{self.world.size} x {self.device.type} in {self.precision}"
        for line in lines.of_plan(self.plan, weights=weights, tiles=parts, crops=crops, where=where):
            self.log(line)

    def _report(self, row: Row) -> None:
        more = [name for name in self.metrics if name not in ("iou", "miou", "mcc")]
        shown = self.classes[self.config.model.background :]
        for line in lines.of_epoch(row, self.plan.epochs, titles=shown, metrics=more):
            self.log(line)
        if row["epoch"] == self.done + 1:
            for text in lines.of_absent_classes(row, self.classes):
                self._note(text)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.log(f"note: {text}")

    def _best(self) -> Row:
        return best_row(self.history, self.best_from)

    def _card(self, epoch: int) -> ModelCard:
        """Return the card of the network after an epoch, but for what it reached."""
        config = self.config
        return ModelCard(
            nn=config.model.nn,
            encoder=config.model.encoder,
            num_filters=config.model.num_filters,
            norm=config.model.norm,
            channels=self.training.channels,
            classes=config.classes,
            tile_size=config.model.side,
            overlap=config.model.overlap,
            epoch=epoch,
            epochs=self.plan.epochs,
            zoom=self.zoom,
            source_size=self.training.source_size,
            background=config.model.background,
            precision=self.precision,
            validation=self.digest,
            versions=library_versions("torch", "transformers"),
        )

    def _stopped(self) -> str:
        """Keep what is learned of the running epoch, where one process learns; return what is kept."""
        keeper = self.keeper
        if self.trained and not self.part and self.world.size == 1:
            seconds = time.monotonic() - self.began
            part = Part.now(self.trained, self.running, self.divergence.ignorant, self.device, seconds)
            keeper.keep_part(self._card(keeper.epoch), self.history[: keeper.epoch], part)
        if keeper.part:
            upto = f"batch {keeper.part} of {self.optimiser.batches}"
            return f"epoch {keeper.epoch + 1} is kept up to {upto}, in {self.plan.out}"
        return f"epoch {keeper.epoch} is kept in {self.plan.out}" if keeper.epoch else "no batch was learned from"

    def _result(self, seconds: float) -> TrainResult:
        return TrainResult.of(
            self._best(),
            history=self.history,
            classes=self.classes,
            checkpoint=self.plan.out / BEST,
            training_tiles=len(self.training.loader.tiles),
            validation_tiles=len(self.validation),
            seconds=round(seconds, 3),
            notes=self.notes,
        )


def train_model(plan: Plan, world: World) -> TrainResult:
    """Train; see `Plan` and `TrainResult`. Every process of the world calls it."""
    plan.check()
    with OutFolder(plan.out) if world.is_main else nullcontext() as folder:
        return Trainer(plan, world, folder).run()
