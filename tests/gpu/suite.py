"""The list of programs and of the figures they must reach: the project's statement of what a GPU machine proves."""

from __future__ import annotations

from pathlib import Path

from harness import Metric, Program

PROGRAMS_FOLDER = Path(__file__).resolve().parent / "programs"
REPOSITORY = PROGRAMS_FOLDER.parents[2]
KERNELS_PTX = REPOSITORY / "tests" / "kernels" / "kernels.ptx"
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror")

# Executables and what they are made of. C first, then CUDA with the flags that nvcc gets.
C_BUILDS: dict[str, tuple[str, ...]] = {
    "driver_api": (
        "driver_api.c",
        "driver_api_init.c",
        "driver_api_context.c",
        "driver_api_memory.c",
        "driver_api_launch.c",
        "cu.c",
    ),
    "graphs": ("graphs.c", "cu.c"),
    "upload_order": ("upload_order.c", "cu.c"),
    "managed": ("managed.c", "cu.c"),
    "launch_cost": ("launch_cost.c", "cu.c"),
    "null_call": ("null_call.c", "cu.c"),
    "client_memory": ("client_memory.c", "cu.c"),
    "bounds": ("bounds.c", "bounds_memory.c", "bounds_readback.c", "bounds_copies.c", "bounds_calls.c", "cu.c"),
}
CUDA_BUILDS: dict[str, tuple[str, str]] = {
    "cudart_static": ("cudart.cu", "static"),
    "cudart_shared": ("cudart.cu", "shared"),
}


def python(name: str, *arguments: str) -> tuple[str, ...]:
    return ("{python}", "{programs}/" + name, *arguments)


def nccl_metrics() -> tuple[Metric, ...]:
    """What programs/nccl.py measures; bandwidth from 16 MiB on is bound."""
    names = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send_receive")
    sizes = ("8 B us", "64 KiB us", "1 MiB GB/s", "16 MiB GB/s", "256 MiB GB/s", "1 GiB GB/s")
    bound = ("16 MiB GB/s", "256 MiB GB/s", "1 GiB GB/s")
    return tuple(
        Metric(f"{name} {size}", size.split()[-1], *(("ratio_min", 0.95) if size in bound else ()))
        for size in sizes
        for name in names
    )


def programs() -> tuple[Program, ...]:
    """In the order in which they run; the cheap and telling ones first."""
    return (
        Program(
            "driver_api",
            ("{bin}/driver_api",),
            kind="text",
            timeout_s=240,
            expectations=PROGRAMS_FOLDER / "driver_api.expect",
            alone=True,
        ),
        Program(
            "graphs",
            ("{bin}/graphs",),
            kind="text",
            timeout_s=120,
            expectations=PROGRAMS_FOLDER / "graphs.expect",
            alone=True,
        ),
        Program(
            "upload_order",
            ("{bin}/upload_order",),
            kind="text",
            timeout_s=120,
            expectations=PROGRAMS_FOLDER / "upload_order.expect",
            alone=True,
        ),
        Program(
            "managed",
            ("{bin}/managed",),
            kind="text",
            timeout_s=120,
            expectations=PROGRAMS_FOLDER / "managed.expect",
            alone=True,
        ),
        Program("random_programs", python("random_programs_run.py", "--seconds", "60"), timeout_s=240, alone=True),
        Program("cudart_static", ("{bin}/cudart_static",)),
        Program("cudart_shared", ("{bin}/cudart_shared",)),
        Program("cudart_preload", ("{bin}/cudart_static",), inject="preload"),
        Program("cublas", python("torch_ops.py", "cublas")),
        Program("cudnn", python("torch_ops.py", "cudnn")),
        Program("cufft", python("torch_ops.py", "cufft")),
        Program("streams", python("torch_ops.py", "streams")),
        Program("threads", python("torch_ops.py", "threads")),
        Program("mixed_by_run", python("torch_ops.py", "mixed"), inject="run"),
        Program("devices", python("devices.py"), timeout_s=180, alone=True, gpus=2),
        Program("nccl", python("nccl.py"), timeout_s=180, timed=True, group="speed", gpus=2, metrics=nccl_metrics()),
        Program("cupy_nvrtc", python("cupy_nvrtc.py")),
        Program("cuda_bindings", python("cuda_bindings_add.py")),
        Program("linking", python("linking.py")),
        Program("numba", python("numba_add.py")),
        Program("triton", python("compile_triton.py"), timeout_s=240),
        Program("jax", python("jax_matmul.py"), timeout_s=180),
        Program(
            "nvml",
            python("nvml_calls.py"),
            kind="text",
            expectations=PROGRAMS_FOLDER / "nvml_calls.expect",
            alone=True,
        ),
        Program("smi", python("smi.py"), kind="checks", group="robustness", timeout_s=180),
        Program("robustness", python("robustness.py"), kind="checks", group="robustness", timeout_s=300),
        Program(
            "launch_cost",
            ("{bin}/launch_cost",),
            timed=True,
            group="speed",
            timeout_s=60,
            metrics=(
                Metric("launch_us", "us", "max", 1.0, "0.25"),
                Metric("launch_mean_us", "us"),
                Metric("launches_per_s", "/s"),
                Metric("idle_sync_us", "us"),
            ),
        ),
        Program(
            "null_call",
            ("{bin}/null_call",),
            timed=True,
            group="speed",
            timeout_s=60,
            metrics=(
                Metric("null_p50_us", "us", "max", 15.0, "7"),
                Metric("null_p999_us", "us"),
                Metric("launch_sync_us", "us"),
            ),
        ),
        Program(
            "client_memory",
            ("{bin}/client_memory",),
            timed=True,
            group="speed",
            timeout_s=60,
            metrics=(Metric("client_memory_mb", "MB", "max", 20.0), Metric("client_init_mb", "MB")),
        ),
        Program(
            "micro",
            python("micro.py"),
            timed=True,
            group="speed",
            timeout_s=180,
            metrics=(
                Metric("first_use_s", "s", "ratio_max", 1.0),
                Metric("add_us", "us", "ratio_max", 1.1, "0.7 x"),
                Metric("add_issue_us", "us"),
                Metric("sum_item_us", "us", "ratio_max", 4.0),
                Metric("h2d_pinned_gbps", "GB/s", "min", 5.0, "10"),
                Metric("d2h_pinned_gbps", "GB/s", "min", 5.0, "10"),
                Metric("h2d_pageable_gbps", "GB/s", "min", 5.0, "native"),
                Metric("d2h_pageable_gbps", "GB/s"),
                Metric("load_state_dict_s", "s"),
            ),
        ),
        Program(
            "torch_graph",
            python("torch_graph.py"),
            timed=True,
            group="speed",
            timeout_s=180,
            metrics=(
                Metric("replay_us", "us", "ratio_max", 1.1),
                Metric("replay_issue_us", "us"),
                Metric("decode_replay_us", "us", "ratio_max", 1.1),
                Metric("capture_ms", "ms"),
            ),
        ),
        Program(
            "resnet18",
            python("resnet18.py"),
            timed=True,
            group="speed",
            timeout_s=180,
            env={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
            metrics=(
                Metric("step_ms", "ms", "ratio_max", 1.1),
                Metric("step_sustained_ms", "ms", "ratio_max", 1.1),
            ),
        ),
        Program(
            "qwen",
            python("qwen.py", "{model}"),
            timed=True,
            group="speed",
            timeout_s=240,
            metrics=(
                Metric("tokens_per_s", "/s", "ratio_min", 0.95, "1.1 x"),
                Metric("round_trips_per_token", "", "max", 4.0, "2"),
                Metric("blocked_us_per_token", "us"),
                Metric("sampled_tokens_per_s", "/s"),
                Metric("load_s", "s"),
            ),
        ),
    )
