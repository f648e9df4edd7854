"""Records of a KD matrix: joined where they were made alike, and read as older versions wrote them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from bench.records.kd_matrix import MatrixCell, MeasuredDraft, load, merged

DRAFTS = tuple(
    MeasuredDraft(
        *(f"offline-t{at:g}-seed{seed}", "offline", at, 0.0, seed, {"trained": 300}, {"trained": 2.5}),
        (MatrixCell("instructions", 1.0, (4, 4), (2.0, 3.0), (4.0, 4.0), (2.0, 3.0), (4, 4), (2.0, 2.0)),),
    )
    for seed in (0, 1)
    for at in (0.0, 1.0)
)
JOB = {"recipe": {}, "seed": 0, "text_tokens": 0, "plan": {"num_tokens": 300}}
PLAN = {"domains": ["instructions"], "decode_temperatures": [1.0], "job": JOB}


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def names(drafts: tuple[MeasuredDraft, ...]) -> list[str]:
    return [draft.draft for draft in drafts]


def test_records_that_differ_in_arms_and_seeds_stand_in_one_table(tmp_path: Path) -> None:
    other_seed = {"plan": PLAN | {"job": JOB | {"seed": 1}}}
    first = write(tmp_path / "a.jsonl", {"plan": PLAN}, *map(asdict, DRAFTS[:3]))
    second = write(tmp_path / "b.jsonl", other_seed, *map(asdict, DRAFTS[2:]))
    (together,) = merged([first, second])
    assert names(together.measured) == names(DRAFTS)
    longer = {"plan": PLAN | {"job": JOB | {"plan": {"num_tokens": 301}}}}
    write(first, longer, *map(asdict, DRAFTS[:3]))
    assert [names(group.measured) for group in merged([first, second])] == [names(DRAFTS[2:]), names(DRAFTS[:3])]


def test_a_record_of_one_domain_is_read_as_it_was_written_before(tmp_path: Path) -> None:
    lines = [asdict(draft) for draft in DRAFTS]
    for line in lines:
        for cell in line["cells"]:
            del cell["domain"]
    plan = {**PLAN, "domain": "instructions"}
    del plan["domains"]
    assert load(write(tmp_path / "old.jsonl", {"plan": plan}, *lines)).measured == DRAFTS
