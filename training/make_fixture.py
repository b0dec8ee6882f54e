"""Makes tests/data/language: a tiny Llama with random weights in Hugging Face's ONNX layout, and what transformers says of it.

    python -m training.make_fixture [FOLDER]

`expected.json` has the tokens that transformers' own `generate` gave, greedily and drawn. For the drawn ones
its random numbers are replaced by those of `starloom.agents.language.sampling.draw`, so that only the
distributions are compared; and logits of a full pass.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from starloom.agents.language.sampling import draw

SEED = 7
VOCABULARY = 300
BEGIN, END = "<s>", "</s>"
MARKS = (BEGIN, END, "<|system|>", "<|user|>", "<|assistant|>")
TEXT = """A constellation is a graph of stages. Each stage runs on a node, and a node is a device, an edge machine or
a machine in the cloud. The stages pass values to each other: images, sounds, texts and numbers. When a node is lost,
its stages run on another one. The answer comes from the stage at the end."""
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PROMPTS = ("A stage runs on", "The graph", "x", "Each node is a device — or a naïve \U0001f600 machine in the cloud")
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a node?"}]
DRAWN = ((0.8, 0.9, 3), (1.5, 1.0, 11), (0.3, 0.5, 2**40))
NEW_TOKENS = 24


def tokenizer() -> Any:
    """A byte-level BPE with a mark in front of each text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, made.token_to_id(BEGIN))]
    )
    assert made.get_vocab_size() == VOCABULARY
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BEGIN, eos_token=END, chat_template=TEMPLATE)


def model() -> Any:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        # Wide enough that the likeliest tokens differ from each other, and from the prompt's.
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


class Layout(nn.Module):
    """The model with its cache as plain inputs and outputs, as exporters have it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        cache = DynamicCache(config=self.inner.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        given = self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return given.logits, *(one for layer in given.past_key_values.layers for one in (layer.keys, layer.values))


def export(inner: Any, path: Path) -> None:
    layers, heads, size = inner.config.num_hidden_layers, inner.config.num_key_value_heads, inner.config.head_dim
    past = [f"past_key_values.{n}.{part}" for n in range(layers) for part in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    tokens = {0: "batch_size", 1: "sequence_length"}
    axes = {
        **dict.fromkeys(("input_ids", "position_ids", "logits"), tokens),
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        **{name: {0: "batch_size", 2: "past_sequence_length"} for name in past},
        **{name: {0: "batch_size", 2: "total_sequence_length"} for name in present},
    }
    torch.onnx.export(
        Layout(inner),
        (
            torch.ones(2, 3, dtype=torch.int64),
            torch.ones(2, 8, dtype=torch.int64),
            torch.arange(5, 8)[None].repeat(2, 1),
            *(torch.randn(2, heads, 5, size) for _ in past),
        ),
        str(path),
        input_names=["input_ids", "attention_mask", "position_ids", *past],
        output_names=["logits", *present],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


def generated(inner: Any, prompt: list[int], **options: Any) -> list[int]:
    """What `generate` puts behind the prompt."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = inner.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, **options)
    return [int(token) for token in out[0, len(prompt) :]]


def drawn(inner: Any, prompt: list[int], temperature: float, top_p: float, seed: int) -> list[int]:
    count = 0

    def chosen(spread: Tensor, num_samples: int) -> Tensor:
        nonlocal count
        total = spread[0].double().cumsum(0)
        at = torch.searchsorted(total, draw(seed, count) * total[-1], right=True)
        count += 1
        return at.reshape(1, num_samples)

    with mock.patch("torch.multinomial", chosen):
        return generated(inner, prompt, do_sample=True, temperature=temperature, top_p=top_p, top_k=0)


def expected(inner: Any, words: Any) -> dict[str, Any]:
    prompts = {text: words(text)["input_ids"] for text in PROMPTS}
    with torch.no_grad():
        logits = {text: inner(torch.tensor([ids])).logits[0, -1].tolist() for text, ids in prompts.items()}
    chat = words.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    return {
        "new_tokens": NEW_TOKENS,
        "prompts": prompts,
        "logits": {text: [round(one, 5) for one in row] for text, row in logits.items()},
        "greedy": {text: generated(inner, ids, do_sample=False) for text, ids in prompts.items()},
        "drawn": [
            {
                "prompt": text,
                "temperature": temperature,
                "top_p": top_p,
                "seed": seed,
                "tokens": drawn(inner, prompts[text], temperature, top_p, seed),
            }
            for text in PROMPTS[:2]
            for temperature, top_p, seed in DRAWN
        ],
        "chat": {
            "messages": MESSAGES,
            "text": chat,
            "tokens": generated(inner, words(chat, add_special_tokens=False)["input_ids"], do_sample=False),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("tests/data/language"))
    folder = parser.parse_args().folder
    inner, words = model(), tokenizer()
    tiny = folder / "tiny"
    tiny.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        inner.save_pretrained(scratch)
        words.save_pretrained(scratch)
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(Path(scratch, name), tiny / name)
        if Path(scratch, "chat_template.jinja").exists():
            shutil.copyfile(Path(scratch, "chat_template.jinja"), tiny / "chat_template.jinja")
    export(inner, tiny / "model.onnx")
    (folder / "expected.json").write_text(json.dumps(expected(inner, words)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
