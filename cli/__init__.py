"""The command line: `latentseg VERB ...`, one module a verb (`bench entropy`, of two words: bench_entropy.py).

A verb's module has `HELP` (one line), a docstring (the long help), `add_arguments(parser)` and `run(args) -> int`. The
table below is static and only the chosen verb is imported, so that `--help` is instant and needs nothing optional.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from ..errors import InputError, LatentsegError, OutputError, UsageError

VERBS: dict[str, str] = {
    "doctor": "say what this machine can run, and test it for a second",
    "demo": "the main job on a real clip: encode, segment from the bytes, compare with decoding first",
    "encode": "compress a video, image folder, camera or stream into a .lseg stream",
    "decode": "turn a .lseg stream back into a video or a folder of PNGs",
    "run": "segment or classify a .lseg stream straight from its bytes (or any source, encoded first)",
    "bundles": "list the bundles that have a name",
    "inspect": "show what is in a .lseg stream, bundle, .onnx or .npy file",
    "pack": "put integer latents (.npy) of any codec into a .lseg stream",
    "unpack": "get the latents of a .lseg stream back as .npy, exactly",
    "bench": "measure bytes-to-labels against decoding first, arms interleaved",
    "bench entropy": "measure the entropy coders beside zstd, zlib and constriction",
    "train": "train a codec, a segmenter or a classifier, or a codec together with one",
    "eval": "score a codec, a segmenter or a classifier on labelled data",
    "export": "turn checkpoints into ONNX files and a bundle",
    "build": "build GPU kernels, TensorRT engines or an int8 model of a bundle",
    "verify": "check that a bundle computes what it should on this machine",
}

EXIT_CODES = """\
exit codes:
  0 ok   1 internal bug   2 usage   3 input unreadable, truncated or damaged
  4 artefact does not fit this machine or version   5 verification or floor failed
  6 asked-for backend or package missing   7 some frames or streams lost, or no space to write them
  130 interrupted   141 the reader of the output pipe went away"""

_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended, as for every other tool in a pipe
_OUT_OF_MEMORY = 4


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UsageErrors, printed like every other error, with the closest name.

    Options cannot be abbreviated: what is unambiguous today would clash with tomorrow's option.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _formatter, **options})

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse everything; an unknown option is answered with the closest known one."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            known = [name for parser in (self, *subparsers(self)) for name in parser.options()]
            name = unknown[0].split("=", 1)[0]
            kind = "option" if name.startswith("-") else "argument"
            raise UsageError(f"unknown {kind} {name!r}", hint=_closest(name, known) or f"{self.prog} --help")
        return args

    def options(self) -> list[str]:
        """Every option string of this parser."""
        return [name for action in self._actions for name in action.option_strings]

    def switches(self) -> list[str]:
        """The option strings that take no value."""
        return [name for action in self._actions if action.nargs == 0 for name in action.option_strings]


def subparsers(parser: argparse.ArgumentParser) -> list[Parser]:
    """The parsers of a verb's own subcommands (`train codec`), in order; none for most verbs."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [choice for action in actions for choice in action.choices.values()]


def _closest(name: str, known: Sequence[str]) -> str:
    import difflib

    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else ""


def _formatter(prog: str) -> argparse.HelpFormatter:
    # One width for everybody up to 100 columns, so that docs/cli.md does not depend on the terminal that made it.
    import shutil

    width = min(100, shutil.get_terminal_size().columns) - 2
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=width)


def top_help() -> str:
    """The text of `latentseg --help`."""
    from .. import __version__

    verbs = "\n".join(f"  {name + '  ':<9}{line}" for name, line in VERBS.items())
    return (
        f"usage: latentseg VERB [OPTION ...]\n\n"
        f"latentseg {__version__}: bytes in, masks out, and no pixel is ever decoded.\n\n"
        f"verbs:\n{verbs}\n\n"
        f"options:\n"
        f"  -h, --help     this text; `latentseg VERB --help` for a verb's own\n"
        f"  --version      print the version\n\n"
        f"stdout is for results: JSON Lines from run, a report from verbs that make one (with --json as\n"
        f"one JSON line), the stream itself with `-o -`. What else people should know goes to stderr.\n"
        f"LATENTSEG_DEBUG=1 (or --debug after the verb) shows tracebacks.\n\n"
        f"{EXIT_CODES}\n"
    )


def load_verb(name: str) -> ModuleType:
    """The module of one verb."""
    import importlib

    return importlib.import_module(f".{name.replace(' ', '_')}", __name__)


def verb_parser(name: str) -> Parser:
    """The parser of one verb: its docstring is the description."""
    from . import _common

    module = load_verb(name)
    parser = Parser(
        prog=f"latentseg {name}",
        description=(module.__doc__ or module.HELP).strip(),
    )
    module.add_arguments(parser)
    for leaf in subparsers(parser) or [parser]:
        _common.add_messages(leaf)
    parser.set_defaults(run=module.run)
    return parser


def _split(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The verb that a command line begins with, of one word or two, and what follows it; argv is not empty."""
    two = " ".join(argv[:2])
    return (two, argv[2:]) if two in VERBS else (argv[0], argv[1:])


def _dispatch(argv: Sequence[str]) -> int:
    if not argv:
        sys.stderr.write(top_help())
        return UsageError.exit_code
    name, rest = _split(argv)
    if name in {"-h", "--help", "help"}:
        if name == "help" and rest:
            return _dispatch([_split(rest)[0], "--help"])
        sys.stdout.write(top_help())
        return 0
    if name == "--version":
        from .. import __version__

        sys.stdout.write(f"latentseg {__version__}\n")
        return 0
    if name not in VERBS:
        if name.startswith("-"):
            raise UsageError(f"expected a verb first, found the option {name!r}", hint="latentseg --help")
        raise UsageError(f"unknown verb {name!r}", hint=_closest(name, list(VERBS)) or "latentseg --help")
    args = verb_parser(name).parse_all(rest)
    return int(args.run(args))


def _complain(verb: str, message: str, hint: str = "") -> None:
    sys.stderr.write(f"latentseg{verb}: error: {message}\n" + (f"hint: {hint}\n" if hint else ""))


def _drop_stdout() -> None:
    # What is still buffered can never be delivered; without this the interpreter complains once more when it exits.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process


def _hold_descriptors() -> None:
    """Put something in the place of standard streams that were closed (`>&-`).

    The next file to be opened would else get the number of stdout, and whatever a library prints. What is written to a
    closed stdout fails, so that no result is lost in silence; messages to a closed stderr vanish.
    """
    for descriptor, access in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, access)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never raises for a user's mistake."""
    _hold_descriptors()
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = f" {_split(argv)[0]}" if argv and _split(argv)[0] in VERBS else ""
    debug = "--debug" in argv or os.environ.get("LATENTSEG_DEBUG", "") not in {"", "0"}
    try:
        code = _dispatch(argv)
        sys.stdout.flush()  # here, where a full disk or a closed pipe still has somebody to answer for it
        return code
    except SystemExit as stop:  # argparse's own --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except LatentsegError as error:
        if debug:
            _traceback()
        _complain(verb, str(error), error.hint)
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # it is what could not be written; the interpreter would try once more
            _drop_stdout()
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            _traceback()
        sys.stderr.write(f"latentseg{verb}: interrupted\n")
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return _BROKEN_PIPE
    except MemoryError as error:
        if debug:
            _traceback()
        detail = f": {error}" if str(error) else ""
        _complain(
            verb, f"out of memory{detail}", "use a smaller --batch, smaller frames, or a machine with more memory"
        )
        return _OUT_OF_MEMORY
    except OSError as error:
        if debug:
            _traceback()
        return _os_error(verb, error)
    except Exception:
        _traceback()
        _complain(
            verb,
            "this is a bug in latentseg, not your mistake",
            "please report it with the lines above and the output of `latentseg doctor --json`",
        )
        return 1


def _os_error(verb: str, error: OSError) -> int:
    where = f": {error.filename}" if error.filename else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        _drop_stdout()  # it may be the full file, and what it still buffers would fail again at exit
        _complain(verb, f"no space left to write the output{where}", "free some space or choose another place with -o")
        return OutputError.exit_code
    if error.errno == errno.EBADF:
        _drop_stdout()
        _complain(verb, "cannot write to stdout: it is closed", "open it, or write to a file")
        return OutputError.exit_code
    _complain(verb, f"{error.strerror or error}{where}")
    return InputError.exit_code


def _traceback() -> None:
    import traceback

    traceback.print_exc()
