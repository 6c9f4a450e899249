/*
 * What leaves for the client: answers, the notices of failed posts, and what must leave before a frame that says "complete".
 *
 * Executor thread only. Which answers and messages may say so is a word of their lines in api/ (completes=True), and generated
 * code comes through here for each of them. So no operation has to remember what must leave first.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_stream.h"

/* A completion needs no look: whatever was queued before it has left already, because completions run in the order in which
 * they were asked for. */
void tpw_leave(struct tpw_session *s) {
    if (!tpw_completing(s)) {
        tpw_poll(s);
    }
    if (TP_UNLIKELY(s->twins)) {
        TP_TELL(tpw_twins_leave, s);
    }
    if (TP_UNLIKELY(s->pools_freed)) {
        TP_TELL(tpw_pools_leave, s);
    }
}

void tpw_defer(struct tpw_session *s, const struct tp_frame *frame, int32_t error) {
    /* What broke a device, the driver gives again from each call on that device, and from none on another. */
    if (!tpw_breaks(s, error) && !s->deferred_error) {
        s->deferred_error = error;
    }
    s->answered = frame->thread;
    s->answer = error;
    const char *name = tpg_cuda_error_name(error);
    tp_log(TP_WARN, "frame %llu, %s: error %d (%s)", (unsigned long long)s->number, tpg_op_name(frame->op), error,
           name ? name : "unknown");
    struct tpg_notice_in notice = {.error = error, .op = frame->op, .frame = s->number};
    tpg_send_notice(s, &notice);
}

/* The error to answer with: this one, or the deferred one if there is none. */
static int32_t report(struct tpw_session *s, int32_t error) {
    if (!error) {
        error = s->deferred_error;
        s->deferred_error = 0;
    }
    return error;
}

static unsigned words_of(uint16_t op) { return op < TPG_OP_LIMIT ? tpg_words[op] : 0; }

/* "Not ready" completes nothing: whoever polls need not wait for anything. */
static bool completes(uint16_t op, int32_t result) {
    return (words_of(op) & TPG_COMPLETES) && result != CUDA_ERROR_NOT_READY;
}

int32_t tpw_result(struct tpw_session *s, uint16_t op, int32_t error) {
    if (error) {
        (void)tpw_breaks(s, error);
    }
    if (completes(op, error)) {
        tpw_leave(s); /* before the report: it may find that a post has failed */
    }
    return words_of(op) & TPG_REPORTS ? report(s, error) : error;
}

unsigned char *tpw_answer_begin(struct tpw_session *s, uint16_t op, uint32_t thread, int32_t result, size_t size) {
    s->answered = thread;
    s->answer = result;
    s->calls -= s->calls > 0;
    if (TP_UNLIKELY(s->trace != NULL)) {
        tpw_trace_answer(s, op, thread, result);
    }
    uint16_t flags = completes(op, result) ? TP_FRAME_REPLY | TP_FRAME_COMPLETES : TP_FRAME_REPLY;
    return tpw_reply_begin(s->link, op, flags, thread, size);
}

void tpw_answer(struct tpw_session *s, struct tpw_ticket ticket, int32_t error) {
    int32_t result = tpw_result(s, ticket.op, error);
    if (tpw_answer_begin(s, ticket.op, ticket.thread, result, 0)) {
        tpw_reply_commit(s->link, result, 0);
    }
}

void tpw_conclude(struct tpw_session *s, const struct tp_frame *frame, int32_t error) {
    if (frame->flags & TP_FRAME_CALL) {
        tpw_answer(s, tpw_ticket(frame), error);
    } else if (error) {
        tpw_defer(s, frame, error);
    }
}
