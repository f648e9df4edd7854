"""How time and memory grow with prompts, texts, k, vocabulary and the number of cells: `python -m tests.studies.cost_growth`.

It prints the tables of docs/performance.md: medians of REPEATS calls, on the embedded pair unless a title names another.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from tabulate import tabulate

from backends.engines import reference
from backends.engines.reference import ReferenceBackend
from backends.models import pairs
from bench.analysis.rows import newest_rows
from bench.records.decoding import DecodeRequest
from bench.reporting import suite_page
from bench.reporting.formats import markdown_page
from tests.support.record_builder import make_cell, make_record, make_run
from tests.support.tiny_models import nearby, tiny_llama

REPEATS = 5
REQUEST = DecodeRequest(prompt_ids=tuple(range(100, 164)), max_new_tokens=32, num_draft_tokens=2)


def seconds(call: Callable[[], object]) -> float:
    call()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def prompts(backend: ReferenceBackend) -> Iterator[tuple[object, ...]]:
    for length in (32, 128, 512, 1024):
        request = replace(REQUEST, prompt_ids=tuple(100 + place % 500 for place in range(length)))
        first = seconds(partial(backend.generate, replace(request, max_new_tokens=1)))
        whole = seconds(partial(backend.generate, request))
        yield length, 1000 * first, 1000 * (whole - first) / (request.max_new_tokens - 1)


def texts(backend: ReferenceBackend) -> Iterator[tuple[object, ...]]:
    for length in (16, 64, 256):
        request = replace(REQUEST, max_new_tokens=length)
        arms = [replace(request, num_draft_tokens=k) for k in (0, request.num_draft_tokens)]
        yield length, *(1000 * seconds(partial(backend.generate, arm)) / length for arm in arms)


def draft_tokens(backend: ReferenceBackend) -> Iterator[tuple[object, ...]]:
    for k in (1, 2, 4, 8):
        request = replace(REQUEST, num_draft_tokens=k)
        replays = [backend.replay(replace(request, seed=seed)) for seed in range(REPEATS)]
        rounds = sum(len(replay.rounds) for replay in replays)
        phases = [
            1000 * sum(getattr(replay.phase_s, name) for replay in replays) / rounds
            for name in ("draft", "verify", "accept", "other")
        ]
        yield k, *phases


def vocabularies() -> Iterator[tuple[object, ...]]:
    for size in (1_000, 8_000, 32_000, 128_000):
        target = tiny_llama(seed=1, vocab_size=size)
        backend = ReferenceBackend(target, nearby(target, seed=2))
        replays = [backend.replay(replace(REQUEST, seed=seed)) for seed in range(REPEATS)]
        rounds = sum(len(replay.rounds) for replay in replays)
        yield (
            size,
            *(
                1000 * sum(getattr(replay.phase_s, name) for replay in replays) / rounds
                for name in ("draft", "verify", "accept", "other")
            ),
        )


def cells() -> Iterator[tuple[object, ...]]:
    for count in (10, 100, 1000):
        records = [make_record(make_cell(temperature=place / 1000, num_prompts=8)) for place in range(count)]
        runs = {"machine/grid/record.json": make_run(records)}
        start = time.perf_counter()
        markdown_page("cost growth", suite_page.suite_tables(runs, newest_rows(runs)))
        spent = time.perf_counter() - start
        tracemalloc.start()  # it slows everything down, so the memory is measured in a second call
        markdown_page("cost growth", suite_page.suite_tables(runs, newest_rows(runs)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        yield count, spent, 1000 * spent / count, peak / 2**20


def show(title: str, headers: Sequence[str], rows: Iterator[tuple[object, ...]]) -> None:
    print(f"**{title}**\n\n{tabulate(list(rows), headers, tablefmt='github', floatfmt='.2f')}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.studies.cost_growth", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", default="float32", choices=pairs.DTYPES)
    pair = replace(pairs.ready(), dtype=parser.parse_args().dtype)
    backend = reference.load(pair, device="cpu", options={})
    phases = ("draft", "verify", "accept", "other")
    show("Length of the prompt", ("tokens", "prefill ms", "then SD ms/token"), prompts(backend))
    show("Length of the text", ("tokens", "AR ms/token", "SD ms/token"), texts(backend))
    show("Draft tokens", ("k", *(f"{name} ms/round" for name in phases)), draft_tokens(backend))
    show("Vocabulary (2 layers of width 32)", ("tokens", *(f"{name} ms/round" for name in phases)), vocabularies())
    show("Cells of a table (8 prompts each)", ("cells", "seconds", "ms a cell", "peak MiB"), cells())


if __name__ == "__main__":
    main()
