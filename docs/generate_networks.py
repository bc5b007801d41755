"""Write docs/networks.md: parameters and costs of every network, counted; a test checks that the page is current.

python docs/generate_networks.py            # rewrite docs/networks.md
python docs/generate_networks.py --check    # exit 1 if it is not current
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentseg.models import registry
from latentseg.models.complexity import count
from latentseg.models.kakaiya_segmenters import unused_in_the_paper

PAGE = Path(__file__).resolve().parent / "networks.md"
FRAME = (1024, 2048)  # of Cityscapes

INTRO = """\
# The networks

Made by `python docs/generate_networks.py`, which builds each network of the registry without weights and counts; do not
edit by hand.

One MAC is one multiply-accumulate of a convolution or a linear layer; normalisation, activations, pooling,
interpolation and matrix products count nothing. A transposed convolution counts over its input. **Parameters** are
those that inference uses. M is 1e6, G is 1e9. The last column is the MACs of one frame of 1024x2048, or of its latent.

**Paper** is the number that the paper prints, and **by its rule** is this network counted as the paper counted.
"""

NOTES = """\
How the papers counted:

- **Kakaiya et al. 2023**, Table I ("Flops"): 840x840 pixels, 21 classes. A convolution is its MACs plus 1 an output
  element if it has a bias; batch norm 2 an element, a ReLU layer 1, max pooling 1 an input element. Parameters are all
  that training builds: the auxiliary head, and for net_seg,D' also two stages of ResNet-50 that never run. The latent
  of d = 3 is 52x52 in net_seg,D' (840 pixels give 53).
- Its RGB network is printed in two parts, net_seg,E and net_seg,D, added up here: 0.12 and 53.40 M (BL1), 55.11 and
  513.40 G (BL2, BL3). BL1's 35.11 G for net_seg,E is reproduced by nothing.
- **Torfason et al. 2018** ("FLOPs"): MACs of convolutions and of the last linear layer at 224x224 pixels or 28x28
  positions, 1000 classes, without encoder and decoder. cResNets are counted for 32 channels; 8 or 16 cost up to 0.4 %
  less. No parameters are printed, and no cost of a segmenter: those are counted at 320x320 pixels, 21 classes.
- (a) Not in the source at hand, but from memory of the paper; to be checked. The encoder's kernel sizes follow from it.
  The decoder's do not: 2.85 G is reproduced by none that was tried, so it mirrors the encoder.
- The compact networks are this project's own. Segmenters: 360x480 pixels, 11 classes; classifiers: 64x64 pixels, 10
  classes; latents of 32 channels.
"""


@dataclass(frozen=True)
class Row:
    """One line: a network, the input that it is counted at, and what the paper prints of it.

    part: "compressor" or "decompressor" of a codec, "" for the whole. shape: of the input, batch axis included.
    paper_parameters in M, paper_cost in G, as printed; None where the paper is silent. table_rule: whether the paper
    counted by the rule of Table I, and not by MACs. note: a mark behind its cost. frame: whether it takes whole frames.
    """

    text: str
    name: str
    shape: tuple[int, ...]
    part: str = ""
    paper_parameters: float | None = None
    paper_cost: float | None = None
    table_rule: bool = False
    note: str = ""
    frame: bool = True

    def counted(self) -> Counted:
        """Its numbers."""
        with torch.device("meta"):
            whole: Any = registry.create(self.name)
            kakaiya = self.name.startswith(("kakaiya-rgb", "kakaiya-latent"))
            trained: Any = registry.create(self.name, aux=True) if kakaiya else whole
        parameters = sum(p.numel() for p in (getattr(trained, self.part) if self.part else trained).parameters())
        if self.name.startswith("kakaiya-latent"):
            parameters += sum(unused_in_the_paper().values())
        module = getattr(whole, self.part) if self.part else whole
        found = count(module, self.shape)
        frame = None
        if self.frame:
            channels = self.shape[1]
            stride = 1 if channels == 3 else whole.stride if self.part else whole.stride_in
            frame = count(module, (1, channels, FRAME[0] // stride, FRAME[1] // stride)).macs / 1e9
        rule = found.table_rule if self.table_rule else found.macs
        return Counted(found.parameters / 1e6, parameters / 1e6, found.macs / 1e9, rule / 1e9, frame)

    def cells(self) -> list[str]:
        """The line's cells."""
        found = self.counted()
        printed = "–" if self.paper_cost is None else f"{self.paper_cost:.2f} {self.note}".rstrip()
        return [
            self.text,
            f"`{self.name}`",
            f"{self.shape[2]}x{self.shape[3]}x{self.shape[1]}",
            f"{found.parameters:.2f}",
            "–" if self.paper_parameters is None else f"{self.paper_parameters:.2f}",
            "–" if self.paper_parameters is None else f"{found.rule_parameters:.2f}",
            f"{found.macs:.3f}",
            printed,
            "–" if self.paper_cost is None else f"{found.rule_cost:.3f}",
            "–" if found.frame is None else f"{found.frame:.1f}",
        ]


@dataclass(frozen=True)
class Counted:
    """Parameters in M, used by inference and by the paper's rule; G of MACs, by the rule, and of a frame in MACs."""

    parameters: float
    rule_parameters: float
    macs: float
    rule_cost: float
    frame: float | None


def _kakaiya_rows() -> list[Row]:
    pixels = (1, 3, 840, 840)
    rows = [
        Row(f"net_C, d = {d}", f"kakaiya-codec-d{d}", pixels, "compressor", m, g, True)
        for d, m, g in ((1, 0.12, 16.40), (2, 0.19, 18.13), (3, 0.27, 18.57))
    ]
    rows += [
        Row(f"net_D, d = {d}", f"kakaiya-codec-d{d}", (1, 16, side, side), "decompressor", m, g, True)
        for d, side, m, g in ((1, 210, None, None), (2, 105, 0.31, 9.48), (3, 53, None, None))
    ]
    rows.append(Row("net_seg on RGB", "kakaiya-rgb", pixels, "", 53.52, 568.51, True))
    rows += [
        Row(f"net_seg,D', d = {d}", f"kakaiya-latent-d{d}", (1, 16, side, side), "", 53.41, g, True)
        for d, side, g in ((1, 210, 2053.53), (2, 105, 513.41), (3, 52, 125.93))
    ]
    return rows


def _torfason_rows() -> list[Row]:
    pixels, latent = (1, 3, 224, 224), (1, 32, 28, 28)
    rows = [
        Row(f"encoder, C = {c}", f"torfason-codec-c{c}", pixels, "compressor", paper_cost=g, note="(a)")
        for c, g in ((8, None), (16, None), (32, 3.56))
    ]
    rows += [
        Row(f"decoder, C = {c}", f"torfason-codec-c{c}", (1, c, 28, 28), "decompressor", paper_cost=g, note="(a)")
        for c, g in ((8, None), (16, None), (32, 2.85))
    ]
    rows += [
        Row(f"ResNet-{d}", f"torfason-resnet{d}", pixels, paper_cost=g, frame=False)
        for d, g in ((50, 3.86), (71, 5.38))
    ]
    rows += [
        Row(f"cResNet-{d}", f"torfason-cresnet{d}", latent, paper_cost=g, frame=False)
        for d, g in ((39, 2.95), (51, 3.83), (72, 5.36))
    ]
    rows += [Row(f"ResNet-{d}, DeepLab", f"torfason-deeplab-resnet{d}", (1, 3, 320, 320)) for d in (50, 71)]
    rows += [Row(f"cResNet-{d}, DeepLab", f"torfason-deeplab-cresnet{d}", (1, 32, 40, 40)) for d in (39, 51, 72)]
    return rows


def _compact_rows() -> list[Row]:
    pixels, latent = (1, 3, 360, 480), (1, 32, 45, 60)
    return [
        Row("codec's compressor", "compact-codec", pixels, "compressor"),
        Row("codec's decompressor", "compact-codec", latent, "decompressor"),
        Row("segmenter of RGB", "compact-rgb", pixels),
        Row("segmenter of latents", "compact-latent", latent),
        Row("segmenter of latents, unpacked", "compact-unpacked", latent),
        Row("DeepLab on RGB", "compact-deeplab", pixels),
        Row("DeepLab on latents", "compact-cdeeplab", latent),
        Row("ResNet", "compact-resnet", (1, 3, 64, 64), frame=False),
        Row("cResNet", "compact-cresnet", (1, 32, 8, 8), frame=False),
    ]


def rows() -> dict[str, list[Row]]:
    """The table's lines, by where the networks come from."""
    return {
        "Kakaiya et al. 2023": _kakaiya_rows(),
        "Torfason et al. 2018": _torfason_rows(),
        "Compact": _compact_rows(),
    }


def page() -> str:
    """The whole page as text."""
    heads = ["network", "registry name", "input (HxWxC)", "parameters, M", "paper", "by its rule", "MACs, G", "paper",
             "by its rule", "MACs of a frame, G"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"| --- | --- | --- | {' | '.join(['---:'] * 7)} |"]
    for source, block in rows().items():
        lines.append(f"| **{source}** |{' |' * (len(heads) - 1)}")
        lines += [f"| {' | '.join(row.cells())} |" for row in block]
    return "\n".join([INTRO, *lines, "", NOTES])


def main() -> int:
    """Rewrite the page, or with --check compare it."""
    generated = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == generated else 1
    PAGE.write_text(generated, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
