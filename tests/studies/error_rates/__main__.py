"""Print the table of error rates of docs/validation.md.

python -m tests.studies.error_rates            # 2,000 simulated cases per row
python -m tests.studies.error_rates 500 best_of_several launches
"""

from __future__ import annotations

import importlib
import sys

from tabulate import tabulate

MODULES = (
    *("concurrency", "launches", "best_of_several", "baseline_and_floor", "equality", "drift"),
    *("shared_numbers", "pooled_certificate", "greedy_certificate"),
)


def main(num: int, modules: tuple[str, ...]) -> None:
    rates = [rate for name in modules for rate in importlib.import_module(f"tests.studies.error_rates.{name}").rows(num)]
    table = [
        (rate.what, rate.case, rate.nominal, "" if rate.before is None else f"{rate.before:.1%}", f"{rate.after:.1%}")
        for rate in rates
    ]
    print(tabulate(table, headers=("error", "case", "nominal", "before", "after"), tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    number, *names = sys.argv[1:] or ["2000"]
    main(int(number), tuple(names) or MODULES)
