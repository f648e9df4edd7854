"""Virtual scale: a Llama-type model made wider and deeper without changing the function that it computes.

The small model lies in the first components of a large one. All further components of the stream (the hidden state that layers
add to) are zero. Weights that multiply these zeros may have any value. They are random, because kernels run cooler and faster
on zeros:

    embedding       small rows, then zeros, so that the stream of every token is zero beyond the small width
    norms           the mean square is over a wider stream: weights are scaled by sqrt(small / large), eps by small / large
    attention       heads keep their keys and values, which are repeated if the large model has fewer queries per key head;
                    queries are scaled by sqrt(large / small head width), and theta is raised to that ratio of widths, so that
                    the angles of the small head are among those of the large one
    further heads   their values read only the zero part of the stream, so the output projection may be random
    further neurons the same for `up`, so `down` may be random
    further layers  both at once: they add exact zeros to the stream
    output head     separate from the embedding; beyond the small width it multiplies zeros

Source: Chen et al. 2016 (Net2Net), arXiv 1511.05641, for function-preserving growth. Sizes of Llama 2: Touvron et al. 2023,
arXiv 2307.09288.

Shape letters: D hidden size, H query heads, K key heads, G query heads of one key head, E width of a head, M neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

SPREAD = 0.02  # standard deviation of random weights, as in freshly initialised models


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama-type model, by their names on the command line."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    neurons: int

    def __str__(self) -> str:
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


SHAPES: Mapping[str, Shape] = {
    "0.5b": Shape(30, 1024, 16, 4, 64, 4096),
    "1b": Shape(30, 1536, 24, 8, 64, 6144),
    "7b": Shape(32, 4096, 32, 32, 128, 11008),
    "13b": Shape(40, 5120, 40, 40, 128, 13824),
    "70b": Shape(80, 8192, 64, 8, 128, 28672),
}


def parse_shape(text: str, of: LlamaConfig) -> Shape:
    """Return a named shape such as 13b, or one of sizes such as `layers=40,hidden=5120`; others stay those of the model.

    Raises:  ValueError: no such name or size
    """
    if text.lower() in SHAPES:
        return SHAPES[text.lower()]
    own = {
        "layers": of.num_hidden_layers,
        "hidden": of.hidden_size,
        "heads": of.num_attention_heads,
        "key_heads": of.num_key_value_heads,
        "head_width": of.head_dim,
        "neurons": of.intermediate_size,
    }
    given: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in own or not number.isdecimal() or int(number) < 1:
            raise ValueError(
                f"expected --inflate {', '.join(SHAPES)} or sizes of {', '.join(own)} such as layers=40,hidden=5120; "
                f"got {text!r}"
            )
        given[name] = int(number)
    return Shape(**own | given)


def inflate(model: PreTrainedModel, shape: Shape, *, seed: int = 0) -> LlamaForCausalLM:
    """Return a model of this shape whose logits are those of `model`, up to rounding, at every position and through the cache.

    Args:    model: Llama-type; its dtype and device are kept
             seed: of the random weights
    Returns: an ordinary LlamaForCausalLM whose output head is not tied to the embedding
    Raises:  ValueError: another architecture, or a shape that the model does not fit into
    """
    config = model.config
    if reason := obstacle(config):
        raise ValueError(f"expected a Llama-type target to inflate, got {reason}")
    check_fits(config, shape)
    widths = config.hidden_size, shape.hidden
    with torch.device("meta"):
        large = LlamaForCausalLM(_config(config, shape))
    large = large.to(model.dtype).to_empty(device=model.device)
    # Rotary angles are not weights: to_empty left them without values.
    large.model.rotary_emb = type(large.model.rotary_emb)(large.config).to(model.device)
    random = _Random(seed, model.device)
    with torch.no_grad():
        for weight in large.parameters():
            random.fill(weight)
        _put(large.model.embed_tokens.weight.zero_(), model.model.embed_tokens.weight)
        _put(large.lm_head.weight, model.lm_head.weight)
        _put_norm(large.model.norm.weight, model.model.norm.weight, widths)
        for layer, small in zip(large.model.layers, model.model.layers, strict=False):
            _put_norm(layer.input_layernorm.weight, small.input_layernorm.weight, widths)
            _put_norm(layer.post_attention_layernorm.weight, small.post_attention_layernorm.weight, widths)
            _put_attention(layer.self_attn, small.self_attn, config, shape)
            _put_mlp(layer.mlp, small.mlp, config)
        for layer in large.model.layers[config.num_hidden_layers :]:
            layer.self_attn.v_proj.weight[:, : config.hidden_size] = 0
            layer.mlp.up_proj.weight[:, : config.hidden_size] = 0
    return large.eval()


def obstacle(config: PretrainedConfig) -> str | None:
    """Return why a model with this configuration cannot be inflated; None if it can."""
    if type(config) is not LlamaConfig:
        return str(config.model_type)
    if config.attention_bias or config.mlp_bias:
        return "one with biases"
    if config.rope_parameters["rope_type"] != "default":
        return f"one with {config.rope_parameters['rope_type']} rotary positions"
    return None


def num_parameters(config: LlamaConfig, shape: Shape) -> int:
    """Return the number of parameters of a target inflated to this shape."""
    attention = 2 * shape.hidden * shape.head_width * (shape.heads + shape.key_heads)
    per_layer = attention + 3 * shape.hidden * shape.neurons + 2 * shape.hidden
    return shape.layers * per_layer + 2 * config.vocab_size * shape.hidden + shape.hidden


def check_fits(config: LlamaConfig, shape: Shape) -> None:
    """Raise ValueError if a size of the shape is too small for the model."""
    if shape.heads % shape.key_heads:
        raise ValueError(f"expected heads in multiples of key_heads, got {shape}")
    copies = _copies(config, shape)
    needed = Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=shape.heads,
        key_heads=config.num_key_value_heads * copies,
        head_width=config.head_dim,
        neurons=config.intermediate_size,
    )
    short = [
        f"{field.name} >= {getattr(needed, field.name)}"
        for field in fields(Shape)
        if getattr(shape, field.name) < getattr(needed, field.name)
    ]
    if short:
        raise ValueError(f"expected a shape with {', '.join(short)}, into which the target fits; got {shape}")


def _copies(config: LlamaConfig, shape: Shape) -> int:
    """Return how many key heads of the large model one of the small model needs for all its queries.

    Example: 3 queries per key head in the small model and 2 in the large one need 2 copies.
    """
    return math.ceil(_queries_per_key(config) / (shape.heads // shape.key_heads))


def _queries_per_key(config: LlamaConfig) -> int:
    return int(config.num_attention_heads // config.num_key_value_heads)


def _config(config: LlamaConfig, shape: Shape) -> LlamaConfig:
    ratio = shape.head_width / config.head_dim
    return LlamaConfig(
        **{
            **config.to_dict(),
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_heads,
            "head_dim": shape.head_width,
            "intermediate_size": shape.neurons,
            "rms_norm_eps": config.rms_norm_eps * config.hidden_size / shape.hidden,
            "rope_parameters": {**config.rope_parameters, "rope_theta": config.rope_parameters["rope_theta"] ** ratio},
            "tie_word_embeddings": False,
        }
    )


class _Random:
    """Normal numbers: one block is drawn, and shifted for each weight. Drawing billions would take minutes."""

    BLOCK = 2**22 + 3  # not a multiple of a row's length, so that rows differ

    def __init__(self, seed: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        block = torch.randn(self.BLOCK, generator=generator, device=device) * SPREAD
        self.block = block.bfloat16().float()  # values that bfloat16 holds exactly
        self.shift = 0

    def fill(self, weight: Tensor) -> None:
        flat = weight.view(-1)
        block = self.block.roll(self.shift).to(weight.dtype)
        for start in range(0, len(flat), self.BLOCK):
            part = flat[start : start + self.BLOCK]
            part.copy_(block[: len(part)])
        self.shift += 7919


def _put(large: Tensor, small: Tensor) -> None:
    """Copy the small weight into the first rows and columns of the large one."""
    large[: small.shape[0], : small.shape[1]] = small


def _put_norm(large_D: Tensor, small_D: Tensor, widths: tuple[int, int]) -> None:
    small, wide = widths
    large_D[:small] = (small_D.double() * math.sqrt(small / wide)).to(large_D.dtype)


def _put_attention(large: nn.Module, small: nn.Module, config: LlamaConfig, shape: Shape) -> None:
    """Place the small heads. Query i of a small key head goes to copy i // room of that key head, at place i % room."""
    hidden, width, wide = config.hidden_size, config.head_dim, shape.head_width
    room, copies, queries = shape.heads // shape.key_heads, _copies(config, shape), _queries_per_key(config)
    q_HED, o_DHE = large.q_proj.weight.view(shape.heads, wide, -1), large.o_proj.weight.view(-1, shape.heads, wide)
    k_KED, v_KED = (each.weight.view(shape.key_heads, wide, -1) for each in (large.k_proj, large.v_proj))
    small_q_HED = small.q_proj.weight.view(-1, width, hidden)
    small_o_DHE = small.o_proj.weight.view(hidden, -1, width)
    small_k_KED, small_v_KED = (each.weight.view(-1, width, hidden) for each in (small.k_proj, small.v_proj))
    places = _halves(width, wide)
    v_KED[:, :, :hidden] = 0  # further heads mix zeros
    for key in range(config.num_key_value_heads):
        for copy in range(copies):
            k_KED[key * copies + copy, places, :hidden] = small_k_KED[key]
            v_KED[key * copies + copy, :width, :hidden] = small_v_KED[key]
            group = slice((key * copies + copy) * room, (key * copies + copy + 1) * room)
            o_DHE[:, group, :width] = 0  # for rows beyond the small width, and for queries that the small model lacks
        for query in range(queries):
            head = (key * copies + query // room) * room + query % room
            old = key * queries + query
            q_HED[head, :, :hidden] = 0  # the key's components beyond those of the small head are random
            q_HED[head, places, :hidden] = (small_q_HED[old].double() * math.sqrt(wide / width)).to(q_HED.dtype)
            o_DHE[:hidden, head, :width] = small_o_DHE[:, old]


def _halves(width: int, wide: int) -> Tensor:
    """Return where the components of a small head lie in a large one. Rotation pairs component i with i + half the width.

    Example: width 4 in width 8 is (0, 1, 4, 5).
    """
    half = torch.arange(width // 2)
    return torch.cat((half, half + wide // 2))


def _put_mlp(large: nn.Module, small: nn.Module, config: LlamaConfig) -> None:
    hidden, neurons = config.hidden_size, config.intermediate_size
    _put(large.gate_proj.weight, small.gate_proj.weight)
    large.up_proj.weight[:, :hidden] = 0
    _put(large.up_proj.weight, small.up_proj.weight)
    large.down_proj.weight[:, :neurons] = 0
    _put(large.down_proj.weight, small.down_proj.weight)
