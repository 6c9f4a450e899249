// cuTexObject*, cuSurfObject*: texture and surface objects, which nothing here samples.
//
// An object's value is its place in one table, beginning with 1; the lowest free place is taken, as driver 580.159 does. Ending
// a value that is none is no error there, asking about it is error 1. An object may outlive its array. Addresses are not looked
// up: the driver makes an object of a wild one, and the kernel faults. The table is guarded by sim.lock.
#include "sim.h"
#include "sim_array.h"
#include "sim_graph.h"

#include <string.h>

#define ALIGNMENT 512u // of linear memory, and 32 of its pitch
#define OBJECTS 4096u

typedef struct {
    enum { FREE, TEXTURE, SURFACE } kind;
    CUDA_RESOURCE_DESC resource;
    CUDA_TEXTURE_DESC texture;
    CUDA_RESOURCE_VIEW_DESC view;
} object_t;

static object_t objects[OBJECTS];

static CUresult check_resource(const CUDA_RESOURCE_DESC *d, bool surface) {
    if (!d || d->flags)
        return CUDA_ERROR_INVALID_VALUE;
    bool right = false;
    switch (d->resType) {
    case CU_RESOURCE_TYPE_ARRAY:
        right = sim_array_is(d->res.array.hArray, NULL);
        break;
    case CU_RESOURCE_TYPE_MIPMAPPED_ARRAY:
        right = !surface && sim_array_is(NULL, d->res.mipmap.hMipmappedArray);
        break;
    case CU_RESOURCE_TYPE_LINEAR:
        right = !surface && d->res.linear.devPtr && d->res.linear.devPtr % ALIGNMENT == 0;
        break;
    case CU_RESOURCE_TYPE_PITCH2D:
        right = !surface && d->res.pitch2D.devPtr && d->res.pitch2D.devPtr % ALIGNMENT == 0 &&
                d->res.pitch2D.pitchInBytes % 32 == 0;
        break;
    default:
        break;
    }
    return right ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult check_texture(const CUDA_TEXTURE_DESC *d) {
    static const int zeros[sizeof d->reserved / sizeof *d->reserved];
    if (!d || d->filterMode > CU_TR_FILTER_MODE_LINEAR || (d->flags & ~0x73u) ||
        memcmp(d->reserved, zeros, sizeof zeros) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < 3; i++)
        if (d->addressMode[i] > CU_TR_ADDRESS_MODE_BORDER)
            return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

static CUresult make(const object_t *object, unsigned long long *value) {
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&sim.lock);
    for (unsigned i = 0; i < OBJECTS && result != CUDA_SUCCESS; i++)
        if (objects[i].kind == FREE) {
            objects[i] = *object;
            *value = i + 1;
            result = CUDA_SUCCESS;
        }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult look(unsigned long long value, int kind, object_t *out) {
    pthread_mutex_lock(&sim.lock);
    bool found = value && value <= OBJECTS && (int)objects[value - 1].kind == kind;
    if (found)
        *out = objects[value - 1];
    pthread_mutex_unlock(&sim.lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult end(unsigned long long value, int kind) {
    pthread_mutex_lock(&sim.lock);
    if (value && value <= OBJECTS && (int)objects[value - 1].kind == kind)
        memset(&objects[value - 1], 0, sizeof objects[value - 1]);
    pthread_mutex_unlock(&sim.lock);
    return CUDA_SUCCESS;
}

CUresult cuTexObjectCreate(CUtexObject *pTexObject, const CUDA_RESOURCE_DESC *pResDesc,
                           const CUDA_TEXTURE_DESC *pTexDesc, const CUDA_RESOURCE_VIEW_DESC *pResViewDesc) {
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    (void)context;
    CUresult result = pTexObject ? check_resource(pResDesc, false) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = check_texture(pTexDesc);
    if (result != CUDA_SUCCESS)
        return result;
    object_t object = {.kind = TEXTURE, .resource = *pResDesc, .texture = *pTexDesc};
    if (pResViewDesc)
        object.view = *pResViewDesc;
    return make(&object, pTexObject);
}

CUresult cuTexObjectDestroy(CUtexObject texObject) {
    SIM_ENTER_CONTEXT(context);
    SIM_UNSAFE();
    (void)context;
    return end(texObject, TEXTURE);
}

CUresult cuTexObjectGetResourceDesc(CUDA_RESOURCE_DESC *pResDesc, CUtexObject texObject) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    object_t object;
    CUresult result = pResDesc ? look(texObject, TEXTURE, &object) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pResDesc = object.resource;
    return result;
}

CUresult cuTexObjectGetTextureDesc(CUDA_TEXTURE_DESC *pTexDesc, CUtexObject texObject) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    object_t object;
    CUresult result = pTexDesc ? look(texObject, TEXTURE, &object) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pTexDesc = object.texture;
    return result;
}

CUresult cuTexObjectGetResourceViewDesc(CUDA_RESOURCE_VIEW_DESC *pResViewDesc, CUtexObject texObject) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    object_t object;
    CUresult result = pResViewDesc ? look(texObject, TEXTURE, &object) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pResViewDesc = object.view;
    return result;
}

CUresult cuSurfObjectCreate(CUsurfObject *pSurfObject, const CUDA_RESOURCE_DESC *pResDesc) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    CUresult result = pSurfObject ? check_resource(pResDesc, true) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    const object_t object = {.kind = SURFACE, .resource = *pResDesc};
    return make(&object, pSurfObject);
}

CUresult cuSurfObjectDestroy(CUsurfObject surfObject) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    return end(surfObject, SURFACE);
}

CUresult cuSurfObjectGetResourceDesc(CUDA_RESOURCE_DESC *pResDesc, CUsurfObject surfObject) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    object_t object;
    CUresult result = pResDesc ? look(surfObject, SURFACE, &object) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pResDesc = object.resource;
    return result;
}
