/*
 * Copies into device memory whose bytes the client takes when the stream has come to them (copy_in_late).
 *
 * CUDA reads pinned memory when a stream gets there: behind host functions that write it, behind earlier copies into it.
 * So such a copy is, in its stream: a point, which makes the executor ask the client for the bytes; a wait for a word of
 * pinned memory; the copy, from a buffer beside that word; and a point behind it. The client's bytes come in frames
 * (late_bytes), the executor puts them into the buffer and writes the word. The word is written by this process and not
 * by the GPU, because the commands that would write it might stand in the hardware's queue behind this very wait. The
 * bytes do not come as a transfer, because its chunks could stand behind those of frames that are held back (executor.c).
 * Large copies go through two buffers in turn, so that what a client can make this process keep is bounded. Where the
 * driver has no such waits a host function waits instead; the driver may run these one after the other, so there a
 * program can hang whose functions wait for other streams.
 *
 * Executor thread only, but for wait_on_host. Sizes and tokens are the client's: it may send as many bytes as it was
 * asked for, and the number of bytes that the driver reads is that of the area, which was checked.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_copy.h"

#include <stdatomic.h>
#include <stdlib.h>

#define SMALL 65536u        /* the smallest buffers, many of which are made at once */
#define SMALL_COUNT 15u     /* with their words just below 1 MiB */
#define USUAL (16ull << 20) /* a large copy goes through two buffers of this size, or of larger ones so that its */
#define ROOM 900u           /* pieces are few enough for a stream, which takes about 1,000 commands */
#define LARGEST (256ull << 20)
#define CLASSES 13u           /* 64 KiB … 256 MiB */
#define KEPT_MAX (1ull << 30) /* bytes in all buffers; half of that in small ones */
#define ASK_NS 200000u        /* between two looks whether what a copy needs is there */
#define COMMANDS 7u           /* of a piece, at most: rows in three parts, from beside the stream, a wait, a point */
#define COMMANDS_TO_HOST 17u  /* the same where each part goes by device memory (copy_host.c): four more, and a point */

struct buffer {
    struct buffer *next; /* of those that are free, of the same size */
    unsigned char *memory;
    _Atomic uint64_t *word;
    CUdeviceptr word_at;
    uint64_t value; /* that the word has when nobody waits for it */
    uint32_t size_class;
};

struct late {
    struct late *next;
    uint64_t token, size, piece, pieces;
    uint64_t wanted, came, copied; /* bytes asked for, bytes here, pieces that are out of their buffers */
    struct buffer *buffers[2];     /* pieces go into the first and the second in turn */
    uint32_t points;
    bool issuing, over; /* over: nothing more will come, every wait has been ended */
    int32_t error;
};

struct tpw_lates {
    struct late *list;
    struct buffer *free[CLASSES];
    uint64_t kept, kept_small;
};

static struct tpw_lates *state(struct tpw_session *s) {
    if (!s->lates) {
        s->lates = calloc(1, sizeof *s->lates);
    }
    return s->lates;
}

/* ---- buffers ---- */

static uint64_t class_size(uint32_t size_class) { return (uint64_t)SMALL << size_class; }

static int32_t grow(struct tpw_session *s, uint32_t size_class) {
    struct tpw_lates *l = s->lates;
    const uint64_t size = class_size(size_class), count = size_class ? 1 : SMALL_COUNT;
    const uint64_t bytes = count * size + SMALL_COUNT * sizeof(uint64_t);
    unsigned char *memory = NULL;
    CUdeviceptr device = 0;
    if (bytes > KEPT_MAX - l->kept || (!size_class && l->kept_small > KEPT_MAX / 2)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct buffer *made = calloc(count, sizeof *made); /* for good, like the pinned memory */
    if (!made) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int32_t error =
        (int32_t)s->cuda.cuMemHostAlloc((void **)&memory, bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
    error = error ? error : (int32_t)s->cuda.cuMemHostGetDevicePointer_v2(&device, memory, 0);
    if (error) {
        free(made);
        return error;
    }
    l->kept += bytes;
    l->kept_small += size_class ? 0 : bytes;
    memset(memory + count * size, 0, bytes - count * size);
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t word = count * size + i * sizeof(uint64_t);
        made[i] = (struct buffer){.next = l->free[size_class],
                                  .memory = memory + i * size,
                                  .word = (_Atomic uint64_t *)(void *)(memory + word),
                                  .word_at = device + word,
                                  .size_class = size_class};
        l->free[size_class] = &made[i];
    }
    return CUDA_SUCCESS;
}

static struct buffer *take(struct tpw_session *s, uint64_t size, int32_t *error) {
    uint32_t size_class = 0;
    while (class_size(size_class) < size) {
        size_class++;
    }
    if (!s->lates->free[size_class]) {
        *error = grow(s, size_class);
    }
    struct buffer *buffer = s->lates->free[size_class];
    if (buffer) {
        s->lates->free[size_class] = buffer->next;
    }
    return buffer;
}

static void give(struct tpw_session *s, struct buffer *buffer) { TP_PUSH(s->lates->free[buffer->size_class], buffer); }

/* Gives back what is free and large. The driver may wait for work here: only while no stream stands. */
static void trim(struct tpw_session *s) {
    for (uint32_t size_class = 1; size_class < CLASSES; size_class++) {
        while (s->lates->free[size_class]) {
            struct buffer *buffer = s->lates->free[size_class];
            s->lates->free[size_class] = buffer->next;
            s->lates->kept -= class_size(size_class) + SMALL_COUNT * sizeof(uint64_t);
            s->cuda.cuMemFreeHost(buffer->memory);
            free(buffer);
        }
    }
}

/* How a copy of so many bytes goes: in pieces of 64 KiB … 256 MiB. False when that would be more than `most`. */
static bool cut(uint64_t size, uint64_t most, uint64_t *piece) {
    *piece = SMALL;
    while (*piece < size && (*piece < USUAL || *piece * most < size)) {
        *piece *= 2;
    }
    return *piece <= LARGEST;
}

/* ---- words ---- */

static _Atomic uint32_t written; /* futex of those who wait on the host */

struct host_wait {
    const _Atomic uint64_t *word;
    uint64_t value;
};

/* On a thread of the driver. */
static void wait_on_host(void *what) {
    struct host_wait *wait = what;
    for (;;) {
        uint32_t seen = atomic_load(&written);
        if (atomic_load_explicit(wait->word, memory_order_acquire) >= wait->value) {
            break;
        }
        tp_futex_wait(&written, seen, 0);
    }
    free(wait);
}

static uint64_t value_of(const struct late *late, uint64_t piece) {
    return late->buffers[piece % 2]->value + piece / 2 + 1;
}

static void release(const struct late *late, uint64_t piece) {
    atomic_store_explicit(late->buffers[piece % 2]->word, value_of(late, piece), memory_order_release);
    atomic_fetch_add(&written, 1);
    tp_futex_wake(&written, INT32_MAX);
}

static int32_t wait_for(struct tpw_session *s, const struct late *late, uint64_t piece, CUstream stream) {
    const struct buffer *buffer = late->buffers[piece % 2];
    static bool on_host;
    if (!on_host) {
        int32_t error = (int32_t)s->cuda.cuStreamWaitValue64_v2(stream, buffer->word_at, value_of(late, piece),
                                                                CU_STREAM_WAIT_VALUE_GEQ);
        if (error != CUDA_ERROR_NOT_SUPPORTED) {
            return error;
        }
        on_host = true;
        tp_log(TP_WARN,
               "this GPU cannot wait for a word of memory: copies behind host functions wait in host functions, "
               "and a program whose functions wait for other streams may hang");
    }
    struct host_wait *wait = malloc(sizeof *wait);
    if (!wait) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *wait = (struct host_wait){.word = buffer->word, .value = value_of(late, piece)};
    int32_t error = (int32_t)s->cuda.cuLaunchHostFunc(stream, wait_on_host, wait);
    if (error) {
        free(wait);
    }
    return error;
}

/* ---- the life of a copy ---- */

static void end_token(struct tpw_session *s, uint64_t token) {
    struct tpg_upload_wanted_in message = {.token = token, .over = 1};
    tpg_send_upload_wanted(s, &message);
}

static void want(struct tpw_session *s, struct late *late) {
    uint64_t limit = (late->copied + 2) * late->piece;
    limit = limit < late->size ? limit : late->size;
    if (limit > late->wanted) {
        late->wanted = limit;
        struct tpg_upload_wanted_in message = {
            .token = late->token, .limit = limit, .quiet = !tpw_hosts_outstanding(s)};
        tpg_send_upload_wanted(s, &message);
    }
}

static void finish(struct tpw_session *s, struct late *late) {
    if (!late->over) {
        late->over = true;
        s->late--;
    }
}

static void fail(struct tpw_session *s, struct late *late, int32_t error) {
    if (late->error) {
        return;
    }
    late->error = error;
    end_token(s, late->token);
    finish(s, late);
    for (uint64_t piece = 0; piece < late->pieces; piece++) {
        release(late, piece);
    }
}

/* Frees it when nothing of it is in the stream any more. After an error the GPU may still read its buffers: nobody gets
 * them. */
static void settle(struct tpw_session *s, struct late *late) {
    if (late->issuing || late->points) {
        return;
    }
    TP_UNLINK(s->lates->list, late);
    for (uint64_t i = 0; i < 2 && !late->error; i++) {
        if (late->buffers[i]) { /* the second only of several pieces */
            late->buffers[i]->value += (late->pieces + 1 - i) / 2;
            give(s, late->buffers[i]);
        }
    }
    free(late);
}

static void reached(struct tpw_session *s, void *what, int32_t error) {
    struct late *late = what;
    if (error) {
        fail(s, late, error);
    } else if (!late->error) {
        want(s, late);
    }
    late->points--; /* not before: a message looks for completions, which may be those of this copy */
    settle(s, late);
}

static void piece_copied(struct tpw_session *s, void *what, int32_t error) {
    struct late *late = what;
    late->copied++;
    if (error) {
        fail(s, late, error);
    } else if (!late->error) {
        want(s, late);
    }
    late->points--;
    settle(s, late);
}

static int32_t put_point(struct tpw_session *s, struct late *late, const struct tpw_stream *stream, tpw_done *done) {
    int32_t error = tpw_when_done(s, stream->native, done, late);
    late->points += !error;
    return error;
}

static int32_t issue(struct tpw_session *s, struct late *late, const struct tpg_area *area, struct tpw_stream *stream) {
    int32_t error = put_point(s, late, stream, reached);
    for (uint64_t piece = 0; piece < late->pieces && !error; piece++) {
        const uint64_t offset = piece * late->piece, left = late->size - offset;
        error = wait_for(s, late, piece, stream->native);
        /* A point counts one more command than itself: the first one's is the first wait, a piece's is its copy. */
        tpw_stream_count(s, stream, (piece > 0) + (area->height == 1 ? 0u : 2u));
        error = error ? error
                      : tpw_area_copy(s, area, offset, late->buffers[piece % 2]->memory,
                                      left < late->piece ? left : late->piece, true, stream->native);
        error = error ? error : put_point(s, late, stream, piece_copied);
    }
    return error;
}

/* ---- operations ---- */

struct order { /* what was asked for, kept while other frames are looked at */
    struct tp_frame frame;
    struct tpg_copy_in_late_in in;
    uint64_t size, piece, pieces;
    uint32_t commands; /* of a piece */
};

static struct tpw_stream *stream_for(struct tpw_session *s, const struct order *order, int32_t *error) {
    *error = tpw_enter(s, &order->frame);
    tpw_check_area(s, &order->in.area, error);
    struct tpw_stream *stream = tpw_stream_find(s, &order->frame, order->in.stream, error);
    tpw_refuse_capturing(s, stream ? stream->native : NULL, error);
    return stream;
}

static int32_t take_buffers(struct tpw_session *s, const struct order *order, struct buffer *buffers[2]) {
    int32_t error = CUDA_SUCCESS;
    for (uint64_t i = 0; i < 2 && i < order->pieces && !error; i++) {
        buffers[i] = take(s, order->piece, &error);
    }
    if (error && buffers[0]) {
        give(s, buffers[0]);
        buffers[0] = NULL;
    }
    return error;
}

struct needs {
    const struct order *order;
    struct buffer **buffers;
    uint64_t asked;
    int32_t error;
};

/* Without buffers, or without room in the stream for all commands, since none of them may wait for a later one. What stands
 * gives them back. A function of a broken context is outstanding for ever, but no stream stands at it. */
static bool in_need(struct tpw_session *s, void *what) {
    struct needs *needs = what;
    const struct order *order = needs->order;
    const uint64_t now = tp_now_ns();
    if (needs->asked && now - needs->asked < ASK_NS) {
        return true;
    }
    needs->asked = now;
    struct tpw_stream *stream = stream_for(s, order, &needs->error); /* it may have gone meanwhile */
    if (needs->error) {
        return false;
    }
    if (tpw_callbacks_outstanding(s) && !tpw_stream_has_room(s, stream, (uint32_t)order->pieces * order->commands)) {
        return true;
    }
    needs->error = take_buffers(s, order, needs->buffers);
    if (needs->error != CUDA_ERROR_OUT_OF_MEMORY) {
        return false;
    }
    if (s->lates->list || (tpw_callbacks_outstanding(s) && tpw_streams_stand(s))) {
        return true;
    }
    trim(s);
    needs->error = take_buffers(s, order, needs->buffers);
    return false;
}

static int32_t prepare(struct tpw_session *s, const struct order *order, struct buffer *buffers[2],
                       struct tpw_stream **stream) {
    struct needs needs = {.order = order, .buffers = buffers};
    if (in_need(s, &needs) && !tpw_hold_while(s, in_need, &needs)) {
        return TPW_LATER;
    }
    int32_t error = needs.error;
    if (!error) {
        error = tpw_enter(s, &order->frame); /* streams were asked in their contexts */
        *stream = tpw_stream_of(s, &order->frame, order->in.stream, &error);
    }
    for (uint64_t i = 0; i < 2 && error; i++) {
        if (buffers[i]) {
            give(s, buffers[i]);
        }
    }
    return error;
}

int32_t tpw_copy_in_late(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_in_late_in *in) {
    struct order order = {.frame = *frame, .in = *in};
    struct tpw_stream *stream = NULL;
    struct buffer *buffers[2] = {0};
    if (!in->area.width || !in->area.height || __builtin_mul_overflow(in->area.width, in->area.height, &order.size)) {
        tpw_violation(s, frame, "copy_in_late of an empty or endless area");
        return TPW_LATER;
    }
    int32_t error = CUDA_ERROR_OUT_OF_MEMORY;
    struct late *late = calloc(1, sizeof *late);
    const struct tpw_range *range = tpw_range_at(s, in->area.address);
    order.commands = range && tpw_is_host(range) ? COMMANDS_TO_HOST : COMMANDS;
    if (late && state(s) && cut(order.size, ROOM / order.commands, &order.piece)) {
        order.pieces = (order.size - 1) / order.piece + 1;
        error = prepare(s, &order, buffers, &stream);
    }
    if (error) {
        free(late);
        end_token(s, order.in.token);
        return error;
    }
    *late = (struct late){.next = s->lates->list,
                          .token = order.in.token,
                          .size = order.size,
                          .piece = order.piece,
                          .pieces = order.pieces,
                          .buffers = {buffers[0], buffers[1]},
                          .issuing = true};
    s->lates->list = late;
    s->late++;
    if (stream->hosts != s->hosts) { /* it will stand here, as at a host function */
        stream->hosts = s->hosts;
        stream->behind = 0;
    }
    error = issue(s, late, &order.in.area, stream);
    if (error) {
        fail(s, late, error);
    }
    late->issuing = false;
    settle(s, late);
    return error;
}

int32_t tpw_late_bytes(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_late_bytes_in *in) {
    struct late *late = TP_FIND(s->lates ? s->lates->list : NULL, it->token == in->token && !it->over);
    if (!late) {
        return CUDA_SUCCESS; /* it failed while these were on their way */
    }
    if (!in->data_size || in->data_size > late->wanted - late->came) {
        tpw_violation(s, frame, "late_bytes that nobody asked for");
        return TPW_LATER;
    }
    const unsigned char *data = in->data;
    for (uint64_t left = in->data_size; left;) {
        const uint64_t piece = late->came / late->piece, at = late->came % late->piece;
        const uint64_t whole =
            late->size - piece * late->piece < late->piece ? late->size - piece * late->piece : late->piece;
        const uint64_t part = left < whole - at ? left : whole - at;
        memcpy(late->buffers[piece % 2]->memory + at, data, part);
        data += part;
        left -= part;
        late->came += part;
        if (at + part == whole) {
            release(late, piece);
        }
    }
    if (late->came == late->size) {
        finish(s, late);
    }
    return CUDA_SUCCESS;
}
