"""The target's final hidden states at the answer tokens: about 1 KB per token, from which its head computes the distribution.

The sampler stores them with the text. Text of another engine comes without them: one teacher-forced pass computes them.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from distill.text.batches import in_order
from distill.text.generation import decoder_hidden
from distill.text.table import HIDDEN, TextTable, write_hidden
from distill.text.workers import ALONE, Workers

BATCH_TOKENS = 8192


@torch.inference_mode()
def check_head(model: PreTrainedModel) -> None:
    """Check that the model's logits are its output head times its final hidden states, without a bias or a soft cap.

    Raises:  ValueError: they are not, so stored hidden states would not give the distribution
    """
    head = model.get_output_embeddings()
    probe = torch.tensor([[1, 2, 3]], device=model.device)  # any tokens
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"expected an output head without bias, got {head}")
    if model.config.is_encoder_decoder:
        expected = model(probe, decoder_input_ids=probe).logits
        encoded = model.get_encoder()(probe).last_hidden_state
        got = head(decoder_hidden(model, encoded, torch.ones_like(probe), probe))
    else:
        expected = model(probe).logits
        got = head(model.base_model(probe).last_hidden_state)
    if not torch.allclose(got, expected, rtol=1e-2, atol=1e-2):  # bf16 rounding; a scale or a cap moves logits far more
        raise ValueError(f"the logits of {type(model).__name__} are not its head on its hidden states")


@torch.inference_mode()
def fill_in(table: TextTable, target: PreTrainedModel, *, workers: Workers = ALONE) -> None:
    """Compute and store the hidden states of every shard that has none; each process takes its share of the shards."""
    for shard in table.shards[workers.index :: workers.count]:
        if not (table.folder / HIDDEN.format(shard.index)).is_file():
            parts = [batch.hidden_ND(target) for batch in in_order(shard.rows, batch_tokens=BATCH_TOKENS)]
            write_hidden(table.folder, shard.index, torch.cat(parts).cpu())
    workers.wait()
