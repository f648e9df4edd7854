"""The work-around for vLLM's wrong temperature on a CPU: its function, its switch, and that it is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.conformance.judge import FreshForwards
from backends.conformance.tiny_pairs import tiny_pair
from backends.engines import vllm_cpu_fix
from backends.engines.vllm_cpu_fix import expand_batch_to_tokens, only_with_rows, takes_no_rows
from backends.engines.vllm_engine import load
from bench.errors import BackendUnavailable
from bench.records.decoding import DecodeRequest


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.7, 2.0]), st.integers(0, 5)), min_size=1, max_size=6))
def test_each_value_is_repeated_once_for_each_of_its_tokens(requests: list[tuple[float, int]]) -> None:
    values = torch.tensor([value for value, _ in requests])
    cu_num_tokens = torch.tensor([count for _, count in requests], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    expanded = expand_batch_to_tokens(values, cu_num_tokens, int(cu_num_tokens[-1]), replace_from=0, replace_to=1)
    expected = [value or 1.0 for value, count in requests for _ in range(count)]
    assert expanded.tolist() == pytest.approx(expected)


def test_top_k_of_no_rows_is_left_undone_and_of_rows_is_as_before() -> None:
    def truncate(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
        assert k is not None
        return logits * k.max()

    rows, k = torch.ones(2, 3), torch.tensor([2, 1])
    assert not takes_no_rows(truncate)
    assert takes_no_rows(only_with_rows(truncate))
    assert only_with_rows(truncate)(rows, k, None).tolist() == truncate(rows, k, None).tolist()


def test_whole_numbers_stay_whole() -> None:
    top_k, cu_num_tokens = torch.tensor([50, 7], dtype=torch.int32), torch.tensor([2, 3], dtype=torch.int32)
    expanded = expand_batch_to_tokens(top_k, cu_num_tokens, 3)
    assert expanded.dtype == torch.int32
    assert expanded.tolist() == [50, 50, 7]


def test_switched_off_it_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_cpu_fix, "state", vllm_cpu_fix.NOT_LOADED)
    monkeypatch.setenv(vllm_cpu_fix.SWITCH, "0")
    vllm_cpu_fix.apply()
    assert vllm_cpu_fix.state == vllm_cpu_fix.OFF


@pytest.mark.slow
@pytest.mark.parametrize(("cpu_fix", "state", "verdict"), [("off", "off", "LOSSY"), ("on", "active", "LOSSLESS")])
def test_without_it_tokens_do_not_follow_the_target_and_with_it_they_do(
    cpu_fix: str, state: str, verdict: str, tmp_path: Path
) -> None:
    """False alarms of the certificate: at most 1 in 100 if the seeds were free."""
    pair = tiny_pair(tmp_path, "near")
    try:
        backend = load(pair, device="cpu", options={"cpu_fix": cpu_fix, "cache_gib": "0.01"})
    except (BackendUnavailable, ValueError) as reason:  # ValueError: this vLLM is built for a GPU
        pytest.skip(str(reason))
    if backend.settings()["vllm_cpu_fix"] == vllm_cpu_fix.NOT_NEEDED:
        backend.close()
        pytest.skip("this vLLM is not affected")
    assert backend.settings()["vllm_cpu_fix"] == state
    asked = [
        DecodeRequest(prompt_ids=(1, 17, 30 + seed % 8), max_new_tokens=80, num_draft_tokens=3, temperature=0.7, seed=seed)
        for seed in range(50)  # 4,000 tokens; `tokens_for_lossless` is fewer
    ]
    texts = [(request, backend.generate(request)) for request in asked]
    backend.close()
    certificate = FreshForwards.of_pair(pair).certificate(texts)
    assert certificate.verdict == verdict, certificate.words
