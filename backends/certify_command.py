"""`specheat certify`: whether a decoder's tokens follow its target, from texts decoded now or anywhere else.

Generates with a backend, or reads `--samples`, a JSONL file with one text a line:

    {"prompt_ids": [1, 2], "token_ids": [3, 4], "finish_reason": "stop" | "length", "rounds": [[2, 1, 2], ...]}

`rounds` (drafted, accepted, emitted) may be missing; then there is no judgement by slot. A text that stopped has to end in
its end token, because dropping it would select draws; where it is missing it is appended.
"""

from __future__ import annotations

import itertools
import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import settings
from bench.protocols import BackendUnavailable
from bench.records import DecodeRequest, ModelPair, Round
from bench.settings import Settings

if TYPE_CHECKING:
    from backends.scoring import Text
    from bench.losslessness import Certificate

EXIT_STATUS = {"LOSSLESS": 0, "LOSSY": 1, "INCONCLUSIVE": 3}
GREEDY_TOKENS = 500  # at T = 0; a share of wrong tokens of 1 % is then found 99 times in 100
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
SAMPLE_KEYS = ("prompt_ids", "token_ids", "finish_reason")


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
            "--samples", type=Path, metavar="JSONL", help="judge these texts of the pair's target, decode none"
        )
        parser.add_argument("--json", action="store_true", help="print JSON")
        settings.add_options(_Shared(parser))
        parser.set_defaults(max_new_tokens=DEFAULT_NEW_TOKENS)

    def run(self, args: Namespace) -> int:
        asked = _single(settings.from_options(args))
        num_tokens = None if args.tokens is None else _whole_number("--tokens", args.tokens)
        if args.samples is not None and (args.backend or num_tokens is not None):
            raise ValueError("expected --samples, or --backend and --tokens, got both")

        from backends import pairs

        pair = pairs.resolve(
            asked.pair, target=asked.target, draft=asked.drafts[0], dtype=asked.dtype, pairs_file=asked.pairs_file
        )
        if asked.inflations[0] is not None:
            pair = pairs.inflated(pair, asked.inflations[0])
        made = _decode(asked, pair, num_tokens) if args.samples is None else _Made(read_samples(args.samples, pair))
        certificate, near_tie, score_s = _judge(made, asked, pair)
        facts = {
            "decoder": args.samples.name if args.samples is not None else f"{asked.backends[0]} {asked.rules[0]}",
            "pair": pair.name,
            "dtype": pair.dtype,
            "temperature": asked.temperatures[0],
            "num_texts": len(made.texts),
            "near_tie": near_tie,
            "decode_s": made.decode_s,
            "score_s": score_s,
        }
        print(_as_json(certificate, facts) if args.json else "\n".join(_as_text(certificate, facts)))
        return EXIT_STATUS[certificate.verdict]


class _Shared:
    """Declares those options of the suites that mean something here; the others take their defaults."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser

    def add_argument(self, name: str, **details: Any) -> None:
        if name in SHARED_OPTIONS:
            self.parser.add_argument(name, **details)
        elif name != "--temperatures":
            off = False if details.get("action") == "store_true" else None
            self.parser.set_defaults(**{name[2:].replace("-", "_"): details.get("default", off)})


@dataclass(frozen=True, slots=True)
class _Made:
    """The texts to be judged."""

    texts: list[Text]
    differing_texts: int = 0  # from the autoregressive ones; counted at T = 0 in float32
    decode_s: float | None = None  # None: decoded elsewhere


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One output as its engine gave it."""

    prompt_index: int
    repeat: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    stopped: bool
    rounds: tuple[Round, ...] | None

    def as_text(self, end_token_ids: Sequence[int]) -> Text:
        """With its end token and its slots.

        Raises: ValueError: the end token is missing and could be any of several, or the rounds do not add up
        """
        from backends.scoring import Text, slots_of

        token_ids, rounds = self.token_ids, self.rounds
        if self.stopped and (not token_ids or token_ids[-1] not in end_token_ids):
            if len(end_token_ids) != 1:
                raise ValueError(
                    f"the text stopped and its end token is missing, and the target has {len(end_token_ids)}: "
                    "give it in token_ids"
                )
            if rounds and sum(round_.emitted for round_ in rounds) == len(token_ids) - 1:
                rounds = _with_one_more(rounds)
            token_ids = (*token_ids, *end_token_ids)
        slots = slots_of(rounds, len(token_ids))
        return Text(self.prompt_ids, token_ids, slots, self.prompt_index, self.repeat)


def _with_one_more(rounds: tuple[Round, ...]) -> tuple[Round, ...]:
    """Rounds that did not count the end token, which came next: within the last round, or alone in another."""
    last = rounds[-1]
    if last.emitted <= last.accepted:
        return (*rounds[:-1], replace(last, emitted=last.emitted + 1))
    return (*rounds, Round(drafted=max(1, last.drafted), accepted=0, emitted=1))


def _single(asked: Settings) -> Settings:
    """One decoder at one temperature is judged."""
    for name, option in ONE_OF_EACH.items():
        if len(getattr(asked, name)) != 1:
            raise ValueError(f"expected one {option}, got {len(getattr(asked, name))}")
    return asked


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"expected {name} to be a whole number >= 1, got {text!r}")
    return int(text)


def _decode(asked: Settings, pair: ModelPair, num_tokens: int | None) -> _Made:
    from backends import formatting, pairs
    from bench import losslessness, prompts
    from bench.registry import backend_factory

    factory = backend_factory(asked.backends[0])
    pairs.check_compatible(pair)
    tokenizer = pairs.tokenizer(pair)
    prompt_format = formatting.prompt_format(
        tokenizer,
        chat_template=asked.chat_template,
        system_prompt=asked.system_prompt,
        max_prompt_tokens=asked.max_prompt_tokens,
    )
    encoded = formatting.encode(
        prompts.load(asked.prompts[0]),
        tokenizer,
        prompt_format,
        context_length=pairs.context_length(pair),
        max_new_tokens=asked.max_new_tokens,
        num_draft_tokens=asked.num_draft_tokens[0],
    )
    end_token_ids = formatting.end_token_ids(pair)
    if num_tokens is None:
        num_tokens = losslessness.tokens_for_lossless() if asked.temperatures[0] else GREEDY_TOKENS
    assert num_tokens is not None
    requests = _requests(asked, [prompt.ids for prompt in encoded], end_token_ids)
    compare = asked.temperatures[0] == 0 and pair.dtype == "float32"
    backend = factory(pair, device=asked.device, options=dict(asked.options_of(asked.backends[0])))
    if asked.rules[0] not in backend.capabilities.rules:
        known = ", ".join(sorted(backend.capabilities.rules))
        raise ValueError(f"expected an acceptance rule that {backend.name} has ({known}), got {asked.rules[0]!r}")
    texts: list[Text] = []
    differing, decode_s = 0, 0.0
    with _Progress(num_tokens) as progress:
        for index, repeat, request in requests:
            started = time.perf_counter()
            try:
                made = backend.generate(request)
                backend.synchronize()
            except RuntimeError as error:
                backend.close()
                raise BackendUnavailable(f"{backend.name}: {str(error).splitlines()[0]}") from error
            decode_s += time.perf_counter() - started
            stopped = made.finish_reason == "stop"
            decoded = _Decoded(index, repeat, request.prompt_ids, made.token_ids, stopped, made.rounds)
            texts.append(decoded.as_text(end_token_ids))
            if compare:
                differing += backend.generate(replace(request, num_draft_tokens=0)).token_ids != made.token_ids
            progress.advance(len(made.token_ids))
            if sum(len(text.token_ids) for text in texts) >= num_tokens:
                break
    backend.close()
    return _Made(texts, differing, decode_s)


def _requests(
    asked: Settings, prompt_ids: Sequence[tuple[int, ...]], end_token_ids: tuple[int, ...]
) -> Iterator[tuple[int, int, DecodeRequest]]:
    """Prompt index, repeat and request: each prompt again and again with other seeds; at T = 0 once."""
    from bench.measure import derive_seed

    temperature = asked.temperatures[0]
    for repeat in itertools.count() if temperature else (0,):
        for index, ids in enumerate(prompt_ids):
            yield (
                index,
                repeat,
                DecodeRequest(
                    prompt_ids=ids,
                    max_new_tokens=asked.max_new_tokens,
                    num_draft_tokens=asked.num_draft_tokens[0],
                    temperature=temperature,
                    draft_temperature=asked.draft_temperatures[0],
                    top_k=asked.top_k,
                    top_p=asked.top_p,
                    rule=asked.rules[0],
                    seed=derive_seed(asked.seed, "certify", index, repeat),
                    eos_token_ids=end_token_ids,
                ),
            )


class _Progress:
    """A bar on standard error, where that is a terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.bar = Progress(console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("tokens", total=total)

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, count: int) -> None:
        self.bar.advance(self.task, count)


def read_samples(path: Path, pair: ModelPair) -> list[Text]:
    """Texts of a JSONL file, in the target's ids.

    Raises:  ValueError: no text, or what is wrong with which line
    """
    from transformers import AutoConfig

    from backends import formatting, pairs

    context_length = pairs.context_length(pair)
    vocab_size = AutoConfig.from_pretrained(pair.target, local_files_only=True).get_text_config().vocab_size
    end_token_ids = formatting.end_token_ids(pair)
    texts = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            decoded = _parsed(index, line, vocab_size)
            text = decoded.as_text(end_token_ids)
            length = len(text.prompt_ids) + len(text.token_ids)
            if length > context_length:
                raise ValueError(f"expected at most {context_length} tokens with the prompt, got {length}")
        except ValueError as error:
            raise ValueError(f"{path.name}, line {index + 1}: {error}") from error
        texts.append(text)
    if not texts:
        raise ValueError(f"{path.name}: expected at least one text, got none")
    return texts


def _parsed(index: int, line: str, vocab_size: int) -> _Decoded:
    row = json.loads(line)
    if not isinstance(row, dict) or not set(SAMPLE_KEYS) <= set(row) <= {*SAMPLE_KEYS, "rounds"}:
        got = ", ".join(row) if isinstance(row, dict) else line[:40]
        raise ValueError(f"expected an object of {', '.join(SAMPLE_KEYS)} and maybe rounds, got {got or 'nothing'}")
    if row["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"expected a finish_reason of stop or length, got {row['finish_reason']!r}")
    stopped = row["finish_reason"] == "stop"
    token_ids = _ids("token_ids", row["token_ids"], vocab_size, least=0 if stopped else 1)
    rounds = row.get("rounds")
    return _Decoded(
        prompt_index=index,
        repeat=0,
        prompt_ids=_ids("prompt_ids", row["prompt_ids"], vocab_size, least=1),
        token_ids=token_ids,
        stopped=stopped,
        rounds=None if rounds is None else _rounds(rounds),
    )


def _ids(name: str, values: Any, vocab_size: int, *, least: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) < least:
        raise ValueError(f"expected {name} to be a list of at least {least} ids, got {json.dumps(values)[:40]}")
    for value in values:
        if type(value) is not int or not 0 <= value < vocab_size:
            raise ValueError(f"expected ids of 0 to {vocab_size - 1} in {name}, got {json.dumps(value)[:40]}")
    return tuple(values)


def _rounds(rows: Any) -> tuple[Round, ...]:
    if not isinstance(rows, list):
        raise ValueError(f"expected rounds to be a list, got {json.dumps(rows)[:40]}")
    return tuple(map(_round, rows))


def _round(row: Any) -> Round:
    if not isinstance(row, list) or len(row) != 3 or any(type(count) is not int for count in row):
        raise ValueError(f"expected a round of [drafted, accepted, emitted], got {json.dumps(row)[:40]}")
    drafted, accepted, emitted = row
    if not (0 <= accepted <= drafted and accepted <= emitted <= accepted + 1 and emitted >= 1):
        raise ValueError(f"expected accepted <= drafted and emitted of accepted or one more, got {row}")
    return Round(drafted, accepted, emitted)


def _judge(made: _Made, asked: Settings, pair: ModelPair) -> tuple[Certificate, float, float]:
    """Certificate, tau, and the seconds that scoring took. The target is loaded once the engine's memory is free."""
    from backends.scoring import TargetScorer, load_target, near_tie_tolerance
    from bench import losslessness
    from bench.records import Evidence

    temperature = asked.temperatures[0]
    target = load_target(pair, asked.device)
    started = time.perf_counter()
    near_tie = near_tie_tolerance(target, [text.prompt_ids for text in made.texts], asked.num_draft_tokens[0])
    scored = TargetScorer(target).score_texts(
        made.texts, temperature=temperature, top_k=asked.top_k, top_p=asked.top_p, seed=asked.seed, near_tie=near_tie
    )
    score_s = time.perf_counter() - started
    sample = losslessness.Sample(Evidence(pair.dtype, near_tie, scored), temperature, made.differing_texts)
    return losslessness.certify([sample]), near_tie, score_s


def _as_json(certificate: Certificate, facts: dict[str, Any]) -> str:
    slots = [{"name": result.name, **asdict(result)} for result in certificate.slots]
    return json.dumps({**asdict(certificate), "slots": slots, **facts}, indent=1)


def _as_text(certificate: Certificate, facts: dict[str, Any]) -> Iterable[str]:
    from tabulate import tabulate

    yield (
        f"{certificate.verdict}: {facts['decoder']}, {facts['pair']} {facts['dtype']}, T = {facts['temperature']:g}, "
        f"{certificate.num_tokens} tokens of {facts['num_texts']} texts"
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
