"""Certificates of a finished record, made after the run: its cells without evidence are scored with the pair's target.

The record itself stays as it is. A copy with the evidence is written beside it, and readers take the copy.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from backends.certification.cell_scorer import cell_scorer
from backends.models import checkpoints, pairs, workloads
from bench.errors import BackendUnavailable, first_line
from bench.measurement.recording import Workload, utc_now
from bench.options import arguments
from bench.options.settings import INFLATED, Settings
from bench.progress import with_bar
from bench.prompts import sets
from bench.records import environment, files
from bench.records.decoding import ModelPair
from bench.records.runs import Cell, CellRecord, RunRecord
from bench.records.storage import storage_errors, write_atomically
from bench.reporting.repeat import found_at


def certify_record(path: Path, given: Namespace) -> tuple[Path, RunRecord, set[Cell]]:
    """Score the uncertified cells of a record, and write a copy with the evidence.

    Args:    given: options of the command line; they go before those of the record's own command, such as where models are
    Returns: path and content of the copy, and the cells that were scored
    Raises:  ValueError: no finished record, nothing to score, or models, prompts or their format are no longer those of the run
             BackendUnavailable: the target is not here, or it could not score
    """
    if path.name.endswith(files.UNFINISHED):
        raise ValueError(f"expected a finished record, got {path}; the same command with --resume finishes it")
    run = files.load_run(path)
    wanted = {record.cell for record in run.cells if record.pairs and record.evidence is None}
    if not wanted:
        raise ValueError(f"expected cells without a certificate in {path}, found none")
    copy = files.certified_path(path)
    if given.results is not None:
        copy = given.results / environment.machine_slug(run.environment) / run.suite / files.RECORDS / copy.name
    if copy.exists():
        raise ValueError(f"{copy} is already there")
    settings = _settings(run, given)
    pair = _pair(run, settings)
    made = {cell: _workload(cell, run, settings, pair) for cell in wanted}  # checks all before the first is scored
    cells = []
    for record in with_bar(run.cells, "scoring cells"):
        cells.append(_scored(record, made[record.cell], settings) if record.cell in wanted else record)
    env = environment.capture(settings.device)
    commit = {name: env.get(name) for name in ("harness_commit", "harness_dirty")}
    origin = {"record": path.name, "at": utc_now(), "machine": environment.machine_slug(env), **commit}
    run = replace(run, cells=tuple(cells), certified=origin)
    with storage_errors(f"cannot write {copy}", f"{path} is unchanged"):
        write_atomically(copy, files.record_text(run))
    return copy, run, wanted


def _settings(run: RunRecord, given: Namespace) -> Settings:
    """Return the settings of the record's command, with the options that are given now before them."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    arguments.add_options(parser)
    options = parser.parse_known_args(run.command)[0]
    cells = [record.cell for record in run.cells]
    for name in ("pair", "target", "draft", "pairs_file", "prompts", "chat_template"):
        if getattr(given, name) is not None:
            setattr(options, name, getattr(given, name))
    lengths = sorted({cell.num_draft_tokens for cell in cells})
    return replace(
        arguments.from_options(options),
        device=given.device or cells[0].device,
        dtype=cells[0].dtype,
        num_draft_tokens=tuple(lengths),
        max_new_tokens=max(cell.max_new_tokens for cell in cells),
    )


def _pair(run: RunRecord, settings: Settings) -> ModelPair:
    """Return the resolved pair. Its target is that of the run; its draft, which scoring does not need, may be another."""
    inflation = run.model_pair.inflation
    name = None if settings.target else run.model_pair.name.removesuffix(f"{INFLATED}{inflation}")
    pair = pairs.resolve(
        name, target=settings.target, draft=settings.drafts[0], dtype=settings.dtype, pairs_file=settings.pairs_file
    )
    pair = pairs.inflated(pair, inflation) if inflation else pair
    found, expected = checkpoints.model_hash(Path(pair.target)), run.model_hashes.get("target")
    if found != expected:
        raise ValueError(f"expected the target of the record, with hash {expected}, got {pair.target} with hash {found}")
    return pair


def _workload(cell: Cell, run: RunRecord, settings: Settings, pair: ModelPair) -> Workload:
    """Return the prompts of a cell. Raise ValueError if they, or how they become ids, are others now."""
    prompts = sets.load(found_at(cell.prompt_set, settings.prompts))
    prompts = replace(prompts, prompts=prompts.prompts[: cell.num_prompts])
    workload = workloads.prepare(pair, prompts, settings)
    if workload.prompts_hash != cell.prompts_hash:
        raise ValueError(
            f"expected the prompts of the record, {cell.num_prompts} of {cell.prompt_set}, got others of that name"
        )
    differing = [name for name, value in workload.prompt_format.items() if run.prompt_format.get(name, value) != value]
    if differing:
        raise ValueError(f"expected the prompt format of the record, got another {', '.join(differing)}")
    return workload


def _scored(record: CellRecord, workload: Workload, settings: Settings) -> CellRecord:
    try:
        evidence = cell_scorer(None, workload, settings)(record.cell, record.pairs)
    except (RuntimeError, MemoryError) as error:
        raise BackendUnavailable(f"{record.cell.label} could not be scored: {first_line(error)}") from error
    return replace(record, evidence=evidence, scoring_error=None)
