"""Scores outputs of any engine with the target: one teacher-forced pass over token ids.

The result is the raw material of the losslessness certificate (`bench.analysis.certificate`), which draws the verdict.
Probabilities are those of `backends.acceptance.warping.warp`. Outputs are batched by length and padded at their ends: causal
attention never looks ahead, so padding needs no mask. Only ROWS_AT_A_TIME tokens have float32 rows of V entries.

Shape letters: B outputs of a batch, T tokens, N rows scored, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from backends.acceptance.warping import SMALLEST_TEMPERATURE, warp
from backends.forwards.cached_model import cached
from backends.models.loading import load_model
from bench.protocols import Backend
from bench.records.decoding import FIRST, ModelPair, Round, Schedule, derive_seed, emitted_positions, schedule_text
from bench.records.runs import Cell, Evidence, TextEvidence, TimedPair

ROWS_AT_A_TIME = 128
BATCH_BYTES = 2**28  # of logits in the model's dtype
NEVER = -1e4  # log-probability of an impossible token: finite, so that 0 times it is 0
NEAR_TIE_PROMPTS = 4
NEAR_TIE_TOKENS = 16  # per prompt
NEAR_TIE_QUANTILE = 0.999


@dataclass(frozen=True, slots=True)
class Text:
    """One output to be scored, its end token included."""

    prompt_ids: tuple[int, ...]  # (P,) P >= 1
    token_ids: tuple[int, ...]  # (N,) N >= 1
    slots: tuple[int, ...]  # (N,) as in TextEvidence
    prompt_index: int = 0
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """Where each token lies in the target's distribution, still on the device."""

    mass_above_N: Tensor  # of the tokens before it: by descending probability, ties by id
    prob_N: Tensor
    surprisal_N: Tensor  # nats
    entropy_N: Tensor
    variance_N: Tensor  # of the surprisal
    off_N: Tensor  # bool: truncation gives the token probability 0
    forbidden_N: Tensor  # bool: and still would if logits were off by near_tie


class TargetScorer:
    """Scores outputs with one target model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @torch.inference_mode()
    def score_texts(
        self,
        texts: Sequence[Text],
        *,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
        schedule: Schedule = (),
        seed: int = 0,
        near_tie: float = 0.0,
    ) -> tuple[TextEvidence, ...]:
        """Score outputs that were decoded at one temperature, or by one schedule, and one truncation.

        Args:    schedule: temperatures by token, instead of `temperature`
                 seed: of the uniform numbers that randomise the transform
                 near_tie: how far a logit may be off. A token that close to the support's boundary gets pit 1 and is not
                 marked as off the support
        Returns: evidence in the order of the texts
        Raises:  ValueError: a schedule with T = 0, whose tokens have other evidence
        """
        if any(piece == 0 for _, piece in schedule):
            raise ValueError(f"expected a schedule of temperatures above 0, got {schedule_text(schedule)}")
        scored: dict[int, TextEvidence] = {}
        for batch in self._batches(texts):
            for logits_NV, i in zip(self.logits([texts[i] for i in batch]), batch, strict=True):
                text = texts[i]
                tokens_N = torch.tensor(text.token_ids, device=logits_NV.device)
                if temperature == 0 and not schedule:
                    gap_N = (logits_NV.amax(-1) - _of_token(logits_NV, tokens_N)).float()
                    scored[i] = TextEvidence(text.prompt_index, text.repeat, text.slots, logit_gap=tuple(gap_N.tolist()))
                    continue
                chunks = [
                    _place(logits_NV[some], tokens_N[some], temperature=piece, top_k=top_k, top_p=top_p, near_tie=near_tie)
                    for some, piece in _stretches(len(tokens_N), schedule or ((0, temperature),))
                ]
                scored[i] = _sampled(text, chunks, seed)
        return tuple(scored[i] for i in range(len(texts)))

    def _batches(self, texts: Sequence[Text]) -> Iterator[list[int]]:
        """Yield indices of texts of similar length, as many as BATCH_BYTES of logits allow."""
        vocab_size = self.model.config.get_text_config().vocab_size
        tokens_at_a_time = max(1, BATCH_BYTES // (vocab_size * self.model.dtype.itemsize))
        batch: list[int] = []
        lengths = [len(text.prompt_ids) + len(text.token_ids) for text in texts]
        for i in sorted(range(len(texts)), key=lengths.__getitem__):
            shortest_prompt = min(len(texts[j].prompt_ids) for j in (*batch, i))
            # Sorted, so this text is the longest. Rows before the end of the shortest prompt are not computed.
            if batch and (lengths[i] - shortest_prompt) * (len(batch) + 1) > tokens_at_a_time:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    @torch.inference_mode()
    def logits(self, texts: Sequence[Text]) -> list[Tensor]:
        """Return for each text the rows that judge its tokens, (N, V) in the model's dtype."""
        return self._of_decoder(texts) if self.model.config.is_encoder_decoder else self._of_causal(texts)

    def _of_causal(self, texts: Sequence[Text]) -> list[Tensor]:
        # Row t judges token t + 1. So the first new token is judged by the prompt's last row, and the last token is not fed.
        tokens_BT, _ = self._padded([(*text.prompt_ids, *text.token_ids[:-1]) for text in texts])
        first = min(len(text.prompt_ids) for text in texts) - 1  # no row before it is needed
        logits_BTV = self.model(tokens_BT, use_cache=False, logits_to_keep=tokens_BT.shape[1] - first).logits
        starts = [len(text.prompt_ids) - 1 - first for text in texts]
        return [
            logits_TV[start : start + len(text.token_ids)]
            for logits_TV, start, text in zip(logits_BTV, starts, texts, strict=True)
        ]

    def _of_decoder(self, texts: Sequence[Text]) -> list[Tensor]:
        prompts_BT, mask_BT = self._padded([text.prompt_ids for text in texts])
        start = self.model.config.decoder_start_token_id
        decoded_BT, _ = self._padded([(start, *text.token_ids[:-1]) for text in texts])
        logits_BTV = self.model(prompts_BT, attention_mask=mask_BT, decoder_input_ids=decoded_BT, use_cache=False).logits
        return [logits_TV[: len(text.token_ids)] for logits_TV, text in zip(logits_BTV, texts, strict=True)]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return rows filled up to the longest, and a mask that is 1 where they are not filled."""
        tokens_BT = pad_sequence([torch.tensor(row, device=self.model.device) for row in rows], batch_first=True)
        lengths_B1 = torch.tensor([[len(row)] for row in rows], device=self.model.device)
        return tokens_BT, (torch.arange(tokens_BT.shape[1], device=self.model.device) < lengths_B1).long()


def slots_of(rounds: Sequence[Round] | None, num_tokens: int) -> tuple[int, ...]:
    """Return the slot of each token, known before it is drawn: 0 prefill, 1..k by place in its round, -1 bonus.

    Returns: zeros if the engine reports no rounds, or none ran
    Raises:  as `placed_rounds`
    """
    slots = [FIRST] * num_tokens
    for position in emitted_positions(rounds or (), num_tokens):
        slots[position.place] = position.slot
    return tuple(slots)


@torch.inference_mode()
def near_tie_tolerance(model: PreTrainedModel, prompts: Sequence[Sequence[int]], num_draft_tokens: int) -> float:
    """Return tau: how much a token's gap to the best logit differs between forwards of one token and of several.

    The greedy continuation of a few prompts is fed one token at a time, k + 1 at a time, and all at once as the scorer does,
    each with its own cache, so that the cache's part of the noise is included. tau is the larger of the two 99.9th
    percentiles. Gaps are compared, not logits: a shift of all logits changes no distribution.
    """
    fed_to, scorer = cached(model), TargetScorer(model)
    round_by_round, at_once = [], []
    for prompt in prompts[:NEAR_TIE_PROMPTS]:
        prompt_1T = torch.tensor([tuple(prompt)], device=model.device)
        fed_to.reset()
        token_11 = fed_to.feed(prompt_1T, num_logits=1).argmax(-1, keepdim=True)
        fed, one_by_one = [], []
        for _ in range(NEAR_TIE_TOKENS):
            fed.append(token_11)
            one_by_one.append(fed_to.feed(token_11, num_logits=1))
            token_11 = one_by_one[-1].argmax(-1, keepdim=True)
        reference_NV, fed_1T = torch.cat(one_by_one), torch.cat(fed, 1)
        fed_to.reset()
        fed_to.feed(prompt_1T, num_logits=1)
        chunks = fed_1T.split(num_draft_tokens + 1, 1)
        chunked_NV = torch.cat([fed_to.feed(chunk, num_logits=chunk.shape[1]) for chunk in chunks])
        # The scorer's first row is the prompt's last; the rows after it belong to the tokens that were fed.
        (whole_NV,) = scorer.logits([Text(tuple(prompt), (*fed_1T[0].tolist(), 0), ())])
        round_by_round.append(_gap_difference(reference_NV, chunked_NV))
        at_once.append(_gap_difference(reference_NV, whole_NV[1:]))
    return max(float(np.quantile(np.concatenate(d), NEAR_TIE_QUANTILE)) for d in (round_by_round, at_once))


def _gap_difference(reference_NV: Tensor, other_NV: Tensor) -> NDArray[np.float32]:
    shift_NV = other_NV.float() - reference_NV.float()
    shift_of_best_N1 = shift_NV.gather(1, reference_NV.argmax(-1, keepdim=True))
    return (shift_NV - shift_of_best_N1).abs().flatten().cpu().numpy()


def evidence_for_cell(
    pairs: Sequence[TimedPair], prompt_ids: Sequence[Sequence[int]], cell: Cell, scorer: TargetScorer, near_tie: float
) -> Evidence:
    """Score every speculative output of a cell; `prompt_ids` are those of the run, one row per prompt."""
    texts = []
    for pair in pairs:
        slots = slots_of(pair.sd.rounds, len(pair.sd.token_ids))
        prompt = tuple(prompt_ids[pair.prompt_index])
        texts.append(Text(prompt, pair.sd.token_ids, slots, pair.prompt_index, pair.repeat))
    scored = scorer.score_texts(
        texts,
        temperature=cell.temperature,
        top_k=cell.top_k,
        top_p=cell.top_p,
        schedule=cell.schedule,
        seed=derive_seed(cell.seed, "certificate", *cell.draws),
        near_tie=near_tie,
    )
    return Evidence(cell.dtype, near_tie, scored)


def lent_target(backend: Backend) -> PreTrainedModel | None:
    """Return the target that an engine of this process has loaded, so that it need not be loaded twice; None if none has."""
    target = getattr(backend, "target", None)
    if not isinstance(target, PreTrainedModel):
        target = getattr(target, "model", None)
    return target if isinstance(target, PreTrainedModel) else None


def load_target(pair: ModelPair, device: str) -> PreTrainedModel:
    """Load the target of a resolved pair, in the pair's dtype."""
    return load_model(pair.target, dtype=pair.dtype, device=device, device_map=pair.device_map)


def _stretches(num_tokens: int, schedule: Schedule) -> Iterator[tuple[slice, float]]:
    """Yield parts of an output that have one temperature and at most ROWS_AT_A_TIME tokens."""
    for (start, temperature), (next_start, _) in pairwise((*schedule, (num_tokens, 0.0))):
        end = min(next_start, num_tokens)  # an output may end before its schedule
        for first in range(start, end, ROWS_AT_A_TIME):
            yield slice(first, min(first + ROWS_AT_A_TIME, end)), temperature


def _place(logits_NV: Tensor, tokens_N: Tensor, *, temperature: float, top_k: int, top_p: float, near_tie: float) -> Places:
    scores_NV = logits_NV.float()
    own_N1 = scores_NV.gather(1, tokens_N[:, None])  # the logit of each token itself
    ids_V = torch.arange(scores_NV.shape[-1], device=scores_NV.device)
    above_NV = (scores_NV > own_N1) | ((scores_NV == own_N1) & (ids_V < tokens_N[:, None]))
    best_N1 = scores_NV.amax(-1, keepdim=True)
    log_probs_NV = ((scores_NV - best_N1) / max(temperature, SMALLEST_TEMPERATURE)).log_softmax(-1)
    off_N = forbidden_N = torch.zeros_like(tokens_N, dtype=torch.bool)
    if 0 < top_k < len(ids_V) or top_p < 1:
        kept_NV = warp(logits_NV, temperature=temperature, top_k=top_k, top_p=top_p)
        off_N = _of_token(kept_NV, tokens_N) == 0
        beyond_N = _beyond_top_k(scores_NV, own_N1, top_k, slack=near_tie)
        beyond_N |= _beyond_top_p(log_probs_NV.exp(), above_NV, top_k, top_p, slack=near_tie / temperature)
        forbidden_N = off_N & beyond_N
        log_probs_NV = kept_NV.log()
    log_probs_NV = log_probs_NV.clamp_min(NEVER)
    probs_NV = log_probs_NV.exp()
    entropy_N = -(probs_NV * log_probs_NV).sum(-1)  # nats, of the warped distribution
    return Places(
        mass_above_N=(probs_NV * above_NV).sum(-1),
        prob_N=_of_token(probs_NV, tokens_N),
        surprisal_N=-_of_token(log_probs_NV, tokens_N),
        entropy_N=entropy_N,
        variance_N=(probs_NV * (log_probs_NV + entropy_N[:, None]).square()).sum(-1),
        off_N=off_N,
        forbidden_N=forbidden_N,
    )


def _beyond_top_k(scores_NV: Tensor, own_N1: Tensor, top_k: int, *, slack: float) -> Tensor:
    """Return whether a token's logit is more than `slack` below the last one that top-k keeps."""
    if not 0 < top_k < scores_NV.shape[-1]:
        return torch.zeros_like(own_N1[:, 0], dtype=torch.bool)
    return own_N1[:, 0] < scores_NV.topk(top_k).values[:, -1] - slack


def _beyond_top_p(probs_NV: Tensor, above_NV: Tensor, top_k: int, top_p: float, *, slack: float) -> Tensor:
    """Return whether the mass before a token exceeds top-p by more than noisy logits explain: by `slack` in log-odds."""
    if top_p == 1:
        return torch.zeros_like(above_NV[:, 0])
    top_mass_N = probs_NV.topk(top_k).values.sum(-1) if 0 < top_k < probs_NV.shape[-1] else probs_NV.sum(-1)
    share_N = ((probs_NV * above_NV).sum(-1) / top_mass_N).clamp_max(1)
    return share_N.logit() > math.log(top_p / (1 - top_p)) + slack


def _of_token(values_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return values_NV.gather(1, tokens_N[:, None])[:, 0]


def _sampled(text: Text, chunks: Sequence[Places], seed: int) -> TextEvidence:
    """Return the evidence of an output decoded at T > 0."""
    places = {field.name: torch.cat([getattr(chunk, field.name) for chunk in chunks]).cpu() for field in fields(Places)}
    off_N = places["off_N"]
    # One seed for each output, so that its evidence does not depend on the batch in which it was scored.
    generator = torch.Generator().manual_seed(derive_seed(seed, text.prompt_index, text.repeat))
    uniform_N = torch.rand(len(off_N), generator=generator, dtype=torch.float64)
    pit_N = places["mass_above_N"].double() + uniform_N * places["prob_N"].double()
    excess_N = places["surprisal_N"].double() - places["entropy_N"].double()
    return TextEvidence(
        prompt_index=text.prompt_index,
        repeat=text.repeat,
        slots=text.slots,
        # Rounding may lift a sum of probabilities to 1, a value that is reserved for tokens off the support.
        pit=tuple(pit_N.clamp_max(1 - 2**-53).masked_fill(off_N, 1.0).tolist()),
        excess_surprisal=tuple(excess_N.masked_fill(off_N, 0.0).tolist()),
        surprisal_variance=tuple(places["variance_N"].double().masked_fill(off_N, 0.0).tolist()),
        off_support=tuple(places["forbidden_N"].nonzero()[:, 0].tolist()),
    )
