"""Check that a bundle computes on this machine what it computed where it was exported.

Hashes, shapes and types at the smallest, a usual and a large frame, NaN, a batch against its frames one by one, symbols
exact through the coder (native against NumPy), and the outputs that torch recorded at export: labels, and of
classifiers the probabilities, as shares of the likeliest class's. Needs no torch.
Exit code 5 when a check fails, 4 when a file was changed.
"""

from __future__ import annotations

import argparse

from . import _common

HELP = "check that a bundle computes what it should on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", nargs="?", default=_common.DEFAULT_BUNDLE, metavar="NAME|DIR", help="default: %(default)s"
    )
    _common.add_backend(parser, precision=False)
    _common.add_json(parser, "what was found")


def run(args: argparse.Namespace) -> int:
    from ..engine.bundle import load_bundle
    from ..export.verify import verify_bundle

    found = verify_bundle(load_bundle(args.bundle), _common.placement(args))
    if args.json:
        _common.emit(found)
    else:
        reference = found["reference"]
        differ = ", ".join(f"{k} {v:.3%}" for k, v in reference.items()) if isinstance(reference, dict) else reference
        print(
            f"{found['bundle']}: verified on {found['backend']} at {len(found['sizes'])} sizes; against torch: {differ}"
        )
    return 0
