/*
 * Host functions: what is permitted in them, and what becomes of those that the driver refuses.
 *
 * One thread, and the one that runs host functions. The names that `forbidden` calls come from the test.
 */
#include "stack.h"

#include <dlfcn.h>

static char **names;
static int name_count, wrong;

typedef CUresult (*any_function)(size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t,
                                 size_t);

static void call_all(void *unused) {
    (void)unused;
    for (int i = 0; i < name_count; i++) {
        void *found = dlsym(RTLD_DEFAULT, names[i]);
        any_function function;
        memcpy(&function, &found, sizeof function);
        CUresult result =
            function ? function(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) : CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND;
        if (result != CUDA_ERROR_NOT_PERMITTED) {
            fprintf(stderr, "%s gives %d in a host function\n", names[i], result);
            wrong++;
        }
    }
}

static void call_permitted(void *unused) {
    int version = 0;
    void *address = NULL;
    (void)unused;
    OK(cuDriverGetVersion(&version));
    OK(cuGetProcAddress_v2("cuInit", &address, 12000, CU_GET_PROC_ADDRESS_DEFAULT, NULL));
    CHECK(version && address);
}

static void call_all_in_callback(CUstream stream, CUresult status, void *user) {
    (void)stream;
    CHECK(status == CUDA_SUCCESS);
    call_all(user);
}

/* Every function of the library, with zeros for arguments, in host functions of all kinds. */
static void forbidden(void) {
    CUstream stream;
    CUuserObject object;
    int attribute = 0;
    start();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuLaunchHostFunc(stream, call_permitted, NULL));
    OK(cuLaunchHostFunc(stream, call_all, NULL));
    OK(cuStreamAddCallback(stream, call_all_in_callback, NULL, 0));
    OK(cuStreamSynchronize(stream));
    OK(cuUserObjectCreate(&object, NULL, call_all, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
    OK(cuUserObjectRelease(object, 1));
    /* Behind them, since one thread runs all; and this thread may call. */
    OK(cuLaunchHostFunc(stream, call_permitted, NULL));
    OK(cuStreamSynchronize(stream));
    OK(cuDeviceGetAttribute(&attribute, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 0));
    CHECK(attribute == 32 && name_count > 300);
    CHECK(!wrong);
}

/* ---- refused functions: the worker's driver fails with 999 where the test says so ---- */

static _Atomic int called;
static _Atomic int told = -1;

static void count_calls(void *unused) {
    (void)unused;
    called++;
}

static void note_status(CUstream stream, CUresult status, void *unused) {
    (void)stream, (void)unused;
    told = (int)status;
    called++;
}

/* True when `value` has become `wanted` within some seconds. */
static bool becomes(_Atomic int *value, int wanted) {
    for (int i = 0; i < 5000 && *value != wanted; i++) {
        usleep(1000);
    }
    return *value == wanted;
}

/* The program gets the error, the function is not called, and the next one is. */
static void refused(void) {
    start();
    CUresult result = cuLaunchHostFunc(NULL, count_calls, NULL);
    CHECK((result ? result : cuStreamSynchronize(NULL)) == CUDA_ERROR_UNKNOWN);
    OK(cuStreamSynchronize(NULL));
    CHECK(called == 0);
    OK(cuLaunchHostFunc(NULL, count_calls, NULL));
    OK(cuStreamSynchronize(NULL));
    CHECK(called == 1);
}

/* A callback whose call had already succeeded is told the error: somebody may wait for nothing else. */
static void refused_callback(void) {
    start();
    CUresult result = cuStreamAddCallback(NULL, note_status, NULL, 0);
    if (result) {
        CHECK(result == CUDA_ERROR_UNKNOWN && !called);
    } else {
        CHECK(becomes(&called, 1) && told == CUDA_ERROR_UNKNOWN);
        GIVES(CUDA_ERROR_UNKNOWN, cuStreamSynchronize(NULL));
    }
    OK(cuStreamAddCallback(NULL, note_status, NULL, 0));
    OK(cuStreamSynchronize(NULL));
    CHECK(told == CUDA_SUCCESS);
}

/* While another stream captures, the call has the result itself. */
static void refused_beside_a_capture(void) {
    CUstream stream, other;
    CUgraph graph;
    start();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_UNKNOWN, cuLaunchHostFunc(other, count_calls, NULL));
    GIVES(CUDA_ERROR_UNKNOWN, cuStreamAddCallback(other, note_status, NULL, 0));
    OK(cuStreamAddCallback(other, note_status, NULL, 0));
    OK(cuLaunchHostFunc(stream, count_calls, NULL));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuStreamSynchronize(other));
    CHECK(called == 1 && told == CUDA_SUCCESS);
}

/* What a stream captures into is not told: a function for one call would be called at each launch. */
static void capture_not_told(void) {
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    start();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_UNKNOWN, cuLaunchHostFunc(stream, count_calls, NULL));
    OK(cuLaunchHostFunc(stream, count_calls, NULL));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, stream));
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(called == 2);
}

/* A kernel that breaks its context: the third launch of the worker, by the test. */
static CUresult break_context(CUmodule module, CUstream stream) {
    OK(spin(module, 100000000, stream));
    OK(cuLaunchHostFunc(stream, count_calls, NULL));
    OK(cuStreamAddCallback(stream, note_status, NULL, 0));
    OK(spin(module, 1, stream));
    CUresult result = spin(module, 1, stream);
    return result ? result : cuStreamSynchronize(stream);
}

/* A function that will never be called again holds nobody up: the context takes commands, which all fail, without end. A callback
 * is told. */
static void broken(void) {
    CUstream stream;
    start();
    CUmodule module = load_kernels();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, break_context(module, stream));
    CHECK(becomes(&told, CUDA_ERROR_ILLEGAL_ADDRESS) && called == 1);
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream));
}

/* The worker executes what comes behind a thousand commands of a stream that died in front of a host function: a program that does
 * not look at results, or whose commands are all on their way before the first answer. */
static void broken_and_full(void) {
    CUdeviceptr memory;
    CUstream stream;
    start();
    CUmodule module = load_kernels();
    OK(cuMemAlloc_v2(&memory, 4));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(spin(module, 300000000, stream));
    OK(cuLaunchHostFunc(stream, count_calls, NULL));
    OK(spin(module, 1, stream));
    (void)spin(module, 1, stream);
    for (int i = 0; i < 3000; i++) {
        (void)cuMemsetD32Async(memory, 1, 1, stream);
    }
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream));
    CHECK(!called);
}

/* A device that broke says nothing of another's streams. */
static void callback_of_another_device(void) {
    CUcontext made;
    CUstream stream;
    start();
    OK(cuCtxCreate_v4(&made, NULL, 0, 1));
    CUmodule module = load_kernels();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, break_context(module, stream));
    CHECK(becomes(&told, CUDA_ERROR_ILLEGAL_ADDRESS));
    OK(cuCtxPopCurrent_v2(NULL));
    OK(cuStreamAddCallback(NULL, note_status, NULL, 0));
    OK(cuStreamSynchronize(NULL));
    CHECK(told == CUDA_SUCCESS);
}

/* ---- calls in which the driver waits for the GPU, while a host function runs ---- */

#define FUNCTION_MS 60

static _Atomic int begun, ended;

static void take_time(void *unused) {
    (void)unused;
    begun++;
    usleep(FUNCTION_MS * 1000);
    ended++;
}

static void behind_a_function(CUstream stream) {
    OK(cuStreamSynchronize(stream));
    begun = ended = 0;
    OK(cuLaunchHostFunc(stream, take_time, NULL));
    while (!begun) {
        usleep(1000);
    }
}

/* Asked of a real driver (580.159): these wait for all that was queued before. The function has to end all the same. */
static void waiting_calls(void) {
    CUstream stream, more[70];
    CUmodule module, of_library;
    CUlibrary library;
    CUkernel kernel;
    CUfunction function;
    CUdeviceptr memory;
    size_t limit = 0;
    start();
    CUmodule first = load_kernels();
    OK(cuMemAlloc_v2(&memory, 4096));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));

    behind_a_function(stream);
    OK(cuModuleLoadData(&module, kernels_ptx));
    CHECK(ended == 1);
    behind_a_function(stream);
    OK(cuModuleUnload(module));
    OK(cuMemFree_v2(memory)); /* and whoever waits then */
    OK(cuStreamSynchronize(stream));

    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&kernel, library, "fill_u32"));
    behind_a_function(stream);
    OK(cuKernelGetFunction(&function, kernel));
    OK(cuLibraryGetModule(&of_library, library));
    behind_a_function(stream);
    OK(cuLibraryUnload(library));

    behind_a_function(stream);
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        OK(cuStreamCreate(&more[i], CU_STREAM_NON_BLOCKING));
    }
    OK(spin(first, 1, more[0]));
    OK(cuStreamSynchronize(more[0]));
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        OK(cuStreamDestroy_v2(more[i]));
    }

    behind_a_function(stream);
    OK(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 4096));
    CHECK(ended == 1);
    OK(cuCtxGetLimit(&limit, CU_LIMIT_STACK_SIZE));
    CHECK(limit == 4096);
}

/* ---- the thread that runs host functions, and what it gives back between two of them ---- */

static _Atomic bool gate_open;

static void pass_the_gate(void *unused) {
    (void)unused;
    begun++;
    while (!gate_open) {
        usleep(200);
    }
    ended++;
}

static void *open_the_gate(void *unused) {
    usleep(100000);
    gate_open = true;
    return unused;
}

static CUgraph graph_with_a_copy(unsigned char *plain, CUdeviceptr memory) {
    CUcontext context;
    CUgraph graph;
    CUgraphNode node;
    CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = plain,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = memory,
                          .WidthInBytes = 4096,
                          .Height = 1,
                          .Depth = 1};
    OK(cuCtxGetCurrent(&context));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemcpyNode(&node, graph, NULL, 0, &copy, context));
    return graph;
}

/* A graph's last copy of this program's memory ends while one function runs and a second stands behind it, and a call waits for both. What
 * is given back then goes behind that call, so nobody may wait for it who has the second function to run. */
static void graphs_end_between_functions(void) {
    static unsigned char plain[4096];
    CUstream stream, beside;
    CUgraph copies, empty, captured;
    CUgraphExec exec;
    CUdeviceptr memory;
    pthread_t thread;
    start();
    OK(cuMemAlloc_v2(&memory, sizeof plain));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&beside, CU_STREAM_NON_BLOCKING));
    copies = graph_with_a_copy(plain, memory);
    OK(cuGraphCreate(&empty, 0));
    OK(cuGraphInstantiateWithFlags(&exec, empty, 0));
    OK(cuLaunchHostFunc(stream, pass_the_gate, NULL));
    OK(cuLaunchHostFunc(stream, take_time, NULL));
    while (!begun) {
        usleep(1000);
    }
    OK(cuGraphDestroy(copies));
    for (double end = now_ms() + 100; now_ms() < end;) {
        GIVES(CUDA_ERROR_NOT_READY, cuStreamQuery(stream)); /* it hears of that end meanwhile */
    }
    OK((CUresult)pthread_create(&thread, NULL, open_the_gate, NULL));
    OK(cuStreamBeginCapture_v2(beside, CU_STREAM_CAPTURE_MODE_RELAXED)); /* then calls wait for their results */
    OK(cuGraphExecDestroy(exec));
    OK(cuStreamEndCapture(beside, &captured));
    OK(cuStreamSynchronize(stream));
    CHECK(begun == 2 && ended == 2);
    OK((CUresult)pthread_join(thread, NULL));
}

static struct {
    CUcontext context;
    CUstream stream;
    CUevent event;
} others;

static void *record_and_open_the_gate(void *unused) {
    OK(cuCtxSetCurrent(others.context));
    usleep(100000);
    OK(cuEventRecord(others.event, others.stream));
    gate_open = true;
    return unused;
}

/* The driver waits in the second launch of a graph with memory until the first has begun, and the function in front of that waits for another
 * thread, whose calls wait for nothing. */
static void only_the_caller_waits_for_a_launch(void) {
    CUstream stream, beside;
    CUgraph graph;
    CUgraphExec exec;
    CUdeviceptr memory;
    pthread_t thread;
    start();
    OK(cuCtxGetCurrent(&others.context));
    OK(cuStreamCreate(&others.stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&others.event, CU_EVENT_DEFAULT));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&beside, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuMemAllocAsync(&memory, 4096, stream));
    OK(cuMemFreeAsync(memory, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuLaunchHostFunc(stream, pass_the_gate, NULL));
    OK(cuGraphLaunch(exec, stream));
    OK((CUresult)pthread_create(&thread, NULL, record_and_open_the_gate, NULL));
    OK(cuGraphLaunch(exec, beside));
    OK(cuStreamSynchronize(beside));
    CHECK(ended == 1);
    OK((CUresult)pthread_join(thread, NULL));
}

/* A function runs beside what its program sends, however much that is. */
static void runs_while_its_program_sends(void) {
    CUstream stream, busy;
    CUdeviceptr memory;
    start();
    OK(cuMemAlloc_v2(&memory, 4));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&busy, CU_STREAM_NON_BLOCKING));
    for (int round = 0; round < 3; round++) {
        called = 0;
        OK(cuLaunchHostFunc(stream, count_calls, NULL));
        for (int i = 0; i < 1000000 && !called; i++) {
            OK(cuMemsetD32Async(memory, 1, 1, busy));
        }
        CHECK(called == 1);
        OK(cuCtxSynchronize());
    }
}

static _Atomic bool go_on;

static void wait_for_the_caller(void *unused) {
    (void)unused;
    for (int ms = 0; ms < 3000 && !go_on; ms++) {
        usleep(1000);
    }
    ended++;
}

/* Streams that went with their context make no room scarce: the driver does not wait here, and the function may wait for its caller. */
static void streams_of_a_context_gone(void) {
    CUcontext own;
    CUstream stream, more[60];
    start();
    for (int round = 0; round < 2; round++) {
        OK(cuCtxCreate_v4(&own, NULL, 0, 0));
        for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
            OK(cuStreamCreate(&more[i], CU_STREAM_NON_BLOCKING));
        }
        OK(cuCtxDestroy_v2(own));
    }
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuLaunchHostFunc(stream, wait_for_the_caller, NULL));
    OK(cuStreamCreate(&more[0], CU_STREAM_NON_BLOCKING));
    OK(cuStreamQuery(more[0]));
    CHECK(!ended);
    go_on = true;
    OK(cuStreamSynchronize(stream));
    CHECK(ended == 1);
}

/* What another context had at once makes no room in this one, and takes none. */
static void room_of_each_context(void) {
    CUcontext first, own;
    CUstream stream, beside, more[60];
    const size_t many = sizeof more / sizeof *more;
    start();
    OK(cuCtxGetCurrent(&first));
    OK(cuCtxCreate_v4(&own, NULL, 0, 0));
    for (size_t i = 0; i < many; i++) {
        OK(cuStreamCreate(&more[i], CU_STREAM_NON_BLOCKING));
    }
    OK(cuCtxSetCurrent(first));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuLaunchHostFunc(stream, wait_for_the_caller, NULL));
    OK(cuStreamCreate(&beside, CU_STREAM_NON_BLOCKING));
    OK(cuStreamQuery(beside));
    CHECK(!ended);
    go_on = true;
    OK(cuStreamSynchronize(stream));
    for (size_t i = 0; i < many; i++) {
        OK(cuStreamDestroy_v2(more[i]));
    }
    for (size_t i = 0; i < 40; i++) {
        if (i > 25) {
            behind_a_function(stream);
        }
        OK(cuStreamCreate(&more[i], CU_STREAM_NON_BLOCKING));
        OK(cuStreamQuery(more[i]));
    }
    OK(cuCtxSynchronize());
}

/* The same through another thread, which is not the one that queues functions all the time, each behind the last. */
static _Atomic bool enough;

static void *queue_functions(void *of) {
    CUstream stream;
    OK(cuCtxSetCurrent(of));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    while (!enough) {
        OK(cuLaunchHostFunc(stream, count_calls, NULL));
        OK(cuStreamSynchronize(stream));
    }
    return NULL;
}

static void loads_beside_functions(void) {
    CUcontext context;
    CUmodule module;
    pthread_t thread;
    start();
    OK(cuCtxGetCurrent(&context));
    OK((CUresult)pthread_create(&thread, NULL, queue_functions, context));
    /* However the threads are scheduled, both must come forward; the test's own time is the bound. */
    for (int i = 0; i < 300 || called <= 10; i++) {
        OK(cuModuleLoadData(&module, kernels_ptx));
        OK(cuModuleUnload(module));
    }
    enough = true;
    OK((CUresult)pthread_join(thread, NULL));
}

static void linger(void *unused) {
    (void)unused;
    usleep(100000);
}

/* Memory of a pool and of a graph is given back without a stream, behind work that takes a moment, while another stream comes to
 * stand at a function, which ends. */
static void frees_while_one_stands(void) {
    CUstream stream, stands;
    CUdeviceptr pooled, of_graph;
    CUgraph graph;
    CUgraphExec exec;
    uint64_t ns = 20000000;
    void *params[] = {&ns};
    start();
    const struct kernels k = load_all();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&stands, CU_STREAM_NON_BLOCKING));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuMemAllocAsync(&of_graph, 1 << 20, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (int i = 0; i < 4; i++) {
        OK(cuMemAllocAsync(&pooled, 1 << 20, stream));
        OK(cuGraphLaunch(exec, stream));
        OK(cuStreamSynchronize(stream));
        OK(launch(k.spin_ns, 1, stands, params));
        OK(cuMemFree_v2(i & 1 ? of_graph : pooled));
        OK(cuLaunchHostFunc(stands, linger, NULL));
        OK(cuMemFree_v2(i & 1 ? pooled : of_graph));
    }
    OK(cuGraphLaunch(exec, stream));
    OK(cuCtxSynchronize());
    OK(cuMemFree_v2(of_graph));
}

static const struct check checks[] = {{"frees-while-one-stands", frees_while_one_stands},
                                      {"waiting-calls", waiting_calls},
                                      {"loads-beside-functions", loads_beside_functions},
                                      {"streams-of-a-context-gone", streams_of_a_context_gone},
                                      {"room-of-each-context", room_of_each_context},
                                      {"graphs-end-between-functions", graphs_end_between_functions},
                                      {"only-the-caller-waits", only_the_caller_waits_for_a_launch},
                                      {"runs-while-its-program-sends", runs_while_its_program_sends},
                                      {"forbidden", forbidden},
                                      {"refused", refused},
                                      {"refused-callback", refused_callback},
                                      {"refused-beside-a-capture", refused_beside_a_capture},
                                      {"capture-not-told", capture_not_told},
                                      {"broken", broken},
                                      {"broken-and-full", broken_and_full},
                                      {"another-device", callback_of_another_device}};

int role_callbacks(int count, char **words) {
    names = words + 1;
    name_count = count - 1;
    return run_check(checks, sizeof checks / sizeof *checks, count ? 1 : 0, words);
}
