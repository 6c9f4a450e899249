/*
 * The records: TF_TRACE_PATH, one JSON object a line for each call and each frame of a process, which `tensor-fusion trace`
 * joins into one file.
 *
 * Owns the file of this process. Any thread; a child of fork opens one of its own, told by the process id, so that nothing is
 * hooked into fork. Each line leaves in one write to a file that is appended to, so lines of threads do not mix and a process
 * that dies loses none. A line that the file does not take is left out; the reader counts what is damaged.
 */
#include "conn_internal.h"
#include "tp_write.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RECORD_MOST 4096u /* a call's text with every quote doubled, and the numbers */

static _Atomic int owner; /* process that the file is of; negative while it is being opened */
static _Atomic int file = -1;

bool tpc_records_wanted(void) {
    const char *path = getenv("TF_TRACE_PATH");
    return path && *path;
}

static int open_file(void) {
    char path[1024], program[16];
    if (!tpc_path_from("TF_TRACE_PATH", path, sizeof path)) {
        return -1;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0644);
    if (fd < 0) {
        tp_log(TP_ERROR, "TF_TRACE_PATH=%s cannot be written (%s); this process is not traced", path, strerror(errno));
        return -1;
    }
    tpc_program_name(program);
    int n = snprintf(path, sizeof path, "{\"pid\": %d, \"program\": \"%s\"}\n", (int)getpid(), program);
    ssize_t written = tp_write(fd, path, (size_t)n);
    (void)written;
    return fd;
}

/* The file of this process, opened by the first that asks; -1 for none. */
static int file_of_process(void) {
    int me = (int)getpid(), seen = atomic_load_explicit(&owner, memory_order_acquire);
    while (seen != me) {
        if (seen != -me && atomic_compare_exchange_strong(&owner, &seen, -me)) {
            int before = atomic_load(&file);
            if (before >= 0) {
                close(before); /* the parent's */
            }
            atomic_store(&file, open_file());
            atomic_store_explicit(&owner, me, memory_order_release);
            break;
        }
        sched_yield();
        seen = atomic_load_explicit(&owner, memory_order_acquire);
    }
    return atomic_load(&file);
}

void tpc_records_write(const char *format, ...) {
    char line[RECORD_MOST];
    int saved = errno, cancel = tpc_defer_cancel();
    int fd = file_of_process();
    if (fd >= 0) {
        va_list arguments;
        va_start(arguments, format);
        int n = vsnprintf(line, sizeof line, format, arguments);
        va_end(arguments);
        if (n > 0 && (size_t)n < sizeof line) {
            ssize_t written = tp_write(fd, line, (size_t)n);
            (void)written;
        }
    }
    tpc_allow_cancel(cancel);
    errno = saved;
}

/* `from` for a JSON string; the trace's texts hold plain characters only. */
const char *tpc_json_text(char *out, size_t size, const char *from) {
    size_t used = 0;
    for (; *from && used + 3 < size; from++) {
        if (*from == '"' || *from == '\\') {
            out[used++] = '\\';
        }
        out[used++] = *from;
    }
    out[used] = 0;
    return out;
}
