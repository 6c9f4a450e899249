/*
 * Makes calls one by one and prints what each gave, so that two drivers' answers can be compared line by line.
 *
 * Usage: calls LIBCUDA KERNELS_PTX [SECONDS [recover]] < CASES. A case is `STATE FUNCTION ARGUMENTS…`; its answer is the line,
 * ` = `, the result, and what became of the outputs, written when it is known. Cases run in a child; one that crashes, or takes
 * more than SECONDS (5), is told as such, and the next begins in a new child. So does the next after a case that left the
 * child's context unusable or changed. A new child costs a context: with `recover`, one whose call crashed goes on while what
 * is done between cases works; what then crashes or hangs is asked again in a new child before it is believed. The parent loads
 * no driver.
 */
#include "calls.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    MOST_CASES = 200000,
    ANSWER = 240,
    LINE = 8192,
    ENTER_SECONDS = 60, /* twelve contexts at once take a driver seconds */
    STUCK_SECONDS = 10, /* behind the alarm: a process that lives on stands in the kernel */
    MOST_SORRY = 5,     /* cases in a row that cannot be made */
    RESTART = 7,
    SORRY = 8
};

/* What a child tells of the case that it is at. */
struct shared {
    int done;            /* cases with an answer */
    long began, allowed; /* seconds of the clock, and how many this part of the case may take; 0: any */
    bool entering;       /* its objects are being made */
    int shaken;          /* 1 + the case whose crash the child survived last, 0: none */
    char answer[ANSWER];
};

static char **cases;
static int case_count;
static struct shared *shared;
static void *library;
static char *ptx;
static int case_seconds = 5;
static bool recover, in_child;
static sigjmp_buf behind_call;
static volatile sig_atomic_t calling;
static pthread_t caller;

#define GET(name) ((__typeof__(name) *)find(#name))

void stop(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (in_child)
        vsnprintf(shared->answer, ANSWER, format, arguments);
    else
        vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (!in_child)
        fputc('\n', stderr);
    _exit(in_child ? SORRY : 2);
}

void *find_or_null(const char *name) { return dlsym(library, name); }

void *find(const char *name) {
    void *found = find_or_null(name);
    if (!found)
        stop("the driver does not export %s", name);
    return found;
}

static void tell(char *answer, const char *format, ...) {
    size_t used = strlen(answer);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(answer + used, ANSWER - used, format, arguments);
    va_end(arguments);
}

static void tell_output(char *answer, const struct output *output) {
    uint64_t number = 0;
    bool touched = false;
    for (size_t i = 0; i < output->size; i++)
        touched |= output->bytes[i] != 0xa5;
    if (!touched && output->what != 'q') {
        tell(answer, " -");
        return;
    }
    memcpy(&number, output->bytes, output->size < 8 ? output->size : 8);
    if (output->what == 'i' || output->what == 'q')
        tell(answer, " %lld", output->size == 4 ? (long long)(int)number : (long long)number);
    else if (output->what == 'p')
        tell(answer, number ? " set" : " null");
    else
        tell(answer, " written");
}

/* ---- states ---- */

enum state { BEFORE, NONE, CURRENT, DESTROYED, CAPTURE };
static const char *const state_names[] = {"before", "none", "current", "destroyed", "capture"};
static CUcontext base;

static enum state state_of(const char *line) {
    for (int i = 0; i <= CAPTURE; i++)
        if (!strncmp(line, state_names[i], strlen(state_names[i])) && line[strlen(state_names[i])] == ' ')
            return (enum state)i;
    stop("there is no such state: %s", line);
}

static void *destroy(void *context) {
    if (GET(cuCtxDestroy_v2)(context))
        stop("the context cannot be destroyed");
    return NULL;
}

static void enter(enum state state, bool first, const char *line) {
    pthread_t other;
    if (state == BEFORE) {
        if (first)
            objects_none();
        return;
    }
    if (first) {
        if (GET(cuInit)(0))
            stop("cuInit failed");
        if (state == DESTROYED ? GET(cuCtxCreate_v2)(&base, 0, 0) : GET(cuDevicePrimaryCtxRetain)(&base, 0))
            stop("there is no context");
    }
    if (state == DESTROYED && !first)
        return; /* its objects are all gone; every case finds the same ones */
    if (GET(cuCtxSetCurrent)(base))
        stop("the context cannot be made current");
    objects_make(ptx, state == DESTROYED ? "D:module" : line);
    if (state == NONE && GET(cuCtxSetCurrent)(NULL))
        stop("the context stays current");
    if (state == CAPTURE && GET(cuStreamBeginCapture_v2)(object_stream(), CU_STREAM_CAPTURE_MODE_GLOBAL))
        stop("the capture does not begin");
    if (state == DESTROYED && (pthread_create(&other, NULL, destroy, base) || pthread_join(other, NULL)))
        stop("no thread");
}

/* Back to what `enter` begins with. False: only a new process can. */
static bool leave(enum state state, char *answer) {
    CUcontext current = NULL;
    CUgraph graph = NULL;
    if (state == BEFORE)
        return GET(cuDeviceGetCount)(&(int){0}) == CUDA_ERROR_NOT_INITIALIZED;
    GET(cuCtxGetCurrent)(&current);
    bool same = current == (state == NONE ? NULL : base);
    if (!same)
        tell(answer, " (another context is current)");
    if (state == DESTROYED)
        return same;
    if (GET(cuCtxSetCurrent)(base))
        return false;
    if (state == CAPTURE) {
        CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
        CUresult asked = GET(cuStreamIsCapturing)(object_stream(), &status);
        if (asked || status != CU_STREAM_CAPTURE_STATUS_ACTIVE)
            tell(answer, " (capture %d, %d)", (int)asked, (int)status);
        CUresult ended = GET(cuStreamEndCapture)(object_stream(), &graph);
        if (!ended && graph)
            GET(cuGraphDestroy)(graph);
        else
            tell(answer, " (its end %d)", (int)ended);
    }
    CUresult later = GET(cuCtxSynchronize)();
    if (later)
        tell(answer, " (then %d)", (int)later);
    if (later || !same)
        return false;
    objects_end();
    return GET(cuCtxSynchronize)() == CUDA_SUCCESS;
}

/* ---- cases ---- */

/* A call that changes what outlives its case: the images, which stay, a context's or a device's settings, the program's memory,
 * which is registered then; and, where the objects of all cases are gone, what was made since, which may lie where they did,
 * and what was ended. */
static bool lasting(const char *line, const char *answer) {
    static const char *const names[] = {" cuFuncSet", " cuKernelSet", " cuParamSet", " cuCtxSet", " cuDevice"};
    bool made_or_ended = strstr(answer, " set") || strstr(line, "Destroy ");
    if (strstr(line, "Unload ") || (state_of(line) == DESTROYED && answer[0] == '0' && made_or_ended))
        return true;
    if (strstr(line, " cuMemHostRegister") && answer[0] == '0')
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strstr(line, names[i]) && (strstr(line, "Set") || strstr(line, "Primary")) && answer[0] == '0')
            return true;
    return false;
}

typedef CUresult any_function(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

static void make_call(const char *line, char *answer) {
    char copy[LINE], *rest = NULL, *name, *word;
    struct arguments a = {.count = 0};
    snprintf(copy, sizeof copy, "%s", line);
    strtok_r(copy, " ", &rest);
    name = strtok_r(NULL, " ", &rest);
    while ((word = strtok_r(NULL, " ", &rest)))
        a.value[a.count++] = argument_of(word, &a);
    /* All parameters of the driver API are whole numbers or pointers, which this machine passes alike; the function takes as
     * many as it has. */
    any_function *function = (any_function *)find_or_null(name);
    if (!function) {
        tell(answer, "missing");
        return;
    }
    const uint64_t *v = a.value;
    if (sigsetjmp(behind_call, 1)) {
        tell(answer, "crashes");
        return;
    }
    calling = 1;
    CUresult result =
        function(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13], v[14], v[15]);
    calling = 0;
    tell(answer, "%d", (int)result);
    for (int i = 0; i < a.output_count; i++)
        tell_output(answer, &a.outputs[i]);
}

static void on_crash(int signal_number) {
    if (calling && pthread_equal(pthread_self(), caller)) {
        calling = 0;
        siglongjmp(behind_call, 1);
    }
    signal(signal_number, SIG_DFL); /* comes again */
}

static void survive_crashes(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    const stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    const struct sigaction action = {.sa_handler = on_crash, .sa_flags = SA_ONSTACK | SA_NODEFER};
    caller = pthread_self();
    if (!stack.ss_sp || sigaltstack(&stack, NULL))
        stop("no stack for signals");
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
}

static long now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec;
}

/* What comes next may take so long. Also the parent looks: an alarm does not end who stands in the kernel. */
static void allow(int seconds) {
    shared->began = now();
    shared->allowed = seconds;
    alarm((unsigned)seconds);
}

/* In one piece, when it is known: whoever ends this program early has all answers but the one under way. */
static void put_answer(int at) {
    char line[LINE + ANSWER + 8];
    int size = snprintf(line, sizeof line, "%s = %s\n", cases[at], shared->answer), put = 0;
    while (put < size) {
        ssize_t some = write(STDOUT_FILENO, line + put, (size_t)(size - put));
        if (some < 0 && errno != EINTR)
            stop("the answers cannot be written");
        put += some > 0 ? (int)some : 0;
    }
    shared->answer[0] = 0;
    shared->done = at + 1;
}

static void run_child(int first) {
    enum state state = state_of(cases[first]);
    in_child = true;
    shared->shaken = 0;
    library = dlopen(getenv("CALLS_LIBRARY"), RTLD_NOW);
    if (!library)
        stop("%s", dlerror());
    if (recover)
        survive_crashes();
    for (int i = first; i < case_count && state_of(cases[i]) == state; i++) {
        char *answer = shared->answer;
        shared->entering = true;
        allow(ENTER_SECONDS);
        enter(state, i == first, cases[i]);
        shared->entering = false;
        allow(case_seconds);
        make_call(cases[i], answer);
        if (!strcmp(answer, "crashes"))
            shared->shaken = i + 1;
        bool well = leave(state, answer);
        allow(0);
        bool last = !well || lasting(cases[i], answer);
        put_answer(i);
        if (last)
            _exit(RESTART);
        arguments_free();
    }
    _exit(0);
}

/* ---- the parent ---- */

/* The child's end, or 0 if it has none: then it is left where it stands. */
static pid_t end_of(pid_t child, int *status) {
    const struct timespec nap = {.tv_nsec = 2000000};
    pid_t ended;
    bool killed = false;
    while (!(ended = waitpid(child, status, WNOHANG))) {
        long late = shared->allowed ? now() - shared->began - shared->allowed : 0;
        if (late > STUCK_SECONDS)
            return 0;
        if (late > 2 && !killed) {
            killed = true;
            kill(child, SIGKILL);
        }
        nanosleep(&nap, NULL);
    }
    return ended;
}

static void tell_end(pid_t ended, int status, int *sorry) {
    int at = shared->done;
    char *answer = shared->answer;
    bool hung = !ended || (WIFSIGNALED(status) && (WTERMSIG(status) == SIGALRM || WTERMSIG(status) == SIGKILL));
    char why[ANSWER];
    if (ended && WIFEXITED(status) && WEXITSTATUS(status) != SORRY)
        stop("a child ended with %d at: %s", WEXITSTATUS(status), cases[at]);
    if (shared->shaken && shared->shaken != at + 1) { /* not believed: it may come of the crash before */
        answer[0] = 0;
        return;
    }
    if (ended && WIFEXITED(status)) {
        snprintf(why, sizeof why, "%.200s", answer);
        snprintf(answer, ANSWER, "not reached: %.200s", why);
        ++*sorry;
    } else if (shared->entering) {
        snprintf(answer, ANSWER, "not reached: making the objects %s", hung ? "hangs" : "crashes");
        ++*sorry;
    } else {
        tell(answer, answer[0] ? (hung ? " then hangs" : " then crashes") : (hung ? "hangs" : "crashes"));
        *sorry = 0;
    }
    if (hung)
        fprintf(stderr, "hangs: %s\n", cases[at]);
    put_answer(at);
    if (*sorry == MOST_SORRY)
        stop("%d cases in a row cannot be made, the last: %s", MOST_SORRY, cases[at]);
}

static void read_cases(void) {
    char line[LINE];
    cases = calloc(MOST_CASES, sizeof *cases);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (case_count == MOST_CASES)
            stop("more than %d cases", MOST_CASES);
        if (line[0])
            cases[case_count++] = strdup(line);
    }
}

static char *read_file(const char *path) {
    enum { LIMIT = 1 << 16 };
    char *text = calloc(1, LIMIT);
    FILE *file = fopen(path, "rb");
    if (!file || !fread(text, 1, LIMIT - 1, file))
        stop("%s cannot be read", path);
    fclose(file);
    return text;
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 5)
        stop("usage: calls LIBCUDA KERNELS_PTX [SECONDS [recover]] < CASES");
    setenv("CALLS_LIBRARY", argv[1], 1);
    ptx = read_file(argv[2]);
    case_seconds = argc > 3 ? atoi(argv[3]) : case_seconds;
    recover = argc > 4 && !strcmp(argv[4], "recover");
    if (case_seconds < 1)
        stop("a case needs a second");
    read_cases();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        stop("no memory");
    for (int sorry = 0; shared->done < case_count;) {
        int status = 0, before = shared->done;
        allow(0);
        pid_t child = fork();
        if (child < 0)
            stop("no process");
        if (child == 0)
            run_child(before);
        pid_t ended = end_of(child, &status);
        if (shared->done > before)
            sorry = 0;
        if (!ended || WIFSIGNALED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != RESTART))
            tell_end(ended, status, &sorry);
    }
    return 0;
}
