"""Scoring the cells of a suite: with the target that the engine holds, or with one loaded for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from transformers import PreTrainedModel

from backends.certification import scoring
from bench.measurement.recording import Workload
from bench.options.settings import Settings
from bench.protocols import Backend
from bench.records.decoding import ModelPair
from bench.records.runs import Cell, Evidence, TimedPair

_NEAR_TIES: dict[tuple[object, ...], float] = {}  # measured once per process under the same conditions


def cell_scorer(backend: Backend, workload: Workload, settings: Settings) -> Callable[[Cell, Sequence[TimedPair]], Evidence]:
    """Return what scores the generations of a cell under the target, which is loaded with the first cell if need be."""
    pair, shown = workload.model_pair, workload.prompt_ids[: scoring.NEAR_TIE_PROMPTS]
    longest = max(settings.num_draft_tokens)
    conditions = (pair.target, pair.dtype, settings.device, shown, longest)

    def score(cell: Cell, timed: Sequence[TimedPair]) -> Evidence:
        model = scoring.lent_target(backend) or _loaded_target(pair, settings.device)
        if conditions not in _NEAR_TIES:
            _NEAR_TIES[conditions] = scoring.near_tie_tolerance(model, workload.prompt_ids, longest)
        scorer = scoring.TargetScorer(model)
        return scoring.evidence_for_cell(timed, workload.prompt_ids, cell, scorer, _NEAR_TIES[conditions])

    return score


@lru_cache(maxsize=1)
def _loaded_target(pair: ModelPair, device: str) -> PreTrainedModel:
    return scoring.load_target(pair, device)
