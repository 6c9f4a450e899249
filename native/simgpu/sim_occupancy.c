// Occupancy: how many blocks of a function a multiprocessor can hold, from the device's published limits.
//
// Pure arithmetic over the function's registers, static shared memory and the launch; the allocation units are those
// of compute capability 9.0 (warps by 4, registers by 256 per warp, shared memory by 128 bytes plus 1 KiB reserved
// per block).
#include "sim.h"

#include <limits.h>

#define WARP 32
#define WARPS_PER_SM 64
#define MULTIPROCESSORS 132
#define LARGEST_BLOCK 1024
#define MOST_ROWS 65535u

static uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

static int blocks_per_sm(const int *attributes, int block_size, size_t dynamic) {
    const int *device = sim_attributes_h200;
    if (block_size > attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK])
        return 0;
    // The sum is one of 32 bits, which may wrap (580.159.04, measured).
    const uint32_t fixed = (uint32_t)attributes[CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES] +
                           (uint32_t)device[CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK];
    const uint32_t shared = fixed + (uint32_t)dynamic;
    if (shared > fixed + (uint32_t)attributes[CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES])
        return 0;
    uint64_t warps = round_up((uint64_t)block_size, WARP) / WARP;
    uint64_t blocks =
        smaller((uint64_t)device[CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR], WARPS_PER_SM / warps);
    uint64_t per_warp = round_up((uint64_t)attributes[CU_FUNC_ATTRIBUTE_NUM_REGS] * WARP, 256);
    if (per_warp) {
        uint64_t warps_by_registers =
            (uint64_t)device[CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR] / per_warp / 4 * 4;
        blocks = smaller(blocks, warps_by_registers / warps);
    }
    if (shared)
        blocks = smaller(blocks, (uint64_t)device[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] /
                                     round_up(shared, 128));
    return (int)blocks;
}

static CUresult copy_attributes(sim_context_t *context, CUfunction func, int *copy) {
    sim_function_t *function;
    int *attributes;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_function_resolve(context, func, &function, &attributes);
    for (int i = 0; result == CUDA_SUCCESS && i < SIM_FUNC_ATTRIBUTES; i++)
        copy[i] = attributes[i];
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult active_blocks(sim_context_t *context, int *numBlocks, CUfunction func, int blockSize, size_t dynamic,
                              unsigned flags) {
    int attributes[SIM_FUNC_ATTRIBUTES];
    if (!numBlocks || flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = copy_attributes(context, func, attributes);
    if (result == CUDA_SUCCESS && blockSize < 1)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *numBlocks = blocks_per_sm(attributes, blockSize, dynamic);
    return result;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, CUfunction func, int blockSize,
                                                     size_t dynamicSMemSize) {
    SIM_ENTER_CONTEXT(context);
    return active_blocks(context, numBlocks, func, blockSize, dynamicSMemSize, 0);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *numBlocks, CUfunction func, int blockSize,
                                                              size_t dynamicSMemSize, unsigned int flags) {
    SIM_ENTER_CONTEXT(context);
    return active_blocks(context, numBlocks, func, blockSize, dynamicSMemSize, flags);
}

CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *dynamicSmemSize, CUfunction func, int numBlocks,
                                                 int blockSize) {
    SIM_ENTER_CONTEXT(context);
    int attributes[SIM_FUNC_ATTRIBUTES];
    const int *device = sim_attributes_h200;
    if (!dynamicSmemSize || numBlocks < 1 || blockSize < 1 || blockSize > LARGEST_BLOCK)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = copy_attributes(context, func, attributes);
    if (result != CUDA_SUCCESS)
        return result;
    if (blocks_per_sm(attributes, blockSize, 0) < numBlocks)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t share =
        (uint64_t)device[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] / (uint64_t)numBlocks / 128 * 128;
    uint64_t fixed = (uint64_t)attributes[CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES],
             reserved = (uint64_t)device[CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK];
    uint64_t highest = (uint64_t)attributes[CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES];
    *dynamicSmemSize = share > fixed + reserved ? smaller(share - fixed - reserved, highest) : 0;
    return CUDA_SUCCESS;
}

static CUresult best_block(sim_context_t *context, int *minGridSize, int *blockSize, CUfunction func,
                           CUoccupancyB2DSize sizer, size_t dynamic, int limit, unsigned flags) {
    int attributes[SIM_FUNC_ATTRIBUTES];
    if (!minGridSize || !blockSize || limit < 0 || flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = copy_attributes(context, func, attributes);
    if (result != CUDA_SUCCESS)
        return result;
    int most = attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK], best_threads = 0;
    if (limit && limit < most)
        most = limit;
    *blockSize = *minGridSize = 0;
    // From the largest block in steps of a warp; the first is the limit itself, which need not be a multiple.
    for (int aligned = (int)round_up((uint64_t)most, WARP); aligned > 0; aligned -= WARP) {
        int size = aligned < most ? aligned : most;
        int blocks = blocks_per_sm(attributes, size, sizer ? sizer(size) : dynamic);
        if (blocks * size <= best_threads)
            continue;
        best_threads = blocks * size;
        *blockSize = size;
        *minGridSize = blocks * MULTIPROCESSORS;
    }
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxPotentialBlockSize(int *minGridSize, int *blockSize, CUfunction func,
                                          CUoccupancyB2DSize blockSizeToDynamicSMemSize, size_t dynamicSMemSize,
                                          int blockSizeLimit) {
    SIM_ENTER_CONTEXT(context);
    return best_block(context, minGridSize, blockSize, func, blockSizeToDynamicSMemSize, dynamicSMemSize,
                      blockSizeLimit, 0);
}

CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize, CUfunction func,
                                                   CUoccupancyB2DSize blockSizeToDynamicSMemSize,
                                                   size_t dynamicSMemSize, int blockSizeLimit, unsigned int flags) {
    SIM_ENTER_CONTEXT(context);
    return best_block(context, minGridSize, blockSize, func, blockSizeToDynamicSMemSize, dynamicSMemSize,
                      blockSizeLimit, flags);
}

#define TOO_LARGE UINT64_MAX // of a cluster, whose product may not fit

// Threads of a block, which may be more than there can be, and blocks of a cluster, 0 where nobody says how many.
static CUresult read_config(const CUlaunchConfig *config, const int *attributes, int *threads, uint64_t *cluster) {
    if ((config->numAttrs && !config->attrs) || config->numAttrs > 64 || config->gridDimX - 1 >= INT_MAX ||
        config->gridDimY - 1 >= MOST_ROWS || config->gridDimZ - 1 >= MOST_ROWS)
        return CUDA_ERROR_INVALID_VALUE;
    if (__builtin_mul_overflow(config->blockDimX, config->blockDimY, threads) ||
        __builtin_mul_overflow(*threads, config->blockDimZ, threads) || !*threads)
        return CUDA_ERROR_INVALID_VALUE;
    *cluster = (uint64_t)attributes[CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH] *
               (uint64_t)attributes[CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT] *
               (uint64_t)attributes[CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH];
    for (unsigned i = 0; i < config->numAttrs; i++) {
        if (config->attrs[i].id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
            continue;
        const CUlaunchAttributeValue *value = &config->attrs[i].value;
        if (value->clusterDim.x > 16 || value->clusterDim.y > 16 || value->clusterDim.z > 16)
            *cluster = TOO_LARGE;
        else
            *cluster = (uint64_t)value->clusterDim.x * value->clusterDim.y * value->clusterDim.z;
        if (!*cluster)
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

// The stream, which lends its context, then the function, then the launch. Sets how many blocks a multiprocessor holds.
static CUresult read_clusters(sim_context_t *context, const int *out, CUfunction func, const CUlaunchConfig *config,
                              int *attributes, uint64_t *blocks, uint64_t *cluster) {
    int threads;
    if (!out || !func || !config)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = context ? CUDA_SUCCESS : sim_lend(config->hStream, &context);
    if (result == CUDA_SUCCESS && config->hStream && !sim_is(config->hStream, SIM_STREAM))
        result = CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS)
        result = copy_attributes(context, func, attributes);
    if (result == CUDA_SUCCESS)
        result = read_config(config, attributes, &threads, cluster);
    if (result == CUDA_SUCCESS)
        *blocks = (uint64_t)blocks_per_sm(attributes, threads, config->sharedMemBytes);
    return result;
}

static unsigned largest_cluster(const int *attributes) {
    return attributes[CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED] ? 16 : 8;
}

CUresult cuOccupancyMaxActiveClusters(int *numClusters, CUfunction func, const CUlaunchConfig *config) {
    SIM_ENTER_WITHOUT(context);
    int attributes[SIM_FUNC_ATTRIBUTES];
    uint64_t blocks, cluster;
    CUresult result = read_clusters(context, numClusters, func, config, attributes, &blocks, &cluster);
    if (result != CUDA_SUCCESS)
        return result;
    // Where any size is allowed, too many blocks are none that fit: cuTENSOR asks for 32 first, and ends at an error (assumed).
    if (cluster > largest_cluster(attributes) && !attributes[CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED])
        return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    const bool fits = cluster && cluster <= largest_cluster(attributes);
    *numClusters = fits ? (int)(blocks * MULTIPROCESSORS / cluster) : 0;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxPotentialClusterSize(int *clusterSize, CUfunction func, const CUlaunchConfig *config) {
    SIM_ENTER_WITHOUT(context);
    int attributes[SIM_FUNC_ATTRIBUTES];
    uint64_t blocks, cluster;
    CUresult result = read_clusters(context, clusterSize, func, config, attributes, &blocks, &cluster);
    if (result == CUDA_SUCCESS && cluster == TOO_LARGE)
        return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    if (result == CUDA_SUCCESS)
        *clusterSize = blocks ? (int)largest_cluster(attributes) : 0;
    return result;
}
