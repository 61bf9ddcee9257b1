"""The README names every verb, target, folder and strategy, and what it links to exists."""

import re
import tomllib
from pathlib import Path

import pytest

from refine.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "name", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
)
def test_every_verb_is_named(name):
    assert f"`{name}" in README


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_named(name):
    assert f"`{name}`" in README


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"demo", "test", "help"} <= named <= targets


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_folders_of_the_house_are_named():
    for folder in ("pipeline", "refine", "train", "recipes", "docs", "pipeline/scenes"):
        assert f"`{folder}/`" in README


def test_options_that_are_named_exist():
    sources = "".join(
        (ROOT / path).read_text()
        for path in ("pipeline/verb_options.py", "pipeline/cli.py", "refine/cli.py", "train/cli.py")
    )
    for option in set(re.findall(r"(--[a-z][a-z-]+)", README)):
        assert f'"{option}"' in sources, option
