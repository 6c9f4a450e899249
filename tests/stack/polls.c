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

/* ---- an event that is recorded again while somebody waits for it ---- */

struct gate {
    _Atomic int open;
};

static void stand(void *user) {
    while (!atomic_load(&((struct gate *)user)->open)) {
        usleep(200);
    }
}

struct waiter {
    CUcontext context;
    CUevent event;
    _Atomic int there, back;
};

static void *wait_for_event(void *user) {
    struct waiter *waiter = user;
    OK(cuCtxSetCurrent(waiter->context));
    atomic_store(&waiter->there, 1);
    OK(cuEventSynchronize(waiter->event));
    atomic_store(&waiter->back, 1);
    return NULL;
}

/* CUDA waits for the record as of the call. In a capture the second record stands for no work at all. */
static void recorded_again(unsigned flags, bool captured) {
    struct gate first = {0}, second = {0};
    struct waiter waiter = {0};
    CUstream one, other;
    CUgraph graph;
    pthread_t thread;
    OK(cuCtxGetCurrent(&waiter.context));
    OK(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&waiter.event, flags));
    OK(cuLaunchHostFunc(one, stand, &first));
    OK(cuEventRecord(waiter.event, one));
    CHECK(pthread_create(&thread, NULL, wait_for_event, &waiter) == 0);
    while (!atomic_load(&waiter.there)) {
        usleep(200);
    }
    usleep(50000);
    if (captured) {
        OK(cuStreamBeginCapture_v2(other, CU_STREAM_CAPTURE_MODE_RELAXED));
    } else {
        OK(cuLaunchHostFunc(other, stand, &second));
    }
    OK(cuEventRecord(waiter.event, other));
    usleep(50000);
    CHECK(!atomic_load(&waiter.back));
    atomic_store(&first.open, 1);
    for (int i = 0; i < 5000 && !atomic_load(&waiter.back); i++) {
        usleep(1000);
    }
    CHECK(atomic_load(&waiter.back));
    if (captured) {
        OK(cuStreamEndCapture(other, &graph));
        OK(cuGraphDestroy(graph));
    } else {
        CHECK(cuEventQuery(waiter.event) == CUDA_ERROR_NOT_READY);
    }
    atomic_store(&second.open, 1);
    pthread_join(thread, NULL);
    OK(cuCtxSynchronize());
    OK(cuEventDestroy_v2(waiter.event));
    OK(cuStreamDestroy_v2(one));
    OK(cuStreamDestroy_v2(other));
}

/* ---- a word that is lent again ---- */

/* What says that one event is done is lent to the next poll before the program asks for that event again. All within the
 * millisecond in which an answer may come from memory. */
static void lent_again(void) {
    struct kernels k = load_all();
    uint64_t long_ns = 150000, short_ns = 100000;
    void *longer[] = {&long_ns}, *shorter[] = {&short_ns};
    CUstream first, second;
    CUevent event;
    OK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    for (int i = 0; i < 200; i++) {
        OK(launch(k.spin_ns, 1, first, longer));
        OK(cuEventRecord(event, first));
        double begun = now_ms();
        cuEventQuery(event);
        while (now_ms() - begun < 0.3) {
        }
        OK(launch(k.spin_ns, 1, second, shorter));
        cuStreamQuery(second);
        OK(cuCtxSynchronize());
        OK(cuEventQuery(event));
    }
}

/* ---- many events, one after the other ---- */

#define SWEPT 600

/* As who looks after all that was queued does: each event is asked for once, in the order of the records. `one` is recorded
 * with each of them, and some stand behind a host function in another stream. */
static void sweep(void) {
    static CUevent events[SWEPT];
    struct gate gate = {0};
    CUstream first, second;
    CUevent one;
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode node;
    OK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&one, CU_EVENT_DISABLE_TIMING));
    for (int i = 0; i < SWEPT; i++) {
        OK(cuEventCreate(&events[i], CU_EVENT_DISABLE_TIMING));
        OK(cuEventRecord(one, first));
        OK(cuEventRecord(events[i], first));
    }
    OK(cuStreamSynchronize(first));
    /* Beside a capture nothing is asked but for the event itself: it would end the capture. */
    OK(cuThreadExchangeStreamCaptureMode(&(CUstreamCaptureMode){CU_STREAM_CAPTURE_MODE_RELAXED}));
    OK(cuStreamBeginCapture_v2(second, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuEventRecord(one, second));
    for (int i = 0; i < SWEPT; i++) {
        CHECK(cuEventQuery(events[i]) == CUDA_SUCCESS);
    }
    OK(cuStreamEndCapture(second, &graph));
    OK(cuGraphDestroy(graph));
    OK(cuEventRecord(one, first));
    for (int i = 0; i < SWEPT; i++) {
        CHECK(cuEventQuery(events[i]) == CUDA_SUCCESS);
    }
    /* What is recorded anew, by a graph too, or made anew in another's place, is asked for anew. */
    OK(cuLaunchHostFunc(second, stand, &gate));
    for (int i = 0; i < SWEPT / 4; i += 7) {
        OK(cuEventRecord(events[i], second));
    }
    OK(cuEventDestroy_v2(events[1]));
    OK(cuEventCreate(&events[1], CU_EVENT_DISABLE_TIMING));
    CHECK(cuEventQuery(events[1]) == CUDA_SUCCESS);
    OK(cuEventRecord(events[1], second));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddEventRecordNode(&node, graph, NULL, 0, events[2]));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, second));
    for (int i = 0; i < SWEPT; i++) {
        bool behind = i == 1 || i == 2 || (i < SWEPT / 4 && i % 7 == 0);
        CHECK(cuEventQuery(events[i]) == (behind ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS));
    }
    atomic_store(&gate.open, 1);
    OK(cuCtxSynchronize());
    for (int i = 0; i < SWEPT; i++) {
        CHECK(cuEventQuery(events[i]) == CUDA_SUCCESS);
        OK(cuEventDestroy_v2(events[i]));
    }
}

int role_polls(int count, char **words) {
    start();
    if (count > 0 && strcmp(words[0], "sweep") == 0) {
        sweep();
        say("right");
        return 0;
    }
    if (count > 0 && strcmp(words[0], "lent") == 0) {
        lent_again();
        say("right");
        return 0;
    }
    if (count > 0 && strcmp(words[0], "again") == 0) {
        recorded_again(CU_EVENT_DEFAULT, false);
        recorded_again(CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC, false);
        recorded_again(CU_EVENT_DISABLE_TIMING, true);
        say("right");
        return 0;
    }
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
