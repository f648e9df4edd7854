"""`specheat distill`: train a draft by a recipe, from prompts to a checkpoint that every backend loads."""

from __future__ import annotations

import json
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.models import pairs
from bench import registry
from bench.errors import INTERRUPTED
from bench.options.arguments import declare
from bench.options.values import count_of, count_or_0, number_of
from bench.records.machine_lock import measuring

if TYPE_CHECKING:
    from bench.protocols import Backend
    from bench.records.decoding import ModelPair
    from distill.runs.job import Job
    from distill.training.recipes import Recipe


LAYERS = "layers:"
TEXT_TOKENS = 100_000


class Distill:
    help = "train a draft on its target's text; the same command continues a run that was stopped"

    def configure(self, parser: ArgumentParser) -> None:
        option = parser.add_argument
        names = "base, reference, offline, soft, online, matched, mixture, weighted or composed"
        option("recipe", metavar="RECIPE", help=names)
        option("--data-temperature", metavar="T", help="KD data temperature, of the text; 0 is greedy")
        option("--mix", metavar="T:SHARE,...", help="KD data temperatures of a mixed recipe, such as 0.7:1,0.8:1,0.9:2")
        option("--loss", metavar="NAME", help="loss on soft labels: forward_kl, reverse_kl, js, tv, lk or log_alpha")
        option("--loss-temperature", metavar="T", help="KD loss temperature of soft labels (default: 1)")
        option("--on-policy", metavar="LAMBDA", help="share of fresh texts that the draft writes, 0..1 (online: 1)")
        option("--text-tokens", metavar="N", help=f"answer tokens of fixed text (default: {TEXT_TOKENS}; reference: --tokens)")
        option("--through", metavar="BACKEND", help="let this installed backend write the target's text")
        option("--seed", default="0", metavar="N", help="seed of text and order (default: 0)")
        job_options(parser)

    def run(self, args: Namespace) -> int:
        return interruptible(_run, args)


def interruptible(run: Callable[[Namespace], int], args: Namespace) -> int:
    """Run a command that continues where it was stopped. Ctrl-C prints how."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of the processes of a launcher, one holds the machine's lock
    try:
        with measuring(shared=args.shared_machine) if first else nullcontext():
            return run(args)
    except KeyboardInterrupt:
        print(f"specheat: interrupted; the same command continues with what is in {args.out}", file=sys.stderr)
        return INTERRUPTED


def job_options(parser: ArgumentParser) -> None:
    """Declare the options of a job, apart from its recipe and seed."""
    option = parser.add_argument
    option("--out", type=Path, required=True, metavar="DIR", help="where drafts, cards and the state of the run go")
    option("--texts", type=Path, metavar="DIR", help="where text is kept for other runs (default: beside --out)")
    option("--pair", metavar="NAME", help="model pair by name (default: smollm2); see `specheat pairs`")
    option("--target", metavar="ID|DIR", help="target model instead of a named pair")
    option("--draft", metavar="ID|DIR", help="draft to start from; with --pair it replaces the pair's draft")
    option("--start", metavar=f"ID|DIR|{LAYERS}LIST", help=f"other start: a draft, or target layers ({LAYERS}0,1,29)")
    option("--pairs-file", type=Path, metavar="TOML", help="more model pairs")
    option("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cpu)")
    declare(parser, "--shared-machine")

    option("--train", default="layers", metavar="WHAT", help="layers, all or adapters (default: layers)")
    option("--adapter-rank", default="8", metavar="N", help="rank of the adapters (default: 8)")
    option("--tokens", default="300000", metavar="N", help="answer tokens to train on, with repeats (default: 300000)")
    option("--learning-rate", default="8e-4", metavar="RATE", help="at the peak (default: 8e-4)")
    option("--optimizer", default="adamw", metavar="NAME", help="adamw, or muon for the matrices (default: adamw)")
    option("--vocabulary", default="0", metavar="N", help="tokens in the loss of a batch; 0 is all (default: 0)")
    option("--batch-tokens", default="4096", metavar="N", help="tokens of one forward (default: 4096)")
    option("--accumulate", default="1", metavar="N", help="forwards per step, over all processes (default: 1)")

    option("--prompts", action="append", metavar="SET[@TIMES]", help="training prompts; repeat for several")
    option("--self-written", default="0", metavar="N", help="more prompts, which the target writes itself")
    option("--held-out", action="append", metavar="SET", help="prompts to measure on; repeat for several")
    option("--max-new-tokens", default="128", metavar="N", help="longest answer in tokens (default: 128)")
    option("--batch-rows", default="256", metavar="N", help="answers sampled at once (default: 256)")


def texts_folder(args: Namespace) -> Path:
    return args.texts or args.out.absolute().parent / "texts"


def _run(args: Namespace) -> int:
    recipe = _recipe(args)
    if recipe.fresh and args.text_tokens is not None:
        raise ValueError(f"recipe {recipe.name} uses each text once; expected --tokens and no --text-tokens")
    default = args.tokens if recipe.name == "reference" else str(TEXT_TOKENS)
    text_tokens = 0 if recipe.fresh else count_or_0("--text-tokens", args.text_tokens or default)
    job, pair = job_of(args, recipe, text_tokens=text_tokens, seed=count_or_0("--seed", args.seed))
    if args.through is not None:
        if recipe.name == "reference":
            raise ValueError("recipe reference samples no text; expected no --through")
        registry.backend_factory(args.through)  # raises for an unknown name before anything is loaded

    from distill.runs.distillation import distill
    from distill.text.workers import launched

    with launched(args.device) as (workers, device), _engine(args.through, pair, job.recipe, device) as backend:
        if workers.is_main:
            print(_description(job), file=sys.stderr)
        card = distill(job, args.out, texts_folder(args), device=device, backend=backend, workers=workers)
        if workers.is_main:
            print("\n".join(_summary(card, args.out)))
    return 0


def job_of(args: Namespace, recipe: Recipe, *, text_tokens: int, seed: int) -> tuple[Job, ModelPair]:
    """Return the job of the options, and its resolved pair.

    The pair comes last: errors in other options are reported before a hub is contacted.
    """
    from distill.runs.job import HELD_OUT, PROMPTS, Job, check_held_out
    from distill.training.loop import TrainPlan

    def counts(*names: str) -> dict[str, int]:  # plan and job check their ranges
        return {name: count_or_0(f"--{name.replace('_', '-')}", getattr(args, name)) for name in names}

    plan = TrainPlan(
        num_tokens=count_or_0("--tokens", args.tokens),
        learning_rate=number_of("--learning-rate", args.learning_rate),
        optimizer=args.optimizer,
        **counts("batch_tokens", "accumulate", "vocabulary"),
    )
    sizes = counts("adapter_rank", "self_written", "max_new_tokens", "batch_rows")
    job = Job(
        target="",  # target and start are replaced below
        start="the pair's draft",
        trained=args.train,
        recipe=recipe,
        plan=plan,
        text_tokens=text_tokens,
        prompts=_sources(args.prompts or (() if sizes["self_written"] else PROMPTS)),
        held_out=tuple(args.held_out or HELD_OUT),
        seed=seed,
        **sizes,  # type: ignore[arg-type]
    )
    check_held_out(job)
    pair, layers = _models(args)
    return replace(job, target=pair.target, start="" if layers else pair.draft, layers=layers), pair


def _recipe(args: Namespace) -> Recipe:
    from distill.training import recipes

    recipe = recipes.recipe(args.recipe, _number(args, "data_temperature"))
    if args.mix is not None:
        recipe = recipes.with_shares(recipe, _shares(args.mix))
    asked = {"name": args.loss, "temperature": _number(args, "loss_temperature")}
    on_policy = _number(args, "on_policy")
    given = {name: value for name, value in asked.items() if value is not None}
    if given and recipe.labels == "hard":
        raise ValueError(
            f"recipe {recipe.name} learns the text's own tokens and has no loss to choose; "
            "expected base, soft or online with --loss or --loss-temperature"
        )
    recipe = replace(recipe, loss=replace(recipe.loss, **given))
    return recipe if on_policy is None else replace(recipe, on_policy=on_policy)


def _models(args: Namespace) -> tuple[ModelPair, tuple[int, ...]]:
    """Return the pair, whose draft is where training starts, and the target's layers if the draft is made of them."""
    draft, layers = args.draft if args.start is None else args.start, tuple[int, ...]()
    if None not in (args.draft, args.start):
        raise ValueError("expected --draft or --start, got both")
    if (args.start or "").startswith(LAYERS):
        layers = tuple(count_or_0("--start", place) for place in args.start.removeprefix(LAYERS).split(","))
        draft = args.target  # a pair needs some draft
    pair = pairs.ready(args.pair, target=args.target, draft=draft, pairs_file=args.pairs_file)
    if layers and pair.family != "causal":
        raise ValueError(f"--start {LAYERS}...: expected a target that is only a decoder, got {pair.name}; give a draft")
    num_layers = json.loads((Path(pair.target) / "config.json").read_text()).get("num_hidden_layers", 0)
    if layers and max(layers) >= num_layers:
        raise ValueError(f"--start: expected layers of 0..{num_layers - 1}, got {max(layers)}")
    return pair, layers


@contextmanager
def _engine(name: str | None, pair: ModelPair, recipe: Recipe, device: str) -> Iterator[Backend | None]:
    """Yield the backend that writes the text; None if the target does."""
    if name is None:
        yield None
        return
    with closing(registry.backend_factory(name)(pair, device=device, options={})) as backend:
        hottest, limit = max(at for at, _ in recipe.temperatures), backend.capabilities.max_temperature
        if hottest > limit:
            raise ValueError(f"expected temperatures of at most {limit}, the highest of {backend.name}, got {hottest}")
        yield backend


def _description(job: Job) -> str:
    """Return recipe and training in words. The card has all of it."""
    recipe, plan = job.recipe, job.plan
    total, alike = sum(share for _, share in recipe.temperatures), len({share for _, share in recipe.temperatures}) == 1
    data = ", ".join(f"{at:g}" if alike else f"{at:g} ({share / total:.0%})" for at, share in recipe.temperatures)
    loss = f", loss {recipe.loss.name} at KD loss T {recipe.loss.temperature:g}" if recipe.labels == "soft" else ""
    if recipe.name == "reference":
        data = "none, the answers of the prompt sets"
    text = f"fresh text, lambda {recipe.on_policy:g}" if recipe.fresh else "fixed text, lambda 0"
    vocabulary = f"{plan.vocabulary:,}" if plan.vocabulary else "all"
    return (
        f"recipe {recipe.name}: KD data T {data}; {text}; {recipe.labels} labels{loss}\n"
        f"training: {plan.num_tokens:,} tokens, batches of {plan.batch_tokens:,}, {plan.accumulate} per step; "
        f"{plan.optimizer}, learning rate {plan.learning_rate:g}; vocabulary of a batch: {vocabulary}"
    )


def _summary(card: dict[str, Any], out: Path) -> list[str]:
    counts = ((kind, num_tokens, card["seconds"][kind]) for kind, num_tokens in card["tokens"].items() if num_tokens)
    lines = [f"{kind}: {num_tokens:,} tokens in {seconds:,.0f} s" for kind, num_tokens, seconds in counts]
    for found in card["held_out_acceptance"]:
        decoded = f"alpha {found['alpha']:.3f}, block efficiency {found['block_efficiency']:.2f}"
        text = f"{found['prompt_set']}  T = {found['temperature']}  alpha_text {found['alpha_text']:.3f}"
        lines.append(f"{text}  k = {found['num_draft_tokens']}: {decoded}")
    return [*lines, f"draft: {out / 'draft'}   card: {out / 'card.json'}"]


def _sources(given: Sequence[str]) -> tuple[str, ...]:
    """Return the prompt sets, with NAME@3 three times."""
    found: list[str] = []
    for text in given:
        times = re.fullmatch(r"(.+)@([0-9]+)", text)
        found += [times[1]] * count_of("--prompts", times[2]) if times else [text]
    return tuple(found)


def _shares(text: str) -> tuple[tuple[float, float], ...]:
    """Return KD data temperatures with their shares; a share that is not given is 1."""
    parts = [part.partition(":") for part in text.split(",")]
    return tuple((number_of("--mix", temperature), number_of("--mix", share or "1")) for temperature, _, share in parts)


def _number(args: Namespace, name: str) -> float | None:
    text = getattr(args, name)
    return None if text is None else number_of(f"--{name.replace('_', '-')}", text)
