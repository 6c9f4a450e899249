/*
 * Namespaces of a session's own: user, network, System V objects and message queues, host name. Mounts are in root.c.
 *
 * The main thread enters, before there is another. In the user namespace the session stays who it is outside, with its number, and
 * has the privileges that the other namespaces take to make; bounds.c gives them up. A worker of root makes these also
 * where there are no user namespaces. The network has no interface: a session gets its connections as descriptors,
 * and these stay in the network in which they were made.
 */
#include "tpw_main.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

static bool write_map(struct tpw_jail *jail, const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (!written) {
        tpw_jail_fails(jail, path);
    }
    if (fd >= 0) {
        close(fd);
    }
    return written;
}

/* One number each, as the kernel allows it to everybody; it wants setgroups to be given up for that. */
bool tpw_user_enter(struct tpw_jail *jail) {
    char users[64], groups[64];
    snprintf(users, sizeof users, "%u %u 1", geteuid(), geteuid());
    snprintf(groups, sizeof groups, "%u %u 1", getegid(), getegid());
    if (unshare(CLONE_NEWUSER)) {
        return tpw_jail_fails(jail, "unshare");
    }
    return write_map(jail, "/proc/self/setgroups", "deny") && write_map(jail, "/proc/self/uid_map", users) &&
           write_map(jail, "/proc/self/gid_map", groups);
}

static bool leave(struct tpw_jail *jail, int which) { return unshare(which) == 0 || tpw_jail_fails(jail, "unshare"); }

bool tpw_net_enter(struct tpw_jail *jail) { return leave(jail, CLONE_NEWNET); }
bool tpw_ipc_enter(struct tpw_jail *jail) { return leave(jail, CLONE_NEWIPC); }
bool tpw_uts_enter(struct tpw_jail *jail) { return leave(jail, CLONE_NEWUTS); }
