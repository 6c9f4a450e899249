// Entering the simulator: the one state structure, the gate of every exported function, and the table of live handles.
//
// Every exported cu* function passes sim_enter first: it refuses calls in a forked child and before cuInit, applies
// the fault script, and looks up the calling thread's context and its device's sticky error. Handles are addresses of our
// objects; a handle that a caller passes is hostile, so it is looked up here before it is dereferenced. The table is
// guarded by sim.lock.
#include "sim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

sim_state_t sim = {.lock = PTHREAD_MUTEX_INITIALIZER,
                   .map_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP,
                   .next_context_id = 1,
                   .next_stream_id = 1,
                   .next_buffer_id = 1};

static atomic_bool forked;
static _Thread_local bool in_callback;

typedef struct {
    void *object;
    sim_kind_t kind;
} handle_t;

static handle_t *handles; // open addressing, a power of two in size; object NULL = free, kind 0 = removed
static size_t handles_size, handles_used;
static bool dead_handles_end; // the process; set before there is a second thread

static size_t handle_place(const void *object) {
    uint64_t key = (uint64_t)(uintptr_t)object >> 4;
    return (size_t)((key * 0x9E3779B97F4A7C15ull) >> 20) & (handles_size - 1);
}

static bool handles_rehash(void) {
    size_t live = 0;
    for (size_t i = 0; i < handles_size; i++)
        live += handles[i].object && handles[i].kind;
    size_t new_size = 64;
    while (new_size < live * 4)
        new_size *= 2;
    handle_t *old = handles, *fresh = calloc(new_size, sizeof *fresh);
    if (!fresh)
        return false;
    size_t old_size = handles_size;
    handles = fresh;
    handles_size = new_size;
    handles_used = live;
    for (size_t i = 0; i < old_size; i++) {
        if (!old[i].object || !old[i].kind)
            continue;
        size_t place = handle_place(old[i].object);
        while (handles[place].object)
            place = (place + 1) & (handles_size - 1);
        handles[place] = old[i];
    }
    free(old);
    return true;
}

bool sim_handle_add(void *object, sim_kind_t kind) {
    if ((handles_used + 1) * 2 > handles_size && !handles_rehash())
        return false;
    size_t place = handle_place(object);
    while (handles[place].object && handles[place].object != object)
        place = (place + 1) & (handles_size - 1);
    if (!handles[place].object)
        handles_used++;
    handles[place] = (handle_t){object, kind};
    return true;
}

static handle_t *handle_find(const void *object) {
    if (!object || !handles_size)
        return NULL;
    for (size_t place = handle_place(object); handles[place].object; place = (place + 1) & (handles_size - 1))
        if (handles[place].object == object)
            return &handles[place];
    return NULL;
}

void sim_handle_remove(void *object) {
    handle_t *found = handle_find(object);
    if (found)
        found->kind = 0;
}

bool sim_handle_known(const void *object, sim_kind_t kind) {
    handle_t *found = handle_find(object);
    return found && found->kind == kind;
}

bool sim_handle_is(const void *object, sim_kind_t kind) {
    handle_t *found = handle_find(object);
    if (dead_handles_end && object && !(found && found->kind)) {
        sim_complain("the handle %p names nothing, or something that has ended: the real driver would follow it",
                     object);
        abort();
    }
    return found && found->kind == kind;
}

bool sim_is(const void *object, sim_kind_t kind) {
    if (kind == SIM_STREAM && (object == CU_STREAM_LEGACY || object == CU_STREAM_PER_THREAD))
        return true;
    pthread_mutex_lock(&sim.lock);
    bool known = sim_handle_is(object, kind);
    pthread_mutex_unlock(&sim.lock);
    return known;
}

bool sim_strict(void) { return dead_handles_end; }

void sim_dangles(bool dangles, const char *what) {
    if (dead_handles_end && dangles) {
        sim_complain("%s: the real driver would follow a pointer to what has ended", what);
        abort();
    }
}

bool sim_grow(void *array, size_t *capacity, size_t needed, size_t element) {
    if (needed <= *capacity)
        return true;
    size_t wanted = *capacity ? *capacity : 16;
    while (wanted < needed)
        wanted *= 2;
    void *old;
    memcpy(&old, array, sizeof old);
    void *fresh = realloc(old, wanted * element);
    if (!fresh)
        return false;
    memcpy(array, &fresh, sizeof fresh);
    *capacity = wanted;
    return true;
}

void sim_complain(const char *format, ...) {
    char line[512];
    int used = snprintf(line, sizeof line, "simulated GPU: ");
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
    va_end(arguments);
    if (more < 0)
        return;
    size_t length = strlen(line);
    line[length] = '\n';
    // One write, so that lines of several processes on one stderr do not mix. Nothing can be done about a failure.
    ssize_t written = write(STDERR_FILENO, line, length + 1);
    (void)written;
}

void sim_refuses(const char *name, atomic_bool *said) {
    if (!atomic_exchange(said, true))
        sim_complain("%s is not simulated: refused", name);
}

uint64_t sim_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void sim_in_callback(bool inside) { in_callback = inside; }

static void after_fork_in_child(void) { atomic_store(&forked, true); }

bool sim_forked(void) { return atomic_load(&forked); }

// The driver names threads of its own so, and does not start where it may not (580.159.04, under Landlock).
static bool may_name_threads(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", (int)gettid());
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd >= 0)
        close(fd);
    return fd >= 0 || errno != EACCES;
}

static uint64_t environment_number(const char *name, uint64_t fallback, uint64_t highest) {
    const char *text = getenv(name);
    if (!text || !*text)
        return fallback;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || *text < '0' || *text > '9' || value < 1 || value > highest) {
        sim_complain("%s=%s is not a number from 1 to %llu; %llu is used", name, text, (unsigned long long)highest,
                     (unsigned long long)fallback);
        return fallback;
    }
    return value;
}

static int board_named(const char *entry, size_t size) {
    char text[16] = "", *end;
    if (size == 0 || size >= sizeof text || *entry < '0' || *entry > '9')
        return -1;
    memcpy(text, entry, size);
    long board = strtol(text, &end, 10);
    return *end || board >= sim.nboards ? -1 : (int)board;
}

// CUDA's devices come first in the array, in the order of the list, which ends at the first entry that names none; one that is
// named twice empties it. The others are NVML's alone. Entries are numbers here, not UUIDs.
static void choose_boards(const char *visible) {
    bool shown[SIM_MAX_DEVICES] = {0};
    while (visible && *visible) {
        size_t size = strcspn(visible, ",");
        int board = board_named(visible, size);
        if (board >= 0 && shown[board]) {
            memset(shown, 0, sizeof shown);
            sim.ndevices = 0;
            break;
        }
        if (board < 0)
            break;
        shown[board] = true;
        sim.devices[sim.ndevices++].board = board;
        visible += size + (visible[size] == ',');
    }
    for (int board = 0, place = sim.ndevices; board < sim.nboards; board++)
        if (!shown[board])
            sim.devices[place++].board = board;
    if (!visible)
        sim.ndevices = sim.nboards;
}

void *sim_exported(const char *name) {
    // By a handle of this very library, whose symbols need not be in the global scope. It is never closed, and nothing
    // may unload the library: its threads and thread-exit functions would lose their code.
    static void *_Atomic self;
    void *library = atomic_load(&self);
    if (!library) {
        Dl_info info;
        if (!dladdr((void *)(uintptr_t)&cuInit, &info))
            return NULL;
        library = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
        if (!library)
            return NULL;
        atomic_store(&self, library);
    }
    return strncmp(name, "cu", 2) ? NULL : dlsym(library, name);
}

CUresult sim_setup(void) {
    static bool ready;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&sim.lock);
    if (ready)
        goto out;
    pthread_atfork(NULL, NULL, after_fork_in_child);
    if (!sim_exported("cuInit")) {
        sim_complain("the library cannot find its own file's handle: %s", dlerror());
        result = CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
        goto out;
    }
    if (!may_name_threads()) {
        result = CUDA_ERROR_OPERATING_SYSTEM;
        goto out;
    }
    sim.nboards = (int)environment_number("TF_SIM_DEVICES", 1, SIM_MAX_DEVICES);
    choose_boards(getenv("CUDA_VISIBLE_DEVICES"));
    const char *peers = getenv("TF_SIM_PEERS");
    sim.no_peers = peers && !strcmp(peers, "none");
    sim.nvlinks = (unsigned)environment_number("TF_SIM_NVLINKS", 0, 18);
    sim.queues = environment_number("TF_SIM_QUEUES", 0, SIM_MAX_QUEUES);
    uint64_t total = environment_number("TF_SIM_MEMORY_MB", SIM_H200_MEMORY >> 20, 1u << 20) << 20;
    if (total == SIM_H200_MEMORY >> 20 << 20)
        total = SIM_H200_MEMORY; // not a whole number of MiB
    for (int i = 0; i < sim.nboards && result == CUDA_SUCCESS; i++) {
        sim_device_t *device = &sim.devices[i];
        snprintf(device->pci, sizeof device->pci, "0000:%02X:00.0", sim_pci_bus(i));
        // Recognisable, and different for each device: ASCII "SIMGPU", the model, and the ordinal in the last byte. No byte is 0,
        // as in most real ones: CuPy ends the bytes there.
        static const unsigned char base[] = "SIMGPUNV\xb2"
                                            "00----";
        memcpy(device->uuid.bytes, base, 15);
        device->uuid.bytes[15] = (char)(device->board + 1);
        device->total = total;
        device->backing_fd = -1;
        device->primary.device = i;
        device->primary.primary = true;
        device->primary.next = sim.contexts;
        sim.contexts = &device->primary;
        if (!sim_handle_add(&device->primary, SIM_CONTEXT))
            result = CUDA_ERROR_OUT_OF_MEMORY;
        if (result == CUDA_SUCCESS)
            result = sim_pool_setup(i);
    }
    const char *dead = getenv("TF_SIM_DEAD_HANDLES");
    dead_handles_end = dead && !strcmp(dead, "abort");
    ready = result == CUDA_SUCCESS;
    if (!ready)
        sim.contexts = NULL;

out:
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult sim_enter(sim_site_t *site, sim_needs_t needs, sim_context_t **context) {
    if (SIM_EXPECT_FALSE(sim_faults_present())) {
        bool sticky = false;
        CUresult fault = sim_faults_check(site, &sticky);
        if (fault != CUDA_SUCCESS) {
            sim_context_t *current = sim_current();
            if (sticky && current)
                sim_context_fail(current, fault);
            return fault;
        }
    }
    if (needs ==
        SIM_NEEDS_NOTHING) // what tells of the library alone does so in a forked child, too (580.159.04, measured)
        return CUDA_SUCCESS;
    if (SIM_EXPECT_FALSE(atomic_load_explicit(&forked, memory_order_relaxed)))
        return CUDA_ERROR_NOT_INITIALIZED;
    if (SIM_EXPECT_FALSE(!atomic_load_explicit(&sim.initialised, memory_order_acquire)))
        return CUDA_ERROR_NOT_INITIALIZED;
    if (SIM_EXPECT_FALSE(in_callback))
        return CUDA_ERROR_NOT_PERMITTED;
    if (needs == SIM_NEEDS_INIT)
        return CUDA_SUCCESS;
    sim_context_t *current = sim_current();
    if (SIM_EXPECT_FALSE(!current)) {
        *context = NULL;
        return needs == SIM_NEEDS_CONTEXT ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
    }
    if (SIM_EXPECT_FALSE(!current->active)) {
        *context = NULL;
        return needs == SIM_TAKES_ANY ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    CUresult error = sim_context_error(current);
    if (SIM_EXPECT_FALSE(error != CUDA_SUCCESS))
        return error;
    *context = current;
    return CUDA_SUCCESS;
}
