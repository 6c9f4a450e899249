/*
 * Tests of sleeping beside a ring: that a bell wakes at once, that no sleep is longer than it may be, what idleness costs, and who
 * ends a nap.
 *
 * Two threads at most, each with its own struct tp_nap; the bell lies between them, in one case in memory shared by two
 * processes.
 */
#include "test_ring.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

static void sleep_ns(uint64_t ns) {
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)}, NULL);
}

static uint64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* How long one wait took, with the bell armed or not. */
static uint64_t waited(struct tp_bell *bell, struct tp_nap *nap, bool arm, uint64_t most_ns) {
    if (arm) {
        tp_bell_arm(bell);
    }
    uint64_t begin = tp_now_ns();
    tp_bell_wait(bell, nap, most_ns);
    CHECK(atomic_load(&bell->sleeps) == 0);
    return tp_now_ns() - begin;
}

static void limits(void) {
    static struct tp_bell bell;
    struct tp_nap same = {.same_kernel = true};
    errno = 77;
    CHECK(waited(&bell, &same, false, 5000000000u) < 1000000000u); /* not armed, or rung in between: no sleep */
    CHECK(waited(&bell, &same, true, 0) < 1000000000u);
    uint64_t took = waited(&bell, &same, true, 3000000);
    CHECK(took >= 3000000);
    took = waited(&bell, &same, true, 60000000000u); /* a peer that died before it rang */
    CHECK(took >= 10000000 && took < 5000000000u);
    CHECK(errno == 77);
}

/* Without a common kernel: short at first, longer with the idleness, never above 5 ms by itself. */
static void naps_grow(void) {
    static struct tp_bell bell;
    struct tp_nap nap = {.same_kernel = false};
    uint64_t begin = tp_now_ns(), count = 0;
    while (tp_now_ns() - begin < 300000000u) {
        waited(&bell, &nap, true, UINT64_MAX);
        count++;
    }
    CHECK(nap.since != 0);
    /* 50 µs … 5 ms in steps of an eighth of the idleness: about 100 in 300 ms; 60 at 5 ms each is the fewest */
    CHECK(count >= 20 && count <= 400);
    nap.since = 0;
    begin = tp_now_ns();
    for (int i = 0; i < 4; i++) { /* anew: short again */
        waited(&bell, &nap, true, UINT64_MAX);
    }
    CHECK(tp_now_ns() - begin < 100000000u);
}

static void idleness_costs_little(void) {
    for (int same = 0; same < 2; same++) {
        static struct tp_bell bell;
        struct tp_nap nap = {.same_kernel = same};
        uint64_t begin = tp_now_ns();
        while (tp_now_ns() - begin < 200000000u) {
            waited(&bell, &nap, true, UINT64_MAX);
        }
        uint64_t cpu = cpu_ns();
        begin = tp_now_ns();
        while (tp_now_ns() - begin < 1000000000u) {
            waited(&bell, &nap, true, UINT64_MAX);
        }
        cpu = cpu_ns() - cpu;
        printf("idle, %s common kernel: %.2f %% of a core\n", same ? "a" : "no", (double)cpu / 1e7);
        CHECK(cpu < 30000000u); /* 3 %: under a sanitizer and on a busy machine, too */
    }
}

/* ---- waking ---- */

struct call {
    struct tp_bell to, back;
    _Atomic uint64_t asked, answered;
    bool same_kernel;
    uint64_t rounds;
};

static void await_count(_Atomic uint64_t *word, uint64_t value, struct tp_bell *bell, struct tp_nap *nap) {
    while (atomic_load_explicit(word, memory_order_acquire) < value) {
        tp_bell_arm(bell);
        if (atomic_load_explicit(word, memory_order_acquire) < value) {
            tp_bell_wait(bell, nap, UINT64_MAX);
        } else {
            tp_bell_disarm(bell);
        }
    }
    nap->since = 0;
}

static void *answer(void *argument) {
    struct call *call = argument;
    struct tp_nap nap = {.same_kernel = call->same_kernel};
    for (uint64_t i = 1; i <= call->rounds; i++) {
        await_count(&call->asked, i, &call->to, &nap);
        atomic_store_explicit(&call->answered, i, memory_order_release);
        tp_bell_ring(&call->back);
    }
    return NULL;
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Both sides sleep between the words. A wake-up that is lost shows as a round of 20 ms; a busy machine makes some long ones. */
static uint64_t median_round(struct call *call, uint64_t pause_ns) {
    static uint64_t times[20000];
    struct tp_nap nap = {.same_kernel = call->same_kernel};
    for (uint64_t i = 1; i <= call->rounds; i++) {
        if (pause_ns) {
            sleep_ns(pause_ns);
        }
        uint64_t begin = tp_now_ns();
        atomic_store_explicit(&call->asked, i, memory_order_release);
        tp_bell_ring(&call->to);
        await_count(&call->answered, i, &call->back, &nap);
        times[i - 1] = tp_now_ns() - begin;
    }
    qsort(times, call->rounds, sizeof *times, compare);
    printf("%s common kernel: median %llu ns, slowest %llu ns of %llu\n", call->same_kernel ? "a" : "no",
           (unsigned long long)times[call->rounds / 2], (unsigned long long)times[call->rounds - 1],
           (unsigned long long)call->rounds);
    return times[call->rounds / 2];
}

static uint64_t ping_pong(bool same_kernel, uint64_t rounds, uint64_t pause_ns) {
    static struct call call;
    memset(&call, 0, sizeof call);
    call.same_kernel = same_kernel;
    call.rounds = rounds;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, answer, &call) == 0);
    uint64_t median = median_round(&call, pause_ns);
    CHECK(pthread_join(thread, NULL) == 0);
    return median;
}

static void wakes_at_once(void) {
    CHECK(ping_pong(true, 20000, 0) < 2000000);
    CHECK(ping_pong(true, 30, 30000000) < 5000000); /* after idleness, too: the bell ends the sleep of 20 ms */
}

static void looks_again_without_a_common_kernel(void) {
    CHECK(ping_pong(false, 2000, 0) < 5000000);
    CHECK(ping_pong(false, 30, 50000000) < 15000000); /* a nap of 5 ms at the most, and scheduling */
}

static void wakes_another_process(void) {
    struct call *call = mmap(NULL, sizeof *call, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(call != MAP_FAILED);
    call->same_kernel = true;
    call->rounds = 2000;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        answer(call);
        _exit(0);
    }
    CHECK(median_round(call, 0) < 2000000);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* ---- naps ---- */

static void *nap_and_nap(void *argument) {
    struct call *call = argument;
    while (atomic_load(&call->asked) == 0) {
        tp_bell_arm_for(&call->to, TP_NAPS);
        if (atomic_load(&call->asked) == 0) {
            tp_bell_nap(&call->to, 1000000000000u); /* a ring that is lost is never seen again */
        }
        atomic_fetch_add(&call->answered, 1);
    }
    return NULL;
}

static void who_waits_ends_a_nap(void) {
    static struct call call;
    struct tp_bell *bell = &call.to;
    errno = 77;
    tp_bell_nap(bell, 1000000000000u); /* not armed, or rung in between: no nap */
    tp_bell_arm(bell);
    tp_bell_nap(bell, 1000000000000u);
    uint64_t begin = tp_now_ns();
    tp_bell_arm_for(bell, TP_NAPS);
    tp_bell_nap(bell, 3000000);
    CHECK(tp_now_ns() - begin >= 3000000 && errno == 77 && atomic_load(&bell->sleeps) == TP_AWAKE);
    tp_bell_arm_for(bell, TP_NAPS);
    tp_bell_ring_sleeper(bell);
    CHECK(atomic_load(&bell->sleeps) == TP_NAPS);
    tp_bell_ring(bell);
    CHECK(atomic_load(&bell->sleeps) == TP_AWAKE);
    tp_bell_arm(bell);
    tp_bell_ring_sleeper(bell);
    CHECK(atomic_load(&bell->sleeps) == TP_AWAKE);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, nap_and_nap, &call) == 0);
    for (uint64_t i = 0; i < 2000; i++) {
        while (atomic_load(&bell->sleeps) != TP_NAPS) {
            sched_yield();
        }
        tp_bell_ring_sleeper(bell); /* lets it lie */
        uint64_t before = atomic_load(&call.answered);
        tp_bell_ring(bell);
        while (atomic_load(&call.answered) == before) {
            sched_yield();
        }
    }
    atomic_store(&call.asked, 1);
    tp_bell_ring(bell);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* Never longer than a 32nd of the time that a program has streamed, but for the least. */
static void naps_grow_with_the_stream(void) {
    CHECK(tp_nap_ns(0, 25000) == 25000 && tp_nap_ns(800000, 25000) == 25000 && tp_nap_ns(3200000, 25000) == 100000);
    CHECK(tp_nap_ns(8000000, 25000) == 250000 && tp_nap_ns(UINT64_MAX, 25000) == 250000);
}

/* A peer that rings for nothing, or writes the word: the sleeper comes back early, and that is all. */
static void *ring_for_nothing(void *argument) {
    struct call *call = argument;
    uint64_t random = 5;
    while (atomic_load(&call->asked) == 0) {
        uint64_t word = next_random(&random);
        atomic_store(&call->to.sleeps, (uint32_t)(word >> 32));
        if (word & 1) {
            tp_bell_wake(&call->to);
        }
        sched_yield();
    }
    return NULL;
}

static void a_bell_that_lies(void) {
    static struct call call;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, ring_for_nothing, &call) == 0);
    for (int same = 0; same < 2; same++) {
        struct tp_nap nap = {.same_kernel = same};
        uint64_t begin = tp_now_ns();
        while (tp_now_ns() - begin < 200000000u) {
            uint64_t before = tp_now_ns();
            tp_bell_arm(&call.to);
            tp_bell_wait(&call.to, &nap, 2000000);
            CHECK(tp_now_ns() - before < 1000000000u);
        }
    }
    atomic_store(&call.asked, 1);
    CHECK(pthread_join(thread, NULL) == 0);
}

const struct ring_case bell_cases[] = {
    {"limits", limits},
    {"naps_grow", naps_grow},
    {"idleness_costs_little", idleness_costs_little},
    {"wakes_at_once", wakes_at_once},
    {"looks_again_without_a_common_kernel", looks_again_without_a_common_kernel},
    {"wakes_another_process", wakes_another_process},
    {"a_bell_that_lies", a_bell_that_lies},
    {"who_waits_ends_a_nap", who_waits_ends_a_nap},
    {"naps_grow_with_the_stream", naps_grow_with_the_stream},
    {NULL, NULL},
};
