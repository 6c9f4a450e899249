/*
 * Arguments: good objects of every kind, destroyed ones, memory of every kind, structs that are given byte by byte.
 *
 * One thread of a child process. The words come from fuzz.py.
 */
#include "calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GET(name) ((__typeof__(name) *)find(#name))
/* Processes run side by side, and a case of another may have all the memory for a moment. */
#define MAKE(name, ...)                                                                                                \
    do {                                                                                                               \
        CUresult made_ = GET(name)(__VA_ARGS__);                                                                       \
        for (int try_ = 0; made_ == CUDA_ERROR_OUT_OF_MEMORY && try_ < 60; try_++) {                                   \
            usleep(50000);                                                                                             \
            made_ = GET(name)(__VA_ARGS__);                                                                            \
        }                                                                                                              \
        if (made_)                                                                                                     \
            stop("an object cannot be made: " #name " gave %d", (int)made_);                                           \
    } while (0)

enum { BYTES = 65536, ALLOCATIONS = 64 };

struct objects {
    CUstream stream;
    CUevent event, complete;
    CUcontext context;
    CUmodule module;
    CUfunction function;
    CUlibrary library;
    CUkernel kernel;
    CUgraph graph;
    CUgraphNode kernel_node, memset_node, memcpy_node, child_node, empty_node;
    CUgraphExec exec;
    CUmemoryPool pool;
    CUdeviceptr device, pool_memory, reserved;
    CUmemGenericAllocationHandle memory;
    void *pinned;
};

static struct objects good, gone; /* `gone`: the handles of objects that were destroyed */
static bool none;
static unsigned char *pageable;
static void *allocated[ALLOCATIONS];
static int allocations;

static void *given(size_t size) {
    if (allocations == ALLOCATIONS)
        stop("too many buffers in one call");
    void *memory;
    if (posix_memalign(&memory, 64, size + 1)) /* a tensor map has to lie so */
        stop("no memory");
    memset(memory, 0, size + 1);
    return allocated[allocations++] = memory;
}

void arguments_free(void) {
    while (allocations)
        free(allocated[--allocations]);
}

static void make_graph(struct objects *o) {
    static uint64_t count = 16;
    static uint32_t value = 5;
    static void *params[3];
    CUgraph child;
    CUDA_KERNEL_NODE_PARAMS launch = {.func = o->function,
                                      .gridDimX = 1,
                                      .gridDimY = 1,
                                      .gridDimZ = 1,
                                      .blockDimX = 32,
                                      .blockDimY = 1,
                                      .blockDimZ = 1,
                                      .kernelParams = params};
    CUDA_MEMSET_NODE_PARAMS set = {.dst = o->device, .elementSize = 1, .width = 64, .height = 1};
    CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = o->device,
                          .dstDevice = o->device + 4096,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcPitch = 64,
                          .dstPitch = 64,
                          .srcHeight = 1,
                          .dstHeight = 1,
                          .WidthInBytes = 64,
                          .Height = 1,
                          .Depth = 1};
    params[0] = &o->device, params[1] = &value, params[2] = &count;
    MAKE(cuGraphCreate, &o->graph, 0);
    MAKE(cuGraphAddEmptyNode, &o->empty_node, o->graph, NULL, 0);
    MAKE(cuGraphAddKernelNode_v2, &o->kernel_node, o->graph, &o->empty_node, 1, &launch);
    MAKE(cuGraphAddMemsetNode, &o->memset_node, o->graph, &o->kernel_node, 1, &set, o->context);
    MAKE(cuGraphAddMemcpyNode, &o->memcpy_node, o->graph, &o->memset_node, 1, &copy, o->context);
    MAKE(cuGraphCreate, &child, 0);
    MAKE(cuGraphAddEmptyNode, &(CUgraphNode){0}, child, NULL, 0);
    MAKE(cuGraphAddChildGraphNode, &o->child_node, o->graph, &o->memcpy_node, 1, child);
    MAKE(cuGraphDestroy, child);
    MAKE(cuGraphInstantiateWithFlags, &o->exec, o->graph, 0);
}

static void make(struct objects *o, const char *kernels_ptx, bool images) {
    CUmemAllocationProp what = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemPoolProps pool = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = what.location};
    /* Loading is dear, so images stay from case to case: after a case that may have unloaded one comes a new process. */
    *o = (struct objects){.module = o->module, .function = o->function, .library = o->library, .kernel = o->kernel};
    MAKE(cuCtxGetCurrent, &o->context);
    MAKE(cuStreamCreate, &o->stream, CU_STREAM_NON_BLOCKING);
    MAKE(cuEventCreate, &o->event, 0);
    MAKE(cuEventRecord, o->event, o->stream);
    if (images && !o->module) {
        MAKE(cuModuleLoadData, &o->module, kernels_ptx);
        MAKE(cuModuleGetFunction, &o->function, o->module, "fill_u32");
        MAKE(cuLibraryLoadData, &o->library, kernels_ptx, NULL, NULL, 0, NULL, NULL, 0);
        MAKE(cuLibraryGetKernel, &o->kernel, o->library, "fill_u32");
    }
    MAKE(cuMemAlloc_v2, &o->device, BYTES);
    MAKE(cuMemsetD8_v2, o->device, 0, BYTES);
    MAKE(cuMemHostAlloc, &o->pinned, BYTES, 0);
    MAKE(cuMemPoolCreate, &o->pool, &pool);
    MAKE(cuMemAllocAsync, &o->pool_memory, BYTES, o->stream);
    MAKE(cuMemCreate, &o->memory, 2 << 20, &what, 0);
    MAKE(cuMemAddressReserve, &o->reserved, 2 << 20, 0, 0, 0);
    make_graph(o);
    MAKE(cuStreamSynchronize, o->stream);
    MAKE(cuCtxSynchronize);
}

/* A call may have destroyed some: that is no error here. */
static void end(const struct objects *o) {
    GET(cuStreamSynchronize)(o->stream);
    GET(cuGraphExecDestroy)(o->exec);
    GET(cuGraphDestroy)(o->graph);
    GET(cuMemFreeAsync)(o->pool_memory, NULL);
    GET(cuMemPoolDestroy)(o->pool);
    GET(cuMemAddressFree)(o->reserved, 2 << 20);
    GET(cuMemRelease)(o->memory);
    GET(cuMemFreeHost)(o->pinned);
    GET(cuMemFree_v2)(o->device);
    GET(cuEventDestroy_v2)(o->event);
    GET(cuStreamDestroy_v2)(o->stream);
}

void objects_make(const char *kernels_ptx, const char *line) {
    bool images = strstr(line, "D:module") || strstr(line, "D:function") || strstr(line, "D:library") ||
                  strstr(line, "D:kernel ") || strstr(line, "D:kernel;") || strstr(line, "D:kernel)");
    if (!pageable && posix_memalign((void **)&pageable, 4096, BYTES))
        stop("no memory");
    memset(pageable, 0, BYTES);
    make(&good, kernels_ptx, true);
    if (!strstr(line, "D:"))
        return;
    /* After the good ones, so that none of these takes the place of one that is gone. */
    gone = (struct objects){.function = good.function};
    make(&gone, kernels_ptx, images);
    end(&gone);
    if (images) {
        MAKE(cuLibraryUnload, gone.library);
        MAKE(cuModuleUnload, gone.module);
    }
}

void objects_end(void) { end(&good); }

void objects_none(void) {
    none = true;
    if (posix_memalign((void **)&pageable, 4096, BYTES))
        stop("no memory");
    memset(pageable, 0, BYTES);
}

CUstream object_stream(void) { return good.stream; }

static void host_function(void *user) { (void)user; }
static void stream_callback(CUstream stream, CUresult status, void *user) { (void)stream, (void)status, (void)user; }
static size_t shared_memory_of(int block) {
    (void)block;
    return 0;
}

static uint64_t handle(const struct objects *o, const char *kind) {
    const struct {
        const char *name;
        uint64_t value;
    } all[] = {{"stream", (uint64_t)(uintptr_t)o->stream},
               {"event", (uint64_t)(uintptr_t)o->event},
               {"context", (uint64_t)(uintptr_t)o->context},
               {"module", (uint64_t)(uintptr_t)o->module},
               {"function", (uint64_t)(uintptr_t)o->function},
               {"library", (uint64_t)(uintptr_t)o->library},
               {"kernel", (uint64_t)(uintptr_t)o->kernel},
               {"graph", (uint64_t)(uintptr_t)o->graph},
               {"kernel_node", (uint64_t)(uintptr_t)o->kernel_node},
               {"memset_node", (uint64_t)(uintptr_t)o->memset_node},
               {"memcpy_node", (uint64_t)(uintptr_t)o->memcpy_node},
               {"child_node", (uint64_t)(uintptr_t)o->child_node},
               {"empty_node", (uint64_t)(uintptr_t)o->empty_node},
               {"exec", (uint64_t)(uintptr_t)o->exec},
               {"pool", (uint64_t)(uintptr_t)o->pool},
               {"memory", o->memory},
               {"device", o->device},
               {"pool_memory", o->pool_memory},
               {"reserved", o->reserved},
               {"pinned", (uint64_t)(uintptr_t)o->pinned}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, kind))
            return none ? (uint64_t)(uintptr_t)pageable : all[i].value;
    stop("there is no object %s", kind);
}

static uint64_t function_or_memory(const char *name) {
    static uint64_t count = 16;
    static uint32_t value = 5;
    static void *params[3];
    if (!strcmp(name, "host"))
        return (uint64_t)(uintptr_t)pageable;
    if (!strcmp(name, "host_function"))
        return (uint64_t)(uintptr_t)host_function;
    if (!strcmp(name, "stream_callback"))
        return (uint64_t)(uintptr_t)stream_callback;
    if (!strcmp(name, "shared_memory"))
        return (uint64_t)(uintptr_t)shared_memory_of;
    if (!strcmp(name, "params")) {
        params[0] = &good.device, params[1] = &value, params[2] = &count;
        return (uint64_t)(uintptr_t)params;
    }
    stop("there is no %s", name);
}

static uint64_t structure(const char *word, struct arguments *arguments) {
    char copy[4096], *rest = NULL, *part;
    snprintf(copy, sizeof copy, "%s", word);
    char *fields = strchr(copy, '(');
    if (!fields || copy[strlen(copy) - 1] != ')')
        stop("no struct: %s", word);
    *fields++ = 0;
    fields[strlen(fields) - 1] = 0;
    unsigned char *bytes = given((size_t)atol(copy));
    for (part = strtok_r(fields, ";", &rest); part; part = strtok_r(NULL, ";", &rest)) {
        unsigned offset, width;
        char *value = strchr(part, '=');
        if (!value || sscanf(part, "%u.%u", &offset, &width) != 2)
            stop("no field: %s", part);
        uint64_t number = argument_of(value + 1, arguments);
        memcpy(bytes + offset, &number, width);
    }
    return (uint64_t)(uintptr_t)bytes;
}

uint64_t argument_of(const char *word, struct arguments *arguments) {
    const char *rest = word + 2, *plus = strchr(word, '+');
    char name[64];
    uint64_t offset = plus ? strtoull(plus + 1, NULL, 0) : 0;
    snprintf(name, sizeof name, "%.*s", plus ? (int)(plus - rest) : 60, strlen(word) > 2 ? rest : "");
    switch (word[0]) {
    case 'H':
        return handle(&good, name) + offset;
    case 'D':
        return handle(&gone, name) + offset;
    case 'M':
        return function_or_memory(name) + offset;
    case 'T': {
        char *text = given(strlen(rest) + 1);
        strcpy(text, rest);
        return (uint64_t)(uintptr_t)text;
    }
    case 'S':
        return structure(rest, arguments);
    case 'O': {
        struct output *output = &arguments->outputs[arguments->output_count++];
        output->what = word[1];
        output->size = (size_t)atol(word + 2);
        output->bytes = given(output->size + 64);
        memset(output->bytes, 0xa5, output->size + 64);
        if (output->what == 'q') { /* room for four, or a value of two */
            memset(output->bytes, 0, output->size);
            output->bytes[0] = output->size == 8 ? 4 : 1;
        }
        return (uint64_t)(uintptr_t)output->bytes;
    }
    default:
        return strtoull(word, NULL, 0);
    }
}
