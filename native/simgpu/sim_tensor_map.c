// Tensor maps: what cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col look at, by NVIDIA's description; alignment, rank, strides
// and boxes of the first were asked of a driver (580.159.04), which takes any aligned address, NULL too. No known kernel reads a map,
// so its bits are not the driver's: the first word is the address, as there, and the others hold the parameters. Any thread; no
// context is needed.
#include "sim.h"

#include <string.h>

typedef struct {
    CUtensorMapDataType type;
    unsigned rank;
    uint64_t address;
    const cuuint64_t *dims, *strides; // rank, rank - 1
    const cuuint32_t *steps;
    CUtensorMapInterleave interleave;
    CUtensorMapSwizzle swizzle;
    CUtensorMapL2promotion promotion;
    CUtensorMapFloatOOBfill fill;
} shape_t;

// Bits of an element; 0 for a type that there is not.
static unsigned bits_of(CUtensorMapDataType type) {
    static const unsigned char bits[] = {8, 16, 32, 32, 64, 64, 16, 32, 64, 16, 32, 32, 32, 4, 4, 6};
    return (unsigned)type < sizeof bits ? bits[type] : 0;
}

static bool is_packed(CUtensorMapDataType type) {
    return type == CU_TENSOR_MAP_DATA_TYPE_16U4_ALIGN16B || type == CU_TENSOR_MAP_DATA_TYPE_16U6_ALIGN16B;
}

static bool is_float(CUtensorMapDataType type) {
    return type >= CU_TENSOR_MAP_DATA_TYPE_FLOAT16 && type <= CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ;
}

// What both look at: `inner` is how many elements of the first dimension are taken at once.
static bool is_right(const shape_t *shape, unsigned lowest_rank, uint64_t inner) {
    const bool none = shape->interleave == CU_TENSOR_MAP_INTERLEAVE_NONE;
    const unsigned align = is_packed(shape->type) || shape->interleave == CU_TENSOR_MAP_INTERLEAVE_32B ? 32 : 16;
    static const unsigned span[] = {0, 32, 64, 128, 128, 128, 128};
    if (!bits_of(shape->type) || shape->rank < lowest_rank || shape->rank > 5 || !shape->dims || !shape->steps ||
        (shape->rank > 1 && !shape->strides) || (unsigned)shape->interleave > CU_TENSOR_MAP_INTERLEAVE_32B ||
        (unsigned)shape->swizzle >= sizeof span / sizeof *span ||
        (unsigned)shape->promotion > CU_TENSOR_MAP_L2_PROMOTION_L2_256B ||
        (unsigned)shape->fill > CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA)
        return false;
    if ((!none && shape->rank < 3) || shape->address % align || (shape->fill && !is_float(shape->type)) ||
        (shape->interleave == CU_TENSOR_MAP_INTERLEAVE_32B && shape->swizzle != CU_TENSOR_MAP_SWIZZLE_32B) ||
        (shape->type == CU_TENSOR_MAP_DATA_TYPE_16U6_ALIGN16B && !none))
        return false;
    for (unsigned i = 0; i < shape->rank; i++) {
        if (!shape->dims[i] || shape->dims[i] > 1ull << 32)
            return false;
        if (i + 1 < shape->rank && (shape->strides[i] % align || shape->strides[i] >= 1ull << 40))
            return false;
        if ((i || !none) && (!shape->steps[i] || shape->steps[i] > 8))
            return false;
    }
    if ((is_packed(shape->type) && shape->dims[0] % 128) ||
        (shape->type == CU_TENSOR_MAP_DATA_TYPE_16U4_ALIGN8B && shape->dims[0] % 2))
        return false;
    const uint64_t bytes = inner * bits_of(shape->type) / 8;
    return !none || is_packed(shape->type) ||
           (bytes % 16 == 0 && (!shape->swizzle || bytes <= span[(unsigned)shape->swizzle]));
}

static CUresult encode(CUtensorMap *map, const shape_t *shape, const uint32_t *more, unsigned count) {
    memset(map, 0, sizeof *map);
    map->opaque[0] = shape->address;
    map->opaque[1] = (uint64_t)shape->type | (uint64_t)shape->rank << 8 | (uint64_t)shape->interleave << 16 |
                     (uint64_t)shape->swizzle << 24 | (uint64_t)shape->promotion << 32 | (uint64_t)shape->fill << 40;
    for (unsigned i = 0; i < shape->rank; i++) {
        map->opaque[2 + i] = shape->dims[i] | (uint64_t)shape->steps[i] << 40;
        if (i + 1 < shape->rank)
            map->opaque[7 + i] = shape->strides[i];
    }
    for (unsigned i = 0; i < count; i++)
        map->opaque[11 + i / 2] |= (uint64_t)more[i] << i % 2 * 32;
    return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *tensorMap, CUtensorMapDataType tensorDataType, cuuint32_t tensorRank,
                                void *globalAddress, const cuuint64_t *globalDim, const cuuint64_t *globalStrides,
                                const cuuint32_t *boxDim, const cuuint32_t *elementStrides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion l2Promotion, CUtensorMapFloatOOBfill oobFill) {
    SIM_ENTER();
    const shape_t shape = {tensorDataType, tensorRank,    (uint64_t)(uintptr_t)globalAddress,
                           globalDim,      globalStrides, elementStrides,
                           interleave,     swizzle,       l2Promotion,
                           oobFill};
    if (!tensorMap || !boxDim || !is_right(&shape, 1, boxDim[0]))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < tensorRank; i++)
        if (!boxDim[i] || boxDim[i] > 256)
            return CUDA_ERROR_INVALID_VALUE;
    if (is_packed(tensorDataType) && boxDim[0] != 128)
        return CUDA_ERROR_INVALID_VALUE;
    return encode(tensorMap, &shape, boxDim, tensorRank);
}

CUresult cuTensorMapEncodeIm2col(CUtensorMap *tensorMap, CUtensorMapDataType tensorDataType, cuuint32_t tensorRank,
                                 void *globalAddress, const cuuint64_t *globalDim, const cuuint64_t *globalStrides,
                                 const int *pixelBoxLowerCorner, const int *pixelBoxUpperCorner,
                                 cuuint32_t channelsPerPixel, cuuint32_t pixelsPerColumn,
                                 const cuuint32_t *elementStrides, CUtensorMapInterleave interleave,
                                 CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2Promotion,
                                 CUtensorMapFloatOOBfill oobFill) {
    SIM_ENTER();
    const shape_t shape = {tensorDataType, tensorRank,    (uint64_t)(uintptr_t)globalAddress,
                           globalDim,      globalStrides, elementStrides,
                           interleave,     swizzle,       l2Promotion,
                           oobFill};
    if (!tensorMap || !pixelBoxLowerCorner || !pixelBoxUpperCorner || !channelsPerPixel || channelsPerPixel > 256 ||
        !pixelsPerColumn || pixelsPerColumn > 1024 || !is_right(&shape, 3, channelsPerPixel))
        return CUDA_ERROR_INVALID_VALUE;
    // A corner has 16 bits for one spatial dimension, 8 each for two, 5 each for three.
    static const int width[] = {16, 8, 5};
    const int half = 1 << (width[tensorRank - 3] - 1);
    for (unsigned i = 0; i + 2 < tensorRank; i++)
        if (pixelBoxLowerCorner[i] < -half || pixelBoxLowerCorner[i] >= half || pixelBoxUpperCorner[i] < -half ||
            pixelBoxUpperCorner[i] >= half)
            return CUDA_ERROR_INVALID_VALUE;
    const uint32_t more[] = {channelsPerPixel, pixelsPerColumn, (uint32_t)pixelBoxLowerCorner[0],
                             (uint32_t)pixelBoxUpperCorner[0]};
    return encode(tensorMap, &shape, more, 4);
}
