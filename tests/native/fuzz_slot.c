/*
 * Fuzz target: the session's link over a slot (native/session/link/link_slot.c) beside a client that writes whatever the input says
 * into its rings, its indices and its page, between any two looks of the session.
 *
 * One thread plays both. What the session is handed must be what link.h promises: frames of lawful size in private memory,
 * blocks of the run and nothing else, no more bytes than a block has; a link that is over stays over. Waiting has no place here:
 * every sleep has a limit of zero.
 */
#include "tpw_link.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tp_segment.h>

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            __builtin_trap();                                                                                          \
        }                                                                                                              \
    } while (0)
#define BLOCKS 2u

int LLVMFuzzerInitialize(int *count, char ***words);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static unsigned char *base;
static struct tp_run run;
static volatile unsigned char sink;

int LLVMFuzzerInitialize(int *count, char ***words) {
    (void)count, (void)words;
    base = mmap(NULL, TP_SEGMENT_MIN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(base != MAP_FAILED);
    run = tp_run_layout(0, BLOCKS);
    MUST(run.granules <= tp_arena_granules(TP_SEGMENT_MIN));
    return 0;
}

struct input {
    const uint8_t *at;
    size_t left;
};

static uint64_t number(struct input *in, size_t width) {
    uint64_t value = 0;
    width = width < in->left ? width : in->left;
    memcpy(&value, in->at, width);
    in->at += width;
    in->left -= width;
    return value;
}

/* The client's: bytes behind the head as it stands, then the new head. */
static void send(struct tp_ring_shared *ring, uint64_t at, uint64_t ring_size, const void *bytes, size_t size) {
    uint64_t head = atomic_load(&ring->head);
    for (size_t i = 0; i < size; i++) {
        base[at + (head + i) % ring_size] = ((const unsigned char *)bytes)[i];
    }
    atomic_store(&ring->head, head + size);
}

static void send_frame(struct tp_slot *slot, struct input *in) {
    uint64_t size = number(in, 1) * 8;
    struct tp_frame frame = {.size = (uint32_t)(sizeof frame + size), .op = (uint16_t)number(in, 1), .thread = 1};
    send(&slot->commands, run.commands, TP_COMMAND_RING, &frame, sizeof frame);
    static const unsigned char body[256 * 8];
    send(&slot->commands, run.commands, TP_COMMAND_RING, body, size);
}

static void send_record(struct tp_slot *slot, struct input *in) {
    uint64_t word = number(in, 2);
    struct tp_chunk_record record = {
        .chunk = {.transfer = word & 3, .offset = number(in, 1), .size = (uint32_t)number(in, 3)},
        .block = word >> 2 & 7};
    record.block = record.block > BLOCKS ? (uint32_t)number(in, 4) : record.block;
    send(&slot->chunks_up, run.chunks_up, TP_CHUNK_RING, &record, sizeof record);
}

static void scribble(struct tp_slot *slot, struct input *in) {
    struct tp_ring_shared *rings[] = {&slot->commands, &slot->replies, &slot->chunks_up, &slot->chunks_down};
    uint64_t what = number(in, 1), value = number(in, what & 8 ? 8 : 1);
    struct tp_ring_shared *ring = rings[what & 3];
    _Atomic uint64_t *word = what & 4 ? &ring->head : &ring->tail;
    if (what & 16) {
        atomic_store(word, what & 8 ? value : atomic_load(word) + value);
    } else {
        uint64_t at = number(in, 2) % (TP_SLOT_SIZE - sizeof value);
        memcpy((unsigned char *)slot + at, &value, sizeof value);
    }
}

static void touch(const unsigned char *memory, size_t size) {
    for (size_t i = 0; i < size; i += 64) {
        sink = memory[i];
    }
    sink = memory[size - 1];
}

static void check_block(const struct tpw_block *block, uint64_t first) {
    uint64_t offset = (uint64_t)(block->memory - base);
    MUST(offset >= first && offset < first + BLOCKS * (uint64_t)TP_CHUNK_MAX && (offset - first) % TP_CHUNK_MAX == 0);
}

static void take_upload(struct tpw_link *link, struct input *in, struct tpw_block **held) {
    if (*held) {
        tpw_upload_done(link, *held);
        *held = NULL;
        return;
    }
    uint64_t transfer = number(in, 1) & 3;
    struct tpw_block *block = tpw_upload_take(link, transfer);
    if (block) {
        check_block(block, run.up);
        MUST(block->transfer == transfer && block->size > 0 && block->size <= TP_CHUNK_MAX);
        touch(block->memory, block->size);
        *held = block;
    }
}

static void send_download(struct tpw_link *link, struct input *in) {
    struct tpw_block *block = tpw_download_block(link);
    if (block) {
        check_block(block, run.down);
        uint64_t word = number(in, 1);
        block->transfer = 9;
        block->offset = 0;
        block->size = TP_CHUNK_MAX;
        memset(block->memory, 1, 64);
        if (word & 1) {
            tpw_download_send(link, block, word & 2);
        } else {
            tpw_download_drop(link, block);
        }
    }
}

static void answer(struct tpw_link *link, struct input *in) {
    size_t size = (size_t)number(in, 2);
    unsigned char *body = tpw_reply_begin(link, 20, TP_FRAME_REPLY, 1, size);
    if (body) {
        memset(body, 2, size);
        tpw_reply_commit(link, 0, size);
    }
    tpw_link_flush(link);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    struct input in = {bytes, size};
    struct tp_slot *slot = tp_slot_at(base, 0);
    struct tpw_link *link;
    struct tpw_block *held = NULL;
    memset(slot, 0, sizeof *slot);
    MUST(tpw_link_open_slot(&link, base, 0, 0, BLOCKS) == TP_OK);
    bool over = false;
    while (in.left > 0) {
        enum tp_status status;
        switch (number(&in, 1) % 9) {
        case 0: {
            size_t length = number(&in, 1);
            length = length < in.left ? length : in.left;
            send(&slot->commands, run.commands, TP_COMMAND_RING, in.at, length);
            in.at += length;
            in.left -= length;
            break;
        }
        case 1:
            send_frame(slot, &in);
            break;
        case 2:
            send_record(slot, &in);
            break;
        case 3:
            scribble(slot, &in);
            break;
        case 4: {
            const struct tp_frame *frame = tpw_link_next(link, &status);
            MUST(!frame || (frame->size >= sizeof *frame && frame->size <= TP_FRAME_MAX && frame->size % 8 == 0));
            MUST(!frame || (const unsigned char *)frame < base ||
                 (const unsigned char *)frame >= base + TP_SEGMENT_MIN);
            if (frame) {
                touch((const unsigned char *)frame, frame->size);
            }
            MUST(!over || !frame);
            break;
        }
        case 5:
            take_upload(link, &in, &held);
            break;
        case 6:
            send_download(link, &in);
            break;
        case 7:
            answer(link, &in);
            break;
        case 8:
            tpw_link_wait_data(link, -1, 0);
            tpw_upload_drop(link, number(&in, 1) & 3, number(&in, 2));
            break;
        }
        MUST(!over || tpw_link_status(link) != TP_OK);
        over = tpw_link_status(link) != TP_OK;
    }
    if (held) {
        tpw_upload_done(link, held);
    }
    tpw_link_close(link);
    return 0;
}
