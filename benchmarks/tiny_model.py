"""A tiny Llama of random weights with a tokenizer and a chat template: a model for real engines without a download.

    python benchmarks/tiny_model.py FOLDER

Hidden size 256, 4 layers, 4 heads, 2 KV heads, 3.4 million parameters in bfloat16: 2,048 bytes of KV per token. The
byte-level BPE of 2,048 tokens is trained on text made here, so everywhere the same call gives the same folder; a word
of `saga replay` is one token. Its answers mean nothing; with temperature 0 the same prompt gives the same ones. About a
second. Needs vLLM's environment (torch, tokenizers, safetensors).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from saga.bench.transcript import WORDS

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, MAX_TOKENS = 2_048, 256, 4, 4, 2, 512, 32_768
HEAD = HIDDEN // HEADS
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}  # a small quiet vLLM for CPUs: one thread, nothing from the network
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(folder: Path) -> Path:
    """Write the model to `folder`, which is made where it is missing; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    _write_weights(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": SPECIAL.index("</s>"),
        "attention_bias": False,
        "mlp_bias": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(Random(0)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "model_max_length": MAX_TOKENS,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def _text(dice: Random, num_lines: int = 4_000) -> Iterator[str]:
    """Lines of made-up words, numbers and the punctuation of JSON and programs; some words are much more frequent."""
    starts, vowels, ends = "bcdfghklmnprstw", "aeiou", ["", "n", "r", "s", "t", "ng", "l"]
    words = ["".join((dice.choice(starts), dice.choice(vowels), dice.choice(ends))) for _ in range(900)]
    words += [one + other for one, other in zip(words, reversed(words), strict=True)]
    weights = [1.0 / (rank + 1) for rank in range(len(words))]
    for _ in range(num_lines // 20):
        yield "".join(dice.sample(WORDS, k=100))
    for _ in range(num_lines):
        line = dice.choices(words, weights, k=dice.randint(4, 14))
        match dice.randrange(4):
            case 0:
                yield f'{{"{line[0]}": "{" ".join(line[1:])}", "{line[-1]}": {dice.randrange(1_000)}}}\n'
            case 1:
                yield f"    {line[0]}_{line[1]} = {line[2]}({', '.join(line[3:])})\n"
            case _:
                yield " ".join(line).capitalize() + ".\n"


def _write_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.05).to(torch.bfloat16)

    def ones() -> torch.Tensor:
        return torch.ones(HIDDEN, dtype=torch.bfloat16)

    weights = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN), "lm_head.weight": random(VOCABULARY, HIDDEN)}
    weights["model.norm.weight"] = ones()
    for layer in range(LAYERS):
        attention, inner = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        weights[f"{attention}.q_proj.weight"] = random(HEADS * HEAD, HIDDEN)
        weights[f"{attention}.k_proj.weight"] = random(KV_HEADS * HEAD, HIDDEN)
        weights[f"{attention}.v_proj.weight"] = random(KV_HEADS * HEAD, HIDDEN)
        weights[f"{attention}.o_proj.weight"] = random(HIDDEN, HEADS * HEAD)
        weights[f"{inner}.gate_proj.weight"] = random(INNER, HIDDEN)
        weights[f"{inner}.up_proj.weight"] = random(INNER, HIDDEN)
        weights[f"{inner}.down_proj.weight"] = random(HIDDEN, INNER)
        weights[f"model.layers.{layer}.input_layernorm.weight"] = ones()
        weights[f"model.layers.{layer}.post_attention_layernorm.weight"] = ones()
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python benchmarks/tiny_model.py FOLDER")
    print(make_tiny_model(Path(sys.argv[1])))
