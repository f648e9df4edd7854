"""One call of transformers' `generate`, seen from outside, and stopped after each step or round where wanted.

A forward pre-hook on the target notes what was fed, and so the draft tokens; a streamer notes what was emitted, round by round.
Both only keep references until decoding ends.

    fed          prompt d1 .. dG | newest d1 .. dG | ...      generate drafts before the target has run at all:
    streamed     prompt | d1 .. dA own | d1 .. dA own | ...   the first round carries the prefill, and rounds cover the output

The accepted draft tokens are the common start of drafted and emitted: a token that replaces a rejected one differs from it,
because the residual distribution has no mass there. `first_token_s` is the time to the end of the first round.

Shape letter: F tokens fed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, takewhile
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from backends.engines.in_process import finish_reason
from backends.engines.turnstile import Turnstile
from bench.records.decoding import DecodeRequest, Generation, Round


class Watch(BaseStreamer):
    """One call of `generate` seen from outside."""

    turnstile: Turnstile[object] | None = None  # of a call that is advanced step by step

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.first_token_s: float | None = None
        self.fed: list[Tensor] = []  # (1, F) per target forward
        self.streamed: list[Tensor] = []  # the prompt, then what each round or step emitted, on the host

    def attach(self, target: PreTrainedModel) -> list[RemovableHandle]:
        """Register the hooks of a speculative call."""
        return [target.register_forward_pre_hook(self.before_target, with_kwargs=True)]

    def before_target(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self.turnstile is None or self.turnstile.is_running:  # else the forward belongs to another generation
            self.fed.append(kwargs["decoder_input_ids" if "decoder_input_ids" in kwargs else "input_ids"])

    def put(self, value: Tensor) -> None:
        self.streamed.append(value)  # generate has moved it to the host, which waits for the device
        if len(self.streamed) == 2:
            self.first_token_s = time.perf_counter() - self.start
        if self.turnstile is not None and len(self.streamed) > 1:  # the first part is the prompt
            self.turnstile.pause()

    def end(self) -> None:
        pass

    def drafted(self, index: int) -> list[int]:
        """Return the draft tokens of a round: what was fed after the newest token, in the first round after the prompt."""
        num_known = self.streamed[0].numel() if index == 0 else 1
        return self.fed[index][0, num_known:].tolist()

    def round(self, index: int) -> Round:
        drafted, emitted = self.drafted(index), self.streamed[1 + index].flatten().tolist()
        accepted = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(drafted, emitted, strict=False)))
        return Round(drafted=len(drafted), accepted=accepted, emitted=len(emitted))

    def rounds(self) -> tuple[Round, ...]:
        return tuple(self.round(index) for index in range(len(self.fed)))

    def token_ids(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(part.flatten().tolist() for part in self.streamed[1:]))

    def generation(self, request: DecodeRequest) -> Generation:
        token_ids = self.token_ids()
        return Generation(token_ids, finish_reason(token_ids, request), self.rounds(), self.first_token_s)


class GenerateDecoding:
    """A call of `generate` in progress, stopped after each step or round."""

    def __init__(self, request: DecodeRequest, call: Callable[[Watch], object], model: PreTrainedModel) -> None:
        """Take a call that shows itself to a watch, and the model whose `generate` it uses."""
        self.request, self.watch = request, Watch()
        self.turnstile = self.watch.turnstile = Turnstile(lambda: call(self.watch), model)

    @property
    def num_tokens(self) -> int:
        return sum(part.numel() for part in self.watch.streamed[1:])

    def advance(self) -> bool:
        if not self.watch.streamed:
            self.watch.start = time.perf_counter()
        ended = self.turnstile.advance()
        # generate stops by itself after its last token, so the call that follows would only return.
        return ended or (self._has_last_token() and self.turnstile.advance())

    def _has_last_token(self) -> bool:
        newest = self.watch.streamed[-1].flatten()[-1]
        return self.num_tokens >= self.request.max_new_tokens or int(newest) in self.request.eos_token_ids

    def generation(self) -> Generation:
        return self.watch.generation(self.request)

    def close(self) -> None:
        self.turnstile.close()
