/*
 * Twins: pinned host memory of the client that kernels may read and write, mirrored in pinned memory here.
 *
 * Owns the addresses behind the reserved device addresses, so that a twin's device pointer is an address that the client keeps
 * free and that tells nothing of this process: an area of 2 MiB for small ones, which is registered with the driver once, and
 * behind it room for large ones, which are mapped and registered one by one. Where the client's memory lies in a range that both
 * sides use for nothing else, its twin lies at the same address (tp_memory.h). Kernels write into them
 * at any time; they are only ever compared and copied. What differs from the shadow copy goes to the client before a reply
 * that means "completed"; what the client sends is written at once, as a host's store would be. Those that are alone, buffers of
 * graphs, have no shadow.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_memory.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <tp_memory.h>
#include <unistd.h>

#define UNREAD_MOST (8u << 20) /* bytes of changes that may wait for a client that reads slowly */
#define ROOM_NS 1000000u
#define TWINS_MAX 65536 /* programs that keep weights in host memory have one for each tensor */

static int32_t open_area(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    CUdeviceptr device = 0;
    struct tpw_granule *area = NULL;
    int32_t error = CUDA_ERROR_OUT_OF_MEMORY;
    if (!m->base) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    void *got = tp_pages_at(m->base + m->size, TPW_GRANULE);
    if (!got) {
        tp_log(TP_ERROR, "the addresses for mapped host memory at 0x%llx are taken",
               (unsigned long long)(m->base + m->size));
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    area = calloc(1, sizeof *area);
    if (!area) {
        goto fail;
    }
    error = tpw_home_enter(s) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    if (error) {
        goto fail;
    }
    error = (int32_t)s->cuda.cuMemHostRegister_v2(got, TPW_GRANULE,
                                                  CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
    tpw_home_leave(s);
    if (error) {
        goto fail;
    }
    error = (int32_t)s->cuda.cuMemHostGetDevicePointer_v2(&device, got, 0);
    if (!error && device != m->base + m->size) {
        error = CUDA_ERROR_NOT_SUPPORTED; /* without unified addressing a twin would need two addresses */
    }
    if (error) {
        s->cuda.cuMemHostUnregister(got);
        goto fail;
    }
    m->twin_places.begin = device + TPW_GRANULE;
    m->twin_places.end = m->twin_places.begin + TPW_TWINS_SPACE;
    area->address = device;
    area->longest = TPW_GRANULE_UNITS;
    m->twins = area;
    return CUDA_SUCCESS;
fail:
    free(area);
    munmap(got, TPW_GRANULE);
    return error;
}

/* ---- large ones: pages of their own ---- */

/* Also small ones for which the area has no room. */
static bool has_pages(const struct tpw_memory *m, uint64_t address) {
    return address >= m->base + m->size + TPW_GRANULE;
}

static uint64_t pages_of(uint64_t size) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) & ~(page - 1);
}

/* Twin and shadow lie in this process's memory, which is bounded as a whole (bounds.c): half of that is for them. */
static uint64_t most_bytes(void) {
    const char *text = getenv("TF_SESSION_MEMORY_LIMIT");
    const uint64_t limit = (text && *text ? strtoull(text, NULL, 10) : 0) << 20;
    const uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return limit ? limit / 2 : machine / 4;
}

static void give_pages(struct tpw_session *s, uint64_t address, uint64_t size) {
    void *pages = (void *)(uintptr_t)address;
    int32_t error = tpw_home_enter(s) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    if (!error) {
        error = (int32_t)s->cuda.cuMemHostUnregister(pages);
        tpw_home_leave(s);
    }
    if (error) { /* a device that is broken: its mappings end with the process */
        tp_log(TP_WARN, "%llu bytes of mapped host memory are not given back: error %d", (unsigned long long)size,
               error);
        return;
    }
    munmap(pages, size);
    s->memory->twin_bytes -= 2 * size;
}

/* `wanted` may be taken: by a twin that the client has freed, and that work which is queued may still use. */
static int32_t open_pages(struct tpw_session *s, uint64_t size, uint64_t wanted, uint64_t *address) {
    struct tpw_memory *m = s->memory;
    CUdeviceptr device = 0;
    void *pages = NULL;
    if (m->twin_bytes + 2 * size <= most_bytes()) {
        pages = wanted ? tp_pages_at(wanted, size) : NULL;
        pages = pages ? pages : tp_pages_take(&m->twin_places, size, TPW_GRANULE);
    }
    if (!pages) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int32_t error = tpw_home_enter(s) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    if (!error) {
        error = (int32_t)s->cuda.cuMemHostRegister_v2(pages, size,
                                                      CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
        tpw_home_leave(s);
    }
    if (error) {
        munmap(pages, size);
        return error;
    }
    m->twin_bytes += 2 * size;
    error = (int32_t)s->cuda.cuMemHostGetDevicePointer_v2(&device, pages, 0);
    if (!error && device != (uint64_t)(uintptr_t)pages) {
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    if (error) {
        give_pages(s, (uint64_t)(uintptr_t)pages, size);
    }
    *address = device;
    return error;
}

/* ---- twins ---- */

static int32_t take_room(struct tpw_session *s, uint64_t size, uint64_t wanted, uint64_t *address) {
    struct tpw_memory *m = s->memory;
    const uint64_t offset = size <= TPW_TWIN_SMALL && !wanted ? tpw_units_take(m->twins, size) : UINT64_MAX;
    *address = m->twins->address + offset;
    return offset == UINT64_MAX ? open_pages(s, pages_of(size), wanted, address) : CUDA_SUCCESS;
}

static bool may_lie_at(uint64_t address, uint64_t size) {
    return address % (uint64_t)sysconf(_SC_PAGESIZE) == 0 && address >= TP_PINNED_ADDRESS && size <= TP_PINNED_SPACE &&
           address - TP_PINNED_ADDRESS <= TP_PINNED_SPACE - pages_of(size);
}

static void give_room(struct tpw_session *s, uint64_t address, uint64_t size) {
    if (has_pages(s->memory, address)) {
        give_pages(s, address, pages_of(size));
    } else {
        tpw_units_give(s->memory->twins, address - s->memory->twins->address, size);
    }
}

/* A place in the list for one more. */
static bool list_room(struct tpw_memory *m) {
    if (m->twins_alone >= TWINS_MAX) {
        return false;
    }
    if (m->twin_count < m->twin_room) {
        return true;
    }
    const size_t room = m->twin_room ? 2 * m->twin_room : 64;
    struct tpw_range **list = room <= TWINS_MAX ? realloc(m->twin_list, room * sizeof *list) : NULL;
    if (list) {
        m->twin_list = list;
        m->twin_room = room;
    }
    return list != NULL;
}

int32_t tpw_host_twin(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_host_twin_in *in,
                      struct tpg_host_twin_out *out) {
    uint64_t address = 0;
    if (!in->size || in->size > 1ull << 46 || (in->wanted && !may_lie_at(in->wanted, in->size))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int32_t error = tpw_memory_open(s);
    if (!error && !s->memory->twins) {
        error = open_area(s);
    }
    if (!error && !list_room(s->memory)) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    error = error ? error : take_room(s, in->size, in->wanted, &address);
    TPW_TRY(error);
    struct tpw_memory *m = s->memory;
    struct tpw_range *range = tpw_range_new(s, address, in->size, TPW_RANGE_TWIN);
    if (range && !in->alone) {
        range->detail = calloc(1, in->size + in->size / TP_TWIN_PIECE + 1);
    }
    if (!range || !(range->detail || in->alone)) {
        if (range) {
            free(tp_interval_remove(&m->ranges, range->at.start));
        }
        give_room(s, address, in->size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    range->access = !in->read_only;
    if (!has_pages(m, address)) {
        memset((void *)(uintptr_t)range->at.start, 0, in->size);
    }
    m->twins_alone += in->alone != 0;
    if (!in->alone) {
        m->twin_list[m->twin_count++] = range;
        s->twins++;
    }
    out->address = range->at.start;
    return CUDA_SUCCESS;
}

static struct tpw_range *twin_at(struct tpw_session *s, uint64_t address) {
    struct tpw_range *range = tpw_range_at(s, address);
    return range && range->kind == TPW_RANGE_TWIN ? range : NULL;
}

/* The driver waits for all work before it unregisters (580.159.04), and that may wait for the client. */
static void gone(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_range *range = what;
    if (has_pages(s->memory, range->at.start) && tpw_work_stands(s)) {
        if (error || tpw_when_everything_done(s, gone, range)) {
            tp_log(TP_WARN, "%llu bytes of mapped host memory stay until the session ends",
                   (unsigned long long)range->at.size);
        }
        return;
    }
    give_room(s, range->at.start, range->at.size);
    s->memory->twins_alone -= !range->detail;
    free(range->detail);
    free(range);
}

int32_t tpw_host_twin_free(struct tpw_session *s, const struct tp_frame *frame,
                           const struct tpg_host_twin_free_in *in) {
    struct tpw_range *range = twin_at(s, in->address);
    if (!range || range->at.start != in->address) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpw_memory *m = s->memory;
    tp_interval_remove(&m->ranges, in->address);
    for (size_t i = 0; i < m->twin_count; i++) {
        if (m->twin_list[i] == range) {
            m->twin_list[i] = m->twin_list[--m->twin_count];
            s->twins--;
            break;
        }
    }
    if (tpw_when_everything_done(s, gone, range)) {
        gone(s, range, 0);
    }
    return CUDA_SUCCESS;
}

int32_t tpw_host_twin_write(struct tpw_session *s, const struct tp_frame *frame,
                            const struct tpg_host_twin_write_in *in) {
    struct tpw_range *range = twin_at(s, in->address);
    if (!range || in->data_size > range->at.size - (in->address - range->at.start)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (in->data_size) {
        memcpy((void *)(uintptr_t)in->address, in->data, in->data_size);
        if (range->detail) {
            memcpy((unsigned char *)range->detail + (in->address - range->at.start), in->data, in->data_size);
        }
    }
    return CUDA_SUCCESS;
}

/* Of one alone, while a host function of the client runs: read by the processor, so that no stream need go on for it. */
int32_t tpw_host_twin_read(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_host_twin_read_in *in,
                           struct tpg_host_twin_read_out *out) {
    struct tpw_range *range = twin_at(s, in->address);
    if (!range || in->size > TP_INLINE_MAX || in->size > range->at.size - (in->address - range->at.start)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    out->data = (const void *)(uintptr_t)in->address;
    out->data_size = in->size;
    return CUDA_SUCCESS;
}

/* A large one may have changed as a whole, and what the client has not read yet is bounded: who sends it waits for the client,
 * which reads, because it waits for what comes behind. False when it does not come any more. */
static bool wait_for_reader(struct tpw_session *s) {
    const CUcontext before = s->entered_native;
    const uint32_t entered = s->entered;
    while (tpw_link_unread(s->link) > UNREAD_MOST) {
        if (s->ended || tpw_link_status(s->link) != TP_OK) {
            return false;
        }
        tpw_link_wait_data(s->link, -1, ROOM_NS);
        TP_TELL(tpw_control, s);
        tpw_visit(s, before, entered); /* answers of the supervisor are taken in contexts of their own */
    }
    return true;
}

/* Word by word, because the neighbours of a word that a kernel wrote may be what the program writes meanwhile. */
static void send_changes(struct tpw_session *s, struct tpw_range *range, uint64_t from, uint64_t end) {
    static uint32_t runs[TP_TWIN_PIECE / TP_TWIN_WORD + 2]; /* every second word, at worst */
    static unsigned char bytes[TP_TWIN_PIECE];
    const unsigned char *now = (const unsigned char *)(uintptr_t)range->at.start;
    unsigned char *shadow = range->detail;
    size_t count = 0, size = 0;
    uint64_t next = UINT64_MAX; /* where the last run would go on */
    for (uint64_t at = from; at < end; at += TP_TWIN_WORD) {
        const uint64_t part = end - at < TP_TWIN_WORD ? end - at : TP_TWIN_WORD;
        uint32_t word = 0, known = 0;
        if (TP_LIKELY(part == TP_TWIN_WORD)) {
            memcpy(&word, now + at, TP_TWIN_WORD); /* once: a kernel may write it again between comparing and keeping */
            memcpy(&known, shadow + at, TP_TWIN_WORD);
        } else {
            memcpy(&word, now + at, part);
            memcpy(&known, shadow + at, part);
        }
        if (word != known) {
            memcpy(shadow + at, &word, part);
            memcpy(bytes + size, &word, part);
            size += part;
            if (at != next) {
                runs[count++] = (uint32_t)(at - from);
                runs[count++] = 0;
            }
            runs[count - 1] += (uint32_t)part;
            next = at + part;
        }
    }
    struct tpg_twin_write_in message = {
        .address = range->at.start + from, .runs = runs, .runs_count = count, .data = bytes, .data_size = size};
    if (count && wait_for_reader(s)) {
        tpg_send_twin_write(s, &message);
    }
}

static unsigned char *changed_of(const struct tpw_range *range) {
    return (unsigned char *)range->detail + range->at.size;
}

/* A piece is what fits a message. */
static void leave(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    for (size_t i = 0; m && i < m->twin_count; i++) {
        struct tpw_range *range = m->twin_list[i];
        const uint64_t size = range->access ? range->at.size : 0;
        const unsigned char *changed = changed_of(range);
        tpw_twin_look((const void *)(uintptr_t)range->at.start, range->detail, size, changed_of(range));
        for (uint64_t at = 0; at < size; at += TP_TWIN_PIECE) {
            if (changed[at / TP_TWIN_PIECE]) {
                send_changes(s, range, at, size - at < TP_TWIN_PIECE ? size : at + TP_TWIN_PIECE);
            }
        }
    }
}
TP_REGISTER(tpw_twins_leave, leave);

void tpw_twins_close(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    for (size_t i = 0; i < m->twin_count; i++) {
        free(m->twin_list[i]->detail);
    }
    free(m->twin_list);
    m->twin_list = NULL;
    m->twin_count = m->twin_room = 0;
    m->twin_bytes = 0;
    s->twins = 0;
    free(m->twins);
    m->twins = NULL;
}
