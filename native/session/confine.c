/*
 * Landlock: which files of its user's a session reaches, whom it may signal, and that it opens no connection of its own.
 *
 * The main thread enters once, before there is another, because a thread is confined by its maker only. What the driver's library
 * and its files need is listed here and was tried with the simulated GPU; the real driver may want more, so this is asked for
 * (--jail full) and not the default. The rights are those of Linux 6.12's header, of which an older kernel has the first.
 */
#include "tpw_main.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif
#define RULESET_VERSION 1u
#define RULE_PATH_BENEATH 1

#define EXECUTE (1ull << 0)
#define WRITE_FILE (1ull << 1)
#define READ_FILE (1ull << 2)
#define READ_DIR (1ull << 3)
#define REMOVE_FILE (1ull << 5)
#define MAKE_DIR (1ull << 7)
#define MAKE_REG (1ull << 8)
#define FIRST_RIGHTS ((1ull << 13) - 1)
#define REFER (1ull << 13)     /* from version 2 of the interface on */
#define TRUNCATE (1ull << 14)  /* 3 */
#define IOCTL_DEV (1ull << 15) /* 5 */
#define TCP (3ull)             /* 4: bind, connect */
#define SCOPES (3ull)          /* 6: abstract sockets, signals */
#define OF_FILES (EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV)

#define LOOK_AT (EXECUTE | READ_FILE | READ_DIR)
#define USE (READ_FILE | WRITE_FILE | IOCTL_DEV)
#define KEEP (READ_FILE | WRITE_FILE | READ_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | TRUNCATE)

struct rights {
    uint64_t files, network, scopes;
};

/* The rules while they are being made. */
struct made {
    struct tpw_jail *jail;
    const struct rights *handled;
    int rules;
};

struct __attribute__((packed)) beneath {
    uint64_t allowed;
    int32_t parent;
};

/* What is not there, or out of reach already, needs no right. */
static bool allow(const struct made *made, const char *path, uint64_t rights) {
    struct stat about;
    if (!path || !*path) {
        return true;
    }
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT || errno == ENOTDIR || errno == EACCES || tpw_jail_fails(made->jail, path);
    }
    bool folder = fstat(fd, &about) == 0 && S_ISDIR(about.st_mode);
    struct beneath rule = {.allowed = rights & made->handled->files & (folder ? ~0ull : OF_FILES), .parent = fd};
    bool added = syscall(SYS_landlock_add_rule, made->rules, RULE_PATH_BENEATH, &rule, 0) == 0 ||
                 tpw_jail_fails(made->jail, path);
    close(fd);
    return added;
}

/* The folder that a library really lies in; one that is named without a folder is found where all programs look. */
static bool allow_folder_of(const struct made *made, const char *path) {
    char real[PATH_MAX];
    if (!path || !strchr(path, '/')) {
        return true;
    }
    return realpath(path, real) ? allow(made, dirname(real), LOOK_AT)
                                : errno == ENOENT || tpw_jail_fails(made->jail, path);
}

static bool allow_devices(const struct made *made) {
    static const char *const patterns[] = {"/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/null", "/dev/zero",
                                           "/dev/*random"};
    bool allowed = true;
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        glob_t found;
        int result = glob(patterns[i], 0, NULL, &found);
        for (size_t k = 0; result == 0 && k < found.gl_pathc; k++) {
            allowed = allowed && allow(made, found.gl_pathv[k], USE);
        }
        if (result == 0) {
            globfree(&found);
        }
        allowed = allowed && (result == 0 || result == GLOB_NOMATCH || tpw_jail_fails(made->jail, patterns[i]));
    }
    return allowed && allow(made, "/dev", READ_DIR);
}

const char *tpw_compiled(char place[PATH_MAX]) {
    const char *disabled = getenv("CUDA_CACHE_DISABLE"), *named = getenv("CUDA_CACHE_PATH"), *home = getenv("HOME");
    if ((disabled && strcmp(disabled, "1") == 0) || ((!named || !*named) && (!home || !*home))) {
        return NULL;
    }
    snprintf(place, PATH_MAX, "%s%s", named && *named ? named : home, named && *named ? "" : "/.nv");
    return place;
}

static bool allow_all(const struct made *made) {
    static const char *const read[] = {"/usr",        "/lib",           "/lib64",
                                       "/proc",       "/sys",           "/etc/ld.so.cache",
                                       "/etc/nvidia", "/etc/localtime", "/run/nvidia-persistenced"};
    for (size_t i = 0; i < sizeof read / sizeof *read; i++) {
        if (!allow(made, read[i], LOOK_AT)) {
            return false;
        }
    }
    char compiled[PATH_MAX];
    /* The driver gives its threads names, and does not start where it may not. */
    return allow(made, "/proc/self/task", WRITE_FILE | TRUNCATE) && allow_folder_of(made, made->jail->driver) &&
           allow_folder_of(made, made->jail->nvml) && allow_devices(made) &&
           allow(made, tpw_compiled(compiled), KEEP) &&
           (!(made->jail->layers >> TPW_MOUNT & 1) || allow(made, "/dev/shm", KEEP)) && /* its own: root.c */
           allow(made, getenv("TF_IMAGE_CACHE_PATH"), READ_FILE); /* by name: who has it has had the image */
}

bool tpw_landlock_enter(struct tpw_jail *jail) {
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, RULESET_VERSION);
    if (version < 1) {
        return tpw_jail_fails(jail, "landlock_create_ruleset");
    }
    const struct rights handled = {.files = FIRST_RIGHTS | (version >= 2 ? REFER : 0) | (version >= 3 ? TRUNCATE : 0) |
                                            (version >= 5 ? IOCTL_DEV : 0),
                                   .network = version >= 4 ? TCP : 0,
                                   .scopes = version >= 6 ? SCOPES : 0};
    const size_t size = version >= 6 ? sizeof handled : version >= 4 ? 16 : 8;
    const int rules = (int)syscall(SYS_landlock_create_ruleset, &handled, size, 0);
    if (rules < 0) {
        return tpw_jail_fails(jail, "landlock_create_ruleset");
    }
    bool confined = allow_all(&(struct made){.jail = jail, .handled = &handled, .rules = rules});
    if (confined && syscall(SYS_landlock_restrict_self, rules, 0)) {
        confined = tpw_jail_fails(jail, "landlock_restrict_self");
    }
    close(rules);
    return confined;
}
