/*
 * Polls of events and streams beside other ways to learn that work is done: who knows must not be told "not ready".
 *
 * One thread, and the one that runs host functions.
 */
#include "stack.h"

#include <stdatomic.h>

#define ROUNDS 300

static void tell(void *word) { atomic_store((_Atomic int *)word, 1); }

/* Queries that are answered "not ready" before, so that they are answered from memory where that is possible. */
static bool busy(CUevent event, CUstream stream) {
    bool first = cuEventQuery(event) == CUDA_ERROR_NOT_READY, second = cuStreamQuery(stream) == CUDA_ERROR_NOT_READY;
    return first && second && cuEventQuery(event) == CUDA_ERROR_NOT_READY &&
           cuStreamQuery(stream) == CUDA_ERROR_NOT_READY;
}

/* Polls a default stream while it works; prints how often. */
static void poll_default(const struct kernels *k, CUstream stream) {
    uint64_t ns = 200000000;
    void *params[] = {&ns};
    unsigned long polls = 0;
    double begun = now_ms();
    OK(launch(k->spin_ns, 1, stream, params));
    while (cuStreamQuery(stream) == CUDA_ERROR_NOT_READY) {
        polls++;
    }
    CHECK(now_ms() - begun >= 200);
    OK(cuStreamQuery(stream));
    say("%lu", polls);
}

int role_polls(int count, char **words) {
    start();
    struct kernels k = load_all();
    if (count > 0) {
        poll_default(&k, strcmp(words[0], "legacy") == 0 ? CU_STREAM_LEGACY : CU_STREAM_PER_THREAD);
        return 0;
    }
    CUstream first, second;
    CUevent event;
    CUdeviceptr memory;
    uint64_t ns = 300000;
    void *params[] = {&ns};
    unsigned char byte;
    static _Atomic int told;
    OK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&memory, 4096));
    unsigned seen = 0;
    for (int i = 0; i < ROUNDS; i++) {
        OK(launch(k.spin_ns, 1, first, params));
        OK(cuEventRecord(event, first));
        OK(cuStreamWaitEvent(second, event, 0));
        OK(cuMemsetD8Async(memory, (unsigned char)i, 4096, second));
        bool was_busy = busy(event, first);
        if (i % 4 == 0) {
            OK(cuStreamSynchronize(second));
        } else if (i % 4 == 1) {
            OK(cuMemcpyDtoHAsync_v2(&byte, memory, 1, second));
            CHECK(byte == (unsigned char)i);
        } else if (i % 4 == 2) {
            atomic_store(&told, 0);
            OK(cuLaunchHostFunc(second, tell, &told));
            while (!atomic_load(&told)) {
            }
        } else {
            OK(cuCtxSynchronize());
        }
        OK(cuEventQuery(event));
        OK(cuStreamQuery(first));
        seen += was_busy;
        ns = was_busy || ns > 100000000 ? ns : 2 * ns;
        OK(cuStreamSynchronize(second));
    }
    CHECK(seen > ROUNDS / 2);
    say("right");
    return 0;
}
