/*
 * The session's control connection: frames in, replies and messages out, and the executor's sleep.
 *
 * Owns the control socket and both buffers; entered by the executor thread only (tpw_link_fail by any). Frames are looked at
 * only after they were received into `input`, which no peer can write. A frame's size is bounded before anything else of it is
 * read. Output that the client does not read is kept up to 64 MiB; past that the link ends.
 */
#include "link_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define OUTPUT_ROOM (TPW_OUTPUT_MAX + 2 * (size_t)TP_FRAME_MAX)
#define FLUSH_AT (256u << 10)
#define REASON_NS 1000000000u /* for a line of the log: its disk may be slow, and its reader may be gone */

void tpw_link_fail(struct tpw_link *link, enum tp_status status, const char *format, ...) {
    uint32_t fine = TP_OK;
    if (!atomic_compare_exchange_strong(&link->status, &fine, status)) {
        return;
    }
    char reason[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    tp_log(status == TP_ERROR_LOST ? TP_INFO : TP_ERROR, "The client's connection ends: %s", reason);
    atomic_store(&link->told, 1);
    tp_futex_wake(&link->told, INT32_MAX);
    if (link->slot) {
        return; /* only the executor is there, and it looks */
    }
    /* Wakes the executor, and the data threads through their sockets. */
    shutdown(link->control, SHUT_RDWR);
    for (uint32_t i = 0; i < TP_DATA_CONNECTIONS; i++) {
        int fd = atomic_load(&link->lanes[i].socket);
        if (fd >= 0) {
            shutdown(fd, SHUT_RDWR);
        }
        atomic_fetch_add(&link->lanes[i].free_news, 1);
        tp_futex_wake(&link->lanes[i].free_news, INT32_MAX);
    }
    atomic_fetch_add(&link->send_news, 1);
    tp_futex_wake(&link->send_news, INT32_MAX);
}

void tpw_link_await_reason(struct tpw_link *link) {
    const uint64_t until = tp_now_ns() + REASON_NS;
    while (tpw_link_over(link) && !atomic_load(&link->told) && tp_now_ns() < until) {
        tp_futex_wait(&link->told, 0, REASON_NS);
    }
}

static void *reserve_pages(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void tpw_link_drop(struct tpw_link *link) {
    if (link->input) {
        munmap(link->input, TPW_INPUT_SIZE);
    }
    if (link->kept) {
        munmap(link->kept, TPW_INPUT_SIZE);
    }
    if (link->spare) {
        munmap(link->spare, TPW_INPUT_SIZE);
    }
    if (link->output) {
        munmap(link->output, OUTPUT_ROOM);
    }
    free(link->slot);
    free(link);
}

struct tpw_link *tpw_link_make(void) {
    struct tpw_link *link = calloc(1, sizeof *link);
    if (!link) {
        return NULL;
    }
    link->control = link->event = -1;
    for (uint32_t i = 0; i < TP_DATA_CONNECTIONS; i++) {
        link->lanes[i] = (struct lane){.link = link, .index = i, .socket = -1};
    }
    link->input = reserve_pages(TPW_INPUT_SIZE);
    link->output = reserve_pages(OUTPUT_ROOM);
    if (!link->input || !link->output) {
        tpw_link_drop(link);
        return NULL;
    }
    return link;
}

enum tp_status tpw_link_open(struct tpw_link **out, int control, struct tp_secure *secure, void *(*allocate)(size_t),
                             void (*release)(void *)) {
    struct tpw_link *link = tpw_link_make();
    int event = link ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    if (event < 0) {
        close(control);
        tp_secure_free(secure);
        if (link) {
            tpw_link_drop(link);
        }
        return TP_ERROR_MEMORY;
    }
    link->control = control;
    link->secure = secure;
    link->event = event;
    link->allocate = allocate;
    link->release = release;
    tp_net_tune(control, false);
    *out = link;
    return TP_OK;
}

void tpw_link_close(struct tpw_link *link) {
    tpw_link_flush(link);
    tpw_link_fail(link, TP_ERROR_LOST, "the session closes it");
    tpw_link_close_data(link);
    if (!link->slot) {
        tp_secure_free(link->secure);
        close(link->control);
        close(link->event);
    }
    tpw_link_drop(link);
}

/* ---- frames in ---- */

/* One receive; false when nothing came. */
static bool receive(struct tpw_link *link) {
    if (link->input_start == link->input_end) {
        link->input_start = link->input_end = 0;
    } else if (TPW_INPUT_SIZE - link->input_end < TP_FRAME_MAX) {
        /* starts are multiples of 8, so frames stay aligned */
        memmove(link->input, link->input + link->input_start, link->input_end - link->input_start);
        link->input_end -= link->input_start;
        link->input_start = 0;
    }
    if (link->slot) {
        size_t got = tpw_slot_receive(link, link->input + link->input_end, TPW_INPUT_SIZE - link->input_end);
        link->input_end += got;
        link->received += got;
        return got > 0;
    }
    ssize_t n =
        tp_stream_receive(link->secure, link->control, link->input + link->input_end, TPW_INPUT_SIZE - link->input_end);
    if (n > 0) {
        link->input_end += (size_t)n;
        link->received += (size_t)n;
        return true;
    }
    if (n == 0) {
        tpw_link_fail(link, TP_ERROR_LOST, "the client closed it%s",
                      link->input_end > link->input_start ? ", in the middle of a frame" : "");
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        tpw_link_fail(link, tp_secure_status(errno), "receiving failed: %s", tp_secure_error(link->secure, errno));
    }
    return false;
}

const struct tp_frame *tpw_link_next(struct tpw_link *link, enum tp_status *status) {
    link->input_start += link->consumed;
    link->consumed = 0;
    if (tpw_link_wants_service(link)) {
        tpw_link_serve_data(link);
    }
    bool received = false;
    for (;;) {
        *status = (enum tp_status)atomic_load_explicit(&link->status, memory_order_relaxed);
        if (*status != TP_OK) {
            return NULL;
        }
        size_t have = link->input_end - link->input_start;
        if (have >= sizeof(struct tp_frame)) {
            const struct tp_frame *frame = (const struct tp_frame *)(const void *)(link->input + link->input_start);
            uint32_t size = frame->size;
            if (size < sizeof *frame || size > TP_FRAME_MAX || size % 8 != 0) {
                tpw_link_fail(link, TP_ERROR_PROTOCOL, "it sent a frame of %u bytes", size);
                continue;
            }
            if (size <= have) {
                link->consumed = size;
                return frame;
            }
        }
        if (received || !receive(link)) {
            *status = (enum tp_status)atomic_load_explicit(&link->status, memory_order_relaxed);
            return NULL;
        }
        received = true;
    }
}

bool tpw_link_begins(struct tpw_link *link) {
    enum tp_status status;
    const struct tp_frame *frame = tpw_link_next(link, &status);
    link->consumed = 0;
    return frame != NULL;
}

bool tpw_link_keep(struct tpw_link *link) {
    if (link->kept) {
        return true;
    }
    unsigned char *fresh = link->spare ? link->spare : reserve_pages(TPW_INPUT_SIZE);
    if (!fresh) {
        tpw_link_fail(link, TP_ERROR_MEMORY, "no memory to read frames in the middle of another");
        return false;
    }
    const size_t start = link->input_start + link->consumed;
    memcpy(fresh, link->input + start, link->input_end - start);
    link->kept = link->input;
    link->spare = NULL;
    link->input = fresh;
    link->input_end -= start;
    link->input_start = link->consumed = 0;
    return true;
}

void tpw_link_keep_over(struct tpw_link *link) {
    if (link->kept) {
        link->spare = link->kept;
        link->kept = NULL;
    }
}

enum tp_status tpw_link_status(const struct tpw_link *link) {
    return (enum tp_status)atomic_load_explicit(&link->status, memory_order_relaxed);
}

/* ---- output ---- */

unsigned char *tpw_reply_begin(struct tpw_link *link, uint16_t op, uint16_t flags, uint32_t thread, size_t size) {
    size_t total = sizeof(struct tp_reply_frame) + tp_padded(size);
    link->begun = 0;
    if (size > TP_FRAME_MAX || total > TP_FRAME_MAX) {
        tpw_link_fail(link, TP_ERROR_PROTOCOL, "an answer of %zu bytes does not fit a frame", size);
        return NULL;
    }
    if (link->output_end - link->output_start + total > TPW_OUTPUT_MAX) {
        tpw_link_flush(link);
        if (link->output_end - link->output_start + total > TPW_OUTPUT_MAX) {
            tpw_link_fail(link, TP_ERROR_LOST, "it does not read its answers; %u MiB are waiting",
                          TPW_OUTPUT_MAX >> 20);
        }
    }
    if (tpw_link_over(link)) {
        link->output_start = link->output_end = 0; /* the caller may still write; nobody will see it */
    } else if (link->output_end + total > OUTPUT_ROOM) {
        memmove(link->output, link->output + link->output_start, link->output_end - link->output_start);
        link->output_end -= link->output_start;
        link->output_start = 0;
    }
    struct tp_reply_frame *frame = (struct tp_reply_frame *)(void *)(link->output + link->output_end);
    *frame = (struct tp_reply_frame){.size = (uint32_t)total, .op = op, .flags = flags, .thread = thread};
    link->begun = total;
    return (unsigned char *)(frame + 1);
}

/* The frame that was begun joins the output. */
static void close_frame(struct tpw_link *link, int32_t result, size_t used) {
    struct tp_reply_frame *frame = (struct tp_reply_frame *)(void *)(link->output + link->output_end);
    size_t most = link->begun - sizeof *frame;
    used = used < most ? used : most;
    unsigned char *body = (unsigned char *)(frame + 1);
    memset(body + used, 0, tp_padded(used) - used); /* no old bytes of this process leave it as padding */
    frame->size = (uint32_t)(sizeof *frame + tp_padded(used));
    frame->result = result;
    frame->transfers = frame->flags & TP_FRAME_COMPLETES ? link->handed : 0;
    link->output_end += frame->size;
    link->begun = 0;
}

void tpw_reply_commit(struct tpw_link *link, int32_t result, size_t used) {
    if (!link->begun) {
        return;
    }
    close_frame(link, result, used);
    if (link->output_end - link->output_start >= FLUSH_AT) {
        tpw_link_flush(link);
    }
}

static size_t sent_or_lost(struct tpw_link *link, ssize_t n) {
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
        tpw_link_fail(link, TP_ERROR_LOST, "sending failed: %s", tp_secure_error(link->secure, errno));
    }
    return n > 0 ? (size_t)n : 0;
}

/* Bytes that the peer took; 0 when it takes no more for now, or the link is over. */
static size_t send_some(struct tpw_link *link, const void *bytes, size_t size) {
    if (link->slot) {
        return tpw_slot_send(link, bytes, size);
    }
    ssize_t n;
    do {
        n = tp_stream_send(link->secure, link->control, bytes, size);
    } while (n < 0 && errno == EINTR);
    return sent_or_lost(link, n);
}

/* The same for bytes that lie in two places. */
static size_t send_both(struct tpw_link *link, const void *first, size_t size, const void *second, size_t more) {
    if (link->slot) {
        size_t sent = size ? tpw_slot_send(link, first, size) : 0;
        return sent < size ? sent : sent + tpw_slot_send(link, second, more);
    }
    struct iovec parts[2] = {{.iov_base = (void *)(uintptr_t)first, .iov_len = size},
                             {.iov_base = (void *)(uintptr_t)second, .iov_len = more}};
    ssize_t n;
    do {
        n = tp_stream_send_parts(link->secure, link->control, parts, 2);
    } while (n < 0 && errno == EINTR);
    return sent_or_lost(link, n);
}

/* What was lent goes from where it is, behind the output that waits, as far as the peer takes it now; the rest is kept like any
 * other output. */
void tpw_reply_commit_lent(struct tpw_link *link, int32_t result, size_t used, struct tp_cursor *body) {
    if (TP_LIKELY(!body->lent_size) || !link->begun || tpw_link_over(link)) {
        tpw_reply_commit(link, result, used);
        return;
    }
    const unsigned char *lent = body->lent;
    size_t at = (size_t)(body->lent_at - link->output), end = at + body->lent_size, sent = 1;
    close_frame(link, result, used);
    for (; sent && link->output_start < end; link->output_start += sent) {
        size_t before = link->output_start < at ? at - link->output_start : 0;
        size_t done = before ? 0 : link->output_start - at;
        sent = send_both(link, link->output + link->output_start, before, lent + done, body->lent_size - done);
        link->sent += sent;
    }
    if (link->output_start < end) {
        size_t done = link->output_start < at ? 0 : link->output_start - at;
        memcpy(body->lent_at + done, lent + done, body->lent_size - done);
    }
}

bool tpw_link_flush(struct tpw_link *link) {
    while (link->output_start < link->output_end && !tpw_link_over(link)) {
        size_t sent = send_some(link, link->output + link->output_start, link->output_end - link->output_start);
        if (sent == 0 && !tpw_link_over(link)) {
            return false;
        }
        link->output_start += sent;
        link->sent += sent;
    }
    if (link->output_end > TP_FRAME_MAX) {
        madvise(link->output, OUTPUT_ROOM, MADV_DONTNEED);
    }
    link->output_start = link->output_end = 0;
    return true;
}

void tpw_link_bytes(const struct tpw_link *link, uint64_t *received, uint64_t *sent) {
    *received = link->received;
    *sent = link->sent;
}

size_t tpw_link_unread(const struct tpw_link *link) { return link->output_end - link->output_start; }

/* ---- sleeping ---- */

static bool data_news(struct tpw_link *link) {
    uint32_t news = atomic_load_explicit(&link->news, memory_order_seq_cst);
    bool fresh = news != link->news_seen;
    link->news_seen = news;
    return fresh;
}

/* `control` says which events of the control socket end the sleep. */
static void sleep_until(struct tpw_link *link, int extra_fd, uint64_t timeout_ns, short control) {
    tpw_link_flush(link);
    uint64_t end = tp_now_ns() + timeout_ns;
    end = end < timeout_ns ? UINT64_MAX : end;
    /* seq_cst: pairs with tell_executor, which bumps news and then looks whether the executor waits. */
    atomic_store_explicit(&link->executor_waits, 1, memory_order_seq_cst);
    while (!tpw_link_over(link) && !data_news(link)) {
        uint64_t now = tp_now_ns();
        uint64_t left = now < end ? end - now : 0;
        uint64_t step = left < 1000000000u ? left : 1000000000u;
        struct timespec timeout = {.tv_sec = (time_t)(step / 1000000000u), .tv_nsec = (long)(step % 1000000000u)};
        struct pollfd fds[3] = {
            {.fd = link->control, .events = (short)(control | (link->output_end > link->output_start ? POLLOUT : 0))},
            {.fd = link->event, .events = POLLIN},
            {.fd = extra_fd, .events = POLLIN},
        };
        if (control == POLLIN && tp_stream_holds(link->secure)) {
            break;
        }
        int ready = ppoll(fds, 3, &timeout, NULL);
        if (ready > 0 && fds[1].revents) {
            uint64_t ignored;
            ssize_t n = read(link->event, &ignored, sizeof ignored);
            (void)n;
        }
        if (ready > 0 && (fds[0].revents & POLLOUT)) {
            tpw_link_flush(link);
        }
        if (ready > 0 && control == POLLRDHUP && (fds[0].revents & (POLLRDHUP | POLLHUP | POLLERR))) {
            tpw_link_fail(link, TP_ERROR_LOST, "the client closed it, in the middle of a transfer");
        }
        if (ready > 0 && ((fds[0].revents & ~POLLOUT) || fds[2].revents)) {
            break;
        }
        if (ready == 0 && now - link->asked_for_silence >= 900000000u) {
            link->asked_for_silence = now;
            if (tp_net_silent(link->control)) {
                tpw_link_fail(link, TP_ERROR_LOST, "the client has not answered for 9 s");
            }
        }
        if (left == 0) {
            break;
        }
    }
    atomic_store_explicit(&link->executor_waits, 0, memory_order_seq_cst);
    if (tpw_link_wants_service(link)) {
        tpw_link_serve_data(link);
    }
}

void tpw_link_wait(struct tpw_link *link, int extra_fd, uint64_t timeout_ns) {
    if (link->slot) {
        tpw_slot_sleep(link, extra_fd, timeout_ns, true);
    } else {
        sleep_until(link, extra_fd, timeout_ns, POLLIN);
    }
}

void tpw_link_wait_data(struct tpw_link *link, int extra_fd, uint64_t timeout_ns) {
    if (link->slot) {
        tpw_slot_sleep(link, extra_fd, timeout_ns, false);
    } else {
        sleep_until(link, extra_fd, timeout_ns, POLLRDHUP);
    }
}

void tpw_link_wake(struct tpw_link *link) {
    if (link->slot) { /* beside sockets, extra_fd is in the poll */
        tpw_slot_wake(link);
    }
}
