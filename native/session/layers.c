/*
 * The jail of a session: which layers there are, in which order they are entered, and which of them this machine has.
 *
 * The main thread enters, before there is another, because most layers hold for the thread that enters them and for those that it
 * makes later. The supervisor asks once, by the probe, what the kernel and the container allow, says what is missing, and names
 * the layers that there are to each session. A session that cannot enter one of these does not start.
 *
 * There is no process namespace. The driver and NVML know processes by their numbers, and a session in a namespace of its own would
 * find none but itself in NVML's lists; it would also need a second process that waits for the first. What it would give
 * is given by others: the small root shows no other process, the user namespace keeps out of their memory, and calls that
 * name a process by its number are refused.
 */
#include "tpw_main.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct {
    const char *name;
    bool (*enter)(struct tpw_jail *jail);
} layers[TPW_LAYERS] = {[TPW_USER] = {"user", tpw_user_enter},   [TPW_MOUNT] = {"mount", tpw_root_enter},
                        [TPW_NET] = {"net", tpw_net_enter},      [TPW_IPC] = {"ipc", tpw_ipc_enter},
                        [TPW_UTS] = {"uts", tpw_uts_enter},      [TPW_LANDLOCK] = {"landlock", tpw_landlock_enter},
                        [TPW_CALLS] = {"calls", tpw_calls_enter}};

bool tpw_jail_fails(struct tpw_jail *jail, const char *what) {
    snprintf(jail->why, sizeof jail->why, "%s: %s", what, strerror(errno));
    return false;
}

static bool enter(struct tpw_jail *jail, unsigned from, unsigned behind) {
    for (unsigned i = from; i < behind; i++) {
        if (jail->layers >> i & 1 && !layers[i].enter(jail)) {
            return false;
        }
    }
    return true;
}

/* Namespaces need the privileges that a user namespace gives; the last two layers need that none can be gained any more. */
bool tpw_jail_enter(struct tpw_jail *jail) {
    return enter(jail, TPW_USER, TPW_LANDLOCK) && tpw_bounds_begin(jail) && enter(jail, TPW_LANDLOCK, TPW_LAYERS) &&
           (!jail->calls || tpw_calls_only(jail));
}

bool tpw_jail_parse(const char *names, unsigned *found) {
    *found = 0;
    while (*names) {
        const size_t size = strcspn(names, ",");
        unsigned i = 0;
        while (i < TPW_LAYERS && (strlen(layers[i].name) != size || memcmp(layers[i].name, names, size) != 0)) {
            i++;
        }
        if (i == TPW_LAYERS) {
            return false;
        }
        *found |= 1u << i;
        names += size + (names[size] == ',');
    }
    return true;
}

/* Whether the layers can be entered one behind the other, in a process that is gone afterwards. */
static bool tried(struct tpw_jail *jail) {
    int channel[2];
    if (pipe(channel)) {
        return tpw_jail_fails(jail, "pipe");
    }
    pid_t child = fork();
    if (child < 0) {
        close(channel[0]);
        close(channel[1]);
        return tpw_jail_fails(jail, "fork");
    }
    if (child == 0) {
        bool entered = tpw_jail_enter(jail);
        ssize_t written = entered ? 0 : write(channel[1], jail->why, strlen(jail->why));
        _exit(entered && written == 0 ? 0 : 1);
    }
    close(channel[1]);
    ssize_t got = read(channel[0], jail->why, sizeof jail->why - 1);
    close(channel[0]);
    jail->why[got > 0 ? got : 0] = 0;
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (status && !jail->why[0]) {
        snprintf(jail->why, sizeof jail->why, "the process that tried it ended with status %d", status);
    }
    return status == 0;
}

void tpw_jail_probe(const struct tpw_jail *asked) {
    struct tpw_jail jail = *asked;
    jail.basic = true;
    jail.layers = 0;
    for (unsigned i = 0; i < TPW_LAYERS; i++) {
        jail.layers |= 1u << i;
        if (tried(&jail)) {
            printf("%s\ton\n", layers[i].name);
        } else {
            jail.layers &= ~(1u << i);
            printf("%s\toff\t%s\n", layers[i].name, jail.why);
        }
    }
}
