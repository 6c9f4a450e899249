"""The product's own example: generate text with a Qwen3-0.6B-shaped model, then measure the same generation.

The first half is the script users are given, changed in nothing but the model's path and the number of tokens. Then
greedy and sampled token ids (the digest), tokens/s over 64 tokens after a warm-up of 8, and blocked round trips per
token as the difference between 64 and 8 tokens. Usage: qwen.py MODEL_FOLDER [DEVICE]
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from common import Digest, begin, client_stats, clock, finish

TOKENS = 64
WARM_UP = 8
REPEATS = 2
SEED = 1234


def counters() -> tuple[float, float, dict[str, float]]:
    """(blocked round trips, blocked ns, round trips by function) so far; zeros in a native process."""
    stats = client_stats()
    if stats is None:
        return 0.0, 0.0, {}
    by_function = {name: float(entry["round_trips"]) for name, entry in stats["by_function"].items()}
    return float(stats["round_trips"]), float(stats["blocked_ns"]), by_function


def main() -> int:
    begin()
    model_name = sys.argv[1]
    device = sys.argv[2] if len(sys.argv) > 2 else "cuda:0"
    start = clock()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import_s = clock() - start
    torch.manual_seed(SEED)

    # The users' script.
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    start = clock()
    model = AutoModelForCausalLM.from_pretrained(model_name, torch_dtype="auto", device_map=device)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    load_s = clock() - start

    prompt = "Give me a short introduction to large language model."
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    model_inputs = tokenizer([text], return_tensors="pt").to(model.device)
    generated_ids = model.generate(**model_inputs, max_new_tokens=TOKENS)
    output_ids = generated_ids[0][len(model_inputs.input_ids[0]) :].tolist()
    try:
        index = len(output_ids) - output_ids[::-1].index(151668)
    except ValueError:
        index = 0
    thinking_content = tokenizer.decode(output_ids[:index], skip_special_tokens=True).strip("\n")
    content = tokenizer.decode(output_ids[index:], skip_special_tokens=True).strip("\n")
    sys.stderr.write(f"thinking content: {thinking_content!r}\ncontent: {content!r}\n")

    prompt_length = int(model_inputs.input_ids.shape[1])

    def generate(tokens: int, sample: bool) -> tuple[list[int], float, tuple[float, float, dict[str, float]]]:
        """Ids, seconds, and what the counters rose by."""
        torch.manual_seed(SEED)
        greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        options = {} if sample else greedy
        before = counters()
        begun = clock()
        out = model.generate(**model_inputs, max_new_tokens=tokens, **options)
        ids = [int(value) for value in out[0][prompt_length:].tolist()]
        seconds = clock() - begun
        after = counters()
        rise = {name: after[2][name] - before[2].get(name, 0.0) for name in after[2]}
        return ids, seconds, (after[0] - before[0], after[1] - before[1], rise)

    digest = Digest()
    digest.add("script", json.dumps(output_ids).encode())
    _, _, warm = generate(WARM_UP, sample=False)
    runs = [generate(TOKENS, sample=False) for _ in range(REPEATS)]
    sampled_ids, sampled_s, _ = generate(TOKENS, sample=True)
    digest.add("greedy", json.dumps([ids for ids, _, _ in runs]).encode())
    digest.add("sampled", json.dumps(sampled_ids).encode())

    greedy_ids, _, (trips, blocked_ns, by_function) = runs[-1]
    seconds = statistics.median(run[1] for run in runs)
    metrics = {
        "tokens_per_s": len(greedy_ids) / seconds,
        "sampled_tokens_per_s": len(sampled_ids) / sampled_s,
        "load_s": load_s,
        "import_s": import_s,
    }
    detail: dict[str, float] = {}
    if client_stats() is not None:
        span = TOKENS - WARM_UP
        metrics["round_trips_per_token"] = (trips - warm[0]) / span
        metrics["blocked_us_per_token"] = (blocked_ns - warm[1]) / span / 1000
        rises = {name: (count - warm[2].get(name, 0.0)) / span for name, count in by_function.items()}
        detail = dict(sorted(((n, v) for n, v in rises.items() if v), key=lambda item: -abs(item[1]))[:12])
    finish(digest, metrics, generated=len(greedy_ids), distinct=len(set(greedy_ids)), round_trips_by_function=detail)
    return 0


if __name__ == "__main__":
    sys.exit(main())
