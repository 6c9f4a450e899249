/* Asks stream capture and graphs about 400 small questions and prints the answers as text; run natively and remotely, the
 * two texts must be equal but for the lines that graphs.expect names.
 *
 * One process, one thread but for the questions about modes. Each capture is ended before the next question, whatever
 * became of it, so that one odd answer does not colour the next. Needs KERNELS_PTX.
 */
#include "graphs.h"

#include <pthread.h>
#include <unistd.h>

enum { WORDS = 1024, REPLAYS = 100 };

static CUcontext context;
static CUmodule module;
static CUfunction fill_u32;
static CUstream plain, other, blocking;
static CUdeviceptr a, b, c;
static CUevent event, back;

static CUresult ask(const char *label, CUresult result) {
    printf("%s = %d\n", label, (int)result);
    return result;
}
#define ASK(label, call) ask(label, call)

static void value(const char *label, unsigned long long number) { printf("%s: value = %llu\n", label, number); }

static void must(CUresult result, int line) {
    if (result != CUDA_SUCCESS) {
        fprintf(stderr, "graphs.c:%d: %d\n", line, (int)result);
        exit(1);
    }
}
#define MUST(call) must(call, __LINE__)

static CUresult fill(CUdeviceptr p, unsigned word, CUstream stream) {
    size_t n = WORDS;
    void *params[] = {&p, &word, &n};
    return cuLaunchKernel(fill_u32, WORDS / 256, 1, 1, 256, 1, 1, 0, stream, params, NULL);
}

static void words(const char *label, CUdeviceptr p) {
    uint32_t got[WORDS];
    uint64_t sum = 0;
    MUST(cuMemcpyDtoH_v2(got, p, sizeof got));
    for (int i = 0; i < WORDS; i++)
        sum = sum * 31 + got[i];
    value(label, sum);
}

static void status(const char *label, CUstream stream) {
    int now = (int)99;
    ASK(label, cuStreamIsCapturing(stream, &now));
    value(label, (unsigned)now);
}

/* Ends a capture and says what became of it; the graph is destroyed. */
static void end(const char *label, CUstream stream) {
    CUgraph graph = NULL;
    size_t count = 0;
    char line[128];
    snprintf(line, sizeof line, "%s: end", label);
    if (ASK(line, cuStreamEndCapture(stream, &graph)) == CUDA_SUCCESS && graph) {
        MUST(cuGraphGetNodes(graph, NULL, &count));
        value(line, count);
        MUST(cuGraphDestroy(graph));
    }
    snprintf(line, sizeof line, "%s: afterwards", label);
    status(line, stream);
}

static void begin(CUstream stream, int mode) { MUST(cuStreamBeginCapture_v2(stream, mode)); }

static const int global = MODE_GLOBAL, local = MODE_LOCAL, relaxed = MODE_RELAXED;

static void replay(void) {
    CUgraph graph, seen;
    CUgraphExec exec;
    int now;
    uint64_t id = 0, flags = 99;
    size_t count = 0;
    begin(plain, global);
    ASK("begin twice", cuStreamBeginCapture_v2(plain, global));
    status("capturing", plain);
    status("another stream", other);
    status("legacy beside a non-blocking capture", NULL);
    ASK("info", cuStreamGetCaptureInfo_v2(plain, &now, &id, &seen, NULL, &count));
    value("info: dependencies", count);
    MUST(fill(a, 7, plain));
    MUST(cuEventRecord(event, plain));
    MUST(cuStreamWaitEvent(other, event, 0));
    status("joined", other);
    MUST(cuMemcpyDtoDAsync_v2(b, a, WORDS * 4, other));
    MUST(cuMemsetD32Async(c, 9, WORDS, plain));
    MUST(cuEventRecord(back, other));
    MUST(cuStreamWaitEvent(plain, back, 0));
    MUST(cuStreamGetCaptureInfo_v2(plain, &now, &id, NULL, NULL, &count));
    value("dependencies after a join", count);
    MUST(fill(a, 8, plain));
    ASK("end", cuStreamEndCapture(plain, &graph));
    value("same graph as during the capture", graph == seen);
    MUST(cuGraphGetNodes(graph, NULL, &count));
    value("nodes", count);
    MUST(cuGraphGetRootNodes(graph, NULL, &count));
    value("roots", count);
    MUST(cuGraphGetEdges(graph, NULL, NULL, &count));
    value("edges", count);
    CUgraphNode nodes[8];
    size_t room = 8;
    ASK("nodes into a larger array", cuGraphGetNodes(graph, nodes, &room));
    value("nodes into a larger array", room);
    value("the rest is null", nodes[7] == NULL);
    int types[16] = {0};
    for (size_t i = 0; i < room; i++) {
        int type;
        MUST(cuGraphNodeGetType(nodes[i], &type));
        types[type & 15]++;
    }
    for (int i = 0; i < 3; i++)
        value("nodes of a type", (unsigned)types[i]);
    ASK("instantiate", cuGraphInstantiateWithFlags(&exec, graph, 1));
    ASK("flags", cuGraphExecGetFlags(exec, &flags));
    value("flags", flags);
    ASK("destroy", cuGraphDestroy(graph));
    ASK("upload", cuGraphUpload(exec, plain));
    for (int i = 0; i < REPLAYS; i++)
        MUST(cuGraphLaunch(exec, plain));
    MUST(cuStreamSynchronize(plain));
    words("a", a);
    words("b", b);
    words("c", c);
    ASK("launch into the legacy stream", cuGraphLaunch(exec, NULL));
    ASK("destroy exec while it runs", cuGraphExecDestroy(exec));
    MUST(cuCtxSynchronize());
}

#define IN_CAPTURE(label, stream, mode, ...)                                                                           \
    do {                                                                                                               \
        begin(stream, mode);                                                                                           \
        ASK(label, __VA_ARGS__);                                                                                       \
        status(label ": then", stream);                                                                                \
        end(label, stream);                                                                                            \
    } while (0)

/* Which calls the mode "global" forbids: synchronous copies of all kinds and sizes, and what makes or ends things. */
static void many_kinds(uint32_t *pinned) {
    enum { LARGE = 4 << 20 };
    char *large = calloc(1, LARGE);
    CUdeviceptr device = 0;
    CUstream stream = NULL;
    CUevent made = NULL;
    CUmodule loaded = NULL;
    CUcontext own = NULL;
    CUdeviceptr pooled = 0;
    void *host = NULL;
    unsigned flags = 0;
    float ms = 0;
    size_t free_bytes = 0, total = 0;
    char *ptx = cu_kernels_ptx();
    MUST(cuMemAlloc_v2(&device, LARGE));
    IN_CAPTURE("large synchronous upload, global", plain, global, cuMemcpyHtoD_v2(device, large, LARGE));
    IN_CAPTURE("synchronous pinned upload, global", plain, global, cuMemcpyHtoD_v2(device, pinned, 64));
    IN_CAPTURE("synchronous download, global", plain, global, cuMemcpyDtoH_v2(large, device, 64));
    IN_CAPTURE("large synchronous download, global", plain, global, cuMemcpyDtoH_v2(large, device, LARGE));
    IN_CAPTURE("synchronous pinned download, global", plain, global, cuMemcpyDtoH_v2(pinned, device, 64));
    IN_CAPTURE("synchronous download, blocking", blocking, relaxed, cuMemcpyDtoH_v2(large, device, 64));
    IN_CAPTURE("pageable upload, global", plain, global, cuMemcpyHtoDAsync_v2(device, large, 64, plain));
    IN_CAPTURE("pageable upload in another stream, global", plain, global,
               cuMemcpyHtoDAsync_v2(device, large, 64, other));
    IN_CAPTURE("pageable download in another stream, global", plain, global,
               cuMemcpyDtoHAsync_v2(large, device, 64, other));
    IN_CAPTURE("large pageable upload", plain, relaxed, cuMemcpyHtoDAsync_v2(device, large, LARGE, plain));
    IN_CAPTURE("upload to a wrong address", plain, relaxed, cuMemcpyHtoDAsync_v2(8, pinned, 64, plain));
    IN_CAPTURE("upload beyond an allocation", plain, relaxed,
               cuMemcpyHtoDAsync_v2(device + LARGE - 8, pinned, 64, plain));
    IN_CAPTURE("device copy from a wrong address", plain, relaxed, cuMemcpyDtoDAsync_v2(device, 8, 64, plain));
    IN_CAPTURE("memset of nothing", plain, relaxed, cuMemsetD32Async(device, 1, 0, plain));
    IN_CAPTURE("device copy of nothing", plain, relaxed, cuMemcpyDtoDAsync_v2(device, device + 64, 0, plain));
    IN_CAPTURE("create a stream, global", plain, global, cuStreamCreate(&stream, 1));
    IN_CAPTURE("create an event, global", plain, global, cuEventCreate(&made, 0));
    IN_CAPTURE("load a module, global", plain, global, cuModuleLoadData(&loaded, ptx));
    IN_CAPTURE("allocate pinned, global", plain, global, cuMemAllocHost_v2(&host, 64));
    MUST(cuMemAllocHost_v2(&host, 64));
    IN_CAPTURE("free pinned, global", plain, global, cuMemFreeHost(host));
    IN_CAPTURE("register, global", plain, global, cuMemHostRegister_v2(large, LARGE, 0));
    cuMemHostUnregister(large);
    MUST(cuMemHostRegister_v2(large, LARGE, 0));
    IN_CAPTURE("unregister, global", plain, global, cuMemHostUnregister(large));
    cuMemHostUnregister(large);
    IN_CAPTURE("allocate in order elsewhere, global", plain, global, cuMemAllocAsync(&pooled, 64, other));
    if (pooled)
        IN_CAPTURE("free in order elsewhere, global", plain, global, cuMemFreeAsync(pooled, other));
    IN_CAPTURE("flags of the capturing stream", plain, global, cuStreamGetFlags(plain, &flags));
    IN_CAPTURE("context of the capturing stream", plain, global, cuStreamGetCtx(plain, &own));
    IN_CAPTURE("memory info, global", plain, global, cuMemGetInfo_v2(&free_bytes, &total));
    MUST(cuEventRecord(made, other));
    MUST(cuEventRecord(event, other));
    MUST(cuStreamSynchronize(other));
    IN_CAPTURE("elapsed, global", plain, global, cuEventElapsedTime(&ms, event, event));
    IN_CAPTURE("elapsed of timed events, global", plain, global, cuEventElapsedTime(&ms, made, made));
    IN_CAPTURE("record an event elsewhere, global", plain, global, cuEventRecord(made, other));
    IN_CAPTURE("query that event, global", plain, global, cuEventQuery(made));
    IN_CAPTURE("destroy an event, global", plain, global, cuEventDestroy_v2(made));
    if (stream)
        IN_CAPTURE("destroy a stream, global", plain, global, cuStreamDestroy_v2(stream));
    IN_CAPTURE("synchronize the legacy stream, global", plain, global, cuStreamSynchronize(NULL));
    IN_CAPTURE("synchronize the legacy stream beside a blocking capture", blocking, relaxed, cuStreamSynchronize(NULL));
    if (loaded)
        IN_CAPTURE("unload a module, global", plain, global, cuModuleUnload(loaded));
    MUST(cuMemFree_v2(device));
    free(ptx);
    free(large);
}

#include "graphs_copies.h"

/* Last, because the context is lost if the driver finds out only when the GPU does. */
static void wrong_address(void) {
    CUgraph graph;
    CUgraphExec exec;
    begin(plain, relaxed);
    ASK("set at a wrong address", cuMemsetD32Async(8, 1, 16, plain));
    MUST(cuStreamEndCapture(plain, &graph));
    if (ASK("instantiate a wrong address", cuGraphInstantiateWithFlags(&exec, graph, 0)) == CUDA_SUCCESS) {
        ASK("launch a wrong address", cuGraphLaunch(exec, plain));
        ASK("synchronize after a wrong address", cuStreamSynchronize(plain));
    }
}

static void errors(void) {
    CUgraph graph;
    int now;
    CUdeviceptr p = 0;
    uint32_t pageable[16] = {0}, *pinned;
    MUST(cuMemAllocHost_v2((void **)&pinned, 64));
    ASK("end without begin", cuStreamEndCapture(plain, &graph));
    ASK("begin on the legacy stream", cuStreamBeginCapture_v2(NULL, relaxed));
    ASK("begin in an unknown mode", cuStreamBeginCapture_v2(plain, (int)3));
    IN_CAPTURE("synchronize the capturing stream", plain, relaxed, cuStreamSynchronize(plain));
    IN_CAPTURE("query the capturing stream", plain, relaxed, cuStreamQuery(plain));
    IN_CAPTURE("synchronize the context", plain, relaxed, cuCtxSynchronize());
    IN_CAPTURE("synchronize another stream", plain, global, cuStreamSynchronize(other));
    IN_CAPTURE("query another stream", plain, global, cuStreamQuery(other));
    IN_CAPTURE("synchronize another stream, relaxed", plain, relaxed, cuStreamSynchronize(other));
    IN_CAPTURE("query an event", plain, global, cuEventQuery(back));
    IN_CAPTURE("synchronize an event", plain, global, cuEventSynchronize(back));
    IN_CAPTURE("query an event, relaxed", plain, relaxed, cuEventQuery(back));
    IN_CAPTURE("allocate, global", plain, global, cuMemAlloc_v2(&p, 64));
    IN_CAPTURE("allocate, thread local", plain, local, cuMemAlloc_v2(&p, 64));
    IN_CAPTURE("allocate, relaxed", plain, relaxed, cuMemAlloc_v2(&p, 64));
    IN_CAPTURE("free, relaxed", plain, relaxed, cuMemFree_v2(p));
    MUST(cuMemAlloc_v2(&p, 64));
    IN_CAPTURE("free, global", plain, global, cuMemFree_v2(p));
    IN_CAPTURE("legacy launch beside a non-blocking capture", plain, global, fill(a, 1, NULL));
    IN_CAPTURE("legacy launch beside a blocking capture", blocking, global, fill(a, 1, NULL));
    IN_CAPTURE("ask the legacy stream", blocking, global, cuStreamIsCapturing(NULL, &now));
    IN_CAPTURE("synchronous upload, blocking", blocking, relaxed, cuMemcpyHtoD_v2(a, pageable, 64));
    IN_CAPTURE("synchronous upload", plain, relaxed, cuMemcpyHtoD_v2(a, pageable, 64));
    IN_CAPTURE("synchronous upload, global", plain, global, cuMemcpyHtoD_v2(a, pageable, 64));
    IN_CAPTURE("synchronous device copy, global", plain, global, cuMemcpyDtoD_v2(a, b, 64));
    IN_CAPTURE("synchronous memset, global", plain, global, cuMemsetD32_v2(a, 1, 16));
    IN_CAPTURE("pageable upload", plain, relaxed, cuMemcpyHtoDAsync_v2(a, pageable, 64, plain));
    IN_CAPTURE("pageable download", plain, relaxed, cuMemcpyDtoHAsync_v2(pageable, a, 64, plain));
    IN_CAPTURE("pinned upload", plain, relaxed, cuMemcpyHtoDAsync_v2(a, pinned, 64, plain));
    IN_CAPTURE("pinned download", plain, relaxed, cuMemcpyDtoHAsync_v2(pinned, a, 64, plain));
    IN_CAPTURE("device copy", plain, relaxed, cuMemcpyDtoDAsync_v2(a, b, 64, plain));
    IN_CAPTURE("memset", plain, relaxed, cuMemsetD32Async(a, 1, 16, plain));
    IN_CAPTURE("wrong address", plain, relaxed, cuMemsetD32Async(8, 1, 16, plain));
    IN_CAPTURE("record an event", plain, relaxed, cuEventRecord(event, plain));
    IN_CAPTURE("write a value", plain, relaxed, cuStreamWriteValue32_v2(plain, a, 1, 0));
    many_kinds(pinned);
    MUST(cuEventRecord(back, other));
    IN_CAPTURE("wait for an event from before", plain, relaxed, cuStreamWaitEvent(plain, back, 0));
    begin(plain, relaxed);
    MUST(cuEventRecord(event, plain));
    ASK("query a captured event", cuEventQuery(event));
    end("query a captured event", plain);
    begin(plain, relaxed);
    MUST(cuEventRecord(event, plain));
    MUST(cuStreamWaitEvent(other, event, 0));
    MUST(fill(a, 1, other));
    end("unjoined", plain);
    status("unjoined stream", other);
    begin(plain, relaxed);
    MUST(cuEventRecord(event, plain));
    MUST(cuStreamWaitEvent(other, event, 0));
    ASK("end the joined stream", cuStreamEndCapture(other, &graph));
    end("end the joined stream", plain);
    begin(plain, relaxed);
    begin(other, relaxed);
    MUST(cuEventRecord(event, plain));
    ASK("merge", cuStreamWaitEvent(other, event, 0));
    end("merge: first", plain);
    end("merge: second", other);
    ASK("wait for an event of a capture that is over", cuStreamWaitEvent(other, event, 0));
    ASK("query an event of a capture that is over", cuEventQuery(event));
    ASK("synchronize an event of a capture that is over", cuEventSynchronize(event));
    MUST(cuEventRecord(event, other));
    ASK("query it when it was recorded anew", (cuStreamSynchronize(other), cuEventQuery(event)));
    MUST(cuCtxSynchronize());
    MUST(cuMemFreeHost(pinned));
}

static CUgraphNode kernel_node(CUgraph graph, CUdeviceptr p, unsigned word) {
    size_t n = WORDS;
    void *values[] = {&p, &word, &n};
    CUDA_KERNEL_NODE_PARAMS params = {.func = fill_u32,
                                      .gridDimX = WORDS / 256,
                                      .gridDimY = 1,
                                      .gridDimZ = 1,
                                      .blockDimX = 256,
                                      .blockDimY = 1,
                                      .blockDimZ = 1,
                                      .kernelParams = values};
    CUgraphNode node = NULL;
    ASK("add kernel", cuGraphAddKernelNode_v2(&node, graph, NULL, 0, &params));
    return node;
}

/* A node whose parameters came as one buffer, and one that was captured. */
static void by_buffer(CUgraph graph) {
    struct {
        CUdeviceptr p;
        unsigned word;
        size_t n;
    } values = {a, 77, WORDS};
    size_t size = sizeof values;
    void *extra[] = {(void *)1, &values, (void *)2, &size, (void *)0};
    CUDA_KERNEL_NODE_PARAMS params = {.func = fill_u32,
                                      .gridDimX = 1,
                                      .gridDimY = 1,
                                      .gridDimZ = 1,
                                      .blockDimX = 256,
                                      .blockDimY = 1,
                                      .blockDimZ = 1,
                                      .extra = extra};
    CUgraphNode node = NULL;
    CUgraph captured;
    ASK("add kernel with a buffer", cuGraphAddKernelNode_v2(&node, graph, NULL, 0, &params));
    ASK("read that kernel", cuGraphKernelNodeGetParams_v2(node, &params));
    value("read that kernel: parameters", params.kernelParams != NULL);
    value("read that kernel: buffer", params.extra != NULL);
    MUST(cuGraphDestroyNode(node));
    begin(plain, global);
    MUST(fill(a, 78, plain));
    MUST(cuStreamEndCapture(plain, &captured));
    size_t count = 1;
    MUST(cuGraphGetNodes(captured, &node, &count));
    ASK("read a captured kernel", cuGraphKernelNodeGetParams_v2(node, &params));
    value("read a captured kernel: function", params.func == fill_u32);
    value("read a captured kernel: parameters", params.kernelParams != NULL);
    value("read a captured kernel: buffer", params.extra != NULL);
    if (params.kernelParams)
        value("read a captured kernel: word", *(unsigned *)params.kernelParams[1]);
    MUST(cuGraphDestroy(captured));
}

static void built(void) {
    CUgraph graph, clone;
    CUgraphExec exec;
    CUgraphNode set, copy, empty, child, there;
    unsigned enabled = 9;
    ASK("create with flags", cuGraphCreate(&graph, 1));
    ASK("create", cuGraphCreate(&graph, 0));
    CUgraphNode first = kernel_node(graph, a, 11);
    CUDA_MEMSET_NODE_PARAMS set_params = {.dst = b, .value = 12, .elementSize = 4, .width = WORDS, .height = 1};
    ASK("add memset", cuGraphAddMemsetNode(&set, graph, NULL, 0, &set_params, context));
    CUDA_MEMCPY3D params = {.srcMemoryType = MEMORY_DEVICE,
                            .srcDevice = a,
                            .dstMemoryType = MEMORY_DEVICE,
                            .dstDevice = c,
                            .WidthInBytes = WORDS * 4,
                            .Height = 1,
                            .Depth = 1};
    CUgraphNode both[] = {first, set};
    ASK("add copy", cuGraphAddMemcpyNode(&copy, graph, both, 2, &params, context));
    ASK("add empty", cuGraphAddEmptyNode(&empty, graph, &copy, 1));
    ASK("add edge", cuGraphAddDependencies(graph, &first, &set, 1));
    ASK("add edge twice", cuGraphAddDependencies(graph, &first, &set, 1));
    ASK("remove edge", cuGraphRemoveDependencies(graph, &first, &set, 1));
    ASK("remove edge twice", cuGraphRemoveDependencies(graph, &first, &set, 1));
    CUDA_KERNEL_NODE_PARAMS back_params;
    ASK("read kernel", cuGraphKernelNodeGetParams_v2(first, &back_params));
    value("read kernel: function", back_params.func == fill_u32);
    value("read kernel: parameters", back_params.kernelParams != NULL);
    value("read kernel: buffer", back_params.extra != NULL);
    value("read kernel: word", *(unsigned *)back_params.kernelParams[1]);
    by_buffer(graph);
    ASK("instantiate", cuGraphInstantiateWithFlags(&exec, graph, 0));
    MUST(cuGraphLaunch(exec, plain));
    MUST(cuStreamSynchronize(plain));
    words("built a", a);
    words("built b", b);
    words("built c", c);
    set_params.value = 22;
    ASK("exec memset", cuGraphExecMemsetNodeSetParams(exec, set, &set_params, context));
    back_params.kernelParams = (void *[]){&a, &(unsigned){33}, &(size_t){WORDS}};
    back_params.extra = NULL;
    ASK("exec kernel", cuGraphExecKernelNodeSetParams_v2(exec, first, &back_params));
    ASK("enabled", cuGraphNodeGetEnabled(exec, first, &enabled));
    value("enabled", enabled);
    MUST(cuGraphLaunch(exec, plain));
    ASK("disable", cuGraphNodeSetEnabled(exec, set, 0));
    ASK("disable an empty node", cuGraphNodeSetEnabled(exec, empty, 0));
    MUST(cuGraphLaunch(exec, plain));
    MUST(cuStreamSynchronize(plain));
    words("changed a", a);
    words("changed b", b);
    words("changed c", c);
    CUgraphExecUpdateResultInfo info = {0};
    ASK("clone", cuGraphClone(&clone, graph));
    ASK("find", cuGraphNodeFindInClone(&there, first, clone));
    ASK("update", cuGraphExecUpdate_v2(exec, clone, &info));
    value("update", (unsigned)info.result);
    ASK("destroy node", cuGraphDestroyNode(there));
    ASK("update with another shape", cuGraphExecUpdate_v2(exec, clone, &info));
    value("update with another shape", (unsigned)info.result);
    ASK("destroy clone", cuGraphDestroy(clone));
    CUgraph outer, inside;
    MUST(cuGraphCreate(&outer, 0));
    ASK("add child", cuGraphAddChildGraphNode(&child, outer, NULL, 0, graph));
    ASK("child", cuGraphChildGraphNodeGetGraph(child, &inside));
    ASK("destroy the graph inside", cuGraphDestroy(inside));
    ASK("capture into", cuStreamBeginCaptureToGraph(plain, outer, &child, NULL, 1, local));
    MUST(fill(b, 44, plain));
    ASK("capture into: end", cuStreamEndCapture(plain, &inside));
    value("capture into", inside == outer);
    CUgraphExec second;
    MUST(cuGraphInstantiateWithFlags(&second, outer, 0));
    ASK("exec child", cuGraphExecChildGraphNodeSetParams(second, child, graph));
    MUST(cuGraphLaunch(second, plain));
    MUST(cuStreamSynchronize(plain));
    words("nested a", a);
    words("nested b", b);
    MUST(cuGraphExecDestroy(second));
    MUST(cuGraphDestroy(outer));
    ASK("close a cycle", cuGraphAddDependencies(graph, &empty, &first, 1));
    CUDA_GRAPH_INSTANTIATE_PARAMS how = {0};
    CUgraphExec none;
    ASK("instantiate a cycle", cuGraphInstantiateWithParams(&none, graph, &how));
    value("instantiate a cycle", (unsigned)how.result_out);
    MUST(cuGraphExecDestroy(exec));
    MUST(cuGraphDestroy(graph));
}

static int counted;
static void host_call(void *user) { counted += *(int *)user; }
static void destroyed(void *user) { __atomic_store_n((int *)user, 1, __ATOMIC_RELEASE); }

static void host_functions(void) {
    static int step = 3, gone;
    CUgraph graph, during;
    CUgraphExec exec;
    CUuserObject object;
    int now;
    begin(plain, global);
    ASK("host function", cuLaunchHostFunc(plain, host_call, &step));
    MUST(fill(a, 55, plain));
    MUST(cuStreamGetCaptureInfo_v2(plain, &now, NULL, &during, NULL, NULL));
    ASK("user object", cuUserObjectCreate(&object, &gone, destroyed, 1, 1));
    ASK("retain", cuGraphRetainUserObject(during, object, 1, 1));
    MUST(cuStreamEndCapture(plain, &graph));
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
    MUST(cuGraphDestroy(graph));
    for (int i = 0; i < 10; i++)
        MUST(cuGraphLaunch(exec, plain));
    MUST(cuStreamSynchronize(plain));
    value("host function calls", (unsigned)counted);
    value("destroyed early", (unsigned)__atomic_load_n(&gone, __ATOMIC_ACQUIRE));
    MUST(cuGraphExecDestroy(exec));
    for (int i = 0; i < 2000 && !__atomic_load_n(&gone, __ATOMIC_ACQUIRE); i++)
        usleep(1000);
    value("destroyed", (unsigned)__atomic_load_n(&gone, __ATOMIC_ACQUIRE));
}

struct stranger {
    int mode, now;
    CUresult query, alloc, end;
};

static void *stranger(void *argument) {
    struct stranger *s = argument;
    CUdeviceptr p = 0;
    CUgraph graph;
    MUST(cuCtxSetCurrent(context));
    MUST(cuThreadExchangeStreamCaptureMode(&s->mode));
    s->query = cuEventQuery(back);
    s->alloc = cuMemAlloc_v2(&p, 64);
    if (s->alloc == CUDA_SUCCESS)
        MUST(cuMemFree_v2(p));
    s->end = cuStreamEndCapture(plain, &graph);
    if (s->end == CUDA_SUCCESS)
        MUST(cuGraphDestroy(graph));
    MUST(cuStreamIsCapturing(plain, &s->now));
    return NULL;
}

static void modes(void) {
    MUST(cuEventRecord(back, other));
    MUST(cuCtxSynchronize());
    for (int mine = 0; mine < 3; mine++)
        for (int theirs = 0; theirs < 3; theirs++) {
            pthread_t thread;
            struct stranger s = {.mode = theirs};
            char label[64];
            begin(plain, mine);
            MUST(fill(a, 1, plain));
            if (pthread_create(&thread, NULL, stranger, &s) || pthread_join(thread, NULL))
                exit(1);
            snprintf(label, sizeof label, "mode %d, other thread %d", mine, theirs);
            ASK(label, s.query);
            ASK(label, s.alloc);
            ASK(label, s.end);
            value(label, (unsigned)s.now);
            end(label, plain);
        }
}

/* Events that a graph records: what was known of them ends with its launch. */
static void recorded_events(void) {
    CUevent begun, ended;
    CUgraph graph;
    CUgraphExec exec;
    CUfunction spin;
    uint64_t ns = 200000000;
    void *params[] = {&ns};
    float before = -1, after = -1;
    MUST(cuModuleGetFunction(&spin, module, "spin_ns"));
    MUST(cuEventCreate(&begun, 0));
    MUST(cuEventCreate(&ended, 0));
    ASK("record an external event without a capture", cuEventRecordWithFlags(begun, plain, 1));
    MUST(cuEventRecord(begun, plain));
    MUST(cuEventRecord(ended, plain));
    MUST(cuEventSynchronize(ended));
    ASK("elapsed before the graph", cuEventElapsedTime(&before, begun, ended));
    begin(plain, MODE_LOCAL);
    ASK("record an external event", cuEventRecordWithFlags(begun, plain, 1));
    MUST(cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, plain, params, NULL));
    ASK("record another", cuEventRecordWithFlags(ended, plain, 1));
    ASK("elapsed while it is captured", cuEventElapsedTime(&after, begun, ended));
    MUST(cuStreamEndCapture(plain, &graph));
    size_t count = 0;
    MUST(cuGraphGetNodes(graph, NULL, &count));
    value("nodes of external events and a kernel", count);
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
    ASK("query before the launch", cuEventQuery(ended));
    ASK("elapsed before the launch", cuEventElapsedTime(&after, begun, ended));
    value("the same as before the graph", after == before);
    for (int i = 0; i < 2; i++) {
        MUST(cuGraphLaunch(exec, plain));
        ASK("query behind the launch", cuEventQuery(ended));
        ASK("elapsed behind the launch", cuEventElapsedTime(&after, begun, ended));
        ASK("synchronize", cuEventSynchronize(ended));
        ASK("query when it is over", cuEventQuery(ended));
        ASK("elapsed when it is over", cuEventElapsedTime(&after, begun, ended));
        value("about 200 ms", after >= 199 && after < 260);
    }
    MUST(cuStreamSynchronize(plain));
    MUST(cuGraphExecDestroy(exec));
    MUST(cuGraphDestroy(graph));
    MUST(cuEventDestroy_v2(begun));
    MUST(cuEventDestroy_v2(ended));
}

int main(void) {
    CUdevice device;
    setvbuf(stdout, NULL, _IOLBF, 0); /* what was answered before a crash is worth knowing */
    graphs_load();
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUST(cuDevicePrimaryCtxRetain(&context, device));
    MUST(cuCtxSetCurrent(context));
    char *ptx = cu_kernels_ptx();
    MUST(cuModuleLoadData(&module, ptx));
    free(ptx);
    MUST(cuModuleGetFunction(&fill_u32, module, "fill_u32"));
    MUST(cuStreamCreate(&plain, 1));
    MUST(cuStreamCreate(&other, 1));
    MUST(cuStreamCreate(&blocking, 0));
    MUST(cuEventCreate(&event, 2));
    MUST(cuEventCreate(&back, 2));
    MUST(cuMemAlloc_v2(&a, WORDS * 4));
    MUST(cuMemAlloc_v2(&b, WORDS * 4));
    MUST(cuMemAlloc_v2(&c, WORDS * 4));
    replay();
    errors();
    built();
    host_functions();
    modes();
    recorded_events();
    pageable_nodes();
    copies_in_place();
    built_host_copies();
    wrong_address();
    char libraries[8192];
    cu_mapped_libraries(libraries, sizeof libraries);
    printf("{\"digest\": \"\", \"metrics\": {}, \"libraries\": %s}\n", libraries);
    return 0;
}
