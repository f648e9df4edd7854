"""Cells: the identity of one measurement, the request that decodes it, and why an engine may be unable to."""

from __future__ import annotations

from bench.measurement.recording import Workload
from bench.options.settings import Settings
from bench.protocols import Backend, Concurrent
from bench.records.decoding import DecodeRequest, derive_seed
from bench.records.runs import Cell


def first_cell(
    suite: str, backend: str, settings: Settings, workload: Workload, *, options: tuple[tuple[str, str], ...] = ()
) -> Cell:
    """Return the cell of the first temperature, rule and draft length of the settings; others are `replace`d from it."""
    temperature, draft_temperature = settings.temperatures[0], settings.draft_temperatures[0]
    return Cell(
        suite=suite,
        backend=backend,
        rule=settings.rules[0],
        pair=workload.model_pair.name,
        draft=workload.recorded_pair.draft,
        dtype=workload.model_pair.dtype,
        device=settings.device,
        temperature=temperature,
        draft_temperature=temperature if draft_temperature is None else draft_temperature,
        num_draft_tokens=settings.num_draft_tokens[0],
        top_k=settings.top_k,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        end_token=settings.end_token,
        prompt_set=workload.prompt_set,
        num_prompts=len(workload.prompt_ids),
        repeats=settings.repeats,
        prompts_hash=workload.prompts_hash,
        chat_template=str(workload.prompt_format["chat_template"]),
        chat_template_hash=str(workload.prompt_format["chat_template_hash"]),
        seed=settings.seed,
        inflation=workload.model_pair.inflation,
        options=tuple(sorted(options)),
    )


def request_of(cell: Cell, prompt_ids: tuple[int, ...], end_token_ids: tuple[int, ...]) -> DecodeRequest:
    """Return the speculative request of a cell on one prompt; arms and repeats derive their seeds from its seed."""
    return DecodeRequest(
        prompt_ids=prompt_ids,
        max_new_tokens=cell.max_new_tokens,
        num_draft_tokens=cell.num_draft_tokens,
        temperature=cell.temperature,
        draft_temperature=None if cell.schedule else cell.draft_temperature,
        top_k=cell.top_k,
        top_p=cell.top_p,
        rule=cell.rule,
        # No two cells share random numbers, so that their tokens can be pooled.
        seed=derive_seed(cell.seed, *cell.draws),
        eos_token_ids=end_token_ids if cell.end_token == "natural" else (),
        schedule=cell.schedule,
        draft_length=cell.draft_length,
    )


def unsupported(cell: Cell, backend: Backend) -> str | None:
    """Return why an engine cannot decode a cell; None if it can."""
    able = backend.capabilities
    if cell.concurrency > 1 and not isinstance(backend, Concurrent):
        return "decodes one prompt at a time"
    if isinstance(backend, Concurrent) and cell.concurrency > backend.max_concurrency:
        return f"decodes at most {backend.max_concurrency} prompts at once"
    if cell.rule not in able.rules:
        return f"has the rules {', '.join(sorted(able.rules))}, not {cell.rule}"
    if max(cell.temperature, cell.draft_temperature) > able.max_temperature:
        return f"takes temperatures up to {able.max_temperature:g}"
    if cell.draft_temperature != cell.temperature and not able.draft_temperature:
        return "drafts at the decode temperature only"
    if (cell.top_k or cell.top_p < 1) and not able.truncation:
        return "takes neither top-k nor top-p"
    if cell.schedule and not able.schedules:
        return "decodes at one temperature only, from the first token to the last"
    if cell.draft_length == "adaptive" and not able.adaptive_draft_length:
        return "drafts the same number of tokens in every round"
    return None


def check_cell_schedule(cell: Cell) -> None:
    """Raise ValueError if the cell's temperatures contradict its schedule, or if the schedule contains T = 0."""
    temperatures = [temperature for _, temperature in cell.schedule]
    if not temperatures:
        return
    if min(temperatures) == 0:  # greedy tokens have another kind of evidence
        raise ValueError(f"expected a schedule of temperatures above 0, got {cell.label}")
    if max(temperatures) != cell.temperature:
        raise ValueError(f"expected a schedule whose hottest temperature is {cell.temperature:g}, got {cell.label}")
    if cell.draft_temperature != cell.temperature:
        raise ValueError(f"expected no draft temperature beside a schedule, got {cell.draft_temperature:g}")
