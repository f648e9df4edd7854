"""`specheat claims`: which claims about temperature hold, on each pair and machine that was measured."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from bench.options.arguments import declare


class Claims:
    help = "list which claims about temperature hold, with effects, intervals and verdicts"

    def configure(self, parser: ArgumentParser) -> None:
        declare(parser, "results", "--machine", "--markdown")
        parser.add_argument("--pair", metavar="NAME", help="only this pair's ledger")

    def run(self, args: Namespace) -> int:
        from bench.claims import ledger
        from bench.records.marks import load_marks
        from bench.reporting import ledger as ledger_page
        from bench.reporting.formats import terminal

        machines = (args.machine,) if args.machine else ledger.machines(args.results)
        found = {machine: ledger.ledgers(args.results, machine, pair=args.pair) for machine in machines}
        if not any(found.values()):  # a machine without records of the pair is left out, unless all are
            wanted = f"records of pair {args.pair}" if args.pair else "finished records"
            raise ValueError(f"expected {wanted} on {', '.join(machines)}, found none")
        marks = load_marks(args.results)
        for machine, ledgers in found.items():
            if args.markdown:
                page = ledger_page.page(ledgers, results=args.results.as_posix(), marks=marks)
                print(f"# claims on {machine}\n\n{page}")
                continue
            for pair, rows in ledgers.items():
                for table in ledger_page.tables(pair, rows, narrow=True, marks=marks):
                    print(f"\nclaims on {machine}, {table.title}\n\n{terminal(table)}")
        return 0
