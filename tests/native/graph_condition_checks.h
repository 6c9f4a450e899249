// Checks of conditional nodes: values that a kernel sets, graphs that run by them. Run on the simulated GPU itself and, remote,
// through the whole stack.
//
// Every check makes and ends what it uses. Errors are those of driver 580.159.04, unless a comment says otherwise.
#ifndef GRAPH_CONDITION_CHECKS_H
#define GRAPH_CONDITION_CHECKS_H

#include "described_checks.h"

// Takes one from a word and sets the condition to what is left; the driver links the function of the device runtime.
static const char count_down_ptx[] =
    ".version 8.0\n.target sm_70\n.address_size 64\n"
    ".extern .func cudaGraphSetConditional (.param .b64 handle, .param .b32 value);\n"
    ".visible .entry count_down(.param .u64 h, .param .u64 p)\n"
    "{ .reg .b64 a, c; .reg .b32 b; ld.param.u64 c, [h]; ld.param.u64 a, [p]; cvta.to.global.u64 a, a;\n"
    "  ld.global.u32 b, [a]; add.s32 b, b, -1; st.global.u32 [a], b;\n"
    "  { .param .b64 x; .param .b32 y; st.param.b64 [x], c; st.param.b32 [y], b;\n"
    "    call.uni cudaGraphSetConditional, (x, y); }\n  ret; }\n";

typedef struct {
    graph_bench_t *t;
    CUfunction down;
} condition_bench_t;

static inline CUgraphNodeParams conditional(CUgraphConditionalHandle handle, CUgraphConditionalNodeType type,
                                            unsigned size, CUcontext context) {
    CUgraphNodeParams params;
    memset(&params, 0, sizeof params);
    params.type = CU_GRAPH_NODE_TYPE_CONDITIONAL;
    params.conditional.handle = handle;
    params.conditional.type = type;
    params.conditional.size = size;
    params.conditional.ctx = context;
    return params;
}

static inline CUgraphConditionalHandle condition(CUgraph graph, CUcontext context, unsigned value) {
    CUgraphConditionalHandle handle = 0;
    OK(cuGraphConditionalHandleCreate(&handle, graph, context, value, CU_GRAPH_COND_ASSIGN_DEFAULT));
    return handle;
}

static inline CUgraphNode add_count_down(const condition_bench_t *c, CUgraph graph, CUgraphConditionalHandle handle,
                                         const CUgraphNode *after) {
    CUgraphNode node;
    void *values[] = {&handle, &c->t->c};
    CUDA_KERNEL_NODE_PARAMS params = {.func = c->down,
                                      .gridDimX = 1,
                                      .gridDimY = 1,
                                      .gridDimZ = 1,
                                      .blockDimX = 1,
                                      .blockDimY = 1,
                                      .blockDimZ = 1,
                                      .kernelParams = values};
    OK(cuGraphAddKernelNode_v2(&node, graph, after, after ? 1 : 0, &params));
    return node;
}

static inline uint32_t run_from(const condition_bench_t *c, CUgraphExec exec, uint32_t word) {
    OK(cuMemcpyHtoD_v2(c->t->c, &word, sizeof word));
    OK(cuCtxSynchronize()); // the stream waits for no other
    OK(cuGraphLaunch(exec, c->t->stream));
    OK(cuStreamSynchronize(c->t->stream));
    return word_at(c->t->c);
}

// The graph of a loop is filled by a capture, as PyTorch and XLA do it.
static inline void check_while(const condition_bench_t *c) {
    graph_bench_t *t = c->t;
    CUgraph graph, body, captured = NULL;
    CUgraphNode node;
    CUgraphExec exec, second;
    CUgraphNodeType type;
    OK(cuGraphCreate(&graph, 0));
    CUgraphConditionalHandle handle = condition(graph, t->context, 1);
    CUgraphNodeParams params = conditional(handle, CU_GRAPH_COND_TYPE_WHILE, 1, t->context);
    OK(cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &params));
    CHECK(params.conditional.phGraph_out && params.conditional.phGraph_out[0]);
    body = params.conditional.phGraph_out[0];
    OK(cuGraphNodeGetType(node, &type));
    CHECK(type == CU_GRAPH_NODE_TYPE_CONDITIONAL);
    CHECK(node_count(graph) == 1 && node_count(body) == 0);
    OK(cuStreamBeginCaptureToGraph(t->stream, body, NULL, NULL, 0, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuStreamEndCapture(t->stream, NULL)); // the graph is known
    CHECK(node_count(body) == 0);
    OK(cuStreamBeginCaptureToGraph(t->stream, body, NULL, NULL, 0, CU_STREAM_CAPTURE_MODE_RELAXED));
    void *values[] = {&handle, &t->c};
    OK(cuLaunchKernel(c->down, 1, 1, 1, 1, 1, 1, 0, t->stream, values, NULL));
    OK(cuMemcpyDtoDAsync_v2(t->a, t->c, 4, t->stream));
    OK(cuStreamEndCapture(t->stream, &captured));
    CHECK(captured == body && node_count(body) == 2);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    GIVES(CUDA_ERROR_NOT_SUPPORTED, cuGraphInstantiateWithFlags(&second, graph, 0)); // one at a time
    GIVES(CUDA_ERROR_NOT_SUPPORTED, cuGraphClone(&captured, graph));
    for (uint32_t i = 1; i < 6; i++) {
        CHECK(run_from(c, exec, i) == 0);
        CHECK(word_at(t->a) == 0);
    }
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuGraphLaunch(exec, t->stream));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(t->stream, &captured));
    OK(cuGraphDestroy(graph)); // and its graphs with it
    CHECK(run_from(c, exec, 3) == 0);
    OK(cuGraphExecDestroy(exec));
}

static inline void fill_bytes(graph_bench_t *t, CUgraph graph, unsigned value) {
    CUgraphNode node;
    CUDA_MEMSET_NODE_PARAMS set = {.dst = t->b, .elementSize = 4, .value = value, .width = GRAPH_WORDS, .height = 1};
    OK(cuGraphAddMemsetNode(&node, graph, NULL, 0, &set, t->context));
}

static inline void check_if_and_switch(const condition_bench_t *c) {
    graph_bench_t *t = c->t;
    CUgraph graph, inner;
    CUgraphNode node, before, nested;
    CUgraphExec exec;
    // A kernel sets the condition of the node behind it; a branch has a branch of its own.
    OK(cuGraphCreate(&graph, 0));
    CUgraphConditionalHandle handle = condition(graph, t->context, 0);
    before = add_count_down(c, graph, handle, NULL);
    CUgraphNodeParams params = conditional(handle, CU_GRAPH_COND_TYPE_IF, 2, t->context);
    OK(cuGraphAddNode_v2(&node, graph, &before, NULL, 1, &params));
    fill_bytes(t, params.conditional.phGraph_out[1], 40);
    inner = params.conditional.phGraph_out[0];
    CUgraphConditionalHandle deeper = condition(inner, t->context, 1);
    CHECK(deeper == handle + 1);
    params = conditional(deeper, CU_GRAPH_COND_TYPE_IF, 1, t->context);
    OK(cuGraphAddNode_v2(&nested, inner, NULL, NULL, 0, &params));
    fill_bytes(t, params.conditional.phGraph_out[0], 41);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    CHECK(run_from(c, exec, 1) == 0);
    words_are(t->b, 40);
    CHECK(run_from(c, exec, 5) == 4);
    words_are(t->b, 41);
    OK(cuGraphDestroyNode(node)); // its graphs go with it, and their handles
    size_t count = 0;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphGetNodes(inner, NULL, &count));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));

    OK(cuGraphCreate(&graph, 0));
    handle = condition(graph, t->context, 0);
    before = add_count_down(c, graph, handle, NULL);
    params = conditional(handle, CU_GRAPH_COND_TYPE_SWITCH, 3, t->context);
    OK(cuGraphAddNode_v2(&node, graph, &before, NULL, 1, &params));
    for (unsigned i = 0; i < 3; i++) {
        fill_bytes(t, params.conditional.phGraph_out[i], 100 + i);
    }
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (uint32_t i = 0; i < 4; i++) {
        OK(cuMemsetD32_v2(t->b, 7, GRAPH_WORDS));
        OK(cuStreamSynchronize(NULL)); // what follows is in other streams
        CHECK(run_from(c, exec, i + 1) == i);
        words_are(t->b, i < 3 ? 100 + i : 7);
    }
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

static inline void check_condition_errors(graph_bench_t *t) {
    CUgraph graph, body;
    CUgraphNode node, host;
    CUgraphExec exec;
    CUgraphConditionalHandle handle = 77;
    CUDA_HOST_NODE_PARAMS call = {NULL, NULL};
    CUevent event = t->event;
    OK(cuGraphCreate(&graph, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphConditionalHandleCreate(NULL, graph, t->context, 0, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphConditionalHandleCreate(&handle, NULL, t->context, 0, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphConditionalHandleCreate(&handle, graph, t->context, 0, 2));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuGraphConditionalHandleCreate(&handle, graph, NULL, 0, 0));
    CHECK(handle == 77);
    static const struct {
        unsigned type, size;
        CUresult result;
    } sizes[] = {{0, 0, CUDA_ERROR_INVALID_VALUE},
                 {0, 1, CUDA_SUCCESS},
                 {0, 2, CUDA_SUCCESS},
                 {0, 3, CUDA_ERROR_INVALID_VALUE},
                 {1, 0, CUDA_ERROR_INVALID_VALUE},
                 {1, 1, CUDA_SUCCESS},
                 {1, 2, CUDA_ERROR_INVALID_VALUE},
                 {2, 0, CUDA_ERROR_INVALID_VALUE},
                 {2, 1, CUDA_SUCCESS},
                 {2, 3, CUDA_SUCCESS},
                 {3, 1, CUDA_ERROR_INVALID_VALUE}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        handle = condition(graph, t->context, 0);
        CHECK(handle == i + 1);
        CUgraphNodeParams params =
            conditional(handle, (CUgraphConditionalNodeType)sizes[i].type, sizes[i].size, t->context);
        GIVES(sizes[i].result, cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &params));
    }
    CHECK(node_count(graph) == 5);
    CUgraphNodeParams params = conditional(0, CU_GRAPH_COND_TYPE_IF, 1, t->context);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &params));
    params = conditional(12345, CU_GRAPH_COND_TYPE_IF, 1, t->context);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &params));
    params = conditional(2, CU_GRAPH_COND_TYPE_IF, 1, t->context);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &params)); // it is used
    params = conditional(1, CU_GRAPH_COND_TYPE_IF, 1, NULL);
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &params));
    OK(cuGraphDestroy(graph));

    // What may not be in such a graph is seen when it is made executable.
    OK(cuGraphCreate(&graph, 0));
    params = conditional(condition(graph, t->context, 1), CU_GRAPH_COND_TYPE_IF, 1, t->context);
    OK(cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &params));
    body = params.conditional.phGraph_out[0];
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddHostNode(&host, body, NULL, 0, &call));
    OK(cuGraphAddEventRecordNode(&host, body, NULL, 0, event));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroyNode(host));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphExecDestroy(exec));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphDestroy(body)); // it is its node's; the driver ends the process (assumed)
    OK(cuGraphDestroy(graph));
}

// A copy into the program's memory that does not run leaves it as it is, or is refused by name.
static inline void check_copy_that_does_not_run(graph_bench_t *t) {
    uint32_t *word;
    CUgraph graph, body;
    CUgraphNode node, copy;
    CUgraphExec exec;
    OK(cuMemAllocHost_v2((void **)&word, 4));
    *word = 77;
    OK(cuMemsetD32_v2(t->a, 5, GRAPH_WORDS));
    OK(cuStreamSynchronize(NULL)); // what follows is in other streams
    OK(cuGraphCreate(&graph, 0));
    CUgraphNodeParams params = conditional(condition(graph, t->context, 0), CU_GRAPH_COND_TYPE_IF, 1, t->context);
    OK(cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &params));
    body = params.conditional.phGraph_out[0];
    CUDA_MEMCPY3D back = line_copy(t->a, t->a);
    back.dstMemoryType = CU_MEMORYTYPE_HOST;
    back.dstDevice = 0;
    back.dstHost = word;
    back.WidthInBytes = 4;
    OK(cuGraphAddMemcpyNode(&copy, body, NULL, 0, &back, t->context));
    CUresult result = cuGraphInstantiateWithFlags(&exec, graph, 0);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_NOT_SUPPORTED);
    if (result == CUDA_SUCCESS) {
        OK(cuGraphLaunch(exec, t->stream));
        OK(cuStreamSynchronize(t->stream));
        CHECK(*word == 77);
        OK(cuGraphExecDestroy(exec));
    }
    OK(cuGraphDestroy(graph));
    OK(cuMemFreeHost(word));
}

static inline void check_conditions(CUmodule module) {
    graph_bench_t t = graph_bench(module);
    CUmodule own;
    condition_bench_t c = {.t = &t};
    OK(cuModuleLoadData(&own, count_down_ptx));
    OK(cuModuleGetFunction(&c.down, own, "count_down"));
    check_while(&c);
    check_if_and_switch(&c);
    check_condition_errors(&t);
    check_copy_that_does_not_run(&t);
    graph_bench_end(&t);
    OK(cuModuleUnload(own));
}

#endif
