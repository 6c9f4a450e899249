// cuFuncSetBlockShape, cuParamSet*, cuLaunch*: launching by parts, as before CUDA 4.
//
// A function keeps a block shape, shared memory and bytes of parameters, and a launch takes what is there. Bytes may lie
// behind the parameters, a smaller size runs, a larger one gives 701 at the launch (580.159.04, measured). Not asked of it:
// what is there to begin with (here one thread and zeros), and where between one and far too much the limits lie.
// Under sim.lock.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

struct sim_parts {
    unsigned block[3], shared, size;
    unsigned char bytes[]; // entry->param_bytes
};

// With sim.lock held on success.
static CUresult open_parts(sim_context_t *context, CUfunction handle, sim_function_t **function) {
    int *attributes;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_function_resolve(context, handle, function, &attributes);
    if (result == CUDA_SUCCESS && !(*function)->parts) {
        struct sim_parts *parts = calloc(1, sizeof *parts + (*function)->entry->param_bytes);
        result = parts ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        if (parts)
            parts->block[0] = parts->block[1] = parts->block[2] = 1;
        (*function)->parts = parts;
    }
    if (result != CUDA_SUCCESS)
        pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuFuncSetBlockShape(CUfunction hfunc, int x, int y, int z) {
    SIM_ENTER_CONTEXT(context);
    sim_function_t *function;
    CUresult result = open_parts(context, hfunc, &function);
    if (result != CUDA_SUCCESS)
        return result;
    const int *device = sim_attributes_h200;
    if (x < 1 || y < 1 || z < 1 || x > device[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X] ||
        y > device[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y] || z > device[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z] ||
        (uint64_t)x * (uint64_t)y * (uint64_t)z > (uint64_t)device[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK]) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else {
        const unsigned block[] = {(unsigned)x, (unsigned)y, (unsigned)z};
        memcpy(function->parts->block, block, sizeof block);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuFuncSetSharedSize(CUfunction hfunc, unsigned int bytes) {
    SIM_ENTER_CONTEXT(context);
    sim_function_t *function;
    CUresult result = open_parts(context, hfunc, &function);
    if (result != CUDA_SUCCESS)
        return result;
    if (bytes > (unsigned)sim_attributes_h200[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN])
        result = CUDA_ERROR_INVALID_VALUE;
    else
        function->parts->shared = bytes;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuParamSetSize(CUfunction hfunc, unsigned int numbytes) {
    SIM_ENTER_CONTEXT(context);
    sim_function_t *function;
    CUresult result = open_parts(context, hfunc, &function);
    if (result != CUDA_SUCCESS)
        return result;
    // Rounded up to words in 32 bits, so that the last three numbers are small ones again (580.159.04, measured).
    if (((numbytes + 3) & ~3u) > SIM_MAX_PARAM_BYTES)
        result = CUDA_ERROR_INVALID_VALUE;
    else
        function->parts->size = numbytes;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuParamSetv(CUfunction hfunc, int offset, void *ptr, unsigned int numbytes) {
    SIM_ENTER_CONTEXT(context);
    sim_function_t *function;
    CUresult result = open_parts(context, hfunc, &function);
    if (result != CUDA_SUCCESS)
        return result;
    unsigned most = function->entry->param_bytes;
    if (!ptr || offset < 0)
        result = CUDA_ERROR_INVALID_VALUE;
    else if ((unsigned)offset < most)
        memcpy(function->parts->bytes + offset, ptr, numbytes < most - offset ? numbytes : most - offset);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuParamSeti(CUfunction hfunc, int offset, unsigned int value) {
    return cuParamSetv(hfunc, offset, &value, sizeof value);
}

CUresult cuParamSetf(CUfunction hfunc, int offset, float value) {
    return cuParamSetv(hfunc, offset, &value, sizeof value);
}

CUresult cuLaunchGridAsync(CUfunction f, int grid_width, int grid_height, CUstream hStream) {
    SIM_ENTER_CONTEXT(context); // a stream does not lend its own here
    SIM_UNSAFE();
    sim_function_t *function;
    CUresult result = open_parts(context, f, &function);
    if (result != CUDA_SUCCESS)
        return result;
    struct sim_parts parts = *function->parts;
    size_t size = function->entry->param_bytes;
    unsigned char bytes[SIM_MAX_PARAM_BYTES];
    memcpy(bytes, function->parts->bytes, size < sizeof bytes ? size : sizeof bytes);
    pthread_mutex_unlock(&sim.lock);
    if (grid_width < 1 || grid_height < 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (parts.size > size)
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, bytes, CU_LAUNCH_PARAM_BUFFER_SIZE, &size, CU_LAUNCH_PARAM_END};
    return cuLaunchKernel(f, (unsigned)grid_width, (unsigned)grid_height, 1, parts.block[0], parts.block[1],
                          parts.block[2], parts.shared, hStream, NULL, extra);
}

CUresult cuLaunchGrid(CUfunction f, int grid_width, int grid_height) {
    return cuLaunchGridAsync(f, grid_width, grid_height, NULL);
}

CUresult cuLaunch(CUfunction f) { return cuLaunchGridAsync(f, 1, 1, NULL); }
