/*
 * A worker that was built from another description of the operations: what both sides have is used, the rest is refused by name.
 *
 * The client asks such a worker for its list (the operation `layouts`) and sends by the worker's numbers from then on. Only the client adapts:
 * the worker parses nothing of this. conn->skew is written by the one thread that makes the connection; with a worker of the same
 * description it is NULL, and nothing here is entered. The list is the worker's: wire/layouts.c bounds it.
 */
#include "conn_internal.h"

#include <tpg_ops.h>

static _Atomic bool said[TPG_OP_LIMIT];

struct answer {
    struct tp_matched *matched;
    bool works;
    char why[200];
};

/* Where the answer is read: a message may stand right behind it. */
static void take_list(void *what, const unsigned char *body, size_t size) {
    struct answer *answer = what;
    struct tpg_layouts_out out;
    struct tp_cursor c = tp_cursor_make((unsigned char *)(uintptr_t)body, size);
    tpg_get_layouts_out(&c, &out);
    answer->works = tp_layouts_match(answer->matched, tpg_layouts, TPG_LAYOUTS, out.rows, c.bad ? 0 : out.rows_size,
                                     tpg_op_name, answer->why, sizeof answer->why);
}

enum tp_status tpc_skew_settle(struct tp_conn *conn) {
    struct answer answer = {.matched = conn->skew, .why = "the worker does not tell what it has"};
    struct tp_reply reply;
    tp_take_reply(take_list, &answer);
    const bool sent = tp_reserve(conn, TPG_OP_layouts, sizeof(struct tp_frame)) != NULL;
    const enum tp_status status = sent ? tp_commit_call(conn, "the worker's list", &reply) : TP_ERROR_LOST;
    if (status != TP_OK) {
        return status;
    }
    tp_reply_free(&reply);
    if (!answer.works) {
        tp_log(TP_ERROR, "%s, and %s: install the same release on both sides.", conn->skew->releases, answer.why);
        return TP_ERROR_REFUSED;
    }
    tp_log(TP_INFO, "%s: %u of this client's %u operations are the same there; what needs another is refused by name",
           conn->skew->releases, conn->skew->shared, TPG_OPERATIONS);
    return TP_OK;
}

void tpc_skew_refuse(const struct tp_conn *conn, uint16_t op) {
    tpc_caller_self()->refused = true;
    tp_say_once(&said[op],
                "%s is not supported here: %s, and they do not have the same operation '%s'; install the same release "
                "on both sides",
                tpg_op_functions(op), conn->skew->releases, tpg_op_name(op));
}

const char *tp_op_name(uint16_t op) {
    const struct tp_conn *conn = tp_connection_if_any();
    return tpg_op_name(conn ? tpc_ours(conn, op) : op);
}

bool tp_refused(const struct tp_conn *conn) {
    struct tpc_caller *caller = tpc_caller_self();
    const bool refused = caller->refused && !tpc_is_lost(conn);
    caller->refused = false;
    return refused;
}
