/*
 * The small root of a session: what the driver needs, and nothing else of this machine's files.
 *
 * The main thread enters, once, before there is another. What is listed here is what confine.c allows, and where it can be only to
 * read. Of /proc there are the session itself and what says something about the machine: no other process. What is writable
 * is the driver's cache, and 1 MiB of its own in /dev/shm. Parts are taken before the new root covers anything, and put where they
 * were; links at the top, such as /lib on most machines, are made anew. Mounts of later stay outside.
 */
#include "tpw_main.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libgen.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#define CLONE_TREE 1u
#define WHOLE_TREE 0x8000u
#define FROM_DESCRIPTOR 4u
#define READ_ONLY 1ull
#define NO_SUID 2ull
#define NO_DEVICES 4ull
#define NO_PROGRAMS 8ull

#define PLACE "/proc" /* a folder that is there: the new root covers it while it is being filled */
#define MOST 256u     /* parts: files of 100 GPUs */

struct attributes {
    uint64_t set, clear, propagation, user_namespace;
};

struct part {
    int fd;
    bool folder;
    char *target;
};

struct root {
    struct tpw_jail *jail;
    unsigned count;
    struct part parts[MOST];
};

/* What is not there, or out of reach already, is not missed. */
static bool take(struct root *root, const char *path, uint64_t set) {
    const struct attributes wanted = {.set = set | NO_SUID};
    struct stat about;
    if (!path || *path != '/') {
        return true;
    }
    if (root->count == MOST) {
        errno = E2BIG;
        return tpw_jail_fails(root->jail, path);
    }
    int fd = (int)syscall(SYS_open_tree, AT_FDCWD, path, CLONE_TREE | WHOLE_TREE | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT || errno == ENOTDIR || errno == EACCES || tpw_jail_fails(root->jail, path);
    }
    char *target = strdup(path);
    if (!target || fstat(fd, &about) ||
        syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | WHOLE_TREE, &wanted, sizeof wanted)) {
        close(fd);
        free(target);
        return tpw_jail_fails(root->jail, path);
    }
    root->parts[root->count++] = (struct part){.fd = fd, .folder = S_ISDIR(about.st_mode), .target = target};
    return true;
}

static bool take_each(struct root *root, const char *const *paths, size_t count, uint64_t set) {
    bool taken = true;
    for (size_t i = 0; i < count && taken; i++) {
        glob_t found;
        int result = glob(paths[i], 0, NULL, &found);
        for (size_t k = 0; result == 0 && k < found.gl_pathc; k++) {
            taken = taken && take(root, found.gl_pathv[k], set);
        }
        if (result == 0) {
            globfree(&found);
        } else if (result != GLOB_NOMATCH) {
            errno = result == GLOB_NOSPACE ? ENOMEM : EIO;
            taken = tpw_jail_fails(root->jail, paths[i]);
        }
    }
    return taken;
}

/* The folder that a library really lies in; from then on it is known by its name there. */
static bool take_folder_of(struct root *root, const char **library) {
    char real[PATH_MAX], *name;
    if (!*library || !strchr(*library, '/')) {
        return true;
    }
    if (!realpath(*library, real)) {
        return errno == ENOENT || tpw_jail_fails(root->jail, *library);
    }
    if (!(name = strdup(real))) {
        return tpw_jail_fails(root->jail, *library);
    }
    *library = name;
    return take(root, dirname(real), READ_ONLY | NO_DEVICES);
}

static bool take_all(struct root *root) {
    static const char *const read[] = {"/usr",
                                       "/sys",
                                       "/etc/ld.so.cache",
                                       "/etc/nvidia",
                                       "/etc/alternatives",
                                       "/etc/localtime",
                                       "/run/nvidia-persistenced"};
    static const char *const about[] = {"/proc/bus",         "/proc/cpuinfo", "/proc/devices", "/proc/driver",
                                        "/proc/filesystems", "/proc/loadavg", "/proc/meminfo", "/proc/modules",
                                        "/proc/stat",        "/proc/sys",     "/proc/uptime",  "/proc/version"};
    static const char *const devices[] = {"/dev/nvidia*", "/dev/null", "/dev/zero", "/dev/*random"};
    char compiled[PATH_MAX];
    return take_each(root, read, sizeof read / sizeof *read, READ_ONLY | NO_DEVICES) &&
           take_each(root, about, sizeof about / sizeof *about, READ_ONLY | NO_DEVICES | NO_PROGRAMS) &&
           take_each(root, devices, sizeof devices / sizeof *devices, READ_ONLY) &&
           take_folder_of(root, &root->jail->driver) && take_folder_of(root, &root->jail->nvml) &&
           take(root, tpw_compiled(compiled), NO_DEVICES | NO_PROGRAMS) &&
           take(root, getenv("TF_IMAGE_CACHE_PATH"), READ_ONLY | NO_DEVICES | NO_PROGRAMS);
}

/* The folders above a place in the new root. */
static bool make_folders(char *path) {
    for (char *at = path + strlen(PLACE) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = 0;
        int failed = mkdir(path, 0755) && errno != EEXIST;
        *at = '/';
        if (failed) {
            return false;
        }
    }
    return true;
}

static bool put(const struct part *part) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, PLACE "%s", part->target) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return false;
    }
    if (!make_folders(path)) {
        return false;
    }
    if (part->folder ? mkdir(path, 0755) : mknod(path, S_IFREG | 0644, 0)) {
        if (errno != EEXIST) {
            return false;
        }
    }
    return syscall(SYS_move_mount, part->fd, "", AT_FDCWD, path, FROM_DESCRIPTOR) == 0;
}

/* Links at the top, and folders that are none: "/lib" leads to "usr/lib", or is a folder. */
static bool take_top(struct root *root, char links[3][PATH_MAX], const char *const names[3]) {
    for (int i = 0; i < 3; i++) {
        ssize_t size = readlink(names[i], links[i], PATH_MAX - 1);
        links[i][size > 0 ? size : 0] = 0;
        if (size < 0 && errno == EINVAL && !take(root, names[i], READ_ONLY | NO_DEVICES)) {
            return false;
        }
    }
    return true;
}

static bool fill(struct root *root, const char *own, char links[3][PATH_MAX], const char *const names[3]) {
    for (unsigned i = 0; i < root->count; i++) {
        if (!put(&root->parts[i])) {
            return tpw_jail_fails(root->jail, root->parts[i].target);
        }
    }
    char path[64];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, PLACE "%s", names[i]);
        if (links[i][0] && symlink(links[i], path)) {
            return tpw_jail_fails(root->jail, names[i]);
        }
    }
    /* Where the driver makes the page of an interprocess event, in a file of 80 KiB: without it there are no such events (205). */
    if ((mkdir(PLACE "/dev", 0755) && errno != EEXIST) || mkdir(PLACE "/dev/shm", 0700) ||
        mount("tensor-fusion", PLACE "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
              "size=1m,nr_inodes=16,mode=700")) {
        return tpw_jail_fails(root->jail, "/dev/shm");
    }
    return (symlink(own, PLACE "/proc/self") == 0 && symlink("self/mounts", PLACE "/proc/mounts") == 0) ||
           tpw_jail_fails(root->jail, "/proc/self");
}

bool tpw_root_enter(struct tpw_jail *jail) {
    static const char *const names[3] = {"/lib", "/lib64", "/lib32"};
    static const struct attributes closed = {.set = READ_ONLY | NO_SUID | NO_DEVICES | NO_PROGRAMS};
    static struct root root;
    static char links[3][PATH_MAX];
    char own[32], process[64];
    ssize_t size = readlink("/proc/self", own, sizeof own - 1);
    if (size <= 0) {
        return tpw_jail_fails(jail, "/proc/self");
    }
    own[size] = 0;
    snprintf(process, sizeof process, "/proc/%s", own);
    root.jail = jail;
    if (unshare(CLONE_NEWNS)) {
        return tpw_jail_fails(jail, "unshare");
    }
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
        return tpw_jail_fails(jail, "mounts cannot be made private");
    }
    if (!take_top(&root, links, names) || !take_all(&root) || !take(&root, process, NO_DEVICES | NO_PROGRAMS)) {
        return false;
    }
    if (mount("tensor-fusion", PLACE, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=1m,mode=755")) {
        return tpw_jail_fails(jail, "a file system in memory cannot be mounted");
    }
    if (!fill(&root, own, links, names)) {
        return false;
    }
    for (unsigned i = 0; i < root.count; i++) {
        close(root.parts[i].fd);
        free(root.parts[i].target);
    }
    /* Both roots lie on each other for a moment, and the old one is taken off: it needs no folder in the new one. */
    if (chdir(PLACE) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/")) {
        return tpw_jail_fails(jail, "the root cannot be changed");
    }
    if (syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, &closed, sizeof closed)) {
        return tpw_jail_fails(jail, "the root cannot be made read-only");
    }
    return true;
}
