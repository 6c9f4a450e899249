/* The hand-written C of the small API, as the check of ops= reads it. Never compiled. */
#include "tpc.h"

static CUresult run(CUfoo foo, CUstream stream) {
    CUresult result = tpc_post_foo_run("cuFooRun", (uint64_t)(uintptr_t)foo, (uint64_t)(uintptr_t)stream, 0);
    result = result ? result : tpc_post_foo_run_again("cuFooRun", 0, 0, 1);
    result = result ? result : tpc_post_foo_place("cuFooRun", &(struct tpg_foo_place_in){.at = {1, 2}});
    result = result ? result : tpc_post_foo_give("cuFooRun", &give, bytes, size);
    return result ? result : tpc_call_foo_fetch("cuFooRun", &fetch, bytes, size, &count);
}

CUresult tpc_cuFooRun(CUfoo hFoo, CUstream hStream) {
    CUresult asked = tpc_cuFooAsk(hFoo);
    return asked ? asked : run(hFoo, hStream);
}

#define ASK(name)                                                                                                      \
    CUresult tpc_cuFoo##name(CUfoo hFoo) {                                                                             \
        tpc_call_foo_make("cuFoo" #name, tpc_mint(TPG_FOO), 0, &out);                                                  \
        return tpc_call_foo_ask("cuFoo" #name, &(struct tpg_foo_ask_in){.foo = (uint64_t)(uintptr_t)hFoo});            \
    }
ASK(Ask)

CUresult tpc_cuFooMove(CUfoo hFoo, size_t size, unsigned int *moved) {
    return size ? tpc_sent_cuFooMove(hFoo, size, moved) : CUDA_SUCCESS;
}

CUresult tpc_do_cuFooLook(CUfoo hFoo, CUplace *place, unsigned int flags, CUdevice dev) { return CUDA_SUCCESS; }

CUresult tpc_foo_shared(const char *name, struct foo *foo, unsigned int count) {
    return tpc_call_foo_ask(name, &(struct tpg_foo_ask_in){.foo = foo->handle, .count = count});
}
