// Interprocess events: cuIpcGetEventHandle and cuIpcOpenEventHandle.
//
// Such an event has a page that all processes with the event map: how many records were made, and up to which streams have
// come. A record has its number from the call on, as the driver has it, so a wait in any process is for the records made
// before it. Nobody tells of the end of a wait: the page is looked at. A process that died never comes to its records; they
// count as reached. The page is System V shared memory, which is found by its number: processes that may not look into each
// other, or into a file system, share it all the same. It ends with the last that has it. Any thread; pages are atomic.
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x74766570696d6973ull // "simipevt"
#define PAGE 4096u
#define FILE_SIZE (80u << 10)

struct sim_ipc_page {
    uint64_t magic;
    _Atomic uint64_t recorded, reached;
    _Atomic int recorder; // the process that made the last record
    int maker;
};

static struct sim_ipc_page *attach(int number) {
    void *page = shmat(number, NULL, 0);
    return page == (void *)-1 ? NULL : page;
}

// The driver has a page for all such events of a process, in a file of this folder (580.159.04, traced); where it can make none
// there are no such events.
static bool may_have_file(void) {
    char path[64];
    static _Atomic unsigned made;
    snprintf(path, sizeof path, "/dev/shm/cuda.shm.%x.%x.%x", getuid(), getpid(), atomic_fetch_add(&made, 1) + 1);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    void *mapped = ftruncate(fd, FILE_SIZE) ? MAP_FAILED : mmap(NULL, FILE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
    bool may = mapped != MAP_FAILED && munmap(mapped, FILE_SIZE) == 0;
    close(fd);
    unlink(path);
    return may;
}

CUresult sim_ipc_event_begin(sim_event_t *event) {
    if (!may_have_file())
        return CUDA_ERROR_MAP_FAILED;
    int number = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
    struct sim_ipc_page *page = number >= 0 ? attach(number) : NULL;
    if (number >= 0)
        shmctl(number, IPC_RMID, NULL); // from now on it ends by itself, and can be attached until then
    if (!page) {
        sim_complain("an interprocess event gets no shared memory: %s", strerror(errno));
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    page->magic = MAGIC;
    page->maker = getpid();
    event->page = page;
    event->shared = number;
    return CUDA_SUCCESS;
}

void sim_ipc_event_end(sim_event_t *event) {
    if (!event->page)
        return;
    shmdt(event->page);
    event->page = NULL;
}

uint64_t sim_ipc_event_record(sim_event_t *event) {
    if (!event->page)
        return 0;
    atomic_store(&event->page->recorder, getpid());
    return atomic_fetch_add(&event->page->recorded, 1) + 1;
}

void sim_ipc_event_reach(sim_event_t *event, uint64_t number) {
    uint64_t now = event->page ? atomic_load(&event->page->reached) : number;
    while (now < number && !atomic_compare_exchange_weak(&event->page->reached, &now, number)) {
    }
}

uint64_t sim_ipc_event_last(sim_event_t *event) { return atomic_load(&event->page->recorded); }

static bool reached(const sim_event_t *event, uint64_t number) {
    return atomic_load(&event->page->reached) >= number ||
           (kill(atomic_load(&event->page->recorder), 0) != 0 && errno == ESRCH);
}

bool sim_ipc_event_over(sim_event_t *event) { return reached(event, sim_ipc_event_last(event)); }

void sim_ipc_event_await(const sim_stream_t *stream, sim_event_t *event, uint64_t number) {
    sim_context_t *context = stream ? stream->context : event->context;
    long pause_ns = 1000;
    while (!reached(event, number) && !atomic_load(&context->killed) && !sim_context_error(context)) {
        nanosleep(&(struct timespec){0, pause_ns}, NULL);
        if (pause_ns < 200000)
            pause_ns += pause_ns / 2;
    }
}

struct handle {
    uint64_t magic;
    int32_t process, shared;
    uint64_t zero[6];
};
_Static_assert(sizeof(struct handle) == sizeof(CUipcEventHandle), "cuda.h");

// What another process has made cannot be passed on.
CUresult cuIpcGetEventHandle(CUipcEventHandle *pHandle, CUevent hEvent) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (!pHandle || !hEvent)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&sim.lock);
    const sim_event_t *event = sim_event_of(hEvent);
    if (event && event->page && event->shared >= 0) {
        const struct handle handle = {.magic = MAGIC, .process = getpid(), .shared = event->shared};
        memcpy(pHandle, &handle, sizeof handle);
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static struct sim_ipc_page *open_page(const struct handle *handle) {
    static const uint64_t zero[6];
    struct shmid_ds about;
    if (handle->magic != MAGIC || memcmp(handle->zero, zero, sizeof zero))
        return NULL;
    if (shmctl(handle->shared, IPC_STAT, &about) != 0 || about.shm_segsz != PAGE)
        return NULL;
    struct sim_ipc_page *page = attach(handle->shared);
    if (page && (page->magic != MAGIC || page->maker != handle->process)) {
        shmdt(page);
        page = NULL;
    }
    return page;
}

CUresult cuIpcOpenEventHandle(CUevent *phEvent, CUipcEventHandle handle) {
    SIM_ENTER_CONTEXT(context);
    struct handle named;
    memcpy(&named, &handle, sizeof named);
    if (!phEvent)
        return CUDA_ERROR_INVALID_VALUE;
    if (named.magic == MAGIC && named.process == getpid())
        return CUDA_ERROR_INVALID_CONTEXT;
    struct sim_ipc_page *page = open_page(&named);
    sim_event_t *event = page ? calloc(1, sizeof *event) : NULL;
    CUresult result = page ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_MAP_FAILED;
    if (event) {
        *event = (sim_event_t){.flags = CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING, .page = page, .shared = -1};
        pthread_mutex_lock(&sim.lock);
        result = sim_event_add(sim_home(context), event);
        pthread_mutex_unlock(&sim.lock);
    }
    if (result == CUDA_SUCCESS) {
        *phEvent = (CUevent)(void *)event;
        return CUDA_SUCCESS;
    }
    if (page)
        shmdt(page);
    free(event);
    return result;
}
