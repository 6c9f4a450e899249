/*
 * What happens when the other side dies, stalls, forks or talks nonsense.
 *
 * Cases with a client of ours against a session that misbehaves, and raw clients against the session's link. See
 * test_transport.h for how cases run.
 */
#include "test_transport.h"

#include <conn_internal.h> /* for the one case that stands between two steps of a receiving thread */
#include <dlfcn.h>
#include <errno.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <tpg_schema.h>
#include <tpw_link.h>

#define TWO_ADDRESSES "two.addresses.test"

static _Atomic int losses;
static void on_loss(void) { atomic_fetch_add(&losses, 1); }

static void call_u64(struct tp_conn *conn, uint16_t op, uint64_t a, uint64_t b, uint64_t d) {
    struct tp_cursor c;
    if (open_frame(conn, op, 24, &c)) {
        tp_put_u64(&c, a);
        tp_put_u64(&c, b);
        tp_put_u64(&c, d);
        tp_commit(conn);
    }
}

static void check_dead(struct tp_conn *conn) {
    enum tp_status status;
    uint64_t begin = tp_now_ns();
    CHECK(!tp_alive(conn) && !tp_connection(&status) && status == TP_ERROR_LOST);
    for (int i = 0; i < 1000; i++) {
        CHECK(tp_reserve(conn, OP_ECHO, 64) == NULL);
    }
    char memory[8];
    CHECK(tp_upload_wait(conn, 1) != TP_OK && tp_transfers_touching_wait(conn, memory, 8) != TP_OK);
    CHECK(!tp_download_pending(conn, memory, 8) && tp_data_ready(conn) != TP_OK);
    tp_flush(conn);
    CHECK(tp_now_ns() - begin < 500000000u);
    for (int ms = 0; ms < 1000 && atomic_load(&losses) == 0; ms++) { /* the losing thread may still be at it */
        usleep(1000);
    }
    CHECK(atomic_load(&losses) == 1);
}

/* ---- the peer dies ---- */

static void *waits_and_loses(void *argument) {
    struct tp_conn *conn = argument;
    struct tp_reply reply;
    char byte = 1;
    CHECK(echo(conn, &byte, 1, &reply) != TP_OK);
    return NULL;
}

static _Atomic int begun;
static void *upload_and_loses(void *argument) {
    struct tp_conn *conn = argument;
    unsigned char *memory = calloc(1, 256 << 20);
    uint64_t number = start_upload(conn, memory, 256 << 20, 0);
    atomic_fetch_add(&begun, 1);
    CHECK(tp_upload_wait(conn, number) == TP_ERROR_LOST);
    free(memory);
    return NULL;
}

static void *appends_and_loses(void *argument) { /* until the ring is full and then in vain */
    while (tp_reserve(argument, OP_COUNT, 4096)) {
        tp_commit(argument);
    }
    CHECK(!tp_alive(argument));
    return NULL;
}

static void lost_wakes_everybody(void) {
    pthread_t ids[10];
    struct tp_conn *conn = connected();
    tp_on_loss(on_loss);
    CHECK(tp_data_ready(conn) == TP_OK);
    check_echo(conn, 0, 10);
    call_u64(conn, OP_STALL, 60000, 0, 0);
    for (int i = 0; i < 9; i++) {
        CHECK(pthread_create(&ids[i], NULL, i < 7 ? waits_and_loses : upload_and_loses, conn) == 0);
    }
    while (atomic_load(&begun) < 2) {
        usleep(1000);
    }
    CHECK(pthread_create(&ids[9], NULL, appends_and_loses, conn) == 0);
    usleep(300000);
    CHECK(kill(test_session_pid, SIGKILL) == 0);
    uint64_t begin = tp_now_ns();
    for (int i = 0; i < 10; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
    }
    CHECK(tp_now_ns() - begin < 1000000000u);
    check_dead(conn);
}

static void death_in_mid_download(void) {
    struct tp_conn *conn = connected();
    struct tp_reply reply;
    struct tp_cursor c;
    size_t size = 32 << 20;
    unsigned char *memory = calloc(1, size);
    tp_on_loss(on_loss);
    CHECK(tp_data_ready(conn) == TP_OK);
    CHECK(open_frame(conn, OP_HALF, 24, &c));
    uint64_t number = tp_transfer_next(conn);
    tp_put_u64(&c, number);
    tp_put_u64(&c, size);
    tp_put_u64(&c, 3);
    tp_expect_download(conn, number, memory, size);
    tp_commit(conn);
    CHECK(tp_download_pending(conn, memory, 1));
    CHECK(echo(conn, memory, 10, &reply) == TP_ERROR_LOST);
    free(memory); /* nobody may write to it any more: the sanitizers would see it */
    usleep(100000);
    check_dead(conn);
}

static void idle_loss_is_found_by_the_next_call(void) {
    struct tp_conn *conn = connected();
    struct tp_reply reply;
    tp_on_loss(on_loss);
    check_echo(conn, 0, 10);
    CHECK(kill(test_session_pid, SIGKILL) == 0);
    usleep(50000);
    uint64_t begin = tp_now_ns();
    CHECK(echo(conn, "x", 1, &reply) == TP_ERROR_LOST);
    CHECK(tp_now_ns() - begin < 1000000000u);
    check_dead(conn);
}

/* A peer that vanishes without a packet: the loopback interface of a network namespace of our own goes down. */
static void loopback(bool up) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(ioctl(fd, SIOCGIFFLAGS, &request) == 0);
    request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
    CHECK(ioctl(fd, SIOCSIFFLAGS, &request) == 0);
    close(fd);
}

static void vanished_peer(void) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0 && unshare(CLONE_NEWNET) != 0) { /* root needs no other user */
        printf("vanished_peer: skipped, no network namespaces here (%s)\n", strerror(errno));
        _exit(77);
    }
    loopback(true);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof any;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (struct sockaddr *)&any, sizeof any) == 0 && listen(listener, 16) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&any, &size) == 0);
    char address[64];
    snprintf(address, sizeof address, "native+127.0.0.1+%u+0", ntohs(any.sin_port));
    setenv("TENSOR_FUSION_OPERATOR_CONNECTION_INFO", address, 1);
    pid_t session = fork();
    if (session == 0) {
        exit(test_session(listener));
    }
    struct tp_conn *conn = connected();
    struct tp_reply reply;
    tp_on_loss(on_loss);
    check_echo(conn, 0, 10);
    call_u64(conn, OP_STALL, 2000, 0, 0);
    tp_flush(conn);
    usleep(100000);
    loopback(false);
    uint64_t begin = tp_now_ns();
    CHECK(echo(conn, "x", 1, &reply) == TP_ERROR_LOST);
    uint64_t client_ns = tp_now_ns() - begin;
    check_dead(conn);
    int state;
    CHECK(waitpid(session, &state, 0) == session && WIFEXITED(state) && WEXITSTATUS(state) == 0);
    printf("vanished peer: client knows after %.1f s, session after %.1f s\n", (double)client_ns / 1e9,
           (double)(tp_now_ns() - begin) / 1e9);
    CHECK(client_ns < 11000000000u && tp_now_ns() - begin < 13500000000u);
}

/* ---- stalls ---- */

static void slow_reader_is_not_lost(void) {
    struct tp_conn *conn = connected();
    static unsigned char frame[4096];
    struct tp_cursor c;
    size_t size = 128 << 20;
    unsigned char *memory = malloc(size);
    fill_pattern(memory, size, 5, 0);
    CHECK(tp_data_ready(conn) == TP_OK);
    call_u64(conn, OP_STALL, 12000, 0, 0); /* longer than the 9 s after which a silent peer counts as gone */
    uint64_t number = start_upload(conn, memory, size, 5);
    for (uint32_t i = 0; i < 8000; i++) { /* 32 MiB: more than ring and sockets take */
        CHECK(open_frame(conn, OP_COUNT, 4 + sizeof frame, &c));
        tp_put_u32(&c, i);
        tp_put(&c, frame, sizeof frame);
        tp_commit(conn);
    }
    struct totals t = totals(conn);
    CHECK(t.counted == 8000 && t.uploaded == size && t.violations == 0);
    CHECK(tp_upload_wait(conn, number) == TP_OK);
    free(memory);
}

static void refused_transfers(void) {
    struct tp_conn *conn = connected();
    struct tp_cursor c;
    struct tp_reply reply;
    unsigned char *memory = malloc(40 << 20), untouched[256] = {0};
    CHECK(tp_data_ready(conn) == TP_OK);
    for (uint64_t round = 0; round < 3; round++) {
        CHECK(open_frame(conn, OP_REFUSE_UPLOAD, 24, &c));
        uint64_t number = tp_transfer_next(conn);
        tp_put_u64(&c, number);
        tp_put_u64(&c, 40 << 20);
        tp_put_u64(&c, 0);
        tp_commit_upload(conn, number, memory, 40 << 20);
        CHECK(tp_upload_wait(conn, number) == TP_OK);
        fill_pattern(memory, 2 << 20, round, 0);
        CHECK(tp_upload_wait(conn, start_upload(conn, memory, 2 << 20, round)) == TP_OK);

        CHECK(open_frame(conn, OP_REFUSE_DOWNLOAD, 8, &c));
        number = tp_transfer_next(conn);
        tp_put_u64(&c, number);
        tp_expect_download(conn, number, untouched, sizeof untouched);
        CHECK(tp_commit_call(conn, "refused", &reply) == TP_OK && reply.result == 999);
        tp_download_cancel(conn, number);
        CHECK(!tp_download_pending(conn, untouched, sizeof untouched));

        start_download(conn, memory, 3 << 20, round + 9);
        uint64_t cancelled = start_download(conn, memory + (5 << 20), 3 << 20, round); /* its bytes come nevertheless */
        tp_download_cancel(conn, cancelled);
        memset(memory + (5 << 20), 0x55, 3 << 20);
        check_echo(conn, round, 5);
        CHECK(has_pattern(memory, 3 << 20, round + 9, 0));
        for (size_t i = 5 << 20; i < 8 << 20; i++) {
            CHECK(memory[i] == 0x55);
        }
    }
    CHECK(totals(conn).violations == 0);
}

/* ---- fork ---- */

static _Atomic bool stop;
static void *calls_until_stopped(void *argument) {
    struct tp_conn *conn = argument;
    for (uint64_t i = 0; !atomic_load(&stop); i++) {
        check_echo(conn, i, i % 3000);
    }
    return NULL;
}

static void fork_in_mid_use(void) {
    pthread_t ids[3];
    struct tp_conn *conn = connected();
    CHECK(tp_data_ready(conn) == TP_OK);
    for (int i = 0; i < 3; i++) {
        CHECK(pthread_create(&ids[i], NULL, calls_until_stopped, conn) == 0);
    }
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (child == 0) {
            char memory[16];
            alarm(10);
            CHECK(tp_connection_if_any() == NULL && !tp_alive(conn) && !tp_reserve(conn, OP_ECHO, 64));
            CHECK(atomic_load(&tp_counters.frames) == 0);
            CHECK(tp_data_ready(conn) == TP_ERROR_FORKED);
            CHECK(tp_transfers_touching_wait(conn, memory, 16) == TP_ERROR_FORKED);
            CHECK(tp_thread_self()->number >= 1);
            tp_flush(conn);
            tp_listen(conn, 1);
#if defined(__SANITIZE_ADDRESS__)
            _exit(
                0); /* the leak check takes what the parent's other threads hold for leaked, their stacks are not here */
#endif
            exit(0);
        }
        int state;
        CHECK(waitpid(child, &state, 0) == child && WIFEXITED(state) && WEXITSTATUS(state) == 0);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 3; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
    }
    check_echo(conn, 1, 100);
}

static void fork_before_first_use(void) {
    CHECK(tp_connection_if_any() == NULL);
    tp_thread_self();
    pid_t child = fork();
    if (child == 0) {
        check_echo(connected(), 1, 100);
        exit(0);
    }
    int state;
    CHECK(waitpid(child, &state, 0) == child && WIFEXITED(state) && WEXITSTATUS(state) == 0);
}

/* ---- a worker that breaks the format ---- */

static void bad_session(uint32_t kind, enum tp_status expected) {
    struct tp_conn *conn = connected();
    struct tp_cursor c;
    struct tp_reply reply;
    tp_on_loss(on_loss);
    CHECK(tp_data_ready(conn) == TP_OK);
    check_echo(conn, 0, 10);
    CHECK(open_frame(conn, OP_BAD, 4, &c));
    tp_put_u32(&c, kind);
    CHECK(tp_commit_call(conn, "bad", &reply) == expected);
    check_dead(conn);
}
#define BAD(kind, status)                                                                                              \
    static void bad_session_##kind(void) { bad_session(kind, status); }
BAD(0, TP_ERROR_PROTOCOL)
BAD(1, TP_ERROR_PROTOCOL)
BAD(2, TP_ERROR_PROTOCOL)
BAD(3, TP_ERROR_PROTOCOL)
BAD(4, TP_ERROR_PROTOCOL)
BAD(5, TP_ERROR_PROTOCOL)
BAD(6, TP_ERROR_PROTOCOL)
BAD(7, TP_ERROR_PROTOCOL)
BAD(8, TP_ERROR_LOST)
BAD(9, TP_ERROR_PROTOCOL)
BAD(10, TP_ERROR_PROTOCOL)
BAD(11, TP_ERROR_PROTOCOL)
BAD(12, TP_ERROR_PROTOCOL)

static void refused_secret(void) {
    char address[128];
    enum tp_status status;
    snprintf(address, sizeof address, "%s+wrong", test_address);
    setenv("TENSOR_FUSION_OPERATOR_CONNECTION_INFO", address, 1);
    CHECK(!tp_connection(&status) && status == TP_ERROR_REFUSED);
    CHECK(!tp_connection(&status) && status == TP_ERROR_REFUSED);
    CHECK(!tp_connection_if_any());
}

static void unreachable(void) {
    enum tp_status status;
    setenv("TENSOR_FUSION_OPERATOR_CONNECTION_INFO", "native+127.0.0.1+1+0", 1);
    uint64_t begin = tp_now_ns();
    CHECK(!tp_connection(&status) && status == TP_ERROR_UNREACHABLE);
    CHECK(!tp_connection(&status) && status == TP_ERROR_UNREACHABLE);
    CHECK(tp_now_ns() - begin < 1000000000u);
}

/* Stands before the C library's: one name has two addresses, and nobody listens at the first. */
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **list) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    void *found = dlsym(RTLD_NEXT, "getaddrinfo");
    memcpy(&real, &found, sizeof real);
    if (!name || strcmp(name, TWO_ADDRESSES) != 0) {
        return real(name, service, hints, list);
    }
    if (hints && (hints->ai_flags & AI_NUMERICHOST)) {
        return EAI_NONAME;
    }
    int error = real("127.0.0.2", service, hints, list);
    return error ? error : real("127.0.0.1", service, hints, &(*list)->ai_next);
}

static void next_address_is_tried(void) {
    char address[64];
    snprintf(address, sizeof address, "native+" TWO_ADDRESSES "+%u+0", test_port);
    setenv("TENSOR_FUSION_OPERATOR_CONNECTION_INFO", address, 1);
    check_echo(connected(), 1, 10);
}

static void not_configured(void) {
    enum tp_status status;
    unsetenv("TENSOR_FUSION_OPERATOR_CONNECTION_INFO");
    CHECK(!tp_connection(&status) && status == TP_ERROR_CONFIG);
}

/* ---- raw clients against the session's link ---- */

static int raw(uint32_t role, uint32_t index, uint64_t key) {
    struct tp_greeting greeting = {
        .magic = TP_MAGIC, .version = 1, .role = role, .index = index, .session_id = key ? 7 : 0};
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(test_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct tp_welcome welcome;
    greeting.session_key = key;
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
    CHECK(tp_net_send_all(fd, &greeting, sizeof greeting, UINT64_MAX) == TP_OK);
    CHECK(tp_net_receive_all(fd, &welcome, sizeof welcome, tp_now_ns() + 5000000000u) == TP_OK && welcome.status == 0);
    return fd;
}

static void send_raw(int fd, const void *data, size_t size) {
    tp_net_send_all(fd, data, size, tp_now_ns() + 5000000000u);
}

static void expect_end(int fd) {
    char sink[65536];
    uint64_t deadline = tp_now_ns() + 5000000000u;
    while (tp_net_receive_all(fd, sink, 1, deadline) == TP_OK) {
    }
    CHECK(tp_now_ns() < deadline);
}

#define RAW_FRAME(name, ...)                                                                                           \
    static void name(void) {                                                                                           \
        int fd = raw(TP_ROLE_CONTROL, 0, 0);                                                                           \
        struct tp_frame frame = {__VA_ARGS__};                                                                         \
        send_raw(fd, &frame, sizeof frame);                                                                            \
        expect_end(fd);                                                                                                \
    }
RAW_FRAME(raw_short_frame, .size = 8, .op = OP_COUNT)
RAW_FRAME(raw_zero_frame, .size = 0)
RAW_FRAME(raw_long_frame, .size = TP_FRAME_MAX + 8, .op = OP_COUNT)
RAW_FRAME(raw_huge_frame, .size = 0xfffffff8u, .op = OP_COUNT)
RAW_FRAME(raw_crooked_frame, .size = 20, .op = OP_COUNT)

static void raw_half_frame_then_end(void) {
    int fd = raw(TP_ROLE_CONTROL, 0, 0);
    struct tp_frame frame = {.size = 4096, .op = OP_COUNT};
    send_raw(fd, &frame, sizeof frame);
    shutdown(fd, SHUT_WR);
    expect_end(fd);
}

static void raw_upload_that_never_comes(void) {
    int fd = raw(TP_ROLE_CONTROL, 0, 0);
    struct {
        struct tp_frame header;
        uint64_t transfer, size, seed;
    } upload = {{.size = 40, .op = OP_UPLOAD, .thread = 1}, 1, 4096, 0};
    for (int i = 0; i < 3; i++) { /* the session waits in the first; the others stay unread */
        send_raw(fd, &upload, sizeof upload);
    }
    usleep(200000);
    shutdown(fd, SHUT_WR);
    expect_end(fd);
}

static void raw_drip(void) {
    int fd = raw(TP_ROLE_CONTROL, 0, 0);
    unsigned char bytes[32];
    struct tp_frame frame = {.size = 32, .op = OP_ECHO, .flags = TP_FRAME_CALL, .thread = 5};
    uint64_t length = 3;
    memcpy(bytes, &frame, 16);
    memcpy(bytes + 16, &length, 8);
    memcpy(bytes + 24, "abc\0\0\0\0", 8);
    for (size_t i = 0; i < sizeof bytes; i++) {
        send_raw(fd, bytes + i, 1);
        usleep(2000);
    }
    struct tp_reply_frame reply;
    CHECK(tp_net_receive_all(fd, &reply, sizeof reply, tp_now_ns() + 5000000000u) == TP_OK);
    CHECK(reply.size == 32 && reply.thread == 5 && reply.result == 3 && (reply.flags & TP_FRAME_REPLY) &&
          reply.transfers == 0);
    CHECK(tp_net_receive_all(fd, bytes, 8, tp_now_ns() + 5000000000u) == TP_OK && memcmp(bytes, "abc\0\0\0\0", 8) == 0);
    close(fd);
}

static void raw_never_reads(void) {
    int fd = raw(TP_ROLE_CONTROL, 0, 0);
    static unsigned char bytes[1 << 19];
    struct tp_frame frame = {.size = sizeof bytes, .op = OP_ECHO, .flags = TP_FRAME_CALL, .thread = 1};
    uint64_t length = sizeof bytes - 24;
    memcpy(bytes, &frame, 16);
    memcpy(bytes + 16, &length, 8);
    enum tp_status status = TP_OK;
    for (int i = 0; i < 400 && status == TP_OK; i++) { /* 200 MiB of answers, three times what is kept */
        status = tp_net_send_all(fd, bytes, sizeof bytes, tp_now_ns() + 5000000000u);
    }
    CHECK(status != TP_OK && errno != ETIMEDOUT);
}

static void bad_chunk(uint64_t transfer, uint32_t size, uint32_t handed) {
    int fd = raw(TP_ROLE_CONTROL, 0, 0);
    int data = raw(TP_ROLE_DATA, 3, 0x1234567890abcdefull);
    struct tp_chunk chunk = {.transfer = transfer, .size = size, .handed = handed};
    send_raw(data, &chunk, sizeof chunk);
    expect_end(fd);
    expect_end(data);
}
static void raw_long_chunk(void) { bad_chunk(1, TP_CHUNK_MAX + 1, 0); }
static void raw_empty_chunk(void) { bad_chunk(1, 0, 0); }
static void raw_chunk_of_nothing(void) { bad_chunk(0, 10, 0); }
static void raw_chunk_handed(void) { bad_chunk(1, 10, 1); }

static void raw_half_chunk_then_end(void) {
    int fd = raw(TP_ROLE_CONTROL, 0, 0);
    int data = raw(TP_ROLE_DATA, 0, 0x1234567890abcdefull);
    struct tp_chunk chunk = {.transfer = 1, .size = 1000};
    send_raw(data, &chunk, sizeof chunk);
    usleep(50000);
    close(data);
    expect_end(fd);
}

static void raw_data_connections_beyond_the_limit(void) {
    int fd = raw(TP_ROLE_CONTROL, 0, 0);
    int eighth = raw(TP_ROLE_DATA, 8, 0x1234567890abcdefull), first = raw(TP_ROLE_DATA, 1, 0x1234567890abcdefull);
    int again = raw(TP_ROLE_DATA, 1, 0x1234567890abcdefull);
    expect_end(eighth);
    expect_end(again);
    char byte;
    CHECK(recv(first, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    close(fd);
}

/* Every prefix of a good stream, then the end: the link must neither hand out a cut frame nor read past its end. */
static void every_truncation(void) {
    unsigned char bytes[16 + 40 + 16];
    struct tp_frame small = {.size = 16, .op = 1}, large = {.size = 40, .op = 2};
    fill_pattern(bytes, sizeof bytes, 1, 0);
    memcpy(bytes, &small, 16);
    memcpy(bytes + 16, &large, 16);
    memcpy(bytes + 56, &small, 16);
    for (size_t cut = 0; cut <= sizeof bytes; cut++) {
        int ends[2];
        struct tpw_link *link;
        enum tp_status status = TP_OK;
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
        CHECK(tpw_link_open(&link, ends[1], NULL, malloc, free) == TP_OK);
        CHECK(cut == 0 || send(ends[0], bytes, cut, 0) == (ssize_t)cut);
        close(ends[0]);
        unsigned frames = 0;
        while (status == TP_OK) {
            const struct tp_frame *frame = tpw_link_next(link, &status);
            frames += frame != NULL;
            CHECK(!frame || frame->op == (frames == 2 ? 2 : 1));
        }
        CHECK(status == TP_ERROR_LOST && frames == (cut >= 16 ? 1u : 0) + (cut >= 56) + (cut >= 72));
        tpw_link_close(link);
    }
    close(raw(TP_ROLE_CONTROL, 0, 0));
}

static void *lose_it(void *conn) {
    tpc_lose(conn, TP_ERROR_LOST, "the test says so");
    return NULL;
}

/* The loss comes while the last piece is being written: whoever waits for that must not find the record freed. */
static void loss_in_the_last_piece(void) {
    struct tp_conn *conn = connected();
    struct tp_cursor c;
    struct tpc_download *download;
    unsigned char memory[64], *start;
    pthread_t thread;
    tp_on_loss(on_loss);
    CHECK(open_frame(conn, OP_COUNT, 4, &c));
    tp_put_u32(&c, 0);
    struct tp_chunk chunk = {.transfer = tp_transfer_next(conn), .size = sizeof memory};
    tp_expect_download(conn, chunk.transfer, memory, sizeof memory);
    tp_commit(conn);
    CHECK(tpc_piece_begin(conn, &chunk, &download, &start));
    CHECK(pthread_create(&thread, NULL, lose_it, conn) == 0);
    usleep(100000);
    tpc_piece_end(conn, download, sizeof memory, 1 | TP_CHUNK_HANDED);
    pthread_join(thread, NULL);
    check_dead(conn);
}

const struct test_case robust_cases[] = {
    {"lost_wakes_everybody", lost_wakes_everybody, ANY_CODE},
    {"death_in_mid_download", death_in_mid_download, 0},
    {"loss_in_the_last_piece", loss_in_the_last_piece, 0},
    {"idle_loss_is_found_by_the_next_call", idle_loss_is_found_by_the_next_call, ANY_CODE},
    {"vanished_peer", vanished_peer, ANY_CODE},
    {"slow_reader_is_not_lost", slow_reader_is_not_lost, 0},
    {"refused_transfers", refused_transfers, 0},
    {"fork_in_mid_use", fork_in_mid_use, 0},
    {"fork_before_first_use", fork_before_first_use, 0},
    {"bad_session_0", bad_session_0, 0},
    {"bad_session_1", bad_session_1, 0},
    {"bad_session_2", bad_session_2, 0},
    {"bad_session_3", bad_session_3, 0},
    {"bad_session_4", bad_session_4, 0},
    {"bad_session_5", bad_session_5, 0},
    {"bad_session_6", bad_session_6, 0},
    {"bad_session_7", bad_session_7, 0},
    {"bad_session_8", bad_session_8, 0},
    {"bad_session_9", bad_session_9, 0},
    {"bad_session_10", bad_session_10, 0},
    {"bad_session_11", bad_session_11, 0},
    {"bad_session_12", bad_session_12, 0},
    {"refused_secret", refused_secret, ANY_CODE},
    {"unreachable", unreachable, ANY_CODE},
    {"next_address_is_tried", next_address_is_tried, 0},
    {"not_configured", not_configured, ANY_CODE},
    {"raw_short_frame", raw_short_frame, 3},
    {"raw_zero_frame", raw_zero_frame, 3},
    {"raw_long_frame", raw_long_frame, 3},
    {"raw_huge_frame", raw_huge_frame, 3},
    {"raw_crooked_frame", raw_crooked_frame, 3},
    {"raw_half_frame_then_end", raw_half_frame_then_end, 0},
    {"raw_upload_that_never_comes", raw_upload_that_never_comes, 0},
    {"raw_drip", raw_drip, 0},
    {"raw_never_reads", raw_never_reads, 0},
    {"raw_long_chunk", raw_long_chunk, 3},
    {"raw_empty_chunk", raw_empty_chunk, 3},
    {"raw_chunk_of_nothing", raw_chunk_of_nothing, 3},
    {"raw_chunk_handed", raw_chunk_handed, 3},
    {"raw_half_chunk_then_end", raw_half_chunk_then_end, 0},
    {"raw_data_connections_beyond_the_limit", raw_data_connections_beyond_the_limit, 0},
    {"every_truncation", every_truncation, 0},
    {NULL, NULL, 0},
};
