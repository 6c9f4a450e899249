/*
 * Waiting on the executor, which nobody else can do for it: completions, the link and the supervisor go on meanwhile.
 *
 * Executor thread only. For operations that need something which only a completion or the client can give.
 */
#include "tpw_stream.h"

#include <sched.h>

#define WAIT_NS 50000u    /* how often a wait for the GPU looks: the granularity of sleeping in Linux */
#define STALL_NS 5000000u /* a stream that has not gone on for so long may be waiting for the client */

bool tpw_wait_a_moment(struct tpw_session *s) {
    const struct tp_frame inside = {.context = s->entered};
    bool news = tpw_poll(s);
    TP_TELL(tpw_control, s);
    news |= tpw_go_on(s);
    if (!news && !s->ended && tpw_link_status(s->link) == TP_OK) {
        uint64_t before = tp_now_ns();
        tpw_link_wait(s->link, -1, WAIT_NS);
        if (tp_now_ns() - before < WAIT_NS / 10) {
            sched_yield(); /* frames that cannot be looked at yet end that wait at once: let the data threads run */
        }
    } else {
        tpw_link_flush(s->link);
    }
    /* Polling visits the contexts of other waits. Who is in no context may have found that of a wait, too: it may have
     * gone meanwhile. */
    if (s->entered != inside.context || !inside.context) {
        tpw_enter(s, &inside);
    }
    return !s->ended && tpw_link_status(s->link) == TP_OK;
}

bool tpw_wait_briefly(struct tpw_session *s, bool (*more)(struct tpw_session *s)) {
    uint64_t end = tp_now_ns() + STALL_NS;
    while (more(s)) {
        if (tp_now_ns() > end || !tpw_wait_a_moment(s)) {
            return false;
        }
    }
    return true;
}
