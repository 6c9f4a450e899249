// Simulated GPU: resources of devices, green contexts.
#include "green_checks.h"

int main(void) {
    check_green();
    puts("ok");
    return 0;
}
