"""Bundles by name: the shipped ones, those of LATENTSEG_BUNDLES, and names that are there twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from _tiny_bundle import write_tiny_bundle

from latentseg.engine.bundle import Bundle, load_bundle, named_bundles, shipped_bundles
from latentseg.errors import ArtifactError, InputError, UsageError


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two bundles and what is none, and the variable that names it (and another one, after a gap)."""
    write_tiny_bundle(tmp_path / "mine" / "one", name="its own name")
    write_tiny_bundle(tmp_path / "mine" / "two", ("compressor",))
    (tmp_path / "mine" / "notes").mkdir()
    write_tiny_bundle(tmp_path / "more" / "three")
    monkeypatch.setenv("LATENTSEG_BUNDLES", f"{tmp_path / 'mine'}{os.pathsep * 2}{tmp_path / 'more'}{os.pathsep}")
    return tmp_path / "mine"


def test_names_are_those_of_the_folders(mine: Path) -> None:
    found = named_bundles()
    assert list(found) == [*shipped_bundles(), "one", "two", "three"]
    assert found["one"] == (mine / "one",)
    assert load_bundle("one").path == mine / "one"
    assert load_bundle("one").name == "its own name"
    assert load_bundle("three").path == mine.parent / "more" / "three"
    with pytest.raises(UsageError, match=r"no bundle named 'its own name'; known: .*one, two, three") as caught:
        load_bundle("its own name")
    assert "LATENTSEG_BUNDLES" in caught.value.hint


def test_without_the_variable_there_are_the_shipped_ones(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("LATENTSEG_BUNDLES")
        else:
            monkeypatch.setenv("LATENTSEG_BUNDLES", value)
        assert named_bundles() == {name: (path,) for name, path in shipped_bundles().items()}
        with pytest.raises(UsageError, match="no bundle named 'one'"):
            load_bundle("one")


def test_a_name_that_is_there_twice_is_refused(mine: Path, tiny_bundle: Bundle) -> None:
    (shipped, where), *_ = shipped_bundles().items()
    for name, other in ((shipped, where), ("three", mine.parent / "more" / "three")):
        shutil.copytree(tiny_bundle.path, mine / name)
        with pytest.raises(UsageError, match=f"2 bundles are named '{name}'") as caught:
            load_bundle(name)
        assert str(other) in str(caught.value)
        assert str(mine / name) in str(caught.value)
        assert load_bundle(mine / name).path == mine / name
        assert load_bundle(str(mine / name)).path == mine / name
    assert load_bundle("one").path == mine / "one"  # the others keep their names


def test_one_folder_under_two_paths_is_one_bundle(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mine.parent / "link").symlink_to(mine)
    (shipped, where), *_ = shipped_bundles().items()
    roots = (mine, mine.parent / "link", mine, where.parent)
    monkeypatch.setenv("LATENTSEG_BUNDLES", os.pathsep.join(map(str, roots)))
    assert load_bundle("one").path == mine / "one"
    assert load_bundle(shipped).path == where


def test_a_folder_that_is_not_there_is_an_error(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSEG_BUNDLES", f"{mine}{os.pathsep}{mine / 'gone'}")
    with pytest.raises(UsageError, match=r"LATENTSEG_BUNDLES names '.*gone', which is no folder"):
        load_bundle("one")
    # A path does not ask for names, and says what is wrong with itself.
    assert load_bundle(mine / "one").roles == load_bundle(str(mine / "one")).roles
    with pytest.raises(InputError, match="no such folder"):
        load_bundle(str(mine / "nothing"))
    with pytest.raises(ArtifactError, match="is not a bundle"):
        load_bundle(mine / "notes")
