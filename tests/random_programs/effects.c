/*
 * The driver calls that touch memory: copies, sets, kernels, host functions, in every form that the API has for them.
 *
 * Any thread of the program. host_function runs on a thread of the driver.
 */
#include "driver.h"

#include <string.h>

CUdeviceptr address_of(int region) {
    return regions[region].host ? (CUdeviceptr)(uintptr_t)regions[region].host : regions[region].device;
}

CUdeviceptr device_address(const struct operation *op, int region) {
    const struct region *r = &regions[region];
    CUdeviceptr address = r->device;
    if (r->host)
        CALL(cuMemHostGetDevicePointer_v2, &address, r->host, 0);
    return address;
}

void host_function(void *effect) {
    const struct effect *e = effect;
    const uint8_t *from = e->how == HOST_PUT ? NULL : regions[e->from].host + e->from_offset;
    host_apply((enum host_what)e->how, regions[e->to].host + e->to_offset, from, e->value, e->width);
}

void kernel_arguments(const struct operation *op, const struct effect *e, struct arguments *x) {
    *x = (struct arguments){
        .value = (uint32_t)e->value, .count = e->width, .ns = e->value * 1000, .grid = 1, .block = 1};
    switch (e->code) {
    case OP_fill:
        x->kernel = KERNEL_FILL;
        memcpy(x->pointers, (void *[]){&x->to, &x->value, &x->count}, 3 * sizeof(void *));
        break;
    case OP_iota:
        x->kernel = KERNEL_IOTA;
        memcpy(x->pointers, (void *[]){&x->to, &x->count}, 2 * sizeof(void *));
        break;
    case OP_mix:
        x->kernel = KERNEL_MIX;
        memcpy(x->pointers, (void *[]){&x->to, &x->from, &x->value, &x->count}, 4 * sizeof(void *));
        break;
    default:
        x->kernel = KERNEL_SPIN;
        x->pointers[0] = &x->ns;
        return;
    }
    x->to = device_address(op, e->to) + e->to_offset;
    if (e->from >= 0)
        x->from = device_address(op, e->from) + e->from_offset;
    x->block = 32u << e->width % 5;
    x->grid = (unsigned)((e->width + x->block - 1) / x->block);
}

static void place(const struct region *r, size_t offset, CUmemorytype *type, void **host, CUdeviceptr *device) {
    *type = r->host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    if (r->host)
        *host = r->host + offset;
    else
        *device = r->device + offset;
}

CUDA_MEMCPY3D copy_in_three_dimensions(const struct operation *op, const struct effect *e) {
    CUDA_MEMCPY3D copy = {.WidthInBytes = e->width, .Height = e->height, .Depth = 1};
    void *from = NULL;
    (void)op;
    place(&regions[e->to], e->to_offset, &copy.dstMemoryType, &copy.dstHost, &copy.dstDevice);
    place(&regions[e->from], e->from_offset, &copy.srcMemoryType, &from, &copy.srcDevice);
    copy.srcHost = from;
    copy.dstPitch = e->height > 1 ? e->to_pitch : e->width;
    copy.srcPitch = e->height > 1 ? e->from_pitch : e->width;
    copy.dstHeight = copy.srcHeight = e->height;
    return copy;
}

static void copy_rows(const struct operation *op, const struct effect *e) {
    CUDA_MEMCPY3D copy = copy_in_three_dimensions(op, e);
    CUDA_MEMCPY2D flat = {.srcMemoryType = copy.srcMemoryType,
                          .srcHost = copy.srcHost,
                          .srcDevice = copy.srcDevice,
                          .srcPitch = copy.srcPitch,
                          .dstMemoryType = copy.dstMemoryType,
                          .dstHost = copy.dstHost,
                          .dstDevice = copy.dstDevice,
                          .dstPitch = copy.dstPitch,
                          .WidthInBytes = e->width,
                          .Height = e->height};
    switch ((enum copy_how)e->how) {
    case COPY_2D:
        CALL(cuMemcpy2D_v2, &flat);
        break;
    case COPY_2D_UNALIGNED:
        CALL(cuMemcpy2DUnaligned_v2, &flat);
        break;
    case COPY_2D_ASYNC:
        CALL(cuMemcpy2DAsync_v2, &flat, stream_of(e->stream));
        break;
    case COPY_3D:
        CALL(cuMemcpy3D_v2, &copy);
        break;
    case COPY_3D_ASYNC:
        CALL(cuMemcpy3DAsync_v2, &copy, stream_of(e->stream));
        break;
    default:
        fail(op, "there is no such form of a copy");
    }
}

static void copy(const struct operation *op, const struct effect *e) {
    const struct region *to = &regions[e->to], *from = &regions[e->from];
    CUdeviceptr d_to = to->device + e->to_offset, d_from = from->device + e->from_offset;
    uint8_t *h_to = to->host ? to->host + e->to_offset : NULL,
            *h_from = from->host ? from->host + e->from_offset : NULL;
    CUdeviceptr any_to = to->host ? (CUdeviceptr)(uintptr_t)h_to : d_to;
    CUdeviceptr any_from = from->host ? (CUdeviceptr)(uintptr_t)h_from : d_from;
    CUstream stream = stream_of(e->stream);
    bool up = from->host && !to->host, down = to->host && !from->host;
    if (e->how >= COPY_2D)
        copy_rows(op, e);
    else if (e->how == COPY_UVA)
        CALL(cuMemcpy, any_to, any_from, e->width);
    else if (e->how == COPY_UVA_ASYNC)
        CALL(cuMemcpyAsync, any_to, any_from, e->width, stream);
    else if (to->host && from->host)
        fail(op, "there is no such form of a copy");
    else if (e->how == COPY_TYPED && up)
        CALL(cuMemcpyHtoD_v2, d_to, h_from, e->width);
    else if (e->how == COPY_TYPED && down)
        CALL(cuMemcpyDtoH_v2, h_to, d_from, e->width);
    else if (e->how == COPY_TYPED)
        CALL(cuMemcpyDtoD_v2, d_to, d_from, e->width);
    else if (up)
        CALL(cuMemcpyHtoDAsync_v2, d_to, h_from, e->width, stream);
    else if (down)
        CALL(cuMemcpyDtoHAsync_v2, h_to, d_from, e->width, stream);
    else
        CALL(cuMemcpyDtoDAsync_v2, d_to, d_from, e->width, stream);
}

static void set_line(const struct operation *op, const struct effect *e, CUdeviceptr to) {
    unsigned value = (unsigned)e->value;
    CUstream stream = stream_of(e->stream);
    if (e->element == 1 && e->how)
        CALL(cuMemsetD8Async, to, (unsigned char)value, e->width, stream);
    else if (e->element == 1)
        CALL(cuMemsetD8_v2, to, (unsigned char)value, e->width);
    else if (e->element == 2 && e->how)
        CALL(cuMemsetD16Async, to, (unsigned short)value, e->width, stream);
    else if (e->element == 2)
        CALL(cuMemsetD16_v2, to, (unsigned short)value, e->width);
    else if (e->how)
        CALL(cuMemsetD32Async, to, value, e->width, stream);
    else
        CALL(cuMemsetD32_v2, to, value, e->width);
}

static void set_rows(const struct operation *op, const struct effect *e, CUdeviceptr to) {
    unsigned value = (unsigned)e->value;
    CUstream stream = stream_of(e->stream);
    if (e->element == 1 && e->how)
        CALL(cuMemsetD2D8Async, to, e->to_pitch, (unsigned char)value, e->width, e->height, stream);
    else if (e->element == 1)
        CALL(cuMemsetD2D8_v2, to, e->to_pitch, (unsigned char)value, e->width, e->height);
    else if (e->element == 2 && e->how)
        CALL(cuMemsetD2D16Async, to, e->to_pitch, (unsigned short)value, e->width, e->height, stream);
    else if (e->element == 2)
        CALL(cuMemsetD2D16_v2, to, e->to_pitch, (unsigned short)value, e->width, e->height);
    else if (e->how)
        CALL(cuMemsetD2D32Async, to, e->to_pitch, value, e->width, e->height, stream);
    else
        CALL(cuMemsetD2D32_v2, to, e->to_pitch, value, e->width, e->height);
}

void issue(const struct operation *op, const struct effect *e) {
    struct arguments x;
    CUdeviceptr to;
    switch (e->code) {
    case OP_copy:
        copy(op, e);
        break;
    case OP_set:
        to = address_of(e->to) + e->to_offset;
        if (e->height > 1)
            set_rows(op, e, to);
        else
            set_line(op, e, to);
        break;
    case OP_host:
        /* The driver keeps the pointer until the function has run: the operation lives as long as the program. */
        CALL(cuLaunchHostFunc, stream_of(e->stream), host_function, (void *)(uintptr_t)e);
        break;
    case OP_stamp:
        to = device_address(op, e->to) + e->to_offset;
        if (e->element == 4)
            CALL(cuStreamWriteValue32_v2, stream_of(e->stream), to, (uint32_t)e->value, 0);
        else
            CALL(cuStreamWriteValue64_v2, stream_of(e->stream), to, e->value, 0);
        break;
    case OP_fill:
    case OP_iota:
    case OP_mix:
    case OP_spin:
        kernel_arguments(op, e, &x);
        CALL(cuLaunchKernel, kernel_of(op, x.kernel), x.grid, 1, 1, x.block, 1, 1, 0, stream_of(e->stream), x.pointers,
             NULL);
        break;
    default:
        fail(op, "it is no work for a stream");
    }
}
