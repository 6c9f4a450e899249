/* What single driver calls cost the thread that makes them, and what a program's calls cost it, one by one.
 *
 * bounds_calls(): the calls that the session could make more or fewer of. Each is made in bursts, in turn with the others.
 * bounds_stack(): a launch and the reading of its result, and pinned copies, as PyTorch makes them, with the time of each call
 * apart; only what programs use, so that the same runs natively and remotely. One thread.
 */
#include "bounds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BURST = 16, NOT_READY = 600, NO_SUCH_CALL = -1 };

static struct {
    CUdeviceptr source;
    struct pinned host, shared;
    CUevent first, last, pending, untimed;
    uint64_t number;
} c;

static int elapsed(void) {
    float milliseconds = -1;
    const CUresult result = cu.cuEventElapsedTime(&milliseconds, c.first, c.last);
    return result != 0 ? result : milliseconds < 0;
}
static int query_ready(void) { return cu.cuEventQuery(c.last); }
static int query_pending(void) { return cu.cuEventQuery(c.pending) - NOT_READY; }
static int query_stream(void) { return cu.cuStreamQuery(bounds.stream); }
static int sync_idle(void) { return cu.cuStreamSynchronize(bounds.stream); }
static int sync_context(void) { return cu.cuCtxSynchronize(); }
static int record(void) { return cu.cuEventRecord(c.untimed, bounds.stream); }
static int record_timed(void) { return cu.cuEventRecord(c.last, bounds.stream); }
static int write_word(void) { return cu.cuStreamWriteValue64_v2(bounds.stream, c.shared.device, ++c.number, 0); }
static int copy_small(void) { return cu.cuMemcpyDtoHAsync_v2(c.host.memory, c.source, 4, bounds.stream); }
static int copy_small_shared(void) { return cu.cuMemcpyDtoHAsync_v2(c.shared.memory + 64, c.source, 4, bounds.stream); }
static int launch(void) {
    launch_fill(c.source, (uint32_t)++c.number, 64, bounds.stream);
    return 0;
}
static int clock_alone(void) { return 0; }

static const struct call {
    const char *name;
    int (*make)(void);
    bool busy; /* the GPU has something to do meanwhile */
} calls[] = {
    {"reading the clock", clock_alone, false},
    {"cuEventElapsedTime", elapsed, false},
    {"cuEventQuery, ready", query_ready, false},
    {"cuEventQuery, not ready", query_pending, true},
    {"cuStreamQuery, ready", query_stream, false},
    {"cuStreamSynchronize, idle", sync_idle, false},
    {"cuCtxSynchronize, idle", sync_context, false},
    {"cuEventRecord", record, false},
    {"cuEventRecord, timed", record_timed, false},
    {"cuEventRecord, behind a kernel", record, true},
    {"cuStreamWriteValue64", write_word, false},
    {"cuStreamWriteValue64, behind a kernel", write_word, true},
    {"cuMemcpyDtoHAsync, 4 B", copy_small, false},
    {"cuMemcpyDtoHAsync, 4 B, behind a kernel", copy_small, true},
    {"cuMemcpyDtoHAsync, 4 B to shared", copy_small_shared, false},
    {"cuLaunchKernel", launch, false},
    {"cuLaunchKernel, behind a kernel", launch, true},
};
enum { CALLS = sizeof calls / sizeof *calls };

static void spin(uint64_t nanoseconds) {
    void *arguments[] = {&nanoseconds};
    cu_must(cu.cuLaunchKernel(bounds.spin, 1, 1, 1, 1, 1, 1, 0, bounds.stream, arguments, NULL), "launch of spin_ns");
}

static void burst_of(const struct call *call, struct series *series) {
    if (call->busy) {
        spin(2000000); /* longer than the burst */
        cu_must(cu.cuEventRecord(c.pending, bounds.stream), "cuEventRecord");
    }
    for (int i = 0; i < BURST; i++) {
        const uint64_t begun = cu_now_ns();
        const int result = call->make();
        const uint64_t columns[COLUMNS] = {cu_now_ns() - begun, 0, 0, 0};
        if (result != 0) { /* a query that should not have been ready is a wrong sample, anything else an end */
            if (call->make != query_pending || result != -NOT_READY) {
                fprintf(stderr, "%s gave %d\n", call->name, result);
                exit(4);
            }
        }
        series_add(series, columns, result == 0);
    }
    cu_must(cu.cuStreamSynchronize(bounds.stream), "cuStreamSynchronize");
}

void bounds_calls(void) {
    static const char *const columns[COLUMNS] = {"call", NULL, NULL, NULL};
    struct series series[CALLS];
    unsigned order[CALLS];
    cu_must(cu.cuMemAlloc_v2(&c.source, 4096), "cuMemAlloc");
    cu_must(cu.cuEventCreate(&c.first, 0), "cuEventCreate");
    cu_must(cu.cuEventCreate(&c.last, 0), "cuEventCreate");
    cu_must(cu.cuEventCreate(&c.pending, 2), "cuEventCreate");
    cu_must(cu.cuEventCreate(&c.untimed, 2), "cuEventCreate");
    if (!pinned_alloc(&c.host, "calls", "hostalloc", 4096) || !pinned_alloc(&c.shared, "calls", "shm", 4096)) {
        fprintf(stderr, "without shared memory that the driver takes there is nothing to measure\n");
        exit(1);
    }
    cu_must(cu.cuEventRecord(c.first, bounds.stream), "cuEventRecord");
    cu_must(cu.cuEventRecord(c.last, bounds.stream), "cuEventRecord");
    for (unsigned i = 0; i < CALLS; i++)
        series_open(&series[i], calls[i].name);
    cu_must(cu.cuStreamSynchronize(bounds.stream), "cuStreamSynchronize");
    for (unsigned turn = 0; time_left(0, 1, turn); turn += BURST) {
        shuffle(order, CALLS);
        for (unsigned i = 0; i < CALLS; i++)
            burst_of(&calls[order[i]], &series[order[i]]);
    }
    for (unsigned i = 0; i < CALLS; i++)
        series_print(&series[i], columns, "\"part\": \"calls\"");
    pinned_free(&c.host);
    pinned_free(&c.shared);
}

/* ---- what a program does ---- */

enum way { ITEM, ITEM_PAGEABLE, LAUNCH_SYNC, UP, DOWN };
/* What went on before a step: the session of a remote client spins for 0.1 ms after the last call and then sleeps, so who
 * copies for longer than that, or does nothing for longer, finds it asleep. Natively all should be alike. */
enum before { NOTHING, CALLED, IDLE, COPIED };
static const uint64_t IDLE_NS = 400000;
static const struct step {
    const char *name;
    enum way way;
    size_t bytes;
    bool own_stream, context;
    enum before before;
} steps[] = {
    {"launch, stream sync", LAUNCH_SYNC, 4, false, false, NOTHING},
    {"launch, stream sync, own stream", LAUNCH_SYNC, 4, true, false, NOTHING},
    {"launch, context sync", LAUNCH_SYNC, 4, false, true, NOTHING},
    {"launch, stream sync, after 0.4 ms", LAUNCH_SYNC, 4, false, false, IDLE},
    {"item: launch, 4 B to pinned, stream sync", ITEM, 4, false, false, NOTHING},
    {"item, own stream", ITEM, 4, true, false, NOTHING},
    {"item, after 0.4 ms", ITEM, 4, false, false, IDLE},
    {"item of 256 B", ITEM, 256, false, false, NOTHING},
    {"item by cuMemcpyDtoH to pageable", ITEM_PAGEABLE, 4, false, false, NOTHING},
    {"to device, context sync, after a call", UP, MIB, false, true, CALLED},
    {"from device, context sync, after a call", DOWN, MIB, false, true, CALLED},
    {"to device, context sync, after a call", UP, 16 * MIB, false, true, CALLED},
    {"from device, context sync, after a call", DOWN, 16 * MIB, false, true, CALLED},
    {"to device, context sync, after a copy", UP, 16 * MIB, false, true, COPIED},
    {"from device, context sync, after a copy", DOWN, 16 * MIB, false, true, COPIED},
    {"to device, context sync, after 0.4 ms", UP, 16 * MIB, false, true, IDLE},
    {"from device, context sync, after 0.4 ms", DOWN, 16 * MIB, false, true, IDLE},
    {"to device, stream sync, after a call", UP, 16 * MIB, true, false, CALLED},
    {"from device, stream sync, after a call", DOWN, 16 * MIB, true, false, CALLED},
    {"to device, context sync, after a call", UP, 256 * MIB, false, true, CALLED},
    {"from device, context sync, after a call", DOWN, 256 * MIB, false, true, CALLED},
    {"to device, context sync, after a copy", UP, 256 * MIB, false, true, COPIED},
    {"from device, context sync, after a copy", DOWN, 256 * MIB, false, true, COPIED},
};
enum { STEPS = sizeof steps / sizeof *steps };

static struct {
    CUdeviceptr device;
    unsigned char *pinned, *pageable;
    uint32_t number;
} k;

static uint32_t *last_word(unsigned char *memory, size_t bytes) { return (uint32_t *)(void *)(memory + bytes - 4); }

static void copy_of(const struct step *step, unsigned char *host, CUstream stream) {
    if (step->way == UP)
        cu_must(cu.cuMemcpyHtoDAsync_v2(k.device, host, step->bytes, stream), "cuMemcpyHtoDAsync");
    else
        cu_must(cu.cuMemcpyDtoHAsync_v2(host, k.device, step->bytes, stream), "cuMemcpyDtoHAsync");
}

static void go_before(const struct step *step, CUstream stream) {
    if (step->before == COPIED)
        copy_of(step, k.pinned, stream);
    else if (step->before == CALLED)
        launch_fill(k.device, k.number, 1, stream);
    if (step->before != NOTHING)
        cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
    for (const uint64_t begun = cu_now_ns(); step->before == IDLE && cu_now_ns() - begun < IDLE_NS;)
        ;
}

static void take(const struct step *step, struct series *series) {
    CUstream stream = step->own_stream ? bounds.stream : NULL;
    const bool copies = step->way == UP || step->way == DOWN;
    uint32_t came = 0;
    unsigned char *to = step->way == ITEM_PAGEABLE ? k.pageable : k.pinned;
    k.number++;
    if (step->way == DOWN) {
        launch_fill(k.device + step->bytes - 4, k.number, 1, stream);
        cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
    }
    go_before(step, stream);
    /* After the copy that may have gone before, whose bytes must not pass for those of the timed one. */
    if (copies)
        *last_word(k.pinned, step->bytes) = step->way == UP ? k.number : 0;
    const uint64_t begun = cu_now_ns();
    if (!copies)
        launch_fill(k.device, k.number, 64, stream);
    const uint64_t launched = cu_now_ns();
    if (step->way == ITEM_PAGEABLE)
        cu_must(cu.cuMemcpyDtoH_v2(to, k.device, step->bytes), "cuMemcpyDtoH");
    else if (step->way != LAUNCH_SYNC)
        copy_of(step, to, stream);
    const uint64_t copied = cu_now_ns();
    if (step->way != ITEM_PAGEABLE)
        cu_must(step->context ? cu.cuCtxSynchronize() : cu.cuStreamSynchronize(stream), "a synchronisation");
    const uint64_t seen = cu_now_ns();
    if (step->way == UP) /* nothing in the timed section has looked at it */
        cu_must(cu.cuMemcpyDtoH_v2(&came, k.device + step->bytes - 4, 4), "cuMemcpyDtoH");
    else if (step->way == LAUNCH_SYNC)
        came = k.number;
    else
        came = *last_word(to, step->bytes);
    const uint64_t columns[COLUMNS] = {copies ? 0 : launched - begun, step->way == LAUNCH_SYNC ? 0 : copied - launched,
                                       step->way == ITEM_PAGEABLE ? 0 : seen - copied, seen - begun};
    if (series != NULL)
        series_add(series, columns, came == k.number);
}

void bounds_stack(void) {
    static const char *const columns[COLUMNS] = {"launch", "copy", "wait", "total"};
    struct series series[STEPS];
    unsigned order[STEPS];
    char head[120];
    void *pinned = NULL;
    cu_must(cu.cuMemAlloc_v2(&k.device, bounds.most_bytes), "cuMemAlloc");
    cu_must(cu.cuMemHostAlloc(&pinned, bounds.most_bytes, 0), "cuMemHostAlloc");
    k.pinned = pinned;
    k.pageable = malloc(4096);
    if (k.pageable == NULL)
        exit(1);
    memset(k.pinned, 1, bounds.most_bytes);
    /* Small and large apart: large copies leave caches behind that would be part of a small read-back. */
    for (unsigned large = 0; large < 2; large++) {
        for (unsigned i = 0; i < STEPS; i++) {
            series_open(&series[i], steps[i].name);
            for (unsigned warm = 0; (steps[i].bytes >= MIB) == large && steps[i].bytes <= bounds.most_bytes && warm < 8;
                 warm++)
                take(&steps[i], NULL);
        }
        for (unsigned turn = 0; time_left(large, 2, turn); turn++) {
            shuffle(order, STEPS);
            for (unsigned i = 0; i < STEPS; i++) {
                const struct step *step = &steps[order[i]];
                /* A small step in bursts, as in a loop; the first after another is the other's. */
                for (unsigned n = 0;
                     (step->bytes >= MIB) == large && step->bytes <= bounds.most_bytes && n < (large ? 1u : 4u); n++)
                    take(step, large || n > 0 ? &series[order[i]] : NULL);
            }
        }
        for (unsigned i = 0; i < STEPS; i++) {
            snprintf(head, sizeof head, "\"part\": \"stack\", \"bytes\": %zu", steps[i].bytes);
            if ((steps[i].bytes >= MIB) == large && steps[i].bytes <= bounds.most_bytes)
                series_print(&series[i], columns, head);
            else
                free(series[i].values);
        }
    }
    cu_must(cu.cuMemFreeHost(k.pinned), "cuMemFreeHost");
    free(k.pageable);
}
