"""A call that stops at chosen points and goes on later, so that several calls of `generate` take turns in one thread.

Each call has a stack for itself (greenlet). Threads would not do: each thread that computes has another OpenMP team, and on few
cores the idle team of one call slows the other. What `generate` changes while it runs is exchanged at every stop: the global
random state of torch, the gradient mode, and the generation config of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from transformers import PreTrainedModel

T = TypeVar("T")


class Turnstile(Generic[T]):
    """One call in progress. It runs up to its next `pause` at each `advance`."""

    def __init__(self, call: Callable[[], T], model: PreTrainedModel) -> None:
        self.model = model
        self.returned: list[T] = []
        self._inner = greenlet(lambda: self.returned.append(call()))
        self._outer: greenlet | None = None  # who called `advance`
        self._state: tuple[Any, ...] | None = None  # of the call, while it is paused

    @property
    def is_running(self) -> bool:
        """Return whether the code that asks runs inside this call."""
        return getcurrent() is self._inner

    def advance(self) -> bool:
        """Go on to the next pause. Return whether the call has ended. Errors of the call are raised here."""
        before = self._exchange(self._state)
        self._outer = getcurrent()
        try:
            self._inner.switch()
        finally:
            self._state = self._exchange(before)
        return bool(self._inner.dead)

    def pause(self) -> None:
        """Stop here until the next `advance`. Does nothing outside the call."""
        if self.is_running and self._outer is not None:
            self._outer.switch()

    def close(self) -> None:
        """End a paused call: it leaves its `with` blocks and its `finally` clauses."""
        if self._inner and not self._inner.dead:
            before = self._exchange(self._state)
            try:
                self._inner.throw(GreenletExit)
            finally:
                self._exchange(before)

    def _exchange(self, state: tuple[Any, ...] | None) -> tuple[Any, ...]:
        """Return the present state, after setting another one; None: a call that begins takes the present state over."""
        on_gpu = self.model.device.type == "cuda"
        present = (
            torch.get_rng_state(),
            torch.cuda.get_rng_state(self.model.device) if on_gpu else None,
            torch.is_grad_enabled(),
            self.model.generation_config,
        )
        if state is not None:
            host, device, grad, config = state
            torch.set_rng_state(host)
            if device is not None:
                torch.cuda.set_rng_state(device, self.model.device)
            torch.set_grad_enabled(grad)
            self.model.generation_config = config
        return present
