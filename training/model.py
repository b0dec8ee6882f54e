"""The model: Llama's layout (RMSNorm, rotary positions, SwiGLU, grouped-query attention, tied embedding), in torch.

Parameters have Hugging Face's names, so a checkpoint is a LlamaForCausalLM's but for `lm_head.weight`, which is tied.
All sizes have one depth and one head size and differ by a factor of two in every width: see grow.py.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """What config.json says, under its names."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int = 5
    head_dim: int = 32
    vocab_size: int = 2048
    max_position_embeddings: int = 512
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5


SIZES = {
    "1m": Config(128, 256, 4, 2),
    "3m": Config(256, 512, 8, 4),
    "10m": Config(512, 1024, 16, 8),
}
MIDDLE = 3
"""Layers below the point at which a larger size can go on from a smaller one's features."""


def rotation(config: Config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions [..., seq] -> [..., 1, seq, head_dim], to be used on all heads."""
    half = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-half / config.head_dim)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), -1).unsqueeze(-3)
    return angles.cos(), angles.sin()


def rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return (heads * cosine + torch.cat((-second, first), -1) * sine).to(heads.dtype)


BLOCK = 128
"""Queries at a time on a processor, so that most keys ahead of them are never multiplied."""


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention over scaled queries [batch, kept, group, seq, size]; keys and values [batch, kept, seq, size]."""
    batch, kept, group, length, size = query.shape
    if query.is_cuda:
        key, value = (one[:, :, None].expand(query.shape).flatten(1, 2) for one in (key, value))
        mixed = F.scaled_dot_product_attention(query.flatten(1, 2), key, value, is_causal=True, scale=1.0)
        return mixed.view(query.shape)
    # The plain products are three times as fast in bfloat16 as the fused kernel, and a group shares its keys uncopied.
    parts = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        rows = stop - start
        some = query[:, :, :, start:stop].reshape(batch, kept, group * rows, size)
        scores = (some @ key[:, :, :stop].transpose(-1, -2)).view(batch, kept, group, rows, stop)
        ahead = torch.full((rows, stop), float("-inf"), dtype=scores.dtype).triu(start + 1)
        shares = torch.softmax(scores + ahead, -1, dtype=scores.dtype).view(batch, kept, group * rows, stop)
        parts.append((shares @ value[:, :, :stop]).view(batch, kept, group, rows, size))
    return torch.cat(parts, 3)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, kept = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kept, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kept, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def heads(self, projected: Tensor) -> Tensor:
        batch, length, _ = projected.shape
        return projected.view(batch, length, -1, self.config.head_dim).transpose(1, 2)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        kept, size = self.config.num_key_value_heads, self.config.head_dim
        scale = size**-0.5
        query = rotated(self.heads(self.q_proj(hidden)), cosine * scale, sine * scale)
        key = rotated(self.heads(self.k_proj(hidden)), cosine, sine)
        value = self.heads(self.v_proj(hidden)).to(query.dtype)
        # Rows are padded on the right, so the causal mask alone keeps padding out of what counts.
        batch, count, length, _ = query.shape
        mixed = attention(query.view(batch, kept, count // kept, length, size), key, value)
        return self.o_proj(mixed.reshape(batch, count, length, size).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cosine, sine)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Inner(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Model(nn.Module):
    """tokens [batch, seq] -> features; `logits` of the last ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Inner(config)
        scale = 0.02
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=scale / (2 * config.num_hidden_layers) ** 0.5 if deep else scale)

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What MIDDLE layers give, and what all do, after the last norm."""
        middle = self.lower(tokens)
        return middle, self.upper(middle)

    def lower(self, tokens: Tensor) -> Tensor:
        return self._run(self.model.embed_tokens(tokens), 0, MIDDLE)

    def upper(self, middle: Tensor) -> Tensor:
        return self.model.norm(self._run(middle, MIDDLE, self.config.num_hidden_layers))

    def _run(self, hidden: Tensor, first: int, last: int) -> Tensor:
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        cosine, sine = rotation(self.config, positions)
        for layer in self.model.layers[first:last]:
            hidden = layer(hidden, cosine, sine)
        return hidden

    def logits(self, last: Tensor) -> Tensor:
        return F.linear(last, self.model.embed_tokens.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.features(tokens)[1])


def save(model: Model, path: Path, **more: Any) -> None:
    """A checkpoint: appears whole, so that a stopped run never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"config": asdict(model.config), "model": model.state_dict(), **more}, part)
    part.replace(path)


def load(path: Path, device: str = "cpu") -> tuple[Model, dict[str, Any]]:
    kept = torch.load(path, map_location=device, weights_only=True)
    model = Model(Config(**kept["config"])).to(device)
    model.load_state_dict(kept["model"])
    return model, kept


def describe(config: Config) -> str:
    return json.dumps(asdict(config))
