"""One table of stable network names.

Checkpoints, bundles and the command line refer to networks by these names, so a name is never given another meaning.
Importing this module imports no torch: a factory is looked up, and torch with it, when `create` is called.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError, missing_extra

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["codec", "rgb_segmenter", "latent_segmenter"]
Factory = Callable[..., "nn.Module"]


@dataclass(frozen=True)
class Entry:
    """One network: where its factory lies, what it is, and the options that the name stands for.

    `target` is "module:factory", relative to this room. `options` are passed to the factory before the caller's own,
    so that several names can share one factory.
    """

    target: str
    kind: Kind
    description: str
    options: tuple[tuple[str, int], ...] = ()


def _paper_codec(d: int) -> Entry:
    text = f"net_C and net_D of Kakaiya et al. 2023, d={d}: 16 channels at 1/{2 ** (d + 1)} resolution"
    return Entry("kakaiya_codec:kakaiya_codec", "codec", text, (("d", d),))


def _paper_latent(d: int) -> Entry:
    text = f"net_seg,D' of Kakaiya et al. 2023 on latents of d={d}: 1x1 entry, layer3, layer4, dual graph head"
    return Entry("kakaiya_segmenters:kakaiya_latent_segmenter", "latent_segmenter", text, (("d", d),))


_ENTRIES: dict[str, Entry] = {
    "kakaiya-codec-d1": _paper_codec(1),
    "kakaiya-codec-d2": _paper_codec(2),
    "kakaiya-codec-d3": _paper_codec(3),
    "kakaiya-rgb": Entry(
        "kakaiya_segmenters:kakaiya_rgb_segmenter",
        "rgb_segmenter",
        "DGCNet as in Kakaiya et al. 2023: deep-stem ResNet-50 at output stride 8, dual graph head",
    ),
    "kakaiya-latent-d1": _paper_latent(1),
    "kakaiya-latent-d2": _paper_latent(2),
    "kakaiya-latent-d3": _paper_latent(3),
    "compact-codec": Entry(
        "compact:compact_codec", "codec", "our own codec: 1/8 resolution, trained for rate with a Laplace context model"
    ),
    "compact-rgb": Entry(
        "compact:compact_rgb_segmenter", "rgb_segmenter", "compact RGB segmenter for real-time use on a CPU"
    ),
    "compact-latent": Entry(
        "compact:compact_latent_segmenter", "latent_segmenter", "the same trunk and head on the compact codec's latents"
    ),
}


# Factories added by `register`; the rows of the table are found by their target.
_FACTORIES: dict[str, Factory] = {}


def register(name: str, *, kind: Kind, description: str) -> Callable[[Factory], Factory]:
    """Decorator that adds the factory of a network of one's own under `name` (the table above names ours).

    Raises UsageError when the name is taken: a name never changes its meaning.
    """

    def decorate(factory: Factory) -> Factory:
        if name in _ENTRIES:
            raise UsageError(f"the model name '{name}' is already registered", hint="choose another name")
        _FACTORIES[name] = factory
        _ENTRIES[name] = Entry(f"{factory.__module__}:{factory.__qualname__}", kind, description)
        return factory

    return decorate


def names(kind: Kind | None = None) -> list[str]:
    """All registered names in the table's order, or those of one kind."""
    return [name for name, entry in _ENTRIES.items() if kind is None or entry.kind == kind]


def entry(name: str) -> Entry:
    """The row of `name`. Raises UsageError, listing the closest names, when there is none."""
    try:
        return _ENTRIES[name]
    except KeyError:
        close = difflib.get_close_matches(name, _ENTRIES, n=3, cutoff=0.5)
        listed = ", ".join(close or _ENTRIES)
        hint = f"did you mean: {listed}" if close else f"known models: {listed}"
        raise UsageError(f"there is no model named '{name}'", hint=hint) from None


@contextmanager
def _torch_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise missing_extra("torch", "train") from None
        raise


def create(name: str, **options: Any) -> nn.Module:
    """Build the network registered as `name`, freshly initialised.

    Raises UsageError for an unknown name or an option that the network does not have, and BackendMissingError
    without torch.
    """
    row = entry(name)
    factory = _FACTORIES.get(name)
    if factory is None:
        module, _, attribute = row.target.partition(":")
        with _torch_needed():
            factory = getattr(importlib.import_module(f".{module}", __package__), attribute)
    assert factory is not None
    merged = {**dict(row.options), **options}
    fixed = sorted(set(options) & {key for key, _ in row.options})
    if fixed:
        raise UsageError(f"option '{fixed[0]}' is already part of the name '{name}'", hint="choose another name")
    try:
        inspect.signature(factory).bind(**merged)
    except TypeError as error:
        known = [key for key in inspect.signature(factory).parameters if key not in dict(row.options)]
        raise UsageError(f"model '{name}': {error}", hint=f"its options: {', '.join(known) or 'none'}") from None
    return factory(**merged)
