"""Scoring the cells of a suite with the true target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from backends.certification import scoring
from backends.certification.true_target import true_target
from bench.measurement.recording import Workload
from bench.options.settings import Settings
from bench.protocols import Backend
from bench.records.runs import Cell, Evidence, TimedPair

_NEAR_TIES: dict[tuple[object, ...], float] = {}  # measured once per process under the same conditions


def cell_scorer(
    backend: Backend | None, workload: Workload, settings: Settings
) -> Callable[[Cell, Sequence[TimedPair]], Evidence]:
    """Return what scores the generations of a cell under the target, which is loaded with the first cell if need be.

    Args:    backend: which may lend its target; None: it is closed, so that the target is always loaded
    """
    pair, shown = workload.model_pair, workload.prompt_ids[: scoring.NEAR_TIE_PROMPTS]
    longest = max(settings.num_draft_tokens)
    conditions = (pair.target, pair.dtype, settings.device, shown, longest)

    def score(cell: Cell, timed: Sequence[TimedPair]) -> Evidence:
        model, origin = true_target(backend, pair, settings.device)
        if conditions not in _NEAR_TIES:
            _NEAR_TIES[conditions] = scoring.near_tie_tolerance(model, workload.prompt_ids, longest)
        scorer = scoring.TargetScorer(model)
        evidence = scoring.evidence_for_cell(timed, workload.prompt_ids, cell, scorer, _NEAR_TIES[conditions])
        return replace(evidence, target=origin)

    return score
