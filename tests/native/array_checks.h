// Checks of arrays, mipmaps, copies with them, texture and surface objects, for the simulated GPU itself and, remote, through
// the whole stack.
//
// Every check makes and ends what it uses. Errors are those of driver 580.159 on an H200.
#ifndef ARRAY_CHECKS_H
#define ARRAY_CHECKS_H

#include "box_checks.h"
#include "graph_checks.h"

#include <stdbool.h>

enum { ARRAY_W = 64, ARRAY_H = 32, ARRAY_D = 4 }; // floats

static inline CUDA_ARRAY3D_DESCRIPTOR array_shape(size_t width, size_t height, size_t depth, unsigned flags) {
    return (CUDA_ARRAY3D_DESCRIPTOR){.Width = width,
                                     .Height = height,
                                     .Depth = depth,
                                     .Format = CU_AD_FORMAT_FLOAT,
                                     .NumChannels = 1,
                                     .Flags = flags};
}

static inline CUresult array_try(size_t width, size_t height, size_t depth, unsigned flags) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = array_shape(width, height, depth, flags);
    CUarray array;
    CUresult result = cuArray3DCreate_v2(&array, &shape);
    if (result == CUDA_SUCCESS)
        OK(cuArrayDestroy(array));
    return result;
}

static inline CUarray array_make(size_t width, size_t height, size_t depth, unsigned flags) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = array_shape(width, height, depth, flags);
    CUarray array = NULL;
    OK(cuArray3DCreate_v2(&array, &shape));
    return array;
}

static inline void check_array_shapes(void) {
    CUDA_ARRAY_DESCRIPTOR flat = {.Width = 100, .Height = 37, .Format = CU_AD_FORMAT_HALF, .NumChannels = 4};
    CUDA_ARRAY_DESCRIPTOR_v1 old = {.Width = 100, .Height = 37, .Format = CU_AD_FORMAT_HALF, .NumChannels = 4};
    CUDA_ARRAY3D_DESCRIPTOR_v1 old_deep = {.Width = 8, .Depth = 4, .Format = 32, .NumChannels = 1, .Flags = 1};
    CUDA_ARRAY3D_DESCRIPTOR deep;
    CUDA_ARRAY_MEMORY_REQUIREMENTS needs;
    CUDA_ARRAY_SPARSE_PROPERTIES tiles;
    CUarray array, plane;
    OK(cuArrayCreate_v2(&array, &flat));
    memset(&flat, 0, sizeof flat);
    OK(cuArrayGetDescriptor_v2(&flat, array));
    CHECK(flat.Width == 100 && flat.Height == 37 && flat.Format == CU_AD_FORMAT_HALF && flat.NumChannels == 4);
    memset(&deep, 0x5a, sizeof deep);
    OK(cuArray3DGetDescriptor_v2(&deep, array));
    CHECK(deep.Width == 100 && deep.Height == 37 && deep.Depth == 0 && deep.NumChannels == 4 && deep.Flags == 0);
    CHECK(cuArrayGetMemoryRequirements(&needs, array, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuArrayGetSparseProperties(&tiles, array) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuArrayGetPlane(&plane, array, 0) == CUDA_ERROR_INVALID_VALUE);
    OK(cuArrayDestroy(array));
    CHECK(cuArrayGetDescriptor_v2(&flat, NULL) == CUDA_ERROR_INVALID_HANDLE);
    CHECK(cuArrayDestroy(NULL) == CUDA_ERROR_INVALID_HANDLE);
    CHECK(cuArrayGetMemoryRequirements(&needs, NULL, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuArrayGetSparseProperties(&tiles, NULL) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuArrayCreate(&array, &old) == CUDA_ERROR_INVALID_CONTEXT); // the first forms want such a context, but tell
    CHECK(cuArray3DCreate(&array, &old_deep) == CUDA_ERROR_INVALID_CONTEXT);
    CUcontext first;
    unsigned version = 0;
    OK(cuCtxCreate(&first, 0, 0));
    OK(cuCtxGetApiVersion(first, &version));
    CHECK(version == 3010);
    OK(cuArrayCreate(&array, &old));
    memset(&old, 0, sizeof old);
    OK(cuArrayGetDescriptor(&old, array));
    CHECK(old.Width == 100 && old.Height == 37 && old.Format == CU_AD_FORMAT_HALF && old.NumChannels == 4);
    OK(cuArrayDestroy(array));
    OK(cuArray3DCreate(&array, &old_deep));
    OK(cuArrayDestroy(array));
    OK(cuCtxDestroy_v2(first));
    const CUDA_ARRAY3D_DESCRIPTOR layered = {.Width = 8, .Depth = 4, .Format = 32, .NumChannels = 1, .Flags = 1};
    OK(cuArray3DCreate_v2(&array, &layered));
    OK(cuArrayGetDescriptor(&old, array));
    CHECK(old.Width == 8 && old.Height == 0 && old.Format == 32 && old.NumChannels == 1);
    OK(cuArray3DGetDescriptor(&old_deep, array));
    CHECK(old_deep.Width == 8 && old_deep.Height == 0 && old_deep.Depth == 4 && old_deep.Flags == 1);
    OK(cuArrayDestroy(array));

    CHECK(cuArrayCreate_v2(NULL, &flat) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuArrayCreate_v2(&array, NULL) == CUDA_ERROR_INVALID_VALUE);
    flat.NumChannels = 3;
    CHECK(cuArrayCreate_v2(&array, &flat) == CUDA_ERROR_INVALID_VALUE);
    flat.NumChannels = 1;
    flat.Format = (CUarray_format)7;
    CHECK(cuArrayCreate_v2(&array, &flat) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(0, 8, 0, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(131072, 0, 0, 0) == CUDA_SUCCESS);
    CHECK(array_try(131073, 0, 0, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(1, 65537, 0, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(16, 0, 4, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(16, 0, 4, CUDA_ARRAY3D_LAYERED) == CUDA_SUCCESS);
    CHECK(array_try(16, 8, 0, CUDA_ARRAY3D_LAYERED) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(16, 16, 6, CUDA_ARRAY3D_CUBEMAP) == CUDA_SUCCESS);
    CHECK(array_try(16, 16, 5, CUDA_ARRAY3D_CUBEMAP) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(16, 16, 12, CUDA_ARRAY3D_CUBEMAP | CUDA_ARRAY3D_LAYERED) == CUDA_SUCCESS);
    CHECK(array_try(16385, 8, 4, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(16, 8, 4, CUDA_ARRAY3D_TEXTURE_GATHER) == CUDA_ERROR_INVALID_VALUE);
    CHECK(array_try(16, 8, 0, 0x200) == CUDA_ERROR_INVALID_VALUE);
    array = array_make(256, 256, 0, CUDA_ARRAY3D_DEFERRED_MAPPING);
    OK(cuArrayGetMemoryRequirements(&needs, array, 0));
    CHECK(needs.size == 256 * 256 * 4 && needs.alignment == 65536);
    CHECK(cuArrayGetMemoryRequirements(&needs, array, 99) == CUDA_ERROR_INVALID_DEVICE);
    OK(cuArrayDestroy(array));
}

// What a sparse array is mapped in: 64 KiB of the standard shapes for one to sixteen bytes a texel.
static inline void check_sparse_tiles(void) {
    static const struct {
        CUarray_format format;
        unsigned channels, flat[3], deep[3];
    } tiles[] = {
        {CU_AD_FORMAT_UNSIGNED_INT8, 1, {256, 256, 1}, {64, 32, 32}},
        {CU_AD_FORMAT_HALF, 1, {256, 128, 1}, {32, 32, 32}},
        {CU_AD_FORMAT_FLOAT, 1, {128, 128, 1}, {32, 32, 16}},
        {CU_AD_FORMAT_FLOAT, 2, {128, 64, 1}, {32, 16, 16}},
        {CU_AD_FORMAT_FLOAT, 4, {64, 64, 1}, {16, 16, 16}},
    };
    for (size_t i = 0; i < 2 * (sizeof tiles / sizeof *tiles); i++) {
        const unsigned *wanted = i % 2 ? tiles[i / 2].deep : tiles[i / 2].flat;
        CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = 600,
                                         .Height = 500,
                                         .Depth = i % 2 ? 64 : 0,
                                         .Format = tiles[i / 2].format,
                                         .NumChannels = tiles[i / 2].channels,
                                         .Flags = CUDA_ARRAY3D_SPARSE};
        CUarray array = NULL;
        CUDA_ARRAY_SPARSE_PROPERTIES properties;
        OK(cuArray3DCreate_v2(&array, &shape));
        OK(cuArrayGetSparseProperties(&properties, array));
        CHECK(properties.tileExtent.width == wanted[0] && properties.tileExtent.height == wanted[1] &&
              properties.tileExtent.depth == wanted[2]);
        OK(cuArrayDestroy(array));
    }
}

static inline size_t memory_left(void) {
    size_t left = 0, total = 0;
    OK(cuCtxSynchronize());
    OK(cuMemGetInfo_v2(&left, &total));
    return left;
}

// An array takes its memory when it is made and gives it back, behind the work that is queued; a hundred of them, too.
static inline void check_array_memory(void) {
    const size_t before = memory_left(), bytes = (size_t)64 << 20;
    CUarray array = array_make(4096, 4096, 0, 0);
    CHECK(before - memory_left() >= bytes);
    OK(cuArrayDestroy(array));
    for (int i = 0; i < 3000 && memory_left() < before; i++)
        usleep(10000);
    CHECK(memory_left() >= before); // more, where what was freed before came late
    for (int i = 0; i < 100; i++)
        CHECK(array_try(512, 512, 0, 0) == CUDA_SUCCESS);
}

static inline void check_array_rows(graph_bench_t *t) {
    float up[ARRAY_W], down[ARRAY_W];
    CUarray line = array_make(ARRAY_W, 0, 0, 0), flat = array_make(ARRAY_W, ARRAY_H, 0, 0);
    const size_t bytes = sizeof up;
    for (size_t i = 0; i < ARRAY_W; i++)
        up[i] = (float)i + .5f;
    OK(cuMemcpyHtoA_v2(line, 0, up, bytes));
    OK(cuMemcpyAtoA_v2(flat, 0, line, 0, bytes));
    OK(cuMemcpyAtoD_v2(t->a, flat, 16, bytes - 16));
    OK(cuMemcpyDtoA_v2(line, 0, t->a, bytes - 16));
    memset(down, 0, sizeof down);
    OK(cuMemcpyAtoH_v2(down, line, 0, bytes - 16));
    CHECK(memcmp(down, up + 4, bytes - 16) == 0);
    memset(down, 0, sizeof down);
    OK(cuMemcpyHtoAAsync_v2(line, 4, up, bytes - 4, t->stream));
    OK(cuMemcpyAtoHAsync_v2(down, line, 4, bytes - 4, t->stream));
    OK(cuStreamSynchronize(t->stream));
    CHECK(memcmp(down, up, bytes - 4) == 0);
    OK(cuMemcpyHtoA(line, 0, up, (unsigned)bytes));
    OK(cuMemcpyAtoH(down, line, 0, (unsigned)bytes));
    CHECK(memcmp(down, up, bytes) == 0);

    OK(cuMemcpyHtoA_v2(flat, 0, up, 0));
    CHECK(cuMemcpyHtoA_v2(flat, 0, up, bytes + 1) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyHtoA_v2(flat, 4, up, bytes) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyHtoA_v2(flat, bytes, up, 4) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyAtoH_v2(down, flat, bytes, 4) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyHtoA_v2(flat, 0, NULL, 4) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyHtoA_v2(NULL, 0, up, 4) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyDtoA_v2(flat, 0, 0x1000, 4) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyAtoD_v2(0x1000, flat, 0, 4) == CUDA_ERROR_INVALID_VALUE);
    OK(cuArrayDestroy(line));
    OK(cuArrayDestroy(flat));
}

// Boxes of an array and of host memory whose rows are longer.
static inline void check_array_boxes(graph_bench_t *t) {
    enum { PITCH = ARRAY_W + 8, ROWS = ARRAY_H + 2 };
    static float up[ARRAY_D][ROWS][PITCH], down[ARRAY_D][ROWS][PITCH];
    CUarray deep = array_make(ARRAY_W, ARRAY_H, ARRAY_D, 0),
            layers = array_make(ARRAY_W, 0, ARRAY_D, CUDA_ARRAY3D_LAYERED);
    for (size_t i = 0; i < sizeof up / sizeof(float); i++)
        ((float *)up)[i] = (float)i;
    CUDA_MEMCPY3D in = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                        .srcHost = up,
                        .srcPitch = sizeof up[0][0],
                        .srcHeight = ROWS,
                        .srcXInBytes = 8,
                        .srcY = 1,
                        .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                        .dstArray = deep,
                        .WidthInBytes = ARRAY_W * 4,
                        .Height = ARRAY_H,
                        .Depth = ARRAY_D};
    CUDA_MEMCPY3D out = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                         .srcArray = deep,
                         .dstMemoryType = CU_MEMORYTYPE_HOST,
                         .dstHost = down,
                         .dstPitch = sizeof up[0][0],
                         .dstHeight = ROWS,
                         .dstXInBytes = 8,
                         .dstY = 1,
                         .WidthInBytes = ARRAY_W * 4,
                         .Height = ARRAY_H,
                         .Depth = ARRAY_D};
    OK(cuMemcpy3DAsync_v2(&in, t->stream));
    OK(cuMemcpy3DAsync_v2(&out, t->stream));
    OK(cuStreamSynchronize(t->stream));
    for (size_t z = 0; z < ARRAY_D; z++)
        for (size_t y = 0; y < ROWS; y++)
            for (size_t x = 0; x < PITCH; x++) {
                bool inside = x >= 2 && x < 2 + ARRAY_W && y >= 1 && y < 1 + ARRAY_H;
                CHECK(down[z][y][x] == (inside ? up[z][y][x] : 0));
            }
    in.Depth = ARRAY_D + 1;
    CHECK(cuMemcpy3D_v2(&in) == CUDA_ERROR_INVALID_VALUE);
    in.Depth = 1;
    in.dstZ = 3;
    OK(cuMemcpy3D_v2(&in));
    in.dstXInBytes = 4;
    CHECK(cuMemcpy3D_v2(&in) == CUDA_ERROR_INVALID_VALUE);
    in.dstXInBytes = in.dstZ = 0;
    in.dstArray = layers;
    in.Height = 1;
    in.Depth = ARRAY_D;
    OK(cuMemcpy3D_v2(&in));
    in.Height = 2;
    CHECK(cuMemcpy3D_v2(&in) == CUDA_ERROR_INVALID_VALUE);
    in.dstArray = NULL;
    CHECK(cuMemcpy3D_v2(&in) == CUDA_ERROR_INVALID_VALUE);
    in.Depth = 0;
    OK(cuMemcpy3D_v2(&in));

    CUarray flat = array_make(ARRAY_W, ARRAY_H, 0, 0);
    const CUDA_MEMCPY2D filled = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                                  .srcDevice = t->b,
                                  .srcPitch = 64,
                                  .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                                  .dstArray = flat,
                                  .dstXInBytes = 4,
                                  .dstY = 1,
                                  .WidthInBytes = 64,
                                  .Height = 8};
    CUDA_MEMCPY2D back = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                          .srcArray = flat,
                          .srcXInBytes = 4,
                          .srcY = 1,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = t->c,
                          .dstPitch = 64,
                          .WidthInBytes = 64,
                          .Height = 8};
    OK(cuMemsetD32_v2(t->b, 0x12345678, GRAPH_WORDS));
    OK(cuMemsetD32_v2(t->c, 0x12345678, GRAPH_WORDS));
    OK(cuMemsetD32_v2(t->c, 0, 128));
    OK(cuStreamSynchronize(NULL)); // what follows is in other streams
    OK(cuMemcpy2D_v2(&filled));
    OK(cuMemcpy2DUnaligned_v2(&back));
    words_are(t->c, 0x12345678);
    back.srcY = ARRAY_H;
    CHECK(cuMemcpy2DAsync_v2(&back, t->stream) == CUDA_ERROR_INVALID_VALUE);
    OK(cuArrayDestroy(deep));
    OK(cuArrayDestroy(layers));
    OK(cuArrayDestroy(flat));
}

static inline void check_mipmaps(void) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = array_shape(64, 32, 0, 0);
    CUDA_ARRAY3D_DESCRIPTOR told;
    CUDA_ARRAY_MEMORY_REQUIREMENTS needs;
    CUmipmappedArray mipmap, small;
    CUarray level, again, first;
    float up[8] = {1, 2, 3, 4, 5, 6, 7, 8}, down[8];
    OK(cuMipmappedArrayCreate(&mipmap, &shape, 4));
    OK(cuMipmappedArrayGetLevel(&level, mipmap, 3));
    OK(cuMipmappedArrayGetLevel(&again, mipmap, 3));
    OK(cuMipmappedArrayGetLevel(&first, mipmap, 0));
    CHECK(level == again && level != first);
    CHECK(cuMipmappedArrayGetLevel(&again, mipmap, 4) == CUDA_ERROR_INVALID_VALUE);
    OK(cuArray3DGetDescriptor_v2(&told, level));
    CHECK(told.Width == 8 && told.Height == 4 && told.Depth == 0);
    OK(cuMemcpyHtoA_v2(level, 0, up, sizeof up));
    OK(cuMemcpyAtoH_v2(down, level, 0, sizeof down));
    CHECK(memcmp(up, down, sizeof up) == 0);
    CHECK(cuMemcpyHtoA_v2(level, 4, up, sizeof up) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMipmappedArrayGetMemoryRequirements(&needs, mipmap, 0) == CUDA_ERROR_INVALID_VALUE);
    OK(cuMipmappedArrayDestroy(mipmap));
    CHECK(cuMipmappedArrayDestroy(NULL) == CUDA_ERROR_INVALID_HANDLE);
    OK(cuMipmappedArrayCreate(&small, &shape, 99)); // as many as there are
    OK(cuMipmappedArrayGetLevel(&level, small, 6));
    CHECK(cuMipmappedArrayGetLevel(&level, small, 7) == CUDA_ERROR_INVALID_VALUE);
    OK(cuMipmappedArrayDestroy(small));
}

static inline void check_objects(graph_bench_t *t) {
    CUarray array = array_make(ARRAY_W, ARRAY_H, 0, CUDA_ARRAY3D_SURFACE_LDST);
    CUDA_RESOURCE_DESC resource = {.resType = CU_RESOURCE_TYPE_ARRAY, .res.array.hArray = array}, told;
    CUDA_TEXTURE_DESC how = {.filterMode = CU_TR_FILTER_MODE_LINEAR, .maxAnisotropy = 3}, how_told;
    CUDA_RESOURCE_VIEW_DESC view = {.format = CU_RES_VIEW_FORMAT_FLOAT_1X32, .width = ARRAY_W, .height = ARRAY_H}, seen;
    CUtexObject first = 0, second = 0, third = 0;
    CUsurfObject surface = 0;
    OK(cuTexObjectCreate(&first, &resource, &how, NULL));
    OK(cuTexObjectCreate(&second, &resource, &how, &view));
    CHECK(first && second && first != second);
    OK(cuTexObjectGetResourceDesc(&told, first));
    CHECK(told.resType == CU_RESOURCE_TYPE_ARRAY && told.res.array.hArray == array);
    OK(cuTexObjectGetTextureDesc(&how_told, first));
    CHECK(how_told.filterMode == CU_TR_FILTER_MODE_LINEAR && how_told.maxAnisotropy == 3);
    OK(cuTexObjectGetResourceViewDesc(&seen, second));
    CHECK(seen.format == CU_RES_VIEW_FORMAT_FLOAT_1X32 && seen.height == ARRAY_H);
    OK(cuTexObjectDestroy(first));
    CHECK(cuTexObjectGetTextureDesc(&how_told, first) == CUDA_ERROR_INVALID_VALUE);
    OK(cuTexObjectCreate(&third, &resource, &how, NULL));
    CHECK(third == first); // the driver's own values, which kernels see
    OK(cuTexObjectDestroy(third));
    OK(cuTexObjectDestroy(0));
    OK(cuTexObjectDestroy(0x123456));
    OK(cuSurfObjectCreate(&surface, &resource));
    OK(cuSurfObjectGetResourceDesc(&told, surface));
    CHECK(surface && told.res.array.hArray == array);
    OK(cuSurfObjectDestroy(surface));
    OK(cuArrayDestroy(array)); // before its object
    OK(cuTexObjectGetTextureDesc(&how_told, second));
    OK(cuTexObjectDestroy(second));

    CHECK(cuTexObjectCreate(NULL, &resource, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuTexObjectCreate(&first, NULL, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
    resource.res.array.hArray = NULL;
    CHECK(cuTexObjectCreate(&first, &resource, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuSurfObjectCreate(&surface, &resource) == CUDA_ERROR_INVALID_VALUE);
    resource.resType = (CUresourcetype)9;
    CHECK(cuTexObjectCreate(&first, &resource, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
    resource = (CUDA_RESOURCE_DESC){
        .resType = CU_RESOURCE_TYPE_LINEAR,
        .res.linear = {.devPtr = t->a, .format = CU_AD_FORMAT_FLOAT, .numChannels = 1, .sizeInBytes = 1024}};
    OK(cuTexObjectCreate(&first, &resource, &how, NULL));
    OK(cuTexObjectGetResourceDesc(&told, first));
    CHECK(told.res.linear.devPtr == t->a && told.res.linear.sizeInBytes == 1024);
    OK(cuTexObjectDestroy(first));
    resource.res.linear.devPtr = t->a + 16;
    CHECK(cuTexObjectCreate(&first, &resource, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
    resource.res.linear.devPtr = t->a;
    resource.flags = 1;
    CHECK(cuTexObjectCreate(&first, &resource, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
    resource.flags = 0;
    how.reserved[0] = 1;
    CHECK(cuTexObjectCreate(&first, &resource, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
    how.reserved[0] = 0;
    how.filterMode = (CUfilter_mode)7;
    CHECK(cuTexObjectCreate(&first, &resource, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
    how.filterMode = CU_TR_FILTER_MODE_POINT;
    resource = (CUDA_RESOURCE_DESC){.resType = CU_RESOURCE_TYPE_PITCH2D,
                                    .res.pitch2D = {.devPtr = t->a,
                                                    .format = CU_AD_FORMAT_FLOAT,
                                                    .numChannels = 1,
                                                    .width = 16,
                                                    .height = 4,
                                                    .pitchInBytes = 64}};
    OK(cuTexObjectCreate(&first, &resource, &how, NULL));
    OK(cuTexObjectDestroy(first));
    resource.res.pitch2D.pitchInBytes = 65;
    CHECK(cuTexObjectCreate(&first, &resource, &how, NULL) == CUDA_ERROR_INVALID_VALUE);
}

static inline void check_arrays_and_captures(graph_bench_t *t) {
    const CUDA_ARRAY_DESCRIPTOR shape = {.Width = 16, .Height = 4, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};
    CUarray array;
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CHECK(cuArrayCreate_v2(&array, &shape) == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    ends_invalidated(t->stream);
    CUcontext current;
    OK(cuArrayCreate_v2(&array, &shape));
    OK(cuCtxPopCurrent_v2(&current));
    CUDA_ARRAY_DESCRIPTOR told;
    OK(cuArrayGetDescriptor_v2(&told, array)); // of no context
    OK(cuArrayDestroy(array));
    CHECK(cuArrayCreate_v2(&array, &shape) == CUDA_ERROR_INVALID_CONTEXT);
    OK(cuCtxPushCurrent_v2(current));
}

// Arrays and mipmaps that nobody destroys end with their context.
static inline void check_arrays_of_a_context(void) {
    CUcontext own;
    CUarray array;
    CUmipmappedArray mipmap;
    const CUDA_ARRAY3D_DESCRIPTOR shape = array_shape(512, 512, 0, 0);
    const size_t before = memory_left();
    OK(cuCtxCreate_v2(&own, 0, 0));
    array = array_make(2048, 2048, 0, 0);
    OK(cuMipmappedArrayCreate(&mipmap, &shape, 4));
    OK(cuArrayDestroy(array_make(1024, 1024, 0, 0)));
    OK(cuCtxDestroy_v2(own));
    for (int i = 0; i < 3000 && memory_left() < before; i++)
        usleep(10000);
    CHECK(memory_left() >= before); // more, where what was freed before came late
    (void)array;
}

// A level is its mipmap's, whatever context is current when somebody asks for it.
static inline void check_levels_of_a_context(void) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = array_shape(64, 32, 0, 0);
    CUcontext first, second;
    CUmipmappedArray mine, other;
    CUarray level, stays;
    float texels[8] = {0};
    OK(cuCtxCreate_v2(&first, 0, 0));
    OK(cuMipmappedArrayCreate(&other, &shape, 4));
    OK(cuCtxCreate_v2(&second, 0, 0));
    OK(cuMipmappedArrayCreate(&mine, &shape, 4));
    OK(cuMipmappedArrayGetLevel(&level, other, 3)); // with the second current
    OK(cuCtxSetCurrent(first));
    OK(cuMipmappedArrayGetLevel(&stays, mine, 3));
    OK(cuCtxDestroy_v2(first));
    OK(cuCtxSetCurrent(second));
    OK(cuMemcpyHtoA_v2(stays, 0, texels, sizeof texels));
    CHECK(cuMemcpyHtoA_v2(level, 0, texels, sizeof texels) != CUDA_SUCCESS);
    OK(cuCtxDestroy_v2(second));
}

static inline void check_arrays(CUmodule module) {
    graph_bench_t t = graph_bench(module);
    check_array_shapes();
    check_sparse_tiles();
    check_array_memory();
    check_array_rows(&t);
    check_array_boxes(&t);
    check_mipmaps();
    check_objects(&t);
    check_arrays_and_captures(&t);
    check_arrays_of_a_context();
    check_levels_of_a_context();
    check_box_batches(&t);
    check_pools_by_place();
    check_tensor_map_address(&t);
    check_launch_on_all_devices(&t);
    graph_bench_end(&t);
}

#endif
