#!/usr/bin/env bash
# Everything that needs a GPU, one part after another: build, tests, sanitizer, benches.
#
#     benches/gpu.sh                        # from a checkout; results go to build/gpu
#     OUT=DIR PYTHON=python3 benches/gpu.sh
#     LIST=1 benches/gpu.sh                 # the names of the parts, in their order; nothing runs
#     ONLY="tests engine-8b" benches/gpu.sh # the build, and the parts that are these or begin with
#                                           # one of them and a dash: engine-8b-2048, ...
#     TUNE=1 benches/gpu.sh                 # the kernels' configurations first, then all on those
#     TUNE=1 TUNE_ARGS="--op edge_levels --width 128" benches/gpu.sh  # of these alone
#
# On a machine that is lent for some minutes at a time, and hands few files back:
#
#     WITHIN=570 LIMIT=240 PACK=1 ONLY="tests-cuda engine-8b-2048" benches/gpu.sh
#
#     LIMIT=SECONDS   of a part but the build: it is interrupted then, so that it can say
#                     what it has, and killed 20 seconds later. Rows measured by then are in files.
#     WITHIN=SECONDS  of all: a part gets what is left, and one that would come later is named.
#     PACK=1          $OUT gets two files, anew after every part: results.tgz with all there is,
#                     and pages.md with the tables.
#
# A part that fails is named and the next one runs; the exit status says whether any failed. Without
# a build of the package (no compiler, no network) it runs from the checkout, GPU ops alone; what was
# built of the same sources is not built again. Nothing is fetched. Tests run in several processes
# where pytest-xdist is, benches never do. Each part is meant to take no more than eight minutes.
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
GRACE=20 # seconds from the interrupt of a part to its end
failed=()
late=()

# Started in the background, a shell's children would ignore interrupts.
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

# The seconds that a part may take; 0: any; nothing: it is too late for it.
allowed() {
    local left seconds=${LIMIT:-0}
    if [[ $1 == build ]]; then # without it nothing else is worth its time
        seconds=0
    fi
    if [[ -n ${WITHIN:-} ]]; then
        left=$((WITHIN - SECONDS - GRACE))
        ((left > 0)) || return 0
        seconds=$((seconds && seconds < left ? seconds : left))
    fi
    echo "$seconds"
}

# part NAME COMMAND...: run it, keep what it prints in $OUT/NAME.log, go on.
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
    if declare -F "$1" >/dev/null; then # what follows runs programs
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

# Links to the parts under the names that they are imported by, and the extension built there.
from_checkout() {
    local root=$PWD/build/checkout
    rm -rf "$root" && mkdir -p "$root/densitrace" &&
        ln -s "$PWD"/densitrace/*.py* "$PWD/kernels" "$PWD/tracer" "$PWD/estimator" \
            "$root/densitrace/" &&
        "$PYTHON" setup.py --quiet build_ext --build-lib "$root" --build-temp build/temp
}

# What the extensions are built of.
sources() {
    find csrc setup.py pyproject.toml -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
}

# Whether the package imports with its extensions, and they are not known to be of other sources.
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

# ---- what the parts run --------------------------------------------------------------------------

# -P: the root stays off the path, where kernels/ would pass for another package. By name, as tests
# of other parts import packages that a GPU machine may lack.
tests() {
    local processes=() cores
    if "$PYTHON" -P -c 'import xdist' 2>/dev/null; then
        cores=$(nproc)
        processes=(-n "$((cores < 8 ? cores : 8))")
        export OMP_NUM_THREADS=2
    fi
    "$PYTHON" -P -m pytest -m gpu "${processes[@]}" -k "$1" tests/kernels/test_gpu.py
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

# bench NAME TEST...: tests that measure, one after another; their rows go to $OUT/NAME.
bench() {
    env OUT="$OUT/$1" "$PYTHON" -P -m pytest -m gpu "${@:2}"
}

# Scans write a store, which needs more than torch.
scans() {
    local limited=() most=360
    if ! "$PYTHON" -c 'import zarr'; then
        echo "zarr is not here: nothing was scanned"
        return 1
    fi
    if ((PART_SECONDS)); then # the rest is for the rows that come at the end
        most=$((PART_SECONDS > 240 ? PART_SECONDS - 90 : PART_SECONDS / 2))
    fi
    if [[ $1 == store ]]; then
        limited=(--time-limit "$((most < 360 ? most : 360))")
    fi
    "$PYTHON" -P benches/scan_gpu.py "$@" "${limited[@]}"
}

# What got better is in the checkout, for the parts that follow, and beside their results: an entry
# at a time, so that it is there when the tuner is stopped.
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
if [[ -d build/checkout ]]; then
    export PYTHONPATH=$PWD/build/checkout${PYTHONPATH:+:$PYTHONPATH}
fi
part build build
if [[ -d build/checkout && ${PYTHONPATH:-} != "$PWD/build/checkout"* ]]; then
    export PYTHONPATH=$PWD/build/checkout${PYTHONPATH:+:$PYTHONPATH}
fi
part built built
# Before the tests, which then hold for what was found.
if [[ ${TUNE:-0} == 1 ]]; then
    # shellcheck disable=SC2086 # several words
    part tune "$PYTHON" -P benches/tune_gpu.py ${TUNE_ARGS:-}
    [[ -n ${LIST:-} ]] || keep_tuned
fi
# Compiling its variants takes lane_attention as long as all others together.
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
