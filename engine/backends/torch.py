"""PyTorch: an exported program (.pt2) compiled for a CUDA GPU, where TensorRT is not available and as its reference.

A program holds the deployed graph in ATen operators, with its weights: a machine needs torch to run it, but none of
this project's networks (`export/program.py` writes it).

A program is code. `torch.export.load` falls back to plain unpickling where the safe kind fails, and evaluates the
expressions of the file's shapes, so that whoever wrote a .pt2 file can run what they like on the machine that loads it.
The guard is the SHA-256 in the bundle's manifest, which `Bundle.model_path` checks: it shows that the file is the one
that was exported with the bundle. Load no programs from bundles whose source you do not trust.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...errors import ArtifactError, BackendInactiveError, BackendMissingError, missing_extra
from .base import Backend, TensorSpec, first_line

# A variant is compiled for the first shape, for each dimension that turns out to vary, and for sizes of 1 (batch,
# height, width): up to a dozen, above torch's limit of 8.
_MOST_VARIANTS = 32


class TorchBackend(Backend):
    """An exported program on torch, in float32: provider "cuda" (the default) compiled, "cpu" as it is, for checks.

    On "cuda" `torch.compile` makes Triton kernels on the machine itself: the first run of the first shape, and of the
    first other ones, takes seconds to minutes; afterwards any shape runs at once. What cannot be compiled is an error,
    never run uncompiled. On "cpu" the program's operators run one by one: compiling them needs a C++ compiler, takes
    longer than the checks that this provider is for, and would check another program than the GPU's.

    A reference has to be exact, so float32 is float32: loading switches TF32 off, for the whole process, which torch
    otherwise uses in convolutions. A run is one copy to the device, the program, and one copy back, which waits for it.
    `threads` sets torch's threads for the whole process, too. CUDA_VISIBLE_DEVICES chooses the GPU.
    """

    name: ClassVar[str] = "torch"
    providers: ClassVar[tuple[str, ...]] = ("cuda", "cpu")

    def _load(self) -> tuple[TensorSpec, TensorSpec, str]:
        try:
            import torch
        except ImportError as error:
            raise missing_extra("torch", "train") from error
        self._check_machine(torch)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch 2.11's own, about how it reads the weights
                program = torch.export.load(self.path)
            ends = self._ends_of(program)
            if self.asked != "cpu":
                program = _moved(program, self.asked)
            # The guards that export recorded would refuse frames of one stride: they come from how it told sizes of 1
            # from others while it traced. The ranges of the dimensions are checked all the same.
            module = program.module(check_guards=False)
        except ArtifactError:
            raise
        except Exception as error:  # what a damaged archive raises is of no common class
            raise ArtifactError(
                f"torch {torch.__version__} cannot load {self.path}: {first_line(error)}",
                hint="export the bundle again with --programs, or install the torch it was exported with",
            ) from error
        self._device = torch.device(self.asked)
        self._run_program = module if self.asked == "cpu" else _compiled(torch, module)
        return *ends, self._device_name(torch)

    def _check_machine(self, torch: Any) -> None:
        if self.asked == "cpu":
            return
        if not torch.cuda.is_available():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            raise BackendMissingError(
                f"asked for cuda, found: torch {torch.__version__}, {built}, sees {torch.cuda.device_count()} GPUs",
                hint="--provider cpu checks the program without one; latentseg doctor shows what this machine has",
            )
        if importlib.util.find_spec("triton") is None:
            raise missing_extra("triton", "triton")

    def _ends_of(self, program: Any) -> tuple[TensorSpec, TensorSpec]:
        signature = program.graph_signature
        names = (signature.user_inputs, signature.user_outputs)
        if any(len(side) != 1 for side in names):
            raise ArtifactError(
                f"{self.path}: {len(names[0])} inputs and {len(names[1])} outputs, expected one of each"
            )
        nodes = {node.name: node for node in program.graph.nodes}
        source, result = (self._spec(side[0], nodes[side[0]].meta["val"]) for side in names)
        return source, TensorSpec("output", result.dtype, result.shape)  # the graph's name for it is an operator's

    def _spec(self, name: str, value: Any) -> TensorSpec:
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in ("uint8", "float32", "int64"):
            raise ArtifactError(f"{self.path}: {name} is {dtype}, expected uint8, float32 or int64")
        return TensorSpec(name, np.dtype(dtype), tuple(d if isinstance(d, int) else None for d in value.shape))

    def _device_name(self, torch: Any) -> str:
        tensor = torch.zeros(1, device=self._device)  # read back where it truly is
        if tensor.device.type != self.asked:
            raise BackendInactiveError(f"asked for {self.asked}, found: tensors on {tensor.device}")
        return f"cuda: {torch.cuda.get_device_name(tensor.device)}" if tensor.is_cuda else "cpu"

    def _run(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        import torch

        if not array.flags.writeable:  # torch has no read-only tensors
            array = array.copy()
        try:
            with torch.no_grad():
                output = self._run_program(torch.from_numpy(array).to(self._device))
            if output.device.type != self.asked:
                raise BackendInactiveError(f"asked for {self.asked}, found: the output on {output.device}")
            result: npt.NDArray[Any] = output.cpu().numpy()
        except BackendMissingError:
            raise
        except Exception as error:  # torch.compile's and CUDA's exceptions share no base but Exception
            raise ArtifactError(
                f"{self.path.name} failed on input {list(array.shape)}: {first_line(error)}",
                hint="latentseg doctor shows what this machine has; latentseg verify checks the bundle on it",
            ) from error
        return result

    def _close(self) -> None:
        del self._run_program


def _moved(program: Any, device: str) -> Any:
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _compiled(torch: Any, module: Any) -> Any:
    import torch._dynamo.config as config

    config.recompile_limit = max(config.recompile_limit, _MOST_VARIANTS)
    # fullgraph: what does not compile, and a variant above the limit, is an exception and not run uncompiled.
    return torch.compile(module, fullgraph=True)
