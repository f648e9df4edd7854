"""What the documents show is what results/ holds, and what they link to is there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from bench.commands import main
from tests.studies.readme_commands import commands

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md")])


def test_the_readmes_table_is_the_one_derived_from_the_records() -> None:
    readme = (ROOT / "README.md").read_text()
    copies = re.findall(r"<!-- copied from (\S+?);.*?-->\n(.*?)<!-- end -->", readme, flags=re.DOTALL)
    assert copies
    for source, copy in copies:
        assert copy.strip() in (ROOT / source).read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_resolve(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not link.startswith(("http://", "https://")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in found:
            continue
        found.add(page)
        links = re.findall(r"\]\(([^)#]+\.md)[^)]*\)", page.read_text())
        waiting += [(page.parent / link).resolve() for link in links if not link.startswith("http")]
    assert sorted((ROOT / "docs").rglob("*.md")) == sorted(page for page in found if (ROOT / "docs") in page.parents)


SPECHEAT = [command for command in commands((ROOT / "README.md").read_text()) if command.startswith("specheat ")]


@pytest.mark.parametrize("command", SPECHEAT)
def test_commands_of_the_readme_have_options_that_there_are(command: str) -> None:
    program, *typed = shlex.split(command)
    assert program == "specheat"
    main.parsed(typed)  # exits where an option does not exist


def test_every_command_of_the_readme_was_run_as_it_is_written() -> None:
    """By `python -m tests.studies.readme_commands`, whose log is in results/, but for the two that set everything up.

    Not with 2, which is bad input; 1 and 3 are verdicts.
    """
    logs = [*ROOT.glob("results/studies/*/readme/*.jsonl"), *ROOT.glob("results/*/kd_matrix/records/*.jsonl")]
    lines = (json.loads(line) for log in logs for line in log.read_text().splitlines())
    ran = {re.sub(r"^\S*/", "", line.get("command", "")) for line in lines if line.get("status", 0) in (0, 1, 3)}
    missing = [command for command in commands((ROOT / "README.md").read_text()) if command not in ran]
    assert missing == ["make bench", "make test"]
