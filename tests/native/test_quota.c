/*
 * The quota page as several processes use it; started by tests/test_quota.py with a case and the two descriptors of a page, on which 100
 * bytes are the limit of rows 0 and 1, or of all. Each process has one thread. The other processes write the page's cells, as
 * sessions do.
 */
#include "tp_quota.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, strerror(errno));                               \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

#define LIMIT 100u
#define ROUNDS 20000u
#define CROWD 4u
#define TABLE 4096u

static int page_fd, cells_fd;
static struct shared {
    _Atomic unsigned arrived, granted, held[2];
    unsigned both, one, none;
} *shared;

static struct tp_quota of_row(uint32_t row) {
    struct tp_quota quota;
    CHECK(tp_quota_map(&quota, page_fd, cells_fd, row));
    return quota;
}

static void end_of(pid_t child) {
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

/* Both are here `count` times. */
static void meet(unsigned count) {
    atomic_fetch_add(&shared->arrived, 1);
    for (unsigned turn = 0; atomic_load(&shared->arrived) < 2 * count; turn++) {
        if (turn > 1000) {
            sched_yield();
        }
    }
}

static void race_of(uint32_t row) {
    const struct tp_quota quota = of_row(row);
    for (unsigned round = 0; round < ROUNDS; round++) {
        meet(3 * round + 1);
        const bool in = tp_quota_reserve(&quota, 0, 60);
        atomic_fetch_add(&shared->granted, in);
        meet(3 * round + 2);
        if (row == 0) {
            const unsigned granted = atomic_exchange(&shared->granted, 0);
            shared->both += granted == 2;
            shared->one += granted == 1;
            shared->none += granted == 0;
        }
        if (in) {
            tp_quota_free(&quota, 0, 60);
        }
        meet(3 * round + 3);
    }
}

static void race(void) {
    pid_t child = fork();
    if (child == 0) {
        race_of(1);
        _exit(0);
    }
    race_of(0);
    end_of(child);
    printf("both %u one %u none %u\n", shared->both, shared->one, shared->none);
}

/* Rows 0 and 1 may be one tenant, and rows 2 and 3 another. */
static void crowd_of(uint32_t row) {
    const struct tp_quota quota = of_row(row);
    const bool tenants = ((const uint64_t *)quota.page)[1] == 0;
    _Atomic unsigned *held = &shared->held[tenants ? row / 2 : 0];
    unsigned seed = row + 1;
    for (unsigned round = 0; round < ROUNDS; round++) {
        seed = seed * 1664525u + 1013904223u;
        const unsigned bytes = 1 + (seed >> 8) % 70;
        if (tp_quota_reserve(&quota, 0, bytes)) {
            CHECK(atomic_fetch_add(held, bytes) + bytes <= LIMIT);
            CHECK(tp_quota_used(&quota, 0) <= LIMIT);
            atomic_fetch_sub(held, bytes);
            tp_quota_free(&quota, 0, bytes);
        }
    }
}

static void crowd(void) {
    pid_t children[CROWD];
    for (uint32_t row = 0; row < CROWD; row++) {
        children[row] = fork();
        if (children[row] == 0) {
            crowd_of(row);
            _exit(0);
        }
    }
    for (uint32_t row = 0; row < CROWD; row++) {
        end_of(children[row]);
    }
    puts("done");
}

/* Goes through a reservation of row 0 in single steps. At each nothing has changed but its own count: whenever it is killed, clearing
 * its cell is enough. */
static void step(bool kills) {
    const struct tp_quota quota = of_row(0);
    const size_t own = TP_QUOTA_CELLS, looked_at = own + 4 * TP_QUOTA_CELL;
    const unsigned char *page = quota.page;
    unsigned char *before = malloc(looked_at);
    CHECK(before);
    memcpy(before, page, looked_at);
    pid_t child = fork();
    if (child == 0) {
        CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
        raise(SIGSTOP);
        _exit(!tp_quota_reserve(&quota, 0, 60));
    }
    unsigned steps = 0, added = 0;
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
    for (; ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0; steps++) {
        CHECK(waitpid(child, &status, 0) == child);
        if (!WIFSTOPPED(status)) {
            break;
        }
        uint64_t count;
        memcpy(&count, page + own, sizeof count);
        CHECK(count == 0 || count == 60);
        CHECK(memcmp(page, before, own) == 0 && memcmp(page + own + 8, before + own + 8, looked_at - own - 8) == 0);
        added += count == 60;
        if (kills && added) {
            CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status));
            printf("killed\n");
            return;
        }
    }
    CHECK(!kills && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    tp_quota_free(&quota, 0, 60);
    printf("steps %u added %u\n", steps, added);
}

static void steps(void) { step(false); }
static void killed(void) { step(true); }

/* Writes what stands there, in a process that may end so. */
static void write_at(const char *name, const void *at) {
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        volatile uint64_t *word = (volatile uint64_t *)(uintptr_t)at;
        *word = *word;
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    printf("%s %s %d\n", name, WIFSIGNALED(status) ? "signal" : "exit",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static void gives(const char *name, bool done) {
    if (done) {
        printf("%s done\n", name);
    } else {
        printf("%s errno %d\n", name, errno);
    }
}

static void walls(void) {
    const struct tp_quota quota = of_row(0);
    const unsigned char *page = quota.page;
    write_at("write_own_cell", quota.cell);
    write_at("write_limit", page + 8);
    write_at("write_rows", page + 24);
    write_at("write_about", page + TABLE);
    write_at("write_own_cell_of_the_page", page + TP_QUOTA_CELLS);
    write_at("write_neighbour", page + TP_QUOTA_CELLS + TP_QUOTA_CELL);
    void *all = (void *)(uintptr_t)quota.page;
    gives("mprotect", mprotect(all, TP_QUOTA_SIZE, PROT_READ | PROT_WRITE) == 0);
    gives("clear", madvise(all, TP_QUOTA_SIZE, MADV_REMOVE) == 0);
    gives("map_to_write", mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, page_fd, 0) != MAP_FAILED);
    gives("write_file", pwrite(page_fd, page, 8, 0) == 8);
    void *to = mmap(NULL, TP_QUOTA_CELL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(to != MAP_FAILED);
    gives("grow", mremap(quota.cell, TP_QUOTA_CELL, 2 * TP_QUOTA_CELL, MREMAP_MAYMOVE) != MAP_FAILED);
    gives("copy", mremap(quota.cell, 0, 2 * TP_QUOTA_CELL, MREMAP_MAYMOVE) != MAP_FAILED);
    gives("move", mremap(quota.cell, TP_QUOTA_CELL, TP_QUOTA_CELL, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED);
    gives("become", remap_file_pages(quota.cell, TP_QUOTA_CELL, 0, 0, 0) == 0);
    const int memory = open("/proc/self/mem", O_RDWR);
    gives("write_memory", memory >= 0 && pwrite(memory, page + 8, 8, (off_t)(uintptr_t)(page + 8)) == 8);
}

int main(int count, char **words) {
    const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {{"race", race}, {"crowd", crowd}, {"steps", steps}, {"killed", killed}, {"walls", walls}};
    CHECK(count == 4);
    page_fd = atoi(words[2]);
    cells_fd = atoi(words[3]);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(words[1], cases[i].name) == 0) {
            cases[i].run();
            return fflush(stdout) != 0;
        }
    }
    return 2;
}
