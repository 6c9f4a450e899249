#!/bin/sh
# Rebuilds kernels.ptx and mix.ptx from their sources. The compiler's comments are left out: they name its build.
# -fmad=false: a * x + y rounds twice, as the same C expression on a CPU does, so results compare bit for bit.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for name in kernels mix; do
    nvcc -ptx -arch=compute_75 -fmad=false -o "$here/$name.ptx.new" "$here/$name.cu"
    sed -e '/^\/\//d' -e '/^[[:space:]]*\/\//d' -e 's/[[:space:]]*\/\/ .*$//' "$here/$name.ptx.new" | cat -s > "$here/$name.ptx"
    rm "$here/$name.ptx.new"
done
