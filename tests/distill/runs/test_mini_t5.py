"""The embedded encoder-decoder pair: its tokenizer, and the prompts that it is made from."""

from __future__ import annotations

from bench.prompts import sets
from distill.runs import mini_t5


def test_the_tokenizer_gives_back_its_text_and_ends_an_encoders_input() -> None:
    tokenizer = mini_t5.tokenizer_on(["Ines has 12 figs.", "She eats 3 of them, so 9 are left."], 300)
    ids = tokenizer("Ines eats 12 figs.")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Ines eats 12 figs."
    digits = [tokenizer.decode([token]) for token in ids if tokenizer.decode([token]).isdigit()]
    assert digits == ["1", "2"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Ines eats 12 figs."}], tokenize=False)
    assert tokenizer(chat, add_special_tokens=False)["input_ids"] == ids


def test_the_embedded_pair_is_trained_on_no_prompt_that_it_is_measured_on() -> None:
    held_out = {
        prompt.messages
        for source in ("word_problems:held_out", "instructions:held_out")
        for prompt in sets.load(source).prompts
    }
    given = mini_t5.given_prompts(3000, 0)
    assert len(given) > 2900
    assert not held_out & {prompt.messages for prompt in given}
