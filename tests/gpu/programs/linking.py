"""Linking at run time: two texts that need each other become one cubin, byte for byte the same on both sides.

The linker is the driver's; what is proved is that both inputs, the logs and the image cross unharmed and that the image
loads and runs.
"""

from __future__ import annotations

import ctypes
import sys

from common import Digest, begin, finish
from driver_ctypes import Driver, address

HEAD = ".version 7.0\n.target sm_75\n.address_size 64\n"
KERNEL = (
    HEAD
    + """.extern .func (.param .b32 r) twice (.param .b32 x);
.visible .entry apply(.param .u64 out, .param .u32 value) {
  .reg .b32 %v; .reg .b64 %p;
  ld.param.u64 %p, [out];
  cvta.to.global.u64 %p, %p;
  ld.param.u32 %v, [value];
  { .param .b32 x; .param .b32 r;
    st.param.b32 [x], %v;
    call.uni (r), twice, (x);
    ld.param.b32 %v, [r]; }
  st.global.u32 [%p], %v;
  ret;
}
"""
)
FUNCTION = (
    HEAD
    + """.visible .func (.param .b32 r) twice (.param .b32 x) {
  .reg .b32 %v;
  ld.param.b32 %v, [x];
  add.u32 %v, %v, %v;
  st.param.b32 [r], %v;
  ret;
}
"""
)
PTX, ERROR_LOG, ERROR_LOG_SIZE = 1, 5, 6


def link(driver: Driver, texts: list[str]) -> tuple[int, bytes, str]:
    """Code of the last call, the image, and what the linker wrote."""
    log = ctypes.create_string_buffer(8192)
    options = (ctypes.c_int * 2)(ERROR_LOG, ERROR_LOG_SIZE)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
    state, image, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
    driver.call("cuLinkCreate_v2", 2, options, values, ctypes.byref(state))
    code = 0
    for number, text in enumerate(texts):
        raw = text.encode() + b"\0"
        code = code or driver.ask(
            "cuLinkAddData_v2", state, PTX, raw, ctypes.c_size_t(len(raw)), b"part%d" % number, 0, None, None
        )
    code = code or driver.ask("cuLinkComplete", state, ctypes.byref(image), ctypes.byref(size))
    linked = ctypes.string_at(image, size.value) if code == 0 else b""
    driver.call("cuLinkDestroy", state)
    return code, linked, log.value.decode(errors="replace")


def main() -> int:
    begin()
    driver = Driver()
    driver.start()
    digest = Digest()
    code, image, log = link(driver, [KERNEL, FUNCTION])
    if code:
        raise RuntimeError(f"linking gave {code}: {log}")
    digest.add("image", image)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuModuleLoadData", ctypes.byref(module), image)
    driver.call("cuModuleGetFunction", ctypes.byref(function), module, b"apply")
    out, value, answer = ctypes.c_ulonglong(driver.alloc(4)), ctypes.c_uint(21), ctypes.c_uint()
    parameters = (ctypes.c_void_p * 2)(ctypes.addressof(out), ctypes.addressof(value))
    driver.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, parameters, None)
    driver.call("cuMemcpyDtoH_v2", ctypes.byref(answer), address(out.value), ctypes.c_size_t(4))
    if answer.value != 42:
        raise RuntimeError(f"twice 21 gave {answer.value}")
    for name, texts in (("undefined", [KERNEL]), ("broken", [HEAD + "this is no program\n"])):
        code, _, log = link(driver, texts)
        digest.add(name, f"{code} {bool(log)}".encode())
    finish(digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
