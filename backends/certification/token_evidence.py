"""What the target and its tokenizer say of the tokens of one text: how uncertain the context was, and how they are spelled.

Shape letters: B batch (always 1), T tokens fed, N tokens of the text, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backends.certification.scoring import ROWS_AT_A_TIME, TargetScorer, Text

SENTENCEPIECE_SPACE = "\u2581"
BYTE_FALLBACK = re.compile("<0x([0-9A-F]{2})>")


@torch.inference_mode()
def entropies(model: PreTrainedModel, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> tuple[float, ...]:
    """Entropy of the next token before each token of a text, in nats at T = 1, from one teacher-forced pass.

    A property of the context: it is the same at whatever temperature the text was decoded.
    """
    (logits_NV,) = TargetScorer(model).logits([Text(tuple(prompt_ids), tuple(token_ids), ())])
    return tuple(torch.cat([_entropy(rows_NV) for rows_NV in logits_NV.split(ROWS_AT_A_TIME)]).tolist())


def _entropy(logits_NV: Tensor) -> Tensor:
    log_probs_NV = logits_NV.float().log_softmax(-1)
    # A logit of minus infinity adds nothing.
    return -(log_probs_NV.exp() * log_probs_NV.clamp_min(torch.finfo(torch.float32).min)).sum(-1)


class Speller:
    """The bytes that each token of a tokenizer stands for.

    Byte-level tokenizers write each byte as a character of an alphabet of their own; a token may hold part of a character
    of UTF-8. Elsewhere a token is its text, where the marker of SentencePiece is a space and `<0x..>` a byte.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.added = dict(tokenizer.added_tokens_decoder)
        self.special = {i for i, token in self.added.items() if token.special} | set(tokenizer.all_special_ids)
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self.byte_of = byte_alphabet() if byte_level else {}

    def spell(self, token_id: int) -> bytes | None:
        """None for a special token, and for an id that the tokenizer does not have: they stand for no text."""
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


def byte_alphabet() -> dict[str, int]:
    """Character -> byte: printable bytes of Latin-1 stand for themselves, the others are numbered from 256 on.

    Source:  GPT-2, `bytes_to_unicode`
    """
    printable = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
