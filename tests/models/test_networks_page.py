"""docs/networks.md is current, lists every network, and agrees with what the papers print."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from latentseg.models import registry

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(REPO / "docs" / "generate_networks.py"), run_name="generate_networks")


def test_page_is_current(generator: dict[str, Any]) -> None:
    committed = generator["PAGE"].read_text(encoding="utf-8")
    assert committed == generator["page"](), "run: python docs/generate_networks.py"
    assert all(f"| `{name}` |" in committed for name in registry.names())


def test_what_the_papers_print_is_reproduced(generator: dict[str, Any]) -> None:
    rows = [row for block in generator["rows"]().values() for row in block]
    printed = [row for row in rows if row.paper_cost is not None]
    assert len(printed) == 3 + 1 + 1 + 3 + 2 + 5
    for row in printed:
        found = row.counted()
        if row.text == "decoder, C = 32":  # the page says so
            assert found.rule_cost == pytest.approx(3.506, abs=0.0005)
            continue
        assert found.rule_cost == pytest.approx(row.paper_cost, abs=0.011), row.text
        if row.paper_parameters is not None:
            assert found.rule_parameters == pytest.approx(row.paper_parameters, abs=0.0105), row.text
