/*
 * The link in memory: see fuzz_link.h. Owns every frame and block that was added, and what the session answers.
 *
 * Bounds are checked here as native/session/link/link.c checks them, and what the session must keep to is asserted: one begin for
 * each commit, no more body than was asked for, every block given back once. When the input is used up the session gets
 * time for completions that are due; then the link counts as lost, as after an orderly end.
 */
#include "fuzz_link.h"

#include "tpg_schema.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define QUIET_TURNS 50u /* looks at an empty link, a moment each, before it counts as closed */
#define PAUSE_TURNS 40u /* the executor looks at callbacks once in sixteen */
#define MOMENT_NS 20000
#define DOWNLOAD_BLOCKS 8u
#define UPLOAD_BLOCKS 16u
#define ANSWERS 8u

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            __builtin_trap();                                                                                          \
        }                                                                                                              \
    } while (0)

struct item {
    struct item *next;
    struct tp_frame *frame; /* NULL: a pause */
    bool translate;
};

struct upload {
    struct tpw_block block; /* first: the session holds pointers to it */
    struct upload *next;
    unsigned char fill;
    bool out;
};

struct tpw_link {
    struct item *first, **end;
    struct tp_frame *current, *kept;
    struct upload *uploads, *used;
    struct tpw_block downloads[DOWNLOAD_BLOCKS];
    bool download_out[DOWNLOAD_BLOCKS];
    fuzz_word *translate;
    bool (*busy)(void);
    void *(*allocate)(size_t);
    void (*release)(void *);
    uint64_t answers[ANSWERS];
    size_t answer_count, failures;
    uint64_t handed;
    unsigned char *reply;
    size_t reply_size;
    bool begun;
    unsigned quiet;
    enum tp_status status;
};

/* ---- the fuzzer's side ---- */

struct tpw_link *fuzz_link_new(void) {
    struct tpw_link *link = calloc(1, sizeof *link);
    MUST(link);
    link->end = &link->first;
    return link;
}

static void add(struct tpw_link *link, struct tp_frame *frame, bool translate) {
    struct item *item = malloc(sizeof *item);
    MUST(item);
    *item = (struct item){.frame = frame, .translate = translate};
    *link->end = item;
    link->end = &item->next;
}

void fuzz_link_stream(struct tpw_link *link, const unsigned char *bytes, size_t size) {
    while (size >= sizeof(struct tp_frame)) {
        uint32_t length;
        memcpy(&length, bytes, sizeof length);
        bool good = length >= sizeof(struct tp_frame) && length <= TP_FRAME_MAX && length % 8 == 0;
        if (good && length > size) {
            return; /* the rest never comes */
        }
        struct tp_frame *frame = malloc(good ? length : sizeof *frame);
        MUST(frame);
        memcpy(frame, bytes, good ? length : sizeof *frame);
        add(link, frame, false);
        if (!good) {
            return;
        }
        bytes += length;
        size -= length;
    }
}

void fuzz_link_frame(struct tpw_link *link, uint16_t op, uint16_t flags, uint32_t thread, uint32_t context,
                     const void *body, size_t size) {
    size_t total = sizeof(struct tp_frame) + tp_padded(size);
    struct tp_frame *frame = calloc(1, total);
    MUST(frame && total <= TP_FRAME_MAX);
    *frame = (struct tp_frame){.size = (uint32_t)total, .op = op, .flags = flags, .thread = thread, .context = context};
    if (size) {
        memcpy(frame + 1, body, size);
    }
    add(link, frame, true);
}

void fuzz_link_again(struct tpw_link *link) {
    link->status = TP_OK;
    link->quiet = 0;
}
void fuzz_link_pause(struct tpw_link *link) { add(link, NULL, false); }

void fuzz_link_block(struct tpw_link *link, uint64_t transfer, uint64_t offset, uint32_t size, unsigned char fill) {
    struct upload *upload = calloc(1, sizeof *upload), **at = &link->uploads;
    MUST(upload && size <= TP_CHUNK_MAX);
    upload->block = (struct tpw_block){.transfer = transfer, .offset = offset, .size = size};
    upload->fill = fill;
    while (*at) {
        at = &(*at)->next;
    }
    *at = upload;
}

uint64_t fuzz_link_answer(const struct tpw_link *link, size_t index) {
    return index < link->answer_count && index < ANSWERS ? link->answers[(link->answer_count - 1 - index) % ANSWERS]
                                                         : 0;
}

size_t fuzz_link_failures(const struct tpw_link *link) { return link->failures; }

void fuzz_link_busy(struct tpw_link *link, bool (*busy)(void)) { link->busy = busy; }

void fuzz_link_staging(struct tpw_link *link, void *(*allocate)(size_t), void (*release)(void *)) {
    link->allocate = allocate;
    link->release = release;
}

void fuzz_link_translate(struct tpw_link *link, fuzz_word *translate) { link->translate = translate; }

static void give(struct tpw_link *link, void *memory) {
    if (memory) {
        link->release(memory);
    }
}

void fuzz_link_free(struct tpw_link *link) {
    MUST(!link->begun);
    while (link->first) {
        struct item *item = link->first;
        link->first = item->next;
        free(item->frame);
        free(item);
    }
    struct upload *lists[] = {link->uploads, link->used};
    for (size_t i = 0; i < 2; i++) {
        for (struct upload *upload = lists[i], *next; upload; upload = next) {
            next = upload->next;
            give(link, upload->block.memory);
            free(upload);
        }
    }
    for (size_t i = 0; i < DOWNLOAD_BLOCKS; i++) {
        give(link, link->downloads[i].memory);
    }
    free(link->current);
    free(link->kept);
    free(link->reply);
    free(link);
}

/* ---- the session's side ---- */

static void take_next(struct tpw_link *link) {
    struct item *item = link->first;
    link->first = item->next;
    if (!link->first) {
        link->end = &link->first;
    }
    link->current = item->frame;
    bool translate = item->translate && link->translate;
    free(item);
    for (size_t at = sizeof(struct tp_frame); translate && at + 8 <= link->current->size; at += 8) {
        unsigned char *place = (unsigned char *)link->current + at;
        uint64_t word;
        memcpy(&word, place, sizeof word);
        word = link->translate(link, word);
        memcpy(place, &word, sizeof word);
    }
}

bool tpw_link_begins(struct tpw_link *link) {
    (void)link;
    return true;
}

const struct tp_frame *tpw_link_next(struct tpw_link *link, enum tp_status *status) {
    free(link->current);
    link->current = NULL;
    while (link->first && !link->first->frame) {
        if (++link->quiet <= PAUSE_TURNS || (link->busy && link->busy() && link->quiet <= QUIET_TURNS)) {
            nanosleep(&(struct timespec){.tv_nsec = MOMENT_NS}, NULL);
            *status = TP_OK;
            return NULL;
        }
        struct item *item = link->first;
        link->first = item->next;
        link->end = link->first ? link->end : &link->first;
        link->quiet = 0;
        free(item);
    }
    if (link->status == TP_OK && !link->first) {
        if (!link->busy || !link->busy() || ++link->quiet > QUIET_TURNS) {
            link->status = TP_ERROR_LOST;
        } else {
            nanosleep(&(struct timespec){.tv_nsec = MOMENT_NS}, NULL);
        }
    }
    if (link->status == TP_OK && link->first) {
        link->quiet = 0;
        take_next(link);
        uint32_t size = link->current->size;
        if (size < sizeof(struct tp_frame) || size > TP_FRAME_MAX || size % 8 != 0) {
            link->status = TP_ERROR_PROTOCOL;
        }
    }
    *status = link->status;
    return link->status == TP_OK ? link->current : NULL;
}

void tpw_link_wake(struct tpw_link *link) { (void)link; }

bool tpw_link_keep(struct tpw_link *link) {
    if (!link->kept) {
        link->kept = link->current;
        link->current = NULL;
    }
    return true;
}

void tpw_link_keep_over(struct tpw_link *link) {
    free(link->kept);
    link->kept = NULL;
}

uint32_t tpw_upload_blocks(const struct tpw_link *link) {
    (void)link;
    return UPLOAD_BLOCKS;
}

uint32_t tpw_download_blocks(const struct tpw_link *link) {
    (void)link;
    return DOWNLOAD_BLOCKS;
}

enum tp_status tpw_link_status(const struct tpw_link *link) { return link->status; }

/* Nothing will come that is not here already: sleeping gives only the simulated GPU time, and not for ever. */
void tpw_link_wait(struct tpw_link *link, int extra_fd, uint64_t timeout_ns) {
    (void)extra_fd;
    (void)timeout_ns;
    nanosleep(&(struct timespec){.tv_nsec = MOMENT_NS}, NULL);
    if (++link->quiet > QUIET_TURNS) {
        link->status = TP_ERROR_LOST;
    }
}

bool tpw_link_nap(struct tpw_link *link, uint64_t ns, uint64_t least_ns) {
    (void)link, (void)ns, (void)least_ns;
    return false; /* as over TCP */
}

void tpw_link_wait_data(struct tpw_link *link, int extra_fd, uint64_t timeout_ns) {
    tpw_link_wait(link, extra_fd, timeout_ns);
}

unsigned char *tpw_reply_begin(struct tpw_link *link, uint16_t op, uint16_t flags, uint32_t thread, size_t size) {
    (void)flags, (void)thread;
    link->failures += op == TPG_OP_notice;
    link->begun = false;
    if (sizeof(struct tp_reply_frame) + tp_padded(size) > TP_FRAME_MAX) {
        link->status = link->status == TP_OK ? TP_ERROR_PROTOCOL : link->status;
        return NULL;
    }
    free(link->reply);
    link->reply = aligned_alloc(8, tp_padded(size) + 8);
    MUST(link->reply);
    memset(link->reply, 0xee, tp_padded(size) + 8);
    link->reply_size = size;
    link->begun = true;
    return link->reply;
}

void tpw_reply_commit(struct tpw_link *link, int32_t result, size_t used) {
    if (!link->begun) {
        return;
    }
    MUST(used <= tp_padded(link->reply_size));
    link->failures += result != 0;
    if (!result && used >= sizeof(uint64_t)) {
        memcpy(&link->answers[link->answer_count++ % ANSWERS], link->reply, sizeof(uint64_t));
    }
    link->begun = false;
}

void tpw_reply_commit_lent(struct tpw_link *link, int32_t result, size_t used, struct tp_cursor *body) {
    tp_lent_fill(body);
    tpw_reply_commit(link, result, used);
}

bool tpw_link_flush(struct tpw_link *link) {
    MUST(!link->begun);
    return true;
}

void tpw_link_bytes(const struct tpw_link *link, uint64_t *received, uint64_t *sent) {
    (void)link;
    *received = *sent = 0;
}
size_t tpw_link_unread(const struct tpw_link *link) {
    (void)link;
    return 0;
}

bool tpw_link_has_data(const struct tpw_link *link) { return link->status == TP_OK; }

struct tpw_block *tpw_upload_take(struct tpw_link *link, uint64_t transfer) {
    for (struct upload *upload = link->uploads; upload; upload = upload->next) {
        if (!upload->out && upload->block.transfer == transfer) {
            upload->block.memory = link->allocate(TP_CHUNK_MAX);
            if (!upload->block.memory) {
                return NULL;
            }
            memset(upload->block.memory, upload->fill, upload->block.size);
            upload->out = true;
            return &upload->block;
        }
    }
    return NULL;
}

void tpw_upload_done(struct tpw_link *link, struct tpw_block *block) {
    for (struct upload **at = &link->uploads; *at; at = &(*at)->next) {
        struct upload *upload = *at;
        if (&upload->block == block) {
            MUST(upload->out);
            *at = upload->next;
            /* Kept like the real link's blocks: giving pinned memory back waits for the GPU. */
            upload->next = link->used;
            link->used = upload;
            return;
        }
    }
    __builtin_trap();
}

enum tp_status tpw_upload_drop(struct tpw_link *link, uint64_t transfer, uint64_t size) {
    for (struct upload **at = &link->uploads; *at && size;) {
        struct upload *upload = *at;
        if (upload->out || upload->block.transfer != transfer) {
            at = &upload->next;
            continue;
        }
        *at = upload->next;
        size -= upload->block.size < size ? upload->block.size : size;
        give(link, upload->block.memory);
        free(upload);
    }
    return TP_OK;
}

struct tpw_block *tpw_download_block(struct tpw_link *link) {
    for (size_t i = 0; i < DOWNLOAD_BLOCKS; i++) {
        if (!link->download_out[i]) {
            struct tpw_block *block = &link->downloads[i];
            block->memory = block->memory ? block->memory : link->allocate(TP_CHUNK_MAX);
            if (!block->memory) {
                return NULL;
            }
            link->download_out[i] = true;
            return block;
        }
    }
    return NULL;
}

void tpw_download_drop(struct tpw_link *link, struct tpw_block *block) {
    size_t index = (size_t)(block - link->downloads);
    MUST(index < DOWNLOAD_BLOCKS && link->download_out[index]);
    link->download_out[index] = false;
}

void tpw_download_send(struct tpw_link *link, struct tpw_block *block, bool last) {
    MUST(block->size <= TP_CHUNK_MAX);
    link->handed += last;
    tpw_download_drop(link, block);
}
