"""Speculative decoding without a draft model: the draft is what followed the newest token when it last occurred."""

import time

import torch
import transformers

from backends.acceptance.rules import RULES
from backends.acceptance.warping import warp
from backends.forwards.cached_model import CachedModel
from bench.protocols import Capabilities
from bench.records.decoding import Generation, Round

GAPS = ("acceptance", "draft_equal_to_target", "disjoint_support", "end_token[accepted-6]")


def copied(tokens, count):
    start = next((i + 1 for i in range(len(tokens) - 2, -1, -1) if tokens[i] == tokens[-1]), len(tokens))
    return tokens[start : start + count]


class NgramBackend:
    name = "ngram"
    capabilities = Capabilities(
        rules=frozenset({"one_hot"}),
        draft_temperature=False,
        gaps=dict.fromkeys(GAPS, "drafts are copied from the text, not drawn from the draft model"),
    )

    def __init__(self, target):
        self.target = CachedModel(target)

    @torch.inference_mode()
    def generate(self, request):
        start, device = time.perf_counter(), self.target.device
        generator = torch.Generator(device).manual_seed(request.seed)
        self.target.reset()
        tokens, rounds, emitted, first_token_s = list(request.prompt_ids), [], [], None
        end = len(tokens) + request.max_new_tokens
        while len(tokens) < end and not set(emitted[-1:]) & set(request.eos_token_ids):
            # The first pass feeds the prompt and drafts nothing: the first token belongs to no round.
            drafts = copied(tokens, min(request.num_draft_tokens, end - len(tokens) - 1)) if emitted else []
            fed = torch.tensor([tokens[self.target.length :] + drafts], device=device)
            logits = self.target.feed(fed, num_logits=len(drafts) + 1)
            probs = warp(logits, temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
            uniforms = torch.rand(len(drafts) + 1, generator=generator, device=device, dtype=torch.float64)
            judged = RULES["one_hot"].judge(fed[0, fed.shape[1] - len(drafts) :], probs[:-1], probs, uniforms)
            accepted = int(judged.num_accepted)
            emitted = [*drafts[:accepted], int(judged.next_token)]
            emitted = emitted[: next((i for i, t in enumerate(emitted, 1) if t in request.eos_token_ids), None)]
            if first_token_s is None:
                first_token_s = time.perf_counter() - start
            elif request.num_draft_tokens:
                rounds.append(Round(len(drafts), min(accepted, len(emitted)), len(emitted)))
            tokens += emitted
            self.target.rewind(len(tokens) - 1)
        reason = "stop" if tokens[-1] in request.eos_token_ids else "length"
        return Generation(tuple(tokens[len(request.prompt_ids) :]), reason, tuple(rounds), first_token_s)

    def synchronize(self):
        """Nothing is ever pending: each round ends with a transfer to the host."""

    def settings(self):
        return {"transformers": transformers.__version__, "ngram": 1}

    def close(self):
        del self.target


def load(pair, *, device, options):
    model = transformers.AutoModelForCausalLM.from_pretrained(pair.target, dtype=pair.dtype)
    return NgramBackend(model.to(device).eval())
