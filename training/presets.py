"""Complete settings of a training in a TOML file, by the names of the command line's flags.

    train = "classifier"            # which training
    network = "torfason-resnet50"   # --network torfason-resnet50
    size = 224
    [option]                        # --option KEY=VALUE
    classes = 10

The shipped ones lie in `configs/` and are known by their names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError

FOLDER = Path(__file__).resolve().parent / "configs"


def preset_names() -> list[str]:
    """The shipped presets."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_preset(spec: str) -> dict[str, Any]:
    """A preset by its shipped name, or from a TOML file.

    Raises UsageError for a name that is neither, InputError for a file that cannot be read or is no TOML.
    """
    shipped = FOLDER / f"{spec}.toml"
    path = shipped if spec in preset_names() else Path(spec)
    if path is not shipped and not path.is_file():
        raise UsageError(f"no preset named '{spec}', and no such file", hint=f"shipped: {', '.join(preset_names())}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the preset {path}: {error}") from None


def preset_words(
    preset: dict[str, Any], source: str, what: str, flags: Sequence[str], switches: Sequence[str]
) -> list[str]:
    """A preset as words of a command line: flags and their values.

    what: the training that it must be for.  flags: those that this training has ("--lr").  switches: of them, those
    that take no value; true and false are theirs alone.  source: for messages.
    Raises UsageError for another training's preset, for a key that is no flag, and for a value of the wrong kind.
    """
    found = preset.get("train")
    if not isinstance(found, str):
        raise UsageError(f"{source} does not say what it trains", hint=f'put train = "{what}" into it')
    if found != what:
        raise UsageError(
            f"{source} is for `train {found}`, not `train {what}`", hint=f"latentseg train {found} --config {source}"
        )
    words: list[str] = []
    for key, value in preset.items():
        if key == "train":
            continue
        flag = f"--{key}"
        if flag not in flags or key in {"config", "help"}:
            raise UsageError(f"{source}: unknown key '{key}'", hint=f"keys are the flags of `latentseg train {what}`")
        if isinstance(value, bool) != (flag in switches):
            kind = "true or false" if flag in switches else "a value"
            raise UsageError(f"{source}: {key} is {str(value).lower()}, expected {kind}", hint=f"or leave {key} out")
        if isinstance(value, dict):
            words += [word for option, number in value.items() for word in (flag, f"{option}={number}")]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif not isinstance(value, bool):
            words += [flag, str(value)]
        elif value:
            words.append(flag)
    return words
