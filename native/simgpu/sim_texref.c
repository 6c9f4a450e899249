// cuTexRef*, cuSurfRef*, cuModuleGet*Ref, cuParamSetTexRef: references, which nothing here samples.
//
// Defaults, refusals and what is not refused (formats, modes and filters that are none, wild addresses) are as driver 580.159
// answers on an H200; what it was not asked says "not asked". A reference belongs to a module, which makes it when it is first
// asked for and ends it, or to whoever created it. References are guarded by sim.lock.
#include "sim.h"
#include "sim_array.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 512u // of linear memory, and 32 of its pitch, as for texture objects
#define PITCH 32u
#define FLAGS 0x3fu

typedef enum { NOTHING, ADDRESS, ARRAY, MIPMAP } bound_t;

typedef struct sim_reference {
    sim_context_t *context;
    unsigned long long context_id;
    sim_module_t *module; // NULL: cuTexRefCreate made it
    const sim_named_t *named;
    struct sim_reference *next; // of the module
    bool ended;                 // one of a module that was destroyed: its name is none from then on
    bound_t bound;
    uint64_t address;
    void *array; // a CUarray or CUmipmappedArray; nobody is told when it ends
    CUarray_format format;
    int channels;
    CUaddress_mode modes[3];
    CUfilter_mode filter, mipmap_filter;
    float bias, clamp[2], border[4];
    unsigned flags, anisotropy;
} reference_t;

static sim_kind_t kind_of(bool surface) { return surface ? SIM_SURFREF : SIM_TEXREF; }

// Under sim.lock.
static reference_t *make(sim_context_t *context, bool surface) {
    reference_t *fresh = calloc(1, sizeof *fresh);
    if (!fresh || !sim_handle_add(fresh, kind_of(surface))) {
        free(fresh);
        return NULL;
    }
    fresh->context = sim_home(context);
    fresh->context_id = fresh->context->id;
    fresh->format = CU_AD_FORMAT_FLOAT;
    fresh->channels = 1;
    for (int i = 0; i < 3; i++)
        fresh->modes[i] = CU_TR_ADDRESS_MODE_CLAMP;
    return fresh;
}

static void end(reference_t *reference) {
    sim_handle_remove(reference);
    free(reference);
}

void sim_references_delete(sim_module_t *module) {
    while (module->references) {
        reference_t *reference = module->references;
        module->references = reference->next;
        end(reference);
    }
}

// With sim.lock held on success. The driver follows one whose context has ended, and crashes; here it says so.
static CUresult open_reference(const void *handle, bool surface, reference_t **out) {
    pthread_mutex_lock(&sim.lock);
    CUresult result = CUDA_SUCCESS;
    *out = sim_handle_is(handle, kind_of(surface)) ? (reference_t *)(uintptr_t)handle : NULL;
    if (!*out)
        result = CUDA_ERROR_INVALID_HANDLE;
    else if (!(*out)->context->active || (*out)->context->id != (*out)->context_id)
        result = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (result != CUDA_SUCCESS)
        pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult leave(CUresult result) {
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// Of all but cuTexRefCreate: they need no context, and any does; the handle is looked at, then a pointer, then the rest.
#define OPEN(surface, handle, valid)                                                                                   \
    SIM_ENTER_WITHOUT(context);                                                                                        \
    (void)context;                                                                                                     \
    reference_t *r;                                                                                                    \
    CUresult opened = open_reference(handle, surface, &r);                                                             \
    if (opened != CUDA_SUCCESS)                                                                                        \
        return opened;                                                                                                 \
    if (!(valid))                                                                                                      \
    return leave(CUDA_ERROR_INVALID_VALUE)

static bool packs(int channels) { return channels == 1 || channels == 2 || channels == 4; }

// ---- Where they come from ----------------------------------------------------------------------------------------

// Under sim.lock.
static CUresult find(sim_module_t *module, bool surface, const char *name, reference_t **out) {
    for (reference_t *r = module->references; r; r = r->next) {
        if (r->named->surface == surface && !strcmp(r->named->name, name)) {
            *out = r;
            return r->ended ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
        }
    }
    for (unsigned i = 0; i < module->image->nreferences; i++) {
        const sim_named_t *named = &module->image->references[i];
        if (named->surface != surface || strcmp(named->name, name) != 0)
            continue;
        reference_t *fresh = make(module->context, surface);
        if (!fresh)
            return CUDA_ERROR_OUT_OF_MEMORY;
        fresh->module = module;
        fresh->named = named;
        fresh->next = module->references;
        module->references = *out = fresh;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}

static CUresult of_module(CUmodule hmod, bool surface, const char *name, void **out) {
    reference_t *found = NULL;
    if (!out || !name)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    bool there = sim_handle_is(hmod, SIM_MODULE);
    CUresult result = there ? find((sim_module_t *)(void *)hmod, surface, name, &found) : CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_unlock(&sim.lock);
    if (result == CUDA_SUCCESS)
        *out = found;
    return result;
}

// No context is needed, as for a module's functions and variables.
CUresult cuModuleGetTexRef(CUtexref *pTexRef, CUmodule hmod, const char *name) {
    SIM_ENTER_WITH_ANY(context);
    (void)context;
    return of_module(hmod, false, name, (void **)(void *)pTexRef);
}

CUresult cuModuleGetSurfRef(CUsurfref *pSurfRef, CUmodule hmod, const char *name) {
    SIM_ENTER_WITH_ANY(context);
    (void)context;
    return of_module(hmod, true, name, (void **)(void *)pSurfRef);
}

CUresult cuTexRefCreate(CUtexref *pTexRef) {
    SIM_ENTER_CONTEXT(context);
    if (!pTexRef)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    reference_t *fresh = make(context, false);
    if (fresh)
        *pTexRef = (CUtexref)(void *)fresh;
    return leave(fresh ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

// A module's own ends as well, without an error, and the module makes no other. (The driver follows the handle of one that ended.)
CUresult cuTexRefDestroy(CUtexref hTexRef) {
    OPEN(false, hTexRef, true);
    if (r->module) {
        r->ended = true;
        sim_handle_remove(r);
    } else {
        end(r);
    }
    return leave(CUDA_SUCCESS);
}

// Any unit is taken, and has done nothing for long.
CUresult cuParamSetTexRef(CUfunction hfunc, int texunit, CUtexref hTexRef) {
    SIM_ENTER_CONTEXT(context);
    reference_t *r;
    sim_function_t *function;
    int *attributes;
    (void)texunit;
    CUresult result = open_reference(hTexRef, false, &r);
    if (result != CUDA_SUCCESS)
        return result;
    return leave(sim_function_resolve(context, hfunc, &function, &attributes));
}

// ---- What they stand for -----------------------------------------------------------------------------------------

static void bind(reference_t *r, bound_t bound, uint64_t address, void *array) {
    r->bound = bound;
    r->address = address;
    r->array = array;
}

// One that has ended is bound no more.
static CUresult array_of(const reference_t *r, bound_t bound, void **out) {
    if (r->bound != bound || !sim_handle_is(r->array, bound == ARRAY ? SIM_ARRAY : SIM_MIPMAP))
        return CUDA_ERROR_INVALID_VALUE;
    *out = r->array;
    return CUDA_SUCCESS;
}

// The flag may be left out, and there is no other. The format that it takes over is told from then on.
static CUresult take_array(reference_t *r, CUarray array, unsigned flags, const CUDA_ARRAY_DESCRIPTOR *shape) {
    if (flags & ~(unsigned)CU_TRSA_OVERRIDE_FORMAT)
        return CUDA_ERROR_INVALID_VALUE;
    bind(r, ARRAY, 0, array);
    if (flags & CU_TRSA_OVERRIDE_FORMAT) {
        r->format = shape->Format;
        r->channels = (int)shape->NumChannels;
    }
    return CUDA_SUCCESS;
}

CUresult cuTexRefSetArray(CUtexref hTexRef, CUarray hArray, unsigned int Flags) {
    CUDA_ARRAY_DESCRIPTOR shape;
    CUresult result = cuArrayGetDescriptor_v2(&shape, hArray);
    OPEN(false, hTexRef, true);
    return leave(result == CUDA_SUCCESS ? take_array(r, hArray, Flags, &shape) : result);
}

CUresult cuTexRefGetArray(CUarray *phArray, CUtexref hTexRef) {
    OPEN(false, hTexRef, phArray);
    return leave(array_of(r, ARRAY, (void **)(void *)phArray));
}

// Not asked, but for NULL: as cuTexRefSetArray.
CUresult cuTexRefSetMipmappedArray(CUtexref hTexRef, CUmipmappedArray hMipmappedArray, unsigned int Flags) {
    CUarray level;
    CUDA_ARRAY_DESCRIPTOR shape;
    CUresult result = cuMipmappedArrayGetLevel(&level, hMipmappedArray, 0);
    result = result == CUDA_SUCCESS ? cuArrayGetDescriptor_v2(&shape, level) : result;
    OPEN(false, hTexRef, true);
    if (result == CUDA_SUCCESS)
        result = take_array(r, level, Flags, &shape);
    if (result == CUDA_SUCCESS)
        bind(r, MIPMAP, 0, hMipmappedArray);
    return leave(result);
}

CUresult cuTexRefGetMipmappedArray(CUmipmappedArray *phMipmappedArray, CUtexref hTexRef) {
    OPEN(false, hTexRef, phMipmappedArray);
    return leave(array_of(r, MIPMAP, (void **)(void *)phMipmappedArray));
}

// Where memory begins behind an aligned address, the offset must be wanted. The aligned address is what is bound; 0 is one, too.
CUresult cuTexRefSetAddress_v2(size_t *ByteOffset, CUtexref hTexRef, CUdeviceptr dptr, size_t bytes) {
    OPEN(false, hTexRef, true);
    (void)bytes;
    size_t offset = dptr % ALIGNMENT;
    if (offset && !ByteOffset)
        return leave(CUDA_ERROR_INVALID_VALUE);
    if (ByteOffset)
        *ByteOffset = offset;
    bind(r, ADDRESS, dptr - offset, NULL);
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefSetAddress(unsigned int *ByteOffset, CUtexref hTexRef, CUdeviceptr_v1 dptr, unsigned int bytes) {
    size_t offset = 0;
    CUresult result = cuTexRefSetAddress_v2(ByteOffset ? &offset : NULL, hTexRef, dptr, bytes);
    if (result == CUDA_SUCCESS && ByteOffset)
        *ByteOffset = (unsigned)offset;
    return result;
}

// An address must be aligned here, because nobody could be told an offset, and a row must fit. Any channels will do.
static size_t row_of(const CUDA_ARRAY_DESCRIPTOR *desc) {
    const bool half = desc->Format == CU_AD_FORMAT_HALF || desc->Format == CU_AD_FORMAT_UNSIGNED_INT16 ||
                      desc->Format == CU_AD_FORMAT_SIGNED_INT16;
    const bool byte = desc->Format == CU_AD_FORMAT_UNSIGNED_INT8 || desc->Format == CU_AD_FORMAT_SIGNED_INT8;
    return desc->Width * desc->NumChannels * (byte ? 1 : half ? 2 : 4);
}

static CUresult set_2d(CUtexref handle, const CUDA_ARRAY_DESCRIPTOR *desc, uint64_t address, size_t pitch) {
    OPEN(false, handle, desc);
    if (pitch % PITCH || pitch < row_of(desc) || address % ALIGNMENT)
        return leave(CUDA_ERROR_INVALID_VALUE);
    r->format = desc->Format;
    r->channels = (int)desc->NumChannels;
    bind(r, ADDRESS, address, NULL);
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefSetAddress2D_v3(CUtexref hTexRef, const CUDA_ARRAY_DESCRIPTOR *desc, CUdeviceptr dptr, size_t Pitch) {
    return set_2d(hTexRef, desc, dptr, Pitch);
}

CUresult cuTexRefSetAddress2D_v2(CUtexref hTexRef, const CUDA_ARRAY_DESCRIPTOR *desc, CUdeviceptr dptr, size_t Pitch) {
    return set_2d(hTexRef, desc, dptr, Pitch);
}

CUresult cuTexRefSetAddress2D(CUtexref hTexRef, const CUDA_ARRAY_DESCRIPTOR_v1 *desc, CUdeviceptr_v1 dptr,
                              unsigned int Pitch) {
    const CUDA_ARRAY_DESCRIPTOR_v1 none = {.Width = 0}, *d = desc ? desc : &none;
    const CUDA_ARRAY_DESCRIPTOR wide = {
        .Width = d->Width, .Height = d->Height, .Format = d->Format, .NumChannels = d->NumChannels};
    return set_2d(hTexRef, desc ? &wide : NULL, dptr, Pitch);
}

CUresult cuTexRefGetAddress_v2(CUdeviceptr *pdptr, CUtexref hTexRef) {
    OPEN(false, hTexRef, pdptr);
    if (r->bound != ADDRESS)
        return leave(CUDA_ERROR_INVALID_VALUE);
    *pdptr = r->address;
    return leave(CUDA_SUCCESS);
}

// Not asked: the low half of an address that does not fit.
CUresult cuTexRefGetAddress(CUdeviceptr_v1 *pdptr, CUtexref hTexRef) {
    CUdeviceptr address;
    CUresult result = cuTexRefGetAddress_v2(pdptr ? &address : NULL, hTexRef);
    if (result == CUDA_SUCCESS)
        *pdptr = (CUdeviceptr_v1)address;
    return result;
}

// Not asked: any array will do, no flag is known, and nothing bound is an error as it is of a texture.
CUresult cuSurfRefSetArray(CUsurfref hSurfRef, CUarray hArray, unsigned int Flags) {
    CUDA_ARRAY_DESCRIPTOR shape;
    CUresult result = cuArrayGetDescriptor_v2(&shape, hArray);
    OPEN(true, hSurfRef, true);
    if (result == CUDA_SUCCESS && Flags)
        result = CUDA_ERROR_INVALID_VALUE;
    return leave(result == CUDA_SUCCESS ? take_array(r, hArray, 0, &shape) : result);
}

CUresult cuSurfRefGetArray(CUarray *phArray, CUsurfref hSurfRef) {
    OPEN(true, hSurfRef, phArray);
    return leave(array_of(r, ARRAY, (void **)(void *)phArray));
}

// ---- How they are read -------------------------------------------------------------------------------------------

CUresult cuTexRefSetFormat(CUtexref hTexRef, CUarray_format fmt, int NumPackedComponents) {
    OPEN(false, hTexRef, true);
    if (!packs(NumPackedComponents))
        return leave(CUDA_ERROR_INVALID_VALUE);
    r->format = fmt;
    r->channels = NumPackedComponents;
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefGetFormat(CUarray_format *pFormat, int *pNumChannels, CUtexref hTexRef) {
    OPEN(false, hTexRef, true);
    if (pFormat) // either may be NULL
        *pFormat = r->format;
    if (pNumChannels)
        *pNumChannels = r->channels;
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefSetAddressMode(CUtexref hTexRef, int dim, CUaddress_mode am) {
    OPEN(false, hTexRef, true);
    if (dim < 0 || dim > 2)
        return leave(CUDA_ERROR_INVALID_VALUE);
    r->modes[dim] = am;
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefGetAddressMode(CUaddress_mode *pam, CUtexref hTexRef, int dim) {
    OPEN(false, hTexRef, pam);
    if (dim < 0 || dim > 2)
        return leave(CUDA_ERROR_INVALID_VALUE);
    *pam = r->modes[dim];
    return leave(CUDA_SUCCESS);
}

#define SETTING(name, type, field, gets)                                                                               \
    CUresult cuTexRefSet##name(CUtexref hTexRef, type value) {                                                         \
        OPEN(false, hTexRef, true);                                                                                    \
        r->field = value;                                                                                              \
        return leave(CUDA_SUCCESS);                                                                                    \
    }                                                                                                                  \
    CUresult cuTexRefGet##name(gets *value, CUtexref hTexRef) {                                                        \
        OPEN(false, hTexRef, value);                                                                                   \
        *value = (gets)r->field;                                                                                       \
        return leave(CUDA_SUCCESS);                                                                                    \
    }
SETTING(FilterMode, CUfilter_mode, filter, CUfilter_mode)
SETTING(MipmapFilterMode, CUfilter_mode, mipmap_filter, CUfilter_mode)
SETTING(MipmapLevelBias, float, bias, float)
SETTING(MaxAnisotropy, unsigned int, anisotropy, int)

CUresult cuTexRefSetMipmapLevelClamp(CUtexref hTexRef, float minMipmapLevelClamp, float maxMipmapLevelClamp) {
    OPEN(false, hTexRef, true);
    r->clamp[0] = minMipmapLevelClamp;
    r->clamp[1] = maxMipmapLevelClamp;
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefGetMipmapLevelClamp(float *pminMipmapLevelClamp, float *pmaxMipmapLevelClamp, CUtexref hTexRef) {
    OPEN(false, hTexRef, pminMipmapLevelClamp != NULL && pmaxMipmapLevelClamp != NULL);
    *pminMipmapLevelClamp = r->clamp[0];
    *pmaxMipmapLevelClamp = r->clamp[1];
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefSetBorderColor(CUtexref hTexRef, float *pBorderColor) {
    OPEN(false, hTexRef, pBorderColor);
    memcpy(r->border, pBorderColor, sizeof r->border);
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefGetBorderColor(float *pBorderColor, CUtexref hTexRef) {
    OPEN(false, hTexRef, pBorderColor);
    memcpy(pBorderColor, r->border, sizeof r->border);
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefSetFlags(CUtexref hTexRef, unsigned int Flags) {
    OPEN(false, hTexRef, true);
    if (Flags & ~FLAGS)
        return leave(CUDA_ERROR_INVALID_VALUE);
    r->flags = Flags;
    return leave(CUDA_SUCCESS);
}

CUresult cuTexRefGetFlags(unsigned int *pFlags, CUtexref hTexRef) {
    OPEN(false, hTexRef, pFlags);
    *pFlags = r->flags;
    return leave(CUDA_SUCCESS);
}
