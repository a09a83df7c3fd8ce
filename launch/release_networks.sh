#!/usr/bin/env bash
# Makes the release file of the trained networks, and describes it in patterson_jax/networks.json:
#
#     launch/release_networks.sh dist
#
# The same networks give the same file. Put it in a folder that users can read, by https:// or file://. The address of
# the folder belongs in the field "address" of networks.json, or in the environment variable PATTERSON_JAX_NETWORKS.
# Where a package has no networks (remove pretrained/ before you build it), they are then fetched once.
set -euo pipefail
folder=$(realpath -m "${1:?the folder to make is missing, as in: launch/release_networks.sh dist}")
cd "$(dirname "$0")/.."
mkdir -p "$folder"
"${PYTHON:-python3}" - "$folder" <<'END'
import sys
from pathlib import Path

from patterson_jax.releases import read_release, update_manifest
from patterson_jax.writing import write_whole

archive = update_manifest(Path.cwd())
release = read_release(Path.cwd() / 'patterson_jax')
write_whole(Path(sys.argv[1]) / release.file, lambda part: part.write_bytes(archive))
print(f'{sys.argv[1]}/{release.file}: {", ".join(release.networks)}; {release.size} bytes, SHA-256 {release.sha256}')
END
