/*
 * Green contexts through the whole stack: the checks that the simulated GPU passes by itself, in a client.
 *
 * Four threads at once; nothing is read but the test's own bytes.
 */
#include "../native/green_checks.h"
#include "stack.h"

int role_green(int count, char **words) {
    (void)count, (void)words;
    check_green();
    say("right");
    return 0;
}
