"""The frame around the verbs: help without optional packages, errors, exit codes, suggestions, docs/cli.md."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from latentseg import cli
from latentseg.errors import ArtifactError, LatentsegError

REPO = Path(__file__).resolve().parents[2]
HELP = [sys.executable, "-m", "latentseg.cli", "--help"]
OPTIONAL = ("torch", "onnxruntime", "onnx", "av", "PIL", "matplotlib", "skimage", "safetensors", "tensorrt", "triton")
OPTIONAL += ("zstandard", "constriction")
# Refuses to find the optional packages, as on a machine that has none of them, then runs the command line for each
# line of arguments on stdin and reports what heavy modules came in anyway.
BLOCKED = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
import contextlib, io
from latentseg import cli
for verb in ["", *cli.VERBS]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main([verb, "--help"] if verb else ["--help"])
    assert code == 0, (verb, code)
    assert out.getvalue().startswith("usage: latentseg"), verb
    assert "numpy" not in sys.modules, f"{{verb}} --help imports numpy"
"""


def test_help_of_every_verb_needs_nothing_optional() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_is_instant() -> None:
    def seconds(*command: str) -> float:
        """Of the processor: the machine may be busy with other things."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)

    bare = min(seconds("-c", "pass") for _ in range(3))
    assert min(seconds("-m", "latentseg.cli", "--help") for _ in range(5)) - bare < 0.15


def test_table_and_modules_agree() -> None:
    for verb, line in cli.VERBS.items():
        module = cli.load_verb(verb)
        assert line == module.HELP
        assert module.__doc__
        assert callable(module.run)


def test_docs_are_current() -> None:
    generator = runpy.run_path(str(REPO / "docs" / "generate_cli.py"), run_name="generate_cli")
    committed = generator["PAGE"].read_text(encoding="utf-8")
    assert generator["is_current"](committed, generator["page"]()), "run: python docs/generate_cli.py"


def test_no_verb_prints_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "verbs:" in err


def test_help_of_a_verb_by_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "pack"]) == 0
    assert "usage: latentseg pack" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("latentseg ")


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["pakc"], "unknown verb 'pakc'", "did you mean 'pack'?"),
        (["zzzzzz"], "unknown verb 'zzzzzz'", "latentseg --help"),
        (["--bits", "4"], "expected a verb first, found the option '--bits'", "latentseg --help"),
        (
            ["pack", "a.npy", "-o", "b", "--codr", "context"],
            "unknown option '--codr'",
            "did you mean '--coder'?",
        ),
        (["pack", "a.npy", "-o", "b", "--bits", "9"], "argument --bits: invalid choice: 9", "latentseg pack --help"),
        (
            ["pack", "a.npy", "-o", "b", "--coder", "huffman"],
            "argument --coder: invalid choice: 'huffman'",
            "latentseg pack --help",
        ),
        (
            ["pack", "a.npy", "-o", "b", "--tile", "4", "0"],
            "argument --tile: expected an integer of at least 1",
            "latentseg pack --help",
        ),
        (["pack", "a.npy"], "the following arguments are required: -o/--output", "latentseg pack --help"),
        (["unpack", "a", "b", "-o", "c"], "unknown argument 'b'", "latentseg unpack --help"),
    ],
)
def test_usage_errors(argv: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert f"hint: {hint}\n" in err


class Fails:
    """Stands in for a verb whose run raises."""

    __doc__ = "fails"
    HELP = "fails"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: object) -> None:
        pass

    def run(self, args: object) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words", "traceback"),
    [
        (
            ArtifactError("expected a, found b", hint="do c"),
            4,
            ["latentseg pack: error: expected a, found b", "hint: do c"],
            False,
        ),
        (KeyboardInterrupt(), 130, ["latentseg pack: interrupted"], False),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.lseg"),
            7,
            ["no space left to write the output: out.lseg"],
            False,
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 3, ["Permission denied: x"], False),
        (MemoryError("Unable to allocate 7 TiB"), 4, ["out of memory: Unable to allocate 7 TiB"], False),
        (ZeroDivisionError("division by zero"), 1, ["this is a bug in latentseg", "latentseg doctor --json"], True),
    ],
)
def test_what_a_verb_may_raise(
    error: BaseException,
    code: int,
    words: list[str],
    traceback: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("LATENTSEG_DEBUG", raising=False)
    monkeypatch.setattr(cli, "load_verb", lambda name: Fails(error))
    monkeypatch.setattr(cli, "_drop_stdout", lambda: None)
    assert cli.main(["pack"]) == code
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert ("Traceback" in err) == traceback


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_the_traceback(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "load_verb", lambda name: Fails(LatentsegError("nope")))
    monkeypatch.setenv("LATENTSEG_DEBUG", "1" if how == "environment" else "0")
    assert cli.main(["pack", *(["--debug"] if how == "flag" else [])]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_reader_of_the_pipe_goes_away() -> None:
    # The pipe's reading end is closed before the command starts: its first write must fail, quietly.
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(HELP, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == ""


def test_subcommands_have_the_common_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class WithSubcommands(Fails):
        def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # type: ignore[override]
            parser.add_subparsers(required=True).add_parser("codec").add_argument("--steps")

        def run(self, args: argparse.Namespace) -> int:  # type: ignore[override]
            assert args.quiet
            return 0

    monkeypatch.setattr(cli, "load_verb", lambda name: WithSubcommands(Exception()))
    assert cli.main(["train", "codec", "--quiet", "--debug"]) == 0
    assert cli.main(["train", "codec", "--step", "3"]) == 2
    assert "did you mean '--steps'?" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants /dev/full, which Linux has")
def test_full_disk_on_stdout() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(HELP, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 7
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_fits_a_terminal_of_100_columns(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = cli.verb_parser(verb)
    for part in (parser, *cli.subparsers(parser)):
        wide = [line for line in part.format_help().splitlines() if len(line) > 100]
        assert not wide or verb in ("train", "eval", "export", "verify")


def test_every_verb_has_a_module() -> None:
    modules = [f"latentseg.cli.{verb.replace(' ', '_')}" for verb in cli.VERBS]
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
