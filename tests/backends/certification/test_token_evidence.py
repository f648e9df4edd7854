"""Spellings of tokens in bytes, and entropies of the target."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from backends.certification.token_evidence import Speller, entropies
from backends.conformance.tiny_pairs import tiny_models
from tests.support.tiny_models import tiny_llama


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    characters = bytes_to_unicode()
    euro = [characters[byte] for byte in "€".encode()]  # three bytes
    tokens = ["<end>", "a", *euro, characters[ord(" ")], "".join(euro[:2]), characters[ord(" ")] + "a"]
    model = BPE({token: i for i, token in enumerate(tokens)}, [(euro[0], euro[1]), (tokens[5], "a")])
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.add_tokens(["tool: €"])
    return fast


def test_a_token_of_a_byte_level_tokenizer_has_the_bytes_it_stands_for_also_parts_of_characters() -> None:
    tokenizer = byte_level_tokenizer()
    speller = Speller(tokenizer)
    spelled = [speller.spell(i) for i in range(len(tokenizer))]
    first, second, third = (bytes((byte,)) for byte in "€".encode())
    assert spelled == [None, b"a", first, second, third, b" ", first + second, b" a", "tool: €".encode()]
    assert speller.spell(99) is None  # beyond the tokenizer
    assert tokenizer.decode([6, 4, 7]) == "€ a"
    assert b"".join(speller.spell(i) or b"" for i in (6, 4, 7)).decode() == "€ a"


def test_the_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    characters = Speller(byte_level_tokenizer()).byte_of
    assert set(characters) == set(ByteLevel.alphabet())
    assert sorted(characters.values()) == list(range(256))
    decode = decoders.ByteLevel().decode
    for text in ("é\n", "\t€", "\x00\x7f\xad"):
        characters = bytes_to_unicode()
        assert decode(["".join(characters[byte] for byte in text.encode())]) == text


def test_a_token_of_sentencepiece_has_a_byte_for_its_marker_and_one_for_a_byte_fallback() -> None:
    vocabulary = {"<s>": 0, "<0xE2>": 1, "▁the": 2, "né": 3}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    speller = Speller(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>"))
    assert [speller.spell(i) for i in range(4)] == [None, b"\xe2", b" the", "né".encode()]


def test_entropy_is_that_of_the_next_token_before_each_token() -> None:
    target = tiny_llama(seed=3)
    prompt_ids, token_ids = (1, 5, 6), (7, 8, 9, 10)
    found = entropies(target, prompt_ids, token_ids)
    for place, entropy in enumerate(found):
        with torch.inference_mode():
            logits = target(torch.tensor([prompt_ids + token_ids[:place]])).logits[0, -1].double()
        probs = logits.softmax(-1)
        assert entropy == pytest.approx(float(-(probs * probs.log()).sum()), abs=1e-5)  # float32 against float64
    assert len(found) == len(token_ids)


def test_the_entropy_behind_an_encoder_is_that_of_the_decoder() -> None:
    target, _ = tiny_models("same", "t5")
    prompt_ids, token_ids = (3, 5, 6), (7, 8, 9)
    found = entropies(target, prompt_ids, token_ids)
    with torch.inference_mode():
        decoder_ids = torch.tensor([(target.config.decoder_start_token_id, *token_ids[:-1])])
        logits = target(input_ids=torch.tensor([prompt_ids]), decoder_input_ids=decoder_ids).logits[0].double()
    probs = logits.softmax(-1)
    assert found == pytest.approx((-(probs * probs.log()).sum(-1)).tolist(), abs=1e-5)
