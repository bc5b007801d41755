"""Write docs/cli.md out of every verb's own --help; a test checks that the committed page is current.

python docs/generate_cli.py            # rewrite docs/cli.md
python docs/generate_cli.py --check    # exit 1 if it is not current
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from latentseg import cli

PAGE = Path(__file__).resolve().parent / "cli.md"
INTRO = """\
# The command line

Made from `--help` by `python docs/generate_cli.py`; do not edit by hand.
"""


def page() -> str:
    """The whole page as text."""
    os.environ["COLUMNS"] = "100"
    parts = [INTRO, f"```text\n{cli.top_help().rstrip()}\n```\n"]
    for verb in cli.VERBS:
        parser = cli.verb_parser(verb)
        for part in (parser, *cli.subparsers(parser)):
            heading = "##" if part is parser else "###"
            parts.append(f"{heading} {part.prog}\n\n```text\n{part.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def is_current(committed: str, generated: str) -> bool:
    """Equal but for white space: Python versions break usage lines at different places."""
    return committed.split() == generated.split()


def main() -> int:
    """Rewrite the page, or with --check compare it."""
    generated = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and is_current(PAGE.read_text(encoding="utf-8"), generated) else 1
    PAGE.write_text(generated, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
