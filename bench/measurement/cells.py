"""TODO: purpose."""

from __future__ import annotations

from bench.protocols import Backend, Concurrent
from bench.records.runs import Cell


def unsupported(cell: Cell, backend: Backend) -> str | None:
    """Why an engine cannot decode a cell; None if it can."""
    able, concurrency = backend.capabilities, cell.concurrency
    if concurrency > 1 and not isinstance(backend, Concurrent):
        return "decodes one text at a time"
    if isinstance(backend, Concurrent) and concurrency > backend.max_concurrency:
        return f"decodes at most {backend.max_concurrency} texts at once"
    if cell.rule not in able.rules:
        return f"has the rules {', '.join(sorted(able.rules))}, not {cell.rule}"
    if max(cell.temperature, cell.draft_temperature) > able.max_temperature:
        return f"takes temperatures up to {able.max_temperature:g}"
    if cell.draft_temperature != cell.temperature and not able.draft_temperature:
        return "drafts at the decode temperature only"
    if (cell.top_k or cell.top_p < 1) and not able.truncation:
        return "takes neither top-k nor top-p"
    if cell.schedule and not able.schedules:
        return "decodes a text at one temperature only"
    if cell.draft_length == "adaptive" and not able.adaptive_draft_length:
        return "drafts the same number of tokens in every round"
    return None


def check_cell_schedule(cell: Cell) -> None:
    """Raises: ValueError: the cell's schedule is none, or its temperatures contradict it."""
    temperatures = [temperature for _, temperature in cell.schedule]
    if not temperatures:
        return
    if min(temperatures) == 0:
        raise ValueError(f"expected a schedule above T = 0, whose tokens are certified otherwise, got {cell.label}")
    if max(temperatures) != cell.temperature:
        raise ValueError(f"expected a schedule whose hottest temperature is {cell.temperature:g}, got {cell.label}")
    if cell.draft_temperature != cell.temperature:
        raise ValueError(f"expected no draft temperature beside a schedule, got {cell.draft_temperature:g}")
