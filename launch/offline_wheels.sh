#!/usr/bin/env bash
# Makes a folder of wheels for a machine that is available for minutes only and has no network:
#
#     launch/offline_wheels.sh wheels
#
# The machine must have Python 3.12 on x86-64 Linux and the large packages: JAX, flax, optax, orbax, NumPy, SciPy, PyTorch.
# The folder has the other packages of setup.cfg with their dependencies, in less than 50 MB. On the machine, in the
# repository and with the folder in it, these commands install the missing packages and then measure:
#
#     python -m pip install --no-index --find-links=wheels --requirement wheels/missing.txt &&
#         python -m benchmarks.device --minutes=9 --output=DIR
set -euo pipefail
folder=${1:?the folder to make is missing, as in: launch/offline_wheels.sh wheels}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."

there='jax jaxlib flax optax orbax-checkpoint numpy scipy'
mkdir -p "$folder"
"$python" - "$there" >"$folder/missing.txt" <<'EOF'
import configparser
import re
import sys

config = configparser.ConfigParser()
config.read('setup.cfg')
wanted = config['options']['install_requires'].split('\n')
names = {each: re.match(r'[\w-]+', each)[0] for each in wanted if each and not each.startswith('#')}
print('\n'.join(each for each, name in names.items() if name not in sys.argv[1].split()))
EOF

# pip matches the 2.N of a platform exactly, so all usual ones are named.
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
"$python" -m pip download --quiet --dest "$folder" --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --requirement "$folder/missing.txt"
for name in $there; do
    rm -f "$folder/${name//-/_}"-*.whl
done

bytes=$(du --bytes --total "$folder"/*.whl | tail -n 1 | cut -f 1)
if [ "$bytes" -ge 50000000 ]; then
    echo "error: $folder takes $bytes bytes; it must be less than 50000000" >&2
    exit 1
fi
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $((bytes / 1000000)) MB"
