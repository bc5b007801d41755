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

Kind = Literal["codec", "rgb_segmenter", "latent_segmenter", "rgb_classifier", "latent_classifier"]
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


def _torfason_codec(channels: int) -> Entry:
    text = f"autoencoder of Torfason et al. 2018: {channels} channels at 1/8 resolution, 6 learned centres"
    return Entry("torfason_codec:torfason_codec", "codec", text, (("channels", channels),))


def _torfason_classifier(depth: int, latent: bool) -> Entry:
    if latent:
        text = f"cResNet-{depth} of Torfason et al. 2018: no root and no conv2, on latents at 1/8 resolution"
        return Entry("torfason_resnet:torfason_cresnet", "latent_classifier", text, (("depth", depth),))
    text = f"ResNet-{depth} of Torfason et al. 2018"
    return Entry("torfason_resnet:torfason_resnet", "rgb_classifier", text, (("depth", depth),))


def _torfason_segmenter(depth: int, latent: bool) -> Entry:
    if latent:
        text = f"DeepLab of Torfason et al. 2018: dilated cResNet-{depth} on latents, atrous pyramid"
        return Entry("torfason_deeplab:torfason_deeplab_latent", "latent_segmenter", text, (("depth", depth),))
    text = f"DeepLab of Torfason et al. 2018: dilated ResNet-{depth}, atrous pyramid"
    return Entry("torfason_deeplab:torfason_deeplab_rgb", "rgb_segmenter", text, (("depth", depth),))


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
    "torfason-codec-c8": _torfason_codec(8),
    "torfason-codec-c16": _torfason_codec(16),
    "torfason-codec-c32": _torfason_codec(32),
    "torfason-resnet50": _torfason_classifier(50, latent=False),
    "torfason-resnet71": _torfason_classifier(71, latent=False),
    "torfason-cresnet39": _torfason_classifier(39, latent=True),
    "torfason-cresnet51": _torfason_classifier(51, latent=True),
    "torfason-cresnet72": _torfason_classifier(72, latent=True),
    "torfason-deeplab-resnet50": _torfason_segmenter(50, latent=False),
    "torfason-deeplab-resnet71": _torfason_segmenter(71, latent=False),
    "torfason-deeplab-cresnet39": _torfason_segmenter(39, latent=True),
    "torfason-deeplab-cresnet51": _torfason_segmenter(51, latent=True),
    "torfason-deeplab-cresnet72": _torfason_segmenter(72, latent=True),
    "compact-codec": Entry(
        "compact:compact_codec", "codec", "our own codec: 1/8 resolution, trained for rate with a Laplace context model"
    ),
    "compact-rgb": Entry(
        "compact:compact_rgb_segmenter", "rgb_segmenter", "compact RGB segmenter for real-time use on a CPU"
    ),
    "compact-latent": Entry(
        "compact:compact_latent_segmenter", "latent_segmenter", "the same trunk and head on the compact codec's latents"
    ),
    "compact-unpacked": Entry(
        "compact:compact_unpacked_segmenter",
        "latent_segmenter",
        "the same trunk and head, and the RGB segmenter's entry on latents that are unpacked linearly",
    ),
    "compact-resnet": Entry(
        "compact_resnet:compact_resnet", "rgb_classifier", "compact ResNet with root and conv2, for images of 64x64"
    ),
    "compact-cresnet": Entry(
        "compact_resnet:compact_cresnet", "latent_classifier", "the same without root and conv2, on latents at 1/8"
    ),
    "compact-deeplab": Entry(
        "compact_resnet:compact_deeplab", "rgb_segmenter", "compact dilated ResNet with root and conv2, atrous pyramid"
    ),
    "compact-cdeeplab": Entry(
        "compact_resnet:compact_cdeeplab", "latent_segmenter", "the same without root and conv2, on latents at 1/8"
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


def _factory(name: str) -> Factory:
    if name in _FACTORIES:
        return _FACTORIES[name]
    module, _, attribute = entry(name).target.partition(":")
    with _torch_needed():
        factory: Factory = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return factory


def open_options(name: str) -> dict[str, Any]:
    """The options that a network's name leaves open, and their defaults. Raises UsageError for an unknown name."""
    fixed = dict(entry(name).options)
    return {key: p.default for key, p in inspect.signature(_factory(name)).parameters.items() if key not in fixed}


def create(name: str, **options: Any) -> nn.Module:
    """Build the network registered as `name`, freshly initialised.

    Raises UsageError for an unknown name or an option that the network does not have, and BackendMissingError
    without torch.
    """
    row, factory = entry(name), _factory(name)
    merged = {**dict(row.options), **options}
    fixed = sorted(set(options) & {key for key, _ in row.options})
    if fixed:
        raise UsageError(f"option '{fixed[0]}' is already part of the name '{name}'", hint="choose another name")
    try:
        inspect.signature(factory).bind(**merged)
    except TypeError as error:
        known = ", ".join(open_options(name)) or "none"
        raise UsageError(f"model '{name}': {error}", hint=f"its options: {known}") from None
    return factory(**merged)
