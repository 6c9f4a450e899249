/*
 * CUDA arrays and mipmaps: charged before they are made, as all memory is, and given back when queued work is over.
 *
 * Executor thread only. What an array will take is what the driver says of one of the same shape that is to be mapped later: to
 * make such a one takes no memory. The record of an array or mipmap is its charge; levels have none, they are their mipmap's.
 * A charge whose handle has ended is in the list of those that end.
 */
#include "tpg_session.h"
#include "tpw_memory.h"

#include <stdlib.h>

#define TILE 65536u /* what the driver counts them in */
#define MAPPED_LATER ((unsigned)CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)

struct tpw_charge {
    struct tpw_charge *next;
    uint64_t bytes, native; /* 0 once its context has ended, and the array with it */
    uint32_t device, kind, context;
};

/* At least so many, where the driver does not tell. */
static uint64_t texels(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    const uint64_t rows = d->Height ? d->Height : 1, slices = d->Depth ? d->Depth : 1;
    uint64_t bytes = 0;
    bool many = __builtin_mul_overflow(d->Width, rows, &bytes) || __builtin_mul_overflow(bytes, slices, &bytes) ||
                __builtin_mul_overflow(bytes, d->NumChannels, &bytes);
    return many ? UINT64_MAX : bytes;
}

/* `levels` of 0: an array, else a mipmap of up to so many. */
static int32_t make(struct tpw_session *s, const CUDA_ARRAY3D_DESCRIPTOR *d, uint32_t kind, unsigned levels,
                    uint64_t *native) {
    CUarray array = NULL;
    CUmipmappedArray mipmap = NULL;
    int32_t error = (int32_t)(kind == TPG_ARRAY ? s->cuda.cuArray3DCreate_v2(&array, d)
                                                : s->cuda.cuMipmappedArrayCreate(&mipmap, d, levels));
    *native = kind == TPG_ARRAY ? (uint64_t)(uintptr_t)array : (uint64_t)(uintptr_t)mipmap;
    return error;
}

static void end(struct tpw_session *s, uint32_t kind, uint64_t native) {
    if (kind == TPG_ARRAY) {
        s->cuda.cuArrayDestroy((CUarray)(uintptr_t)native);
    } else {
        s->cuda.cuMipmappedArrayDestroy((CUmipmappedArray)(uintptr_t)native);
    }
}

static void give_back(struct tpw_session *s, struct tpw_charge *charge) {
    if (charge->native) {
        end(s, charge->kind, charge->native);
        tpw_uncharge(s, charge->device, charge->bytes);
    }
    charge->native = 0;
}

/* The driver may wait for work that came since, and that work for a word of the client's that stands behind this. */
static void over(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_charge *charge = what;
    (void)error; /* a broken context does no more work either */
    if (charge->native && tpw_work_stands(s)) {
        if (!tpw_when_everything_done(s, over, charge)) {
            return;
        }
        tp_log(TP_ERROR, "no memory to wait with the end of an array: it stays until the session ends");
        charge->native = 0;
    }
    give_back(s, charge);
    TP_UNLINK(s->memory->ending, charge);
    free(charge);
}

/* Ends what a charge is for, once everything that is queued now is done. */
static void end_later(struct tpw_session *s, struct tpw_charge *charge) {
    TP_PUSH(s->memory->ending, charge);
    if (tpw_when_everything_done(s, over, charge)) {
        tp_log(TP_ERROR, "no memory to end an array behind the work that uses it: it stays until its context ends");
    }
}

/* How much it will take. Of a shape that the driver has no twin of, at least its texels: making it says what is wrong. */
static int32_t needed(struct tpw_session *s, const CUDA_ARRAY3D_DESCRIPTOR *d, uint32_t kind, unsigned levels,
                      CUdevice device, struct tpw_charge *twin, uint64_t *bytes) {
    CUDA_ARRAY3D_DESCRIPTOR later = *d;
    CUDA_ARRAY_MEMORY_REQUIREMENTS told = {0};
    uint64_t native = 0, least = texels(d);
    *bytes = 0;
    if (d->Flags & MAPPED_LATER) {
        return CUDA_SUCCESS;
    }
    later.Flags |= CUDA_ARRAY3D_DEFERRED_MAPPING;
    if (make(s, &later, kind, levels, &native)) {
        *bytes = least < UINT64_MAX - TILE ? (least + TILE - 1) / TILE * TILE : TILE;
        return CUDA_SUCCESS;
    }
    twin->native = native;
    int32_t error =
        (int32_t)(kind == TPG_ARRAY ? s->cuda.cuArrayGetMemoryRequirements(&told, (CUarray)(uintptr_t)native, device)
                                    : s->cuda.cuMipmappedArrayGetMemoryRequirements(
                                          &told, (CUmipmappedArray)(uintptr_t)native, device));
    *bytes = told.size;
    return error;
}

int32_t tpw_array_make(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle,
                       const void *shape, unsigned levels) {
    CUDA_ARRAY3D_DESCRIPTOR d;
    uint32_t device = 0;
    memcpy(&d, shape, sizeof d);
    uint64_t native = 0;
    int32_t error = tpw_memory_open(s);
    error = error ? error : tpw_current_device(s, &device);
    struct tpw_charge *charge = calloc(1, sizeof *charge), *twin = calloc(1, sizeof *twin);
    error = error || (charge && twin) ? error : CUDA_ERROR_OUT_OF_MEMORY;
    if (error) {
        free(charge);
        free(twin);
        return tpw_made(s, frame, kind, handle, 0, error);
    }
    *charge = *twin = (struct tpw_charge){.device = device, .kind = kind, .context = tpw_home_of(s, s->entered)};
    uint64_t bytes = 0;
    error = needed(s, &d, kind, levels, s->devices[device], twin, &bytes);
    end_later(s, twin);
    error = error ? error : tpw_charge(s, device, bytes);
    const bool charged = !error;
    error = error ? error : make(s, &d, kind, levels, &native);
    if (error == CUDA_ERROR_OUT_OF_MEMORY && charged && tpw_arena_trim(s, device)) {
        error = make(s, &d, kind, levels, &native);
    }
    const bool there = !error;
    error = tpw_made(s, frame, kind, handle, native, error);
    struct tpw_object *object = error ? NULL : tpw_object(s, kind, handle);
    if (object) {
        charge->bytes = bytes;
        charge->native = native;
        object->record = charge;
        return CUDA_SUCCESS;
    }
    if (there) {
        end(s, kind, native);
    }
    if (charged) {
        tpw_uncharge(s, device, bytes);
    }
    free(charge);
    return error;
}

/* The handles end at once, those of what lies inside, too. */
int32_t tpw_array_end(struct tpw_session *s, uint32_t kind, uint64_t handle) {
    struct tpw_object *object = tpw_object(s, kind, handle);
    if (!object || object->error) {
        return object ? object->error : CUDA_ERROR_INVALID_HANDLE;
    }
    struct tpw_charge *charge = object->record;
    object->record = NULL;
    tpw_forget(s, kind, handle);
    if (charge) {
        end_later(s, charge);
    }
    return CUDA_SUCCESS;
}

/* A primary context may stay in the driver. */
static void context_left(struct tpw_session *s, const struct tpw_gone *gone) {
    const uint32_t context = gone->id;
    static const uint32_t kinds[] = {TPG_ARRAY, TPG_MIPMAP};
    struct tpw_object *object;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (uint32_t at = 0; (object = tpw_next_object(s, kinds[k], &at));) {
            if (object->context == context && object->record) {
                give_back(s, object->record);
                free(object->record);
                object->record = NULL;
            }
        }
    }
    for (struct tpw_charge *charge = s->memory ? s->memory->ending : NULL; charge; charge = charge->next) {
        if (charge->context == context) {
            give_back(s, charge);
        }
    }
}
TP_REGISTER(tpw_context_left, context_left);
