"""Compare the numbers of all published tables with those of an older commit: `python -m tests.studies.same_numbers COMMIT`.

Both layouts of results/ are read: tables/<machine>-<suite>.md, and <machine>/<suite>/README.md. Tables belong together by
machine and suite. What counts in a cell is its numbers and its verdicts: words, headers and the order of tables may change.
Exits with 1 where the numbers of a table differ, are missing or are new.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Numbers, and the words that the harness prints in capitals: FASTER, LOSSLESS, NOT MEASURED.
COUNTS = re.compile(r"[-+]?\d+(?:[.,]\d+)*%?|∞|\b[A-Z]{4,}\b")
MACHINES = (
    "amd-epyc-2c-avx2",
    "amd-epyc-2c",
    "intel-xeon-2c",
)  # the old names of files do not tell a machine from a suite
Cells = tuple[tuple[str, ...], ...]  # what counts in each cell of a table, row by row


def tables_of(page: str) -> list[Cells]:
    """Return what counts in each table of a page of markdown."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", f"{page}\n", flags=re.MULTILINE):
        cells = [cell for line in block.splitlines()[2:] for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        # The number of a footnote is none of the table's own.
        found.append(tuple(tuple(COUNTS.findall(re.sub("<sup>.*?</sup>", "", cell))) for cell in cells))
    return found


def published(commit: str | None) -> dict[tuple[str, str], list[Cells]]:
    """Return the tables of a commit, or of the working tree, by machine and suite."""
    if commit is None:
        files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "results").rglob("*.md")]
    else:
        files = _git("ls-tree", "-r", "--name-only", commit, "results").splitlines()
    found = {}
    for file in files:
        key = _key(file)
        if key is not None:
            found[key] = tables_of((ROOT / file).read_text() if commit is None else _git("show", f"{commit}:{file}"))
    return found


def _key(file: str) -> tuple[str, str] | None:
    for machine in MACHINES:
        for pattern in (rf"results/tables/{machine}-(\w+)\.md", rf"results/{machine}/(\w+)/README\.md"):
            if match := re.fullmatch(pattern, file):
                return machine, match[1]
    return None


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="whose tables are the expected ones")
    old, new = published(parser.parse_args().commit), published(None)
    num_tables = num_cells = num_differences = 0
    for machine, suite in sorted({*old, *new}):
        before, after = (Counter(of.get((machine, suite), [])) for of in (old, new))
        same = before & after
        num_tables += same.total()
        num_cells += sum(len(cells) * count for cells, count in same.items())
        for what, tables in (("missing", before - after), ("new", after - before)):
            num_differences += tables.total()
            for cells in tables.elements():
                print(f"{what}: a table of {machine}/{suite}: {' '.join(' '.join(cell) for cell in cells)[:200]}")
    print(f"{num_tables} tables and {num_cells} cells are the same, {num_differences} tables differ")
    return 1 if num_differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
