/* Asks the driver API about 500 small questions and prints the answers as text; run natively and remotely, the two
 * texts must be equal but for the lines that driver_api.expect names.
 *
 * This file owns the reporting and starts every section in a process of its own, because sticky errors, resets and
 * crashes must not colour the next answer; a section that hangs is ended by its alarm. One thread, except where a
 * section says otherwise. Usage: driver_api [SECTION]
 */
#include "driver_api.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SECTION_SECONDS = 45 };

sigjmp_buf ask_jump;
const char *ask_label = "(none)";
static const char *section_name = "(none)";
static volatile sig_atomic_t crashed_with;
volatile int ask_guarded;

static const struct {
    const char *name;
    void (*body)(void);
} sections[] = {
    {"before_init", section_before_init},
    {"names", section_names},
    {"device", section_device},
    {"context", section_context},
    {"primary", section_primary},
    {"stream", section_stream},
    {"event", section_event},
    {"memory", section_memory},
    {"copy", section_copy},
    {"pointer", section_pointer},
    {"pool", section_pool},
    {"vmm", section_vmm},
    {"module", section_module},
    {"library", section_library},
    {"launch", section_launch},
    {"occupancy", section_occupancy},
    {"host_function", section_host_function},
    {"stream_memory", section_stream_memory},
    {"threads", section_threads},
    {"illegal_address", section_illegal_address},
    {"fork", section_fork},
    {"nulls", section_nulls},
};
enum { SECTIONS = sizeof sections / sizeof sections[0] };

static void on_crash(int number) {
    crashed_with = number;
    if (ask_guarded)
        siglongjmp(ask_jump, 1);
    /* Not safe in general, but the process is lost anyway and the answer is wanted. */
    ask_crashed();
    fflush(stdout);
    _exit(5);
}

CUresult ask_result(CUresult result) {
    printf("%s/%s = %d\n", section_name, ask_label, result);
    return result;
}

void ask_crashed(void) { printf("%s/%s = signal %d\n", section_name, ask_label, (int)crashed_with); }

void say_value(const char *label, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("%s/%s: value = %s\n", section_name, label, text);
}

CUcontext start_context(void) {
    CUdevice device;
    CUcontext context;
    cu_must(cu.cuInit(0), "cuInit");
    cu_must(cu.cuDeviceGet(&device, 0), "cuDeviceGet");
    cu_must(cu.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    cu_must(cu.cuCtxSetCurrent(context), "cuCtxSetCurrent");
    return context;
}

CUmodule load_kernels(void) {
    CUmodule module;
    char *text = cu_kernels_ptx();
    cu_must(cu.cuModuleLoadData(&module, text), "cuModuleLoadData of the test kernels");
    free(text);
    return module;
}

CUfunction kernel(CUmodule module, const char *name) {
    CUfunction function;
    cu_must(cu.cuModuleGetFunction(&function, module, name), name);
    return function;
}

static int run_section(size_t index) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_crash;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    section_name = sections[index].name;
    alarm(SECTION_SECONDS);
    cu_load();
    sections[index].body();
    return 0;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2) {
        for (size_t i = 0; i < SECTIONS; i++)
            if (strcmp(argv[1], sections[i].name) == 0)
                return run_section(i);
        fprintf(stderr, "there is no section %s\n", argv[1]);
        return 2;
    }
    for (size_t i = 0; i < SECTIONS; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child < 0) {
            perror("fork");
            return 1;
        }
        if (child == 0) {
            execl("/proc/self/exe", argv[0], sections[i].name, (char *)NULL);
            _exit(127);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status))
            printf("%s/(end) = signal %d\n", sections[i].name, WTERMSIG(status));
        else
            printf("%s/(end) = exit %d\n", sections[i].name, WEXITSTATUS(status));
    }
    /* Which library answered: the runner refuses a remote run that used the machine's own driver. */
    char libraries[8192];
    cu_load();
    cu_mapped_libraries(libraries, sizeof libraries);
    printf("{\"digest\": \"\", \"metrics\": {}, \"libraries\": %s}\n", libraries);
    return 0;
}
