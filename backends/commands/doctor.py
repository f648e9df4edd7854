"""`specheat doctor`: check what this machine can measure, how small a difference it resolves, and what to fix."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.options import settings

if TYPE_CHECKING:
    from backends.doctor.check import Check
    from bench.records.decoding import ModelPair


class Doctor:
    help = "check this machine, measure how small a difference it resolves, and list what to fix (exit: 1 with a problem)"

    def configure(self, parser: ArgumentParser) -> None:
        option = parser.add_argument
        option("--pair", metavar="NAME", help=f"model pair by name (default: {settings.DEFAULT_PAIR})")
        option("--target", metavar="ID|DIR", help="target model instead of a named pair")
        option("--draft", metavar="ID|DIR", help="draft model; with --pair it replaces the pair's draft")
        option("--pairs-file", type=Path, metavar="TOML", help="more model pairs")
        option("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cpu)")
        option("--results", type=Path, default=Path("runs"), metavar="DIR", help="where records go (default: runs)")
        option("--seconds", default="60", metavar="S", help="length of the A/A run after its warm-up (default: 60)")
        option("--no-noise", action="store_true", help="leave the A/A run out")
        option("--json", action="store_true", help="print the results as JSON")

    def run(self, args: Namespace) -> int:
        from backends.doctor.check import as_text, summary
        from backends.doctor.noise import noise_floor
        from backends.models import pairs
        from bench.errors import INTERRUPTED
        from bench.options.values import above_0

        seconds = above_0("--seconds", args.seconds)
        requested = pairs.named(pairs.load_table(args.pairs_file), args.pair, target=args.target, draft=args.draft)
        width = min(shutil.get_terminal_size((120, 24)).columns, 120)
        found, interrupted = tuple(checks(args, requested)), False
        if not args.json:
            print(as_text(found, width=width), flush=True)
        if not args.no_noise:
            noise, interrupted = noise_floor(args, requested, found, seconds=seconds)
            if not args.json:
                print(f"\n{as_text(noise, width=width)}")
            found += noise
        print(json.dumps([asdict(each) for each in found], indent=1) if args.json else f"\n{summary(found)}")
        return INTERRUPTED if interrupted else int(any(each.state == "problem" for each in found))


def checks(args: Namespace, requested: ModelPair) -> Iterator[Check]:
    """Check everything but the noise floor."""
    import os

    from rich.console import Console

    from backends.doctor import installation, machine
    from bench.records import environment
    from bench.records.machine import available_memory_bytes

    with Console(stderr=True).status("watching other programs") as status:
        activity = machine.gather_activity()
        status.update("importing torch")
        gpu = machine.gather_gpu(args.device)
        env = environment.capture(args.device if gpu.requested else "cuda")
        status.update("importing backends")
        engines = tuple(installation.backends())
    free_bytes = gpu.free_bytes if gpu.requested and gpu.usable else available_memory_bytes()
    yield from machine.cores(env, activity)
    yield machine.memory(free_bytes, installation.needed_bytes(requested), requested.name)
    yield machine.precision(dtype=requested.dtype, device=args.device, has_bfloat16=_has_bfloat16())
    yield from machine.gpu(env, gpu)
    yield from machine.threads(env, os.environ)
    yield from installation.all_packages()
    yield from engines
    yield from installation.pairs(args.pairs_file, requested)
    yield from installation.results(args.results)
    yield installation.commit(env)


def _has_bfloat16() -> bool:
    try:
        import torch

        from backends.forwards.products import can_pack
    except (ImportError, OSError):
        return True  # the topic "packages" reports what is missing
    return can_pack(torch.empty(0, dtype=torch.bfloat16))
