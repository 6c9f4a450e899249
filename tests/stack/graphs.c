/*
 * Stream capture and graphs through the whole stack: the checks that the simulated GPU passes by itself, in a client.
 *
 * One thread, except where a check says otherwise; nothing is read but the test's own words.
 */
#include "../native/described_checks.h"
#include "../native/graph_copy_checks.h"
#include "../native/graph_mix_checks.h"
#include "../native/graph_memory_checks.h"
#include "../native/graph_set_checks.h"
#include "../native/graph_condition_checks.h"
#include "stack.h"

/* ---- buffers ---- */

/* A buffer begins at a granule, and nothing of its size fits behind it: so it takes all of one. */
enum { BUFFER = 1 << 20, GRANULE = 2 << 20, CHANGES = 24 };

static size_t taken(void) {
    size_t left, total;
    OK(cuMemGetInfo_v2(&left, &total));
    return total - left;
}

/* What a node needs no more is given back when the worker says that no graph has it. */
static void wait_for_memory(size_t most) {
    for (double end = now_ms() + 10000; taken() > most;) {
        CHECK(now_ms() < end);
    }
}

/* A copy node of pageable memory whose source changes again and again, by its parameters or by a new node: what it had before is
 * given back, but for what a clone and an executable graph still copy. */
static void buffers_of_a_node(void) {
    unsigned char *plain = malloc(2 * BUFFER), got = 0;
    CUdeviceptr device;
    CUcontext context;
    CUgraph graph, clone;
    CUgraphNode node;
    CUgraphExec first, of_clone, last;
    CHECK(plain);
    for (size_t i = 0; i < 2 * BUFFER; i++) {
        plain[i] = (unsigned char)(i / 64);
    }
    OK(cuCtxGetCurrent(&context));
    OK(cuMemAlloc_v2(&device, BUFFER));
    const size_t before = taken();
    CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = plain,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = device,
                          .WidthInBytes = BUFFER,
                          .Height = 1,
                          .Depth = 1};
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemcpyNode(&node, graph, NULL, 0, &copy, context));
    OK(cuGraphInstantiateWithFlags(&first, graph, 0));
    OK(cuGraphClone(&clone, graph));
    for (int i = 1; i <= CHANGES; i++) {
        copy.srcHost = plain + 64 * i;
        OK(cuGraphMemcpyNodeSetParams(node, &copy));
    }
    wait_for_memory(before + 2 * GRANULE);
    for (int i = 1; i <= CHANGES; i++) {
        copy.srcHost = plain + 64 * (CHANGES + i);
        OK(cuGraphDestroyNode(node));
        OK(cuGraphAddMemcpyNode(&node, graph, NULL, 0, &copy, context));
    }
    wait_for_memory(before + 2 * GRANULE);
    OK(cuGraphInstantiateWithFlags(&last, graph, 0));
    OK(cuGraphInstantiateWithFlags(&of_clone, clone, 0));
    CUgraphExec execs[] = {last, first, of_clone};
    for (int i = 0; i < 3; i++) {
        OK(cuGraphLaunch(execs[i], NULL));
        OK(cuMemcpyDtoH_v2(&got, device, 1));
        CHECK(got == (i ? 0 : 2 * CHANGES));
    }
    OK(cuGraphDestroy(graph));
    OK(cuGraphDestroy(clone));
    for (int i = 0; i < 3; i++) {
        OK(cuGraphLaunch(execs[i], NULL));
        OK(cuMemcpyDtoH_v2(&got, device, 1));
        CHECK(got == (i ? 0 : 2 * CHANGES));
        OK(cuGraphExecDestroy(execs[i]));
    }
    wait_for_memory(before);
    OK(cuMemFree_v2(device));
    free(plain);
}

/* ---- memory of graphs ---- */

static CUgraph graph_that_allocates(CUstream stream, CUdeviceptr *memory, size_t size) {
    CUgraph graph;
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuMemAllocAsync(memory, size, stream));
    OK(cuStreamEndCapture(stream, &graph));
    return graph;
}

/* A graph's memory lies where one that has just ended had more, and other memory comes to lie in the rest of that. Whether the session has
 * heard of the end by then is a matter of luck, about one time in ten. */
static void memory_where_more_was(void) {
    CUdeviceptr gone, memory, other;
    CUstream stream, beside;
    CUgraphExec exec;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&beside, CU_STREAM_NON_BLOCKING));
    for (int round = 0; round < 300; round++) {
        unsigned char got[64] = {0};
        OK(cuGraphDestroy(graph_that_allocates(stream, &gone, 65536)));
        CUgraph graph = graph_that_allocates(stream, &memory, sizeof got);
        OK(cuGraphInstantiateWithFlags(&exec, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH));
        OK(cuGraphLaunch(exec, stream));
        OK(cuStreamSynchronize(stream));
        OK(cuMemAllocAsync(&other, 4096, beside));
        OK(cuMemsetD8Async(memory, 5, sizeof got, stream));
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoH_v2(got, memory, sizeof got));
        CHECK(got[0] == 5 && got[sizeof got - 1] == 5);
        OK(cuMemFreeAsync(other, beside));
        OK(cuMemFree_v2(memory));
        OK(cuGraphExecDestroy(exec));
        OK(cuGraphDestroy(graph));
    }
    OK(cuStreamDestroy_v2(stream));
    OK(cuStreamDestroy_v2(beside));
    OK(cuDeviceGraphMemTrim(0));
}

int role_graphs(int count, char **words) {
    start();
    CUmodule module = load_kernels();
    if (count && strcmp(words[0], "mixes") == 0) {
        check_graph_mixes(module);
        say("right");
        return 0;
    }
    memory_where_more_was();
    check_graphs(module);
    check_graph_copies(module);
    check_graph_mixes(module);
    check_described(module);
    check_graph_memory_all(module);
    check_graph_set(module);
    check_conditions(module);
    buffers_of_a_node();
    OK(cuModuleUnload(module));
    say("right");
    return 0;
}
