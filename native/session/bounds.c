/*
 * What bounds the process itself: which privileges it gives up, who may look into it, how much host memory its client may make
 * it take.
 *
 * The main thread enters before there is another, but for the watch, which is a thread of its own and owns nothing. What the
 * driver takes for a client (graphs, modules, queued work) cannot be counted call by call, so what the process has is measured
 * and the process is ended past its limit: no other client notices.
 */
#include "tpw_main.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Memory cannot be filled faster than this, so the watch sleeps until there may be too much: from 10 ms to a second. */
#define BYTES_A_MS (10u << 20)
#define LOOK_LEAST_MS 10u
#define LOOK_MOST_MS 1000u

/* When the machine itself runs out of memory, the kernel is to end the largest session before anything else. */
static void volunteer(void) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "1000", 4) != 4) {
        tp_log(TP_WARN, "a client that fills this machine's memory may end others: %s", strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* The memory of a session is its client's: no file gets it when the process breaks, and no other process of this user, a session
 * of another client say, may look into it. */
static bool hide_memory(void) {
    const struct rlimit none = {0};
    return setrlimit(RLIMIT_CORE, &none) == 0 && prctl(PR_SET_DUMPABLE, 0) == 0;
}

/* What a session never needs, so that whoever takes one over has not got it. Before the driver starts threads, which would keep
 * what they have. */
static bool give_up_privileges(void) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) {
        return false;
    }
    /* Without the right to drop them, they still cannot be gained by exec. */
    int one = 0;
    for (; prctl(PR_CAPBSET_READ, one) >= 0; one++) {
        if (prctl(PR_CAPBSET_DROP, one) && errno != EPERM) {
            return false;
        }
    }
    /* The kernel's list ends with EINVAL. */
    return errno == EINVAL && syscall(SYS_capset, &head, none) == 0;
}

bool tpw_bounds_begin(struct tpw_jail *jail) {
    volunteer();
    return (hide_memory() && (!jail->basic || give_up_privileges())) ||
           tpw_jail_fails(jail, "privileges cannot be given up");
}

/* Memory of this process alone: neither the files that it maps, nor a segment, nor the memory of a simulated GPU. */
static uint64_t own_memory(int statm) {
    char text[128];
    unsigned long long total, resident, shared;
    ssize_t size = pread(statm, text, sizeof text - 1, 0);
    text[size > 0 ? size : 0] = 0;
    if (sscanf(text, "%llu %llu %llu", &total, &resident, &shared) != 3 || shared > resident) {
        return UINT64_MAX;
    }
    return (resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t limit; /* set before the thread begins */

static void *watch(void *unused) {
    int statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    for (;;) {
        uint64_t has = own_memory(statm);
        if (has == UINT64_MAX) {
            tp_log(TP_ERROR, "nobody watches how much memory the client makes its session take: /proc/self/statm: %s",
                   strerror(errno));
            return NULL;
        }
        if (has > limit) {
            tp_log(TP_ERROR,
                   "the client is ended: its session takes %llu MB of host memory, and may have %llu "
                   "(TF_SESSION_MEMORY_LIMIT)",
                   (unsigned long long)(has >> 20), (unsigned long long)(limit >> 20));
            _exit(TPW_TOO_MUCH_MEMORY);
        }
        uint64_t ms = (limit - has) / BYTES_A_MS;
        ms = ms < LOOK_LEAST_MS ? LOOK_LEAST_MS : ms > LOOK_MOST_MS ? LOOK_MOST_MS : ms;
        usleep((useconds_t)ms * 1000);
    }
}

bool tpw_memory_watch(void) {
    const char *text = getenv("TF_SESSION_MEMORY_LIMIT"); /* a number that the supervisor has checked */
    pthread_t thread;
    limit = (text && *text ? strtoull(text, NULL, 10) : 0) << 20;
    if (limit == 0) {
        return true;
    }
    int error = pthread_create(&thread, NULL, watch, NULL);
    if (error) {
        tp_log(TP_ERROR, "there is no thread to watch the session's memory: %s", strerror(error));
        return false;
    }
    pthread_detach(thread);
    return true;
}
