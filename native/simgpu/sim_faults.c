// Error injection by script: the environment variable TF_SIM_FAULTS, read once, at the first call.
//
//   script   = rule { ";" rule }
//   rule     = function ":" n "=" effect
//   function = exact exported name of a CUDA function, or "*" for every call of any function
//   n        = 1, 2, …: the call that it hits; "n+" hits that call and every later one
//   effect   = CUresult as a number [ ",sticky" ]   the call returns it; sticky: so does every later
//              call on the device of the calling thread's current context
//            | "hang"                               the call never returns
//            | "exit"                               the process ends at once with status 86
//
// Example: TF_SIM_FAULTS="cuMemAlloc_v2:3=2;cuLaunchKernel:10=700,sticky;cuStreamSynchronize:1=hang;*:1000=exit"
// A script that does not parse ends the process: a test that injects nothing by accident would prove nothing.
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum { FAULT_RETURN, FAULT_HANG, FAULT_EXIT } fault_effect_t;

typedef struct {
    char function[64];
    unsigned long long call;
    bool later_too;
    bool sticky;
    fault_effect_t effect;
    CUresult result;
} fault_rule_t;

#define MAX_RULES 64
static fault_rule_t rules[MAX_RULES];
static size_t nrules;
static atomic_int state; // 0 not read yet, 1 no script, 2 script
static atomic_ullong all_calls;
static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;

static bool parse_rule(const char *text, size_t length, fault_rule_t *rule) {
    const char *end = text + length;
    const char *colon = memchr(text, ':', length);
    if (!colon || colon == text || (size_t)(colon - text) >= sizeof rule->function)
        return false;
    const char *equals = memchr(colon, '=', (size_t)(end - colon));
    if (!equals)
        return false;
    memset(rule, 0, sizeof *rule);
    memcpy(rule->function, text, (size_t)(colon - text));
    if (strcmp(rule->function, "*") && !sim_exported(rule->function))
        return false;
    char *stop;
    errno = 0;
    rule->call = strtoull(colon + 1, &stop, 10);
    if (*stop == '+') {
        rule->later_too = true;
        stop++;
    }
    if (errno || stop != equals || colon[1] < '1' || colon[1] > '9')
        return false;
    const char *effect = equals + 1;
    size_t size = (size_t)(end - effect);
    if (size == 4 && !memcmp(effect, "hang", 4)) {
        rule->effect = FAULT_HANG;
    } else if (size == 4 && !memcmp(effect, "exit", 4)) {
        rule->effect = FAULT_EXIT;
    } else {
        unsigned long value = strtoul(effect, &stop, 10);
        if (stop == effect || *effect < '1' || *effect > '9' || value > 999)
            return false;
        rule->result = (CUresult)value;
        if (end - stop == 7 && !memcmp(stop, ",sticky", 7))
            rule->sticky = true;
        else if (stop != end)
            return false;
    }
    return true;
}

static void read_script(void) {
    pthread_mutex_lock(&reading);
    const char *script = getenv("TF_SIM_FAULTS");
    if (atomic_load(&state) == 0 && script && *script) {
        while (*script) {
            size_t length = strcspn(script, ";");
            if (length && (nrules == MAX_RULES || !parse_rule(script, length, &rules[nrules]))) {
                sim_complain("TF_SIM_FAULTS: the rule \"%.*s\" is not FUNCTION:N=RESULT[,sticky], =hang or =exit (at "
                             "most %d rules)",
                             (int)length, script, MAX_RULES);
                _exit(87);
            }
            if (length)
                nrules++;
            script += length + (script[length] == ';');
        }
    }
    int expected = 0;
    atomic_compare_exchange_strong(&state, &expected, nrules ? 2 : 1);
    pthread_mutex_unlock(&reading);
}

bool sim_faults_present(void) {
    int now = atomic_load_explicit(&state, memory_order_acquire);
    if (SIM_EXPECT_FALSE(now == 0)) {
        read_script();
        now = atomic_load(&state);
    }
    return now == 2;
}

CUresult sim_faults_check(sim_site_t *site, bool *sticky) {
    unsigned long long own = atomic_fetch_add(&site->calls, 1) + 1;
    unsigned long long all = atomic_fetch_add(&all_calls, 1) + 1;
    for (size_t i = 0; i < nrules; i++) {
        const fault_rule_t *rule = &rules[i];
        bool any = !strcmp(rule->function, "*");
        if (!any && strcmp(rule->function, site->name))
            continue;
        unsigned long long count = any ? all : own;
        if (count != rule->call && !(rule->later_too && count > rule->call))
            continue;
        if (rule->effect == FAULT_EXIT)
            _exit(86);
        if (rule->effect == FAULT_HANG)
            for (;;)
                pause();
        *sticky = rule->sticky;
        return rule->result;
    }
    return CUDA_SUCCESS;
}
