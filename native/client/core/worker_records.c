/*
 * The worker's side in the file of TF_TRACE_PATH: what the session says of its work, and how its clock stands to ours.
 *
 * Whoever reads the connection enters with records, one thread at a time. They are the worker's words: their number is bounded by
 * that of the frames sent, and they become nothing but numbers and names of operations.
 */
#include "conn_internal.h"

#include <string.h>
#include <tp_trace.h>
#include <tp_traced.h>

/* An honest session has at most one for a frame, one for its answer, and one for each stream that the frame gave work to. */
#define RECORDS_A_FRAME 64u
#define RECORDS_MORE 65536u

bool tp_worker_recorded(void) { return tpc_records_wanted(); }

void tp_worker_clock(uint64_t begin, uint64_t end, uint64_t worker, const char *boot, size_t boot_size) {
    char here[40];
    tp_boot_id(here);
    bool same = here[0] && boot_size == strnlen(here, sizeof here) && memcmp(here, boot, boot_size) == 0;
    tpc_records_write("{\"clock\": %llu, \"begin\": %llu, \"end\": %llu, \"same\": %s}\n", (unsigned long long)worker,
                      (unsigned long long)begin, (unsigned long long)end, same ? "true" : "false");
}

static const char *how_of(const struct tp_traced *r) {
    return r->how == TP_TRACED_POSTED ? "posted" : r->how == TP_TRACED_ANSWERED ? "answered" : "later";
}

static void write_one(const struct tp_traced *r) {
    const unsigned long long frame = r->frame, first = r->first, a = r->times[0], b = r->times[1], c = r->times[2];
    const char *op = tp_op_name(r->op);
    switch (r->what) {
    case TP_TRACED_FRAME:
        tpc_records_write("{\"ran\": %llu, \"op\": \"%s\", \"thread\": %u, \"received\": %llu, \"begin\": %llu, "
                          "\"end\": %llu, \"how\": \"%s\", \"result\": %d}\n",
                          frame, op, r->thread, a, b, c, how_of(r), (int)r->result);
        break;
    case TP_TRACED_ANSWER:
        tpc_records_write("{\"reply\": %u, \"op\": \"%s\", \"at\": %llu, \"result\": %d}\n", r->thread, op, a,
                          (int)r->result);
        break;
    case TP_TRACED_GPU:
        tpc_records_write("{\"gpu\": %llu, \"first\": %llu, \"op\": \"%s\", \"thread\": %u, \"device\": %u, "
                          "\"stream\": %llu, \"given\": %llu, \"done\": %llu, \"result\": %d}\n",
                          frame, first, op, r->thread, r->device, (unsigned long long)r->stream, a, b, (int)r->result);
        break;
    default: /* of a newer worker: a kind of record that this client has no line for */
        break;
    }
}

void tp_worker_records(const void *records, size_t size, uint64_t lost) {
    static uint64_t taken, told, told_times, left_out; /* whoever holds `receive`; of this process's only connection */
    struct tp_conn *conn = tp_connection_if_any();
    const uint64_t most = RECORDS_MORE + (conn ? tp_frames(conn) * RECORDS_A_FRAME : 0);
    for (size_t at = 0; at + sizeof(struct tp_traced) <= size; at += sizeof(struct tp_traced)) {
        struct tp_traced one;
        memcpy(&one, (const unsigned char *)records + at, sizeof one);
        if (taken < most) {
            taken++;
            write_one(&one);
        } else {
            left_out++;
        }
    }
    if (lost + left_out != told && told_times < most) {
        told = lost + left_out;
        told_times++;
        tpc_records_write("{\"lost\": %llu}\n", (unsigned long long)told);
    }
}
