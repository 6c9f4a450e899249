/*
 * What a hostile client can send, step by step: the session's real executor and families on the simulated GPU.
 *
 * The link is the fuzzer's (fuzz_link.h). One case for each process, which ends without taking anything apart, as a session
 * does. The simulated GPU ends the process when the driver gets a handle of something that is over (TF_SIM_DEAD_HANDLES):
 * NVIDIA's would follow it. tests/test_frames.py builds and runs this.
 */
#include "fuzz_link.h"
#include "simgpu_check.h"
#include "tpg_session.h"
#include "tpw_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <tp_segment.h>
#include <unistd.h>

static struct tpw_session session;
static const char *driver;

/* ---- in place of main.c ---- */

static void *staging_allocate(size_t size) {
    void *memory = NULL;
    CUcontext previous;
    CHECK(session.cuda.cuCtxPushCurrent_v2(session.primary[0]) == CUDA_SUCCESS);
    CHECK(session.cuda.cuMemHostAlloc(&memory, size, CU_MEMHOSTALLOC_PORTABLE) == CUDA_SUCCESS);
    session.cuda.cuCtxPopCurrent_v2(&previous);
    return memory;
}
static void staging_release(void *memory) { (void)memory; }

/* ---- frames ---- */

static uint32_t id(uint32_t index) { return 1u << TP_INDEX_BITS | index; }
static uint64_t handle(uint32_t kind, uint32_t index) { return tp_handle_make(kind, id(index)); }
static struct tpw_link *the_link;

/* A frame of the context with that index. */
#define SEND(context, name, call, ...) SEND_AS(1, context, name, call, __VA_ARGS__)
#define SEND_AS(thread, context, name, call, ...) FUZZ_SEND(the_link, thread, id(context), name, call, __VA_ARGS__)
#define CALL TP_FRAME_CALL

/* Words of a body with this mark become an address that the session gave out: the newest when the first of them comes. */
#define ADDRESS ((uint64_t)0x7b << 56)
#define TWIN ((uint64_t)0x7c << 56) /* another one, of a twin */
static uint64_t translate(const struct tpw_link *link, uint64_t word) {
    static uint64_t addresses[2];
    uint64_t *address = &addresses[word >> 56 == 0x7c];
    if (word >> 56 != 0x7b && word >> 56 != 0x7c) {
        return word;
    }
    *address = *address ? *address : fuzz_link_answer(link, 0);
    return *address + (word & 0xffff);
}

/* The executor looks at completions after as many frames. */
static void let_it_look(void) {
    for (int i = 0; i < 200; i++) {
        SEND(0, cuMemPoolGetAttribute, 0, .pool = handle(TPG_POOL, 0), .attr = CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);
    }
}

/* A stream that stands until `word` of the memory at ADDRESS is 1. */
static void stop(uint32_t context, uint64_t stream, uint64_t word) {
    SEND(context, cuStreamWaitValue32_v2, 0, .stream = stream, .addr = ADDRESS + 4 * word, .value = 1,
         .flags = CU_STREAM_WAIT_VALUE_EQ);
}
static void go_on(uint32_t context, uint64_t stream, uint64_t word) {
    SEND(context, cuStreamWriteValue32_v2, 0, .stream = stream, .addr = ADDRESS + 4 * word, .value = 1);
}

/* ---- cases ---- */

/* The client's handle of an event is that of another event while somebody still waits for the first. */
static void case_event(void) {
    SEND(0, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 0));
    stop(0, handle(TPG_STREAM, 0), 0);
    SEND(0, cuEventRecord, 0, .hEvent = handle(TPG_EVENT, 0), .hStream = handle(TPG_STREAM, 0));
    SEND(0, event_wait, CALL, .event = handle(TPG_EVENT, 0));
    SEND(0, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 1));
    SEND(0, cuEventDestroy_v2, 0, .hEvent = handle(TPG_EVENT, 0));
    SEND(0, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 2)); /* may take the place of the first in memory */
    SEND(0, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 0));
    let_it_look();
    go_on(0, handle(TPG_STREAM, 1), 0);
}

/* A graph that was moved into a node ends with the node, also when the node goes again because an edge of it is refused. */
static void case_graph(void) {
    static const CUgraphEdgeData edge;
    const uint64_t elsewhere = handle(TPG_GRAPHNODE, 0), made = handle(TPG_GRAPHNODE, 1);
    for (uint32_t i = 0; i < 3; i++) {
        SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, i));
    }
    SEND(0, cuGraphAddEmptyNode, 0, .hGraph = handle(TPG_GRAPH, 2), .phGraphNode = elsewhere);
    SEND(0, graph_child, 0, .owner = handle(TPG_GRAPH, 0), .node = made, .child = handle(TPG_GRAPH, 1), .move = 1);
    SEND(0, cuGraphAddDependencies_v2, CALL, .hGraph = handle(TPG_GRAPH, 0), .from = &elsewhere, .from_count = 1,
         .to = &made, .to_count = 1, .edgeData = &edge, .edgeData_count = 1, .numDependencies = 1);
    SEND(0, cuGraphDestroyNode, CALL, .hNode = made);
    SEND(0, cuGraphAddEmptyNode, 0, .hGraph = handle(TPG_GRAPH, 1), .phGraphNode = handle(TPG_GRAPHNODE, 2));
    SEND(0, graph_list, CALL, .subject = handle(TPG_GRAPH, 1));
}

/* A graph inside a node of itself, directly and by way of another. */
static void case_nest(void) {
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 1));
    SEND(0, graph_child, 0, .owner = handle(TPG_GRAPH, 0), .node = handle(TPG_GRAPHNODE, 0),
         .child = handle(TPG_GRAPH, 0), .move = 1);
    SEND(0, graph_child, 0, .owner = handle(TPG_GRAPH, 0), .node = handle(TPG_GRAPHNODE, 1),
         .child = handle(TPG_GRAPH, 1), .move = 1);
    SEND(0, graph_child, 0, .owner = handle(TPG_GRAPH, 1), .node = handle(TPG_GRAPHNODE, 2),
         .child = handle(TPG_GRAPH, 0), .move = 1);
    SEND(0, graph_child, 0, .owner = handle(TPG_GRAPH, 1), .node = handle(TPG_GRAPHNODE, 3),
         .child = handle(TPG_GRAPH, 1), .move = 1);
    SEND(0, cuGraphDestroyNode, CALL, .hNode = handle(TPG_GRAPHNODE, 2));
    SEND(0, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 0));
    SEND(0, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 1));
}

/* Graphs in graphs in graphs: each of a few bytes, and the way down is a recursion. */
static void case_deep(void) {
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
    for (uint32_t i = 1; i < 60; i++) {
        SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, i));
        SEND(0, graph_child, 0, .owner = handle(TPG_GRAPH, i), .node = handle(TPG_GRAPHNODE, i),
             .child = handle(TPG_GRAPH, i - 1), .move = i % 2);
    }
}

/* A capture into a graph that is inside a node of another, inside a third: none of them may go, nor that node. */
static void case_capture_inside(void) {
    const uint64_t outer = handle(TPG_GRAPH, 0), middle = handle(TPG_GRAPH, 1), inner = handle(TPG_GRAPH, 2);
    const uint64_t around = handle(TPG_GRAPHNODE, 0), stream = handle(TPG_STREAM, 0), before = handle(TPG_GRAPHNODE, 2);
    for (uint32_t i = 0; i < 4; i++) {
        SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, i));
    }
    SEND(0, graph_child, CALL, .owner = middle, .node = around, .child = inner, .move = 1);
    SEND(0, cuGraphAddEmptyNode, CALL, .hGraph = inner, .phGraphNode = before);
    SEND(0, capture_begin, CALL, .stream = stream, .graph = inner, .into = 1, .dependencies = &before,
         .dependencies_count = 1);
    SEND(0, cuGraphDestroyNode, CALL, .hNode = before);                          /* refused, 1 */
    SEND(0, graph_child, CALL, .owner = outer, .node = handle(TPG_GRAPHNODE, 1), /* 2 */
         .child = middle, .move = 1, .dependencies = &around, .dependencies_count = 1);
    SEND(0, cuGraphDestroy, CALL, .hGraph = inner);     /* 3 */
    SEND(0, cuGraphDestroyNode, CALL, .hNode = around); /* 4 */
    SEND(0, cuGraphDestroy, CALL, .hGraph = middle);    /* 5 */
    SEND(0, cuMemsetD8Async, CALL, .dstDevice = ADDRESS, .uc = 1, .N = 64, .hStream = stream);
    SEND(0, capture_end, CALL, .stream = stream);
    SEND(0, graph_list, CALL, .subject = inner, .count = 10);
    SEND(0, cuGraphDestroyNode, CALL, .hNode = before);
    SEND(0, cuGraphDestroy, CALL, .hGraph = middle);
}

/* The same for the copy of a graph that a child graph node has, two levels down. */
static void case_capture_copied(void) {
    const uint64_t inner = handle(TPG_GRAPH, 5), middle = handle(TPG_GRAPH, 4), stream = handle(TPG_STREAM, 0);
    for (uint32_t i = 0; i < 3; i++) {
        SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, i));
    }
    SEND(0, graph_child, CALL, .owner = handle(TPG_GRAPH, 1), .node = handle(TPG_GRAPHNODE, 0),
         .child = handle(TPG_GRAPH, 2));
    SEND(0, graph_child, CALL, .owner = handle(TPG_GRAPH, 0), .node = handle(TPG_GRAPHNODE, 1),
         .child = handle(TPG_GRAPH, 1));
    SEND(0, cuGraphChildGraphNodeGetGraph, CALL, .hNode = handle(TPG_GRAPHNODE, 1), .phGraph = middle);
    const uint64_t fresh = handle(TPG_GRAPHNODE, 2);
    SEND(0, graph_list, CALL, .subject = middle, .count = 1, .fresh = &fresh, .fresh_count = 1);
    SEND(0, cuGraphChildGraphNodeGetGraph, CALL, .hNode = fresh, .phGraph = inner);
    SEND(0, capture_begin, CALL, .stream = stream, .graph = inner, .into = 1);
    SEND(0, cuGraphDestroyNode, CALL, .hNode = fresh);                    /* refused, 1 */
    SEND(0, cuGraphDestroyNode, CALL, .hNode = handle(TPG_GRAPHNODE, 1)); /* 2 */
    SEND(0, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 0));        /* 3 */
    SEND(0, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 1));        /* what the copy was made from may go */
    SEND(0, cuMemsetD8Async, CALL, .dstDevice = ADDRESS, .uc = 1, .N = 64, .hStream = stream);
    SEND(0, capture_end, CALL, .stream = stream);
    SEND(0, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 0));
}

/* The node that an update names as the reason of its failure lies inside a child graph node, and ends with that. */
static void case_blamed(void) {
    const uint64_t fresh[2] = {handle(TPG_GRAPHNODE, 20), handle(TPG_GRAPHNODE, 21)};
    for (uint32_t i = 0; i < 4; i++) {
        SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, i));
    }
    SEND(0, cuGraphAddEmptyNode, CALL, .hGraph = handle(TPG_GRAPH, 0), .phGraphNode = handle(TPG_GRAPHNODE, 0));
    static const CUDA_MEMSET_NODE_PARAMS set = {.dst = ADDRESS, .width = 4, .height = 1, .elementSize = 1};
    SEND(0, cuGraphAddMemsetNode, CALL, .hGraph = handle(TPG_GRAPH, 1), .phGraphNode = handle(TPG_GRAPHNODE, 1),
         .memsetParams = &set, .memsetParams_size = sizeof set);
    SEND(0, graph_child, CALL, .owner = handle(TPG_GRAPH, 2), .node = handle(TPG_GRAPHNODE, 2),
         .child = handle(TPG_GRAPH, 0));
    SEND(0, graph_child, CALL, .owner = handle(TPG_GRAPH, 3), .node = handle(TPG_GRAPHNODE, 3),
         .child = handle(TPG_GRAPH, 1));
    SEND(0, graph_instantiate, CALL, .graph = handle(TPG_GRAPH, 2), .exec = handle(TPG_GRAPHEXEC, 0));
    SEND(0, graph_update, CALL, .exec = handle(TPG_GRAPHEXEC, 0), .graph = handle(TPG_GRAPH, 3), .fresh = fresh,
         .fresh_count = 2);
    SEND(0, cuGraphDestroyNode, CALL, .hNode = handle(TPG_GRAPHNODE, 3));
    SEND(0, graph_list, CALL, .subject = fresh[0], .what = 3, .count = 10); /* refused */
}

/* A context that is ending: its stream 2 stands, so the driver still has it all, but the client may not enter or use it. */
static void begin_ending(void) {
    SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 1), .device = 0);
    SEND(1, stream_create, 0, .stream = handle(TPG_STREAM, 2), .flags = CU_STREAM_NON_BLOCKING);
    SEND(1, stream_create, 0, .stream = handle(TPG_STREAM, 3), .flags = CU_STREAM_NON_BLOCKING);
    SEND(1, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 0));
    SEND(0, memory_alloc, CALL, .size = 3 << 20);
    stop(1, handle(TPG_STREAM, 2), 0);
    SEND(0, context_destroy, 0, .context = handle(TPG_CONTEXT, 1));
}

/* An event that is recorded into the ending context is not complete when the context has gone. */
static void case_ending_event(void) {
    begin_ending();
    stop(0, handle(TPG_STREAM, 3), 1);
    SEND(0, cuEventRecord, 0, .hEvent = handle(TPG_EVENT, 0), .hStream = handle(TPG_STREAM, 3));
    SEND(0, event_wait, CALL, .event = handle(TPG_EVENT, 0));
    go_on(0, handle(TPG_STREAM, 1), 0);
    usleep(1000);
    let_it_look();
}

/* A look at the ending context's waits may not make it one that frames can be in. */
static void case_ending_enter(void) {
    static const unsigned char data[8192];
    begin_ending();
    SEND(0, event_wait, CALL, .event = handle(TPG_EVENT, 0));
    let_it_look();
    for (int i = 0; i < 200; i++) {
        SEND(1, copy_in, 0, .area = {ADDRESS, 8192, 8192, 1}, .stream = handle(TPG_STREAM, 3), .data = data,
             .data_size = sizeof data);
    }
}

/* A primary context that ends, and one that is retained meanwhile, are the same to the driver: what comes into the second one may
 * not be waited for by the end of the first. */
static void case_retain(void) {
    SEND(0, image_load, CALL, .size = sizeof kernels_ptx, .owner = handle(TPG_MODULE, 0), .data = kernels_ptx,
         .data_size = sizeof kernels_ptx);
    SEND(0, memory_alloc, CALL, .size = 3 << 20);
    for (int i = 0; i < 500; i++) { /* some time */
        SEND(0, cuMemsetD8Async, 0, .dstDevice = ADDRESS + 64, .uc = 1, .N = 3 << 19, .hStream = handle(TPG_STREAM, 1));
    }
    SEND(0, primary_release, 0, .device = 0);
    SEND(0, primary_retain, CALL, .device = 0, .context = handle(TPG_CONTEXT, 0));
    SEND(0, primary_retain, CALL, .device = 0, .context = handle(TPG_CONTEXT, 0));
    SEND(0, host_function, 0, .stream = 2, .token = 5);
    SEND(1, primary_retain, CALL, .device = 0, .context = handle(TPG_CONTEXT, 1));
    SEND(1, host_function, 0, .stream = 2, .token = 6);
}

/* A stream that the client destroyed ends once, also when its last completion is due together with the end of its context. */
static void case_dying(void) {
    const uint64_t dying = handle(TPG_STREAM, 2), other = handle(TPG_STREAM, 3);
    SEND(0, stream_create, 0, .stream = dying, .flags = CU_STREAM_NON_BLOCKING);
    SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 1), .device = 0);
    SEND(1, stream_create, 0, .stream = other, .flags = CU_STREAM_NON_BLOCKING);
    stop(0, dying, 0);
    SEND(0, stream_wait, CALL, .stream = dying);
    SEND(0, stream_destroy, 0, .stream = dying);
    SEND(0, primary_release, 0, .device = 0);
    SEND(1, library_unload, 0, .library = handle(TPG_LIBRARY, 0)); /* waits for every context */
    go_on(1, other, 0);
    for (uint32_t i = 0; i < 150; i++) { /* the whole of a turn, in which nobody looks at completions */
        SEND(1, image_load, CALL, .size = sizeof kernels_ptx, .owner = handle(TPG_MODULE, i), .data = kernels_ptx,
             .data_size = sizeof kernels_ptx);
    }
}

/* The driver's linker ends with its context. */
static void case_link(void) {
    SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 1), .device = 0);
    SEND(1, link_create, CALL, .link = handle(TPG_LINK, 0));
    SEND(0, context_destroy, 0, .context = handle(TPG_CONTEXT, 1));
    SEND(0, link_add, CALL, .link = handle(TPG_LINK, 0), .type = CU_JIT_INPUT_PTX, .size = sizeof kernels_ptx,
         .data = kernels_ptx, .data_size = sizeof kernels_ptx);
    SEND(0, link_complete, CALL, .link = handle(TPG_LINK, 0));
    SEND(0, link_destroy, 0, .link = handle(TPG_LINK, 0));
    SEND(0, link_create, CALL, .link = handle(TPG_LINK, 0));
}

/* An unloading that waited for older work may not wait in the driver for a host function that was queued meanwhile. */
static void case_unload(void) {
    stop(0, handle(TPG_STREAM, 0), 0);
    SEND(0, library_unload, 0, .library = handle(TPG_LIBRARY, 0));
    SEND(0, host_function, 0, .stream = handle(TPG_STREAM, 1), .token = 5);
    go_on(0, 1, 0);
    for (int i = 0; i < 100; i++) {
        let_it_look();
    }
}

/* The same when the second wait cannot be. */
static void case_unload_fails(void) {
    setenv("TF_SIM_FAULTS", "cuStreamWriteValue64_v2:2+=1", 1); /* read at the first call */
    case_unload();
}

/* Each number of a thread has a default stream of its own, which is the driver's. */
static void case_threads(void) {
    for (uint32_t thread = 1; thread < 4000; thread++) {
        SEND_AS(thread, 0, cuMemsetD8Async, 0, .dstDevice = ADDRESS, .uc = 1, .N = 64, .hStream = 2);
    }
    for (uint32_t i = 0; i < 1200; i++) { /* the driver has room for as many from then on, and waits for nothing */
        SEND(0, stream_create, 0, .stream = handle(TPG_STREAM, 2 + i), .flags = CU_STREAM_NON_BLOCKING);
    }
    for (uint32_t i = 0; i < 1200; i++) {
        SEND(0, stream_destroy, 0, .stream = handle(TPG_STREAM, 2 + i));
    }
    stop(0, handle(TPG_STREAM, 0), 0);
    SEND(0, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 0));
    SEND(0, cuEventRecord, 0, .hEvent = handle(TPG_EVENT, 0), .hStream = handle(TPG_STREAM, 0));
    for (uint32_t thread = 4000; thread < 8000; thread++) { /* none of these can end */
        SEND_AS(thread, 0, cuStreamWaitEvent, 0, .hStream = 2, .hEvent = handle(TPG_EVENT, 0));
    }
}

/* Calls in which the driver waits for a word are held each by itself, whoever's they are; what comes behind them writes it. */
static void case_alone(void) {
    stop(0, handle(TPG_STREAM, 0), 0);
    for (uint32_t i = 1; i <= 300; i++) {
        SEND_AS(i, 0, image_load, CALL, .size = sizeof kernels_ptx, .owner = handle(TPG_MODULE, i), .data = kernels_ptx,
                .data_size = sizeof kernels_ptx);
        SEND(0, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, i));
    }
    go_on(0, handle(TPG_STREAM, 1), 0);
    for (int i = 0; i < 20000; i++) { /* some time: an empty link counts as closed */
        SEND(0, cuMemsetD8Async, 0, .dstDevice = ADDRESS + 64, .uc = 1, .N = 64, .hStream = handle(TPG_STREAM, 1));
    }
    tpw_execute(&session);
    for (uint32_t i = 1; i <= 300; i++) {
        const struct tpw_object *module = tpw_object(&session, TPG_MODULE, handle(TPG_MODULE, i));
        CHECK(module && module->native && tpw_object(&session, TPG_EVENT, handle(TPG_EVENT, i)));
    }
}

/* Nor may waits for events that never come be more and more. */
static void case_waits(void) {
    SEND(0, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 0));
    stop(0, handle(TPG_STREAM, 0), 0);
    SEND(0, cuEventRecord, 0, .hEvent = handle(TPG_EVENT, 0), .hStream = handle(TPG_STREAM, 0));
    for (int i = 0; i < 17000; i++) {
        SEND(0, event_wait, 0, .event = handle(TPG_EVENT, 0));
    }
}

#define FILLERS 5 /* streams that stand for ever, with thousands of waits */

/* Thousands wait when a capture wants a point for each stream with work; meanwhile the next stream ends. */
static void case_points(void) {
    const uint64_t ends = handle(TPG_STREAM, 20), works = handle(TPG_STREAM, 21);
    SEND(0, memory_alloc, CALL, .size = 3 << 20);
    for (uint32_t i = 0; i < FILLERS; i++) {
        SEND(0, stream_create, 0, .stream = handle(TPG_STREAM, 2 + i), .flags = CU_STREAM_NON_BLOCKING);
        stop(0, handle(TPG_STREAM, 2 + i), 1);
    }
    SEND(0, stream_create, 0, .stream = ends, .flags = CU_STREAM_NON_BLOCKING);
    SEND(0, stream_create, 0, .stream = works, .flags = CU_STREAM_NON_BLOCKING);
    stop(0, ends, 0);
    for (int i = 0; i < 500; i++) { /* some time */
        SEND(0, cuMemsetD8Async, 0, .dstDevice = ADDRESS + 64, .uc = 1, .N = 3 << 19, .hStream = handle(TPG_STREAM, 1));
    }
    go_on(0, handle(TPG_STREAM, 1), 0);
    for (uint32_t i = 0; i < 4095; i++) {
        SEND(0, stream_wait, CALL, .stream = handle(TPG_STREAM, 2 + i % FILLERS));
    }
    SEND(0, stream_destroy, 0, .stream = ends);
    SEND(0, cuMemsetD8Async, 0, .dstDevice = ADDRESS, .N = 64, .hStream = works);
    SEND(0, capture_begin, CALL, .stream = handle(TPG_STREAM, 0), .graph = handle(TPG_GRAPH, 0));
}

/* ---- what nodes of graphs point at, and the client ends ---- */

#define FILL 2 /* fill_u32 in kernels_ptx */
static const struct fill {
    uint64_t address;
    uint32_t value, unused;
    uint64_t count;
} fill_arguments = {ADDRESS, 7, 0, 64};

/* ADDRESS is the newest answer when it comes first. */
static void load(uint32_t context, uint32_t kind, uint32_t index) {
    SEND(0, cuMemsetD8Async, 0, .dstDevice = ADDRESS, .uc = 1, .N = 64, .hStream = 2);
    SEND(context, image_load, CALL, .size = sizeof kernels_ptx, .owner = handle(kind, index),
         .is_library = kind == TPG_LIBRARY, .data = kernels_ptx, .data_size = sizeof kernels_ptx);
}

#include "frames_nodes.h"

/* Everything that follows a node, of the graph and the executable one with the index 0. */
static void follow(uint32_t context) {
    fuzz_link_pause(the_link);
    for (uint32_t i = 50; i < 60; i++) { /* may take the place of what has ended in memory */
        SEND(context, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, i));
    }
    SEND(context, cuGraphClone, CALL, .phGraphClone = handle(TPG_GRAPH, 20), .originalGraph = handle(TPG_GRAPH, 0));
    SEND(context, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 21));
    SEND(context, graph_child, CALL, .owner = handle(TPG_GRAPH, 21), .node = handle(TPG_GRAPHNODE, 21),
         .child = handle(TPG_GRAPH, 20));
    SEND(context, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 20));
    SEND(context, graph_instantiate, CALL, .graph = handle(TPG_GRAPH, 21), .exec = handle(TPG_GRAPHEXEC, 21));
    SEND(context, cuGraphLaunch, CALL, .hGraph = handle(TPG_GRAPHEXEC, 21), .hStream = 2);
    SEND(context, cuGraphLaunch, 0, .hGraph = handle(TPG_GRAPHEXEC, 0), .hStream = 2);
    SEND(context, graph_update, CALL, .exec = handle(TPG_GRAPHEXEC, 21), .graph = handle(TPG_GRAPH, 21));
    SEND(context, stream_wait, CALL, .stream = 2);
    SEND(context, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 0));
    SEND(context, cuGraphLaunch, CALL, .hGraph = handle(TPG_GRAPHEXEC, 21), .hStream = 2);
    SEND(context, cuGraphExecDestroy, 0, .hGraphExec = handle(TPG_GRAPHEXEC, 0));
    SEND(context, cuGraphExecDestroy, 0, .hGraphExec = handle(TPG_GRAPHEXEC, 21));
    SEND(context, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 21));
    SEND(context, stream_wait, CALL, .stream = 2);
    for (uint32_t i = 50; i < 60; i++) {
        SEND(context, cuEventDestroy_v2, 0, .hEvent = handle(TPG_EVENT, i));
    }
    fuzz_link_pause(the_link);
}

static void graph_with(uint32_t context, uint64_t function) {
    SEND(context, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
    kernel_node(context, handle(TPG_GRAPH, 0), handle(TPG_GRAPHNODE, 0), function);
    SEND(context, graph_instantiate, CALL, .graph = handle(TPG_GRAPH, 0), .exec = handle(TPG_GRAPHEXEC, 0));
}

static void case_node_module(void) {
    load(0, TPG_MODULE, 0);
    SEND(0, function_get, CALL, .module = handle(TPG_MODULE, 0), .function = handle(TPG_FUNCTION, 0), .index = FILL);
    graph_with(0, handle(TPG_FUNCTION, 0));
    SEND(0, module_unload, 0, .module = handle(TPG_MODULE, 0));
    SEND(0, graph_kernel_get, CALL, .node = handle(TPG_GRAPHNODE, 0)); /* its function has no name any more */
    follow(0);
}

static void case_node_library(void) {
    load(0, TPG_MODULE, 0);
    SEND(0, kernel_get, CALL, .library = handle(TPG_LIBRARY, 0), .kernel = handle(TPG_KERNEL, 0), .index = FILL);
    graph_with(0, handle(TPG_KERNEL, 0));
    SEND(0, library_unload, 0, .library = handle(TPG_LIBRARY, 0));
    SEND(0, graph_kernel_get, CALL, .node = handle(TPG_GRAPHNODE, 0));
    follow(0);
}

/* The function of a library's kernel in a created context, memsets and copies of that context, and a module of it. */
static void case_node_context(void) {
    const CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                                .srcDevice = ADDRESS,
                                .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                .dstDevice = ADDRESS + 4096,
                                .WidthInBytes = 64,
                                .Height = 1,
                                .Depth = 1};
    const CUDA_MEMSET_NODE_PARAMS set = {.dst = ADDRESS, .width = 4, .height = 1, .elementSize = 1};
    struct {
        CUDA_BATCH_MEM_OP_NODE_PARAMS params;
        CUstreamBatchMemOpParams op;
    } batch = {.params = {.count = 1},
               .op = {.writeValue = {.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32, .address = ADDRESS + 512}}};
    load(0, TPG_MODULE, 1);
    SEND(0, kernel_get, CALL, .library = handle(TPG_LIBRARY, 0), .kernel = handle(TPG_KERNEL, 0), .index = FILL);
    for (uint32_t context = 1; context < 20; context++) { /* more than there may be at once */
        const uint64_t of_library = handle(TPG_FUNCTION, 10 + context);
        SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, context), .device = 0);
        load(context, TPG_MODULE, 0);
        SEND(context, kernel_function, CALL, .kernel = handle(TPG_KERNEL, 0), .function = of_library);
        SEND(context, function_get, CALL, .module = handle(TPG_MODULE, 0), .function = handle(TPG_FUNCTION, 1),
             .index = FILL);
        SEND(context, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
        kernel_node(context, handle(TPG_GRAPH, 0), handle(TPG_GRAPHNODE, 0), of_library);
        kernel_node(context, handle(TPG_GRAPH, 0), handle(TPG_GRAPHNODE, 1), handle(TPG_FUNCTION, 1));
        SEND(context, cuGraphAddMemsetNode, CALL, .hGraph = handle(TPG_GRAPH, 0),
             .phGraphNode = handle(TPG_GRAPHNODE, 2), .memsetParams = &set, .memsetParams_size = sizeof set);
        batch.params.ctx = (CUcontext)(uintptr_t)handle(TPG_CONTEXT, context);
        SEND(context, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 70));
        SEND(context, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 71));
        SEND(0, cuGraphAddBatchMemOpNode, CALL, .hGraph = handle(TPG_GRAPH, 0), .phGraphNode = handle(TPG_GRAPHNODE, 4),
             .nodeParams = &batch, .nodeParams_size = sizeof batch);
        SEND(0, cuGraphAddEventRecordNode, CALL, .hGraph = handle(TPG_GRAPH, 0),
             .phGraphNode = handle(TPG_GRAPHNODE, 5), .event = handle(TPG_EVENT, 70));
        SEND(0, cuGraphAddEventWaitNode, CALL, .hGraph = handle(TPG_GRAPH, 0), .phGraphNode = handle(TPG_GRAPHNODE, 6),
             .event = handle(TPG_EVENT, 71));
        SEND(0, cuEventDestroy_v2, 0, .hEvent = handle(TPG_EVENT, 70));
        SEND(0, cuGraphAddMemcpyNode, CALL, .hGraph = handle(TPG_GRAPH, 0), .phGraphNode = handle(TPG_GRAPHNODE, 3),
             .ctx = handle(TPG_CONTEXT, context), .copyParams = &copy, .copyParams_size = sizeof copy);
        SEND(context, graph_instantiate, CALL, .graph = handle(TPG_GRAPH, 0), .exec = handle(TPG_GRAPHEXEC, 0));
        SEND(0, context_destroy, 0, .context = handle(TPG_CONTEXT, context));
        SEND(0, cuEventDestroy_v2, 0, .hEvent = handle(TPG_EVENT, 71)); /* has ended with its context */
        follow(0);
        SEND(0, module_unload, 0, .module = handle(TPG_MODULE, 0));
    }
}

/* What a stream of a created context captured, with an event that each launch records. */
static void case_node_captured(void) {
    const uint64_t stream = handle(TPG_STREAM, 9);
    SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 1), .device = 0);
    load(1, TPG_MODULE, 0);
    SEND(1, function_get, CALL, .module = handle(TPG_MODULE, 0), .function = handle(TPG_FUNCTION, 0), .index = FILL);
    SEND(1, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, 0));
    SEND(1, stream_create, 0, .stream = stream, .flags = CU_STREAM_NON_BLOCKING);
    SEND(1, capture_begin, CALL, .stream = stream, .graph = handle(TPG_GRAPH, 0));
    SEND(1, launch, CALL, .function = handle(TPG_FUNCTION, 0), .stream = stream, .shape = {1, 1, 1, 64, 1, 1},
         .params = &fill_arguments, .params_size = sizeof fill_arguments);
    SEND(1, cuEventRecordWithFlags, CALL, .hEvent = handle(TPG_EVENT, 0), .hStream = stream,
         .flags = CU_EVENT_RECORD_EXTERNAL);
    SEND(1, capture_end, CALL, .stream = stream);
    SEND(1, graph_instantiate, CALL, .graph = handle(TPG_GRAPH, 0), .exec = handle(TPG_GRAPHEXEC, 0));
    SEND(1, cuEventDestroy_v2, 0, .hEvent = handle(TPG_EVENT, 0));
    SEND(1, cuGraphLaunch, CALL, .hGraph = handle(TPG_GRAPHEXEC, 0), .hStream = 2);
    SEND(1, module_unload, 0, .module = handle(TPG_MODULE, 0));
    SEND(1, cuGraphLaunch, CALL, .hGraph = handle(TPG_GRAPHEXEC, 0), .hStream = 2);
    SEND(0, context_destroy, 0, .context = handle(TPG_CONTEXT, 1));
    follow(0);
}

/* The node of an executable graph was given another function, whose module ends. */
static void case_node_changed(void) {
    load(0, TPG_MODULE, 0);
    load(0, TPG_MODULE, 1);
    for (uint32_t i = 0; i < 2; i++) {
        SEND(0, function_get, CALL, .module = handle(TPG_MODULE, i), .function = handle(TPG_FUNCTION, i),
             .index = FILL);
    }
    graph_with(0, handle(TPG_FUNCTION, 0));
    kernel_node(0, handle(TPG_GRAPHEXEC, 0), handle(TPG_GRAPHNODE, 0), handle(TPG_FUNCTION, 1));
    SEND(0, module_unload, 0, .module = handle(TPG_MODULE, 1));
    follow(0);
}

/* What orders the launches of an executable graph is of the context of the last one's stream, and may end before the graph. */
static void case_node_order(void) {
    load(0, TPG_MODULE, 0);
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
    SEND(0, graph_instantiate, CALL, .graph = handle(TPG_GRAPH, 0), .exec = handle(TPG_GRAPHEXEC, 0));
    for (uint32_t i = 0; i < 2; i++) {
        SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 1), .device = 0);
        SEND(1, graph_order, CALL, .exec = handle(TPG_GRAPHEXEC, 0), .stream = 2, .end = 1);
        SEND(0, context_destroy, 0, .context = handle(TPG_CONTEXT, 1));
        fuzz_link_pause(the_link);
        SEND(0, graph_order, CALL, .exec = handle(TPG_GRAPHEXEC, 0), .stream = 2);
        SEND(0, graph_order, CALL, .exec = handle(TPG_GRAPHEXEC, 0), .stream = 2, .end = 1);
    }
    SEND(0, cuGraphExecDestroy, 0, .hGraphExec = handle(TPG_GRAPHEXEC, 0));
}

/* The session's own memory may not end with a context that the client has made: the area of twins, and words of timelines. */
static void case_own_memory(void) {
    const uint64_t stream = handle(TPG_STREAM, 9);
    load(0, TPG_MODULE, 0);
    SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 1), .device = 0);
    SEND(1, host_twin, CALL, .size = 4096);
    SEND(1, stream_create, 0, .stream = stream, .flags = CU_STREAM_NON_BLOCKING);
    stop(1, stream, 0);
    for (uint32_t i = 0; i < 600; i++) { /* more than one batch of words */
        SEND(1, stream_create, 0, .stream = handle(TPG_STREAM, 100 + i), .flags = CU_STREAM_NON_BLOCKING);
        SEND(1, cuMemsetD8Async, 0, .dstDevice = TWIN, .uc = 1, .N = 64, .hStream = handle(TPG_STREAM, 100 + i));
        SEND(1, stream_wait, CALL, .stream = handle(TPG_STREAM, 100 + i));
    }
    SEND(0, context_destroy, 0, .context = handle(TPG_CONTEXT, 1));
    go_on(0, handle(TPG_STREAM, 1), 0);
    fuzz_link_pause(the_link);
    for (uint32_t i = 0; i < 600; i++) {
        SEND(0, stream_create, 0, .stream = handle(TPG_STREAM, 1000 + i), .flags = CU_STREAM_NON_BLOCKING);
        SEND(0, cuMemsetD8Async, 0, .dstDevice = TWIN, .uc = 1, .N = 64, .hStream = handle(TPG_STREAM, 1000 + i));
        SEND(0, stream_wait, CALL, .stream = handle(TPG_STREAM, 1000 + i));
    }
}

/* Each index is as good as any other, and costs what is around it. */
static void case_tables(void) {
    struct rusage before, after;
    CHECK(getrusage(RUSAGE_SELF, &before) == 0);
    for (uint32_t i = 0; i < 300; i++) { /* the highest, and then some of those between */
        uint32_t index = (1u << TP_INDEX_BITS) - 1 - i * 3001;
        SEND(0, cuEventCreate, 0, .phEvent = handle(TPG_EVENT, index));
        SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, index));
    }
    tpw_execute(&session);
    CHECK(getrusage(RUSAGE_SELF, &after) == 0 && after.ru_maxrss - before.ru_maxrss < 40 << 10); /* KiB */
    CHECK(tpw_object(&session, TPG_EVENT, handle(TPG_EVENT, (1u << TP_INDEX_BITS) - 1)));
}

#include "frames_mix.h"
#include "frames_pools.h"
#include "frames_structs.h"

static const struct {
    const char *name;
    void (*run)(void);
    size_t refused; /* at least */
    bool exactly;
    int ends; /* the session, with this code */
} cases[] = {
    {"struct", case_struct, 6, true, 0},
    {"struct_short", case_struct_short, 0, false, 3},
    {"struct_long", case_struct_long, 0, false, 3},
    {"struct_count", case_struct_count, 0, false, 3},
    {"struct_list", case_struct_list, 0, false, 3},
    {"struct_box", case_struct_box, 7, false, 0},
    {"struct_kernel", case_struct_kernel, 2, false, 3},
    {"token", case_token, 16, false, 0},
    {"kinds", case_kinds, 5, false, 3},
    {"event", case_event, 0, false, 0},
    {"pool_share", case_pool_share, 24, true, 0},
    {"graph", case_graph, 3, false, 0},
    {"nest", case_nest, 3, false, 0},
    {"deep", case_deep, 1, false, 0},
    {"capture_inside", case_capture_inside, 5, false, 0},
    {"capture_copied", case_capture_copied, 3, false, 0},
    {"blamed", case_blamed, 1, false, 0},
    {"ending_event", case_ending_event, 2, false, 0},
    {"ending_enter", case_ending_enter, 200, false, 0},
    {"retain", case_retain, 4, false, 0},
    {"dying", case_dying, 0, false, 0},
    {"link", case_link, 2, false, 0},
    {"unload", case_unload, 0, false, 0},
    {"unload_fails", case_unload_fails, 0, false, 0},
    {"threads", case_threads, 2900, false, 0},
    {"alone", case_alone, 0, true, 0},
    {"waits", case_waits, 600, false, 0},
    {"points", case_points, 0, false, 0},
    {"node_module", case_node_module, 1, true, 0},
    {"node_library", case_node_library, 1, true, 0},
    {"node_context", case_node_context, 0, false, 0},
    {"node_captured", case_node_captured, 0, false, 0},
    {"node_changed", case_node_changed, 0, true, 0},
    {"node_order", case_node_order, 0, true, 0},
    {"tables", case_tables, 0, false, 0},
    {"own_memory", case_own_memory, 0, true, 0},
    {"twin_alone", case_twin_alone, 7, true, 0},
    {"twins_alone", case_twins_alone, 4000, false, 0},
    {"mix", case_mix, 0, false, 0},
    {"mix_failed", case_mix_failed, 0, false, 1},
    {"conditional", case_conditional, 17, true, 0},
    {"conditional_names", case_conditional_names, 3, false, 3},
    {"graph_memory", case_graph_memory, 7, true, 0},
};

/* ---- the session ---- */

static bool busy(void) { return tpw_pending(&session) > 0; }

static void begin(void) {
    struct tpw_session *s = &session;
    s->driver_path = s->nvml_path = driver;
    s->control = s->events = -1;
    s->simulated = true;
    s->link = the_link = fuzz_link_new();
    fuzz_link_busy(the_link, busy);
    fuzz_link_staging(the_link, staging_allocate, staging_release);
    fuzz_link_translate(the_link, translate);
    CHECK(tpw_callbacks_open(s) == 0);
    SEND(0, start, CALL, .flags = 0);
    SEND(0, primary_retain, CALL, .device = 0, .context = handle(TPG_CONTEXT, 0));
    SEND(0, stream_create, 0, .stream = handle(TPG_STREAM, 0), .flags = CU_STREAM_NON_BLOCKING);
    SEND(0, stream_create, 0, .stream = handle(TPG_STREAM, 1), .flags = CU_STREAM_NON_BLOCKING);
    SEND(0, image_load, CALL, .size = sizeof kernels_ptx, .owner = handle(TPG_LIBRARY, 0), .is_library = 1,
         .data = kernels_ptx, .data_size = sizeof kernels_ptx);
    SEND(0, pool_default, 0, .pool = handle(TPG_POOL, 0), .device = 0);
    SEND(0, memory_alloc, CALL, .size = 65536);
}

int main(int count, char **words) {
    CHECK(count == 3);
    driver = words[1];
    setenv("TF_SIM_DEAD_HANDLES", "abort", 1);
    tp_log_setup("test");
    begin();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(words[2], cases[i].name) == 0) {
            cases[i].run();
            tpw_execute(&session);
            CHECK(!cases[i].exactly || fuzz_link_failures(the_link) == cases[i].refused);
            /* What is not allowed is refused; only a message that cannot be ends a session. */
            CHECK(session.exit_code == cases[i].ends && fuzz_link_failures(the_link) >= cases[i].refused);
            _exit(0);
        }
    }
    return 2;
}
