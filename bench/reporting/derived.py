"""`specheat tables`: everything that is derived from the raw records, written beside them.

results/tables/<machine>-<suite>.md, .tex    results/figures/<machine>-<suite>.svg, .png    results/README.md
results/tables/<machine>-claims.md           results/figures/<machine>-<suite>-phases.svg, .png
                                             results/figures/<machine>-predicted.svg, .png

Asked for columns, a pivot or a format it writes nothing and prints tables instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.analysis.rows import newest_rows
from bench.records.files import Runs
from bench.reporting.table import DERIVED, Page

if TYPE_CHECKING:
    from bench.records.runs import RunRecord
    from bench.reporting.tables import Row


CLAIMS = "claims"
PREDICTED = "predicted"

if TYPE_CHECKING:
    from bench.records.runs import RunRecord
    from bench.reporting.tables import Row

    Experiments = Mapping[tuple[str, str], Runs]  # (machine, suite) -> its records
Others = Mapping[
    tuple[str, str], tuple[Callable[[Sequence[Path]], Page], list[Path]]
]  # what makes their table; records


def derived_files(
    results: Path, *, machine: str | None = None, suite: str | None = None
) -> Iterator[tuple[Path, bytes]]:
    """Path and content of every derived file. The index is always of all records.

    Raises:  ValueError: no such folder, no records that are asked for, or a broken one
    """
    from bench.reporting import ledger, suite_page
    from bench.reporting.figures import mechanism, overview

    experiments, others = load_experiments(results), find_others(results)
    asked = asked_keys({*experiments, *others}, results, machine=machine, suite=suite)
    for key, (make, paths) in others.items():
        if key in asked:
            page, name = make(paths), "-".join(key)
            yield results / "tables" / f"{name}.md", _other_page(key, page, paths).encode()
            for which, made in page.images.items():
                yield from _images(results, _joined(name, which), made)
    for key, runs in experiments.items():
        if key not in asked:
            continue
        name = "-".join(key)
        further = suite_page.further_tables(newest_rows(runs))
        images = {_joined(name, which): made for which, made in overview.render(runs).items()}
        of_groups = [_joined(name, which) for which in overview.named_groups(runs)]
        shown = [f"../figures/{each}.svg" if each in images else None for each in of_groups]
        yield (
            results / "tables" / f"{name}.md",
            suite_page.markdown_table(runs, further=further, figures=shown).encode(),
        )
        yield results / "tables" / f"{name}.tex", suite_page.latex_table(runs, further=further).encode()
        for each, made in images.items():
            yield from _images(results, each, made)
        for what, (_, render) in suite_page.FURTHER.items():
            yield from _images(results, f"{name}-{what}", render(runs))
    for name in sorted({key[0] for key in asked}):
        if suite is None:
            predicted = mechanism.render_predicted(_rows_on(name, experiments))
            yield from _images(results, f"{name}-{PREDICTED}", predicted)
        page = ledger.derived(results, name)
        if page.markdown and suite is None:
            yield results / "tables" / f"{name}-{CLAIMS}.md", _ledger_page(name, page).encode()
    yield results / "README.md", _index(results, experiments, others).encode()


def _images(results: Path, name: str, images: Mapping[str, bytes]) -> Iterator[tuple[Path, bytes]]:
    return ((results / "figures" / f"{name}.{file_format}", image) for file_format, image in images.items())


def _joined(name: str, which: str) -> str:
    return f"{name}-{which}" if which else name


def _rows_on(machine: str, experiments: Experiments) -> list[Row]:
    """The newest row of each cell of every suite."""
    from bench.analysis.rows import newest_rows

    return [row for key, runs in experiments.items() if key[0] == machine for row in newest_rows(runs)]


def asked_keys(
    known: Iterable[tuple[str, str]], results: Path, *, machine: str | None, suite: str | None
) -> list[tuple[str, str]]:
    """Those of a machine and a suite, where these are named.

    Raises:  ValueError: there are none
    """
    known = sorted(known)
    asked = [key for key in known if machine in (None, key[0]) and suite in (None, key[1])]
    if not asked:
        wanted = "/".join(name or "*" for name in (machine, suite))
        listed = ", ".join("/".join(key) for key in known) or "none"
        raise ValueError(f"expected records of {wanted} in {results}, found {listed}")
    return asked


def load_experiments(results: Path) -> Experiments:
    """Every record by machine and suite, which are the names of its folders."""
    from bench.records.files import load_run, record_files

    if not results.is_dir():
        raise ValueError(f"expected a folder of results, got {results}")
    experiments: dict[tuple[str, str], dict[str, RunRecord]] = {}
    for path in record_files(results, "*/*/*.json"):
        file = path.relative_to(results)
        experiments.setdefault((file.parts[0], file.parts[1]), {})[file.as_posix()] = load_run(path)
    return experiments


def find_others(results: Path) -> Others:
    """Records in a form of their own, JSON lines, that an installed package knows to read; oldest first."""
    from bench.records.files import record_files

    found: dict[tuple[str, str], list[Path]] = {}
    for path in record_files(results, "*/*/*.jsonl"):
        found.setdefault((path.parts[-3], path.parts[-2]), []).append(path)
    return {key: (make, paths) for key, paths in found.items() if (make := page_maker(key[1])) is not None}


def page_maker(suite: str) -> Callable[[Sequence[Path]], Page] | None:
    """Return the function that makes a page from the JSON-lines records of a suite, oldest first; None for other suites."""
    from bench.reporting.suites import distill_speed, kd_matrix, token_length

    makers = {
        "composed": kd_matrix.derived,
        "distill_speed": distill_speed.derived,
        "kd_matrix": kd_matrix.derived,
        "paradigm": kd_matrix.derived,
        "token_length": token_length.derived,
    }
    return makers.get(suite)


def _other_page(key: tuple[str, str], page: Page, records: Sequence[Path]) -> str:
    """What another package made, with what the first line of its newest record says of the run."""
    from bench.records.files import line_header
    from bench.reporting.captions import VERSIONS, machine_text

    machine, suite = key
    header = line_header(records[-1], "environment", "created")
    env = header["environment"]
    facts = {
        "machine": machine_text(env),
        "versions": ", ".join(f"{name} {env[name]}" for name in (*VERSIONS, "trl") if name in env),
        "commit": env.get("harness_commit", "unknown"),
        "date": header["created"][:10],
        "command": f"`{header['command']}`",
        "raw records, newest first": ", ".join(
            f"[{path.name}](../{machine}/{suite}/{path.name})" for path in reversed(records)
        ),
    }
    listed = "\n".join(f"- **{name}**: {text}" for name, text in facts.items())
    names = (_joined(f"{machine}-{suite}", which) for which in page.images)
    shown = "".join(f"![{name}](../figures/{name}.svg)\n\n" for name in names)
    return f"# {suite} on {machine}\n\n_{DERIVED}_\n\n{page.markdown}\n\n{shown}{listed}\n"


def _ledger_page(machine: str, page: Page) -> str:
    return f"# Claims on {machine}\n\n_{DERIVED}_\n\n{page.markdown}\n"


def _index(results: Path, experiments: Experiments, others: Others) -> str:
    """results/README.md: what was measured where, with links to tables, figures and raw records."""
    from bench.reporting.figures.canvas import FORMATS
    from bench.reporting.figures.mechanism import predicted_points
    from bench.reporting.figures.overview import names
    from bench.reporting.suite_page import FURTHER

    def image_links(name: str, what: str = "") -> list[str]:
        return [f"[{what}{file_format}](figures/{name}.{file_format})" for file_format in FORMATS]

    lines = ["# Results", "", f"_{DERIVED}_"]
    machine = None
    for key in sorted({*experiments, *others}):
        if key[0] != machine:
            machine = key[0]
            lines += ["", f"## {machine}", "", f"Which claims hold here: [the ledger](tables/{machine}-{CLAIMS}.md)."]
            if predicted_points(_rows_on(machine, experiments)):
                images = ", ".join(image_links(f"{machine}-{PREDICTED}"))
                lines += ["", f"Gamma measured against gamma predicted from bare forwards, all suites: {images}."]
        name = "-".join(key)
        if key in others:
            lines += ["", f"### {key[1]}", "", f"Table: [md](tables/{name}.md). Raw records, newest first:", ""]
            files = [path.relative_to(results).as_posix() for path in reversed(others[key][1])]
            lines += [f"- [{file.rpartition('/')[2]}]({file})" for file in files]
            continue
        runs = experiments[key]
        links = [f"[{file_format}](tables/{name}.{file_format})" for file_format in ("md", "tex")]
        for which in names(runs):
            links += image_links(_joined(name, which), f"{which} " if which else "")
        for what, (has, _) in FURTHER.items():
            if has(runs):
                links += image_links(f"{name}-{what}", f"{what} ")
        lines += ["", f"### {key[1]}", "", f"Tables and figures: {', '.join(links)}. Raw records, newest first:", ""]
        newest_first = sorted(runs.items(), key=lambda item: (item[1].created, item[0]), reverse=True)
        lines += [_record_line(file, run) for file, run in newest_first]
    return "\n".join(lines) + "\n"


def _record_line(file: str, run: RunRecord) -> str:
    measured = f"{len(run.cells)} cells" if run.cells else f"{len(run.baseline)} baseline triples"
    commit = run.environment.get("harness_commit", "unknown")
    return (
        f"- [{file.rpartition('/')[2]}]({file}): {run.created[:10]}, pair {run.model_pair.name}, preset {run.preset}, "
        f"{measured}, commit {commit}"
    )
