/*
 * Who a client says that it is: its program, its user, and which machine and process namespace its number is of.
 *
 * Entered by the one thread that makes the connection. The worker believes none of it beyond what a client may see and do anyway: it shows
 * processes of one machine to each other if they came with the same secret from the same address.
 */
#include "conn_internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tp_segment.h>
#include <tp_sha256.h>
#include <unistd.h>

static void program_name(char *name, size_t size) {
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, name, size - 1) : 0;
    if (fd >= 0) {
        close(fd);
    }
    name[n > 0 ? n : 0] = 0;
    name[strcspn(name, "\n")] = 0;
}

/* As /etc/passwd has it, else the number: a directory service would be asked through libraries that a program may not have. */
static void user_name(char *name, size_t size) {
    char line[512];
    snprintf(name, size, "%u", (unsigned)getuid());
    FILE *file = fopen("/etc/passwd", "re");
    while (file && fgets(line, sizeof line, file)) {
        char *password = strchr(line, ':'), *number = password ? strchr(password + 1, ':') : NULL;
        char *end = NULL;
        const bool is_own = number && strtoul(number + 1, &end, 10) == getuid();
        if (is_own && end > number + 1 && *end == ':' && password > line) {
            *password = 0;
            snprintf(name, size, "%.*s", (int)size - 1, line);
            break;
        }
    }
    if (file) {
        fclose(file);
    }
}

/* Same for two processes exactly if one sees the other under its number. A digest: the boot id is this machine's own affair. */
static void machine(unsigned char out[16]) {
    unsigned char digest[32];
    char boot[40], space[64];
    memset(out, 0, 16);
    tp_boot_id(boot);
    ssize_t length = readlink("/proc/self/ns/pid", space, sizeof space); /* pid:[4026531836] */
    if (!boot[0] || length <= 0) {
        return;
    }
    struct tp_sha256 sha;
    tp_sha256_begin(&sha);
    tp_sha256_add(&sha, boot, sizeof boot);
    tp_sha256_add(&sha, space, (size_t)length);
    tp_sha256_end(&sha, digest);
    memcpy(out, digest, 16);
}

void tpc_who(struct tp_greeting *greeting) {
    program_name(greeting->program, sizeof greeting->program);
    if (greeting->role == TP_ROLE_CONTROL) {
        user_name(greeting->user, sizeof greeting->user);
        machine(greeting->machine);
    }
}
