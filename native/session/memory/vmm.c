/*
 * The client's own use of the virtual-memory API.
 *
 * Its reservations are stretches of the range that the session reserved (and that the client keeps free in its own
 * process), so an address it gets is never a host address of either side, and it can only map into what it reserved
 * itself. Physical memory counts on the quota page from its creation until the handle is released and the last mapping
 * is gone. Executor thread only; properties and access descriptors are the client's and are rebuilt here from the
 * fields that are understood.
 */
#include "tpg_session.h"
#include "tpw_memory.h"
#include <stdlib.h>

#define ACCESS_MAX 64u

/* Physical memory behind a handle of the client and its mappings. */
struct physical {
    uint64_t size;
    uint32_t device, references;
    struct tpw_share *share;   /* other sessions may have it */
    struct tpw_import *import; /* another session has made it, and it counts there */
};

struct reservation {
    struct tp_interval at;
};

static void let_go(struct tpw_session *s, struct physical *physical) {
    if (--physical->references) {
        return;
    }
    if (physical->import) {
        tpw_import_drop(s, physical->import);
    } else if (!tpw_share_freed(s, &physical->share, physical->size)) {
        tpw_uncharge(s, physical->device, physical->size);
    }
    free(physical);
}

/* ---- addresses ---- */

int32_t tpw_address_reserve(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_address_reserve_in *in, struct tpg_address_reserve_out *out) {
    uint64_t alignment = in->alignment > TPW_GRANULE ? in->alignment : TPW_GRANULE;
    if (!in->size || in->size % TPW_GRANULE || in->flags || (in->alignment & (in->alignment - 1))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPW_TRY(tpw_memory_open(s));
    if (!s->memory->base) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    struct reservation *reservation = calloc(1, sizeof *reservation);
    uint64_t address = reservation ? tpw_span_take(s->memory, in->size, alignment, in->hint) : 0;
    if (!address) {
        free(reservation);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    reservation->at.start = address;
    reservation->at.size = in->size;
    tp_interval_add(&s->memory->reservations, &reservation->at);
    out->address = address;
    return CUDA_SUCCESS;
}

int32_t tpw_address_free(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_address_free_in *in) {
    struct tpw_memory *m = s->memory;
    struct tp_interval *at = m ? tp_interval_at(&m->reservations, in->address) : NULL;
    if (!at || at->start != in->address || at->size != in->size ||
        tp_intervals_touch(&m->ranges, at->start, at->size)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    tp_interval_remove(&m->reservations, in->address);
    tpw_span_give(m, in->address, in->size);
    free(at);
    return CUDA_SUCCESS;
}

/* ---- physical memory ---- */

int32_t tpw_memory_create(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_memory_create_in *in,
                          const CUmemAllocationProp *wanted) {
    CUmemGenericAllocationHandle native = 0;
    uint32_t device = 0;
    int32_t error = tpw_memory_open(s);
    /* Of the flags one: others would take memory that counts elsewhere. */
    CUmemAllocationProp prop = {.type = wanted->type,
                                .location = wanted->location,
                                .allocFlags = {.compressionType = wanted->allocFlags.compressionType}};
    if (!error && (prop.type != CU_MEM_ALLOCATION_TYPE_PINNED || prop.location.type != CU_MEM_LOCATION_TYPE_DEVICE)) {
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!error && (!in->size || in->flags)) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    error = error ? error : tpw_device_index(s, prop.location.id, &device);
    if (!error && s->memory->arenas[device].shareable) { /* else exporting it is refused, by name */
        prop.requestedHandleTypes = wanted->requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    }
    struct physical *physical = error ? NULL : calloc(1, sizeof *physical);
    if (!error && !physical) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    bool charged = false;
    if (!error) {
        error = tpw_charge(s, device, in->size);
        charged = !error;
    }
    if (!error) {
        error = (int32_t)s->cuda.cuMemCreate(&native, in->size, &prop, 0);
        if (error == CUDA_ERROR_OUT_OF_MEMORY && tpw_arena_trim(s, device)) {
            error = (int32_t)s->cuda.cuMemCreate(&native, in->size, &prop, 0);
        }
    }
    error = tpw_made(s, frame, TPG_MEMORY, in->memory, native, error);
    struct tpw_object *object = error ? NULL : tpw_object(s, TPG_MEMORY, in->memory);
    if (object) {
        *physical = (struct physical){.size = in->size, .device = device, .references = 1};
        object->record = physical;
    } else {
        if (native) {
            s->cuda.cuMemRelease(native);
        }
        if (charged) {
            tpw_uncharge(s, device, in->size);
        }
        free(physical);
    }
    return error;
}

int32_t tpw_memory_export(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_memory_export_in *in,
                          struct tpg_memory_export_out *out) {
    struct tpw_object *object = tpw_object(s, TPG_MEMORY, in->memory);
    if (!object || object->error || !object->record) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct physical *physical = object->record;
    if (physical->import) { /* its maker's handle is the only one */
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (physical->share) {
        return tpw_share_handle(physical->share, &out->handle);
    }
    if (!s->memory->arenas[physical->device].shareable) {
        tp_log(TP_WARN, "this driver gives no file descriptors of memory: cuMemExportToShareableHandle is refused");
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    int fd = -1;
    int32_t error =
        (int32_t)s->cuda.cuMemExportToShareableHandle(&fd, object->native, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    const struct tpw_shared what = {
        .block = physical->size, .size = physical->size, .device = physical->device, .kind = TPW_SHARES_PHYSICAL};
    return error ? error : tpw_share_ask(s, frame, tpg_told_memory_export, &physical->share, &what, fd);
}

int32_t tpw_granted_memory_import(struct tpw_session *s, const struct tpw_question *question,
                                  const struct tpw_packet *packet, int fd, struct tpg_memory_import_out *out) {
    const struct tpw_shared *what = &packet->body.shared;
    CUmemGenericAllocationHandle native = 0;
    int32_t error = CUDA_SUCCESS;
    struct tpw_import *import = tpw_import_take(s, packet, &error);
    struct physical *physical = error ? NULL : calloc(1, sizeof *physical);
    if (!error) {
        error = physical ? (int32_t)s->cuda.cuMemImportFromShareableHandle(&native, (void *)(intptr_t)fd,
                                                                           CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
                         : (int32_t)CUDA_ERROR_OUT_OF_MEMORY;
    }
    error = error ? error : tpw_made(s, &question->frame, TPG_MEMORY, question->value, native, CUDA_SUCCESS);
    if (error) {
        if (native) {
            s->cuda.cuMemRelease(native);
        }
        if (import) {
            tpw_import_drop(s, import);
        }
        free(physical);
        return error;
    }
    *physical = (struct physical){.size = what->block, .device = what->device, .references = 1, .import = import};
    tpw_object(s, TPG_MEMORY, question->value)->record = physical;
    *out = (struct tpg_memory_import_out){.size = what->block, .device = what->device};
    return CUDA_SUCCESS;
}

int32_t tpw_memory_release(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_memory_release_in *in) {
    struct tpw_object *object = tpw_object(s, TPG_MEMORY, in->memory);
    if (!object || object->error || !object->record) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct physical *physical = object->record;
    TPW_TRY(s->cuda.cuMemRelease(object->native));
    object->record = NULL;
    tpw_forget(s, TPG_MEMORY, in->memory);
    let_go(s, physical);
    return CUDA_SUCCESS;
}

/* ---- mappings ---- */

int32_t tpw_memory_map(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_memory_map_in *in) {
    struct tpw_memory *m = s->memory;
    struct tpw_object *object = tpw_object(s, TPG_MEMORY, in->memory);
    if (!m || !object || object->error || !object->record || !in->size || in->flags) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct physical *physical = object->record;
    const struct tp_interval *at = tp_interval_at(&m->reservations, in->address);
    if (!at || in->size > at->size - (in->address - at->start) || in->offset > physical->size ||
        in->size > physical->size - in->offset || tp_intervals_touch(&m->ranges, in->address, in->size)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPW_TRY(s->cuda.cuMemMap(in->address, in->size, in->offset, object->native, 0));
    struct tpw_range *range = tpw_range_new(s, in->address, in->size, TPW_RANGE_MAP);
    if (!range) {
        s->cuda.cuMemUnmap(in->address, in->size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    range->device = physical->device;
    range->detail = physical;
    physical->references++;
    return CUDA_SUCCESS;
}

/* The mappings that make up exactly [address, address+size). */
static bool is_whole_mappings(struct tpw_session *s, uint64_t address, uint64_t size) {
    while (size) {
        const struct tpw_range *range = tpw_range_at(s, address);
        if (!range || range->kind != TPW_RANGE_MAP || range->at.start != address || range->at.size > size) {
            return false;
        }
        address += range->at.size;
        size -= range->at.size;
    }
    return true;
}

static int32_t unmap(struct tpw_session *s, uint64_t start, uint64_t size) {
    if (!size || size > UINT64_MAX - start || !is_whole_mappings(s, start, size)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPW_TRY(s->cuda.cuMemUnmap(start, size));
    for (uint64_t address = start; address - start < size;) {
        struct tpw_range *range = (struct tpw_range *)tp_interval_remove(&s->memory->ranges, address);
        address += range->at.size;
        let_go(s, range->detail);
        free(range);
    }
    return CUDA_SUCCESS;
}

static int32_t set_access(struct tpw_session *s, uint64_t start, uint64_t size, const CUmemAccessDesc *access,
                          size_t count) {
    int32_t error = CUDA_SUCCESS;
    const struct tpw_range *range = tpw_range_at(s, start);
    if (!size || !count || count > ACCESS_MAX || !range || range->kind != TPW_RANGE_MAP) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i++) {
        if (access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    tpw_check_range(s, start, size, &error);
    error = error ? error : (int32_t)s->cuda.cuMemSetAccess(start, size, access, count);
    for (uint64_t address = start; !error && address - start < size;) {
        struct tpw_range *at = tpw_range_at(s, address);
        for (size_t i = 0; i < count; i++) {
            uint32_t bit = 1u << access[i].location.id;
            bool both = access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            at->access = both ? at->access | bit : at->access & ~bit;
        }
        address = at->at.start + at->at.size;
    }
    return error;
}

/* What takes memory away from the device, behind the work that the program believes to be over. */
struct taking {
    struct tpw_ticket ticket;
    uint32_t waits; /* for streams */
    int32_t error;  /* why it is not done, once those are over that it waits for */
    uint64_t start, size;
    size_t count; /* of the rights; 0: it is unmapped */
    CUmemAccessDesc rights[ACCESS_MAX];
};

static int32_t carry_out(struct tpw_session *s, const struct taking *taking) {
    TPW_TRY(taking->error);
    return taking->count ? set_access(s, taking->start, taking->size, taking->rights, taking->count)
                         : unmap(s, taking->start, taking->size);
}

/* Also when a context broke: nothing of it uses the memory any more. */
static void reached(struct tpw_session *s, void *what, int32_t error) {
    struct taking *taking = what;
    if (--taking->waits == 0) {
        tpw_answer(s, taking->ticket, carry_out(s, taking));
        free(taking);
    }
}

/* The driver does not wait in these calls, and need not: what was synchronous for the program is over. Here it may be under way, in the
 * default stream of some context or thread, so these are waited for, and no other. */
static int32_t take_behind(struct tpw_session *s, const struct tp_frame *frame, const struct taking *what) {
    struct taking *taking = malloc(sizeof *taking);
    if (!taking) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *taking = *what;
    taking->ticket = tpw_ticket(frame);
    for (struct tpw_stream *stream = s->streams; stream && !taking->error; stream = stream->next) {
        const bool under_way = stream->dirty || stream->reached < stream->issued;
        if ((stream->native != CU_STREAM_LEGACY && !stream->thread) || !under_way) {
            continue;
        }
        const int32_t error = tpw_when_reached(s, stream, reached, taking);
        taking->waits += !error;
        /* It captures and has nothing from before, or its device is broken and does nothing any more. */
        const bool nothing = error == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED || (error && tpw_breaks(s, error));
        taking->error = nothing ? CUDA_SUCCESS : error;
    }
    if (taking->waits) {
        return TPW_LATER;
    }
    const int32_t error = carry_out(s, taking);
    free(taking);
    return error;
}

int32_t tpw_memory_unmap(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_memory_unmap_in *in) {
    return take_behind(s, frame, &(struct taking){.start = in->address, .size = in->size});
}

int32_t tpw_memory_access(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_memory_access_in *in,
                          const CUmemAccessDesc *access, size_t count) {
    bool takes = false;
    for (size_t i = 0; i < count; i++) {
        takes |= access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    }
    if (!takes || count > ACCESS_MAX) {
        return set_access(s, in->address, in->size, access, count);
    }
    struct taking taking = {.start = in->address, .size = in->size, .count = count};
    memcpy(taking.rights, access, count * sizeof *access);
    return take_behind(s, frame, &taking);
}
