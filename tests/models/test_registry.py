"""The registry of names: stable, lazy, and helpful about typos."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from latentseg.errors import UsageError
from latentseg.models import registry


def test_names_are_stable() -> None:
    assert registry.names() == [
        "kakaiya-codec-d1",
        "kakaiya-codec-d2",
        "kakaiya-codec-d3",
        "kakaiya-rgb",
        "kakaiya-latent-d1",
        "kakaiya-latent-d2",
        "kakaiya-latent-d3",
        "torfason-codec-c8",
        "torfason-codec-c16",
        "torfason-codec-c32",
        "torfason-resnet50",
        "torfason-resnet71",
        "torfason-cresnet39",
        "torfason-cresnet51",
        "torfason-cresnet72",
        "torfason-deeplab-resnet50",
        "torfason-deeplab-resnet71",
        "torfason-deeplab-cresnet39",
        "torfason-deeplab-cresnet51",
        "torfason-deeplab-cresnet72",
        "compact-codec",
        "compact-rgb",
        "compact-latent",
        "compact-unpacked",
        "compact-resnet",
        "compact-cresnet",
        "compact-deeplab",
        "compact-cdeeplab",
    ]
    assert registry.names("rgb_segmenter") == [
        "kakaiya-rgb", "torfason-deeplab-resnet50", "torfason-deeplab-resnet71", "compact-rgb", "compact-deeplab",
    ]  # fmt: skip
    assert registry.names("latent_classifier") == [
        "torfason-cresnet39", "torfason-cresnet51", "torfason-cresnet72", "compact-cresnet",
    ]  # fmt: skip


def test_importing_the_registry_imports_no_torch() -> None:
    code = "import sys; from latentseg.models import registry; registry.names(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("name", registry.names())
def test_every_target_exists(name: str) -> None:
    module = registry.entry(name).target.partition(":")[0]
    assert importlib.util.find_spec(f"latentseg.models.{module}") is not None


def test_unknown_name_lists_the_closest() -> None:
    with pytest.raises(UsageError, match="kakaya-rgb") as caught:
        registry.create("kakaya-rgb")
    assert "kakaiya-rgb" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        registry.create("???")
    assert "compact-codec" in caught.value.hint


def test_unknown_option_lists_the_options() -> None:
    with pytest.raises(UsageError, match="colour") as caught:
        registry.create("kakaiya-rgb", colour=3)
    assert "classes" in caught.value.hint
    with pytest.raises(UsageError, match="already part of the name"):
        registry.create("kakaiya-codec-d2", d=3)


def test_register_adds_a_name_once() -> None:
    torch = pytest.importorskip("torch")
    name = "test-identity"
    decorate = registry.register(name, kind="codec", description="for this test")
    try:
        decorate(lambda: torch.nn.Identity())
        assert isinstance(registry.create(name), torch.nn.Identity)
        with pytest.raises(UsageError, match="already registered"):
            decorate(lambda: torch.nn.Identity())
    finally:
        registry._ENTRIES.pop(name)
        registry._FACTORIES.pop(name)
