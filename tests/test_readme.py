"""README and docs name what exists: verbs, targets, options, folders, strategies, keys, pages."""

import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from pipeline.manifest import SPLITS
from pipeline.readers.jsonl import KEYS
from refine.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
VERBS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
PAGES = {"README.md": README} | {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ("docs", "recipes")
    for path in sorted((ROOT / folder).glob("*.*"))
    if path.suffix in (".md", ".yaml")
}
OWN_DATA = PAGES["docs/own_data.md"]


@pytest.mark.parametrize("name", VERBS)
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


def test_make_help_names_every_target_and_variable():
    """All that can be given stands there: no list of targets beside variables that nobody knows."""
    makefile = (ROOT / "Makefile").read_text()
    said = subprocess.run(
        ["make", "help", "RUN=runs/mine"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
    assert re.findall(r"^([a-z-]+):.*##", makefile, flags=re.M) == [
        n for n in names if "=" not in n
    ]
    given = dict(name.split("=") for name in names if "=" in name)
    assert given["RUN"] == "runs/mine"
    assert given["CONFIG"] == "stages.yaml"
    assert {"ROUND", "STRATEGY", "SPLIT", "FOLDS", "WORKERS"} < set(given)


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".md")])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, heading = target.partition("#")
        if target.startswith("http"):
            continue
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if heading:
            assert heading in anchors(there.read_text()), target


def anchors(text: str) -> set[str]:
    """Give what the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked():
    for page in PAGES:
        if page.startswith("docs/"):
            assert f"]({page})" in README, page


def commands() -> list[tuple[str, str]]:
    """Give page and command line of every verb that begins a line, as a user would copy it."""
    found = []
    for page, text in PAGES.items():
        for line in text.replace("\\\n", " ").splitlines():
            words = line.removeprefix("#").strip().split(maxsplit=1)
            if words and words[0] in VERBS and " --" in line and "…" not in line:
                found.append((page, line.removeprefix("#").strip()))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_taken_by_their_verbs(page, line):
    """Every option exists and takes such a value; whether a file exists is the user's machine's."""
    name, *words = shlex.split(line, comments=True)
    module, function = VERBS[name].split(":")
    command: click.Command = getattr(importlib.import_module(module), function)
    if isinstance(command, click.Group) and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    try:
        command.make_context(name, words)
    except click.BadParameter as error:
        if not re.search("does not exist|found none|found no ", str(error)):
            raise


def test_commands_are_found():
    """Without this the test above would pass if no command was."""
    names = {line.split()[0] for _, line in commands()}
    assert names >= {"run-rounds", "refine-labels", "inspect-shards", "import-weights"}
    assert len(commands()) > 20


def test_keys_and_splits_of_own_data_are_named():
    for text in (README, OWN_DATA):
        for key in (*KEYS, *SPLITS):
            assert f"`{key}`" in text, key


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
