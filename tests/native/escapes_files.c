/* Attempts on files: those of the worker's user, of the machine, of other clients; and on what the session has open. */
#include "escapes.h"

#include <dirent.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#define PAGE 4096ul
#define CELLS (4096 + 32 * 1024) /* of the quota page: where they begin */

static int lists(const char *path) {
    DIR *list = path ? opendir(path) : NULL;
    return list ? closedir(list) : -1;
}

/* ---- of the user ---- */

static int read_secrets(void) { return opens("ESCAPES_SECRETS", O_RDONLY); }
static int write_secrets(void) { return opens("ESCAPES_SECRETS", O_WRONLY); }
static int move_secrets(void) {
    return rename(getenv("ESCAPES_SECRETS"), getenv("ESCAPES_NEW")) ||
           rename(getenv("ESCAPES_NEW"), getenv("ESCAPES_SECRETS"));
}
static int link_secrets(void) {
    return link(getenv("ESCAPES_SECRETS"), getenv("ESCAPES_NEW")) || unlink(getenv("ESCAPES_NEW"));
}
static int look_at_secrets(void) {
    struct stat about;
    return stat(getenv("ESCAPES_SECRETS"), &about);
}
static int show_secrets_to_all(void) { return chmod(getenv("ESCAPES_SECRETS"), 0600); }
static int map_secrets_through_a_link(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/link", getenv("TF_IMAGE_CACHE_PATH"));
    int result = symlink(getenv("ESCAPES_SECRETS"), path) || opens_path(path, O_RDONLY);
    int error = errno;
    unlink(path);
    errno = error;
    return result;
}
static int handle_of_secrets(void) {
    union {
        struct file_handle head;
        char space[sizeof(struct file_handle) + 128];
    } handle = {.head.handle_bytes = 128};
    int mount;
    if (name_to_handle_at(AT_FDCWD, getenv("ESCAPES_SECRETS"), &handle.head, &mount, 0)) {
        return -1;
    }
    return closed(open_by_handle_at(AT_FDCWD, &handle.head, O_RDONLY));
}
static int make_file(void) { return opens("ESCAPES_NEW", O_WRONLY | O_CREAT) || unlink(getenv("ESCAPES_NEW")); }
static int make_link(void) { return symlink("/", getenv("ESCAPES_NEW")) || unlink(getenv("ESCAPES_NEW")); }
static int make_folder(void) { return mkdir(getenv("ESCAPES_NEW"), 0700) || rmdir(getenv("ESCAPES_NEW")); }
static int read_home(void) { return opens("ESCAPES_HOME_FILE", O_RDONLY); }
static int list_home(void) { return lists(getenv("HOME")); }
static int list_temporary(void) { return lists("/tmp"); }
static int make_temporary(void) {
    char path[] = "/tmp/tf-escape-XXXXXX";
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd) || unlink(path);
}
static int watch_folder(void) {
    int fd = inotify_init1(IN_CLOEXEC);
    char folder[512];
    snprintf(folder, sizeof folder, "%s", getenv("ESCAPES_SECRETS"));
    *strrchr(folder, '/') = 0;
    return fd < 0 ? -1 : inotify_add_watch(fd, folder, IN_CREATE) < 0 ? -1 : 0;
}
static int read_log(void) { return opens("TF_LOG_PATH", O_RDONLY); }
static int write_log(void) { return opens("TF_LOG_PATH", O_WRONLY); }
static int cut_log(void) {
    struct stat about;
    return stat(getenv("TF_LOG_PATH"), &about) || truncate(getenv("TF_LOG_PATH"), about.st_size);
}

/* ---- of the machine ---- */

static int read_shadow(void) { return opens_path("/etc/shadow", O_RDONLY); }
static int read_passwd(void) { return opens_path("/etc/passwd", O_RDONLY); }
static int list_root(void) { return lists("/root"); }
static int list_services(void) { return lists("/run"); }
static int write_core_pattern(void) { return opens_path("/proc/sys/kernel/core_pattern", O_WRONLY); }
static int write_sysrq(void) { return opens_path("/proc/sysrq-trigger", O_WRONLY); }
static int write_sysfs(void) { return opens_path("/sys/devices/system/cpu/uevent", O_WRONLY); }
static int write_libraries(void) {
    return opens_path("/usr/lib/tf-escape", O_WRONLY | O_CREAT) || unlink("/usr/lib/tf-escape");
}
static int write_driver(void) { return opens("ESCAPES_DRIVER", O_WRONLY | O_APPEND); }
static int read_kernel_log(void) { return opens_path("/dev/kmsg", O_RDONLY); }
static int read_memory_of_machine(void) { return opens_path("/dev/mem", O_RDONLY); }
static int read_keys(void) { return opens_path("/proc/keys", O_RDONLY); }
static int make_disk(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/disk", getenv("TF_IMAGE_CACHE_PATH"));
    return mknod(path, S_IFBLK | 0600, makedev(7, 0)) || unlink(path);
}
/* A session may have a folder of its own there. */
static int list_shared_memory(void) {
    DIR *folder = opendir("/dev/shm");
    int others = 0;
    for (const struct dirent *entry; folder && (entry = readdir(folder)) != NULL;) {
        others += entry->d_name[0] != '.';
    }
    if (folder) {
        closedir(folder);
    }
    return others ? 0 : -1;
}

/* ---- programs ---- */

static int runs(const char *path) {
    pid_t child = fork();
    int status = 1;
    if (child == 0) {
        execl(path, path, (char *)NULL);
        _exit(errno);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0) {
        return -1;
    }
    errno = WEXITSTATUS(status);
    return status ? -1 : 0;
}
static int run_program(void) { return runs("/usr/bin/true"); }
static int run_own_program(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/program", getenv("TF_IMAGE_CACHE_PATH"));
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
    dprintf(fd, "#!/usr/bin/true\n");
    close(fd);
    int result = runs(path), error = errno;
    unlink(path);
    errno = error;
    return result;
}
static int make_setuid_program(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/setuid", getenv("TF_IMAGE_CACHE_PATH"));
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
    int result = fd < 0 ? -1 : fchmod(fd, 04755), error = errno;
    unlink(path);
    errno = error;
    return result;
}
static int open_setuid_program(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/setuid", getenv("TF_IMAGE_CACHE_PATH"));
    int result = closed(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 04700)), error = errno;
    unlink(path);
    errno = error;
    return result;
}

/* ---- of other clients ---- */

static int list_images(void) { return lists(getenv("TF_IMAGE_CACHE_PATH")); }
static int replace_image(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", getenv("TF_IMAGE_CACHE_PATH"), getenv("ESCAPES_IMAGE"));
    return opens_path(path, O_WRONLY);
}

/* ---- what is open, and mapped ---- */

/* Lines of others can be written over by whoever has the log open to write, at any place once it does not append; here the size stays. */
static int write_over_open_log(void) {
    struct stat about;
    return fstat(log_fd, &about) || fcntl(log_fd, F_SETFL, 0) || ftruncate(log_fd, about.st_size);
}
/* Writes what stands there, so nobody notices. */
static int write_limits(void) {
    if (mprotect((void *)(uintptr_t)limits, PAGE, PROT_READ | PROT_WRITE)) {
        return -1;
    }
    limits[1] = limits[1];
    return 0;
}
static int write_limits_as_memory(void) {
    int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    const unsigned long same = limits ? limits[1] : 0;
    return fd < 0 || pwrite(fd, &same, sizeof same, (off_t)(uintptr_t)(limits + 1)) != sizeof same ? -1 : 0;
}
/* The last row's cell, which nobody has here. */
static int clear_a_cell(void) { return madvise((char *)(uintptr_t)limits + CELLS + 1023 * PAGE, PAGE, MADV_REMOVE); }
static int map_limits_anew(void) {
    return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, limits_fd, 0) == MAP_FAILED ? -1 : 0;
}
/* What can be mapped to write is one page: these are ways from there to others of the same file. */
static int mapped(const void *at) { return at == MAP_FAILED ? -1 : 0; }
static int grow_cell(void) { return mapped(mremap(cell, PAGE, 2 * PAGE, MREMAP_MAYMOVE)); }
static int copy_cell(void) { return mapped(mremap(cell, 0, 2 * PAGE, MREMAP_MAYMOVE)); }
static int move_cell(void) {
    void *to = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mapped(mremap(cell, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to));
}
static int become_another_cell(void) { return remap_file_pages(cell, PAGE, 0, 0, 0); }
static int open_mapped_page(void) {
    char path[96];
    snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (unsigned long)(uintptr_t)cell,
             (unsigned long)(uintptr_t)cell + PAGE);
    return opens_path(path, O_RDWR);
}
/* The same ways from any other memory. */
static void *own_memory(void) { return mmap(NULL, 2 * PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); }
static int grow_memory(void) { return mapped(mremap(own_memory(), PAGE, 2 * PAGE, MREMAP_MAYMOVE)); }
static int exchange_pages(void) { return remap_file_pages(own_memory(), PAGE, 0, 1, 0); }
/* A folder that is open leads to all that is beside it. */
static int leave_through_open_folder(void) {
    for (int fd = 0; fd < 256; fd++) {
        struct stat about;
        if (fstat(fd, &about) == 0 && S_ISDIR(about.st_mode)) {
            return 0;
        }
    }
    errno = ENOENT;
    return -1;
}

const struct attempt on_files[] = {BY_USER(read_secrets),
                                   BY_USER(write_secrets),
                                   BY_USER(move_secrets),
                                   BY_USER(link_secrets),
                                   BY_USER(look_at_secrets),
                                   BY_USER(show_secrets_to_all),
                                   BY_USER(map_secrets_through_a_link),
                                   BY_RIGHT(handle_of_secrets),
                                   BY_USER(make_file),
                                   BY_USER(make_link),
                                   BY_USER(make_folder),
                                   BY_USER(read_home),
                                   BY_USER(list_home),
                                   BY_USER(list_temporary),
                                   BY_USER(make_temporary),
                                   BY_USER(watch_folder),
                                   BY_USER(read_log),
                                   BY_USER(write_log),
                                   BY_USER(cut_log),
                                   BY_ROOT(read_shadow),
                                   BY_USER(read_passwd),
                                   BY_ROOT(list_root),
                                   BY_USER(list_services),
                                   BY_ROOT(write_core_pattern),
                                   PERHAPS(write_sysrq),
                                   BY_ROOT(write_sysfs),
                                   BY_ROOT(write_libraries),
                                   BY_ROOT(write_driver),
                                   PERHAPS(read_kernel_log),
                                   PERHAPS(read_memory_of_machine),
                                   PERHAPS(read_keys),
                                   PERHAPS(make_disk),
                                   BY_USER(list_shared_memory),
                                   BY_USER(run_program),
                                   BY_USER(run_own_program),
                                   BY_USER(make_setuid_program),
                                   BY_USER(open_setuid_program),
                                   BY_USER(list_images),
                                   BY_USER(replace_image),
                                   BY_USER(write_over_open_log),
                                   PERHAPS(write_limits),
                                   PERHAPS(write_limits_as_memory),
                                   PERHAPS(clear_a_cell),
                                   PERHAPS(map_limits_anew),
                                   PERHAPS(grow_cell),
                                   PERHAPS(copy_cell),
                                   PERHAPS(move_cell),
                                   PERHAPS(become_another_cell),
                                   BY_RIGHT(open_mapped_page),
                                   BY_USER(grow_memory),
                                   BY_USER(exchange_pages),
                                   PERHAPS(leave_through_open_folder),
                                   {0}};
