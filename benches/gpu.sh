#!/usr/bin/env bash
# Everything that needs a GPU, one part after another: build, tests, sanitizer, benches.
#
#     benches/gpu.sh                     # from a checkout; results go to build/gpu
#     OUT=DIR PYTHON=python3 benches/gpu.sh
#     TUNE=1 benches/gpu.sh              # the kernels' configurations first, then all on those
#     ONLY="modes scan-1b" benches/gpu.sh  # these parts alone, after the build
#
# A part that fails is named and the next one runs; the exit status says whether any failed. Without
# a build of the package (no compiler, no network) it runs from the checkout, GPU ops alone.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
OUT=$(realpath -m "${OUT:-build/gpu}")
export OUT PYTHONUNBUFFERED=1
mkdir -p "$OUT"
failed=()

# part NAME COMMAND...: run it, keep what it prints in $OUT/NAME.log, go on.
part() {
    local name=$1 status
    shift
    if [[ -n ${ONLY:-} && " build built $ONLY " != *" $name "* ]]; then
        return 0
    fi
    echo "== $name"
    "$@" 2>&1 | tee "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    if ((status != 0)); then
        echo "== $name FAILED with status $status: $*"
        failed+=("$name")
    fi
    return 0
}

has_gpu() {
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}

# Links to the parts under the names that they are imported by, and the extension built there.
from_checkout() {
    local root=$PWD/build/checkout
    rm -rf "$root" && mkdir -p "$root/densitrace" &&
        ln -s "$PWD"/densitrace/*.py* "$PWD/kernels" "$PWD/tracer" "$PWD/estimator" \
            "$root/densitrace/" &&
        "$PYTHON" setup.py --quiet build_ext --build-lib "$root" --build-temp build/temp
}

build() {
    rm -rf build/checkout
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation -e . && return 0
    echo "pip could not install the package; running from the checkout"
    from_checkout
}

# Tests of what is not built are skipped: where it could be built that is no pass.
built() {
    if ! command -v "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" >/dev/null; then
        echo "nvcc is not here: CUDA kernels are neither built nor tested"
        return 0
    fi
    "$PYTHON" -P -c 'import densitrace._cuda' && return 0
    echo "nvcc is here, but CUDA kernels were not built: pip install -v -e . shows why"
    return 1
}

# checked BACKEND: its ops under both tools.
checked() {
    local sanitizer
    sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    if [[ ! -x $sanitizer ]]; then
        echo "compute-sanitizer is not here: no kernel was checked"
        return 1
    fi
    # One small problem a kernel; PyTorch's caching allocator would hide what is out of bounds.
    # racecheck: two threads of a block on one place of shared memory without a barrier between.
    local tool status=0
    for tool in memcheck racecheck; do
        echo "-- $tool"
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
            --target-processes all "$PYTHON" -P -m pytest -q -m gpu -k "sanitized and $1" \
            tests/kernels/test_gpu.py || status=$?
    done
    return "$status"
}

# What got better is in the checkout, for the parts that follow, and beside their results.
tune() {
    "$PYTHON" -P benches/tune_gpu.py || return
    local table
    for table in kernels/triton/configs/sm_*.json; do
        [[ ! -e $table ]] || cp "$table" "$OUT/" || return
    done
}

# Scans write a store, which needs more than torch.
scans() {
    if ! "$PYTHON" -c 'import zarr'; then
        echo "zarr is not here: nothing was scanned"
        return 1
    fi
    "$PYTHON" -P benches/scan_gpu.py "$@"
}

if ! has_gpu; then
    echo "no GPU that torch can use: nothing was run" >&2
    exit 1
fi

part build build
if [[ -d build/checkout ]]; then
    export PYTHONPATH=$PWD/build/checkout${PYTHONPATH:+:$PYTHONPATH}
fi
part built built
# Before the tests, which then hold for what was found.
if [[ ${TUNE:-0} == 1 ]]; then
    part tune tune
fi
# -P: the root stays off the path, where kernels/ would pass for another package. By name, as tests
# of other parts import packages that a GPU machine may lack.
part tests "$PYTHON" -P -m pytest -m gpu tests/kernels/test_gpu.py
part sanitizer-cuda checked cuda
part sanitizer-triton checked triton
part kernels env OUT="$OUT/kernels" "$PYTHON" -P -m pytest -m gpu benches/test_kernels_gpu.py
part engine env OUT="$OUT/engine" "$PYTHON" -P -m pytest -m gpu benches/test_engine_gpu.py
part modes "$PYTHON" -P benches/scan_gpu.py modes --out "$OUT/modes"
part modes-trained "$PYTHON" -P benches/scan_gpu.py modes --shapes bundled-8b --out "$OUT/modes-trained"
part scan-bundled scans bundled --out "$OUT/scan-bundled"
part scan-1b scans store --shapes llama-1b --tokens 1000000 --out "$OUT/scan-1b"
part scan-8b scans store --shapes llama-8b --tokens 100000 --out "$OUT/scan-8b"

for page in {kernels/benches,engine/benches,modes,modes-trained,scan-bundled,scan-1b,scan-8b}.md; do
    if [[ -e $OUT/$page ]]; then
        cat "$OUT/$page"
    fi
done
if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all parts passed; see $OUT"
