/*
 * Makes calls one by one and prints what each gave, so that two drivers' answers can be compared line by line.
 *
 * Usage: calls LIBCUDA KERNELS_PTX < CASES. A case is `STATE FUNCTION ARGUMENTS…`; its answer is the line, ` = `, the result,
 * and what became of the outputs. Cases run in a child; one that crashes or hangs is told as such, and the next begins in a new
 * child. So does the next after a case that left the child's context unusable or changed. The parent loads no driver.
 */
#include "calls.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_CASES = 200000, ANSWER = 160, CASE_SECONDS = 5, RESTART = 7 };

struct shared {
    int done; /* cases with an answer */
    char answers[MOST_CASES][ANSWER];
};

static char **cases;
static int case_count;
static struct shared *shared;
static void *library;
static char *ptx;

#define GET(name) ((__typeof__(name) *)find(#name))

void stop(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    _exit(2);
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
 * which is registered then; and, where the objects of all cases are gone, what was made since, which may lie where they did. */
static bool lasting(const char *line, const char *answer) {
    static const char *const names[] = {" cuFuncSet", " cuKernelSet", " cuParamSet", " cuCtxSet", " cuDevice"};
    if (strstr(line, "Unload ") || (state_of(line) == DESTROYED && answer[0] == '0' && strstr(answer, " set")))
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
    char copy[8192], *rest = NULL, *name, *word;
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
    CUresult result =
        function(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13], v[14], v[15]);
    tell(answer, "%d", (int)result);
    for (int i = 0; i < a.output_count; i++)
        tell_output(answer, &a.outputs[i]);
}

static void run_child(int first) {
    enum state state = state_of(cases[first]);
    library = dlopen(getenv("CALLS_LIBRARY"), RTLD_NOW);
    if (!library)
        stop("%s", dlerror());
    for (int i = first; i < case_count && state_of(cases[i]) == state; i++) {
        char *answer = shared->answers[i];
        alarm(60);
        enter(state, i == first, cases[i]);
        alarm(CASE_SECONDS);
        make_call(cases[i], answer);
        bool well = leave(state, answer);
        shared->done = i + 1;
        alarm(0);
        if (!well || lasting(cases[i], answer))
            _exit(RESTART);
        arguments_free();
    }
    _exit(0);
}

static void read_cases(void) {
    char line[8192];
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
    if (argc != 3)
        stop("usage: calls LIBCUDA KERNELS_PTX < CASES");
    setenv("CALLS_LIBRARY", argv[1], 1);
    ptx = read_file(argv[2]);
    read_cases();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        stop("no memory");
    while (shared->done < case_count) {
        int status, at = shared->done;
        pid_t child = fork();
        if (child < 0)
            stop("no process");
        if (child == 0)
            run_child(at);
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status)) {
            char *answer = shared->answers[shared->done++];
            bool hung = WTERMSIG(status) == SIGALRM;
            tell(answer, answer[0] ? (hung ? " then hangs" : " then crashes") : (hung ? "hangs" : "crashes"));
        } else if (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != RESTART) {
            stop("a child ended with %d at: %s", WEXITSTATUS(status), cases[shared->done]);
        }
    }
    for (int i = 0; i < case_count; i++)
        printf("%s = %s\n", cases[i], shared->answers[i]);
    return 0;
}
