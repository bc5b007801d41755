"""Checkpoints in safetensors: a run's whole state for resuming, and a network's weights with what names them.

Both are written to a temporary file beside the target and renamed, so that a kill leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ArtifactError, InputError, OutputError
from ..models import registry

FORMAT = "latentseg-checkpoint-1"


@dataclass(frozen=True)
class Weights:
    """A trained network: registry name, the factory's options, its tensors, and free-form facts about the training."""

    network: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def build(self) -> nn.Module:
        """The network in evaluation mode with these weights. Raises ArtifactError where they do not fit."""
        module = registry.create(self.network, **self.options)
        fill(module, self.tensors, "the checkpoint", self.network)
        return module.eval()

    @property
    def content_id(self) -> str:
        """SHA-256 over name, options and tensors: names a codec, whatever file it travels in."""
        return content_id(self.network, self.options, self.tensors)


def fill(module: nn.Module, tensors: dict[str, Tensor], source: str, network: str) -> None:
    """Put the tensors of `source` (for the message) into a network. Raises ArtifactError where they do not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n")[1:2]).strip()
        detail = first if len(first) <= 200 else first[:200] + " ..."
        raise ArtifactError(
            f"the weights of {source} do not fit network '{network}': {detail}",
            hint="use the network and the options that they were trained with",
        ) from None


def content_id(network: str, options: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over a network's name, options, and the names, shapes and bytes of its tensors in sorted order."""
    digest = hashlib.sha256(json.dumps([network, options], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON metadata atomically. Raises OutputError where that fails; an older file stays."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    text = {"format": FORMAT, **{k: json.dumps(v) for k, v in metadata.items()}}
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, str(temporary), metadata=text)
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OutputError(f"cannot write checkpoint {path}: {error}") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `save` wrote. Raises InputError or ArtifactError."""
    if not path.is_file():
        raise InputError(f"no such checkpoint: {path}", hint="train one first: latentseg train --help")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read checkpoint {path}: {error}") from None
    if text.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} is not a latentseg checkpoint: found format {text.get('format')!r}, expected {FORMAT!r}"
        )
    return tensors, {k: json.loads(v) for k, v in text.items() if k != "format"}


def save_weights(
    path: Path, network: str, options: dict[str, Any], tensors: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Write a trained network."""
    save(path, tensors, {"network": network, "options": options, "facts": facts})


def load_weights(path: Path, kinds: tuple[str, ...] = ()) -> Weights:
    """Read a trained network; `kinds` limits which kinds of the registry are accepted."""
    if path.is_dir():
        path = path / "model.safetensors"
    tensors, metadata = load(path)
    if "network" not in metadata or "step" in metadata:
        raise ArtifactError(
            f"{path} is a run's resume state, not a trained network", hint="use the run's model.safetensors"
        )
    weights = Weights(metadata["network"], metadata["options"], tensors, metadata["facts"])
    kind = registry.entry(weights.network).kind
    if kinds and kind not in kinds:
        raise ArtifactError(f"{path} holds a {kind} ('{weights.network}'), expected {' or '.join(kinds)}")
    return weights


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter tensors as a flat table, "index/key" to tensor."""
    flat = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            flat[f"{index}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """The inverse of `flatten_optimizer`, into an optimizer made over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
