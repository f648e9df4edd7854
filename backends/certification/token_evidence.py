"""The tokens of one output: how uncertain the target was before each of them, and how they are spelled.

Shape letters: N tokens of the output, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributions import Categorical
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from backends.certification.scoring import ROWS_AT_A_TIME, TargetScorer, Text

SENTENCEPIECE_SPACE = "\u2581"
BYTE_FALLBACK = re.compile("<0x([0-9A-F]{2})>")


@torch.inference_mode()
def entropies(model: PreTrainedModel, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> tuple[float, ...]:
    """Return the entropy of the next token before each token, in nats at T = 1, from one teacher-forced pass.

    It is a property of the context: it does not depend on the temperature at which the output was decoded.
    """
    (logits_NV,) = TargetScorer(model).logits([Text(tuple(prompt_ids), tuple(token_ids), ())])
    # An impossible token adds nothing. Only some rows at a time are in float32.
    parts = (Categorical(logits=rows.float(), validate_args=False).entropy() for rows in logits_NV.split(ROWS_AT_A_TIME))
    return tuple(torch.cat(list(parts)).tolist())


class Speller:
    """Gives the bytes that each token of a tokenizer stands for.

    Byte-level tokenizers write each byte as one character of a special alphabet; a token may hold part of a UTF-8 character.
    In other tokenizers a token is its text, with SentencePiece's marker for a space and `<0x..>` for a byte.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.added = dict(tokenizer.added_tokens_decoder)
        self.special = {i for i, token in self.added.items() if token.special} | set(tokenizer.all_special_ids)
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self.byte_of = {character: byte for byte, character in bytes_to_unicode().items()} if byte_level else {}

    def spell(self, token_id: int) -> bytes | None:
        """Return the bytes of a token; None for a special token and for an id that the tokenizer does not have."""
        text = None if token_id in self.special else self.tokenizer.convert_ids_to_tokens(token_id)
        if text is None:
            return None
        if token_id in self.added:
            return text.encode()
        if self.byte_of:
            return bytes(self.byte_of[character] for character in text)
        if byte := BYTE_FALLBACK.fullmatch(text):
            return bytes((int(byte[1], 16),))
        return text.replace(SENTENCEPIECE_SPACE, " ").encode()
