/*
 * Taking a slot in a worker's shared segment: the file, the header, the greeting and the welcome.
 *
 * Owns nothing once the seat is handed to the connection. Entered by the one thread that makes the connection; it starts the
 * life thread, which holds the slot's mutex until the process ends, however it ends. What lies in the segment is
 * the worker's (or a stranger's): sizes are compared before anything is mapped or followed.
 */
#include "conn_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <tp_system.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define TAKEN_NS 3000000000ull    /* a worker that runs looks at its slots every few milliseconds */
#define WELCOME_NS 30000000000ull /* it may have to start a session, with a context */
#define SILENCE_NS 2500000000ull  /* its heart beats every 100 ms; loss is to be told within 3 s */
#define BEAT_NS 1000000000ull
#define BEAT_PIECES 10 /* in which the life thread looks at the session's life */
#define PROBE_BYTES (64u << 10)
#define UNCACHED_MBPS 300u

static void nap(long ns) {
    struct timespec time = {.tv_nsec = ns};
    nanosleep(&time, NULL);
}

/* ---- the file ---- */

/* "/name" and "name" are POSIX segments; a path with a second slash is a file. */
static void path_of(const char *file, char *path, size_t size) {
    const char *name = file[0] == '/' ? file + 1 : file;
    snprintf(path, size, strchr(name, '/') ? "%s" : "/dev/shm/%s", strchr(name, '/') ? file : name);
}

static const char *user_name(char *buffer, size_t size) {
    snprintf(buffer, size, "the user with id %u", (unsigned)geteuid());
    return buffer;
}

/* The memory of a PCI device answers only when the device is enabled, which takes root once after boot. */
static bool enable_device(const char *path, char *why, size_t why_size) {
    const char *resource = strstr(path, "/resource2");
    char file[1100], state = '0';
    if (!resource || strncmp(path, "/sys/", 5) != 0) {
        return true;
    }
    snprintf(file, sizeof file, "%.*s/enable", (int)(resource - path), path);
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = read(fd, &state, 1);
        state = n == 1 ? state : '0';
        close(fd);
    }
    if (state != '0') {
        return true;
    }
    fd = open(file, O_WRONLY | O_CLOEXEC);
    bool enabled = fd >= 0 && write(fd, "1", 1) == 1;
    if (fd >= 0) {
        close(fd);
    }
    if (!enabled) {
        snprintf(why, why_size,
                 "The device of %s is not enabled and this process may not enable it (%s); as root, write 1 to %s, or "
                 "install the udev rule that 'tensor-fusion vm' prints.",
                 path, strerror(errno), file);
    }
    return enabled;
}

static int open_file(const char *path, uint64_t megabytes, uint64_t *size, char *why, size_t why_size) {
    char user[64];
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 && (errno == EACCES || errno == EPERM)) {
        bool readable = access(path, R_OK) == 0;
        snprintf(why, why_size,
                 "%s is not %s by %s; give it read and write permission (in a virtual machine with the udev rule "
                 "that 'tensor-fusion vm' prints, on the host with the worker's --shmem-group).",
                 path, readable ? "writable" : "readable", user_name(user, sizeof user));
        return -1;
    }
    if (fd < 0) {
        snprintf(
            why, why_size,
            "%s cannot be opened (%s); check the connection string, and that the worker runs with -n shmem (and, in "
            "a virtual machine, that it was started with the ivshmem-plain device).",
            path, strerror(errno));
        return -1;
    }
    struct stat about;
    if (tp_about(fd, &about) != 0 || !S_ISREG(about.st_mode)) {
        snprintf(why, why_size, "%s is no file of shared memory.", path);
        close(fd);
        return -1;
    }
    *size = (uint64_t)about.st_size;
    if (*size != megabytes << 20 || *size < TP_SEGMENT_MIN) {
        snprintf(
            why, why_size,
            "The connection string says %llu MB but %s has %llu bytes (%llu MB)%s; use the size that the worker was "
            "started with (-M).",
            (unsigned long long)megabytes, path, (unsigned long long)*size, (unsigned long long)(*size >> 20),
            *size < TP_SEGMENT_MIN ? ", and less than 16 MB cannot be served" : "");
        close(fd);
        return -1;
    }
    return fd;
}

static enum tp_status check_header(const struct tp_segment_header *header, const char *path, uint64_t size, char *why,
                                   size_t why_size) {
    uint64_t magic = atomic_load(&header->magic);
    if (magic == UINT64_MAX) {
        snprintf(why, why_size, "%s reads as all ones: the device is not enabled, or its memory is not mapped.", path);
        return TP_ERROR_UNREACHABLE;
    }
    if (magic != TP_SEGMENT_MAGIC) {
        snprintf(why, why_size,
                 magic
                     ? "%s holds something else than a worker's segment; check the file and the device."
                     : "%s is empty: no worker has prepared it; start tensor-fusion-worker -n shmem on this file (and, "
                       "in a virtual machine, check share=on).",
                 path);
        return TP_ERROR_UNREACHABLE;
    }
    if (header->version != TP_PROTOCOL) {
        tp_apart(why, why_size, path, header->version, header->release);
        return TP_ERROR_REFUSED;
    }
    if (header->size != size) {
        snprintf(
            why, why_size,
            "The worker published a segment of %llu bytes, but %s and the connection string have %llu bytes: start "
            "the virtual machine and the worker with the same size.",
            (unsigned long long)header->size, path, (unsigned long long)size);
        return TP_ERROR_CONFIG;
    }
    if (atomic_load(&header->state) != TP_SEGMENT_SERVING) {
        snprintf(why, why_size, "The worker of %s has ended; start it again.", path);
        return TP_ERROR_UNREACHABLE;
    }
    return TP_OK;
}

/* Reads from a device that the guest maps uncached come at a hundredth of the speed of memory. */
static void warn_if_uncached(const struct tpc_seat *seat, const char *path) {
    const volatile uint64_t *words = (const volatile uint64_t *)(const void *)(seat->base + tp_arena_at());
    uint64_t sum = words[0], begin = tp_now_ns();
    for (size_t i = 0; i < PROBE_BYTES / sizeof *words; i++) {
        sum += words[i];
    }
    uint64_t ns = tp_now_ns() - begin + (sum & 1);
    uint64_t mbps = PROBE_BYTES * 1000ull / (ns ? ns : 1);
    if (mbps < UNCACHED_MBPS) {
        tp_log(
            TP_ERROR,
            "%s is read at %llu MB/s, so it is mapped uncached and everything will be slow; 'tensor-fusion vm --check' "
            "says what to do",
            path, (unsigned long long)mbps);
    }
}

static enum tp_status map(struct tpc_seat *seat, const char *path, uint64_t megabytes, int *out, char *why,
                          size_t why_size) {
    if (!enable_device(path, why, why_size)) {
        return TP_ERROR_CONFIG;
    }
    int fd = open_file(path, megabytes, &seat->size, why, why_size);
    if (fd < 0) {
        return TP_ERROR_CONFIG;
    }
    void *wanted = (void *)(uintptr_t)TP_SEGMENT_ADDRESS;
    void *got = mmap(wanted, seat->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
    if (got != MAP_FAILED && got != wanted) { /* a kernel that does not know the flag */
        munmap(got, seat->size);
        got = MAP_FAILED;
    }
    if (got == MAP_FAILED) {
        got = mmap(NULL, seat->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (got == MAP_FAILED) {
        snprintf(why, why_size, "%s cannot be mapped: %s.", path, strerror(errno));
        close(fd);
        return TP_ERROR_UNREACHABLE;
    }
    /* A forked child that wrote here would write into its parent's stream. */
    madvise(got, seat->size, MADV_DONTFORK);
    seat->base = got;
    enum tp_status status = check_header(got, path, seat->size, why, why_size);
    if (status != TP_OK) {
        munmap(got, seat->size);
        close(fd);
        return status;
    }
    seat->epoch = ((struct tp_segment_header *)got)->epoch;
    *out = fd;
    return TP_OK;
}

/* ---- the slot ---- */

struct heart {
    uint64_t beats, since;
};

/* True when the supervisor's heart has stood still for long. It alone tells of a death before the session holds its mutex. */
static bool is_silent(const struct tpc_seat *seat, struct heart *heart) {
    const struct tp_segment_header *header = (const struct tp_segment_header *)(const void *)seat->base;
    uint64_t beats = atomic_load_explicit(&header->heartbeat, memory_order_relaxed), now = tp_now_ns();
    if (beats != heart->beats || heart->since == 0) {
        *heart = (struct heart){.beats = beats, .since = now};
    }
    return now - heart->since > SILENCE_NS;
}

/* Holds the slot's mutex for as long as the process lives, beats, and looks after the session. */
static void *live(void *argument) {
    struct tp_conn *conn = argument;
    struct tpc_seat *seat = conn->seat;
    if (!tp_life_begin(&seat->slot->client_life)) {
        atomic_store(&seat->over, true);
        return NULL;
    }
    atomic_store(&seat->alive, true);
    struct heart heart = {0};
    const struct tp_segment_header *header = (const struct tp_segment_header *)(const void *)seat->base;
    for (unsigned i = 1; !atomic_load(&seat->over) && header->epoch == seat->epoch; i++) {
        bool serving = atomic_load(&conn->serving);
        nap(serving ? BEAT_NS / BEAT_PIECES : 1000000);
        if (i % BEAT_PIECES == 0) {
            atomic_fetch_add_explicit(&seat->slot->beat, 1, memory_order_relaxed);
        }
        if (serving && !tp_life_begun(&seat->slot->session_life) && is_silent(seat, &heart)) {
            tpc_lose(conn, TP_ERROR_LOST, "the worker has ended before its session began");
        }
        if (serving && (tpc_is_lost(conn) || tpc_seat_gone(conn)) && header->epoch == seat->epoch) {
            /* The session may go; but pinned memory of this program lies in the segment for as long as it lives. */
            atomic_store_explicit(&seat->slot->left, 1, memory_order_relaxed);
        }
    }
    return NULL; /* with the mutex held: its kernel marks it, and the other side sees that nobody is here any more */
}

static bool claim(struct tpc_seat *seat) {
    for (uint32_t i = 0; i < TP_SLOTS; i++) {
        struct tp_slot *slot = tp_slot_at(seat->base, i);
        uint32_t nobody = TP_SLOT_FREE;
        if (atomic_load_explicit(&slot->state, memory_order_relaxed) == TP_SLOT_FREE &&
            atomic_compare_exchange_strong(&slot->state, &nobody, TP_SLOT_CLAIMED)) {
            seat->slot = slot;
            return true;
        }
    }
    return false;
}

/* Waits until the worker has answered. */
static enum tp_status await_welcome(struct tpc_seat *seat, const char *path, char *why, size_t why_size) {
    struct tp_segment_header *header = (struct tp_segment_header *)(void *)seat->base;
    struct tp_slot *slot = seat->slot;
    struct heart heart = {0};
    uint64_t begin = tp_now_ns(), beats = atomic_load(&header->heartbeat);
    tpc_wait_for(WELCOME_NS, "the welcome of the worker of %s", path);
    for (;;) {
        uint32_t state = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (header->epoch != seat->epoch || state == TP_SLOT_FREE || state == TP_SLOT_ENDED) {
            snprintf(why, why_size, "The worker of %s %s before it served this client; try again.", path,
                     state == TP_SLOT_ENDED ? "lost the session" : "was started anew");
            return TP_ERROR_UNREACHABLE;
        }
        if (state == TP_SLOT_ACCEPTED || state == TP_SLOT_REFUSED) {
            return TP_OK;
        }
        if (is_silent(seat, &heart) && state == TP_SLOT_TAKEN) {
            snprintf(why, why_size, "The worker of %s saw this client and has ended, or is stopped; start it again.",
                     path);
            return TP_ERROR_UNREACHABLE;
        }
        uint64_t waited = tp_now_ns() - begin;
        if (state == TP_SLOT_GREETED && waited > TAKEN_NS) {
            bool beating = atomic_load(&header->heartbeat) != beats;
            snprintf(why, why_size,
                     beating
                         ? "The worker of %s is alive but does not see what this side writes: check share=on in the "
                           "virtual machine's memory backend first, then that both use the same file."
                         : "The worker of %s does not answer: it has ended or is stopped; start it again (and, in a "
                           "virtual machine, check share=on).",
                     path);
            return TP_ERROR_UNREACHABLE;
        }
        if (waited > WELCOME_NS) {
            snprintf(why, why_size, "The worker of %s saw this client but gave no answer in 30 s; its log says why.",
                     path);
            return TP_ERROR_UNREACHABLE;
        }
        if (!tpc_wait_goes_on()) {
            return TP_ERROR_INTERRUPTED;
        }
        nap(waited < 20000000 ? 20000 : 500000);
    }
}

static enum tp_status greet(struct tp_conn *conn, const struct tp_endpoint *to, const char *path,
                            struct tp_welcome *welcome, char *why, size_t why_size) {
    struct tpc_seat *seat = conn->seat;
    struct tp_segment_header *header = (struct tp_segment_header *)(void *)seat->base;
    if (!claim(seat)) {
        snprintf(why, why_size, "All %u places of the worker's segment %s are taken.", TP_SLOTS, path);
        return TP_ERROR_REFUSED;
    }
    struct tp_slot *slot = seat->slot;
    if (tp_thread_start(&seat->life, "tf-life", 128u << 10, live, conn) != TP_OK) {
        seat->slot = NULL;
        atomic_store(&slot->state, TP_SLOT_FREE);
        return TP_ERROR_MEMORY;
    }
    while (!atomic_load(&seat->alive) && !atomic_load(&seat->over)) {
        nap(10000);
    }
    if (!atomic_load(&seat->alive)) {
        snprintf(why, why_size, "This process cannot hold its place in %s: robust mutexes do not work here.", path);
        return TP_ERROR_UNREACHABLE;
    }
    struct tp_greeting greeting;
    tpc_greeting(conn, to, TP_ROLE_CONTROL, 0, &greeting);
    memcpy(slot->greeting, &greeting, sizeof greeting);
    tp_boot_id(slot->client_boot_id);
    uint64_t nonce = 0;
    if (!tp_random(&nonce, sizeof nonce)) {
        nonce = tp_now_ns() ^ (uint64_t)getpid() << 32;
    }
    slot->client_nonce = nonce;
    uint32_t claimed = TP_SLOT_CLAIMED;
    if (!atomic_compare_exchange_strong(&slot->state, &claimed, TP_SLOT_GREETED)) {
        snprintf(why, why_size, "The worker of %s gave this client's place to another, because it was silent for 10 s.",
                 path);
        return TP_ERROR_UNREACHABLE;
    }
    tp_bell_wake(&header->bell);
    enum tp_status status = await_welcome(seat, path, why, why_size);
    if (status != TP_OK) {
        return status;
    }
    memcpy(welcome, slot->welcome, sizeof *welcome);
    bool refused = atomic_load(&slot->state) == TP_SLOT_REFUSED;
    if (slot->echo != nonce) {
        snprintf(why, why_size, "What answers in %s did not see this client's greeting; check share=on.", path);
        return TP_ERROR_UNREACHABLE;
    }
    status = tpc_check_welcome(conn, welcome, why, why_size);
    if (status == TP_OK && refused) {
        status = TP_ERROR_REFUSED;
    }
    return status;
}

/* The parts of the run that the worker granted, if they lie in the segment. */
static bool settle(struct tp_conn *conn, int fd) {
    struct tpc_seat *seat = conn->seat;
    struct tp_slot *slot = seat->slot;
    uint64_t first = atomic_load(&slot->first), granules = tp_arena_granules(seat->size);
    seat->blocks = atomic_load(&slot->blocks);
    if (seat->blocks < 1 || seat->blocks > TP_BLOCKS_MAX || first >= granules) {
        return false;
    }
    seat->run = tp_run_layout(first, seat->blocks);
    if (seat->run.granules > granules - first) {
        return false;
    }
    char here[40];
    tp_boot_id(here);
    const struct tp_segment_header *header = (const struct tp_segment_header *)(const void *)seat->base;
    seat->nap.same_kernel = here[0] && memcmp(here, header->boot_id, sizeof here) == 0;
    seat->commands = tp_ring_make(&slot->commands, seat->base + seat->run.commands, TP_COMMAND_RING);
    seat->replies = tp_ring_make(&slot->replies, seat->base + seat->run.replies, TP_REPLY_RING);
    seat->up = tp_ring_make(&slot->chunks_up, seat->base + seat->run.chunks_up, TP_CHUNK_RING);
    seat->down = tp_ring_make(&slot->chunks_down, seat->base + seat->run.chunks_down, TP_CHUNK_RING);
    return tpc_ring_map(conn, fd, seat->run.commands, TP_COMMAND_RING) == TP_OK;
}

enum tp_status tpc_seat_take(struct tp_conn *conn, const struct tp_endpoint *to, struct tp_welcome *welcome, char *why,
                             size_t why_size) {
    char path[1100];
    int fd = -1;
    path_of(to->file, path, sizeof path);
    snprintf(conn->peer, sizeof conn->peer, "%.300s", path);
    struct tpc_seat *seat = aligned_alloc(_Alignof(struct tpc_seat), sizeof *seat);
    if (!seat) {
        return TP_ERROR_MEMORY;
    }
    memset(seat, 0, sizeof *seat);
    enum tp_status status = map(seat, path, to->megabytes, &fd, why, why_size);
    if (status != TP_OK) {
        free(seat);
        return status;
    }
    conn->seat = seat;
    if (strncmp(path, "/sys/", 5) == 0) {
        warn_if_uncached(seat, path);
    }
    status = greet(conn, to, path, welcome, why, why_size);
    if (status == TP_OK && !settle(conn, fd)) {
        snprintf(why, why_size, "The worker of %s granted memory that cannot be, or it could not be mapped.", path);
        status = TP_ERROR_PROTOCOL;
    }
    close(fd);
    if (status != TP_OK) {
        tpc_seat_leave(conn);
    } else if ((uintptr_t)seat->base != TP_SEGMENT_ADDRESS) {
        tp_log(TP_WARN, "%s could not be mapped at its usual address: pinned memory has other addresses on the GPU",
               path);
    }
    return status;
}

void tpc_seat_leave(struct tp_conn *conn) {
    struct tpc_seat *seat = conn->seat;
    if (seat->slot) {
        atomic_store(&seat->over, true);
        pthread_join(seat->life, NULL);
    }
    if (conn->ring) {
        munmap(conn->ring, 2 * conn->ring_size);
        conn->ring = NULL;
    }
    munmap(seat->base, seat->size);
    free(seat);
    conn->seat = NULL;
}
