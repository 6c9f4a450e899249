"""A program that uses a GPU: of each call its name, the result, and whether what came of it is right."""

import ctypes
import sys

cuda = ctypes.CDLL("libcuda.so.1")
by, size = ctypes.byref, ctypes.c_size_t
context, stream, event = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
address = ctypes.c_uint64()
BULK = 1 << 20


def say(name: str, code: int, right: bool = True) -> None:
    print(name, code, "right" if right else "WRONG", flush=True)


def copies(count: int) -> None:
    sent = ctypes.create_string_buffer(bytes(i * 7 % 251 for i in range(4096)) * (count // 4096), count)
    came = ctypes.create_string_buffer(count)
    code = cuda.cuMemcpyHtoD_v2(address, sent, size(count))
    back = cuda.cuMemcpyDtoH_v2(came, address, size(count))
    say(f"copy {count}", code or back, bool(code or back) or came.raw == sent.raw)


def attribute() -> None:
    value = (ctypes.c_ubyte * 64)()
    say("cuStreamGetAttribute", cuda.cuStreamGetAttribute(stream, 1, value))


def callback() -> None:
    called: list[int] = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: called.append(1))
    code = cuda.cuLaunchHostFunc(stream, function, None)
    say("cuLaunchHostFunc", code, cuda.cuStreamSynchronize(stream) == 0 and called == ([] if code else [1]))


def nvml() -> None:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    code = library.nvmlInit_v2()
    say("nvmlInit", code)
    if code == 0:
        device, value = ctypes.c_void_p(), ctypes.c_uint()
        say("nvmlDeviceGetHandleByIndex", library.nvmlDeviceGetHandleByIndex_v2(0, by(device)))
        say("nvmlDeviceGetTemperature", library.nvmlDeviceGetTemperature(device, 0, by(value)))
        say("nvmlDeviceGetPowerUsage", library.nvmlDeviceGetPowerUsage(device, by(value)))


def main() -> None:
    if "nvml" in sys.argv:
        nvml()
        return
    code = cuda.cuInit(0)
    say("cuInit", code)
    if code:
        say("cuInit again", cuda.cuInit(0))
        return
    say("cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain(by(context), 0))
    say("cuCtxSetCurrent", cuda.cuCtxSetCurrent(context))
    say("cuMemAlloc", cuda.cuMemAlloc_v2(by(address), size(BULK)))
    say("cuStreamCreate", cuda.cuStreamCreate(by(stream), 1))
    copies(4096)
    copies(BULK)
    attribute()
    attribute()
    say("cuEventCreate", cuda.cuEventCreate(by(event), 0))
    say("cuEventRecord", cuda.cuEventRecord(event, stream))
    say("cuEventSynchronize", cuda.cuEventSynchronize(event))
    callback()
    came = ctypes.create_string_buffer(16)
    code = cuda.cuMemsetD8_v2(address, 0xAB, size(16)) or cuda.cuMemcpyDtoH_v2(came, address, size(16))
    say("cuMemsetD8", code, came.raw == b"\xab" * 16)
    say("cuCtxSynchronize", cuda.cuCtxSynchronize())
    say("cuEventDestroy", cuda.cuEventDestroy_v2(event))
    say("cuMemFree", cuda.cuMemFree_v2(address))
    nvml()


main()
