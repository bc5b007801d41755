"""Verification of exported models: against torch when exporting, and of a whole bundle on the machine at hand.

Two things are compared. What the entropy coder carries must be exact: symbols that were encoded come back as the same
symbols, natively and in NumPy. What networks compute in floating point cannot be bit-equal between two runtimes: a
latent that lies on a rounding boundary may fall on either side, and labels may differ where two logits tie; so these
are counted and held to a share of positions, and a symbol may differ by one level (or centre) at the most. A
classifier's probabilities are held to a share of the likeliest class's, so that the likeliest class is the same unless
two tie.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..bitstream import StreamHeader
from ..engine.backends import open_backend
from ..engine.bundle import Bundle
from ..engine.manifest import CLASSIFYING_ROLES
from ..engine.placement import Placement
from ..engine.roles import Classifier, Compressor, Decompressor, RgbClassifier, RgbSegmenter, Segmenter
from ..errors import ArtifactError, VerificationError
from ..kernels import entropy
from ..kernels.dequantize import dequantize, dequantize_codebook
from ..kernels.quantize import quantize, quantize_codebook

if TYPE_CHECKING:
    from .onnx import Exported

# Shares of positions that may differ between torch and the backend.
MAX_SYMBOL_SHARE = 2e-3
MAX_LABEL_SHARE = 2e-3
MAX_LEVEL_SHARE = 2e-2  # decoded 8-bit values that differ by one level
# Largest difference of a frame's probabilities, as a share of its likeliest class's.
MAX_PROBABILITY_ERROR = 5e-3
MAX_SUM_ERROR = 1e-3  # of a frame's probabilities, which sum to 1

IMPLEMENTATIONS: tuple[Literal["native"], Literal["numpy"]] = ("native", "numpy")
ROLE_CLASSES: dict[str, Any] = {
    "compressor": Compressor,
    "segmenter": Segmenter,
    "decompressor": Decompressor,
    "rgb_segmenter": RgbSegmenter,
    "classifier": Classifier,
    "rgb_classifier": RgbClassifier,
}
# What the manifest's reference calls the outputs that torch recorded.
_REFERENCE = {
    "segmenter": "labels", "rgb_segmenter": "rgb_labels",
    "classifier": "probabilities", "rgb_classifier": "rgb_probabilities",
}  # fmt: skip


def verify_export(
    models: Sequence[Exported],
    header: StreamHeader,
    shapes: Sequence[tuple[int, int, int]],
    frames: NDArray[np.uint8] | None = None,
    backend: str = "onnxruntime",
) -> dict[str, Any]:
    """Compare every exported model with its torch graph at every shape; returns what was found.

    shapes: (batch, height, width) in pixels: the smallest, the usual and the largest. frames: real frames uint8
    (M, H, W, 3) to crop the inputs from; random noise without them. A latent model is fed what the compressor makes.
    Raises VerificationError at the first NaN, wrong shape, or share above its limit.
    """
    import torch

    compressor = next(m for m in models if m.role == "compressor")
    results: dict[str, Any] = {"backend": backend, "models": {}}
    for model in models:
        found = []
        with open_backend(model.path, name=backend) as runtime:
            for batch, height, width in shapes:
                x = _input(model, compressor, (batch, height, width), frames, header)
                with torch.no_grad():
                    expected = model.graph(x).numpy()
                actual = runtime.run(x.numpy())
                where = f"{model.role} at {batch}x{height}x{width}"
                row = _compare(model.role, where, actual, expected, header)
                if batch > 1:
                    single = runtime.run(x[:1].numpy())
                    _compare(model.role, where + ", first frame alone", single, expected[:1], header)
                found.append({"shape": [batch, height, width], **row})
        results["models"][model.role] = found
    return results


def _input(
    model: Exported,
    compressor: Exported,
    shape: tuple[int, int, int],
    frames: NDArray[np.uint8] | None,
    header: StreamHeader,
) -> Any:
    import torch

    from .onnx import takes_frames

    batch, height, width = shape
    images = compressor.example(batch, height, width, seed=height + width)
    if frames is not None:
        tiles = (-(-height // frames.shape[1]), -(-width // frames.shape[2]))
        picked = [np.tile(frames[i % len(frames)], (*tiles, 1))[:height, :width] for i in range(batch)]
        images = torch.from_numpy(np.ascontiguousarray(picked))
    if takes_frames(model.role):
        return images
    with torch.no_grad():
        latents = compressor.graph(images).numpy()
    return torch.from_numpy(np.stack([_received(z, header) for z in latents]))


def _compare(
    role: str, where: str, actual: NDArray[Any], expected: NDArray[Any], header: StreamHeader
) -> dict[str, Any]:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise VerificationError(
            f"{where}: found {actual.dtype} {actual.shape}, expected {expected.dtype} {expected.shape}"
        )
    if actual.dtype == np.float32 and not np.isfinite(actual).all():
        raise VerificationError(f"{where}: {np.count_nonzero(~np.isfinite(actual))} values are NaN or infinite")
    if role == "compressor":
        a, b = (_symbols(z, header) for z in (actual, expected))
        difference = np.abs(a.astype(np.int16) - b)
        _limit(where, "symbols differ", float((difference > 0).mean()), MAX_SYMBOL_SHARE)
        if difference.max(initial=0) > 1:
            raise VerificationError(f"{where}: a symbol differs by {difference.max()} levels, expected at most 1")
        return {
            "symbols_differ": float((difference > 0).mean()),
            "max_latent_error": float(np.abs(actual - expected).max()),
        }
    if role in CLASSIFYING_ROLES:
        return _compare_probabilities(where, actual, expected)
    difference = np.abs(actual.astype(np.int16) - expected)
    share = float((difference > 0).mean())
    if role == "decompressor":
        _limit(where, "values differ", share, MAX_LEVEL_SHARE)
        if difference.max(initial=0) > 1:
            raise VerificationError(f"{where}: a value differs by {difference.max()} levels, expected at most 1")
        return {"values_differ": share}
    _limit(where, "labels differ", share, MAX_LABEL_SHARE)
    return {"labels_differ": share}


def _compare_probabilities(where: str, actual: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, float]:
    """Of float32 (N, classes): the share of frames whose likeliest class differs, and the largest difference."""
    error = float((np.abs(actual - expected).max(1) / expected.max(1)).max())
    if not error <= MAX_PROBABILITY_ERROR:  # NaN too
        raise VerificationError(
            f"{where}: probabilities differ by {error:.3%} of the likeliest class's, expected at most "
            f"{MAX_PROBABILITY_ERROR:.3%}"
        )
    differ = actual.argmax(1) != expected.argmax(1)
    return {"top1_differ": float(differ.mean()), "probability_error": error}


def _range(z: NDArray[np.float32], header: StreamHeader) -> tuple[Any, Any]:
    if header.scaling.mode == "fixed":
        return header.scaling.lo, header.scaling.hi
    axes = None if header.scaling.mode == "tensor" else (1, 2)
    return z.min(axes), z.max(axes)


def _symbols(latents: NDArray[np.float32], header: StreamHeader) -> NDArray[np.uint8]:
    if header.scaling.mode == "codebook":
        return quantize_codebook(latents, header.scaling.centres)
    return np.stack([quantize(z, header.bits, *_range(z, header)) for z in latents])


def _limit(where: str, what: str, share: float, limit: float) -> None:
    if share > limit:
        raise VerificationError(f"{where}: {share:.3%} of {what}, expected at most {limit:.3%}")


def verify_entropy(latents: NDArray[np.float32], header: StreamHeader) -> dict[str, Any]:
    """Encode and decode latents float32 (N, C, h, w) natively and in NumPy: bytes, symbols and floats must be equal."""
    header = replace(header, latent_shape=latents.shape[1:], source_size=(0, 0))
    size = 0
    for index, (z, expected) in enumerate(zip(latents, _symbols(latents, header), strict=True)):
        native, reference = (entropy.encode_latent(z, header, implementation=i) for i in IMPLEMENTATIONS)
        if native != reference:
            raise VerificationError(f"latent {index}: the native coder and its NumPy reference wrote different bytes")
        for implementation in IMPLEMENTATIONS:
            symbols = entropy.decode_symbols(native, header, implementation=implementation)
            if not np.array_equal(symbols, expected):
                wrong = np.count_nonzero(symbols != expected)
                raise VerificationError(f"latent {index}: {wrong} symbols came back changed ({implementation})")
        floats = [entropy.decode_latent(native, header, implementation=i) for i in IMPLEMENTATIONS]
        if floats[0].tobytes() != floats[1].tobytes():
            raise VerificationError(f"latent {index}: int2float differs between the native coder and NumPy")
        size += len(native)
    return {"latents": len(latents), "bytes": size, "symbols": "exact"}


# --- a bundle on the machine at hand, without torch -----------------------------------------------------------------


def synthetic_frames(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Frames uint8 (N, H, W, 3) of ramps and stripes, by integer arithmetic: every machine makes the same."""
    n, y, x, c = np.ogrid[:count, :height, :width, :3]
    ramp = (y * 3 + x * (c + 1) + n * 40) // 4
    stripes = ((x // 7 + y // 11 + n) % 3) * 50 * (c + 1) // 2
    return np.asarray((ramp + stripes) % 256, dtype=np.uint8)


REFERENCE_SIZE = (2, 64, 96)


def pack_array(array: NDArray[Any]) -> str:
    """A uint8 or float32 array as text for a manifest: little-endian, zlib, then base64."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def unpack_array(text: str, shape: Sequence[int], dtype: str = "u1") -> NDArray[Any]:
    """The inverse of `pack_array`, of dtype "u1" or "f4".

    Raises ArtifactError where the text does not hold an array of this shape.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    expected = int(np.prod(shape)) * kind.itemsize
    try:
        raw = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), expected + 1)
    except (TypeError, ValueError, zlib.error) as error:
        raise ArtifactError(
            f"the manifest's reference cannot be read: {error}", hint="export the bundle again"
        ) from None
    if len(raw) != expected:
        raise ArtifactError(f"the manifest's reference has {len(raw)} bytes, expected {expected}")
    return np.frombuffer(raw, kind).reshape(shape)


def make_reference(models: Sequence[Exported], header: StreamHeader) -> dict[str, Any]:
    """What torch makes of `synthetic_frames`: kept in the manifest, so that `verify_bundle` needs no torch."""
    import torch

    from .onnx import takes_frames

    graphs = {m.role: m.graph for m in models}
    frames = torch.from_numpy(synthetic_frames(*REFERENCE_SIZE))
    with torch.no_grad():
        latents = graphs["compressor"](frames).numpy()
        symbols = _symbols(latents, header)
        received = torch.from_numpy(np.stack([_received(z, header) for z in latents]))
        reference = {"size": list(REFERENCE_SIZE), "symbols": pack_array(symbols)}
        reference["frames"] = pack_array(graphs["decompressor"](received).numpy())
        for role, key in _REFERENCE.items():
            if role in graphs:
                reference[key] = pack_array(graphs[role](frames if takes_frames(role) else received).numpy())
    return reference


def _received(z: NDArray[np.float32], header: StreamHeader) -> NDArray[np.float32]:
    header = replace(header, latent_shape=z.shape, source_size=(0, 0))
    return entropy.decode_latent(entropy.encode_latent(z, header), header)


def verify_bundle(
    bundle: Bundle,
    placement: Placement = Placement(),  # noqa: B008 (frozen)
    sizes: Sequence[tuple[int, int, int]] = ((1, 1, 1), (2, 360, 480), (1, 1080, 1920)),
) -> dict[str, Any]:
    """Check every model of a bundle on this machine; needs no torch.

    Hashes; the active backend; at every (batch, height, width): shapes, types, NaN, and a batch against its frames one
    by one; symbols exact through the coder, native against NumPy; and the manifest's reference, which torch computed at
    export, within the same limits as at export. Raises VerificationError or ArtifactError at the first failure.
    """
    results: dict[str, Any] = {"bundle": bundle.name, "backend": placement.backend, "sizes": [list(s) for s in sizes]}
    with ExitStack() as stack:
        roles = {
            role: stack.enter_context(make(bundle, placement))
            for role, make in ROLE_CLASSES.items()
            if role in bundle.roles
        }
        compressor = roles["compressor"]
        for batch, height, width in sizes:
            frames = synthetic_frames(batch, height, width)
            header = bundle.header(height, width)
            latents = compressor.latents(frames)
            where = f"{batch}x{height}x{width}"
            if not np.isfinite(latents).all():
                raise VerificationError(f"compressor at {where}: NaN or infinite values")
            results[f"entropy {where}"] = verify_entropy(latents, header)
            received = np.stack([_received(z, header) for z in latents])
            for role, run in _runs(roles, received, frames, (height, width)):
                whole, single = run(slice(None)), run(slice(0, 1))
                if role in CLASSIFYING_ROLES:
                    results[f"{role} {where}"] = _check_classifier(f"{role} at {where}", whole, single)
                    continue
                if whole.shape[:3] != (batch, height, width) or whole.dtype != np.uint8:
                    raise VerificationError(f"{role} at {where}: found {whole.dtype} {whole.shape}")
                share = float((whole[:1] != single).mean())
                _limit(f"{role} at {where}", "values change with the batch", share, MAX_LABEL_SHARE)
                results[f"{role} {where}"] = {"differ_alone": share}
        reference = bundle.manifest["verification"].get("reference")
        results["reference"] = _verify_reference(roles, bundle, reference) if reference else "none in the manifest"
    return results


def _check_classifier(where: str, whole: NDArray[np.float32], single: NDArray[np.float32]) -> dict[str, float]:
    """A batch's probabilities are numbers that sum to 1, and those of its first frame are as `single` has them."""
    error = float(np.abs(whole.sum(1) - 1).max())
    if not error <= MAX_SUM_ERROR:
        raise VerificationError(f"{where}: probabilities sum to 1 within {error:.2g}, expected {MAX_SUM_ERROR}")
    return _compare_probabilities(f"{where}, first frame alone", single, whole[:1])


def _runs(
    roles: dict[str, Any], latents: NDArray[np.float32], frames: NDArray[np.uint8], size: tuple[int, int]
) -> list[tuple[str, Callable[[slice], NDArray[Any]]]]:
    runs: dict[str, Callable[[slice], NDArray[Any]]] = {
        "segmenter": lambda part: roles["segmenter"].labels(latents[part], size),
        "decompressor": lambda part: roles["decompressor"].frames(latents[part], size),
        "rgb_segmenter": lambda part: roles["rgb_segmenter"].labels(frames[part]),
        "classifier": lambda part: roles["classifier"].probabilities(latents[part], size),
        "rgb_classifier": lambda part: roles["rgb_classifier"].probabilities(frames[part]),
    }
    return [(role, run) for role, run in runs.items() if role in roles]


def _verify_reference(roles: dict[str, Any], bundle: Bundle, reference: dict[str, Any]) -> dict[str, float]:
    try:
        count, height, width = (int(side) for side in reference["size"])
        symbols = reference["symbols"]
    except (KeyError, TypeError, ValueError):
        count = height = width = 0
    if not all(1 <= side <= 4096 for side in (count, height, width)):
        raise ArtifactError("the manifest's reference has no size or no symbols", hint="export the bundle again")
    frames = synthetic_frames(count, height, width)
    header = bundle.header(height, width)
    expected = unpack_array(symbols, (count, *header.latent_shape))
    found = {}
    latents = roles["compressor"].latents(frames)
    difference = np.abs(_symbols(latents, header).astype(np.int16) - expected)
    found["symbols_differ"] = float((difference > 0).mean())
    _limit("reference", "symbols differ from torch's", found["symbols_differ"], MAX_SYMBOL_SHARE)
    # What takes latents is fed the recorded symbols, so that a flipped symbol is not counted twice.
    received = np.stack([_from_symbols(q, z, header) for q, z in zip(expected, latents, strict=True)])
    runs = dict(_runs(roles, received, frames, (height, width)))
    for role, key in _REFERENCE.items():
        if key not in reference or role not in roles:
            continue
        actual = runs[role](slice(None))
        if role in CLASSIFYING_ROLES:
            recorded = unpack_array(reference[key], (count, len(bundle.classes)), "f4")
            compared = _compare_probabilities(f"reference, {role} against torch", actual, recorded)
            found |= {f"{key}_{what}": value for what, value in compared.items()}
            continue
        share = float((actual != unpack_array(reference[key], (count, height, width))).mean())
        found[f"{key}_differ"] = share
        _limit("reference", f"{role} labels differ from torch's", share, MAX_LABEL_SHARE)
    if "frames" in reference and "decompressor" in roles:
        decoded = runs["decompressor"](slice(None)).astype(np.int16)
        difference = np.abs(decoded - unpack_array(reference["frames"], (count, height, width, 3)))
        found["frames_differ"] = float((difference > 0).mean())
        _limit("reference", "decompressed values differ from torch's", found["frames_differ"], MAX_LEVEL_SHARE)
        if difference.max() > 1:
            raise VerificationError(f"reference: a decompressed value differs by {difference.max()} levels, at most 1")
    return found


def _from_symbols(q: NDArray[np.uint8], z: NDArray[np.float32], header: StreamHeader) -> NDArray[np.float32]:
    if header.scaling.mode == "codebook":
        return dequantize_codebook(q, header.scaling.centres)
    return dequantize(q, header.bits, *_range(z, header))
