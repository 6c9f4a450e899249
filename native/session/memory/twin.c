/*
 * Twins: small pinned host memory of the client that kernels may read and write, mirrored in pinned memory here.
 *
 * Owns one area of 2 MiB behind the reserved device addresses, registered with the driver, so that a twin's device
 * pointer is an address that the client keeps free and that tells nothing of this process. Kernels write into the area
 * at any time; it is only ever compared and copied. What differs from the shadow copy goes to the client before a reply
 * that means "completed"; what the client sends is written at once, as a host's store would be.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_memory.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <tp_memory.h>

#define TWINS_MAX (sizeof((struct tpw_memory *)0)->twin_list / sizeof(struct tpw_range *))

static int32_t open_area(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    CUdeviceptr device = 0;
    struct tpw_granule *area = NULL;
    int32_t error = CUDA_ERROR_OUT_OF_MEMORY;
    void *wanted = (void *)(uintptr_t)(m->base + m->size);
    if (!m->base) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    void *got =
        mmap(wanted, TPW_GRANULE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != wanted) {
        tp_log(TP_ERROR, "the addresses for mapped host memory at %p are taken", wanted);
        goto fail;
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
    area->address = device;
    area->longest = TPW_GRANULE_UNITS;
    m->twins = area;
    return CUDA_SUCCESS;
fail:
    free(area);
    if (got != MAP_FAILED) {
        munmap(got, TPW_GRANULE);
    }
    return error;
}

int32_t tpw_host_twin(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_host_twin_in *in,
                      struct tpg_host_twin_out *out) {
    if (!in->size || in->size > TP_TWIN_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int32_t error = tpw_memory_open(s);
    if (!error && !s->memory->twins) {
        error = open_area(s);
    }
    if (error) {
        return error;
    }
    struct tpw_memory *m = s->memory;
    uint64_t offset = m->twin_count < TWINS_MAX ? tpw_units_take(m->twins, in->size) : UINT64_MAX;
    if (offset == UINT64_MAX) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct tpw_range *range = tpw_range_new(s, m->twins->address + offset, in->size, TPW_RANGE_TWIN);
    if (range) {
        range->detail = calloc(1, in->size);
    }
    if (!range || !range->detail) {
        if (range) {
            free(tp_interval_remove(&m->ranges, range->at.start));
        }
        tpw_units_give(m->twins, offset, in->size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memset((void *)(uintptr_t)range->at.start, 0, in->size);
    m->twin_list[m->twin_count++] = range;
    s->twins++;
    out->address = range->at.start;
    return CUDA_SUCCESS;
}

static struct tpw_range *twin_at(struct tpw_session *s, uint64_t address) {
    struct tpw_range *range = tpw_range_at(s, address);
    return range && range->kind == TPW_RANGE_TWIN ? range : NULL;
}

static void gone(struct tpw_session *s, void *what, int32_t error) {
    struct tpw_range *range = what;
    tpw_units_give(s->memory->twins, range->at.start - s->memory->twins->address, range->at.size);
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
        memcpy((unsigned char *)range->detail + (in->address - range->at.start), in->data, in->data_size);
    }
    return CUDA_SUCCESS;
}

static void send_run(struct tpw_session *s, struct tpw_range *range, uint64_t offset, uint64_t size) {
    struct tpg_twin_write_in message = {
        .address = range->at.start + offset, .data = (unsigned char *)range->detail + offset, .data_size = size};
    tpg_send_twin_write(s, &message);
}

/* Word by word, because the neighbours of a word that a kernel wrote may be what the program writes meanwhile. */
static void send_changes(struct tpw_session *s, struct tpw_range *range) {
    const unsigned char *now = (const unsigned char *)(uintptr_t)range->at.start;
    unsigned char *shadow = range->detail, word[TP_TWIN_WORD];
    uint64_t begin = 0, size = 0;
    for (uint64_t at = 0; at < range->at.size; at += TP_TWIN_WORD) {
        uint64_t part = range->at.size - at < TP_TWIN_WORD ? range->at.size - at : TP_TWIN_WORD;
        memcpy(word, now + at, part); /* once: a kernel may write it again between comparing and keeping */
        if (memcmp(word, shadow + at, part) != 0) {
            memcpy(shadow + at, word, part);
            begin = size ? begin : at;
            size += part;
        } else if (size) {
            send_run(s, range, begin, size);
            size = 0;
        }
    }
    if (size) {
        send_run(s, range, begin, size);
    }
}

static void leave(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    for (size_t i = 0; m && i < m->twin_count; i++) {
        struct tpw_range *range = m->twin_list[i];
        if (memcmp((const void *)(uintptr_t)range->at.start, range->detail, range->at.size) != 0) {
            send_changes(s, range);
        }
    }
}
TP_REGISTER(tpw_twins_leave, leave);

void tpw_twins_close(struct tpw_session *s) {
    struct tpw_memory *m = s->memory;
    for (size_t i = 0; i < m->twin_count; i++) {
        free(m->twin_list[i]->detail);
    }
    m->twin_count = 0;
    s->twins = 0;
    free(m->twins);
    m->twins = NULL;
}
