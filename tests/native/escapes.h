/* What the parts of escapes.c share: a table of attempts each, and helpers. An attempt returns 0 when it got what it wanted. */
#ifndef ESCAPES_H
#define ESCAPES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

struct attempt {
    const char *name;
    int (*attempt)(void);
    const char *who; /* may do it without a jail */
};

#define BY_USER(name) {#name, name, "user"} /* whoever runs the worker */
#define BY_PEER(name) {#name, name, "peer"} /* the same, if the process has no capabilities that the session has not */
#define BY_ROOT(name) {#name, name, "root"} /* root, without a capability */
#define BY_RIGHT(name) {#name, name, "right"}  /* with a capability, which the basic jail takes */
#define PERHAPS(name) {#name, name, "perhaps"} /* by what the kernel is and has been told */

extern const struct attempt on_files[], on_processes[], on_network[], on_kernel[];
extern pid_t supervisor, bystander;
/* Of the session itself, found before an attempt is made: an attempt is a child, which sees its own. */
extern volatile unsigned long *limits; /* of the quota page what the supervisor writes, NULL: not there */
extern char *cell;                     /* of it what the session writes */
extern int limits_fd, log_fd;          /* -1: not open */

static inline int closed(int fd) { return fd < 0 ? -1 : close(fd); }

static inline int opens_path(const char *path, int flags) {
    if (!path) {
        errno = EINVAL;
        return -1;
    }
    return closed(open(path, flags | O_CLOEXEC | O_NONBLOCK, 0600));
}

static inline int opens(const char *name, int flags) { return opens_path(getenv(name), flags); }

static inline int number(const char *name) { return getenv(name) ? atoi(getenv(name)) : -1; }

static inline const char *of_process(pid_t pid, const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    return path;
}

/* The kernel did not say that it may not: it says that the call makes no sense, which is on purpose. */
static inline int past(long result) {
    return result >= 0 || (errno != EPERM && errno != EACCES && errno != ENOSYS) ? 0 : -1;
}

/* Same value, so that nobody is hurt where it succeeds. */
static inline int same(long result) { return result < 0 ? -1 : 0; }

#endif
