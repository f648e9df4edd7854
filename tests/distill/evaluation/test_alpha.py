"""Analytic alpha: the text's acceptance against definitions, and against the reference decoder's counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from backends.engines.reference import Options, ReferenceBackend
from bench.analysis.metrics import count_rounds
from bench.records.decoding import DecodeRequest
from distill.evaluation.alpha import TextAcceptance, acceptance, alpha_text, slot_totals
from distill.text.table import TextRow
from tests.support.tiny_distillation import END, PROMPTS, tiny_draft, tiny_target, tiny_text, tiny_windows

pytestmark = pytest.mark.usefixtures("one_thread")

NEW_TOKENS = 24
NUM_PROMPTS = 16
NUM_RUNS = 12  # of the decoder on each prompt


def head(*, num_layers: int = 2) -> torch.Tensor:
    return tiny_target(num_layers=num_layers).get_output_embeddings().weight.detach()


def naive(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return (logits.double() / temperature).softmax(-1)


@pytest.mark.parametrize(("decode_t", "draft_t"), [(0.0, 0.0), (0.7, 0.7), (1.0, 0.5), (0.5, 0.0)])
def test_acceptance_along_a_text_is_its_definition(tmp_path: Path, decode_t: float, draft_t: float) -> None:
    rows = tiny_text(tmp_path, decode_t, num_tokens=150)
    target, draft = tiny_target(), tiny_draft()
    (found,) = acceptance(draft, rows, head(), [(decode_t, draft_t)])
    assert len(found) == len(rows)
    for row, along in zip(rows, found, strict=True):
        text = torch.cat((row.prompt, row.answer))[None]
        with torch.inference_mode():
            places = slice(len(row.prompt) - 1, -1)
            target_probs = naive(target(text).logits[0, places], decode_t)
            draft_probs = naive(draft(text).logits[0, places], draft_t)
        overlap = torch.minimum(target_probs, draft_probs).sum(-1)
        ratio = (draft_probs / target_probs).gather(1, row.answer[:, None]).squeeze(1).clamp(max=1)
        assert along.overlap == pytest.approx(overlap.tolist(), abs=1e-4)  # float32
        assert along.accepted == pytest.approx(ratio.tolist(), abs=1e-3)


def test_a_draft_that_is_the_target_is_always_accepted(tmp_path: Path) -> None:
    rows = tiny_text(tmp_path, 0.7)
    (along,) = acceptance(tiny_target(), rows, head(), [(0.7, 0.7)])
    assert alpha_text(along) == pytest.approx(1, abs=1e-4)  # float32
    assert slot_totals(along, 3).alpha == pytest.approx(1, abs=1e-3)


Counts = tuple[float, float, float, float]  # tested, accepted, emitted, rounds


def decoded(num_draft_tokens: int, temperature: float) -> list[Counts]:
    """What the reference decoder counts, a prompt at a time."""
    # For models this small, packed weights take twice the time of plain ones.
    backend = ReferenceBackend(tiny_target(num_layers=1), tiny_draft(num_layers=1), Options(weights="plain"))
    found = []
    for place, prompt in enumerate(PROMPTS[:NUM_PROMPTS]):
        requests = [
            DecodeRequest(
                prompt,
                NEW_TOKENS,
                num_draft_tokens,
                temperature=temperature,
                seed=1000 * run + place,
                eos_token_ids=(END,),
            )
            for run in range(1 if temperature == 0 else NUM_RUNS)
        ]
        counts = count_rounds(round_ for request in requests for round_ in backend.generate(request).rounds or ())
        found.append((counts.tested, counts.accepted, counts.emitted, counts.rounds))
    return found


def propagated(rows: Sequence[TextRow], texts: Sequence[TextAcceptance], num_draft_tokens: int) -> list[Counts]:
    """What the text says these counts should be, a prompt at a time."""
    found = []
    for prompt in PROMPTS[:NUM_PROMPTS]:
        own = [text for row, text in zip(rows, texts, strict=True) if tuple(row.prompt.tolist()) == prompt]
        whole = slot_totals(own, num_draft_tokens)
        # The decoder never drafts the last token that the limit allows: the target's own comes there anyway.
        drafted = [
            replace(text, accepted=text.accepted[: NEW_TOKENS - 1], overlap=text.overlap[: NEW_TOKENS - 1]) for text in own
        ]
        tested = slot_totals(drafted, num_draft_tokens)
        found.append((tested.tested, tested.accepted, whole.emitted, whole.rounds))
    return found


def ratio(counts: Sequence[Counts], top: int, bottom: int) -> tuple[float, torch.Tensor]:
    """A ratio of totals over prompts, and what each prompt adds to its error by the delta method."""
    tops, bottoms = (torch.tensor([of_prompt[place] for of_prompt in counts]) for place in (top, bottom))
    value = tops.sum() / bottoms.sum()
    return value.item(), (tops - value * bottoms) / bottoms.sum()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_slots_along_the_targets_text_give_the_decoders_alpha_and_block_efficiency(tmp_path: Path, temperature: float) -> None:
    target = tiny_target(num_layers=1)  # one layer: half the time of two, and acceptance is much the same
    rows = tiny_windows(tmp_path, temperature, num_windows=3, max_new_tokens=NEW_TOKENS, target=target)
    (texts,) = acceptance(tiny_draft(num_layers=1), rows, head(num_layers=1), [(temperature, temperature)])
    for num_draft_tokens in (1, 2, 4):
        counted, expected = decoded(num_draft_tokens, temperature), propagated(rows, texts, num_draft_tokens)
        assert 0.2 < ratio(counted, 1, 0)[0] < 0.95, "the case needs a draft that is sometimes right"
        for top, bottom in ((1, 0), (2, 3)):  # alpha, block efficiency
            found, found_parts = ratio(counted, top, bottom)
            wanted, wanted_parts = ratio(expected, top, bottom)
            error = (found_parts - wanted_parts).std().item() * math.sqrt(NUM_PROMPTS)
            if temperature == 0:
                assert found == pytest.approx(wanted, abs=1e-6)  # one text, and every acceptance is 0 or 1
            else:
                assert error < 0.05 * wanted, "the case needs more texts"
                # Fixed seeds; false-alarm rate 0.1 % a comparison
                assert abs(found - wanted) < stats.t.ppf(0.9995, NUM_PROMPTS - 1) * error


def test_alpha_text_weighs_positions_otherwise_than_the_decoder(tmp_path: Path) -> None:
    # A right token after a wrong one, over and over: at k = 1 only the wrong ones and every other right one are tested.
    texts = [TextAcceptance(overlap=(0.0, 1.0) * 50, accepted=(0.0, 1.0) * 50)]
    assert alpha_text(texts) == 0.5
    assert slot_totals(texts, 1).alpha != pytest.approx(0.5, abs=0.1)
