/*
 * The real session process on a driver, handed a client over a slot: this program plays its supervisor and its client.
 *
 * Takes the session's path, the driver's path and the number of the operation `start`, which is cuInit from the command line.
 */
#include "test_slot.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define SIZE (64ull << 20)
#define SLOT 5u
enum { ADOPT = 1, WARM = 3, READY = 16, GONE = 18, SPOKEN = 19 };

static int control;
static unsigned char *owners;

static pid_t start_session(const char *program, const char *driver, int segment, int owners_fd) {
    int pair[2];
    char words[4][32];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    control = pair[0];
    pid_t pid = fork();
    if (pid == 0) {
        close(pair[0]);
        snprintf(words[0], sizeof words[0], "%d", pair[1]);
        snprintf(words[1], sizeof words[1], "%d", segment);
        snprintf(words[2], sizeof words[2], "%llu", SIZE);
        snprintf(words[3], sizeof words[3], "%d", owners_fd);
        execl(program, program, "--control-fd", words[0], "--segment-fd", words[1], "--segment-size", words[2],
              "--owners-fd", words[3], "--driver", driver, "--simulated", (char *)NULL);
        _exit(127);
    }
    close(pair[1]);
    return pid;
}

static void tell(uint32_t type, uint32_t argument, uint64_t value) {
    unsigned char packet[TP_CONTROL_SIZE] = {0};
    memcpy(packet, &type, 4);
    memcpy(packet + 4, &argument, 4);
    memcpy(packet + 24, &value, 8);
    CHECK(send(control, packet, sizeof packet, MSG_NOSIGNAL) == (ssize_t)sizeof packet);
}

static void expect(uint32_t wanted) {
    unsigned char packet[TP_CONTROL_SIZE];
    uint32_t type;
    CHECK(recv(control, packet, sizeof packet, 0) == (ssize_t)sizeof packet);
    memcpy(&type, packet, 4);
    if (type != wanted) {
        fprintf(stderr, "packet %u in place of %u: %s\n", type, wanted, (const char *)packet + 32);
        _exit(1);
    }
}

static int end_of(pid_t pid) {
    int state;
    for (int ms = 0; ms < 10000; ms++) {
        if (waitpid(pid, &state, WNOHANG) == pid) {
            return WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
        }
        usleep(1000);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &state, 0);
    return 124;
}

/* A client calls cuInit and dies; the session ends in order, `warm` or not. */
static void serves(pid_t pid, bool warm, uint16_t op) {
    uint32_t first, blocks;
    if (warm) {
        tell(WARM, 0, 0);
        expect(READY);
    }
    CHECK(tp_segment_grant(it.base, SIZE, owners, SLOT, &first, &blocks));
    it.slot = tp_slot_at(it.base, SLOT);
    it.run = tp_run_layout(first, blocks);
    it.same_kernel = true;
    tp_boot_id(it.slot->client_boot_id);
    it.commands = tp_ring_make(&it.slot->commands, it.base + it.run.commands, TP_COMMAND_RING);
    it.replies = tp_ring_make(&it.slot->replies, it.base + it.run.replies, TP_REPLY_RING);
    pid_t client = fork();
    if (client == 0) {
        CHECK(tp_life_begin(&it.slot->client_life));
        tell(ADOPT, SLOT + 1, (uint64_t)first << 32 | blocks);
        struct tp_reply_frame header;
        size_t size;
        append(op, TP_FRAME_CALL, "\0\0\0\0\0\0\0", 8);
        unsigned char *body = next_reply(&header, &size);
        CHECK(header.op == op && header.flags == TP_FRAME_REPLY && header.thread == 1 && header.result == 0);
        free(body);
        _exit(0);
    }
    CHECK(end_of(client) == 0);
    expect(SPOKEN);
    expect(GONE);
    CHECK(end_of(pid) == 0 && tp_life_over(&it.slot->session_life));
    tp_segment_release(it.base, SIZE, owners, SLOT);
}

int test_real(const char *program, const char *driver, const char *op) {
    int segment = memfd_create("segment", 0), owners_fd = memfd_create("owners", 0);
    CHECK(segment >= 0 && owners_fd >= 0 && ftruncate(segment, SIZE) == 0);
    CHECK(ftruncate(owners_fd, (off_t)TP_OWNERS_BYTES(SIZE)) == 0);
    it.base = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, segment, 0);
    owners = mmap(NULL, TP_OWNERS_BYTES(SIZE), PROT_READ | PROT_WRITE, MAP_SHARED, owners_fd, 0);
    CHECK(it.base != MAP_FAILED && owners != MAP_FAILED);
    tp_segment_format(it.base, SIZE, 1, (const unsigned char *)"0123456789abcdef");
    serves(start_session(program, driver, segment, owners_fd), true, (uint16_t)atoi(op));
    serves(start_session(program, driver, segment, owners_fd), false, (uint16_t)atoi(op));

    /* A run that is not the slot's, blocks that cannot be, a slot that is none. */
    static const struct {
        uint32_t argument;
        uint64_t value;
    } wrong[] = {{SLOT + 1, 1}, {SLOT + 1, 0}, {SLOT + 1, 17}, {TP_SLOTS + 1, 1}, {0, 1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        pid_t pid = start_session(program, driver, segment, owners_fd);
        tell(ADOPT, wrong[i].argument, wrong[i].value);
        CHECK(end_of(pid) == 1);
    }
    /* A file that is shorter than what is said of it would end the session by a signal later. */
    CHECK(ftruncate(segment, SIZE - 1) == 0);
    CHECK(end_of(start_session(program, driver, segment, owners_fd)) == 2);
    puts("real ok");
    return 0;
}
