"""Batched sampling: rows do not disturb each other, tokens follow the model, hidden states give its distribution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import stats

from distill.text.batches import Batch, in_order, shuffled
from distill.text.prompts import self_written
from distill.text.sampler import Answer, Request, draw, sample_answers
from distill.text.table import TextPlan, batches, extend, first_rows, open_table, prompts_hash
from tests.support.tiny_models import VOCAB_SIZE, tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ((3, 4, 5), (6, 7), (8, 9, 10, 11, 12), (13,))
END = 2


def plan(prompts: tuple[tuple[int, ...], ...] = PROMPTS, **changed: object) -> TextPlan:
    options: dict = {
        "model": "tiny",
        "prompts": prompts_hash(prompts),
        "temperatures": ((0.0, 1.0), (1.0, 2.0)),
        "max_new_tokens": 12,
        "end_token_ids": (END,),
        "batch_rows": 8,
        "seed": 5,
    }
    return TextPlan(**(options | changed))


def tiny_sampler(max_new_tokens: int = 12):
    model = tiny_llama(seed=1)
    return lambda requests: sample_answers(model, requests, max_new_tokens=max_new_tokens, end_token_ids=(END,))


def test_a_row_says_the_same_alone_and_in_a_batch_that_shrinks() -> None:
    requests = [Request(prompt, 1.0, seed) for seed, prompt in enumerate(PROMPTS * 4)]
    together = tiny_sampler()(requests)
    lengths = {len(answer.token_ids_A) for answer in together}
    assert len(lengths) > 1, "the case needs rows that end early"
    for request, answer in zip(requests, together, strict=True):
        (alone,) = tiny_sampler()([request])
        assert alone.token_ids_A.tolist() == answer.token_ids_A.tolist()


def test_hidden_states_of_a_batch_are_those_of_a_forward_over_each_text() -> None:
    model = tiny_llama(seed=1)
    requests = [Request(prompt, 1.0, seed) for seed, prompt in enumerate(PROMPTS * 3)]
    for request, answer in zip(requests, tiny_sampler()(requests), strict=True):
        text = torch.tensor([[*request.prompt_ids, *answer.token_ids_A.tolist()]])
        with torch.inference_mode():
            expected = model.model(text).last_hidden_state[0, len(request.prompt_ids) - 1 : -1]
        assert torch.allclose(answer.hidden_AD, expected, atol=1e-4)  # float32, another order of sums


def test_greedy_rows_equal_generate() -> None:
    model = tiny_llama(seed=1)
    for prompt, answer in zip(PROMPTS, tiny_sampler()([Request(prompt, 0.0, 0) for prompt in PROMPTS]), strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
        )
        assert answer.token_ids_A.tolist() == expected[0, len(prompt) :].tolist()


def test_sampling_leaves_the_attention_of_the_model_and_the_global_random_state_alone() -> None:
    model, state = tiny_llama(seed=1), torch.get_rng_state()
    before = model.config._attn_implementation
    sample_answers(model, [Request((3, 4), 1.0, 0)], max_new_tokens=3, end_token_ids=(END,))
    assert model.config._attn_implementation == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("vocab", [VOCAB_SIZE, 256, 1000])
def test_drawn_tokens_follow_the_softmax(vocab: int) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(vocab, generator=generator)
    rows = 20_000
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    tokens = draw(logits.expand(rows, -1).clone(), torch.full((rows,), 0.7), uniform)
    expected = (logits.double() / 0.7).softmax(-1) * rows
    likely = expected >= 5
    counts = tokens.bincount(minlength=vocab).double()
    observed = torch.cat((counts[likely], counts[~likely].sum()[None]))
    wanted = torch.cat((expected[likely], expected[~likely].sum()[None]))
    kept = wanted > 0
    # Fixed seed; false-alarm rate 0.1 % a case
    assert stats.chisquare(observed[kept].numpy(), wanted[kept].numpy()).pvalue > 0.001


def test_extreme_uniforms_draw_tokens_of_positive_probability() -> None:
    logits = torch.full((2, 300), float("-inf"))
    logits[:, 17], logits[:, 280] = 0.0, 1.0
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, torch.ones(2), uniform).tolist() == [17, 280]


def test_a_table_that_was_cut_short_goes_on_and_ends_with_the_same_text(tmp_path: Path) -> None:
    whole = extend(tmp_path / "whole", plan(), PROMPTS, tiny_sampler(), num_tokens=300)
    extend(tmp_path / "parts", plan(), PROMPTS, tiny_sampler(), num_tokens=100)
    parts = extend(tmp_path / "parts", plan(), PROMPTS, tiny_sampler(), num_tokens=300)
    assert [row.answer.tolist() for row in whole.rows] == [row.answer.tolist() for row in parts.rows]
    assert whole.num_tokens >= 300
    assert {row.temperature for row in whole.rows} == {0.0, 1.0}


def test_a_finished_table_is_read_back_and_not_sampled_again(tmp_path: Path) -> None:
    made = extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=100)

    def refuse(requests: object) -> list[Answer]:
        raise AssertionError("sampled again")

    assert extend(tmp_path, plan(), PROMPTS, refuse, num_tokens=100).num_tokens == made.num_tokens
    row = open_table(tmp_path).rows[1]
    assert row.hidden_AD().shape == (len(row.answer), 32)


def test_a_folder_refuses_text_of_another_plan(tmp_path: Path) -> None:
    extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=10)
    with pytest.raises(ValueError, match="holds text of another plan"):
        extend(tmp_path, plan(seed=6), PROMPTS, tiny_sampler(), num_tokens=10)
    with pytest.raises(ValueError, match="expected the prompts"):
        extend(tmp_path, plan(), PROMPTS[:2], tiny_sampler(), num_tokens=10)


@pytest.mark.parametrize(
    "changed", [{"temperatures": ()}, {"temperatures": ((-1.0, 1.0),)}, {"max_new_tokens": 0}, {"batch_rows": 0}]
)
def test_a_plan_that_cannot_be_is_refused(changed: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        plan(**changed)


def test_no_prompt_comes_again_before_all_came_once_and_lengths_are_mixed() -> None:
    prompts = tuple((3,) * (1 + place % 30) + (4 + place // 30,) for place in range(90))
    requests = batches(plan(prompts, temperatures=((0.7, 1.0),)), prompts)
    made = [request for _ in range(45) for request in next(requests)]
    used = [request.prompt_ids for request in made]
    for start in range(0, len(used), len(prompts)):
        assert sorted(used[start : start + len(prompts)]) == sorted(prompts)
    assert used[: len(prompts)] != used[len(prompts) : 2 * len(prompts)]
    assert len({request.seed for request in made}) == len(used)
    # A batch is a sample of all prompts: version 1 had prompts of one or two lengths in each.
    assert len({len(prompt) for prompt in used[:8]}) > 4


def test_the_first_rows_hold_just_enough_tokens(tmp_path: Path) -> None:
    rows = extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=100).rows
    lengths = [len(row.answer) for row in rows]
    for asked in (1, lengths[0], lengths[0] + 1, sum(lengths) - 1, sum(lengths)):
        taken = first_rows(rows, asked)
        assert taken == rows[: len(taken)]
        assert sum(lengths[: len(taken) - 1]) < asked <= sum(lengths[: len(taken)])
    assert first_rows(rows, 10**6) == rows


def test_a_longer_table_begins_with_the_shorter_one_and_does_not_lengthen_it(tmp_path: Path) -> None:
    short = extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=100)
    extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=400)
    again = extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=100)
    assert [row.answer.tolist() for row in again.rows] == [row.answer.tolist() for row in short.rows]
    assert len(open_table(tmp_path).shards) > len(again.shards)


def test_shuffled_batches_hold_every_row_once_and_no_more_places_than_asked(tmp_path: Path) -> None:
    rows = extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=400).rows
    made = shuffled(rows, batch_tokens=60, seed=3)
    assert sorted(id(row.answer) for batch in made for row in batch.rows) == sorted(id(row.answer) for row in rows)
    assert all(batch.token_ids_BT().numel() <= 60 for batch in made)
    assert [batch.rows for batch in made] == [batch.rows for batch in shuffled(rows, batch_tokens=60, seed=3)]
    assert [batch.rows for batch in made] != [batch.rows for batch in shuffled(rows, batch_tokens=60, seed=4)]


def test_padding_does_not_reach_the_hidden_states(tmp_path: Path) -> None:
    rows = extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=100).rows
    (batch,) = in_order(rows, batch_tokens=10**6)
    with torch.inference_mode():
        together = batch.hidden_ND(tiny_llama(seed=1))
    assert torch.allclose(together, batch.target_hidden_ND(), atol=1e-4)  # float32, another order of sums
    assert batch.labels_N().tolist() == [token for row in rows for token in row.answer.tolist()]
    with torch.inference_mode():
        alone = torch.cat([Batch((row,)).hidden_ND(tiny_llama(seed=1)) for row in rows])
    assert torch.allclose(together, alone, atol=1e-4)


def test_a_self_written_prompt_is_one_that_ended(tmp_path: Path) -> None:
    rows = extend(tmp_path, plan(), PROMPTS, tiny_sampler(), num_tokens=100).rows
    found = self_written(rows, (20, 21), (END,))
    ended = [row for row in rows if row.answer[-1] == END and len(row.answer) > 1]
    assert found == tuple((*row.prompt.tolist(), *row.answer[:-1].tolist(), 20, 21) for row in ended)
    assert found
