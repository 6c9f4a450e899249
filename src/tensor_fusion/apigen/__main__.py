"""python -m tensor_fusion.apigen --api api --out build/generated [--lock]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import (
    coverage,
    emit_client,
    emit_operations,
    emit_session,
    emit_sim,
    emit_structs,
    emit_trace,
    emit_wire,
    schema,
)
from .layout import DescriptionError
from .model import Model, load


def outputs(model: Model) -> dict[str, str]:
    """File name → content of everything that is generated."""
    cuda, nvml = model.apis
    return {
        "tpg_cuda.h": cuda.snapshot.header("TPG_CUDA_H"),
        "tpg_nvml.h": nvml.snapshot.header("TPG_NVML_H"),
        "tpg_schema.h": emit_wire.schema_header(model),
        "tpg_ops.h": emit_wire.ops_header(model),
        "tpg_tables.c": emit_wire.tables(model),
        "tpg_roundtrip_test.c": emit_wire.roundtrip_test(model),
        "tpg_client.h": emit_client.client_header(model),
        "tpg_table.h": emit_client.table_header(model),
        "tpg_cuda_exports.c": emit_client.exports(model, cuda),
        "tpg_cuda_entries.c": emit_client.entries(model, cuda),
        "tpg_cuda_trace.h": emit_trace.trace(model, cuda),
        "tpg_cuda_stubs.c": emit_client.stubs(model, cuda),
        "tpg_cuda_looks.c": emit_client.looked_at(model, cuda),
        "tpg_nvml_exports.c": emit_client.exports(model, nvml),
        "tpg_nvml_entries.c": emit_client.entries(model, nvml),
        "tpg_nvml_trace.h": emit_trace.trace(model, nvml),
        "tpg_nvml_stubs.c": emit_client.stubs(model, nvml),
        "tpg_nvml_looks.c": emit_client.looked_at(model, nvml),
        "tpg_cuda_messages.h": emit_operations.messages_header(cuda),
        "tpg_cuda_messages.c": emit_operations.messages(cuda),
        "tpg_cuda_send.h": emit_operations.operations(model, cuda),
        "tpg_nvml_send.h": emit_operations.operations(model, nvml),
        "libcuda.map": emit_client.version_script(cuda),
        "libnvidia-ml.map": emit_client.version_script(nvml),
        "tpg_driver.h": emit_session.driver_header(model),
        "tpg_driver.c": emit_session.driver_source(model),
        "tpg_session.h": emit_session.session_header(model),
        "tpg_answer.h": emit_session.answers(model),
        "tpg_client_structs.h": emit_structs.client_structs(model),
        "tpg_nvml_structs.h": emit_structs.told_structs(model),
        "tpg_session_structs.h": emit_structs.session_structs(model),
        "tpg_dispatch.c": emit_session.dispatch(model),
        "tpg_sim_rest.c": emit_sim.rest(model),
        "schema.json": schema.schema(model),
        "coverage.json": coverage.coverage(model),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Generates C from api/.")
    parser.add_argument("--api", type=Path, required=True, help="the folder api/")
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    parser.add_argument("--lock", action="store_true", help="number operations that have no number yet")
    options = parser.parse_args()
    try:
        texts = outputs(load(options.api.resolve(), extend_lock=options.lock))
    except DescriptionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = options.out / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
