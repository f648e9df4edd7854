"""`specheat claims`: which claims about temperature hold, on each pair and machine that was measured."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


class Claims:
    help = "say which claims about temperature hold, with effects, intervals and verdicts"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder (default: results)")
        parser.add_argument("--machine", metavar="NAME", help="only this machine's records")
        parser.add_argument("--pair", metavar="NAME", help="only this pair's ledger")
        parser.add_argument("--markdown", action="store_true", help="print the page of `specheat tables` instead")

    def run(self, args: Namespace) -> int:
        from bench.claims import ledger
        from bench.reporting import ledger as ledger_page
        from bench.reporting.formats import terminal

        machines = (args.machine,) if args.machine else ledger.machines(args.results)
        found = {machine: ledger.ledgers(args.results, machine, pair=args.pair) for machine in machines}
        if not any(found.values()):
            wanted = f"records of pair {args.pair}" if args.pair else "finished records"
            raise ValueError(f"expected {wanted} on {', '.join(machines)}, found none")
        for machine, ledgers in found.items():
            if args.markdown:
                print(f"# claims on {machine}\n\n{ledger_page.page(ledgers)}")
                continue
            for pair, rows in ledgers.items():
                print(f"\nclaims on {machine}, pair {pair}\n")
                print(terminal(ledger_page.table(pair, rows, narrow=True)))
        return 0
