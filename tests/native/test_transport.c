/*
 * The client's connection against the session's link, over TCP on the loopback address.
 *
 * `test_transport` runs every case, `test_transport NAME` one, `test_transport --list` names them. Each case has a session
 * process and a client process of its own (a process has one connection) and 60 seconds.
 */
#include "test_transport.h"

#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

const char *test_address;
int test_session_pid;
uint16_t test_port;

static _Atomic uint64_t noticed;
static _Atomic uint64_t steps;          /* a digit for each, in the order in which they were taken */
static unsigned char *held_destination; /* what step 2 and later complete */
static const uint64_t held_size = 300001, held_seed = 99;

static bool take_step(const unsigned char *body, size_t size) {
    uint64_t number;
    CHECK(size == sizeof number);
    memcpy(&number, body, sizeof number);
    CHECK(has_pattern(held_destination, held_size, held_seed, 0) == (number > 1));
    atomic_store(&steps, atomic_load(&steps) * 10 + number);
    return true;
}

/* Of every case: what the client of the driver API generates from api/. */
static bool on_message(uint16_t op, const unsigned char *body, size_t size) {
    struct tp_cursor c = tp_cursor_make((unsigned char *)(uintptr_t)body, size);
    uint64_t value = tp_get_u64(&c);
    size_t bytes;
    switch (op) {
    case MESSAGE_WRITE: {
        const void *data = tp_get_bytes(&c, &bytes);
        return !c.bad && tp_download_written(tp_connection_if_any(), value, data, bytes);
    }
    case MESSAGE_NOTICE:
        atomic_fetch_add(&noticed, value);
        return !c.bad && size == sizeof value;
    case MESSAGE_STEP:
        return take_step(body, size);
    default:
        return false;
    }
}

struct tp_conn *connected(void) {
    enum tp_status status;
    tp_on_message(on_message);
    struct tp_conn *conn = tp_connection(&status);
    CHECK(conn && status == TP_OK);
    return conn;
}

void *open_frame(struct tp_conn *conn, uint16_t op, size_t body, struct tp_cursor *c) {
    struct tp_frame *frame = tp_reserve(conn, op, sizeof *frame + body);
    if (frame) {
        *c = tp_cursor_make(frame + 1, tp_padded(body));
    }
    return frame;
}

enum tp_status echo(struct tp_conn *conn, const void *data, size_t size, struct tp_reply *reply) {
    struct tp_cursor c;
    if (!open_frame(conn, OP_ECHO, 8 + tp_padded(size), &c)) {
        return TP_ERROR_LOST;
    }
    tp_put_bytes(&c, data, size);
    CHECK(!c.bad && c.left == 0);
    return tp_commit_call(conn, "echo", reply);
}

void check_echo(struct tp_conn *conn, uint64_t seed, size_t size) {
    static _Thread_local unsigned char data[TP_FRAME_MAX];
    struct tp_reply reply;
    fill_pattern(data, size, seed, 0);
    CHECK(echo(conn, data, size, &reply) == TP_OK);
    CHECK(reply.result == (int32_t)size && reply.size == tp_padded(size));
    CHECK(has_pattern(reply.body, size, seed, 0));
    tp_reply_free(&reply);
}

uint64_t start_upload(struct tp_conn *conn, const void *source, size_t size, uint64_t seed) {
    struct tp_cursor c;
    CHECK(open_frame(conn, OP_UPLOAD, 24, &c));
    uint64_t number = tp_transfer_next(conn);
    tp_put_u64(&c, number);
    tp_put_u64(&c, size);
    tp_put_u64(&c, seed);
    tp_commit_upload(conn, number, source, size);
    return number;
}

static uint64_t start_download_op(struct tp_conn *conn, uint16_t op, void *to, size_t size, uint64_t seed) {
    struct tp_cursor c;
    CHECK(open_frame(conn, op, 24, &c));
    uint64_t number = tp_transfer_next(conn);
    tp_put_u64(&c, number);
    tp_put_u64(&c, size);
    tp_put_u64(&c, seed);
    tp_expect_download(conn, number, to, size);
    tp_commit(conn);
    return number;
}

uint64_t start_download(struct tp_conn *conn, void *to, size_t size, uint64_t seed) {
    return start_download_op(conn, OP_DOWNLOAD, to, size, seed);
}

struct totals totals(struct tp_conn *conn) {
    struct tp_cursor c;
    struct tp_reply reply;
    struct totals t;
    CHECK(open_frame(conn, OP_TOTALS, 0, &c));
    CHECK(tp_commit_call(conn, "totals", &reply) == TP_OK && reply.size == sizeof t);
    memcpy(&t, reply.body, sizeof t);
    return t;
}

static void count(struct tp_conn *conn, uint32_t value, size_t padding) {
    struct tp_cursor c;
    CHECK(open_frame(conn, OP_COUNT, 4 + padding, &c));
    tp_put_u32(&c, value);
    tp_commit(conn);
}

/* ---- cases ---- */

static void calls(void) {
    struct tp_conn *conn = connected();
    static const size_t sizes[] = {0, 1, 7, 8, 9, 511, 512, 513, 4096, 65536, 300000, TP_FRAME_MAX - 24 - 8};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_echo(conn, i, sizes[i]);
    }
    for (uint32_t i = 0; i < 100000; i++) {
        count(conn, i, i % 300);
    }
    struct totals t = totals(conn);
    CHECK(t.counted == 100000 && t.violations == 0);
    CHECK(tp_reserve(conn, OP_ECHO, TP_FRAME_MAX + 1) == NULL);
    CHECK(tp_reserve(conn, OP_ECHO, 8) == NULL);
    check_echo(conn, 1, 10);
    CHECK(atomic_load(&tp_counters.round_trips) == sizeof sizes / sizeof *sizes + 2);
    char json[4096];
    size_t length = tp_stats_json(json, sizeof json);
    CHECK(length == strlen(json) && strstr(json, "\"echo\": {\"round_trips\": 13"));
    CHECK(tp_stats_json(NULL, 0) == length);
}

static void *caller(void *argument) {
    struct tp_conn *conn = connected();
    uint64_t seed = (uintptr_t)argument;
    uint32_t random = (uint32_t)seed * 2654435761u + 1, value = 0;
    struct tp_thread *self = tp_thread_self();
    CHECK(self->number >= 1 && self->number < 64);
    for (int i = 0; i < 400; i++) {
        random = random * 1664525 + 1013904223;
        for (uint32_t n = (random >> 8) % 20; n > 0; n--) {
            count(conn, value++, random >> 24);
        }
        check_echo(conn, seed + (uint64_t)i, (random >> 4) % (i % 16 ? 2000 : 200000));
    }
    return NULL;
}

static void threads(void) {
    pthread_t ids[8];
    struct tp_conn *conn = connected();
    for (uintptr_t i = 0; i < 8; i++) {
        CHECK(pthread_create(&ids[i], NULL, caller, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < 8; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
    }
    CHECK(totals(conn).violations == 0);
}

static void *number_of_thread(void *argument) {
    *(uint32_t *)argument = tp_thread_self()->number;
    tp_thread_self()->context = 77;
    return NULL;
}

static void thread_numbers_are_reused(void) {
    check_echo(connected(), 0, 1);
    uint32_t first = tp_thread_self()->number, seen[100];
    for (int i = 0; i < 100; i++) {
        pthread_t id;
        CHECK(pthread_create(&id, NULL, number_of_thread, &seen[i]) == 0 && pthread_join(id, NULL) == 0);
        CHECK(seen[i] != first && seen[i] <= first + 2);
    }
    CHECK(tp_thread_self()->number == first && tp_thread_self()->context == 0);
}

static void *waits_to_be_cancelled(void *conn) {
    check_echo(conn, 1, 100);
    return NULL;
}

/* A program may cancel a thread that waits; whoever reads for all must not take the lock with it, nor leave a reply behind. */
static void cancelled_while_it_waits(void) {
    struct tp_conn *conn = connected();
    struct tp_cursor c;
    check_echo(conn, 0, 1);
    CHECK(open_frame(conn, OP_STALL, 8, &c));
    tp_put_u64(&c, 500);
    tp_commit(conn);
    for (int i = 0; i < 3; i++) {
        pthread_t id;
        void *result;
        CHECK(pthread_create(&id, NULL, waits_to_be_cancelled, conn) == 0);
        usleep(i ? 0 : 200000);
        CHECK(pthread_cancel(id) == 0 && pthread_join(id, &result) == 0);
        check_echo(conn, 2, 100);
    }
}

static const size_t transfer_sizes[] = {0,       1,       100, TP_INLINE_MAX, TP_INLINE_MAX + 1, 1 << 20, (1 << 20) + 3,
                                        5 << 20, 64 << 20};
#define TRANSFERS (sizeof transfer_sizes / sizeof *transfer_sizes)

static void uploads(void) {
    struct tp_conn *conn = connected();
    CHECK(tp_data_ready(conn) == TP_OK && tp_data_ready(conn) == TP_OK);
    unsigned char *memory[TRANSFERS];
    uint64_t numbers[TRANSFERS], sum = 0;
    for (size_t i = 0; i < TRANSFERS; i++) {
        memory[i] = malloc(transfer_sizes[i] + 1);
        fill_pattern(memory[i], transfer_sizes[i], i, 0);
        numbers[i] = start_upload(conn, memory[i], transfer_sizes[i], i);
        count(conn, (uint32_t)i, 0);
        sum += transfer_sizes[i];
    }
    CHECK(tp_upload_wait(conn, numbers[3]) == TP_OK);
    CHECK(tp_transfers_touching_wait(conn, memory[TRANSFERS - 1] + 1000, 1) == TP_OK);
    memset(memory[TRANSFERS - 1], 0, transfer_sizes[TRANSFERS - 1]); /* may be reused now */
    for (size_t i = 0; i < TRANSFERS; i++) {
        CHECK(tp_upload_wait(conn, numbers[i]) == TP_OK);
        free(memory[i]);
    }
    struct totals t = totals(conn);
    CHECK(t.uploaded == sum && t.counted == TRANSFERS && t.violations == 0);
}

static void downloads(void) {
    struct tp_conn *conn = connected();
    CHECK(tp_data_ready(conn) == TP_OK);
    for (int round = 0; round < 2; round++) {
        unsigned char *memory[TRANSFERS];
        for (size_t i = 0; i < TRANSFERS; i++) {
            memory[i] = calloc(1, transfer_sizes[i] + 16);
            memset(memory[i] + transfer_sizes[i], 0xee, 16);
            start_download(conn, memory[i], transfer_sizes[i], i);
            check_echo(conn, i, 40); /* the reply counts only once the transfer is here */
            CHECK(has_pattern(memory[i], transfer_sizes[i], i, 0));
            CHECK(!tp_download_pending(conn, memory[i], transfer_sizes[i] + 1));
        }
        for (size_t i = 0; i < TRANSFERS; i++) {
            memset(memory[i], 0, transfer_sizes[i]);
            start_download(conn, memory[i], transfer_sizes[i], i + 50);
        }
        if (round == 0) {
            check_echo(conn, 1, 0);
        } else { /* nobody calls: the listener must bring them in */
            CHECK(tp_transfers_touching_wait(conn, memory[0], 1) == TP_OK);
            for (int ms = 0; ms < 20000 && tp_download_pending(conn, memory[2], 100); ms++) {
                usleep(1000);
            }
            CHECK(!tp_download_pending(conn, memory[2], 100));
            for (size_t i = 0; i < TRANSFERS; i++) {
                CHECK(tp_transfers_touching_wait(conn, memory[i], transfer_sizes[i]) == TP_OK);
            }
        }
        for (size_t i = 0; i < TRANSFERS; i++) {
            CHECK(has_pattern(memory[i], transfer_sizes[i], i + 50, 0));
            for (size_t k = 0; k < 16; k++) {
                CHECK(memory[i][transfer_sizes[i] + k] == 0xee);
            }
            free(memory[i]);
        }
    }
    CHECK(totals(conn).violations == 0);
}

static void downloads_land_while_a_program_only_appends(void) {
    struct tp_conn *conn = connected();
    unsigned char memory[1000] = {0};
    check_echo(conn, 0, 1);
    start_download(conn, memory, sizeof memory, 3);
    uint64_t begin = tp_now_ns();
    for (uint32_t i = 0; tp_download_pending(conn, memory, 1) && tp_now_ns() - begin < 5000000000u; i++) {
        count(conn, i, 0);
    }
    CHECK(!tp_download_pending(conn, memory, 1) && has_pattern(memory, sizeof memory, 3, 0));
    CHECK(totals(conn).violations == 0);
}

static void *mixed_transfers(void *argument) {
    struct tp_conn *conn = connected();
    uint64_t seed = (uintptr_t)argument * 1000;
    uint32_t random = (uint32_t)seed + 5;
    unsigned char *up = malloc(3 << 20), *down = malloc(3 << 20);
    for (uint64_t i = 0; i < 15; i++) {
        random = random * 1664525 + 1013904223;
        size_t size = (random >> 4) % (3 << 20);
        fill_pattern(up, size, seed + i, 0);
        uint64_t number = start_upload(conn, up, size, seed + i);
        start_download(conn, down, size, seed + i + 7);
        check_echo(conn, i, 100);
        CHECK(has_pattern(down, size, seed + i + 7, 0));
        CHECK(tp_upload_wait(conn, number) == TP_OK);
    }
    free(up);
    free(down);
    return NULL;
}

static void transfers_of_many_threads(void) {
    pthread_t ids[6];
    struct tp_conn *conn = connected();
    CHECK(tp_data_ready(conn) == TP_OK);
    for (uintptr_t i = 0; i < 6; i++) {
        CHECK(pthread_create(&ids[i], NULL, mixed_transfers, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < 6; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
    }
    CHECK(totals(conn).violations == 0);
}

/* News is taken at once; what completes waits for its transfer, in order, messages and replies alike. */
static struct tp_conn *held_once(void) {
    struct tp_cursor c;
    struct tp_reply reply;
    struct tp_conn *conn = connected();
    CHECK(tp_data_ready(conn) == TP_OK);
    held_destination = calloc(1, held_size);
    CHECK(held_destination);
    tp_listen(conn, 1);
    CHECK(open_frame(conn, OP_HELD, 24, &c));
    uint64_t number = tp_transfer_next(conn);
    tp_put_u64(&c, number);
    tp_put_u64(&c, held_size);
    tp_put_u64(&c, held_seed);
    tp_expect_download(conn, number, held_destination, held_size);
    CHECK(tp_commit_call(conn, "held", &reply) == TP_OK);
    CHECK(reply.size == 8 && reply.body[0] == 3 && has_pattern(held_destination, held_size, held_seed, 0));
    uint64_t seen = atomic_load(&steps);
    CHECK(seen == 12 || seen == 124);
    for (int ms = 0; ms < 5000 && atomic_load(&steps) != 124; ms++) {
        usleep(1000);
    }
    CHECK(atomic_load(&steps) == 124);
    tp_listen(conn, -1);
    tp_reply_free(&reply);
    free(held_destination);
    return conn;
}

static void held_frames(void) { held_once(); }

static void counts_do_not_go_back(void) {
    struct tp_cursor c;
    struct tp_reply reply;
    struct tp_conn *conn = held_once();
    CHECK(open_frame(conn, OP_BAD, 4, &c));
    tp_put_u32(&c, 13);
    CHECK(tp_commit_call(conn, "bad", &reply) == TP_ERROR_PROTOCOL);
}

static void messages(void) {
    struct tp_cursor c;
    struct tp_conn *conn = connected();
    for (int round = 0; round < 3; round++) {
        tp_listen(conn, 1);
        CHECK(open_frame(conn, OP_NOTICE, 8, &c));
        tp_put_u64(&c, 5);
        tp_commit(conn);
        if (round == 1) {
            check_echo(conn, 0, 0); /* comes after the notice, and its caller must bring both in */
            CHECK(atomic_load(&noticed) == 10);
        }
        for (int ms = 0; ms < 5000 && atomic_load(&noticed) < 5 * (uint64_t)(round + 1); ms++) {
            usleep(1000);
        }
        CHECK(atomic_load(&noticed) == 5 * (uint64_t)(round + 1));
        tp_listen(conn, -1);
    }
}

static void idle_costs_nothing(void) {
    struct tp_conn *conn = connected();
    CHECK(tp_data_ready(conn) == TP_OK);
    check_echo(conn, 0, 10);
    usleep(100000);
    struct rusage before, after;
    CHECK(getrusage(RUSAGE_SELF, &before) == 0);
    sleep(2);
    CHECK(getrusage(RUSAGE_SELF, &after) == 0);
    long us =
        (after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000 +
        after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec;
    printf("idle: %ld us of 2 s\n", us);
    CHECK(us <= 20000);
}

static const struct test_case cases[] = {
    {"calls", calls, 0},
    {"threads", threads, 0},
    {"thread_numbers_are_reused", thread_numbers_are_reused, 0},
    {"cancelled_while_it_waits", cancelled_while_it_waits, 0},
    {"uploads", uploads, 0},
    {"downloads", downloads, 0},
    {"transfers_of_many_threads", transfers_of_many_threads, 0},
    {"messages", messages, 0},
    {"held_frames", held_frames, 0},
    {"counts_do_not_go_back", counts_do_not_go_back, 0},
    {"downloads_land_while_a_program_only_appends", downloads_land_while_a_program_only_appends, 0},
    {"idle_costs_nothing", idle_costs_nothing, 0},
    {NULL, NULL, 0},
};

/* ---- running ---- */

static int wait_for_exit(pid_t pid, int seconds) {
    for (int i = 0; i < seconds * 100; i++) {
        int state;
        if (waitpid(pid, &state, WNOHANG) == pid) {
            return WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
        }
        usleep(10000);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return 124;
}

static bool run_case(const struct test_case *test) {
    char address[64];
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof any;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (struct sockaddr *)&any, sizeof any) == 0 && listen(listener, 16) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&any, &size) == 0);
    snprintf(address, sizeof address, "native+127.0.0.1+%u+0", ntohs(any.sin_port));
    fflush(stdout);
    pid_t session = fork();
    if (session == 0) {
        int code = test_session(listener);
        exit(code);
    }
    close(listener);
    pid_t client = fork();
    if (client == 0) {
        test_address = address;
        test_session_pid = session;
        test_port = ntohs(any.sin_port);
        setenv("TENSOR_FUSION_OPERATOR_CONNECTION_INFO", address, 0);
        test->run();
        exit(0);
    }
    uint64_t begin = tp_now_ns();
    int client_code = wait_for_exit(client, 60);
    double seconds = (double)(tp_now_ns() - begin) / 1e9;
    if (client_code != 0 || test->session_code == ANY_CODE) {
        kill(session, SIGKILL);
    }
    int session_code = wait_for_exit(session, 10);
    if (client_code == 77) { /* it said why it cannot run here */
        printf("%-40s skipped\n", test->name);
        return true;
    }
    bool good = client_code == 0 && (test->session_code == ANY_CODE || session_code == test->session_code);
    printf("%-40s %s (client %d, session %d, %.2f s)\n", test->name, good ? "ok" : "FAILED", client_code, session_code,
           seconds);
    return good;
}

int main(int argc, char **argv) {
    const char *wanted = argc > 1 ? argv[1] : NULL;
    bool good = true, found = false;
    const struct test_case *lists[] = {cases, robust_cases, nap_cases, speed_cases};
    for (int l = 0; l < (wanted && wanted[0] != '-' ? 4 : 3); l++) {
        for (const struct test_case *test = lists[l]; test->name; test++) {
            if (wanted && strcmp(wanted, "--list") == 0) {
                puts(test->name);
                found = true;
            } else if (!wanted || strcmp(wanted, test->name) == 0) {
                found = true;
                good &= run_case(test);
            }
        }
    }
    return good && found ? 0 : 1;
}
