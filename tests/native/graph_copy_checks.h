// Checks of copies between the program's memory and the device as part of graphs; run where graph_checks.h is.
//
// Each launch reads what the program's memory holds at that launch, and what it writes is there after a wait for it.
#ifndef GRAPH_COPY_CHECKS_H
#define GRAPH_COPY_CHECKS_H

#include "graph_checks.h"

#include <stdbool.h>

enum { COPY_LARGE = 1 << 20 }; // words

typedef enum { HOST_PAGEABLE, HOST_PINNED, HOST_REGISTERED } host_kind_t;

static inline uint32_t *host_words(host_kind_t kind, size_t words) {
    uint32_t *memory = NULL;
    if (kind == HOST_PINNED)
        OK(cuMemAllocHost_v2((void **)&memory, words * 4));
    else
        CHECK((memory = malloc(words * 4)) != NULL);
    if (kind == HOST_REGISTERED)
        OK(cuMemHostRegister_v2(memory, words * 4, 0));
    memset(memory, 0, words * 4);
    return memory;
}

static inline void host_words_end(host_kind_t kind, uint32_t *memory) {
    if (kind == HOST_REGISTERED)
        OK(cuMemHostUnregister(memory));
    if (kind == HOST_PINNED)
        OK(cuMemFreeHost(memory));
    else
        free(memory);
}

static inline CUgraphExec made_of(CUgraph graph) {
    CUgraphExec exec;
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    return exec;
}

static inline void launched(CUgraphExec exec, CUstream stream) {
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
}

// Captured: up, across, down.
static inline void check_captured_copies(graph_bench_t *t, host_kind_t kind, size_t words) {
    uint32_t *up = host_words(kind, words), *down = host_words(kind, words);
    CUdeviceptr a, b;
    CUgraph graph;
    OK(cuMemAlloc_v2(&a, words * 4));
    OK(cuMemAlloc_v2(&b, words * 4));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpyHtoDAsync_v2(a, up, words * 4, t->stream));
    OK(cuMemcpyDtoDAsync_v2(b, a, words * 4, t->stream));
    OK(cuMemcpyDtoHAsync_v2(down, b, words * 4, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    CHECK(node_count(graph) == 3);
    CUgraphExec exec = made_of(graph);
    OK(cuGraphDestroy(graph));
    CHECK(!down[0] && !down[words - 1]);
    for (uint32_t turn = 1; turn < 6; turn++) {
        CUstream stream = turn % 2 ? t->stream : t->other;
        for (size_t i = 0; i < words; i++)
            up[i] = (uint32_t)i * turn + 1;
        OK(cuGraphLaunch(exec, stream));
        if (turn % 3) {
            OK(cuStreamSynchronize(stream));
        } else {
            OK(cuEventRecord(t->event, stream));
            while (cuEventQuery(t->event) != CUDA_SUCCESS)
                usleep(100);
        }
        CHECK(!memcmp(up, down, words * 4));
    }
    for (int i = 0; i < 20; i++) // launches of one graph follow each other, also in two streams
        OK(cuGraphLaunch(exec, i % 2 ? t->stream : t->other));
    memset(down, 0, 4);
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuGraphExecDestroy(exec)); // what is queued goes on
    OK(cuCtxSynchronize());
    CHECK(!memcmp(up, down, words * 4));
    OK(cuMemFree_v2(a));
    OK(cuMemFree_v2(b));
    host_words_end(kind, up);
    host_words_end(kind, down);
}

// What a launch writes the next one reads, without a wait between them.
static inline void check_copies_in_place(graph_bench_t *t, host_kind_t kind) {
    enum { TURNS = 12 };
    uint32_t *state = host_words(kind, GRAPH_WORDS);
    CUgraph graph;
    state[0] = 77;
    OK(cuMemsetD32Async(t->b, 0, GRAPH_WORDS, t->stream));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpyHtoDAsync_v2(t->a, state, GRAPH_WORDS * 4, t->stream));
    OK(cuMemcpyDtoDAsync_v2(t->b + 4, t->a, GRAPH_WORDS * 4 - 4, t->stream));
    OK(cuMemcpyDtoHAsync_v2(state, t->b, GRAPH_WORDS * 4, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    CUgraphExec exec = made_of(graph);
    for (int i = 0; i < TURNS; i++)
        OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    for (size_t i = 0; i < GRAPH_WORDS; i++)
        CHECK(state[i] == (i == TURNS ? 77 : 0));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    host_words_end(kind, state);
}

// Rows with gaps on both sides: nothing but the rows is written.
static inline void check_captured_rows(graph_bench_t *t, host_kind_t kind) {
    enum { ROWS = 7, WIDTH = 12, PITCH = 20, WORDS = ROWS * PITCH };
    uint32_t *up = host_words(kind, WORDS), *down = host_words(kind, WORDS);
    CUgraph graph;
    CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = up,
                          .srcPitch = PITCH * 4,
                          .srcXInBytes = 4,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = t->a,
                          .dstPitch = 96,
                          .WidthInBytes = WIDTH * 4,
                          .Height = ROWS};
    CUDA_MEMCPY2D back = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = t->a,
                          .srcPitch = 96,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = down,
                          .dstPitch = PITCH * 4,
                          .dstXInBytes = 8,
                          .WidthInBytes = WIDTH * 4,
                          .Height = ROWS};
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpy2DAsync_v2(&copy, t->stream));
    OK(cuMemcpy2DAsync_v2(&back, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    CHECK(node_count(graph) == 2);
    CUgraphExec exec = made_of(graph);
    for (uint32_t turn = 1; turn < 4; turn++) {
        for (size_t i = 0; i < WORDS; i++)
            up[i] = (uint32_t)i + turn * 1000;
        memset(down, 0xee, WORDS * 4);
        launched(exec, t->stream);
        for (size_t i = 0; i < WORDS; i++) {
            size_t x = i % PITCH;
            CHECK(down[i] == (x >= 2 && x < 2 + WIDTH ? up[i - 1] : 0xeeeeeeee));
        }
    }
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    host_words_end(kind, up);
    host_words_end(kind, down);
}

static inline CUDA_MEMCPY3D host_line(CUdeviceptr device, uint32_t *host, bool up) {
    CUDA_MEMCPY3D copy = line_copy(device, device);
    if (up) {
        copy.srcMemoryType = CU_MEMORYTYPE_HOST;
        copy.srcDevice = 0;
        copy.srcHost = host;
    } else {
        copy.dstMemoryType = CU_MEMORYTYPE_HOST;
        copy.dstDevice = 0;
        copy.dstHost = host;
    }
    return copy;
}

static inline bool all_words(const uint32_t *words, uint32_t value) {
    for (size_t i = 0; i < GRAPH_WORDS; i++)
        if (words[i] != value)
            return false;
    return true;
}

static inline void set_words(uint32_t *words, uint32_t value) {
    for (size_t i = 0; i < GRAPH_WORDS; i++)
        words[i] = value;
}

// Nodes built by hand: told again, changed, cloned, inside other graphs, updated.
static inline void check_built_copies(graph_bench_t *t, host_kind_t kind) {
    uint32_t *up = host_words(kind, GRAPH_WORDS), *up2 = host_words(kind, GRAPH_WORDS);
    uint32_t *down = host_words(kind, GRAPH_WORDS), *down2 = host_words(kind, GRAPH_WORDS);
    CUgraph graph, clone, outer, again;
    CUgraphNode first, second, child, nodes[2];
    CUDA_MEMCPY3D copy = host_line(t->a, up, true), back = host_line(t->a, down, false), told;
    CUgraphExecUpdateResultInfo info;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemcpyNode(&first, graph, NULL, 0, &copy, t->context));
    OK(cuGraphAddMemcpyNode(&second, graph, &first, 1, &back, t->context));
    OK(cuGraphMemcpyNodeGetParams(first, &told));
    CHECK(told.srcMemoryType == CU_MEMORYTYPE_HOST && told.srcHost == up && told.dstDevice == t->a &&
          told.WidthInBytes == GRAPH_WORDS * 4);
    OK(cuGraphMemcpyNodeGetParams(second, &told));
    CHECK(told.dstMemoryType == CU_MEMORYTYPE_HOST && told.dstHost == down && told.srcDevice == t->a);
    CUgraphExec exec = made_of(graph);
    set_words(up, 1);
    launched(exec, t->stream);
    CHECK(all_words(down, 1));
    // The executable graph: another source, another destination, without the copy, with it.
    set_words(up2, 2);
    copy = host_line(t->a, up2, true);
    OK(cuGraphExecMemcpyNodeSetParams(exec, first, &copy, t->context));
    launched(exec, t->stream);
    CHECK(all_words(down, 2));
    back = host_line(t->a, down2, false);
    OK(cuGraphExecMemcpyNodeSetParams(exec, second, &back, t->context));
    set_words(down, 9);
    launched(exec, t->stream);
    CHECK(all_words(down2, 2) && all_words(down, 9));
    OK(cuGraphNodeSetEnabled(exec, second, 0));
    set_words(up2, 3);
    launched(exec, t->stream);
    CHECK(all_words(down2, 2));
    words_are(t->a, 3);
    OK(cuGraphNodeSetEnabled(exec, second, 1));
    launched(exec, t->stream);
    CHECK(all_words(down2, 3));
    // The same graph again, then one of the same shape: the buffers are those of the graph that it was updated from.
    OK(cuGraphExecUpdate_v2(exec, graph, &info));
    set_words(up, 4);
    launched(exec, t->stream);
    CHECK(all_words(down, 4) && all_words(down2, 3));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpyHtoDAsync_v2(t->b, up2, GRAPH_WORDS * 4, t->stream));
    OK(cuMemcpyDtoHAsync_v2(down2, t->b, GRAPH_WORDS * 4, t->stream));
    OK(cuStreamEndCapture(t->stream, &again));
    OK(cuGraphExecUpdate_v2(exec, again, &info));
    OK(cuGraphDestroy(again));
    set_words(up2, 5);
    launched(exec, t->stream);
    CHECK(all_words(down2, 5) && all_words(down, 4));
    OK(cuGraphExecDestroy(exec));
    // The node itself, which a clone from before keeps as it was.
    OK(cuGraphClone(&clone, graph));
    copy = host_line(t->a, up2, true);
    OK(cuGraphMemcpyNodeSetParams(first, &copy));
    OK(cuGraphMemcpyNodeGetParams(first, &told));
    CHECK(told.srcHost == up2);
    exec = made_of(graph);
    launched(exec, t->stream);
    CHECK(all_words(down, 5));
    OK(cuGraphExecDestroy(exec));
    exec = made_of(clone);
    OK(cuGraphDestroy(clone));
    launched(exec, t->stream);
    CHECK(all_words(down, 4));
    OK(cuGraphExecDestroy(exec));
    // Inside another graph; the graphs go before it runs.
    OK(cuGraphCreate(&outer, 0));
    OK(cuGraphAddChildGraphNode(&child, outer, NULL, 0, graph));
    OK(cuGraphDestroy(graph));
    OK(cuGraphChildGraphNodeGetGraph(child, &graph));
    size_t count = 2;
    OK(cuGraphGetNodes(graph, nodes, &count));
    CHECK(count == 2);
    exec = made_of(outer);
    OK(cuGraphDestroy(outer));
    set_words(up2, 6);
    launched(exec, t->stream);
    CHECK(all_words(down, 6));
    OK(cuGraphExecDestroy(exec));
    host_words_end(kind, up);
    host_words_end(kind, up2);
    host_words_end(kind, down);
    host_words_end(kind, down2);
}

// Rows of GRAPH_WORDS / 4 words between the device, one behind the other, and memory of the program, with as much room between.
static inline CUgraph graph_of_rows(graph_bench_t *t, uint32_t *up, uint32_t *down, size_t rows) {
    CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = up,
                          .srcPitch = GRAPH_WORDS * 2,
                          .srcHeight = rows,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = t->a,
                          .dstPitch = GRAPH_WORDS,
                          .dstHeight = rows,
                          .WidthInBytes = GRAPH_WORDS,
                          .Height = rows,
                          .Depth = 1};
    CUDA_MEMCPY3D back = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = t->a,
                          .srcPitch = GRAPH_WORDS,
                          .srcHeight = rows,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = down,
                          .dstPitch = GRAPH_WORDS * 2,
                          .dstHeight = rows,
                          .WidthInBytes = GRAPH_WORDS,
                          .Height = rows,
                          .Depth = 1};
    CUgraph graph;
    CUgraphNode first, second;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemcpyNode(&first, graph, NULL, 0, &copy, t->context));
    OK(cuGraphAddMemcpyNode(&second, graph, &first, 1, &back, t->context));
    return graph;
}

static inline bool rows_are(const uint32_t *rows, uint32_t value) {
    for (size_t row = 0; row < 2; row++)
        for (size_t i = 0; i < GRAPH_WORDS / 4; i++)
            if (rows[row * GRAPH_WORDS / 2 + i] != value)
                return false;
    return true;
}

// The same for a node of an executable graph that is changed by itself: 1 row may move and grow, 2 may not (an H200).
static inline void check_changed_rows(graph_bench_t *t, uint32_t *from, uint32_t *first) {
    for (size_t rows = 1; rows < 3; rows++) {
        CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                              .srcHost = first,
                              .srcPitch = 128,
                              .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                              .dstDevice = t->a,
                              .dstPitch = 128,
                              .WidthInBytes = 64,
                              .Height = rows,
                              .Depth = 1};
        CUgraph graph;
        CUgraphNode node;
        OK(cuGraphCreate(&graph, 0));
        OK(cuGraphAddMemcpyNode(&node, graph, NULL, 0, &copy, t->context));
        CUgraphExec exec = made_of(graph);
        CUresult gives = rows == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        OK(cuGraphExecMemcpyNodeSetParams(exec, node, &copy, t->context));
        copy.WidthInBytes = 96;
        GIVES(gives, cuGraphExecMemcpyNodeSetParams(exec, node, &copy, t->context));
        copy.WidthInBytes = 64;
        copy.srcHost = from;
        GIVES(gives, cuGraphExecMemcpyNodeSetParams(exec, node, &copy, t->context));
        copy.srcHost = first;
        copy.Height = 3 - rows;
        GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphExecMemcpyNodeSetParams(exec, node, &copy, t->context));
        OK(cuGraphExecDestroy(exec));
        OK(cuGraphDestroy(graph));
    }
}

// An update with a graph of the same copies, and with others: of one row they may change, of more they may not (an H200).
static inline void check_updated_rows(graph_bench_t *t, host_kind_t kind) {
    uint32_t *up = host_words(kind, GRAPH_WORDS), *up2 = host_words(kind, GRAPH_WORDS);
    uint32_t *down = host_words(kind, GRAPH_WORDS), *down2 = host_words(kind, GRAPH_WORDS);
    CUgraphExecUpdateResultInfo info;
    CUgraph graph = graph_of_rows(t, up, down, 2), same = graph_of_rows(t, up, down, 2);
    CUgraphExec exec = made_of(graph), exec2 = made_of(same);
    set_words(up, 1);
    launched(exec, t->stream);
    CHECK(rows_are(down, 1));
    OK(cuGraphExecUpdate_v2(exec, same, &info));
    CHECK(info.result == CU_GRAPH_EXEC_UPDATE_SUCCESS);
    OK(cuGraphDestroy(same));
    OK(cuGraphDestroy(graph));
    set_words(up, 2);
    launched(exec, t->stream);
    CHECK(rows_are(down, 2));
    set_words(up, 3);
    launched(exec2, t->stream);
    CHECK(rows_are(down, 3));
    OK(cuGraphExecDestroy(exec2));
    // It goes on as it was, once it has refused.
    for (int what = 0; what < 2; what++) {
        graph = graph_of_rows(t, what ? up : up2, what ? down2 : down, 2);
        GIVES(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, cuGraphExecUpdate_v2(exec, graph, &info));
        CHECK(info.result == CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED);
        OK(cuGraphDestroy(graph));
        set_words(up, 4 + (uint32_t)what);
        launched(exec, t->stream);
        CHECK(rows_are(down, 4 + (uint32_t)what));
    }
    OK(cuGraphExecDestroy(exec));
    graph = graph_of_rows(t, up, down, 1);
    exec = made_of(graph);
    OK(cuGraphDestroy(graph));
    graph = graph_of_rows(t, up2, down2, 1);
    OK(cuGraphExecUpdate_v2(exec, graph, &info));
    OK(cuGraphDestroy(graph));
    set_words(up2, 6);
    launched(exec, t->stream);
    CHECK(down2[0] == 6 && down2[GRAPH_WORDS / 4 - 1] == 6);
    OK(cuGraphExecDestroy(exec));
    check_changed_rows(t, up2, up);
    host_words_end(kind, up);
    host_words_end(kind, up2);
    host_words_end(kind, down);
    host_words_end(kind, down2);
}

static uint32_t copy_seen;
static void look_at_copy(void *user) { copy_seen = *(uint32_t *)user; }

// No launch of a graph, such a one or another, is part of a capture (580.159.04, measured).
static inline void check_captured_launches(graph_bench_t *t) {
    uint32_t word = 0;
    CUgraph graph;
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpyDtoHAsync_v2(&word, t->a, 4, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    CUgraphExec exec = made_of(graph);
    OK(cuGraphDestroy(graph));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuGraphLaunch(exec, t->stream));
    ends_invalidated(t->stream);
    OK(cuGraphExecDestroy(exec));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuMemsetD32Async(t->a, 6, GRAPH_WORDS, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    exec = made_of(graph);
    OK(cuGraphDestroy(graph));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuGraphLaunch(exec, t->stream));
    ends_invalidated(t->stream);
    launched(exec, t->stream);
    OK(cuGraphExecDestroy(exec));
}

// A host function behind a download sees it; one before an upload is seen by it.
static inline void check_copies_and_functions(graph_bench_t *t) {
    uint32_t word = 5;
    CUgraph graph;
    CUgraphExec exec;
    OK(cuMemsetD32_v2(t->a, 6, GRAPH_WORDS));
    OK(cuStreamSynchronize(NULL)); // what follows is in other streams
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpyDtoHAsync_v2(&word, t->a, 4, t->stream));
    OK(cuLaunchHostFunc(t->stream, look_at_copy, &word));
    OK(cuStreamEndCapture(t->stream, &graph));
    exec = made_of(graph);
    launched(exec, t->stream);
    CHECK(word == 6 && copy_seen == 6);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    // Before it, nothing is wrong.
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuLaunchHostFunc(t->stream, look_at_copy, &word));
    OK(cuMemcpyDtoHAsync_v2(&word, t->a, 4, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    exec = made_of(graph);
    word = 5;
    launched(exec, t->stream);
    CHECK(copy_seen == 5 && word == 6);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

// Nothing is kept for graphs that are gone.
static inline void check_copies_are_given_back(graph_bench_t *t) {
    uint32_t *large = host_words(HOST_PAGEABLE, COPY_LARGE);
    CUdeviceptr a;
    CUgraph graph;
    size_t before = 0, after = 0, total = 0;
    OK(cuMemAlloc_v2(&a, COPY_LARGE * 4));
    OK(cuCtxSynchronize());
    OK(cuMemGetInfo_v2(&before, &total));
    for (int i = 0; i < 20; i++) {
        OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        OK(cuMemcpyHtoDAsync_v2(a, large, COPY_LARGE * 4, t->stream));
        if (i % 4 == 3) {
            OK(cuLaunchHostFunc(t->stream, look_at_copy, large));
            OK(cuMemcpyHtoDAsync_v2(a, large, COPY_LARGE * 4 - 4, t->stream));
        }
        OK(cuStreamEndCapture(t->stream, &graph));
        CUgraphExec exec = made_of(graph);
        OK(cuGraphDestroy(graph));
        OK(cuGraphLaunch(exec, t->stream));
        OK(cuGraphExecDestroy(exec));
    }
    for (int i = 0; i < 30000 && after < before; i++) { /* more: what was freed before is late */
        OK(cuCtxSynchronize());
        OK(cuMemGetInfo_v2(&after, &total));
        usleep(1000);
    }
    CHECK(after >= before);
    OK(cuMemFree_v2(a));
    free(large);
}

// A graph that outlives the context in which it was captured has nothing left to give back.
static inline void check_copies_of_a_lost_context(graph_bench_t *t) {
    uint32_t words[GRAPH_WORDS] = {0};
    CUcontext own;
    CUdeviceptr a;
    CUdevice device;
    CUstream stream;
    CUgraph graph;
    OK(cuCtxGetDevice(&device));
    OK(cuCtxCreate_v2(&own, 0, device));
    OK(cuMemAlloc_v2(&a, sizeof words));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpyHtoDAsync_v2(a, words, sizeof words, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuCtxDestroy_v2(own));
    OK(cuCtxSetCurrent(t->context));
    OK(cuGraphDestroy(graph));
    OK(cuCtxSynchronize());
    OK(cuMemcpyHtoD_v2(t->a, words, sizeof words));
    words_are(t->a, 0);
}

static inline void check_graph_copies(CUmodule module) {
    graph_bench_t bench = graph_bench(module);
    for (host_kind_t kind = HOST_PAGEABLE; kind <= HOST_REGISTERED; kind++) {
        check_captured_copies(&bench, kind, 1);
        check_captured_copies(&bench, kind, GRAPH_WORDS);
        check_captured_copies(&bench, kind, COPY_LARGE + 3);
        check_copies_in_place(&bench, kind);
        check_captured_rows(&bench, kind);
        check_built_copies(&bench, kind);
        check_updated_rows(&bench, kind);
    }
    check_captured_launches(&bench);
    check_copies_and_functions(&bench);
    check_copies_are_given_back(&bench);
    check_copies_of_a_lost_context(&bench);
    graph_bench_end(&bench);
}

#endif
