// Kernel launches: limits, parameters, and the operation that goes into the stream.
//
// Grid, block and shared memory are checked at the call against the device and the function, parameters are copied at
// the call from every pointer that the caller gives, for the size that the image states. A kernel without a C body is
// refused by name, unless TF_SIM_UNKNOWN_KERNELS=skip makes such launches do nothing.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    CUfunction function;
    unsigned grid[3], block[3], shared;
    CUstream stream;
    void **params, **extra;
    unsigned cluster[3];
    bool cooperative;
} request_t;

static CUresult check_shape(const request_t *r, const int *attributes, unsigned multiprocessors) {
    const int *device = sim_attributes_h200;
    for (int i = 0; i < 3; i++) {
        if (!r->grid[i] || !r->block[i])
            return CUDA_ERROR_INVALID_VALUE;
        if (r->grid[i] > (unsigned)device[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X + i])
            return CUDA_ERROR_INVALID_VALUE;
        if (r->block[i] > (unsigned)device[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X + i])
            return CUDA_ERROR_INVALID_VALUE;
        if (r->cluster[i] && r->grid[i] % r->cluster[i])
            return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t threads = (uint64_t)r->block[0] * r->block[1] * r->block[2];
    if (threads > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    if (threads > (unsigned)attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK]) // 580.159.04, asked
        return CUDA_ERROR_INVALID_VALUE;
    // Registers are given out to warps in units of 256.
    uint64_t warps = (threads + 31) / 32,
             per_warp = ((uint64_t)attributes[CU_FUNC_ATTRIBUTE_NUM_REGS] * 32 + 255) & ~255ull;
    if (warps * per_warp > (uint64_t)device[CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK])
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (r->shared > (unsigned)attributes[CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES])
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t cluster = (uint64_t)(r->cluster[0] ? r->cluster[0] : 1) * (r->cluster[1] ? r->cluster[1] : 1) *
                       (r->cluster[2] ? r->cluster[2] : 1);
    unsigned largest = attributes[CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED] ? 16 : 8;
    if (cluster > largest)
        return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    if (r->cooperative) { // all blocks must fit on the GPU at once; 2048 threads and 32 blocks per multiprocessor
        uint64_t per_sm = 2048 / (warps * 32) < 32 ? 2048 / (warps * 32) : 32;
        uint64_t blocks = (uint64_t)r->grid[0] * r->grid[1];
        if (blocks > per_sm * multiprocessors || blocks * r->grid[2] > per_sm * multiprocessors)
            return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    }
    return CUDA_SUCCESS;
}

// The `extra` form: a list of keys and values with a ready-made parameter block.
static CUresult read_extra(void **extra, const unsigned char **block, size_t *size) {
    const size_t *size_pointer = NULL;
    *block = NULL;
    for (unsigned i = 0; i < 16; i += 2) {
        uintptr_t key = (uintptr_t)extra[i];
        if (key == CU_LAUNCH_PARAM_END_AS_INT) {
            if (!*block || !size_pointer)
                return CUDA_ERROR_INVALID_VALUE;
            *size = *size_pointer;
            return CUDA_SUCCESS;
        }
        if (key == CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT)
            *block = extra[i + 1];
        else if (key == CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT)
            size_pointer = extra[i + 1];
        else
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult copy_params(const request_t *r, const sim_entry_t *entry, sim_launch_t *launch) {
    uint32_t needed = entry->param_bytes;
    launch->params = launch->inline_params;
    launch->bytes = needed;
    if (r->params && r->extra)
        return CUDA_ERROR_INVALID_VALUE;
    if (!needed)
        return CUDA_SUCCESS;
    if (!r->params && !r->extra)
        return CUDA_ERROR_INVALID_VALUE;
    const unsigned char *block = NULL;
    size_t size = needed;
    if (r->extra) {
        CUresult result = read_extra(r->extra, &block, &size);
        if (result != CUDA_SUCCESS)
            return result;
        if (!size || size > needed) // 580.159.04, asked
            return size ? CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES : CUDA_ERROR_INVALID_VALUE;
    } else {
        for (unsigned i = 0; i < entry->nparams; i++)
            if (!r->params[i])
                return CUDA_ERROR_INVALID_VALUE;
    }
    if (needed > sizeof launch->inline_params) {
        launch->params = malloc(needed);
        if (!launch->params)
            return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (block) {
        memcpy(launch->params, block, size);
        memset(launch->params + size, 0, needed - size); // what a short buffer leaves out
    } else {
        for (unsigned i = 0; i < entry->nparams; i++)
            memcpy(launch->params + entry->params[i].offset, r->params[i], entry->params[i].size);
    }
    return CUDA_SUCCESS;
}

static bool skip_unknown(void) {
    static atomic_int answer; // 0 not asked yet, 1 no, 2 yes
    int known = atomic_load_explicit(&answer, memory_order_relaxed);
    if (!known) {
        const char *wish = getenv("TF_SIM_UNKNOWN_KERNELS");
        known = wish && !strcmp(wish, "skip") ? 2 : 1;
        atomic_store(&answer, known);
    }
    return known == 2;
}

static CUresult choose_body(const sim_entry_t *entry, const sim_body_t **body) {
    *body = sim_body_find(entry->name);
    bool fits = *body && sim_body_fits(*body, entry);
    if (fits)
        return CUDA_SUCCESS;
    bool other_signature = *body != NULL;
    *body = NULL;
    if (skip_unknown())
        return CUDA_SUCCESS;
    sim_complain(
        other_signature
            ? "kernel %s has other parameters than the simulated one of that name and is not executed"
            : "kernel %s is not one that is simulated; set TF_SIM_UNKNOWN_KERNELS=skip to let such launches do nothing",
        entry->name);
    return CUDA_ERROR_NOT_SUPPORTED;
}

// The operation that a launch is, for a stream or a graph; under sim.lock.
static CUresult prepare(sim_context_t *context, const request_t *r, sim_op_t *op, bool *misshapen) {
    sim_function_t *function;
    int *attributes;
    *op = (sim_op_t){.kind = SIM_OP_LAUNCH};
    CUresult result = sim_function_resolve(context, r->function, &function, &attributes);
    if (result == CUDA_SUCCESS && function->module->context != sim_home(context))
        result = CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS) {
        result = check_shape(r, attributes, sim_multiprocessors(context));
        *misshapen = result != CUDA_SUCCESS;
    }
    if (result == CUDA_SUCCESS)
        result = choose_body(function->entry, &op->u.launch.body);
    if (result == CUDA_SUCCESS)
        result = copy_params(r, function->entry, &op->u.launch);
    if (result != CUDA_SUCCESS)
        return result;
    op->u.launch.threads = (uint64_t)r->grid[0] * r->block[0];
    op->u.launch.entry = function->entry;
    op->u.launch.request = (CUDA_KERNEL_NODE_PARAMS){.func = (CUfunction)(void *)function,
                                                     .gridDimX = r->grid[0],
                                                     .gridDimY = r->grid[1],
                                                     .gridDimZ = r->grid[2],
                                                     .blockDimX = r->block[0],
                                                     .blockDimY = r->block[1],
                                                     .blockDimZ = r->block[2],
                                                     .sharedMemBytes = r->shared,
                                                     .ctx = (CUcontext)(void *)context};
    function->loaded = true;
    return CUDA_SUCCESS;
}

static CUresult launch(sim_context_t *context, const request_t *r) {
    sim_stream_t *stream;
    uint64_t seq;
    sim_op_t op;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, r->stream, &stream);
    // Whichever context is current (580.159.04, measured); that this holds for kernels, too, is assumed.
    bool misshapen = false;
    if (result == CUDA_SUCCESS)
        result = prepare(stream->context, r, &op, &misshapen);
    if (result == CUDA_SUCCESS && stream->capture && r->cooperative && r->extra) { // 580.159.04, asked
        result = CUDA_ERROR_INVALID_VALUE;
        misshapen = true;
    }
    if (misshapen)
        sim_capture_fails(stream, result); // that, and no other refusal (580.159.04, asked)
    if (result == CUDA_SUCCESS)
        result = sim_stream_push(stream, &op, &seq);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult sim_kernel_op(sim_context_t *context, const CUDA_KERNEL_NODE_PARAMS *p, sim_op_t *op) {
    request_t r = {.function = p->func ? p->func : (CUfunction)(void *)p->kern,
                   .grid = {p->gridDimX, p->gridDimY, p->gridDimZ},
                   .block = {p->blockDimX, p->blockDimY, p->blockDimZ},
                   .shared = p->sharedMemBytes,
                   .params = p->kernelParams,
                   .extra = p->extra};
    // A function has its context, and nobody looks at another; what is no function is told first (580.159.04, measured).
    if (sim_handle_is(r.function, SIM_FUNCTION)) {
        sim_context_t *home = ((sim_function_t *)(void *)r.function)->module->context;
        context = context && sim_home(context) == home ? context : home; // a green context stays
    } else if (!sim_handle_is(r.function, SIM_KERNEL)) {
        return CUDA_ERROR_INVALID_HANDLE;
    } else if (p->ctx && !sim_handle_is(p->ctx, SIM_CONTEXT)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    } else if (p->ctx) {
        context = (sim_context_t *)(void *)p->ctx;
    }
    if (!sim_current()) // where the driver crashes
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!context || !context->active)
        return context ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_ERROR_INVALID_CONTEXT;
    bool misshapen;
    return prepare(context, &r, op, &misshapen);
}

CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                        unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                        unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra) {
    SIM_ENTER_STREAM(context, hStream);
    sim_print_show();
    request_t r = {f,
                   {gridDimX, gridDimY, gridDimZ},
                   {blockDimX, blockDimY, blockDimZ},
                   sharedMemBytes,
                   hStream,
                   kernelParams,
                   extra,
                   {0},
                   false};
    return launch(context, &r);
}

CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                   unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                   unsigned int sharedMemBytes, CUstream hStream, void **kernelParams) {
    SIM_ENTER_STREAM(context, hStream);
    request_t r = {f,
                   {gridDimX, gridDimY, gridDimZ},
                   {blockDimX, blockDimY, blockDimZ},
                   sharedMemBytes,
                   hStream,
                   kernelParams,
                   NULL,
                   {0},
                   true};
    return launch(context, &r);
}

CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned numDevices, unsigned flags) {
    SIM_ENTER();
    if (!list || !numDevices || numDevices > (unsigned)sim.ndevices || flags > 3)
        return CUDA_ERROR_INVALID_VALUE;
    if (numDevices > 1)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!list->function || !list->hStream || list->hStream == CU_STREAM_LEGACY || list->hStream == CU_STREAM_PER_THREAD)
        return CUDA_ERROR_INVALID_HANDLE;
    return cuLaunchCooperativeKernel(list->function, list->gridDimX, list->gridDimY, list->gridDimZ, list->blockDimX,
                                     list->blockDimY, list->blockDimZ, list->sharedMemBytes, list->hStream,
                                     list->kernelParams);
}

// Maps are not encoded here: their first word stands for the address.
CUresult cuTensorMapReplaceAddress(CUtensorMap *tensorMap, void *globalAddress) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    uint64_t address = (uint64_t)(uintptr_t)globalAddress;
    if (!tensorMap || !address || address % 16 || address >> 57)
        return CUDA_ERROR_INVALID_VALUE;
    tensorMap->opaque[0] = address;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra) {
    SIM_ENTER_STREAM(context, config ? config->hStream : NULL);
    if (!config || (config->numAttrs && !config->attrs) || config->numAttrs > 64)
        return CUDA_ERROR_INVALID_VALUE;
    request_t r = {f,
                   {config->gridDimX, config->gridDimY, config->gridDimZ},
                   {config->blockDimX, config->blockDimY, config->blockDimZ},
                   config->sharedMemBytes,
                   config->hStream,
                   kernelParams,
                   extra,
                   {0},
                   false};
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const CUlaunchAttribute *attribute = &config->attrs[i];
        switch (attribute->id) {
        case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
            r.cooperative = attribute->value.cooperative != 0;
            break;
        case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
            r.cluster[0] = attribute->value.clusterDim.x;
            r.cluster[1] = attribute->value.clusterDim.y;
            r.cluster[2] = attribute->value.clusterDim.z;
            if (!r.cluster[0] || !r.cluster[1] || !r.cluster[2])
                return CUDA_ERROR_INVALID_VALUE;
            break;
        case CU_LAUNCH_ATTRIBUTE_IGNORE: // hints, and what only changes when work may overlap
        case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
        case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
        case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        case CU_LAUNCH_ATTRIBUTE_PRIORITY:
        case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
        case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
        case CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION:
        case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        case CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING:
            break;
        case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
        case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
        case CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE:
            return CUDA_ERROR_NOT_SUPPORTED;
        default:
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    return launch(context, &r);
}
