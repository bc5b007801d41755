"""Show what is in a file.

A .lseg stream (header, frames, bpp, rate by channel, what lanes cost, damage), a bundle (codec,
files and their hashes, scores), an .onnx model (inputs, outputs, opset), or an .npy of latents
(shape, range). The kind is found from the content. The exit code is 7 for a damaged stream and 4
for a changed bundle, after the report, so that `inspect` also serves as a check.

`anatomy` is bytes a frame, and the mean of `frames` frames: all up to 256, evenly spaced ones of a
longer stream (fewer where a frame has thousands of lanes). frame_header, scales, tables (or the
channels' parameters), lane_lengths and lane_bytes add up to the frame. lane_overhead is what
cutting into lanes costs: lane_lengths, lane_states (11 bits a lane of the context coder), and
lane_fill (the last bytes, filled up: taken as 3.5 bits a lane). A channel's bits/symbol hold all
that is its own; null under huffman-frame, where lanes run through channels.

`bundle` and `step` of a stream: the name of the bundle whose codec wrote it (latentseg bundles) and
the quantisation step in units of that codec's, null where no such bundle is known.

`kinds` is of streams of coder inter alone: how many frames are key frames, which stand alone, and
how many refer to the one before; the mean bytes of their payloads; and key_interval, the most
frames from one key frame to the next. Frames that cannot do without a lost one are lost, too.

JSON keys: schema type path kind, and by kind
  lseg     codec_id bundle step latent_shape bits scaling source_size frame_rate coder
           tile lane_symbols kinds frames bytes frame_bytes last_timestamp_us bits_per_symbol
           bpp factor_vs_rgb24 anatomy channel_bits_per_symbol damages lost
  kinds    key_frames key_bytes inter_frames inter_bytes key_interval
  anatomy  frames frame_header scales tables lane_lengths lane_bytes lanes lane_states
           lane_fill lane_overhead
  bundle   name description created_by codec files classes scores verification
  onnx     bytes producer opset inputs outputs nodes weights
  npy      latents latent_shape dtype min max not_finite bits

examples:
  latentseg inspect clip.lseg
  latentseg inspect camvid-compact --json
  latentseg inspect camvid-compact/segmenter.onnx
  curl -s URL | latentseg inspect -
"""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import InputError, LatentsegError, missing_extra
from . import _common

if TYPE_CHECKING:
    from ..bitstream import StreamHeader
    from ..engine.bundle import Bundle

MOST_NAMES = 20  # of classes, for people
HELP = "show what is in a .lseg stream, bundle, .onnx or .npy file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("path", metavar="PATH", help="a file, a bundle's folder or name, or '-' for stdin")
    _common.add_json(parser, "the report")


def run(args: argparse.Namespace) -> int:
    """Report on one file; returns the exit code."""
    complaint: LatentsegError | None = None
    if args.path != "-" and (Path(args.path).is_dir() or (not Path(args.path).exists() and _is_named(args.path))):
        report, complaint = _bundle(args.path)
    else:
        with _common.open_input(args.path) as file:
            report = _file(args, file)
    report = {"schema": 1, "type": "inspect", "path": args.path, **report}
    if args.json:
        _common.emit(report)
    else:
        print(_text(report))
    if complaint is not None:
        raise complaint
    _common.raise_if_damaged(len(report.get("damages", [])), report.get("lost", 0))
    return 0


def _file(args: argparse.Namespace, file: BufferedReader) -> dict[str, Any]:
    if file.peek(16).startswith(b"\x93NUMPY"):
        return _npy(file, args.path)
    if args.path.lower().endswith(".onnx"):
        return _onnx(Path(args.path))
    return _stream(args, file)


# --- a stream ---------------------------------------------------------------------------------------------------------


def _stream(args: argparse.Namespace, file: BinaryIO) -> dict[str, Any]:
    from ..bitstream import Damage, Reader
    from ..bitstream.frames import FRAME_HEADER_BYTES
    from ..engine.losses import Losses
    from ._anatomy import Kinds, Sample

    reader = Reader(file, on_damage=_common.damage_reporter(args))
    header = reader.header
    sample, kinds = Sample(header), Kinds(header)
    undecodable: list[Damage] = []
    losses = Losses(header, undecodable)
    sizes: list[int] = []
    last_timestamp = 0
    for frame in _common.track(reader, args):
        try:
            lacks = losses.lacks(frame.payload, frame.index)
            if not lacks:
                sample.add(frame.payload)
        except InputError as error:  # its CRC fits, but no reader can decode it
            losses.add(frame.payload, frame.index, error)
            continue
        if lacks:
            losses.add(frame.payload, frame.index)
            continue
        losses.decoded(frame.index)
        kinds.add(frame.payload, frame.index)
        sizes.append(len(frame.payload))
        last_timestamp = frame.timestamp_us
    _common.note_damages(args, undecodable)
    reader.damages += undecodable
    frames = len(sizes)
    height, width = header.source_size
    framed = sum(sizes) + frames * FRAME_HEADER_BYTES
    num, den = header.frame_rate
    report: dict[str, Any] = {
        "kind": "lseg",
        "codec_id": header.codec_id.hex(),
        **_origin(header),
        "latent_shape": list(header.latent_shape),
        "bits": header.bits,
        "scaling": {
            "mode": header.scaling.mode,
            "lo": header.scaling.lo,
            "hi": header.scaling.hi,
            "centres": list(header.scaling.centres),
        },
        "source_size": [height, width],
        "frame_rate": [num, den],
        "coder": header.coder,
        "tile": list(header.tile),
        "lane_symbols": header.lane_symbols,
        "kinds": kinds.report(),
        "frames": frames,
        "bytes": framed,
        "frame_bytes": {"min": min(sizes), "mean": sum(sizes) / frames, "max": max(sizes)} if frames else None,
        "last_timestamp_us": last_timestamp,
        "bits_per_symbol": 8 * sum(sizes) / (frames * header.symbols) if frames else None,
        "bpp": None,
        "factor_vs_rgb24": None,
        **sample.report(),
        "damages": [
            {"offset": damage.offset, "reason": damage.reason, "frame_index": damage.frame_index, "lost": damage.lost}
            for damage in reader.damages
        ],
        "lost": reader.lost,
    }
    if frames and height:
        report["bpp"] = 8 * framed / (frames * height * width)
        report["factor_vs_rgb24"] = 24 / report["bpp"]
    return report


def _origin(header: StreamHeader) -> dict[str, Any]:
    """Name of the bundle whose codec wrote a stream, and the stream's step in units of that codec's, if it has one."""
    from ..engine.bundle import load_bundle, named_bundles

    for name, path in ((name, path) for name, places in named_bundles().items() for path in places):
        try:
            codec = load_bundle(path).codec
        except LatentsegError:  # a broken bundle is what `bundles` and `doctor` report
            continue
        if codec.id == header.codec_id:
            step = None
            with suppress(LatentsegError):  # a range that is no multiple of the codec's: `run` refuses it
                step = codec.step_of(header.scaling)
            return {"bundle": name, "step": step}
    return {"bundle": None, "step": None}


def _stream_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    from . import _anatomy

    height, width = report["source_size"]
    num, den = report["frame_rate"]
    scaling = report["scaling"]
    codec = "unnamed" if not int(report["codec_id"], 16) else report["codec_id"][:16]
    owner = f" (of bundle '{report['bundle']}')" if report["bundle"] else ""
    step = "" if report["step"] in (None, 1) else f", step {report['step']:g}"
    centres = scaling["centres"]
    low, high = (centres[0], centres[-1]) if centres else (scaling["lo"], scaling["hi"])
    span = f" {low:g} to {high:g}" if centres or scaling["mode"] == "fixed" else ""
    book = f" of {len(centres)} centres" if centres else ""
    shape = "x".join(map(str, report["latent_shape"]))
    rows_, columns = report["tile"]
    lane = f"{rows_}x{columns}" if rows_ else report["lane_symbols"]
    rows = [
        ("codec", codec + owner),
        ("source", f"{width}x{height}" + (f" at {num / den:g} frames/s" if num else "") if height else "unknown"),
        ("latent", f"{shape}, {report['bits']} bits, scaling {scaling['mode']}{book}{span}{step}"),
        ("coder", f"{report['coder']}, lanes of {lane} symbols"),
        ("frames", f"{report['frames']} in {_common.human_bytes(report['bytes'])}"),
    ]
    if report["frame_bytes"]:
        sizes = report["frame_bytes"]
        rows.append(("payloads", f"{sizes['min']} to {sizes['max']} bytes, mean {sizes['mean']:.0f}"))
        rows += _anatomy.kind_rows(report["kinds"])
        rows.append(("bits/symbol", f"{report['bits_per_symbol']:.3f}"))
    if report["bpp"]:
        rows.append(("bpp", f"{report['bpp']:.4f} ({report['factor_vs_rgb24']:.1f} times smaller than 24-bit RGB)"))
    rows += _anatomy.rows(report)
    damage = f"{len(report['damages'])} place(s), {report['lost']} frame(s) lost"
    rows.append(("damage", damage if report["damages"] else "none"))
    return rows


# --- a bundle ---------------------------------------------------------------------------------------------------------


def _is_named(name: str) -> bool:
    from ..engine.bundle import named_bundles

    return name in named_bundles()


def _bundle(spec: str) -> tuple[dict[str, Any], LatentsegError | None]:
    """The report, and the first error of its files (which are all checked before it is raised)."""
    from ..engine.bundle import load_bundle

    bundle: Bundle = load_bundle(Path(spec) if Path(spec).is_dir() else spec)
    complaint: LatentsegError | None = None
    files: dict[str, Any] = {}
    for role in bundle.roles:
        entry = dict(bundle.manifest["files"][role])
        try:
            bundle.model_path(role)
            entry["intact"] = True
        except LatentsegError as error:
            entry["intact"] = False
            complaint = complaint or error
        files[role] = entry
    codec = bundle.manifest["codec"]
    return {
        "kind": "bundle",
        "name": bundle.name,
        "description": bundle.manifest.get("description", ""),
        "created_by": bundle.manifest.get("created_by", ""),
        "codec": codec,
        "files": files,
        "classes": bundle.manifest["classes"],
        "scores": bundle.manifest.get("scores", {}),
        "verification": bundle.manifest.get("verification", {}),
    }, complaint


def _bundle_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    codec = report["codec"]
    steps = ", steps {lo:g} to {hi:g}".format_map(codec["steps"]) if "steps" in codec else ""
    rows = [
        ("bundle", f"{report['name']} (by {report['created_by'] or 'unknown'})"),
        ("codec", f"{codec['name']}, id {codec['id'][:16]}"),
        ("latent", f"{codec['channels']} channels at stride {codec['stride']}, {codec['bits']} bits{steps}"),
        ("classes", _class_text([entry["name"] for entry in report["classes"]])),
    ]
    if report["description"]:
        rows.insert(1, ("about", report["description"]))
    for role, entry in report["files"].items():
        state = "intact" if entry["intact"] else "CHANGED"
        rows.append(
            (
                role,
                f"{_common.human_bytes(entry['bytes'])}, {entry['parameters'] / 1e6:.3f} M parameters, "
                f"{entry['macs_per_pixel'] / 1e3:.3f} K MACs/pixel, {state}",
            )
        )
    rows += [(f"{name}", _leaf(value)) for name, value in _leaves("scores", report["scores"])]
    return rows


def _class_text(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES]) or "none: a codec alone"
    return shown + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """A free-form JSON object as (dotted name, value) rows."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{prefix}.{key}", inner)]
    return [(prefix, value)]


def _leaf(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- a model, an array ------------------------------------------------------------------------------------------------


def _onnx(path: Path) -> dict[str, Any]:
    try:
        import onnx
    except ImportError:
        return _onnx_by_runtime(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own error class is not importable from a stable place
        raise InputError(f"cannot read {path} as ONNX: {error}") from error

    def describe(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        shape = [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
        return {
            "name": value.name,
            "type": _type_name(onnx.TensorProto.DataType.Name(tensor.elem_type).lower()),
            "shape": shape,
        }

    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        "kind": "onnx",
        "bytes": path.stat().st_size,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [describe(value) for value in model.graph.input if value.name not in weights],
        "outputs": [describe(value) for value in model.graph.output],
        "nodes": len(model.graph.node),
        "weights": sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
    }


def _type_name(name: str) -> str:
    """ONNX's name of an element type -> NumPy's."""
    return {"float": "float32", "double": "float64"}.get(name, name)


def _onnx_by_runtime(path: Path) -> dict[str, Any]:
    """What ONNX Runtime alone can tell: it does not give opset, nodes or weights."""
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("onnxruntime", "cpu") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its error classes derive from Exception directly
        raise InputError(f"cannot read {path} as ONNX: {error}") from error

    def describe(value: Any) -> dict[str, Any]:
        return {
            "name": value.name,
            "type": _type_name(value.type.removeprefix("tensor(").rstrip(")")),
            "shape": list(value.shape),
        }

    return {
        "kind": "onnx",
        "bytes": path.stat().st_size,
        "producer": session.get_modelmeta().producer_name,
        "opset": None,
        "inputs": [describe(value) for value in session.get_inputs()],
        "outputs": [describe(value) for value in session.get_outputs()],
        "nodes": None,
        "weights": None,
    }


def _onnx_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("model", f"{_common.human_bytes(report['bytes'])}, made by {report['producer'] or 'unknown'}")]
    for kind in ("inputs", "outputs"):
        rows += [(kind[:-1], f"{v['name']}: {v['type']} [{', '.join(map(str, v['shape']))}]") for v in report[kind]]
    if report["opset"]:
        rows.append(("opset", ", ".join(f"{domain} {version}" for domain, version in report["opset"].items())))
        rows.append(("size", f"{report['nodes']} nodes, {report['weights'] / 1e6:.3f} M weights"))
    return rows


def _npy(file: BinaryIO, name: str) -> dict[str, Any]:
    import numpy as np

    from ._npy import read_latents

    count, shape, low, high, strange = 0, None, math.inf, -math.inf, 0
    for latent in read_latents(file, name):
        finite = latent[np.isfinite(latent)]
        strange += latent.size - finite.size
        if finite.size:
            low, high = min(low, finite.min().item()), max(high, finite.max().item())
        if shape is not None and latent.shape != shape:
            raise InputError(f"{name}, latent {count}: shape {latent.shape}, but the first has {shape}")
        count, shape, dtype = count + 1, latent.shape, latent.dtype
    assert shape is not None  # read_latents raises for an empty file
    integer = dtype.kind in "iu"
    bits = max(int(high), 1).bit_length() if integer and low >= 0 else None
    return {
        "kind": "npy",
        "latents": count,
        "latent_shape": list(shape),
        "dtype": dtype.name,
        "min": low if math.isfinite(low) else None,
        "max": high if math.isfinite(high) else None,
        "not_finite": strange,
        "bits": bits if bits is not None and bits <= 8 else None,
    }


def _npy_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    if report["bits"]:
        packing = f"with --bits {report['bits']} or more"
    elif report["dtype"].startswith("float"):
        packing = "with --quantize" if not report["not_finite"] else "not before its NaN or infinite values are gone"
    else:
        packing = "not as it is: expected integers from 0 to at most 255"
    return [
        ("latents", f"{report['latents']} of {'x'.join(map(str, report['latent_shape']))} {report['dtype']}"),
        ("range", f"{report['min']} to {report['max']}, {report['not_finite']} not finite"),
        ("packs", packing),
    ]


_ROWS = {"lseg": _stream_rows, "bundle": _bundle_rows, "onnx": _onnx_rows, "npy": _npy_rows}


def _text(report: dict[str, Any]) -> str:
    return _common.table(_ROWS[report["kind"]](report))
