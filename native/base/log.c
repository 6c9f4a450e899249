/*
 * The log: TF_ENABLE_LOG, TF_LOG_LEVEL, TF_LOG_PATH.
 *
 * Owns the log's file descriptor and threshold. Any thread enters, also in a child after fork: there is no lock, a line is
 * put together on the caller's stack and leaves in one write(), and the date is computed here because libc's gmtime takes a
 * lock that another thread may have held during fork. Nothing here reads memory that the peer can write.
 * An unwritable path is reported once on stderr, and the program goes on. A file that was moved away is not written on.
 * A line is one line, but on a terminal, where it is broken between words.
 */
#include <tp_base.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <time.h>
#include <tp_system.h>
#include <tp_write.h>
#include <unistd.h>

#define LINE_MAX_BYTES 2048
#define NARROWEST 40 /* columns; in fewer a terminal may break the words as it likes */
#define INDENT 2
#define ECHO 2 /* columns: a line that Ctrl-C causes stands behind ^C */
#define FOLDS_MAX_BYTES (2 * LINE_MAX_BYTES / NARROWEST * INDENT)

_Atomic int tp_log_threshold = TP_ERROR;

static _Atomic int log_fd = -1; /* -1: stderr only */
static _Atomic int error_fd = STDERR_FILENO;
static const char *_Atomic log_who = "tensor-fusion";
static _Atomic uint32_t lines_a_second; /* 0: any number */
static _Atomic int64_t last_second;
static _Atomic uint32_t lines;          /* wanted in that second */
static _Atomic bool silent, level_said; /* TF_ENABLE_LOG is set, and says no; a wrong TF_LOG_LEVEL was named */
static char log_path[1024];             /* log_fd's, or the one that cannot be written; written by tp_log_setup only */
static _Atomic int64_t looked;          /* the second in which somebody looked whether that path is still this file's */
static const char *const level_names[] = {"TRACE", "DEBUG", "INFO", "WARN", "ERROR"};

bool tp_switch(const char *name) {
    static const char *const words[] = {"", "0", "false", "no", "off", "1", "true", "yes", "on"};
    const char *value = getenv(name);
    for (size_t i = 0; value && i < sizeof words / sizeof *words; i++) {
        if (strcasecmp(value, words[i]) == 0) {
            return i > 4;
        }
    }
    if (value) {
        tp_log_write(TP_ERROR, "%s=%s is neither 1 nor 0; 0 is used", name, value);
    }
    return false;
}

void tp_log_stderr(int fd) { atomic_store_explicit(&error_fd, fd, memory_order_relaxed); }

void tp_log_setup(const char *who) {
    static const char *const names[] = {"trace", "debug", "info", "warn", "error"};
    atomic_store_explicit(&log_who, who, memory_order_relaxed);
    const char *enabled = getenv("TF_ENABLE_LOG");
    bool on = tp_switch("TF_ENABLE_LOG");
    atomic_store_explicit(&silent, enabled && *enabled && !on, memory_order_relaxed);
    if (!on) {
        atomic_store_explicit(&tp_log_threshold, TP_ERROR, memory_order_relaxed);
        return;
    }
    int level = TP_INFO;
    const char *wanted = getenv("TF_LOG_LEVEL");
    if (wanted && *wanted) {
        level = -1;
        for (int i = 0; i < 5; i++) {
            if (strcasecmp(wanted, names[i]) == 0) {
                level = i;
            }
        }
    }
    atomic_store_explicit(&tp_log_threshold, level < 0 ? TP_INFO : level, memory_order_relaxed);

    const char *path = getenv("TF_LOG_PATH");
    if (path && *path && strlen(path) < sizeof log_path && strcmp(path, log_path) != 0) {
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0644);
        memcpy(log_path, path, strlen(path) + 1);
        if (fd < 0) {
            tp_log_write(TP_ERROR, "TF_LOG_PATH=%s cannot be written (%s); the log goes to stderr", path,
                         strerror(errno));
        } else {
            /* A descriptor of an earlier path stays open: another thread may be writing to it. */
            atomic_store_explicit(&log_fd, fd, memory_order_release);
        }
    }
    if (level < 0 && !atomic_exchange(&level_said, true)) {
        tp_log_write(TP_ERROR, "TF_LOG_LEVEL=%s is not one of trace, debug, info, warn, error; info is used", wanted);
    }
}

/* Days since 1970-01-01 to a civil date (Gregorian calendar; eras of 400 years = 146,097 days). */
static void civil_date(int64_t days, int *year, int *month, int *day) {
    days += 719468;
    int64_t era = days / 146097;
    int64_t of_era = days - era * 146097;
    int64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t shifted = (5 * of_year + 2) / 153;
    *day = (int)(of_year - (153 * shifted + 2) / 5 + 1);
    *month = (int)(shifted < 10 ? shifted + 3 : shifted - 9);
    *year = (int)(year_of_era + era * 400 + (*month <= 2));
}

void tp_log_bound(uint32_t most) {
    bool everything = atomic_load_explicit(&tp_log_threshold, memory_order_relaxed) < TP_INFO;
    atomic_store_explicit(&lines_a_second, everything ? 0 : most, memory_order_relaxed);
}

/* Whether one more line may leave in this second, and how many of the last one with lines did not. */
static bool within_bound(int64_t now, uint32_t *left_out) {
    uint32_t most = atomic_load_explicit(&lines_a_second, memory_order_relaxed);
    if (!most) {
        return true;
    }
    if (atomic_exchange(&last_second, now) == now) {
        return atomic_fetch_add(&lines, 1) < most;
    }
    uint32_t before = atomic_exchange(&lines, 1);
    *left_out = before > most ? before - most : 0;
    return true;
}

/* The log may be rotated: whoever did it, the path has another file now, or none. The descriptor's number stays, so a thread that
 * is writing finishes in one of the two files. */
static void follow_path(int fd, int64_t now) {
    struct stat open_file, named;
    if (atomic_exchange_explicit(&looked, now, memory_order_relaxed) == now || tp_about(fd, &open_file) != 0) {
        return;
    }
    if (tp_about_path(log_path, &named) == 0 ? named.st_ino == open_file.st_ino && named.st_dev == open_file.st_dev
                                             : errno != ENOENT) {
        return;
    }
    int fresh = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0644);
    if (fresh >= 0) {
        dup3(fresh, fd, O_CLOEXEC);
        close(fresh);
    }
}

static void write_line(int fd, const char *line, size_t size) {
    ssize_t written = tp_write(fd, line, size);
    (void)written; /* a full disk or a closed stderr must not stop the program */
}

/* For a terminal that knows its width: breaks the line between words, and indents what follows. A word that is longer stays
 * whole, so that it can be copied. A character is one column, however many bytes it has. Returns the new size. */
static size_t fold(int fd, char *line, size_t size, size_t most) {
    struct winsize window;
    if (ioctl(fd, TIOCGWINSZ, &window) != 0 || window.ws_col < NARROWEST) {
        return size;
    }
    size_t space = 0, column = 0;
    for (size_t at = 0; at + 1 < size; at++, column += ((unsigned char)line[at] & 0xc0) != 0x80) {
        if (line[at] == ' ' && column > INDENT) {
            space = at;
        }
        if (column + ECHO < window.ws_col || !space) {
            continue;
        }
        if (size + INDENT > most) {
            break;
        }
        memmove(line + space + 1 + INDENT, line + space + 1, size - space - 1);
        line[space] = '\n';
        memset(line + space + 1, ' ', INDENT);
        size += INDENT;
        at = space + INDENT;
        space = 0;
        column = INDENT - 1;
    }
    return size;
}

static void write_arguments(int level, bool shown, const char *format, va_list arguments)
    __attribute__((format(printf, 3, 0)));
/* `shown`: on stderr, too, where the log is a file. */
static void write_arguments(int level, bool shown, const char *format, va_list arguments) {
    int saved = errno, cancel;
    char line[LINE_MAX_BYTES + FOLDS_MAX_BYTES];
    struct timespec now;
    uint32_t left_out = 0;
    clock_gettime(CLOCK_REALTIME, &now);
    if (!within_bound(now.tv_sec, &left_out)) {
        return;
    }
    /* The caller may hold a lock, and writing can end a thread. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    int year, month, day;
    civil_date(now.tv_sec / 86400, &year, &month, &day);
    int second = (int)(now.tv_sec % 86400);
    int index = level < TP_TRACE ? TP_TRACE : level > TP_ERROR ? TP_ERROR : level;
    int used = snprintf(line, LINE_MAX_BYTES, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ %-5s %s[%d]: ", year, month, day,
                        second / 3600, second / 60 % 60, second % 60, (int)(now.tv_nsec / 1000000), level_names[index],
                        atomic_load_explicit(&log_who, memory_order_relaxed), (int)getpid());
    size_t size = used < 0 ? 0 : (size_t)used < LINE_MAX_BYTES ? (size_t)used : LINE_MAX_BYTES - 1;
    size_t text = size;
    if (left_out) {
        used = snprintf(line + size, LINE_MAX_BYTES - size, "(%u lines were left out) ", left_out);
        size += used < 0 ? 0 : (size_t)used;
    }
    used = vsnprintf(line + size, LINE_MAX_BYTES - size, format, arguments);
    size += used < 0 ? 0 : (size_t)used;
    if (size > LINE_MAX_BYTES - 2) {
        size = LINE_MAX_BYTES - 2;
    }
    for (; text < size; text++) { /* some of it may be a peer's: one line stays one line, and steers no terminal */
        unsigned char byte = (unsigned char)line[text];
        line[text] = (char)(byte < 0x20 || byte == 0x7f ? '?' : byte);
    }
    line[size++] = '\n';
    int fd = atomic_load_explicit(&log_fd, memory_order_acquire);
    if (fd >= 0) {
        follow_path(fd, now.tv_sec);
        write_line(fd, line, size);
    }
    if (fd < 0 || shown) {
        fd = atomic_load_explicit(&error_fd, memory_order_relaxed);
        write_line(fd, line, fold(fd, line, size, sizeof line));
    }
    pthread_setcancelstate(cancel, &cancel);
    errno = saved;
}

void tp_log_write(int level, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    write_arguments(level, level >= TP_ERROR, format, arguments);
    va_end(arguments);
}

void tp_say(int level, const char *format, ...) {
    if (atomic_load_explicit(&silent, memory_order_relaxed)) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    write_arguments(level, true, format, arguments);
    va_end(arguments);
}

void tp_say_once(_Atomic bool *said, const char *format, ...) {
    if (atomic_load_explicit(&silent, memory_order_relaxed) || atomic_exchange(said, true)) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    write_arguments(TP_ERROR, true, format, arguments);
    va_end(arguments);
}
