"""`specheat certify`: tests whether a decoder's tokens follow its target, on outputs decoded now or anywhere else.

It decodes with a backend, or reads `--samples`, a JSONL file with one output per line:

    {"prompt_ids": [1, 2], "token_ids": [3, 4], "finish_reason": "stop" | "length", "rounds": [[2, 1, 2], ...]}

`rounds` (drafted, accepted, emitted) may be missing; then there is no judgement by slot. An output that stopped has to end with
its end token, because leaving out that draw would bias the sample; a missing end token is appended.
"""

from __future__ import annotations

import itertools
import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BackendUnavailable, first_line
from bench.options import arguments
from bench.options.settings import Settings
from bench.options.values import count_of
from bench.progress import Meter
from bench.records.decoding import DecodeRequest, ModelPair, derive_seed

if TYPE_CHECKING:
    from backends.certification.scoring import Text
    from bench.analysis.certificate import Certificate
    from bench.measurement.recording import Workload


EXIT_STATUS = {"LOSSLESS": 0, "LOSSY": 1, "INCONCLUSIVE": 3}
GREEDY_TOKENS = 500  # at T = 0; if 1 % of tokens are wrong, that is found 99 times in 100
DEFAULT_NEW_TOKENS = "64"
SHARED_OPTIONS = (
    *("--backend", "--backend-option", "--pair", "--target", "--draft", "--pairs-file", "--inflate"),
    *("--device", "--dtype"),
    *("--rule", "--draft-temperature", "--num-draft-tokens", "--top-k", "--top-p", "--prompts", "--max-new-tokens"),
    *("--max-prompt-tokens", "--chat-template", "--system-prompt", "--seed"),
)
ONE_OF_EACH = {
    "backends": "--backend",
    "drafts": "--draft",
    "inflations": "--inflate",
    "rules": "--rule",
    "temperatures": "--temperature",
    "draft_temperatures": "--draft-temperature",
    "num_draft_tokens": "--num-draft-tokens",
    "prompts": "--prompts",
}


class Certify:
    help = "test whether a decoder's tokens follow its target (exit: 0 lossless, 1 lossy, 3 inconclusive)"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--temperature", dest="temperatures", required=True, metavar="T", help="decode temperature; 0 is greedy"
        )
        parser.add_argument(
            "--tokens", metavar="N", help="tokens to decode (default: what a LOSSLESS verdict needs; at T = 0 500)"
        )
        parser.add_argument(
            "--samples", type=Path, metavar="JSONL", help="judge these outputs of the pair's target, decode none"
        )
        parser.add_argument("--json", action="store_true", help="print JSON")
        arguments.add_options(parser, only=SHARED_OPTIONS)
        parser.set_defaults(max_new_tokens=DEFAULT_NEW_TOKENS)

    def run(self, args: Namespace) -> int:
        settings = _single(arguments.from_options(args))
        num_tokens = None if args.tokens is None else count_of("--tokens", args.tokens)
        if args.samples is not None and (args.backend or num_tokens is not None):
            raise ValueError("expected --samples, or --backend and --tokens, got both")

        from backends.certification.samples import read_samples
        from backends.models import pairs

        (draft,), dtype, more_pairs = settings.drafts, settings.dtype, settings.pairs_file
        pair = pairs.resolve(settings.pair, target=settings.target, draft=draft, dtype=dtype, pairs_file=more_pairs)
        if settings.inflations[0] is not None:
            pair = pairs.inflated(pair, settings.inflations[0])
        if args.samples is None:
            decoder, made = f"{settings.backends[0]} {settings.rules[0]}", _decode(settings, pair, num_tokens)
        else:
            decoder, made = args.samples.name, _Made(read_samples(args.samples, pair))
        certificate, near_tie, score_s = _judge(made, settings, pair)
        facts = {
            "decoder": decoder,
            "pair": pair.name,
            "dtype": pair.dtype,
            "temperature": settings.temperatures[0],
            "num_texts": len(made.texts),
            "near_tie": near_tie,
            "decode_s": made.decode_s,
            "score_s": score_s,
        }
        print(_as_json(certificate, facts) if args.json else "\n".join(_lines(certificate, facts)))
        return EXIT_STATUS[certificate.verdict]


@dataclass(frozen=True, slots=True)
class _Made:
    """The outputs to be judged."""

    texts: list[Text]
    differing_texts: int = 0  # from the autoregressive ones; counted at T = 0 in float32
    decode_s: float | None = None  # None: decoded elsewhere


def _single(settings: Settings) -> Settings:
    """Check that the settings describe one decoder at one temperature."""
    for name, option in ONE_OF_EACH.items():
        if len(getattr(settings, name)) != 1:
            raise ValueError(f"expected one {option}, got {len(getattr(settings, name))}")
    return settings


def _decode(settings: Settings, pair: ModelPair, num_tokens: int | None) -> _Made:
    from backends.certification.samples import with_end_token
    from backends.certification.scoring import Text, slots_of
    from backends.models import checkpoints, workloads
    from bench.analysis.certificate import tokens_for_lossless
    from bench.prompts import sets
    from bench.registry import backend_factory

    factory = backend_factory(settings.backends[0])
    checkpoints.check_compatible(pair)
    workload = workloads.prepare(pair, sets.load(settings.prompts[0]), settings)
    if num_tokens is None:
        num_tokens = tokens_for_lossless() if settings.temperatures[0] else GREEDY_TOKENS
    assert num_tokens is not None
    requests = _requests(settings, workload)
    compare = settings.temperatures[0] == 0 and pair.dtype == "float32"  # in bfloat16 near-ties give other ids
    backend = factory(pair, device=settings.device, options=dict(settings.options_of(settings.backends[0])))
    texts: list[Text] = []
    differing, decode_s = 0, 0.0
    with closing(backend), Meter("decoding", num_tokens) as meter:
        if settings.rules[0] not in backend.capabilities.rules:
            known = ", ".join(sorted(backend.capabilities.rules))
            raise ValueError(f"expected an acceptance rule that {backend.name} has ({known}), got {settings.rules[0]!r}")
        for index, repeat, request in requests:
            started = time.perf_counter()
            try:
                made = backend.generate(request)
                backend.synchronize()  # `generate` may return before the device has finished
            except RuntimeError as error:
                raise BackendUnavailable(f"{backend.name}: {first_line(error)}") from error
            decode_s += time.perf_counter() - started
            token_ids, rounds = made.token_ids, made.rounds
            if made.finish_reason == "stop":
                token_ids, rounds = with_end_token(token_ids, rounds, workload.end_token_ids)
            texts.append(Text(request.prompt_ids, token_ids, slots_of(rounds, len(token_ids)), index, repeat))
            if compare:
                differing += backend.generate(replace(request, num_draft_tokens=0)).token_ids != made.token_ids
            meter.step(len(made.token_ids))
            if sum(len(text.token_ids) for text in texts) >= num_tokens:
                break
    return _Made(texts, differing, decode_s)


def _requests(settings: Settings, workload: Workload) -> Iterator[tuple[int, int, DecodeRequest]]:
    """Yield prompt index, repeat and request: each prompt again and again with other seeds; at T = 0 once."""
    from bench.measurement.cells import first_cell, request_of

    cell = first_cell("certify", settings.backends[0], settings, workload)
    for repeat in itertools.count() if cell.temperature else (0,):
        for index, prompt_ids in enumerate(workload.prompt_ids):
            request = request_of(cell, prompt_ids, workload.end_token_ids)
            yield index, repeat, replace(request, seed=derive_seed(settings.seed, "certify", index, repeat))


def _judge(made: _Made, settings: Settings, pair: ModelPair) -> tuple[Certificate, float, float]:
    """Return the certificate, tau, and the seconds of scoring. The target is loaded after the engine's memory is free."""
    from backends.certification.scoring import TargetScorer, load_target, near_tie_tolerance
    from bench.analysis.certificate import Sample, certify
    from bench.records.runs import Evidence

    temperature = settings.temperatures[0]
    target = load_target(pair, settings.device)
    started = time.perf_counter()
    near_tie = near_tie_tolerance(target, [text.prompt_ids for text in made.texts], settings.num_draft_tokens[0])
    scored = TargetScorer(target).score_texts(
        made.texts, temperature=temperature, top_k=settings.top_k, top_p=settings.top_p, seed=settings.seed, near_tie=near_tie
    )
    score_s = time.perf_counter() - started
    sample = Sample(Evidence(pair.dtype, near_tie, scored), temperature, made.differing_texts)
    return certify([sample]), near_tie, score_s


def _as_json(certificate: Certificate, facts: dict[str, Any]) -> str:
    slots = [{"name": result.name, **asdict(result)} for result in certificate.slots]
    return json.dumps({**asdict(certificate), "slots": slots, **facts}, indent=1)


def _lines(certificate: Certificate, facts: dict[str, Any]) -> Iterable[str]:
    from tabulate import tabulate

    yield (
        f"{certificate.verdict}: {facts['decoder']}, {facts['pair']} {facts['dtype']}, T = {facts['temperature']:g}, "
        f"{certificate.num_tokens} tokens in {facts['num_texts']} outputs"
    )
    yield from (f"  {words}" for words in certificate.words)
    if certificate.off_support or certificate.at_boundary:
        yield (
            f"  outside top-k and top-p: {certificate.off_support} tokens, and {certificate.at_boundary} more at their "
            "boundary, within numerical noise"
        )
    if certificate.slots:
        rows = [
            (
                result.name,
                result.num_tokens,
                f"{result.distance:.3f}",
                f"{result.distance_low:.3f} .. {result.distance_high:.3f}",
                f"{result.distance_p:.2g}",
                f"{result.surprisal_z:+.1f}",
                f"{result.surprisal_p:.2g}",
            )
            for result in certificate.slots
        ]
        headers = ("", "tokens", "D", "99 % bounds", "p", "z of surprisal", "p")
        yield ""
        yield tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", *["right"] * 6))
    else:
        yield f"  tau = {facts['near_tie']:.3g}, largest gap {certificate.largest_gap:.3g}"
    decoding = "" if facts["decode_s"] is None else f"decoding took {facts['decode_s']:.1f} s, "
    yield f"\n{decoding}scoring {facts['score_s']:.1f} s"
