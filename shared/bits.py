"""Images of one bit a pixel, so that an operation on an array looks at 64 pixels at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rsp.shared.contours import Flags

Words = npt.NDArray[np.uint64]

WORD = 64
# By how much a word is shifted to go to the next pixel, and to the last one of the word before.
ONE, LAST = np.uint64(1), np.uint64(WORD - 1)


class Bits:
    """An image in words, row after row, the westernmost pixel in the lowest bit.

    There is a row without a pixel before the first and after the last one, and each ends with bits that are
    none: so nothing runs over from one row into the next.

    Args:
        words: All of them, in one array.
        across: How many a row has.
        width: How many pixels a row has.
    """

    def __init__(self, words: Words, across: int, width: int) -> None:
        self.words, self.across, self.width = words, across, width

    @classmethod
    def of(cls, pixels: Flags) -> Bits:
        """Return an image of shape (height, width)."""
        height, width = pixels.shape
        across = width // WORD + 1
        found = np.zeros((height + 2, across * 8), np.uint8)
        found[1:-1, : (width + 7) // 8] = np.packbits(pixels, axis=1, bitorder="little")
        return cls(found.ravel().view("<u8"), across, width)

    def flags(self) -> Flags:
        """Return the image as an array of shape (height, width)."""
        rows = self.words[self.across : -self.across].view(np.uint8).reshape(-1, self.across * 8)
        return np.unpackbits(rows, axis=1, count=self.width, bitorder="little").view(bool)

    def like(self, words: Words) -> Bits:
        """Return another image of the same size."""
        return Bits(words, self.across, self.width)

    def west(self) -> Words:
        """Return of each pixel the one to the west."""
        found = self.words << ONE
        found[1:] |= self.words[:-1] >> LAST
        return found

    def east(self, steps: int = 1) -> Words:
        """Return of each pixel the one so many steps to the east, less than 64."""
        found = self.words >> np.uint64(steps)
        found[:-1] |= self.words[1:] << np.uint64(WORD - steps)
        return found

    def around(self) -> Bits:
        """Return what is set with the eight pixels around each."""
        rows = self.words | self.west() | self.east()
        found = self.like(rows.copy())
        found.words[self.across :] |= rows[: -self.across]
        found.words[: -self.across] |= rows[self.across :]
        return found

    def squares(self, side: int) -> Bits:
        """Return the north-western pixels of squares that are all set, with sides of less than 64 pixels."""
        found = self.like(self.words.copy())
        done = 1
        while done < side:
            step = min(done, side - done)
            found.words &= found.east(step)
            lower = step * self.across
            found.words[:-lower] &= found.words[lower:]
            found.words[-lower:] = 0
            done += step
        return found

    def reached(self, seeds: Words, rounds: int) -> Words | None:
        """Return the pixels that hang together with some of them, by their edges; None where it takes too long.

        Args:
            seeds: Pixels to begin with.
            rounds: How many steps from one pixel to the next are gone.
        """
        found = self.like(seeds)
        for _ in range(rounds):
            grown = found.west()
            grown |= found.east()
            grown |= found.words
            grown[self.across :] |= found.words[: -self.across]
            grown[: -self.across] |= found.words[self.across :]
            grown &= self.words
            if (grown == found.words).all():
                return grown
            found = self.like(grown)
        return None
