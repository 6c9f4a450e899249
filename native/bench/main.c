/*
 * The command line of tensor-fusion-bench: which groups to run on which libcuda.so.1, one JSON object per line on standard output.
 *
 * The first object is about the driver, the device and the clock; then one per group, in the order of the table here. Groups that
 * start processes of their own run before this process initialises the driver. Everything read here is the caller's own command line.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct group groups[] = {
    {"startup", "from the start of a process to its first finished kernel", group_startup, false},
    {"launch", "kernel launches: time on the calling thread, launches per second", group_launch, true},
    {"null", "a call that does nothing but reach the driver", group_null, true},
    {"sync", "waiting for a stream: idle, behind a kernel, with a result read back", group_sync, true},
    {"event", "events: record, query, wait", group_event, true},
    {"copy", "copies by size, direction, memory and call", group_copy, true},
    {"memset", "memset by size", group_memset, true},
    {"memory", "allocation and release", group_memory, true},
    {"graph", "graphs: capture of a stream, replay", group_graph, true},
};
const size_t groups_count = sizeof groups / sizeof *groups;

static const char USAGE[] =
    "Usage: tensor-fusion-bench run [--libcuda FILE] [--only GROUP,…] [--budget SECONDS] [--most-bytes N]\n"
    "                               [--startups N] [--quick]\n"
    "       tensor-fusion-bench list\n"
    "       tensor-fusion-bench relay --listen PORT --to HOST:PORT --delay-us N [--spin-us N]\n"
    "       tensor-fusion-bench relay --self-test --delay-us N [--spin-us N]\n"
    "\n"
    "run measures the CUDA driver API of the given libcuda.so.1, by default the one that programs of this environment\n"
    "get, and prints one JSON object per group. relay forwards TCP connections and delays each direction by N µs.\n"
    "The command tensor-fusion bench runs both and compares.\n";

static const struct group *find(const char *name, size_t length) {
    for (size_t i = 0; i < groups_count; i++)
        if (strlen(groups[i].name) == length && !memcmp(groups[i].name, name, length))
            return &groups[i];
    return NULL;
}

static bool selected(const struct group *group, const char *only) {
    if (!only)
        return true;
    for (const char *at = only; *at; at += strcspn(at, ","), at += *at == ',')
        if (find(at, strcspn(at, ",")) == group)
            return true;
    return false;
}

static void check_names(const char *only) {
    if (!*only)
        fail("--only names no group; run tensor-fusion-bench list.");
    for (const char *at = only; *at; at += strcspn(at, ","), at += *at == ',')
        if (!find(at, strcspn(at, ",")))
            fail("There is no group %.*s; run tensor-fusion-bench list.", (int)strcspn(at, ","), at);
}

static double number(const char *option, const char *text, double least, double most) {
    char *end;
    double value = text ? strtod(text, &end) : 0;
    if (!text || !*text || *end || !(value >= least && value <= most))
        fail("%s is %s; use a number from %g to %g.", option, text ? text : "given without a value", least, most);
    return value;
}

static void about(void) {
    char device[256];
    CUuuid uuid;
    int version;
    CUdevice ordinal;
    MUST(cuDeviceGet, &ordinal, 0);
    MUST(cuDeviceGetName, device, (int)sizeof device, ordinal);
    MUST(cuDeviceGetUuid_v2, &uuid, ordinal);
    MUST(cuDriverGetVersion, &version);
    printf("{\"about\": {\"device\": ");
    json_string(device);
    printf(", \"uuid\": \"");
    for (size_t i = 0; i < sizeof uuid.bytes; i++)
        printf("%02x", (unsigned char)uuid.bytes[i]);
    printf("\", \"cuda\": %d, \"libcuda\": ", version);
    json_string(driver_path());
    printf(", \"remote\": %s, \"timer_overhead_ns\": %llu}}\n", driver_counters() ? "true" : "false",
           (unsigned long long)timer_overhead_ns());
    fflush(stdout);
}

static int list(void) {
    for (size_t i = 0; i < groups_count; i++)
        printf("%s\t%s\n", groups[i].name, groups[i].text);
    return 0;
}

static void run_groups(const char *only, bool need_driver) {
    for (size_t i = 0; i < groups_count; i++) {
        if (groups[i].needs_driver != need_driver || !selected(&groups[i], only))
            continue;
        group_open(groups[i].name, groups[i].needs_driver);
        groups[i].run();
        group_close();
    }
}

int main(int argc, char **argv) {
    const char *role = argc > 1 ? argv[1] : "", *only = NULL;
    if (!strcmp(role, "list") && argc == 2)
        return list();
    if (!strcmp(role, "relay"))
        return relay_main(argc - 2, argv + 2);
    if (strcmp(role, "run") != 0 && strcmp(role, "first-kernel") != 0) {
        bool asked = !strcmp(role, "--help") || !strcmp(role, "-h");
        fputs(USAGE, asked ? stdout : stderr);
        return asked ? 0 : 2;
    }
    for (int i = 2; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(option, "--quick")) {
            options.quick = true;
            continue;
        }
        if (!value)
            fail("%s needs a value, or is no option of this program; see tensor-fusion-bench --help.", option);
        if (!strcmp(option, "--libcuda"))
            libcuda = value;
        else if (!strcmp(option, "--only"))
            only = value;
        else if (!strcmp(option, "--budget"))
            options.budget_s = number(option, value, 0.001, 3600);
        else if (!strcmp(option, "--most-bytes"))
            options.most_bytes = (size_t)number(option, value, 4, 4294967296.0);
        else if (!strcmp(option, "--startups"))
            options.startups = (unsigned)number(option, value, 1, 1000);
        else
            fail("Unknown option %s; see tensor-fusion-bench --help.", option);
        i++;
    }
    if (!strcmp(role, "first-kernel"))
        return first_kernel();
    if (only)
        check_names(only);
    driver_load();
    run_groups(only, false);
    driver_start(NULL);
    about();
    run_groups(only, true);
    return 0;
}
