/*
 * Runs a program on the driver: its threads, its objects, its checks, and what is left of it at the end.
 *
 * Every thread walks the whole list and runs its own lines; `barrier` is the only place where they wait for each other.
 */
#include "driver.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

struct driver driver;
struct region regions[MOST_REGIONS];

static CUstream streams[MOST_STREAMS];
static CUevent events[MOST_EVENTS];
static CUmemoryPool pools[MOST_POOLS];
static struct {
    CUcontext context;
    CUfunction kernels[KERNELS];
} contexts[MOST_CONTEXTS];
static char *kernels_ptx, *mix_ptx;
static pthread_barrier_t barrier;
static struct program *running;
static const struct operation *volatile now_at[MOST_THREADS];

void call_result(const struct operation *op, const char *name, CUresult result) {
    const char *text = NULL;
    if (!result)
        return;
    driver.cuGetErrorName(result, &text);
    fail(op, "%s gave %d (%s)", name, (int)result, text ? text : "?");
}

CUstream stream_of(int stream) { return stream < FIRST_STREAM ? (CUstream)(uintptr_t)stream : streams[stream]; }

CUcontext current_context(const struct operation *op) {
    CUcontext context = NULL;
    CALL(cuCtxGetCurrent, &context);
    return context;
}

CUfunction kernel_of(const struct operation *op, enum kernel kernel) {
    CUcontext context = current_context(op);
    for (int i = 0; i < MOST_CONTEXTS; i++)
        if (contexts[i].context == context)
            return contexts[i].kernels[kernel];
    fail(op, "a context is current that the program does not have");
}

static char *text_of(const char *folder, const char *name) {
    enum { LIMIT = 1 << 16 };
    char path[1024], *text = calloc(1, LIMIT);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file || !text || !fread(text, 1, LIMIT - 1, file))
        stop("%s cannot be read", path);
    fclose(file);
    return text;
}

static void load_kernels(int index) {
    static const char *const names[KERNELS] = {"fill_u32", "iota_u32", "mix_u32", "spin_ns"};
    const struct operation *op = NULL;
    CUmodule kernels, mix;
    CALL(cuModuleLoadData, &kernels, kernels_ptx);
    CALL(cuModuleLoadData, &mix, mix_ptx);
    for (int i = 0; i < KERNELS; i++)
        CALL(cuModuleGetFunction, &contexts[index].kernels[i], i == KERNEL_MIX ? mix : kernels, names[i]);
}

void interpreter_start(const char *library, const char *kernels_folder) {
    const struct operation *op = NULL;
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        stop("%s cannot be loaded: %s", library, dlerror());
#define FIND(name)                                                                                                     \
    if (!(driver.name = (__typeof__(driver.name))dlsym(handle, #name)))                                                \
        stop("%s does not export %s", library, #name);
    FUNCTIONS(FIND)
#undef FIND
    kernels_ptx = text_of(kernels_folder, "kernels.ptx");
    mix_ptx = text_of(kernels_folder, "mix.ptx");
    struct link_map *map;
    if (!dlinfo(handle, RTLD_DI_LINKMAP, &map))
        printf("library %s\n", map->l_name);
    CALL(cuInit, 0);
    CALL(cuDevicePrimaryCtxRetain, &contexts[0].context, 0);
    CALL(cuCtxSetCurrent, contexts[0].context);
    load_kernels(0);
}

/* ---- memory ---- */

static void map_memory(const struct operation *op, struct region *r) {
    CUmemAllocationProp what = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemAccessDesc access = {.location = what.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle memory;
    size_t granule = 0;
    CALL(cuMemGetAllocationGranularity, &granule, &what, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    r->reserved = (r->size + granule - 1) / granule * granule;
    CALL(cuMemAddressReserve, &r->device, r->reserved, 0, 0, 0);
    CALL(cuMemCreate, &memory, r->reserved, &what, 0);
    CALL(cuMemMap, r->device, r->reserved, 0, memory, 0);
    CALL(cuMemRelease, memory);
    CALL(cuMemSetAccess, r->device, r->reserved, &access, 1);
}

static void make_region(const struct operation *op) {
    const long long *a = op->a;
    struct region *r = &regions[a[0]];
    void *host = NULL;
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    *r = (struct region){.kind = op->code, .size = (size_t)a[1], .context = current_context(op)};
    switch (op->code) {
    case OP_alloc:
        CALL(cuMemAlloc_v2, &r->device, r->size);
        break;
    case OP_vmm:
        map_memory(op, r);
        break;
    case OP_managed:
        CALL(cuMemAllocManaged, &r->device, r->size, CU_MEM_ATTACH_GLOBAL);
        r->by_hand = (uint8_t *)(uintptr_t)r->device;
        break;
    case OP_pool_alloc:
        CALL(cuStreamIsCapturing, stream_of((int)a[2]), &status);
        r->of_graph = status != CU_STREAM_CAPTURE_STATUS_NONE;
        CALL(cuMemAllocAsync, &r->device, r->size, stream_of((int)a[2]));
        break;
    case OP_pool_from:
        CALL(cuMemAllocFromPoolAsync, &r->device, r->size, pools[a[2]], stream_of((int)a[3]));
        break;
    case OP_pinned:
        CALL(cuMemHostAlloc, &host, r->size, (unsigned)a[2]);
        r->host = host;
        break;
    default: /* pageable; registered: with a[2] bytes of a page in front of it */
        if (posix_memalign(&host, 4096, r->size + 4096))
            stop("no memory");
        r->block = host;
        r->host = r->block + (op->code == OP_registered ? a[2] : 0);
        if (op->code == OP_registered)
            CALL(cuMemHostRegister_v2, r->host, r->size, CU_MEMHOSTREGISTER_PORTABLE);
    }
    if (r->host)
        r->by_hand = r->host;
}

static void free_region(const struct operation *op, struct region *r) {
    switch (r->kind) {
    case OP_vmm:
        CALL(cuMemUnmap, r->device, r->reserved);
        CALL(cuMemAddressFree, r->device, r->reserved);
        break;
    case OP_pinned:
        CALL(cuMemFreeHost, r->host);
        break;
    case OP_registered:
        CALL(cuMemHostUnregister, r->host);
        break;
    case OP_pageable:
        break;
    default:
        CALL(cuMemFree_v2, r->device);
    }
    free(r->block);
    if (!r->of_graph)
        *r = (struct region){.kind = OP_barrier};
}

static void compare(const struct operation *op, const uint8_t *found) {
    for (long long i = 0; i < op->a[2]; i++)
        if (op->known[i] && found[i] != op->expected[i])
            fail(op, "byte %lld of region %lld is %02x instead of %02x", op->a[1] + i, op->a[0], found[i],
                 op->expected[i]);
}

static void check(const struct operation *op) {
    const struct region *r = &regions[op->a[0]];
    if (op->code == OP_check) {
        compare(op, r->by_hand + op->a[1]);
        return;
    }
    uint8_t *found = malloc((size_t)op->a[2] + 1);
    if (!found)
        stop("no memory");
    CALL(cuMemcpyDtoH_v2, found, r->device + (CUdeviceptr)op->a[1], (size_t)op->a[2]);
    compare(op, found);
    free(found);
}

/* ---- streams and events ---- */

static void expect_done(const struct operation *op, CUresult result, bool must) {
    if (result != CUDA_SUCCESS && (must || result != CUDA_ERROR_NOT_READY))
        call_result(op, "the query", result);
}

static void poll_until_done(const struct operation *op, CUstream stream, CUevent event) {
    CUresult result;
    while ((result = event ? driver.cuEventQuery(event) : driver.cuStreamQuery(stream)) == CUDA_ERROR_NOT_READY)
        sched_yield();
    call_result(op, "the query", result);
}

static void use_context(const struct operation *op, int index) {
    if (!contexts[index].context) {
        CALL(cuCtxCreate_v2, &contexts[index].context, 0, 0);
        load_kernels(index);
    }
    CALL(cuCtxSetCurrent, contexts[index].context);
}

static void elapsed(const struct operation *op) {
    float ms = -1;
    CALL(cuEventElapsedTime, &ms, events[op->a[0]], events[op->a[1]]);
    if (!(ms >= 0 && ms < 60000))
        fail(op, "%g ms lie between the events", (double)ms);
}

static bool order_operation(const struct operation *op) {
    const long long *a = op->a;
    switch (op->code) {
    case OP_stream:
        if (a[2])
            CALL(cuStreamCreateWithPriority, &streams[a[0]], (unsigned)a[1], (int)-a[2]);
        else
            CALL(cuStreamCreate, &streams[a[0]], (unsigned)a[1]);
        return true;
    case OP_stream_destroy:
        CALL(cuStreamDestroy_v2, streams[a[0]]);
        streams[a[0]] = NULL;
        return true;
    case OP_stream_sync:
        CALL(cuStreamSynchronize, stream_of((int)a[0]));
        return true;
    case OP_stream_poll:
        poll_until_done(op, stream_of((int)a[0]), NULL);
        return true;
    case OP_stream_done:
        expect_done(op, driver.cuStreamQuery(stream_of((int)a[0])), true);
        return true;
    case OP_ctx_sync:
        CALL(cuCtxSynchronize);
        return true;
    case OP_event:
        CALL(cuEventCreate, &events[a[0]], (unsigned)a[1]);
        return true;
    case OP_event_destroy:
        CALL(cuEventDestroy_v2, events[a[0]]);
        events[a[0]] = NULL;
        return true;
    case OP_record:
        CALL(cuEventRecord, events[a[0]], stream_of((int)a[1]));
        return true;
    case OP_wait:
        CALL(cuStreamWaitEvent, stream_of((int)a[0]), events[a[1]], 0);
        return true;
    case OP_event_sync:
        CALL(cuEventSynchronize, events[a[0]]);
        return true;
    case OP_event_poll:
        poll_until_done(op, NULL, events[a[0]]);
        return true;
    case OP_event_ask:
    case OP_event_done:
        expect_done(op, driver.cuEventQuery(events[a[0]]), op->code == OP_event_done);
        return true;
    case OP_elapsed:
        elapsed(op);
        return true;
    default:
        return false;
    }
}

static void make_pool(const struct operation *op) {
    CUmemPoolProps what = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                           .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CALL(cuMemPoolCreate, &pools[op->a[0]], &what);
}

static void run_operation(const struct operation *op) {
    const long long *a = op->a;
    if ((int)op->code < (int)EFFECT_CODES) {
        issue(op, &op->effect);
        return;
    }
    if (order_operation(op) || graph_operation(op))
        return;
    switch (op->code) {
    case OP_context:
        use_context(op, (int)a[0]);
        break;
    case OP_free:
        free_region(op, &regions[a[0]]);
        break;
    case OP_pool_free:
        CALL(cuMemFreeAsync, regions[a[0]].device, stream_of((int)a[1]));
        if (!regions[a[0]].of_graph)
            regions[a[0]] = (struct region){.kind = OP_barrier};
        break;
    case OP_pool:
        make_pool(op);
        break;
    case OP_pool_destroy:
        CALL(cuMemPoolDestroy, pools[a[0]]);
        pools[a[0]] = NULL;
        break;
    case OP_put:
        host_apply(HOST_PUT, regions[a[0]].by_hand + a[1], NULL, (uint64_t)a[3], (size_t)a[2]);
        break;
    case OP_host_mix:
        host_apply(HOST_MIX, regions[a[0]].by_hand + a[1], regions[a[2]].by_hand + a[3], (uint64_t)a[4], (size_t)a[5]);
        break;
    case OP_check:
    case OP_peek:
        check(op);
        break;
    default:
        make_region(op);
    }
}

static void *run_thread(void *argument) {
    int thread = (int)(intptr_t)argument;
    const struct operation *op = NULL;
    CALL(cuCtxSetCurrent, contexts[0].context);
    for (int i = 0; i < running->count; i++) {
        op = &running->operations[i];
        if (op->code != OP_barrier && op->thread != thread)
            continue;
        now_at[thread] = op;
        if (op->code == OP_barrier)
            pthread_barrier_wait(&barrier);
        else
            run_operation(op);
    }
    now_at[thread] = NULL;
    return NULL;
}

/* Memory of graphs comes last: it may be allocated or not, and what is not may have left its address to another region. */
static void free_regions(bool of_graphs) {
    for (int i = 0; i < MOST_REGIONS; i++) {
        struct region *r = &regions[i];
        if (r->kind == OP_barrier || r->of_graph != of_graphs)
            continue;
        call_result(NULL, "cuCtxSetCurrent", driver.cuCtxSetCurrent(r->context));
        CUresult result = of_graphs ? driver.cuMemFree_v2(r->device) : CUDA_SUCCESS;
        if (result != CUDA_ERROR_INVALID_VALUE)
            call_result(NULL, "cuMemFree_v2", result);
        if (!of_graphs)
            free_region(NULL, r);
    }
}

static void clean_up(void) {
    const struct operation *op = NULL;
    for (int i = 0; i < MOST_CONTEXTS && contexts[i].context; i++) {
        CALL(cuCtxSetCurrent, contexts[i].context);
        CALL(cuCtxSynchronize);
    }
    graphs_end();
    for (int i = 0; i < MOST_EVENTS; i++) {
        if (events[i])
            CALL(cuEventDestroy_v2, events[i]);
        events[i] = NULL;
    }
    free_regions(false);
    free_regions(true);
    /* Pools before the streams in which their memory was freed: behind them cuMemPoolDestroy ended with signal 11 about
     * once in 1,300 programs (580.159.04, natively, too). */
    for (int i = 0; i < MOST_POOLS; i++) {
        if (pools[i])
            CALL(cuMemPoolDestroy, pools[i]);
        pools[i] = NULL;
    }
    for (int i = FIRST_STREAM; i < MOST_STREAMS; i++) {
        if (streams[i])
            CALL(cuStreamDestroy_v2, streams[i]);
        streams[i] = NULL;
    }
    CALL(cuCtxSetCurrent, contexts[0].context);
}

void interpreter_tell_places(void) {
    for (int i = 0; running && i < running->threads; i++) {
        const struct operation *op = now_at[i];
        printf("AT ");
        if (op)
            program_print(stdout, op);
        else
            printf("the end of thread %d", i);
        printf("\n");
    }
}

void interpreter_tell_streams(void) {
    for (int i = 0; i < MOST_CONTEXTS; i++) {
        if (!contexts[i].context || driver.cuCtxSetCurrent(contexts[i].context))
            continue;
        for (int k = 0; k < MOST_STREAMS; k++) {
            bool own = k >= FIRST_STREAM && streams[k];
            CUresult result = own || k == 0 ? driver.cuStreamQuery(stream_of(k)) : CUDA_SUCCESS;
            /* A stream of another context gives 400 here and has its line there. */
            if (result && result != CUDA_ERROR_INVALID_HANDLE)
                printf("STREAM s%d of context c%d gives %d\n", k, i, (int)result);
        }
    }
}

void interpreter_run(struct program *program) {
    pthread_t threads[MOST_THREADS];
    memset((void *)(uintptr_t)now_at, 0, sizeof now_at);
    running = program;
    for (int i = 0; i < MOST_REGIONS; i++)
        regions[i] = (struct region){.kind = OP_barrier};
    if (pthread_barrier_init(&barrier, NULL, (unsigned)program->threads))
        stop("no barrier");
    for (int i = 1; i < program->threads; i++)
        if (pthread_create(&threads[i], NULL, run_thread, (void *)(intptr_t)i))
            stop("no thread");
    run_thread((void *)0);
    for (int i = 1; i < program->threads; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&barrier);
    clean_up();
}
