#!/bin/sh
# One measurement on a machine that is lent for minutes: uses what was carried there in .gpu/, leaves its state in $OUT.
#
# OUT=FOLDER bench/gpu/lent.sh ITEM [options of python -m bench.gpu]
#
# .gpu/wheels/       packages that the machine lacks
# .gpu/images*/      parts of the archives of image folders; unpacked into data/ as soon as all are there
# .gpu/returned/     what an earlier lending left in $OUT; a newer state that is still here stays
#
# Results are in the state too, in results/. docs/gpu.md says how to carry and bring back.
set -eu
: "${OUT:?set it to the folder that comes back}"
if [ -d .gpu/wheels ]; then
    python3 -m pip install --quiet --no-index --no-deps --upgrade --target .gpu/site .gpu/wheels/*.whl
    PYTHONPATH=$PWD/.gpu/site${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
fi
for name in tiny100 tiny-imagenet-200; do
    [ ! -e "data/$name" ] && ls .gpu/images*/"$name".tar.xz.part-* >/dev/null 2>&1 || continue
    rm -rf .gpu/unpacked && mkdir .gpu/unpacked
    if cat .gpu/images*/"$name".tar.xz.part-* | tar -xJ -C .gpu/unpacked 2>/dev/null; then
        mv ".gpu/unpacked/$name" data/
    else
        echo "$name: not all parts of its archive are here yet"
    fi
done
mkdir -p .gpu/state
if ls .gpu/returned/state.tar.part-* >/dev/null 2>&1; then
    cat .gpu/returned/state.tar.part-* | tar -x --skip-old-files -C .gpu/state
fi
code=0
timeout --signal=INT "${SECONDS_AT_MOST:-540}" python3 -m bench.gpu "$@" --state .gpu/state --out ".gpu/state/results/$1" || code=$?
for mark in .gpu/state/*/checkpoints/*/finished; do # of teachers that are there
    [ ! -e "$mark" ] || rm -r "$(dirname "$mark")"
done
tar -C .gpu/state --exclude 'data-*' -cf - . | split -b 15M - "$OUT/state.tar.part-"
ls -l "$OUT"
exit $code
