"""Say what this machine can run, and test it.

The machine, its GPU and driver, the packages and what the missing ones would bring, the native
kernels, the shipped bundles and whether their files are as they were shipped, what was built of
them (GPU kernels, engines) and for which compute capabilities, and a one-second self test. What is
missing is said, not counted against the machine: the exit code is 0 unless a self test fails or a
shipped bundle was changed (5). TensorRT is looked for, not imported.

JSON keys: schema type latentseg python machine gpu (driver cuda devices: name capability memory;
reason: why there is none) packages providers kernels bundles built (bundle kernels: capabilities;
kernels_error; engines: file version archs error) tests

examples:
  latentseg doctor
  latentseg doctor --json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import LatentsegError, VerificationError
from . import _common, _packages

if TYPE_CHECKING:
    from ..kernels.dispatch import Implementation

HELP = "say what this machine can run, and test it for a second"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    _common.add_json(parser, "the report")


def run(args: argparse.Namespace) -> int:
    """Report and test; returns the exit code."""
    from .. import __version__
    from ..benchmarks.machine import describe_machine

    bundles = _bundles()
    report: dict[str, Any] = {
        "schema": 1,
        "type": "doctor",
        "latentseg": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "machine": describe_machine(),
        "gpu": _gpu(),
        "packages": _packages.versions(),
        "providers": _providers(),
        "kernels": _kernels(),
        "bundles": bundles,
        "built": [_built(bundle["name"]) for bundle in bundles],
        "tests": [_test("coder", _test_coder), _test("bundle", lambda: _test_bundle(bundles))],
    }
    if args.json:
        _common.emit(report)
    else:
        print(_text(report))
    failed = [test["name"] for test in report["tests"] if test["result"] == "failed"]
    failed += [f"bundle {bundle['name']}" for bundle in bundles if bundle["error"]]
    if failed:
        raise VerificationError(
            f"self test failed: {', '.join(failed)}", hint="install latentseg again, then run latentseg doctor"
        )
    return 0


def _providers() -> list[str]:
    """ONNX Runtime's execution providers on this machine."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return [str(provider) for provider in onnxruntime.get_available_providers()]


def _kernels() -> str:
    from .. import kernels

    return "native" if kernels.native_available() else "numpy"


def _bundles() -> list[dict[str, Any]]:
    from ..engine.bundle import load_bundle, shipped_bundles

    found: list[dict[str, Any]] = []
    for name, path in shipped_bundles().items():
        entry: dict[str, Any] = {"name": name, "roles": [], "error": ""}
        try:
            bundle = load_bundle(path)
            entry["roles"] = list(bundle.roles)
            for role in bundle.roles:
                bundle.model_path(role)
        except LatentsegError as error:
            entry["error"] = str(error)
        found.append(entry)
    return found


def _gpu() -> dict[str, Any]:
    from dataclasses import asdict

    from ..engine.tensorrt.gpus import find_gpus

    found = asdict(find_gpus())
    return {**found, "devices": list(found["devices"])}


def _built(name: str) -> dict[str, Any]:
    """What lies built beside a shipped bundle, each with why it cannot be used, where that is so."""
    from ..engine.bundle import shipped_bundles
    from ..engine.tensorrt.api import NAMES
    from ..engine.tensorrt.sidecar import ENGINE_FOLDER, SUFFIX, read_any_engine
    from ..kernels.gpu.images import INDEX_NAME, load_kernels

    folder = shipped_bundles()[name]
    found: dict[str, Any] = {"bundle": name, "kernels": [], "kernels_error": "", "engines": []}
    try:
        if (folder / "kernels" / INDEX_NAME).exists():
            found["kernels"] = load_kernels(folder / "kernels").archs()
    except LatentsegError as error:
        found["kernels_error"] = str(error)
    for path in sorted((folder / ENGINE_FOLDER).glob("*" + SUFFIX)):
        entry: dict[str, Any] = {"file": path.name, "version": "", "archs": [], "error": ""}
        try:
            file = read_any_engine(path)
            entry |= {"version": f"{NAMES[file.flavour]} {file.version}", "archs": list(file.archs)}
        except LatentsegError as error:
            entry["error"] = str(error)
        found["engines"].append(entry)
    return found


def _test(name: str, body: Callable[[], str | None]) -> dict[str, Any]:
    """One self test's record: `body` returns what it found, None when it cannot run here, or raises."""
    start = time.perf_counter()
    try:
        detail = body()
        result = "skipped" if detail is None else "ok"
    except Exception as error:  # whatever it is, the report must still come out
        result, detail = "failed", f"{type(error).__name__}: {error}"
    return {"name": name, "result": result, "detail": detail or "", "seconds": round(time.perf_counter() - start, 3)}


def _test_coder() -> str:
    """A latent with the statistics of a real one goes through every implementation of the coder, both ways."""
    import numpy as np

    from ..bitstream import Scaling, StreamHeader
    from ..bitstream.header import CODERS
    from ..kernels import entropy

    rng = np.random.default_rng(0)
    symbols = np.clip(rng.laplace(128, 6, (8, 17, 31)).round(), 0, 255).astype(np.uint8)
    names: list[Implementation] = ["native", "numpy"] if _kernels() == "native" else ["numpy"]
    sizes = []
    for coder in CODERS:
        header = StreamHeader(bytes(32), (8, 17, 31), 8, Scaling("fixed", 0.0, 255.0), coder=coder)
        payloads = {name: entropy.encode_symbols(symbols, header, implementation=name) for name in names}
        for writer, payload in payloads.items():
            if payload != payloads["numpy"]:
                raise VerificationError(f"{coder}: the {writer} encoder's bytes differ from NumPy's")
            for reader in names:
                decoded = entropy.decode_symbols(payload, header, implementation=reader)
                if not np.array_equal(decoded, symbols):
                    raise VerificationError(
                        f"{coder}: the {reader} decoder's symbols differ from what {writer} encoded"
                    )
        sizes.append(f"{len(payloads['numpy'])} bytes ({coder})")
    return f"{symbols.size} symbols, {', '.join(sizes)}; {' and '.join(names)} agree"


def _test_bundle(bundles: list[dict[str, Any]]) -> str | None:
    """One synthetic frame through the first shipped bundle that is whole: frame -> bytes -> labels."""
    usable = [b["name"] for b in bundles if not b["error"] and {"compressor", "segmenter"} <= set(b["roles"])]
    if not usable or _packages.versions()["onnxruntime"] is None:
        return None
    import numpy as np

    from ..engine.bundle import load_bundle
    from ..engine.placement import Placement
    from ..engine.roles import Compressor, Segmenter

    bundle = load_bundle(usable[0])
    height, width = 61, 83  # no multiple of any stride
    ramp = np.add.outer(np.arange(height), np.arange(width))
    frame = np.stack([ramp, ramp // 2, 255 - ramp], axis=-1).astype(np.uint8)
    header = bundle.header(height, width)
    with Compressor(bundle, Placement(threads=1)) as compressor, Segmenter(bundle, Placement(threads=1)) as segmenter:
        (payload,) = compressor.encode(frame[None], header)
        labels = segmenter.labels(segmenter.entropy_decode([payload], header), (height, width))
    if labels.shape != (1, height, width) or labels.dtype != np.uint8 or labels.max() >= len(bundle.classes):
        raise VerificationError(f"expected labels 1x{height}x{width} below {len(bundle.classes)}, found {labels.shape}")
    return f"{bundle.name}: {width}x{height} frame -> {len(payload)} bytes -> {len(np.unique(labels))} classes"


def _text(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        f"latentseg {report['latentseg']} on Python {report['python']}, {machine['os']} {machine['architecture']}",
        f"{machine['cpu']}, {machine['cores']} usable core(s), {machine['memory_gib']} GiB",
        *_gpu_lines(report["gpu"]),
        "",
        "packages",
    ]
    rows = []
    for name, version in report["packages"].items():
        package = _packages.PACKAGES[name]
        missing = f"-  would bring {package.brings}: {package.get}" if package.brings else "-  not used by this version"
        rows.append((f"  {name}", version or missing))
    if report["providers"]:
        rows.append(("  providers", ", ".join(report["providers"])))
    lines += [_common.table(rows), ""]
    native = report["kernels"] == "native"
    slow = "NumPy only, which is much slower: install latentseg from a wheel, or with a C++ compiler"
    lines.append("kernels   " + ("native (C++)" if native else slow))
    if not report["bundles"]:
        lines.append("bundles   none shipped with this installation")
    for bundle in report["bundles"]:
        state = bundle["error"] or "files verified: " + ", ".join(bundle["roles"])
        lines.append(f"bundle    {bundle['name']}: {state}")
    for built in report["built"]:
        lines += _built_lines(built)
    for test in report["tests"]:
        detail = test["detail"] or "wants onnxruntime and a shipped bundle"
        lines.append(f"test      {test['name']}: {test['result']} in {test['seconds']:.2f} s ({detail})")
    return "\n".join(lines)


def _gpu_lines(gpu: dict[str, Any]) -> list[str]:
    driver = f"driver {gpu['driver'] or 'of unknown version'}, CUDA up to {gpu['cuda']}"
    if not gpu["devices"]:
        return [f"no GPU: {gpu['reason']}; one would bring --backend tensorrt or torch, --provider cuda"]
    return [
        f"GPU {device['name']}, compute capability {device['capability'] / 10}, "
        f"{_common.human_bytes(device['memory'])}, {driver}"
        for device in gpu["devices"]
    ]


def _built_lines(built: dict[str, Any]) -> list[str]:
    from ..engine.tensorrt.api import dotted

    name = built["bundle"]
    state = built["kernels_error"] or f"for compute capability {dotted(built['kernels'])}"
    if not built["kernels"] and not built["kernels_error"]:
        state = f"none; the decode on a GPU wants them: latentseg build {name} --target kernels"
    lines = [f"built     {name}, kernels: {state}"]
    for engine in built["engines"]:
        state = engine["error"] or f"{engine['version']}, compute capability {dotted(engine['archs'])}"
        lines.append(f"built     {name}, {engine['file']}: {state}")
    if not built["engines"]:
        command = f"latentseg build {name} --target tensorrt (or tensorrt-rtx)"
        lines.append(f"built     {name}, engines: none; --backend tensorrt wants them: {command}")
    return lines
