/*
 * Launching by parts, as it was before CUDA 4: a function keeps a block shape, shared memory and bytes of parameters, and a
 * launch takes what is there. All of that stays here, and goes out as one ordinary launch.
 *
 * Any thread; the parts of a function are guarded by its image's lock. Driver 580.159.04 looks at the current context, then
 * at the function, then at the rest. Bytes may be set behind the parameters, where they mean nothing. A launch runs with a
 * size below that of the parameters, and gives 701 with one above. To begin with a function has one thread and zeros; shapes and
 * sizes are bounded as a launch bounds them. Not asked: below the parameters' size a launch takes the bytes that were set before.
 */
#include "tpc_code.h"
#include "tpc_stream.h"

#include <stdlib.h>

struct tpc_parts {
    unsigned int block[3], shared_bytes, size;
    unsigned char bytes[]; /* as many as the kernel takes */
};

/* The parts of a function, made at the first look, with the lock held that guards them. */
static CUresult open_parts(CUfunction function, struct tpc_kernel **kernel) {
    TPC_CONTEXT(context);
    *kernel = tpc_kernel_of((uint64_t)(uintptr_t)function);
    if (!*kernel) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    TPC_TRY(tpc_kernel_describe(*kernel));
    tp_lock_take(tpc_image_lock((*kernel)->image));
    struct tpc_parts **parts = &(*kernel)->parts;
    if (!*parts) {
        *parts = calloc(1, sizeof **parts + (*kernel)->parameter_bytes);
        if (!*parts) {
            tp_lock_drop(tpc_image_lock((*kernel)->image));
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        (*parts)->block[0] = (*parts)->block[1] = (*parts)->block[2] = 1;
    }
    return CUDA_SUCCESS;
}

static CUresult close_parts(struct tpc_kernel *kernel, CUresult result) {
    tp_lock_drop(tpc_image_lock(kernel->image));
    return result;
}

static const int *limits_here(void) { return tpc_devices[tpc_current()->device].what.attributes; }

/* What no launch could take is refused here. */
CUresult tpc_cuFuncSetBlockShape(CUfunction hfunc, int x, int y, int z) {
    struct tpc_kernel *kernel;
    TPC_TRY(open_parts(hfunc, &kernel));
    const int *limit = limits_here();
    if (x < 1 || y < 1 || z < 1 || x > limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X] ||
        y > limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y] || z > limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z] ||
        (uint64_t)x * (uint64_t)y * (uint64_t)z > (uint64_t)limit[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK]) {
        return close_parts(kernel, CUDA_ERROR_INVALID_VALUE);
    }
    unsigned int *block = kernel->parts->block;
    block[0] = (unsigned)x, block[1] = (unsigned)y, block[2] = (unsigned)z;
    return close_parts(kernel, CUDA_SUCCESS);
}

CUresult tpc_cuFuncSetSharedSize(CUfunction hfunc, unsigned int bytes) {
    struct tpc_kernel *kernel;
    TPC_TRY(open_parts(hfunc, &kernel));
    if (bytes > (unsigned)limits_here()[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN]) {
        return close_parts(kernel, CUDA_ERROR_INVALID_VALUE);
    }
    kernel->parts->shared_bytes = bytes;
    return close_parts(kernel, CUDA_SUCCESS);
}

CUresult tpc_cuParamSetSize(CUfunction hfunc, unsigned int numbytes) {
    struct tpc_kernel *kernel;
    TPC_TRY(open_parts(hfunc, &kernel));
    /* Rounded up to words in 32 bits, so that the last three numbers are small ones again (580.159.04, measured). */
    if (((numbytes + 3) & ~3u) > TPC_BLOCK_LIMIT) {
        return close_parts(kernel, CUDA_ERROR_INVALID_VALUE);
    }
    kernel->parts->size = numbytes;
    return close_parts(kernel, CUDA_SUCCESS);
}

CUresult tpc_cuParamSetv(CUfunction hfunc, int offset, void *ptr, unsigned int numbytes) {
    struct tpc_kernel *kernel;
    TPC_TRY(open_parts(hfunc, &kernel));
    if (!ptr || offset < 0) { /* the driver crashes at an offset below 0 */
        return close_parts(kernel, CUDA_ERROR_INVALID_VALUE);
    }
    uint32_t at = (uint32_t)offset, room = at < kernel->parameter_bytes ? kernel->parameter_bytes - at : 0;
    if (room) {
        memcpy(kernel->parts->bytes + at, ptr, numbytes < room ? numbytes : room);
    }
    return close_parts(kernel, CUDA_SUCCESS);
}

CUresult tpc_cuLaunchGridAsync(CUfunction f, int grid_width, int grid_height, CUstream hStream) {
    struct tpc_kernel *kernel;
    unsigned char bytes[TPC_BLOCK_LIMIT];
    TPC_CONTEXT(context);
    TPC_CAPTURE_UNSAFE("cuLaunchGridAsync");
    TPC_TRY(open_parts(f, &kernel));
    const struct tpc_parts parts = *kernel->parts;
    size_t size = kernel->parameter_bytes;
    if (size <= sizeof bytes) { /* else the launch refuses them */
        memcpy(bytes, kernel->parts->bytes, size);
    }
    close_parts(kernel, CUDA_SUCCESS);
    if (grid_width < 1 || grid_height < 1) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (parts.size > size) {
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    }
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, bytes, CU_LAUNCH_PARAM_BUFFER_SIZE, &size, CU_LAUNCH_PARAM_END};
    return tpc_cuLaunchKernel(f, (unsigned)grid_width, (unsigned)grid_height, 1, parts.block[0], parts.block[1],
                              parts.block[2], parts.shared_bytes, hStream, NULL, extra);
}
