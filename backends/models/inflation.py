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
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

BLOCK = 2**22 + 3  # random numbers drawn; not a multiple of a row's length, so that rows differ


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
        return ",".join(f"{name}={size}" for name, size in asdict(self).items())


# The names of these sizes in a model's configuration.
CONFIG_NAMES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "neurons": "intermediate_size",
}

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
    shape = _shape_of(of)
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in CONFIG_NAMES or not number.isdecimal() or int(number) < 1:
            sizes = f"sizes of {', '.join(CONFIG_NAMES)} such as layers=40,hidden=5120"
            raise ValueError(f"expected --inflate {', '.join(SHAPES)} or {sizes}; got {text!r}")
        shape = replace(shape, **{name: int(number)})
    return shape


def _shape_of(config: LlamaConfig) -> Shape:
    return Shape(**{name: getattr(config, theirs) for name, theirs in CONFIG_NAMES.items()})


def inflate(model: PreTrainedModel, shape: Shape) -> LlamaForCausalLM:
    """Return a model of this shape whose logits are those of `model`, up to rounding, at every position and through the cache.

    Returns: an ordinary LlamaForCausalLM of the same dtype, on the same device, with an output head that is not tied
    Raises:  ValueError: another architecture, or a shape that the model does not fit into
    """
    config = model.config
    if reason := obstacle(config):
        raise ValueError(f"expected a Llama-type target to inflate, got {reason}")
    check_fits(config, shape)
    large = _without_weights(config, shape).to(model.dtype).to_empty(device=model.device)
    # Rotary angles are not weights: to_empty left them without values.
    large.model.rotary_emb = type(large.model.rotary_emb)(large.config).to(model.device)
    with torch.no_grad():
        _fill_randomly(large)
        _put(large.model.embed_tokens.weight.zero_(), model.model.embed_tokens.weight)
        _put(large.lm_head.weight, model.lm_head.weight)
        _put_norm(large.model.norm.weight, model.model.norm.weight)
        for layer, small in zip(large.model.layers, model.model.layers, strict=False):
            _put_norm(layer.input_layernorm.weight, small.input_layernorm.weight)
            _put_norm(layer.post_attention_layernorm.weight, small.post_attention_layernorm.weight)
            _put_attention(layer.self_attn, small.self_attn, config, shape)
            _put(layer.mlp.gate_proj.weight, small.mlp.gate_proj.weight)
            layer.mlp.up_proj.weight[:, : config.hidden_size] = 0  # further neurons read zeros only
            _put(layer.mlp.up_proj.weight, small.mlp.up_proj.weight)
            layer.mlp.down_proj.weight[:, : config.intermediate_size] = 0  # the small neurons write nothing beyond its width
            _put(layer.mlp.down_proj.weight, small.mlp.down_proj.weight)
        for layer in large.model.layers[config.num_hidden_layers :]:  # further layers read zeros only, so they add zeros
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
    return int(_without_weights(config, shape).num_parameters())


def check_fits(config: LlamaConfig, shape: Shape) -> None:
    """Raise ValueError if a size of the shape is too small for the model."""
    if shape.heads % shape.key_heads:
        raise ValueError(f"expected heads in multiples of key_heads, got {shape}")
    # The heads themselves need no check: with these copies of the key heads, all queries find a place.
    needed = replace(_shape_of(config), heads=shape.heads, key_heads=config.num_key_value_heads * _copies(config, shape))
    short = [f"{name} >= {size}" for name, size in asdict(needed).items() if getattr(shape, name) < size]
    if short:
        raise ValueError(f"expected a shape with {', '.join(short)}, into which the target fits; got {shape}")


def _copies(config: LlamaConfig, shape: Shape) -> int:
    """Return how many key heads of the large model one of the small model needs for all its queries.

    Example: 3 queries per key head in the small model and 2 in the large one need 2 copies.
    """
    return math.ceil(config.num_attention_heads // config.num_key_value_heads / (shape.heads // shape.key_heads))


def _without_weights(config: LlamaConfig, shape: Shape) -> LlamaForCausalLM:
    """Return a target inflated to this shape, for whose weights no memory is taken."""
    sizes = {theirs: getattr(shape, name) for name, theirs in CONFIG_NAMES.items()}
    theta = config.rope_parameters["rope_theta"] ** (shape.head_width / config.head_dim)
    changes = {
        "rms_norm_eps": config.rms_norm_eps * config.hidden_size / shape.hidden,
        "rope_parameters": {**config.rope_parameters, "rope_theta": theta},
        "tie_word_embeddings": False,
    }
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**config.to_dict() | sizes | changes))


def _fill_randomly(model: PreTrainedModel) -> None:
    """Fill all weights with normal numbers. One block is drawn, and shifted for each weight: drawing billions takes minutes."""
    generator = torch.Generator(model.device).manual_seed(0)
    block = torch.randn(BLOCK, generator=generator, device=model.device) * 0.02  # as in new models
    block = block.bfloat16().float()  # values that bfloat16 holds exactly
    for number, weight in enumerate(model.parameters()):
        shifted = block.roll(7919 * number).to(weight.dtype)
        for part in weight.view(-1).split(BLOCK):
            part.copy_(shifted[: len(part)])


def _put(large: Tensor, small: Tensor) -> None:
    """Copy the small weight into the first rows and columns of the large one."""
    large[: small.shape[0], : small.shape[1]] = small


def _put_norm(large_D: Tensor, small_D: Tensor) -> None:
    scaled_D = small_D.double() * math.sqrt(len(small_D) / len(large_D))  # double: so that scaling rounds only once
    large_D[: len(small_D)] = scaled_D.to(large_D.dtype)


def _put_attention(large: nn.Module, small: nn.Module, config: LlamaConfig, shape: Shape) -> None:
    """Place the small heads. Query i of a small key head goes to copy i // room of that key head, at place i % room."""
    hidden, width, wide = config.hidden_size, config.head_dim, shape.head_width
    room, copies = shape.heads // shape.key_heads, _copies(config, shape)
    queries = config.num_attention_heads // config.num_key_value_heads  # of one small key head
    q_HED, o_DHE = large.q_proj.weight.view(shape.heads, wide, -1), large.o_proj.weight.view(-1, shape.heads, wide)
    k_KED, v_KED = (each.weight.view(shape.key_heads, wide, -1) for each in (large.k_proj, large.v_proj))
    small_q_HED = small.q_proj.weight.view(-1, width, hidden)
    small_o_DHE = small.o_proj.weight.view(hidden, -1, width)
    small_k_KED, small_v_KED = (each.weight.view(-1, width, hidden) for each in (small.k_proj, small.v_proj))
    # Rotation pairs component i with i + half the width. Example: width 4 lies in width 8 at the places (0, 1, 4, 5).
    places = torch.arange(wide).view(2, -1)[:, : width // 2].flatten()
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
