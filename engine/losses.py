"""Frames that arrived and cannot be decoded, told as damage."""

from __future__ import annotations

from ..bitstream import Damage, StreamHeader
from ..bitstream.context_payload import is_key
from ..errors import InputError


class Losses:
    """Tells why frames of one stream do not decode: for damage of their own, or for want of the frame before.

    Give it every frame, in order, by one of `decoded` and `add`. Not for several threads at once.

    header: of the stream.
    damages: where losses are told; nobody else's list. Frames in a row that hang on one that is lost, up to the next
    key frame, are one Damage, which is replaced as it grows.
    """

    def __init__(self, header: StreamHeader, damages: list[Damage]) -> None:
        self._header, self._damages = header, damages
        self._last: int | None = None  # decoded
        self._first: int | None = None  # of the frames in a row that hang on a lost one

    def decoded(self, index: int) -> None:
        """Frame number `index` was decoded."""
        self._last = index

    def lacks(self, payload: bytes, index: int) -> bool:
        """Whether a frame refers to one that was not decoded. Raises InputError where its kind cannot be told."""
        return not is_key(payload, self._header) and (self._last is None or self._last != index - 1)

    def add(self, payload: bytes, index: int, error: InputError | None = None) -> None:
        """Frame number `index` is lost, by `error` unless it lacks the frame before."""
        try:
            lacks = self.lacks(payload, index)
        except InputError as found:
            lacks, error = False, error or found
        if not lacks:
            self._first = None
            self._damages.append(undecodable(index, error))
            return
        if self._first is not None and index == self._first + self._damages[-1].lost:
            self._damages[-1] = _hanging(self._first, index)
        else:
            self._first = index
            self._damages.append(_hanging(index, index))


def undecodable(index: int, error: InputError | None) -> Damage:
    """The container's CRC fits and yet the coder cannot read it: damage that came before the writer."""
    return Damage(-1, f"frame {index} does not decode: {error}", index, lost=1)


def _hanging(first: int, last: int) -> Damage:
    span = f"frame {first}" if first == last else f"frames {first} to {last}"
    why = f" without frame {first - 1}" if first else ": the stream does not begin with a key frame"
    return Damage(-1, f"{span} cannot be decoded{why}", first, lost=last - first + 1)
