"""Save a model with the shape of Qwen3-0.6B and a small tokenizer in Hugging Face format. Runs on the CPU, once.

Weights are random from a fixed seed; vocabulary size, special token ids and generation defaults are those of the real
model, so that the sampler, the tied embedding and the key/value cache do the same work. Usage: qwen_prepare.py FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

SEED = 20260101
VOCABULARY = 151_936
SPECIAL = {
    151_643: "<|endoftext|>",
    151_644: "<|im_start|>",
    151_645: "<|im_end|>",
    151_667: "<think>",
    151_668: "</think>",
}
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: 256 byte tokens, the special ones at their real ids, a filler name for every other id."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: index for index, name in enumerate(names)}
    for index in range(len(names), VOCABULARY):
        vocabulary[SPECIAL.get(index, f"~{index}")] = index
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL.values()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=40_960
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def save_model(folder: Path, layers: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        bos_token_id=151_643,
        eos_token_id=151_645,
        pad_token_id=151_643,
        torch_dtype="bfloat16",
    )
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=151_643,
        pad_token_id=151_643,
        eos_token_id=[151_645, 151_643],
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
    )
    model.save_pretrained(folder)


def main() -> int:
    if len(sys.argv) not in (2, 3):
        sys.stderr.write("usage: qwen_prepare.py FOLDER [LAYERS]\n")
        return 2
    folder = Path(sys.argv[1])
    layers = int(sys.argv[2]) if len(sys.argv) == 3 else 28
    if (folder / "config.json").exists():
        return 0
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_tokenizer(partial)
    save_model(partial, layers)
    # Appears under its final name only when it is whole: a run that was cut short starts again.
    partial.replace(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
