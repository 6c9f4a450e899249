"""The NVML calls that nvidia-smi, gpustat, nvitop and PyTorch make, through nvidia-ml-py: one line per call.

Values that stay the same are printed whole, so that native and remote must agree; of values that change from moment to
moment (temperature, power, clocks, load, memory in use) only the kind of the answer is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from common import begin, finish

# Asked with the device handle alone.
UNCHANGING = tuple(
    """
    Index Name Serial Brand Architecture BoardId BoardPartNumber VbiosVersion CudaComputeCapability
    PersistenceMode ComputeMode DisplayActive DisplayMode EccMode MigMode MaxMigDeviceCount MinorNumber
    NumGpuCores MemoryBusWidth MaxPcieLinkGeneration MaxPcieLinkWidth EnforcedPowerLimit
    PowerManagementLimit PowerManagementDefaultLimit
    PowerManagementLimitConstraints PowerManagementMode VirtualizationMode MultiGpuBoard AccountingMode
    InforomImageVersion FanSpeed NumFans BridgeChipInfo IrqNum BusType
    """.split()  # noqa: SIM905 - a table of words reads better than forty strings
)


def plain(value: Any) -> str:
    """A value as one line of text; structures by their fields, byte strings decoded."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    fields = getattr(value, "_fields_", None)
    if fields:
        return " ".join(f"{field[0]}={plain(getattr(value, field[0]))}" for field in fields)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(plain(part) for part in value) + "]"
    if hasattr(value, "__len__") and not isinstance(value, str):
        return "[" + ", ".join(plain(part) for part in value) + "]"
    return str(value)


def main() -> int:
    begin()
    import pynvml as nvml

    def ask(label: str, call: Callable[..., Any], *arguments: Any, stable: bool = True) -> Any:
        try:
            value = call(*arguments)
        except nvml.NVMLError as error:
            sys.stdout.write(f"{label} = error {error.value}\n")
            return None
        text = plain(value).replace("\n", " ") if stable else f"a {type(value).__name__}"
        sys.stdout.write(f"{label} = {text}\n")
        return value

    ask("before nvmlInit: count", nvml.nvmlDeviceGetCount)
    ask("nvmlInit", nvml.nvmlInit)
    ask("nvmlSystemGetDriverVersion", nvml.nvmlSystemGetDriverVersion)
    ask("nvmlSystemGetNVMLVersion", nvml.nvmlSystemGetNVMLVersion)
    ask("nvmlSystemGetCudaDriverVersion", nvml.nvmlSystemGetCudaDriverVersion)
    ask("nvmlSystemGetCudaDriverVersion_v2", nvml.nvmlSystemGetCudaDriverVersion_v2)
    ask("nvmlDeviceGetCount", nvml.nvmlDeviceGetCount)
    ask("handle of 9", lambda: nvml.nvmlDeviceGetHandleByIndex(9))
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    uuid = ask("nvmlDeviceGetUUID", lambda: nvml.nvmlDeviceGetUUID(handle))
    ask("handle by UUID", lambda: nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(uuid)))
    ask("handle by UUID without GPU-", lambda: nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(uuid[4:])))
    ask("handle by a wrong UUID", lambda: nvml.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000"))
    pci = ask("nvmlDeviceGetPciInfo", lambda: nvml.nvmlDeviceGetPciInfo(handle))
    if pci is not None:
        ask("handle by bus", lambda: nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByPciBusId(pci.busId)))
    for name in UNCHANGING:
        function = getattr(nvml, f"nvmlDeviceGet{name}", None)
        if function is None:
            sys.stdout.write(f"nvmlDeviceGet{name} = not in this nvidia-ml-py\n")
            continue
        ask(f"nvmlDeviceGet{name}", function, handle)
    ask("compute capability", lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    ask("is a MIG device", lambda: nvml.nvmlDeviceIsMigDeviceHandle(handle))
    for clock in range(4):
        ask(f"max clock {clock}", nvml.nvmlDeviceGetMaxClockInfo, handle, clock)
        ask(f"clock {clock}", nvml.nvmlDeviceGetClockInfo, handle, clock, stable=False)
    for kind in range(6):
        ask(f"threshold {kind}", nvml.nvmlDeviceGetTemperatureThreshold, handle, kind)
    ask("memory total", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total)
    second = getattr(nvml, "nvmlMemory_v2", None)
    if second is not None:
        ask("memory v2 total", lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=second).total)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    sys.stdout.write(f"memory adds up = {abs(memory.total - memory.used - memory.free) <= memory.total // 50}\n")
    ask("BAR1 total", lambda: nvml.nvmlDeviceGetBAR1MemoryInfo(handle).bar1Total)
    changing: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("Temperature", (0,)),
        ("PowerUsage", ()),
        ("TotalEnergyConsumption", ()),
        ("PerformanceState", ()),
        ("CurrPcieLinkGeneration", ()),
        ("CurrPcieLinkWidth", ()),
        ("PcieSpeed", ()),
        ("UtilizationRates", ()),
        ("EncoderUtilization", ()),
        ("DecoderUtilization", ()),
        ("PcieThroughput", (0,)),
        ("TotalEccErrors", (0, 0)),
        ("CurrentClocksThrottleReasons", ()),
        ("ComputeRunningProcesses", ()),
        ("GraphicsRunningProcesses", ()),
        ("MPSComputeRunningProcesses", ()),
        ("ProcessUtilization", (0,)),
        ("RetiredPages", (0,)),
        ("RemappedRows", ()),
        ("ViolationStatus", (0,)),
    )
    for name, arguments in changing:
        function = getattr(nvml, f"nvmlDeviceGet{name}")
        ask(f"nvmlDeviceGet{name}", function, handle, *arguments, stable=False)
    for link in range(3):
        ask(f"NVLink {link}", nvml.nvmlDeviceGetNvLinkState, handle, link, stable=False)
    ask("field 1", lambda: len(nvml.nvmlDeviceGetFieldValues(handle, [1, 74, 82])))
    ask("nvmlShutdown", nvml.nvmlShutdown)
    ask("after nvmlShutdown: count", nvml.nvmlDeviceGetCount)
    finish("", {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
