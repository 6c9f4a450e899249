/*
 * Groups of small calls: launches, a null call, waiting, events, graphs.
 *
 * Each series times one call (or one call and the wait behind it) on the calling thread. Launches are proved by a kernel that adds
 * one per launch, so that a lost or doubled launch shows as a wrong count. Loops end with their time budget; a digest covers
 * results that do not depend on how many calls the budget allowed. Single-threaded.
 */
#include "bench.h"

#include <string.h>

enum { BURST = 500, WORDS = 1024 };

static CUdeviceptr one, counter; /* single precision: 1.0, and the number of launches of `accumulate` */

static void counter_open(void) {
    const float value = 1.0f;
    MUST(cuMemAlloc_v2, &one, sizeof value);
    MUST(cuMemcpyHtoD_v2, one, &value, sizeof value);
    MUST(cuMemAlloc_v2, &counter, sizeof value);
    /* a copy from pageable memory may return before it has arrived, and our stream does not wait for the legacy one */
    MUST(cuCtxSynchronize);
}

static void counter_close(void) {
    MUST(cuMemFree_v2, one);
    MUST(cuMemFree_v2, counter);
}

static void counter_reset(void) {
    MUST(cuMemsetD32_v2, counter, 0, 1);
    MUST(cuCtxSynchronize);
}

/* Every launch since the reset must have run exactly once. */
static void counter_expect(size_t launches, const char *what) {
    float counted = -1;
    MUST(cuStreamSynchronize, stream);
    MUST(cuMemcpyDtoH_v2, &counted, counter, sizeof counted);
    if (counted != (float)launches)
        fail("Wrong result of %s: %zu launches counted %.0f.", what, launches, (double)counted);
}

static void launch_null(void) { launch_fill(one, 0, 0); }
static void launch_counting(void) { launch_accumulate(one, counter, 1); }

static void series_of_launches(const char *name, void (*launch)(void)) {
    struct series s;
    for (int i = 0; i < BURST; i++)
        launch();
    MUST(cuStreamSynchronize, stream);
    series_open(&s, name, 0, 20000);
    while (series_wants(&s)) {
        for (int i = 0; i < BURST; i++) {
            sample_begin(&s);
            launch();
            sample_end(&s);
        }
        MUST(cuStreamSynchronize, stream);
    }
    series_close(&s);
}

/* From the first launch to the end of the last: what a program limited by launching can reach. */
static size_t series_of_rate(const char *name, void (*launch)(void), unsigned operations) {
    struct series s;
    series_open(&s, name, 0, 200);
    s.operations = operations;
    while (series_wants(&s)) {
        sample_begin(&s);
        for (unsigned i = 0; i < operations; i++)
            launch();
        MUST(cuStreamSynchronize, stream);
        sample_end(&s);
    }
    size_t launches = s.count * operations;
    series_close(&s);
    return launches;
}

void group_launch(void) {
    static uint32_t words[WORDS], expected[WORDS];
    unsigned rate = options.quick ? 1000 : 10000;
    struct series s;
    counter_open();
    series_of_launches("cuLaunchKernel, null kernel", launch_null);
    series_of_rate("launches per second, null kernel", launch_null, rate);
    const float still = 1.0f;
    float back = 0;
    MUST(cuMemcpyDtoH_v2, &back, one, sizeof back);
    expect_same(&back, &still, sizeof back, "the null kernel, which writes nothing");

    /* a burst is launched before the series to warm up, and the samples are whole bursts */
    counter_reset();
    for (int i = 0; i < BURST; i++)
        launch_counting();
    MUST(cuStreamSynchronize, stream);
    series_open(&s, "cuLaunchKernel, counting kernel", 0, 20000);
    size_t launched = BURST;
    while (series_wants(&s)) {
        for (int i = 0; i < BURST; i++, launched++) {
            sample_begin(&s);
            launch_counting();
            sample_end(&s);
        }
        MUST(cuStreamSynchronize, stream);
    }
    series_close(&s);
    counter_expect(launched, "cuLaunchKernel");
    counter_reset();
    launched = series_of_rate("launches per second, counting kernel", launch_counting, rate);
    counter_expect(launched, "launches at full rate");

    counter_reset();
    for (int i = 0; i < 1000; i++)
        launch_counting();
    counter_expect(1000, "1,000 launches");
    MUST(cuMemcpyDtoH_v2, &back, counter, sizeof back);
    group_digest(&back, sizeof back);
    CUdeviceptr area;
    MUST(cuMemAlloc_v2, &area, sizeof words);
    launch_fill(area, 0xC0FFEEu, WORDS);
    MUST(cuStreamSynchronize, stream);
    MUST(cuMemcpyDtoH_v2, words, area, sizeof words);
    for (int i = 0; i < WORDS; i++)
        expected[i] = 0xC0FFEEu;
    expect_same(words, expected, sizeof words, "fill_u32");
    group_digest(words, sizeof words);
    MUST(cuMemFree_v2, area);
    counter_close();
}

/*
 * The null call is cuCtxGetCacheConfig: nothing in it touches the GPU, the driver answers from the context's own record in tens of
 * nanoseconds, and our client answers it by a call to the session like any other. What is left is the way there and back. Its
 * "round_trips" figure says whether that still holds.
 */
void group_null(void) {
    struct series s;
    CUfunc_cache first, value;
    size_t available, total;
    MUST(cuCtxGetCacheConfig, &first);
    series_open(&s, "null call (cuCtxGetCacheConfig)", 0, 50000);
    while (series_wants(&s)) {
        sample_begin(&s);
        MUST(cuCtxGetCacheConfig, &value);
        sample_end(&s);
        if (value != first)
            fail("Wrong result of cuCtxGetCacheConfig: it said %d and now %d.", (int)first, (int)value);
    }
    series_close(&s);
    series_open(&s, "cuMemGetInfo", 0, 10000);
    while (series_wants(&s)) {
        sample_begin(&s);
        MUST(cuMemGetInfo_v2, &available, &total);
        sample_end(&s);
        if (!total || available > total)
            fail("Wrong result of cuMemGetInfo: %zu bytes of %zu are free.", available, total);
    }
    series_close(&s);
    group_digest(&first, sizeof first);
}

void group_sync(void) {
    struct series s;
    size_t launched = 0;
    counter_open();
    counter_reset();
    MUST(cuStreamSynchronize, stream);
    series_open(&s, "cuStreamSynchronize, idle", 0, 20000);
    while (series_wants(&s)) {
        sample_begin(&s);
        MUST(cuStreamSynchronize, stream);
        sample_end(&s);
    }
    series_close(&s);
    series_open(&s, "cuStreamQuery, idle", 0, 20000);
    while (series_wants(&s)) {
        sample_begin(&s);
        MUST(cuStreamQuery, stream);
        sample_end(&s);
    }
    series_close(&s);
    series_open(&s, "cuCtxSynchronize, idle", 0, 20000);
    while (series_wants(&s)) {
        sample_begin(&s);
        MUST(cuCtxSynchronize);
        sample_end(&s);
    }
    series_close(&s);
    series_open(&s, "launch + cuStreamSynchronize", 0, 10000);
    while (series_wants(&s)) {
        sample_begin(&s);
        launch_counting();
        MUST(cuStreamSynchronize, stream);
        sample_end(&s);
        launched++;
    }
    series_close(&s);
    /* what tensor.item() is made of: a kernel, and its result read back */
    float back = 0;
    series_open(&s, "launch + cuMemcpyDtoHAsync + cuStreamSynchronize", 4, 10000);
    counter_expect(launched, "launch + cuStreamSynchronize");
    while (series_wants(&s)) {
        sample_begin(&s);
        launch_counting();
        MUST(cuMemcpyDtoHAsync_v2, &back, counter, sizeof back, stream);
        MUST(cuStreamSynchronize, stream);
        sample_end(&s);
        if (back != (float)++launched)
            fail("Wrong result of launch + cuMemcpyDtoH: %.0f instead of %zu.", (double)back, launched);
    }
    series_close(&s);
    counter_reset();
    for (int i = 0; i < 10; i++) {
        launch_counting();
        MUST(cuMemcpyDtoHAsync_v2, &back, counter, sizeof back, stream);
        MUST(cuStreamSynchronize, stream);
        group_digest(&back, sizeof back);
    }
    counter_close();
}

void group_event(void) {
    struct series s;
    CUevent event;
    size_t launched = 0;
    counter_open();
    counter_reset();
    MUST(cuEventCreate, &event, CU_EVENT_DISABLE_TIMING);
    series_open(&s, "cuEventRecord", 0, 20000);
    while (series_wants(&s)) {
        for (int i = 0; i < 100; i++) {
            sample_begin(&s);
            MUST(cuEventRecord, event, stream);
            sample_end(&s);
        }
        MUST(cuStreamSynchronize, stream);
    }
    series_close(&s);
    series_open(&s, "cuEventQuery, finished", 0, 20000);
    while (series_wants(&s)) {
        sample_begin(&s);
        MUST(cuEventQuery, event);
        sample_end(&s);
    }
    series_close(&s);
    series_open(&s, "launch + record + cuEventSynchronize", 0, 10000);
    while (series_wants(&s)) {
        sample_begin(&s);
        launch_counting();
        MUST(cuEventRecord, event, stream);
        MUST(cuEventSynchronize, event);
        sample_end(&s);
        launched++;
    }
    series_close(&s);
    series_open(&s, "launch + record + cuEventQuery until finished", 0, 10000);
    while (series_wants(&s)) {
        CUresult result;
        sample_begin(&s);
        launch_counting();
        MUST(cuEventRecord, event, stream);
        while ((result = driver.cuEventQuery(event)) == CUDA_ERROR_NOT_READY) {
        }
        sample_end(&s);
        must(result, "cuEventQuery");
        launched++;
    }
    series_close(&s);
    counter_expect(launched, "launches waited for by events");
    counter_reset();
    launch_counting();
    MUST(cuEventRecord, event, stream);
    MUST(cuEventSynchronize, event);
    float back;
    MUST(cuMemcpyDtoH_v2, &back, counter, sizeof back);
    group_digest(&back, sizeof back);
    counter_close();
}

/* Whether a driver without graphs said so in one of the ways it can. */
static bool lacks_graphs(CUresult result, const char *function) {
    if (result == CUDA_ERROR_NOT_SUPPORTED)
        group_skip("is not supported by this driver", function);
    else
        must(result, function);
    return result == CUDA_ERROR_NOT_SUPPORTED;
}

void group_graph(void) {
    enum { NODES = 100 };
    struct series s;
    CUgraph graph;
    CUgraphExec replay;
    size_t launched = 0;
    if (!driver.cuStreamBeginCapture_v2 || !driver.cuStreamEndCapture || !driver.cuGraphInstantiateWithFlags ||
        !driver.cuGraphLaunch || !driver.cuGraphExecDestroy || !driver.cuGraphDestroy) {
        group_skip("is not exported by this driver, or another function of graphs is not", "cuGraphLaunch");
        return;
    }
    if (lacks_graphs(driver.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED), "cuStreamBeginCapture"))
        return;
    if (lacks_graphs(driver.cuStreamEndCapture(stream, &graph), "cuStreamEndCapture"))
        return;
    MUST(cuGraphDestroy, graph);
    counter_open();
    counter_reset();
    series_open(&s, "capture of 100 launches, instantiation, destruction", 0, 100);
    while (series_wants(&s)) {
        sample_begin(&s);
        MUST(cuStreamBeginCapture_v2, stream, CU_STREAM_CAPTURE_MODE_RELAXED);
        for (int i = 0; i < NODES; i++)
            launch_counting();
        MUST(cuStreamEndCapture, stream, &graph);
        MUST(cuGraphInstantiateWithFlags, &replay, graph, 0);
        MUST(cuGraphExecDestroy, replay);
        MUST(cuGraphDestroy, graph);
        sample_end(&s);
    }
    series_close(&s);
    counter_expect(0, "capturing, which launches nothing");
    MUST(cuStreamBeginCapture_v2, stream, CU_STREAM_CAPTURE_MODE_RELAXED);
    for (int i = 0; i < NODES; i++)
        launch_counting();
    MUST(cuStreamEndCapture, stream, &graph);
    MUST(cuGraphInstantiateWithFlags, &replay, graph, 0);
    series_open(&s, "cuGraphLaunch of 100 launches", 0, 5000);
    while (series_wants(&s)) {
        for (int i = 0; i < 20; i++, launched += NODES) {
            sample_begin(&s);
            MUST(cuGraphLaunch, replay, stream);
            sample_end(&s);
        }
        MUST(cuStreamSynchronize, stream);
    }
    series_close(&s);
    series_open(&s, "cuGraphLaunch of 100 launches + cuStreamSynchronize", 0, 5000);
    while (series_wants(&s)) {
        sample_begin(&s);
        MUST(cuGraphLaunch, replay, stream);
        MUST(cuStreamSynchronize, stream);
        sample_end(&s);
        launched += NODES;
    }
    series_close(&s);
    counter_expect(launched, "graph replays");
    counter_reset();
    MUST(cuGraphLaunch, replay, stream);
    counter_expect(NODES, "one graph replay");
    float back;
    MUST(cuMemcpyDtoH_v2, &back, counter, sizeof back);
    group_digest(&back, sizeof back);
    MUST(cuGraphExecDestroy, replay);
    MUST(cuGraphDestroy, graph);
    counter_close();
}
