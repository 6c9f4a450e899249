/*
 * Memory that other sessions of this worker map, and what this session maps of theirs.
 *
 * Executor thread only. The supervisor stands between sessions: it keeps the descriptors, makes the handles that programs pass
 * around, and decides who may open what. So an export and an import are questions to it, and are answered when its answer comes;
 * what is in that answer was told by another session, which a hostile client may have taken over, and is bounded here.
 *
 * Memory counts once. Whoever allocated it pays until it has been freed; if others still have it mapped then, one of them is
 * asked to take it over (PAY), and only when that is done (RELEASED) does the former payer give its bytes back. The sum on the
 * quota page is so never less than what is held.
 */
#include "tpg_session.h"
#include "tpw_memory.h"

#include <stdlib.h>
#include <unistd.h>

#define IMPORTS_MAX 4096u

/* What this session's client has a handle of, or is about to get one. */
struct tpw_share {
    struct tpw_share *next;
    uint64_t number;          /* the supervisor's; 0 until it has answered */
    struct tpw_share **owner; /* what has it; NULL: it has been freed, and only its bytes are still counted here */
    uint32_t device;
    bool in_arena;
    uint64_t charged;
    uint64_t size; /* of a pool, that the supervisor is told */
    CUipcMemHandle handle;
};

/* What another session shares. */
struct tpw_import {
    struct tpw_import *next;
    uint64_t number, block;
    uint32_t device, users,
        grants; /* users: mappings and handles; grants: how often the supervisor gave it to us since we last left it */
    bool pays, grows; /* grows: a pool */
};

/* A mapping of it: the detail of its range. */
struct mapped {
    struct tpw_import *import;
    uint64_t address;
};

/* ---- sharing ---- */

static void unlink_share(struct tpw_session *s, struct tpw_share *share) {
    TP_UNLINK(s->memory->shares, share);
    free(share);
}

/* Nobody pays here any more for what was freed. */
static void share_over(struct tpw_session *s, struct tpw_share *share) {
    if (share->in_arena) {
        tpw_arena_uncount(s, share->device, share->charged);
    } else {
        tpw_uncharge(s, share->device, share->charged);
    }
    unlink_share(s, share);
}

bool tpw_share_freed(struct tpw_session *s, struct tpw_share **owner, uint64_t charged) {
    struct tpw_share *share = *owner;
    if (!share) {
        return false;
    }
    *owner = NULL;
    share->owner = NULL;
    share->charged = charged;
    if (share->number) {
        tpw_leave_share(s, share->number, 0);
    } /* else its answer is on its way */
    return true;
}

static void tell_size(const struct tpw_session *s, const struct tpw_share *share) {
    const struct tpw_packet packet = {.type = TPW_GROWN, .value = share->number, .key = share->size};
    if (share->number && share->size) {
        (void)tpw_control_send(s, &packet, -1);
    }
}

int32_t tpw_share_ask(struct tpw_session *s, const struct tp_frame *frame, tpw_answered *told, struct tpw_share **owner,
                      const struct tpw_shared *what, int fd) {
    struct tpw_packet packet = {.type = TPW_SHARE, .body.shared = *what};
    struct tpw_share *share = calloc(1, sizeof *share);
    const struct tpw_question question = {.frame = *frame, .answered = told, .what = share};
    int32_t error = share ? tpw_ask(s, &question, &packet, fd) : (int32_t)CUDA_ERROR_OUT_OF_MEMORY;
    if (fd >= 0) {
        close(fd);
    }
    if (error != TPW_LATER) {
        free(share);
        return error;
    }
    *share = (struct tpw_share){.next = s->memory->shares,
                                .owner = owner,
                                .device = what->device,
                                .size = what->kind == TPW_SHARES_POOL ? what->size : 0,
                                .in_arena = what->kind == TPW_SHARES_MEMORY};
    s->memory->shares = *owner = share;
    return TPW_LATER;
}

int32_t tpw_share_settle(struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet,
                         void *handle) {
    struct tpw_share *share = question->what;
    memcpy(&share->handle, packet->body.shared.handle, sizeof share->handle);
    memcpy(handle, &share->handle, sizeof share->handle);
    share->number = packet->value;
    if (share->number && share->owner) {
        tell_size(s, share); /* as it is by now */
        return CUDA_SUCCESS;
    }
    if (share->number) {
        tpw_leave_share(s, share->number, 0); /* freed meanwhile */
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (share->owner) {
        *share->owner = NULL;
        unlink_share(s, share);
    } else {
        share_over(s, share);
    }
    return packet->body.shared.error ? packet->body.shared.error : CUDA_ERROR_UNKNOWN;
}

uint64_t tpw_share_number(const struct tpw_share *share) { return share->number; }

void tpw_share_grown(struct tpw_session *s, struct tpw_share *share, uint64_t bytes) {
    if (share && bytes > share->size) {
        share->size = (bytes + TPW_GRANULE - 1) & ~(TPW_GRANULE - 1); /* nobody need hear of each allocation */
        tell_size(s, share);
    }
}

int32_t tpw_share_handle(const struct tpw_share *share, void *handle) {
    memcpy(handle, &share->handle, sizeof share->handle);
    return share->number ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

/* The descriptor of the driver's allocation that holds the range; -1 with *error. */
static int export_block(struct tpw_session *s, const struct tp_interval *block, int32_t *error) {
    CUmemGenericAllocationHandle native = 0;
    int fd = -1;
    *error = (int32_t)s->cuda.cuMemRetainAllocationHandle(&native, (void *)(uintptr_t)block->start);
    if (!*error) {
        *error =
            (int32_t)s->cuda.cuMemExportToShareableHandle(&fd, native, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
        s->cuda.cuMemRelease(native);
    }
    return *error ? -1 : fd;
}

int32_t tpw_ipc_memory_export(struct tpw_session *s, const struct tp_frame *frame,
                              const struct tpg_ipc_memory_export_in *in, struct tpg_ipc_memory_export_out *out) {
    struct tpw_range *range = tpw_range_at(s, in->address);
    if (!range || range->kind > TPW_RANGE_NATIVE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (range->share) { /* until the answer has come nobody asks again: the client's threads wait for each other */
        return tpw_share_handle(range->share, &out->handle);
    }
    struct tpw_chunk *chunk = (struct tpw_chunk *)tp_interval_at(&s->memory->chunks, range->at.start);
    if (!chunk || !chunk->shareable) {
        tp_log(TP_WARN, "memory at 0x%llx cannot be shared: this driver gave it without a file descriptor",
               (unsigned long long)in->address);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    int32_t error = CUDA_SUCCESS;
    int fd = export_block(s, &chunk->at, &error);
    TPW_TRY(error);
    const struct tpw_shared what = {.block = chunk->at.size,
                                    .offset = range->at.start - chunk->at.start,
                                    .size = range->at.size,
                                    .device = range->device};
    chunk->shared = true;
    return tpw_share_ask(s, frame, tpg_told_ipc_memory_export, &range->share, &what, fd);
}

/* ---- importing ---- */

static struct tpw_import *import_of(struct tpw_session *s, uint64_t number) {
    return TP_FIND(s->memory ? s->memory->imports : NULL, it->number == number);
}

static void unlink_import(struct tpw_session *s, struct tpw_import *import) {
    TP_UNLINK(s->memory->imports, import);
    free(import);
}

/* Whether what another session told of its memory can be true at all. */
static bool is_sound(const struct tpw_session *s, const struct tpw_shared *what) {
    return what->device < (uint32_t)s->device_count && what->block && what->block % TPW_GRANULE == 0 &&
           what->offset < what->block && what->size && what->size <= what->block - what->offset;
}

/* Access for the memory's own device, for that of the context that asks, and for those that have it to the rest. */
static int32_t give_access(struct tpw_session *s, uint32_t owner, uint32_t asks, uint64_t address, uint64_t size,
                           uint32_t *mask) {
    CUmemAccessDesc access[TPW_MAX_DEVICES];
    size_t count = 0;
    for (uint32_t reader = 0; reader < (uint32_t)s->device_count; reader++) {
        if (reader == owner || reader == asks || s->memory->readers[owner][reader]) {
            access[count++] =
                (CUmemAccessDesc){.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = s->devices[reader]},
                                  .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
            *mask |= 1u << reader;
        }
    }
    return (int32_t)s->cuda.cuMemSetAccess(address, size, access, count);
}

/* Maps the block, of which the client gets its part. */
static int32_t map_block(struct tpw_session *s, const struct tpw_question *question, struct tpw_import *import,
                         const struct tpw_shared *what, int fd, struct tpg_ipc_memory_open_out *out) {
    CUmemGenericAllocationHandle native = 0;
    uint32_t mask = 0;
    bool is_mapped = false;
    struct mapped *mapped = calloc(1, sizeof *mapped);
    uint64_t address = mapped ? tpw_span_take(s->memory, what->block, TPW_GRANULE, 0) : 0;
    int32_t error = address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (!error) {
        error = (int32_t)s->cuda.cuMemImportFromShareableHandle(&native, (void *)(intptr_t)fd,
                                                                CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    }
    if (!error) {
        error = (int32_t)s->cuda.cuMemMap(address, what->block, 0, native, 0);
        is_mapped = !error;
        s->cuda.cuMemRelease(native); /* the mapping keeps it */
    }
    if (!error) {
        error = give_access(s, what->device, tpw_context_device(s, question->context), address, what->block, &mask);
    }
    struct tpw_range *range = error ? NULL : tpw_range_new(s, address + what->offset, what->size, TPW_RANGE_IMPORT);
    if (!range) {
        if (is_mapped) {
            s->cuda.cuMemUnmap(address, what->block);
        }
        if (address) {
            tpw_span_give(s->memory, address, what->block);
        }
        free(mapped);
        return error ? error : (int32_t)CUDA_ERROR_OUT_OF_MEMORY;
    }
    *mapped = (struct mapped){.import = import, .address = address};
    range->device = what->device;
    range->context = tpw_home_of(s, question->context);
    range->access = mask;
    range->detail = mapped;
    *out = (struct tpg_ipc_memory_open_out){.address = range->at.start, .size = what->size, .device = what->device};
    return CUDA_SUCCESS;
}

static int32_t reaches(struct tpw_session *s, uint32_t device, uint32_t owner) {
    int can = 1;
    int32_t error = device == owner
                        ? CUDA_SUCCESS
                        : (int32_t)s->cuda.cuDeviceCanAccessPeer(&can, s->devices[device], s->devices[owner]);
    return error || can ? error : (int32_t)CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
}

struct tpw_import *tpw_import_take(struct tpw_session *s, const struct tpw_packet *packet, int32_t *error) {
    const struct tpw_shared *what = &packet->body.shared;
    struct tpw_import *import = import_of(s, packet->value);
    if (!import) {
        import = calloc(1, sizeof *import);
        if (!import) {
            tpw_leave_share(s, packet->value, 1);
            *error = CUDA_ERROR_OUT_OF_MEMORY;
            return NULL;
        }
        *import = (struct tpw_import){
            .next = s->memory->imports, .number = packet->value, .block = what->block, .device = what->device};
        s->memory->imports = import;
    }
    import->grants++;
    import->users++;
    s->memory->import_count++;
    if (what->kind == TPW_SHARES_POOL && !import->pays) {
        import->block = what->block;
        import->grows = true;
    }
    bool sound = is_sound(s, what) && what->device == import->device && (import->grows || what->block == import->block);
    *error = sound ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    return import;
}

void tpw_import_drop(struct tpw_session *s, struct tpw_import *import) {
    s->memory->import_count--;
    if (--import->users) {
        return;
    }
    tpw_leave_share(s, import->number, import->grants);
    import->grants = 0;
    if (!import->pays) { /* else until the supervisor has found somebody else */
        unlink_import(s, import);
    }
}

int32_t tpw_granted_ipc_memory_open(struct tpw_session *s, const struct tpw_question *question,
                                    const struct tpw_packet *packet, int fd, struct tpg_ipc_memory_open_out *out) {
    const struct tpw_shared *what = &packet->body.shared;
    const struct tpw_object *context = tpw_object(s, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, question->context));
    int32_t error = CUDA_SUCCESS;
    struct tpw_import *import = tpw_import_take(s, packet, &error);
    if (!error && !s->memory->base) {
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!error && import->users > 1) {
        error = CUDA_ERROR_ALREADY_MAPPED; /* the client's library opens a handle once, and counts */
    }
    if (!error && (!context || !context->native)) {
        error = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    error = error ? error : reaches(s, tpw_context_device(s, question->context), what->device);
    error = error ? error : map_block(s, question, import, what, fd, out);
    if (error && import) {
        tpw_import_drop(s, import);
    }
    return error;
}

int32_t tpw_import_ask(struct tpw_session *s, const struct tpw_question *question, uint32_t kind, const void *handle) {
    struct tpw_packet packet = {.type = TPW_IMPORT, .body.shared.kind = kind};
    int32_t error = tpw_memory_open(s);
    if (!error && s->memory->import_count >= IMPORTS_MAX) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    TPW_TRY(error);
    memcpy(packet.body.shared.handle, handle, sizeof packet.body.shared.handle);
    return tpw_ask(s, question, &packet, -1);
}

void tpw_import_end(struct tpw_session *s, struct tpw_range *range) {
    struct mapped *mapped = range->detail;
    struct tpw_import *import = mapped->import;
    CUresult result = s->cuda.cuMemUnmap(mapped->address, import->block);
    if (result == CUDA_SUCCESS) {
        tpw_span_give(s->memory, mapped->address, import->block);
    } else {
        tp_log(TP_WARN, "cuMemUnmap of %llu shared bytes at 0x%llx failed with error %d: the addresses stay unused",
               (unsigned long long)import->block, (unsigned long long)mapped->address, result);
    }
    free(mapped);
    tpw_import_drop(s, import);
}

/* ---- what the supervisor says without being asked ---- */

/* The former payer is gone, or has freed it. */
static void pay(struct tpw_session *s, uint64_t number, uint64_t bytes) {
    struct tpw_import *import = import_of(s, number);
    if (!import || !import->users || import->pays) {
        return; /* we have just left it, which the supervisor is about to read */
    }
    size_t whole = 0;
    if (import
            ->grows) { /* another session says how much; without the driver's word for a bound it stays what was agreed */
        int32_t error = (int32_t)s->cuda.cuDeviceTotalMem_v2(&whole, s->devices[import->device]);
        import->block = error ? import->block : bytes < whole ? bytes : whole;
        if (error) {
            tp_log(TP_WARN, "the driver does not tell how much memory a device has: error %d", error);
        }
    }
    tp_quota_take_over(s->quota, import->device, import->block);
    import->pays = true;
    const struct tpw_packet packet = {.type = TPW_PAID, .value = number};
    (void)tpw_control_send(s, &packet, -1);
}

static void released(struct tpw_session *s, uint64_t number) {
    struct tpw_import *import = import_of(s, number);
    if (import && !import->users) {
        tpw_uncharge(s, import->device, import->block);
        unlink_import(s, import);
    }
    for (struct tpw_share *share = s->memory ? s->memory->shares : NULL, *next; share; share = next) {
        next = share->next;
        if (share->number == number && !share->owner) {
            share_over(s, share);
        }
    }
}

static void news(struct tpw_session *s, const struct tpw_packet *packet) {
    if (packet->type == TPW_PAY) {
        pay(s, packet->value, packet->key);
    } else {
        released(s, packet->value);
    }
}
TP_REGISTER(tpw_share_news, news);

void tpw_shares_close(struct tpw_memory *m) {
    for (struct tpw_share *next; m->shares; m->shares = next) {
        next = m->shares->next;
        free(m->shares);
    }
    for (struct tpw_import *next; m->imports; m->imports = next) {
        next = m->imports->next;
        free(m->imports);
    }
}
