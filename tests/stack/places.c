/* Memory of the device in the place of host memory, through the whole stack: the checks that the simulated GPU passes by itself. */
#include "../native/place_checks.h"
#include "stack.h"

int role_places(int count, char **words) {
    (void)count, (void)words;
    start();
    check_places();
    say("right");
    return 0;
}
