"""`specheat pairs`: lists the model pairs and whether they are ready, or makes one ready."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

COLUMNS = ("name", "target", "draft", "family", "dtype", "licence", "ready")


class Pairs:
    help = "list model pairs and whether they are ready, or make one ready"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("--prepare", metavar="NAME", help="make this pair ready, and print where its models are")
        parser.add_argument("--pairs-file", type=Path, metavar="TOML", help="more model pairs")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, args: Namespace) -> int:
        from tabulate import tabulate

        from backends.models.pairs import load_table, readiness, ready

        if args.prepare is not None:
            pair = ready(args.prepare, pairs_file=args.pairs_file)
            found = {"name": pair.name, "target": pair.target, "draft": pair.draft}
            print(json.dumps(found) if args.json else f"target: {pair.target}\ndraft: {pair.draft}")
            return 0
        rows = []
        for pair in load_table(args.pairs_file).values():
            is_ready, why = readiness(pair)
            rows.append({**asdict(pair), "ready": is_ready, "why": why})
        if args.json:
            print(json.dumps(rows, indent=1))
        else:
            shown = [{**row, "ready": row["why"]} for row in rows]
            print(tabulate([[row[column] for column in COLUMNS] for row in shown], headers=COLUMNS))
        return 0
