"""A family of the small API: one line of each kind."""

from tensor_fusion.apigen.describe import (
    attribute,
    begins,
    call,
    choice,
    custom,
    like,
    local,
    older,
    op,
    post,
    pure,
    record,
    refused,
)

FUNCTIONS = [
    call("cuFooCreate", unsafe=True),
    post("cuFooDestroy", hFoo="gone foo", contextless=True),
    post("cuFooWrite", dst="dev size", data="bytes size"),
    call("cuFooGetCount", settled=True, check="tpc_foo_counts(hFoo)", noted="tpc_foo_counted(hFoo, count)", count="wanted"),
    pure("cuFooGetName", name="outstring length"),
    post("cuFooSetParams", params="struct"),
    call("cuFooGetPlace", place="outstruct", source="known foo"),
    call("cuFooAddBar", phBar="new bar of hFoo", items="structs count"),
    call("cuFooGetBar", phBar="fresh bar of hFoo"),
    older("cuFooSetOldParams", "cuFooSetParams", first=True, hFoo="foo"),
    call("cuFooMove", wrapped=True),
    local("cuFooLook", current=True, unsafe=True, hFoo="handle?", place="there", flags="bits 3", dev="device"),
    local("cuFooVersion", hFoo="handle", place="version 2", flags="is 5", gives={"place.id": "flags"}),
    local("cuFooLooks", place="there", gives={"place.type": "1", "place.id": "0"}),
    custom("cuFooLong", ops="foo_ask", hFoo="handle or CUDA_ERROR_INVALID_VALUE", count="below 7", hStream="uncaptured", finds={"struct foo *foo": "tpc_foo_of(hFoo) or CUDA_ERROR_INVALID_VALUE", "": "tpc_foo_lives(foo)"}, by='tpc_foo_shared("cuFooLong", foo, count)'),
    local("cuFooFlags", finds={"unsigned int found": "tpc_foo_found(hFoo, &found)"}, gives={"flags?": "found"}),
    refused("CUDA_ERROR_INVALID_VALUE", "a foo has no map here", "cuFooMap", unsafe=True, hStream="handle", size="there CUDA_SUCCESS"),
    custom("cuFooRun", ops="foo_run foo_run_again foo_ask foo_give foo_fetch foo_make foo_place"),
    custom("cuFooAsk", ops="foo_ask foo_make", lender="hFoo"),
    op("foo_run", "post", foo="uint64_t: handle foo", stream="uint64_t: handle stream", flags="unsigned int"),
    op("foo_give", "post", waits="size > 4 && tp_handle_is(foo, TPG_FOO)", foo="uint64_t: handle foo", bytes="uint64_t: up", size="uint64_t"),
    op("foo_fetch", "call", turns=True, foo="uint64_t: handle foo", bytes="uint64_t: down", out={"count": "uint64_t"}),
    op("foo_make", "call", says_why=True, foo="uint64_t: new foo", parent="uint64_t: new? foo"),
    like("foo_run_again", "foo_run"),
    op("foo_place", "post", session="tpw_foo_put(s, frame, foo, in.foo, others, at.x)", contextless=True, foo="uint64_t: handle foo", others="uint64_t: handles foo", at="struct tpg_spot"),
    op("foo_ask", "call", foo="uint64_t: name foo", others="uint64_t: names foo", device="CUdevice: device",
       data="void: bytes", out={"count": "uint64_t", "values": "int: array"}),
]  # fmt: skip

CHOICES = [
    choice("foo_do", "CUfooParams", "type", head=1, cases={
        "CU_FOO_WORDS": "cuFooSetOldParams(place)",
        "CU_FOO_EVENT": "cuFooMove(count, items)",
        "CU_FOO_TEXT": "cuFooDestroy()",
    }),
]  # fmt: skip

RECORDS = [record("spot", x="uint64_t", y="uint64_t")]

BEGINNINGS = [begins("cuFooMove", moved="1 if size")]

ATTRIBUTES = [attribute("CU_DEVICE_ATTRIBUTE_FOO", -1)]
