/*
 * The start of the worker as one file: unpacks the worker into the user's cache, if it is not there yet, and becomes it.
 *
 * It becomes it, by exec, because systemd, and whoever else starts a worker, sends signals to the process that it started and waits for
 * that one. Nothing is to be taken away at the end, so nothing is left when it is killed: what lies in the cache serves the next start.
 */
#include "of_files.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* An absolute path of the environment, or NULL. */
static const char *place(const char *variable) {
    const char *value = getenv(variable);
    return value && *value == '/' ? value : NULL;
}

/* The first of the places that will do. Each that does not has said why. */
static bool fill_one(const struct payload *payload, char path[PATH_MAX]) {
    char own[64];
    snprintf(own, sizeof own, "tensor-fusion-%u/worker", geteuid());
    const char *cache = place("XDG_CACHE_HOME"), *home = place("HOME"), *temporary = place("TMPDIR");
    if (cache)
        mkdir(cache,
              0700); /* as its specification wants it; that it is there, or cannot be made, is seen when it is opened */
    const struct {
        const char *base, *below;
    } places[] = {
        {cache, "tensor-fusion/worker"},
        {cache ? NULL : home, ".cache/tensor-fusion/worker"},
        {temporary ? temporary : "/tmp", own},
    };
    const size_t first = cache ? 0 : home ? 1 : 2;
    for (size_t i = first; i < sizeof places / sizeof *places; i++) {
        if (!places[i].base)
            continue;
        int folder = cache_open(places[i].base, places[i].below, path);
        bool filled = folder >= 0 && cache_fill(folder, path, payload);
        if (folder >= 0)
            close(folder);
        if (filled && i > first)
            say("so it is unpacked into %s.", path);
        if (filled)
            return true;
    }
    return false;
}

int main(int argc, char **argv) {
    (void)argc;
    struct payload payload;
    char path[PATH_MAX], program[PATH_MAX + NAME_LENGTH + sizeof PROGRAM + 2];
    if (!payload_open(&payload))
        return 1;
    if (!fill_one(&payload, path)) {
        say("it found no place to unpack itself; name a folder of your own by XDG_CACHE_HOME.");
        return 1;
    }
    snprintf(program, sizeof program, "%s/%s/" PROGRAM, path, payload.name);
    execv(program, argv);
    say("%s cannot be run: %s.", program, strerror(errno));
    return 1;
}
