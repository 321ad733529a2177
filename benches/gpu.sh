#!/usr/bin/env bash
# Everything that needs a GPU, one part after another: build, tests, sanitizer, benches.
#
#     benches/gpu.sh                        # from a checkout; results go to build/gpu
#     OUT=DIR PYTHON=python3 benches/gpu.sh
#     LIST=1 benches/gpu.sh                 # print the names of the parts in order; run nothing
#     ONLY="tests engine-8b" benches/gpu.sh # the build, and the parts with these names or prefixes
#                                           # (up to a dash): tests-cuda, engine-8b-2048, ...
#     TUNE=1 benches/gpu.sh                 # tune kernel configurations first, then use them
#     TUNE=1 TUNE_ARGS="--op edge_levels --width 128" benches/gpu.sh  # tune only these
#
# On a machine that is available for a few minutes at a time and returns few files:
#
#     WITHIN=570 LIMIT=240 PACK=1 ONLY="tests-cuda engine-8b-2048" benches/gpu.sh
#
#     LIMIT=SECONDS   per part, except the build: the part is interrupted then, so that it can
#                     report what it has, and killed 20 seconds later. Finished rows are in files.
#     WITHIN=SECONDS  for everything: a part gets the time left; parts that get none are listed.
#     PACK=1          $OUT gets only two files, rewritten after every part: results.tgz with
#                     everything, and pages.md with the tables.
#
# If a part fails, its name is reported and the next one runs; the exit status says whether any
# failed. If the package cannot be built (no compiler, no network), everything runs from the
# checkout with the GPU ops only. An existing build of the same sources is reused. Nothing is
# downloaded. Tests run in several processes if pytest-xdist is installed, benches never do. A part
# is meant to take at most eight minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
RESULTS=$(realpath -m "${OUT:-build/gpu}")
OUT=$RESULTS
if [[ ${PACK:-0} == 1 ]]; then
    OUT=$PWD/build/gpu-parts
    rm -rf "$OUT"
fi
TOOLKIT=${CUDA_HOME:-/usr/local/cuda}
if ! command -v nvcc >/dev/null && [[ -x $TOOLKIT/bin/nvcc ]]; then
    PATH=$PATH:$TOOLKIT/bin
fi
export PYTHON OUT PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
# Elsewhere warnings fail a test; libraries may have some for GPUs that no test has met.
export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -W default"
GRACE=20 # seconds between interrupting a part and killing it
failed=()
late=()

# Children that a shell starts in the background ignore interrupts by default.
heeding=()
if env --default-signal=INT true 2>/dev/null; then
    heeding=(env --default-signal=INT)
fi

# ---- parts ---------------------------------------------------------------------------------------

chosen() {
    local word
    if [[ -z ${ONLY:-} || $1 == build || $1 == built ]]; then
        return 0
    fi
    for word in $ONLY; do
        if [[ $1 == "$word" || $1 == "$word"-* ]]; then
            return 0
        fi
    done
    return 1
}

# Print the seconds that a part may take; 0: no limit; nothing: no time left for it.
allowed() {
    local left seconds=${LIMIT:-0}
    if [[ $1 == build ]]; then # nothing else works without the build
        seconds=0
    fi
    if [[ -n ${WITHIN:-} ]]; then
        left=$((WITHIN - SECONDS - GRACE))
        ((left > 0)) || return 0
        seconds=$((seconds && seconds < left ? seconds : left))
    fi
    echo "$seconds"
}

# part NAME COMMAND...: run it, log its output to $OUT/NAME.log, and continue.
part() {
    local name=$1 seconds status started=$SECONDS
    shift
    local command="$*"
    chosen "$name" || return 0
    if [[ -n ${LIST:-} ]]; then
        echo "$name"
        return 0
    fi
    seconds=$(allowed "$name")
    if [[ -z $seconds ]]; then
        late+=("$name")
        return 0
    fi
    echo "== $name"
    if declare -F "$1" >/dev/null; then # the wrappers below run programs, not functions
        set -- bash -c "$(declare -f)"$'\n''"$@"' "$1" "$@"
    fi
    if ((seconds)); then
        set -- timeout --signal=INT --kill-after="$GRACE" "$seconds" "${heeding[@]}" "$@"
    fi
    PART_SECONDS=$seconds "$@" 2>&1 | tee "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    if ((status == 124 || status == 137)); then
        echo "== $name STOPPED: $seconds s were not enough"
        failed+=("$name (stopped)")
    elif ((status != 0)); then
        echo "== $name FAILED with status $status: $command"
        failed+=("$name")
    fi
    echo "-- $name took $((SECONDS - started)) s"
    if [[ ${PACK:-0} == 1 ]]; then
        pack
    fi
    return 0
}

pages() {
    local page
    for page in "$OUT"/*/benches.md "$OUT"/*.md; do
        if [[ -e $page ]]; then
            cat "$page"
            echo
        fi
    done
}

pack() {
    mkdir -p "$RESULTS"
    pages >"$RESULTS/pages.md"
    tar -czf "$RESULTS/results.tgz" -C "$OUT" .
}

has_gpu() {
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}

# ---- the build -----------------------------------------------------------------------------------

# Link the packages under their import names, and build the extensions there.
from_checkout() {
    local root=$PWD/build/checkout
    rm -rf "$root" && mkdir -p "$root/densitrace" &&
        ln -s "$PWD"/densitrace/*.py* "$PWD/kernels" "$PWD/tracer" "$PWD/estimator" \
            "$root/densitrace/" &&
        "$PYTHON" setup.py --quiet build_ext --build-lib "$root" --build-temp build/temp
}

# Put what `from_checkout` built, if it did, on Python's path.
use_checkout() {
    local root=$PWD/build/checkout
    if [[ -d $root && ${PYTHONPATH:-} != "$root"* ]]; then
        export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
    fi
}

# Fingerprint of the sources of the extensions.
sources() {
    find csrc setup.py pyproject.toml -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
}

# Whether the package imports with its extensions, and they are not known to be out of date.
is_built() {
    if [[ -e build/gpu-sources ]] && [[ $(<build/gpu-sources) != "$(sources)" ]]; then
        return 1
    fi
    "$PYTHON" -P -c 'import densitrace, densitrace._cpu, densitrace._cuda' 2>/dev/null
}

build() {
    if is_built; then
        echo "densitrace imports with its extensions: it is not built again"
        return 0
    fi
    rm -rf build/checkout
    mkdir -p build
    sources >build/gpu-sources
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation -e . && return 0
    echo "pip could not install the package; running from the checkout"
    from_checkout
}

# Tests of a backend that is not built are skipped. Fail if it could have been built.
built() {
    if ! command -v "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" >/dev/null; then
        echo "nvcc is not here: CUDA kernels are neither built nor tested"
        return 0
    fi
    "$PYTHON" -P -c 'import densitrace._cuda' && return 0
    echo "nvcc is here, but CUDA kernels were not built: pip install -v -e . shows why"
    return 1
}

# ---- what the parts run --------------------------------------------------------------------------

# -P keeps the root off sys.path, where kernels/ would shadow another package. The file is named
# because other tests import packages that a GPU machine may lack.
tests() {
    local processes=() cores
    if "$PYTHON" -P -c 'import xdist' 2>/dev/null; then
        cores=$(nproc)
        processes=(-n "$((cores < 8 ? cores : 8))")
        export OMP_NUM_THREADS=2
    fi
    "$PYTHON" -P -m pytest -m gpu "${processes[@]}" -k "$1" tests/kernels/test_gpu.py
}

# checked BACKEND: run its ops under both tools.
checked() {
    local sanitizer
    sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    if [[ ! -x $sanitizer ]]; then
        echo "compute-sanitizer is not here: no kernel was checked"
        return 1
    fi
    # One small problem per kernel; PyTorch's caching allocator would hide out-of-bounds accesses.
    # racecheck: two threads of a block access the same shared memory without a barrier between.
    # The tools would wait only seconds for the first use of the GPU, and imports take longer; and
    # they would count calls whose failure libraries expect, as PyTorch's before there is a context.
    local tool status=0
    for tool in memcheck racecheck; do
        echo "-- $tool"
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
            --launch-timeout 0 --report-api-errors no --target-processes all \
            "$PYTHON" -P -m pytest -q -m gpu -k "sanitized and $1" \
            tests/kernels/test_gpu.py || status=$?
    done
    return "$status"
}

# bench NAME TEST...: run benches one after another; their rows go to $OUT/NAME.
bench() {
    env OUT="$OUT/$1" "$PYTHON" -P -m pytest -m gpu "${@:2}"
}

# Scans write a store, which needs zarr.
scans() {
    local limited=() most=360
    if ! "$PYTHON" -c 'import zarr'; then
        echo "zarr is not here: nothing was scanned"
        return 1
    fi
    if ((PART_SECONDS)); then # the rest is for the rows added at the end
        most=$((PART_SECONDS > 240 ? PART_SECONDS - 90 : PART_SECONDS / 2))
    fi
    if [[ $1 == store ]]; then
        limited=(--time-limit "$((most < 360 ? most : 360))")
    fi
    "$PYTHON" -P benches/scan_gpu.py "$@" "${limited[@]}"
}

# Better configurations are saved in the checkout, for the parts that follow; copy them to the
# results. The tuner writes one entry at a time, so this also works after an interrupt.
keep_tuned() {
    local table
    for table in kernels/triton/configs/sm_*.json; do
        [[ ! -e $table ]] || cp "$table" "$OUT/"
    done
}

# ---- all of it -----------------------------------------------------------------------------------

if [[ -z ${LIST:-} ]]; then
    if ! has_gpu; then
        echo "no GPU that torch can use: nothing was run" >&2
        exit 1
    fi
    mkdir -p "$OUT"
fi
use_checkout # of an earlier run, which `build` then finds
part build build
use_checkout
part built built
# Before the tests, so that they test the tuned configurations.
if [[ ${TUNE:-0} == 1 ]]; then
    # shellcheck disable=SC2086 # several words
    part tune "$PYTHON" -P benches/tune_gpu.py ${TUNE_ARGS:-}
    [[ -n ${LIST:-} ]] || keep_tuned
fi
# Compiling the variants of lane_attention takes as long as those of all other ops together.
part tests-triton-lanes tests "triton and lane_attention"
part tests-triton-others tests "triton and not lane_attention"
part tests-cuda tests "cuda and not triton"
part tests-engine tests "not cuda and not triton"
part sanitizer-cuda checked cuda
part sanitizer-triton checked triton
declare -A shapes=([8b]=llama-8b [1b]=llama-1b [qwen3]=qwen3-8b)
for size in 8b 1b qwen3; do
    for length in 2048 512 8192; do
        name=engine-$size-$length
        part "$name" bench "$name" "benches/test_engine_gpu.py::test_passes[${shapes[$size]}-$length]"
    done
done
for size in 8b 1b qwen3; do
    for length in 2048 512; do
        name=replays-$size-$length
        part "$name" bench "$name" "benches/test_engine_gpu.py::test_replays[${shapes[$size]}-$length]"
    done
done
part memory bench memory benches/test_engine_gpu.py::test_memory_curve
for size in 8b 1b qwen3; do
    for length in 2048 512 8192; do
        name=kernels-$size-$length
        part "$name" bench "$name" "benches/test_kernels_gpu.py::test_ops[${shapes[$size]}-$length]"
    done
done
part modes-1b "$PYTHON" -P benches/scan_gpu.py modes --out "$OUT/modes-1b"
part modes-trained "$PYTHON" -P benches/scan_gpu.py modes --shapes bundled-8b --out "$OUT/modes-trained"
part scan-bundled scans bundled --out "$OUT/scan-bundled"
part scan-1b scans store --shapes llama-1b --tokens 1000000 --out "$OUT/scan-1b"
part scan-8b scans store --shapes llama-8b --tokens 100000 --out "$OUT/scan-8b"
[[ -z ${LIST:-} ]] || exit 0

if [[ ${PACK:-0} == 1 ]]; then
    pack
fi
pages
if ((${#late[@]})); then
    echo "NOT RUN, for lack of time: ${late[*]}"
fi
if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all parts that ran passed; see $RESULTS"
