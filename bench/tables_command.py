"""`specheat tables`: everything that is derived from the raw records, written beside them.

results/tables/<machine>-<suite>.md, .tex    results/figures/<machine>-<suite>.svg, .png    results/README.md
results/tables/<machine>-claims.md           results/figures/<machine>-<suite>-phases.svg, .png
                                             results/figures/<machine>-predicted.svg, .png

Asked for columns, a pivot or a format it writes nothing and prints tables instead.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rendering import DERIVED, Page, Table

CLAIMS = "claims"
PREDICTED = "predicted"
PRINTED = ("markdown", "latex", "terminal")

if TYPE_CHECKING:
    from bench.records import RunRecord
    from bench.tables import Row, Runs

    Experiments = Mapping[tuple[str, str], Runs]  # (machine, suite) -> its records
Others = Mapping[
    tuple[str, str], tuple[Callable[[Sequence[Path]], Page], list[Path]]
]  # what makes their table; records


class Tables:
    help = "write tables, figures and the index of a folder of results"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder (default: results)")
        parser.add_argument("--machine", metavar="NAME", help="only this machine's tables and figures")
        parser.add_argument("--suite", metavar="NAME", help="only this suite's tables and figures")
        parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
        printing = parser.add_argument_group(
            "printing", "With one of these, tables go to standard output and no file is written (docs/tables.md)."
        )
        printing.add_argument(
            "--columns",
            metavar="NAMES",
            help="these columns in this order, such as T,k,gamma,alpha; a wrong name lists all",
        )
        printing.add_argument(
            "--pivot",
            nargs=3,
            metavar=("ROW", "x", "COLUMN"),
            help="gamma and alpha (or --columns) over two names of cell identity, such as: T x backend",
        )
        printing.add_argument("--format", choices=PRINTED, help="how to print (default: markdown)")

    def run(self, args: Namespace) -> int:
        from rich.console import Console

        status = Console(stderr=True).status("reading records")
        if args.columns or args.pivot or args.format:
            if args.check:
                raise ValueError(
                    "expected --check alone, got it with --columns, --pivot or --format, which write no file"
                )
            with status:
                text = printed(args)
            print(text, end="")
            return 0
        messages = []
        with status:
            for path, content in derived_files(args.results, machine=args.machine, suite=args.suite):
                status.update(f"{path.name} and others")
                if path.is_file() and path.read_bytes() == content:
                    continue
                messages.append(f"{path} differs from what the records give" if args.check else str(path))
                if not args.check:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
        for message in messages:
            print(message)
        return 1 if messages and args.check else 0


def derived_files(
    results: Path, *, machine: str | None = None, suite: str | None = None
) -> Iterator[tuple[Path, bytes]]:
    """Path and content of every derived file. The index is always of all records.

    Raises:  ValueError: no such folder, no records that are asked for, or a broken one
    """
    from bench import claims, figures, findings, mechanism_figures, tables

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
        further = findings.further_tables(tables.newest_rows(runs))
        images = {_joined(name, which): made for which, made in figures.render(runs).items()}
        of_groups = [_joined(name, which) for which in figures.named_groups(runs)]
        shown = [f"../figures/{each}.svg" if each in images else None for each in of_groups]
        yield results / "tables" / f"{name}.md", tables.markdown_table(runs, further=further, figures=shown).encode()
        yield results / "tables" / f"{name}.tex", tables.latex_table(runs, further=further).encode()
        for each, made in images.items():
            yield from _images(results, each, made)
        for what, (_, render) in mechanism_figures.FURTHER.items():
            yield from _images(results, f"{name}-{what}", render(runs))
    for name in sorted({key[0] for key in asked}):
        if suite is None:
            predicted = mechanism_figures.render_predicted(_rows_on(name, experiments))
            yield from _images(results, f"{name}-{PREDICTED}", predicted)
        page = claims.derived(results, name)
        if page.markdown and suite is None:
            yield results / "tables" / f"{name}-{CLAIMS}.md", _ledger_page(name, page).encode()
    yield results / "README.md", _index(results, experiments, others).encode()


def printed(args: Namespace) -> str:
    """What `--columns`, `--pivot` and `--format` ask for."""
    from bench import rendering

    found = tuple(_chosen_tables(args))
    if args.format == "latex":
        labels = rendering.labelled(found)
        floats = [rendering.latex_float(table, label=label) for table, label in zip(found, labels, strict=True)]
        return rendering.latex_packages(found) + "\n".join(floats)
    if args.format == "terminal":
        return "\n".join(f"{table.title}\n\n{rendering.terminal(table)}\n" for table in found)
    folder = args.results.as_posix()
    return "\n".join(f"## {table.title}\n\n{rendering.markdown(table, folder)}\n" for table in found)


def _chosen_tables(args: Namespace) -> Iterator[Table]:
    from bench import findings, pivot, tables

    experiments = {key: (runs, tables.newest_rows(runs)) for key, runs in load_experiments(args.results).items()}
    asked = asked_keys(
        [key for key, (_, rows) in experiments.items() if rows], args.results, machine=args.machine, suite=args.suite
    )
    names = [name.strip() for name in args.columns.split(",")] if args.columns else []
    for key in asked:
        runs, rows = experiments[key]
        if args.pivot:
            down, by, across = args.pivot
            if by != "x":
                raise ValueError(f"expected --pivot ROW x COLUMN, got {' '.join(args.pivot)}")
            yield from pivot.pivot_tables(rows, down=down, across=across, values=names or pivot.VALUES)
        elif names:
            yield from (tables.chosen_table(group, names) for group in tables.row_groups(rows))
        else:
            yield from (*tables.suite_tables(runs), *findings.further_tables(rows))


def _images(results: Path, name: str, images: Mapping[str, bytes]) -> Iterator[tuple[Path, bytes]]:
    return ((results / "figures" / f"{name}.{file_format}", image) for file_format, image in images.items())


def _joined(name: str, which: str) -> str:
    return f"{name}-{which}" if which else name


def _rows_on(machine: str, experiments: Experiments) -> list[Row]:
    """The newest row of each cell of every suite."""
    from bench.tables import newest_rows

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
    from bench.store import load_run, record_files

    if not results.is_dir():
        raise ValueError(f"expected a folder of results, got {results}")
    experiments: dict[tuple[str, str], dict[str, RunRecord]] = {}
    for path in record_files(results, "*/*/*.json"):
        file = path.relative_to(results)
        experiments.setdefault((file.parts[0], file.parts[1]), {})[file.as_posix()] = load_run(path)
    return experiments


def find_others(results: Path) -> Others:
    """Records in a form of their own, JSON lines, that an installed package knows to read; oldest first."""
    from bench.registry import page_maker
    from bench.store import record_files

    found: dict[tuple[str, str], list[Path]] = {}
    for path in record_files(results, "*/*/*.jsonl"):
        found.setdefault((path.parts[-3], path.parts[-2]), []).append(path)
    return {key: (make, paths) for key, paths in found.items() if (make := page_maker(key[1])) is not None}


def _other_page(key: tuple[str, str], page: Page, records: Sequence[Path]) -> str:
    """What another package made, with what the first line of its newest record says of the run."""
    from bench.store import line_header
    from bench.tables import VERSIONS, machine_text

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
    from bench.figures import FORMATS, names
    from bench.mechanism_figures import FURTHER, predicted_points

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
