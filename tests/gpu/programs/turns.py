"""One process of one side that does its timed parts when it is told to, so that native and remote take turns.

Usage: turns.py MODEL_FOLDER. Reads one JSON object a line from stdin, {"do": NAME}, and answers each with one line
{"metrics": {...}, "digest": "...", "raw": {...}}; raw has the single samples that a metric is the median of, in
microseconds, and the libraries that were mapped stand in every answer. Nothing touches CUDA before the first line
that needs it. All data that is copied is random and verified. A part that fails answers {"error": …}; the others go on.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from common import Digest, begin, client_stats, clock, mapped_libraries

TOKENS = 48
SEED = 1234
ADDS = 20_000
SUMS = 1_000
SUM_BURSTS = 10
EVENTS = 500
LARGE = 256 << 20
MEDIUM = 16 << 20
STATE_BLOCKS = 75
STATE_WORDS = 4 << 20
STEPS = 10
REPLAYS = 200
PAUSE_S = 0.03

Metrics = dict[str, float]


class Turns:
    def __init__(self, model_folder: str) -> None:
        import torch
        import transformers

        self.torch: Any = torch
        self.transformers: Any = transformers
        self.folder = model_folder
        self.kept: dict[str, Any] = {}
        self.raw: dict[str, list[float]] = {}  # of the part that is being done

    def _median(self, name: str, seconds: list[float]) -> float:
        """Keeps the samples as `name`; their median in seconds."""
        self.raw[name] = [round(value * 1e6, 2) for value in seconds]
        return statistics.median(seconds)

    def first_use(self, digest: Digest) -> Metrics:
        torch = self.torch
        begun = clock()
        torch.cuda.init()
        first = torch.zeros(1024, device="cuda")
        torch.cuda.synchronize()
        seconds = clock() - begun
        digest.add("zeros", first.cpu().numpy().tobytes())
        return {"first_use_s": seconds}

    def load(self, digest: Digest) -> Metrics:
        """The model, and the first answer to a fixed prompt: what a user waits for once."""
        begun = clock()
        tokenizer = self.transformers.AutoTokenizer.from_pretrained(self.folder)
        model = self.transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, torch_dtype="auto", device_map="cuda:0"
        )
        self.torch.cuda.synchronize()
        seconds = clock() - begun
        messages = [{"role": "user", "content": "Give me a short introduction to large language model."}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        self.kept["model"] = model
        self.kept["inputs"] = tokenizer([text], return_tensors="pt").to(model.device)
        # Each new length of the cache makes cuDNN compile or load something: all of it once before anything is timed.
        ids, first_s = self._generate(TOKENS)
        self._generate(8)
        digest.add("ids", json.dumps(ids).encode())
        return {"load_s": seconds, "first_generate_s": first_s}

    def _generate(self, tokens: int) -> tuple[list[int], float]:
        self.torch.manual_seed(SEED)
        inputs = self.kept["inputs"]
        begun = clock()
        out = self.kept["model"].generate(
            **inputs, max_new_tokens=tokens, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        ids = [int(value) for value in out[0][int(inputs.input_ids.shape[1]) :].tolist()]
        return ids, clock() - begun

    def generate(self, digest: Digest) -> Metrics:
        ids, seconds = self._generate(TOKENS)
        digest.add("ids", json.dumps(ids).encode())
        return {"tokens_per_s": len(ids) / seconds}

    def census(self, digest: Digest) -> Metrics:
        """Blocked round trips and blocked time of a token: many tokens less 8, by the client's own counters."""
        before = client_stats()
        if before is None:
            return {}
        self._generate(8)
        middle = client_stats()
        ids, _ = self._generate(TOKENS)
        after = client_stats()
        assert middle is not None and after is not None
        digest.add("ids", json.dumps(ids).encode())

        def rise(name: str) -> float:
            return float((after[name] - middle[name]) - (middle[name] - before[name])) / (TOKENS - 8)

        return {"round_trips_per_token": rise("round_trips"), "blocked_us_per_token": rise("blocked_ns") / 1000}

    def small(self, digest: Digest) -> Metrics:
        """v.add_(1) that nobody waits for, and v.sum().item()."""
        torch = self.torch
        v = torch.zeros(1024, device="cuda")
        for _ in range(1000):
            v.add_(1)
        torch.cuda.synchronize()
        begun = clock()
        for _ in range(ADDS):
            v.add_(1)
        torch.cuda.synchronize()
        metrics = {"add_us": (clock() - begun) / ADDS * 1e6}
        digest.add("adds", v.cpu().numpy().tobytes())
        times, total = [], 0.0
        for _ in range(SUM_BURSTS):  # where a process's threads run changes with each pause, and with it the figure
            time.sleep(PAUSE_S)
            for _ in range(20):
                v.sum().item()
            for _ in range(SUMS // SUM_BURSTS):
                begun = clock()
                total += v.sum().item()
                times.append(clock() - begun)
        metrics["sum_item_us"] = self._median("sum_item_us", times) * 1e6
        digest.add("sums", repr(total).encode())
        return metrics

    def _timed(self, name: str, body: Callable[[], Any], repeats: int = 5, bursts: int = 0) -> float:
        """Median of repeats, or of bursts * repeats with PAUSE_S and one more before each burst: what a machine's copy
        engine moves changes for tens of milliseconds at a time, for either side."""
        samples = []
        for _ in range(max(bursts, 1)):
            if bursts:
                time.sleep(PAUSE_S)
                body()
            for _ in range(repeats):
                self.torch.cuda.synchronize()
                begun = clock()
                body()
                self.torch.cuda.synchronize()
                samples.append(clock() - begun)
        return self._median(name, samples)

    def _source(self) -> Any:
        if "source" not in self.kept:
            generator = self.torch.Generator().manual_seed(99)
            low, high = -(2**63), 2**63 - 1
            self.kept["source"] = self.torch.randint(
                low, high, (LARGE // 8,), dtype=self.torch.int64, generator=generator
            )
        return self.kept["source"]

    def copies(self, digest: Digest) -> Metrics:
        torch, source = self.torch, self._source()
        if "pinned" not in self.kept:
            self.kept["pinned"] = source.clone().pin_memory()
            self.kept["back_pinned"] = torch.empty_like(source).pin_memory()
            self.kept["back"] = torch.zeros_like(source)
            self.kept["device"] = torch.zeros(LARGE // 8, dtype=torch.int64, device="cuda")
            self.kept["device"].copy_(self.kept["pinned"])
            self.kept["back"].copy_(self.kept["device"])
        k, metrics = self.kept, {}
        for name, size, repeats, bursts in (("256m", LARGE, 5, 1), ("16m", MEDIUM, 8, 10)):
            words = size // 8
            device, pinned, down = k["device"][:words], k["pinned"][:words], k["back_pinned"][:words]
            k["device"].zero_()
            up_s = self._timed(f"h2d_pinned_{name}", partial(device.copy_, pinned, non_blocking=True), repeats, bursts)
            down_s = self._timed(f"d2h_pinned_{name}", partial(down.copy_, device, non_blocking=True), repeats, bursts)
            metrics[f"h2d_pinned_{name}_gbps"] = size / 1e9 / up_s
            metrics[f"d2h_pinned_{name}_gbps"] = size / 1e9 / down_s
            if not torch.equal(down, k["source"][:words]):
                raise RuntimeError("a pinned copy there and back differs")
        after = []
        for _ in range(9):  # what a program's other threads do to the first copy behind a parallel loop
            torch.equal(k["back"], source)
            begun = clock()
            device.copy_(pinned, non_blocking=True)
            torch.cuda.synchronize()
            after.append(clock() - begun)
        metrics["h2d_behind_parallel_loop_us"] = self._median("h2d_behind_parallel_loop", after) * 1e6
        device = k["device"]
        device.zero_()
        metrics["h2d_pageable_gbps"] = LARGE / 1e9 / self._timed("h2d_pageable", lambda: device.copy_(source))
        metrics["d2h_pageable_gbps"] = LARGE / 1e9 / self._timed("d2h_pageable", lambda: k["back"].copy_(device))
        if not torch.equal(k["back"], k["source"]):
            raise RuntimeError("a pageable copy there and back differs")
        digest.add("copies", str(int(device.sum().item())).encode())
        return metrics

    def events(self, digest: Digest) -> Metrics:
        """What timing a step by events costs, and the wait for an event by asking again and again."""
        torch = self.torch
        v = torch.zeros(1024, device="cuda")
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        timed, elapsed, polled = [], [], []
        for _ in range(EVENTS):
            begun = clock()
            start.record()
            v.add_(1)
            end.record()
            end.synchronize()
            waited = clock()
            if start.elapsed_time(end) < 0:
                raise RuntimeError("an event that was recorded later has happened earlier")
            done = clock()
            timed.append(done - begun)
            elapsed.append(done - waited)
        mark = torch.cuda.Event()
        for _ in range(EVENTS):
            begun = clock()
            v.add_(1)
            mark.record()
            while not mark.query():
                pass
            polled.append(clock() - begun)
        digest.add("adds", v.cpu().numpy().tobytes())
        samples = {"timed_step_us": timed, "elapsed_time_us": elapsed, "polled_step_us": polled}
        return {name: self._median(name, seconds) * 1e6 for name, seconds in samples.items()}

    def state(self, digest: Digest) -> Metrics:
        torch = self.torch
        if "state" not in self.kept:
            block = self._source().view(torch.int32)[:STATE_WORDS]
            self.kept["state"] = {str(i): (block + i).view(torch.float32) for i in range(STATE_BLOCKS)}
            self.kept["module"] = torch.nn.ParameterList(
                [torch.nn.Parameter(torch.zeros(STATE_WORDS, device="cuda")) for _ in range(STATE_BLOCKS)]
            )
        state, module = self.kept["state"], self.kept["module"]
        torch.cuda.synchronize()
        begun = clock()
        module.load_state_dict(state)
        torch.cuda.synchronize()
        seconds = clock() - begun
        for i, parameter in enumerate(module):
            there = int(parameter.detach().view(torch.int32).sum(dtype=torch.int64).item())
            if there != int(state[str(i)].view(torch.int32).sum(dtype=torch.int64)):
                raise RuntimeError(f"block {i} of load_state_dict differs")
            digest.add(f"block{i}", str(there).encode())
        return {"load_state_dict_s": seconds}

    def resnet(self, digest: Digest) -> Metrics:
        import torchvision

        torch = self.torch
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.manual_seed(7)
        model = torchvision.models.resnet18(weights=None).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        criterion = torch.nn.CrossEntropyLoss()
        images = torch.randn(32, 3, 224, 224).cuda()
        labels = torch.randint(0, 1000, (32,)).cuda()

        def step() -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        losses, times = [], []
        for _ in range(2 * STEPS):
            begun = clock()
            losses.append(float(step().item()))
            times.append(clock() - begun)
        torch.cuda.synchronize()
        begun = clock()
        late = [step() for _ in range(STEPS)]
        torch.cuda.synchronize()
        sustained = (clock() - begun) / STEPS
        losses += [float(loss.item()) for loss in late]
        digest.add("losses", json.dumps([loss.hex() for loss in losses]).encode())
        torch.use_deterministic_algorithms(False)
        return {"step_ms": statistics.median(times[STEPS:]) * 1e3, "step_sustained_ms": sustained * 1e3}

    def graph(self, digest: Digest) -> Metrics:
        """A network of many small kernels, captured once, replayed as PyTorch does."""
        torch = self.torch
        if "graph" not in self.kept:
            torch.manual_seed(3)
            layers = [torch.nn.Linear(256, 256) for _ in range(40)]
            network = torch.nn.Sequential(*(m for layer in layers for m in (layer, torch.nn.ReLU()))).cuda()
            static = torch.randn(8, 256, device="cuda")
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), torch.no_grad():
                for _ in range(3):
                    network(static)
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            with torch.no_grad(), torch.cuda.graph(captured):
                out = network(static)
            self.kept["graph"] = (captured, static, out, network)
        captured, static, out, network = self.kept["graph"]
        torch.manual_seed(5)
        fresh = torch.randn(8, 256, device="cuda")
        static.copy_(fresh)
        captured.replay()
        torch.cuda.synchronize()
        with torch.no_grad():
            if not torch.equal(out, network(fresh)):
                raise RuntimeError("a replayed graph gives other results than the same network run eagerly")
        begun = clock()
        for _ in range(REPLAYS):
            captured.replay()
        torch.cuda.synchronize()
        sustained = (clock() - begun) / REPLAYS * 1e6
        times = []
        for _ in range(REPLAYS):
            begun = clock()
            captured.replay()
            torch.cuda.synchronize()
            times.append(clock() - begun)
        digest.add("out", out.cpu().numpy().tobytes())
        return {"replay_us": sustained, "replay_waited_us": self._median("replay_waited_us", times) * 1e6}


def main() -> int:
    begin()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    turns = Turns(sys.argv[1])
    sys.stdout.write(json.dumps({"imported": True}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        digest = Digest()
        name = json.loads(line)["do"]
        turns.raw = {}
        try:
            metrics = getattr(turns, name)(digest)
            answer: dict[str, Any] = {"metrics": metrics, "digest": digest.hexdigest(), "raw": turns.raw}
        except Exception as error:  # noqa: BLE001 - the other parts go on
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["libraries"] = mapped_libraries()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
