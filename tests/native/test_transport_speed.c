/*
 * How fast the transport is here: run by name only, prints figures and judges none, because machines differ.
 */
#include "test_transport.h"

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void append(struct tp_conn *conn, uint32_t value) {
    static const unsigned char body[112 - 4];
    struct tp_cursor c;
    CHECK(open_frame(conn, OP_COUNT, 112, &c));
    tp_put_u32(&c, value);
    tp_put(&c, body, sizeof body);
    tp_commit(conn);
}

/* Bursts that fit the ring, as a program's launches between two synchronisations do. */
static void speed_append(void) {
    struct tp_conn *conn = connected();
    enum { ROUNDS = 41, BURST = 20000 };
    double ns[ROUNDS];
    uint32_t value = 0;
    for (int r = 0; r < ROUNDS; r++) {
        uint64_t begin = tp_now_ns();
        for (int i = 0; i < BURST; i++) {
            append(conn, value++);
        }
        ns[r] = (double)(tp_now_ns() - begin) / (double)BURST;
        totals(conn);
    }
    qsort(ns, ROUNDS, sizeof *ns, compare);
    printf("append of 128 bytes: median %.1f ns, best %.1f, worst %.1f\n", ns[ROUNDS / 2], ns[0], ns[ROUNDS - 1]);
}

static void speed_call(void) {
    struct tp_conn *conn = connected();
    enum { CALLS = 20000 };
    static double us[CALLS];
    for (int i = 0; i < CALLS; i++) {
        uint64_t begin = tp_now_ns();
        check_echo(conn, 1, 40);
        us[i] = (double)(tp_now_ns() - begin) / 1000;
    }
    qsort(us, CALLS, sizeof *us, compare);
    printf("round trip: median %.1f us, p99 %.1f us\n", us[CALLS / 2], us[CALLS * 99 / 100]);
}

static void speed_transfers(void) {
    struct tp_conn *conn = connected();
    enum { ROUNDS = 11 };
    size_t size = 256 << 20;
    unsigned char *memory = malloc(size);
    double up[ROUNDS], down[ROUNDS];
    CHECK(tp_data_ready(conn) == TP_OK);
    memset(memory, 1, size);
    for (int r = 0; r < ROUNDS; r++) {
        uint64_t begin = tp_now_ns();
        start_upload(conn, memory, size, UINT64_MAX); /* not compared: the link is measured, not the test's loops */
        totals(conn);
        up[r] = (double)size / (double)(tp_now_ns() - begin);
        begin = tp_now_ns();
        start_download(conn, memory, size, UINT64_MAX);
        totals(conn);
        down[r] = (double)size / (double)(tp_now_ns() - begin);
    }
    qsort(up, ROUNDS, sizeof *up, compare);
    qsort(down, ROUNDS, sizeof *down, compare);
    printf("256 MiB: up median %.2f GB/s (best %.2f), down median %.2f GB/s (best %.2f)\n", up[ROUNDS / 2],
           up[ROUNDS - 1], down[ROUNDS / 2], down[ROUNDS - 1]);
}

const struct test_case speed_cases[] = {
    {"speed_append", speed_append, ANY_CODE},
    {"speed_call", speed_call, ANY_CODE},
    {"speed_transfers", speed_transfers, ANY_CODE},
    {NULL, NULL, 0},
};
