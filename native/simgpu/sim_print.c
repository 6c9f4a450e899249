// What simulated kernels print: kept until a call of the program that waits or launches, or its end, then written to standard output. The text
// of an assertion goes to standard error at once, with what was printed before (580.159.04, measured). A buffer as large as a
// GPU's by default; what comes when it is full is lost.
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define ROOM (1u << 20)

static atomic_bool any;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char *text;
    size_t size;
} kept[2];

static void show_at_exit(void) { (void)atexit(sim_print_show); }

void sim_print(bool error, const char *format, ...) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    va_list arguments;
    pthread_once(&once, show_at_exit);
    pthread_mutex_lock(&lock);
    if (!kept[error].text)
        kept[error].text = malloc(ROOM);
    if (kept[error].text) {
        va_start(arguments, format);
        int length = vsnprintf(kept[error].text + kept[error].size, ROOM - kept[error].size, format, arguments);
        va_end(arguments);
        if (length > 0 && (size_t)length < ROOM - kept[error].size)
            kept[error].size += (size_t)length;
        atomic_store(&any, true);
    }
    pthread_mutex_unlock(&lock);
    if (error)
        sim_print_show();
}

void sim_print_show(void) {
    if (!atomic_load(&any) || !atomic_exchange(&any, false))
        return;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 2; i++) {
        if (kept[i].size)
            fwrite(kept[i].text, 1, kept[i].size, i ? stderr : stdout);
        kept[i].size = 0;
    }
    fflush(stdout);
    pthread_mutex_unlock(&lock);
}
