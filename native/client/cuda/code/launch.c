/*
 * Launches and occupancy. The path of most calls that a program makes: no lock but the stream's, no allocation, no system call.
 *
 * Any thread. The commonest mistakes are refused here with the driver's own codes, from what is known of device and kernel, so
 * that they are exact and immediate; everything else is posted and a failure is reported at the next call that may report one.
 */
#include "tpc_image.h"
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpg_client_structs.h"
#include "tpg_cuda_send.h"

/* Against the kernel's own limits. Before they stop a launch they are asked for anew: a library may have changed them through
 * another handle of the same code. Which error the driver has for it depends on more than is known here (registers, for one):
 * *ask says that the launch must wait for its answer. */
static CUresult check_attributes_of(struct tpc_kernel *kernel, uint64_t threads, unsigned int shared_bytes, bool *ask) {
    for (int attempt = 0; attempt < 2; attempt++) {
        CUresult result;
        const _Atomic int *a = tpc_attributes(kernel, "cuLaunchKernel", &result);
        if (!a) {
            return result;
        }
        int most = atomic_load_explicit(&a[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK], memory_order_relaxed);
        int dynamic = atomic_load_explicit(&a[CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES], memory_order_relaxed);
        if (TP_LIKELY(threads <= (unsigned)most && shared_bytes <= (unsigned)dynamic)) {
            return CUDA_SUCCESS;
        }
        atomic_store(&tpc_attributes_of(kernel)->known, false);
    }
    *ask = true;
    return CUDA_SUCCESS;
}

static CUresult check_shape(const struct tpc_context *context, struct tpc_kernel *kernel, const struct tpg_shape *s,
                            bool *ask) {
    const int *limit = tpc_devices[context->device].what.attributes;
    if (!s->grid_x || !s->grid_y || !s->grid_z || !s->block_x || !s->block_y || !s->block_z) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (s->grid_x > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X] ||
        s->grid_y > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y] ||
        s->grid_z > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z] ||
        s->block_x > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X] ||
        s->block_y > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y] ||
        s->block_z > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z]) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t threads = (uint64_t)s->block_x * s->block_y * s->block_z;
    if (threads > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK] ||
        s->shared_bytes > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN]) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    /* 256 threads run every kernel that was compiled without a launch bound below that; only larger blocks, and shared memory
     * above what needs no opting in, are worth asking about once. */
    const struct tpc_attributes *attributes = tpc_attributes_of(kernel);
    bool known = attributes && atomic_load_explicit(&attributes->known, memory_order_acquire);
    if (known || threads > 256 || s->shared_bytes > (unsigned)limit[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK]) {
        return check_attributes_of(kernel, threads, s->shared_bytes, ask);
    }
    return CUDA_SUCCESS;
}

/* Where the parameter block comes from: the caller's buffer (`extra`) if it is whole, or gathered into `block`. */
static CUresult collect(struct tpc_kernel *kernel, void **params, void **extra, unsigned char *block,
                        const void **source) {
    CUresult described = tpc_kernel_describe(kernel);
    *source = block;
    if (TP_UNLIKELY(described != CUDA_SUCCESS)) {
        return described;
    }
    const struct tpc_parameter *layout = atomic_load_explicit(&kernel->layout, memory_order_relaxed);
    if (!kernel->parameter_bytes) {
        return CUDA_SUCCESS;
    }
    if (kernel->parameter_bytes > TPC_BLOCK_LIMIT || (params && extra) || (!params && !extra)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (params) {
        for (uint32_t i = 0; i < kernel->parameters; i++) {
            const struct tpc_parameter *p = &layout[i];
            if (p->size == 8) {
                memcpy(block + p->offset, params[i], 8);
            } else if (p->size == 4) {
                memcpy(block + p->offset, params[i], 4);
            } else {
                memcpy(block + p->offset, params[i], p->size);
            }
        }
        return CUDA_SUCCESS;
    }
    const void *buffer = NULL;
    size_t size = 0;
    for (int i = 0; i < 8 && extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
        if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER) {
            buffer = extra[i + 1];
        } else if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE) {
            size = *(const size_t *)extra[i + 1];
        } else {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    if (!buffer || !size || size > kernel->parameter_bytes) { /* 580.159.04, asked */
        return buffer && size ? CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES : CUDA_ERROR_INVALID_VALUE;
    }
    if (size == kernel->parameter_bytes) {
        *source = buffer;
        return CUDA_SUCCESS;
    }
    memcpy(block, buffer, size); /* NCCL gives its kernels, of 4 KiB of parameters, as much as they are to read */
    memset(block + size, 0, kernel->parameter_bytes - size);
    return CUDA_SUCCESS;
}

/* Pinned memory by its host address becomes what the kernel reaches (memory/reach.c), in `block`. Only whole parameters are
 * changed: a struct may hold addresses for the host, and what lies between its fields is whatever was in memory before. */
static CUresult reach(const char *name, const struct tpc_kernel *kernel, unsigned char *block, const void **source) {
    for (uint32_t i = 0; i < kernel->parameters; i++) {
        const struct tpc_parameter *p = &kernel->layout[i];
        uint64_t value;
        CUdeviceptr there;
        if (p->size != sizeof value) {
            TPC_TRY(tpc_reach_hidden((const unsigned char *)*source + p->offset, p->size));
            continue;
        }
        memcpy(&value, (const unsigned char *)*source + p->offset, sizeof value);
        TPC_TRY(tpc_reach(name, i, value, &there));
        if (!there) {
            continue;
        }
        if (*source != block) { /* the program's own buffer */
            memcpy(block, *source, kernel->parameter_bytes);
            *source = block;
        }
        memcpy(block + p->offset, &there, sizeof there);
    }
    return CUDA_SUCCESS;
}

static CUresult gather(const char *name, struct tpc_kernel *kernel, void **params, void **extra, unsigned char *block,
                       const void **source) {
    CUresult result = collect(kernel, params, extra, block, source);
    if (result == CUDA_SUCCESS && *source != block && tpc_is_device_address((uint64_t)(uintptr_t)*source)) {
        memcpy(block, *source, kernel->parameter_bytes); /* managed memory is touched here, and not under a lock */
        *source = block;
    }
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_unreached, memory_order_relaxed)) && result == CUDA_SUCCESS) {
        result = reach(name, kernel, block, source);
    }
    return result;
}

CUresult tpc_kernel_shape(const struct tpc_context *context, struct tpc_kernel *kernel,
                          const CUDA_KERNEL_NODE_PARAMS *p) {
    struct tpg_shape shape = {p->gridDimX,  p->gridDimY,  p->gridDimZ,      p->blockDimX,
                              p->blockDimY, p->blockDimZ, p->sharedMemBytes};
    bool ask = false; /* the parameters of an executable graph wait for nobody: they are refused here */
    CUresult result = check_shape(context, kernel, &shape, &ask);
    return result == CUDA_SUCCESS && ask ? CUDA_ERROR_INVALID_VALUE : result;
}

CUresult tpc_kernel_block(struct tpc_kernel *kernel, const CUDA_KERNEL_NODE_PARAMS *p, unsigned char *block,
                          const void **source) {
    return gather("cuGraphKernelNode", kernel, p->kernelParams, p->extra, block, source);
}

/* A function runs in streams of its own context only; a kernel has one in each. */
static bool fits_stream(const struct tpc_kernel *kernel, CUstream stream) {
    const struct tpc_context *own = kernel->device < 0 ? NULL
                                    : kernel->context  ? kernel->context
                                                       : kernel->image->context;
    return !own || own->home == tpc_stream_home(stream);
}

/* A launch of a shape that there cannot be ends the capture of its stream, as no other refusal does (580.159.04, asked). */
static CUresult misshapen(const char *name, CUstream stream, CUresult why) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (atomic_load_explicit(&tpc_captures, memory_order_relaxed) &&
        tpc_capture_status(stream, &status) == CUDA_SUCCESS && status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        (void)tpc_capture_break(name, stream); /* whatever comes of it, the launch is refused for its shape */
    }
    return why;
}

/* Everything before the frame is sent; on success *source is the parameter block, and *ask whether to wait for the result. */
static CUresult prepare(struct tpc_kernel *kernel, const struct tpg_shape *shape, CUstream stream, void **params,
                        void **extra, unsigned char *block, const void **source, bool *ask) {
    TPC_CONTEXT(context);
    if (TP_UNLIKELY(!kernel)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    TPC_CHECK_HANDLE(STREAM, stream, true);
    if (TP_UNLIKELY(tpc_several_contexts()) && !fits_stream(kernel, stream)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *ask = false;
    CUresult result = check_shape(context, kernel, shape, ask);
    if (TP_UNLIKELY(result != CUDA_SUCCESS)) {
        return misshapen("cuLaunchKernel", stream, result);
    }
    result = gather("cuLaunchKernel", kernel, params, extra, block, source);
    TPC_TRY(result);
    tpc_twins_push();
    return TPC_MANAGED_LEAVE();
}

/* A grid that must run all at once is refused when it cannot; the occupancy is asked for once for each block size. */
static CUresult check_cooperative(struct tpc_kernel *kernel, const struct tpg_shape *s) {
    const struct tpc_context *context = tpc_current();
    uint64_t blocks = (uint64_t)s->grid_x * s->grid_y * s->grid_z;
    int resident = 0;
    TPC_TRY(tpc_cuOccupancyMaxActiveBlocksPerMultiprocessor(&resident, (CUfunction)(uintptr_t)kernel->handle,
                                                            (int)(s->block_x * s->block_y * s->block_z),
                                                            s->shared_bytes));
    int processors = tpc_devices[context->device].what.attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
    return blocks > (uint64_t)resident * (uint64_t)processors ? CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE : CUDA_SUCCESS;
}

/* In the first launch the driver may wait for room. */
static bool may_wait(struct tpc_kernel *kernel) {
    return TP_UNLIKELY(atomic_load_explicit(&tpc_words, memory_order_relaxed)) &&
           !atomic_exchange_explicit(&kernel->launched, true, memory_order_relaxed);
}

CUresult tpc_launch(const char *name, CUfunction f, const struct tpg_shape *shape, CUstream stream, void **params,
                    void **extra, unsigned int cooperative) {
    struct tpc_kernel *kernel = tpc_kernel_of((uint64_t)(uintptr_t)f);
    unsigned char block[TPC_BLOCK_LIMIT];
    const void *source;
    bool ask;
    CUresult result = prepare(kernel, shape, stream, params, extra, block, &source, &ask);
    if (TP_UNLIKELY(cooperative) && result == CUDA_SUCCESS && !ask) {
        result = check_cooperative(kernel, shape);
        result = result ? misshapen(name, stream, result) : result;
    }
    TPC_TRY(result);
    struct tpg_launch_in in = {.function = kernel->handle,
                               .stream = (uint64_t)(uintptr_t)stream,
                               .shape = *shape,
                               .cooperative = cooperative,
                               .params = source,
                               .params_size = kernel->parameter_bytes};
    if (TP_UNLIKELY(ask | may_wait(kernel))) {
        tpc_wait_for_next_post();
    }
    return tpc_post_launch(name, &in);
}

/* On the one device that it may have here: launches that wait for each other on several are what an attribute denies. */
CUresult tpc_cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launchParamsList, unsigned int numDevices,
                                                  unsigned int flags) {
    const CUDA_LAUNCH_PARAMS *p = launchParamsList;
    const unsigned int no_waits = 3; /* for the launches before and behind it on other devices */
    if (!p || !numDevices || numDevices > (unsigned int)tpc_device_count || (flags & ~no_waits)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (numDevices > 1) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    TPC_CHECK_HANDLE(FUNCTION, p->function, false);
    if (!p->hStream || p->hStream == CU_STREAM_LEGACY || p->hStream == CU_STREAM_PER_THREAD) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    return tpc_cuLaunchCooperativeKernel(p->function, p->gridDimX, p->gridDimY, p->gridDimZ, p->blockDimX, p->blockDimY,
                                         p->blockDimZ, p->sharedMemBytes, p->hStream, p->kernelParams);
}

static bool holds_event(const CUlaunchAttribute *attribute) {
    return attribute->id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT ||
           attribute->id == CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT;
}

static bool divides(unsigned int part, unsigned int whole) { return !part || whole % part == 0; }

/* What attributes ask of a grid: whole clusters, all blocks at once. */
static CUresult check_grid(struct tpc_kernel *kernel, const CUlaunchConfig *config, const struct tpg_shape *shape) {
    CUresult result = CUDA_SUCCESS;
    for (unsigned int i = 0; i < config->numAttrs && result == CUDA_SUCCESS; i++) {
        const CUlaunchAttributeValue *value = &config->attrs[i].value;
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION &&
            !(divides(value->clusterDim.x, shape->grid_x) && divides(value->clusterDim.y, shape->grid_y) &&
              divides(value->clusterDim.z, shape->grid_z))) {
            result = CUDA_ERROR_INVALID_CLUSTER_SIZE;
        } else if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && value->cooperative) {
            result = check_cooperative(kernel, shape);
        }
    }
    return result;
}

/* ---- launches with attributes: the first of its kind waits for its result, so that a refusal comes at once ----
 *
 * Whether the driver takes a function with a block size and attributes does not depend on the grid (what does is checked
 * above) or on events and addresses inside attributes. What it took is kept as a hash in a table without chains: a collision
 * costs another waiting launch. */
#define PROVED 1024u
static _Atomic uint64_t proved[PROVED];

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15ull;
    return hash ^ hash >> 29;
}

/* Bytes of an attribute's value that decide; the others of the union may be anything. */
static size_t deciding_bytes(CUlaunchAttributeID id) {
    switch (id) {
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION:
        return 3 * sizeof(unsigned int);
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
    case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
        return 0;
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
        return 2;
    default:
        return sizeof(int);
    }
}

static uint64_t kind_of(const struct tpg_launch_ex_in *in, const CUlaunchConfig *config) {
    uint64_t hash = mix(mix(in->function, (uint64_t)in->shape.block_x << 32 | in->shape.block_y), in->shape.block_z);
    hash = mix(hash, in->shape.shared_bytes);
    for (unsigned int i = 0; i < config->numAttrs; i++) {
        uint32_t words[3] = {0};
        memcpy(words, &config->attrs[i].value, deciding_bytes(config->attrs[i].id));
        hash = mix(mix(hash, (uint64_t)config->attrs[i].id << 32 | words[0]), (uint64_t)words[1] << 32 | words[2]);
    }
    return hash | 1;
}

CUresult tpc_do_cuLaunchKernelEx(CUstream implicit, const CUlaunchConfig *config, CUfunction f, void **kernelParams,
                                 void **extra) {
    struct tpg_shape shape = {config->gridDimX,  config->gridDimY,  config->gridDimZ,      config->blockDimX,
                              config->blockDimY, config->blockDimZ, config->sharedMemBytes};
    CUstream stream = config->hStream ? config->hStream : implicit;
    if (!config->numAttrs) {
        return tpc_launch("cuLaunchKernelEx", f, &shape, stream, kernelParams, extra, 0);
    }
    struct tpc_kernel *kernel = tpc_kernel_of((uint64_t)(uintptr_t)f);
    unsigned char block[TPC_BLOCK_LIMIT];
    const void *source;
    bool ask = false;
    if (!config->attrs) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpc_flat attributes TPC_FLAT = {.size = 0};
    CUresult result = tpg_flatten_CUlaunchAttribute(config->attrs, config->numAttrs, &attributes);
    result = result ? result : prepare(kernel, &shape, stream, kernelParams, extra, block, &source, &ask);
    if (result == CUDA_SUCCESS && !ask) {
        result = check_grid(kernel, config, &shape);
        result = result ? misshapen("cuLaunchKernelEx", stream, result) : result;
    }
    TPC_TRY(result);
    struct tpg_launch_ex_in in = {.function = kernel->handle,
                                  .stream = (uint64_t)(uintptr_t)stream,
                                  .shape = shape,
                                  .attributes = attributes.bytes,
                                  .attributes_size = attributes.size,
                                  .params = source,
                                  .params_size = kernel->parameter_bytes};
    uint64_t kind = kind_of(&in, config);
    _Atomic uint64_t *place = &proved[kind >> 32 & (PROVED - 1)];
    if (TP_LIKELY(atomic_load_explicit(place, memory_order_relaxed) == kind && !ask && !may_wait(kernel))) {
        result = tpc_post_launch_ex("cuLaunchKernelEx", &in);
    } else {
        tpc_wait_for_next_post();
        result = tpc_post_launch_ex("cuLaunchKernelEx", &in);
        if (result == CUDA_SUCCESS) {
            atomic_store_explicit(place, kind, memory_order_relaxed);
        }
    }
    for (unsigned int i = 0; i < config->numAttrs; i++) {
        if (holds_event(&config->attrs[i])) {
            tpc_watch_recorded(config->attrs[i].value.programmaticEvent.event);
        }
    }
    return result;
}

/* ---- occupancy ---- */

/* The largest occupancy over all block sizes, in warps from the largest down, as the documented search does: the first block
 * size that reaches the most resident threads wins. */
CUresult tpc_cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize, CUfunction func,
                                                       CUoccupancyB2DSize blockSizeToDynamicSMemSize,
                                                       size_t dynamicSMemSize, int blockSizeLimit, unsigned int flags) {
    TPC_CONTEXT(context);
    struct tpc_kernel *kernel = tpc_kernel_of((uint64_t)(uintptr_t)func);
    CUresult result;
    if (!minGridSize || !blockSize || blockSizeLimit < 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!kernel) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const int *device = tpc_devices[context->device].what.attributes;
    const _Atomic int *values = tpc_attributes(kernel, "cuOccupancyMaxPotentialBlockSize", &result);
    if (!values) {
        return result;
    }
    const int warp = device[CU_DEVICE_ATTRIBUTE_WARP_SIZE];
    const int resident = device[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR];
    int limit = atomic_load(&values[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK]);
    if (device[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK] < limit) {
        limit = device[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK];
    }
    if (blockSizeLimit && blockSizeLimit < limit) {
        limit = blockSizeLimit;
    }
    int best_threads = 0, best_block = 0, best_blocks = 0;
    for (int aligned = (limit + warp - 1) / warp * warp; aligned > 0; aligned -= warp) {
        int block = aligned < limit ? aligned : limit, blocks = 0;
        size_t shared = blockSizeToDynamicSMemSize ? blockSizeToDynamicSMemSize(block) : dynamicSMemSize;
        TPC_TRY(tpc_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&blocks, func, block, shared, flags));
        if (blocks * block > best_threads) {
            best_threads = blocks * block;
            best_block = block;
            best_blocks = blocks;
        }
        if (best_threads == resident) {
            break;
        }
    }
    *minGridSize = best_blocks * device[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
    *blockSize = best_block;
    return CUDA_SUCCESS;
}
