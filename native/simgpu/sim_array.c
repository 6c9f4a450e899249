// cuArray*, cuMipmappedArray*: arrays and mipmaps, whose texels lie here row behind row.
//
// Which shapes there are, which errors others give, and what is not asked of an array that needs no memory yet are as driver
// 580.159 answers on an H200. Block-compressed and planar formats, which it has, are refused by name. An array ends with its
// context, whose ranges go then; its handle stays one that means nothing. Objects are guarded by sim.lock.
#include "sim.h"
#include "sim_array.h"
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

#define TILE 65536u // what memory is told to be needed in
#define LEVELS_MAX 32u
#define NO_MEMORY ((unsigned)CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING) // it is mapped later

struct sim_array {
    sim_context_t *context;
    unsigned long long context_id;
    CUDA_ARRAY3D_DESCRIPTOR shape;
    sim_box_t box;
    bool level; // of a mipmap, whose memory it is
};

typedef struct {
    struct sim_array whole; // of the first level's shape, and all the memory
    unsigned levels;
    struct sim_array *level[LEVELS_MAX];
} mipmap_t;

static unsigned texel(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    switch (d->Format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return d->NumChannels;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2 * d->NumChannels;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
        return 4 * d->NumChannels;
    default:
        return 0;
    }
}

static bool fits(uint64_t value, uint64_t most) { return value <= most; }

static CUresult check_shape(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    const bool layered = d->Flags & CUDA_ARRAY3D_LAYERED, cube = d->Flags & CUDA_ARRAY3D_CUBEMAP;
    if (!d->Width || (d->NumChannels != 1 && d->NumChannels != 2 && d->NumChannels != 4))
        return CUDA_ERROR_INVALID_VALUE;
    if (!texel(d)) {
        bool there = d->Format >= CU_AD_FORMAT_BC1_UNORM && d->Format <= CU_AD_FORMAT_BC7_UNORM_SRGB;
        return there ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    }
    if (d->Flags & (CUDA_ARRAY3D_DEPTH_TEXTURE | CUDA_ARRAY3D_COLOR_ATTACHMENT | 0x200u))
        return CUDA_ERROR_INVALID_VALUE;
    if (d->Depth && (d->Flags & CUDA_ARRAY3D_TEXTURE_GATHER))
        return CUDA_ERROR_INVALID_VALUE;
    bool right;
    if (cube)
        right = d->Width == d->Height && d->Depth && (layered ? d->Depth % 6 == 0 : d->Depth == 6) &&
                fits(d->Width, 32768) && fits(d->Depth, 2046);
    else if (layered)
        right = d->Depth && fits(d->Depth, 2048) && fits(d->Width, 32768) && fits(d->Height, 32768);
    else if (d->Depth)
        right = d->Height && ((fits(d->Width, 16384) && fits(d->Height, 16384) && fits(d->Depth, 16384)) ||
                              (fits(d->Width, 8192) && fits(d->Height, 8192) && fits(d->Depth, 32768)));
    else
        right = fits(d->Width, 131072) && fits(d->Height, 65536);
    return right ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static sim_box_t box_of(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    return (sim_box_t){
        .width = d->Width * texel(d), .rows = d->Height ? d->Height : 1, .slices = d->Depth ? d->Depth : 1};
}

static uint64_t bytes_of(const sim_box_t *box) { return box->width * box->rows * box->slices; }

// Under sim.lock.
static struct sim_array *array_of(CUarray handle) {
    return sim_handle_is(handle, SIM_ARRAY) ? (struct sim_array *)(void *)handle : NULL;
}

static mipmap_t *mipmap_of(CUmipmappedArray handle) {
    return sim_handle_is(handle, SIM_MIPMAP) ? (mipmap_t *)(void *)handle : NULL;
}

static bool alive(const struct sim_array *array) {
    return array->context->active && array->context->id == array->context_id;
}

static CUresult fill(sim_context_t *context, const CUDA_ARRAY3D_DESCRIPTOR *shape, uint64_t bytes,
                     struct sim_array *array) {
    sim_range_t *range = NULL;
    CUresult result = CUDA_SUCCESS;
    *array = (struct sim_array){
        .context = sim_home(context), .context_id = sim_home(context)->id, .shape = *shape, .box = box_of(shape)};
    if (shape->Flags & NO_MEMORY)
        return CUDA_SUCCESS;
    pthread_rwlock_wrlock(&sim.map_lock);
    result = sim_device_allocate(context, bytes, &range);
    if (range)
        array->box.base = range->base;
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray) {
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    CUresult result = pHandle && pAllocateArray ? check_shape(pAllocateArray) : CUDA_ERROR_INVALID_VALUE;
    struct sim_array *array = result == CUDA_SUCCESS ? calloc(1, sizeof *array) : NULL;
    if (result != CUDA_SUCCESS || !array)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_OUT_OF_MEMORY;
    const sim_box_t box = box_of(pAllocateArray);
    result = fill(context, pAllocateArray, bytes_of(&box), array);
    pthread_mutex_lock(&sim.lock);
    if (result == CUDA_SUCCESS && !sim_handle_add(array, SIM_ARRAY))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_unlock(&sim.lock);
    if (result != CUDA_SUCCESS) {
        if (array->box.base)
            sim_memory_release(array->box.base);
        free(array);
        return result;
    }
    *pHandle = (CUarray)(void *)array;
    return CUDA_SUCCESS;
}

CUresult cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray) {
    const CUDA_ARRAY_DESCRIPTOR none = {.Width = 0}, *d = pAllocateArray ? pAllocateArray : &none;
    const CUDA_ARRAY3D_DESCRIPTOR shape = {
        .Width = d->Width, .Height = d->Height, .Format = d->Format, .NumChannels = d->NumChannels};
    return cuArray3DCreate_v2(pHandle, &shape);
}

// The first forms work in a context that a first form made, and in no other (580.159.04, measured).
CUresult cuArray3DCreate(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR_v1 *pAllocateArray) {
    SIM_ENTER_CONTEXT(context);
    if (context->api_version >= 3020)
        return CUDA_ERROR_INVALID_CONTEXT;
    const CUDA_ARRAY3D_DESCRIPTOR_v1 none = {.Width = 0}, *d = pAllocateArray ? pAllocateArray : &none;
    const CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = d->Width,
                                           .Height = d->Height,
                                           .Depth = d->Depth,
                                           .Format = d->Format,
                                           .NumChannels = d->NumChannels,
                                           .Flags = d->Flags};
    return cuArray3DCreate_v2(pHandle, &shape);
}

CUresult cuArrayCreate(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR_v1 *pAllocateArray) {
    const CUDA_ARRAY_DESCRIPTOR_v1 none = {.Width = 0}, *d = pAllocateArray ? pAllocateArray : &none;
    const CUDA_ARRAY3D_DESCRIPTOR_v1 shape = {
        .Width = d->Width, .Height = d->Height, .Format = d->Format, .NumChannels = d->NumChannels};
    return cuArray3DCreate(pHandle, &shape);
}

CUresult cuArrayDestroy(CUarray hArray) {
    SIM_ENTER();
    uint64_t base = 0;
    pthread_mutex_lock(&sim.lock);
    struct sim_array *array = array_of(hArray);
    const CUresult result = array ? sim_capture_forbids() : CUDA_ERROR_INVALID_HANDLE; // (580.159.04, measured)
    const bool level = array && array->level;
    if (result == CUDA_SUCCESS && !level) {
        base = alive(array) ? array->box.base : 0;
        sim_handle_remove(array);
    }
    pthread_mutex_unlock(&sim.lock);
    if (base)
        sim_memory_release(base);
    if (result == CUDA_SUCCESS && !level) // a level ends with its mipmap, and only then
        free(array);
    return result;
}

// The handle is looked at before where the answer goes.
static CUresult shape_of(CUarray handle, CUDA_ARRAY3D_DESCRIPTOR *shape, const void *out) {
    pthread_mutex_lock(&sim.lock);
    const struct sim_array *array = array_of(handle);
    if (array)
        *shape = array->shape;
    pthread_mutex_unlock(&sim.lock);
    return !array ? CUDA_ERROR_INVALID_HANDLE : out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *pArrayDescriptor, CUarray hArray) {
    SIM_ENTER();
    CUDA_ARRAY3D_DESCRIPTOR shape;
    CUresult result = shape_of(hArray, &shape, pArrayDescriptor);
    if (result == CUDA_SUCCESS)
        *pArrayDescriptor = shape;
    return result;
}

CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *pArrayDescriptor, CUarray hArray) {
    SIM_ENTER();
    CUDA_ARRAY3D_DESCRIPTOR shape;
    CUresult result = shape_of(hArray, &shape, pArrayDescriptor);
    if (result == CUDA_SUCCESS)
        *pArrayDescriptor = (CUDA_ARRAY_DESCRIPTOR){
            .Width = shape.Width, .Height = shape.Height, .Format = shape.Format, .NumChannels = shape.NumChannels};
    return result;
}

CUresult cuArray3DGetDescriptor(CUDA_ARRAY3D_DESCRIPTOR_v1 *pArrayDescriptor, CUarray hArray) {
    SIM_ENTER();
    CUDA_ARRAY3D_DESCRIPTOR shape;
    CUresult result = shape_of(hArray, &shape, pArrayDescriptor);
    if (result == CUDA_SUCCESS)
        *pArrayDescriptor = (CUDA_ARRAY3D_DESCRIPTOR_v1){.Width = (unsigned)shape.Width,
                                                         .Height = (unsigned)shape.Height,
                                                         .Depth = (unsigned)shape.Depth,
                                                         .Format = shape.Format,
                                                         .NumChannels = shape.NumChannels,
                                                         .Flags = shape.Flags};
    return result;
}

CUresult cuArrayGetDescriptor(CUDA_ARRAY_DESCRIPTOR_v1 *pArrayDescriptor, CUarray hArray) {
    SIM_ENTER();
    CUDA_ARRAY3D_DESCRIPTOR shape;
    CUresult result = shape_of(hArray, &shape, pArrayDescriptor);
    if (result == CUDA_SUCCESS)
        *pArrayDescriptor = (CUDA_ARRAY_DESCRIPTOR_v1){.Width = (unsigned)shape.Width,
                                                       .Height = (unsigned)shape.Height,
                                                       .Format = shape.Format,
                                                       .NumChannels = shape.NumChannels};
    return result;
}

static CUresult required(const struct sim_array *array, uint64_t bytes, CUDA_ARRAY_MEMORY_REQUIREMENTS *out,
                         CUdevice device) {
    if (!out || !array)
        return CUDA_ERROR_INVALID_VALUE;
    if (!(array->shape.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING) || !sim_device_ok(device))
        return sim_device_ok(device) ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_DEVICE;
    *out = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.size = (bytes + TILE - 1) / TILE * TILE, .alignment = TILE};
    return CUDA_SUCCESS;
}

CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements, CUarray array,
                                      CUdevice device) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const struct sim_array *found = array_of(array);
    CUresult result = required(found, found ? bytes_of(&found->box) : 0, memoryRequirements, device);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult sparse(const struct sim_array *array, CUDA_ARRAY_SPARSE_PROPERTIES *out) {
    if (!out || !array)
        return CUDA_ERROR_INVALID_VALUE;
    if (!(array->shape.Flags & CUDA_ARRAY3D_SPARSE))
        return CUDA_ERROR_INVALID_VALUE;
    // 64 KiB as close to a square or a cube as powers of two come, wider than high and higher than deep (580.159.04, measured on an
    // H200 for 1 to 16 bytes a texel, 2-D, 3-D and layered; of a mipmap nobody asked).
    const CUDA_ARRAY3D_DESCRIPTOR *shape = &array->shape;
    const bool deep = shape->Depth && !(shape->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP));
    unsigned side[3] = {1, 1, 1}, sides = deep ? 3 : 2;
    for (unsigned texels = TILE / texel(shape), i = 0; texels > 1; texels /= 2, i++)
        side[i % sides] *= 2;
    *out = (CUDA_ARRAY_SPARSE_PROPERTIES){.tileExtent = {.width = side[0], .height = side[1], .depth = side[2]}};
    return CUDA_SUCCESS;
}

CUresult cuArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties, CUarray array) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    CUresult result = sparse(array_of(array), sparseProperties);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// Only planar formats have planes.
CUresult cuArrayGetPlane(CUarray *pPlaneArray, CUarray hArray, unsigned int planeIdx) {
    SIM_ENTER();
    CUDA_ARRAY3D_DESCRIPTOR shape;
    (void)planeIdx;
    CUresult result = shape_of(hArray, &shape, pPlaneArray);
    return result == CUDA_SUCCESS ? CUDA_ERROR_INVALID_VALUE : result;
}

// ---- Mipmaps -----------------------------------------------------------------------------------------------------

static CUDA_ARRAY3D_DESCRIPTOR level_shape(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned level) {
    CUDA_ARRAY3D_DESCRIPTOR shape = *d;
    const bool layers = d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);
    shape.Width = d->Width >> level ? d->Width >> level : 1;
    shape.Height = d->Height && !(d->Height >> level) ? 1 : d->Height >> level;
    shape.Depth = layers ? d->Depth : d->Depth && !(d->Depth >> level) ? 1 : d->Depth >> level;
    return shape;
}

static unsigned levels_of(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned wanted) {
    size_t longest = d->Width > d->Height ? d->Width : d->Height;
    unsigned most = 1;
    if (!(d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) && d->Depth > longest)
        longest = d->Depth;
    while (longest >>= 1)
        most++;
    return !wanted ? 1 : wanted < most ? wanted : most; // none is one, too many are all
}

static void mipmap_free(mipmap_t *mipmap) {
    for (unsigned i = 0; i < mipmap->levels; i++)
        free(mipmap->level[i]);
    free(mipmap);
}

CUresult cuMipmappedArrayCreate(CUmipmappedArray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pMipmappedArrayDesc,
                                unsigned int numMipmapLevels) {
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    CUresult result = pHandle && pMipmappedArrayDesc ? check_shape(pMipmappedArrayDesc) : CUDA_ERROR_INVALID_VALUE;
    mipmap_t *mipmap = result == CUDA_SUCCESS ? calloc(1, sizeof *mipmap) : NULL;
    if (result != CUDA_SUCCESS || !mipmap)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_OUT_OF_MEMORY;
    uint64_t bytes = 0;
    mipmap->levels = levels_of(pMipmappedArrayDesc, numMipmapLevels);
    for (unsigned i = 0; i < mipmap->levels && result == CUDA_SUCCESS; i++) {
        const CUDA_ARRAY3D_DESCRIPTOR shape = level_shape(pMipmappedArrayDesc, i);
        struct sim_array *level = mipmap->level[i] = calloc(1, sizeof *level);
        if (!level) {
            result = CUDA_ERROR_OUT_OF_MEMORY;
            break;
        }
        *level = (struct sim_array){.context = sim_home(context), .shape = shape, .box = box_of(&shape), .level = true};
        level->context_id = sim_home(context)->id;
        level->box.base = bytes;
        bytes += bytes_of(&level->box);
    }
    if (result == CUDA_SUCCESS)
        result = fill(context, pMipmappedArrayDesc, bytes, &mipmap->whole);
    if (result != CUDA_SUCCESS) {
        mipmap_free(mipmap);
        return result;
    }
    pthread_mutex_lock(&sim.lock);
    bool added = sim_handle_add(mipmap, SIM_MIPMAP);
    for (unsigned i = 0; i < mipmap->levels && added; i++) {
        mipmap->level[i]->box.base = mipmap->whole.box.base ? mipmap->whole.box.base + mipmap->level[i]->box.base : 0;
        added = sim_handle_add(mipmap->level[i], SIM_ARRAY);
    }
    pthread_mutex_unlock(&sim.lock);
    *pHandle = (CUmipmappedArray)(void *)mipmap;
    if (!added)
        cuMipmappedArrayDestroy(*pHandle);
    return added ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray) {
    SIM_ENTER();
    uint64_t base = 0;
    pthread_mutex_lock(&sim.lock);
    mipmap_t *mipmap = mipmap_of(hMipmappedArray);
    const CUresult result = mipmap ? sim_capture_forbids() : CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS) {
        base = alive(&mipmap->whole) ? mipmap->whole.box.base : 0;
        for (unsigned i = 0; i < mipmap->levels; i++)
            sim_handle_remove(mipmap->level[i]);
        sim_handle_remove(mipmap);
    }
    pthread_mutex_unlock(&sim.lock);
    if (result != CUDA_SUCCESS)
        return result;
    if (base)
        sim_memory_release(base);
    mipmap_free(mipmap);
    return CUDA_SUCCESS;
}

CUresult cuMipmappedArrayGetLevel(CUarray *pLevelArray, CUmipmappedArray hMipmappedArray, unsigned int level) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    mipmap_t *mipmap = mipmap_of(hMipmappedArray);
    CUresult result = mipmap ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    if (!pLevelArray || (mipmap && level >= mipmap->levels))
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pLevelArray = (CUarray)(void *)mipmap->level[level];
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements,
                                               CUmipmappedArray mipmap, CUdevice device) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const mipmap_t *found = mipmap_of(mipmap);
    uint64_t bytes = 0;
    for (unsigned i = 0; found && i < found->levels; i++)
        bytes += bytes_of(&found->level[i]->box);
    CUresult result = required(found ? &found->whole : NULL, bytes, memoryRequirements, device);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuMipmappedArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties, CUmipmappedArray mipmap) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const mipmap_t *found = mipmap_of(mipmap);
    CUresult result = sparse(found ? &found->whole : NULL, sparseProperties);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// ---- For copies and objects --------------------------------------------------------------------------------------

CUresult sim_array_box(CUarray handle, sim_box_t *box) {
    const struct sim_array *array = handle ? array_of(handle) : NULL;
    const bool there = array && alive(array) && array->box.base;
    if (there)
        *box = array->box;
    return there ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

bool sim_array_is(CUarray array, CUmipmappedArray mipmap) {
    pthread_mutex_lock(&sim.lock);
    const bool found = array ? array_of(array) != NULL : mipmap && mipmap_of(mipmap) != NULL;
    pthread_mutex_unlock(&sim.lock);
    return found;
}
