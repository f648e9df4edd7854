"""`specheat pairs`: lists the model pairs and whether they are ready, or makes one ready."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path


class Pairs:
    help = "list model pairs and whether they are ready, or make one ready"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("--prepare", metavar="NAME", help="make this pair ready, and print where its models are")
        parser.add_argument("--pairs-file", type=Path, metavar="TOML", help="more model pairs")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, args: Namespace) -> int:
        if args.prepare is None:
            _list(args.pairs_file, as_json=args.json)
        else:
            _prepare(args.prepare, args.pairs_file, as_json=args.json)
        return 0


def _list(pairs_file: Path | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    from tabulate import tabulate

    from backends.models.pairs import load_table, readiness

    rows = []
    for pair in load_table(pairs_file).values():
        ready, why = readiness(pair)
        rows.append({**asdict(pair), "ready": ready, "why": why})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = ("name", "target", "draft", "family", "dtype", "licence", "why")
    headers = (*columns[:-1], "ready")
    print(tabulate([[row[column] for column in columns] for row in rows], headers=headers))


def _prepare(name: str, pairs_file: Path | None, *, as_json: bool) -> None:
    from backends.models.pairs import ready

    pair = ready(name, pairs_file=pairs_file)
    if as_json:
        print(json.dumps({"name": pair.name, "target": pair.target, "draft": pair.draft}))
    else:
        print(f"target: {pair.target}\ndraft: {pair.draft}")
