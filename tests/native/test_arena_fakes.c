/*
 * Around the memory files of a session: a driver that checks what it is told, and the session's rest.
 *
 * The driver keeps what is mapped and refuses, loudly, every copy, memset or mapping outside it, so that an address or
 * a length that gets past the session's checks fails the test. The GPU "works" only when `tpw_poll` is called and
 * `gpu_runs` is set. One thread.
 */
#include "test_arena.h"

#include <pthread.h>

/* ---- the driver ---- */

struct tp_intervals mapped; /* of the driver */
uint64_t reserved_at, reserved_size, physical_used;
static uint64_t copies;
static struct {
    uint64_t size;
    int references;
} physical[4096];

size_t access_left;

bool is_mapped(uint64_t address, uint64_t size) {
    while (size) {
        const struct tp_interval *at = tp_interval_at(&mapped, address);
        if (!at) {
            return false;
        }
        uint64_t room = at->size - (address - at->start);
        uint64_t step = room < size ? room : size;
        address += step;
        size -= step;
    }
    return true;
}

static CUresult attribute(int *value, CUdevice_attribute which, CUdevice device) {
    (void)device;
    *value = which == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
    return CUDA_SUCCESS;
}
static CUresult context_device(CUdevice *device) {
    *device = 0;
    return CUDA_SUCCESS;
}
static CUresult fine(void) { return CUDA_SUCCESS; }
static CUresult address_reserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr,
                                unsigned long long flags) {
    (void)alignment;
    (void)flags;
    if (size > 1ull << 40) {
        return CUDA_ERROR_OUT_OF_MEMORY; /* so that a smaller reservation has to do */
    }
    *ptr = reserved_at = addr;
    reserved_size = size;
    return CUDA_SUCCESS;
}
static void drop(uint64_t handle) {
    if (--physical[handle].references == 0) {
        physical_used -= physical[handle].size;
        physical[handle].size = 0;
    }
}
static CUresult create(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                       unsigned long long flags) {
    CHECK(!prop->win32HandleMetaData && prop->requestedHandleTypes == 0 &&
          prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE && !flags);
    if (size % TPW_GRANULE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (size > CARD - physical_used) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (uint64_t i = 1; i < 4096; i++) {
        if (!physical[i].size) {
            physical[i].size = size;
            physical[i].references = 1;
            physical_used += size;
            *handle = i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}
static CUresult release(CUmemGenericAllocationHandle handle) {
    drop(handle);
    return CUDA_SUCCESS;
}
struct mapping {
    struct tp_interval at;
    uint64_t handle;
    uint32_t access; /* a bit for each device */
};
static CUresult map(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                    unsigned long long flags) {
    CHECK(!flags && ptr >= reserved_at && ptr + size <= reserved_at + reserved_size);
    CHECK(offset + size <= physical[handle].size && physical[handle].references > 0);
    struct mapping *mapping = calloc(1, sizeof *mapping);
    mapping->at = (struct tp_interval){.start = ptr, .size = size};
    mapping->handle = handle;
    CHECK(tp_interval_add(&mapped, &mapping->at));
    physical[handle].references++;
    return CUDA_SUCCESS;
}
static CUresult unmap(CUdeviceptr ptr, size_t size) {
    while (size) {
        struct mapping *mapping = (struct mapping *)tp_interval_remove(&mapped, ptr);
        CHECK(mapping && mapping->at.size <= size);
        ptr += mapping->at.size;
        size -= mapping->at.size;
        drop(mapping->handle);
        free(mapping);
    }
    return CUDA_SUCCESS;
}
static CUresult set_access(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count) {
    CHECK(is_mapped(ptr, size) && count);
    for (size_t i = 0; i < count; i++) {
        CHECK(desc[i].location.id < session.device_count);
        if (desc[i].location.id && desc[i].flags && access_left-- == 0) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    for (uint64_t end = ptr + size; ptr < end;) {
        struct mapping *mapping = (struct mapping *)tp_interval_at(&mapped, ptr);
        for (size_t i = 0; i < count; i++) {
            uint32_t bit = 1u << desc[i].location.id;
            mapping->access = desc[i].flags ? mapping->access | bit : mapping->access & ~bit;
        }
        ptr = mapping->at.start + mapping->at.size;
    }
    return CUDA_SUCCESS;
}
bool all_reached_by(uint32_t devices) {
    for (struct tp_interval *at = tp_interval_from(&mapped, 0); at; at = tp_interval_from(&mapped, at->start + 1)) {
        if (((struct mapping *)at)->access != devices) {
            return false;
        }
    }
    return true;
}
static CUresult peer(CUcontext context, unsigned int flags) {
    (void)context;
    return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
static CUresult no_peer(CUcontext context) {
    (void)context;
    return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}
static CUresult info(size_t *available, size_t *total) {
    *available = CARD - physical_used;
    *total = CARD;
    return CUDA_SUCCESS;
}
static CUresult host_alloc(void **out, size_t size, unsigned int flags) {
    (void)flags;
    *out = calloc(1, size);
    return CUDA_SUCCESS;
}
static CUresult host_free(void *memory) {
    free(memory);
    return CUDA_SUCCESS;
}
static CUresult host_register(void *memory, size_t size, unsigned int flags) {
    (void)flags;
    memset(memory, 0, size);
    return CUDA_SUCCESS;
}
static CUresult host_unregister(void *memory) {
    (void)*(volatile unsigned char *)memory; /* what was unmapped ends the test here */
    return CUDA_SUCCESS;
}
static CUresult host_pointer(CUdeviceptr *out, void *memory, unsigned int flags) {
    (void)flags;
    *out = (CUdeviceptr)(uintptr_t)memory;
    return CUDA_SUCCESS;
}
unsigned char *device_memory; /* contents of the first allocation that a test copies to */
uint64_t device_base;
bool (*host_good)(const void *memory, size_t size); /* whether the driver may touch it; NULL = not asked */
static CUresult up(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    (void)stream;
    CHECK(is_mapped(to, size) && (!host_good || host_good(from, size)));
    if (device_memory) {
        memcpy(device_memory + (to - device_base), from, size);
    }
    copies++;
    return CUDA_SUCCESS;
}
static CUresult down(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    (void)stream;
    CHECK(is_mapped(from, size) && (!host_good || host_good(to, size)));
    if (device_memory) {
        memcpy(to, device_memory + (from - device_base), size);
    }
    copies++;
    return CUDA_SUCCESS;
}
static CUresult across(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    (void)stream;
    CHECK(is_mapped(to, size) && is_mapped(from, size));
    return CUDA_SUCCESS;
}

/* The piece of a pool that a copy within host memory goes through: one at a time. */
static unsigned char *piece;
static size_t piece_size;

static CUresult pool_create(CUmemoryPool *pool, const CUmemPoolProps *props) {
    CHECK(props->location.type == CU_MEM_LOCATION_TYPE_DEVICE);
    *pool = (CUmemoryPool)(uintptr_t)1;
    return CUDA_SUCCESS;
}
static CUresult pool_alloc(CUdeviceptr *address, size_t size, CUmemoryPool pool, CUstream stream) {
    CHECK(!piece && size && pool && stream);
    piece = malloc(size);
    piece_size = size;
    CHECK(piece);
    *address = (uintptr_t)piece;
    return CUDA_SUCCESS;
}
static CUresult pool_free(CUdeviceptr address, CUstream stream) {
    CHECK(piece && address == (uintptr_t)piece && stream);
    free(piece);
    piece = NULL;
    return CUDA_SUCCESS;
}
/* Between it and host memory that the client has, in the segment at its own address. */
static CUresult piece_rows(const CUDA_MEMCPY2D *c, bool in) {
    CHECK(c->WidthInBytes * c->Height <= piece_size);
    CHECK((in ? c->dstDevice : c->srcDevice) == (uintptr_t)piece);
    for (size_t i = 0; i < c->Height; i++) {
        const void *from = in ? (const unsigned char *)c->srcHost + i * c->srcPitch : piece + i * c->WidthInBytes;
        void *to = in ? piece + i * c->WidthInBytes : (unsigned char *)c->dstHost + i * c->dstPitch;
        memcpy(to, from, c->WidthInBytes);
    }
    copies += !in;
    return CUDA_SUCCESS;
}

static CUresult rows(const CUDA_MEMCPY2D *c, CUstream stream) {
    bool in = c->dstMemoryType == CU_MEMORYTYPE_DEVICE;
    if (piece) {
        return piece_rows(c, in);
    }
    for (size_t i = 0; i < c->Height; i++) {
        if (in && c->srcMemoryType == CU_MEMORYTYPE_HOST) {
            up(c->dstDevice + i * c->dstPitch, (const unsigned char *)c->srcHost + i * c->srcPitch, c->WidthInBytes,
               stream);
        } else if (!in) {
            down((unsigned char *)c->dstHost + i * c->dstPitch, c->srcDevice + i * c->srcPitch, c->WidthInBytes,
                 stream);
        } else {
            across(c->dstDevice + i * c->dstPitch, c->srcDevice + i * c->srcPitch, c->WidthInBytes, stream);
        }
    }
    return CUDA_SUCCESS;
}
static CUresult set_8(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    (void)value;
    (void)stream;
    CHECK(is_mapped(to, count));
    return CUDA_SUCCESS;
}
static CUresult set_2d_32(CUdeviceptr to, size_t pitch, unsigned int value, size_t width, size_t height,
                          CUstream stream) {
    (void)value;
    (void)stream;
    CHECK(is_mapped(to, pitch * (height - 1) + width * 4));
    return CUDA_SUCCESS;
}

/* ---- the rest of the session ---- */

struct tpw_session session;
struct tp_frame frame = {.thread = 1, .flags = 0};
static struct {
    tpw_done *done;
    void *what;
} waiting[8192];
static size_t waiting_count;
bool gpu_runs, violated, client_reads;
int32_t deferred;
unsigned char reply[TP_FRAME_MAX];
uint16_t reply_op;
size_t reply_size, reply_count;
static struct tpw_object objects[64];
struct tpw_block *uploads[64];
size_t upload_count, upload_given, download_given, download_sent, download_dropped;
bool download_last;

bool tpw_poll(struct tpw_session *s) {
    bool news = false;
    for (size_t i = 0; gpu_runs && i < waiting_count; i++) {
        waiting[i].done(s, waiting[i].what, 0);
        news = true;
    }
    waiting_count = gpu_runs ? 0 : waiting_count;
    return news;
}
int32_t tpw_when_done(struct tpw_session *s, CUstream stream, tpw_done *done, void *what) {
    (void)s;
    (void)stream;
    CHECK(waiting_count < 8192);
    waiting[waiting_count].done = done;
    waiting[waiting_count++].what = what;
    return 0;
}
int32_t tpw_when_complete(struct tpw_session *s, uint64_t event, uint64_t native, tpw_done *done, void *what) {
    (void)event;
    (void)native;
    return tpw_when_done(s, NULL, done, what);
}
int32_t tpw_when_reached(struct tpw_session *s, struct tpw_stream *stream, tpw_done *done, void *what) {
    return tpw_when_done(s, stream->native, done, what);
}
int32_t tpw_when_all_done(struct tpw_session *s, tpw_done *done, void *what) {
    return tpw_when_done(s, NULL, done, what);
}
int32_t tpw_when_everything_done(struct tpw_session *s, tpw_done *done, void *what) {
    return tpw_when_done(s, NULL, done, what);
}
uint32_t tpw_home_of(struct tpw_session *s, uint32_t context) { return s->ended ? 0 : context; }
/* Nothing is shared here: tests/test_ipc.py has that. */
bool tpw_share_freed(struct tpw_session *s, struct tpw_share **owner, uint64_t charged) {
    (void)charged;
    return s->ended && *owner;
}
void tpw_import_end(struct tpw_session *s, struct tpw_range *range) {
    (void)s, (void)range;
    abort();
}
void tpw_shares_close(struct tpw_memory *m) { m->shares = NULL; }
int32_t tpw_share_ask(struct tpw_session *s, const struct tp_frame *of, tpw_answered *told, struct tpw_share **owner,
                      const struct tpw_shared *what, int fd) {
    (void)s, (void)of, (void)told, (void)owner, (void)what, (void)fd;
    return CUDA_ERROR_NOT_SUPPORTED;
}
void tpg_told_memory_export(struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet,
                            int fd) {
    (void)s, (void)question, (void)packet, (void)fd;
    abort();
}
int32_t tpw_share_handle(const struct tpw_share *share, void *handle) {
    (void)share, (void)handle;
    return CUDA_ERROR_NOT_READY;
}
void tpw_share_grown(struct tpw_session *s, struct tpw_share *share, uint64_t bytes) {
    (void)s, (void)bytes;
    if (share) {
        abort();
    }
}
struct tpw_import *tpw_import_take(struct tpw_session *s, const struct tpw_packet *packet, int32_t *error) {
    (void)s, (void)packet;
    *error = CUDA_ERROR_NOT_SUPPORTED;
    return NULL;
}
void tpw_import_drop(struct tpw_session *s, struct tpw_import *import) {
    (void)s, (void)import;
    abort();
}
enum tp_status tp_thread_start(pthread_t *thread, const char *name, size_t stack, void *(*run)(void *),
                               void *argument) {
    pthread_t made;
    (void)thread, (void)name, (void)stack;
    CHECK(pthread_create(&made, NULL, run, argument) == 0 && pthread_detach(made) == 0);
    return TP_OK;
}
bool tpw_work_stands(struct tpw_session *s) { return s->ended; }
bool tpw_hold_on(struct tpw_session *s) { return !s->ended; }
bool tpw_go_on(struct tpw_session *s) { return s->ended; }
enum tp_status tpw_link_status(const struct tpw_link *link) {
    (void)link;
    return TP_OK;
}
void tpw_link_wait(struct tpw_link *link, int fd, uint64_t timeout) {
    (void)link;
    (void)fd;
    (void)timeout;
    CHECK(gpu_runs); /* else it would wait for ever */
}
void tpw_link_wait_data(struct tpw_link *link, int fd, uint64_t timeout) {
    (void)link, (void)fd, (void)timeout;
    abort();
}
size_t tpw_link_unread(const struct tpw_link *link) {
    (void)link;
    return 0;
}
uint32_t tpw_upload_blocks(const struct tpw_link *link) {
    (void)link;
    return 16;
}
uint32_t tpw_download_blocks(const struct tpw_link *link) {
    (void)link;
    return 32;
}
bool tpw_link_flush(struct tpw_link *link) {
    (void)link;
    return client_reads;
}
bool tpw_link_has_data(const struct tpw_link *link) {
    (void)link;
    return true;
}
struct tpw_block *tpw_upload_take(struct tpw_link *link, uint64_t transfer) {
    (void)link;
    (void)transfer;
    return upload_count ? uploads[--upload_count] : NULL;
}
void tpw_upload_done(struct tpw_link *link, struct tpw_block *block) {
    (void)link;
    (void)block;
    upload_given++;
}
uint64_t dropped;
enum tp_status tpw_upload_drop(struct tpw_link *link, uint64_t transfer, uint64_t size) {
    (void)link;
    (void)transfer;
    dropped += size;
    return TP_OK;
}
struct tpw_block *tpw_download_block(struct tpw_link *link) {
    (void)link;
    static unsigned char memory[4][TP_CHUNK_MAX];
    static struct tpw_block blocks[4];
    if (download_given - download_sent - download_dropped == 4) {
        return NULL;
    }
    struct tpw_block *block = &blocks[download_given % 4];
    block->memory = memory[download_given % 4];
    download_given++;
    return block;
}
unsigned char received[64 << 20];
void tpw_download_send(struct tpw_link *link, struct tpw_block *block, bool last) {
    (void)link;
    memcpy(received + block->offset, block->memory, block->size);
    CHECK(!download_last);
    download_last = last;
    download_sent++;
}
void tpw_download_drop(struct tpw_link *link, struct tpw_block *block) {
    (void)link;
    (void)block;
    download_dropped++;
}
unsigned char *tpw_reply_begin(struct tpw_link *link, uint16_t op, uint16_t flags, uint32_t thread, size_t size) {
    (void)link;
    (void)flags;
    (void)thread;
    CHECK(size <= sizeof reply);
    reply_op = op;
    return reply;
}
void tpw_reply_commit(struct tpw_link *link, int32_t result, size_t used) {
    (void)link;
    (void)result;
    reply_size = used;
    reply_count++;
}
void tpw_reply_commit_lent(struct tpw_link *link, int32_t result, size_t used, struct tp_cursor *body) {
    tp_lent_fill(body);
    tpw_reply_commit(link, result, used);
}
int32_t tpw_result(struct tpw_session *s, uint16_t op, int32_t error) {
    (void)s;
    (void)op;
    return error;
}
unsigned char *tpw_answer_begin(struct tpw_session *s, uint16_t op, uint32_t thread, int32_t result, size_t size) {
    (void)result;
    return tpw_reply_begin(s->link, op, TP_FRAME_REPLY, thread, size);
}
void tpw_answer(struct tpw_session *s, struct tpw_ticket ticket, int32_t error) {
    (void)s;
    reply_op = ticket.op;
    deferred = error;
    reply_count++;
}
void tpw_conclude(struct tpw_session *s, const struct tp_frame *f, int32_t error) {
    if (f->flags & TP_FRAME_CALL) {
        tpw_answer(s, tpw_ticket(f), error);
    } else if (error) {
        tpw_defer(s, f, error);
    }
}
void tpw_leave(struct tpw_session *s) { (void)s; }
void tpw_defer(struct tpw_session *s, const struct tp_frame *f, int32_t error) {
    (void)s;
    (void)f;
    deferred = error;
}
void tpw_violation(struct tpw_session *s, const struct tp_frame *f, const char *what) {
    (void)s;
    (void)f;
    (void)what;
    violated = true;
}
int32_t tpw_enter(struct tpw_session *s, const struct tp_frame *f) {
    (void)s;
    (void)f;
    return 0;
}
CUstream tpw_stream(struct tpw_session *s, const struct tp_frame *f, uint64_t handle, int32_t *error) {
    (void)s;
    (void)f;
    if (handle != 1 && !*error) {
        *error = CUDA_ERROR_INVALID_HANDLE;
    }
    return *error ? NULL : CU_STREAM_LEGACY;
}
struct tpw_object *tpw_object(struct tpw_session *s, uint32_t kind, uint64_t handle) {
    (void)s;
    return handle && handle < 64 && objects[handle].kind == kind ? &objects[handle] : NULL;
}
struct tpw_object *tpw_next_object(struct tpw_session *s, uint32_t kind, uint32_t *at) {
    (void)s;
    while (*at < 64) {
        struct tpw_object *object = &objects[(*at)++];
        if (object->kind == kind) {
            return object;
        }
    }
    return NULL;
}
uint64_t tpw_native(struct tpw_session *s, const struct tp_frame *f, uint32_t kind, uint64_t handle, bool optional,
                    int32_t *error) {
    (void)f;
    (void)optional;
    const struct tpw_object *object = tpw_object(s, kind, handle);
    if (!object && !*error) {
        *error = CUDA_ERROR_INVALID_HANDLE;
    }
    return object ? object->native : 0;
}
int32_t tpw_made(struct tpw_session *s, const struct tp_frame *f, uint32_t kind, uint64_t handle, uint64_t native,
                 int32_t error) {
    (void)s;
    (void)f;
    if (handle == 0 || handle >= 64 || objects[handle].kind) {
        return error ? error : CUDA_ERROR_INVALID_HANDLE;
    }
    objects[handle] = (struct tpw_object){.kind = kind, .native = native, .error = error};
    return error;
}
void tpw_forget(struct tpw_session *s, uint32_t kind, uint64_t handle) {
    (void)s;
    (void)kind;
    memset(&objects[handle], 0, sizeof objects[handle]);
}
/* The client's contexts are numbers: odd ones are on device 1. */
uint32_t tpw_context_device(struct tpw_session *s, uint32_t context) {
    (void)s;
    return context & 1;
}
int32_t tpw_primary(struct tpw_session *s, int index, CUcontext *out) {
    (void)index;
    *out = s->entered_native;
    return 0;
}
bool tpw_home_enter(struct tpw_session *s) {
    (void)s;
    return true;
}
void tpw_home_leave(struct tpw_session *s) { (void)s; }
void tpw_visit(struct tpw_session *s, CUcontext native, uint32_t context) { (void)s, (void)native, (void)context; }
void tpw_enter_stream(struct tpw_session *s, const struct tpw_stream *stream) { (void)s, (void)stream; }
bool tpw_breaks(struct tpw_session *s, int32_t error) {
    (void)s, (void)error;
    return false;
}
bool tpw_touchable(struct tpw_session *s, const struct tpw_stream *stream) {
    (void)s, (void)stream;
    return true;
}
struct tpw_stream only = {.native = CU_STREAM_LEGACY};
struct tpw_stream *tpw_stream_of(struct tpw_session *s, const struct tp_frame *f, uint64_t handle, int32_t *error) {
    return tpw_stream(s, f, handle, error) ? &only : NULL;
}
bool tpw_stream_may_wait(struct tpw_session *s) {
    (void)s;
    return false;
}
/* No stream of the session's own: what is freed goes by the legacy one. */
struct tpw_stream *tpw_stream_aside(struct tpw_session *s) {
    (void)s;
    return NULL;
}
void tpw_stream_leave(struct tpw_session *s, struct tpw_stream *stream) {
    (void)s;
    CHECK(!stream);
}
bool tpw_hold_while(struct tpw_session *s, tpw_condition *stands, void *what) {
    (void)s, (void)stands, (void)what;
    return true;
}
int32_t tpw_stream_room(struct tpw_session *s) {
    (void)s;
    return CUDA_SUCCESS;
}
struct tpw_stream *tpw_stream_native(struct tpw_session *s, CUstream native) {
    (void)s;
    return native == CU_STREAM_LEGACY ? &only : NULL;
}
void tpw_stream_count(struct tpw_session *s, struct tpw_stream *stream, uint32_t commands) {
    (void)s, (void)stream, (void)commands;
}
void tpw_check_device(struct tpw_session *s, int device, int32_t *error) {
    (void)s;
    if (device != 0 && !*error) {
        *error = CUDA_ERROR_INVALID_DEVICE;
    }
}

void context(uint64_t handle) {
    objects[handle] = (struct tpw_object){.kind = TPG_CONTEXT, .native = handle, .id = (uint32_t)handle};
}

/* Of one row. */
static _Atomic uint64_t page[(TP_QUOTA_CELLS + TP_QUOTA_CELL) / 8];
static const struct tp_quota quota = {.page = page, .cell = page + TP_QUOTA_CELLS / 8};

void begin(uint64_t limit) {
    memset(&session, 0, sizeof session);
    memset((void *)page, 0, sizeof page);
    page[0] = TP_QUOTA_MAGIC;
    page[1] = limit;
    page[3] = 1;
    session.quota = &quota;
    session.device_count = 1;
    session.entered = 1;
    session.entered_native = (CUcontext)(void *)&session;
    session.cuda.cuDeviceGetAttribute = attribute;
    session.cuda.cuCtxGetDevice = context_device;
    session.cuda.cuCtxSynchronize = fine;
    session.cuda.cuMemAddressReserve = address_reserve;
    session.cuda.cuMemCreate = create;
    session.cuda.cuMemRelease = release;
    session.cuda.cuMemMap = map;
    session.cuda.cuMemUnmap = unmap;
    session.cuda.cuMemSetAccess = set_access;
    session.cuda.cuCtxEnablePeerAccess = peer;
    session.cuda.cuCtxDisablePeerAccess = no_peer;
    session.cuda.cuMemGetInfo_v2 = info;
    session.cuda.cuMemHostAlloc = host_alloc;
    session.cuda.cuMemFreeHost = host_free;
    session.cuda.cuMemHostRegister_v2 = host_register;
    session.cuda.cuMemHostUnregister = host_unregister;
    session.cuda.cuMemHostGetDevicePointer_v2 = host_pointer;
    session.cuda.cuMemcpyHtoDAsync_v2 = up;
    session.cuda.cuMemcpyDtoHAsync_v2 = down;
    session.cuda.cuMemcpyDtoDAsync_v2 = across;
    session.cuda.cuMemcpy2DAsync_v2 = rows;
    session.cuda.cuMemPoolCreate = pool_create;
    session.cuda.cuMemAllocFromPoolAsync = pool_alloc;
    session.cuda.cuMemFreeAsync = pool_free;
    session.cuda.cuMemsetD8Async = set_8;
    session.cuda.cuMemsetD2D32Async = set_2d_32;
    gpu_runs = client_reads = true;
    violated = false;
    access_left = SIZE_MAX;
}

void end(void) {
    gpu_runs = true;
    tpw_poll(&session);
    uint64_t used = tp_quota_used(session.quota, 0);
    CHECK(used == 0);
    tpw_arena_trim(&session, 0);
    CHECK(physical_used == 0 && mapped.count == 0); /* nothing leaks, and nothing is freed twice */
    CHECK(session.memory->twin_count == 0);
    tpw_memory_close(&session);
}

/* ---- captures: none ---- */

int32_t tpw_refuse_capture(struct tpw_session *s, const struct tpw_stream *stream) {
    (void)s, (void)stream;
    return 0;
}

CUgraph tpw_capturing_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error) {
    (void)s, (void)stream, (void)error;
    return NULL;
}

void tpw_refuse_capturing(struct tpw_session *s, CUstream native, int32_t *error) {
    (void)s, (void)native, (void)error;
}
