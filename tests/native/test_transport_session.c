/*
 * A session for the transport tests: the real link of native/session under a small executor with operations of its own.
 *
 * One process per client. It plays the supervisor too: it accepts all connections and answers greetings. What it receives is
 * checked by content; violations are counted and asked for by OP_TOTALS.
 */
#include "test_transport.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <tp_secure.h>
#include <tp_segment.h>
#include <tpg_schema.h>
#include <tpw_link.h>

#define THREADS 64
#define KEY 0x1234567890abcdefull

static uint32_t next_value[THREADS];
static uint64_t counted, uploaded, violations, refused_transfer;
static bool trace_on;

static void *allocate(size_t size) { return malloc(size); }
static void release(void *memory) { free(memory); }

/* Accepts one connection and answers its greeting; -1 when nobody asks. */
static int accept_one(int listener, struct tp_greeting *greeting) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) {
        return -1;
    }
    uint64_t deadline = tp_now_ns() + 2000000000u;
    bool whole = tp_net_receive_all(fd, greeting, sizeof *greeting, deadline) == TP_OK;
    const bool secret = whole && greeting->magic[0] == 0x16; /* a client that has one begins with TLS */
    if (!whole || (!secret && memcmp(greeting->magic, TP_MAGIC, sizeof greeting->magic) != 0)) {
        close(fd);
        return -1;
    }
    struct tp_welcome welcome = {.magic = TP_MAGIC,
                                 .version = TP_PROTOCOL,
                                 .session_id = 7,
                                 .session_key = KEY,
                                 .data_connections = TP_DATA_CONNECTIONS};
    memcpy(welcome.schema, tpg_schema_hash, sizeof welcome.schema);
    if (secret) {
        char rest[TP_HELLO_MAX];
        CHECK(recv(fd, rest, sizeof rest, 0) > 0); /* else closing would take the answer away */
        greeting->role = TP_ROLE_CONTROL;
        welcome.status = TP_SECRET_REFUSED;
        strcpy(welcome.sentence, "The secret is wrong; ask who runs the worker.\n\x1b[31m");
    }
    CHECK(greeting->role != TP_ROLE_DATA || (greeting->session_id == 7 && greeting->session_key == KEY));
    tp_net_send_all(fd, &welcome, sizeof welcome, deadline);
    if (welcome.status) {
        close(fd);
        return -1;
    }
    return fd;
}

static void serve_data(struct tpw_link *link, int listener) {
    struct pollfd wait = {.fd = listener, .events = POLLIN};
    while (poll(&wait, 1, 0) > 0) {
        struct tp_greeting greeting;
        int fd = accept_one(listener, &greeting);
        if (fd >= 0) {
            tpw_link_add_data(link, greeting.index, fd, NULL);
        }
    }
}

static void upload(struct tpw_link *link, int listener, uint64_t transfer, uint64_t size, uint64_t seed) {
    uint64_t got = 0;
    enum tp_status status = TP_OK;
    while (got < size && status == TP_OK) {
        struct tpw_block *block = tpw_upload_take(link, transfer);
        if (!block) {
            serve_data(link, listener);
            tpw_link_wait_data(link, listener, 100000000u);
            if (tpw_link_status(link) != TP_OK) {
                return;
            }
            continue;
        }
        if (block->offset > size || block->size > size - block->offset ||
            (seed != UINT64_MAX && !has_pattern(block->memory, block->size, seed, block->offset))) {
            violations++;
        }
        got += block->size;
        tpw_upload_done(link, block);
    }
    uploaded += got;
}

static void host_write(struct tpw_link *link, uint64_t transfer, uint64_t size, uint64_t seed) {
    size_t body = 16 + tp_padded(size);
    unsigned char *at = tpw_reply_begin(link, MESSAGE_WRITE, 0, 0, body);
    CHECK(at);
    struct tp_cursor c = tp_cursor_make(at, body);
    static unsigned char bytes[TP_INLINE_MAX];
    fill_pattern(bytes, size, seed, 0);
    c.lends = true;
    tp_put_u64(&c, transfer);
    tp_put_bytes(&c, bytes, size);
    CHECK(!c.bad);
    tpw_reply_commit_lent(link, 0, body, &c);
    memset(bytes, 0, sizeof bytes); /* what was lent is not looked at any more */
}

static void download(struct tpw_link *link, int listener, uint64_t transfer, uint64_t size, uint64_t seed,
                     uint64_t stop_at) {
    if (size <= TP_INLINE_MAX && stop_at > size) {
        host_write(link, transfer, size, seed);
        return;
    }
    for (uint64_t offset = 0; offset < size;) {
        struct tpw_block *block = tpw_download_block(link);
        if (!block) {
            serve_data(link, listener);
            tpw_link_wait_data(link, listener, 100000000u);
            if (tpw_link_status(link) != TP_OK) {
                return;
            }
            continue;
        }
        uint64_t left = size - offset;
        block->transfer = transfer;
        block->offset = offset;
        block->size = (uint32_t)(left < 700001 ? left : 700001);
        if (seed != UINT64_MAX) {
            fill_pattern(block->memory, block->size, seed, offset);
        }
        offset += block->size;
        tpw_download_send(link, block, offset == size);
        if (offset >= stop_at) {
            usleep(20000);
            _exit(0);
        }
    }
}

/* Ways in which a broken worker may break the format: each must end the client's connection and harm nothing. */
static void send_bad(struct tpw_link *link, int control, uint32_t kind, uint32_t thread) {
    struct tp_reply_frame bad = {.size = 24, .op = OP_BAD, .flags = TP_FRAME_REPLY, .thread = thread};
    tpw_link_flush(link);
    switch (kind) {
    case 0:
        bad.size = 8;
        break;
    case 1:
        bad.size = TP_FRAME_MAX + 8;
        break;
    case 2:
        bad.size = 28;
        break;
    case 3:
        bad.thread = 99999;
        break;
    case 4:
        bad.thread = 0;
        break;
    case 5:
        bad.transfers = 1ull << 40;
        bad.flags |= TP_FRAME_COMPLETES;
        break;
    case 6:
        bad.op = MESSAGE_WRITE;
        bad.flags = 0;
        break; /* no body */
    case 7: {  /* a host write into a transfer that nobody expects */
        host_write(link, 12345, 8, 0);
        tpw_link_flush(link);
        return;
    }
    case 8: { /* half a frame, then the end */
        CHECK(send(control, &bad, 10, MSG_NOSIGNAL) == 10);
        _exit(0);
    }
    case 9: { /* a chunk for a transfer that nobody expects */
        struct tpw_block *block = tpw_download_block(link);
        CHECK(block);
        block->transfer = 54321;
        block->offset = 0;
        block->size = 4096;
        tpw_download_send(link, block, true);
        return;
    }
    case 11: /* a message that completes more than was asked for */
        bad.op = MESSAGE_STEP;
        bad.transfers = 1;
        bad.flags = TP_FRAME_COMPLETES;
        break;
    case 12: /* a message that nobody knows */
        bad.op = 77;
        bad.flags = 0;
        break;
    case 13: /* after a frame that counted one */
        bad.flags |= TP_FRAME_COMPLETES;
        break;
    default: { /* noise */
        unsigned char noise[4096];
        fill_pattern(noise, sizeof noise, kind, 0);
        CHECK(send(control, noise, sizeof noise, MSG_NOSIGNAL) > 0);
        return;
    }
    }
    CHECK(send(control, &bad, sizeof bad, MSG_NOSIGNAL) == sizeof bad);
}

/* A frame with a number, which counts one transfer more than were handed over. */
static void send_step(struct tpw_link *link, uint16_t op, uint16_t flags, uint32_t thread, uint64_t number) {
    unsigned char *body = tpw_reply_begin(link, op, flags, thread, 8);
    struct tp_reply_frame *frame = (struct tp_reply_frame *)(void *)body - 1;
    CHECK(body);
    memcpy(body, &number, sizeof number);
    tpw_reply_commit(link, 0, sizeof number);
    frame->transfers += flags & TP_FRAME_COMPLETES ? 1 : 0;
}

/* Frames that complete a download which is handed over 20 ms later, with news between them. */
static void held(struct tpw_link *link, int listener, const struct tp_frame *frame, struct tp_cursor *c) {
    uint64_t transfer = tp_get_u64(c), size = tp_get_u64(c), seed = tp_get_u64(c);
    send_step(link, MESSAGE_STEP, TP_FRAME_COMPLETES, 0, 2);
    send_step(link, MESSAGE_STEP, 0, 0, 1);
    send_step(link, frame->op, TP_FRAME_REPLY | TP_FRAME_COMPLETES, frame->thread, 3);
    send_step(link, MESSAGE_STEP, TP_FRAME_COMPLETES, 0, 4);
    tpw_link_flush(link);
    usleep(20000);
    download(link, listener, transfer, size, seed, UINT64_MAX);
}

static void serve(struct tpw_link *link, int listener, int control, const struct tp_frame *header) {
    struct tp_frame frame = *header;
    uint32_t body = frame.size - (uint32_t)sizeof frame;
    struct tp_cursor c = tp_cursor_make((unsigned char *)(uintptr_t)(header + 1), body);
    if (trace_on) {
        fprintf(stderr, "op %u thread %u size %u\n", frame.op, frame.thread, frame.size);
    }
    uint64_t transfer, size, seed;
    switch (frame.op) {
    case OP_ECHO: {
        size_t n;
        const void *bytes = tp_get_bytes(&c, &n);
        CHECK(!c.bad && (frame.flags & TP_FRAME_CALL));
        unsigned char *at = tpw_reply_begin(link, frame.op, TP_FRAME_REPLY | TP_FRAME_COMPLETES, frame.thread, n);
        struct tp_cursor out = tp_cursor_make(at, n);
        if (n >= TP_LENT_MIN) { /* all but the ends, so that bytes stand before and behind them */
            memcpy(at, bytes, 8);
            memcpy(at + n - 5, (const unsigned char *)bytes + n - 5, 5);
            out.lent = (const unsigned char *)bytes + 8;
            out.lent_at = at + 8;
            out.lent_size = n - 13;
        } else if (n) {
            memcpy(at, bytes, n);
        }
        tpw_reply_commit_lent(link, (int32_t)n, n, &out);
        break;
    }
    case OP_COUNT: {
        uint32_t value = tp_get_u32(&c);
        CHECK(frame.thread < THREADS);
        violations += value != next_value[frame.thread]++;
        counted++;
        break;
    }
    case OP_TOTALS: {
        unsigned char *at = tpw_reply_begin(link, frame.op, TP_FRAME_REPLY | TP_FRAME_COMPLETES, frame.thread, 24);
        struct tp_cursor out = tp_cursor_make(at, 24);
        tp_put_u64(&out, counted);
        tp_put_u64(&out, uploaded);
        tp_put_u64(&out, violations);
        tpw_reply_commit(link, 0, 24);
        break;
    }
    case OP_UPLOAD:
    case OP_DOWNLOAD:
    case OP_HALF:
    case OP_REFUSE_UPLOAD:
        transfer = tp_get_u64(&c);
        size = tp_get_u64(&c);
        seed = tp_get_u64(&c);
        CHECK(!c.bad);
        if (frame.op == OP_UPLOAD) {
            upload(link, listener, transfer, size, seed);
        } else if (frame.op == OP_REFUSE_UPLOAD) {
            CHECK(tpw_upload_drop(link, transfer, size) == TP_OK);
        } else {
            download(link, listener, transfer, size, seed, frame.op == OP_HALF ? size / 2 : UINT64_MAX);
        }
        break;
    case OP_DIE:
        _exit(0);
    case OP_STALL:
        usleep((useconds_t)tp_get_u64(&c) * 1000);
        break;
    case OP_NOTICE: {
        uint64_t value = tp_get_u64(&c);
        usleep(20000);
        memcpy(tpw_reply_begin(link, MESSAGE_NOTICE, 0, 0, 8), &value, 8);
        tpw_reply_commit(link, 0, 8);
        break;
    }
    case OP_REFUSE_DOWNLOAD:
        refused_transfer = tp_get_u64(&c);
        tpw_reply_begin(link, frame.op, TP_FRAME_REPLY | TP_FRAME_COMPLETES, frame.thread, 0);
        tpw_reply_commit(link, 999, 0);
        break;
    case OP_BAD:
        send_bad(link, control, tp_get_u32(&c), frame.thread);
        break;
    case OP_HELD:
        held(link, listener, &frame, &c);
        break;
    default:
        violations++;
    }
}

static int run_session(struct tpw_link *link, int listener, int control) {
    enum tp_status status = TP_OK;
    uint64_t spin_until = 0;
    while (status == TP_OK) {
        const struct tp_frame *frame = tpw_link_next(link, &status);
        if (frame) {
            serve(link, listener, control, frame);
            spin_until = 0;
        } else if (status == TP_OK) {
            tpw_link_flush(link);
            uint64_t now = tp_now_ns();
            spin_until = spin_until ? spin_until : now + tp_spin_ns(50000);
            if (now > spin_until) {
                serve_data(link, listener);
                tpw_link_wait(link, listener, 1000000000u);
                spin_until = 0;
            }
        }
    }
    bool hurt = violations != 0;
    tpw_link_close(link);
    return status == TP_ERROR_PROTOCOL ? 3 : hurt ? 4 : 0;
}

int test_session(int listener) {
    struct tp_greeting greeting;
    trace_on = getenv("TEST_TRACE") != NULL;
    int control = -1;
    while (control < 0) {
        control = accept_one(listener, &greeting);
    }
    struct tpw_link *link;
    CHECK(greeting.role == TP_ROLE_CONTROL);
    CHECK(tpw_link_open(&link, control, NULL, allocate, release) == TP_OK);
    return run_session(link, listener, control);
}

int test_session_slot(unsigned char *base, uint32_t slot, uint32_t first, uint32_t blocks) {
    struct tpw_link *link;
    trace_on = getenv("TEST_TRACE") != NULL;
    CHECK(tp_life_begin(&tp_slot_at(base, slot)->session_life));
    CHECK(tpw_link_open_slot(&link, base, slot, first, blocks) == TP_OK);
    /* Something must stand for the descriptor of the real session's rare events: without it the link thinks that it is in the
     * middle of a frame. */
    int events = eventfd(0, EFD_CLOEXEC);
    CHECK(events >= 0);
    return run_session(link, events, -1);
}
