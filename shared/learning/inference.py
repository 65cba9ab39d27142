"""From images to masks: the one function behind training's validation, `rsp predict`, and TorchServe.

On a CPU each window is forwarded by itself and by one thread. Several threads, or several windows at once, would
split the sums of a convolution differently, and so change logits in the seventh digit and now and then a pixel
(measured with torch 2.13: other bits for 1, 2 and 3 threads). One thread a window, and as many windows at once
as there are processors, gives the same bits always, and is quicker, too. Other processors may still round
differently, and so do GPUs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from rsp.shared.errors import ModelError, TooLargeError
from rsp.shared.images import Array, Mask
from rsp.shared.learning.answers import check_finite, check_logits, guarded_network, lacks_memory
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.formats import STRIDE, Kind, Network, load_network, window_side
from rsp.shared.learning.normalise import check_bands, normalise_batch, normalise_pixels
from rsp.shared.locations import Location
from rsp.shared.memory import keep_memory

Scores = npt.NDArray[np.float32]
Finish = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
# What a processor has that computes in bfloat16, as torch calls it.
BFLOAT16_CPU = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "arm_bf16")

# Windows that a GPU takes at once.
GPU_BATCH = 8


class Predictor:
    """A network that answers images.

    Args:
        network: Takes (N, bands, H, W) float32 on `device` and returns logits (N, classes, H, W). Of a U-Net in
            evaluation mode a folded copy answers (see `rsp.shared.learning.models.folding`): when the network has
            learnt on, it needs another predictor.
        card: Its description.
        kind: The form that it was loaded from; all but a checkpoint take windows of one size.
        device: Where it is, as `cpu` or `cuda:0`.
        threads: Windows that a CPU works on at once, one thread each. It does not change an answer.
        batch_size: Windows that a GPU works on at once; fewer once so many did not fit into its memory.
        precision: Of the numbers that convolutions and products compute with. With `bfloat16` one pixel in a
            thousand gets another class than with `float32` (measured: 0.07 % of 16.8 million).
    """

    def __init__(
        self,
        network: Network,
        card: ModelCard,
        *,
        kind: Kind = "checkpoint",
        device: str = "cpu",
        threads: int = 1,
        batch_size: int = GPU_BATCH,
        precision: Precision = "float32",
    ) -> None:
        self.card, self.kind, self.device = card, kind, torch.device(device)
        self.threads, self.batch_size, self.precision = max(1, threads), max(1, batch_size), precision
        check_precision(precision, kind, self.device)
        if kind == "checkpoint":
            # An exported model was folded when it was written, and needs none of what builds networks.
            from rsp.shared.learning.models.folding import folded

            network = folded(network)
        self._network = network
        self._plain = False  # whether it takes planes only, and not channels last

    @property
    def window(self) -> int:
        """Side in pixels of the windows that are forwarded; smaller images are mirrored up to it."""
        return window_side(self.card)

    def fits(self, height: int, width: int) -> bool:
        """Tell whether the network takes images of this size, their borders included."""
        return self.kind == "checkpoint" or max(height, width) <= self.window

    def masks(self, images: Sequence[Array], overlap: int = 0) -> list[Mask]:
        """Return the class of each pixel.

        Args:
            images: Each of shape (height + 2 * overlap, width + 2 * overlap, bands), of any type that `decode`
                gives, with the bands that the model's channels pick, in order.
            overlap: Width of the border that each image has for context, and that is cropped from the answer.

        Returns:
            Masks of shape (height, width).

        Raises:
            ModelError: the images have other bands than the model wants, or do not fit an exported model, or the
                network answers no logits, or NaN.
            TooLargeError: one window does not fit into the memory.
            PluginError: the same of a network that is a plug-in.
        """
        return self._map(images, overlap, classes_of)

    def probabilities(self, images: Sequence[Array], overlap: int = 0) -> list[Scores]:
        """Return the probability of each class, shape (classes, height, width); else as `masks`."""
        return self._map(images, overlap, shares_of)

    def masks_and_probabilities(self, images: Sequence[Array], overlap: int = 0) -> list[tuple[Mask, Scores]]:
        """Return for each image what `masks` and `probabilities` do, by forwarding it once."""
        return self._map(images, overlap, lambda logits: (classes_of(logits), shares_of(logits)))

    def logits(self, images: Sequence[Array], overlap: int = 0) -> list[Scores]:
        """Return what the network answers, shape (classes, height, width); else as `masks`."""
        return [logits.cpu().numpy() for logits in self.tensors(images, overlap)]

    def tensors(self, images: Sequence[Array], overlap: int = 0) -> list[torch.Tensor]:
        """Return what `logits` does as tensors on the device, made in inference mode."""
        return self._map(images, overlap, None)

    def _map(self, images: Sequence[Array], overlap: int, finish: Finish | None) -> list[Any]:
        if self.device.type == "cpu":
            with _one_thread():
                if self.threads == 1 or len(images) < 2:
                    return [self._fitting([image], overlap, finish)[0] for image in images]
                with ThreadPoolExecutor(min(self.threads, len(images)), initializer=_set_one_thread) as pool:
                    return list(pool.map(lambda image: self._fitting([image], overlap, finish)[0], images))
        answers: list[Any] = []
        while len(answers) < len(images):
            batch = next(_batches(images[len(answers) :], self.batch_size))
            answers += self._fitting(batch, overlap, finish)
        return answers

    def _fitting(self, images: Sequence[Array], overlap: int, finish: Finish | None) -> list[Any]:
        """Do as `_answer`; where several images do not fit, answer none, and take half as many from now on."""
        try:
            return self._answer(images, overlap, finish)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            if len(images) == 1:
                raise self._too_large(images[0]) from error
        # Outside of the block above: there, the traceback would still hold the memory of the batch.
        torch.cuda.empty_cache()
        self.batch_size = len(images) // 2
        print(
            f"warning: {len(images)} windows at once do not fit into the memory of {self.device}, which takes "
            f"{self.batch_size} from now on",
            file=sys.stderr,
        )
        return []

    def _too_large(self, image: Array) -> TooLargeError:
        height, width = image.shape[:2]
        other = "" if self.device.type == "cpu" else ", or the CPU (--device cpu), which is slower"
        return TooLargeError(
            f"out of memory on {self.device}: a window of {width}x{height} pixels does not fit; take smaller ones "
            f"(a smaller --window in prediction, a smaller ts in training){other}"
        )

    def _answer(self, images: Sequence[Array], overlap: int, finish: Finish | None) -> list[Any]:
        """Forward images of one size together; logits that are not finished need not be finite."""
        height, width = images[0].shape[:2]
        if min(height, width) <= 2 * overlap:
            raise ModelError(f"an image of {width}x{height} pixels has no room for a border of {overlap}")
        if not self.fits(height, width):
            raise ModelError(
                f"the exported model takes windows of up to {self.window} pixels (tiles of {self.card.tile_size} "
                f"with an overlap of {self.card.overlap}), this one has {width}x{height}; use the checkpoint"
            )
        rows, columns = self._padding(height), self._padding(width)
        windows = [_mirror(image, rows, columns) for image in images]
        top, left = sum(before for before, _ in rows) + overlap, sum(before for before, _ in columns) + overlap
        with torch.inference_mode():
            # Channels last, as images are: convolutions are quicker so (29.8 instead of 59.8 ms a tile). All forms
            # of a model must get the same layout, since each rounds sums in its own order.
            batch = self._normalised(windows).permute(0, 3, 1, 2)
            answered = self._forward(batch)
            wanted = (len(images), self.card.num_classes, *batch.shape[2:])
            logits = check_logits(answered, self.card.nn, wanted).float()
            if finish is not None:
                check_finite(logits, self.card.nn)
            cropped = logits[..., top : top + height - 2 * overlap, left : left + width - 2 * overlap]
            if finish is None:
                return list(cropped.contiguous())
            found = finish(hide(cropped, self.card.ignored))
            if isinstance(found, tuple):
                return list(zip(*(each.cpu().numpy() for each in found), strict=True))
            return list(found.cpu().numpy())

    def _normalised(self, windows: Sequence[Array]) -> torch.Tensor:
        """Return windows of one size as the network takes them: (N, height, width, bands), on its device."""
        channels = self.card.channels
        if self.device.type == "cpu":
            pixels = [normalise_pixels(window, channels) for window in windows]
            # An axis of numpy's newaxis has no stride, by which torch would take it for planes.
            return (
                torch.from_numpy(pixels[0]).unsqueeze(0)
                if len(pixels) == 1
                else torch.from_numpy(np.stack(pixels))
            )
        for window in windows:
            check_bands(window, channels)
        return normalise_batch(torch.from_numpy(np.stack(windows)).to(self.device), channels)

    def _forward(self, batch: torch.Tensor) -> Any:
        """Ask the network; what it answers is not checked."""
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
            guarded_network(self.card.nn),
        ):
            if not self._plain:
                try:
                    return self._network(batch)
                except RuntimeError as error:
                    # A plug-in that looks at its input by `view`, which only works on planes one behind the other.
                    if "view size is not compatible" not in str(error):
                        raise
                    self._plain = True
            return self._network(batch.contiguous())

    def _padding(self, side: int) -> list[tuple[int, int]]:
        """Return what is added before and behind an axis: the border that a tile lacks, then up to the window.

        In two steps, so that a lone tile, and a tile whose border was mirrored by `read_window`, are one window.
        """
        steps = []
        for target in (self.card.tile_size + 2 * self.card.overlap, max(self.window, -(-side // STRIDE) * STRIDE)):
            missing = max(0, target - side)
            steps.append((missing // 2, missing - missing // 2))
            side += missing
        return steps


def load_predictor(
    path: Location,
    *,
    device: str | None = None,
    threads: int | None = None,
    batch_size: int = GPU_BATCH,
    precision: Precision = "float32",
    trust_model: bool = False,
) -> Predictor:
    """Load a checkpoint, or an exported model, told by content.

    Args:
        path: A checkpoint, or an ONNX, TorchScript or torch.export file of `rsp export`; one in S3 is downloaded.
        device: As `cpu` or `cuda:0`; a GPU if there is one where None.
        threads: Windows that a CPU works on at once; 1 where None. The answers are the same for every number.
        batch_size: Windows that a GPU works on at once.
        precision: What it computes with; see `Predictor`.
        trust_model: Load an exported program even where it could run any code; see `load_network`.

    Raises:
        ModelError: no model, a damaged one, an exported one that could do more than a network does, no such
            device, or one that does not compute in this precision.
    """
    keep_memory()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ModelError(f"unknown device {device!r}; expected cpu, cuda, or cuda:0, cuda:1, ...") from None
    if where.type not in ("cpu", "cuda"):
        raise ModelError(f"unsupported device {device!r}; expected cpu, cuda, or cuda:0, cuda:1, ...")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"no device {device!r} on this machine ({torch.cuda.device_count()} GPUs are visible)")
    network, card, kind = load_network(path, device, trust_model=trust_model)
    return Predictor(
        network, card, kind=kind, device=device, threads=threads or 1, batch_size=batch_size, precision=precision
    )


def check_precision(precision: str, kind: Kind, device: torch.device) -> None:
    """Raise `ModelError` where a form of a model on a device does not compute in a precision, and say why."""
    if precision not in PRECISIONS:
        raise ModelError(f"unknown precision {precision!r}; expected {' or '.join(PRECISIONS)}")
    if precision == "float32":
        return
    if kind == "onnx":
        raise ModelError(
            f"an ONNX model computes in float32; for {precision} use the checkpoint, TorchScript or torch.export"
        )
    if has_bfloat16(device):
        return
    if device.type == "cpu":
        raise ModelError(
            f"this processor ({torch.cpu.get_capabilities().get('cpu_name', 'unknown')}) does not compute in "
            "bfloat16: it has neither AVX512_BF16 nor AMX, and would be slower with it; use float32"
        )
    raise ModelError(f"the GPU {torch.cuda.get_device_name(device)} does not compute in bfloat16: use float32")


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16 itself, so that it gains by it."""
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name) for name in BFLOAT16_CPU)
    return torch.cuda.is_bf16_supported(including_emulation=False)


def hide(logits: torch.Tensor, ignored: Sequence[int]) -> torch.Tensor:
    """Return logits (N, classes, H, W) in which classes to ignore are as unlikely as can be."""
    if not ignored:
        return logits
    hidden = logits.clone()
    hidden[:, list(ignored)] = -torch.inf
    return hidden


def classes_of(logits: torch.Tensor) -> torch.Tensor:
    """Return the class of the highest logit, (N, H, W) uint8; of equal ones the first, on every device.

    Args:
        logits: Shape (N, classes, H, W).
    """
    if logits.shape[1] == 2:
        return (logits[:, 1] > logits[:, 0]).to(torch.uint8)
    best = logits[:, 0]
    classes = torch.zeros_like(best, dtype=torch.uint8)
    for index in range(1, logits.shape[1]):
        higher = logits[:, index] > best
        classes = torch.where(higher, index, classes)
        best = torch.where(higher, logits[:, index], best)
    return classes


def shares_of(logits: torch.Tensor) -> torch.Tensor:
    """Return the probability of each class, shape (N, classes, H, W)."""
    return torch.softmax(logits.contiguous(), dim=1)


def _mirror(image: Array, rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> Array:
    for row, column in zip(rows, columns, strict=True):
        if any(row) or any(column):
            image = np.pad(image, (row, column, (0, 0)), mode="reflect")
    return image


def _batches(images: Sequence[Array], size: int) -> Iterator[list[Array]]:
    """Yield runs of images of one size."""
    batch: list[Array] = []
    for image in images:
        if batch and (len(batch) == size or image.shape != batch[0].shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _set_one_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Forward with one thread in this block, and leave the caller (a training) its own number."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
