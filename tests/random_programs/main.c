/*
 * Runs programs of driver calls from standard input, one after the other, until one goes wrong.
 *
 * Usage: random_programs LIBCUDA KERNELS_FOLDER SECONDS. SECONDS is what one program may take before it counts as hung.
 * The last line of its output is `ran N programs, M operations`, or before it stands the program that failed, its line and
 * what was wrong, and the exit status is 1. Status 2: the command or a program makes no sense.
 */
#include "program.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

static struct program program;
static unsigned seconds;

void stop(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    fflush(NULL);
    _exit(2);
}

void fail(const struct operation *operation, const char *format, ...) {
    static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
    va_list arguments;
    pthread_mutex_lock(&once); /* and never unlocked: the first failure is the one to tell */
    printf("FAIL program %s: ", program.name);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\nAT ");
    if (operation)
        program_print(stdout, operation);
    else
        printf("no line of the program");
    printf("\n");
    fflush(NULL);
    _exit(1);
}

/* Not safe in a signal handler in general, but the process is lost and the places are wanted; the second alarm ends it. */
static void on_alarm(int number) {
    sigset_t again;
    sigemptyset(&again);
    sigaddset(&again, number);
    signal(number, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &again, NULL);
    alarm(2);
    printf("FAIL program %s: it hangs\n", program.name);
    interpreter_tell_places();
    fflush(stdout);
    interpreter_tell_streams();
    fflush(stdout);
    _exit(1);
}

int main(int argc, char **argv) {
    unsigned long programs = 0, operations = 0;
    if (argc != 4 || (seconds = (unsigned)atoi(argv[3])) == 0)
        stop("usage: random_programs LIBCUDA KERNELS_FOLDER SECONDS < PROGRAMS");
    signal(SIGALRM, on_alarm);
    alarm(seconds + 30); /* a start may wait for the worker */
    interpreter_start(argv[1], argv[2]);
    while (program_read(stdin, &program)) {
        oracle_run(&program);
        alarm(seconds);
        interpreter_run(&program);
        programs++;
        operations += (unsigned long)program.count;
    }
    printf("ran %lu programs, %lu operations\n", programs, operations);
    return 0;
}
