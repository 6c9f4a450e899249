/*
 * Finds libteleport for a library of exports, at the first call of any of its functions.
 *
 * Owns `tpl_table`, which is set once, and `refused`, which is why it never will be. Any thread enters, several at once: what
 * they do is the same and ends the same. In order of trust:
 *
 *   1. The libteleport that this process has, by its SONAME: whoever brought it, there must be no second.
 *   2. The file beside our own, under the name with the version or without: a copied folder, or the spec's three files.
 *      First beside the name that we were loaded by, then beside the file which that name leads to.
 *   3. Whatever the dynamic loader finds by its search path.
 *
 * Copies of libcuda from two folders may get to 2 at one moment, each with its own neighbour. So after loading, 1 is asked
 * again: the loader answers with the one that it loaded first, and a libteleport is never unloaded.
 *
 * RTLD_LOCAL: nobody else's names are found in libteleport. A program that opens libcuda with RTLD_DEEPBIND changes nothing,
 * because nothing is found by name but the one entrance. Another namespace (dlmopen) has its own C library, threads and thread
 * memory, so it is a client of its own, as it is for NVIDIA's driver. A child of fork has the table of its parent.
 */
#include "tpl.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SONAME "libteleport.so.1"
#define FILE_NAME "libteleport.so"
#define HOW (RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)

const void *_Atomic tpl_table;

static _Atomic int refused; /* an error of the API; 0: not yet */

static const char *reason(void) {
    const char *text = dlerror();
    return text ? text : "for no reason given";
}

static void refuse(int error, const char *path, const char *why) {
    int none = 0;
    if (atomic_compare_exchange_strong(&refused, &none, error)) {
        tp_log_setup("client");
        tp_log(TP_ERROR,
               "%s (%s) works with the " FILE_NAME
               " of its own version beside it, and %s; copy the three files libcuda.so, "
               "libnvidia-ml.so and " FILE_NAME " into one folder, all from the same package",
               tpl_api.library, path, why);
    }
}

/* Whether the file is as long as its headers say. The dynamic loader does not ask: of an interrupted copy it maps pages that are
 * not there, and the program dies of the first touch. What is no library at all is left to the loader to name. */
static bool is_whole(const char *path) {
    Elf64_Ehdr head;
    Elf64_Phdr segment;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    bool whole = size < 0 || pread(fd, &head, sizeof head, 0) != sizeof head || memcmp(head.e_ident, ELFMAG, SELFMAG) ||
                 head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_phentsize != sizeof segment;
    if (!whole) {
        /* The section headers are the last thing in a file; a cut that leaves the segments whole is a cut all the same. */
        uint64_t end = head.e_shoff + (uint64_t)head.e_shnum * head.e_shentsize;
        whole = head.e_shoff <= (uint64_t)size && end <= (uint64_t)size;
        for (unsigned i = 0; whole && i < head.e_phnum; i++) {
            whole = pread(fd, &segment, sizeof segment, (off_t)(head.e_phoff + i * sizeof segment)) == sizeof segment &&
                    (segment.p_type != PT_LOAD ||
                     (segment.p_offset <= (uint64_t)size && segment.p_filesz <= (uint64_t)size - segment.p_offset));
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return whole;
}

/* Opens the file of one of our two names in the folder of `path`, if there is one. False: there is, and it cannot be loaded. */
static bool open_beside(const char *path, void **found, char *why, size_t why_size) {
    static const char *const names[] = {SONAME, FILE_NAME};
    char file[PATH_MAX];
    const char *end = strrchr(path, '/');
    for (size_t i = 0; end && !*found && i < sizeof names / sizeof *names; i++) {
        int size = snprintf(file, sizeof file, "%.*s%s", (int)(end + 1 - path), path, names[i]);
        if (size < 0 || (size_t)size >= sizeof file || access(file, F_OK) != 0) {
            continue; /* not there, or not to be reached: then the loader could not, either */
        }
        if (!is_whole(file)) {
            snprintf(why, why_size, "that cannot be loaded: %s is not whole", file);
            return false;
        }
        *found = dlopen(file, HOW);
        if (!*found) {
            snprintf(why, why_size, "that cannot be loaded: %s", reason());
            return false;
        }
    }
    return true;
}

/* A name like ./libcuda.so is relative to where the program was when it loaded us. The loader remembers, and expands. */
static void *open_at_origin(void) {
    void *found = dlopen("$ORIGIN/" SONAME, HOW);
    return found ? found : dlopen("$ORIGIN/" FILE_NAME, HOW);
}

static void *find(const char *path, char *why, size_t why_size) {
    char real[PATH_MAX];
    void *found = dlopen(SONAME, HOW | RTLD_NOLOAD);
    if (found) {
        return found;
    }
    if (path[0] != '/') {
        found = open_at_origin();
    } else if (!open_beside(path, &found, why, why_size)) {
        return NULL;
    }
    if (!found && realpath(path, real) && !open_beside(real, &found, why, why_size)) {
        return NULL;
    }
    if (!found && !(found = dlopen(SONAME, HOW))) {
        snprintf(why, why_size, "there is none: %s", reason());
        return NULL;
    }
    void *first = dlopen(SONAME, HOW | RTLD_NOLOAD);
    return first ? first : found; /* which is somebody else's, then: its SONAME is another */
}

const void *tpl_load(void) {
    char why[PATH_MAX + 256] = "there is a library under that name which is none of ours";
    Dl_info self, other;
    if (atomic_load(&refused)) {
        return NULL;
    }
    const char *path = dladdr(&tpl_table, &self) && self.dli_fname ? self.dli_fname : "";
    void *library = find(path, why, sizeof why);
    tpl_entrance *entrance = library ? (tpl_entrance *)dlsym(library, TPL_ENTRANCE) : NULL;
    if (!entrance) {
        refuse(library ? tpl_api.foreign : tpl_api.missing, path, why);
        dlerror(); /* what the program finds there shall be its own */
        return NULL;
    }
    const void *table = entrance(tpl_api.name, tpl_api.layout, tpl_api.addresses);
    if (!table) {
        const char *where = dladdr((void *)entrance, &other) && other.dli_fname ? other.dli_fname : FILE_NAME;
        snprintf(why, sizeof why, "%s is of another version", where);
        refuse(tpl_api.foreign, path, why);
        return NULL;
    }
    dlerror();
    atomic_store_explicit(&tpl_table, table, memory_order_release);
    return table;
}

int tpl_absent(void) { return atomic_load(&refused); }

const char *tpl_absent_text(void) { return "libteleport.so, which belongs to this library, cannot be loaded"; }
