"""Linking device code at run time."""

from tensor_fusion.apigen.describe import alias, custom, op

# Every answer carries the status of the linker's call beside its logs, because the logs matter most when it failed.
FUNCTIONS = [
    custom("cuLinkCreate_v2", ops="link_create", current=True, stateOut="there"),
    alias("cuLinkCreate", "cuLinkCreate_v2"),
    custom("cuLinkAddData_v2", ops="link_add", state="handle", data="there", size="there", type="below CU_JIT_NUM_INPUT_TYPES"),
    alias("cuLinkAddData", "cuLinkAddData_v2"),
    custom("cuLinkAddFile_v2", ops="link_add", path="there"),
    alias("cuLinkAddFile", "cuLinkAddFile_v2"),
    custom("cuLinkComplete", ops="link_complete link_image", state="handle", cubinOut="there"),
    custom("cuLinkDestroy", ops="link_destroy", state="handle"),
    op("link_create", "call", link="uint64_t: new link", options="uint64_t: array"),
    op("link_add", "call", link="uint64_t: name link", type="unsigned int", size="uint64_t", transfer="uint64_t",
       name="char: string", data="void: bytes", options="uint64_t: array",
       out={"status": "int", "info_log": "void: bytes", "error_log": "void: bytes"}),
    op("link_complete", "call", link="uint64_t: handle link",
       out={"status": "int", "size": "uint64_t", "image": "void: bytes", "info_log": "void: bytes", "error_log": "void: bytes"}),
    # What an answer has no room for of the linked image, from the byte `from` on.
    op("link_image", "call", **{"link": "uint64_t: handle link", "from": "uint64_t"}, out={"image": "void: bytes"}),
    op("link_destroy", "post", link="uint64_t: gone link"),
]  # fmt: skip
