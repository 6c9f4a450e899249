/*
 * The session's memory files by themselves: a driver of a few lines that checks what it is told, and hostile arguments.
 *
 * The driver keeps what is mapped and refuses, loudly, every copy, memset or mapping outside it, so that an address or a length
 * that gets past the session's checks fails the test. The GPU "works" only when `tpw_poll` is called and `gpu_runs` is set.
 * One thread.
 */
#include "tpg_session.h"
#include "tpw_memory.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define GIVES(expected, call)                                                                                          \
    do {                                                                                                               \
        int32_t gives_ = (int32_t)(call);                                                                              \
        if (gives_ != (int32_t)(expected)) {                                                                           \
            fprintf(stderr, "%s:%d: %s gave %d, expected %d\n", __FILE__, __LINE__, #call, gives_, (int)(expected));    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define MIB (1ull << 20)
#define CARD (256 * MIB)

/* ---- the driver ---- */

static struct tp_intervals mapped; /* of the driver */
static uint64_t reserved_at, reserved_size, physical_used;
static uint64_t copies;
static struct {
    uint64_t size;
    int references;
} physical[4096];

static bool is_mapped(uint64_t address, uint64_t size) {
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
static CUresult address_reserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr, unsigned long long flags) {
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
static CUresult create(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop, unsigned long long flags) {
    CHECK(!prop->win32HandleMetaData && prop->requestedHandleTypes == 0 && prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE && !flags);
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
};
static CUresult map(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags) {
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
    CHECK(is_mapped(ptr, size) && count && desc[0].location.id == 0);
    return CUDA_SUCCESS;
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
static CUresult host_pointer(CUdeviceptr *out, void *memory, unsigned int flags) {
    (void)flags;
    *out = (CUdeviceptr)(uintptr_t)memory;
    return CUDA_SUCCESS;
}
static unsigned char *device_memory; /* contents of the first allocation that a test copies to */
static uint64_t device_base;
static CUresult up(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    (void)stream;
    CHECK(is_mapped(to, size));
    if (device_memory) {
        memcpy(device_memory + (to - device_base), from, size);
    }
    copies++;
    return CUDA_SUCCESS;
}
static CUresult down(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    (void)stream;
    CHECK(is_mapped(from, size));
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
static CUresult rows(const CUDA_MEMCPY2D *c, CUstream stream) {
    bool in = c->dstMemoryType == CU_MEMORYTYPE_DEVICE;
    for (size_t i = 0; i < c->Height; i++) {
        if (in && c->srcMemoryType == CU_MEMORYTYPE_HOST) {
            up(c->dstDevice + i * c->dstPitch, (const unsigned char *)c->srcHost + i * c->srcPitch, c->WidthInBytes, stream);
        } else if (!in) {
            down((unsigned char *)c->dstHost + i * c->dstPitch, c->srcDevice + i * c->srcPitch, c->WidthInBytes, stream);
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
static CUresult set_2d_32(CUdeviceptr to, size_t pitch, unsigned int value, size_t width, size_t height, CUstream stream) {
    (void)value;
    (void)stream;
    CHECK(is_mapped(to, pitch * (height - 1) + width * 4));
    return CUDA_SUCCESS;
}

/* ---- the rest of the session ---- */

static struct tpw_session session;
static struct tp_frame frame = {.thread = 1, .flags = 0};
static struct {
    tpw_done *done;
    void *what;
} waiting[8192];
static size_t waiting_count;
static bool gpu_runs, violated;
static int32_t deferred;
static unsigned char reply[TP_FRAME_MAX];
static uint16_t reply_op;
static size_t reply_size, reply_count;
static struct tpw_object objects[64];
static struct tpw_block *uploads[64];
static size_t upload_count, upload_given, download_given, download_sent, download_dropped;
static bool download_last;

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
int32_t tpw_when_all_done(struct tpw_session *s, tpw_done *done, void *what) { return tpw_when_done(s, NULL, done, what); }
void tpw_control_run(struct tpw_session *s) { (void)s; }
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
static uint64_t dropped;
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
static unsigned char received[64 << 20];
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
void tpw_answer_ticket(struct tpw_session *s, struct tpw_ticket ticket, int32_t result) {
    (void)s;
    reply_op = ticket.op;
    deferred = result;
    reply_count++;
}
int32_t tpw_report(struct tpw_session *s, int32_t error, bool reports) {
    (void)s;
    (void)reports;
    return error;
}
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
uint64_t tpw_native(struct tpw_session *s, const struct tp_frame *f, uint32_t kind, uint64_t handle, bool optional, int32_t *error) {
    (void)f;
    (void)optional;
    const struct tpw_object *object = tpw_object(s, kind, handle);
    if (!object && !*error) {
        *error = CUDA_ERROR_INVALID_HANDLE;
    }
    return object ? object->native : 0;
}
int32_t tpw_made(struct tpw_session *s, const struct tp_frame *f, uint32_t kind, uint64_t handle, uint64_t native, int32_t error) {
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
void tpw_check_device(struct tpw_session *s, int device, int32_t *error) {
    (void)s;
    if (device != 0 && !*error) {
        *error = CUDA_ERROR_INVALID_DEVICE;
    }
}

/* ---- the tests ---- */

static _Atomic uint64_t page[TP_LIMITS_SIZE / 8];

static void begin(uint64_t limit) {
    memset(&session, 0, sizeof session);
    memset((void *)page, 0, sizeof page);
    page[0] = TP_LIMITS_MAGIC;
    page[1] = limit;
    session.limits = (void *)page;
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
    session.cuda.cuMemGetInfo_v2 = info;
    session.cuda.cuMemHostAlloc = host_alloc;
    session.cuda.cuMemFreeHost = host_free;
    session.cuda.cuMemHostRegister_v2 = host_register;
    session.cuda.cuMemHostGetDevicePointer_v2 = host_pointer;
    session.cuda.cuMemcpyHtoDAsync_v2 = up;
    session.cuda.cuMemcpyDtoHAsync_v2 = down;
    session.cuda.cuMemcpyDtoDAsync_v2 = across;
    session.cuda.cuMemcpy2DAsync_v2 = rows;
    session.cuda.cuMemsetD8Async = set_8;
    session.cuda.cuMemsetD2D32Async = set_2d_32;
    gpu_runs = true;
    violated = false;
}

static void end(void) {
    gpu_runs = true;
    tpw_poll(&session);
    uint64_t used = tp_limits_used(session.limits, 0);
    CHECK(used == 0);
    tpw_arena_trim(&session, 0);
    CHECK(physical_used == 0 && mapped.count == 0); /* nothing leaks, and nothing is freed twice */
    CHECK(session.memory->twin_count == 0);
    tpw_memory_close(&session);
}

static uint64_t alloc(uint64_t size) {
    struct tpg_memory_alloc_in in = {.size = size};
    struct tpg_memory_alloc_out out = {0};
    GIVES(0, tpw_memory_alloc(&session, &frame, &in, &out));
    CHECK(is_mapped(out.address, size) && out.address % 512 == 0);
    return out.address;
}
static int32_t try_alloc(uint64_t size) {
    struct tpg_memory_alloc_in in = {.size = size};
    struct tpg_memory_alloc_out out = {0};
    return tpw_memory_alloc(&session, &frame, &in, &out);
}
static int32_t release_at(uint64_t address) {
    struct tpg_memory_free_in in = {.address = address};
    return tpw_memory_free(&session, &frame, &in);
}

static uint64_t state = 88172645463325252ull;
static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void test_allocations(void) {
    enum { LIVE = 200 };
    uint64_t live[LIVE] = {0}, sizes[LIVE] = {0}, total = 0;
    begin(0);
    for (int step = 0; step < 20000; step++) {
        size_t i = next() % LIVE;
        gpu_runs = next() % 3 == 0;
        if (live[i]) {
            GIVES(0, release_at(live[i]));
            GIVES(CUDA_ERROR_INVALID_VALUE, release_at(live[i]));
            total -= sizes[i];
            live[i] = 0;
        } else {
            sizes[i] = next() % 8 ? next() % 20000 + 1 : next() % (3 * MIB) + 1;
            gpu_runs = true;
            if (total + sizes[i] < 100 * MIB) {
                live[i] = alloc(sizes[i]);
                total += sizes[i];
            }
        }
        gpu_runs = true;
        if (step % 16 == 0) {
            tpw_poll(&session);
            CHECK(tp_limits_used(session.limits, 0) == total);
        }
        int32_t error = 0;
        if (live[i]) {
            tpw_check_range(&session, live[i], sizes[i], &error);
            GIVES(0, error);
            tpw_check_range(&session, live[i], sizes[i] + 1, &error);
            GIVES(CUDA_ERROR_INVALID_VALUE, error);
        }
    }
    for (size_t i = 0; i < LIVE; i++) {
        if (live[i]) {
            GIVES(0, release_at(live[i]));
        }
    }
    end();
}

static void test_limit(void) {
    begin(10 * MIB);
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(10 * MIB + 1));
    uint64_t a = alloc(10 * MIB - 1), b = alloc(1);
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(1));
    GIVES(0, release_at(a));
    CHECK(tp_limits_used(session.limits, 0) == 10 * MIB); /* queued work may still use it */
    struct tpg_memory_info_out told = {0};
    GIVES(0, tpw_memory_info(&session, &frame, &told));
    CHECK(told.total == 10 * MIB && told.free == 10 * MIB - 1); /* but the client's view is immediate */
    a = alloc(10 * MIB - 1); /* waits for it */
    GIVES(0, release_at(a));
    GIVES(0, release_at(b));
    GIVES(CUDA_ERROR_INVALID_VALUE, try_alloc(0));
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(UINT64_MAX));
    end();
    begin(0); /* no limit: the card itself ends it, and freed granules come back */
    for (int i = 0; i < 3; i++) {
        a = alloc(200 * MIB);
        GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(100 * MIB));
        GIVES(0, release_at(a));
    }
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(1ull << 50));
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(UINT64_MAX));
    end();
}

static void test_hostile_ranges(void) {
    begin(0);
    uint64_t a = alloc(5000), b = alloc(3 * MIB);
    static const uint64_t odd[] = {0, 1, 4999, 5000, 5001, 1ull << 32, 1ull << 62, UINT64_MAX - 1, UINT64_MAX};
    enum { N = sizeof odd / sizeof *odd };
    for (size_t i = 0; i < N; i++) {
        for (size_t k = 0; k < N; k++) {
            for (size_t n = 0; n < N; n++) {
                struct tpg_cuMemsetD2D32Async_in set = {.dstDevice = a, .dstPitch = odd[i], .Width = odd[k], .Height = odd[n], .hStream = 1};
                tpw_cuMemsetD2D32Async(&session, &frame, &set); /* the driver above checks what gets through */
                struct tpg_copy_device_2d_in copy = {.destination = a, .source = b, .destination_pitch = odd[i], .source_pitch = odd[k],
                                                     .width = odd[n], .height = odd[(i + k + n) % N], .stream = 1};
                tpw_copy_device_2d(&session, &frame, &copy);
                struct tpg_copy_device_in line = {.destination = a + odd[i], .source = b + odd[k], .size = odd[n], .stream = 1};
                tpw_copy_device(&session, &frame, &line);
                struct tpg_copy_out_post_in post = {.source = a, .pitch = odd[i], .width = odd[k], .height = odd[n] % 100, .stream = 1,
                                                    .transfer = 7};
                download_given = download_sent = download_dropped = 0;
                download_last = false;
                tpw_copy_out_post(&session, &frame, &post);
                tpw_poll(&session);
                struct tpg_copy_in_in in = {.destination = a, .pitch = odd[i], .width = odd[k], .height = odd[n], .stream = 1,
                                            .data = received, .data_size = odd[k] < 5001 ? odd[k] : 1};
                violated = false;
                tpw_copy_in(&session, &frame, &in);
                tpw_poll(&session);
            }
        }
        struct tpg_cuMemsetD8Async_in set = {.dstDevice = a + odd[i], .N = odd[N - 1 - i], .hStream = 1};
        tpw_cuMemsetD8Async(&session, &frame, &set);
    }
    int32_t error = 0;
    tpw_memory_publish(&session, a + 10, 100); /* overlaps: refused */
    tpw_memory_publish(&session, 0x1000, 100);
    tpw_check_range(&session, 0x1000, 100, &error);
    GIVES(0, error);
    GIVES(CUDA_ERROR_INVALID_VALUE, release_at(0x1000));
    tpw_memory_retract(&session, a); /* not what was published */
    tpw_memory_retract(&session, 0x1000);
    tpw_check_range(&session, 0x1000, 1, &error);
    GIVES(CUDA_ERROR_INVALID_VALUE, error);
    error = 0;
    tpw_check_range(&session, a, 5000, &error);
    GIVES(0, error);
    GIVES(0, release_at(a));
    GIVES(0, release_at(b));
    GIVES(CUDA_ERROR_INVALID_VALUE, release_at(0));
    end();
}

static void test_transfers(void) {
    enum { WIDTH = 3001, HEIGHT = 1700, PITCH = 3500, SIZE = WIDTH * HEIGHT };
    static unsigned char data[SIZE];
    begin(0);
    for (size_t i = 0; i < SIZE; i++) {
        data[i] = (unsigned char)next();
    }
    device_base = alloc((uint64_t)PITCH * HEIGHT);
    device_memory = calloc(PITCH, HEIGHT);
    /* Blocks in any order, with borders in the middle of rows. */
    static struct tpw_block blocks[64];
    size_t count = 0;
    for (uint64_t offset = 0; offset < SIZE;) {
        uint64_t size = next() % 200000 + 1;
        size = size < SIZE - offset ? size : SIZE - offset;
        CHECK(count < 64 || size);
        if (count == 63) {
            size = SIZE - offset;
        }
        blocks[count] = (struct tpw_block){.transfer = 5, .offset = offset, .size = (uint32_t)size, .memory = data + offset};
        offset += size;
        count++;
    }
    for (size_t i = 0; i < count; i++) {
        size_t k = i + next() % (count - i);
        struct tpw_block swap = blocks[i];
        blocks[i] = blocks[k];
        blocks[k] = swap;
        uploads[i] = &blocks[i];
    }
    upload_count = count;
    upload_given = 0;
    struct tpg_copy_in_bulk_in in = {.destination = device_base, .pitch = PITCH, .width = WIDTH, .height = HEIGHT, .stream = 1, .transfer = 5};
    GIVES(0, tpw_copy_in_bulk(&session, &frame, &in));
    tpw_poll(&session);
    CHECK(upload_given == count);
    for (size_t i = 0; i < HEIGHT; i++) {
        CHECK(memcmp(device_memory + i * PITCH, data + i * WIDTH, WIDTH) == 0);
    }
    /* And back, with fewer blocks than it takes. */
    download_given = download_sent = download_dropped = 0;
    download_last = false;
    reply_count = 0;
    struct tp_frame call = {.op = 9, .flags = TP_FRAME_CALL, .thread = 1};
    struct tpg_copy_out_bulk_in out = {.source = device_base, .pitch = PITCH, .width = WIDTH, .height = HEIGHT, .stream = 1, .transfer = 6};
    GIVES(TPW_LATER, tpw_copy_out_bulk(&session, &call, &out));
    tpw_poll(&session);
    CHECK(download_last && reply_count == 1 && reply_op == 9 && deferred == 0);
    CHECK(memcmp(received, data, SIZE) == 0);
    /* A refused upload is drained, a block outside its transfer ends the session. */
    in.destination = 12345;
    dropped = 0;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_copy_in_bulk(&session, &frame, &in));
    CHECK(dropped == SIZE);
    static const struct {
        uint64_t offset;
        uint32_t size;
    } bad[] = {{SIZE, 1}, {SIZE - 1, 2}, {UINT64_MAX, 1}, {UINT64_MAX - 5, 100}};
    in.destination = device_base;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tpw_block block = {.transfer = 5, .offset = bad[i].offset, .size = bad[i].size, .memory = data};
        uploads[0] = &block;
        upload_count = 1;
        violated = false;
        GIVES(TPW_LATER, tpw_copy_in_bulk(&session, &frame, &in));
        CHECK(violated);
        uploads[0] = &block;
        upload_count = 1;
        violated = false;
        int32_t error = 0;
        CHECK(!tpw_take_upload(&session, 5, SIZE, &error) && violated && error);
    }
    violated = false;
    in.width = 0;
    GIVES(TPW_LATER, tpw_copy_in_bulk(&session, &frame, &in));
    CHECK(violated);
    in.width = in.height = 1ull << 33;
    violated = false;
    GIVES(TPW_LATER, tpw_copy_in_bulk(&session, &frame, &in));
    CHECK(violated);
    /* A posted download that fails tells the client that its bytes never come. */
    struct tpg_copy_out_post_in post = {.source = 777, .pitch = 10, .width = 10, .height = 1, .stream = 1, .transfer = 0x1234};
    reply_op = 0;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_copy_out_post(&session, &frame, &post));
    uint64_t told = 0;
    memcpy(&told, reply, sizeof told);
    CHECK(reply_op == 5 && reply_size == 8 && told == 0x1234);
    /* More small copies than slots while the GPU stands still, then it goes on. */
    gpu_runs = true;
    for (int i = 0; i < 1000; i++) {
        struct tpg_copy_in_in small = {.destination = device_base, .pitch = 5000, .width = 5000, .height = 1, .stream = 1, .data = data, .data_size = 5000};
        GIVES(0, tpw_copy_in(&session, &frame, &small));
    }
    free(device_memory);
    device_memory = NULL;
    GIVES(0, release_at(device_base));
    end();
}

static void test_virtual_memory(void) {
    begin(20 * MIB);
    struct tpg_address_reserve_in reserve = {.size = 16 * MIB};
    struct tpg_address_reserve_out got = {0}, second = {0};
    GIVES(0, tpw_address_reserve(&session, &frame, &reserve, &got));
    GIVES(0, tpw_address_reserve(&session, &frame, &reserve, &second));
    uint64_t own = alloc(4 * MIB);
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .requestedHandleTypes = 77,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}, .win32HandleMetaData = (void *)8};
    struct tpg_memory_create_in make = {.memory = 3, .size = 4 * MIB, .prop = &prop};
    GIVES(0, tpw_memory_create(&session, &frame, &make));
    CHECK(tp_limits_used(session.limits, 0) == 8 * MIB);
    make.memory = 4;
    make.size = 14 * MIB;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_memory_create(&session, &frame, &make));
    /* Mapping outside what was reserved by this client, over something else, or past the physical memory. */
    const struct tpg_memory_map_in bad[] = {
        {.address = own, .size = 2 * MIB, .memory = 3},
        {.address = own + 64 * MIB, .size = 2 * MIB, .memory = 3},
        {.address = got.address, .size = 6 * MIB, .memory = 3},
        {.address = got.address, .size = 2 * MIB, .offset = 4 * MIB, .memory = 3},
        {.address = got.address, .size = 2 * MIB, .offset = UINT64_MAX - MIB, .memory = 3},
        {.address = got.address, .size = UINT64_MAX, .memory = 3},
        {.address = got.address + 14 * MIB, .size = 4 * MIB, .memory = 3},
        {.address = got.address, .size = 2 * MIB, .memory = 5},
        {.address = got.address, .size = 0, .memory = 3},
        {.address = 0, .size = 2 * MIB, .memory = 3},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_map(&session, &frame, &bad[i]));
    }
    struct tpg_memory_map_in good = {.address = got.address, .size = 4 * MIB, .memory = 3};
    GIVES(0, tpw_memory_map(&session, &frame, &good));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_map(&session, &frame, &good));
    struct tpg_memory_unmap_in undo = {.address = own, .size = 4 * MIB};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_unmap(&session, &frame, &undo)); /* not the client's mapping */
    undo = (struct tpg_memory_unmap_in){.address = got.address, .size = 2 * MIB};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_unmap(&session, &frame, &undo));
    undo.size = UINT64_MAX - 5;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_unmap(&session, &frame, &undo));
    GIVES(CUDA_ERROR_INVALID_VALUE, release_at(got.address)); /* nor may it be freed as an allocation */
    struct tpg_address_free_in give = {.address = got.address, .size = 16 * MIB};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_address_free(&session, &frame, &give)); /* something is mapped */
    struct tpg_memory_release_in let = {.memory = 3};
    GIVES(0, tpw_memory_release(&session, &frame, &let));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_release(&session, &frame, &let));
    CHECK(tp_limits_used(session.limits, 0) == 8 * MIB); /* the mapping keeps it */
    undo.size = 4 * MIB;
    GIVES(0, tpw_memory_unmap(&session, &frame, &undo));
    CHECK(tp_limits_used(session.limits, 0) == 4 * MIB);
    GIVES(0, tpw_address_free(&session, &frame, &give));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_address_free(&session, &frame, &give));
    give.address = own; /* the arena's own addresses cannot be given back */
    give.size = 4 * MIB;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_address_free(&session, &frame, &give));
    give.address = second.address;
    give.size = 16 * MIB;
    GIVES(0, tpw_address_free(&session, &frame, &give));
    reserve.alignment = 3;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_address_reserve(&session, &frame, &reserve, &got));
    reserve.alignment = 1ull << 63;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_address_reserve(&session, &frame, &reserve, &got));
    reserve = (struct tpg_address_reserve_in){.size = ~(TPW_GRANULE - 1)};
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_address_reserve(&session, &frame, &reserve, &got));
    GIVES(0, release_at(own));
    end();
}

static void test_twins(void) {
    begin(0);
    struct tpg_host_twin_in make = {.size = 100};
    struct tpg_host_twin_out got = {0};
    GIVES(0, tpw_host_twin(&session, &frame, &make, &got));
    unsigned char *twin = (unsigned char *)(uintptr_t)got.address;
    struct tpg_host_twin_write_in write = {.address = got.address + 96, .data = "abcd", .data_size = 4};
    GIVES(0, tpw_host_twin_write(&session, &frame, &write));
    CHECK(memcmp(twin + 96, "abcd", 4) == 0);
    write.data_size = 5;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin_write(&session, &frame, &write));
    write.address = 0x1000;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin_write(&session, &frame, &write));
    reply_count = 0;
    tpw_twins_send(&session);
    CHECK(reply_count == 0); /* what the client wrote is not told to it */
    memcpy(twin + 8, "ABCDEFGH", 8);
    twin[99] = 'x';
    tpw_twins_send(&session);
    CHECK(reply_count == 2 && reply_op == 4);
    tpw_twins_send(&session);
    CHECK(reply_count == 2);
    make.size = 65537;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin(&session, &frame, &make, &got));
    make.size = 0;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin(&session, &frame, &make, &got));
    GIVES(CUDA_ERROR_INVALID_VALUE, release_at((uint64_t)(uintptr_t)twin));
    struct tpg_host_twin_free_in gone = {.address = (uint64_t)(uintptr_t)twin + 1};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin_free(&session, &frame, &gone));
    gone.address--;
    GIVES(0, tpw_host_twin_free(&session, &frame, &gone));
    tpw_poll(&session); /* its place is free when queued work is done */
    uint64_t made[40];
    size_t count = 0;
    make.size = 65536;
    while (count < 40 && tpw_host_twin(&session, &frame, &make, &got) == 0) {
        made[count++] = got.address;
        tpw_poll(&session);
    }
    CHECK(count == 32); /* 2 MiB of them, then no more */
    for (size_t i = 0; i < count; i++) {
        gone.address = made[i];
        GIVES(0, tpw_host_twin_free(&session, &frame, &gone));
    }
    tpw_poll(&session);
    GIVES(0, tpw_host_twin(&session, &frame, &make, &got));
    gone.address = got.address;
    GIVES(0, tpw_host_twin_free(&session, &frame, &gone));
    end();
}

int main(void) {
    test_allocations();
    test_limit();
    test_hostile_ranges();
    test_transfers();
    test_virtual_memory();
    test_twins();
    return 0;
}
