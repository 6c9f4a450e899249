// Checks of host functions between copies of one graph; run where graph_copy_checks.h is.
//
// A function finds what copies before it brought, and what it writes is what copies behind it read.
#ifndef GRAPH_MIX_CHECKS_H
#define GRAPH_MIX_CHECKS_H

#include "graph_copy_checks.h"

// One step of a chain: what a function finds, and what it makes of it.
typedef struct {
    uint32_t *words;
    size_t count;
    uint32_t add, calls, wrong;
} step_t;

static void do_step(void *user) {
    step_t *step = user;
    for (size_t i = 1; i < step->count; i++) // every word was written by the same launch
        step->wrong += step->words[i] != step->words[0] + (uint32_t)i;
    for (size_t i = 0; i < step->count; i++)
        step->words[i] += step->add;
    step->calls++;
}

static inline void capture_steps(graph_bench_t *t, CUdeviceptr p, step_t *steps, size_t turns) {
    for (size_t i = 0; i < turns; i++) {
        OK(cuMemcpyDtoHAsync_v2(steps[i].words, p, steps[i].count * 4, t->stream));
        OK(cuLaunchHostFunc(t->stream, do_step, &steps[i]));
        OK(cuMemcpyHtoDAsync_v2(p, steps[i].words, steps[i].count * 4, t->stream));
    }
}

// Down, function, up, again and again, in the same memory or in several: many launches without a wait between them.
static inline void check_chains(graph_bench_t *t, host_kind_t kind, size_t words, bool same) {
    enum { STEPS = 3, LAUNCHES = 7 };
    step_t steps[STEPS];
    uint32_t *first = host_words(kind, words), *last = host_words(kind, words);
    CUdeviceptr p;
    CUgraph graph, clone, outer;
    CUgraphNode child;
    OK(cuMemAlloc_v2(&p, words * 4));
    for (size_t i = 0; i < STEPS; i++)
        steps[i] =
            (step_t){.words = same && i ? steps[0].words : host_words(kind, words), .count = words, .add = 1u << 8 * i};
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    capture_steps(t, p, steps, STEPS);
    OK(cuMemcpyDtoHAsync_v2(last, p, words * 4, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    OK(cuGraphClone(&clone, graph));
    OK(cuGraphCreate(&outer, 0));
    OK(cuGraphAddChildGraphNode(&child, outer, NULL, 0, graph));
    CUgraphExec execs[] = {made_of(graph), made_of(clone), made_of(outer), made_of(graph)};
    CUgraphExecUpdateResultInfo info;
    OK(cuGraphExecUpdate_v2(execs[3], clone, &info));
    OK(cuGraphDestroy(outer));
    OK(cuGraphDestroy(clone));
    OK(cuGraphDestroy(graph));
    for (size_t e = 0; e < 4; e++) {
        for (size_t i = 0; i < words; i++)
            first[i] = (uint32_t)i;
        for (size_t i = 0; i < STEPS; i++)
            steps[i].calls = 0;
        OK(cuMemcpyHtoDAsync_v2(p, first, words * 4, t->stream));
        for (size_t i = 0; i < LAUNCHES; i++)
            OK(cuGraphLaunch(execs[e], t->stream));
        OK(cuGraphExecDestroy(execs[e])); // what is queued goes on
        OK(cuStreamSynchronize(t->stream));
        for (size_t i = 0; i < STEPS; i++)
            CHECK(steps[i].calls == LAUNCHES && !steps[i].wrong);
        for (size_t i = 0; i < words; i++)
            CHECK(last[i] == (uint32_t)i + LAUNCHES * 0x10101u);
        // A function's own change stays: no launch copies down again what was there before it.
        CHECK(steps[STEPS - 1].words[words - 1] == last[words - 1]);
    }
    OK(cuMemFree_v2(p));
    for (size_t i = 0; i < STEPS; i++)
        if (!same || !i)
            host_words_end(kind, steps[i].words);
    host_words_end(kind, first);
    host_words_end(kind, last);
}

static void look_and_add(void *user) {
    uint32_t *words = user; // one after the other: the thread is the same, or a lock is the driver's
    words[0]++;
}

// Two functions beside each other behind one download, and one upload behind both.
static inline void check_functions_beside(graph_bench_t *t, host_kind_t kind) {
    uint32_t *down = host_words(kind, GRAPH_WORDS), *other = host_words(kind, GRAPH_WORDS);
    CUDA_MEMCPY3D back = host_line(t->a, down, false), copy = host_line(t->b, down, true);
    CUDA_HOST_NODE_PARAMS one = {.fn = look_and_add, .userData = down + 1},
                          two = {.fn = look_and_add, .userData = down + 2};
    CUgraph graph;
    CUgraphNode first, middle[2], last;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemcpyNode(&first, graph, NULL, 0, &back, t->context));
    OK(cuGraphAddHostNode(&middle[0], graph, &first, 1, &one));
    OK(cuGraphAddHostNode(&middle[1], graph, &first, 1, &two));
    OK(cuGraphAddMemcpyNode(&last, graph, middle, 2, &copy, t->context));
    CUgraphExec exec = made_of(graph);
    for (uint32_t turn = 0; turn < 20; turn++) {
        OK(cuMemsetD32Async(t->a, turn, GRAPH_WORDS, t->stream));
        OK(cuGraphLaunch(exec, t->stream));
        OK(cuMemcpyDtoHAsync_v2(other, t->b, GRAPH_WORDS * 4, t->stream));
        OK(cuStreamSynchronize(t->stream));
        CHECK(other[0] == turn && other[1] == turn + 1 && other[2] == turn + 1 && other[3] == turn);
    }
    // Both programs of a change while it may run: done, or refused by name and nothing changed.
    CUresult result = cuGraphExecHostNodeSetParams(exec, middle[0], &two);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_SUPPORTED);
    OK(cuMemsetD32Async(t->a, 50, GRAPH_WORDS, t->stream));
    launched(exec, t->stream);
    CHECK(down[2] == 51 + (result == CUDA_SUCCESS));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    host_words_end(kind, down);
    host_words_end(kind, other);
}

// Rows with gaps around a function, and a function that is the only thing between two uploads of the same memory.
static void add_to_rows(void *user) {
    uint32_t *rows = user;
    for (size_t i = 0; i < GRAPH_WORDS; i++)
        rows[i] += 100;
}

static inline void check_rows_around_a_function(graph_bench_t *t, host_kind_t kind) {
    uint32_t *rows = host_words(kind, GRAPH_WORDS), *seen = host_words(kind, GRAPH_WORDS);
    CUgraph graph = graph_of_rows(t, rows, rows, 2);
    CUgraphNode nodes[2], host, again;
    size_t count = 2;
    CUDA_HOST_NODE_PARAMS add = {.fn = add_to_rows, .userData = rows};
    CUDA_MEMCPY3D copy = host_line(t->b, rows, true);
    OK(cuGraphGetNodes(graph, nodes, &count));
    OK(cuGraphAddHostNode(&host, graph, nodes, 2, &add));
    OK(cuGraphAddMemcpyNode(&again, graph, &host, 1, &copy, t->context));
    CUgraphExec exec = made_of(graph);
    for (uint32_t turn = 1; turn < 4; turn++) {
        for (size_t i = 0; i < GRAPH_WORDS; i++)
            rows[i] = (uint32_t)i * turn;
        launched(exec, t->stream);
        OK(cuMemcpyDtoH_v2(seen, t->b, GRAPH_WORDS * 4));
        for (size_t i = 0; i < GRAPH_WORDS; i++)
            CHECK(seen[i] == (uint32_t)i * turn + 100 && rows[i] == seen[i]);
    }
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    host_words_end(kind, rows);
    host_words_end(kind, seen);
}

// Down and up again with nothing between: right, or refused by name.
static inline void check_bridge(graph_bench_t *t) {
    uint32_t words[GRAPH_WORDS] = {0};
    CUgraph graph;
    CUgraphExec exec;
    OK(cuMemsetD32Async(t->a, 12, GRAPH_WORDS, t->stream));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemcpyDtoHAsync_v2(words, t->a, sizeof words, t->stream));
    OK(cuMemcpyHtoDAsync_v2(t->b, words, sizeof words, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    CUresult result = cuGraphInstantiateWithFlags(&exec, graph, 0);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_SUPPORTED);
    if (result == CUDA_SUCCESS) {
        launched(exec, t->stream);
        words_are(t->b, 12);
        OK(cuGraphExecDestroy(exec));
    }
    OK(cuGraphDestroy(graph));
}

// Several threads, each with graphs of its own: no function finds another launch's bytes, and nobody stands for ever.
typedef struct {
    graph_bench_t *bench, own;
    host_kind_t kind;
} chain_thread_t;

static void *chain_thread(void *argument) {
    chain_thread_t *c = argument;
    OK(cuCtxSetCurrent(c->bench->context));
    c->own = graph_bench(c->bench->module);
    for (int i = 0; i < 3; i++)
        check_chains(&c->own, c->kind, GRAPH_WORDS, i % 2);
    check_functions_beside(&c->own, c->kind);
    return NULL;
}

static inline void check_chains_in_threads(graph_bench_t *t) {
    enum { THREADS = 3 };
    pthread_t ids[THREADS];
    chain_thread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        threads[i] = (chain_thread_t){.bench = t, .kind = (host_kind_t)i};
        CHECK(pthread_create(&ids[i], NULL, chain_thread, &threads[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(ids[i], NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        graph_bench_end(&threads[i].own); // it waits for the context, which may not be while a stream of it captures
}

// A function that waits while the program fills another stream behind it: its bytes come all the same.
static atomic_int may_look;
static void wait_and_look(void *user) {
    while (!atomic_load(&may_look))
        usleep(100);
    copy_seen = *(uint32_t *)user;
}

static inline void check_functions_behind_full_streams(graph_bench_t *t) {
    uint32_t *down = host_words(HOST_PAGEABLE, GRAPH_WORDS);
    step_t step = {.words = down, .count = 1, .add = 1};
    CUgraph graph;
    OK(cuMemsetD32Async(t->a, 21, GRAPH_WORDS, t->stream));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuLaunchHostFunc(t->stream, wait_and_look, down)); // the next one's copy is asked for while the streams are full
    OK(cuMemcpyDtoHAsync_v2(down, t->a, GRAPH_WORDS * 4, t->stream));
    OK(cuLaunchHostFunc(t->stream, do_step, &step));
    OK(cuMemcpyHtoDAsync_v2(t->b, down, GRAPH_WORDS * 4, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    CUgraphExec exec = made_of(graph);
    may_look = 0;
    OK(cuGraphLaunch(exec, t->stream));
    for (int i = 0; i < 600; i++)
        OK(cuMemsetD32Async(t->c, (unsigned)i, GRAPH_WORDS, t->stream));
    may_look = 1;
    for (int i = 0; i < 3000; i++)
        OK(cuMemsetD32Async(t->c, (unsigned)i, GRAPH_WORDS, t->stream));
    OK(cuStreamSynchronize(t->stream));
    CHECK(down[0] == 22 && down[1] == 21);
    uint32_t seen[GRAPH_WORDS];
    OK(cuMemcpyDtoH_v2(seen, t->b, sizeof seen));
    CHECK(!memcmp(seen, down, sizeof seen));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    host_words_end(HOST_PAGEABLE, down);
}

// A program's usual shape: up, a kernel between two memsets, one word down to a local variable, a function that reads and resets it;
// made by hand, captured from streams, launched without a wait between, from a clone too, and once more after an update.
typedef struct {
    uint32_t result, expected, seen, wrong;
} report_t;

static void read_and_reset(void *user) {
    report_t *r = user;
    r->seen++;
    r->wrong += r->result != r->expected;
    r->result = 0;
}

static inline CUgraph usual_by_hand(graph_bench_t *t, uint32_t *from, report_t *report) {
    CUgraph graph;
    CUgraphNode nodes[2], run, reset, last, host;
    size_t n = GRAPH_WORDS;
    unsigned value = 9;
    CUdeviceptr p = t->b;
    void *params[] = {&p, &value, &n};
    CUDA_MEMCPY3D up = host_line(t->a, from, true), down = host_line(t->a, &report->result, false);
    CUDA_MEMSET_NODE_PARAMS zero = {.dst = t->b, .elementSize = 4, .width = GRAPH_WORDS, .height = 1};
    CUDA_KERNEL_NODE_PARAMS kernel_params = {.func = kernel(t->module, "fill_u32"),
                                             .gridDimX = 1,
                                             .gridDimY = 1,
                                             .gridDimZ = 1,
                                             .blockDimX = GRAPH_WORDS,
                                             .blockDimY = 1,
                                             .blockDimZ = 1,
                                             .kernelParams = params};
    CUDA_HOST_NODE_PARAMS call = {.fn = read_and_reset, .userData = report};
    down.WidthInBytes = 4;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemcpyNode(&nodes[0], graph, NULL, 0, &up, t->context));
    OK(cuGraphAddMemsetNode(&nodes[1], graph, NULL, 0, &zero, t->context));
    OK(cuGraphAddKernelNode_v2(&run, graph, nodes, 2, &kernel_params));
    zero.dst = t->c;
    OK(cuGraphAddMemsetNode(&reset, graph, NULL, 0, &zero, t->context));
    nodes[0] = run;
    nodes[1] = reset;
    OK(cuGraphAddMemcpyNode(&last, graph, nodes, 2, &down, t->context));
    OK(cuGraphAddHostNode(&host, graph, &last, 1, &call));
    return graph;
}

static inline CUgraph usual_captured(graph_bench_t *t, uint32_t *from, report_t *report) {
    CUgraph graph;
    CUstream other;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuEventRecord(t->event, t->stream));
    OK(cuStreamWaitEvent(other, t->event, 0));
    OK(cuMemcpyHtoDAsync_v2(t->a, from, GRAPH_WORDS * 4, t->stream));
    OK(cuMemsetD32Async(t->b, 0, GRAPH_WORDS, other));
    OK(cuEventRecord(t->event, other));
    OK(cuStreamWaitEvent(t->stream, t->event, 0));
    OK(cuMemcpyDtoHAsync_v2(&report->result, t->a, 4, t->stream));
    OK(cuLaunchHostFunc(t->stream, read_and_reset, report));
    OK(cuStreamEndCapture(t->stream, &graph));
    OK(cuStreamDestroy_v2(other));
    return graph;
}

static inline void check_the_usual(graph_bench_t *t, host_kind_t kind) {
    uint32_t *from = host_words(kind, GRAPH_WORDS);
    for (int captured = 0; captured < 2; captured++) {
        report_t report = {.expected = 77}, other = {.expected = 77};
        CUgraph graph = (captured ? usual_captured : usual_by_hand)(t, from, &report), clone, again;
        CUgraphExecUpdateResultInfo info;
        OK(cuGraphClone(&clone, graph));
        CUgraphExec execs[] = {made_of(graph), made_of(clone), made_of(graph)};
        again =
            (captured ? usual_captured : usual_by_hand)(t, from, &other); // another variable, another function's word
        OK(cuGraphExecUpdate_v2(execs[2], again, &info));
        from[0] = 77;
        for (int i = 0; i < 30; i++)
            OK(cuGraphLaunch(execs[i % 3], t->stream));
        OK(cuStreamSynchronize(t->stream));
        CHECK(report.seen == 20 && other.seen == 10 && !report.wrong && !other.wrong && !report.result &&
              !other.result);
        for (int i = 0; i < 10; i++) // launches of one executable graph follow each other, wherever they are
            OK(cuGraphLaunch(execs[2], i % 2 ? t->other : t->stream));
        OK(cuStreamSynchronize(t->stream));
        OK(cuStreamSynchronize(t->other));
        CHECK(other.seen == 20 && !other.wrong);
        // A change of one node of what may be under way: done, or refused by name and nothing changed.
        CUgraphNode nodes[6];
        size_t count = 6;
        OK(cuGraphGetNodes(graph, nodes, &count));
        for (size_t i = 0; i < count; i++) {
            CUgraphNodeType type;
            OK(cuGraphNodeGetType(nodes[i], &type));
            CUresult result =
                type == CU_GRAPH_NODE_TYPE_MEMCPY ? cuGraphNodeSetEnabled(execs[0], nodes[i], 1) : CUDA_SUCCESS;
            CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_SUPPORTED);
        }
        from[0] = report.expected = 78;
        launched(execs[0], t->stream);
        CHECK(report.seen == 21 && !report.wrong);
        for (int i = 0; i < 3; i++)
            OK(cuGraphExecDestroy(execs[i]));
        OK(cuGraphDestroy(graph));
        OK(cuGraphDestroy(clone));
        OK(cuGraphDestroy(again));
    }
    host_words_end(kind, from);
}

static inline void check_graph_mixes(CUmodule module) {
    graph_bench_t bench = graph_bench(module);
    for (host_kind_t kind = HOST_PAGEABLE; kind <= HOST_REGISTERED; kind++) {
        check_chains(&bench, kind, 3, false);
        check_chains(&bench, kind, GRAPH_WORDS, true);
        check_chains(&bench, kind, 40001, kind == HOST_PAGEABLE);
        check_functions_beside(&bench, kind);
        check_rows_around_a_function(&bench, kind);
        check_the_usual(&bench, kind);
    }
    check_bridge(&bench);
    check_chains_in_threads(&bench);
    check_functions_behind_full_streams(&bench);
    graph_bench_end(&bench);
}

#endif
