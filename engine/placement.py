"""Where a bundle's networks run, and in which precision: what every verb's --backend, --provider, ... say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .backends import BACKENDS, Backend, check_threads, open_backend
from .bundle import Bundle
from .manifest import CLASSIFYING_ROLES, LABELLING_ROLES

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Placement:
    """What runs the networks.

    Parameters
    ----------
    backend: a name of `BACKENDS`.
    threads: CPU threads that one run may use; None: as many as this process may use.
    provider: what the backend is to run on ("cpu", "cuda"); None: the backend's first choice. Never another in silence.
    precision: of the segmenters. A codec always runs in fp32: its symbols must be the ones it was trained with; a
    classifier in any other is an error.

    Raises UsageError for a name that does not exist.
    """

    backend: str = "onnxruntime"
    threads: int | None = None
    provider: str | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"unknown backend '{self.backend}'", hint=f"known: {', '.join(BACKENDS)}")
        BACKENDS[self.backend]().pick(self.provider)
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision '{self.precision}'", hint=f"known: {', '.join(PRECISIONS)}")
        check_threads(self.threads)

    def precision_of(self, role: str) -> str:
        """The precision that a role's model is to run in: a codec's always fp32, another's the one asked for."""
        return self.precision if role in LABELLING_ROLES | CLASSIFYING_ROLES else "fp32"

    def model_file(self, bundle: Bundle, role: str) -> Path:
        """The file that the backend runs for a role: ONNX, an exported program, or an engine built for this machine.

        Raises ArtifactError where the bundle lacks it, naming the command that makes it; UsageError where the backend
        never runs this role, or not in this precision.
        """
        precision = self.precision_of(role)
        if self.backend == "tensorrt":
            if role in CLASSIFYING_ROLES:
                raise UsageError(
                    f"the {role} on tensorrt: that backend goes from bytes to label maps, it does not classify",
                    hint="--backend onnxruntime",
                )
            from .tensorrt.sidecar import find_engine

            return find_engine(bundle, role, precision)
        if self.backend == "torch":
            if precision != "fp32":
                raise UsageError(
                    f"the torch backend runs fp32, asked for {precision}", hint="--backend onnxruntime or tensorrt"
                )
            return bundle.model_path(role, "torch")
        if precision == "fp16":
            raise UsageError(
                "fp16 on onnxruntime: a CPU computes it in fp32, and bundles have no such file",
                hint="--precision int8, or --backend tensorrt",
            )
        return bundle.model_path(role, precision)

    def open(self, bundle: Bundle, role: str) -> Backend:
        """The role's model, loaded. Raises as `model_file` and `open_backend`."""
        return open_backend(self.model_file(bundle, role), self.backend, self.threads, self.provider)
